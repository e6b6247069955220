"""A trial before the first step of a training: whether samples, model, task and loss fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.features import (
    FeatureStore,
    Samples,
    check_alike,
    checked_batch,
    count,
    find_tail,
    load_batches,
    targets_of,
)
from manifold_mixup.hooks import Kind, mix_class
from manifold_mixup.inspection import (
    Entry,
    Trace,
    bytes_explained,
    eval_mode,
    find_entries,
    first_logits,
    model_device,
    model_dtype,
)
from manifold_mixup.mixing import (
    Criterion,
    Mix,
    Pairing,
    check_alpha,
    check_paired,
    ignore_index,
    mixed_loss,
    name_of,
    plain_form,
)
from manifold_mixup.models import Tail
from manifold_mixup.training.metrics import IGNORED
from manifold_mixup.training.problem import has_ignored
from manifold_mixup.training.solver import AUTO, check_decay
from manifold_mixup.training.steps import OPTIMIZERS
from manifold_mixup.training.tasks import Task, Values, find_task, target_to_pair

Alpha = float | Callable[[float], float]


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
    if task is None:  # the first targets may look like others: 0 and 1 alone, for instance
        known = targets_of(samples)
        task = find_task(target if known is None or _differ(known, target) else known, criterion)
    task.check(model, logits, target)
    if criterion is not None and has_ignored(task, target):
        _check_ignores(criterion)
    check_pairs(task, pairing, exclude, target[: len(inputs)], logits.shape[1])
    if criterion is not None:
        _check_criterion(criterion, task, logits, target[: len(inputs)])
    if validation is not None:
        _check_validation(model, samples, validation, task, batch_size)
    return inputs, target[: len(inputs)], task


def _differ(known: Tensor, target: Tensor) -> bool:
    """Whether a data set's own targets are of another form than those of its samples."""
    is_float = known.is_floating_point(), target.is_floating_point()
    return known.shape[1:] != target.shape[1:] or is_float[0] != is_float[1]


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
    with torch.no_grad(), eval_mode(model), bytes_explained(model, inputs):
        logits = first_logits(model(inputs))
    return inputs, logits, samples.targets if isinstance(samples, FeatureStore) else target


def _check_ignores(criterion: Criterion) -> None:
    if ignore_index(plain_form(criterion)[0]) != IGNORED:
        raise ValueError(
            f"a target is {IGNORED}, which {name_of(criterion)} does not ignore; leave such "
            f"samples out, or give a criterion with ignore_index={IGNORED}"
        )


def _check_criterion(criterion: Criterion, task: Task, logits: Tensor, target: Tensor) -> None:
    own = task.prepared(target, logits.dtype).to(logits.device)
    with torch.no_grad():
        loss = mixed_loss(logits, own, Mix.identity(len(logits)), criterion)
    if loss.ndim:
        raise ValueError(
            f"criterion {name_of(criterion)} gives a loss of shape {tuple(loss.shape)}, expected "
            "one number; give it reduction='mean'"
        )


def trained_parameters(found: Trace, layer: Entry | list[Entry]) -> dict[str, nn.Parameter]:
    """What lies behind (any of) some layers and requires gradients, by name.

    Raises:
        ValueError: Nothing does, or it is used before the layer that a tail was cut at, too.
    """
    layers = [one for entry in find_entries(found.model, layer) for one in entry]
    behind: dict[str, nn.Parameter] = {}
    for one in layers:
        own = found.model.named_parameters()
        behind |= dict(own) if one.is_input else found.parameters_after(one.name)
    wanted = {id(parameter) for parameter in behind.values() if parameter.requires_grad}
    if not wanted:
        raise ValueError(
            f"nothing behind layer {layer!r} requires gradients, so nothing would be trained; "
            "choose an earlier layer, or freeze(model, except_=head)"
        )
    # Tied parameters once, as optimizers want them.
    trained = {name: p for name, p in found.model.named_parameters() if id(p) in wanted}
    before = found.model.used_before if isinstance(found.model, Tail) else {}
    for name, parameter in trained.items():
        if before.get(name) == id(parameter):
            raise ValueError(
                f"'{name}' is to be trained, but is used before the layer too that the model was "
                "cut at, so that the features would change with it; freeze it, or train on what "
                "the model takes"
            )
    return trained


def check_optimizer(optimizer: str) -> None:
    """Raise a ValueError that lists them unless this is ``"auto"``, or one of the optimizers."""
    if optimizer not in (AUTO, *OPTIMIZERS):
        known = ", ".join((AUTO, *OPTIMIZERS))
        raise ValueError(f"optimizer={optimizer!r}: choose one of {known}")


def check_unfolded(store: FeatureStore, kind: Kind) -> None:
    """Raise a ValueError if a mix of this kind is another where the features were folded to."""
    if store.stored_layer != store.layer and mix_class(kind) is not Mix:
        raise ValueError(
            f"{store.directory}: holds features of '{store.stored_layer}' in the place of "
            f"'{store.layer}', but {mix_class(kind).__name__} is not the same there; "
            "extract them anew with fold=False"
        )


def check_options(
    optimizer: str,
    weight_decay: Any,
    patience: int | None,
    validation: Samples | None,
    criterion: Criterion | None,
    for_classes: Mapping[str, Any],
) -> None:
    """Raise a ValueError unless these are in range, and go together; see `train_head`.

    Args:
        optimizer: See there, as for the next ones.
        weight_decay: See there.
        patience: See there.
        validation: See there.
        criterion: See there.
        for_classes: What is for the task's own loss alone, by name.
    """
    check_decay(weight_decay)
    check_optimizer(optimizer)
    if patience is not None and (patience < 1 or validation is None):
        raise ValueError(f"patience={patience} must be at least 1, and needs validation=")
    given = next((name for name, value in for_classes.items() if value), None)
    if criterion is not None and given:
        raise ValueError(f"{given}= is for the loss of classes; give it to criterion=")


def place(
    model: nn.Module,
    samples: Samples,
    validation: Samples | None,
    layer: Entry | list[Entry] | None,
    kind: Kind,
) -> tuple[nn.Module, Entry | list[Entry]]:
    """What is trained and where it is mixed: of stored features the tail that takes them."""
    if isinstance(samples, FeatureStore):
        if isinstance(validation, FeatureStore):
            check_alike(samples, validation)
        check_unfolded(samples, kind)
        return find_tail(model, samples), samples.stored_layer
    if layer is None:
        raise ValueError("say where to mix by layer=, such as layer='layer4'")
    return model, layer


def alphas_of(alpha: Alpha, epochs: int) -> list[float]:
    """The alpha of each epoch."""
    alphas = [alpha(epoch / epochs) if callable(alpha) else alpha for epoch in range(epochs)]
    for one in alphas:
        check_alpha(one)
    return alphas


def all_targets(samples: Samples) -> Tensor:
    """The targets of all samples, where they can be had without loading these."""
    targets = targets_of(samples)
    if targets is None:
        raise ValueError(
            f"class_weight='balanced' needs the targets of all samples, which "
            f"{type(samples).__name__} does not have as .targets; give the weights"
        )
    return targets


def given_or(given: Any, usual: Any) -> Any:
    """What is given, else what is usual."""
    return usual if given is None else given


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
        request = f"exclude={list(exclude)}" if exclude else f"pairing={pairing!r}"
        raise ValueError(
            f"{request} is for classes and labels; of values take 'any', 'near-target'"
        )
    check_paired(pairing, target_to_pair(task, target), exclude, num_classes)
