"""Labelled images and the parts they come in: train, val and test."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from manifold_mixup.data.images import NEEDS

# What the parts may be called where DATA comes in parts.
PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "holdout"),
}


# So many examples are named in a message.
_SHOWN = 5


# Parts that a data set without a test part is dealt into.
_FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Labelled images: where each comes from, its target, and its name.

    Attributes:
        sources: A path, a PIL image or a `NamedImage` of a named set for each.
        targets: A class index for each; or a list of C zeros and ones, or of D values.
        names: Paths below DATA, or positions in a named set.
    """

    sources: Sequence[Any]
    targets: list[Any]
    names: list[str]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, positions: Sequence[int]) -> "Split":
        """The images at these positions."""
        return Split(
            [self.sources[i] for i in positions],
            [self.targets[i] for i in positions],
            [self.names[i] for i in positions],
        )

    def without(self, names: Collection[str]) -> "Split":
        """All but the images of these names."""
        return self.take([i for i, name in enumerate(self.names) if name not in names])


@dataclass(frozen=True)
class LabelledImages:
    """A data set: its class names in order, and the parts it comes in.

    Attributes:
        title: What DATA was.
        classes: Names of the classes, labels or values, in order.
        parts: ``"train"``, ``"val"`` and ``"test"``, those that DATA has.
        damaged: Images that were left out, by name, each with what is wrong.
        ignored: Names of the files that are no images, or lie where no class is.
        task: What the targets are: ``"classes"``, ``"labels"`` or ``"values"``.
        why: Why they are taken for that, where they might be something else.
        hidden: Names of files and folders that are hidden, or a system's own.
        notes: What was taken for what.
    """

    title: str
    classes: list[str]
    parts: dict[str, Split]
    damaged: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    task: str = "classes"
    why: str = ""
    hidden: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """What tells this data set from others: its classes, parts, names and targets."""
        parts = {name: [part.names, part.targets] for name, part in sorted(self.parts.items())}
        return hashlib.sha256(json.dumps([self.classes, parts]).encode()).hexdigest()

    @property
    def about_ignored(self) -> str:
        """How many files are no images by their endings, and which these are.

        Example:
            >>> LabelledImages("x", [], {}, ignored=["a/b.txt", "a/c.TXT", "d"]).about_ignored
            'not taken for images, by their endings: .txt: 2, none: 1'
        """
        endings = Counter(Path(name).suffix.lower() or "none" for name in self.ignored)
        needs = {ending: f" ({NEEDS[ending]})" for ending in endings if ending in NEEDS}
        told = (f"{ending}: {n}{needs.get(ending, '')}" for ending, n in endings.most_common())
        return f"not taken for images, by their endings: {', '.join(told)}"

    @property
    def about(self) -> list[str]:
        """What was taken for what, and what was left out and why, line by line.

        Example:
            >>> for line in LabelledImages("x", ["A", "a"], {}, hidden=["b/.git", ".git"]).about:
            ...     print(line)
            classes 'A' and 'a' differ in upper and lower case alone: are they one?
            left out as hidden, or a system's own: .git: 2
        """
        lines, same = list(self.notes), dict[str, list[str]]()
        for name in self.classes:
            same.setdefault(name.casefold().strip(), []).append(repr(name))
        alike = [" and ".join(names) for names in same.values() if len(names) > 1]
        if alike:
            differ = "differ in upper and lower case alone: are they one?"
            lines.append(f"classes {', '.join(alike)} {differ}")
        if self.damaged:
            lines.append(f"{len(self.damaged)} damaged images left out")
        if self.ignored:
            lines.append(self.about_ignored)
        if self.hidden:
            counts = Counter(Path(name).name for name in self.hidden)
            told = ", ".join(f"{name}: {n}" for name, n in counts.most_common(_SHOWN))
            more = f" and {len(counts) - _SHOWN} more names" if len(counts) > _SHOWN else ""
            lines.append(f"left out as hidden, or a system's own: {told}{more}")
        return lines

    def without(self, names: Collection[str]) -> "LabelledImages":
        """All but the images of these names."""
        parts = {part: images.without(names) for part, images in self.parts.items()}
        return replace(self, parts=parts)

    def by_position(self) -> "LabelledImages":
        """The same, with their positions among all in the place of their sources.

        Example:
            >>> data = LabelledImages("x", ["a"], {"train": Split(["one", "two"], [0, 0], "12")})
            >>> data.by_position().parts["train"].sources
            range(0, 2)
        """
        parts: dict[str, Split] = {}
        begin = 0
        for name, part in self.parts.items():
            parts[name] = replace(part, sources=range(begin, begin + len(part)))
            begin += len(part)
        return replace(self, parts=parts)

    def count(self, part: Split) -> list[int]:
        """How many images of a part each class or label has; values have none that count."""
        if self.task == "values":
            return []
        if self.task == "labels":
            return [int(sum(column)) for column in zip(*part.targets, strict=True)]
        counts = Counter(part.targets)
        return [counts[index] for index in range(len(self.classes))]


