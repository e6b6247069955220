"""A run on disk: safetensors and JSON, written whole or not at all, checked when read."""

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup._files import (
    fingerprint,
    part_name,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from manifold_mixup.models import describe_for_timm, load_backbone, replace_head
from manifold_mixup.reports import CURVE, RELIABILITY, SCATTER
from manifold_mixup.training import TrainingState
from manifold_mixup.version import __version__

RUN, HEAD, STATE, MODEL = "run.json", "head.safetensors", "state.safetensors", "model.safetensors"
# What timm builds the model and names its classes by.
CONFIG = "config.json"
FEATURES = "features"
# A folder for each other data set that the run was measured on.
EVALUATIONS = "evaluations"
FILES = (RUN, HEAD, STATE, MODEL, CONFIG, CURVE, RELIABILITY, SCATTER, FEATURES, EVALUATIONS)
# What a comparison is asked for, and the run in it that came out best.
SETTINGS, WINNER = "settings.json", "winner"

# What held in runs that were stored before there was an option.
_LATER = {"dtype": "float32", "label_separator": "semicolon"}


def load_trained(
    directory: Path, weights: str | Path | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained model of a run, and what ``run.json`` says; see `load_run`."""
    info = read_info(directory)
    file = directory / (HEAD if weights or not (directory / MODEL).is_file() else MODEL)
    with torch.random.fork_rng(devices=[]):
        model = _trained_model(file, info, weights or info["settings"]["weights"])
    _check_fingerprints(file, model, info)
    return model.eval(), info


def _trained_model(file: Path, info: Mapping[str, Any], weights: str | Path) -> nn.Module:
    """The model with what the file holds of it: all, or the head alone."""
    asked = info["settings"]
    weights = "none" if file.name == MODEL else weights
    model = seeded_backbone(asked["model"], weights, asked["seed"])
    replace_head(model, len(info["classes"]), head=asked["head"])
    _load_into(model, _read(file)[0], file)
    return model


def seeded_backbone(name: str, weights: str | Path, seed: int) -> nn.Module:
    """A backbone whose random weights, if any, are those of the seed."""
    torch.default_generator.manual_seed(seed)
    return load_backbone(name, weights=weights)


def save_run(
    directory: Path,
    model: nn.Module,
    training: TrainingState,
    info: Mapping[str, Any],
    *,
    whole: bool,
) -> dict[str, Any]:
    """Write a finished run; what an earlier one left in its place goes.

    Args:
        directory: An existing folder.
        model: The trained model.
        training: Its training.
        info: What ``run.json`` shall say, JSON values only.
        whole: Write the whole model too, as plain timm (with its classes) or torchvision loads it.

    Returns:
        What ``run.json`` says: the info, the versions, and fingerprints of head and backbone.
    """
    head = {name: tensor.cpu() for name, tensor in training.head.items()}
    write_tensors(directory / HEAD, head)
    for name in (MODEL, CONFIG):
        (directory / name).unlink(missing_ok=True)
    if whole:
        write_tensors(directory / MODEL, model.state_dict())
        if config := describe_for_timm(model, info["classes"]):
            write_json(directory / CONFIG, config)
    backbone = {name: t for name, t in model.state_dict().items() if name not in head}
    written = {
        **info,
        "versions": {"manifold_mixup": __version__, "torch": torch.__version__},
        "head": sorted(head),
        "head_sha256": fingerprint(head),
        "backbone_sha256": fingerprint(backbone),
    }
    written = write_json(directory / RUN, written)
    (directory / STATE).unlink(missing_ok=True)
    return written


def write_state(directory: Path, training: TrainingState, settings: Mapping[str, Any]) -> None:
    """Write where a training stands, so that `read_state` can go on from there."""
    parts = {"head": training.head, "state": training.state, "best": training.best}
    tensors = {f"{part}.{name}": t for part, named in parts.items() for name, t in named.items()}
    progress = json.dumps(
        {"settings": dict(settings), "losses": training.losses, "epochs": training.epochs}
    )
    sha256 = fingerprint(tensors, progress)
    write_tensors(directory / STATE, tensors, {"progress": progress, "sha256": sha256})


def read_state(directory: Path, settings: Mapping[str, Any]) -> TrainingState | None:
    """Where the training in this folder stood; None if there is none unfinished.

    Raises:
        ValueError: It was started with other settings, or the file is damaged.
    """
    file = directory / STATE
    if not file.is_file():
        return None
    tensors, metadata = _read(file)
    text = metadata.get("progress", "")
    if fingerprint(tensors, text) != metadata.get("sha256"):
        raise ValueError(f"{file}: damaged; start anew with --overwrite")
    progress = json.loads(text)
    check_settings(directory, progress["settings"], settings)
    parts: dict[str, dict[str, Tensor]] = {"head": {}, "state": {}, "best": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    return TrainingState(
        parts["head"], progress["losses"], progress["epochs"], parts["state"], parts["best"]
    )


def read_finished(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``run.json`` says of the finished run in this folder; None if there is none.

    Raises:
        ValueError: It was made with other settings, or the file is damaged.
    """
    if (directory / STATE).exists() or not (directory / RUN).exists():
        return None
    info = read_info(directory)
    check_settings(directory, info["settings"], settings)
    return info


def read_info(directory: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        FileNotFoundError: There is no finished run in this folder.
        ValueError: The file is damaged.
    """
    file = directory / RUN
    if not file.is_file():
        hint = f"expected {RUN} in it"
        if (directory / STATE).is_file():
            hint = "unfinished: go on with `train --resume`"
        elif (directory / SETTINGS).is_file():
            hint = f"a comparison: the head that came out best is the run {directory / WINNER}"
        elif inside := sorted(str(path.parent) for path in directory.glob(f"*/{RUN}")):
            hint += f"; it holds {', '.join(inside)}"
        raise FileNotFoundError(f"{directory}: no finished run ({hint})")
    return read_json(file, "train again")


def check_settings(
    directory: Path, before: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raise a ValueError that names the first setting that is another than before, if any."""
    before = {**_LATER, **before}
    for name, value in settings.items():
        if name not in before and not value:
            continue  # an option that came later, and is not used
        if name == "images_sha256" and before.get(name) != value:
            raise ValueError(
                f"{directory}: the images have changed since it was started, so that former "
                "training images may be tested on; start anew with --overwrite"
            )
        if before.get(name) != value:
            raise ValueError(
                f"{directory}: was started with {name}={before.get(name)!r}, now it is {value!r}; "
                "resume with the same settings, or start anew with --overwrite"
            )


def _check_fingerprints(file: Path, model: nn.Module, info: Mapping[str, Any]) -> None:
    state = model.state_dict()
    head = {name: state.pop(name) for name in info["head"]}
    same = fingerprint(state) == info["backbone_sha256"]
    if fingerprint(head) != info["head_sha256"] or (file.name == MODEL and not same):
        raise ValueError(f"{file}: damaged (other values than were trained); train again")
    if not same:
        raise ValueError(
            f"{file.parent}: the backbone differs from the one this head was trained on "
            f"({info['settings']['model']}, weights {info['settings']['weights']}); "
            "give the same with --weights"
        )


def _load_into(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ValueError(f"{file}: does not fit the model of this run ({name!r})")
    model.load_state_dict({**own, **tensors})


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing from this run; train again")
    return read_tensors(file, "train again")


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
    if foreign := sorted(set(inside) - ours):
        raise FileExistsError(
            f"{folder}: holds other files ({foreign[0]}); choose another folder with --output"
        )
    if not resume and any(map(_is_run, folder.absolute().parents)):
        raise FileExistsError(f"{folder}: lies in the folder of a run; choose another --output")
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
