"""The learning rate of a linear head, chosen by validation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.cached import find_tail
from manifold_mixup.choose import choose_settings, validation_nll
from manifold_mixup.linear import find_linear
from manifold_mixup.modes import training_mode
from manifold_mixup.resume import load_parameters
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import train_stack
from manifold_mixup.store import FeatureStore
from manifold_mixup.tasks import Classes, Task
from manifold_mixup.train import train_head

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


def choose_rate(
    model: nn.Module,
    store: FeatureStore,
    validation: FeatureStore,
    settings: HeadSettings,
    *,
    task: Task | None = None,
    epochs: int,
    batch_size: int,
    optimizer: str,
    patience: int | None,
    mixed_epochs: int | None = None,
) -> float:
    """The one of `RATES` whose head has the lowest validation loss; its own where it must be.

    A head for each of them is trained from where the model's head is now: for classes all as one
    stack, for labels and values one after the other. The model is left as it was.

    Args:
        model: A model whose tail behind the stored features may be a single linear layer. If it
            is more than that, the rate of the settings is returned.
        store: Features to train on.
        validation: Features to choose by.
        settings: Of the training, but for the rate.
        task: What is trained for; None for classes.
        epochs: See `train_head` for this and all that follow.
        batch_size: Samples in a step.
        optimizer: ``"adamw"`` or ``"sgd"``; for another one the rate is not chosen.
        patience: None to choose by the last epoch, else by the best one.
        mixed_epochs: See `train_head`.
    """
    tail = find_tail(model, store)
    parameters = {name: p for name, p in tail.named_parameters() if p.requires_grad}
    with training_mode(tail, parameters, set()):
        inputs = store.features.gather(torch.arange(min(2, len(store))))
        linear = find_linear(tail, inputs.to(next(tail.parameters())), parameters)
    if linear is None or optimizer == "lbfgs":
        return settings.lr
    grid = [replace(settings, lr=rate) for rate in RATES]
    options: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "mixed_epochs": mixed_epochs,
    }
    if task is not None and not isinstance(task, Classes):
        options |= {"validation": validation, "patience": patience, "task": task}
        losses = [_trained_loss(tail, parameters, store, one, options) for one in grid]
        return RATES[losses.index(min(losses))]
    begin = linear.weight.detach(), linear.bias.detach()
    held = _flat(validation), validation.targets
    if patience is not None:
        choice = choose_settings(
            _flat(store),
            store.targets,
            grid,
            *begin,
            validation=held,
            patience=patience,
            **options,
        )
        return choice.settings.lr
    stack = train_stack(_flat(store), store.targets, grid, *begin, **options)
    nlls = validation_nll(*held, stack.weight, stack.bias).nan_to_num(math.inf)
    return RATES[int(nlls.argmin())]


def _trained_loss(
    tail: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    store: FeatureStore,
    settings: HeadSettings,
    options: Mapping[str, Any],
) -> float:
    """The validation loss of a head after its training, which is then undone; infinite if it
    diverges.
    """
    begin = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        training = train_head(tail, store, **asdict(settings), **options)
    except RuntimeError:  # the loss is not finite any more
        return math.inf
    finally:
        load_parameters(parameters, begin)
    loss = training.metrics["val_loss"]
    return loss if math.isfinite(loss) else math.inf


def _flat(store: FeatureStore) -> Callable[[Tensor], Tensor]:
    return lambda index: store.features.gather(index).flatten(1)
