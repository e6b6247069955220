"""The pictures of a comparison's page, each as SVG."""

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.comparison import Comparison, Row
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.scores import reliability

# Apart for colour-blind eyes too, and on a white as well as a dark ground.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")

_PAIRS = 500  # enough for a mean; all of a large test part would not fit into memory


def draw_figures(found: Comparison) -> list[tuple[str, str, bytes]]:
    """The pictures of a comparison: what each is about, what it shows, and its SVG file."""
    shown = [
        (
            "Accuracy and likelihood by alpha",
            "The difference to the base for each strength of mixing, with its interval.",
            _draw_alphas(found),
        ),
        (
            "Can the confidence be trusted?",
            "Accuracy of test images against the confidence in them, with the first seed; on the "
            "diagonal a head is as sure as it is right.",
            _draw_reliability(found),
        ),
        (
            "Must weight decay go with alpha?",
            "Validation NLL of every weight decay at its best learning rate; the best of each "
            "column is marked.",
            _draw_decays(found),
        ),
        (
            "What lies between two images?",
            "Mean probability of the second image's class on the way from the features of one "
            "test image to those of another of another class.",
            _draw_lines(found),
        ),
        (
            "Is a training loss above the clean one normal?",
            "Loss of mixed and of clean training images after the last epoch.",
            _draw_losses(found),
        ),
    ]
    return [(head, text, picture) for head, text, picture in shown if picture]


def _picture(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return file.getvalue()


def _axes(width: float, height: float, n: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _draw_alphas(found: Comparison) -> bytes:
    lines: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(found.rows):
        if row.trial.mixes:
            lines.setdefault((row.trial.layer, row.trial.variant), []).append(place)
    if not lines:
        return b""
    figure, axes = _axes(9, 4, 2)
    measures = ((found.accuracy, 100.0, "accuracy, points"), (found.nll, 1.0, "NLL, mended"))
    for axis, (intervals, scale, label) in zip(axes, measures, strict=True):
        axis.axhline(0, color="grey", ls="--")
        for number, ((layer, variant), places) in enumerate(lines.items()):
            alphas = [found.rows[place].trial.alpha for place in places]
            means = [scale * intervals[place].mean for place in places]
            reach = [scale * (intervals[p].high - intervals[p].mean) for p in places]
            name = f"{layer}{variant and f', {variant}'}"
            colour = _COLOURS[number % len(_COLOURS)]
            at = [index + 0.12 * number for index in range(len(alphas))]
            axis.errorbar(at, means, yerr=reach, fmt="o-", capsize=3, color=colour, label=name)
            axis.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axis.set(xlabel="alpha", ylabel=f"difference in {label}")
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", fontsize=8, ncols=2)
    return _picture(figure)


def _beside(found: Comparison) -> list[Row]:
    """The base and the best row with mixing."""
    best = found.best_mixed
    return [found.rows[found.base], *([] if best is None else [found.rows[best]])]


def _draw_reliability(found: Comparison) -> bytes:
    figure, axes = _axes(9, 4.2, 2)
    for axis, head in zip(axes, ("as trained", "at the temperature"), strict=True):
        axis.plot([0, 1], [0, 1], "--", color="grey")
        for row, colour in zip(_beside(found), _COLOURS, strict=False):
            logits = row.logits / (1 if head == "as trained" else row.by_seed[0]["temperature"])
            axis.plot(*reliability(logits, row.target), "o-", color=colour, label=row.trial.name)
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=head)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return _picture(figure)


def _draw_decays(found: Comparison) -> bytes:
    if not found.grids or len(found.grids[0].weight_decays) < 2:
        return b""
    figure, axes = _axes(9, 0.9 + 0.5 * len(found.grids[0].weight_decays), len(found.grids))
    for axis, grid in zip(axes, found.grids, strict=True):
        plain = [i for i, trial in enumerate(grid.trials) if trial.is_plain]
        usual = next((t.variant for t in grid.trials if t.mixes), "")
        mixed = [i for i, t in enumerate(grid.trials) if t.mixes and t.variant == usual]
        places = plain + mixed
        values = grid.nll[places].amin(1).T
        axis.grid(visible=False)
        axis.imshow(
            values.clamp(max=2 * float(values.min())).numpy(), cmap="cividis_r", aspect="auto"
        )
        _write_cells(axis, values)
        alphas = [f"{grid.trials[i].alpha:g}" for i in places]
        axis.set_xticks(range(len(places)), alphas)
        axis.set_yticks(range(len(grid.weight_decays)), [f"{w:g}" for w in grid.weight_decays])
        axis.set(xlabel="alpha", ylabel="weight decay", title=grid.trials[0].layer)
    return _picture(figure)


def _write_cells(axis: Any, values: Tensor) -> None:
    middle = (float(values.min()) + float(values[values.isfinite()].max())) / 2
    for column in range(values.shape[1]):
        best = int(values[:, column].argmin())
        for line in range(values.shape[0]):
            value = float(values[line, column])
            text = f"{value:.3f}{' *' if line == best else ''}" if math.isfinite(value) else "-"
            colour = "white" if value > middle else "black"
            axis.text(column, line, text, ha="center", va="center", fontsize=8, color=colour)


def _draw_lines(found: Comparison) -> bytes:
    figure, (axis,) = _axes(5.5, 3.6, 1)
    axis.plot([0, 1], [0, 1], "--", color="grey", label="as much as is mixed in")
    for row, colour in zip(_beside(found), _COLOURS, strict=False):
        axis.plot(*_line(row), color=colour, label=row.trial.name)
    axis.set(xlabel="share of the second image", ylabel="probability of its class")
    axis.legend(fontsize=7)
    return _picture(figure)


def _line(row: Row) -> tuple[list[float], list[float]]:
    """Shares of a second test sample, and the mean probability that its class has there.

    The head is affine in its features, so that its logits lie on the line too.
    """
    order = torch.randperm(len(row.target), generator=seeded_generator("line"))[:_PAIRS]
    first, second = order, order.roll(1)
    apart = row.target[first] != row.target[second]
    first, second = first[apart], second[apart]
    shares = torch.linspace(0, 1, 21, dtype=row.logits.dtype)
    own, other = row.logits[first, None], row.logits[second, None]
    between = torch.lerp(own, other, shares[None, :, None]).softmax(2)
    wanted = row.target[second, None, None].expand(-1, len(shares), 1)
    return shares.tolist(), between.gather(2, wanted)[:, :, 0].mean(0).tolist()


def _draw_losses(found: Comparison) -> bytes:
    figure, (axis,) = _axes(9, 0.8 + 0.28 * len(found.rows), 1)
    names = [row.trial.name for row in found.rows]
    for shift, key, label in ((-0.2, "mixed_loss", "trained on"), (0.2, "clean_loss", "clean")):
        values = [row.metrics[key] for row in found.rows]
        places = [place + shift for place in range(len(names))]
        axis.barh(places, values, 0.38, color=_COLOURS[key == "clean_loss"], label=label)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="training loss, nats")
    axis.legend(fontsize=8)
    return _picture(figure)
