"""A comparison as one HTML file: the verdict first, then what it rests on."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.comparison import Comparison, Row
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.files import write_whole
from manifold_mixup.scores import reliability

# Apart for colour-blind eyes too, and on a white as well as a dark ground.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")

_PAIRS = 500  # enough for a mean; all of a large test part would not fit into memory

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #f3f3f0; --line: #ccc;
  --good: #00664a; }
@media (prefers-color-scheme: dark) { :root { --ink: #eaeaea; --paper: #161616; --soft: #232323;
  --line: #4a4a4a; --good: #5fd3ae; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.3; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.verdict { border-left: .4rem solid var(--good); padding: .2rem 1rem; background: var(--soft); }
pre { background: var(--soft); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.base, tr.winner { font-weight: 600; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #fff; border-radius: .3rem; }
.pairs { display: flex; flex-wrap: wrap; gap: 1.5rem; } .pairs figure { margin: 0; }
.pairs img { width: 7rem; height: 7rem; object-fit: cover; } figcaption { font-size: .85rem; }
"""


@dataclass(frozen=True)
class Pair:
    """Two images that were mixed.

    Attributes:
        images: PNG files of them.
        classes: Their classes.
        lam: The weight of the first.
    """

    images: tuple[bytes, bytes]
    classes: tuple[str, str]
    lam: float


