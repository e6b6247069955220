"""What a training needs, from the names of data and model: loaded, checked, frozen."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup._progress import Track
from manifold_mixup._random import seeded_generator
from manifold_mixup.data import (
    ImageSet,
    LabelledImages,
    Split,
    check_images,
    harden,
    join_splits,
    list_data,
    split_images,
)
from manifold_mixup.hooks import KINDS, Preflight, sampler
from manifold_mixup.inspection import Trace, find_entries, is_mixable, trace
from manifold_mixup.models import (
    Transform,
    augmenting_transform,
    cut_traced,
    freeze,
    input_size,
    model_transform,
    replace_head,
)
from manifold_mixup.runs.checkpoint import seeded_backbone
from manifold_mixup.training import Classes, Labels, Task, Values, check_pairs, trained_parameters

TAILS = ("frozen", "trainable")


@dataclass(frozen=True)
class Job:
    """What a training needs, loaded and checked.

    Attributes:
        settings: ``data``, ``task``, ``loss``, ``images_sha256``, ``model``, ``weights``,
            ``shots``, ``label_noise``, ``head``, ``tail``, ``way``, ``augment``, ``views``,
            ``kind``, ``alpha_warmup`` and the `HYPERPARAMETERS`: what decides all that comes out.
        model: A backbone with a new head, of which only what is to be trained requires gradients.
        data: The data set.
        task: What is trained for.
        parts: Its training, validation and test part; see `harden` for ``shots`` and
            ``label_noise``.
        transforms: From a PIL image to what the model takes: in training, else.
        channels: Number of channels that the model takes.
        reason: Why the whole model runs in every step, if that was not asked for.
    """

    settings: dict[str, Any]
    model: nn.Module
    data: LabelledImages
    task: Task
    parts: dict[str, Split]
    transforms: tuple[Transform, Transform]
    channels: int
    reason: str

    def images(self, *names: str) -> ImageSet:
        """The images of parts as tensors for the model, one part after the other."""
        transform = self.transforms["train" not in names]
        return ImageSet(join_splits(self.parts[n] for n in names), transform, self.channels)


def prepare_job(
    settings: Mapping[str, Any],
    data_root: Path | None,
    skip_damaged: bool,
    track: Track,
    *,
    checked: LabelledImages | None = None,
) -> Job:
    """Load model and data, and freeze all but what is to be trained.

    Args:
        settings: See `Job`; a ``layer`` of None is replaced by what the head takes, a ``task`` of
            None by what the labels are.
        data_root: Where a named data set lies.
        skip_damaged: Leave damaged images out.
        track: Shows how far the check of the images is.
        checked: The data set, where its images and the layer have been checked already.

    Raises:
        ValueError: Model, layer or data are not what they should be.
        OSError: A file or folder is missing.
    """
    name, seed, layer = settings["model"], settings["seed"], settings["layer"]
    data = checked or list_data(settings["data"], task=settings["task"], root=data_root)
    parts = _parts(data, settings)
    task = make_task(data, parts["train"], loss=settings["loss"])
    task.criterion(settings["label_smoothing"])  # or an error, before anything is computed
    model = seeded_backbone(name, settings["weights"], seed)
    head = replace_head(model, len(data.classes), head=settings["head"])
    size = input_size(name, model)
    example = torch.randn(2, *size, generator=seeded_generator(seed, "example"))
    if layer is None:
        layer = head_input(trace(model, (example,), {}), head)
    entries = find_entries(model, layer)
    names = [one.name for entry in entries for one in entry if not one.is_input]
    found = trace(model, (example,), {}, keep=names)
    if checked is None:
        preflight = Preflight(model, entries, None, sampler(KINDS[settings["kind"]]), (), None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training will warn
            preflight(found, (example,), {})
        data = check_images(data, skip_damaged=skip_damaged, track=track)
        if data.damaged:
            parts = _parts(data, settings)
            task = make_task(data, parts["train"], loss=settings["loss"])
    exclude = class_indices(settings["exclude"], data.classes)
    first = torch.tensor(parts["train"].targets[:2])
    check_pairs(task, settings["pairing"], exclude, first, len(data.classes))
    behind = [module for name in names for module in found.modules_after(name)]
    freeze(model, except_=[head, *(behind if settings["tail"] == "trainable" else [])])
    trained_parameters(found, layer)  # or there would be nothing to do
    augment, views = settings["augment"], settings["views"]
    way, reason = choose_way(
        settings["way"], found, layer, example, is_random=augment, views=views
    )
    plain = model_transform(name, model)
    chosen = {"layer": layer, "way": way, "task": data.task}
    return Job(
        settings={**settings, **chosen, "images_sha256": data.sha256},
        model=model,
        data=data,
        task=task,
        parts=parts,
        transforms=(augmenting_transform(name, model) if augment else plain, plain),
        channels=size[0],
        reason=reason,
    )


def _parts(data: LabelledImages, settings: Mapping[str, Any]) -> dict[str, Split]:
    """The parts of a data set, made harder where the settings say so."""
    seed, shots, label_noise = (settings[name] for name in ("seed", "shots", "label_noise"))
    parts = split_images(data, seed=seed)
    try:
        return harden(parts, data.classes, shots=shots, label_noise=label_noise, seed=seed)
    except ValueError as error:
        raise ValueError(f"{data.title}: {error}") from error


def class_indices(names: Sequence[str] | None, classes: Sequence[str]) -> list[int]:
    """The indices of some classes; a ValueError that lists all if there is no such class."""
    for name in names or ():
        if name not in classes:
            raise ValueError(
                f"--exclude {name}: there is no such class; choose of {', '.join(classes)}"
            )
    return [classes.index(name) for name in names or ()]


def check_tail(tail: str) -> None:
    """Raise a ValueError that lists what a tail may be unless this is it."""
    if tail not in TAILS:
        raise ValueError(f"--tail {tail}: choose one of {', '.join(TAILS)}")


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


WAYS = ("auto", "hooked", "cached")


def choose_way(
    way: str,
    found: Trace,
    layer: str,
    example: Tensor,
    *,
    is_random: bool,
    views: int,
) -> tuple[str, str]:
    """Whether to train on stored features.

    Args:
        way: ``"hooked"``, ``"cached"``, or ``"auto"``: cached if it gives the same numbers.
        found: The dry run of the model on the example, in which the layer's output was kept.
        layer: Where to mix.
        example: A batch of images (B, C, H, W).
        is_random: Whether images are augmented, anew in each epoch.
        views: How many augmented views of each image to store; 0 for none.

    Returns:
        ``"hooked"`` or ``"cached"``, and why it is not cached where that was not asked for.

    Raises:
        ValueError: The way is unknown, ``"cached"`` is not possible, or what is for stored
            features was asked for without them.
    """
    check_way(way)
    if way == "hooked" and views:
        raise ValueError(f"--views {views} is for stored features; leave out --way hooked")
    if way == "hooked":
        return way, ""
    if is_random and not views:
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


def check_way(way: str) -> None:
    """Raise a ValueError that lists the ways unless this is one of them."""
    if way not in WAYS:
        raise ValueError(f"--way {way}: choose one of {', '.join(WAYS)}")


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
