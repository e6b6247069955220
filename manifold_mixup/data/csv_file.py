"""A CSV file of paths and labels as a data set: classes, several labels a row, or values."""

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from manifold_mixup.data.splits import PART_NAMES, LabelledImages, Split

SEPARATOR = ";"


_COLUMNS = ("path", "label")


# Whole numbers of more different kinds than this are values, of fewer classes.
_MOST_CLASSES = 20


@dataclass(frozen=True)
class _Row:
    """One row: where it stands, and the labels or values that its cell holds."""

    line: int
    path: str
    labels: list[str]
    part: str


def list_csv(file: Path, task: str | None = None) -> LabelledImages:
    """The images that a CSV file lists, by paths below its folder.

    Its columns are ``path``, ``label``, and ``split`` if the parts are given: ``train``, ``val``
    or ``test``; other columns are left alone. Several labels (or values) stand in one cell with
    ``;`` between them; several labels also on several rows of one path. With labels a cell may be
    empty.

    Args:
        file: The file.
        task: What the labels are, ``"classes"``, ``"labels"`` or ``"values"``; None to tell by
            themselves. If all are numbers, they are values where one is not whole, or where more
            than 20 differ; else they are labels if a row or a path has several of them, and
            classes if not.

    Raises:
        ValueError: A row is not what it should be; the message names its line.
        FileNotFoundError: An image is missing.
    """
    rows = _read_rows(file)
    task, why = (task, "") if task else _decide(file, rows)
    rows = _one_a_path(file, rows, task)
    classes, targets = _READERS[task](file, rows)
    parts = {}
    for part in PART_NAMES:
        chosen = [i for i, row in enumerate(rows) if row.part == part]
        if chosen:
            names = [rows[i].path for i in chosen]
            sources = [file.parent / name for name in names]
            parts[part] = Split(sources, [targets[i] for i in chosen], names)
    return LabelledImages(str(file), classes, parts, task=task, why=why)


