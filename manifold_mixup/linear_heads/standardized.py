"""Features, centred and scaled by one number, and the two products that heads need of them."""

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from manifold_mixup._random import seeded_generator

# Takes indices of samples (B,), on the CPU, and gives their features (B, *).
Gather = Callable[[Tensor], Tensor]

# Rows that are read at a time, and how many numbers are held in memory rather than read again.
_ROWS, _HELD = 1024, 2**26
# Features are turned to all their principal directions if there are so few of them; else they are
# looked at along the first.
_TURNED, _DIRECTIONS = 1024, 128
# Rows that these are seen on.
_SEEN = 2048


class Standardized:
    """Features (n, D) less their mean, divided by the mean of their standard deviations.

    One number for all, so that a weight decay means the same for features of any size, and the
    large ones still count most. They are held in memory if that is little, else read again, in
    chunks, for each product. Held ones are turned to their principal directions if there are few:
    of fewer samples than features a head's weights need no others (the representer theorem).
    Under `torch.distributed`, every rank reads its own chunks and sums are made over all: all
    ranks have to call, with the same arguments.

    Attributes:
        n: Number of samples.
        mean: Of each feature (D,), in float64 on the CPU.
        scale: The mean of their standard deviations, 1 if all are 0.
        width: Number of directions that products are made in, at most D.

    Args:
        gather: Gives the features of some samples.
        n: Number of samples.
        device: Where products are made.

    Raises:
        ValueError: A feature is not finite.

    Example:
        >>> features = Standardized(torch.tensor([[1.0, 2.0], [3.0, 6.0]]).__getitem__, 2)
        >>> features.mean, features.scale
        (tensor([2., 4.], dtype=torch.float64), 1.5)
    """

    def __init__(
        self, gather: Gather, n: int, device: torch.device | str = "cpu", *, held: int = _HELD
    ) -> None:
        self._gather, self.n, self._device = gather, n, torch.device(device)
        self.mean, self.scale = self._moments()
        self._rows: Tensor | None = None
        self._turn: Tensor | None = None  # from features to directions (D, width)
        if n * len(self.mean) <= held:
            self._hold()
        self.width = len(self.mean) if self._turn is None else self._turn.shape[1]

    def products(self, dtype: torch.dtype) -> "Products":
        """What multiplies the features, computed in a type."""
        return Products(self, dtype)

    def own_rows(self) -> list[slice]:
        """The samples of this rank, some at a time: with one rank all, in order."""
        rank, ranks = _ranks()
        begins = range(rank * _ROWS, self.n, ranks * _ROWS)
        return [slice(begin, min(begin + _ROWS, self.n)) for begin in begins]

    def take(self, index: Tensor) -> Tensor:
        """Standardized features (B, width) of some samples, in float64 on the CPU."""
        if self._rows is not None:
            return self._rows[index.to(self._device)].double().cpu()
        return self._standard(index).double()

    def chunks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The rows of this rank: which samples, and their standardized features (B, width)."""
        for own in self.own_rows():
            if self._rows is None:
                rows = self._standard(torch.arange(own.start, own.stop))
            else:
                rows = self._rows[own]
            yield own, rows.to(self._device, dtype)

    def summed(self, tensor: Tensor) -> Tensor:
        """A tensor as the sum over all ranks, in place: the same to the bit on each."""
        if _ranks()[1] > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def from_raw(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A head for the features as they are, (C, D) and (C,), as one for these."""
        weight, bias = weight.double().cpu(), bias.double().cpu()
        inner = weight * self.scale
        if self._turn is not None:
            inner = inner @ self._turn
        return inner, bias + weight @ self.mean

    def to_raw(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A head for these features as one for the features as they are."""
        whole = weight if self._turn is None else weight @ self._turn.T
        whole = whole / self.scale
        return whole, bias - whole @ self.mean

    @cached_property
    def principal(self) -> tuple[Tensor | None, Tensor, float]:
        """The directions in which the features vary most, seen on some of the samples.

        Returns:
            The directions (width, q), None for the features' own; the variance along each (q,);
            and the mean variance along all others.
        """
        if self._turn is not None and self._rows is not None:
            return None, self._rows.double().square().mean(0).cpu(), 0.0
        rows = self._some_rows()
        q = min(_DIRECTIONS, *rows.shape)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # of the directions that the search begins with
            _, spread, directions = torch.pca_lowrank(rows, q, center=False)
        variance = spread.double().square() / len(rows)
        rest = float(rows.double().square().sum()) / len(rows) - float(variance.sum())
        others = max(self.width - q, 1)
        return directions.double(), variance, max(rest, 0.0) / others

    def _moments(self) -> tuple[Tensor, float]:
        first = self._read(torch.arange(1))[0].double()  # near the mean, so that nothing cancels
        total, squares = torch.zeros_like(first), torch.zeros_like(first)
        for index in torch.split(torch.arange(self.n), _ROWS):
            apart = self._read(index).double() - first
            total, squares = total + apart.sum(0), squares + apart.square().sum(0)
        shift = total / self.n
        variance = (squares / self.n - shift.square()).clamp(min=0)
        if not bool(variance.isfinite().all()):
            wrong = int((~variance.isfinite()).nonzero()[0])
            raise ValueError(f"feature {wrong} is not finite in all {self.n} samples")
        return first + shift, float(variance.sqrt().mean()) or 1.0

    def _hold(self) -> None:
        """Read all rows into memory, in as many directions as they need."""
        rows = torch.cat(
            [self._standard(index) for index in torch.split(torch.arange(self.n), _ROWS)]
        )
        if min(rows.shape) <= _TURNED:
            self._turn = principal_directions(rows.double())
            rows = (rows.double() @ self._turn).to(rows.dtype)
        self._rows = rows.to(self._device)

    def _standard(self, index: Tensor) -> Tensor:
        rows = self._read(index)
        return (rows - self.mean.to(rows.dtype)).div_(self.scale)

    def _read(self, index: Tensor) -> Tensor:
        return self._gather(index).flatten(1).cpu()

    def _some_rows(self) -> Tensor:
        """Some rows, drawn among all, in float32 on the CPU."""
        order = torch.randperm(self.n, generator=seeded_generator("principal"))
        return self.take(order[:_SEEN].sort().values).float()


class Products:
    """The two products of an evaluation, summed over chunks and ranks.

    Args:
        features: The features.
        dtype: What they are multiplied in.
    """

    def __init__(self, features: Standardized, dtype: torch.dtype) -> None:
        self.features, self.dtype = features, dtype
        self.like = torch.empty(0, dtype=dtype, device=features._device)

    def logits(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Of all samples (C, n), for a head (C, width) and (C,)."""
        weight, bias = weight.to(self.like), bias.to(self.like)
        logits = self.like.new_zeros(len(bias), self.features.n)
        for own, rows in self.features.chunks(self.dtype):
            torch.addmm(bias[:, None], weight, rows.T, out=logits[:, own])
        return self.features.summed(logits)

    def slope(self, gradient: Tensor) -> Tensor:
        """The gradient of weights (C, width), from that of all logits (C, n)."""
        slope = self.like.new_zeros(len(gradient), self.features.width)
        for own, rows in self.features.chunks(self.dtype):
            slope.addmm_(gradient[:, own], rows)
        return self.features.summed(slope)


def _ranks() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def principal_directions(rows: Tensor) -> Tensor:
    """Orthonormal directions (D, r) in which rows (n, D) vary, of their rank r at the most.

    Example:
        >>> principal_directions(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]).double()).abs().T
        tensor([[0.6000, 0.8000]], dtype=torch.float64)
    """
    n, d = rows.shape
    squares, vectors = torch.linalg.eigh(rows.T @ rows if d <= n else rows @ rows.T)
    some = squares > 1e-12 * squares[-1].clamp(min=1e-300)
    some[-1] = True  # of rows that are all 0 one is as good as any
    spanned: Tensor = vectors[:, some] if d <= n else torch.linalg.qr(rows.T @ vectors[:, some])[0]
    return spanned
