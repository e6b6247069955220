"""Data sets: folders of class folders, parts, damaged pictures, sets known by name."""

import io
import os
import re
import shutil
import struct
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from manifold_mixup.data import (
    ImageSet,
    LabelledImages,
    Split,
    about_copies,
    find_damaged,
    load_data,
    open_image,
    split_images,
    walk_files,
)
from manifold_mixup.data import images as image_files
from manifold_mixup.models import load_backbone, model_transform

RED, BLUE = (250, 20, 30), (10, 20, 240)


def save_picture(file: Path, colour: tuple[int, int, int] = RED, **options: Any) -> Path:
    """A small picture of one colour, of the kind that its ending says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(file, **options)
    return file


def save_noise(file: Path) -> Path:
    """A JPEG of some kilobytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), "uint8")).save(file)
    return file


def save_classes(folder: Path, counts: dict[str, int]) -> Path:
    """A folder of class folders with so many pictures each."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            save_picture(folder / name / f"{number}.png")
    return folder


def counted(data: LabelledImages, part: str = "train") -> dict[str, int]:
    """The number of pictures of each class in a part."""
    counts = Counter(data.parts[part].targets)
    return {name: counts[index] for index, name in enumerate(data.classes)}


# Folders


def test_class_folders_are_the_classes(tmp_path: Path) -> None:
    """Each folder is a class, in the order of names, and each file in it a picture of it."""
    save_classes(tmp_path, {"cat": 3, "ant": 2, "Bee": 1})

    data = load_data(tmp_path)

    assert data.classes == ["Bee", "ant", "cat"]
    assert list(data.parts) == ["train"]
    assert counted(data) == {"Bee": 1, "ant": 2, "cat": 3}
    assert data.parts["train"].names[1] == "ant/0.png"
    assert data.parts["train"].sources[1] == tmp_path / "ant" / "0.png"


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (["train"], ["train"]),
        (["train", "test"], ["train", "test"]),
        (["train", "val"], ["train", "val"]),
        (["train", "valid", "test"], ["train", "val", "test"]),
        (["training", "validation"], ["train", "val"]),
        (["Train", "VAL", "Test"], ["train", "val", "test"]),
    ],
)
def test_folders_of_parts(tmp_path: Path, folders: list[str], parts: list[str]) -> None:
    """Above the class folders there may be the parts, under any of their usual names."""
    for count, name in enumerate(folders, 1):
        save_classes(tmp_path / name, {"ant": count, "cat": count})

    data = load_data(tmp_path)

    assert data.classes == ["ant", "cat"]
    assert [len(data.parts[part]) for part in parts] == [
        2 * count for count in range(1, len(parts) + 1)
    ]
    assert data.parts.keys() == set(parts)
    assert data.parts["train"].names[0] == f"{folders[0]}/ant/0.png"


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (["Training", "Testing"], ["train", "test"]),
        (["train", "dev", "eval"], ["train", "val", "test"]),
        (["train", "test", "eval"], ["train", "test", "val"]),
        (["train_set", "test_set"], ["train", "test"]),
        (["TrainingSet", "ValidationSet"], ["train", "val"]),
        (["trainset", "testset"], ["train", "test"]),
        (["train2017", "val2017"], ["train", "val"]),
        (["images-train", "images-test"], ["train", "test"]),
        (["seg_train", "seg_test"], ["train", "test"]),
        (["catsVsDogs_train", "catsVsDogs_valid"], ["train", "val"]),
        (["TRAIN", "DEV"], ["train", "val"]),
        (["val", "test"], ["val", "test"]),
        (["test"], ["test"]),
        (["eval"], ["test"]),
    ],
)
def test_parts_by_any_usual_name(tmp_path: Path, folders: list[str], parts: list[str]) -> None:
    """No part becomes a class or is dropped, and the run says which folder it took for which."""
    for count, name in enumerate(folders, 1):
        save_classes(tmp_path / name, {"ant": count, "cat": 1})

    data = load_data(tmp_path)

    assert data.classes == ["ant", "cat"]
    assert data.parts.keys() == set(parts)
    for count, (folder, part) in enumerate(zip(folders, parts, strict=True), 1):
        assert counted(data, part) == {"ant": count, "cat": 1}
        assert f"{folder}/ for {part}" in data.about[0]


def test_part_packed_in_a_folder_of_its_name(tmp_path: Path) -> None:
    """Some archives have `seg_train/seg_train/`; what is no part is left out, and named."""
    for name, count in (("seg_train", 2), ("seg_test", 1)):
        save_classes(tmp_path / name / name, {"ant": count, "cat": count})
    save_picture(tmp_path / "seg_pred" / "seg_pred" / "1.png")

    data = load_data(tmp_path)

    assert {name: len(part) for name, part in data.parts.items()} == {"train": 4, "test": 2}
    assert data.about == [
        "parts: seg_train/seg_train/ for train, seg_test/seg_test/ for test; left out: seg_pred/"
    ]


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["bus", "car", "train"], ["bus", "car", "train"]),
        (["valid", "invalid"], ["invalid", "valid"]),
        (["freight_train", "passenger_train"], ["freight_train", "passenger_train"]),
        (["pretest", "contest"], ["contest", "pretest"]),
    ],
)
def test_classes_with_words_for_parts(
    tmp_path: Path, names: list[str], classes: list[str]
) -> None:
    """A train among vehicles is a class, as are others that cannot be parts; the run says so."""
    save_classes(tmp_path, dict.fromkeys(names, 2))

    data = load_data(tmp_path)

    assert data.classes == classes
    assert counted(data) == dict.fromkeys(names, 2)
    assert data.about == [f"each folder is a class: {', '.join(classes)}"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["ant", "cat", "test"], "holds test/ beside ant/, cat/: parts, so that ant/, cat/ would"),
        (["ant", "cat", "test/ant", "test/cat"], "holds test/ beside ant/, cat/"),
        (["train/ant", "train/cat", "more"], "holds train/ beside more/"),
        (["train/ant", "train/cat", "eval/ant"], "eval/, which may be its val part, to choose"),
        (["trainA", "trainB", "testA", "testB"], "holds testA/, testB/, trainA/, trainB/: parts"),
        (["ant/train", "ant/test", "cat/train"], "ant: holds test/, train/; give it as DATA, or"),
        (["all/train/ant", "all/train/cat", "all/test/ant"], "all: holds test/, train/; give it"),
        (["train/ant", "train/cat", "dev/ant", "valid/ant"], "holds dev/ and valid/, which is"),
        (["train", "test"], "test: has 3 images but no class folders, so no labels"),
        (["val", "test"], "test: has 3 images but no class folders, so no labels"),
        (["train/ant", "train/cat", "test"], "test: has 3 images but no class folders, so no"),
    ],
)
def test_folders_to_be_read_in_two_ways_are_refused(
    tmp_path: Path, folders: list[str], message: str
) -> None:
    """What may be a part or a class is asked for, and no part is one without labels."""
    save_classes(tmp_path, dict.fromkeys(folders, 3))

    with pytest.raises(ValueError, match=re.escape(message)):
        load_data(tmp_path)


def test_parts_of_unknown_names_are_asked_for(tmp_path: Path) -> None:
    """Folders that all hold the same folders are classes, as before, but perhaps are parts."""
    save_classes(tmp_path, dict.fromkeys(["one/ant", "one/cat", "two/ant", "two/cat"], 2))

    data = load_data(tmp_path)

    assert data.classes == ["one", "two"]
    assert data.about[1] == (
        "each of them holds ant/, cat/: if these are the classes, call the folders above them "
        "train/, val/ and test/"
    )


def test_unlabelled_part_is_told_how_to_be_used(tmp_path: Path) -> None:
    """Its pictures can be predicted, or listed with their labels."""
    save_classes(tmp_path, {"train/ant": 1, "train/cat": 1, "test": 4})

    with pytest.raises(ValueError, match=r"test: has 4 images but .*`manifold-mixup predict`"):
        load_data(tmp_path)


def test_all_that_is_wrong_is_one_message(tmp_path: Path) -> None:
    """Nobody has to mend one thing only to hear of the next."""
    save_classes(tmp_path, {"train/ant": 1, "train/cat": 0, "train/elk": 0, "train/fox": 1})
    save_classes(tmp_path, {"val": 2, "test/ant": 0, "test/dog": 1, "test/cow": 1})
    only_text(tmp_path / "train" / "fox" / "x.png")

    with pytest.raises(ValueError, match="val: has 2 images but no class folders") as caught:
        load_data(tmp_path)

    for told in (
        "classes 'cat', 'elk' have no images to train on; add some or remove them",
        "test/dog: train has no such class",
        "test/cow: train has no such class",
        "part 'test' has no images",
        "train/fox/x.png: damaged image (cannot identify image file)",
    ):
        assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    """Neither of `val` and `valid` is silently left out."""
    for name in ("train", "val", "valid"):
        save_classes(tmp_path / name, {"ant": 1, "cat": 1})

    with pytest.raises(ValueError, match="holds val/ and valid/, which is its val part"):
        load_data(tmp_path)


def test_nested_pictures_count_for_the_outer_class(tmp_path: Path) -> None:
    """Folders inside a class folder only sort its pictures."""
    save_classes(tmp_path, {"ant": 1, "cat": 1})
    save_picture(tmp_path / "cat" / "2024" / "may" / "x.jpg")

    data = load_data(tmp_path)

    assert counted(data) == {"ant": 1, "cat": 2}
    assert "cat/2024/may/x.jpg" in data.parts["train"].names


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    """What systems leave behind is neither a class nor a picture; the run says what it left."""
    save_classes(tmp_path, {"ant": 1, "cat": 1, "__MACOSX": 1, ".git": 1, "@eaDir": 1})
    save_picture(tmp_path / "ant" / "._0.png")
    for name in (".thumbnails", "Thumbnails"):
        save_picture(tmp_path / "ant" / name / "0.png")
    save_picture(tmp_path / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "ant" / name).touch()

    data = load_data(tmp_path)

    assert counted(data) == {"ant": 1, "cat": 1}
    assert data.ignored == []
    left = ["__MACOSX", ".git", "@eaDir", "ant/._0.png", "ant/.thumbnails", "ant/.DS_Store"]
    left += ["cat/.ipynb_checkpoints", "ant/Thumbs.db", "ant/desktop.ini", "ant/Thumbnails"]
    assert sorted(data.hidden) == sorted(left)
    assert "left out as hidden, or a system's own: " in data.about[-1]


def test_names_that_begin_with_underscores_count(tmp_path: Path) -> None:
    """Two underscores hide nothing: neither a class nor a picture."""
    save_classes(tmp_path, {"ant": 1, "__background": 2})
    save_picture(tmp_path / "ant" / "__0.png")

    data = load_data(tmp_path)

    assert counted(data) == {"__background": 2, "ant": 2}
    assert data.hidden == data.ignored == []


def test_accents_written_in_two_ways_are_one_class(tmp_path: Path) -> None:
    """A folder named on one system is the class of that name on another, beside it or in test."""
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert one != other
    save_classes(tmp_path, {f"train/{one}": 2, f"train/{other}": 3, "train/bar": 1})
    save_classes(tmp_path, {f"test/{other}": 4, "test/bar": 1})

    data = load_data(tmp_path)

    assert data.classes == ["bar", one]
    assert counted(data) == {"bar": 1, one: 5}
    assert counted(data, "test") == {"bar": 1, one: 4}


def test_classes_alike_but_for_their_case_are_told(tmp_path: Path) -> None:
    """They may be one, so the run asks."""
    save_classes(tmp_path, {"daisy": 1, "DAISY": 1, "rose": 1})

    assert load_data(tmp_path).about[1] == (
        "classes 'DAISY' and 'daisy' differ in upper and lower case alone: are they one?"
    )


def test_loose_pictures_are_told(tmp_path: Path) -> None:
    """A picture beside the class folders has no class: it is left out, with a word."""
    save_classes(tmp_path, {"train/ant": 1, "train/cat": 1})
    for name in ("x.png", "train/y.png"):
        save_picture(tmp_path / name)
    (tmp_path / "labels.csv").touch()

    data = load_data(tmp_path)

    assert len(data.parts["train"]) == 2
    assert data.ignored == ["labels.csv"]
    assert "2 images beside class folders left out (train/y.png, …)" in data.about


def test_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures do not vanish."""
    save_classes(tmp_path, {"ant": 1, "cat": 1, "cat/closed": 1})
    scan = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="cat/closed"):
        load_data(tmp_path)


