"""One comparison, from the names of data and model to its results on disk."""

import csv
import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manifold_mixup.backbone import input_size, replace_head
from manifold_mixup.checkpoint import FEATURES, seeded_backbone
from manifold_mixup.compare import Start, check_grid, compare_stores
from manifold_mixup.comparison import Comparison
from manifold_mixup.cut import cut
from manifold_mixup.data import ImageSet, is_csv, list_data
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.features import extract_features
from manifold_mixup.files import write_json, write_whole
from manifold_mixup.folders import check_images
from manifold_mixup.freezing import freeze
from manifold_mixup.images import model_transform, open_image
from manifold_mixup.loading import find_device
from manifold_mixup.mixing import Mix
from manifold_mixup.named import NamedImage
from manifold_mixup.parts import Data, Part, join_parts, split_parts
from manifold_mixup.prepare import head_input
from manifold_mixup.probe import trace
from manifold_mixup.progress import Track
from manifold_mixup.report_page import Pair, settings_sentence, write_page
from manifold_mixup.run_folder import check_places, claimed_folder
from manifold_mixup.task_choice import check_pairs
from manifold_mixup.tasks import Classes
from manifold_mixup.train import trained_parameters
from manifold_mixup.trainer import Say

GRID = (
    *("alphas", "pairings", "label_smoothing", "lrs", "weight_decays"),
    *("epochs", "batch_size"),
)
RESULTS, TABLE, PAGE = "results.json", "results.csv", "report.html"


def compare_run(
    settings: Mapping[str, Any],
    *,
    output: Path | None,
    overwrite: bool,
    features: Path | None,
    device: str,
    workers: int,
    say: Say,
    track: Track,
) -> tuple[Path, Comparison]:
    """Compare ways to train a linear head on a data set, and write what came of it.

    Args:
        settings: ``data``, ``data_root`` (where a named data set lies, or None),
            ``skip_damaged`` (whether to leave damaged images out), ``model``, ``weights``,
            ``layers`` (None for what the head takes), ``seeds``, and what `compare_stores` takes
            by name.
        output: The folder for the results; None for the next free one below ``runs/``.
        overwrite: Replace the results that are there.
        features: Where features are stored; None for the folder of the results.
        device: ``"auto"``, or a device's name.
        workers: Processes that load images.
        say: Takes each line to show.
        track: Shows how far a step is.

    Raises:
        ValueError: Settings, model, layers or data are not what they should be.
        OSError: A file or folder is missing, or cannot be written.
    """
    grid = {name: settings[name] for name in GRID}
    check_grid(**grid)
    where, path = find_device(device), Path(settings["data"])
    check_places(path, output, features)
    if settings["weights"] == "none":
        raise ValueError("--weights none: every seed would have another backbone; give a file")
    data = _listed(settings)
    name = f"{path.stem if is_csv(path) else path.name}-compare"
    files = (RESULTS, TABLE, PAGE, FEATURES)
    # Features alone are what is left of a comparison that was interrupted: it goes on.
    go_on = output is not None and not any((output / one).exists() for one in files[:-1])
    with claimed_folder(output, name, overwrite=overwrite, resume=go_on, files=files) as folder:
        model, layers = _prepared(settings, data)
        data = check_images(data, skip_damaged=settings["skip_damaged"], track=track)
        starts = [_start(settings, data, seed) for seed in range(settings["seeds"])]
        images = join_parts(data.parts.values())
        channels = input_size(settings["model"], model)[0]
        say(f"data: {data.title}, {len(data.classes)} classes, {len(images)} images")
        stores = extract_features(
            model.to(where),
            layers,
            ImageSet(images, model_transform(settings["model"], model), channels),
            features or folder / FEATURES,
            classes=data.classes,
            overwrite=overwrite,
            workers=workers,
            say=say,
            track=track,
        )
        stores = {layer: store.load() for layer, store in stores.items()}
        found = compare_stores(model, stores, starts, track=track, **grid)
        _write(folder, found, settings)
        write_page(
            folder / PAGE,
            found,
            title=f"{settings['model']} on {path.name}",
            about=settings_sentence(settings, len(images), len(data.classes)),
            command=train_command(found, found.winner, settings),
            pairs=_pairs(images, data.classes, channels),
        )
    return folder, found


