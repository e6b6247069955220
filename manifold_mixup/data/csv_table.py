"""What stands in a CSV file: what parts its cells, which columns it has, and its rows."""

import codecs
import csv
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from manifold_mixup.data.images import is_image
from manifold_mixup.data.splits import PART_NAMES

# What may stand between cells.
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# What the columns are often called. The first name goes before all others.
_PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "fname", "image"),
    *("image_path", "image_file", "image_name", "img", "img_path", "images", "photo"),
)
_LABELS = ("label", "labels", "class", "class_name", "category", "target", "tag", "tags")
_PARTS = ("split", "is_valid")

# What numbers of rows are called, which are no labels.
_NUMBERS = ("", "unnamed: 0")

# So many rows are looked at to know a column by, and so many mistakes told in one message.
_TRIED, _SHOWN = 50, 5

_IS_VALID = {"true": "val", "1": "val", "false": "train", "0": "train"}

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Row:
    """The cells of a row that are asked for, and the line that it stands in."""

    line: int
    path: str
    label: str
    part: str


@dataclass(frozen=True)
class Table:
    """The rows of a file, and the names of the columns that they are of.

    Attributes:
        rows: The rows, blank ones left out.
        path: The column of the paths.
        label: The column of the labels.
        part: The column of the parts; none if there is none.
        is_plain: Whether they are called as `manifold-mixup` calls them, with commas between.
    """

    rows: list[Row]
    path: str
    label: str
    part: str | None
    is_plain: bool

    def __str__(self) -> str:
        parts = f", parts from '{self.part}'" if self.part else ""
        return f"paths are taken from column '{self.path}', labels from '{self.label}'{parts}"


def read_table(file: Path, asked: Sequence[str] | None, is_file: Callable[[str], bool]) -> Table:
    """Read a file, and find its columns.

    Args:
        file: The file.
        asked: Names of the columns of paths and of labels; None to find them.
        is_file: Whether a cell is the path of a file.

    Raises:
        ValueError: It is no text, or its columns are not clear; or rows have too many cells.
    """
    names, lines, separator = _read_lines(file)
    usual = (*_PATHS, *_LABELS, *_PARTS)
    if any(is_image(Path(name)) or (is_file(name) and _name(name) not in usual) for name in names):
        raise ValueError(
            f"{file}: its first line is '{','.join(names)}', which names an image; expected a "
            "header, such as path,label, above it"
        )
    names = [name.lower() for name in names]
    path, label, part = _find_columns(file, names, [cells for _, cells in lines], asked, is_file)

    between = _SEPARATORS[separator]

    def read(line: tuple[int, list[str]]) -> Row:
        number, cells = line
        if any(cells[len(names) :]):
            raise ValueError(
                f"line {number}: has more cells than the header; put a cell with {between} in "
                'quotes, and ; between several labels, as in "cat;dog"'
            )
        whole = [*cells, *[""] * (len(names) - len(cells))]
        told = "train" if part is None else whole[part]
        if any("\n" in cell for cell in (whole[path], whole[label], told)):
            raise ValueError(
                f"line {number}: ends a cell of several lines; close its quotes before"
            )
        return Row(number, whole[path], whole[label], _part(number, told, part, names))

    rows = read_each(file, read, lines)
    plain = ("path", "label", "split" if part is not None else None)
    found = names[path], names[label], None if part is None else names[part]
    return Table(rows, *found, is_plain=found == plain and separator == ",")


def read_each(file: Path, read: Callable[[A], B], rows: Sequence[A]) -> list[B]:
    """What is read of each row, or one error that names all rows that are wrong."""
    found: list[B] = []
    wrong: list[ValueError | FileNotFoundError] = []
    for row in rows:
        try:
            found.append(read(row))
        except (ValueError, FileNotFoundError) as error:
            wrong.append(error)
    if wrong:
        told = "; ".join(str(error) for error in wrong[:_SHOWN])
        more = f"; and {len(wrong) - _SHOWN} more lines" if len(wrong) > _SHOWN else ""
        raise type(wrong[0])(f"{file}, {told}{more}") from wrong[0]
    return found