def test_other_files_are_named_as_ignored(tmp_path: Path) -> None:
    """Files with other endings are no pictures, and said to be left out."""
    save_classes(tmp_path, {"ant": 1, "cat": 1})
    (tmp_path / "ant" / "notes.txt").write_text("an ant")
    (tmp_path / "cat" / "deep").mkdir()
    (tmp_path / "cat" / "deep" / "film.mp4").touch()

    data = load_data(tmp_path)

    assert counted(data) == {"ant": 1, "cat": 1}
    assert data.ignored == ["ant/notes.txt", "cat/deep/film.mp4"]


def test_files_that_need_something_installed_say_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos of telephones are not left out without a word on how to read them."""
    monkeypatch.setattr("manifold_mixup.data.images.find_spec", lambda name: None)
    save_classes(tmp_path, {"ant": 1, "cat": 1})
    for name in ("x.heic", "y.HEIC", "z.txt"):
        (tmp_path / "ant" / name).touch()

    told = "not taken for images, by their endings: .heic: 2 (pip install pillow-heif), .txt: 1"
    assert told in load_data(tmp_path).about


def test_photos_of_telephones_are_read_once_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the message says to install is used, with nothing else to do."""
    for name in ("EXTENSION", "OPEN"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', PngImagePlugin.PngImageFile)\n"
        "    Image.register_extension('HEIF', '.heic')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save_classes(tmp_path / "data", {"ant": 1, "cat": 1})
    save_picture(tmp_path / "x.png").rename(tmp_path / "data" / "ant" / "x.HEIC")

    forget = [image_files._endings.cache_clear, image_files._read_heif.cache_clear]
    try:
        for one in forget:
            one()
        data = load_data(tmp_path / "data")
    finally:
        for one in forget:
            one()
    assert counted(data) == {"ant": 2, "cat": 1}
    assert data.ignored == []


def test_photo_of_a_telephone_given_by_name_says_what_to_install(tmp_path: Path) -> None:
    """As a folder of them does."""
    file = only_text(tmp_path / "x.HEIC")

    assert find_damaged([file]) == {file: "cannot identify image file; pip install pillow-heif"}


@pytest.mark.parametrize(
    "ending", ["PNG", "Jpg", "JPEG", "bmp", "WebP", "tiff", "ppm", "jpe", "jfif", "gif", "tga"]
)
def test_endings_in_any_case(tmp_path: Path, ending: str) -> None:
    """Cameras write upper-case endings; all usual kinds of pictures count."""
    save_classes(tmp_path, {"ant": 1, "cat": 1})
    save_picture(tmp_path / "ant" / f"x.{ending}")

    data = load_data(tmp_path)

    assert counted(data)["ant"] == 2
    assert not data.ignored


def test_linked_pictures_count_once(tmp_path: Path) -> None:
    """Links are followed, but a link to a folder around it does not multiply the pictures."""
    save_classes(tmp_path / "data", {"ant": 2, "cat": 1})
    save_classes(tmp_path, {"elsewhere": 3})
    (tmp_path / "data" / "ant" / "again").symlink_to(tmp_path / "data" / "ant")
    (tmp_path / "data" / "ant" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "elsewhere")

    data = load_data(tmp_path / "data")

    assert counted(data) == {"ant": 2, "cat": 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "found 0 class folders, need at least 2 (expected {f}/<class>/<image>)"),
        (lambda f: save_picture(f / "x.png"), "found 0 class folders"),
        (lambda f: save_classes(f, {"ant": 3}), "found 1 class folder ('ant')"),
        (lambda f: save_classes(f / "train", {"ant": 3}), "{f}/train: found 1 class folder"),
        (lambda f: save_classes(f, {"ant": 3, "cat": 0}), "{f}: class 'cat' has no images"),
    ],
    ids=["nothing", "loose pictures", "one class", "one class in train", "empty class"],
)
def test_folder_without_two_filled_classes_is_refused(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    """A head needs two classes and a picture of each: the message names what is missing where."""
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)

    with pytest.raises(ValueError, match=re.escape(message.format(f=folder))):
        load_data(folder)


