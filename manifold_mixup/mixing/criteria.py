"""What a mix must know of a criterion: how it reduces, what its mean divides by, what it takes."""

import copy
import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Criterion = Callable[..., Tensor]


REDUCTIONS = ("mean", "sum", "none", "batchmean")


# Of class indices or probabilities, with class weights and `ignore_index`.
_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, F.cross_entropy, F.nll_loss)


_OF_INDICES = (nn.MultiMarginLoss, F.multi_margin_loss)


# They measure a distance, so a prediction between two targets is right for a mix of both.
_OF_DISTANCE = (
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss),
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss),
)


_OF_LABELS = (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits)


_OF_LABEL_LISTS = (nn.MultiLabelMarginLoss, F.multilabel_margin_loss)


def mixes_target(criterion: Criterion) -> bool:
    """Whether `mixed_loss` mixes the targets and calls the criterion once.

    It does so for the squared, absolute, smooth absolute and Huber error, which compare a
    prediction with a value: mixed features stand for the mixed value, while two terms of an
    absolute error would be least at one of the two ends. Every other criterion gets two terms,
    which asks nothing of it: a hinge takes no targets but its own, and cross entropy with class
    weights would divide a mean by another sum. Where a criterion is linear in its target (cross
    entropy else, binary or not) both forms are the same, for a divergence their gradients are.

    Example:
        >>> mixes_target(nn.L1Loss()), mixes_target(nn.CrossEntropyLoss())
        (True, False)
    """
    return _is_of(criterion, _OF_DISTANCE)


def check_criterion(criterion: Any) -> None:
    """Raise a TypeError unless it can be called with logits and target."""
    if isinstance(criterion, type):
        raise TypeError(
            f"criterion is the class {criterion.__name__}: give one made of it, such as "
            f"{criterion.__name__}()"
        )
    if not callable(criterion) or isinstance(criterion, nn.ModuleDict | nn.ModuleList):
        raise TypeError(
            f"criterion is a {type(criterion).__name__}: expected one loss for one target, such "
            "as nn.CrossEntropyLoss(); several are for a dict or sequence of targets"
        )


def plain_form(criterion: Criterion) -> tuple[Criterion, int]:
    """PyTorch's own form of a loss of fastai's or timm's, and the axis of its logits' classes.

    Those of fastai flatten logits and targets, those of timm have no `reduction`: only their plain
    forms can be weighed sample by sample. Others are returned as they are, with axis 1.
    """
    loss: Any = criterion
    timm, fastai = sys.modules.get("timm.loss"), sys.modules.get("fastai.losses")
    if timm is not None and type(loss) is timm.SoftTargetCrossEntropy:
        return nn.CrossEntropyLoss(), 1
    if timm is not None and type(loss) is timm.LabelSmoothingCrossEntropy:
        return nn.CrossEntropyLoss(label_smoothing=loss.smoothing), 1
    if fastai is not None and _calls_as(loss, fastai.BaseLoss):
        return loss.func, loss.axis if loss.is_2d else 1
    return criterion, 1


def is_of_classes(criterion: Criterion) -> bool:
    """Whether it is cross entropy: of class indices or probabilities, with a weighted mean."""
    return _is_of(criterion, _OF_CLASSES)


def takes_indices(criterion: Criterion) -> bool:
    """Whether an integer target with one entry for each row of logits means classes to it."""
    return _is_of(criterion, _OF_CLASSES + _OF_INDICES)


def takes_labels(criterion: Criterion) -> bool:
    """Whether it is binary cross entropy of logits, to which targets are labels."""
    return _is_of(criterion, _OF_LABELS)


def takes_integers(criterion: Criterion) -> bool:
    """Whether integer targets of the logits' own shape are more than 0 and 1 to it."""
    return _is_of(criterion, _OF_LABEL_LISTS)


def is_own(criterion: Criterion) -> bool:
    """Whether PyTorch does not know it, so that its targets may have any form."""
    function = _function(criterion)
    module = type(function).__module__ if isinstance(function, nn.Module) else ""
    name = module or getattr(function, "__module__", None) or "torch"
    return name.partition(".")[0] != "torch"


def without_reduction(criterion: Criterion) -> tuple[Criterion, str] | None:
    """The criterion with reduction 'none', and the reduction it has by itself; None if none.

    Raises:
        ValueError: Its reduction is unknown.
    """
    reduction = _setting(criterion, "reduction")
    if reduction is None:
        return None
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{name_of(criterion)} has reduction={reduction!r}; expected one of "
            f"{', '.join(REDUCTIONS)}"
        )
    return _unreduced(criterion), reduction


