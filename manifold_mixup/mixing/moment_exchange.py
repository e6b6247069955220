"""Features that get the moments of their partner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.mixing.mix import Mix, as_rows, in_float32

# Added to a variance, as the authors do.
_EPSILON = 1e-5


@dataclass(frozen=True, eq=False, init=False, repr=False)
class MomentExchange(Mix):
    """A mix in which each sample keeps its normalized features and gets its partner's moments.

        h[i]  ->  (h[i] - mean(h[i])) / std(h[i]) * std(h[partner[i]]) + mean(h[partner[i]])

    Mean and standard deviation are taken over the channels, at each position of a map or sequence
    by itself (positional normalization), with 1e-5 added to the variance. They are exchanged as a
    whole, whatever lam is: lam only weighs the sample's own target against its partner's in the
    loss. It is therefore not drawn, but 0.9 as in the paper's experiments, unless `sample` is told
    otherwise; choose by `prob` of `ManifoldMixup` how often moments are exchanged.

    Args:
        lam: Weight of the sample's own target, in [0, 1]: a number, or one per sample (B,).
        partner: Index of the sample each one gets its moments from, (B,).
        axis: The axis of the channels; None for 1 in maps (B, C, *, *), and the last one in
            vectors (B, D) and sequences (B, N, D).

    Raises:
        TypeError: `partner` is not integer.
        ValueError: A shape or a range is wrong.

    Example:
        >>> features = torch.tensor([[1.0, 3.0], [40.0, 20.0]])
        >>> MomentExchange(0.9, [1, 0])(features).round(decimals=2)
        tensor([[20., 40.],
                [ 3.,  1.]])

    Reference:
        Li et al., On Feature Normalization and Data Augmentation, CVPR 2021.
        https://arxiv.org/abs/2002.11102
    """

    axis: int | None

    def __init__(
        self,
        lam: float | Sequence[float] | Tensor,
        partner: Sequence[int] | Tensor,
        *,
        axis: int | None = None,
    ) -> None:
        super().__init__(lam, partner)
        object.__setattr__(self, "axis", axis)

    @classmethod
    def sample(
        cls,
        n: int,
        alpha: float = 0.4,
        *,
        keep: float | None = 0.9,
        axis: int | None = None,
        **options: Any,
    ) -> "MomentExchange":
        """Draw partners as `Mix.sample` does; lam is fixed.

        Args:
            n: Number of samples B, at least 1.
            alpha: 0 exchanges nothing; else only of lam ~ Beta(alpha, alpha) if `keep` is None.
            keep: lam of every sample that takes part, in [0, 1]; None to draw it.
            axis: The axis of the channels.
            options: See `Mix.sample` for these.

        Example:
            >>> MomentExchange.sample(3, keep=0.8).lam
            tensor([0.8000, 0.8000, 0.8000], dtype=torch.float64)
        """
        mix = Mix.sample(n, alpha, **options)
        lam = mix.lam if keep is None else mix.lam.where(mix.lam == 1, keep)
        return cls(lam, mix.partner, axis=axis)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Exchange the moments of features (B, *), out of place; else as `Mix`."""
        self.check(tensor)
        own, partner = in_float32(tensor), self.partner.to(tensor.device)
        variance, mean = torch.var_mean(own, self._axis(own), correction=0, keepdim=True)
        std = (variance + _EPSILON).sqrt()
        exchanged = (own - mean) * (std[partner] / std) + mean[partner]
        alone = self.partner == torch.arange(len(self), device=self.partner.device)
        keeps = ((self.lam == 1) | alone).to(own.device)
        return torch.where(as_rows(keeps, own), own, exchanged).to(tensor.dtype)

    def check(self, tensor: Tensor) -> None:
        """Raise a TypeError or ValueError unless this can mix tensors like that one."""
        super().check(tensor)
        axis = self._axis(tensor)
        if tensor.ndim < 2 or not -tensor.ndim < axis < tensor.ndim or axis == 0:
            raise ValueError(
                f"moments are taken over channels, got shape {tuple(tensor.shape)} and "
                f"axis={axis}; choose a layer that returns (B, C, *), or another axis"
            )

    def _axis(self, like: Tensor) -> int:
        if self.axis is not None:
            return self.axis
        return 1 if like.ndim > 3 else -1
