"""The mix as a value: draw a `lam` and a `partner` for every sample, apply them to any tensor."""

import copy
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, SupportsFloat, TypeVar

import torch
from torch import Tensor

from manifold_mixup.mixing.pairing import Pairing, draw_partner
from manifold_mixup.mixing.targets import as_values, check_width, is_integer, one_hot


def check_alpha(alpha: float) -> None:
    """Raise a TypeError or ValueError unless alpha is a finite number, at least 0."""
    if not isinstance(alpha, SupportsFloat):
        raise TypeError(f"alpha={alpha!r} must be a number, at least 0 (0 = no mixing)")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be a finite number, at least 0 (0 = no mixing)")


def draw_lam(alpha: float, n: int, generator: torch.Generator | None) -> Tensor:
    """Draw from Beta(alpha, alpha), (n,) in float64, exact also where its values crowd at 0 and 1.

    A Gamma(alpha) draw underflows for small alpha, so it is made in logarithms from Gamma(alpha+1)
    (Marsaglia and Tsang 2000, section 6); their difference is the logit of lam.
    """
    if alpha == 0:
        return torch.ones(n, dtype=torch.float64)
    shape = torch.full((2, n), alpha + 1, dtype=torch.float64)
    gamma = torch._standard_gamma(shape, generator=generator).log()
    power = torch.rand(2, n, dtype=torch.float64, generator=generator).log()
    # The differences come first: for an alpha near 0 both of the logarithms would be infinite.
    return torch.sigmoid(gamma[0] - gamma[1] + (power[0] - power[1]) / alpha)


