"""What an option is: the field of a configuration, and what the command line tells of it.

A configuration is a frozen dataclass. Each of its fields holds all there is to say of an option:
its name, type, default, range, help and group. The command line is made from them, a run stores
them, and printed commands tell those that differ from what holds without them.
"""

import csv
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from inspect import Parameter
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from manifold_mixup.training import AUTO


@dataclass(frozen=True)
class Option:
    """What is told of a field beside its name, type and default.

    Attributes:
        help: A sentence or two.
        group: Where it stands in the help.
        usual: What holds without it, in words, where its default does not say so.
        least: The least that it may be.
        most: The most.
        check: Raises a ValueError unless a value is in range.
        flag: Its name on the command line, where that is another.
        opposite: Whether there is a ``--no-`` of it.
        is_stored: Whether it decides what comes out, and so belongs to what a run is.
        percent: Whether the command line has it in hundredths.
    """

    help: str
    group: str
    usual: str = ""
    least: float | None = None
    most: float | None = None
    check: Callable[[Any], object] | None = None
    flag: str = ""
    opposite: bool = False
    is_stored: bool = True
    percent: bool = False


def option(default: Any, group: str, help: str, **more: Any) -> Any:
    """A field of a configuration; see `Option`."""
    return field(default=default, metadata={"option": Option(help, group, **more)})


def option_of(one: Field[Any]) -> Option:
    """What is told of a field."""
    told: Option = one.metadata["option"]
    return told


def flag_of(one: Field[Any]) -> str:
    """The name of a field on the command line."""
    return option_of(one).flag or f"--{one.name.replace('_', '-')}"


def types_of(configuration: Any) -> dict[str, Any]:
    """The type of every field, without None."""
    hints = get_type_hints(configuration)
    return {one.name: _without_none(hints[one.name]) for one in fields(configuration)}


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a value of a type may be; none where it may be any."""
    return tuple(get_args(kind)) if get_origin(kind) is Literal else ()


def is_list(kind: Any) -> bool:
    """Whether several values may be given."""
    return get_origin(kind) is tuple


def read_word(one: Field[Any], kind: Any, word: Any) -> Any:
    """The value of what an option is given on the command line.

    Raises:
        ValueError: It is none of its type.
    """
    if not isinstance(word, str):
        return word / 100 if option_of(one).percent else word
    flag, members = flag_of(one), get_args(kind)
    if kind is Path:
        return Path(_given(flag, word))
    if is_list(kind):
        cells = next(csv.reader([word], skipinitialspace=True), [])
        words = [cell.strip() for cell in cells if cell.strip()]
        if not words:
            raise ValueError(f"{flag} is empty; give one at least, or leave it out")
        numbers = "whole numbers, such as 1,5" if members[0] is int else "numbers, such as 0,0.4"
        return tuple(_read(flag, word, members[0], one, numbers) for one in words)
    if float in members:
        return word if word == AUTO else _read(flag, word, float, word, f"a number, or {AUTO}")
    return _given(flag, word)


def read_words(configuration: Any, words: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the options that are given on the command line, by name.

    Raises:
        ValueError: One is none of its type, or none that it may have.
    """
    kinds, named = types_of(configuration), {one.name: one for one in fields(configuration)}
    given = {name: word for name, word in words.items() if word is not None}
    values = {name: read_word(named[name], kinds[name], word) for name, word in given.items()}
    with told_as_options(configuration):
        for name, value in values.items():
            _check(named[name], kinds[name], value)
    return values


