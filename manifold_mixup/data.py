"""Whatever DATA stands for, as data sets of tensors for a model."""

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from manifold_mixup.folders import check_images, list_folder
from manifold_mixup.images import Transform, open_image
from manifold_mixup.named import DIGITS, PREFIXES, NamedImage, read_digits, read_named
from manifold_mixup.parts import Data, Part
from manifold_mixup.progress import Track, untracked


class ImageSet(Dataset[tuple[Tensor, int]]):
    """A part as a data set of (image, class index), for any `DataLoader`.

    Args:
        part: The images.
        transform: From a PIL image to a tensor (C, H, W).
        channels: Number of channels that the model takes.
    """

    def __init__(self, part: Part, transform: Transform, channels: int) -> None:
        self.part, self.transform, self.channels = part, transform, channels

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        source = self.part.sources[index]
        image = source.load() if isinstance(source, NamedImage) else source
        return self.transform(open_image(image, self.channels)), self.part.targets[index]


def load_data(
    name: str | Path,
    *,
    root: str | Path | None = None,
    skip_damaged: bool = False,
    track: Track = untracked,
) -> Data:
    """Read a data set; every image of a folder is decoded once, to be sure of it.

    Args:
        name: A folder of class folders, with or without ``train/``, ``val/`` and ``test/`` above
            them; ``torch/NAME`` or ``hfds/NAME`` of `timm.data.create_dataset`; or ``"digits"``,
            scikit-learn's digits 5 to 9.
        root: Where a named set lies, or is downloaded to.
        skip_damaged: Leave damaged images out instead of raising.
        track: Shows how far the check is.

    Raises:
        ValueError: There are no two classes, a class is empty, an image is damaged, or a named
            set cannot be had.
        FileNotFoundError: There is no such folder.

    Example:
        >>> data = load_data("digits")
        >>> data.classes, len(data.parts["train"])
        (['5', '6', '7', '8', '9'], 896)
    """
    return check_images(list_data(name, root=root), skip_damaged=skip_damaged, track=track)


def list_data(name: str | Path, *, root: str | Path | None = None) -> Data:
    """Read a data set as `load_data` does, but leave its images unchecked."""
    check_data(name)
    folder = Path(name)
    if folder.is_dir():
        return list_folder(folder)
    return read_digits() if name == DIGITS else read_named(str(name), root)


def check_data(name: str | Path) -> None:
    """Raise a FileNotFoundError unless DATA is a folder or looks like the name of a set."""
    if not (Path(name).is_dir() or name == DIGITS or str(name).split("/")[0] in PREFIXES):
        raise FileNotFoundError(f"{name}: no such folder (expected {name}/<class>/<image>)")
