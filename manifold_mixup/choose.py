"""Choose among settings of a linear head by what validation samples say of each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_mixup.feed import Gather
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import HeadStack, train_stack

# Samples that are validated at a time.
_BATCH_SIZE = 256


@dataclass(frozen=True)
class Choice:
    """The best of many heads, at its best epoch.

    Attributes:
        settings: Of the head chosen.
        weight: (C, D).
        bias: (C,).
        nll: Its mean negative log likelihood on the validation samples, in nats.
        epoch: When that was, from 1.
        nlls: The same of all heads, each at its own best epoch; infinite where it never had one.
    """

    settings: HeadSettings
    weight: Tensor
    bias: Tensor
    nll: float
    epoch: int
    nlls: list[float]


def choose_settings(
    gather: Gather,
    target: Tensor,
    settings: Sequence[HeadSettings],
    weight: Tensor,
    bias: Tensor,
    *,
    validation: tuple[Gather, Tensor],
    patience: int = 5,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: str = "adamw",
    momentum: float = 0.9,
    between: Callable[[Tensor], Tensor] | None = None,
    mixed_epochs: int | None = None,
) -> Choice:
    """Train a head for each of some settings, all together, and choose by validation.

    Args:
        gather: Gives the stored features of some training samples.
        target: Of the training samples (n,).
        settings: What to choose from.
        weight: Where the heads begin, (C, D).
        bias: (C,).
        validation: Gives what the heads take (behind `between`), and the targets, of samples that
            are never trained on.
        patience: Training ends when no head has improved for so many epochs, at least 1.
        epochs: See `train_stack` for this and all that follow.
        batch_size: Samples in a step.
        optimizer: ``"adamw"`` or ``"sgd"``.
        momentum: Of SGD.
        between: A frozen function from features to what the heads take.
        mixed_epochs: After so many epochs their draws repeat.

    Raises:
        ValueError: As `train_stack`, or `patience` is below 1.
        RuntimeError: Every head diverged in its first epoch.

    Example:
        >>> features, target = torch.randn(40, 4), torch.arange(40) % 2
        >>> features[:, 0] += 4 * target
        >>> samples = features.__getitem__, target
        >>> settings = [HeadSettings(lr=lr) for lr in (1e-4, 0.1)]
        >>> begin = torch.zeros(2, 4), torch.zeros(2)
        >>> choose_settings(*samples, settings, *begin, validation=samples).settings.lr
        0.1
    """
    if patience < 1:
        raise ValueError(f"patience={patience} must be at least 1")
    if len(validation[1]) == 0:
        raise ValueError("there are no validation samples: nothing to choose by")
    best = _Best(validation, patience)
    train_stack(
        gather,
        target,
        settings,
        weight,
        bias,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        momentum=momentum,
        between=between,
        mixed_epochs=mixed_epochs,
        on_epoch=best,
    )
    head = int(best.nlls.argmin())
    nll = float(best.nlls[head])
    if nll == math.inf:
        raise RuntimeError(
            f"all {len(settings)} heads diverged; lower lr: {', '.join(map(str, settings))}"
        )
    return Choice(
        settings[head],
        best.weight[head],
        best.bias[head],
        nll,
        int(best.epochs[head]),
        best.nlls.tolist(),
    )


def validation_nll(gather: Gather, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The mean negative log likelihood of K linear heads on some samples, in nats (K,).

    Args:
        gather: Gives what the heads take (B, D).
        target: Class indices (n,).
        weight: (K, C, D).
        bias: (K, C).

    Example:
        >>> nll = validation_nll(torch.eye(2).__getitem__, torch.arange(2), torch.zeros(1, 2, 2),
        ...                      torch.zeros(1, 2))
        >>> round(float(nll), 4)
        0.6931
    """
    k, c, d = weight.shape
    total = torch.zeros(k, dtype=torch.float64, device=weight.device)
    for batch in torch.split(torch.arange(len(target)), _BATCH_SIZE):
        features = gather(batch).to(weight.device, weight.dtype)
        logits = torch.addmm(bias.reshape(-1, 1), weight.reshape(-1, d), features.t())
        own = target[batch].long().to(weight.device).expand(k, 1, -1)
        chosen = logits.view(k, c, -1).double().log_softmax(1).gather(1, own)
        total -= chosen.sum((1, 2))
    return total / len(target)


class _Best:
    """Keeps each head at its best epoch, and ends a training in which none improves any more."""

    def __init__(self, validation: tuple[Gather, Tensor], patience: int) -> None:
        self._validation, self._patience = validation, patience
        self._last = 0

    def __call__(self, stack: HeadStack) -> bool:
        nlls = validation_nll(*self._validation, stack.weight, stack.bias)
        nlls = nlls.nan_to_num(math.inf, posinf=math.inf)
        if stack.epochs == 1:
            self.weight, self.bias = stack.weight.clone(), stack.bias.clone()
            self.nlls, self.epochs = torch.full_like(nlls, math.inf), torch.zeros(len(nlls))
        improved = nlls < self.nlls
        self.nlls[improved] = nlls[improved]
        self.epochs[improved] = stack.epochs
        self.weight[improved] = stack.weight[improved]
        self.bias[improved] = stack.bias[improved]
        if bool(improved.any()):
            self._last = stack.epochs
        return stack.epochs - self._last >= self._patience