AnyMix = TypeVar("AnyMix", bound="Mix")


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Mix:
    """One mixing of a batch: each sample keeps a weight `lam`, its partner gets the rest.

        h[i]  ->  lam[i] * h[i] + (1 - lam[i]) * h[partner[i]]

    Call it on features, on logits or on images; use `target` or `mixed_loss` for what they should
    predict. The same value serves all of them, so nothing can fall out of step.

    Args:
        lam: Weight of the sample itself, in [0, 1]: a number, or one per sample (B,).
            Kept as (B,) in float64 (float32 on MPS).
        partner: Index of the sample each one is mixed with, (B,), in [0, B).

    Raises:
        TypeError: `partner` is not integer.
        ValueError: A shape or a range is wrong.

    Example:
        >>> mix = Mix(0.75, [1, 0])
        >>> mix(torch.tensor([[0.0, 4.0], [8.0, 0.0]]))
        tensor([[2., 3.],
                [6., 1.]])

    Reference:
        Verma et al., Manifold Mixup: Better Representations by Interpolating Hidden States,
        ICML 2019, equation 1. https://arxiv.org/abs/1806.05236
    """

    _lam: Tensor = field(repr=False)
    _partner: Tensor = field(repr=False)
    _facts: "_Facts" = field(repr=False)

    def __init__(
        self, lam: float | Sequence[float] | Tensor, partner: Sequence[int] | Tensor
    ) -> None:
        partner = _checked_partner(_as_tensor("partner", partner, None))
        if not isinstance(lam, Tensor):
            lam = _as_tensor("lam", lam, torch.float64)
        self._fill(_checked_lam(lam, partner), partner)
        if not 0 <= self._facts.low <= self._facts.high <= 1:
            raise ValueError(
                f"lam must lie in [0, 1], got values from {self._facts.low} to {self._facts.high}"
            )

    def _fill(self, lam: Tensor, partner: Tensor) -> None:
        object.__setattr__(self, "_lam", lam)
        object.__setattr__(self, "_partner", partner)
        object.__setattr__(self, "_facts", _Facts.of(lam, partner))

    @classmethod
    def sample(
        cls,
        n: int,
        alpha: float = 0.4,
        *,
        target: Any = None,
        pairing: Pairing = "any",
        exclude: Iterable[int] = (),
        per_sample: bool = True,
        generator: torch.Generator | None = None,
    ) -> "Mix":
        """Draw a mix for a batch: lam ~ Beta(alpha, alpha), then a partner for each sample.

        Args:
            n: Number of samples B, at least 1. One sample alone is left as it is.
            alpha: 0 mixes nothing, a small value lets one sample dominate, 1 is uniform.
            target: The targets of the batch, if the pairing or `exclude` needs them.
            pairing: Who mixes with whom; see `draw_partner`. Who has no partner keeps a lam of 1.
            exclude: Indices of classes that take no part.
            per_sample: One lam for each sample, else one for the whole batch.
            generator: A CPU generator; the global one if None.

        Raises:
            ValueError: `n` is below 1, or `alpha` negative or not finite; as `draw_partner`.

        Example:
            >>> mix = Mix.sample(32, alpha=0.4, generator=torch.Generator())
            >>> mix.lam.shape, mix.partner.shape
            (torch.Size([32]), torch.Size([32]))
        """
        check_alpha(alpha)
        try:
            n = operator.index(n)
        except TypeError as error:
            raise TypeError(f"n={n!r} must be a number of samples, as len(target) is") from error
        if n < 1:
            raise ValueError(f"a mix needs at least 1 sample, got n={n}")
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(f"generator={generator!r} must be a torch.Generator, or None")
        lam = draw_lam(alpha, n if per_sample else 1, generator).expand(n).contiguous()
        partner = draw_partner(n, pairing, target=target, exclude=exclude, generator=generator)
        if n == 1:
            return cls.identity(n)
        mix = cls.__new__(cls)
        mix._fill(lam.masked_fill(partner == torch.arange(n), 1), partner)
        return mix

    @classmethod
    def identity(cls, n: int) -> "Mix":
        """The mix of n samples that changes nothing."""
        return cls(1.0, torch.arange(n))

    @property
    def lam(self) -> Tensor:
        """Weight of each sample itself (B,)."""
        self._facts.is_read = True
        return self._lam

    @property
    def partner(self) -> Tensor:
        """Index of the sample that each one is mixed with (B,)."""
        self._facts.is_read = True
        return self._partner

    @property
    def is_read(self) -> bool:
        """Whether anybody has looked at `lam` or `partner`, as whatever uses the mix does."""
        return self._facts.is_read

    @property
    def is_identity(self) -> bool:
        """Whether every lam is 1, so that nothing changes."""
        return self._facts.low == 1

    @property
    def shared_lam(self) -> float | None:
        """The lam of the whole batch, None if samples differ in it."""
        return self._facts.low if self._facts.low == self._facts.high else None

    def lam_of_all(self, target: Tensor) -> float | None:
        """The one weight of all there is in a target (B, *), None if there are several."""
        return self.shared_lam

    def __len__(self) -> int:
        return len(self._partner)

    def __repr__(self) -> str:
        names = ("lam", "partner", *(one.name for one in fields(self) if one.repr))
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({shown})"

    def __call__(self, tensor: Tensor) -> Tensor:
        """Mix the samples of a tensor, out of place.

        Half-precision values are mixed in float32 and rounded once. A weight of 0 contributes 0,
        also where the value is infinite.

        Args:
            tensor: Floating-point or complex values (B, *).

        Returns:
            Mixed values of the same shape, dtype, device and memory format.

        Raises:
            TypeError: The values cannot be mixed: integer, boolean, quantized, nested or sparse.
            ValueError: The first axis does not have B entries.
        """
        Mix.check(self, tensor)
        partner = self.partner.to(tensor.device)
        own = in_float32(tensor)
        other, lam = gather(own, partner), self._weight(own)
        if torch.compiler.is_compiling() or self._facts.has_exact:  # all mixes share one graph
            mixed = with_exact_rows(torch.lerp(other, own, lam), lam, own, other)
        else:
            mixed = other.lerp_(own, lam)
        return mixed if own is tensor else mixed.to(tensor.dtype)

    def check(self, tensor: Tensor) -> None:
        """Raise a TypeError or ValueError unless this can mix tensors like that one."""
        check_mixable(tensor)
        if tensor.shape[:1] != self._partner.shape:
            raise ValueError(
                f"mix of {len(self)} samples applied to a tensor of shape {tuple(tensor.shape)}: "
                "the first axis must be the batch"
            )

    def between(self, own: Tensor, other: Tensor) -> Tensor:
        """Weigh values of the samples (B, *) against those of their partners (B, *).

        Example:
            >>> Mix([0.25, 1.0], [1, 0]).between(torch.tensor([4.0, 2.0]), torch.zeros(2))
            tensor([1., 2.])
        """
        lam = self._weight(own)
        # Not lerp, which makes NaN of two infinite losses.
        mixed = lam * own + (1 - lam) * other
        # Nothing is widened here as it is for features, so in half precision any lam may round.
        may_round = torch.finfo(lam.dtype).bits < 32
        has_exact = torch.compiler.is_compiling() or self._facts.has_exact or may_round
        return with_exact_rows(mixed, lam, own, other) if has_exact else mixed

    def target(
        self, target: Tensor, num_classes: int | None = None, *, ignore_index: int | None = None
    ) -> Tensor:
        """Mix targets the way the features were mixed.

        Args:
            target: Class indices (B, *) if `num_classes` is given; else values (B, *): soft,
                one-hot or multi-label ones of any dtype, or real ones.
            num_classes: Number of classes C, needed for class indices.
            ignore_index: The index of samples or pixels without a class; their share is 0 for all.

        Returns:
            Mixed targets: (B, C, *) in the default dtype for class indices, else of the same
            shape, in their own dtype if it is floating.

        Raises:
            TypeError: Integers without `num_classes` are not 0 and 1.
            ValueError: `num_classes` is missing, an index lies outside [0, C), or values are not
                of so many classes.

        Example:
            >>> Mix(0.75, [1, 0]).target(torch.tensor([0, 2]), num_classes=3)
            tensor([[0.7500, 0.0000, 0.2500],
                    [0.2500, 0.0000, 0.7500]])
        """
        if num_classes is None and target.ndim == 1 and is_integer(target):
            raise ValueError("num_classes is needed to mix class indices; pass num_classes=")
        if num_classes is None:
            return self._weigh(as_values(target))
        if not is_integer(target):
            check_width(target, num_classes)
            return self._weigh(as_values(target))
        return self._weigh(one_hot(target, num_classes, ignore_index))

    def to(self: AnyMix, device: torch.device | str) -> AnyMix:
        """The same mix on another device."""
        device = torch.device(device)
        if device == self._lam.device:
            return self
        # To a GPU without waiting for it; from a GPU one has to wait.
        ahead = device.type != "cpu"
        lam = self._lam.to(device, _lam_dtype(device), non_blocking=ahead)
        moved = copy.copy(self)
        object.__setattr__(moved, "_lam", lam)
        object.__setattr__(moved, "_partner", self._partner.to(device, non_blocking=ahead))
        return moved

    def unread(self: AnyMix) -> AnyMix:
        """The same mix, at which nobody has looked; see `is_read`."""
        object.__setattr__(twin := copy.copy(self), "_facts", replace(self._facts, is_read=False))
        return twin

    def unmixed(self: AnyMix) -> AnyMix:
        """The mix of its kind, for as many samples, that changes nothing."""
        unmixed = copy.deepcopy(self)  # a compiled graph sees where tensors are shared
        order = torch.arange(len(self), device=self.partner.device)
        unmixed._fill(torch.ones_like(self.lam), order)
        return unmixed

    def _weigh(self, target: Tensor) -> Tensor:
        """Mix values of a target (B, *) by their shares, whatever is done to features."""
        return Mix.__call__(self, target)

    def _weight(self, like: Tensor) -> Tensor:
        return as_rows(self.lam.to(like.device, like.dtype), like)


