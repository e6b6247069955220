"""Labelled images and the parts they come in: train, val and test."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Part:
    """Labelled images: where each comes from, its class index, and its name.

    Attributes:
        sources: A path, a PIL image or a `NamedImage` of a named set for each.
        targets: Class indices (n,).
        names: Paths below DATA, or positions in a named set.
    """

    sources: Sequence[Any]
    targets: list[int]
    names: list[str]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, positions: Sequence[int]) -> "Part":
        """The images at these positions."""
        return Part(
            [self.sources[i] for i in positions],
            [self.targets[i] for i in positions],
            [self.names[i] for i in positions],
        )

    def without(self, names: Collection[str]) -> "Part":
        """All but the images of these names."""
        return self.take([i for i, name in enumerate(self.names) if name not in names])


@dataclass(frozen=True)
class Data:
    """A data set: its class names in order, and the parts it comes in.

    Attributes:
        title: What DATA was.
        classes: Class names in order.
        parts: ``"train"`` always; ``"val"`` and ``"test"`` where DATA has them.
        damaged: Images that were left out, by name, each with what is wrong.
        ignored: Names of the files that are no images.
    """

    title: str
    classes: list[str]
    parts: dict[str, Part]
    damaged: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """What tells this data set from others: its classes, parts, names and targets."""
        parts = {name: [part.names, part.targets] for name, part in sorted(self.parts.items())}
        return hashlib.sha256(json.dumps([self.classes, parts]).encode()).hexdigest()

    def without(self, names: Collection[str]) -> "Data":
        """All but the images of these names."""
        parts = {part: images.without(names) for part, images in self.parts.items()}
        return replace(self, parts=parts)


def join_parts(parts: Iterable[Part]) -> Part:
    """The images of several parts, one after the other.

    Example:
        >>> join_parts([Part(["a"], [0], ["a"]), Part(["b", "c"], [1, 0], ["b", "c"])]).targets
        [0, 1, 0]
    """
    parts = list(parts)
    return Part(
        [source for part in parts for source in part.sources],
        [target for part in parts for target in part.targets],
        [name for part in parts for name in part.names],
    )


def split_parts(data: Data, *, seed: int = 0) -> dict[str, Part]:
    """Training, validation and test parts: those of the data set, or 20 % of its train for each.

    Drawn with a seed and stratified: each class keeps its share in every part.

    Raises:
        ValueError: A class has too few images to be in every part.

    Example:
        >>> part = Part(range(20), [0, 1] * 10, [str(i) for i in range(20)])
        >>> parts = split_parts(Data("twenty", ["a", "b"], {"train": part}))
        >>> {name: len(images) for name, images in parts.items()}
        {'train': 12, 'test': 4, 'val': 4}
    """
    train, parts = data.parts["train"], dict(data.parts)
    missing = [name for name in ("test", "val") if name not in parts]
    counts = Counter(train.targets)
    rarest = min(range(len(data.classes)), key=counts.__getitem__)
    if counts[rarest] <= len(missing):
        raise ValueError(
            f"{data.title}: class '{data.classes[rarest]}' has {counts[rarest]} images, need at "
            f"least {len(missing) + 1} to hold some out for {' and '.join(missing)}"
        )
    held_out = max(len(data.classes), round(0.2 * len(train)))
    for name in missing:
        parts["train"], parts[name] = _hold_out(parts["train"], held_out, seed)
    return parts


def _hold_out(part: Part, n: int, seed: int) -> tuple[Part, Part]:
    from sklearn.model_selection import train_test_split

    kept, held = train_test_split(
        range(len(part)), test_size=n, stratify=part.targets, random_state=seed % 2**32
    )
    return part.take(sorted(kept)), part.take(sorted(held))
