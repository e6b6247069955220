"""CSV files as people have them: read as they are meant, or refused line by line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from manifold_mixup._progress import untracked
from manifold_mixup.cli import main
from manifold_mixup.data import LabelledImages, list_data, split_images
from manifold_mixup.data.csv_file import list_csv
from manifold_mixup.runs import CompareConfig
from manifold_mixup.runs.compare import list_compared

# What every file below means: the label of each picture, in the order of the rows.
TRUTH = {f"pictures/{name}{i}.png": name for i in range(8) for name in ("dark", "light")}
Render = Callable[[Path], "str | bytes"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of dark and light pictures."""
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    for name, label in TRUTH.items():
        shades = rng.integers(0, 120, (8, 8)) + (130 if label == "light" else 0)
        Image.fromarray(shades.astype("uint8")).save(tmp_path / "data" / name)
    return tmp_path / "data"


def table(
    header: str, row: Callable[[int, str, str], str] = lambda i, p, label: f"{p},{label}"
) -> str:
    """A file with a row for each picture, made of its number, path and label."""
    rows = [row(i, path, label) for i, (path, label) in enumerate(TRUTH.items())]
    return "\n".join([header, *rows, ""])


def part_of(i: int) -> str:
    """The first twelve pictures are to train on."""
    return "train" if i < 12 else "test"


PLAIN = table("path,label")
# How a file is rendered, and the options that it takes.
MESSY: dict[str, tuple[Render, dict[str, Any]]] = {
    "semicolons": (lambda at: PLAIN.replace(",", ";"), {}),
    "tabs": (lambda at: PLAIN.replace(",", "\t"), {}),
    "bars": (lambda at: PLAIN.replace(",", "|"), {}),
    "mark": (lambda at: b"\xef\xbb\xbf" + PLAIN.encode(), {}),
    "mark, semicolons": (lambda at: b"\xef\xbb\xbf" + PLAIN.replace(",", ";").encode(), {}),
    "wide text": (lambda at: PLAIN.replace(",", "\t").encode("utf-16"), {}),
    "note of a spreadsheet": (lambda at: "sep=;\n" + PLAIN.replace(",", ";"), {}),
    "old lines": (lambda at: PLAIN.replace("\n", "\r").encode(), {}),
    "capitals": (lambda at: table(" Path , LABEL "), {}),
    "spaces": (lambda at: PLAIN.replace(",", "  ,  "), {}),
    "quotes": (lambda at: table("path,label", lambda i, p, label: f'"{p}","{label}"'), {}),
    "usual names": (lambda at: table("filename,class"), {}),
    "any names": (lambda at: table("where,what"), {}),
    "numbered": (lambda at: table(",path,label", lambda i, p, x: f"{i},{p},{x}"), {}),
    "other columns": (
        lambda at: table("size,file,label,note", lambda i, p, x: f"{i},{p},{x},hm"),
        {},
    ),
    "an id called image": (
        lambda at: table("image,location,label", lambda i, p, x: f"x{i},{p},{x}"),
        {},
    ),
    "asked": (
        lambda at: table("a,b,c", lambda i, p, x: f"{x},{p},hm"),
        {"columns": ("B", "a")},
    ),
    "blank rows": (lambda at: PLAIN.replace("\n", "\n,\n\n") + ",,,\n", {}),
    "blank cells": (lambda at: table("path,label,,", lambda i, p, x: f"{p},{x},,,"), {}),
    "backslashes": (lambda at: PLAIN.replace("/", "\\"), {}),
    "dots": (lambda at: table("path,label", lambda i, p, x: f"./pictures/../{p},{x}"), {}),
    "whole paths": (lambda at: table("path,label", lambda i, p, x: f"{at / p},{x}"), {}),
    "no label": (lambda at: f"{PLAIN}pictures/dark0.png,\n", {"skip_unlabelled": True}),
    "nan": (
        lambda at: f"path,label\npictures/x.png,NaN\n{PLAIN.split(chr(10), 1)[1]}",
        {"skip_unlabelled": True},
    ),
}