def _read(flag: str, whole: str, kind: Any, word: str, expected: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{flag} {whole}: expected {expected}") from None


def word_of(value: Any) -> str:
    """A value as the command line takes it.

    Example:
        >>> word_of((0.0, 0.4)), word_of(("a", "b,c")), word_of(1e-5)
        ('0,0.4', 'a,"b,c"', '1e-05')
    """
    if isinstance(value, tuple):
        words = (word_of(one) for one in value)
        return ",".join(f'"{word}"' if "," in word else word for word in words)
    return f"{value!r}".removesuffix(".0") if isinstance(value, float) else f"{value}"


def check_values(configuration: Any) -> None:
    """Raise a ValueError unless every value is one that its option may have."""
    kinds = types_of(type(configuration))
    with told_as_options(configuration):
        for one in fields(configuration):
            value, kind = getattr(configuration, one.name), kinds[one.name]
            if value is not None:
                _check(one, kind, value)


@contextmanager
def told_as_options(configuration: Any) -> Iterator[None]:
    """Errors inside the block call options as the command line does.

    Example:
        >>> from manifold_mixup.runs import TrainConfig
        >>> with told_as_options(TrainConfig()):
        ...     raise ValueError("batch_size=1 must be at least 2, or alpha=0")
        Traceback (most recent call last):
        ValueError: --batch-size 1 must be at least 2, or --alpha 0
    """
    # But for hundredths, which are given in another unit.
    own = [one for one in fields(configuration) if not option_of(one).percent]
    flags = {one.name: flag_of(one) for one in own}
    # Neither in a path, nor of a value that goes on with one.
    given = re.compile(rf"(?<![\w/.=-])({'|'.join(flags)})=(?!\S*/)")
    try:
        yield
    except ValueError as error:
        told = given.sub(lambda found: f"{flags[found[1]]} ", str(error))
        raise ValueError(told) from error


def _check(one: Field[Any], kind: Any, value: Any) -> None:
    told, flag, choices = option_of(one), flag_of(one), choices_of(kind)
    if choices and value not in choices:
        raise ValueError(f"{flag} {value}: choose one of {', '.join(choices)}")
    unit = 100 if told.percent else 1
    if told.least is not None and value < told.least:
        raise ValueError(f"{flag} {unit * value:g} must be at least {unit * told.least:g}")
    if told.most is not None and value > told.most:
        raise ValueError(f"{flag} {unit * value:g} must be at most {unit * told.most:g}")
    if told.check is not None and value != AUTO:
        told.check(value)


def check_solved(configuration: Any) -> None:
    """Raise a ValueError if mixes are asked for where the head is not solved for."""
    steps = ("epochs", "batch_size", "lr", "patience", "optimizer")
    others = ["head", "tail", "kind", "alpha_warmup"]
    others += [] if configuration.views else ["augment"]
    if configuration.mixes is not None:
        solved = f"--mixes {configuration.mixes} is for a head that is solved for"
        refuse_given(configuration, (*steps, *others), solved)


def refuse_given(configuration: Any, names: Collection[str], why: str) -> None:
    """Raise a ValueError that says why if one of these has another value than its default."""
    for one in fields(configuration):
        if one.name in names and getattr(configuration, one.name) != one.default:
            raise ValueError(f"{why}: leave out {flag_of(one)}")


def stored(configuration: Any) -> dict[str, Any]:
    """What of a configuration decides what comes out, as JSON values."""
    return {
        one.name: list(value) if isinstance(value, tuple) else value
        for one in fields(configuration)
        if option_of(one).is_stored
        for value in [getattr(configuration, one.name)]
    }


def words_of(configuration: Any, only: Collection[str] = ()) -> list[str]:
    """The words of a command that give a configuration, but for what holds without them.

    Args:
        configuration: Whose options are told, but for DATA.
        only: Names of those that the command has; none for all.
    """
    words = []
    for one in fields(configuration):
        value = getattr(configuration, one.name)
        if one.name == "data" or value == one.default or (only and one.name not in only):
            continue
        if isinstance(value, bool):
            words.append(flag_of(one) if value else f"--no-{flag_of(one)[2:]}")
        else:
            shown = 100 * value if option_of(one).percent else value
            words.append(f"{flag_of(one)} {shlex.quote(word_of(shown))}")
    return words


def parameter_of(one: Field[Any], kind: Any) -> Parameter:
    """A field of a configuration as typer takes it."""
    import typer

    own, choices = option_of(one), choices_of(kind)
    plain = kind if kind in (bool, int, float) else str
    unit = 100 if own.percent else 1
    usual: Any = None if one.default in (None, "") else one.default
    if usual is not None and plain is not bool:
        usual = word_of(usual) if plain is str else unit * usual
    if one.name == "data":
        argument = typer.Argument(metavar="DATA", help=own.help, show_default=own.usual)
        return typer_parameter("data", str, None, argument)
    flag = flag_of(one)
    names = f"{flag}/--no-{flag[2:]}" if own.opposite else flag
    details: dict[str, Any] = {
        "help": own.help,
        "rich_help_panel": own.group,
        "show_default": own.usual or (usual is not None and usual is not False),
    }
    if kind in (int, float):
        ends = {"min": own.least, "max": own.most}
        details |= {name: end and unit * end for name, end in ends.items()}
    if choices:
        details |= {"metavar": "|".join(choices), "autocompletion": lambda: list(choices)}
    elif is_list(kind) or kind is Path:
        details["metavar"] = "A,B" if is_list(kind) else "PATH"
    return typer_parameter(one.name, plain, usual, typer.Option(names, **details))


def typer_parameter(name: str, kind: Any, usual: Any, told: Any) -> Parameter:
    """A parameter of a command, which may be left out."""
    annotation: Any = Annotated[kind if usual is not None else kind | None, told]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=usual, annotation=annotation)


def _without_none(kind: Any) -> Any:
    """A type without None: of a union what is left, alone or as a union of its own."""
    members = [one for one in get_args(kind) if one is not NoneType]
    if NoneType not in get_args(kind):
        return kind
    rest = members[0]
    for one in members[1:]:
        rest = rest | one
    return rest


def absolute(flag: str, name: str) -> str:
    """The whole path of what is a file or folder here; other names as they are."""
    path = Path(_given(flag, name))
    return str(path.resolve()) if path.exists() else name


def _given(flag: str, name: str) -> str:
    if not name.strip():
        raise ValueError(f"{flag} is empty; give a name, or leave it out")
    return name


def how_to_go_on(folder: Path, *, is_kept: bool, overwrite: bool) -> str:
    """What an interrupted command says: how to go on, if there is something to go on with."""
    if not is_kept:
        return "interrupted before there was anything to keep"
    without = ", without --overwrite and" if overwrite else ""
    given = f"--output {shlex.quote(str(folder))} --resume"
    return f"interrupted; the same command{without} with {given} goes on"
