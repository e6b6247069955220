"""The protocol of few-shot learning: many small tasks drawn from one data set."""

import math
import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from manifold_mixup.drawing import seeded_generator
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import train_stack

WAYS, QUERIES, EPISODES = 5, 15, 200
ALPHAS = (0.0, 0.4, 1.0)
_RATE, _DECAY, _STEPS = 0.01, 0.1, 50


def run_episodes(features: Tensor, target: Tensor, shots: int) -> dict[str, list[float]]:
    """The accuracy of each kind of head in each of 200 tasks of 5 classes.

    A task draws its classes, so many samples of each to train on, and 15 of each to be told. All
    heads of a task see the same; nothing is chosen, as there is nothing to choose by.

    Args:
        features: (N, D).
        target: Class indices (N,), of at least 5 classes.
        shots: Samples of each class to train on.
    """
    scale = features.norm(dim=1).mean() / math.sqrt(features.shape[1])
    features = features / scale
    scores: dict[str, list[float]] = {}
    for episode in range(EPISODES):
        generator = seeded_generator("episode", episode, shots)
        train, test = _draw(target, shots, generator)
        own, asked = torch.arange(WAYS).repeat_interleave(shots), _asked()
        for name, told in _tell(features[train], own, features[test], episode).items():
            scores.setdefault(name, []).append(float((told == asked).double().mean()))
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


def _tell(train: Tensor, target: Tensor, test: Tensor, seed: int) -> dict[str, Tensor]:
    """What each kind of head takes the test samples for."""
    centres = torch.stack([train[target == one].mean(0) for one in range(WAYS)])
    told = {"nearest centre": (F.normalize(test) @ F.normalize(centres).T).argmax(1)}
    logistic = LogisticRegression(max_iter=2000).fit(train.numpy(), target.numpy())
    told["LogisticRegression"] = torch.from_numpy(logistic.predict(test.numpy()))
    settings = [HeadSettings(alpha, _RATE, _DECAY, seed=seed) for alpha in ALPHAS]
    zeros = torch.zeros(WAYS, train.shape[1]), torch.zeros(WAYS)
    stack = train_stack(train.__getitem__, target, settings, *zeros, epochs=_STEPS)
    for alpha, weight, bias in zip(ALPHAS, stack.weight, stack.bias, strict=True):
        name = f"linear head, alpha {alpha:g}" if alpha else "linear head, no mixing"
        told[name] = (test @ weight.T + bias).argmax(1)
    return told
