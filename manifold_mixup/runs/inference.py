"""What a finished run says of images: how right it is on labelled ones, what new ones show."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from manifold_mixup._progress import Track, untracked
from manifold_mixup.data import (
    ImageSet,
    LabelledImages,
    Split,
    check_images,
    describe_damaged,
    find_damaged,
    is_csv,
    is_image,
    join_splits,
    list_data,
    open_image,
    walk_files,
)
from manifold_mixup.models import Transform, model_transform
from manifold_mixup.reports import plot_quality
from manifold_mixup.runs.checkpoint import EVALUATIONS, load_trained
from manifold_mixup.runs.options import absolute
from manifold_mixup.runs.prepare import OF_TABLE
from manifold_mixup.training import Task, predict_logits, task_of


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        model: The trained model, in eval mode on the CPU. Its logits are those of training; what
            `predict` tells is at the temperature, or the thresholds, of `task`.
        classes: Names of the classes, labels or values, in order.
        transform: From an image as it is, PIL's or a file, to what the model takes: turned
            upright, with the model's channels, resized and normalized.
        channels: Number of channels that the model takes.
        info: Everything in ``run.json``: settings, held-out files, metrics, versions.
    """

    model: nn.Module
    classes: list[str]
    transform: Transform
    channels: int
    info: dict[str, Any]

    @property
    def task(self) -> Task:
        """What the model predicts, with its thresholds or units; `evaluate` takes it."""
        return task_of(self.info)

    def predict(
        self, images: Any, *, skip_damaged: bool = False, workers: int = 0
    ) -> list[dict[str, Any]]:
        """What `manifold-mixup predict` tells of images.

        Args:
            images: A file, a folder of them or a PIL image, or several of these.
            skip_damaged: Leave damaged files out instead of raising.
            workers: Processes that load images; 0 loads them in this one.

        Returns:
            A dict for each image: its ``path`` (None for a PIL image that has none), and
            ``label`` and ``probability``, ``labels`` and ``probabilities``, or ``value``.

        Raises:
            FileNotFoundError: There is no such file or folder.
            TypeError: It is something else.
            ValueError: There is no image, or one is damaged.

        Example:
            >>> from PIL import Image
            >>> [row] = load_run("runs/digits-1").predict(Image.new("L", (8, 8)))
            >>> sorted(row)
            ['label', 'path', 'probability']
        """
        from PIL.Image import Image

        sources: list[Any] = []
        for image in [images] if isinstance(images, str | Path | Image) else images:
            if isinstance(image, str | Path):
                how: dict[str, Any] = {"skip_damaged": skip_damaged, "track": untracked}
                sources += find_images([Path(image)], **how)[0]
            elif isinstance(image, Image):
                sources.append(image)
            else:
                raise TypeError(
                    f"cannot predict a {type(image).__name__}: give files, folders or PIL images"
                )
        return predict_images(self, sources, workers=workers, track=untracked)


def load_run(directory: str | Path, *, weights: str | Path | None = None) -> Run:
    """Load the model, classes and transform of a run.

    Args:
        directory: What `manifold-mixup train` wrote.
        weights: The backbone's weights if they are not where they were; see `load_backbone`.

    Raises:
        FileNotFoundError: There is no finished run, or no such weights.
        ValueError: A file is damaged, or the backbone is not the one the head was trained on.

    Example:
        >>> run = load_run("runs/digits-1")
        >>> run.classes
        ['5', '6', '7', '8', '9']
    """
    model, info = load_trained(Path(directory), weights)
    plain, channels = model_transform(info["settings"]["model"], model), info["channels"]
    return Run(model, info["classes"], partial(_to_input, plain, channels), channels, info)


def _to_input(transform: Transform, channels: int, image: Any) -> Tensor:
    """What the model takes of an image as it is."""
    return transform(open_image(image, channels))


def evaluate_run(
    run: Run, data: LabelledImages, folder: Path, *, skip_damaged: bool, workers: int, track: Track
) -> dict[str, Any]:
    """Measure a run on labelled images, and draw how far it can be trusted.

    Args:
        run: The run, on the device to compute on.
        data: Images labelled for the run's task, with classes that it knows.
        folder: That of the run, where the plot goes: for other data than the run's own into a
            folder of their own, so that its own stays.
        skip_damaged: Leave damaged images out.
        workers: Processes that load images.
        track: Shows how far it is.

    Returns:
        The metrics; as ``split``, which images they are of (see `held_out`); as ``damaged``, the
        names of those left out; as ``about``, what was taken for what, and what was left out; as
        ``plot``, its file.

    Raises:
        ValueError: The labels are of another task than the run, a class is not among those of the
            run, or an image is damaged.
    """
    _check_known(run, data)
    split, part = held_out(run, data)
    measured = replace(data, parts={split: part})
    checked = check_images(measured, skip_damaged=skip_damaged, track=track)
    part = _relabelled(checked.parts[split], data, run)
    dataset = ImageSet(part, run.transform, run.channels)
    logits, target = predict_logits(run.model, dataset, workers=workers, track=track)
    title = f"{run.info['settings']['model']}: {split}"
    run.task.check(run.model, logits, target)
    plot = plot_quality(_folder_of_plot(run, data, folder), run.task, logits, target, title)
    more = {"split": split, "damaged": sorted(checked.damaged), "about": checked.about}
    more["plot"] = str(plot)
    return {**run.task.metrics(logits, target), **more}


