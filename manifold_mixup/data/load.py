"""Whatever DATA stands for, as data sets of tensors for a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from manifold_mixup._progress import Track, untracked
from manifold_mixup.data.csv_file import list_csv
from manifold_mixup.data.folders import check_images, list_folder
from manifold_mixup.data.images import open_image
from manifold_mixup.data.named import DIGITS, PREFIXES, NamedImage, read_digits, read_named
from manifold_mixup.data.splits import LabelledImages, Split

# From a PIL image to a tensor (C, H, W).
Transform = Callable[[Any], Tensor]

_TABLES = (".csv", ".tsv")


class ImageSet(Dataset[tuple[Tensor, Any]]):
    """A part as a data set of (image, target), for any `DataLoader`.

    The target is a class index; or a float64 tensor, of labels (C,) or of values (D,).

    Args:
        part: The images.
        transform: From a PIL image to a tensor (C, H, W).
        channels: Number of channels that the model takes.
    """

    def __init__(self, part: Split, transform: Transform, channels: int) -> None:
        self.part, self.transform, self.channels = part, transform, channels

    @property
    def targets(self) -> torch.Tensor:
        """The target of every image, (n,) or (n, *)."""
        return torch.tensor(self.part.targets)

    @property
    def named_files(self) -> tuple[Sequence[str], Sequence[Any], Sequence[Any]]:
        """Name, path and target of every image: what its features are known by."""
        return self.part.names, self.part.sources, self.part.targets

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        source = self.part.sources[index]
        image = source.load() if isinstance(source, NamedImage) else source
        target = self.part.targets[index]
        if isinstance(target, list):
            target = torch.tensor(target, dtype=torch.float64)
        return self.transform(open_image(image, self.channels)), target


def load_data(
    name: str | Path,
    *,
    task: str | None = None,
    root: str | Path | None = None,
    skip_damaged: bool = False,
    track: Track = untracked,
    **table: Any,
) -> LabelledImages:
    """Read a data set; every image file is decoded once, to be sure of it.

    Args:
        name: A folder of class folders, with or without ``train/``, ``val/`` and ``test/`` above
            them; a CSV file (see `list_csv`); ``torch/NAME`` or ``hfds/NAME`` of
            `timm.data.create_dataset`; or ``"digits"``, scikit-learn's digits 5 to 9.
        task: What the labels of a CSV file are: ``"classes"``, ``"labels"`` or ``"values"``; None
            to tell by themselves.
        root: Where a named set lies, or is downloaded to; the folder that all images of a CSV
            file lie below, if that is not its own.
        skip_damaged: Leave damaged images out instead of raising.
        track: Shows how far the check is.
        **table: Of a CSV file: ``columns``, ``label_separator`` and ``skip_unlabelled``, see
            `list_csv`.

    Raises:
        ValueError: There are no two classes, a class is empty, a row of a CSV file is wrong, an
            image is damaged, or a named set cannot be had.
        FileNotFoundError: There is no such folder or file.

    Example:
        >>> data = load_data("digits")
        >>> data.classes, len(data.parts["train"])
        (['5', '6', '7', '8', '9'], 896)
    """
    given: dict[str, Any] = {"skip_damaged": skip_damaged, "track": track}
    return check_images(list_data(name, task=task, root=root, **given, **table), **given)


def list_data(
    name: str | Path,
    *,
    task: str | None = None,
    root: str | Path | None = None,
    skip_damaged: bool = False,
    track: Track = untracked,
    **table: Any,
) -> LabelledImages:
    """Read a data set as `load_data` does, but leave its images unchecked if all else is right."""
    check_data(name)
    path = Path(name)
    if is_csv(path):
        return list_csv(path, task, root=None if root is None else Path(root), **table)
    if task not in (None, "classes"):
        raise ValueError(f"{name}: has classes, not {task} (--task {task} is for CSV files)")
    for option, value in table.items():
        if value not in (None, False, "semicolon"):
            raise ValueError(f"{name}: --{option.replace('_', '-')} is for CSV files")
    if name == DIGITS:  # a folder of that name is given by its path
        return read_digits()
    if not path.is_dir():
        return read_named(str(name), root)
    return list_folder(path, skip_damaged=skip_damaged, track=track)


def check_data(name: str | Path) -> None:
    """Raise a FileNotFoundError unless DATA is a folder, a CSV file or looks like a set's name."""
    path = Path(name)
    if path.is_dir() or is_csv(path) or name == DIGITS or str(name).split("/")[0] in PREFIXES:
        return
    if path.suffix.lower() in _TABLES:
        raise FileNotFoundError(f"{name}: no such file (expected a CSV of path,label)")
    raise FileNotFoundError(
        f"{name}: no such folder (expected {name}/<class>/<image>, or a .csv file of path,label)"
    )


def is_csv(path: Path) -> bool:
    """Whether DATA is a CSV file."""
    return path.suffix.lower() in _TABLES and path.is_file()
