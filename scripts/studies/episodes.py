"""The protocol of few-shot learning: many small tasks drawn from one data set."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup._random import seeded_generator
from manifold_mixup.linear_heads import LinearHead, Standardized
from manifold_mixup.training import DECAYS, Classes, RiskSettings, make_problem

WAYS, QUERIES, CHOOSING, EPISODES = 5, 15, 50, 200
CENTRE = "nearest centre"
ALPHAS = {
    "linear head, no mixing": 0.0,
    "linear head, alpha 0.4": 0.4,
    "linear head, alpha 1": 1.0,
}

# Kinds of heads, and of each the settings to be tried: nothing, or a weight decay.
Kinds = Mapping[str, Sequence[Any]]
_ALL: Kinds = {CENTRE: [None], **dict.fromkeys(ALPHAS, DECAYS)}


def run_episodes(features: Tensor, target: Tensor, shots: int) -> dict[str, list[float]]:
    """The accuracy of each kind of head in each of 200 tasks of 5 classes.

    A task draws its classes, so many samples of each to train on, and 15 of each to be told. All
    heads of a task see the same. Each kind has the setting that is best in 50 other tasks, of the
    same images; kinds with more settings to choose from gain more by that.

    Args:
        features: (N, D).
        target: Class indices (N,), of at least 5 classes.
        shots: Samples of each class to train on.
    """
    tasks = features, target, shots
    tried = _scores(*tasks, "choosing", CHOOSING, _ALL)
    best = {
        name: [max(own, key=lambda one: statistics.fmean(own[one]))] for name, own in tried.items()
    }
    found = _scores(*tasks, "episode", EPISODES, best)
    return {name: own[best[name][0]] for name, own in found.items()}


def _scores(
    features: Tensor, target: Tensor, shots: int, word: str, episodes: int, kinds: Kinds
) -> dict[str, dict[Any, list[float]]]:
    """Accuracies in each task, by kind and setting; the word tells tasks from others."""
    scores: dict[str, dict[Any, list[float]]] = {
        name: {one: [] for one in settings} for name, settings in kinds.items()
    }
    own, asked = torch.arange(WAYS).repeat_interleave(shots), _asked()
    for episode in range(episodes):
        train, test = _draw(target, shots, seeded_generator(word, episode, shots))
        for name, settings in kinds.items():
            told = _tell(name, settings, features[train], own, features[test], episode)
            for one, answer in zip(settings, told, strict=True):
                scores[name][one].append(float((answer == asked).double().mean()))
    return scores


def describe(scores: Sequence[float]) -> str:
    """A mean with half of its 95 % interval over episodes, in points."""
    half = 1.96 * statistics.stdev(scores) / math.sqrt(len(scores))
    return f"{100 * statistics.fmean(scores):.1f} ± {100 * half:.1f}"


def difference(scores: Sequence[float], base: Sequence[float]) -> str:
    """The same of paired differences, with a sign."""
    told = describe([a - b for a, b in zip(scores, base, strict=True)])
    return told if told.startswith("-") else f"+{told}"


def _draw(target: Tensor, shots: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions to train on and to be asked for, class by class."""
    classes = target.unique()
    chosen = classes[torch.randperm(len(classes), generator=generator)[:WAYS]]
    train, test = [], []
    for one in chosen:
        of_class = (target == one).nonzero().squeeze(1)
        order = of_class[torch.randperm(len(of_class), generator=generator)]
        train.append(order[:shots])
        test.append(order[shots : shots + QUERIES])
    return torch.cat(train), torch.cat(test)


def _asked() -> Tensor:
    return torch.arange(WAYS).repeat_interleave(QUERIES)


def _tell(
    kind: str, settings: Sequence[Any], train: Tensor, target: Tensor, test: Tensor, seed: int
) -> list[Tensor]:
    """What a kind of head takes the test samples for, with each setting."""
    if kind == CENTRE:
        centres = torch.stack([train[target == one].mean(0) for one in range(WAYS)])
        return [(F.normalize(test) @ F.normalize(centres).T).argmax(1)]
    settings_of_risk = RiskSettings(ALPHAS[kind], seed=seed)
    rows = Standardized(train.__getitem__, len(train))
    mixes = settings_of_risk.draw(target)
    problem = make_problem(rows, Classes(), target, WAYS, settings_of_risk, mixes)
    heads: dict[float, LinearHead] = {}
    for decay in sorted(settings, reverse=True):
        heads[decay] = problem.solve(decay)
    raw = {decay: rows.to_raw(head.weight, head.bias) for decay, head in heads.items()}
    told = [F.linear(test.double(), *raw[decay]) for decay in settings]
    return [logits.argmax(1) for logits in told]
