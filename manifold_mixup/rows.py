"""How the CPU mixes large tensors: as rows, in as few readings of the memory as can be."""

import math
from typing import Any

import torch
from torch import Tensor

Terms = tuple[Tensor, Tensor, Tensor]


def is_faster_by_rows(tensor: Tensor, *, has_exact: bool) -> bool:
    """Whether `mix_rows` takes this tensor, and in less time than index_select and lerp do."""
    if tensor.dtype == torch.float32:
        if tensor.is_contiguous() and not (
            has_exact or tensor.requires_grad or _is_long(tensor.numel() // len(tensor))
        ):
            return False
    elif tensor.dtype != torch.bfloat16:
        return False
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and tensor.numel() >= 1 << 15  # less than that torch itself does with one thread
        and not torch._C._are_functorch_transforms_active()
    )


def mix_rows(tensor: Tensor, lam: Tensor, partner: Tensor, *, has_exact: bool) -> Tensor:
    """lam[i] * tensor[i] + (1 - lam[i]) * tensor[partner[i]], for float32 or bfloat16.

    Without `has_exact` no lam rounds to 0 or 1, and no sample is its own partner.
    """
    mixed: Tensor = _MixedRows.apply(tensor, lam, partner, has_exact, False)
    return mixed


class _MixedRows(torch.autograd.Function):
    """A mix is linear: its gradient is the transposed mix, whose gradient is the mix again."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, lam: Tensor, partner: Tensor, has_exact: bool, transposed: bool
    ) -> Tensor:
        ctx.mix = lam, partner, has_exact
        ctx.transposed = transposed
        tensor = _with_dense_rows(tensor)
        length = tensor.numel() // len(tensor)
        rows, lam = tensor.as_strided((len(tensor), length), (length, 1)), lam.float()
        if has_exact:
            lam = lam.masked_fill(partner == torch.arange(len(lam), device=lam.device), 1)
        mixed = (_transposed_mix if transposed else _mix)(rows, lam, partner, has_exact)
        # In place, for a view could not be changed in place by what comes after.
        mixed.as_strided_(tensor.shape, tensor.stride())
        if mixed.shape != tensor.shape:  # batched gradients have no such operation
            mixed = mixed.as_strided(tensor.shape, tensor.stride())
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _MixedRows.apply(grad, *ctx.mix, not ctx.transposed), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return _MixedRows.apply(tangent, *ctx.mix, ctx.transposed)


def _mix(rows: Tensor, lam: Tensor, partner: Tensor, has_exact: bool) -> Tensor:
    if rows.dtype == torch.bfloat16:
        return _sum_terms(rows, lam, partner, 1 - lam, has_exact)
    if _is_long(rows.shape[1]):
        return _mix_one_by_one(rows, lam.tolist(), partner.tolist())
    mixed = rows.index_select(0, partner).lerp_(rows, lam[:, None])
    if has_exact:
        exact = ((lam == 0) | (lam == 1)).nonzero().flatten()
        source = torch.where(lam[exact] == 1, exact, partner[exact])
        mixed.index_copy_(0, exact, rows.index_select(0, source))
    return mixed


def _mix_one_by_one(rows: Tensor, lam: list[float], partner: list[int]) -> Tensor:
    mixed = torch.empty_like(rows)
    for i, (weight, index) in enumerate(zip(lam, partner, strict=True)):
        if weight in (0, 1):
            mixed[i] = rows[i if weight else index]
        else:
            torch.lerp(rows[index], rows[i], weight, out=mixed[i])
    return mixed


def _transposed_mix(rows: Tensor, lam: Tensor, partner: Tensor, has_exact: bool) -> Tensor:
    taken, inverse = partner.sort()
    if not torch.equal(taken, torch.arange(len(taken), device=taken.device)):
        return _sum_terms(rows, lam, partner, 1 - lam, has_exact, transposed=True)
    rest = (1 - lam).index_select(0, inverse)
    if has_exact or rows.dtype == torch.bfloat16 or _is_long(rows.shape[1]):
        return _sum_terms(rows, lam, inverse, rest, has_exact)
    return rows.index_select(0, inverse).mul_(rest[:, None]).addcmul_(rows, lam[:, None])


def _sum_terms(
    rows: Tensor,
    lam: Tensor,
    other: Tensor,
    rest: Tensor,
    has_exact: bool,
    *,
    transposed: bool = False,
) -> Tensor:
    """lam[i] * rows[i] + rest[i] * rows[other[i]], or the transposed of that."""
    count, length = rows.shape
    # The kernel is compiled for the length of a row, and is long itself if that is.
    parts = math.gcd(length, 1 << (length >> 13).bit_length())
    if parts > 1:
        other = (other[:, None] * parts + torch.arange(parts, device=other.device)).flatten()
        lam, rest = lam.repeat_interleave(parts), rest.repeat_interleave(parts)
    source, weight, start = _terms(lam, other, rest, has_exact, rows.dtype)
    if transposed:
        source, weight, start = _transposed(source, weight, start)
    table = rows.view(count * parts, length // parts)
    return torch.embedding_bag(table, source, start, False, 0, False, weight, True)[0]


def _terms(lam: Tensor, other: Tensor, rest: Tensor, has_exact: bool, dtype: torch.dtype) -> Terms:
    """Row by row the terms of its sum: their source and weight, and where its first one stands."""
    own = torch.arange(len(other), device=other.device)
    sources, weights = [own, other], [lam, rest]
    if dtype == torch.bfloat16:  # two numbers for each weight, which tell it to 1 part in 2**17
        high = [weight.bfloat16() for weight in weights]
        low = [(w - h).bfloat16() for w, h in zip(weights, high, strict=True)]
        sources, weights = sources * 2, high + low
    width = len(sources)
    start = torch.arange(0, len(own) * width + 1, width, device=own.device)
    source, weight = torch.stack(sources, 1).flatten(), torch.stack(weights, 1).flatten()
    if not has_exact:
        return source, weight, start
    kept = weight.nonzero().flatten()
    return source[kept], weight[kept], torch.searchsorted(kept, start)


def _transposed(source: Tensor, weight: Tensor, start: Tensor) -> Terms:
    rows = torch.arange(len(start), device=start.device)
    column, order = source.sort()
    source = rows[:-1].repeat_interleave(start.diff())
    return source[order], weight[order], torch.searchsorted(column, rows)


def _is_long(length: int) -> bool:
    return length >= 1 << 16


def _with_dense_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy whose samples lie one after the other in memory without gaps."""
    if not _has_dense_rows(tensor):
        tensor = tensor.clone()
    return tensor if _has_dense_rows(tensor) else tensor.contiguous()


def _has_dense_rows(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return True
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
    return order[0] == 0 and tensor.permute(order).is_contiguous()
