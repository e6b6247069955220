"""The loss to match a mix: any criterion with a `reduction`, weighed sample by sample."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.mixing import Mix

Criterion = Callable[..., Tensor]

REDUCTIONS = ("mean", "sum", "none", "batchmean")


def mixed_loss(
    logits: Tensor, target: Tensor, mix: Mix, criterion: Criterion = F.cross_entropy
) -> Tensor:
    """The loss of mixed features: each sample's own target and its partner's, weighed by lam.

        l[i] = lam[i] * criterion(logits[i], target[i])
             + (1 - lam[i]) * criterion(logits[i], target[partner[i]])

    The weights are applied before the reduction. For cross entropy with class weights or
    `ignore_index` and a mean, the divisor is the sum of
    ``lam[i] * w[target[i]] + (1 - lam[i]) * w[target[partner[i]]]``, where ignored targets weigh
    0; for every other criterion a mean is the plain mean of its unreduced values.
    If every lam is 1, the result is ``criterion(logits, target)`` itself.

    Args:
        logits: The model's output for the mixed features, (B, C).
        target: Class indices (B,), or floating values (B, C): probabilities or multi-label.
        mix: The mix that was applied to the features.
        criterion: A loss with a `reduction`: a module such as ``nn.BCEWithLogitsLoss()``, a
            function such as `F.cross_entropy`, or a `functools.partial` of one.
            It is not modified.

    Returns:
        The reduced loss, or the unreduced one if the criterion's reduction is ``"none"``.

    Raises:
        TypeError: The criterion has no `reduction`.
        ValueError: The kind of target, a shape, or the reduction is not supported.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> loss = mixed_loss(logits, torch.tensor([0, 1]), Mix(0.75, [1, 0]))
        >>> round(float(loss), 4)
        0.5951

    Reference:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, section 3.
        https://arxiv.org/abs/1710.09412
    """
    target = _checked_target(logits, target, mix)
    if mix.is_identity:
        return criterion(logits, target)
    unreduced, reduction = _without_reduction(criterion)
    partner = mix.partner.to(target.device)
    own, other = unreduced(logits, target), unreduced(logits, target[partner])
    if own.ndim == 0 or len(own) != len(mix):
        raise ValueError(
            f"{_name(criterion)} with reduction='none' returned shape {tuple(own.shape)}, "
            f"expected one value or row for each of {len(mix)} samples"
        )
    losses = mix.between(own, other)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "batchmean":
        return losses.sum() / len(mix)
    counts = _mean_counts(criterion, target, losses)
    if counts is None:
        return losses.mean()
    return losses.sum() / mix.between(counts, counts[partner]).sum()


def _checked_target(logits: Tensor, target: Tensor, mix: Mix) -> Tensor:
    if not target.shape[:1] == logits.shape[:1] == (len(mix),):
        raise ValueError(
            f"mix of {len(mix)} samples, but logits of shape {tuple(logits.shape)} and target of "
            f"shape {tuple(target.shape)}: the first axis of all three must be the same batch"
        )
    indices = target.ndim == 1 and logits.ndim == 2 and _is_integer(target)
    values = target.ndim == 2 and target.is_floating_point() and target.shape == logits.shape
    if not (indices or values):
        hint = "; use target.float()" if target.shape == logits.shape else ""
        raise ValueError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype} for logits of shape "
            f"{tuple(logits.shape)}: expected class indices (B,) for logits (B, C), or floating "
            f"values (B, C) like the logits{hint}"
        )
    return target.long() if indices else target


def _is_integer(target: Tensor) -> bool:
    return not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)


def _without_reduction(criterion: Criterion) -> tuple[Criterion, str]:
    """The criterion with reduction 'none', and the reduction it has by itself."""
    if isinstance(criterion, nn.Module):
        reduction = getattr(criterion, "reduction", None)
        unreduced: Criterion = copy.copy(criterion)
        unreduced.reduction = "none"  # type: ignore[attr-defined]
    else:
        parameter = _parameters(criterion).get("reduction")
        reduction = None if parameter is None else parameter.default
        unreduced = functools.partial(criterion, reduction="none")
    if reduction is None:
        raise TypeError(
            f"{_name(criterion)} has no `reduction`, so it cannot be weighed sample by sample; "
            "use a loss that takes reduction='none', or one with the attribute `reduction`"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{_name(criterion)} has reduction={reduction!r}; expected one of "
            f"{', '.join(REDUCTIONS)}"
        )
    return unreduced, reduction


def _mean_counts(criterion: Criterion, target: Tensor, losses: Tensor) -> Tensor | None:
    """How much each target counts in the divisor of cross entropy's mean (B,), if it has one."""
    function = criterion.func if isinstance(criterion, functools.partial) else criterion
    if target.is_floating_point() or not (
        isinstance(function, nn.CrossEntropyLoss | nn.NLLLoss)
        or function in (F.cross_entropy, F.nll_loss)
    ):
        return None
    ignored: Tensor = target == _setting(criterion, "ignore_index")
    weight: Tensor | None = _setting(criterion, "weight")
    if weight is None:
        return (~ignored).to(losses.dtype)
    per_target = weight[target.masked_fill(ignored, 0)]
    return per_target.to(losses.dtype).masked_fill(ignored, 0)


def _setting(criterion: Criterion, name: str) -> Any:
    if isinstance(criterion, nn.Module):
        return getattr(criterion, name)
    return _parameters(criterion)[name].default


def _parameters(criterion: Criterion) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(criterion).parameters)
    except (TypeError, ValueError):
        return {}


def _name(criterion: Criterion) -> str:
    name = getattr(criterion, "__name__", None)
    return str(name or type(criterion).__name__)
