"""The mixes of many heads of one seed: one stream for each alpha, pairing and exclusion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_mixup.drawing import draw_gamma, lam_from, seeded_generator
from manifold_mixup.pairing import (
    Pairing,
    draw_partner,
    keep_unpaired,
    pair_in_order,
    takes_order,
)
from manifold_mixup.settings import HeadSettings

# Pairing and exclusion; alpha and such a rule, or none where all that is drawn is an order.
_Rule = tuple[Pairing, tuple[int, ...]]
_Source = tuple[float, _Rule | None]


@dataclass(frozen=True)
class HeadMixes:
    """The mix of each of K heads in one step, and the targets mixed by it.

    The first axis of all is K, or 1 where all heads have the same.

    Attributes:
        lam: (K, 1, B); None if nothing is mixed.
        partner: (K, 1, B); None if nothing is mixed.
        classes: Indices of the classes that a sample belongs to: its own and its partner's
            (K, 2, B), or its own alone (K, 1, B).
        share: How much it belongs to each of them, negated.
    """

    lam: Tensor | None
    partner: Tensor | None
    classes: Tensor
    share: Tensor


class Draws:
    """Draws for heads of one seed what `train_head` draws for each of them alone.

    Args:
        settings: Of the heads, all of the same seed.
        generators: States of the heads' generators (K, bytes) to go on from; None to begin.
    """

    def __init__(self, settings: Sequence[HeadSettings], generators: Tensor | None = None) -> None:
        streams = [(head.alpha, head.pairing, head.exclude) for head in settings]
        sources = [_source(*stream) for stream in streams]
        self._streams, self._sources = list(dict.fromkeys(streams)), list(dict.fromkeys(sources))
        self._stream_of = torch.tensor([self._streams.index(stream) for stream in streams])
        self._source_of = torch.tensor([self._sources.index(source) for source in sources])
        self._seed, self._first = settings[0].seed, [sources.index(one) for one in self._sources]
        self.begin()
        if generators is not None:
            self.go_on(generators)

    def begin(self) -> None:
        """Draw from the beginning."""
        self._generators = [seeded_generator(self._seed, "mix", 0) for _ in self._sources]

    def go_on(self, generators: Tensor) -> None:
        """Draw on from what `states` gave (K, bytes)."""
        for head, generator in zip(self._first, self._generators, strict=True):
            # A state that is a view of a larger tensor crashes torch (2.14).
            generator.set_state(generators[head].clone())

    def states(self) -> Tensor:
        """The state of every head's generator (K, bytes)."""
        return torch.stack([g.get_state() for g in self._generators])[self._source_of]

    def mixes(self, target: Tensor, like: Tensor) -> Iterator[HeadMixes]:
        """Draw the mixes of some steps: all at once, as single ones cost more than their use.

        Args:
            target: Class indices of the samples of each step (S, B), on the CPU.
            like: A tensor of the dtype and device to mix on.
        """
        own = target[:, None, None]
        if all(alpha == 0 for alpha, *_ in self._streams):
            share = like.new_full((1, 1, target.shape[1]), -1)
            return (HeadMixes(None, None, one, share) for one in own.to(like.device).unbind())
        lam, partner = self._drawn(target)
        if len(self._streams) > 1:
            lam, partner = lam[:, self._stream_of], partner[:, self._stream_of]
        lam, partner = lam[:, :, None].to(like.device, like.dtype), partner[:, :, None]
        own = own.expand_as(partner)
        classes = torch.cat([own, own.gather(3, partner)], 2).to(like.device)
        share = torch.cat([-lam, lam - 1], 2)
        tensors = (lam, partner.to(like.device), classes, share)
        return (HeadMixes(*step) for step in zip(*(t.unbind() for t in tensors), strict=True))

    def _drawn(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The lam and partner of every stream for each sample of each step: (S, streams, B)."""
        drawn = {
            source: _draw(*source, target, generator)
            for source, generator in zip(self._sources, self._generators, strict=True)
        }
        paired = [_pair(*stream, *drawn[_source(*stream)], target) for stream in self._streams]
        lam, partner = zip(*paired, strict=True)
        return torch.stack(lam, 1), torch.stack(partner, 1)


def _source(alpha: float, pairing: Pairing, exclude: tuple[int, ...]) -> _Source:
    """What decides the draws: rules that take an order draw the same from equal generators."""
    return alpha, None if takes_order(pairing, exclude) else (pairing, exclude)


def _draw(
    alpha: float, rule: _Rule | None, target: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A lam and a partner, or without a rule an order, for each sample of each step: (S, B)."""
    steps, n = target.shape
    if alpha == 0:
        return torch.ones(steps, n, dtype=torch.float64), torch.arange(n).expand(steps, n)
    gammas, uniforms, partners = [], [], []
    for own in target:
        gamma, uniform = draw_gamma(alpha, n, generator)
        gammas.append(gamma)
        uniforms.append(uniform)
        if rule is None:
            partners.append(torch.randperm(n, generator=generator))
        else:
            pairing, exclude = rule
            partner = draw_partner(n, pairing, target=own, exclude=exclude, generator=generator)
            partners.append(partner)
    return lam_from(torch.stack(gammas), torch.stack(uniforms), alpha), torch.stack(partners)


def _pair(
    alpha: float,
    pairing: Pairing,
    exclude: tuple[int, ...],
    lam: Tensor,
    partner: Tensor,
    target: Tensor,
) -> tuple[Tensor, Tensor]:
    """What a stream makes of its draws: lam and partner of each sample of each step (S, B)."""
    if alpha and takes_order(pairing, exclude):
        partner = pair_in_order(partner, pairing, target)
    return keep_unpaired(lam, partner), partner
