"""CSV files of paths and labels: what they say, and every way in which they may be wrong."""

import re
from pathlib import Path

import pytest
from PIL import Image

from manifold_mixup.cli import main
from manifold_mixup.data import ImageSet, LabelledImages, Split, load_data, split_images
from manifold_mixup.data.csv_file import list_csv

NAMES = [f"{name}.png" for name in "abcdefgh"]


def write(folder: Path, text: str, names: list[str] = NAMES) -> Path:
    """A CSV file beside some pictures, in a folder called pictures."""
    for name in names:
        (folder / "pictures").mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(folder / "pictures" / name)
    file = folder / "list.csv"
    file.write_text(text)
    return file


def listed(folder: Path, *rows: str, task: str | None = None) -> LabelledImages:
    """What a file says that lists the pictures in order with these labels."""
    lines = [f"pictures/{name},{row}" for name, row in zip(NAMES, rows, strict=False)]
    return list_csv(write(folder, "\n".join(["path,label", *lines])), task)


# What labels are taken for


def test_one_label_a_row_is_a_class(tmp_path: Path) -> None:
    """Classes are in order, and sources are files below the folder of the CSV file."""
    data = listed(tmp_path, "cat", "ant", "cat")

    train = data.parts["train"]
    assert (data.task, data.classes, train.targets) == ("classes", ["ant", "cat"], [1, 0, 1])
    assert train.names == ["pictures/a.png", "pictures/b.png", "pictures/c.png"]
    assert train.sources == [tmp_path / name for name in train.names]