def mean_counts(
    criterion: Criterion, logits: Tensor, target: Tensor, losses: Tensor
) -> Tensor | None:
    """How much each target, or all of each sample, counts in the divisor of a mean; None for 1.

    That of cross entropy is known, that of a user's loss is measured.

    Args:
        criterion: A loss whose reduction is a mean.
        logits: The model's output.
        target: What it is compared with.
        losses: The unreduced losses.
    """
    if is_own(criterion):
        return _measured_counts(criterion, logits.detach(), target, losses.detach())
    if target.is_floating_point() or not is_of_classes(criterion):
        return None
    ignored = torch.eq(target, _setting(criterion, "ignore_index"))
    weight: Tensor | None = _setting(criterion, "weight")
    if weight is None:
        return (~ignored).to(losses.dtype)
    per_target = weight[target.masked_fill(ignored, 0)]
    return per_target.to(losses.dtype).masked_fill(ignored, 0)


def _measured_counts(
    criterion: Criterion, logits: Tensor, target: Tensor, losses: Tensor
) -> Tensor | None:
    """What a user's loss divides by, from what it gives for the batch and for each sample.

    Raises:
        ValueError: It is a mean of no kind that can be seen so.
    """
    whole = criterion(logits, target)
    if _is_close(whole, losses.mean()):
        return None
    singles = [criterion(logits[i : i + 1], target[i : i + 1]) for i in range(len(losses))]
    # A single one's weight is in its unreduced loss alone; 0 / 0 is one that is ignored.
    sums = losses.flatten(1).sum(1) if losses.ndim > 1 else losses
    counts = (sums / torch.stack(singles)).nan_to_num(0.0)
    if not _is_close(whole, losses.sum() / counts.sum()):
        raise ValueError(
            f"{name_of(criterion)} gives {float(whole):.4g} for the batch, which is neither the "
            f"mean of what it gives with reduction='none', {float(losses.mean()):.4g}, nor a "
            "weighted one: what it divides by cannot be known; use its reduction='sum' or 'none'"
        )
    return counts


def _is_close(a: Tensor, b: Tensor) -> bool:
    tolerance = torch.finfo(b.dtype).eps ** 0.5
    return bool(torch.isclose(a.to(b.dtype), b, rtol=tolerance, atol=tolerance**2))


def ignore_index(criterion: Criterion) -> int | None:
    """The class index that counts as none, if the criterion has one."""
    index: int | None = _setting(criterion, "ignore_index") if is_of_classes(criterion) else None
    return index


def name_of(criterion: Criterion) -> str:
    """The name to call it by in a message."""
    name = getattr(criterion, "__name__", None)
    return str(name or type(criterion).__name__)


def _is_of(criterion: Criterion, some: tuple[Any, ...]) -> bool:
    function = _function(criterion)

    def is_it(one: Any) -> bool:
        if not isinstance(one, type):
            return function is one
        # A subclass with a forward of its own is another loss, such as a focal one.
        own = getattr(type(function), "forward", None)
        return isinstance(function, one) and own is vars(one)["forward"]

    return any(map(is_it, some))


def _calls_as(criterion: Any, kind: type) -> bool:
    return isinstance(criterion, kind) and type(criterion).__call__ is kind.__call__


def _function(criterion: Criterion) -> Any:
    function = criterion.func if isinstance(criterion, functools.partial) else criterion
    return getattr(function, "_orig_mod", function)  # of a compiled module


def _unreduced(criterion: Criterion) -> Criterion:
    function = _function(criterion)
    if not isinstance(function, nn.Module):
        return functools.partial(criterion, reduction="none")
    module = copy.copy(function)
    module.reduction = "none"  # type: ignore[assignment]
    if isinstance(criterion, functools.partial):
        return functools.partial(module, *criterion.args, **criterion.keywords)
    return module


def _setting(criterion: Criterion, name: str) -> Any:
    """What a criterion has by that name, by itself; None if nothing."""
    function = _function(criterion)
    if isinstance(function, nn.Module):
        return getattr(function, name, None)
    if isinstance(criterion, functools.partial) and name in criterion.keywords:
        return criterion.keywords[name]
    parameter = _parameters(criterion).get(name)
    if parameter is None or parameter.default is parameter.empty:
        return None
    return parameter.default


def _parameters(criterion: Criterion) -> Mapping[str, inspect.Parameter]:
    if isinstance(criterion, functools.partial) and not criterion.args:
        return _parameters(criterion.func)
    if isinstance(criterion, types.FunctionType) and criterion in _OF_TORCH:
        return _OF_TORCH[criterion]
    return _read_parameters(criterion)


def _read_parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


# Read once: reading a signature in every step takes longer than the loss itself.
_OF_TORCH = {
    one: _read_parameters(one) for one in vars(F).values() if isinstance(one, types.FunctionType)
}
