"""Features of a data set at a layer, stored once and read many times."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.features.fingerprint import describe_changes, describe_model
from manifold_mixup.features.shards import (
    AGAIN,
    FEATURES,
    INPUTS,
    SHARDS,
    TARGETS,
    checked_shard,
    read_manifest,
)


class Features:
    """Features (n, *) of n samples, each maybe in several views, read where they lie.

    Attributes:
        shape: (n, *).
        dtype: The type they are stored in.
        views: Number of views of each sample.

    Args:
        read: Gives a block of consecutive rows by its number; row `view * n + i` is sample i's.
        rows: Rows in a block.
        shape: (n, *) of all the rows of one view.
        dtype: Their type.
        views: Number of views.
        positions: The samples that this is about, all of them if None.
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        rows: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        views: int,
        positions: Tensor | None = None,
    ) -> None:
        self._read, self._rows, self._of, self._positions = read, rows, shape[0], positions
        n = shape[0] if positions is None else len(positions)
        self.shape, self.dtype, self.views = (n, *shape[1:]), dtype, views
        self._is_one_block = rows >= shape[0] * views

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of all of it in memory, in bytes."""
        return torch.Size(self.shape).numel() * self.views * self.dtype.itemsize

    def __getitem__(self, key: int | slice) -> Tensor:
        """The first view of one sample or several, as stored, in memory of its own."""
        if isinstance(key, slice):
            return self._gathered(torch.arange(len(self))[key], 0, self.dtype)
        position = range(len(self))[key]
        return self._gathered(torch.tensor([position]), 0, self.dtype)[0]

    def gather(self, index: Tensor, *, view: int | Tensor = 0) -> Tensor:
        """The features (B, *) of the samples at an index (B,), in memory of their own.

        They are in float32, whatever is stored, in float64 where that is stored.

        Args:
            index: Positions in [0, n), in any order, also repeated.
            view: Which view of them, in [0, views): one for all, or (B,).

        Raises:
            IndexError: There is no such sample or view.
            ValueError: A shard that is read for the first time is damaged.
        """
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return self._gathered(index, view, wide)

    def take(self, positions: Tensor) -> "Features":
        """Those of the samples at these positions, in this order."""
        of = positions if self._positions is None else self._positions[positions]
        shape = (self._of, *self.shape[1:])
        return Features(self._read, self._rows, shape, self.dtype, self.views, of)

    def load(self) -> "Features":
        """The same, in memory."""
        index = torch.arange(len(self))
        views = [self._gathered(index, view, self.dtype) for view in range(self.views)]
        rows = torch.cat(views) if len(views) > 1 else views[0]
        return Features(lambda block: rows, len(rows), self.shape, self.dtype, self.views)

    def _gathered(self, index: Tensor, view: int | Tensor, dtype: torch.dtype) -> Tensor:
        _check_range("sample", index, len(self))
        if self._positions is not None:
            index = self._positions.index_select(0, index)
        if self.views > 1 or not isinstance(view, int) or view:
            _check_range("view", torch.as_tensor(view), self.views)
            index = index + view * self._of
        if self._is_one_block:
            return self._read(0).index_select(0, index).to(dtype)
        rows = torch.empty(len(index), *self.shape[1:], dtype=dtype)
        blocks = index.div(self._rows, rounding_mode="floor")
        for block in sorted(set(blocks.tolist())):
            at = (blocks == block).nonzero().squeeze(1)
            here = self._read(block).index_select(0, index[at] - block * self._rows)
            rows.index_copy_(0, at, here.to(dtype))
        return rows


class FeatureStore:
    """Features and targets that `extract_features` stored in a directory.

    Files are mapped, not read: of what is gathered, pages stay in memory as long as there is room.
    Each shard is checked when it is first read from.

    Attributes:
        directory: Where it lies.
        layer: Name of the layer that was asked for.
        stored_layer: Name of the layer whose output is stored: a later one if only affine steps,
            such as average pooling, lie between.
        features: The `Features`.
        classes: Class names in order.
        views: Number of augmented views of each sample.
        manifest: Everything in ``store.json``.

    Args:
        directory: What `extract_features` wrote.

    Raises:
        FileNotFoundError: There is no store.
        ValueError: It is unfinished, or ``store.json`` is damaged.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> samples = [(torch.randn(4), i % 2) for i in range(8)]
        >>> extract_features(model, "1", samples, "features")
        FeatureStore('features', layer '1': 8 x (3,) float32)
        >>> FeatureStore("features").features.gather(torch.tensor([5, 0, 5])).shape
        torch.Size([3, 3])
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = manifest = read_manifest(self.directory)
        if not manifest.checksums:
            done = len(list(self.directory.glob(SHARDS)))
            raise ValueError(
                f"{directory}: unfinished, {done} of {manifest.shards} shards are there; {AGAIN}"
            )
        self.layer, self.stored_layer = manifest.layer, manifest.stored_layer
        self.classes, self.views = list(manifest.classes or ()), manifest.views
        self._checked: dict[int, dict[str, Tensor]] = {}
        self._positions: Tensor | None = None
        self._given: Tensor | None = None
        shape = (manifest.n, *manifest.shape)
        self.features = Features(
            lambda shard: self._shard(shard)[FEATURES],
            manifest.rows,
            shape,
            manifest.torch_dtype,
            manifest.views,
        )

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        what = f"layer '{self.layer}': {len(self)} x {self.shape} {self.manifest.dtype}"
        return f"FeatureStore('{self.directory}', {what})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of one sample."""
        return self.features.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """The type that the features are stored in."""
        return self.features.dtype

    @cached_property
    def targets(self) -> Tensor:
        """The target of every sample, (n,) or (n, *)."""
        if self._given is not None:
            return self._given
        targets = self._beside(TARGETS)
        assert targets is not None
        return targets

    def check_samples(self, other: "FeatureStore") -> None:
        """Make sure that another store holds features of the same samples.

        Raises:
            ValueError: It does not, as far as both know their samples.
        """
        made_of, others = self.manifest.made_of, other.manifest.made_of
        keys = (made_of.keys() & others.keys()) - {"modules", "settings"}
        is_same = all(made_of[key] == others[key] for key in keys)
        inputs, given = self._beside(INPUTS), other._beside(INPUTS)
        if inputs is not None and given is not None:
            is_same = is_same and torch.equal(inputs, given)
        if not is_same or not torch.equal(self.targets, other.targets):
            raise ValueError(
                f"{other.directory}: holds features of other samples than {self.directory}; "
                "extract all layers in one call of extract_features"
            )

    def take(self, positions: Sequence[int] | Tensor) -> "FeatureStore":
        """The samples at these positions, in this order, as a store on the same files.

        Args:
            positions: In [0, n), or a mask (n,) of what to take.

        Raises:
            IndexError: There is no such sample, or the mask has another length.

        Example:
            >>> FeatureStore("features").take([3, 1]).features.shape
            (2, 3)
        """
        chosen = _positions(torch.as_tensor(positions), len(self))
        of = chosen if self._positions is None else self._positions[chosen]
        given = None if self._given is None else self._given[chosen]
        return self._with(self.features.take(chosen), of, given)

    def load(self) -> "FeatureStore":
        """The same with all features in memory (`features.nbytes` of it)."""
        return self._with(self.features.load(), self._positions, self._given)

    def with_targets(self, targets: Sequence[Any] | Tensor) -> "FeatureStore":
        """The same features with other targets, which are kept in memory; no file is changed.

        Args:
            targets: One for each sample, (n,) or (n, *).

        Raises:
            ValueError: There are more or fewer of them than samples.

        Example:
            >>> store = FeatureStore("features").with_targets([2, 0, 0, 1, 1, 2, 0, 1])
            >>> store.take([5, 1]).targets
            tensor([2, 0])
        """
        given = torch.as_tensor(targets).clone()
        if given.ndim == 0 or len(given) != len(self):
            raise ValueError(
                f"{self.directory}: {len(self)} samples need as many targets, got targets of "
                f"shape {tuple(given.shape)}"
            )
        return self._with(self.features, self._positions, given)

    def verify(self) -> None:
        """Read every shard and compare it with its checksum.

        Raises:
            ValueError: One is missing or damaged; the message names it and says how to repair it.
        """
        for shard in range(self.manifest.shards):
            checked_shard(self.directory, self.manifest, shard)

    def check_model(self, model: nn.Module) -> None:
        """Make sure that a model would give these features.

        Raises:
            ValueError: What it computes until the stored layer has other weights or settings. A
                store that an earlier version wrote knows no settings but numbers.
        """
        made_of = self.manifest.made_of
        before = {key: v for key, v in made_of.items() if key in ("modules", "settings")}
        if changes := describe_changes(before, describe_model(model, before)):
            raise ValueError(
                f"{self.directory}: these are features of another model ({'; '.join(changes)}); "
                "extract those of this one to another directory"
            )

    def _beside(self, name: str) -> Tensor | None:
        """What is stored beside the features of every sample; None if it is not."""
        shards = range(-(-self.manifest.n // self.manifest.rows))
        if name not in self._shard(0):
            return None
        stored = torch.cat([self._shard(shard)[name] for shard in shards])
        return stored if self._positions is None else stored[self._positions]

    def _with(
        self, features: Features, positions: Tensor | None, given: Tensor | None
    ) -> "FeatureStore":
        part = copy.copy(self)  # which shares what has been checked of the files
        part.features, part._positions, part._given = features, positions, given
        part.__dict__.pop("targets", None)
        return part

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._checked:
            self._checked[shard] = checked_shard(self.directory, self.manifest, shard)
        return self._checked[shard]


def _positions(given: Tensor, n: int) -> Tensor:
    """Positions of n samples, or those that a mask chooses."""
    if given.dtype == torch.bool:
        if given.shape != (n,):
            raise IndexError(f"a mask of shape {tuple(given.shape)} for {n} samples")
        return given.nonzero().squeeze(1)
    _check_range("sample", given, n)
    return given.long()


def _check_range(what: str, values: Tensor, end: int) -> None:
    lowest, highest = (bound.item() for bound in values.aminmax()) if values.numel() else (0, 0)
    if values.numel() and (lowest < 0 or highest >= end):
        wrong = int(lowest if lowest < 0 else highest)
        raise IndexError(f"there is no {what} {wrong} among {end} (they count from 0)")
