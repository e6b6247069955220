"""What a finished run says of pictures: how right it is on labelled ones, what new ones show."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from manifold_mixup.checkpoint import RELIABILITY, Run
from manifold_mixup.data import ImageSet
from manifold_mixup.images import Track, find_damaged, find_files, is_image
from manifold_mixup.metrics import predict_logits, summarize
from manifold_mixup.parts import Data, Part
from manifold_mixup.report import draw_reliability


def evaluate_run(
    run: Run, data: Data, folder: Path, *, workers: int, track: Track
) -> dict[str, Any]:
    """Measure a run on labelled pictures, and draw its reliability.

    Args:
        run: The run, on the device to compute on.
        data: Labelled pictures, of classes that the run knows.
        folder: Where the picture goes.
        workers: Processes that load images.
        track: Shows how far it is.

    Returns:
        The metrics, and as ``split`` which pictures they are of; see `held_out`.

    Raises:
        ValueError: A class is not among those of the run.
    """
    split, part = held_out(run, data)
    dataset = ImageSet(_relabelled(part, data, run), run.transform, run.channels)
    logits, target = predict_logits(run.model, dataset, workers=workers, track=track)
    title = f"{run.info['settings']['model']}: {split}"
    draw_reliability(folder / RELIABILITY, logits, target, title)
    return {**summarize(logits, target), "split": split}


def held_out(run: Run, data: Data) -> tuple[str, Part]:
    """The pictures to measure on, and which they are.

    ``"test"`` is the data set's own test part; ``"held-out"`` the files that the run held out;
    ``"all"`` everything, where the data set has neither.
    """
    if "test" in data.parts:
        return "test", data.parts["test"]
    parts = list(data.parts.values())
    everything = Part(
        [source for part in parts for source in part.sources],
        [target for part in parts for target in part.targets],
        [name for part in parts for name in part.names],
    )
    recorded = set(run.info["held_out"]["test"])
    positions = [i for i, name in enumerate(everything.names) if name in recorded]
    return ("held-out", everything.take(positions)) if positions else ("all", everything)


def find_pictures(
    paths: Iterable[Path], *, skip_damaged: bool, track: Track
) -> tuple[list[Path], dict[Path, str]]:
    """The pictures among files and in folders, and the damaged ones that were left out.

    Raises:
        ValueError: There is none, or one is damaged.
        FileNotFoundError: There is no such file or folder.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        found += [file for file in find_files(path) if is_image(file)] if path.is_dir() else [path]
    damaged = find_damaged(found, track)
    if damaged and not skip_damaged:
        path, problem = next(iter(damaged.items()))
        raise ValueError(f"{path}: no readable image ({problem}); --skip-damaged goes on without")
    good = [path for path in found if path not in damaged]
    if not good:
        raise ValueError(f"{', '.join(map(str, paths))}: no images")
    return good, damaged


def predict_pictures(
    run: Run, paths: list[Path], *, workers: int, track: Track
) -> list[dict[str, Any]]:
    """The most probable class of each picture: ``path``, ``label`` and ``probability``."""
    names = [str(path) for path in paths]
    dataset = ImageSet(Part(paths, [0] * len(paths), names), run.transform, run.channels)
    logits, _ = predict_logits(
        run.model, dataset, workers=workers, track=track, description="predict"
    )
    probability, index = logits.double().softmax(1).max(1)
    return [
        {"path": name, "label": run.classes[i], "probability": p}
        for name, i, p in zip(names, index.tolist(), probability.tolist(), strict=True)
    ]


def _relabelled(part: Part, data: Data, run: Run) -> Part:
    """The part with its targets in the order of the run's classes."""
    unknown = [name for name in data.classes if name not in run.classes]
    if unknown:
        raise ValueError(
            f"{data.title}: class '{unknown[0]}' is not among those of the run "
            f"({', '.join(run.classes)})"
        )
    targets = [run.classes.index(data.classes[target]) for target in part.targets]
    return Part(part.sources, targets, part.names)
