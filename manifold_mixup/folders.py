"""A folder of class folders as a data set, checked picture by picture."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from manifold_mixup.images import Track, find_damaged, find_files, is_hidden, is_image
from manifold_mixup.parts import Data, Part

# What the folders of parts may be called.
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


def read_folder(folder: Path, *, skip_damaged: bool, track: Track) -> Data:
    """Class folders, with or without ``train/``, ``val/`` and ``test/`` above them.

    Raises:
        ValueError: There are no two classes, a class is empty, or a picture is damaged.
    """
    found = _part_folders(folder)
    classes = _class_names(found["train"])
    parts, ignored = {}, []
    for name, below in found.items():
        parts[name], others = _read_part(folder, below, classes)
        ignored += others
    data = Data(str(folder), classes, parts, {}, ignored)
    _refuse_empty(data, found, "no images")
    data = _without_damaged(data, folder, skip_damaged, track)
    _refuse_empty(data, found, "only damaged images")
    return data


def _part_folders(folder: Path) -> dict[str, Path]:
    """The folder of each part, in any case of letters; without one for train, all is train."""
    found: dict[str, Path] = {}
    for part, names in _PARTS.items():
        folders = [path for path in _class_folders(folder) if path.name.lower() in names]
        if len(folders) > 1:
            both = " and ".join(f"{path.name}/" for path in folders)
            raise ValueError(f"{folder}: holds {both}, which is its {part} part? rename the other")
        if folders:
            found[part] = folders[0]
    return found if "train" in found else {"train": folder}


def _class_names(folder: Path) -> list[str]:
    names = [path.name for path in _class_folders(folder)]
    if len(names) < 2:
        found = f"1 class folder ('{names[0]}')" if names else "0 class folders"
        raise ValueError(
            f"{folder}: found {found}, need at least 2 (expected {folder}/<class>/<image>)"
        )
    return names


def _class_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def _read_part(root: Path, folder: Path, classes: list[str]) -> tuple[Part, list[str]]:
    """The pictures of a part, and the names of the files in it that are none."""
    paths, targets, others = [], [], []
    for class_folder in _class_folders(folder):
        if class_folder.name not in classes:
            known = f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
            raise ValueError(f"{class_folder}: train has no such class (it has {known})")
        for path in find_files(class_folder):
            if is_image(path):
                paths.append(path)
                targets.append(classes.index(class_folder.name))
            else:
                others.append(_name(path, root))
    return Part(paths, targets, [_name(path, root) for path in paths]), others


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _refuse_empty(data: Data, found: dict[str, Path], problem: str) -> None:
    counts = Counter(data.parts["train"].targets)
    for index, name in enumerate(data.classes):
        if not counts[index]:
            folder = found["train"] / name
            raise ValueError(f"{folder}: this class has {problem}; add some or remove it")
    for name, part in data.parts.items():
        if not len(part):
            raise ValueError(f"{found[name]}: {problem} (expected <class>/<image> in it)")


def _without_damaged(data: Data, folder: Path, skip: bool, track: Track) -> Data:
    paths = [path for part in data.parts.values() for path in part.sources]
    damaged = find_damaged(paths, track)
    if damaged and not skip:
        path, problem = next(iter(damaged.items()))
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise ValueError(
            f"{path}{more}: damaged image ({problem}); --skip-damaged goes on without it"
        )
    parts = {
        name: part.take([i for i, path in enumerate(part.sources) if path not in damaged])
        for name, part in data.parts.items()
    }
    named = {_name(path, folder): problem for path, problem in damaged.items()}
    return replace(data, parts=parts, damaged=named)