def save(folder: Path, render: Render, name: str = "list.csv") -> Path:
    """Write a file into a folder."""
    content = render(folder)
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def labels_of(data: LabelledImages) -> dict[str, str]:
    """The label of every picture, by its name."""
    return {
        name: data.classes[target]
        for part in data.parts.values()
        for name, target in zip(part.names, part.targets, strict=True)
    }


@pytest.mark.parametrize("mess", MESSY)
def test_every_row_is_used_rightly(folder: Path, mess: str) -> None:
    """Each picture has its label, for all commands; what is left out is named by its line."""
    render, options = MESSY[mess]
    file = save(folder, render)

    data = list_data(file, **options)

    assert data.task == "classes"
    assert labels_of(data) == TRUTH
    assert data.parts.keys() == {"train"}
    assert data.parts["train"].sources == [folder / name for name in TRUTH]
    config = CompareConfig(data=str(file), **options)
    assert labels_of(list_compared(config, track=untracked)) == TRUTH
    if options.get("skip_unlabelled"):
        line = 18 if mess == "no label" else 2
        assert data.notes == [f"1 rows without a label left out (line {line})"]


@pytest.mark.parametrize("mess", ["semicolons", "any names", "usual names", "asked"])
def test_what_was_taken_for_what_is_told(folder: Path, mess: str) -> None:
    """With the option that takes another column; nothing is said of a plain file."""
    render, options = MESSY[mess]
    taken = {
        "any names": "'where', labels from 'what'",
        "usual names": "'filename', labels from 'class'",
        "asked": "'b', labels from 'a'",
        "semicolons": "'path', labels from 'label'",
    }[mess]

    assert list_data(save(folder, render), **options).notes == [
        f"paths are taken from column {taken}; --columns takes others"
    ]
    assert list_data(save(folder, lambda at: PLAIN)).notes == []


@pytest.mark.parametrize("name", ["list.tsv", "LIST.CSV"])
def test_endings_of_tables(folder: Path, name: str) -> None:
    """Tabs come under a name of their own, too."""
    file = save(folder, lambda at: PLAIN.replace(",", "\t"), name)

    assert labels_of(list_data(file)) == TRUTH


# Where pictures lie


@pytest.mark.parametrize(
    "path", ["../data/{}", "{root}/data/{}", "data/{}"], ids=["outside", "whole", "from there"]
)
def test_pictures_elsewhere_are_found_below_the_root(folder: Path, path: str) -> None:
    """Their names begin there, so that other commands know them; without it the remedy is told."""
    root = folder.parent
    (root / "lists").mkdir()
    told = [path.format(name, root=root) for name in TRUTH]
    file = save(
        root / "lists", lambda at: table("path,label", lambda i, p, x: f"{told[i]},{TRUTH[p]}")
    )

    data = list_data(file, root=root)
    assert labels_of(data) == {f"data/{name}": label for name, label in TRUTH.items()}
    assert data.parts["train"].sources == [root / "data" / name for name in TRUTH]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        list_data(file)
    assert ("--data-root" in str(caught.value)) == (path != "data/{}")
    assert "line 2" in str(caught.value)


def test_pictures_outside_of_the_root_are_refused(folder: Path) -> None:
    """A path may not lead anywhere."""
    file = save(folder, lambda at: table("path,label", lambda i, p, x: f"/etc/{p},{x}"))

    with pytest.raises(ValueError, match=f"expected one below {folder / 'pictures'}"):
        list_data(file, root=folder / "pictures")


def test_a_path_of_two_pictures_is_refused(folder: Path) -> None:
    """Below the root and below the file there may be one of the same name."""
    (folder / "lists" / "pictures").mkdir(parents=True)
    for name in TRUTH:
        (folder / "lists" / name).write_bytes((folder / name).read_bytes())
    file = save(folder / "lists", lambda at: PLAIN)

    with pytest.raises(ValueError, match=r"may be pictures/dark0.png or lists/pictures/dark0.png"):
        list_data(file, root=folder)


