"""Plots of a run: how it was learned, how far its confidence can be trusted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifold_mixup._files import write_whole
from manifold_mixup.training import Classes, Labels, Task, Values, reliability, summarize

CURVE, RELIABILITY, SCATTER = "curve.png", "reliability.png", "scatter.png"


# One colour for each kind of sample, apart for colour-blind eyes too.
_COLOURS = {"mixed": "#E69F00", "train": "#0072B2", "val": "#D55E00"}


_NAMES = {"mixed": "mixed training", "train": "clean training", "val": "validation"}


def plot_curve(
    file: Path, epochs: Sequence[Mapping[str, float]], title: str, quality: str = "accuracy"
) -> None:
    """Draw loss and quality of mixed and clean training samples, and of validation.

    By epoch; of a head that was solved for by weight decay.

    Args:
        file: The PNG to write.
        epochs: What each epoch measured; see `TrainingState`.
        title: Of the plot.
        quality: What is measured beside the loss; see `Task`.
    """
    figure = _figure(9, 3.6)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, 2)
    is_path = len(epochs) > 0 and "weight_decay" in epochs[0]
    numbers = [row["weight_decay"] if is_path else i + 1 for i, row in enumerate(epochs)]
    for axis, measure in zip(axes, ("loss", quality), strict=True):
        for kind, colour in _COLOURS.items():
            values = [row.get(f"{kind}_{measure}") for row in epochs]
            if None not in values:
                axis.plot(numbers, values, "o-", ms=3, color=colour, label=_NAMES[kind])
        axis.set(ylabel=measure.replace("_", " "))
        if is_path:
            axis.set(xlabel="weight decay", xscale="symlog" if 0 in numbers else "log")
        else:
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.get_lines():
            axis.legend(fontsize=8)
    axes[0].set_ylim(bottom=0)
    _write(figure, file)


def plot_quality(folder: Path, task: Task, logits: Tensor, target: Tensor, title: str) -> Path:
    """Draw how far predictions can be trusted, into a file of the folder, which is returned.

    Classes and labels: `plot_reliability`, labels each by itself; values: `plot_scatter`.
    """
    if isinstance(task, Values):
        plot_scatter(folder / SCATTER, task.restored(logits), target, title)
        return folder / SCATTER
    if isinstance(task, Labels):
        logits = torch.stack([torch.zeros_like(logits), logits], 2).flatten(0, 1)
        target, title = target.long().flatten(), f"{title}, each label by itself"
    tempered = None
    if isinstance(task, Classes) and task.temperature is not None:
        tempered = task.tempered(logits)
    plot_reliability(folder / RELIABILITY, logits, target, title, tempered=tempered)
    return folder / RELIABILITY


def plot_scatter(file: Path, predicted: Tensor, target: Tensor, title: str) -> None:
    """Draw predicted values (n, D) against true ones (n, D), a colour for each of the D."""
    figure = _figure(4.6, 4.4)
    axis = figure.subplots()
    axis.axline((float(target.mean()), float(target.mean())), slope=1, ls="--", color="grey")
    for own, true in zip(predicted.unbind(1), target.unbind(1), strict=True):
        axis.plot(true.numpy(), own.numpy(), "o", ms=3, alpha=0.6)
    axis.set(xlabel="true", ylabel="predicted")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    _write(figure, file)


def plot_reliability(
    file: Path, logits: Tensor, target: Tensor, title: str, *, tempered: Tensor | None = None
) -> None:
    """Draw accuracy against confidence; on the diagonal a model is as sure as it is right.

    Args:
        file: The PNG to write.
        logits: (n, C).
        target: Class indices (n,).
        title: Of the plot.
        tempered: The logits at a temperature, drawn beside.
    """
    error = summarize(logits, target)["calibration_error"]
    figure = _figure(4.6, 4.4)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], "--", color="grey", label="as sure as right")
    drawn = {f"{len(target)} samples": logits, "at the temperature": tempered}
    for (label, values), colour in zip(drawn.items(), ("train", "val"), strict=True):
        if values is not None:
            axis.plot(*reliability(values, target), "o-", color=_COLOURS[colour], label=label)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axis.set_title(f"{title}\nconfidence minus accuracy: {error:+.3f}", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")
    _write(figure, file)


def _write(figure: Any, file: Path) -> None:
    write_whole(file, lambda partial: figure.savefig(partial, dpi=120, format="png"))


def _figure(width: float, height: float) -> Any:
    """A figure of a size in inches, without a window."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")
