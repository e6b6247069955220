"""Planted truths at the level of scores: what is known of a gain, the verdict says.

A sample is told right where a margin is above 0: how easy the sample is, what the split and draws
of a replicate make of it, and what mixing changes, in all samples, in this one, and in this one in
this replicate. All are normal, so that the accuracies in the population are known. Each of the
seeds 0 to 99 draws them anew, in turn for every shape that comparisons have.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from manifold_mixup import extract_features
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import Candidate, Comparison, Row, compare, compare_rows
from manifold_mixup.comparison.rows import is_settled
from manifold_mixup.comparison.verdict import paired_interval

SEEDS = range(100)
WORTH = 0.01
ALPHAS = (0.4, 1.0)


@dataclass(frozen=True)
class Shape:
    """How a comparison is made, and how much its parts vary, in units of how samples do.

    Attributes:
        replicates: How many.
        samples: Of the whole test set.
        folds: Each replicate tests one of so many parts; 1 for all samples.
        accuracy: Of the better of the two, no mixing and mixing.
        of_split: What split and draws change in a sample.
        of_sample: What mixing changes in a sample, in all replicates.
        of_mix: What it changes in a sample in one replicate.
        of_replicate: What it changes in all samples of a replicate.
    """

    replicates: int
    samples: int
    folds: int = 1
    accuracy: float = 0.9
    of_split: float = 0.3
    of_sample: float = 0.15
    of_mix: float = 0.3
    of_replicate: float = 0.03

    def rows(self, gain: float, seed: int) -> list[Row]:
        """One row without mixing and two that gain so much accuracy in the population."""
        generator = seeded_generator("planted", seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        size = (self.replicates, self.samples)
        before = normal(self.samples) + self.of_split * normal(*size)
        shift = self.of_sample * normal(self.samples) + self.of_replicate * normal(size[0], 1)
        plain = self.accuracy - max(gain, 0)
        rows = [self._row(Candidate("a"), before, 1 + self.of_split**2, plain, normal)]
        for alpha in ALPHAS:
            after = before + shift + self.of_mix * normal(*size)
            parts = (1, self.of_split, self.of_sample, self.of_replicate, self.of_mix)
            variance = sum(part**2 for part in parts)
            rows.append(self._row(Candidate("a", alpha), after, variance, plain + gain, normal))
        return rows

    def _row(
        self,
        candidate: Candidate,
        margin: Tensor,
        variance: float,
        accuracy: float,
        normal: Callable[..., Tensor],
    ) -> Row:
        mean = torch.special.ndtri(torch.tensor(accuracy, dtype=torch.float64))
        margin = margin + math.sqrt(variance) * mean
        correct = (margin > 0).double().where(self._tested(), math.nan)
        by_replicate = [{"val_nll": float(one)} for one in normal(self.replicates)]
        metrics = {"val_nll": 0.0, "nll": 0.0, "nll_at_temperature": 0.0}
        surprise = (-margin).exp().log1p().where(self._tested(), math.nan)
        nothing = torch.zeros(0, 2), torch.zeros(0)
        return Row(candidate, {}, metrics, by_replicate, correct, surprise, *nothing, seconds=0.0)

    def _tested(self) -> Tensor:
        """Whether each sample is tested in each replicate; the folds are drawn anew each time."""
        tested = torch.zeros(self.replicates, self.samples, dtype=torch.bool)
        for replicate in range(self.replicates):
            generator = seeded_generator("folds", replicate // self.folds)
            order = torch.randperm(self.samples, generator=generator)
            tested[replicate, order[replicate % self.folds :: self.folds]] = True
        return tested


SHAPES = {
    "own test part": Shape(20, 340),
    "few replicates": Shape(5, 340),
    "folds": Shape(20, 1350, folds=5),
    "each tested once": Shape(5, 500, folds=5),
    "some samples differ": Shape(10, 340, accuracy=0.95, of_sample=0.3, of_mix=0.1),
    "replicates differ": Shape(12, 340, of_replicate=0.1),
    "hardly any differ": Shape(20, 200, accuracy=0.97, of_split=0.1, of_sample=0.03, of_mix=0.03),
}


def compared(gain_of: Callable[[Shape], float]) -> list[Comparison]:
    """A comparison of every seed, each of the next shape, with the gain that is planted in it."""
    shapes = [shape for _, shape in zip(SEEDS, itertools.cycle(SHAPES.values()), strict=False)]
    return [
        compare_rows(shape.rows(gain_of(shape), seed), [], worth=WORTH)
        for seed, shape in zip(SEEDS, shapes, strict=True)
    ]


@functools.cache
def three_half_widths(shape: Shape) -> float:
    """Of the deciding interval where nothing is planted; the mean of ten."""
    widths = [compare_rows(shape.rows(0.0, seed), []).deciding.half_width for seed in range(10)]
    return 3 * sum(widths) / len(widths)


def test_nothing_planted_nothing_claimed() -> None:
    """Without any gain at least 95 of 100 claim neither a gain nor harm."""
    found = compared(lambda shape: 0.0)

    assert sum(one.deciding.low > 0 or one.deciding.high < 0 for one in found) <= 5


def test_a_gain_of_three_half_widths_is_told() -> None:
    """At least 90 of 100 say to use the mix."""
    found = compared(three_half_widths)

    assert sum(one.answer == "use it" for one in found) >= 90


def test_harm_of_three_half_widths_is_told() -> None:
    """At least 90 of 100 say that it is worse."""
    found = compared(lambda shape: -three_half_widths(shape))

    assert sum("leave it off: it is worse" in one.verdict for one in found) >= 90


@pytest.mark.parametrize("gain", [0.0, WORTH])
@pytest.mark.parametrize("replicates", [5, 20])
def test_too_few_samples_cannot_tell(replicates: int, gain: float) -> None:
    """With 30 test images at least 90 of 100 say that they cannot tell."""
    shape = Shape(replicates, 30)

    found = [compare_rows(shape.rows(gain, seed), [], worth=WORTH) for seed in SEEDS]

    assert sum(one.answer == "cannot tell" for one in found) >= 90


def test_a_gain_that_is_ruled_out_is_absent() -> None:
    """With a gain just worth having, the worst there is, at most 5 of 100 rule it out."""
    found = compared(lambda shape: WORTH)

    assert sum(one.answer == "leave it off" for one in found) <= 5


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_deciding_interval_holds_what_is_planted(shape: Shape) -> None:
    """Of 100 intervals in every shape at most 10 miss it; at 95 % the binomial spread is 2.2."""
    missed = 0
    for seed in SEEDS:
        plain, mixed, _ = shape.rows(0.0, seed)
        interval = paired_interval(mixed.correct - plain.correct, largest=1.0)
        missed += not interval.low <= 0 <= interval.high

    assert missed <= 10


def test_stopping_on_the_width_claims_nothing_more() -> None:
    """Of 100 that add replicates until the interval is narrow, all stop early, and at least 95
    claim nothing.
    """
    shape = Shape(20, 1000, of_split=0.2, of_sample=0.05, of_mix=0.15, of_replicate=0.01)
    replicates, claimed = [], 0
    for seed in SEEDS:
        rows = shape.rows(0.0, seed)
        n = next(n for n in range(5, 21) if n == 20 or is_settled(first(rows, n), worth=WORTH))
        deciding = compare_rows(first(rows, n), []).deciding
        claimed += deciding.low > 0 or deciding.high < 0
        replicates.append(n)

    assert max(replicates) < 20
    assert min(replicates) < max(replicates)
    assert claimed <= 5


def test_pure_noise_hardly_claims_anything(tmp_path: Path) -> None:
    """In 20 whole comparisons of features that say nothing of the classes there is a gain, or a
    harm, as often as an interval of 95 % may err.
    """
    claims = 0
    for seed in range(20):
        features = torch.randn(60, 8, generator=seeded_generator("noise", seed))
        samples = [(x, i % 2) for i, x in enumerate(features)]
        model = nn.Sequential(nn.Identity(), nn.Linear(8, 2))
        store = extract_features(model, "0", samples, tmp_path / f"{seed}")
        rows = {"alphas": ALPHAS, "pairings": ["any"], "clean_weights": [], "label_smoothing": 0}
        found = compare(model, store, **rows, weight_decays=[1, 0.1], mixes=4, seeds=5)
        claimed = found.deciding.low > 0 or found.deciding.high < 0
        claims += claimed
        assert claimed or found.answer == "cannot tell"

    assert claims <= 2


def first(rows: list[Row], replicates: int) -> list[Row]:
    """The same after so many of the replicates."""
    return [
        replace(
            row,
            correct=row.correct[:replicates],
            surprise=row.surprise[:replicates],
            by_replicate=row.by_replicate[:replicates],
        )
        for row in rows
    ]