# Parts


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("split", ("train", "test")),
        ("set", ("Training", "TEST")),
        ("is_valid", ("False", "True")),
        ("IS_VALID", ("0", "1")),
    ],
)
def test_parts_are_known_by_their_names(folder: Path, column: str, cells: tuple[str, str]) -> None:
    """Whatever the column is called; what is valid is for validation, as fastai has it."""

    def row(i: int, path: str, label: str) -> str:
        return f"{path},{label},{cells[part_of(i) == 'test']}"

    data = list_data(save(folder, lambda at: table(f"fname,labels,{column}", row)))

    held = "val" if column.lower() == "is_valid" else "test"
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 12, held: 4}
    assert data.parts[held].names == list(TRUTH)[12:]
    assert labels_of(data) == TRUTH
    assert f"parts from '{column.lower()}'" in data.notes[0]


# What labels are


def cells(
    folder: Path, *labels: str, header: str = "path,label", **options: Any
) -> LabelledImages:
    """What a file says whose rows have these labels, in the order of the pictures."""
    rows = [f'{path},"{label}"' for path, label in zip(TRUTH, labels, strict=False)]
    return list_csv(save(folder, lambda at: "\n".join([header, *rows])), **options)


@pytest.mark.parametrize(
    ("separator", "one", "both"),
    [
        ("bar", "cat", "cat|tail"),
        ("comma", "cat", "cat, tail"),
        ("slash", "cat", "cat/tail"),
        ("space", "cat", "cat  tail"),
    ],
)
def test_other_separators_are_told_and_asked_for(
    folder: Path, separator: str, one: str, both: str
) -> None:
    """A class is what stands in the cell, unless it is said what stands between labels."""
    data = cells(folder, both, one, both)
    asked = cells(folder, both, one, both, label_separator=separator)

    assert (data.task, data.classes) == ("classes", sorted({one, both}))
    assert data.notes == [
        f"'{both}' in line 2 is taken for one label; --label-separator {separator} takes it for "
        "several"
    ]
    assert (asked.task, asked.classes) == ("labels", ["cat", "tail"])
    assert asked.parts["train"].targets == [[1, 1], [1, 0], [1, 1]]


def test_accents_stored_in_two_ways_are_one(folder: Path) -> None:
    """In labels, and in the names of files, which systems store in either."""
    for form in ("NFC", "NFD"):
        (folder / normalize(form, f"é{form}.png")).write_bytes(b"")
    rows = [
        f"{normalize(path, f'é{name}.png')},{normalize(label, 'café')}"
        for path, label, name in (("NFC", "NFD", "NFC"), ("NFC", "NFC", "NFD"))
    ]

    data = list_data(save(folder, lambda at: "\n".join(["path,label", *rows])))

    assert data.classes == [normalize("NFC", "café")]
    assert data.parts["train"].names == [
        normalize(form, f"é{form}.png") for form in ("NFC", "NFD")
    ]


def test_names_of_several_words_are_no_news(folder: Path) -> None:
    """A slash or a space stands in many a name."""
    assert not cells(folder, "golden retriever", "black labrador", "and/or").notes


def test_words_of_a_labels_column_are_told(folder: Path) -> None:
    """As fastai's, where a space stands between labels; too few images of a class say it, too."""
    data = cells(folder, "chair person", "person dog", header="fname,labels")

    assert "--label-separator space takes it for several" in data.notes[1]
    with pytest.raises(ValueError, match=r"class .* has 1 images.*--label-separator space"):
        split_images(data)


def test_numbers_with_a_semicolon_are_two_labels_unless_they_are_one(folder: Path) -> None:
    """It is said which option takes them for one, or for values."""
    data = cells(folder, "3;10", "3", "10")
    one = cells(folder, "3;10", "3", "10", label_separator="none")
    values = cells(folder, "3;10", "3;4", "10;1", task="values")

    assert (data.task, data.classes) == ("labels", ["10", "3"])
    assert "'3;10' in line 2, which --label-separator none takes for one" in data.why
    assert (one.task, one.classes) == ("classes", ["10", "3", "3;10"])
    assert values.parts["train"].targets == [[3, 10], [3, 4], [10, 1]]


