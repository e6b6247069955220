"""What a reader would ask for beside feature mixup, on the same stored features."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from manifold_mixup.drawing import seeded_generator
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import train_stack
from manifold_mixup.starts import Start
from manifold_mixup.trained import Outcome, Trained, choose, mended_nll
from manifold_mixup.trial_heads import logits_of
from manifold_mixup.trials import Trial, Ways

INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
_PARTS = ("val", "test", "train")

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Rival(Trial):
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


def fit_logistic(taken: Tensor, starts: Sequence[Start]) -> Trained:
    """scikit-learn's logistic regression on features (N, D), its penalty chosen on validation."""
    began, tried = time.perf_counter(), []
    for penalty in INVERSE_PENALTIES:
        outcomes = []
        for start in starts:
            head = LogisticRegression(C=penalty, max_iter=2000)
            head.fit(taken[start.train].numpy(), start.target[start.train].numpy())
            parts = {part: _scores(head, taken[getattr(start, part)]) for part in _PARTS}
            outcomes.append(Outcome(**parts, mixed_loss=math.nan))
        tried.append(outcomes)
    trial = Rival("", title="LogisticRegression")
    nll = torch.tensor([_nll(outcomes, starts) for outcomes in tried])
    best, seconds = choose(trial, nll), time.perf_counter() - began
    return Trained(trial, HeadSettings(0.0), nll[:, None], tried[best], seconds)


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


def train_augmented(
    name: str, taken: Tensor, starts: Sequence[Start], ways: Ways, layer: str
) -> Trained:
    """A linear head on features that are augmented as if they were pixels.

    Bär et al., Frozen Feature Augmentation for Few-Shot Image Classification, CVPR 2024.
    https://arxiv.org/abs/2403.10519
    """
    began, trial = time.perf_counter(), Rival(layer, title=f"FroFA {name}")
    stacks = []
    for start in starts:
        generator = seeded_generator(start.seed, "frofa", name)
        gather = partial(_augmented, AUGMENTS[name], taken[start.train], generator)
        settings = ways.settings(Trial(layer), start.seed)
        own = start.target[start.train]
        stack = train_stack(gather, own, settings, start.weight, start.bias, **ways.options)
        stacks.append({"weight": stack.weight.cpu(), "bias": stack.bias.cpu()})
    nll = torch.stack(
        [
            mended_nll(logits_of(heads, taken[start.val]), start.target[start.val])
            for start, heads in zip(starts, stacks, strict=True)
        ]
    ).mean(0)
    best = choose(trial, nll)
    outcomes = []
    for start, heads in zip(starts, stacks, strict=True):
        one = {name: tensor[best, None] for name, tensor in heads.items()}
        parts = {p: logits_of(one, taken[getattr(start, p)])[0] for p in _PARTS}
        outcomes.append(Outcome(**parts, mixed_loss=math.nan))
    settings = ways.settings(Trial(layer), starts[0].seed)[best]
    grid = nll.view(len(ways.lrs), len(ways.weight_decays))
    return Trained(trial, settings, grid, outcomes, time.perf_counter() - began)


def _augmented(
    augment: Augment, taken: Tensor, generator: torch.Generator, index: Tensor
) -> Tensor:
    """Features of some samples, each augmented between its lowest and its highest value."""
    features = taken[index]
    low, high = features.amin(1, keepdim=True), features.amax(1, keepdim=True)
    width = (high - low).clamp(min=1e-12)
    return augment((features - low) / width, generator).clamp(0, 1) * width + low


def _uniform(like: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """One number for each sample (B, 1)."""
    return torch.empty(len(like), 1).uniform_(low, high, generator=generator)


def _scores(head: LogisticRegression, taken: Tensor) -> Tensor:
    """Logits (n, C)."""
    scores = torch.from_numpy(head.decision_function(taken.numpy())).double()
    return scores if scores.ndim == 2 else torch.stack([-scores / 2, scores / 2], 1)


def _nll(outcomes: Sequence[Outcome], starts: Sequence[Start]) -> float:
    nlls = [
        float(mended_nll(outcome.val[None], start.target[start.val]))
        for outcome, start in zip(outcomes, starts, strict=True)
    ]
    return sum(nlls) / len(nlls)