def join_splits(parts: Iterable[Split]) -> Split:
    """The images of several parts, one after the other.

    Example:
        >>> join_splits([Split(["a"], [0], ["a"]), Split(["b", "c"], [1, 0], ["b", "c"])]).targets
        [0, 1, 0]
    """
    parts = list(parts)
    return Split(
        [source for part in parts for source in part.sources],
        [target for part in parts for target in part.targets],
        [name for part in parts for name in part.names],
    )


def about_copies(data: LabelledImages, parts: Mapping[str, Split]) -> list[str]:
    """What is said of images that are there twice, by the bytes of their files.

    Args:
        data: The data set, with the targets that it gives.
        parts: The parts that it comes in, or is dealt into.

    Returns:
        A line for copies in several parts, one for copies with several labels, and one for others.
    """
    labels: dict[str, Any] = {}
    for part in data.parts.values():
        labels |= zip(part.names, part.targets, strict=True)
    apart, differing, others = [], [], []
    for copies in _copies(parts):
        names = [name for _, name in copies]
        told = " = ".join(names[:3]) + (" = …" if len(names) > 3 else "")
        is_apart = len({part for part, _ in copies}) > 1
        is_differing = any(labels[name] != labels[names[0]] for name in names if name in labels)
        apart += [told] if is_apart else []
        differing += [told] if is_differing else []
        others += [told] if not (is_apart or is_differing) else []
    is_dealt = "train" in parts and not {"val", "test"} <= parts.keys()
    within = "of which some is held out to test on" if is_dealt else "where it counts more"
    lines = {
        "of one image in several parts, so that what is tested on is trained on": apart,
        "of one image with several labels": differing,
        f"of one image in one part, {within}": others,
    }
    return [
        f"copies {what}: {len(told)} ({', '.join(told[:_SHOWN])}{', …' * (len(told) > _SHOWN)})"
        for what, told in lines.items()
        if told
    ]


def _copies(parts: Mapping[str, Split]) -> list[list[tuple[str, str]]]:
    """Part and name of the images of one content, for each content that several files have."""
    by_size: dict[int, list[tuple[str, str, Path]]] = {}
    for part, images in parts.items():
        for name, source in zip(images.names, images.sources, strict=True):
            if isinstance(source, Path):
                by_size.setdefault(source.stat().st_size, []).append((part, name, source))
    found: dict[bytes, list[tuple[str, str]]] = {}
    for of_one_size in by_size.values():
        for part, name, path in of_one_size if len(of_one_size) > 1 else ():
            digest = hashlib.sha256(path.read_bytes()).digest()
            found.setdefault(digest, []).append((part, name))
    return [copies for copies in found.values() if len(copies) > 1]


