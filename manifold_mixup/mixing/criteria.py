"""What a mix must know of a criterion: how it reduces, what its mean divides by, what it takes."""

import copy
import functools
import inspect
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


def is_of_classes(criterion: Criterion) -> bool:
    """Whether it is cross entropy: of class indices or probabilities, with a weighted mean."""
    return _is_of(criterion, _OF_CLASSES)


def takes_indices(criterion: Criterion) -> bool:
    """Whether an integer target with one entry for each row of logits means classes to it."""
    return _is_of(criterion, _OF_CLASSES + _OF_INDICES)


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


def mean_counts(criterion: Criterion, target: Tensor, losses: Tensor) -> Tensor | None:
    """How much each target counts in the divisor of cross entropy's mean, if it has one."""
    if target.is_floating_point() or not is_of_classes(criterion):
        return None
    ignored = torch.eq(target, _setting(criterion, "ignore_index"))
    weight: Tensor | None = _setting(criterion, "weight")
    if weight is None:
        return (~ignored).to(losses.dtype)
    per_target = weight[target.masked_fill(ignored, 0)]
    return per_target.to(losses.dtype).masked_fill(ignored, 0)


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