@dataclass(eq=False)
class _Facts:
    """What decides how to mix. Apart from the mix, for a compiled graph depends on all of that."""

    low: float
    high: float
    has_exact: bool
    is_read: bool = False

    @classmethod
    def of(cls, lam: Tensor, partner: Tensor) -> "_Facts":
        """The range of lam, and whether it may round to 0 or 1 or a sample may be by itself."""
        low, high = (float(bound) for bound in lam.aminmax())
        alone = bool((partner == torch.arange(len(partner), device=partner.device)).any())
        return cls(low, high, low < 1e-30 or high > 1 - 1e-7 or alone)


def check_mixable(tensor: Tensor) -> None:
    """Raise a TypeError that names the kind of tensor if its values cannot be mixed."""
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"cannot mix a {type(tensor).__name__}: expected a tensor (B, *), such as "
            "torch.as_tensor makes it"
        )
    if tensor.is_nested:
        kind = "nested"
    elif tensor.is_quantized:
        kind = f"quantized ({tensor.dtype})"
    elif tensor.layout != torch.strided:
        kind = f"{tensor.layout} (not strided)"
    elif not (tensor.is_floating_point() or tensor.is_complex()):
        kind = str(tensor.dtype).removeprefix("torch.")
    else:
        return
    advice = "choose a layer that returns them (for indices, the embedding's output)"
    if tensor.is_nested:
        advice = (
            "make the nn.TransformerEncoder that returns it with enable_nested_tensor=False, or "
            "set use_nested_tensor = False on it"
        )
    raise TypeError(
        f"cannot mix a {kind} tensor: a mix needs plain floating-point values; {advice}"
    )


def _as_tensor(name: str, values: Any, dtype: torch.dtype | None) -> Tensor:
    try:
        return torch.as_tensor(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}={values!r} must hold numbers") from error


def _checked_partner(partner: Tensor) -> Tensor:
    if partner.is_floating_point() or partner.is_complex() or partner.dtype == torch.bool:
        raise TypeError(f"partner must hold integer indices, got {partner.dtype}")
    if partner.ndim != 1 or len(partner) == 0:
        raise ValueError(f"partner must have shape (B,), got {tuple(partner.shape)}")
    partner = partner.detach().long()
    if int(partner.min()) < 0 or int(partner.max()) >= len(partner):
        raise ValueError(
            f"partner must lie in [0, {len(partner)}), got values from {int(partner.min())} "
            f"to {int(partner.max())}"
        )
    return partner.clone()


def _checked_lam(lam: Tensor, partner: Tensor) -> Tensor:
    if lam.ndim > 1 or (lam.ndim == 1 and len(lam) != len(partner)):
        raise ValueError(
            f"lam must be a number or have shape ({len(partner)},) like partner, "
            f"got {tuple(lam.shape)}"
        )
    lam = lam.detach().to(partner.device, _lam_dtype(partner.device))
    return lam.expand(len(partner)).clone()


def _lam_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def as_rows(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,), shaped to be used with a tensor (B, *)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor, its values in float32 if they have less precision."""
    return tensor.to(torch.float32) if tensor.dtype.itemsize < 4 else tensor


def with_exact_rows(mixed: Tensor, lam: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Mixed values, but for the values themselves where lam is 1 or 0: never 0 * inf."""
    return torch.where(lam == 1, own, torch.where(lam == 0, other, mixed))


def gather(tensor: Tensor, index: Tensor) -> Tensor:
    """The samples of these indices, in the tensor's memory format."""
    # index_select is several times faster than tensor[index], but forgets channels_last.
    return tensor.index_select(0, index) if tensor.is_contiguous() else tensor[index]