def test_a_label_that_says_there_is_none_is_told(folder: Path) -> None:
    """It is a class, or left out where that is asked for."""
    data = cells(folder, "cat", "NA", "dog", "NA")
    asked = cells(folder, "cat", "NA", "dog", "NA", skip_unlabelled=True)

    assert "NA" in data.classes
    assert data.notes == [
        "'NA' is taken for a label (lines 3, 5); --skip-unlabelled leaves such rows out"
    ]
    assert asked.classes == ["cat", "dog"]
    assert asked.notes == ["2 rows without a label left out (lines 3, 5)"]


def test_left_out_rows_are_left_out_of_labels_and_values_too(folder: Path) -> None:
    """An empty cell is no label at all, unless rows of it are not wanted."""
    labels = [cells(folder, "a;b", "", "b", skip_unlabelled=skip) for skip in (False, True)]
    values = cells(folder, "1.5", "nan", "", "2", skip_unlabelled=True)

    assert [len(data.parts["train"]) for data in labels] == [3, 2]
    assert values.parts["train"].targets == [[1.5], [2]]


@pytest.mark.parametrize("extra", ["pictures/dark0.png,light", "pictures/dark0.png,dark;light"])
def test_one_row_makes_no_other_task(folder: Path, extra: str) -> None:
    """A contradiction among many classes is named, with the option that means it."""
    rows = PLAIN if ";" not in extra else PLAIN.replace("pictures/dark0.png,dark\n", "")
    line = rows.count("\n") + 1
    file = save(folder, lambda at: rows + extra)

    with pytest.raises(ValueError, match=rf"list.csv, line {line}: .*--task labels"):
        list_data(file)
    data = list_data(file, task="labels")
    targets = dict(zip(data.parts["train"].names, data.parts["train"].targets, strict=True))
    assert targets["pictures/dark0.png"] == [1, 1]
    assert sum(map(sum, targets.values())) == len(TRUTH) + 1


# What is refused


def test_all_wrong_rows_are_named_at_once(folder: Path) -> None:
    """So that they are mended at once."""
    text = f"{PLAIN}pictures/no.png,dark\n../x.png,dark\npictures/light0.png,light,more\n"
    file = save(folder, lambda at: text)
    with pytest.raises(ValueError, match=r"line 20: has more cells than the header"):
        list_data(file)
    file = save(folder, lambda at: text.replace(",more", ""))
    with pytest.raises(FileNotFoundError, match=r"line 18: no such file .*; line 19: path '../x"):
        list_data(file)


