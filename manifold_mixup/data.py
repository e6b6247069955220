"""Whatever DATA stands for, as data sets of tensors for a model."""

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from manifold_mixup.folders import read_folder
from manifold_mixup.images import Track, Transform, open_image, untracked
from manifold_mixup.named import DIGITS, PREFIXES, Picture, read_digits, read_named
from manifold_mixup.parts import Data, Part


class ImageSet(Dataset[tuple[Tensor, int]]):
    """A part as a data set of (image, class index), for any `DataLoader`.

    Args:
        part: The pictures.
        transform: From a PIL image to a tensor (C, H, W).
        channels: Number of channels that the model takes.
    """

    def __init__(self, part: Part, transform: Transform, channels: int) -> None:
        self.part, self.transform, self.channels = part, transform, channels

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        source = self.part.sources[index]
        picture = source.load() if isinstance(source, Picture) else source
        return self.transform(open_image(picture, self.channels)), self.part.targets[index]


def load_data(
    name: str | Path,
    *,
    root: str | Path | None = None,
    skip_damaged: bool = False,
    track: Track = untracked,
) -> Data:
    """Read a data set; every picture of a folder is decoded once, to be sure of it.

    Args:
        name: A folder of class folders, with or without ``train/``, ``val/`` and ``test/`` above
            them; ``torch/NAME`` or ``hfds/NAME`` of `timm.data.create_dataset`; or ``"digits"``,
            scikit-learn's digits 5 to 9.
        root: Where a named set lies, or is downloaded to.
        skip_damaged: Leave damaged pictures out instead of raising.
        track: Shows how far the check is.

    Raises:
        ValueError: There are no two classes, a class is empty, a picture is damaged, or a named
            set cannot be had.
        FileNotFoundError: There is no such folder.

    Example:
        >>> data = load_data("digits")
        >>> data.classes, len(data.parts["train"])
        (['5', '6', '7', '8', '9'], 896)
    """
    check_data(name)
    folder = Path(name)
    if folder.is_dir():
        return read_folder(folder, skip_damaged=skip_damaged, track=track)
    return read_digits() if name == DIGITS else read_named(str(name), root)


def check_data(name: str | Path) -> None:
    """Raise a FileNotFoundError unless DATA is a folder or looks like the name of a set."""
    if not (Path(name).is_dir() or name == DIGITS or str(name).split("/")[0] in PREFIXES):
        raise FileNotFoundError(f"{name}: no such folder (expected {name}/<class>/<image>)")
