"""How a head does on clean samples, before, during and after its training."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from manifold_mixup._random import seeded_generator
from manifold_mixup.failure import Bar, find_bar
from manifold_mixup.features import Samples, count
from manifold_mixup.mixing import Criterion
from manifold_mixup.tasks import Task

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
