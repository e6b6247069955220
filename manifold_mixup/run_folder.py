"""The folder a run goes to: claimed before the work starts, gone if nothing comes of it."""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from manifold_mixup._files import part_name
from manifold_mixup.checkpoint import FEATURES, FILES, RUN, STATE

# What a comparison is asked for.
SETTINGS = "settings.json"


@contextmanager
def claimed_folder(
    output: str | Path | None,
    name: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    files: Collection[str] = FILES,
) -> Iterator[Path]:
    """A folder to write a run to, made now, and removed again if the block leaves it empty.

    Args:
        output: The folder; None for the next free ``runs/NAME-N``.
        name: NAME.
        overwrite: Replace the run in it. A folder with anything else in it is refused.
        resume: Go on with the run in it.
        files: What may be in it.

    Raises:
        FileExistsError: There is something in the folder that neither option covers; features
            alone need none, for they are used again or refused.
        OSError: The folder cannot be written to.
    """
    folder, made = _next_free(name) if output is None else _make(Path(output))
    try:
        _check_free(folder, overwrite, resume, files)
        _check_writable(folder)
        if overwrite:
            (folder / STATE).unlink(missing_ok=True)
        yield folder
    finally:
        for path in made:
            if not any(path.iterdir()):
                path.rmdir()


def check_places(data: Path, output: Path | None, features: Path | None) -> None:
    """Make sure that nothing is written into DATA, nor shared features into a run.

    Args:
        data: DATA.
        output: The folder of the run; None for one below ``runs/``.
        features: The folder for shared features; None for the run's own.

    Raises:
        ValueError: The run or the features would lie inside DATA.
        OSError: See `check_features`.
    """
    places = {"--output": Path(output or "runs")} | ({"--features": features} if features else {})
    for option, place in places.items():
        if data.is_dir() and place.resolve().is_relative_to(data.resolve()):
            raise ValueError(f"{place}: lies inside DATA; choose another {option}")
    if features is not None:
        check_features(features, output)


def check_features(features: Path, output: Path | None) -> None:
    """Make sure that a folder for shared features is none of a run's own.

    Raises:
        OSError: It is a file, or a run that it lies in would not be known as one afterwards.
    """
    if features.is_file():
        raise NotADirectoryError(f"{features}: a file, expected a folder for --features")
    place = features.resolve()
    runs = [folder for folder in (place, *place.parents) if _is_run(folder)]
    runs += [output.resolve()] if output is not None else []
    inside = [place.relative_to(run) for run in runs if place.is_relative_to(run)]
    if any(path.parts[:1] != (FEATURES,) for path in inside):
        raise FileExistsError(
            f"{features}: lies in the folder of a run; choose another --features, or leave it out"
        )


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run or a comparison, finished or not."""
    if (folder / STATE).is_file():
        return True
    marks = {folder / RUN: "backbone_sha256", folder / SETTINGS: "images_sha256"}
    return any(
        file.is_file() and mark in file.read_text(errors="ignore") for file, mark in marks.items()
    )


def _next_free(name: str) -> tuple[Path, list[Path]]:
    """Make the next free folder of that name; another process may be about to do the same."""
    number = 1
    while True:
        folder = Path("runs", f"{name}-{number}")
        try:
            return _make(folder, exist_ok=False)
        except FileExistsError:
            if not folder.exists():
                raise
        number += 1


def _make(folder: Path, *, exist_ok: bool = True) -> tuple[Path, list[Path]]:
    """Make a folder and the ones above it; itself, and what was made, innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise type(error)(f"{folder}: cannot be made ({error.strerror})") from error
    return folder, made


def _check_free(folder: Path, overwrite: bool, resume: bool, files: Collection[str]) -> None:
    inside = [path.name for path in folder.iterdir()]
    ours = {*files, *(part_name(name) for name in files)}
    foreign = sorted(set(inside) - ours)
    if foreign:
        raise FileExistsError(
            f"{folder}: holds other files ({foreign[0]}); choose another folder with --output"
        )
    if set(inside) - {FEATURES, SETTINGS} and not (overwrite or resume):
        raise FileExistsError(
            f"{folder}: holds a run; go on with it by --resume, replace it by --overwrite (its "
            "features are used again where they fit), or choose another --output"
        )


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"{folder}: cannot be written to ({error.strerror})") from error