def test_missing_folder_is_named() -> None:
    """What is neither a folder nor a name is a missing folder."""
    with pytest.raises(FileNotFoundError, match="nowhere/pets: no such folder"):
        load_data("nowhere/pets")


def test_file_is_no_folder(tmp_path: Path) -> None:
    """A picture in place of a folder is refused by name."""
    file = save_picture(tmp_path / "cat.png")

    with pytest.raises(FileNotFoundError, match=r"cat\.png: no such folder"):
        load_data(file)


def test_class_that_train_does_not_have_is_refused(tmp_path: Path) -> None:
    """A class of the test part alone could never be right."""
    save_classes(tmp_path / "train", {"ant": 1, "cat": 1})
    save_classes(tmp_path / "test", {"ant": 1, "dog": 1})

    with pytest.raises(ValueError, match=r"test/dog: train has no such class \(it has ant, cat\)"):
        load_data(tmp_path)


def test_class_may_be_missing_in_another_part(tmp_path: Path) -> None:
    """A test part without one of the classes keeps the others' indices."""
    save_classes(tmp_path / "train", {"ant": 1, "cat": 1})
    save_classes(tmp_path / "test", {"cat": 2})

    data = load_data(tmp_path)

    assert counted(data, "test") == {"ant": 0, "cat": 2}