def _read_rows(file: Path) -> list[_Row]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, restval="", skipinitialspace=True)
            reader.fieldnames = names = [name.strip().lower() for name in reader.fieldnames or ()]
            _check_header(file, names)
            rows = [_read_row(file, reader.line_num, cells) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: no readable CSV ({error}); save it as UTF-8 text") from error
    if not rows:
        raise ValueError(f"{file}: lists no images, only a header")
    if "split" not in names:
        return [replace(row, part="train") for row in rows]
    return rows


def _check_header(file: Path, names: Sequence[str]) -> None:
    if not names:
        raise ValueError(f"{file}: is empty, expected a header path,label and a row an image")
    missing = [name for name in _COLUMNS if name not in names]
    if missing or len(set(names)) < len(names):
        raise ValueError(
            f"{file}: its first line is '{','.join(names)}', expected a header of the columns "
            "path,label (and split, perhaps), with commas between them"
        )


def _read_row(file: Path, line: int, cells: dict[str, str]) -> _Row:
    if None in cells:
        raise ValueError(
            f"{file}, line {line}: has more cells than the header; put a cell with commas in "
            f'quotes, and {SEPARATOR} between several labels, as in "cat{SEPARATOR}dog"'
        )
    path, split = cells["path"].strip(), cells.get("split", "").strip()
    name = os.path.normpath(path)
    if not path or os.path.isabs(path) or name.split(os.sep)[0] == os.pardir:
        raise ValueError(
            f"{file}, line {line}: path '{path}', expected one below {file.parent or '.'}"
        )
    if not (file.parent / name).is_file():
        raise FileNotFoundError(f"{file}, line {line}: no such file '{path}' below {file.parent}")
    parts = [part for part, names in PART_NAMES.items() if split.lower() in names]
    if "split" in cells and not parts:
        raise ValueError(f"{file}, line {line}: split '{split}', expected train, val or test")
    labels = [label.strip() for label in cells["label"].split(SEPARATOR)]
    return _Row(line, Path(name).as_posix(), [x for x in labels if x], (parts or [""])[0])


def _decide(file: Path, rows: Sequence[_Row]) -> tuple[str, str]:
    """What the labels are, and why."""
    lines = {label: row.line for row in rows for label in row.labels}
    numbers = {label: number for label in lines if (number := _number(label)) is not None}
    texts = [label for label in lines if label not in numbers]
    if texts and any(map(_is_fraction, numbers.values())):
        raise ValueError(
            f"{file}, line {lines[texts[0]]}: label '{texts[0]}' is no number, but others are; "
            "mend it, or say what labels are by --task"
        )
    commas = [label for label in texts if _number(label.replace(",", ".")) is not None]
    if commas and commas == texts:
        raise ValueError(
            f"{file}, line {lines[commas[0]]}: label '{commas[0]}' has a decimal comma; write "
            f"{commas[0].replace(',', '.')}, or say --task classes"
        )
    several = any(len(row.labels) > 1 for row in rows)
    several = several or len({row.path for row in rows}) < len(rows)
    if not texts and not all(number.is_integer() for number in numbers.values()):
        return "values", "numbers, not all whole"
    if not texts and not several and len(numbers) > _MOST_CLASSES:
        return "values", f"{len(numbers)} different numbers"
    if several:
        return "labels", "several of them for an image"
    return "classes", "one label for each image"


def _one_a_path(file: Path, rows: Sequence[_Row], task: str) -> list[_Row]:
    """The rows with those of one path joined, which only labels may have."""
    joined: dict[str, _Row] = {}
    for row in rows:
        first = joined.setdefault(row.path, row)
        if first is row:
            continue
        where = f"{file}, line {row.line}: '{row.path}'"
        if first.part != row.part:
            raise ValueError(f"{where} is in {row.part}, but in {first.part} in line {first.line}")
        if set(row.labels) <= set(first.labels):
            raise ValueError(f"{where} repeats line {first.line}; remove one of them")
        if task != "labels":
            raise ValueError(
                f"{where} has another label in line {first.line}; remove one of them, or say "
                "--task labels"
            )
        joined[row.path] = replace(first, labels=first.labels + row.labels)
    return list(joined.values())


def _read_classes(file: Path, rows: Sequence[_Row]) -> tuple[list[str], list[int]]:
    for row in rows:
        if len(row.labels) != 1:
            found = f"{len(row.labels)} labels" if row.labels else "no label"
            raise ValueError(
                f"{file}, line {row.line}: {found}, expected one; if images may have any number "
                "of them, say --task labels"
            )
    classes = sorted({row.labels[0] for row in rows})
    return classes, [classes.index(row.labels[0]) for row in rows]


def _read_labels(file: Path, rows: Sequence[_Row]) -> tuple[list[str], list[list[float]]]:
    classes = sorted({label for row in rows for label in row.labels})
    if not classes:
        raise ValueError(f"{file}: no row has a label")
    return classes, [[float(name in row.labels) for name in classes] for row in rows]


def _read_values(file: Path, rows: Sequence[_Row]) -> tuple[list[str], list[list[float]]]:
    width = len(rows[0].labels)
    targets = []
    for row in rows:
        where = f"{file}, line {row.line}"
        if not row.labels or len(row.labels) != width:
            raise ValueError(
                f"{where}: {len(row.labels)} values, expected {max(width, 1)} in every row"
            )
        values = [_number(label) for label in row.labels]
        wrong = [
            label
            for label, value in zip(row.labels, values, strict=True)
            if value is None or not math.isfinite(value)
        ]
        if wrong:
            raise ValueError(f"{where}: label '{wrong[0]}', expected a finite number")
        targets.append([value for value in values if value is not None])
    names = [f"value{i + 1}" for i in range(width)] if width > 1 else ["value"]
    return names, targets


_READERS: dict[str, Callable[..., tuple[list[str], list[int] | list[list[float]]]]] = {
    "classes": _read_classes,
    "labels": _read_labels,
    "values": _read_values,
}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_fraction(number: float) -> bool:
    return math.isfinite(number) and not number.is_integer()
