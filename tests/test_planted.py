"""Planted truths through a whole comparison: what mixing is known to do, the verdict says.

Every case is made anew by each of the seeds 0 to 99: samples, and with them splits and heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup import extract_features
from manifold_mixup.compare import compare
from manifold_mixup.comparison import Comparison
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.verdict import Interval

COMPARISONS = 100
# No rows beside those that mix, and the plain one.
ONLY_MIXING: dict[str, Any] = {"label_smoothing": 0, "clean_weights": [], "noises": []}

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]


def clusters(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three round clouds in six dimensions, that overlap a little: a linear head is right, and
    there are enough samples for it.
    """
    target = torch.arange(300) % 3
    centres = torch.randn(3, 6, generator=generator)
    return centres[target] + torch.randn(300, 6, generator=generator), target


def shuffled(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same with labels in another order: nothing to learn."""
    features, target = clusters(generator)
    return features, target[torch.randperm(300, generator=generator)]


def fifths(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers in [0, 1], and in which fifth they lie: a mix of two of a class is of that class."""
    features = torch.rand(400, 1, generator=generator)
    return features, (5 * features[:, 0]).long().clamp(max=4)


def on_a_line(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three classes around -1, 0 and 1, the middle one rarer: a mix of the outer two lies where
    the middle one is, with labels that are wrong there.
    """
    target = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2] * 70)
    noise = 0.15 * torch.randn(len(target), 1, generator=generator)
    return (target - 1.0).unsqueeze(1) + noise, target


class Bins(nn.Module):
    """Which of 600 equal bins of [0, 1] a number lies in, one-hot: a linear head behind it knows
    of the bins alone that it has seen.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1) -> (B, 600)."""
        return F.one_hot((600 * x[:, 0]).long().clamp(0, 599), 600).to(x.dtype)


@dataclass(frozen=True)
class Outcome:
    """What the comparisons of a case found.

    Attributes:
        comparisons: One for each seed.
    """

    comparisons: list[Comparison]

    def count(self, holds: Callable[[Comparison], bool]) -> int:
        """Of how many something holds."""
        return sum(map(holds, self.comparisons))

    def differences(self, name: str) -> list[list[Interval]]:
        """Of every comparison the intervals of all rows that mix, in accuracy or NLL."""
        return [
            [getattr(one, name)[i] for i, row in enumerate(one.rows) if row.trial.mixes]
            for one in self.comparisons
        ]


def compared(draw: Draw, between: nn.Module, width: int, folder: Path, **options: Any) -> Outcome:
    """Compare no mixing with mixing on samples of every seed, all the way from the features."""
    classes = int(draw(seeded_generator(0))[1].max()) + 1
    found = []
    for seed in range(COMPARISONS):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Identity(), between, nn.Linear(width, classes))
        samples = list(zip(*draw(seeded_generator("planted", seed)), strict=True))
        store = extract_features(
            model, "0", samples, folder / f"{seed}", batch_size=len(samples), fast=False
        )
        found.append(compare(model, store, **ONLY_MIXING, **options))
    return Outcome(found)


def half_width(interval: Interval) -> float:
    """How far an interval reaches from its mean."""
    return interval.high - interval.mean


def clearly(interval: Interval, sign: int) -> bool:
    """Whether the mean is at least three half-widths above 0, or below it."""
    return sign * interval.mean >= 3 * half_width(interval) > 0


@pytest.mark.parametrize("draw", [clusters, shuffled])
def test_no_gain_is_claimed_where_mixing_does_nothing(draw: Draw, tmp_path: Path) -> None:
    """Where the mean of all differences is next to nothing, beside the intervals, at least 92 of
    100 keep the plain row.
    """
    outcome = compared(
        draw,
        nn.Identity(),
        6,
        tmp_path,
        alphas=[0.2, 1],
        pairings=["any"],
        seeds=3,
        epochs=4,
        batch_size=45,
        lrs=[0.1],
        weight_decays=[0.1],
    )

    for name in ("accuracy", "nll"):
        for row in zip(*outcome.differences(name), strict=True):
            assert abs(fmean(one.mean for one in row)) < fmean(map(half_width, row)) / 5
    assert outcome.count(lambda one: one.winner == one.base) >= 92


def test_a_gain_of_three_half_widths_is_told(tmp_path: Path) -> None:
    """A head that knows a number by its bin has seen few of them; mixes of a class lie in the
    others, with the right label. At least 90 of 100 say to use it.
    """
    outcome = compared(
        fifths,
        Bins(),
        600,
        tmp_path,
        alphas=[1],
        pairings=["same-class"],
        seeds=4,
        epochs=16,
        batch_size=256,
        lrs=[0.5],
        weight_decays=[0],
    )

    assert sum(clearly(only, -1) for (only,) in outcome.differences("nll")) >= 90
    assert (
        outcome.count(
            lambda one: one.rows[one.winner].trial.mixes and one.verdict.endswith("use it")
        )
        >= 90
    )


def test_harm_of_three_half_widths_is_told(tmp_path: Path) -> None:
    """Where mixes of the outer classes cover the middle one, at least 90 of 100 say that mixing is
    less accurate in every row, and keep the plain one.
    """
    outcome = compared(
        on_a_line,
        nn.Identity(),
        1,
        tmp_path,
        alphas=[8, 16],
        pairings=["other-class"],
        seeds=5,
        epochs=10,
        batch_size=168,
        lrs=[1],
        weight_decays=[0],
    )

    harmed = [all(clearly(one, -1) for one in row) for row in outcome.differences("accuracy")]
    assert sum(harmed) >= 90
    assert (
        outcome.count(
            lambda one: (
                one.winner == one.base
                and "mixing has a worse accuracy in every row here" in one.verdict
            )
        )
        >= 90
    )