def test_several_labels_a_row_are_zeros_and_ones(tmp_path: Path) -> None:
    """A cell may hold several labels, or none, with spaces around them."""
    data = listed(tmp_path, "dog; cat", "", "cat", "ant;")

    assert (data.task, data.classes) == ("labels", ["ant", "cat", "dog"])
    assert data.parts["train"].targets == [[0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_decimal_commas_are_no_classes(tmp_path: Path) -> None:
    """Numbers of a spreadsheet in many countries; as names of classes they must be asked for."""
    with pytest.raises(ValueError, match="line 2: label '1,5' has a decimal comma; write 1.5"):
        listed(tmp_path, '"1,5"', "2", '"-0,25"')

    assert listed(tmp_path, '"1,5"', "2", task="classes").classes == ["1,5", "2"]
    assert listed(tmp_path, '"1,5"', "cat").classes == ["1,5", "cat"]


def test_a_path_on_several_rows_has_all_their_labels(tmp_path: Path) -> None:
    """However the path is written."""
    text = "path,label\npictures/a.png,cat\npictures/b.png,cat\n./pictures/../pictures/a.png,ant\n"
    data = list_csv(write(tmp_path, text))

    assert (data.task, data.parts["train"].names) == (
        "labels",
        ["pictures/a.png", "pictures/b.png"],
    )
    assert data.parts["train"].targets == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("rows", "task", "targets"),
    [
        (["1.5", "2", "-3e2"], "values", [[1.5], [2], [-300]]),
        (["1.5;2", "2;3"], "values", [[1.5, 2], [2, 3]]),
        (["1", "2", "1"], "classes", [0, 1, 0]),
        (["1;2", "2"], "labels", [[1, 1], [0, 1]]),
    ],
)
def test_numbers_are_values_unless_they_count(
    tmp_path: Path, rows: list[str], task: str, targets: list[object]
) -> None:
    """A number that is not whole tells values; a few whole ones are names."""
    data = listed(tmp_path, *rows)

    assert (data.task, data.parts["train"].targets) == (task, targets)
    assert data.why


@pytest.mark.parametrize(("different", "task"), [(20, "classes"), (21, "values")])
def test_many_different_whole_numbers_are_values(
    tmp_path: Path, different: int, task: str
) -> None:
    """Up to 20 are classes."""
    names = [f"{i}.png" for i in range(different)]
    rows = [f"pictures/{name},{i}" for i, name in enumerate(names)]
    file = write(tmp_path, "\n".join(["path,label", *rows]), names)

    assert list_csv(file).task == task


@pytest.mark.parametrize(
    ("task", "classes", "targets"),
    [
        ("classes", ["1", "2"], [0, 1, 0]),
        ("labels", ["1", "2"], [[1, 0], [0, 1], [1, 0]]),
        ("values", ["value"], [[1], [2], [1]]),
    ],
)
def test_the_user_has_the_last_word(
    tmp_path: Path, task: str, classes: list[str], targets: list[object]
) -> None:
    """The same rows are read as any of the three, if that is said; nothing is explained then."""
    data = listed(tmp_path, "1", "2", "1", task=task)

    assert (data.task, data.classes, data.why) == (task, classes, "")
    assert data.parts["train"].targets == targets


def test_file_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """A byte order mark, capitals, other columns, their order, blank lines and quotes."""
    text = '\ufeffID,Label,Path\r\n1,"a, b",pictures/a.png\r\n\r\n2,c,"pictures/b.png"\r\n'
    file = write(tmp_path, "")
    file.write_bytes(text.encode())

    data = list_csv(file)

    assert data.classes == ["a, b", "c"]
    assert data.parts["train"].names == ["pictures/a.png", "pictures/b.png"]


# Parts


def test_split_column_gives_the_parts(tmp_path: Path) -> None:
    """In any case of letters; a file of test rows alone has a test part alone."""
    rows = "pictures/a.png,x,Train\npictures/b.png,y,val\npictures/c.png,x,TEST\n"
    data = list_csv(write(tmp_path, f"path,label,split\n{rows}"))
    test = list_csv(write(tmp_path, "path,label,split\npictures/c.png,x,test\n"))

    assert {name: part.names for name, part in data.parts.items()} == {
        "train": ["pictures/a.png"],
        "val": ["pictures/b.png"],
        "test": ["pictures/c.png"],
    }
    assert test.parts.keys() == {"test"}
    with pytest.raises(ValueError, match="has no train part"):
        split_images(test)


def numbered(task: str, targets: list[list[float]]) -> LabelledImages:
    """A data set without images."""
    n = len(targets)
    part = Split(list(range(n)), targets, [str(i) for i in range(n)])
    classes = [f"name {i}" for i in range(len(targets[0]))]
    return LabelledImages("numbers", classes, {"train": part}, task=task)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rare", [3, 4, 10])
def test_rare_labels_stay_in_training(seed: int, rare: int) -> None:
    """A fifth each is held out, disjoint; the rarest label is in training and keeps its share."""
    targets = [[1.0, float(i < rare)] for i in range(100)]
    parts = split_images(numbered("labels", targets), seed=seed)

    names = [name for part in parts.values() for name in part.names]
    assert sorted(map(int, names)) == list(range(100))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 60,
        "test": 20,
        "val": 20,
    }
    has = {name: sum(row[1] for row in part.targets) for name, part in parts.items()}
    assert has["train"] >= 1
    assert all(has[name] <= -(-rare // 4) + 1 for name in ("val", "test"))


def test_held_out_values_span_all_of_them() -> None:
    """Every tenth of the values gives two of each part, and the seed decides which."""
    data = numbered("values", [[float(i)] for i in range(100)])
    parts, other = (split_images(data, seed=seed) for seed in (0, 1))

    for name in ("val", "test"):
        tenths = [int(target // 10) for (target,) in parts[name].targets]
        assert all(1 <= tenths.count(tenth) <= 3 for tenth in range(10))
    assert split_images(data, seed=0) == parts
    assert parts["test"].names != other["test"].names


def test_label_without_enough_images_is_named() -> None:
    """Two images cannot be in three parts."""
    data = numbered("labels", [[1.0, float(i < 2)] for i in range(50)])

    with pytest.raises(ValueError, match="label 'name 1' has 2 images, need at least 3"):
        split_images(data)


@pytest.mark.parametrize(
    "rows", [["x,train", "y,test", "x,val"], ["x;y,train", "z,test", "x,val"]]
)
def test_class_of_the_test_part_alone_is_named(tmp_path: Path, rows: list[str]) -> None:
    """Nobody could learn it."""
    lines = [f"pictures/{name},{row}" for name, row in zip(NAMES, rows, strict=False)]
    data = list_csv(write(tmp_path, "\n".join(["path,label,split", *lines])))

    with pytest.raises(ValueError, match="no image of (class 'y'|label 'z') is left to train on"):
        split_images(data)


# As tensors


def test_image_set_gives_targets_as_tensors(tmp_path: Path) -> None:
    """Class indices as they are; labels and values as one tensor for each image."""
    labels = listed(tmp_path, "dog; cat", "")
    values = listed(tmp_path, "1.5", "1e300")

    def targets(data: LabelledImages) -> list[list[float]]:
        images = ImageSet(data.parts["train"], lambda image: image, 1)
        return [images[i][1].tolist() for i in range(len(images))]

    assert targets(labels) == [[1, 1], [0, 0]]
    assert targets(values) == [[1.5], [1e300]]


# What is wrong

GOOD = "pictures/a.png,cat\npictures/b.png,ant\n"
MISTAKES = {
    "empty": ("", None, "list.csv: is empty, expected a header path,label"),
    "header alone": ("path,label\n", None, "list.csv: lists no images"),
    "no header": (GOOD, None, "first line is 'pictures/a.png,cat'.*expected a header"),
    "column missing": (
        "path,size\n" + GOOD.replace(",", ",1,"),
        None,
        "more cells than the header",
    ),
    "no path": (f"path,label\n{GOOD},cat\n", None, "line 4: path '', expected one below"),
    "absolute": (f"path,label\n{GOOD}/etc/passwd,x\n", None, "line 4: path '/etc/passwd'"),
    "escaping": (
        f"path,label\npictures/../../a.png,x\n{GOOD}",
        None,
        r"line 2: path .*\.\./a.png'",
    ),
    "missing": (f"path,label\n{GOOD}pictures/z.png,x\n", None, "line 4: no such file 'pictures/z"),
    "folder": (f"path,label\n{GOOD}pictures,x\n", None, "line 4: no such file 'pictures'"),
    "cells": ("path,label\npictures/a.png,cat,dog\n", None, "line 2: has more cells"),
    "no label": (f"path,label\n{GOOD}pictures/c.png,\n", None, "line 4: no label, expected one"),
    "label left out": (f"path,label\n{GOOD}pictures/c.png\n", None, "line 4: no label"),
    "two labels": ("path,label\npictures/a.png,a;b\n", "classes", "line 2: 2 labels, expected"),
    "no labels": ("path,label\npictures/a.png,\n", "labels", "list.csv: no row has a label"),
    "not a number": ("path,label\npictures/a.png,1\npictures/b.png,x\n", "values", "line 3.*'x'"),
    "nan": ("path,label\npictures/a.png,1.5\npictures/b.png,nan\n", None, "line 3.*'nan'.*finite"),
    "infinite": ("path,label\npictures/a.png,inf\n", None, "line 2: label 'inf'.*finite"),
    "no value": ("path,label\npictures/a.png,1.5\npictures/b.png,\n", None, "line 3: 0 values"),
    "widths": ("path,label\npictures/a.png,1.5;2\npictures/b.png,1.5\n", None, "line 3: 1 values"),
    "mixed": (
        "path,label\npictures/a.png,1.5\npictures/b.png,x\n",
        None,
        "line 3.*no number.*--ta",
    ),
    "repeated": (f"path,label\n{GOOD}pictures/a.png,cat\n", None, "line 4.*repeats line 2"),
    "contradiction": (
        f"path,label\n{GOOD}pictures/a.png,dog\n",
        "classes",
        "line 4: 'pictures/a.png' has another label in line 2.*--task labels",
    ),
    "in two parts": (
        "path,label,split\npictures/a.png,x,train\npictures/a.png,y,test\n",
        None,
        "line 3: 'pictures/a.png' is in test, but in train in line 2",
    ),
    "split": (
        "path,label,split\npictures/a.png,x,fold1\n",
        None,
        "line 2: split 'fold1', expected",
    ),
    "no split": ("path,label,split\npictures/a.png,x,\n", None, "line 2: split '', expected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, mistake: str) -> None:
    """Where it is, what was expected and what came, in one line."""
    text, task, message = MISTAKES[mistake]
    file = write(tmp_path, text)

    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        list_csv(file, task)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    """A file of another encoding."""
    file = write(tmp_path, "")
    file.write_bytes("path,label\npictures/a.png,Käfer\n".encode("latin-1"))

    with pytest.raises(ValueError, match=r"list.csv: no readable CSV .*UTF-8"):
        list_csv(file)


def test_missing_file_and_wrong_task_are_told(tmp_path: Path) -> None:
    """A folder of class folders has classes only."""
    with pytest.raises(FileNotFoundError, match=r"no.csv: no such file \(expected a CSV"):
        load_data(tmp_path / "no.csv")
    with pytest.raises(ValueError, match="has classes, not values"):
        load_data(tmp_path, task="values")


def test_damaged_picture_of_a_list_is_named(tmp_path: Path) -> None:
    """Pictures are decoded before anything is trained, and left out on demand."""
    file = write(tmp_path, f"path,label\n{GOOD}pictures/c.png,cat;ant\n")
    (tmp_path / "pictures" / "b.png").write_text("no picture")

    with pytest.raises(ValueError, match=r"pictures/b.png: damaged"):
        load_data(file)
    data = load_data(file, skip_damaged=True)
    assert data.parts["train"].names == ["pictures/a.png", "pictures/c.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "colours"], "--task colours: choose one of classes, labels, values"),
        (["--loss", "hinge"], "--loss hinge: choose one of mse, huber"),
        (["--loss", "mse"], "--loss mse: is for values; .*list.csv has classes"),
        (["--task", "values"], "line 2: label 'cat', expected a finite number"),
        (["--task", "labels", "--label-smoothing", "0.1"], "is for classes, not for labels"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    """Status 2, before anything is computed, and no folder is left behind."""
    monkeypatch.chdir(tmp_path)
    labels = ["cat", "ant"] * 4
    rows = [f"pictures/{name},{label}\n" for name, label in zip(NAMES, labels, strict=True)]
    file = write(tmp_path, "".join(["path,label\n", *rows]))

    assert main(["train", str(file), "--model", "digits", *options]) == 2

    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
