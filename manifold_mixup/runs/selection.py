"""What a run chooses by short trainings: the strength of mixing, and the learning rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from manifold_mixup._progress import Track, untracked
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import LEAST, Candidates, compare
from manifold_mixup.data import join_splits, split_images
from manifold_mixup.features import FeatureStore, Samples, count, find_tail
from manifold_mixup.models import CosineHead, MLPHead
from manifold_mixup.runs.config import TrainConfig
from manifold_mixup.runs.options import word_of
from manifold_mixup.runs.prepare import Job
from manifold_mixup.training import (
    AUTO,
    Diverged,
    Task,
    failures_unwarned,
    predict_logits,
    train_head,
    unchanged,
)

# Settings that a comparison of alphas has no rows for, with what they have to be.
_PLAIN = {
    **{"label_smoothing": 0.0, "clean_weight": 0.0, "exclude": None, "prob": 1.0},
    **{"kind": "mix", "alpha_warmup": 0.0, "views": 0, "task": "classes", "class_weight": None},
    **{"optimizer": "auto", "epochs": None, "lr": None, "batch_size": None, "patience": None},
}


def choose_alpha(
    model: nn.Module, store: FeatureStore, config: TrainConfig, track: Track
) -> tuple[float, str]:
    """The alpha that helps beyond noise; 0 if none does. And why, in words.

    The samples are split anew for each replicate, and mixing and not mixing compared as `compare`
    does it, each with its own weight decay unless one is given.

    Args:
        model: The model; it is left as it was.
        store: Features of the training and validation samples.
        config: Of the training.
        track: Shows how far it is.
    """
    decay = config.weight_decay
    found = compare(
        model,
        store,
        pairings=[config.pairing],
        label_smoothing=0,
        clean_weights=[],
        weight_decays=Candidates.weight_decays if decay == AUTO else [decay],
        mixes=config.mixes,
        track=track,
    )
    return found.rows[found.winner].candidate.alpha, found.verdict


def check_auto(job: Job) -> None:
    """Raise a ValueError that names what `choose_alpha` has no answer for, if anything."""
    config = job.config
    if config.way != "cached":
        raise ValueError("--alpha auto compares heads on stored features, which this way has not")
    if config.head != "linear" or config.tail != "frozen":
        raise ValueError(
            "--alpha auto compares linear heads alone; give --alpha a number, or leave out --head "
            "and --tail"
        )
    for name, plain in _PLAIN.items():
        given = getattr(config, name)
        if given != plain:
            option = name.replace("_", "-")
            raise ValueError(
                f"--alpha auto: there is no choice of alpha for --{option} {word_of(given)}; "
                f"give --alpha a number, or leave out --{option}"
            )
    known = join_splits(part for name, part in job.parts.items() if name != "test")
    try:
        for seed in range(LEAST):
            split_images(replace(job.data, parts={"train": known}), seed=seed)
    except ValueError as error:
        raise ValueError(
            f"--alpha auto splits the training and validation images again: {error}; or give "
            "--alpha a number"
        ) from error


# Pretrained layers are lost at more than 1e-3; a new head alone has nothing to lose.
LINEAR_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


HEAD_RATES = (0.0003, 0.001, 0.003, 0.01)


BLOCK_RATES = (0.00001, 0.00003, 0.0001, 0.0003, 0.001)


SHORT_EPOCHS = 3


# The most samples of a short training, so that choosing never takes much longer than a training
# of usual length: for images the whole model runs in every step.
MOST_STORED, MOST_IMAGES = 1024, 256


@dataclass(frozen=True)
class Choice:
    """A learning rate, and what it was chosen by.

    Attributes:
        losses: For each rate, from the lowest on, the validation loss after a short training;
            infinite where that diverged.
        begin: The validation loss before it.
        epochs: Of each short training.
        samples: What each was trained on, in words; nothing if on all there are.

    Example:
        >>> print(Choice({0.01: 0.5, 0.1: 0.25}, 0.7, epochs=3))
        learning rate: 0.1, the highest (of 0.01 ... 0.1, by validation loss of 3 epochs each)
    """

    losses: Mapping[float, float]
    begin: float
    epochs: int
    samples: str = ""

    @property
    def rate(self) -> float:
        """The one with the lowest loss."""
        return min(self.losses, key=self.losses.__getitem__)

    def __str__(self) -> str:
        """What was chosen, of what, and by what."""
        low, high = min(self.losses), max(self.losses)
        end = {low: ", the lowest", high: ", the highest"}.get(self.rate, "")
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        best = self.losses[self.rate]
        vain = "" if best < self.begin else f"; none lowered it from {self.begin:.4g}"
        return (
            f"learning rate: {self.rate:g}{end} (of {low:g} ... {high:g}, by validation loss of "
            f"{epochs} each{self.samples}{vain})"
        )


def choose_rate(
    model: nn.Module,
    samples: Samples,
    validation: Samples,
    *,
    task: Task,
    rates: Sequence[float] = (),
    epochs: int = 10,
    seed: int = 0,
    optimizer: str = "adamw",
    track: Track = untracked,
    **options: Any,
) -> Choice:
    """The rate whose short training, from where the model is now, has the lowest validation loss.

    A short training has `SHORT_EPOCHS` and takes at most `MOST_STORED` stored samples, or
    `MOST_IMAGES` images: all together last about as long as fifteen epochs with all samples, or
    less. The model is left as it was.

    Args:
        model: See `train_head`.
        samples: To train on; see there.
        validation: To choose by; see there.
        task: What is trained for; it is chosen by its loss.
        rates: To choose from; none for what suits the parameters that are trained (see
            `suited_rates`).
        epochs: Of the training that the rate is for; a short one has no more.
        seed: Of the short trainings, and of the samples they take.
        optimizer: See `train_head`.
        track: Shows how many rates are tried.
        options: Of `train_head`: all else that the training has, but for ``patience``.

    Raises:
        Diverged: They all diverge.

    Example:
        >>> data = [(torch.randn(4), i % 2) for i in range(8)]
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
        >>> from manifold_mixup.training.tasks import Classes
        >>> choose_rate(model, data, data, task=Classes(), layer="0").rate in LINEAR_RATES
        True
    """
    if isinstance(samples, FeatureStore):
        model = find_tail(model, samples)
    rates = rates or suited_rates(model)
    few, some = _few(samples, seed), _few(validation, seed)
    short, workers = min(epochs, SHORT_EPOCHS), options.get("workers", 0)
    own = {**options, "task": task, "epochs": short, "seed": seed, "optimizer": optimizer}
    losses: dict[float, float] = {}
    with unchanged(model):
        begin = _loss(model, some, task, workers)
    for rate in track(sorted(rates), len(rates), "learning rates"):
        with unchanged(model):
            is_over = _trains(model, few, lr=rate, **own)
            losses[rate] = _loss(model, some, task, workers) if is_over else math.inf
    if min(losses.values()) == math.inf:
        raise Diverged(
            f"the loss is not finite after {short} epochs at any learning rate from "
            f"{min(losses):g} to {max(losses):g}",
            "give a lower lr",
        )
    n, all_of = count(few), count(samples)
    words = "" if n == all_of else f" on {n} of {all_of} samples"
    return Choice(losses, begin, short, words)


def suited_rates(model: nn.Module) -> Sequence[float]:
    """The learning rates that suit what of a model requires gradients.

    `LINEAR_RATES` for a linear layer alone, `HEAD_RATES` for another new head alone, else
    `BLOCK_RATES`.
    """
    owners = {
        module
        for module in model.modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    }
    if len(owners) == 1 and isinstance(next(iter(owners)), nn.Linear):
        return LINEAR_RATES
    heads = [one for one in model.modules() if isinstance(one, MLPHead | CosineHead)]
    of_heads = {module for head in heads for module in head.modules()}
    return HEAD_RATES if owners <= of_heads else BLOCK_RATES


def _trains(model: nn.Module, samples: Samples, **options: Any) -> bool:
    """Train a model; whether that comes to its end."""
    try:
        with failures_unwarned():
            train_head(model, samples, **options)
    except Diverged:
        return False
    return True


def _loss(model: nn.Module, samples: Samples, task: Task, workers: int) -> float:
    """The loss of clean samples; infinite if it is none."""
    loss = task.loss(*predict_logits(model, samples, workers=workers))
    return loss if math.isfinite(loss) else math.inf


def _few(samples: Samples, seed: int) -> Samples:
    """Not more than a short training takes, drawn at random."""
    most = MOST_STORED if isinstance(samples, FeatureStore) else MOST_IMAGES
    if count(samples) <= most:
        return samples
    order = torch.randperm(count(samples), generator=seeded_generator(seed, "few"))
    few = order[:most].sort().values.tolist()
    return samples.take(few) if isinstance(samples, FeatureStore) else Subset(samples, few)
