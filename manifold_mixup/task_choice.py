"""Which task it is: told by the targets, by the labels of a data set, or by what a run says."""

import torch

from manifold_mixup.data import Data, Part
from manifold_mixup.training import Classes, Labels, Task, Values


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
