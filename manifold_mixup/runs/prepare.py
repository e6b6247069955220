"""What a training needs, from the names of data and model: loaded, checked, frozen."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manifold_mixup._progress import Track
from manifold_mixup._random import seeded_generator
from manifold_mixup.data import (
    ImageSet,
    LabelledImages,
    Split,
    about_copies,
    check_images,
    describe_harder,
    harden,
    join_splits,
    list_data,
    split_images,
    telling_damaged,
)
from manifold_mixup.features import OtherFeatures, extract_features
from manifold_mixup.hooks import KINDS, Preflight, sampler
from manifold_mixup.inspection import Trace, find_entries, is_mixable, trace
from manifold_mixup.models import (
    Transform,
    augmenting_transform,
    changes_in_training,
    cut_traced,
    freeze,
    input_size,
    model_transform,
    replace_head,
)
from manifold_mixup.runs.checkpoint import seeded_backbone
from manifold_mixup.runs.config import CompareConfig, RunConfig, TrainConfig
from manifold_mixup.runs.options import refuse_given, told_as_options
from manifold_mixup.training import Classes, Labels, Task, Values, check_pairs, trained_parameters

# The options of how a CSV file is read, beside its task.
OF_TABLE = ("columns", "label_separator", "skip_unlabelled")


@dataclass(frozen=True)
class Job:
    """What a training needs, loaded and checked.

    Attributes:
        config: What is asked for, with the layer, the way and the task that were chosen.
        model: A backbone with a new head, of which only what is to be trained requires gradients.
        data: The data set.
        task: What is trained for.
        parts: Its training, validation and test part; see `harden` for ``shots`` and
            ``label_noise``.
        transforms: From a PIL image to what the model takes: in training, else.
        channels: Number of channels that the model takes.
        reason: Why the whole model runs in every step, if that was not asked for.
    """

    config: TrainConfig
    model: nn.Module
    data: LabelledImages
    task: Task
    parts: dict[str, Split]
    transforms: tuple[Transform, Transform]
    channels: int
    reason: str

    @property
    def settings(self) -> dict[str, Any]:
        """What decides all that comes out, as JSON values."""
        return {**self.config.stored(), "images_sha256": self.data.sha256}

    @property
    def positions(self) -> dict[str, Split]:
        """The parts, with positions among all images of the data set as their sources."""
        return _parts(self.data.by_position(), self.config)

    @property
    def all_images(self) -> ImageSet:
        """All images of the data set as tensors for the model, as they are never augmented."""
        whole = join_splits(self.data.parts.values())
        return ImageSet(whole, self.transforms[1], self.channels)

    def images(self, *names: str) -> ImageSet:
        """The images of parts as tensors for the model, one part after the other."""
        transform = self.transforms["train" not in names]
        return ImageSet(join_splits(self.parts[n] for n in names), transform, self.channels)


def prepare_job(
    config: TrainConfig, track: Track, *, checked: LabelledImages | None = None
) -> Job:
    """Load model and data, and freeze all but what is to be trained.

    Args:
        config: What is asked for.
        track: Shows how far the check of the images is.
        checked: The data set, where its images and the layer have been checked already.

    Raises:
        ValueError: Model, layer or data are not what they should be.
        OSError: A file or folder is missing.
    """
    _check_way(config)
    name, seed, layer = config.model, config.seed, config.layer
    checks: dict[str, Any] = {"skip_damaged": config.skip_damaged, "track": track}
    data = checked or list_asked(config, track)
    with telling_damaged(data, **checks):
        parts = _parts(data, config)
    task = make_task(data, parts["train"], loss=config.loss)
    task.criterion(config.label_smoothing)  # or an error, before anything is computed
    model = seeded_backbone(name, config.weights, seed)
    head = replace_head(model, len(data.classes), head=config.head)
    size = input_size(name, model)
    example = torch.randn(2, *size, generator=seeded_generator(seed, "example"))
    if layer is None:
        layer = head_input(trace(model, (example,), {}), head)
    entries = find_entries(model, layer)
    names = [one.name for entry in entries for one in entry if not one.is_input]
    found = trace(model, (example,), {}, keep=names)
    if checked is None:
        preflight = Preflight(model, entries, None, sampler(KINDS[config.kind]), (), None)
        _unwarned(preflight, found, example)
        data = check_images(data, **checks)
        if data.damaged:
            parts = _parts(data, config)
            task = make_task(data, parts["train"], loss=config.loss)
    exclude = class_indices(config.exclude, data.classes)
    first = torch.tensor(parts["train"].targets[:2])
    check_pairs(task, config.pairing, exclude, first, len(data.classes))
    behind = [module for name in names for module in found.modules_after(name)]
    freeze(model, except_=[head, *(behind if config.tail == "trainable" else [])])
    trained_parameters(found, layer)  # or there would be nothing to do
    way, reason = choose_way(config, found, layer, example)
    plain = model_transform(name, model)
    return Job(
        config=replace(config, layer=layer, way=way, task=task.name),
        model=model,
        data=data,
        task=task,
        parts=parts,
        transforms=(augmenting_transform(name, model) if config.augment else plain, plain),
        channels=size[0],
        reason=reason,
    )


def store_features(
    config: RunConfig,
    model: nn.Module,
    layers: Any,
    dataset: ImageSet,
    directory: Path,
    **how: Any,
) -> Any:
    """`extract_features` for a run, where features that others share are never replaced.

    Args:
        config: What is asked for.
        model: The model.
        layers: One layer or several.
        dataset: The images.
        directory: Where the features go.
        how: Other arguments of `extract_features`.

    Raises:
        ValueError: Features of something else are there; it says what to do.
    """
    is_shared = config.features is not None
    overwrite = config.overwrite and not is_shared
    try:
        return extract_features(
            model, layers, dataset, directory, overwrite=overwrite, workers=config.workers, **how
        )
    except OtherFeatures as error:
        own = "start anew with --overwrite, or choose another --output"
        advice = "choose another --features" if is_shared else own
        raise ValueError(f"{error.differs}; {advice}") from error


def _unwarned(preflight: Preflight, found: Trace, example: Tensor) -> None:
    """Raise what makes mixing impossible; training will warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        preflight(found, (example,), {})


