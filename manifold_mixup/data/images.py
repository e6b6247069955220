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


# What has to be installed for endings that Pillow does not read by itself.
NEEDS = {
    ".heic": "pip install pillow-heif",
    ".heif": "pip install pillow-heif",
    ".avif": "pip install --upgrade pillow",
}

# So many damaged images are named in a message.
_SHOWN = 5

# What systems and tools leave behind under names that do not begin with a dot.
_LEFTOVERS = {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
_LEFTOVERS |= {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_LEFTOVERS |= {"thumbnails"}

# The EXIF tag of how a camera was held, and how Pillow turns what it says upright.
_ORIENTATION = 0x0112
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
_TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
# Where Pillow keeps what it reads that tag from.
_NOTES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")

# P: Pillow warns of palettes with transparent colours where they become others.
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La", "P")
_REMEDY = "spread black to white over 8 or 16 bits and save it anew"


def walk_files(
    folder: Path, hidden: list[Path] | None = None, *, deep: bool = True
) -> Iterator[Path]:
    """Every file in a folder and the folders below it, in order; hidden ones are left out.

    Args:
        folder: The folder.
        hidden: What is hidden is added to it; of a hidden folder not what lies in it.
        deep: Whether to go into the folders below.

    Raises:
        OSError: A folder cannot be read.
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
    """A PIL image, upright, on white where it is transparent; grey or RGB, in 8 bits.

    Levels of 16 bits, and of floating point from 0 to 1, are brought to 8 bits.

    Args:
        source: A path, or a PIL image.
        channels: Number of channels that the model takes: grey for 1, RGB for all others.

    Raises:
        ValueError: It cannot be told which of its levels is white.
    """
    from PIL import Image

    if not isinstance(source, str | Path):
        return _convert(source, channels)
    _read_heif()  # in a process of its own, perhaps
    with Image.open(source) as opened:
        try:
            return _convert(opened, channels)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


def _convert(image: Any, channels: int) -> Any:
    """See `open_image`."""
    from PIL import Image

    # Told before the image is loaded, as it is gone then.
    stored = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    image = _in_eight_bits(_upright(image), stored, image.format)
    if image.mode in _WITH_ALPHA or ("transparency" in image.info and image.mode != "I"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _upright(image: Any) -> Any:
    """The image as it was held; as it is where its note on that cannot be read."""
    from PIL import Image

    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # whatever a spoilt note makes its reader raise
        turn = None
    if turn is None:
        return image
    upright = image.transpose(Image.Transpose[turn])
    for note in _NOTES:  # or it would be turned once more when it is opened again
        upright.info.pop(note, None)
    return upright


def _in_eight_bits(image: Any, stored: str, kind: str | None) -> Any:
    """The image with its levels from black to white in 8 bits, as it is if they are.

    Args:
        image: The image.
        stored: How Pillow calls the way its levels are stored.
        kind: The kind of file.

    Raises:
        ValueError: It cannot be told which level is white.
    """
    if image.mode == "F":
        return _from_floats(image)
    if image.mode == "I" and kind not in ("PNG", "PPM"):  # which have 16 bits, shown as 32
        low, high = image.getextrema()
        if low < 0 or high > 255:
            raise ValueError(f"its levels are {low} to {high} in 32 bits; {_REMEDY}")
        return image
    if image.mode.startswith("I"):  # Pillow would show all above 255 of 65535 as white
        image = image.convert("I")
        if "I;12" in stored:
            return image.point(lambda value: value / 16)
        _refuse_dark(image.getextrema()[1])
        return image.point(lambda value: value / 257)
    if ";16" in stored:  # colours, of which Pillow reads the upper 8 bits
        _refuse_dark(256 * max(high for _, high in image.convert("RGB").getextrema()))
    return image


def _refuse_dark(level: int) -> None:
    """Raise a ValueError if the brightest level would be black, as 12 bits are among 16."""
    if 0 < level < 4096:
        raise ValueError(
            f"its brightest level is {level} of 65535, as if its 16 bits held 12; {_REMEDY}"
        )


def _from_floats(image: Any) -> Any:
    """An image of floating point levels in 8 bits."""
    import numpy as np
    from PIL import Image

    levels = np.asarray(image)
    low, high = float(levels.min()), float(levels.max())
    if low >= 0 and high <= 1:
        levels = levels * 255
    elif not (low >= 0 and high <= 255 and (levels == levels.round()).all()):  # NaN neither
        raise ValueError(
            f"its levels are {low:g} to {high:g} in floating point, expected 0 to 1; {_REMEDY}"
        )
    return Image.fromarray(levels.round().astype("uint8"))


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
            _convert(image, 3)
    except Exception as error:  # whatever a damaged file makes its decoder raise
        told = str(error).replace(f" {str(path)!r}", "")  # which is named anyway
        told = told.splitlines()[0] if told else type(error).__name__
        needs = NEEDS.get(path.suffix.lower())
        return f"{told}; {needs}" if needs else told
    return ""