@pytest.mark.parametrize("name", ["val", "test"])
def test_empty_part_is_refused(tmp_path: Path, name: str) -> None:
    """A part that is there but has no pictures is a mistake, not a part that is not there."""
    save_classes(tmp_path / "train", {"ant": 1, "cat": 1})
    save_classes(tmp_path / name, {"ant": 0})

    with pytest.raises(ValueError, match=f"part '{name}' has no images"):
        load_data(tmp_path)


# Damaged pictures


def cut_short(file: Path) -> Path:
    """A JPEG whose second half never arrived."""
    content = save_noise(file.with_suffix(".jpg")).read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return file


def only_text(file: Path) -> Path:
    """Text with the ending of a picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("404: not found")
    return file


def nothing(file: Path) -> Path:
    """An empty file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def dead_link(file: Path) -> Path:
    """A link to a picture that is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(file.parent / "gone.png")
    return file


DAMAGES = {"x.jpg": cut_short, "x.png": only_text, "y.png": nothing, "z.bmp": dead_link}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.items())
def test_damaged_picture_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], Path]
) -> None:
    """One damaged picture among good ones is an error in one line that names it."""
    save_classes(tmp_path, {"ant": 2, "cat": 2})
    file = damage(tmp_path / "cat" / name)

    with pytest.raises(ValueError, match=f"{re.escape(str(file))}: damaged image") as caught:
        load_data(tmp_path)
    assert "--skip-damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_damaged_picture_is_left_out_on_demand(tmp_path: Path) -> None:
    """Asked to, the data set goes on without the damaged ones, and says which they are."""
    save_classes(tmp_path, {"ant": 2, "cat": 2})
    for name, damage in DAMAGES.items():
        damage(tmp_path / "cat" / name)

    data = load_data(tmp_path, skip_damaged=True)

    assert data.damaged.keys() == {f"cat/{name}" for name in DAMAGES}
    assert all(data.damaged.values())
    assert data.parts["train"].names == ["ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png"]
    assert data.parts["train"].targets == [0, 0, 1, 1]


def test_several_damaged_pictures_are_counted(tmp_path: Path) -> None:
    """The error says how many there are, and names the first five of them."""
    save_classes(tmp_path, {"ant": 1, "cat": 1})
    for number in range(7):
        only_text(tmp_path / "ant" / f"x{number}.png")

    with pytest.raises(ValueError, match="^7 damaged images: .* and 2 more; --skip") as caught:
        load_data(tmp_path)
    assert all(f"ant/x{number}.png (cannot" in str(caught.value) for number in range(5))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ("train/cat", "class 'cat' has only damaged images"),
        ("test/cat", "part 'test' has only damaged images"),
    ],
)
def test_leaving_out_must_leave_something(tmp_path: Path, spoilt: str, message: str) -> None:
    """Without any good picture of a class, or of a part, there is nothing to go on with."""
    save_classes(tmp_path, {"train/ant": 1, "train/cat": 1, "test/cat": 1})
    only_text(tmp_path / spoilt / "0.png")

    with pytest.raises(ValueError, match=message):
        load_data(tmp_path, skip_damaged=True)


def test_check_shows_how_far_it_is(tmp_path: Path) -> None:
    """Every picture passes through the tracker, which is told their number."""
    save_classes(tmp_path, {"ant": 3, "cat": 4})
    seen: list[Any] = []

    def track(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        seen.append((total, description))
        for step in steps:
            seen.append(step)
            yield step

    load_data(tmp_path, track=track)

    assert seen[0] == (7, "check images")
    assert len(seen) == 8


# Copies


def test_copies_are_counted_and_named(tmp_path: Path) -> None:
    """By content: in several parts, under several classes, and in one of a class."""
    for number, name in enumerate(("a", "b", "c", "d", "e", "f")):
        save_picture(tmp_path / f"{name}.png", (number, 0, 0))
    places = {
        "a": ["train/ant/a.png", "test/ant/z.png"],
        "b": ["train/ant/b.png", "train/cat/b.png"],
        "c": ["train/cat/c.png", "train/cat/again/c.png", "train/cat/copy of c.png"],
        "d": ["train/ant/d.png", "val/cat/d.png"],
        "e": ["test/cat/e.png"],
        "f": ["val/ant/f.png"],
    }
    for name, goals in places.items():
        for goal in goals:
            (tmp_path / goal).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / f"{name}.png", tmp_path / goal)
        (tmp_path / f"{name}.png").unlink()
    data = load_data(tmp_path)

    assert about_copies(data, data.parts) == [
        "copies of one image in several parts, so that what is tested on is trained on: 2 "
        "(train/ant/a.png = test/ant/z.png, train/ant/d.png = val/cat/d.png)",
        "copies of one image with several labels: 2 "
        "(train/ant/b.png = train/cat/b.png, train/ant/d.png = val/cat/d.png)",
        "copies of one image in one part, where it counts more: 1 "
        "(train/cat/c.png = train/cat/copy of c.png = train/cat/again/c.png)",
    ]


def test_files_of_one_size_are_no_copies(tmp_path: Path) -> None:
    """Contents decide, not sizes; and files of different sizes are not read at all."""
    for name, colour in (("ant", RED), ("cat", BLUE)):
        save_picture(tmp_path / name / "0.bmp", colour)
    data = load_data(tmp_path)
    assert len({path.stat().st_size for path in data.parts["train"].sources}) == 1

    assert about_copies(data, data.parts) == []


def test_copies_that_may_be_dealt_apart_are_told(tmp_path: Path) -> None:
    """Where parts are still to be held out, a copy may come to be tested on."""
    save_classes(tmp_path, {"ant": 2})
    save_picture(tmp_path / "cat" / "0.png", BLUE)
    data = load_data(tmp_path)

    assert about_copies(data, data.parts) == [
        "copies of one image in one part, of which some is held out to test on: 1 "
        "(ant/0.png = ant/1.png)"
    ]
    dealt = {name: data.parts["train"].take([i]) for i, name in enumerate(("train", "test"))}
    assert "so that what is tested on is trained on: 1" in about_copies(data, dealt)[0]


# Pictures as a model takes them


def values(file: Path, channels: int) -> np.ndarray:
    """The picture's values, (height, width) or (height, width, 3)."""
    return np.asarray(open_image(file, channels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize(("channels", "wanted"), [(1, "L"), (3, "RGB"), (4, "RGB")])
def test_pictures_of_any_mode(tmp_path: Path, mode: str, channels: int, wanted: str) -> None:
    """Grey models get grey, all others RGB, whatever the picture was stored as; white is white."""
    file = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    Image.new("RGB", (6, 4), "white").convert(mode).save(file)

    image = open_image(file, channels)

    assert (image.mode, image.size) == (wanted, (6, 4))
    assert np.asarray(image).min() >= 254


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_a_pixel_are_scaled(tmp_path: Path, channels: int) -> None:
    """A grey picture with 65536 levels keeps its shades: the same as with 256 of them."""
    shades = np.arange(256, dtype="uint16").reshape(16, 16)
    Image.fromarray(shades * 257).save(tmp_path / "deep.png")
    Image.fromarray(shades.astype("uint8")).save(tmp_path / "plain.png")

    deep, plain = (values(tmp_path / name, channels) for name in ("deep.png", "plain.png"))

    assert (deep == plain).all()


def test_palette_with_transparent_colours_is_read_without_a_warning(tmp_path: Path) -> None:
    """Colours are what the palette says, on white where they are transparent."""
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))

    half = [round((128 * level + 127 * 255) / 255) for level in BLUE]
    assert values(tmp_path / "x.png", 3).tolist() == [[[255] * 3, half]]


