"""The samples of a data set in views that are the same whenever and wherever they are read."""

import hashlib
import random
import sys
from collections.abc import Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from manifold_mixup._files import fingerprint
from manifold_mixup._progress import Track
from manifold_mixup.inspection import Inputs, arguments, find_tensors, map_tensors

# So many samples of a data set, spread over all of it, are read twice to see that they stay.
_SAMPLES = 16


# Samples that a process loads at a time to look at them.
_BATCH = 64


def samples_of(given: Any) -> Any:
    """The data set behind what is given: of a loader its own, which is read in our order.

    Raises:
        TypeError: The loader makes its batches in a way of its own, or it is a table.
    """
    if hasattr(given, "iloc"):
        raise TypeError(
            f"a {type(given).__name__} is a table, not pairs of an input and a target; give "
            "torch.utils.data.TensorDataset(inputs, targets)"
        )
    if not isinstance(given, DataLoader):
        return given
    if given.collate_fn is not default_collate:
        raise TypeError(
            "the DataLoader has a collate_fn of its own, which would not be used; give its "
            "data set, of pairs of an input and a target"
        )
    return given.dataset


def collate(samples: Sequence[Any]) -> Any:
    """A batch of samples, which have to be tensors or numbers of one shape."""
    try:
        return default_collate(list(samples))
    except (TypeError, RuntimeError) as error:
        found = {_described(part) for sample in samples for part in sample}
        raise type(error)(
            f"samples cannot be put together to a batch: they hold {' and '.join(sorted(found))}; "
            "give the data set a transform that makes tensors of one shape"
        ) from error


# What columns of images and of their classes are called.
_INPUTS, _TARGETS = ("image", "img", "pixel_values"), ("label", "labels", "target", "fine_label")


def _pair_of(sample: dict[str, Any]) -> tuple[Any, Any]:
    """Input and target of a sample with named columns, if their names leave no doubt."""
    found = [[name for name in names if name in sample] for names in (_INPUTS, _TARGETS)]
    if [len(names) for names in found] != [1, 1]:
        raise TypeError(
            f"samples have the columns {', '.join(map(str, sample))}: expected one input of "
            f"{', '.join(_INPUTS)} and one target of {', '.join(_TARGETS)}; rename them, or give "
            "pairs (input, target)"
        )
    return sample[found[0][0]], sample[found[1][0]]


def _described(part: Any) -> str:
    kind = type(part).__name__
    return f"{kind} of shape {tuple(part.shape)}" if isinstance(part, Tensor) else kind


