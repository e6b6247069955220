"""A folder of class folders as a data set, checked image by image."""

from dataclasses import replace
from pathlib import Path

from manifold_mixup._progress import Track
from manifold_mixup.data.images import find_damaged, find_files, is_hidden, is_image
from manifold_mixup.data.splits import PART_NAMES, LabelledImages, Split


def list_folder(folder: Path) -> LabelledImages:
    """Class folders, with or without ``train/``, ``val/`` and ``test/`` above them.

    Raises:
        ValueError: There are no two classes, or a class is empty.
    """
    found = _part_folders(folder)
    classes = _class_names(found["train"])
    parts, ignored = {}, []
    for name, below in found.items():
        parts[name], others = _read_part(folder, below, classes)
        ignored += others
    data = LabelledImages(str(folder), classes, parts, {}, ignored)
    _refuse_empty(data, "no images")
    return data


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
        name, problem = next(iter(damaged.items()))
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise ValueError(
            f"{files[name]}{more}: damaged image ({problem}); --skip-damaged goes on without it"
        )
    parts = {name: part.without(damaged) for name, part in data.parts.items()}
    data = replace(data, parts=parts, damaged=damaged)
    _refuse_empty(data, "only damaged images")
    return data


def _part_folders(folder: Path) -> dict[str, Path]:
    """The folder of each part, in any case of letters; without one for train, all is train."""
    found: dict[str, Path] = {}
    for part, names in PART_NAMES.items():
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


def _read_part(root: Path, folder: Path, classes: list[str]) -> tuple[Split, list[str]]:
    """The images of a part, and the names of the files in it that are none."""
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
    return Split(paths, targets, [_name(path, root) for path in paths]), others


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _refuse_empty(data: LabelledImages, problem: str) -> None:
    counts = data.count(data.parts["train"]) if data.task == "classes" else []
    for name, n in zip(data.classes, counts, strict=False):
        if not n:
            raise ValueError(
                f"{data.title}: class '{name}' has {problem} to train on; add some or remove it"
            )
    for name, part in data.parts.items():
        if not len(part):
            raise ValueError(f"{data.title}: part '{name}' has {problem}; add some or remove it")