def list_asked(config: TrainConfig | CompareConfig, track: Track) -> LabelledImages:
    """The data set that is asked for, its images unchecked."""
    checks: dict[str, Any] = {"skip_damaged": config.skip_damaged, "track": track}
    given = {"task": config.task, "root": config.data_root, **table_of(config), **checks}
    return list_data(config.data, **given)


def table_of(config: RunConfig) -> dict[str, Any]:
    """How a CSV file is to be read."""
    return {name: getattr(config, name) for name in OF_TABLE}


def _check_way(config: TrainConfig) -> None:
    """Raise a ValueError if something is asked for of stored features where there are none."""
    if config.way == "hooked":
        of_stores = ("features", "fold", "dtype", "in_memory")
        refuse_given(config, of_stores, "--way hooked stores no features")


def _parts(data: LabelledImages, config: TrainConfig) -> dict[str, Split]:
    """The parts of a data set, made harder where that is asked for."""
    hard: dict[str, Any] = {"shots": config.shots, "label_noise": config.label_noise}
    parts = split_images(data, seed=config.seed)
    try:
        with told_as_options(config):
            return harden(parts, data.classes, **hard, seed=config.seed)
    except ValueError as error:
        raise ValueError(f"{data.title}: {error}") from error


def class_indices(names: Sequence[str] | None, classes: Sequence[str]) -> list[int]:
    """The indices of some classes.

    Raises:
        ValueError: There is no such class, or they are all, so that nothing would be mixed.
    """
    for name in names or ():
        if name not in classes:
            raise ValueError(
                f"--exclude {name}: there is no such class; choose of {', '.join(classes)}"
            )
    if names and set(names) == set(classes):
        raise ValueError("--exclude names every class: nothing would be mixed; give --alpha 0")
    return [classes.index(name) for name in names or ()]


def head_input(found: Trace, head: nn.Module) -> str:
    """The name of the last layer before the head that can be mixed.

    Args:
        found: The dry run of a model.
        head: A part of it.

    Raises:
        ValueError: There is none.
    """
    # Auxiliary heads may not run. All else of the head must lie behind: so the layer is not what
    # holds it, as `head` of ConvNeXt does.
    ran = {
        id(parameter)
        for module in head.modules()
        if id(module) in found.runs and found.runs[id(module)].calls
        for parameter in module.parameters(recurse=False)
    }
    behind = {name: found.parameters_after(name).values() for name in found.layers}
    sizes = {
        name: sum(parameter.numel() for parameter in own)
        for name, own in behind.items()
        if ran <= {id(parameter) for parameter in own} and is_mixable(found, name)
    }
    if not sizes:
        raise ValueError(f"{type(found.model).__name__}: no layer before the head can be mixed")
    names = [name for name, size in sizes.items() if size == min(sizes.values())]
    return min(reversed(names), key=lambda name: name.count("."))


