"""Data sets known by name: those of timm, and the digits of scikit-learn."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from manifold_mixup.data.splits import LabelledImages, Split

DIGITS = "digits"


PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


# What torchvision's sets come in, under the names that timm understands.
_TORCH_SPLITS = {"train": "train", "test": "test"}


_TORCH_OTHER_SPLITS = {"train": "train", "val": "validation"}


_TORCH_OTHERS = ("inaturalist", "inat", "places365", "imagenet")


@dataclass(frozen=True)
class NamedImage:
    """One image of a named set, loaded when it is needed."""

    images: Any
    index: int

    def load(self) -> Any:
        """The PIL image."""
        return self.images[self.index][0]


def read_digits() -> LabelledImages:
    """Scikit-learn's handwritten digits 5 to 9, grey and 8 x 8 pixels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = [i for i, target in enumerate(bunch.target) if target >= 5]
    images = (bunch.images * (255 / 16)).round().astype("uint8")
    part = Split(
        [Image.fromarray(images[i]) for i in chosen],
        [int(bunch.target[i]) - 5 for i in chosen],
        [f"{DIGITS}[{i}]" for i in chosen],
    )
    return LabelledImages(DIGITS, ["5", "6", "7", "8", "9"], {"train": part})


def read_named(name: str, root: str | Path | None) -> LabelledImages:
    """A map-style set that `timm.data.create_dataset` knows as ``torch/NAME`` or ``hfds/NAME``.

    Raises:
        ValueError: The set is iterable, unknown, or cannot be had.
    """
    prefix, _, short = name.partition("/")
    if prefix not in ("torch", "hfds"):
        raise ValueError(f"{name}: {prefix}/ sets are iterable, which is not supported; use hfds/")
    if not short:
        raise ValueError(f"{name}: which set? expected {prefix}/NAME")
    if short in ("image_folder", "folder"):
        raise ValueError(f"{name}: give the folder itself as DATA")
    if prefix == "hfds" and find_spec("datasets") is None:
        raise ValueError(f"{name}: needs the datasets package; pip install datasets")
    if root is None and prefix == "torch":
        raise ValueError(f"{name}: say with --data-root where the set lies, or is to be stored")
    train = _timm_set(name, root, "train")
    if prefix == "hfds":
        splits = _hfds_splits(train.reader.dataset.info.splits or ())
    else:
        splits = _TORCH_OTHER_SPLITS if short.lower() in _TORCH_OTHERS else _TORCH_SPLITS
    parts = {"train": _part(name, "train", train)}
    for part, split in splits.items():
        if part != "train":
            parts[part] = _part(name, split, _timm_set(name, root, split))
    classes = _classes(train) or [str(index) for index in range(max(parts["train"].targets) + 1)]
    return LabelledImages(name, classes, parts)


def _timm_set(name: str, root: str | Path | None, split: str) -> Any:
    from timm.data import create_dataset

    where = None if root is None else str(root)
    download = name.startswith("torch/")
    try:
        return create_dataset(name, root=where, split=split, download=download)
    except Exception as error:  # no network, no such set, no `datasets` package, …
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: the {split} split cannot be loaded ({reason})") from error


def _hfds_splits(names: Any) -> dict[str, str]:
    known = {"train": "train", "validation": "val", "val": "val", "valid": "val", "test": "test"}
    return {known[name]: name for name in names if name in known}


def _part(name: str, split: str, images: Any) -> Split:
    reader = getattr(images, "reader", None)
    if reader is not None:
        targets = reader.dataset[reader.label_key]
    else:
        targets = getattr(images, "targets", None)
    if targets is None or getattr(targets, "ndim", 1) > 1:  # several labels each, as in QMNIST
        targets = [target for _, target in images]
    positions = range(len(images))
    return Split(
        [NamedImage(images, i) for i in positions],
        [int(target) for target in targets],
        [f"{name}/{split}[{i}]" for i in positions],
    )


def _classes(images: Any) -> list[str]:
    names = getattr(images, "classes", None)
    if names is None and hasattr(images, "reader"):
        names = images.reader.class_to_idx
    return [str(name) for name in names or ()]
