"""Who mixes with whom: a partner for every sample of a batch."""

import functools
import math
import operator
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.mixing.partners import (
    draw_cycle,
    draw_other,
    draw_same,
    have_any,
    pick,
    read_labels,
)

# One of `PAIRINGS`, or a function of target (B, *) and generator that returns partners (B,).
Pairing = str | Callable[[Any, torch.Generator | None], Tensor]


PAIRINGS = ("any", "other-class", "same-class", "near-target")


def draw_partner(
    n: int,
    pairing: Pairing = "any",
    *,
    target: Any = None,
    exclude: Iterable[int] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a partner for each of n samples.

    ``"any"``: a random cycle through the batch. Every other sample is as likely a partner, each
    is taken exactly once, and nobody is paired with itself (unless the batch has one sample).

    ``"other-class"``: a sample without a common class. Each is taken exactly once, or, if one
    class has more than half of the batch, as evenly as that allows. Multi-label samples without
    any label mix with all; those of a single label (B, 1) are of two classes, with it or without.

    ``"same-class"``: a sample with a common class; with class indices each is taken exactly once.

    ``"near-target"``: for regression, the nearer its target the likelier; see `NearTarget`.

    Who cannot be paired so, as a class alone in its batch, is its own partner. If this is so for
    a whole batch, a warning tells it, once for a rule.

    Args:
        n: Number of samples, at least 1.
        pairing: The rule, one of `PAIRINGS`; or a function ``(target, generator) -> partner``
            of the targets on the CPU, for a rule of your own.
        target: The targets of the batch, for all rules but ``"any"`` alone. For those by class:
            indices (B,); one-hot or probabilities (B, C), of which the largest counts; or
            multi-label (B, C). On a GPU, they are waited for.
        exclude: Indices of classes that take no part: their samples are their own partners, and
            nobody else's. Multi-label samples are excluded if any of their labels is.
        generator: A CPU generator; the global one if None.

    Returns:
        Indices (n,), int64, on the CPU.

    Raises:
        TypeError: The target is missing, or a function returned no integers.
        ValueError: The rule or a class is unknown, the target is of another kind or length or not
            finite, or a function returned what are no partners.

    Example:
        >>> sorted(draw_partner(4).tolist())
        [0, 1, 2, 3]
        >>> target = torch.tensor([7, 8, 7, 9])
        >>> draw_partner(4, "same-class", target=target)
        tensor([2, 1, 0, 3])
        >>> draw_partner(4, "other-class", target=target, exclude=[7])
        tensor([0, 3, 2, 1])
    """
    check_pairing(pairing)
    exclude = check_exclude(exclude)
    if pairing == "any" and not exclude:
        return draw_cycle(n, generator)
    target = _checked_target(target, n, pairing, exclude)
    if exclude:
        partner, some = torch.arange(n), _taking_part(target, exclude)
        partner[some] = some[_draw(len(some), pairing, target[some], generator)]
    else:
        partner = _draw(n, pairing, target, generator)
    if n > 1 and torch.equal(partner, torch.arange(n)):
        _warn_unmixed(repr(pairing), exclude)
    return partner


def check_pairing(pairing: Pairing) -> None:
    """Raise a ValueError that lists the rules unless this is one of them, or a function."""
    if pairing not in PAIRINGS and not callable(pairing):
        raise ValueError(
            f"pairing={pairing!r} is unknown; choose one of {', '.join(PAIRINGS)}, or give a "
            "function of target and generator"
        )


def check_prob(prob: float) -> None:
    """Raise a ValueError unless this is a probability."""
    if not 0 <= prob <= 1:
        raise ValueError(f"prob={prob} must be in [0, 1] (1 = every step is mixed)")


def check_exclude(exclude: Iterable[int], num_classes: int | None = None) -> tuple[int, ...]:
    """The classes in order; an error unless they are indices, of so many classes if that is known.

    Raises:
        TypeError: They are no integers.
        ValueError: There is no such class.

    Example:
        >>> check_exclude([4, 2], num_classes=5)
        (2, 4)
    """
    try:
        classes = tuple(sorted({operator.index(one) for one in exclude}))
    except TypeError:
        raise TypeError(f"exclude={exclude!r} must hold class indices, such as (0, 3)") from None
    for one in classes:
        if one < 0 or (num_classes is not None and one >= num_classes):
            known = "from 0 on" if num_classes is None else f"0 to {num_classes - 1}"
            raise ValueError(f"exclude: there is no class {one}; the classes are {known}")
    return classes


def check_paired(
    pairing: Pairing, target: Tensor, exclude: Iterable[int], num_classes: int
) -> None:
    """Raise what `draw_partner` would raise of such targets, without a draw.

    Args:
        pairing: The rule.
        target: The targets of some samples (B, *).
        exclude: Classes.
        num_classes: Number of classes C.
    """
    check_pairing(pairing)
    if check_exclude(exclude, num_classes) or pairing in ("other-class", "same-class"):
        read_labels(target.detach().cpu())
    if pairing == "near-target":
        NearTarget()(target, torch.Generator())


def _draw(n: int, pairing: Pairing, target: Any, generator: torch.Generator | None) -> Tensor:
    if n < 2:
        return torch.arange(n)
    if not isinstance(pairing, str):
        return _checked_partner(pairing(target, generator), n, pairing)
    if pairing == "any":
        return draw_cycle(n, generator)
    if pairing == "near-target":
        return NearTarget()(target, generator)
    draw = draw_other if pairing == "other-class" else draw_same
    return draw(read_labels(target), generator)


def _checked_target(target: Any, n: int, pairing: Pairing, exclude: tuple[int, ...]) -> Any:
    """The target on the CPU; functions get what they are given, if it is no tensor."""
    if isinstance(target, Tensor):
        if target.shape[:1] != (n,):
            raise ValueError(
                f"target of shape {tuple(target.shape)} for {n} samples: the first axis must be "
                "the batch"
            )
        moved: Tensor = target.detach().cpu()
        return moved
    if exclude or isinstance(pairing, str):
        wish = f"exclude={exclude}" if exclude else f"pairing={pairing!r}"
        kind = "none" if target is None else f"a {type(target).__name__}"
        raise TypeError(
            f"{wish} needs target=, a tensor (B, *), got {kind}; of several targets, a function "
            "given as pairing can choose"
        )
    return target


def _taking_part(target: Tensor, exclude: tuple[int, ...]) -> Tensor:
    """The places of the samples of all but some classes."""
    labels = read_labels(target)
    if target.ndim == 2:
        check_exclude(exclude, target.shape[1])
    return (~have_any(labels, exclude)).nonzero().flatten()


def _checked_partner(partner: Any, n: int, pairing: Pairing) -> Tensor:
    try:
        partner = torch.as_tensor(partner).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        kind = type(partner).__name__
        raise TypeError(f"pairing={pairing!r} returned a {kind}, expected indices (n,)") from None
    if partner.is_floating_point() or partner.is_complex() or partner.dtype == torch.bool:
        raise TypeError(f"pairing={pairing!r} returned {partner.dtype}, expected integer indices")
    if partner.shape != (n,):
        raise ValueError(
            f"pairing={pairing!r} returned shape {tuple(partner.shape)} for {n} samples, "
            f"expected ({n},)"
        )
    if not 0 <= int(partner.min()) <= int(partner.max()) < n:
        raise ValueError(
            f"pairing={pairing!r} returned partners from {int(partner.min())} to "
            f"{int(partner.max())}, expected them in [0, {n})"
        )
    indices: Tensor = partner.long()
    return indices


@functools.cache  # once for a rule, not in each step
def _warn_unmixed(pairing: str, exclude: tuple[int, ...]) -> None:
    warnings.warn(
        f"pairing={pairing}, exclude={exclude}: nobody in a whole batch has a partner; such "
        "batches are not mixed (this is said once)",
        stacklevel=3,
    )


@dataclass(frozen=True)
class NearTarget:
    """A pairing for regression: the nearer another sample's target, the likelier it is taken.

        P(j | i)  ~  exp(-|y[i] - y[j]|^2 / (2 * bandwidth^2)),  j != i

    The string ``"near-target"`` stands for it with the bandwidth by itself.

    Args:
        bandwidth: In the units of the targets, above 0; None for half the standard deviation of
            each batch's targets (for vectors: of their distance from the mean).

    Raises:
        ValueError: The bandwidth is out of range.

    Example:
        >>> near = NearTarget(bandwidth=0.1)
        >>> near(torch.tensor([1.0, 5.0, 1.1, 5.1]), torch.Generator())
        tensor([2, 3, 0, 1])

    Reference:
        Yao et al., C-Mixup: Improving Generalization in Regression, NeurIPS 2022, section 3.
        https://arxiv.org/abs/2210.05775
    """

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ValueError(f"bandwidth={self.bandwidth} must be a finite number above 0")

    def __call__(self, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a partner for each sample (B,), on the CPU.

        Args:
            target: Real values (B, *).
            generator: A CPU generator; the global one if None.

        Raises:
            ValueError: The target is not floating, or a value is not finite.
        """
        values = _checked_values(target)
        n = len(values)
        if n < 2:
            return torch.arange(n)
        values = values - values.mean(0)
        width = self.bandwidth or math.sqrt(float(values.square().sum()) / n) / 2 or 1.0
        values /= math.sqrt(2) * width
        # -|y[i] - y[j]|^2 but for what is the same in a row.
        log_weight = torch.addmm(-values.square().sum(1), values, values.T, alpha=2)
        log_weight.fill_diagonal_(-math.inf)
        # The nearest one weighs 1, so that nobody is too far from all others.
        return pick((log_weight - log_weight.amax(1, keepdim=True)).float().exp_(), generator)


def _checked_values(target: Tensor) -> Tensor:
    """The targets as (B, D), in float64 on the CPU."""
    if not target.is_floating_point():
        raise ValueError(
            f"pairing 'near-target' needs floating targets (B, *), got {target.dtype}; use "
            "target.float() if its numbers are amounts, another pairing if they are classes"
        )
    values = target.detach().cpu().double().reshape(len(target), -1)
    if not values.isfinite().all():
        bad = int((~values.isfinite()).any(1).sum())
        raise ValueError(
            f"the targets of {bad} of {len(values)} samples are not finite: no distance to them"
        )
    return values
