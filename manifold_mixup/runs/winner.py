"""What a comparison leaves: its results, the command of every row, and the best row as a run."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from manifold_mixup._files import write_json, write_whole
from manifold_mixup._progress import untracked
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import Candidates, Comparison, Replicate, Row, Scenario, in_points
from manifold_mixup.data import LabelledImages, NamedImage, Split, open_image
from manifold_mixup.features import FeatureStore, Samples
from manifold_mixup.inspection import INPUT
from manifold_mixup.mixing import Mix
from manifold_mixup.models import DIGITS
from manifold_mixup.reports import Pair
from manifold_mixup.runs.config import CompareConfig, TrainConfig
from manifold_mixup.runs.options import words_of
from manifold_mixup.runs.prepare import OF_TABLE, prepare_job
from manifold_mixup.runs.train import Trainer, run_job
from manifold_mixup.training import AUTO

RESULTS, TABLE = "results.json", "results.csv"

Found = Mapping[Scenario, Comparison]

_OF_CANDIDATE = ("layer", "alpha", "pairing", "label_smoothing", "clean_weight")


def row_config(row: Row, scenario: Scenario, config: CompareConfig) -> TrainConfig:
    """What `manifold-mixup train` has to be given to train a row by itself, with its first seed.

    Args:
        row: The row.
        scenario: How hard the data were made.
        config: Of the comparison.
    """
    names = ("data", "data_root", "skip_damaged", "task", "model", "weights", *OF_TABLE)
    given = {name: getattr(config, name) for name in names}
    given |= {name: getattr(row.candidate, name) for name in _OF_CANDIDATE}
    given |= {"shots": scenario.shots, "label_noise": scenario.label_noise}
    given["baseline"] = False if config.data == DIGITS else None
    given["weight_decay"] = row.chosen.get("weight_decay", AUTO)
    if "lr" not in row.chosen:
        return TrainConfig(**given, mixes=config.mixes)
    epochs = config.epochs or Candidates.epochs
    batch_size = config.batch_size or Candidates.batch_size
    steps: dict[str, Any] = {"lr": row.chosen["lr"], "epochs": epochs, "patience": epochs}
    return TrainConfig(**given, **steps, batch_size=batch_size, tail=config.tail)


def train_command(row: Row, scenario: Scenario, config: CompareConfig) -> str:
    """The command that trains a row by itself, and tests it elsewhere if the comparison did."""
    own = row_config(row, scenario, config)
    command = f"manifold-mixup train {shlex.quote(own.data)} {' '.join(words_of(own))}"
    if config.test_on is None:
        return command
    options = words_of(config, ("data_root", "skip_damaged"))
    where = " ".join([shlex.quote(config.test_on), "--run RUN", *options])
    return f"{command} --output RUN && manifold-mixup evaluate {where}"


def save_winner(
    folder: Path,
    row: Row,
    stores: Mapping[str, FeatureStore],
    replicate: Replicate,
    config: CompareConfig,
    data: LabelledImages,
    *,
    device: torch.device,
) -> None:
    """Train a row anew, from the features that are there, and write it as a run.

    Args:
        folder: Where the run goes.
        row: The row.
        stores: Features of all samples, by layer.
        replicate: The first.
        config: Of the comparison.
        data: The data set, checked, without what lies elsewhere.
        device: To train on.
    """
    own = replace(row_config(row, Scenario(), config), workers=config.workers)
    job = prepare_job(own, untracked, checked=data)
    job.model.to(device)
    parts = ("train", "val", "test")
    sets: dict[str, Samples] = {}
    if row.candidate.layer == INPUT:
        sets = {name: job.images(name) for name in parts}
    else:
        store = stores[row.candidate.layer]
        sets = {name: store.take(getattr(replicate, name)) for name in parts}
    folder.mkdir(exist_ok=True)
    run_job(Trainer(job, sets, lambda line: None, untracked), folder, None)


def told(found: Found, config: CompareConfig) -> dict[str, Any]:
    """All results as JSON values: those of the data as they are, and the others under ``cases``.

    Every row has the command that trains it.
    """
    own = {}
    for scenario, comparison in found.items():
        own[scenario.name] = comparison.to_dict()
        for row, values in zip(comparison.rows, own[scenario.name]["rows"], strict=True):
            values["command"] = train_command(row, scenario, config)
    return {**own.pop(""), "cases": own}


def write_results(folder: Path, found: Found, config: CompareConfig) -> None:
    """Write the results as JSON, and as a table of all rows."""
    results = told(found, config)
    write_json(folder / RESULTS, {"settings": config.stored(), **results})
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


def about(config: CompareConfig, images: int, classes: int, replicates: int) -> str:
    """What was compared, in a few sentences."""
    trained = "a linear head" if config.tail == "frozen" else "all that lies behind the layer"
    where = f", tested on {config.test_on}" if config.test_on else ""
    decays = ", ".join(f"{decay:g}" for decay in config.weight_decays)
    return (
        "Mixup trains on weighted averages of two images' features, and of their classes. "
        f"Compared are ways to train {trained} on {images} images of {classes} "
        f"classes{where}, with features of {config.model}; {replicates} replicates, each with "
        f"its own split and mixes: as many as tell {in_points(config.worth)} points, or as "
        f"were asked for. Each linear head got the weight decay (of {decays}) that validation "
        "images find best for it. Alpha is the strength of mixing: at 0.2 one image "
        "dominates, at 1 all weights are alike, above that halves prevail."
    )


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
