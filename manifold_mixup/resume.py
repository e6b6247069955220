"""Where a training stands after an epoch, and how to go on from there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Training:
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
    ) -> "Training":
        """Where the training stands after one more epoch, on the CPU.

        Args:
            losses: Of every step of the epoch.
            row: What the epoch measured.
            parameters: The trained ones, by name.
            state: The optimizer's tensors and that of the mixes' generator.
            keep_best: Whether the best epoch's head is the one to keep.
        """
        head = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
        done = Training(head, self.losses + losses, [*self.epochs, row], state, self.best)
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
