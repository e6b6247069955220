"""One training, from the names of data and model to a run on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from manifold_mixup._progress import Track
from manifold_mixup.data import check_harder, describe_harder, is_csv
from manifold_mixup.features import Samples, check_place, extract_features, place_store
from manifold_mixup.hooks import check_kind
from manifold_mixup.inspection import find_device
from manifold_mixup.mixing import check_alpha, check_pairing, check_prob
from manifold_mixup.models import check_head
from manifold_mixup.runs.checkpoint import (
    FEATURES,
    MODEL,
    STATE,
    check_places,
    claimed_folder,
    read_finished,
    read_state,
)
from manifold_mixup.runs.prepare import Job, check_tail, check_way, prepare_job
from manifold_mixup.runs.selection import check_auto
from manifold_mixup.runs.trainer import KNOWN, Trainer, run_job
from manifold_mixup.training import (
    AUTO,
    BATCH_SIZE,
    Say,
    check_decay,
    check_optimizer,
    check_partners,
    check_task,
    check_training,
)

DTYPES = ("float32", "float16", "bfloat16")


def train_run(
    settings: Mapping[str, Any],
    *,
    output: Path | None,
    overwrite: bool,
    resume: bool,
    baseline: bool,
    save_model: bool,
    features: Path | None,
    fold: bool,
    dtype: str,
    in_memory: str,
    data_root: Path | None,
    skip_damaged: bool,
    device: str,
    workers: int,
    say: Say,
    track: Track,
) -> tuple[Path, dict[str, Any]]:
    """Train a head and write the run, or go on with an interrupted one.

    Args:
        settings: See `Job`; a ``layer`` or ``task`` of None is chosen.
        output: The run's folder; None for the next free one below ``runs/``.
        overwrite: Replace the run that is there.
        resume: Go on with the run that is there; a finished one is only read.
        baseline: Train the same head without mixup too, and measure it beside.
        save_model: Write the whole model too.
        features: Where features are stored; None for the run's folder.
        fold: Store them behind the affine steps that follow the layer.
        dtype: What to store them in: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        in_memory: ``"yes"``, ``"no"`` or ``"auto"``: whether they are read into memory.
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
    _check_settings(settings, save_model, in_memory, dtype)
    where = find_device(device)
    data = Path(settings["data"])
    check_places(data, output, features)
    name = data.stem if is_csv(data) else data.name
    with claimed_folder(output, name, overwrite=overwrite, resume=resume) as folder:
        try:
            job = prepare_job(settings, data_root, skip_damaged, track)
            if settings["alpha"] == AUTO:
                check_auto(job)
            if resume and (finished := read_finished(folder, job.settings)):
                _check_asked(folder, finished, baseline=baseline, save_model=save_model)
                return folder, finished
            before = read_state(folder, job.settings) if resume else None
            job.model.to(where)
            for line in _described(job):
                say(line)
            store = features or folder / FEATURES
            sets = load_sets(job, store, overwrite, fold, dtype, in_memory, workers, say, track)
            trainer = Trainer(job, sets, workers, say, track)
            return folder, run_job(
                trainer, folder, before, baseline=baseline, save_model=save_model
            )
        except KeyboardInterrupt:
            kept = (folder / STATE).exists() or (folder / FEATURES).exists()
            raise KeyboardInterrupt(
                f"interrupted; the same command with --output {folder} --resume goes on"
                if kept
                else "interrupted before there was anything to keep"
            ) from None


def load_sets(
    job: Job,
    directory: Path,
    overwrite: bool,
    fold: bool,
    dtype: str,
    in_memory: str,
    workers: int,
    say: Say,
    track: Track,
) -> dict[str, Samples]:
    """The samples of each part: images, or their features, which are stored now if they are not.

    Where features of all parts are stored together, all but the test part is there as `KNOWN` too.

    Args:
        job: The job.
        directory: Where features are stored.
        overwrite: Replace other features that are stored there.
        fold: See `train_run`, as for the others.
        dtype: See there.
        in_memory: See there.
        workers: See there.
        say: See there.
        track: See there.
    """
    if job.settings["way"] == "hooked":
        return {name: job.images(name) for name in job.parts}
    views, others = job.settings["views"], [name for name in job.parts if name != "train"]
    # Views are of training images alone.
    groups = {"train": ["train"], "clean": others} if views else {"": list(job.parts)}
    sets: dict[str, Samples] = {}
    for folder, names in groups.items():
        store = extract_features(
            job.model,
            job.settings["layer"],
            job.images(*names),
            directory / folder,
            views=views if folder == "train" else 1,
            classes=job.data.classes,
            overwrite=overwrite,
            fold=fold and job.settings["kind"] == "mix",
            dtype=getattr(torch, dtype),
            workers=workers,
            say=say,
            track=track,
        )
        store = place_store(store, in_memory)
        begin, known = 0, list[int]()
        for name in names:
            own = range(begin, begin + len(job.parts[name]))
            sets[name], begin = store.take(own), own.stop
            known += [] if name == "test" else own
        if not views:
            sets[KNOWN] = store.take(known)
    return sets


