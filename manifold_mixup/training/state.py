"""Where a training stands: what it resumes from, and whether it came to nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from warnings import catch_warnings, simplefilter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.training.metrics import labelled, show_quality
from manifold_mixup.training.tasks import Classes, Labels, Task


@dataclass(frozen=True)
class TrainingState:
    """A head after some epochs of training: enough to use it, and to go on from there.

    Attributes:
        head: The trained parameters, by their name in the model.
        losses: The whole training loss of every step, mixed and clean.
        epochs: What every epoch measured: ``mixed_loss``; ``train_loss`` and ``train_accuracy`` on
            clean training samples; ``val_loss`` and ``val_accuracy`` with a validation set. With
            labels it is ``train_mean_average_precision``, with values ``train_r2``.
        state: The optimizer's tensors and the state of the mixes' generator.
        best: The head of the epoch with the lowest ``val_loss``, if that is the one to keep.
        failed: Why what came of it is of no use; nothing before the end, or if it is.
    """

    head: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    failed: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """What the epoch measured that the head is of: the last, or the best one."""
        if not self.epochs:
            return {}
        return self.epochs[self.best_epoch if self.best else -1]

    @property
    def best_epoch(self) -> int:
        """The number of the epoch with the lowest ``val_loss``, from 0."""
        return min(range(len(self.epochs)), key=lambda epoch: self.epochs[epoch]["val_loss"])

    def after(
        self,
        losses: list[float],
        row: dict[str, float],
        parameters: Mapping[str, nn.Parameter],
        state: dict[str, Tensor],
        *,
        keep_best: bool,
    ) -> "TrainingState":
        """Where the training stands after one more epoch, on the CPU.

        Args:
            losses: Of every step of the epoch.
            row: What the epoch measured.
            parameters: The trained ones, by name.
            state: The optimizer's tensors and that of the mixes' generator.
            keep_best: Whether the best epoch's head is the one to keep.
        """
        head = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
        done = TrainingState(head, self.losses + losses, [*self.epochs, row], state, self.best)
        if keep_best and done.best_epoch == len(self.epochs):
            done = replace(done, best=head)
        return done

    def is_over(self, epochs: int, patience: int | None) -> bool:
        """Whether there were enough epochs, or too many of late without a lower ``val_loss``."""
        if len(self.epochs) >= epochs:
            return True
        if patience is None or not self.epochs:
            return False
        return len(self.epochs) - 1 - self.best_epoch >= patience


def load_parameters(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters of the same names."""
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Let what requires gradients be trained; its values, and those of all buffers, come back."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = {**trained, **dict(model.named_buffers())}
    before = {name: value.detach().clone() for name, value in values.items()}
    try:
        yield
    finally:
        load_parameters(values, before)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps for each parameter, on the CPU, by flat names."""
    return {
        f"optimizer.{index}.{key}": tensor.detach().to("cpu", copy=True)
        for index, tensors in optimizer.state_dict()["state"].items()
        for key, tensor in tensors.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer back what `optimizer_tensors` found."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


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
            measured: What was measured of the head that is kept; see `TrainingState`.
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
    validation = labelled(validation) if isinstance(task, Classes) else validation
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
        rows = task.prepared(target, torch.float64)
        logits, words = rows.mean(0).logit(1e-12), "the same labels for all"
    else:
        logits, words = task.prepared(target, torch.float64).mean(0), "always the mean value"
    return logits.expand(len(target), -1), words


@contextmanager
def failures_unwarned() -> Iterator[None]:
    """No `FailedTraining` is shown inside the block, where the reason is told otherwise."""
    with catch_warnings():
        simplefilter("ignore", FailedTraining)
        yield
