"""Training by steps: how one head is trained, its epochs, and the steps."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manifold_mixup._progress import Track
from manifold_mixup._random import seeded_generator
from manifold_mixup.features import Batches
from manifold_mixup.hooks import ManifoldMixup
from manifold_mixup.inspection import (
    Entry,
    Trace,
    find_entries,
    first_logits,
    model_device,
    training_mode,
)
from manifold_mixup.mixing import (
    Criterion,
    Mix,
    Pairing,
    check_alpha,
    check_exclude,
    check_pairing,
    mixed_loss,
)
from manifold_mixup.training.state import (
    Diverged,
    TrainingState,
    load_optimizer,
    load_parameters,
    optimizer_tensors,
)
from manifold_mixup.training.tasks import Task

# Above it a step cannot be computed in float32.
_LARGEST_RATE = 1e30


@dataclass(frozen=True)
class HeadSettings:
    """What may differ from head to head where many are trained together; see `train_head`.

    Attributes:
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing.
        lr: Learning rate of the first step, above 0.
        weight_decay: Of the optimizer, at least 0.
        label_smoothing: In [0, 1).
        pairing: Who mixes with whom; see `draw_partner`.
        seed: Of the order of the samples and of the mixes.
        exclude: Indices of classes that take no part in mixing, in order.
        clean_weight: Of the loss of the same samples unmixed, added to that of the mixed ones;
            at least 0.

    Raises:
        ValueError: One of them is out of range.

    Example:
        >>> from dataclasses import replace
        >>> [replace(HeadSettings(), lr=lr).lr for lr in (0.1, 0.01)]
        [0.1, 0.01]
    """

    alpha: float = 0.4
    lr: float = 0.01
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    pairing: Pairing = "any"
    seed: int = 0
    exclude: tuple[int, ...] = ()
    clean_weight: float = 0.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_pairing(self.pairing)
        object.__setattr__(self, "exclude", check_exclude(self.exclude))
        check_training(
            lr=self.lr,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            clean_weight=self.clean_weight,
        )


def check_partners(batch_size: int, alpha: float) -> None:
    """Raise a ValueError if samples are to be mixed in batches of one."""
    if batch_size == 1 and alpha > 0:
        raise ValueError(
            "batch_size=1 leaves a sample none to be mixed with; give at least 2, or alpha=0"
        )


def check_training(
    epochs: int = 1,
    batch_size: int = 1,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    clean_weight: float = 0.0,
) -> None:
    """Raise a ValueError that names the argument unless all that are given are in range."""
    for name, value, holds, expected in (
        ("epochs", epochs, epochs >= 1, "at least 1"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("lr", lr, 0 < lr <= _LARGEST_RATE, f"above 0, and at most {_LARGEST_RATE:g}"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0"),
        ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)"),
        ("clean_weight", clean_weight, 0 <= clean_weight < math.inf, "at least 0"),
    ):
        if not holds:
            raise ValueError(f"{name}={value} must be {expected}")


@dataclass(frozen=True)
class Epoch:
    """One of the epochs of a training.

    Attributes:
        number: Its place among them, from 0.
        epochs: How many there are.
    """

    number: int
    epochs: int

    def rate(self, share: float) -> float:
        """What learning rates are multiplied by when a share of this epoch is done: 1 down to 0.

        Example:
            >>> Epoch(1, 2).rate(0.0)
            0.5
        """
        return (1 + math.cos(math.pi * (self.number + share) / self.epochs)) / 2


OPTIMIZERS = ("adamw", "sgd")


MOMENTUM = 0.9  # of SGD


class Steps:
    """The steps of every epoch of one training.

    Args:
        model: The model, in the mode to train in.
        parameters: Those to train, by name.
        mixup: Mixes in the model.
        settings: Of the training.
        optimizer: One of `OPTIMIZERS`: AdamW, or SGD with momentum.
        task: What is trained for.
        criterion: The loss.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        mixup: ManifoldMixup,
        settings: HeadSettings,
        optimizer: str,
        task: Task,
        criterion: Criterion,
    ) -> None:
        self.model, self.parameters, self.mixup = model, parameters, mixup
        self.settings, self.task, self.criterion = settings, task, criterion
        self.optimizer = _make_optimizer(optimizer, list(parameters.values()), settings)

    def restore(self, done: TrainingState) -> None:
        """Go on from where a training stood, if it had begun."""
        if done.epochs:
            load_parameters(self.parameters, done.head)
            load_optimizer(self.optimizer, done.state)
            self.mixup.load_state_dict({"generator": done.state["generator"]})

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs besides the parameters."""
        generator = self.mixup.state_dict()["generator"]
        return {**optimizer_tensors(self.optimizer), "generator": generator}

    def run(self, batches: Batches, epoch: Epoch, track: Track) -> list[float]:
        """Train for an epoch; the whole loss of every step, mixed and clean.

        Raises:
            Diverged: A loss is not finite.
        """
        losses: list[Tensor] = []
        with _seeded(self.model, self.settings.seed, epoch.number):
            for batch in track(batches, len(batches), f"epoch {epoch.number + 1}/{epoch.epochs}"):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.settings.lr * epoch.rate(len(losses) / len(batches))
                losses.append(self._step(batch))
        return as_finite(torch.stack(losses), epoch.number, self.settings.lr)

    def _step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        device = model_device(self.model)
        prepared = self.task.prepared(batch[1], next(iter(self.parameters.values())).dtype)
        inputs, target = (t.to(device, non_blocking=True) for t in (batch[0], prepared))
        with self.mixup(target) as mix:
            logits = first_logits(self.model(inputs))
            self.task.check(self.model, logits, batch[1])
            loss = mixed_loss(logits, target, mix, self.criterion)
        self.optimizer.zero_grad()
        whole = torch.zeros_like(loss)
        # One after the other: checkpointing recomputes none but the last forward pass.
        for term in self._terms(loss, inputs, target):
            term.backward()  # type: ignore[no-untyped-call]
            whole += term.detach()
        self.optimizer.step()
        return whole

    def _terms(self, mixed: Tensor, inputs: Tensor, target: Tensor) -> Iterator[Tensor]:
        """What the loss of a step is the sum of: that of mixed samples, then that of clean ones.

        The second one is computed when it is asked for.
        """
        yield mixed
        if self.settings.clean_weight:
            logits = first_logits(self.model(inputs))
            clean = mixed_loss(logits, target, Mix.identity(len(target)), self.criterion)
            yield self.settings.clean_weight * clean


def _make_optimizer(
    name: str, parameters: list[nn.Parameter], settings: HeadSettings
) -> torch.optim.Optimizer:
    lr, weight_decay = settings.lr, settings.weight_decay
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    return torch.optim.SGD(parameters, lr, momentum=MOMENTUM, weight_decay=weight_decay)


@contextmanager
def _seeded(model: nn.Module, seed: int, epoch: int) -> Iterator[None]:
    """Draw dropout from a seed; the state of the global generator comes back."""
    device = model_device(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seeded_generator(seed, "model", epoch).initial_seed())
        yield


def as_finite(losses: Tensor, epoch: int, lr: float) -> list[float]:
    """The losses of an epoch as numbers; a `Diverged` if one is not finite."""
    if not losses.isfinite().all():
        reason = f"the loss is not finite any more in epoch {epoch + 1}"
        raise Diverged(reason, f"lower lr ({lr:g})")
    values: list[float] = losses.tolist()
    return values


@contextmanager
def training_behind(
    model: nn.Module,
    layer: Entry | list[Entry],
    found: Trace,
    parameters: dict[str, nn.Parameter],
) -> Iterator[None]:
    """Train what lies behind the layers; what a mix never reaches stays in eval mode."""
    layers = [one for entry in find_entries(model, layer) for one in entry]
    until = [set() if one.is_input else found.modules_until(one.name) for one in layers]
    with training_mode(model, parameters, set.intersection(*until)):
        yield
