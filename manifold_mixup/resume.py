"""Where a training stands after an epoch, and how to go on from there."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from manifold_mixup.manager import ManifoldMixup


@dataclass(frozen=True)
class Training:
    """A head after some epochs of training: enough to use it, and to go on from there.

    Attributes:
        head: The trained parameters, by their name in the model.
        losses: The mixed training loss of every step.
        epochs: What every epoch measured: ``mixed_loss``; ``train_loss`` and ``train_accuracy`` on
            clean training samples; ``val_loss`` and ``val_accuracy`` with a validation set.
        state: The optimizer's tensors and the state of the mixes' generator.
    """

    head: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """What the last epoch measured."""
        return self.epochs[-1] if self.epochs else {}


def advance(
    done: Training,
    losses: list[float],
    row: dict[str, float],
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    mixup: ManifoldMixup,
) -> Training:
    """Where a training stands after one more epoch, on the CPU.

    Args:
        done: Where it stood before.
        losses: Of every step of the epoch.
        row: What the epoch measured.
        parameters: The trained ones, by name.
        optimizer: Of these.
        mixup: Draws the mixes.
    """
    state = {
        f"optimizer.{index}.{key}": tensor.detach().to("cpu", copy=True)
        for index, tensors in optimizer.state_dict()["state"].items()
        for key, tensor in tensors.items()
    }
    state["generator"] = mixup.state_dict()["generator"]
    head = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    return Training(head, done.losses + losses, [*done.epochs, row], state)


def restore(
    done: Training,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    mixup: ManifoldMixup,
) -> None:
    """Put parameters, optimizer and draws where a training stood, if it had begun."""
    if not done.epochs:
        return
    with torch.no_grad():
        for name, tensor in done.head.items():
            parameters[name].copy_(tensor)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in done.state.items():
        if key != "generator":
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    mixup.load_state_dict({"generator": done.state["generator"]})
