"""A CSV file of paths and labels as a data set: classes, several labels a row, or values."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

from manifold_mixup.data.csv_table import Row, read_each, read_table
from manifold_mixup.data.splits import PART_NAMES, LabelledImages, Split

# What may stand between the labels of a cell, any space for a space.
LABEL_SEPARATORS = {"semicolon": ";", "comma": ",", "bar": "|", "slash": "/", "space": None}

# No separator: a cell is one label.
WHOLE = "none"


# Whole numbers of more different kinds than this are values, of fewer classes.
_MOST_CLASSES = 20


# If less of the images have several labels, that is rather a mistake: of cells with several, and
# of paths on several rows.
_FEW_CELLS, _FEW_PATHS = 0.1, 0.5


# What programs write where there is no label.
_BLANK = {"", "nan", "na", "n/a", "<na>", "null", "none", "?"}
_SKIP = "--skip-unlabelled leaves such rows out"


@dataclass(frozen=True)
class _Row:
    """One row: where it stands, and the labels or values that its cell holds."""

    line: int
    path: str
    labels: list[str]
    part: str
    cell: str


@dataclass(frozen=True)
class _Places:
    """Where paths lead: below the folder of all images, from there or from the file's own."""

    folder: Path
    starts: list[Path]

    def find(self, path: str) -> list[str]:
        """The names, below the folder, of the files that a path may be."""
        inside = (name for name in self._below(path) if os.path.isfile(self.folder / name))
        return list(dict.fromkeys(inside))

    def name(self, path: str) -> str:
        """The name of the file that a path is.

        Raises:
            ValueError: It does not lead below the folder, or to two files.
            FileNotFoundError: There is no such file.
        """
        spellings = [path, path.replace("\\", "/"), *(normalize(x, path) for x in ("NFC", "NFD"))]
        found = next(filter(None, map(self.find, spellings)), [])
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"path '{path}' may be {found[0]} or {found[1]} below {self.folder}; write it "
                "from there on"
            )
        if path and self._below(path):
            raise FileNotFoundError(f"no such file '{path}' below {self.folder}")
        raise ValueError(
            f"path '{path}', expected one below {self.folder}; --data-root FOLDER tells the "
            "folder that all images lie below"
        )

    def _below(self, path: str) -> list[str]:
        whole = os.path.abspath(self.folder)
        ends = (os.path.abspath(start / path) for start in self.starts)
        names = (os.path.relpath(end, whole) for end in ends)
        return [Path(name).as_posix() for name in names if name.split(os.sep)[0] != os.pardir]


def list_csv(
    file: Path,
    task: str | None = None,
    *,
    root: Path | None = None,
    columns: Sequence[str] | None = None,
    label_separator: str = "semicolon",
    skip_unlabelled: bool = False,
) -> LabelledImages:
    """The images that a CSV file lists, by paths below its folder.

    Its columns are ``path``, ``label``, and ``split`` if the parts are given: ``train``, ``val``
    or ``test``; other columns are left alone. They may be called otherwise where it is clear which
    is which, or said; semicolons or tabs may stand between them. ``is_valid``, true or false, is
    taken for ``split`` too. Several labels (or values) stand in one cell with ``;`` between them;
    several labels also on several rows of one path, if half of the paths are. With labels a cell
    may be empty.

    Args:
        file: The file.
        task: What the labels are, ``"classes"``, ``"labels"`` or ``"values"``; None to tell by
            themselves. If all are numbers, they are values where one is not whole, or where more
            than 20 differ; else they are labels if a row or a path has several of them, and
            classes if not.
        root: The folder that all images lie below, if that is not the file's own.
        columns: Names of the columns of paths and of labels; None to find them.
        label_separator: What stands between labels in a cell: one of `LABEL_SEPARATORS`, or
            ``"none"``.
        skip_unlabelled: Leave rows without a label out, and those that say ``nan`` or the like.

    Raises:
        ValueError: Rows are not what they should be; the message names their lines.
        FileNotFoundError: An image is missing.
    """
    folder = file.parent if root is None else root
    places = _Places(folder, [folder, file.parent])
    table = read_table(file, columns, lambda path: bool(places.find(path)))
    told, notes = _leave_out(table.rows) if skip_unlabelled else (table.rows, _blanks(table.rows))
    if not told:
        raise ValueError(f"{file}: no row has a label")

    def read(row: Row) -> _Row:
        try:
            name = places.name(row.path)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"line {row.line}: {error}") from error
        label = normalize("NFC", row.label)  # one class, whichever way its accents are stored
        return _Row(row.line, name, _part_labels(label, label_separator), row.part, label)

    rows = read_each(file, read, told)
    task, why = (task, "") if task else _decide(file, rows)
    if task != "values":
        notes += _other_separators(rows, table.label)
    rows = _one_a_path(file, rows, task)
    classes, targets = _READERS[task](file, rows)
    parts = {}
    for part in PART_NAMES:
        chosen = [i for i, row in enumerate(rows) if row.part == part]
        if chosen:
            names = [rows[i].path for i in chosen]
            sources = [folder / name for name in names]
            parts[part] = Split(sources, [targets[i] for i in chosen], names)
    if not table.is_plain:
        notes = [f"{table}; --columns takes others", *notes]
    return LabelledImages(str(file), classes, parts, task=task, why=why, notes=notes)


