"""Images on disk: find them, check them, open them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from manifold_mixup._progress import Track, untracked

# Of what Pillow knows those that hold one picture: others are films, documents or drawings.
_KINDS = {"BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
_KINDS |= {"AVIF", "DDS", "HEIF", "ICO", "PCX", "QOI", "SGI", "SUN", "XBM", "XPM"}


# So many damaged images are named in a message.
_SHOWN = 5

# What systems and tools leave behind under names that do not begin with a dot.
_LEFTOVERS = {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
_LEFTOVERS |= {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


def find_files(folder: Path) -> list[Path]:
    """Every file in a folder and the folders below it, in order; hidden ones are left out.

    Raises:
        OSError: A folder cannot be read.
    """
    return list(walk_files(folder))


def walk_files(
    folder: Path, hidden: list[Path] | None = None, *, deep: bool = True
) -> Iterator[Path]:
    """The same one by one, or those of the folder itself alone.

    What is hidden is added to a list; of hidden folders only they themselves.
    """
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        if hidden is not None:
            hidden += [Path(root, name) for name in sorted(folders + files) if is_hidden(name)]
        inner = (n for n in folders if not (is_hidden(n) or _leads_back(root, n)))
        folders[:] = sorted(inner) if deep else []
        paths = (Path(root, name) for name in sorted(files) if not is_hidden(name))
        # No pipes, which never end.
        yield from (path for path in paths if path.is_file() or not path.exists())


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system or tool keeps for itself."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def is_image(path: Path) -> bool:
    """Whether a file is an image that Pillow reads, by its ending."""
    return path.suffix.lower() in _endings()


@cache
def _endings() -> frozenset[str]:
    from PIL import Image

    _read_heif()
    known = Image.registered_extensions()
    return frozenset(ending for ending, kind in known.items() if kind in _KINDS)


@cache
def _read_heif() -> None:
    """Let Pillow read HEIF, if what it needs for that is installed."""
    if find_spec("pillow_heif") is not None:
        import_module("pillow_heif").register_heif_opener()


def find_damaged(paths: Sequence[Path], track: Track = untracked) -> dict[Path, str]:
    """Decode every image once; the damaged ones, each with what is wrong."""
    with ThreadPoolExecutor() as pool:
        problems = track(pool.map(_damage, paths), len(paths), "check images")
        return {path: problem for path, problem in zip(paths, problems, strict=True) if problem}


def describe_damaged(problems: Mapping[str, str]) -> str:
    """What is said of damaged images, by path with what is wrong: the first few by name.

    Example:
        >>> describe_damaged({"x.png": "broken"})
        'x.png: damaged image (broken); --skip-damaged goes on without it'
    """
    if len(problems) == 1:
        [(name, problem)] = problems.items()
        return f"{name}: damaged image ({problem}); --skip-damaged goes on without it"
    told = [f"{name} ({problem})" for name, problem in problems.items()][:_SHOWN]
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return (
        f"{len(problems)} damaged images: {', '.join(told)}{more}; --skip-damaged goes on without "
        "them"
    )


def open_image(source: Any, channels: int) -> Any:
    """A PIL image, upright, grey for models of 1 channel and RGB for all others.

    Args:
        source: A path, or a PIL image.
        channels: Number of channels that the model takes.
    """
    from PIL import Image, ImageOps

    if isinstance(source, str | Path):
        _read_heif()  # in a process of its own, perhaps
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


def _raise(error: OSError) -> None:
    raise error


def _damage(path: Path) -> str:
    from PIL import Image

    _read_heif()
    try:
        with Image.open(path) as image:
            image.draft("RGB", (64, 64))  # a small JPEG is decoded faster, from all of its bytes
            image.load()
    except Exception as error:  # whatever a damaged file makes its decoder raise
        told = str(error).replace(f" {str(path)!r}", "")  # which is named anyway
        return told.splitlines()[0] if told else type(error).__name__
    return ""