REFUSED = {
    "no header": (
        PLAIN.split("\n", 1)[1],
        r"first line is .*, which names an image; expected a he",
    ),
    "two labels": (
        table("path,class,target", lambda i, p, x: f"{p},{x},{x}"),
        r"which holds the labels, 'class' or 'target': --columns PATH,LABEL",
    ),
    "two paths": (
        table("a,b,label", lambda i, p, x: f"{p},{p},{x}"),
        r"which holds the paths of images, 'a' or 'b': --columns",
    ),
    "no label": (table("path", lambda i, p, x: p), r"expected a header of the columns path,label"),
    "two parts": (
        table("path,label,a,b", lambda i, p, x: f"{p},{x},train,test"),
        r"which holds the parts, 'a' or 'b'",
    ),
    "one name twice": (
        table("path,label,label", lambda i, p, x: f"{p},{x},{x}"),
        r"which holds the labels, 'label' or 'label'",
    ),
    "unclear separators": (
        table("path;x,label", lambda i, p, x: f"{p},{x}"),
        r"where commas or semicolons may stand between cells",
    ),
    "open quote": (
        PLAIN.replace(",dark", ',"dark', 1),
        r"line 17: ends a cell of several lines; close its quotes",
    ),
    "note alone": ("sep=;\n", r"lists no images"),
    "blank cells alone": (",\n,\n", r"lists no images"),
    "valid": (
        table("path,label,is_valid", lambda i, p, x: f"{p},{x},{'maybe' if i else 'True'}"),
        r"line 3: is_valid 'maybe', expected True or False; line 4: .*and 10 more lines",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_is_unclear_is_refused(folder: Path, mistake: str) -> None:
    """In one line, with what was found and the remedy."""
    text, message = REFUSED[mistake]
    file = save(folder, lambda at: text)

    with pytest.raises(ValueError, match=message) as caught:
        list_data(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_options_of_tables_are_for_tables(folder: Path) -> None:
    """A folder has its classes from its folders."""
    with pytest.raises(ValueError, match="--skip-unlabelled is for CSV files"):
        list_data(folder, skip_unlabelled=True)
    for names in (("a",), ("a", "a"), ("a", "b", "c")):
        with pytest.raises(ValueError, match=r"--columns a.*: expected two names, as in path,la"):
            CompareConfig(columns=names)


# The commands


def test_commands_read_a_file_alike(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A messy file gives the numbers of a plain one in `train`, `evaluate` and `predict`, which
    all say what they took for what, and `evaluate` reads it as the run did.
    """
    root = folder.parent
    (root / "lists").mkdir()

    def row(i: int, path: str, label: str) -> str:
        return f"../data/{path}\tx\t{label}\t{part_of(i)}"

    plain = table("path,label,split", lambda i, p, x: f"data/{p},{x},{part_of(i)}")
    messy = table("where\tother\twhat\tusage", row) + "../data/pictures/dark0.png\tx\t\ttrain\n"
    files = save(root, lambda at: plain), save(root / "lists", lambda at: messy)
    given = ["--data-root", str(root), "--columns", "where,what", "--skip-unlabelled"]
    results = []
    for file, options in zip(files, ([], given), strict=True):
        run = str(file.parent / "run")
        rest = ["--run", run, *options[:2], "--json"]
        words = [str(file), "--model", "digits", "--output", run, *options]
        assert main(["train", *words, "--json"]) == 0
        trained = capsys.readouterr()
        assert main(["evaluate", str(file), *rest]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert main(["predict", str(folder / "pictures"), "--run", run, "--json"]) == 0
        predicted = json.loads(capsys.readouterr().out)["predictions"]
        results.append((json.loads(trained.out), measured, predicted, trained.err))

    for name in ("accuracy", "nll", "n"):
        for kind in (0, 1):
            assert results[0][kind][name] == results[1][kind][name]
    assert results[0][2] == results[1][2]
    assert results[0][1]["about"] == []
    about = results[1][1]["about"]
    assert "from column 'where', labels from 'what', parts from 'usage'" in about[0]
    assert about[1] == "1 rows without a label left out (line 18)"
    for line in about:
        assert line in results[1][3]


def test_evaluate_takes_what_it_is_told_before_what_the_run_was(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of other names is read by its own columns and separator."""
    odd = table("a,b,c", lambda i, p, x: f"{x},{p},hm")
    file, run = save(folder, lambda at: odd), str(folder / "run")
    words = ["--model", "digits", "--output", run, "--columns", "b,a", "--label-separator", "none"]
    assert main(["train", str(file), *words]) == 0
    other = save(folder, lambda at: PLAIN, "other.csv")

    assert main(["evaluate", str(file), "--run", run]) == 0
    assert main(["evaluate", str(other), "--run", run]) == 2
    error = capsys.readouterr().err
    named = ["--columns", "path,label", "--label-separator", "semicolon", "--json"]
    assert main(["evaluate", str(other), "--run", run, *named]) == 0
    assert re.search(r"has no column 'b' \(--columns\); its columns are 'path', 'label'", error)
    assert main(["evaluate", str(other), "--run", run, "--label-separator", "x"]) == 2
    assert "--label-separator x: choose one of semicolon, comma" in capsys.readouterr().err


def test_compare_tells_how_a_file_was_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the command of a row reads it alike."""
    file = save(folder, lambda at: table("a,b,c", lambda i, p, x: f"{x},{p},hm"))
    words = ["--model", "digits", "--output", str(folder / "out"), "--columns", "b,a"]

    few = ["--seeds", "2", "--alphas", "0,1", "--weight-decays", "0.1", "--json"]
    assert main(["compare", str(file), *words, *few]) == 0

    shown = capsys.readouterr()
    assert "paths are taken from column 'b', labels from 'a'" in shown.err
    commands = [row["command"] for row in json.loads(shown.out)["rows"]]
    assert all("--columns b,a" in command for command in commands)
