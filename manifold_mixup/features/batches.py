"""Batches for a model: which device they go to, and how they are loaded."""

from collections.abc import Iterator, Sequence, Sized
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from manifold_mixup._random import same_random_states
from manifold_mixup.features.store import FeatureStore
from manifold_mixup.features.views import Views, collate, samples_of

Images = Dataset[tuple[Tensor, Any]]


Samples = Images | FeatureStore


class Batches(Protocol):
    """Batches of inputs (B, *) and their targets (B, *)."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def load_batches(
    samples: Samples,
    batch_size: int,
    *,
    device: torch.device,
    workers: int = 0,
    order: Sequence[int] | None = None,
    view: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batches:
    """Load batches of images (B, C, H, W) or of stored features (B, *), and targets (B, *).

    What an image draws from the generators of Python, NumPy and PyTorch is decided by its view and
    position alone, whoever loads it, as in a store of views; what a data set draws from a
    generator of its own is not. The global random states stay as they are.

    Args:
        samples: Pairs of an image and a target, or stored features.
        batch_size: B; the last batch may be smaller.
        device: Where the batches will go.
        workers: Processes that load images; 0 loads them in this one.
        order: Positions in the samples, in the order to load; their own if None.
        view: Which view of each sample; stored ones are counted on from the last to the first.
        dtype: What stored features are given in.
    """
    if isinstance(samples, FeatureStore):
        return _FeatureBatches(samples, batch_size, order, view % samples.views, dtype)
    views = Views(samples, view + 1)
    rows = range(views.n) if order is None else order
    loader = DataLoader(
        views,
        batch_size,
        sampler=[view * views.n + row for row in rows],
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    return _ImageBatches(loader, rows)


def checked_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """A batch that is inputs and targets, a tensor each.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
        if isinstance(inputs, Tensor) and isinstance(target, Tensor):
            return inputs, target
        batch = tuple(type(part).__name__ for part in batch)
    raise TypeError(
        f"a batch is {batch if isinstance(batch, tuple) else type(batch).__name__}: expected a "
        "tensor of inputs and one of targets; for others mix in your own loop with ManifoldMixup"
    )


def count(samples: Samples) -> int:
    """The number of samples."""
    return len(cast(Sized, samples_of(samples)))


class _ImageBatches:
    """Read without a trace in the random states, which every sample sets to its own."""

    def __init__(
        self, loader: DataLoader[tuple[Tensor, Tensor]], positions: Sequence[int]
    ) -> None:
        self.loader, self.positions = loader, positions

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with same_random_states():
            batches = iter(self.loader)
        begin = 0
        while True:
            with same_random_states():
                batch = next(batches, None)
            if batch is None:
                return
            self._check(batch[0], begin)
            begin += len(batch[1])
            yield batch

    def _check(self, images: Any, begin: int) -> None:
        """Raise a ValueError that names an image that holds NaN, if one does."""
        if not isinstance(images, Tensor) or images.ndim < 4:
            return
        wrong = images.isnan().flatten(1).any(1).nonzero()
        if len(wrong):
            sample = self.positions[begin + int(wrong[0])]
            raise ValueError(
                f"sample {sample} of the data set holds NaN; mend it, or leave it out"
            )


class _FeatureBatches:
    """Read by index: a loader that fetches sample by sample is 5 to 100 times slower."""

    def __init__(
        self,
        store: FeatureStore,
        batch_size: int,
        order: Sequence[int] | None,
        view: int,
        dtype: torch.dtype,
    ) -> None:
        self.store, self.view, self.dtype = store, view, dtype
        index = torch.arange(len(store)) if order is None else torch.tensor(order)
        self.indices = torch.split(index, batch_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in self.indices:
            features = self.store.features.gather(index, view=self.view).to(self.dtype)
            yield features, self.store.targets[index]