def choose_way(
    config: TrainConfig, found: Trace, layer: str, example: Tensor
) -> tuple[Literal["hooked", "cached"], str]:
    """Whether to train on stored features.

    Args:
        config: What is asked for.
        found: The dry run of the model on the example, in which the layer's output was kept.
        layer: Where to mix.
        example: A batch of images (B, C, H, W).

    Returns:
        ``"hooked"`` or ``"cached"``, and why it is not cached where that was not asked for.

    Raises:
        ValueError: ``"cached"`` is not possible, or what is for stored features was asked for
            without them.
    """
    way, views = config.way, config.views
    if way == "hooked" and views:
        raise ValueError(f"--views {views} is for stored features; leave out --way hooked")
    if way == "hooked":
        return "hooked", ""
    if config.augment and not views:
        reason = "augmented images differ in each epoch (--views K stores K views of each)"
    else:
        reason = _reason_against(found, layer, example)
    if reason and way == "cached":
        raise ValueError(f"--way cached is not possible: {reason}")
    if reason and views:
        raise ValueError(
            f"--views {views} is for stored features, not possible here: {reason}; leave it out: "
            "--augment alone draws anew in each epoch"
        )
    return ("hooked", reason) if reason else ("cached", "")


def _reason_against(found: Trace, layer: str, example: Tensor) -> str:
    entries = find_entries(found.model, layer)
    if len(entries) > 1:
        return f"{layer!r} stands for {len(entries)} layers, one of which is drawn in each step"
    if entries[0][0].is_input:
        return "mixed images have features of their own"
    try:
        cut_traced(found, entries[0][0].name, (example,), {})
    except ValueError as error:
        return str(error)
    if changes_in_training(found, entries[0][0].name, (example,), {}):
        return (
            f"in training {type(found.model).__name__} changes what comes before {layer!r}, by "
            "dropout as a function perhaps"
        )
    return ""


def make_task(data: LabelledImages, train: Split, *, loss: str | None = None) -> Task:
    """The task of a data set.

    Args:
        data: The data set.
        train: The part to train on, whose values are standardized.
        loss: Of values, one of `LOSSES`; None for the squared error.

    Raises:
        ValueError: A loss is given for classes or labels, or values are all the same.
    """
    if loss is not None and data.task != "values":
        raise ValueError(f"--loss {loss}: is for values; {data.title} has {data.task}")
    if data.task == "values":
        targets = torch.tensor(train.targets, dtype=torch.float64)
        return Values.standardized(targets, data.classes, loss or "mse")
    return Labels(data.classes) if data.task == "labels" else Classes(data.classes)


def describe_job(job: Job) -> list[str]:
    """What is trained on what, in lines."""
    counts = ", ".join(f"{len(job.parts[part])} {part}" for part in ("train", "val", "test"))
    trained = {"frozen": "only the head", "trainable": "all behind the layer"}
    config = job.config
    kind = "" if config.kind == "mix" else f" by {config.kind}"
    lines = [
        f"data: {job.data.title}, {_outputs(job)}, images: {counts}",
        f"model: {config.model}, mixed{kind} at {config.layer}, alpha {config.alpha}; "
        f"{trained[config.tail]} is trained",
    ]
    if harder := describe_harder(config.shots, config.label_noise):
        lines.append(harder)
    if job.data.why:
        lines.append(f"labels are taken for {job.data.task} ({job.data.why}); --task overrides")
    if job.reason:
        unused = f"; {config.features} is not used" if config.features else ""
        lines.append(f"the whole model runs in every step: {job.reason}{unused}")
    return [*lines, *job.data.about, *about_copies(job.data, job.parts)]


def describe_shares(job: Job, world: int) -> str:
    """What each of several processes does."""
    if job.config.way == "cached":
        return f"{world} processes: each computes its share of the features, the first one trains"
    return f"{world} processes: the first one trains, as there are no stored features to share"


def _outputs(job: Job) -> str:
    n = len(job.data.classes)
    return f"{n} {job.data.task if n > 1 else job.data.task.rstrip('s')}"