def test_turned_pictures_are_upright(tmp_path: Path) -> None:
    """A camera's note on how it was held is followed."""
    image = Image.new("RGB", (6, 4), "black")
    image.paste("white", (0, 0, 6, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "x.png", exif=exif)

    upright = values(tmp_path / "x.png", 1)

    assert upright.shape == (6, 4)
    assert (upright[:, 3] == 255).all()
    assert (upright[:, :3] == 0).all()


@pytest.mark.parametrize("ending", ["tiff", "webp", "png"])
def test_first_of_several_frames(tmp_path: Path, ending: str) -> None:
    """Of a moving picture the first frame counts, and its file does not stay open."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if ending == "webp" else {}
    file = tmp_path / f"x.{ending}"
    frames[0].save(file, save_all=True, append_images=frames[1:], **options)

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        first = values(file, 3)

    assert (first == RED).all()


def test_open_image_leaves_an_image_as_it_is() -> None:
    """A PIL image that is given, not a path, is neither changed nor closed."""
    image = Image.new("RGBA", (4, 4), (*RED, 40))

    open_image(image, 1)

    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (*RED, 40)


def test_damaged_ones_of_a_list(tmp_path: Path) -> None:
    """The check decodes to the end: half a JPEG is damaged, though its head says its size."""
    good, half = save_noise(tmp_path / "good.jpg"), cut_short(tmp_path / "half.jpg")

    damaged = find_damaged([good, half])

    assert damaged.keys() == {half}
    assert Image.open(io.BytesIO(half.read_bytes())).size == (64, 64)


def test_files_come_in_one_order(tmp_path: Path) -> None:
    """The order of files does not hang on the disk: by folder, then by name."""
    for name in ("b/2.png", "b/10.png", "a/1.png", "c.png"):
        save_picture(tmp_path / name)

    found = [path.relative_to(tmp_path).as_posix() for path in walk_files(tmp_path)]

    assert found == ["c.png", "a/1.png", "b/10.png", "b/2.png"]


def red(image: Any) -> Tensor:
    """The first value of a picture, a transform that other processes can have too."""
    return torch.tensor([float(np.asarray(image)[0, 0].max())])


@pytest.mark.parametrize("workers", [0, 2])
def test_image_set_in_a_loader(tmp_path: Path, workers: int) -> None:
    """A part is a data set of transformed pictures and class indices, in other processes too."""
    save_picture(tmp_path / "ant" / "0.png", RED)
    save_picture(tmp_path / "cat" / "0.png", BLUE)
    dataset = ImageSet(load_data(tmp_path).parts["train"], red, 3)

    batches = list(DataLoader(dataset, 1, num_workers=workers))

    assert [float(images) for images, _ in batches] == [250.0, 240.0]
    assert [int(target) for _, target in batches] == [0, 1]


def test_transform_is_the_model_s_own() -> None:
    """The built-in model gets (1, 32, 32), scaled to [-1, 1] as in its pretraining."""
    transform = model_transform("digits", load_backbone("digits", weights="none"))

    black, white = (transform(Image.new("L", (8, 8), level)) for level in (0, 255))

    assert black.shape == white.shape == (1, 32, 32)
    assert torch.equal(black, torch.full_like(black, -1))
    assert torch.equal(white, torch.ones_like(white))


# Parts


def numbered(targets: list[int], start: int = 0) -> Split:
    """A part of numbers in place of pictures."""
    numbers = range(start, start + len(targets))
    return Split(numbers, targets, [str(number) for number in numbers])


def of_classes(*counts: int) -> list[int]:
    """Class indices, so many of each class in turn."""
    return [index for index, count in enumerate(counts) for _ in range(count)]


def as_data(*counts: int, **parts: Split) -> LabelledImages:
    """A data set with so many training pictures of each class."""
    names = [f"class {index}" for index in range(len(counts))]
    return LabelledImages("numbers", names, {"train": numbered(of_classes(*counts)), **parts})


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    seed=st.integers(0, 2**31),
    has=st.sets(st.sampled_from(["val", "test"])),
)
def test_split_is_disjoint_complete_and_stratified(
    counts: list[int], seed: int, has: set[str]
) -> None:
    """Whatever is held out leaves train and nothing else; each class keeps its share in train, as
    far as an image of every class, however small, in every part allows.
    """
    given_parts = {name: numbered([0, 1], 10_000) for name in has}
    data = as_data(*counts, **given_parts)

    parts = split_images(data, seed=seed)

    assert parts.keys() == {"train", "val", "test"}
    drawn = [parts[name] for name in ("train", "val", "test") if name not in has]
    names = [name for part in drawn for name in part.names]
    assert sorted(names) == sorted(data.parts["train"].names)
    assert all(data.parts["train"].targets[n] == t for p in drawn for n, t in pairs(p))
    assert all(parts[name] is given_parts[name] for name in has)
    kept, share = Counter(parts["train"].targets), len(parts["train"]) / sum(counts)
    for index, count in enumerate(counts):
        assert kept[index] >= 1
        assert abs(kept[index] - share * count) < 1 + len(counts)


def pairs(part: Split) -> Iterable[tuple[int, int]]:
    """Number and class of each."""
    assert list(part.sources) == [int(name) for name in part.names]
    return zip(part.sources, part.targets, strict=True)


def test_a_fifth_is_held_out_for_each_missing_part() -> None:
    """Of 100 pictures, 20 are for test, 20 for validation, each class with its share."""
    parts = split_images(as_data(60, 40))

    assert {name: len(part) for name, part in parts.items()} == {
        "train": 60,
        "val": 20,
        "test": 20,
    }
    assert Counter(parts["val"].targets) == Counter(parts["test"].targets) == {0: 12, 1: 8}


def test_seed_decides_the_split() -> None:
    """One seed, one split; another seed, another one."""
    data = as_data(30, 30)

    first, again, other = (split_images(data, seed=seed)["test"].names for seed in (0, 0, 1))

    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("has", "need", "missing"),
    [([], 3, "test and val"), (["test"], 2, "val"), (["val"], 2, "test")],
)
def test_class_with_too_few_pictures_is_named(has: list[str], need: int, missing: str) -> None:
    """Each class needs a picture for training and one for each part that is held out."""
    parts = {name: numbered([0, 1], 10_000) for name in has}
    message = f"numbers: class 'class 1' has {need - 1} images, need at least {need} to hold some "

    with pytest.raises(ValueError, match=re.escape(f"{message}out for {missing}")):
        split_images(as_data(20, need - 1, **parts))
    assert Counter(split_images(as_data(20, need, **parts))["train"].targets)[1] >= 1


def test_all_classes_with_too_few_pictures_are_named() -> None:
    """The rarest first."""
    message = "numbers: class 'class 2' has 1 images, 'class 1' has 2 images, need at least 3 to"

    with pytest.raises(ValueError, match=message):
        split_images(as_data(20, 2, 1))


def test_given_parts_are_kept_whole() -> None:
    """Nothing is drawn where DATA has all parts, not even from a class with one picture."""
    data = as_data(1, 1, val=numbered([0], 100), test=numbered([1], 200))

    assert split_images(data, seed=3) == data.parts


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(5, 40), min_size=2, max_size=6), deal=st.integers(0, 1000))
def test_five_seeds_test_on_every_picture_once(counts: list[int], deal: int) -> None:
    """Of five in a row from a multiple of five each holds out another fold, of one size but for
    what does not divide; a val part of its own does not change that.
    """
    for parts in ({}, {"val": numbered([0, 1], 10_000)}):
        data = as_data(*counts, **parts)
        splits = [split_images(data, seed=5 * deal + number) for number in range(5)]

        tested = [name for split in splits for name in split["test"].names]
        assert sorted(tested) == sorted(data.parts["train"].names)
        for index, count in enumerate(counts):
            held = [Counter(split["test"].targets)[index] for split in splits]
            assert {*held} <= {count // 5, -(-count // 5)}


def test_folds_are_of_one_size() -> None:
    """What does not divide by five falls to another fold in each class."""
    sizes = [len(split_images(as_data(*[6] * 5), seed=seed)["test"]) for seed in range(5)]

    assert sizes == [6] * 5


def test_other_five_seeds_deal_other_folds() -> None:
    """Each five are a deal of their own."""
    data = as_data(30, 30)

    first, other = (split_images(data, seed=seed)["test"].names for seed in (0, 5))

    assert set(first) != set(other)


@settings(deadline=None, max_examples=60)
@given(
    tiny=st.lists(st.integers(2, 4), min_size=1, max_size=4),
    big=st.integers(5, 200),
    seed=st.integers(0, 40),
    has=st.sampled_from([None, "val", "test"]),
)
def test_tiny_classes_are_in_every_part(
    tiny: list[int], big: int, seed: int, has: str | None
) -> None:
    """A class of two to four pictures keeps one to train on and gives one to each part that is
    held out, whatever the seed.
    """
    tiny = tiny if has else [max(3, count) for count in tiny]
    data = as_data(big, *tiny, **({has: numbered([0], 10_000)} if has else {}))

    parts = split_images(data, seed=seed)

    for name in {"train", "val", "test"} - {has}:
        assert set(parts[name].targets) == set(range(1 + len(tiny)))


def test_take_keeps_order_and_belonging() -> None:
    """What is taken has its own class and name."""
    taken = numbered([5, 6, 7]).take([2, 0])

    assert (taken.targets, taken.names, list(taken.sources)) == ([7, 5], ["2", "0"], [2, 0])


# Sets known by name


def test_a_folder_called_as_the_built_in_set_is_given_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a command without DATA would train on what happens to lie there."""
    for name in ("cat", "dog"):
        for number in range(5):
            file = tmp_path / "digits" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(file)
    monkeypatch.chdir(tmp_path)

    assert load_data("digits").classes == ["5", "6", "7", "8", "9"]
    assert load_data("./digits").classes == ["cat", "dog"]


def test_digits_are_those_of_scikit_learn() -> None:
    """The built-in set has the digits 5 to 9, each in the shades of the original."""
    bunch = load_digits()
    chosen = bunch.target >= 5

    data = load_data("digits")

    part = data.parts["train"]
    assert data.classes == ["5", "6", "7", "8", "9"]
    assert len(part) == chosen.sum() == 896
    assert (np.array(part.targets) == bunch.target[chosen] - 5).all()
    shades = np.stack([np.asarray(image) for image in part.sources])
    assert np.abs(shades / 255 * 16 - bunch.images[chosen]).max() < 16 / 255
    assert len(set(part.names)) == 896


def save_idx(file: Path, array: np.ndarray) -> None:
    """Bytes in the format of MNIST."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype("uint8").tobytes())


def save_mnist(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A set of 12 training and 6 test pictures, stored as MNIST is."""
    parts = {}
    for name, n in (("train", 12), ("t10k", 6)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28))
        labels = np.arange(n) % 10
        save_idx(folder / f"{name}-images-idx3-ubyte", images)
        save_idx(folder / f"{name}-labels-idx1-ubyte", labels)
        parts["test" if name == "t10k" else name] = images, labels
    return parts


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_set_of_torchvision(tmp_path: Path, name: str, folder: str) -> None:
    """A set that lies below the root comes with its own parts, classes, targets and pictures."""
    expected = save_mnist(tmp_path / folder / "raw")

    data = load_data(f"torch/{name}", root=tmp_path)

    assert len(data.classes) == 10
    assert data.classes[9] == {"mnist": "9 - nine", "fashion_mnist": "Ankle boot"}[name]
    assert data.parts.keys() == expected.keys() == {"train", "test"}
    for part, (images, labels) in expected.items():
        assert data.parts[part].targets == labels.tolist()
        assert data.parts[part].names[5] == f"torch/{name}/{part}[5]"
        dataset = ImageSet(data.parts[part], lambda image: torch.tensor(np.asarray(image)), 1)
        assert all((np.asarray(dataset[i][0]) == image).all() for i, image in enumerate(images))


