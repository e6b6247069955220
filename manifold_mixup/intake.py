"""What heads of some seeds take in, step by step: made once for all that share it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from manifold_mixup.draws import HeadMixes
from manifold_mixup.epochs import Epoch
from manifold_mixup.feature_noise import add_noise
from manifold_mixup.feed import Feed
from manifold_mixup.lanes import Lane
from manifold_mixup.mixing import Mix

# Mixes are drawn for so many numbers (steps x heads x samples) at a time.
_DRAWN = 2**18


@dataclass(frozen=True)
class LaneInput:
    """What a lane takes in a step.

    Attributes:
        features: Of each seed (G, B, D).
        mix: Of this step.
        clean: Those of the same samples unmixed, if these are mixed and both count.
    """

    features: Tensor
    mix: HeadMixes
    clean: Tensor | None = None


class Intake:
    """Gathers, mixes and carries what some lanes take.

    Where epochs repeat their draws and `Feed.between` is costly, what comes out of it is kept in
    memory, and so are the mixes.

    Args:
        lanes: All of the same seeds.
        feed: The samples.
    """

    def __init__(self, lanes: Sequence[Lane], feed: Feed) -> None:
        self.lanes, self.feed = lanes, feed
        self._kept: dict[int, tuple[list[list[LaneInput]], list[Tensor]]] = {}

    def steps(self, epoch: Epoch) -> Iterable[list[LaneInput]]:
        """What each lane takes in each step of an epoch."""
        if epoch.draws == 0:
            for lane in self.lanes:
                lane.draws.begin()
        if self.feed.between is None or not epoch.repeats:
            return self._made(epoch.draws)
        if epoch.draws not in self._kept:
            made = list(self._made(epoch.draws))
            self._kept[epoch.draws] = made, [lane.draws.states() for lane in self.lanes]
        made, states = self._kept[epoch.draws]
        for lane, state in zip(self.lanes, states, strict=True):
            lane.draws.go_on(state)
        return made

    def _made(self, epoch: int) -> Iterator[list[LaneInput]]:
        for step, (index, mixes) in enumerate(self._drawn(epoch)):
            yield self._of_step(index, mixes, epoch, step)

    def _drawn(self, epoch: int) -> Iterator[tuple[Tensor, tuple[HeadMixes, ...]]]:
        """Samples of each seed (G, B) and the mix of each lane, step by step."""
        heads = sum(len(lane.heads) for lane in self.lanes)
        most = max(1, _DRAWN // (self.feed.batch_size * heads))
        for indices in self.feed.indices(self.lanes[0].seeds, epoch, most):
            target = self.feed.target[indices]
            mixes = [lane.draws.mixes(target, lane.weight) for lane in self.lanes]
            yield from zip(indices, zip(*mixes, strict=True), strict=True)

    def _of_step(
        self, index: Tensor, mixes: Sequence[HeadMixes], epoch: int, step: int
    ) -> list[LaneInput]:
        like, seeds = self.lanes[0].weight, self.lanes[0].seeds
        gathered = self.feed.gather(index.flatten()).to(like.device, like.dtype)
        of_seeds = torch.unflatten(gathered, 0, index.shape)

        @cache
        def stored(noise: float) -> Tensor:
            if noise == 0:
                return of_seeds
            noisy = [
                add_noise(own, noise, seed=seed, epoch=epoch, step=step)
                for own, seed in zip(of_seeds, seeds, strict=True)
            ]
            return torch.stack(noisy)

        def carried(features: Tensor) -> Tensor:
            taken = self.feed.heads_input(features.flatten(0, 1), like)
            return torch.unflatten(taken, 0, index.shape)

        @cache
        def clean(noise: float) -> Tensor:
            return carried(stored(noise))

        def taken(lane: Lane, mix: HeadMixes) -> LaneInput:
            if lane.mixes_logits or mix.lam is None or mix.partner is None:
                return LaneInput(clean(lane.noise), mix)
            (one,) = stored(lane.noise)  # such a lane is of a single seed
            mixed = Mix(mix.lam.flatten(), mix.partner.flatten())(one)
            beside = clean(lane.noise) if lane.weighs_clean else None
            return LaneInput(carried(mixed[None]), mix, beside)

        return [taken(lane, mix) for lane, mix in zip(self.lanes, mixes, strict=True)]
