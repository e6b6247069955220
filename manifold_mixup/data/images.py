"""Images on disk: find them, check them, open them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from manifold_mixup._progress import Track, untracked

# Of what Pillow knows those that hold one picture: others are films, documents or drawings.
_KINDS = {"BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
_KINDS |= {"AVIF", "ICO", "PCX", "SGI"}


def find_files(folder: Path) -> list[Path]:
    """Every file in a folder and the folders below it, in order; hidden ones are left out."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(n for n in folders if not (is_hidden(n) or _leads_back(root, n)))
        paths = (Path(root, name) for name in sorted(files) if not is_hidden(name))
        found += [p for p in paths if p.is_file() or not p.exists()]  # no pipes, which never end
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that a system keeps for itself."""
    return name.startswith((".", "__"))


def is_image(path: Path) -> bool:
    """Whether a file is an image that Pillow reads, by its ending."""
    return path.suffix.lower() in _endings()


@cache
def _endings() -> frozenset[str]:
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(ending for ending, kind in known.items() if kind in _KINDS)


def find_damaged(paths: Sequence[Path], track: Track = untracked) -> dict[Path, str]:
    """Decode every image once; the damaged ones, each with what is wrong."""
    with ThreadPoolExecutor() as pool:
        problems = track(pool.map(_damage, paths), len(paths), "check images")
        return {path: problem for path, problem in zip(paths, problems, strict=True) if problem}


def open_image(source: Any, channels: int) -> Any:
    """A PIL image, upright, grey for models of 1 channel and RGB for all others.

    Args:
        source: A path, or a PIL image.
        channels: Number of channels that the model takes.
    """
    from PIL import Image, ImageOps

    if isinstance(source, str | Path):
        with Image.open(source) as opened:
            return open_image(opened, channels)
    image = ImageOps.exif_transpose(source)
    if image.mode.startswith("I;16"):  # Pillow would show all above 255 of 65535 as white
        image = image.convert("I").point(lambda value: value / 257)
    elif image.mode == "P":  # Pillow warns of palettes with transparent colours
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _leads_back(root: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return Path(root).resolve().is_relative_to(Path(root, name).resolve())


def _damage(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (64, 64))  # a small JPEG is decoded faster, from all of its bytes
            image.load()
    except Exception as error:  # whatever a damaged file makes its decoder raise
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""