def split_images(data: LabelledImages, *, seed: int = 0) -> dict[str, Split]:
    """Training, validation and test parts: those of the data set, or 20 % of its train for each.

    Drawn with a seed and stratified: each class keeps its share in every part, one image at least;
    so do the rarest labels of images, and tenths of the (first) value from the lowest to the
    highest. Of classes, five seeds in a row from a multiple of five hold out another fifth each to
    test on: all images.

    Raises:
        ValueError: There is nothing to train on, or a class has too few images to be in every
            part.

    Example:
        >>> part = Split(range(20), [0, 1] * 10, [str(i) for i in range(20)])
        >>> parts = split_images(LabelledImages("twenty", ["a", "b"], {"train": part}))
        >>> {name: len(images) for name, images in parts.items()}
        {'train': 12, 'test': 4, 'val': 4}
    """
    if "train" not in data.parts:
        raise ValueError(f"{data.title}: has no train part, nothing to train on")
    train, parts = data.parts["train"], dict(data.parts)
    missing = [name for name in ("test", "val") if name not in parts]
    counts = data.count(train) or [len(train)]
    rare = sorted((n, i) for i, n in enumerate(counts) if n <= len(missing))
    if missing and rare:
        told = ", ".join(f"'{data.classes[i]}' has {n} images" for n, i in rare[:_SHOWN])
        more = f" and {len(rare) - _SHOWN} more have too few" if len(rare) > _SHOWN else ""
        raise ValueError(
            f"{data.title}: {_kind(data)} {told}{more}, need at least {len(missing) + 1} "
            f"to hold some out for {' and '.join(missing)}"
            f"{''.join(f'; {note}' for note in data.notes)}"
        )
    if data.task == "classes" and len(data.classes) < 2:
        raise ValueError(f"{data.title}: has 1 class ('{data.classes[0]}'), need at least 2")
    held_out = max(len(data.classes), round(0.2 * len(train)))
    for name in missing:
        if name == "test" and data.task == "classes":
            parts["train"], parts[name] = _hold_out_fold(parts["train"], seed)
            continue
        strata = _strata(data.task, parts["train"].targets)
        hold_out = _hold_out if data.task == "classes" else _spread_out
        parts["train"], parts[name] = hold_out(parts["train"], strata, held_out, seed)
    lost = [index for index, n in enumerate(data.count(parts["train"])) if not n]
    if lost:
        raise ValueError(
            f"{data.title}: no image of {_kind(data)} '{data.classes[lost[0]]}' is left to train "
            "on; bring more, or say by a split column what is held out"
        )
    return parts


def _kind(data: LabelledImages) -> str:
    return {"classes": "class", "labels": "label", "values": "value"}[data.task]


def _hold_out_fold(part: Split, seed: int) -> tuple[Split, Split]:
    """Hold out one of five folds, or of a class of fewer images one of them."""
    deal, number = divmod(seed, _FOLDS)
    shuffle, held = random.Random(deal).shuffle, set[int]()
    for place, index in enumerate(sorted(set(part.targets))):
        own = [i for i, target in enumerate(part.targets) if target == index]
        shuffle(own)
        # From another fold on in each class, so that folds are of one size.
        held |= (
            {own[number % len(own)]}
            if len(own) < _FOLDS
            else {*own[(number + place) % _FOLDS :: _FOLDS]}
        )
    kept = [i for i in range(len(part)) if i not in held]
    return part.take(kept), part.take(sorted(held))


def _hold_out(part: Split, strata: list[int], n: int, seed: int) -> tuple[Split, Split]:
    """Hold out n images, of each stratum its share and at least one."""
    from sklearn.model_selection import train_test_split

    halves = train_test_split(
        range(len(part)), test_size=n, stratify=strata, random_state=seed % 2**32
    )
    kept, held = (set(half) for half in halves)
    choice = random.Random(seed).choice
    for stratum in sorted(set(strata) - {strata[i] for i in held}):  # so rare that it has none
        [(most, _)] = Counter(strata[i] for i in held).most_common(1)
        for source, goal, own in ((held, kept, most), (kept, held, stratum)):
            moved = choice(sorted(i for i in source if strata[i] == own))
            source.remove(moved)
            goal.add(moved)
    return part.take(sorted(kept)), part.take(sorted(held))


def _spread_out(part: Split, strata: list[int], n: int, seed: int) -> tuple[Split, Split]:
    """Hold out n images at equal steps through all, which are shuffled and sorted by stratum."""
    order = list(range(len(part)))
    random.Random(seed).shuffle(order)
    order.sort(key=strata.__getitem__)
    n = min(n, len(part) - 1)
    held = {order[int((step + 0.5) * len(part) / n)] for step in range(n)}
    kept = [i for i in range(len(part)) if i not in held]
    return part.take(kept), part.take(sorted(held))


def _strata(task: str, targets: list[Any]) -> list[int]:
    """The class of each image; its rarest label, -1 if it has none; or the tenth it is in."""
    if task == "classes":
        return targets
    if task == "labels":
        counts = [sum(column) for column in zip(*targets, strict=True)]
        return [
            min((i for i, has in enumerate(row) if has), key=counts.__getitem__, default=-1)
            for row in targets
        ]
    ranked = sorted(range(len(targets)), key=lambda i: targets[i][0])
    tenth = {i: 10 * rank // len(targets) for rank, i in enumerate(ranked)}
    return [tenth[i] for i in range(len(targets))]
