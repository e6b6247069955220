"""One training, from the names of data and model to a run on disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.backbone import input_size, replace_head
from manifold_mixup.checkpoint import (
    CURVE,
    RELIABILITY,
    STATE,
    read_finished,
    read_state,
    save_run,
    seeded_backbone,
    write_state,
)
from manifold_mixup.data import ImageSet, check_data, load_data
from manifold_mixup.drawing import check_alpha
from manifold_mixup.freezing import freeze
from manifold_mixup.images import model_transform
from manifold_mixup.loading import find_device
from manifold_mixup.manager import ManifoldMixup
from manifold_mixup.metrics import predict_logits, summarize
from manifold_mixup.mixable import layer_table
from manifold_mixup.pairing import check_pairing
from manifold_mixup.parts import Data, Part, split_parts
from manifold_mixup.progress import Track
from manifold_mixup.report import draw_curve, draw_reliability
from manifold_mixup.resume import Training
from manifold_mixup.run_folder import claimed_folder
from manifold_mixup.settings import check_training
from manifold_mixup.train import train_head

Say = Callable[[str], None]

# The settings that `train_head` takes.
HYPERPARAMETERS = (
    *("layer", "alpha", "epochs", "seed", "batch_size", "lr", "weight_decay"),
    *("label_smoothing", "pairing"),
)


@dataclass(frozen=True)
class Job:
    """What a training needs, loaded and checked.

    Attributes:
        settings: ``data``, ``images_sha256``, ``model``, ``weights``, ``way`` and the
            `HYPERPARAMETERS`: what decides every number that comes out.
        model: A frozen backbone with a new head.
        head: The new head.
        data: The data set.
        parts: Its training, validation and test part.
        sets: The same as tensors for the model.
        channels: Number of channels that the model takes.
        workers: Processes that load images.
        track: Shows how far a step is.
    """

    settings: dict[str, Any]
    model: nn.Module
    head: nn.Module
    data: Data
    parts: dict[str, Part]
    sets: dict[str, ImageSet]
    channels: int
    workers: int
    track: Track


def train_run(
    settings: Mapping[str, Any],
    *,
    output: Path | None,
    overwrite: bool,
    resume: bool,
    baseline: bool,
    save_model: bool,
    data_root: Path | None,
    skip_damaged: bool,
    device: str,
    workers: int,
    say: Say,
    track: Track,
) -> tuple[Path, dict[str, Any]]:
    """Train a head and write the run, or go on with an interrupted one.

    Args:
        settings: See `Job`; a ``layer`` of None is replaced by what the head takes.
        output: The run's folder; None for the next free one below ``runs/``.
        overwrite: Replace the run that is there.
        resume: Go on with the run that is there; a finished one is only read.
        baseline: Train the same head without mixup too, and measure it beside.
        save_model: Write the whole model too.
        data_root: Where a named data set lies.
        skip_damaged: Leave damaged images out.
        device: ``"auto"``, or a device's name.
        workers: Processes that load images.
        say: Takes each line to show.
        track: Shows how far a step is.

    Returns:
        The folder, and what its ``run.json`` says.

    Raises:
        ValueError: Settings, model, layer or data are not what they should be.
        OSError: A file or folder is missing, or cannot be written.
        KeyboardInterrupt: Its message says what was kept.
    """
    _check_settings(settings)
    where = find_device(device)
    name = Path(settings["data"]).name
    with claimed_folder(output, name, overwrite=overwrite, resume=resume) as folder:
        try:
            job = prepare_job(settings, data_root, skip_damaged, workers, track)
            if resume and (finished := read_finished(folder, job.settings)):
                return folder, finished
            before = read_state(folder, job.settings) if resume else None
            job.model.to(where)
            for line in _described(job):
                say(line)
            return folder, run_job(job, folder, before, baseline, save_model, say)
        except KeyboardInterrupt:
            kept = (folder / STATE).exists()
            raise KeyboardInterrupt(
                f"interrupted; the same command with --output {folder} --resume goes on"
                if kept
                else "interrupted before the first epoch ended; nothing was kept"
            ) from None


def prepare_job(
    settings: Mapping[str, Any],
    data_root: Path | None,
    skip_damaged: bool,
    workers: int,
    track: Track,
) -> Job:
    """Load model and data, and freeze all but a new head."""
    name, seed, layer = settings["model"], settings["seed"], settings["layer"]
    check_data(settings["data"])
    model = seeded_backbone(name, settings["weights"], seed)
    size = input_size(name, model)
    example = torch.zeros(2, *size)
    if layer is not None:
        ManifoldMixup(model, layer, example=example).detach()
    data = load_data(settings["data"], root=data_root, skip_damaged=skip_damaged, track=track)
    parts = split_parts(data, seed=seed)
    head = replace_head(model, len(data.classes))
    freeze(model, except_=head)
    transform = model_transform(name, model)
    return Job(
        settings={
            **settings,
            "layer": layer or head_input(model, head, example),
            "images_sha256": data.sha256,
        },
        model=model,
        head=head,
        data=data,
        parts=parts,
        sets={part: ImageSet(images, transform, size[0]) for part, images in parts.items()},
        channels=size[0],
        workers=workers,
        track=track,
    )


def run_job(
    job: Job, folder: Path, before: Training | None, baseline: bool, save_model: bool, say: Say
) -> dict[str, Any]:
    """Train from where an earlier training stood, measure on the test part, write the run."""

    def keep(training: Training) -> None:
        write_state(folder, training, job.settings)
        say(_epoch_line(training, job.settings["epochs"]))

    start = {name: tensor.clone() for name, tensor in job.head.state_dict().items()}
    training = _train(job, resume=before, on_epoch=keep)
    logits, target = _test(job)
    info = {
        "settings": job.settings,
        "classes": job.data.classes,
        "channels": job.channels,
        "held_out": {name: job.parts[name].names for name in ("val", "test")},
        "damaged": job.data.damaged,
        "metrics": summarize(logits, target),
        "epochs": training.epochs,
        "losses": training.losses,
    }
    if baseline:
        say("the same without mixup")
        job.head.load_state_dict(start)
        _train(job, alpha=0.0)
        info["baseline"] = summarize(*_test(job))
        job.model.load_state_dict(training.head, strict=False)
    title = f"{job.settings['model']}, mixed at {job.settings['layer']}"
    draw_curve(folder / CURVE, training.epochs, title)
    draw_reliability(folder / RELIABILITY, logits, target, f"{title}, test part")
    return save_run(folder, job.model, training, info, whole=save_model)


def head_input(model: nn.Module, head: nn.Module, example: Tensor) -> str:
    """The name of the last layer before the head that can be mixed.

    Args:
        model: The model.
        head: A part of it.
        example: A batch of images (B, C, H, W).

    Raises:
        ValueError: There is none.
    """
    # Not what holds the head, as `head` of ConvNeXt does: the whole head must lie behind.
    size = sum(parameter.numel() for parameter in head.parameters())
    rows = [
        row for row in layer_table(model, example) if row.mixable and row.parameters_after >= size
    ]
    if not rows:
        raise ValueError(f"{type(model).__name__}: no layer before the head can be mixed")
    fewest = min(row.parameters_after for row in rows)
    names = [row.name for row in rows if row.parameters_after == fewest]
    return min(reversed(names), key=lambda name: name.count("."))


def _train(job: Job, **options: Any) -> Training:
    keywords = {name: job.settings[name] for name in HYPERPARAMETERS}
    return train_head(
        job.model,
        job.sets["train"],
        validation=job.sets["val"],
        workers=job.workers,
        track=job.track,
        **{**keywords, **options},
    )


def _test(job: Job) -> tuple[Tensor, Tensor]:
    return predict_logits(job.model, job.sets["test"], workers=job.workers, track=job.track)


def _check_settings(settings: Mapping[str, Any]) -> None:
    check_alpha(settings["alpha"])
    check_pairing(settings["pairing"])
    check_training(
        settings["epochs"],
        settings["batch_size"],
        settings["lr"],
        settings["weight_decay"],
        settings["label_smoothing"],
    )


def _described(job: Job) -> list[str]:
    counts = ", ".join(f"{len(job.parts[part])} {part}" for part in ("train", "val", "test"))
    lines = [
        f"data: {job.data.title}, {len(job.data.classes)} classes, images: {counts}",
        f"model: {job.settings['model']}, mixed at {job.settings['layer']}, "
        f"alpha {job.settings['alpha']:g}; only the head is trained",
    ]
    if job.data.damaged:
        lines.append(f"{len(job.data.damaged)} damaged images left out")
    if job.data.ignored:
        lines.append(f"{len(job.data.ignored)} files ignored, no images by their endings")
    return lines


def _epoch_line(training: Training, epochs: int) -> str:
    row = training.metrics
    return (
        f"epoch {len(training.epochs)}/{epochs}  loss: {row['mixed_loss']:.3f} mixed, "
        f"{row['train_loss']:.3f} clean, {row['val_loss']:.3f} validation  "
        f"accuracy: {row['train_accuracy']:.1%} clean, {row['val_accuracy']:.1%} validation"
    )
