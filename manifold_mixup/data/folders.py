"""A folder of class folders as a data set, checked image by image."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from manifold_mixup._progress import Track, untracked
from manifold_mixup.data.images import describe_damaged, find_damaged, is_image, walk_files
from manifold_mixup.data.layout import Layout, class_folders, find_layout
from manifold_mixup.data.splits import LabelledImages, Split


def list_folder(
    folder: Path, *, skip_damaged: bool = False, track: Track = untracked
) -> LabelledImages:
    """Class folders, with or without ``train/``, ``val/`` and ``test/`` above them.

    Args:
        folder: The folder.
        skip_damaged: Damaged images are nothing wrong.
        track: Shows how far the check of the images is, which are checked now where something
            else is wrong, so that all of it is told at once.

    Raises:
        ValueError: There are no two classes, a class is empty, or folders can be read in two ways.
    """
    layout = find_layout(folder)
    problems = [_unlabelled(path) for path in layout.unlabelled]
    first = [layout.parts["train"]] if "train" in layout.parts else list(layout.parts.values())
    classes = sorted({_class_name(path) for part in first for path in class_folders(part)})
    if first and len(classes) < (2 if "train" in layout.parts else 1):
        problems.append(_too_few(first[0], classes))
    found = _Found(folder)
    parts = {name: found.read_part(below, classes) for name, below in layout.parts.items()}
    if layout.parts and folder not in layout.parts.values():
        found.read_loose(folder)
    notes = [*_notes(folder, layout, classes), *found.notes()]
    data = LabelledImages(str(folder), classes, parts, ignored=found.ignored, notes=notes)
    problems += found.problems
    problems += _empty(data, "no images") if classes else []
    if problems:
        with telling_damaged(data, skip_damaged=skip_damaged, track=track):
            raise ValueError("; ".join(problems))
    return replace(data, hidden=found.hidden)


@contextmanager
def telling_damaged(data: LabelledImages, *, skip_damaged: bool, track: Track) -> Iterator[None]:
    """Add to an error of a block what is said of damaged images, so that all is told at once.

    Args:
        data: The data set.
        skip_damaged: Damaged images are nothing wrong.
        track: Shows how far the check of the images is.
    """
    try:
        yield
    except ValueError as error:
        if skip_damaged:
            raise
        files = [path for part in data.parts.values() for path in part.sources]
        damaged = find_damaged([path for path in files if isinstance(path, Path)], track)
        if not damaged:
            raise
        told = describe_damaged({str(path): problem for path, problem in damaged.items()})
        raise ValueError(f"{error}; {told}") from error


def check_images(data: LabelledImages, *, skip_damaged: bool, track: Track) -> LabelledImages:
    """Decode every image file once; leave the damaged ones out if that is asked for.

    Raises:
        ValueError: An image is damaged, or all of a class or part are.
    """
    files = {
        name: path
        for part in data.parts.values()
        for name, path in zip(part.names, part.sources, strict=True)
        if isinstance(path, Path)
    }
    problems = find_damaged(list(files.values()), track)
    damaged = {name: problems[path] for name, path in files.items() if path in problems}
    if not damaged:
        return data
    if not skip_damaged:
        raise ValueError(describe_damaged({str(files[n]): why for n, why in damaged.items()}))
    parts = {name: part.without(damaged) for name, part in data.parts.items()}
    data = replace(data, parts=parts, damaged=damaged)
    if empty := _empty(data, "only damaged images"):
        raise ValueError("; ".join(empty))
    return data


@dataclass(frozen=True)
class _Found:
    """What was found below a folder, beside the images themselves; by names below it."""

    root: Path
    ignored: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def read_part(self, folder: Path, classes: Sequence[str]) -> Split:
        """The images of a part, by class; what else lies there is noted."""
        self.read_loose(folder)
        paths, targets, hidden = [], [], list[Path]()
        for class_folder in class_folders(folder):
            name = _class_name(class_folder)
            if name not in classes:
                known = f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
                told = f"{class_folder}: train has no such class (it has {known})"
                self.problems.append(told)
                continue
            for path in walk_files(class_folder, hidden):
                if is_image(path):
                    paths.append(path)
                    targets.append(classes.index(name))
                else:
                    self.ignored.append(self._name(path))
        self.hidden.extend(map(self._name, hidden))
        return Split(paths, targets, [self._name(path) for path in paths])

    def read_loose(self, folder: Path) -> None:
        """Note the files of a folder that lie in none of its folders, and what is hidden in it."""
        hidden = list[Path]()
        for path in walk_files(folder, hidden, deep=False):
            (self.loose if is_image(path) else self.ignored).append(self._name(path))
        self.hidden.extend(map(self._name, hidden))

    def notes(self) -> list[str]:
        """What is to be told of images that have no class."""
        if not self.loose:
            return []
        more = ", …" if len(self.loose) > 1 else ""
        return [f"{len(self.loose)} images beside class folders left out ({self.loose[0]}{more})"]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _notes(folder: Path, layout: Layout, classes: Sequence[str]) -> list[str]:
    """Which folders were taken for what."""
    if folder in layout.parts.values():
        shown = f"{', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
        notes = [f"each folder is a class: {shown}"]
        if layout.shared:
            inner = ", ".join(f"{name}/" for name in layout.shared[:5])
            notes.append(
                f"each of them holds {inner}: if these are the classes, call the folders above "
                "them train/, val/ and test/"
            )
        return notes
    parts = (f"{path.relative_to(folder)}/ for {part}" for part, path in layout.parts.items())
    others = ", ".join(f"{path.name}/" for path in layout.left_out)
    return [f"parts: {', '.join(parts)}{f'; left out: {others}' if others else ''}"]


def _class_name(folder: Path) -> str:
    """The name of a class; accents are written in one of two ways, by system."""
    return unicodedata.normalize("NFC", folder.name)


def _unlabelled(folder: Path) -> str:
    """What is said of a part whose images have no classes."""
    n = sum(map(is_image, walk_files(folder)))
    return (
        f"{folder}: has {n} images but no class folders, so no labels (expected "
        f"{folder}/<class>/<image>, or a .csv file of path,label); to tell their classes, move it "
        "elsewhere and give it to `manifold-mixup predict`"
    )


def _too_few(folder: Path, classes: Sequence[str]) -> str:
    found = f"1 class folder ('{classes[0]}')" if classes else "0 class folders"
    message = f"{folder}: found {found}, need at least 2 (expected {folder}/<class>/<image>)"
    inner = [path for path in class_folders(folder) if len(class_folders(path)) > 1]
    return f"{message}; is {inner[0]} what you mean?" if inner else message


def _empty(data: LabelledImages, problem: str) -> list[str]:
    """What is said of the classes and parts that have no images."""
    counts: Mapping[str, int] = {}
    if data.task == "classes" and "train" in data.parts:
        counts = dict(zip(data.classes, data.count(data.parts["train"]), strict=True))
    empty = [f"'{name}'" for name, n in counts.items() if not n]
    told = []
    if empty:
        which, has, it = "class", "has", "it"
        if len(empty) > 1:
            which, has, it = "classes", "have", "them"
        told = [
            f"{data.title}: {which} {', '.join(empty)} {has} {problem} to train on; "
            f"add some or remove {it}"
        ]
    return told + [
        f"{data.title}: part '{name}' has {problem}; add some or remove it"
        for name, part in data.parts.items()
        if not len(part)
    ]