def write_page(
    file: Path,
    found: Comparison,
    *,
    title: str,
    about: str,
    command: str,
    pairs: Sequence[Pair] = (),
) -> None:
    """Write the page of a comparison.

    Args:
        file: The HTML file.
        found: The comparison.
        title: What was compared on what.
        about: One sentence on data, model and seeds.
        command: What to type next.
        pairs: Some images that were mixed.
    """
    parts = [
        f"<h1>Does mixup help? {escape(title)}</h1>",
        f'<p class="verdict"><strong>{escape(_sentence(found.verdict))}</strong></p>',
        f"<p>{escape(about)}</p>",
        f"<p>To train the head that came out best:</p><pre>{escape(command)}</pre>",
        _table(found),
        *_figures(found),
        _pairs(pairs),
    ]
    body = "\n".join(part for part in parts if part)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
    write_whole(file, lambda partial: partial.write_text(page, encoding="utf-8"))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _table(found: Comparison) -> str:
    """The rows, with what their columns mean below."""
    heads = (
        *("way to train", "accuracy", "to the base, points", "NLL", "mended"),
        *("confidence error", "mended", "macro F1", "seconds"),
    )
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    rows = []
    for place, row in enumerate(found.rows):
        m = row.metrics
        cells = (
            escape(row.trial.name),
            f"{m['accuracy']:.1%}",
            "base" if place == found.base else _points(found, place),
            f"{m['nll']:.3f}",
            f"{m['mended_nll']:.3f}",
            f"{m['calibration_error']:+.3f}",
            f"{m['mended_calibration_error']:+.3f}",
            f"{m['macro_f1']:.1%}",
            f"{row.seconds:.1f}",
        )
        kind = "winner" if place == found.winner else "base" if place == found.base else ""
        rows.append(f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    covered = "seeds and test images" if len(found.rows[0].correct) > 1 else "test images alone"
    note = (
        "Means over the seeds on test images. Differences are paired with the base, the best row "
        f"without mixing; their intervals cover {covered}, and hold for all rows "
        "together with 95 %: one that holds 0 shows no difference. NLL: the lower, the more "
        "probable were the true classes. Confidence error: mean confidence minus accuracy, below "
        "0 too modest, above 0 too sure. Mended: at the temperature that validation images choose."
    )
    head = f"<thead><tr>{lines[0]}</tr></thead>"
    return (
        f'<div class="wide"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'
        f"<p><small>{note}</small></p>"
    )


def _points(found: Comparison, place: int) -> str:
    one = found.accuracy[place]
    return f"{100 * one.mean:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def _figures(found: Comparison) -> list[str]:
    """The pictures, each with a heading and what it shows."""
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
    return [
        f"<h2>{head}</h2><figure><img alt='{head}' src='data:image/svg+xml;base64,{picture}'>"
        f"<figcaption>{text}</figcaption></figure>"
        for head, text, picture in shown
        if picture
    ]


def _pairs(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ""
    shown = "".join(
        "<figure>"
        + "".join(f"<img alt='' src='data:image/png;base64,{_code(one)}'> " for one in pair.images)
        + f"<figcaption>{pair.lam:.2f} {escape(pair.classes[0])} + {1 - pair.lam:.2f} "
        f"{escape(pair.classes[1])}</figcaption></figure>"
        for pair in pairs
    )
    return f"<h2>What is mixed</h2><div class='pairs'>{shown}</div>"


def _code(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _picture(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return _code(file.getvalue())


def _axes(width: float, height: float, n: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _draw_alphas(found: Comparison) -> str:
    lines: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(found.rows):
        if row.trial.mixes:
            lines.setdefault((row.trial.layer, row.trial.pairing), []).append(place)
    if not lines:
        return ""
    figure, axes = _axes(9, 3.4, 2)
    measures = ((found.accuracy, 100.0, "accuracy, points"), (found.nll, 1.0, "NLL, mended"))
    for axis, (intervals, scale, label) in zip(axes, measures, strict=True):
        axis.axhline(0, color="grey", ls="--")
        for number, ((layer, pairing), places) in enumerate(lines.items()):
            alphas = [found.rows[place].trial.alpha for place in places]
            means = [scale * intervals[place].mean for place in places]
            reach = [scale * (intervals[p].high - intervals[p].mean) for p in places]
            name = layer if pairing == "any" else f"{layer}, {pairing}"
            colour = _COLOURS[number % len(_COLOURS)]
            at = [index + 0.12 * number for index in range(len(alphas))]
            axis.errorbar(at, means, yerr=reach, fmt="o-", capsize=3, color=colour, label=name)
            axis.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axis.set(xlabel="alpha", ylabel=f"difference in {label}")
        axis.legend(fontsize=8)
    return _picture(figure)


def _best_mixed(found: Comparison) -> Row | None:
    mixed = [row for row in found.rows if row.trial.mixes]
    return min(mixed, key=lambda row: row.metrics["val_nll"], default=None)


def _beside(found: Comparison) -> list[Row]:
    """The base and the best row with mixing, by validation."""
    best = _best_mixed(found)
    return [found.rows[found.base], *([best] if best else [])]


def _draw_reliability(found: Comparison) -> str:
    figure, axes = _axes(9, 3.8, 2)
    for axis, head in zip(axes, ("as trained", "at the temperature"), strict=True):
        axis.plot([0, 1], [0, 1], "--", color="grey")
        for row, colour in zip(_beside(found), _COLOURS, strict=False):
            logits = row.logits / (1 if head == "as trained" else row.by_seed[0]["temperature"])
            axis.plot(*reliability(logits, row.target), "o-", color=colour, label=row.trial.name)
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=head)
        axis.legend(fontsize=7, loc="upper left")
    return _picture(figure)


def _draw_decays(found: Comparison) -> str:
    if not found.grids or len(found.grids[0].weight_decays) < 2:
        return ""
    figure, axes = _axes(9, 0.9 + 0.5 * len(found.grids[0].weight_decays), len(found.grids))
    for axis, grid in zip(axes, found.grids, strict=True):
        places = [i for i, trial in enumerate(grid.trials) if not trial.label_smoothing]
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


def _draw_lines(found: Comparison) -> str:
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


def _draw_losses(found: Comparison) -> str:
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


def settings_sentence(settings: Mapping[str, Any], n: int, num_classes: int) -> str:
    """What was compared, in a sentence."""
    return (
        f"{n} images of {num_classes} classes, features of {settings['model']}; "
        f"{settings['seeds']} seeds, each with its own start, order and mixes"
        f" (and its own split where the data have no test part); {settings['epochs']} epochs. "
        f"Each row got the learning rate (of {', '.join(f'{x:g}' for x in settings['lrs'])}) and "
        f"weight decay (of {', '.join(f'{x:g}' for x in settings['weight_decays'])}) that "
        "validation images find best for it."
    )
