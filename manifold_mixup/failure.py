"""Trainings that fail: the error of one that diverges, and what any other has to get beyond."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from warnings import catch_warnings, simplefilter

import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup.tasks import Classes, Labels, Task
from manifold_mixup.wording import show_quality


class Diverged(RuntimeError):
    """The loss of a training is not finite any more.

    Args:
        reason: What is not finite, and when.
        remedy: What to do.

    Example:
        >>> print(Diverged("the loss is not finite any more in epoch 2", "lower lr (0.5)"))
        the loss is not finite any more in epoch 2; lower lr (0.5)
    """

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}; {remedy}")


class FailedTraining(UserWarning):
    """A training came to its end, and what it gave is of no use.

    Args:
        reason: Why not.
        lr: The learning rate of the first step.
    """

    def __init__(self, reason: str, lr: float) -> None:
        super().__init__(
            f"the training failed: {reason}; try another lr than {lr:g}, more epochs, or to train "
            "less of the model"
        )


# How well a loss is known: that of a few samples varies, and a head that answers all alike may
# come a hair below what such a head can have.
_NOISE = 0.1


@dataclass(frozen=True)
class Bar:
    """What a training has to get beyond, or it has failed.

    Attributes:
        begin: The loss of clean training samples before the first step.
        blank: The same of logits that are all 0: a head that is good already may end above where
            it began, and is still no failure.
        name: Of the quality that counts; see `Task`.
        quality: What it is if all of validation gets the same answer, the best one; None where
            the head is not judged by that, or it is undefined.
        loss: The loss of that.
        answer: That answer in words.

    Example:
        >>> bar = Bar(1.7, 1.6, "accuracy", 0.59, 1.1, "always answering 'daisy'")
        >>> bar.why_failed({"train_loss": 0.9, "val_loss": 1.3, "val_accuracy": 0.55})
        "on validation it is no better than always answering 'daisy' (55.0%, and that 59.0%)"
    """

    begin: float
    blank: float
    name: str
    quality: float | None = None
    loss: float = 0.0
    answer: str = ""

    def why_failed(self, measured: Mapping[str, float]) -> str:
        """The reason why a training failed; nothing if it did not.

        It failed if the loss of clean training samples rose, by more than a tenth; or if on
        validation the quality is no better than that of one answer for all, and the loss not
        lower by a tenth either.

        Args:
            measured: What was measured of the head that is kept; see `Training`.
        """
        loss = measured["train_loss"]
        if not loss <= (1 + _NOISE) * max(self.begin, self.blank):  # so that NaN fails
            return f"the loss of clean training samples rose from {self.begin:.4g} to {loss:.4g}"
        if self.quality is None or measured[f"val_{self.name}"] > self.quality:
            return ""
        if measured["val_loss"] < (1 - _NOISE) * self.loss:
            return ""  # of rare classes: likelier than one answer, though not more often right
        own, same = (
            show_quality(self.name, value)
            for value in (measured[f"val_{self.name}"], self.quality)
        )
        return f"on validation it is no better than {self.answer} ({own}, and that {same})"


def find_bar(task: Task, begin: float, blank: float, validation: Tensor | None) -> Bar:
    """What a training has to get beyond.

    Args:
        task: What is trained for.
        begin: See `Bar`, as for `blank`.
        blank: See there.
        validation: The targets to judge the head on (n, *); None judges it by its loss alone.

    Example:
        >>> bar = find_bar(Classes(["cat", "dog"]), 0.8, 0.7, torch.tensor([0, 1, 1]))
        >>> bar.answer, round(bar.quality, 2), round(bar.loss, 2)
        ("always answering 'dog'", 0.67, 0.64)
    """
    if validation is None:
        return Bar(begin, blank, task.quality)
    logits, answer = _same_answer(task, validation)
    quality = task.metrics(logits, validation)[task.quality]
    return Bar(begin, blank, task.quality, quality, task.loss(logits, validation), answer)


def _same_answer(task: Task, target: Tensor) -> tuple[Tensor, str]:
    """The logits (n, C) that are best if they must be alike for all samples; in words, too."""
    if isinstance(task, Classes):
        rows = target.double() if target.ndim == 2 else F.one_hot(target.long()).double()
        logits = rows.mean(0).clamp(min=1e-12).log()
        words = f"always answering '{task.predictions(logits[None])[0]['label']}'"
    elif isinstance(task, Labels):
        logits, words = target.double().mean(0).logit(1e-12), "the same labels for all"
    else:
        logits, words = task.prepared(target, torch.float64).mean(0), "always the mean value"
    return logits.expand(len(target), -1), words


@contextmanager
def failures_unwarned() -> Iterator[None]:
    """No `FailedTraining` is shown inside the block, where the reason is told otherwise."""
    with catch_warnings():
        simplefilter("ignore", FailedTraining)
        yield