def train_command(found: Comparison, place: int, settings: Mapping[str, Any]) -> str:
    """The command that trains a row of a comparison by itself, with its first seed."""
    row = found.rows[place]
    options = {
        "model": settings["model"],
        "weights": settings["weights"],
        "layer": row.trial.layer,
        "alpha": row.trial.alpha,
        "pairing": row.trial.pairing,
        "label-smoothing": row.trial.label_smoothing,
        "lr": row.settings.lr,
        "weight-decay": row.settings.weight_decay,
        "epochs": settings["epochs"],
        "batch-size": settings["batch_size"],
        "seed": row.settings.seed,
        "data-root": settings["data_root"],
    }
    words = [
        f"--{name} {shlex.quote(f'{value}')}"
        for name, value in options.items()
        if value is not None
    ]
    words += ["--skip-damaged"] if settings["skip_damaged"] else []
    return f"manifold-mixup train {shlex.quote(settings['data'])} {' '.join(words)}"


def _listed(settings: Mapping[str, Any]) -> Data:
    """The data set, if it is of classes that the pairings can mix."""
    data = list_data(settings["data"], root=settings["data_root"])
    if data.task != "classes":
        raise ValueError(f"{data.title}: compare is for classes, this has {data.task}")
    for pairing in settings["pairings"]:
        first = torch.tensor(data.parts["train"].targets[:2])
        check_pairs(Classes(), pairing, (), first, len(data.classes))
    return data


def _prepared(settings: Mapping[str, Any], data: Data) -> tuple[nn.Module, list[str]]:
    """The model with only a new head to train, and the layers to compare."""
    model = seeded_backbone(settings["model"], settings["weights"], 0)
    head = replace_head(model, len(data.classes))
    freeze(model, except_=head)
    size = input_size(settings["model"], model)
    example = torch.randn(2, *size, generator=seeded_generator(0, "example"))
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(
            f"{settings['model']}: its head is no linear layer with a bias, which is all that "
            "compare trains; choose another --model"
        )
    layers = list(settings["layers"] or [head_input(model, head, example)])
    found = trace(model, (example,), {})
    for layer in layers:  # or the error would come when all images have been read
        trained_parameters(found, layer)
        cut(model, layer, example)
    return model, layers


def _start(settings: Mapping[str, Any], data: Data, seed: int) -> Start:
    """Split and head of `manifold-mixup train` with this seed."""
    placed, begin = {}, 0
    for name, part in data.parts.items():
        positions = range(begin, begin + len(part))
        placed[name] = Part(positions, part.targets, part.names)
        begin += len(part)
    parts = split_parts(Data(data.title, data.classes, placed), seed=seed)
    train, val, test = (
        torch.tensor(list(parts[name].sources)) for name in ("train", "val", "test")
    )
    model = seeded_backbone(settings["model"], settings["weights"], seed)
    head = replace_head(model, len(data.classes))
    assert isinstance(head, nn.Linear)  # as checked before
    return Start(seed, train, val, test, head.weight.detach(), head.bias.detach())


def _pairs(images: Part, classes: list[str], channels: int) -> list[Pair]:
    """Three pairs of images, with the lam that a mix of them drew."""
    mix = Mix.sample(len(images), 1.0, generator=seeded_generator(0, "pairs"))
    chosen = torch.linspace(0, len(images) - 1, 3).long().tolist()
    return [
        Pair(
            (_thumbnail(images, i, channels), _thumbnail(images, int(mix.partner[i]), channels)),
            (classes[images.targets[i]], classes[images.targets[int(mix.partner[i])]]),
            float(mix.lam[i]),
        )
        for i in chosen
    ]


def _thumbnail(images: Part, index: int, channels: int) -> bytes:
    """A small PNG of an image."""
    source = images.sources[index]
    image = open_image(source.load() if isinstance(source, NamedImage) else source, channels)
    image.thumbnail((160, 160))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write(folder: Path, found: Comparison, settings: Mapping[str, Any]) -> None:
    """Write the results as JSON and as a table."""
    told = found.to_dict()
    for place, row in enumerate(told["rows"]):
        row["command"] = train_command(found, place, settings)
    write_json(folder / RESULTS, {"settings": dict(settings), **told})
    names = [name for name, value in told["rows"][0].items() if not isinstance(value, list | dict)]

    def write(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(told["rows"])

    write_whole(folder / TABLE, write)
