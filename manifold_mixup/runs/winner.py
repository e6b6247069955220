"""The row of a comparison that came out best, as a command and as a run."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from manifold_mixup._files import write_json, write_whole
from manifold_mixup._progress import untracked
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import Candidates, Comparison, Replicate, Row, Scenario
from manifold_mixup.data import LabelledImages, NamedImage, Split, open_image
from manifold_mixup.features import FeatureStore, Samples
from manifold_mixup.inspection import INPUT
from manifold_mixup.mixing import Mix
from manifold_mixup.reports import Pair
from manifold_mixup.runs.prepare import prepare_job
from manifold_mixup.runs.trainer import Trainer, run_job

# What a row does not decide, as `manifold-mixup train` has it without options.
_USUAL = {
    **{"loss": None, "head": "linear", "way": "auto", "augment": False, "views": 0},
    **{"exclude": None, "kind": "mix", "prob": 1.0, "alpha_warmup": 0.0, "class_weight": None},
    **{"patience": None, "optimizer": "auto"},
}


def row_settings(row: Row, scenario: Scenario, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `manifold-mixup train` has to be given to train a row by itself, with its first seed.

    Args:
        row: The row.
        scenario: How hard the data were made.
        settings: Of the comparison.
    """
    names = ("task", "model", "weights")
    own = {name: getattr(row.candidate, name) for name in _OF_TRIAL}
    chosen = {name: row.settings.get(name) for name in ("lr", "weight_decay")}
    hard = {"shots": scenario.shots, "label_noise": scenario.label_noise}
    return (
        {name: settings[name] for name in names} | own | chosen | _training(row, settings) | hard
    )


def _training(row: Row, settings: Mapping[str, Any]) -> dict[str, Any]:
    """How long the head is trained, if it is by steps, and what else decides the numbers."""
    steps = dict.fromkeys(("epochs", "patience", "batch_size"))
    if "lr" not in row.settings:
        return {"tail": "frozen", **steps, "mixes": settings["mixes"], "seed": 0}
    steps["epochs"] = steps["patience"] = settings["epochs"] or Candidates.epochs
    steps["batch_size"] = settings["batch_size"] or Candidates.batch_size
    return {"tail": settings["tail"], **steps, "mixes": None, "seed": 0}


_OF_TRIAL = ("layer", "alpha", "pairing", "label_smoothing", "clean_weight")


# Left out of a command where it says what holds without it.
_DEFAULTS = {
    **{"tail": "frozen", "pairing": "any", "label_smoothing": 0.0, "clean_weight": 0.0},
    **{"shots": None, "label_noise": 0.0},
}


def train_command(row: Row, scenario: Scenario, settings: Mapping[str, Any]) -> str:
    """The command that trains a row by itself, and tests it elsewhere if the comparison did."""
    where = _told({"data_root": settings["data_root"]})
    where += ["--skip-damaged"] if settings["skip_damaged"] else []
    words = [shlex.quote(settings["data"]), *_told(row_settings(row, scenario, settings)), *where]
    command = f"manifold-mixup train {' '.join(words)}"
    if settings["test_on"] is None:
        return command
    words = [shlex.quote(settings["test_on"]), "--run RUN", *where]
    return f"{command} --output RUN && manifold-mixup evaluate {' '.join(words)}"


def _told(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command, but those that say what holds without them."""
    return [
        f"--{name.replace('_', '-')} {_word(value)}"
        for name, value in options.items()
        if value is not None and (name not in _DEFAULTS or value != _DEFAULTS[name])
    ]


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    text = f"{value}"
    return shlex.quote(text.removesuffix(".0") if isinstance(value, float) else text)


def save_winner(
    folder: Path,
    row: Row,
    stores: Mapping[str, FeatureStore],
    replicate: Replicate,
    settings: Mapping[str, Any],
    data: LabelledImages,
    *,
    device: torch.device,
    workers: int,
) -> None:
    """Train a row anew, from the features that are there, and write it as a run.

    Args:
        folder: Where the run goes.
        row: The row.
        stores: Features of all samples, by layer.
        replicate: The first.
        settings: Of the comparison.
        data: The data set, checked, without what lies elsewhere.
        device: To train on.
        workers: Processes that load images.
    """
    own = {**_USUAL, **row_settings(row, Scenario(), settings), "data": settings["data"]}
    job = prepare_job(own, None, False, untracked, checked=data)
    job.model.to(device)
    parts = ("train", "val", "test")
    sets: dict[str, Samples] = {}
    if row.candidate.layer == INPUT:
        sets = {name: job.images(name) for name in parts}
    else:
        store = stores[row.candidate.layer]
        sets = {name: store.take(getattr(replicate, name)) for name in parts}
    folder.mkdir(exist_ok=True)
    trainer = Trainer(job, sets, workers, lambda line: None, untracked)
    run_job(trainer, folder, None, baseline=False, save_model=False)


RESULTS, TABLE = "results.json", "results.csv"


Found = Mapping[Scenario, Comparison]


def told(found: Found, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All results as JSON values: those of the data as they are, and the others under ``cases``.

    Every row has the command that trains it.
    """
    own = {}
    for scenario, comparison in found.items():
        own[scenario.name] = comparison.to_dict()
        for row, values in zip(comparison.rows, own[scenario.name]["rows"], strict=True):
            values["command"] = train_command(row, scenario, settings)
    return {**own.pop(""), "cases": own}


def write_results(folder: Path, found: Found, settings: Mapping[str, Any]) -> None:
    """Write the results as JSON, and as a table of all rows."""
    results = told(found, settings)
    write_json(folder / RESULTS, {"settings": dict(settings), **results})
    scenarios = {"": results, **results["cases"]}
    rows = [
        {"case": scenario, **row}
        for scenario, values in scenarios.items()
        for row in values["rows"]
    ]
    names = _columns(rows)

    def write(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(folder / TABLE, write)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all numbers and words: a row that failed, or had no steps, lacks some."""
    longest = sorted(rows, key=len, reverse=True)
    return [
        name
        for name in dict.fromkeys(name for row in longest for name in row)
        if not any(isinstance(row.get(name), list | dict) for row in rows)
    ]


def draw_pairs(images: Split, classes: list[str], channels: int) -> list[Pair]:
    """Three pairs of images, with the lam that a mix of them drew."""
    mix = Mix.sample(len(images), 1.0, generator=seeded_generator(0, "pairs"))
    chosen = [0, len(images) // 2, len(images) - 1]
    return [
        Pair(
            (_thumbnail(images, i, channels), _thumbnail(images, int(mix.partner[i]), channels)),
            (classes[images.targets[i]], classes[images.targets[int(mix.partner[i])]]),
            float(mix.lam[i]),
        )
        for i in chosen
    ]


def _thumbnail(images: Split, index: int, channels: int) -> bytes:
    """A small PNG of an image."""
    source = images.sources[index]
    image = open_image(source.load() if isinstance(source, NamedImage) else source, channels)
    image.thumbnail((160, 160))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