class Views(Dataset[Any]):
    """Row `view * n + i` is sample i, read while every random draw is decided by (view, i).

    The global random states are changed: keep them with `same_random_states`.

    Args:
        dataset: Pairs of an input and a target.
        views: Number of views of each sample.

    Raises:
        ValueError: The data set is empty.
        TypeError: It is an iterable one, or, when it is read, a sample is no pair.
    """

    def __init__(self, dataset: Any, views: int = 1) -> None:
        dataset = samples_of(dataset)
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{type(dataset).__name__} has no length and positions; expected a map-style set"
            )
        self.dataset, self.views, self.n = dataset, views, len(cast(Sized, dataset))
        if self.n == 0:
            raise ValueError("the data set is empty")

    def __len__(self) -> int:
        return self.views * self.n

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        view, index = divmod(row, self.n)
        _seed(view, index)
        sample = self.dataset[index]
        if isinstance(sample, dict):
            sample = _pair_of(sample)
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise TypeError(
                f"sample {index} of the data set is a {type(sample).__name__}, "
                "expected a pair (input, target)"
            )
        return sample[0], sample[1]

    @property
    def chosen(self) -> list[int]:
        """At most 16 positions, spread over the data set."""
        count = min(self.n, _SAMPLES)
        return [position * self.n // count for position in range(count)]

    def digests(self, view: int = 0) -> list[str]:
        """A checksum of each chosen sample in a view, its target included."""
        return [self._digest(view * self.n + index) for index in self.chosen]

    def check_repeatable(self, first: list[str]) -> None:
        """Make sure that reading a sample again gives the same, whatever else is random.

        Args:
            first: The `digests` of a first reading.

        Raises:
            ValueError: It does not.
        """
        # One view must not depend on the draws; several must depend on nothing else.
        again = self.digests(view=1 if self.views == 1 else 0)
        changed = [i for i, a, b in zip(self.chosen, first, again, strict=True) if a != b]
        if not changed:
            return
        if self.views == 1:
            raise ValueError(
                f"sample {changed[0]} of the data set differs each time it is read, by random "
                "augmentation perhaps; leave that out, or store several views= (--views) of it"
            )
        raise ValueError(
            f"sample {changed[0]} of the data set differs each time it is read, although the "
            "random states of Python, NumPy and PyTorch are the same; draw from these"
        )

    def _digest(self, row: int) -> str:
        return fingerprint(find_tensors(collate([self[row]])))


class Marked(Dataset[Any]):
    """The samples of views, with a checksum of each input beside its target.

    Args:
        views: The samples.
    """

    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitem__(self, row: int) -> tuple[Any, Any, int]:
        inputs, target = self.views[row]
        return inputs, target, _checksum(inputs)


class Reading:
    """Targets and checksums of the samples as a data set gives them now, each read once.

    Args:
        views: The samples, known by their first view.
        listed: Their targets, where files tell all of them, so that none is read; else None.
        workers: Processes that load them.
        track: Shows how far the reading is.
    """

    def __init__(self, views: Views, listed: Tensor | None, workers: int, track: Track) -> None:
        self.listed, self.is_listed = listed, listed is not None
        self.views, self.workers, self.track = views, workers, track
        self._is_read = torch.zeros(views.n, dtype=torch.bool)
        self._checksums = torch.empty(views.n, dtype=torch.int64)
        self._targets = torch.empty(0)

    def targets(self, rows: Tensor) -> Tensor:
        """The targets of some samples, (r,) or (r, *)."""
        if self.listed is not None:
            return self.listed[rows]
        self._read(rows)
        return self._targets[rows]

    def checksums(self, rows: Tensor) -> Tensor:
        """A checksum of the input of each (r,)."""
        self._read(rows)
        return self._checksums[rows]

    def _read(self, rows: Tensor) -> None:
        unread = rows[~self._is_read[rows]]
        batches = torch.split(unread, _BATCH) if len(unread) else ()
        loader: DataLoader[Any] = DataLoader(
            Marked(self.views),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            collate_fn=_without_inputs,
            generator=torch.Generator(),  # its own, or it would draw from the global one
        )
        samples = self.track(loader, len(batches), "compare samples")
        for batch, (targets, checksums) in zip(batches, samples, strict=True):
            given = as_targets(targets)
            if not self._is_read.any():
                self._targets = torch.empty(self.views.n, *given.shape[1:], dtype=given.dtype)
            self._targets[batch], self._checksums[batch] = given, checksums
            self._is_read[batch] = True


def _without_inputs(samples: list[tuple[Any, Any, int]]) -> Any:
    return default_collate([(target, checksum) for _, target, checksum in samples])


def _checksum(inputs: Any) -> int:
    """Half of a hash of all that a model is given of one sample, as an int64."""
    collated = inputs if isinstance(inputs, Tensor) else default_collate([inputs])
    texts = [leaf for leaf in tree_leaves(collated) if not isinstance(leaf, Tensor)]
    digest = fingerprint(find_tensors(collated), repr(texts))
    return int(digest[:16], 16) - 2**63


def _seed(view: int, index: int) -> None:
    """Put the random states of Python, NumPy and PyTorch where this view of this sample begins."""
    digest = hashlib.sha256(f"{view} {index}".encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


def inputs_of(views: Views, rows: Sequence[int], device: torch.device) -> Inputs:
    """Some samples as positional and keyword inputs of a model."""
    inputs, _ = collate([views[row] for row in rows])
    return arguments(map_tensors(as_inputs(inputs), lambda _, tensor: tensor.to(device)))


def as_inputs(batch: Any) -> Any:
    """A collated input as `arguments` takes it: several tensors in a tuple."""
    return tuple(batch) if isinstance(batch, list) else batch


def as_targets(batch: Any) -> Tensor:
    """Collated targets, if they are numbers.

    Raises:
        ValueError: They are something else.
    """
    if not isinstance(batch, Tensor):
        raise ValueError(
            f"the targets of the data set are collated to a {type(batch).__name__}; expected "
            "numbers, or tensors of one shape"
        )
    return batch
