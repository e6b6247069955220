"""Which task it is: told by the targets, by the labels of a data set, or by what a run says."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.data import Data, Part
from manifold_mixup.mixing import (
    Criterion,
    Pairing,
    are_probabilities,
    check_paired,
    takes_indices,
)
from manifold_mixup.tasks import LOSSES, Classes, Labels, Task, Values, misfit

TASKS = ("classes", "labels", "values")


def find_task(target: Tensor, criterion: Criterion | None = None) -> Task:
    """The task that targets tell: by their type, and whether they are zeros and ones.

    Args:
        target: Integers (n,): classes. Zeros and ones (n, C): labels. Others (n, C), at least 0
            and of sum 1 in each row: probabilities of classes. Other numbers (n,) or (n, D):
            values.
        criterion: If it is one of classes, such as cross entropy, all of them are classes.

    Raises:
        ValueError: They are none of these.

    Example:
        >>> find_task(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).name
        'labels'
    """
    if criterion is not None and takes_indices(criterion):
        return Classes()
    if target.ndim == 1:
        return Values() if target.is_floating_point() else Classes()
    if target.ndim != 2:
        raise misfit(target, "class indices (B,), labels (B, C) or values (B,) or (B, D)")
    if ((target == 0) | (target == 1)).all():
        return Labels()
    is_soft = target.shape[1] > 1 and are_probabilities(target)
    return Classes() if is_soft else Values()


def make_task(data: Data, train: Part, *, loss: str | None = None) -> Task:
    """The task of a data set.

    Args:
        data: The data set.
        train: The part to train on, whose values are standardized.
        loss: Of values, one of `LOSSES`; None for the squared error.

    Raises:
        ValueError: A loss is given for classes or labels, or values are all the same.
    """
    if loss is not None and data.task != "values":
        raise ValueError(f"--loss {loss}: is for values; {data.title} has {data.task}")
    if data.task == "values":
        targets = torch.tensor(train.targets, dtype=torch.float64)
        return Values.standardized(targets, data.classes, loss or "mse")
    return Labels(data.classes) if data.task == "labels" else Classes(data.classes)


def check_pairs(
    task: Task, pairing: Pairing, exclude: Sequence[int], target: Tensor, num_classes: int
) -> None:
    """Raise a ValueError or TypeError unless partners can be drawn so for these targets.

    Args:
        task: What they are targets of.
        pairing: Who mixes with whom; see `draw_partner`.
        exclude: Classes that take no part.
        target: The targets of some samples (B, *).
        num_classes: Number of classes C.
    """
    if isinstance(task, Values) and (exclude or pairing in ("other-class", "same-class")):
        wish = f"exclude={list(exclude)}" if exclude else f"pairing={pairing!r}"
        raise ValueError(f"{wish} is for classes and labels; of values take 'any', 'near-target'")
    check_paired(pairing, target, exclude, num_classes)


def task_of(info: Mapping[str, Any]) -> Task:
    """The task of a run, from what ``run.json`` says."""
    own = dict(info.get("task", {"name": "classes"}))
    task = {"classes": Classes, "labels": Labels, "values": Values}[own.pop("name")]
    made: Task = task(info["classes"], **own)
    return made


def check_task(task: str | None, error: str | None) -> None:
    """Raise a ValueError that lists what there is unless both are that, or None."""
    for option, value, known in (("--task", task, TASKS), ("--loss", error, tuple(LOSSES))):
        if value is not None and value not in known:
            raise ValueError(f"{option} {value}: choose one of {', '.join(known)}")