def test_set_with_several_labels_a_picture(tmp_path: Path) -> None:
    """QMNIST stores writers and pages beside each digit; the digit is the target."""
    folder = tmp_path / "QMNIST" / "raw"
    for name, n in (("train", 12), ("test", 6)):
        save_idx(folder / f"qmnist-{name}-images-idx3-ubyte", np.zeros((n, 28, 28)))
        labels = np.stack([np.arange(n) % 10] + [np.full(n, 77)] * 7, axis=1).astype(">i4")
        header = bytes([0, 0, 12, 2]) + struct.pack(">2I", n, 8)
        (folder / f"qmnist-{name}-labels-idx2-int").write_bytes(header + labels.tobytes())

    data = load_data("torch/qmnist", root=tmp_path)

    assert data.parts["train"].targets == [*range(10), 0, 1]
    assert data.parts["test"].targets == [*range(6)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hfids/x", "hfids/ sets are iterable, which is not supported"),
        ("tfds/mnist", "tfds/ sets are iterable, which is not supported"),
        ("wds/x", "wds/ sets are iterable, which is not supported"),
        ("torch/image_folder", "give the folder itself as DATA"),
        ("torch/folder", "give the folder itself as DATA"),
        ("torch/nope", "torch/nope: the train split cannot be loaded"),
        ("torch", "torch: which set? expected torch/NAME"),
        ("torch/", "which set? expected torch/NAME"),
        ("hfds", "hfds: which set? expected hfds/NAME"),
    ],
)
def test_name_that_stands_for_no_set_is_refused(tmp_path: Path, name: str, message: str) -> None:
    """A wrong name is one line that begins with it, and nothing is downloaded or made."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_data(name, root=tmp_path)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_set_of_torchvision_needs_a_root() -> None:
    """Where to find or store the set is never guessed."""
    with pytest.raises(ValueError, match="torch/mnist: say with --data-root where"):
        load_data("torch/mnist")


def test_missing_package_is_told_and_nothing_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the `datasets` package the error says what to install, and stdout stays empty."""
    monkeypatch.setattr("manifold_mixup.data.named.find_spec", lambda name: None)

    with pytest.raises(ValueError, match="hfds/x: needs the datasets package; pip install"):
        load_data("hfds/x")
    assert capsys.readouterr().out == ""


def test_damaged_set_is_one_line(tmp_path: Path) -> None:
    """Files of a named set that are cut short are an error that names the set."""
    save_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")

    with pytest.raises(ValueError, match="torch/mnist: the train split cannot be loaded"):
        load_data("torch/mnist", root=tmp_path)


def test_set_of_hugging_face(tmp_path: Path) -> None:
    """A set of the `datasets` package on disk comes with its splits, classes and pictures."""
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` package")
    for part in ("train", "test"):
        save_classes(tmp_path / "set" / part, {"ant": 2, "cat": 3})
    datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"

    data = load_data(f"hfds/{tmp_path / 'set'}", root=tmp_path / "cache")

    assert data.classes == ["ant", "cat"]
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 5, "test": 5}


@pytest.mark.shared
def test_flowers_split(shared: Path) -> None:
    """The real flowers keep their test part; a fifth of the rest is for validation."""
    parts = split_images(load_data(shared / "datasets" / "flowers5"))

    counts = {name: len(part) for name, part in parts.items()}
    assert counts == {"train": 808, "val": 202, "test": 340}
    assert not set(parts["train"].names) & set(parts["val"].names)