def _check_settings(
    settings: Mapping[str, Any], save_model: bool, in_memory: str, dtype: str
) -> None:
    if not -(2**63) <= settings["seed"] < 2**63:
        raise ValueError(f"seed={settings['seed']} must fit into 64 bits")
    check_task(settings["task"], settings["loss"])
    check_harder(settings["shots"], settings["label_noise"])
    check_head(settings["head"])
    check_tail(settings["tail"])
    check_way(settings["way"])
    check_place(in_memory)
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    if save_model and settings["head"] != "linear":
        raise ValueError(f"--save-model: timm and torchvision know no {settings['head']} head")
    check_optimizer(settings["optimizer"])
    check_decay(settings["weight_decay"])
    if settings["class_weight"] not in (None, "balanced"):
        raise ValueError(f"--class-weight {settings['class_weight']}: expected balanced")
    _check_mixes(settings)
    if settings["views"] == 1:
        raise ValueError("--views 1: each epoch would see the same view; give at least 2")
    if settings["patience"] is not None and settings["patience"] < 1:
        raise ValueError(f"--patience {settings['patience']} must be at least 1")
    if settings["alpha"] != AUTO:
        check_alpha(settings["alpha"])
    check_kind(settings["kind"])
    check_prob(settings["prob"])
    if not 0 <= settings["alpha_warmup"] <= 1:
        raise ValueError(f"--alpha-warmup {settings['alpha_warmup']} must be in [0, 1]")
    check_pairing(settings["pairing"])
    if settings["prob"]:
        alpha = 1.0 if settings["alpha"] == AUTO else settings["alpha"]
        check_partners(settings["batch_size"] or BATCH_SIZE, alpha)
    ranged = ("epochs", "batch_size", "lr", "label_smoothing", "clean_weight")
    check_training(**{name: settings[name] for name in ranged if settings[name] is not None})


def _check_mixes(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError if mixes are asked for where the head is not solved for."""
    mixes = settings["mixes"]
    if mixes is None:
        return
    if mixes < 1:
        raise ValueError(f"--mixes {mixes} must be at least 1")
    usual: dict[str, Any] = {
        "epochs": None,
        "batch_size": None,
        "lr": None,
        "patience": None,
        "optimizer": AUTO,
    }
    usual |= {"head": "linear", "tail": "frozen", "kind": "mix", "alpha_warmup": 0}
    for name, value in usual.items():
        if settings[name] != value:
            raise ValueError(
                f"--mixes {mixes} is for a head that is solved for: leave out "
                f"--{name.replace('_', '-')}"
            )


def _check_asked(
    folder: Path, finished: Mapping[str, Any], *, baseline: bool, save_model: bool
) -> None:
    """Raise a ValueError if a finished run lacks what is asked for."""
    for option, is_asked, is_there in (
        ("--baseline", baseline, "baseline" in finished),
        ("--save-model", save_model, (folder / MODEL).is_file()),
    ):
        if is_asked and not is_there:
            raise ValueError(
                f"{folder}: is finished, without {option}; train it anew with --overwrite"
            )


def _described(job: Job) -> list[str]:
    counts = ", ".join(f"{len(job.parts[part])} {part}" for part in ("train", "val", "test"))
    trained = {"frozen": "only the head", "trainable": "all behind the layer"}
    kind = "" if job.settings["kind"] == "mix" else f" by {job.settings['kind']}"
    lines = [
        f"data: {job.data.title}, {_outputs(job)}, images: {counts}",
        f"model: {job.settings['model']}, mixed{kind} at {job.settings['layer']}, alpha "
        f"{job.settings['alpha']}; {trained[job.settings['tail']]} is trained",
    ]
    if harder := describe_harder(job.settings["shots"], job.settings["label_noise"]):
        lines.append(harder)
    if job.data.why:
        lines.append(f"labels are taken for {job.data.task} ({job.data.why}); --task overrides")
    if job.reason:
        lines.append(f"the whole model runs in every step: {job.reason}")
    if job.data.damaged:
        lines.append(f"{len(job.data.damaged)} damaged images left out")
    if job.data.ignored:
        lines.append(f"{len(job.data.ignored)} files ignored, no images by their endings")
    return lines


def _outputs(job: Job) -> str:
    n = len(job.data.classes)
    return f"{n} {job.data.task if n > 1 else job.data.task.rstrip('s')}"
