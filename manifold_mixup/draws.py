"""The mixes of many heads: of every seed one stream for each alpha, pairing and exclusion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

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
    """Draws for many heads what `train_head` draws for each of them alone.

    Args:
        settings: Of the heads, seed after seed, and but for that the same of every seed.
        generators: States of the heads' generators (K, bytes) to go on from; None to begin.
    """

    def __init__(self, settings: Sequence[HeadSettings], generators: Tensor | None = None) -> None:
        self._seeds = list(dict.fromkeys(head.seed for head in settings))
        of_one = settings[: len(settings) // len(self._seeds)]
        streams = [(head.alpha, head.pairing, head.exclude) for head in of_one]
        sources = [_source(*stream) for stream in streams]
        self._streams, self._sources = list(dict.fromkeys(streams)), list(dict.fromkeys(sources))
        self._stream_of = torch.tensor([self._streams.index(stream) for stream in streams])
        self._source_of = torch.tensor([self._sources.index(source) for source in sources])
        self._first = [sources.index(one) for one in self._sources]
        self.begin()
        if generators is not None:
            self.go_on(generators)

    def begin(self) -> None:
        """Draw from the beginning."""
        self._generators = [
            [seeded_generator(seed, "mix", 0) for seed in self._seeds] for _ in self._sources
        ]

    def go_on(self, generators: Tensor) -> None:
        """Draw on from what `states` gave (K, bytes)."""
        by_seed = torch.unflatten(generators, 0, (len(self._seeds), -1))
        for head, of_source in zip(self._first, self._generators, strict=True):
            for generator, state in zip(of_source, by_seed[:, head], strict=True):
                # A state that is a view of a larger tensor crashes torch (2.14).
                generator.set_state(state.clone())

    def states(self) -> Tensor:
        """The state of every head's generator (K, bytes)."""
        states = [torch.stack([g.get_state() for g in own]) for own in self._generators]
        return torch.stack(states, 1)[:, self._source_of].flatten(0, 1)

    def mixes(self, target: Tensor, like: Tensor) -> Iterator[HeadMixes]:
        """Draw the mixes of some steps: all at once, as single ones cost more than their use.

        Args:
            target: Class indices of the samples of each step and seed (S, G, B), on the CPU.
            like: A tensor of the dtype and device to mix on.
        """
        own = target[:, :, None, None]
        if all(alpha == 0 for alpha, *_ in self._streams):
            share = like.new_full((1, 1, target.shape[2]), -1)
            classes = self._of_heads(own.expand(-1, -1, len(self._streams), -1, -1), like.device)
            return (HeadMixes(None, None, one, share) for one in classes.unbind())
        lam, partner = (drawn[:, :, :, None] for drawn in self._drawn(target))
        lam, own = lam.to(like.dtype), own.expand_as(partner)
        classes = torch.cat([own, own.gather(4, partner)], 3)
        tensors = (lam, partner, classes, torch.cat([-lam, lam - 1], 3))
        steps = (self._of_heads(tensor, like.device).unbind() for tensor in tensors)
        return (HeadMixes(*step) for step in zip(*steps, strict=True))

    def _of_heads(self, tensor: Tensor, device: torch.device) -> Tensor:
        """From streams of every seed (S, G, streams, T, B) to heads (S, K or 1, T, B)."""
        tensor = tensor.to(device)
        if len(self._seeds) > 1 or len(self._streams) > 1:
            tensor = tensor.index_select(2, self._stream_of.to(device))
        return tensor.flatten(1, 2)

    def _drawn(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Lam and partner of every stream for each sample of each step: (S, G, streams, B)."""
        drawn = {
            source: _draw(*source, target, generators)
            for source, generators in zip(self._sources, self._generators, strict=True)
        }
        paired = [_pair(*stream, *drawn[_source(*stream)], target) for stream in self._streams]
        lam, partner = zip(*paired, strict=True)
        return torch.stack(lam, 2), torch.stack(partner, 2)


def _source(alpha: float, pairing: Pairing, exclude: tuple[int, ...]) -> _Source:
    """What decides the draws: rules that take an order draw the same from equal generators."""
    return alpha, None if takes_order(pairing, exclude) else (pairing, exclude)


def _draw(
    alpha: float, rule: _Rule | None, target: Tensor, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """A lam and a partner, or without a rule an order, for each sample of each step: (S, G, B)."""
    n = target.shape[2]
    if alpha == 0:
        return torch.ones_like(target, dtype=torch.float64), torch.arange(n).expand_as(target)
    gammas, uniforms, partners = [], [], []
    for own, generator in zip(target.flatten(0, 1), cycle(generators)):
        gamma, uniform = draw_gamma(alpha, n, generator)
        gammas.append(gamma)
        uniforms.append(uniform)
        if rule is None:
            partners.append(torch.randperm(n, generator=generator))
        else:
            pairing, exclude = rule
            partner = draw_partner(n, pairing, target=own, exclude=exclude, generator=generator)
            partners.append(partner)
    lam = lam_from(torch.stack(gammas), torch.stack(uniforms), alpha)
    return lam.view(target.shape), torch.stack(partners).view(target.shape)


def _pair(
    alpha: float,
    pairing: Pairing,
    exclude: tuple[int, ...],
    lam: Tensor,
    partner: Tensor,
    target: Tensor,
) -> tuple[Tensor, Tensor]:
    """What a stream makes of its draws: lam and partner of each sample of each step (S, G, B)."""
    if alpha and takes_order(pairing, exclude):
        partner = pair_in_order(partner, pairing, target)
    return keep_unpaired(lam, partner), partner
