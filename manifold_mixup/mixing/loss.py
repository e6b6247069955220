"""The loss to match a mix, and the share of each label in it."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.mixing.criteria import (
    Criterion,
    check_criterion,
    ignore_index,
    is_own,
    mean_counts,
    mixes_target,
    name_of,
    plain_form,
    takes_indices,
    takes_integers,
    without_reduction,
)
from manifold_mixup.mixing.mix import Mix
from manifold_mixup.mixing.partners import read_labels
from manifold_mixup.mixing.targets import check_finite, check_indices, fit_target

Criteria = (
    Criterion | Mapping[str, Criterion] | Sequence[Criterion] | nn.ModuleDict | nn.ModuleList
)


@overload
def mixed_loss(logits: Tensor, target: Tensor, mix: Mix, criterion: Criterion = ...) -> Tensor: ...


@overload
def mixed_loss(
    logits: Mapping[str, Any], target: Mapping[str, Any], mix: Mix, criterion: Criteria = ...
) -> dict[str, Any]: ...


@overload
def mixed_loss(
    logits: Sequence[Any], target: Sequence[Any], mix: Mix, criterion: Criteria = ...
) -> tuple[Any, ...]: ...


def mixed_loss(logits: Any, target: Any, mix: Mix, criterion: Any = F.cross_entropy) -> Any:
    """The loss of mixed features: each sample's own target and its partner's, weighed by lam.

        l[i] = lam[i] * criterion(logits[i], target[i])
             + (1 - lam[i]) * criterion(logits[i], target[partner[i]])

    The weights are applied before the reduction. For cross entropy with class weights or
    `ignore_index` and a mean, the divisor is the sum of
    ``lam[i] * w[target[i]] + (1 - lam[i]) * w[target[partner[i]]]``, where ignored targets weigh
    0. Of a loss of your own with a mean, what it divides by is measured: its value of the batch
    against its unreduced ones. Every other mean is the plain one of the unreduced values.
    Losses of fastai and of timm give what their plain forms of PyTorch give.
    Squared, absolute, smooth absolute and Huber errors compare with the mixed target instead;
    `mixes_target` tells which form a criterion gets, and why.
    If every lam is 1, the result is ``criterion(logits, target)`` itself.

    Args:
        logits: The model's output for the mixed features, (B, C), dense (B, C, *), or (B,); or a
            dict or sequence of such.
        target: Class indices (B,), or dense (B, *); or values like the logits, of any dtype:
            one-hot, soft (a teacher's probabilities), multi-label or real ones, where an axis of
            one value may be left out; or a dict or sequence of such.
        mix: The mix that was applied to the features.
        criterion: A loss such as ``nn.BCEWithLogitsLoss()``, a function such as `F.cross_entropy`,
            or a `functools.partial` of one; a dict or sequence of these (a ``nn.ModuleDict`` or
            ``nn.ModuleList`` too) for as many targets.
            One without a `reduction` needs one lam for the whole batch, and no boxes in dense
            targets. It is not modified.

    Returns:
        The reduced loss, or the unreduced one if the criterion's reduction is ``"none"``; a dict
        or tuple of losses for several targets, to be added up with weights of your choice.

    Raises:
        TypeError: The criterion is no function, or has no `reduction` while samples differ in lam;
            or logits, targets and criteria are not built alike.
        ValueError: The kind of target, a shape, or the reduction is not supported; the mean of a
            loss of your own divides by what cannot be measured; or, where the target lies on the
            CPU, a class index is out of range or a value not finite.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> loss = mixed_loss(logits, torch.tensor([0, 1]), Mix(0.75, [1, 0]))
        >>> round(float(loss), 4)
        0.5951

    Reference:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, section 3.
        https://arxiv.org/abs/1710.09412
    """
    if isinstance(target, Tensor):
        return _loss(logits, target, mix, criterion)
    if isinstance(target, Mapping):
        keys: list[Any] = list(target)
        return {key: _loss_of(key, logits, target, mix, criterion) for key in keys}
    if isinstance(target, Sequence) and not isinstance(target, str):
        return tuple(_loss_of(i, logits, target, mix, criterion) for i in range(len(target)))
    raise TypeError(f"target must be a tensor, or a dict or sequence of them, got {target!r}")


def _loss_of(key: Any, logits: Any, target: Any, mix: Mix, criterion: Any) -> Any:
    """The loss of one of several targets."""
    containers = (Mapping, Sequence, nn.ModuleDict, nn.ModuleList)
    each: Any = criterion if isinstance(criterion, containers) else None
    for what, parts in (("logits", logits), ("criterion", each)):
        if parts is not None and (isinstance(parts, Tensor) or len(parts) != len(target)):
            raise TypeError(
                f"{len(target)} targets in a {type(target).__name__}, but {what} of "
                f"{len(parts)} in a {type(parts).__name__}: expected one for each target"
            )
    try:
        return mixed_loss(logits[key], target[key], mix, criterion if each is None else each[key])
    except KeyError as error:
        raise TypeError(f"target {key!r}: there are no logits or no criterion for it") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"target {key!r}: {error}") from error


def _loss(logits: Tensor, target: Tensor, mix: Mix, criterion: Criterion) -> Tensor:
    check_criterion(criterion)
    criterion, axis = plain_form(criterion)
    if isinstance(logits, Tensor) and logits.ndim > 1:
        logits = logits.movedim(axis, 1)
    target = _fitted(logits, target, mix, criterion)
    if mix.is_identity:
        return criterion(logits, target)
    if mixes_target(criterion):
        return criterion(logits, mix.target(target))
    other = target[mix.partner.to(target.device)]
    found = without_reduction(criterion)
    if found is None:
        return _loss_of_batch(logits, target, other, mix, criterion)
    unreduced, reduction = found
    own, others = (
        _checked_losses(unreduced(logits, one), mix, criterion) for one in (target, other)
    )
    losses = mix.between(own, others)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "batchmean":
        return losses.sum() / len(mix)
    counts = mean_counts(criterion, logits, target, own)
    if counts is None:
        return losses.mean()
    return losses.sum() / mix.between(counts, counts[mix.partner.to(counts.device)]).sum()


def _loss_of_batch(
    logits: Tensor, target: Tensor, other: Tensor, mix: Mix, criterion: Criterion
) -> Tensor:
    """The two terms of a criterion that tells the loss of a batch alone."""
    lam = mix.lam_of_all(target)
    if lam is None:
        part, remedy = "pixel", "Mix"
        if mix.shared_lam is None:
            part, remedy = "sample", "per_sample=False"
        raise TypeError(
            f"{name_of(criterion)} has no `reduction`, so it cannot be weighed {part} by {part}, "
            f"and {part}s differ in lam; use {remedy}, or a loss with reduction='none' "
            "(of one that is linear in the target, take criterion(logits, mix.target(target)))"
        )
    if lam == 0:
        return criterion(logits, other)
    return lam * criterion(logits, target) + (1 - lam) * criterion(logits, other)


def _checked_losses(losses: Tensor, mix: Mix, criterion: Criterion) -> Tensor:
    if losses.ndim == 0 or len(losses) != len(mix):
        raise ValueError(
            f"{name_of(criterion)} with reduction='none' returned shape {tuple(losses.shape)}, "
            f"expected one value or row for each of {len(mix)} samples"
        )
    return losses


def _fitted(logits: Tensor, target: Tensor, mix: Mix, criterion: Criterion) -> Tensor:
    """The target in the form that the criterion takes."""
    if not isinstance(mix, Mix):
        raise TypeError(
            f"mix must be a Mix, got a {type(mix).__name__}: a step is opened by a with block, "
            "as in `with mixup(target) as mix`"
        )
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"logits must be a tensor like the target, got a {type(logits).__name__}; of a "
            "model's output pass the logits alone"
        )
    if not target.shape[:1] == logits.shape[:1] == (len(mix),):
        raise ValueError(
            f"mix of {len(mix)} samples, but logits of shape {tuple(logits.shape)} and target of "
            f"shape {tuple(target.shape)}: the first axis of all three must be the same batch"
        )
    if takes_integers(criterion):
        return target
    fitted = fit_target(target, logits, takes_indices=takes_indices(criterion))
    if fitted is None and is_own(criterion):
        return target
    if fitted is None:
        raise ValueError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype} for logits of shape "
            f"{tuple(logits.shape)} and {name_of(criterion)}: expected class indices (B, *) of an "
            "integer dtype for logits (B, C, *), or values like the logits"
        )
    if fitted.shape != logits.shape and not (takes_indices(criterion) or is_own(criterion)):
        raise ValueError(
            f"class indices of shape {tuple(target.shape)} for {name_of(criterion)}, which "
            f"compares with values like the logits {tuple(logits.shape)}; give one-hot targets, "
            "such as F.one_hot(target, num_classes)"
        )
    # Elsewhere a look at the values would wait for the device.
    if target.device.type == "cpu" and not (torch.compiler.is_compiling() or is_own(criterion)):
        if takes_indices(criterion) and not fitted.is_floating_point():
            check_indices(fitted, logits.shape[1], ignore_index(criterion))
        check_finite(fitted)
    return fitted


def rebalance(
    mix: Mix,
    target: Tensor,
    counts: Sequence[int] | Tensor,
    kappa: float = 3.0,
    tau: float = 0.5,
) -> Mix:
    """The mix for the targets of imbalanced classes; the features keep the one that was drawn.

        lam[i]  ->  0       if n[i] / n[j] >= kappa    and      lam[i] < tau
                    1       if n[i] / n[j] <= 1/kappa  and  1 - lam[i] < tau
                    lam[i]  else

    where j is the partner of i, and n the number of training samples of their classes. So where a
    sample of a rare class was mixed with one of a frequent class, and weighs enough, the label is
    the rare one.

    Args:
        mix: What the features were mixed with, of B samples.
        target: Class indices (B,), or one-hot or probabilities (B, C): the largest counts.
        counts: Number of training samples of each class (C,).
        kappa: How many times more samples a class must have to give its label up, above 1.
        tau: How far from the label that is kept the features may be, in [0, 1]; 0 changes nothing.

    Returns:
        The mix for the loss.

    Raises:
        TypeError: `counts` is a dict.
        ValueError: The target tells no classes, is multi-label or of another length than the mix,
            or has a class without a count; or an argument is out of range.

    Example:
        >>> mix = Mix([0.4, 0.6, 0.4, 0.6], [1, 0, 3, 2])
        >>> rebalance(mix, torch.tensor([0, 1, 0, 0]), counts=[900, 100]).lam
        tensor([0.0000, 1.0000, 0.4000, 0.6000], dtype=torch.float64)

        In a loop, only the loss gets it:

        >>> model = nn.Linear(4, 2)
        >>> features, target = torch.randn(4, 4), torch.tensor([0, 1, 0, 0])
        >>> logits = model(mix(features))
        >>> loss = mixed_loss(logits, target, rebalance(mix, target, counts=[900, 100]))

    Reference:
        Chou et al., Remix: Rebalanced Mixup, 2020, section 3. https://arxiv.org/abs/2007.03943
    """
    if not kappa > 1:
        raise ValueError(f"kappa={kappa} must be above 1")
    if not 0 <= tau <= 1:
        raise ValueError(f"tau={tau} must be in [0, 1]")
    if isinstance(counts, Mapping):
        raise TypeError(
            f"counts is a {type(counts).__name__}: expected numbers in the order of the classes, "
            "such as [counts[c] for c in range(num_classes)]"
        )
    own = _class_sizes(target, torch.as_tensor(counts), len(mix)).to(mix.lam)
    other = own[mix.partner]
    lam = mix.lam.masked_fill((own >= kappa * other) & (mix.lam < tau), 0)
    lam = lam.masked_fill((own * kappa <= other) & (1 - mix.lam < tau), 1)
    return Mix(lam, mix.partner)


def _class_sizes(target: Tensor, counts: Tensor, n: int) -> Tensor:
    """How many training samples the class of each sample has (B,)."""
    classes = read_labels(target)
    if classes.shape != (n,):
        raise ValueError(
            f"target of shape {tuple(target.shape)} for a mix of {n} samples: expected one class "
            "for each"
        )
    counts = counts.to(classes.device)
    low, high = int(classes.min()), int(classes.max())
    if counts.ndim != 1 or not 0 <= low <= high < len(counts):
        raise ValueError(
            f"counts of shape {tuple(counts.shape)} for classes from {low} to {high}: expected "
            "the number of training samples of each class (C,)"
        )
    sizes = counts[classes]
    if not bool((sizes > 0).all()):
        wrong = int(classes[~(sizes > 0)][0])
        raise ValueError(
            f"counts: class {wrong} of this batch has {counts[wrong].item()} training samples, "
            "expected at least 1"
        )
    return sizes
