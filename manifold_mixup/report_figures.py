"""The pictures of a comparison's page, each as SVG."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.answer import is_told
from manifold_mixup.comparison import Comparison, Grid, Row
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.scores import reliability
from manifold_mixup.verdict import NOT_MEASURED, Interval

# Apart for colour-blind eyes too, and on a white as well as a dark ground.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")

_PAIRS = 500  # enough for a mean; all of a large test part would not fit into memory


def draw_figures(found: Comparison) -> list[tuple[str, str, bytes]]:
    """The pictures of a comparison: what each is about, what it shows, and its SVG file."""
    shown = [
        (
            "Accuracy and likelihood by alpha",
            "The difference to the base for each strength of mixing, with its interval; left out "
            "where that is not known to 20 points.",
            _draw_alphas(found),
        ),
        (
            "Can the confidence be trusted?",
            "Accuracy of test images against the confidence in them, in the first replicate; on "
            "the diagonal a head is as sure as it is right.",
            _draw_reliability(found),
        ),
        (
            "Must weight decay go with alpha?",
            "Validation NLL of every weight decay; the best of each column is marked.",
            _draw_decays(found),
        ),
        (
            "What lies between two images?",
            "Mean probability of the second image's class on the straight way from the logits of "
            "one test image to those of another of another class: behind a linear head, from "
            "features to features.",
            _draw_lines(found),
        ),
        (
            "Is a training loss above the clean one normal?",
            "Loss of the images as they were trained on, and of the same ones unmixed.",
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
    lines: dict[str, list[int]] = {}
    for place, row in enumerate(found.rows):
        if row.trial.mixes and not row.failed:
            name = ", ".join(filter(None, (row.trial.layer, row.trial.variant)))
            lines.setdefault(name, []).append(place)
    if not lines:
        return b""
    figure, axes = _axes(9, 4, 2)
    points = [one if is_told(one) else NOT_MEASURED for one in found.accuracy]
    _draw_differences(axes[0], found, lines, points, 100)
    _draw_differences(axes[1], found, lines, found.nll, 1)
    axes[0].set_ylabel("difference in accuracy, points")
    axes[1].set_ylabel("difference in NLL, at the temperature")
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", fontsize=8, ncols=2)
    return _picture(figure)


def _draw_differences(
    axis: Any,
    found: Comparison,
    lines: Mapping[str, list[int]],
    intervals: Sequence[Interval],
    scale: float,
) -> None:
    """Intervals of rows by their alphas; `lines` has the places of those that are joined."""
    strengths = [row.trial.alpha for row in found.rows]
    alphas = sorted({strengths[place] for places in lines.values() for place in places})
    axis.axhline(0, color="grey", ls="--")
    for number, (name, places) in enumerate(lines.items()):
        at = [alphas.index(strengths[place]) + 0.12 * number for place in places]
        means = [scale * intervals[place].mean for place in places]
        reach = [scale * intervals[place].half_width for place in places]
        colour = _COLOURS[number % len(_COLOURS)]
        axis.errorbar(at, means, yerr=reach, fmt="o-", capsize=3, color=colour, label=name)
    axis.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axis.set_xlabel("alpha")


def _beside(found: Comparison) -> list[Row]:
    """The base and the best row with mixing."""
    places = [found.base, found.chosen]
    return [found.rows[place] for place in places if place is not None]


def _draw_reliability(found: Comparison) -> bytes:
    figure, axes = _axes(9, 4.2, 2)
    for axis, head in zip(axes, ("as trained", "at the temperature"), strict=True):
        axis.plot([0, 1], [0, 1], "--", color="grey")
        for row, colour in zip(_beside(found), _COLOURS, strict=False):
            logits = row.logits / (
                1 if head == "as trained" else row.by_replicate[0]["temperature"]
            )
            axis.plot(*reliability(logits, row.target), "o-", color=colour, label=row.trial.name)
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=head)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return _picture(figure)


def _draw_decays(found: Comparison) -> bytes:
    grids = [grid for grid in found.grids if bool(grid.nll.isfinite().any())]
    if not grids or len(grids[0].weight_decays) < 2:
        return b""
    figure, axes = _axes(9, 1.2 + 0.4 * len(grids[0].weight_decays), len(grids))
    for axis, grid in zip(axes, grids, strict=True):
        _draw_grid(axis, grid)
    return _picture(figure)


def _draw_grid(axis: Any, grid: Grid) -> None:
    """Weight decays by alphas: of no mixing, and of mixes of the variant that comes first."""
    usual = next((trial.variant for trial in grid.trials if trial.mixes), "")
    places = [i for i, trial in enumerate(grid.trials) if trial.is_plain]
    places += [i for i, t in enumerate(grid.trials) if t.mixes and t.variant == usual]
    values = grid.nll[places].T.nan_to_num(math.inf)
    finite = values[values.isfinite()]
    lowest = float(finite.min())
    highest = min(2 * lowest, float(finite.max()))
    axis.grid(visible=False)
    shown = values.clamp(max=highest).where(values.isfinite(), math.nan)
    axis.imshow(shown.numpy(), cmap="cividis_r", aspect="auto")
    _write_cells(axis, values, dark=(lowest + highest) / 2)
    axis.set_xticks(range(len(places)), [f"{grid.trials[i].alpha:g}" for i in places])
    axis.set_yticks(range(len(grid.weight_decays)), [f"{w:g}" for w in grid.weight_decays])
    axis.set(xlabel="alpha", ylabel="weight decay", title=grid.trials[0].layer)


def _write_cells(axis: Any, values: Tensor, dark: float) -> None:
    """Each value in its cell, in white from `dark` on; the best of a column has a star."""
    for column in range(values.shape[1]):
        best = int(values[:, column].argmin())
        for line in range(values.shape[0]):
            value = float(values[line, column])
            text = f"{value:.3f}{' *' if line == best else ''}" if math.isfinite(value) else "-"
            colour = "white" if dark < value < math.inf else "black"
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
    """Shares of a second test sample, and the mean probability that its class has there."""
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
    rows = [row for row in found.rows if not row.failed]
    figure, (axis,) = _axes(9, 0.8 + 0.28 * len(rows), 1)
    names = [row.trial.name for row in rows]
    for shift, key, label in ((-0.2, "mixed_loss", "trained on"), (0.2, "clean_loss", "clean")):
        values = [row.metrics[key] for row in rows]
        places = [place + shift for place in range(len(names))]
        axis.barh(places, values, 0.38, color=_COLOURS[key == "clean_loss"], label=label)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="training loss, nats")
    axis.legend(fontsize=8)
    return _picture(figure)
