"""Partners by what classes the samples of a batch have: another one, or the same."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Clash = Callable[[Tensor, Tensor], Tensor]


def draw_cycle(n: int, generator: torch.Generator | None) -> Tensor:
    """A random cycle through n samples: each is taken once, and nobody by themselves."""
    order = torch.randperm(n, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def read_labels(target: Tensor) -> Tensor:
    """What classes samples have: one index each (B,), or for multi-label whether (B, C), bool.

    Args:
        target: Class indices (B,); or (B, C): one-hot or probabilities, of which the largest
            counts, else multi-label, of which those above 0.5 count.

    Raises:
        ValueError: It is neither of these, or a value is not a number.

    Example:
        >>> read_labels(torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
        tensor([1, 0])
        >>> read_labels(torch.tensor([[1, 1], [0, 1]]))
        tensor([[ True,  True],
                [False,  True]])
    """
    if target.ndim == 1 and not (target.is_floating_point() or target.is_complex()):
        return target.long()
    if target.ndim != 2 or target.is_complex():
        raise ValueError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype} tells no classes: "
            "expected class indices (B,), or values for each class (B, C); use target.long() if "
            "its numbers are indices"
        )
    values = target.float()
    if values.isnan().any():
        raise ValueError("target holds NaN: no class can be read from it")
    return values.argmax(1) if are_probabilities(values) else values > 0.5


def are_probabilities(target: Tensor) -> bool:
    """Whether numbers (B, C) are at least 0 and sum to 1 in each row, as of one-hot ones too."""
    sums_to_1 = (target.float().sum(1) - 1).abs() < 0.01  # also after rounding to half precision
    return bool(sums_to_1.all()) and bool((target >= 0).all())


def have_any(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Whether samples have any of some classes (B,).

    Args:
        labels: What `read_labels` gave.
        classes: Class indices, from 0.
    """
    wanted = torch.tensor(classes)
    return torch.isin(labels, wanted) if labels.ndim == 1 else labels[:, wanted].any(1)


def draw_other(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """A partner without a common class for each sample, itself where there is none (B,).

    Each is taken once, if no class has more than half of the samples; else as evenly as can be.
    """
    labels = _of_one_label(labels)
    if labels.ndim == 2:
        return _draw_apart(_have_common(labels).fill_diagonal_(True), generator)
    ranks, counts = _ranked(labels)
    n, most = len(labels), int(counts.max())
    if most == n:
        return torch.arange(n)
    if 2 * most <= n:
        keys = torch.randperm(len(counts), generator=generator)
        order = _grouped(keys.take(ranks), generator)
        other = order.roll(-(n // 2))  # further than any class is long
    else:
        order, place = _grouped(ranks != counts.argmax(), generator), torch.arange(n)
        other = order[torch.where(place < most, most + place % (n - most), place - most)]
    partner = torch.empty_like(order).scatter_(0, order, other)
    # Until here the partners of a class are of one or two classes.
    return _swapped(partner, lambda one, two: ranks.take(one) == ranks.take(two), generator)


def draw_same(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """A partner with a common class for each sample, itself where there is none (B,)."""
    labels = _of_one_label(labels)
    if labels.ndim == 2:
        return _draw_apart(_have_common(labels).logical_not_().fill_diagonal_(True), generator)
    grouped = _grouped(labels, generator)
    _, counts = torch.unique_consecutive(labels[grouped], return_counts=True)
    after, ends = torch.arange(1, len(labels) + 1), counts.cumsum(0)
    after[ends - 1] = ends - counts  # who is the last of a class takes the first
    return torch.empty_like(grouped).scatter_(0, grouped, grouped[after])


def _of_one_label(labels: Tensor) -> Tensor:
    """A single label as two classes (B,), there and not; others as they are."""
    return labels[:, 0].long() if labels.ndim == 2 and labels.shape[1] == 1 else labels


def pick(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a column of each row (N, M) by its weight; M where all of them are 0."""
    total = weight.cumsum(1)
    # Of 24 bits, so that the product stays below the last sum.
    part = torch.rand(len(weight), 1, dtype=torch.float32, generator=generator) * total[:, -1:]
    return torch.searchsorted(total, part, right=True).squeeze(1)


def _ranked(classes: Tensor) -> tuple[Tensor, Tensor]:
    """The classes (B,) numbered from 0 without gaps, and how often there is each."""
    found: tuple[Tensor, ...] = torch.unique(classes, return_inverse=True, return_counts=True)
    return found[1], found[2]


def _grouped(keys: Tensor, generator: torch.Generator | None) -> Tensor:
    """The places of keys in their order, equal ones in a random one."""
    order = torch.randperm(len(keys), generator=generator)
    return order.take(keys.take(order).argsort(stable=True))


def _have_common(labels: Tensor) -> Tensor:
    values = labels.float()
    return values @ values.T > 0


def _draw_apart(clashes: Tensor, generator: torch.Generator | None) -> Tensor:
    """Partners that do not clash with the samples (B, B): each taken once, but for a few."""
    n = len(clashes)
    partner = draw_cycle(n, generator)
    for _ in range(2):
        partner = _swapped(partner, lambda one, two: clashes.take(one * n + two), generator)
    stuck = clashes[torch.arange(n), partner].nonzero().flatten()
    picked = pick((~clashes[stuck]).float(), generator)
    partner[stuck] = torch.where(picked < n, picked, stuck)
    return partner


def _swapped(partner: Tensor, clash: Clash, generator: torch.Generator | None) -> Tensor:
    """Let the samples of random pairs exchange partners, where both exchanges do not clash."""
    half = len(partner) // 2
    pair = torch.randperm(len(partner), generator=generator)[: 2 * half]
    now = partner.take(pair)
    then = now.roll(half)
    clashes = clash(pair, then).view(2, half).any(0)
    settled = torch.where(clashes, now.view(2, half), then.view(2, half)).flatten()
    return partner.scatter_(0, pair, settled)
