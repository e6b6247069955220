"""What a reader would ask for beside feature mixup, on the same stored features."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import (
    Candidate,
    Candidates,
    Replicate,
    Trained,
    outcome_of,
    solve_along,
)
from manifold_mixup.linear_heads import Standardized
from manifold_mixup.training import Classes, RiskSettings, make_problem

# Augmented copies of every sample.
_COPIES = 4

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Rival(Candidate):
    """A way to train that is no mixing and none of the others.

    Attributes:
        title: What it is called.
    """

    title: str = ""

    @property
    def is_plain(self) -> bool:
        """Never the base of a comparison."""
        return False

    @property
    def name(self) -> str:
        """Its title."""
        return self.title


def brighten(unit: Tensor, generator: torch.Generator) -> Tensor:
    """Add one number to all of a sample's features in [0, 1] (B, D)."""
    return unit + _uniform(unit, generator, -0.2, 0.2)


def contrast(unit: Tensor, generator: torch.Generator) -> Tensor:
    """Stretch or shrink a sample's features about their mean."""
    mean = unit.mean(1, keepdim=True)
    return mean + (unit - mean) * _uniform(unit, generator, 0.5, 1.5)


def posterize(unit: Tensor, generator: torch.Generator) -> Tensor:
    """Leave a sample's features 2 to 256 values."""
    levels = 2 ** _uniform(unit, generator, 1, 8).round()
    return (unit * levels).floor() / levels


AUGMENTS: dict[str, Augment] = {
    "brightness": brighten,
    "contrast": contrast,
    "posterize": posterize,
}


def solve_augmented(
    name: str, taken: Tensor, replicates: Sequence[Replicate], offered: Candidates, layer: str
) -> Trained:
    """A linear head at its optimum on features that are augmented as if they were pixels.

    Bär et al., Frozen Feature Augmentation for Few-Shot Image Classification, CVPR 2024.
    https://arxiv.org/abs/2403.10519
    """
    began, outcomes = time.perf_counter(), []
    for replicate in replicates:
        generator = seeded_generator(replicate.seed, "frofa", name)
        own = [
            _augmented(AUGMENTS[name], taken[replicate.train], generator) for _ in range(_COPIES)
        ]
        rows, target = torch.cat(own), replicate.target[replicate.train].repeat(_COPIES)
        outputs = int(replicate.target.max()) + 1
        problem = make_problem(
            Standardized(rows.__getitem__, len(rows)),
            Classes(),
            target,
            outputs,
            RiskSettings(0.0),
            None,
        )
        outcomes.append(outcome_of(solve_along(problem, offered.decays, taken, replicate)))
    candidate = Rival(layer, title=f"FroFA {name}")
    return Trained(candidate, outcomes, time.perf_counter() - began)


def _augmented(augment: Augment, features: Tensor, generator: torch.Generator) -> Tensor:
    """Features of some samples, each augmented between its lowest and its highest value."""
    low, high = features.amin(1, keepdim=True), features.amax(1, keepdim=True)
    width = (high - low).clamp(min=1e-12)
    return augment((features - low) / width, generator).clamp(0, 1) * width + low


def _uniform(like: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """One number for each sample (B, 1)."""
    return torch.empty(len(like), 1).uniform_(low, high, generator=generator)
