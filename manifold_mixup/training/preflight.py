"""A trial before the first step of a training: whether samples, model, task and loss fit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from manifold_mixup.features import FeatureStore, Samples, checked_batch, count, load_batches
from manifold_mixup.inspection import eval_mode, first_logits, model_device, model_dtype
from manifold_mixup.mixing import Criterion, Mix, Pairing, mixed_loss, name_of
from manifold_mixup.training.tasks import Task, check_pairs, find_task


def try_samples(
    model: nn.Module,
    samples: Samples,
    validation: Samples | None,
    task: Task | None,
    criterion: Criterion | None,
    *,
    pairing: Pairing,
    exclude: Sequence[int],
    batch_size: int,
) -> tuple[Tensor, Tensor, Task]:
    """The first inputs, on the model's device, their targets, and the task that these are of.

    Looked at are the first batches of the samples and of the validation ones; of stores all
    targets.

    Raises:
        TypeError: A batch is not a pair of tensors, or the criterion is none.
        ValueError: There are no samples, or targets do not fit the model, the task, the pairing
            or the criterion.
    """
    if not count(samples):
        raise ValueError("the data set is empty: nothing to train on")
    inputs, logits, target = _try_batch(model, samples, batch_size)
    task = task or find_task(target, criterion)
    task.check(model, logits, target)
    check_pairs(task, pairing, exclude, target[: len(inputs)], logits.shape[1])
    if criterion is not None:
        _check_criterion(criterion, task, logits, target[: len(inputs)])
    if validation is not None:
        _check_validation(model, samples, validation, task, batch_size)
    return inputs, target[: len(inputs)], task


def _check_validation(
    model: nn.Module, samples: Samples, validation: Samples, task: Task, batch_size: int
) -> None:
    if not count(validation):
        raise ValueError("validation= is empty: nothing to measure on; leave it out, or fill it")
    if isinstance(samples, FeatureStore) and not isinstance(validation, FeatureStore):
        raise ValueError(
            f"validation= is a {type(validation).__name__}, but training is on the features in "
            f"{samples.directory}; extract those of validation too"
        )
    if isinstance(samples, FeatureStore) == isinstance(validation, FeatureStore):
        _, logits, target = _try_batch(model, validation, batch_size)
        try:
            task.check(model, logits, target)
        except ValueError as error:
            raise ValueError(f"validation: {error}") from error


def _try_batch(
    model: nn.Module, samples: Samples, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The first inputs, their logits, and their targets; of a store all targets."""
    device, dtype = model_device(model), model_dtype(model)
    batches = load_batches(samples, batch_size, device=device, dtype=dtype)
    inputs, target = checked_batch(next(iter(batches)))
    inputs = inputs.to(device)
    with torch.no_grad(), eval_mode(model):
        logits = first_logits(model(inputs))
    return inputs, logits, samples.targets if isinstance(samples, FeatureStore) else target


def _check_criterion(criterion: Criterion, task: Task, logits: Tensor, target: Tensor) -> None:
    own = task.prepared(target, logits.dtype).to(logits.device)
    with torch.no_grad():
        loss = mixed_loss(logits, own, Mix.identity(len(logits)), criterion)
    if loss.ndim:
        raise ValueError(
            f"criterion {name_of(criterion)} gives a loss of shape {tuple(loss.shape)}, expected "
            "one number; give it reduction='mean'"
        )
