"""K mixes of the same samples as one value, which mixes logits and brings gradients back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_mixup._random import seeded_generator
from manifold_mixup.mixing import Mix, Pairing, rebalance

# Samples among whom partners are drawn: some rules weigh every pair.
_GROUP = 2048
# Numbers that are mixed at a time, on a CPU about what a core's caches hold.
_MIXED = 2**20


@dataclass(frozen=True)
class Mixes:
    """K mixes of n samples. Samples come last here, as heads' products leave them.

    Attributes:
        lam: Weight of each sample itself (K, n).
        partner: Who it is mixed with (K, n).
        target_lam: The same weight in the target (K, n), which only Remix makes another.

    Example:
        >>> mixes = Mixes.of([Mix(0.75, [1, 0])])
        >>> mixes.mixed(torch.tensor([[0.0, 8.0]], dtype=torch.float64))
        tensor([[[2., 6.]]], dtype=torch.float64)
    """

    lam: Tensor
    partner: Tensor
    target_lam: Tensor

    @classmethod
    def of(cls, mixes: Iterable[Mix], target_mixes: Iterable[Mix] | None = None) -> "Mixes":
        """Some mixes of the same samples, and if they differ, those of the targets."""
        mixes = list(mixes)
        lam = torch.stack([mix.lam for mix in mixes])
        given = None if target_mixes is None else [mix.lam for mix in target_mixes]
        target_lam = lam if given is None else torch.stack(given)
        return cls(lam, torch.stack([mix.partner for mix in mixes]), target_lam)

    def __len__(self) -> int:
        return len(self.lam)

    def to(self, like: Tensor) -> "Mixes":
        """The same on the device, and with weights of the type, of a tensor."""
        lam, target_lam = (one.to(like.device, like.dtype) for one in (self.lam, self.target_lam))
        return Mixes(lam, self.partner.to(like.device), target_lam)

    def parts(self, rows: int) -> Iterator["Mixes"]:
        """Some of the mixes at a time, so that those of so many rows do not fill the memory."""
        some = max(1, _MIXED // (rows * self.lam.shape[1]))
        for begin in range(0, len(self), some):
            own = slice(begin, begin + some)
            yield Mixes(self.lam[own], self.partner[own], self.target_lam[own])

    def mixed(self, values: Tensor) -> Tensor:
        """Values of the samples (C, n), mixed as features are: (C, K, n)."""
        return self._mixed(values, self.lam)

    def mixed_target(self, values: Tensor) -> Tensor:
        """The same, mixed as targets are."""
        return self._mixed(values, self.target_lam)

    def unmixed(self, gradient: Tensor) -> Tensor:
        """The transpose of `mixed`: from (C, K, n) to (C, n). Overwrites what it is given."""
        own = gradient * self.lam
        whole = own.sum(1)
        return whole.index_add_(1, self.partner.flatten(), gradient.sub_(own).flatten(1))

    def _mixed(self, values: Tensor, lam: Tensor) -> Tensor:
        other = values.index_select(1, self.partner.flatten()).view(-1, *lam.shape)
        return other.lerp_(values[:, None], lam)


def draw_mixes(
    count: int,
    n: int,
    alpha: float,
    *,
    target: Tensor | None = None,
    pairing: Pairing = "any",
    exclude: Iterable[int] = (),
    per_sample: bool = True,
    remix_counts: Tensor | None = None,
    seed: int = 0,
) -> Mixes:
    """Draw K mixes of n samples, each among all of them (of many in groups).

    Args:
        count: K, at least 1.
        n: Number of samples.
        alpha: See `Mix.sample`, as for the next four.
        target: Targets (n, *), on the CPU.
        pairing: Who mixes with whom.
        exclude: Classes that take no part.
        per_sample: One lam for each sample, else one for each mix (of many samples, each group).
        remix_counts: Number of training samples of each class (C,), for targets mixed by Remix;
            see `rebalance`.
        seed: Mix k is drawn from `(seed, "mixes", k)`: fewer mixes are the first of more.

    Example:
        >>> draw_mixes(2, 5, 0.4).lam.shape
        torch.Size([2, 5])
    """
    exclude = tuple(exclude)
    drawn = Mixes.of(
        _draw(n, alpha, target, pairing, exclude, per_sample, seeded_generator(seed, "mixes", k))
        for k in range(count)
    )
    if remix_counts is None:
        return drawn
    assert target is not None  # Remix is of classes
    plain = [Mix(*one) for one in zip(drawn.lam, drawn.partner, strict=True)]
    return Mixes.of(plain, [rebalance(mix, target, remix_counts) for mix in plain])


def _draw(
    n: int,
    alpha: float,
    target: Tensor | None,
    pairing: Pairing,
    exclude: tuple[int, ...],
    per_sample: bool,
    generator: torch.Generator,
) -> Mix:
    """One mix of n samples."""
    order = torch.randperm(n, generator=generator) if n > _GROUP else torch.arange(n)
    lam, partner = torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.long)
    for group in order.chunk(-(-n // _GROUP)):
        mix = Mix.sample(
            len(group),
            alpha,
            target=None if target is None else target[group],
            pairing=pairing,
            exclude=exclude,
            per_sample=per_sample,
            generator=generator,
        )
        lam[group], partner[group] = mix.lam, group[mix.partner]
    return Mix(lam, partner)
