"""Which folders of DATA are its parts, and which are classes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manifold_mixup.data.images import is_hidden, is_image, walk_files
from manifold_mixup.data.splits import PART_NAMES

# What stands for the validation part or the test part, whichever has no other folder.
_EITHER = ("eval", "evaluation")

_WORDS = {word: part for part, words in PART_NAMES.items() for word in words}
_WORDS |= dict.fromkeys(_EITHER, "eval")

# What may stand beside the word for a part, as in `train_images`.
_FILLERS = {"set", "data", "dataset", "split", "part", "folder", "files"}
_FILLERS |= {"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"}

# Words for parts that are names of things too: a vehicle, and what is not invalid.
_THINGS = ("train", "valid")


@dataclass(frozen=True)
class Layout:
    """What the folders of DATA are.

    Attributes:
        parts: The folder of each part, with class folders in it; of all images ``"train"``.
        left_out: Folders that are neither parts nor classes.
        unlabelled: Folders of parts whose images lie in no class folder.
        shared: Names of two or more folders that are in every class folder: classes, perhaps.
    """

    parts: dict[str, Path]
    left_out: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)


def find_layout(folder: Path) -> Layout:
    """Tell parts from classes, by the names of folders and by what lies in them.

    Raises:
        ValueError: They can be read in two ways.
    """
    folders = class_folders(folder)
    named = _named_parts(folder, folders)
    others = [path for path in folders if path not in named and holds_images(path)]
    flat = [path for path in named if not class_folders(path) and holds_images(path)]
    if not named or _is_thing(named, flat, others):
        _refuse_inner_parts(folder, folders)
        return Layout({"train": folder}, shared=_shared(folders))
    deep = {part for path, part in named.items() if class_folders(path)}
    if others and not ("train" in deep and len(deep) > 1):
        parts, rest = _joined(named), _joined(others)
        raise ValueError(
            f"{folder}: holds {parts} beside {rest}: parts, so that {rest} would be left out, or "
            "classes all? move what is no part elsewhere (images to train on into "
            "train/<class>/), or rename what is a class"
        )
    parts_found = _one_a_part(folder, named)
    return Layout(
        {part: _unwrapped(path) for part, path in parts_found.items() if path not in flat},
        [path for path in folders if path not in named],
        flat,
    )


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, but for hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def holds_images(folder: Path) -> bool:
    """Whether there is an image in a folder or below it."""
    return any(is_image(path) for path in walk_files(folder))


def _named_parts(folder: Path, folders: Sequence[Path]) -> dict[Path, str]:
    """The folders that are called as parts are, all in one way; by path, with the part."""
    groups: dict[tuple[str, ...], dict[Path, str]] = {}
    for path in folders:
        if read := _read_name(path.name):
            groups.setdefault(read[1], {})[path] = read[0]
    if () in groups:
        return groups[()]
    several = [group for group in groups.values() if len(set(group.values())) > 1]
    if len(several) == 1:
        return several[0]
    everything = {path: part for group in groups.values() for path, part in group.items()}
    if several or (len(everything) == len(folders) and len(set(everything.values())) > 1):
        names = _joined(sorted(everything))
        raise ValueError(
            f"{folder}: holds {names}: parts are called train/, val/, test/, each with a folder "
            "for each class; rename them, or give as DATA what belongs together"
        )
    return {}


def _read_name(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The part that a name stands for, and its words that say nothing of that; None if none.

    Example:
        >>> _read_name("seg_Train"), _read_name("TestSet2"), _read_name("train_test")
        (('train', ('seg',)), ('test', ()), None)
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = [word.removesuffix("set") for word in re.findall(r"[^\W\d_]+", apart)]
    parts = [_WORDS[word] for word in words if word in _WORDS]
    if len(parts) != 1:
        return None
    rest = (word for word in words if word and word not in _WORDS and word not in _FILLERS)
    return parts[0], tuple(rest)


def _is_thing(named: Mapping[Path, str], flat: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether a folder called as a part is a class among others, as trains among vehicles are."""
    names = [path.name.lower() for path in flat]
    return bool(others) and len(named) == len(names) == 1 and names[0] in _THINGS


def _refuse_inner_parts(folder: Path, classes: Sequence[Path]) -> None:
    for path in classes:
        inner = class_folders(path)
        parts = [_read_name(one.name) for one in inner]
        if len({part for part in parts if part and not part[1]}) > 1 and all(parts):
            raise ValueError(
                f"{path}: holds {_joined(inner)}; give it as DATA, or if it is a class, put parts "
                f"above the classes, as in {folder}/{inner[0].name}/{path.name}"
            )


def _shared(folders: Sequence[Path]) -> list[str]:
    """The names of folders that are in all of several, if these are two or more."""
    inner = [{path.name for path in class_folders(folder)} for folder in folders]
    names = sorted(set.intersection(*inner)) if len(inner) > 1 else []
    return names if len(names) > 1 else []


def _one_a_part(folder: Path, named: Mapping[Path, str]) -> dict[str, Path]:
    """The folder of each part; what may be either validation or test is what there is not."""
    known = {part for part in named.values() if part != "eval"}
    free = [part for part in ("val", "test") if part not in known]
    if "eval" in named.values() and known == {"train"}:
        [path] = [path for path, part in named.items() if part == "eval"][:1]
        raise ValueError(
            f"{folder}: holds train/ and {path.name}/, which may be its val part, to choose by, "
            "or its test part; rename it val or test"
        )
    found: dict[str, Path] = {}
    for path, name in sorted(named.items(), key=lambda one: one[1] == "eval"):
        part = (free[-1] if free else "test") if name == "eval" else name
        if part in found:
            both = f"{found[part].name}/ and {path.name}/"
            raise ValueError(f"{folder}: holds {both}, which is its {part} part? rename the other")
        found[part] = path
    return {part: found[part] for part in PART_NAMES if part in found}


def _unwrapped(path: Path) -> Path:
    """A part, or the one folder in it if that is called alike, as some archives have it."""
    inner = class_folders(path)
    return inner[0] if [one.name for one in inner] == [path.name] else path


def _joined(paths: Iterable[Path]) -> str:
    names = [f"{path.name}/" for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