def check_columns(names: Sequence[str]) -> None:
    """Raise a ValueError unless they are two: the columns of paths and of labels."""
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"--columns {','.join(names)}: expected two names, as in path,label")


def _part_labels(cell: str, separator: str) -> list[str]:
    if separator == WHOLE:
        return [cell] if cell else []
    parts = (label.strip() for label in cell.split(LABEL_SEPARATORS[separator]))
    return [label for label in parts if label]


def _leave_out(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows with a label, and what is said of the others."""
    out = [row for row in rows if row.label.lower() in _BLANK]
    kept = [row for row in rows if row.label.lower() not in _BLANK]
    if not out:
        return kept, []
    return kept, [f"{len(out)} rows without a label left out ({_lines(out)})"]


def _blanks(rows: Sequence[Row]) -> list[str]:
    """What is said of rows whose label seems to say that there is none."""
    out = [row for row in rows if row.label and row.label.lower() in _BLANK]
    if not out:
        return []
    return [
        f"'{out[0].label}' is taken for a label ({_lines(out)}); --skip-unlabelled leaves such "
        "rows out"
    ]


def _lines(rows: Sequence[Row]) -> str:
    """Where rows stand, the first few by number."""
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    lines = ", ".join(str(row.line) for row in rows[:5])
    return f"line{'s' if len(rows) > 1 else ''} {lines}{more}"


def _other_separators(rows: Sequence[_Row], column: str) -> list[str]:
    """What is said of labels that another separator would make several of."""
    labels = {label: row.line for row in reversed(rows) for label in row.labels}
    for name, separator in LABEL_SEPARATORS.items():
        for label, line in labels.items():
            pieces = _part_labels(label, name)
            # A slash or a space is in many a name.
            is_sure = separator in ("|", ",") or column.endswith("s")
            if len(pieces) > 1 and (is_sure or any(piece in labels for piece in pieces)):
                return [
                    f"'{label}' in line {line} is taken for one label; --label-separator {name} "
                    "takes it for several"
                ]
    return []


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
    if not texts and not all(number.is_integer() for number in numbers.values()):
        return "values", "numbers, not all whole"
    several = _find_several(rows)
    if not texts and not several and len(numbers) > _MOST_CLASSES:
        return "values", f"{len(numbers)} different numbers"
    if several:
        return "labels", f"several of them for an image, as {several}"
    return "classes", "one label for each image"


def _find_several(rows: Sequence[_Row]) -> str:
    """An example of several labels of an image, if there are so many that they are meant."""
    cells = [row for row in rows if len(row.labels) > 1]
    if cells and len(cells) >= _FEW_CELLS * len(rows):
        first = cells[0]
        return f"'{first.cell}' in line {first.line}, which --label-separator none takes for one"
    firsts: dict[str, _Row] = {}
    again = {}
    for row in rows:
        first = firsts.setdefault(row.path, row)
        if not set(row.labels) <= set(first.labels):
            again[row.path] = f"'{row.path}' in lines {first.line} and {row.line}"
    return next(iter(again.values()), "") if len(again) >= _FEW_PATHS * len(firsts) else ""


def _one_a_path(file: Path, rows: Sequence[_Row], task: str) -> list[_Row]:
    """The rows with those of one path joined, which only labels may have."""
    joined: dict[str, _Row] = {}

    def join(row: _Row) -> None:
        first = joined.setdefault(row.path, row)
        if first is row:
            return
        where = f"line {row.line}: '{row.path}'"
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

    read_each(file, join, rows)
    return list(joined.values())


def _read_classes(file: Path, rows: Sequence[_Row]) -> tuple[list[str], list[int]]:
    def read(row: _Row) -> str:
        if not row.labels:
            raise ValueError(f"line {row.line}: no label, expected one; {_SKIP}")
        if len(row.labels) > 1:
            raise ValueError(
                f"line {row.line}: {len(row.labels)} labels, expected one; if images may have any "
                f"number of them, say --task labels; if '{row.cell}' is one, --label-separator "
                "none"
            )
        return row.labels[0]

    labels = read_each(file, read, rows)
    classes = sorted(set(labels))
    return classes, [classes.index(label) for label in labels]


def _read_labels(file: Path, rows: Sequence[_Row]) -> tuple[list[str], list[list[float]]]:
    classes = sorted({label for row in rows for label in row.labels})
    if not classes:
        raise ValueError(f"{file}: no row has a label")
    return classes, [[float(name in row.labels) for name in classes] for row in rows]


def _read_values(file: Path, rows: Sequence[_Row]) -> tuple[list[str], list[list[float]]]:
    width = len(rows[0].labels) or 1

    def read(row: _Row) -> list[float]:
        where, advice = f"line {row.line}", f"; {_SKIP}" if row.cell.lower() in _BLANK else ""
        if len(row.labels) != width:
            raise ValueError(
                f"{where}: {len(row.labels)} values, expected {width} in every row{advice}"
            )
        values = [_number(label) for label in row.labels]
        for label, value in zip(row.labels, values, strict=True):
            if value is None or not math.isfinite(value):
                raise ValueError(f"{where}: label '{label}', expected a finite number{advice}")
        return [value for value in values if value is not None]

    names = [f"value{i + 1}" for i in range(width)] if width > 1 else ["value"]
    return names, read_each(file, read, rows)


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
