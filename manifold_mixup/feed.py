"""Where the features of a step come from, for heads that are trained on stored features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_mixup.drawing import seeded_generator

# Takes indices of samples (B,), on the CPU, and gives their features (B, *).
Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Feed:
    """Samples for linear heads.

    Attributes:
        gather: Gives the stored features of some samples.
        target: Class indices (n,), on the CPU.
        rows: Indices of the samples that each seed trains on (m,), on the CPU.
        batch_size: Samples in a step.
        between: A frozen function from features (B, *) to what the heads take (B, D), if any.
    """

    gather: Gather
    target: Tensor
    rows: Mapping[int, Tensor]
    batch_size: int
    between: Callable[[Tensor], Tensor] | None

    @property
    def steps(self) -> int:
        """How many an epoch has."""
        return -(-len(next(iter(self.rows.values()))) // self.batch_size)

    def indices(self, seeds: Sequence[int], epoch: int, most: int) -> Iterator[Tensor]:
        """The samples of an epoch in the order of each seed, at most so many steps at a time.

        Yields:
            (S, G, B), for G seeds.
        """
        orders = []
        for seed in seeds:
            rows, generator = self.rows[seed], seeded_generator(seed, epoch)
            orders.append(rows[torch.randperm(len(rows), generator=generator)])
        order = torch.stack(orders)
        n, size = order.shape[1], self.batch_size
        whole = n - n % size
        if whole:
            batches = torch.unflatten(order[:, :whole], 1, (-1, size))
            yield from torch.split(batches.transpose(0, 1), most)
        if whole < n:
            yield order[None, :, whole:]

    def heads_input(self, features: Tensor, like: Tensor) -> Tensor:
        """What the heads take (B, D): the features themselves, or what `between` makes of them."""
        if self.between is not None:
            features = self.between(features)
        if features.ndim != 2 or features.shape[1] != like.shape[-1]:
            raise ValueError(
                f"heads of shape {tuple(like.shape[1:])} got features of shape "
                f"{tuple(features.shape)}, expected (B, {like.shape[-1]})"
            )
        return features
