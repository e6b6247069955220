"""Pictures as a model takes them: deep ones, transparent ones, and those with spoilt notes."""

import itertools
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from manifold_mixup._progress import untracked
from manifold_mixup.cli import main
from manifold_mixup.data import ImageSet, Split, find_damaged, load_data, open_image
from manifold_mixup.runs import find_images

# Every level from black to white.
SHADES = np.arange(256).reshape(16, 16)


def levels(file: Path, channels: int = 1) -> np.ndarray:
    """What a model is shown."""
    return np.asarray(open_image(file, channels)).astype(int)


def save_pgm(file: Path, shades: np.ndarray, most: int) -> None:
    """A grey picture of two bytes a pixel."""
    height, width = shades.shape
    file.write_bytes(f"P5 {width} {height} {most}\n".encode() + shades.astype(">u2").tobytes())


def save_deep_png(file: Path, shades: np.ndarray) -> None:
    """A PNG of 16 bits of each colour, which Pillow does not write."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[shades.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in shades)
    header = struct.pack(">2I5B", shades.shape[1], shades.shape[0], 16, kind, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    told = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(told))


def save_twelve_bits(file: Path) -> None:
    """A TIFF of 12 bits a pixel, two in three bytes, of 16 times every level."""
    flat = (SHADES * 16 + 15).ravel().tolist()
    bits = "".join(f"{level:012b}" for level in flat)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16)]
    tags.append((279, len(data)))
    entries = b"".join(struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in tags)
    table = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    file.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table)


def save_array(file: Path, shades: np.ndarray) -> None:
    """As Pillow stores an array."""
    Image.fromarray(shades).save(file)


def with_colours(shades: np.ndarray, channels: int) -> np.ndarray:
    """The same grey in every channel."""
    return np.repeat(shades[..., None], channels, axis=2)


KEPT: dict[str, Callable[[Path], None]] = {
    "unit float.tif": lambda file: save_array(file, (SHADES / 255).astype("float32")),
    "whole float.tif": lambda file: save_array(file, SHADES.astype("float32")),
    "int32.tif": lambda file: save_array(file, SHADES.astype("int32")),
    "uint16.tif": lambda file: save_array(file, (SHADES * 257).astype("uint16")),
    "12 bits.tif": save_twelve_bits,
    "uint16.png": lambda file: save_array(file, (SHADES * 257).astype("uint16")),
    "16 bits.pgm": lambda file: save_pgm(file, SHADES * 257, 65535),
    "12 bits.pgm": lambda file: save_pgm(file, SHADES * 16, 4080),
    "16 bits, colours.png": lambda file: save_deep_png(file, with_colours(SHADES * 257, 3)),
}
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "12 in 16 bits.png": (
        lambda file: save_array(file, (SHADES * 16).astype("uint16")),
        "brightest level is 4080 of 65535",
    ),
    "12 in 16 bits.tif": (
        lambda file: save_array(file, (SHADES * 16).astype("uint16")),
        "brightest level is 4080 of 65535",
    ),
    "12 in 16 bits.pgm": (
        lambda file: save_pgm(file, SHADES * 16, 65535),
        "brightest level is 4080 of 65535",
    ),
    "12 in 16 bits, colours.png": (
        lambda file: save_deep_png(file, with_colours(SHADES * 16, 3)),
        "brightest level is 3840 of 65535",
    ),
    "8 in 16 bits.png": (
        lambda file: save_array(file, SHADES.astype("uint16")),
        "brightest level is 255 of 65535",
    ),
    "int32.tif": (
        lambda file: save_array(file, (SHADES * 257).astype("int32")),
        "levels are 0 to 65535 in 32 bits",
    ),
    "negative.tif": (
        lambda file: save_array(file, (SHADES - 128).astype("int32")),
        "levels are -128 to 127 in 32 bits",
    ),
    "overshot.tif": (
        lambda file: save_array(file, (SHADES / 250).astype("float32")),
        "levels are 0 to 1.02 in floating point, expected 0 to 1",
    ),
    "wide float.tif": (
        lambda file: save_array(file, (SHADES * 257).astype("float32")),
        "levels are 0 to 65535 in floating point, expected 0 to 1",
    ),
    "nan.tif": (
        lambda file: save_array(file, np.where(SHADES, 0.5, np.nan).astype("float32")),
        "levels are nan to nan in floating point",
    ),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_are_kept(tmp_path: Path, name: str, channels: int) -> None:
    """Whatever they are stored in, black is black, white is white, and all between as they are."""
    KEPT[name](tmp_path / name)

    found = levels(tmp_path / name, channels)

    assert (found == (SHADES if channels == 1 else with_colours(SHADES, 3))).all()
    assert not find_damaged([tmp_path / name])


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_white_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """Before anything runs, by all that read images; or left out, where that is asked for."""
    save, message = REFUSED[name]
    for number, place in enumerate(["ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png"]):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        save_array(tmp_path / place, SHADES.astype("uint8") + np.uint8(number))
    file = tmp_path / "ant" / name
    save(file)

    with pytest.raises(ValueError, match=message) as caught:
        load_data(tmp_path)
    assert str(file) in str(caught.value)
    with pytest.raises(ValueError, match=message):
        find_images([file], skip_damaged=False, track=untracked)
    with pytest.raises(ValueError, match=f"{file}: its .*{message}"):
        open_image(file, 1)
    assert load_data(tmp_path, skip_damaged=True).damaged.keys() == {f"ant/{name}"}


@pytest.mark.parametrize("level", [0, 4096, 30000])
def test_deep_dark_pictures_are_taken(tmp_path: Path, level: int) -> None:
    """An all black one, and one whose levels need more than 12 bits."""
    save_array(tmp_path / "x.png", np.full((4, 4), level, "uint16"))

    assert (levels(tmp_path / "x.png") == level // 257).all()


# Transparency


def shown(picture: Image.Image) -> np.ndarray:
    """What one sees of a picture on white paper, by hand."""
    rgba = np.asarray(picture.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_transparency_hides_is_not_seen(tmp_path: Path, mode: str, channels: int) -> None:
    """Two pictures that look alike are alike for the model, whatever colours lie under them."""
    key = {"RGB": (9, 9, 9), "L": 9, "P": 9}.get(mode)  # the colour that is not to be seen
    rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), "uint8")
    rgba[:4, :, 3] = 0
    picture = Image.fromarray(rgba)
    picture = picture.convert(mode) if key is None else picture.convert("RGB").convert(mode)
    if key is not None:
        picture.paste(key, (0, 0, 8, 4))
    file = tmp_path / ("x.tif" if mode == "PA" else "x.png")
    picture.save(file, **({} if key is None else {"transparency": key}))

    found = levels(file, channels).reshape(8, 8, -1)

    with Image.open(file) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = shown(opened)
    assert (found[:4] == 255).all()
    if channels == 3:
        assert np.abs(found - wanted).max() <= 1


def test_opaque_pictures_are_as_they_were() -> None:
    """To the bit, with an alpha channel or without."""
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
    plain = Image.fromarray(rgb)
    opaque = plain.copy()
    opaque.putalpha(255)

    for channels, mode in ((1, "L"), (3, "RGB")):
        for picture in (plain, opaque):
            assert (np.asarray(open_image(picture, channels)) == plain.convert(mode)).all()


# Notes of cameras


def save_noted(file: Path, exif: bytes) -> Image.Image:
    """A picture with a note, and the picture."""
    picture = Image.fromarray(np.arange(8 * 6 * 3, dtype="uint8").reshape(6, 8, 3))
    picture.save(file, exif=exif)
    return picture


SPOILT = {
    "header": b"Exif\0\0XXXX" + bytes(20),
    "cut short": b"Exif\0\0II*\0\x08\0\0\0\x05\0",
    "elsewhere": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "empty": b"Exif\0\0",
    "no number": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0x\0\0\0\0\0\0\0",
    "unknown": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore:.*Corrupt EXIF data")  # of Pillow
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_spoilt_note_leaves_a_picture_as_it_is(tmp_path: Path, spoilt: str, ending: str) -> None:
    """It is no less a picture, and passes the check."""
    file = tmp_path / f"x.{ending}"
    save_noted(file, SPOILT[spoilt])
    plain = tmp_path / f"plain.{ending}"
    save_noted(plain, b"")

    assert (levels(file, 3) == levels(plain, 3)).all()
    assert not find_damaged([file])


@pytest.mark.parametrize("turn", range(1, 9))
def test_spoilt_tag_beside_the_turn_does_no_harm(tmp_path: Path, turn: int) -> None:
    """A signed length where an unsigned one belongs, which Pillow reads but cannot write."""
    signed = struct.pack("<HHIi", 0x0100, 9, 1, -5)
    orientation = struct.pack("<HHIHxx", 0x0112, 3, 1, turn)
    note = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + signed + orientation + bytes(4)
    picture = save_noted(tmp_path / "x.png", note)
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.save(tmp_path / "good.png", exif=exif)

    with Image.open(tmp_path / "good.png") as good:
        wanted = np.asarray(ImageOps.exif_transpose(good))
    assert (levels(tmp_path / "x.png", 3) == wanted).all()
    assert not find_damaged([tmp_path / "x.png"])


# Everywhere


def test_all_commands_see_the_same_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Odd ones of a data set are trained on, evaluated and predicted as their plain twins are."""
    rng, plain, odd = np.random.default_rng(0), tmp_path / "plain", tmp_path / "odd"
    for number, name in itertools.product(range(6), ("dark", "light")):
        shades = rng.integers(0, 128, (8, 8)) + (128 if name == "light" else 0)
        for folder in (plain, odd):
            (folder / name).mkdir(parents=True, exist_ok=True)
        save_array(plain / name / f"{number}.png", shades.astype("uint8"))
        file = odd / name / f"{number}.png"
        if number % 3 == 0:
            save_noted_grey(file, shades)
        elif number % 3 == 1:
            save_array(file, (shades * 257).astype("uint16"))
        else:
            save_deep_png(file, with_colours(shades * 257, 3))

    found = []
    for folder in (plain, odd):
        words = [
            str(folder),
            "--model",
            "digits",
            "--output",
            str(tmp_path / f"run {folder.name}"),
        ]
        assert main(["train", *words, "--json"]) == 0
        trained = capsys.readouterr().out
        assert main(["evaluate", *words[:1], "--run", words[-1], "--json"]) == 0
        measured = capsys.readouterr().out
        assert main(["predict", *words[:1], "--run", words[-1], "--json"]) == 0
        predicted = capsys.readouterr().out
        found.append(
            [
                x.replace(str(folder), "").replace(words[-1], "")
                for x in (trained, measured, predicted)
            ]
        )
    assert found[0] == found[1]


def save_noted_grey(file: Path, shades: np.ndarray) -> None:
    """A transparent-looking, fully opaque picture with a spoilt note."""
    picture = Image.fromarray(shades.astype("uint8")).convert("RGBA")
    picture.save(file, exif=SPOILT["header"])


def test_image_set_shows_what_a_path_shows(tmp_path: Path) -> None:
    """A path and the picture that was opened from it are the same to a model."""
    for name, save in KEPT.items():
        save(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            part = Split([tmp_path / name, opened], [0, 0], ["a", "b"])
            one, other = (ImageSet(part, np.asarray, 3)[i][0] for i in range(2))
        assert (one == other).all()
