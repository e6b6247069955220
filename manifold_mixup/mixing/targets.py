"""The forms of a target: class indices, or values that can be mixed."""

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Class indices (B, *) as rows of 0 and 1 (B, C, *), all 0 where they are to be ignored.

    Raises:
        ValueError: An index lies outside [0, C).

    Example:
        >>> one_hot(torch.tensor([1, -100]), num_classes=2, ignore_index=-100)
        tensor([[0., 1.],
                [0., 0.]])
    """
    target = target.long()
    if target.ndim == 0:
        raise ValueError("target of shape (): expected class indices (B, *)")
    check_indices(target, num_classes, ignore_index)
    ignored = torch.zeros_like(target, dtype=torch.bool)
    if ignore_index is not None:
        ignored = torch.eq(target, ignore_index)
    rows = F.one_hot(target.masked_fill(ignored, 0), num_classes).movedim(-1, 1)
    return rows.to(torch.get_default_dtype()).masked_fill(ignored.unsqueeze(1), 0)


def as_values(target: Tensor) -> Tensor:
    """A multi-label target (B, *) of any dtype, or a floating one, as floating values.

    Raises:
        TypeError: It holds integers other than 0 and 1.
    """
    if target.is_floating_point() or target.is_complex():
        return target
    if target.dtype != torch.bool and len(target) and not _in_range(target, 0, 1):
        raise TypeError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype} holds more than 0 "
            "and 1: pass num_classes= for class indices, or target.float() for numbers"
        )
    return target.to(torch.get_default_dtype())


def fit_target(target: Tensor, logits: Tensor, *, takes_indices: bool) -> Tensor | None:
    """The target in the form in which it fits the logits (B, C, *), None if it does not.

    Indices become int64, and values what the logits have of shape and (from float32 on) dtype.

    Args:
        target: Class indices (B, *), or values like the logits; an axis of one class may be left
            out.
        logits: The model's output.
        takes_indices: Whether integers (B, *) are classes even if there is but one.
    """
    one_value = logits.ndim > 1 and logits.shape[1] == 1
    if logits.ndim > 1 and target.shape == logits.shape[:1] + logits.shape[2:]:
        if is_integer(target) and (takes_indices or not one_value):
            return target.long()
        if one_value and not takes_indices:
            return _like(target.unsqueeze(1), logits)
    if target.shape == logits.shape:
        return None if takes_indices and logits.ndim == 1 else _like(target, logits)
    if logits.ndim == 1 and target.shape == (len(logits), 1):
        return _like(target.squeeze(1), logits)
    return None


def is_integer(target: Tensor) -> bool:
    """Whether these may be class indices: integers of any width, but no booleans."""
    return not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)


def check_indices(target: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Raise a ValueError if a class index lies outside [0, C) and is not to be ignored."""
    kept = target if ignore_index is None else target[target != ignore_index]
    if kept.numel() and not _in_range(kept, 0, num_classes - 1):
        raise ValueError(
            f"class indices lie in [{int(kept.min())}, {int(kept.max())}], expected them "
            f"in [0, {num_classes}); check the targets or the number of classes"
        )


def check_width(target: Tensor, num_classes: int) -> None:
    """Raise a ValueError unless these are values of so many classes (B, C, *)."""
    if target.ndim < 2 or target.shape[1] != num_classes:
        raise ValueError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype} for num_classes="
            f"{num_classes}: expected integer class indices (B, *), or values (B, {num_classes}, "
            "*); use target.long() if its numbers are indices"
        )


def check_finite(target: Tensor) -> None:
    """Raise a ValueError that counts the samples whose target is not a finite number."""
    if not target.is_floating_point() or bool(target.isfinite().all()):
        return
    wrong = (
        ~target.flatten(1).isfinite() if target.ndim > 1 else ~target.isfinite()[:, None]
    ).any(1)
    first = int(wrong.nonzero()[0])
    raise ValueError(
        f"the targets of {int(wrong.sum())} of {len(target)} samples are NaN or infinite "
        f"(the first is sample {first} of the batch); leave these samples out"
    )


def _like(target: Tensor, logits: Tensor) -> Tensor:
    if not target.is_floating_point():
        return target.to(logits.dtype)
    # Half-precision logits come of autocast, which takes care of targets itself.
    return target.to(logits.dtype) if logits.dtype.itemsize >= 4 else target


def _in_range(target: Tensor, low: int, high: int) -> bool:
    if target.dtype in (torch.uint16, torch.uint32, torch.uint64):
        target = target.long()  # torch has no minimum of them
    least, most = target.aminmax()
    return low <= int(least) and int(most) <= high
