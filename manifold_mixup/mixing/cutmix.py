"""Maps that get a box of their partner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.mixing.mix import Mix, gather, in_float32, with_exact_rows


@dataclass(frozen=True, eq=False, init=False, repr=False)
class CutMix(Mix):
    """A mix of maps in which each sample gets a box of its partner.

        h[i, :, y, x]  ->  w[i, y, x] * h[i, :, y, x] + (1 - w[i, y, x]) * h[partner[i], :, y, x]

    The box is a square in units of the map, of area 1 - lam[i], wholly inside it. Its edges are
    real numbers: a cell that it covers in part has that part of the partner. So one value serves
    maps of any size, and the mean of w[i] is lam[i] at each of them. Dense targets (B, H, W) or
    (B, C, H, W), as of segmentation, get the same boxes as the features, others are weighed by
    lam.

    At the input (`layers="input"`) this is CutMix of images, but for two things: there the centre
    of the box is drawn, its part outside of the image is cut off and lam corrected after that, and
    its edges are rounded to pixels. At a layer, blocks of features are exchanged, as PatchUp does
    with many small blocks in the place of one box.

    Args:
        lam: Share of the map that the sample keeps, in [0, 1]: a number, or one per sample (B,).
        partner: Index of the sample each one gets its box from, (B,).
        place: Where the box lies, from 0 (at the first edge) to 1 (at the last), along both axes:
            (2,) or (B, 2).
        axes: The axes of the map. For (B, H, W, C), as Swin Transformers return it, (1, 2).

    Raises:
        TypeError: `partner` is not integer.
        ValueError: A shape or a range is wrong.

    Example:
        >>> mix = CutMix(0.75, [1, 0], place=(0.0, 1.0))
        >>> maps = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
        >>> mix(maps)[0, 0]
        tensor([[0., 0., 1., 1.],
                [0., 0., 1., 1.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.]])

    Reference:
        Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features, ICCV 2019. https://arxiv.org/abs/1905.04899
        Faramarzi et al., PatchUp: A Regularization Technique for Convolutional Neural Networks,
        2020. https://arxiv.org/abs/2006.07794
    """

    place: Tensor
    axes: tuple[int, int]

    def __init__(
        self,
        lam: float | Sequence[float] | Tensor,
        partner: Sequence[int] | Tensor,
        place: Sequence[float] | Tensor = (0.5, 0.5),
        *,
        axes: tuple[int, int] = (-2, -1),
    ) -> None:
        super().__init__(lam, partner)
        place = torch.as_tensor(place).detach().to(self.lam)
        if place.shape not in ((2,), (len(self), 2)):
            raise ValueError(
                f"place must have shape (2,) or ({len(self)}, 2), got {tuple(place.shape)}"
            )
        if not bool(((place >= 0) & (place <= 1)).all()):
            raise ValueError(f"place must lie in [0, 1], got {place.tolist()}")
        object.__setattr__(self, "place", place.expand(len(self), 2).clone())
        if len(axes) != 2 or not all(isinstance(axis, int) for axis in axes):
            raise ValueError(f"axes={axes!r} must be two numbers, such as (-2, -1)")
        object.__setattr__(self, "axes", tuple(axes))

    @classmethod
    def sample(
        cls,
        n: int,
        alpha: float = 0.4,
        *,
        axes: tuple[int, int] = (-2, -1),
        per_sample: bool = True,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> "CutMix":
        """Draw lam and partner as `Mix.sample` does, then the places, evenly over all possible.

        Args:
            n: Number of samples B, at least 1.
            alpha: Of Beta(alpha, alpha).
            axes: The axes of the map.
            per_sample: One lam and one place for each sample, else one for the whole batch.
            generator: A CPU generator; the global one if None.
            options: See `Mix.sample` for these.

        Example:
            >>> CutMix.sample(32, alpha=1.0).place.shape
            torch.Size([32, 2])
        """
        mix = Mix.sample(n, alpha, per_sample=per_sample, generator=generator, **options)
        size = (n, 2) if per_sample else (2,)
        place = torch.rand(size, dtype=torch.float64, generator=generator)
        return cls(mix.lam, mix.partner, place, axes=axes)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Put the boxes into maps (B, *, H, W), out of place; else as `Mix`."""
        self.check(tensor)
        own = in_float32(tensor)
        other = gather(own, self.partner.to(tensor.device))
        weight = self._own_share(own, self.axes)
        mixed = torch.lerp(other, own, weight)
        return with_exact_rows(mixed, weight, own, other).to(tensor.dtype)

    def check(self, tensor: Tensor) -> None:
        """Raise a TypeError or ValueError unless this can mix tensors like that one."""
        super().check(tensor)
        axes = {axis % tensor.ndim for axis in self.axes if -tensor.ndim <= axis < tensor.ndim}
        if tensor.ndim < 4 or len(axes - {0}) < 2:
            raise ValueError(
                f"CutMix takes boxes from maps (B, *, H, W), got shape {tuple(tensor.shape)} and "
                f"axes={self.axes}; choose a layer that returns maps"
            )

    def between(self, own: Tensor, other: Tensor) -> Tensor:
        """Weigh values of the samples (B,) by lam; dense ones (B, *, H, W) by the same boxes."""
        if own.ndim < 3:
            return super().between(own, other)
        weight = self._own_share(own, (-2, -1))
        return with_exact_rows(weight * own + (1 - weight) * other, weight, own, other)

    def lam_of_all(self, target: Tensor) -> float | None:
        """The one weight of all there is in a target; pixels in and out of a box have two."""
        has_boxes = target.ndim > 2 and self.shared_lam not in (0, 1)
        return None if has_boxes else self.shared_lam

    def to(self, device: torch.device | str) -> "CutMix":
        """The same mix on another device."""
        moved = super().to(device)
        if moved is not self:
            place = self.place.to(moved.lam, non_blocking=not moved.lam.is_cpu)
            object.__setattr__(moved, "place", place)
        return moved

    def _weigh(self, target: Tensor) -> Tensor:
        if target.ndim < 3:
            return super()._weigh(target)
        return self.between(target, target[self.partner.to(target.device)])

    def _own_share(self, like: Tensor, axes: tuple[int, int]) -> Tensor:
        """Each sample's own share of every cell, for maps like that one."""
        covered = torch.ones((), device=self.lam.device, dtype=self.lam.dtype)
        for place, axis in zip(self.place.unbind(1), axes, strict=True):
            shape = [1] * like.ndim
            shape[0], shape[axis] = like.shape[0], like.shape[axis]
            covered = covered * self._covered(place, like.shape[axis]).view(shape)
        return (1 - covered).to(like.device, like.dtype)

    def _covered(self, place: Tensor, cells: int) -> Tensor:
        """The part that the box covers of each cell along one axis, (B, cells)."""
        side = (1 - self.lam).sqrt()
        begin = (place * (1 - side) * cells)[:, None]
        end = begin + (side * cells)[:, None]
        edges = torch.arange(cells, device=place.device, dtype=place.dtype)
        return (end.minimum(edges + 1) - begin.maximum(edges)).clamp(0, 1)