def _read_lines(file: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The names of the columns, all other lines with their numbers, and what parts cells."""
    content = file.read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
        first, told = text.partition("\n")[0].strip().lower(), None
        if first.startswith("sep=") and first[4:] in _SEPARATORS:  # a spreadsheet's note to itself
            told = first[4:]
        separator = told or _find_separator(file, text)
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True
        )
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: no readable CSV ({error}); save it as UTF-8 text") from error
    lines = [line for line in lines[told is not None :] if any(line[1])]
    if len(lines) < 2:
        raise ValueError(f"{file}: lists no images, only a header")
    return lines[0][1], lines[1:], separator


def _find_separator(file: Path, text: str) -> str:
    """What stands between the cells of the first line."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise ValueError(f"{file}: is empty, expected a header path,label and a row an image")
    cells = {one: next(csv.reader([first], delimiter=one)) for one in _SEPARATORS}
    parting = [one for one, names in cells.items() if len(names) > 1]
    named = [one for one in parting if any(_name(x) in (*_PATHS, *_LABELS) for x in cells[one])]
    if len(parting) == 1 or len(named) == 1:
        return (parting if len(parting) == 1 else named)[0]
    if parting:
        told = " or ".join(_SEPARATORS[one] for one in parting)
        raise ValueError(
            f"{file}: its first line is '{first}', where {told} may stand between cells; put "
            "commas there, and names that hold one in quotes"
        )
    raise _header_error(file, [first])


def _name(cell: str) -> str:
    return cell.strip().lower()


def _find_columns(
    file: Path,
    names: list[str],
    rows: list[list[str]],
    asked: Sequence[str] | None,
    is_file: Callable[[str], bool],
) -> tuple[int, int, int | None]:
    """The places of the columns of paths, labels and parts."""
    if asked is not None:
        path, label = (_asked_column(file, names, name) for name in asked)
        return path, label, _find_parts(file, names, rows, {path, label})

    def holds_files(column: int) -> bool:
        cells = [cells[column] for cells in rows[:_TRIED] if len(cells) > column]
        return any(is_file(cell) for cell in cells if cell)

    everything = range(len(names))
    paths = _known(names, _PATHS)
    if "path" not in names and not (len(paths) == 1 and holds_files(paths[0])):
        held = [column for column in everything if holds_files(column)]
        paths = [column for column in held if column in paths] or held or paths
    if len(paths) != 1:
        raise _header_error(file, names, "paths of images", paths)
    path = paths[0]
    labels = _known(names, _LABELS)
    part = _find_parts(file, names, rows, {path, *labels})
    if not labels:
        rest = (one for one in everything if one not in (path, part))
        labels = [column for column in rest if names[column] not in _NUMBERS]
    if len(labels) != 1:
        raise _header_error(file, names, "labels", labels)
    return path, labels[0], part


def _known(names: Sequence[str], usual: Sequence[str]) -> list[int]:
    """The columns with the first of some usual names, or else with any of them."""
    first = [column for column, name in enumerate(names) if name == usual[0]]
    return first or [column for column, name in enumerate(names) if name in usual]


def _asked_column(file: Path, names: Sequence[str], name: str) -> int:
    found = [column for column, other in enumerate(names) if other == _name(name)]
    if len(found) != 1:
        has = "several columns" if found else "no column"
        raise ValueError(f"{file}: has {has} '{name}' (--columns); its columns are {_told(names)}")
    return found[0]


def _find_parts(
    file: Path, names: list[str], rows: list[list[str]], taken: Collection[int]
) -> int | None:
    """The column of the parts: by its name, or because it holds nothing but their names."""
    free = [column for column in range(len(names)) if column not in taken]
    for usual in _PARTS:
        found = [column for column in free if names[column] == usual]
        if len(found) > 1:
            raise _header_error(file, names, "parts", found)
        if found:
            return found[0]
    parts = {name for known in PART_NAMES.values() for name in known}
    held = {
        column: {_name(cells[column]) if len(cells) > column else "" for cells in rows}
        for column in free
    }
    found = [column for column in free if held[column] <= parts]
    if len(found) > 1:
        raise _header_error(file, names, "parts", found)
    return found[0] if found else None


def _part(line: int, cell: str, column: int | None, names: Sequence[str]) -> str:
    """The part that a cell tells."""
    if column is not None and names[column] == "is_valid":
        if cell.lower() not in _IS_VALID:
            raise ValueError(f"line {line}: is_valid '{cell}', expected True or False")
        return _IS_VALID[cell.lower()]
    parts = [part for part, known in PART_NAMES.items() if cell.lower() in known]
    if not parts:
        raise ValueError(f"line {line}: split '{cell}', expected train, val or test")
    return parts[0]


def _header_error(
    file: Path, names: Sequence[str], what: str = "", found: Sequence[int] = ()
) -> ValueError:
    which = f"holds the {what}" if what else "holds what"
    if found:
        which += f", {' or '.join(repr(names[column]) for column in found)}"
    return ValueError(
        f"{file}: its first line is '{','.join(names)}', expected a header of the columns "
        f"path,label (and split, perhaps), with {', '.join(_SEPARATORS.values())} between them; "
        f"if it is a header of other names, say which {which}: --columns PATH,LABEL"
    )


def _told(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
