"""Measure a model on data sets and stores, and a head while it trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup._progress import Track, untracked
from manifold_mixup._random import seeded_generator
from manifold_mixup.features import (
    FeatureStore,
    Samples,
    checked_batch,
    count,
    find_tail,
    load_batches,
    samples_of,
)
from manifold_mixup.inspection import (
    bytes_explained,
    eval_mode,
    first_logits,
    model_device,
    model_dtype,
)
from manifold_mixup.mixing import Criterion
from manifold_mixup.training.state import Bar, find_bar
from manifold_mixup.training.tasks import Task, find_task


def evaluate(
    model: nn.Module,
    samples: Samples,
    *,
    task: Task | None = None,
    batch_size: int = 64,
    workers: int = 0,
    track: Track = untracked,
) -> dict[str, Any]:
    """Measure a model in eval mode on clean samples.

    What is measured depends on the task: see `summarize` for class indices, `label_scores` for
    one or several labels each, `value_scores` for real values.

    Args:
        model: Gives logits (B, C); its modes come back as they were.
        samples: Pairs of an image and a target; or a store of the model's features, so that
            only what comes after them runs.
        task: `Classes`, `Labels` with thresholds, or `Values`; None for what the targets tell
            (see `find_task`).
        batch_size: Samples in a forward pass.
        workers: Processes that load images; 0 loads them in this one.
        track: Shows how far it is.

    Raises:
        ValueError: The data set is empty, its targets do not fit the model or the task, or the
            features are not this model's.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> sorted(evaluate(model, [(torch.randn(4), 0), (torch.randn(4), 1)]))
        ['accuracy', 'calibration_error', 'n', 'nll']
    """
    logits, target = predict_logits(
        model, samples, batch_size=batch_size, workers=workers, track=track
    )
    task = task or find_task(target)
    task.check(model, logits, target)
    return task.metrics(logits, target)


def predict_logits(
    model: nn.Module,
    samples: Samples,
    *,
    batch_size: int = 64,
    workers: int = 0,
    order: Sequence[int] | None = None,
    track: Track = untracked,
    description: str = "evaluate",
) -> tuple[Tensor, Tensor]:
    """The logits (n, C) of every sample in order, and its target (n, *), on the CPU.

    With `order`, those at these positions alone.
    """
    samples = samples_of(samples)
    if not count(samples):
        raise ValueError("the data set is empty: nothing to evaluate")
    if isinstance(samples, FeatureStore):
        model = find_tail(model, samples)
    loading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "order": order}
    return compute_logits(model, samples, **loading, track=track, description=description)


def compute_logits(
    model: nn.Module,
    samples: Samples,
    *,
    batch_size: int,
    workers: int,
    order: Sequence[int] | None = None,
    track: Track = untracked,
    description: str = "evaluate",
) -> tuple[Tensor, Tensor]:
    """`predict_logits` of what takes these samples as they are: features, if they are stored."""
    device, dtype = model_device(model), model_dtype(model)
    loader = load_batches(
        samples, batch_size, device=device, workers=workers, order=order, dtype=dtype
    )
    logits, targets = [], []
    # Not inference_mode: what a model caches in it could not be used in training afterwards.
    with torch.no_grad(), eval_mode(model):
        for batch in track(loader, len(loader), description):
            images, target = checked_batch(batch)
            with bytes_explained(model, images):
                output = model(images.to(device, non_blocking=True))
            logits.append(first_logits(output).float())
            targets.append(target)
    return torch.cat(logits).cpu(), torch.cat(targets)


# Samples to measure by name, and at which positions; None for all.
Measured = dict[str, tuple[Samples, Sequence[int] | None]]


# Their logits (n, C) and targets (n, *), by the same names.
Found = Mapping[str, tuple[Tensor, Tensor]]


def samples_to_measure(samples: Samples, validation: Samples | None, seed: int) -> Measured:
    """All of validation, and of the training samples as many, else a fifth; always the same."""
    n = count(samples)
    order = torch.randperm(n, generator=seeded_generator(seed, "clean")).tolist()
    size = max(1, n // 5) if validation is None else count(validation)
    measured: Measured = {"train": (samples, order[:size])}
    return measured if validation is None else measured | {"val": (validation, None)}


def measure_clean(
    model: nn.Module, found: Found, task: Task, criterion: Criterion | None
) -> dict[str, float]:
    """Loss and quality of clean samples of each kind, such as ``val_loss``."""
    row, like = {}, next(model.parameters())
    for name, (logits, target) in found.items():
        task.check(model, logits, target)
        row[f"{name}_loss"] = _clean_loss(task, criterion, logits, target, like)
        row[f"{name}_{task.quality}"] = task.metrics(logits, target)[task.quality]
    return row


def measure_bar(
    model: nn.Module, found: Found, task: Task, criterion: Criterion | None, *, is_weighted: bool
) -> Bar:
    """What the training has to get beyond, measured before its first step.

    Where classes are weighted, or the loss is the user's own, one answer for all may be right more
    often than what is aimed at: such a head is judged by its loss alone.
    """
    for logits, target in found.values():
        task.check(model, logits, target)
    (logits, target), like = found["train"], next(model.parameters())
    begin, blank = (
        _clean_loss(task, criterion, one, target, like)
        for one in (logits, torch.zeros_like(logits))
    )
    is_judged = "val" in found and criterion is None and not is_weighted
    return find_bar(task, begin, blank, found["val"][1] if is_judged else None)


def _clean_loss(
    task: Task, criterion: Criterion | None, logits: Tensor, target: Tensor, like: Tensor
) -> float:
    """The loss of clean samples: the task's own, or that of a criterion given by the user."""
    if criterion is None:
        return task.loss(logits, target)
    own = task.prepared(target, like.dtype).to(like.device)
    with torch.no_grad():
        return float(criterion(logits.to(like), own).mean())
