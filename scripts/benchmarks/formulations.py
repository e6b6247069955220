"""The ways to write the mixing operation: each returns fresh memory, for any partner and lam."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifold_mixup import Mix

Way = Callable[[Tensor], Tensor]


class InversePermutation(torch.autograd.Function):
    """The mix by index_select and lerp, its gradient by the inverse permutation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
        """The mix."""
        ctx.save_for_backward(lam, partner)
        return x.index_select(0, partner).lerp_(x, lam)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Each sample's own gradient, and that of the one sample that it is the partner of."""
        lam, partner = ctx.saved_tensors
        inverse = partner.argsort()
        other = (1 - lam).index_select(0, inverse)
        return grad.index_select(0, inverse).mul_(other).addcmul_(grad, lam), None, None


def rows_in_a_loop(x: Tensor, lam: list[float], partner: list[int]) -> Tensor:
    """The mix of each sample by itself, into fresh memory."""
    own, mixed = x.unbind(), torch.empty_like(x)
    for i, row in enumerate(mixed.unbind()):
        torch.lerp(own[partner[i]], own[i], lam[i], out=row)
    return mixed


def in_float32(x: Tensor, mix: Mix) -> Tensor:
    """The mix of half-precision values with lam in float32, rounded once."""
    single = x.float()
    lam = mix.lam.float().view(-1, *[1] * (x.ndim - 1))
    return single.index_select(0, mix.partner).lerp_(single, lam).to(x.dtype)


def formulations(mix: Mix) -> dict[str, Way]:
    """All ways to mix that return fresh memory, from any partner and a lam for each sample."""
    partner = mix.partner

    def lam(x: Tensor) -> Tensor:
        return mix.lam.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    return {
        "naive": lambda x: (w := lam(x)) * x + (1 - w) * x[partner],
        "lerp": lambda x: torch.lerp(x[partner], x, lam(x)),
        "index_select, lerp_": lambda x: x.index_select(0, partner).lerp_(x, lam(x)),
        "rows in a loop": lambda x: rows_in_a_loop(x, mix.lam.tolist(), partner.tolist()),
        "float32 throughout": lambda x: in_float32(x, mix),
        "inverse permutation": lambda x: InversePermutation.apply(x, lam(x), partner),
        "Mix": mix,
    }