def _folder_of_plot(run: Run, data: LabelledImages, folder: Path) -> Path:
    if data.title == run.info["settings"]["data"]:
        return folder
    place = hashlib.sha256(data.title.encode()).hexdigest()[:8]  # several may be called alike
    own = folder / EVALUATIONS / f"{Path(data.title).name}-{place}"
    own.mkdir(parents=True, exist_ok=True)
    return own


def list_measured(
    run: Run, name: str | None, root: Path | None, table: Mapping[str, Any], **checks: Any
) -> LabelledImages:
    """The images to measure a run on, a CSV file read as that of its training if nothing is said.

    Args:
        run: The run.
        name: What DATA is; None for what the run was trained with.
        root: See `list_data`.
        table: How a CSV file is read, where that is said.
        checks: Other arguments of `list_data`.
    """
    asked = run.info["settings"]
    data = asked["data"] if name is None else absolute("DATA", name)
    given = {key: value for key, value in table.items() if value}
    if not is_csv(Path(data)):
        return list_data(data, root=root, **given, **checks)
    own = {key: asked[key] for key in OF_TABLE if asked.get(key)}
    return list_data(data, task=run.task.name, root=root, **{**own, **given}, **checks)


def held_out(run: Run, data: LabelledImages) -> tuple[str, Split]:
    """The images to measure on, and which they are.

    ``"test"`` is the data set's own test part; ``"held-out"`` what the run held out, if this is
    the data set it was trained on; ``"all"`` everything, where it is another one.

    Raises:
        ValueError: Some of what the run held out is missing.
    """
    if "test" in data.parts:
        return "test", data.parts["test"]
    everything = join_splits(data.parts.values())
    asked = run.info["settings"]
    listed = data.without(run.info["damaged"])
    if data.title != asked["data"] and listed.sha256 != asked["images_sha256"]:
        _warn_of_names(run, everything, data.title)
        return "all", everything
    missing = set(run.info["held_out"]["test"]) - set(everything.names)
    if missing:
        raise ValueError(
            f"{data.title}: {len(missing)} images that the run held out are missing "
            f"({min(missing)}); bring them back, or give other data"
        )
    others = set(everything.names) - set(run.info["held_out"]["test"])
    return "held-out", everything.without(others)


def _warn_of_names(run: Run, part: Split, title: str) -> None:
    """Another data set with the names of the run's: a changed copy of it, perhaps."""
    if set(run.info["held_out"]["test"]) <= set(part.names):
        warnings.warn(
            f"{title}: has names of the images that the run held out, but differs from the data "
            "set that it was trained on; all images are measured, perhaps trained on before",
            stacklevel=2,
        )


def find_images(
    paths: Iterable[Path], *, skip_damaged: bool, track: Track
) -> tuple[list[Path], dict[Path, str]]:
    """The images among files and in folders, and the damaged ones that were left out.

    Raises:
        ValueError: There is none, or one is damaged.
        FileNotFoundError: There is no such file or folder.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if not path.is_dir():
            found.append(path)
            continue
        hidden = list[Path]()
        files = list(walk_files(path, hidden))
        found += filter(is_image, files)
        others = [str(file) for file in files if not is_image(file)]
        names = [str(file) for file in hidden]
        for line in LabelledImages("", [], {}, ignored=others, hidden=names).about:
            warnings.warn(f"{path}: {line}", stacklevel=2)
    damaged = find_damaged(found, track)
    if damaged and not skip_damaged:
        raise ValueError(describe_damaged({str(path): why for path, why in damaged.items()}))
    good = [path for path in found if path not in damaged]
    if not good:
        raise ValueError(f"{', '.join(map(str, paths))}: no images")
    return good, damaged


def predict_images(
    run: Run, images: Sequence[Any], *, workers: int, track: Track
) -> list[dict[str, Any]]:
    """What the run says of each image, a file or PIL's: ``path``, and what its task predicts."""
    names = [_path_of(image) for image in images]
    part = Split(images, [0] * len(images), [name or "" for name in names])
    dataset = ImageSet(part, run.transform, run.channels)
    logits, _ = predict_logits(
        run.model, dataset, workers=workers, track=track, description="predict"
    )
    predictions = run.task.predictions(logits)
    return [{"path": name, **row} for name, row in zip(names, predictions, strict=True)]


def _path_of(image: Any) -> str | None:
    """The file of an image, if it is one, or PIL's from one."""
    path = image if isinstance(image, str | Path) else getattr(image, "filename", "")
    return str(path) or None


def _check_known(run: Run, data: LabelledImages) -> None:
    """Raise a ValueError unless the data are labelled for the run's task, by what it knows."""
    if data.task != run.task.name:
        raise ValueError(
            f"{data.title}: has {data.task}, but the run predicts {run.task.name}; give a CSV "
            "file of path,label with these"
        )
    if data.task == "values" and len(data.classes) != len(run.classes):
        raise ValueError(
            f"{data.title}: has {len(data.classes)} values for an image, but the run predicts "
            f"{len(run.classes)}"
        )
    unknown = [name for name in data.classes if name not in run.classes]
    if unknown:
        raise ValueError(
            f"{data.title}: class '{unknown[0]}' is not among those of the run "
            f"({', '.join(run.classes)})"
        )


def _relabelled(part: Split, data: LabelledImages, run: Run) -> Split:
    """The part with its targets in the order of the run's classes."""
    if data.task == "values":
        return part
    if data.task == "classes":
        targets: list[Any] = [run.classes.index(data.classes[target]) for target in part.targets]
    else:
        rows = [dict(zip(data.classes, target, strict=True)) for target in part.targets]
        targets = [[row.get(name, 0.0) for name in run.classes] for row in rows]
    return Split(part.sources, targets, part.names)
