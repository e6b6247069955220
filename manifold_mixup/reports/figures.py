"""The pictures of a comparison's page, each as SVG."""

import io
from collections.abc import Sequence
from typing import Any

from manifold_mixup.comparison import NOT_MEASURED, Comparison, Grid, Interval, is_told
from manifold_mixup.training import reliability

# Apart for colour-blind eyes too, and on a white as well as a dark ground.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")


def plot_figures(found: Comparison) -> list[tuple[str, str, bytes]]:
    """The pictures of a comparison: what each is about, what it shows, and its SVG file."""
    shown = [
        (
            "Accuracy and likelihood by alpha",
            "The difference to the base for each strength of mixing, with its interval; left out "
            "where that is not known to 20 points.",
            _plot_alphas(found),
        ),
        (
            "Can the confidence be trusted?",
            "Accuracy of test images against the confidence in them, in the first replicate; on "
            "the diagonal a head is as sure as it is right.",
            _plot_reliability(found),
        ),
        (
            "Must weight decay go with alpha?",
            "Validation NLL of every weight decay; the best of each alpha is marked.",
            _plot_decays(found),
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


def _plot_alphas(found: Comparison) -> bytes:
    lines: dict[str, list[int]] = {}
    for place, row in enumerate(found.rows):
        if row.candidate.mixes and not row.failed:
            name = ", ".join(filter(None, (row.candidate.layer, row.candidate.variant)))
            lines.setdefault(name, []).append(place)
    if not lines:
        return b""
    strengths = [row.candidate.alpha for row in found.rows]
    alphas = sorted({strengths[place] for places in lines.values() for place in places})
    figure, axes = _axes(9, 4, 2)
    for axis in axes:
        axis.axhline(0, color="grey", ls="--")
        axis.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axis.set_xlabel("alpha")
    told = [one if is_told(one) else NOT_MEASURED for one in found.accuracy]
    for number, (name, places) in enumerate(lines.items()):
        at = [alphas.index(strengths[place]) + 0.12 * number for place in places]
        looks = {"color": _COLOURS[number % len(_COLOURS)], "label": name}
        _plot_intervals(axes[0], at, [told[place] for place in places], 100, looks)
        _plot_intervals(axes[1], at, [found.nll[place] for place in places], 1, looks)
    axes[0].set_ylabel("difference in accuracy, points")
    axes[1].set_ylabel("difference in NLL, at the temperature")
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", fontsize=8, ncols=2)
    return _picture(figure)


def _plot_intervals(
    axis: Any, at: Sequence[float], found: Sequence[Interval], scale: float, looks: dict[str, str]
) -> None:
    means, reach = ([scale * one.mean for one in found], [scale * one.half_width for one in found])
    axis.errorbar(at, means, yerr=reach, fmt="o-", capsize=3, **looks)


def _plot_reliability(found: Comparison) -> bytes:
    """Of the base and the best row that mixes."""
    rows = [found.rows[place] for place in (found.base, found.chosen) if place is not None]
    figure, axes = _axes(9, 4.2, 2)
    for axis, head in zip(axes, ("as trained", "at the temperature"), strict=True):
        axis.plot([0, 1], [0, 1], "--", color="grey")
        for row, colour in zip(rows, _COLOURS, strict=False):
            heat = 1 if head == "as trained" else row.by_replicate[0]["temperature"]
            drawn = reliability(row.logits / heat, row.target)
            axis.plot(*drawn, "o-", color=colour, label=row.candidate.name)
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=head)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return _picture(figure)


def _plot_decays(found: Comparison) -> bytes:
    grids = [grid for grid in found.grids if bool(grid.nll.isfinite().any())]
    if not grids or len(grids[0].weight_decays) < 2:
        return b""
    figure, axes = _axes(9, 4, len(grids))
    for axis, grid in zip(axes, grids, strict=True):
        _plot_grid(axis, grid)
    return _picture(figure)


def _plot_grid(axis: Any, grid: Grid) -> None:
    """A line for no mixing, and one for each alpha of the variant that comes first."""
    from matplotlib import colormaps

    usual = next((candidate.variant for candidate in grid.candidates if candidate.mixes), "")
    places = [i for i, candidate in enumerate(grid.candidates) if candidate.is_plain]
    places += [i for i, t in enumerate(grid.candidates) if t.mixes and t.variant == usual]
    lines = [(place, grid.nll[place]) for place in places if grid.nll[place].isfinite().any()]
    for number, (place, nll) in enumerate(lines):
        axis.plot(
            grid.weight_decays,
            nll.tolist(),
            "o-",
            markevery=[int(nll.nan_to_num(float("inf")).argmin())],
            color=colormaps["viridis"](number / len(lines)),
            label=f"alpha {grid.candidates[place].alpha:g}",
        )
    lowest = float(grid.nll[grid.nll.isfinite()].min())
    highest = float(grid.nll[grid.nll.isfinite()].max())
    axis.set(xscale="log", ylim=(0.98 * lowest, max(min(2 * lowest, 1.02 * highest), 1e-6)))
    axis.set(xlabel="weight decay", ylabel="validation NLL", title=grid.candidates[0].layer)
    axis.legend(fontsize=7)
