"""A comparison as one HTML file: the verdict first, then what it rests on."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from manifold_mixup.answer import in_points
from manifold_mixup.comparison import Comparison
from manifold_mixup.files import write_whole
from manifold_mixup.report_figures import draw_figures
from manifold_mixup.starts import Case

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
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { padding: .3rem .4rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: bottom; } th, td:first-child { white-space: normal; }
th:first-child, td:first-child, tr.failed td { text-align: left; } tr.failed { opacity: .7; }
tr.base, tr.winner { font-weight: 600; }
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
    found: Mapping[Case, Comparison],
    *,
    title: str,
    about: str,
    predict: str = "",
    train: str = "",
    pairs: Sequence[Pair] = (),
) -> None:
    """Write the page of a comparison.

    Args:
        file: The HTML file.
        found: The comparison of the data as they are, and those of harder cases.
        title: What was compared on what.
        about: A few sentences on data, model, ways and replicates.
        predict: What to type to use the head that came out best.
        train: What to type to train it again.
        pairs: Some images that were mixed.
    """
    own = found[Case()]
    parts = [
        f"<h1>Does mixup help? {escape(title)}</h1>",
        f'<p class="verdict"><strong>{_answer(own)}</strong></p>',
        _certainty(own),
        _harder(found),
        f"<p>{escape(about)}</p>",
        _next(own, predict, train),
        _table(own),
        *map(_figure, draw_figures(own)),
        _pairs(pairs),
        *(
            f"<h2>{escape(case.name)}</h2>{_table(one)}"
            for case, one in found.items()
            if case.name
        ),
    ]
    body = "\n".join(part for part in parts if part)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
    write_whole(file, lambda partial: partial.write_text(page, encoding="utf-8"))


def _harder(found: Mapping[Case, Comparison]) -> str:
    """The verdicts on the data made harder."""
    lines = [
        f"<li>With {escape(case.name)}: {escape(one.verdict)}.</li>"
        for case, one in found.items()
        if case.name
    ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _next(found: Comparison, predict: str, train: str) -> str:
    """What to type next."""
    name = escape(found.rows[found.winner].trial.name)
    told = ""
    if predict:
        told += f"<p>To use the head that came out best ({name}):</p><pre>{escape(predict)}</pre>"
    if train:
        told += f"<p>To train it again by itself:</p><pre>{escape(train)}</pre>"
    return told


def _figure(figure: tuple[str, str, bytes]) -> str:
    head, text, picture = figure
    return (
        f"<h2>{head}</h2><figure><img alt='{head}' "
        f"src='data:image/svg+xml;base64,{_code(picture)}'><figcaption>{text}</figcaption></figure>"
    )


def _answer(found: Comparison) -> str:
    """The verdict, its first words as a heading."""
    answer, why = escape(found.verdict).split(": ", 1)
    return f"{answer.capitalize()}: {why}."


def _certainty(found: Comparison) -> str:
    """What the answer rests on, and where the temperature does harm."""
    told = [f"{one}." for one in found.warnings]
    if found.chosen is not None:
        told.insert(
            0,
            f"What decides is {found.decided_by}, each with its own split or draws. The brackets "
            f"hold the truth 95 times of 100, over {_covered(found)}. A gain counts from "
            f"{in_points(found.worth)} points of accuracy on; an NLL below 0 means that the true "
            "classes are more probable with mixing.",
        )
    return "".join(f"<p>{escape(one)}</p>" for one in told)


def _covered(found: Comparison) -> str:
    """What the intervals are over."""
    return "replicates and test images" if found.replicates > 1 else "test images alone"


def _table(found: Comparison) -> str:
    """The rows, with what their columns mean below."""
    heads = (
        *("way to train", "accuracy", "to the base, points", "NLL", "at the temperature"),
        *("confidence error", "at the temperature", "macro F1", "seconds"),
    )
    head = "".join(f"<th>{one}</th>" for one in heads)
    rows = "".join(_row(found, place, len(heads)) for place in range(len(found.rows)))
    note = (
        "Means over the replicates on test images. Differences are paired with the base, the best "
        f"row without mixing; their intervals cover {_covered(found)}, and hold for all rows "
        "together with 95 %: one that holds 0 shows no difference, one that is wider than 20 "
        "points either way is not told. NLL: the lower, the more probable were the true classes. "
        "Confidence error: mean confidence minus accuracy, below 0 too modest, above 0 too sure. "
        "At the temperature: with logits divided by the number that validation images choose. "
        "Seconds: of all replicates and weight decays of the row."
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"</div><p><small>{note}</small></p>"
    )


def _row(found: Comparison, place: int, columns: int) -> str:
    """A row of the table, or why it failed."""
    row, m = found.rows[place], found.rows[place].metrics
    name = f"<td>{escape(row.trial.name)}</td>"
    if row.failed:
        why = f'<td colspan="{columns - 1}">failed: {escape(row.failed)}</td>'
        return f'<tr class="failed">{name}{why}</tr>'
    cells = (
        f"{m['accuracy']:.1%}",
        found.points(place),
        f"{m['nll']:.3f}",
        f"{m['nll_at_temperature']:.3f}",
        f"{m['calibration_error']:+.3f}",
        f"{m['calibration_error_at_temperature']:+.3f}",
        f"{m['macro_f1']:.1%}",
        f"{row.seconds:.1f}",
    )
    kind = "winner" if place == found.winner else "base" if place == found.base else ""
    return f'<tr class="{kind}">{name}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


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


def settings_sentence(
    settings: Mapping[str, Any], n: int, num_classes: int, replicates: int
) -> str:
    """What was compared, in a few sentences.

    Args:
        settings: ``model``, ``tail``, ``test_on``, ``weight_decays`` and ``worth`` of the
            comparison.
        n: How many images there are.
        num_classes: Of how many classes.
        replicates: How many there were.
    """
    trained = "a linear head" if settings["tail"] == "frozen" else "all that lies behind the layer"
    where = f", tested on {settings['test_on']}" if settings["test_on"] else ""
    decays = ", ".join(f"{decay:g}" for decay in settings["weight_decays"])
    return (
        "Mixup trains on weighted averages of two images' features, and of their classes. "
        f"Compared are ways to train {trained} on {n} images of {num_classes} classes{where}, "
        f"with features of {settings['model']}; {replicates} replicates, each with its own split "
        f"and mixes: as many as tell {in_points(settings['worth'])} points, or as were asked for. "
        f"Each linear head got the weight decay (of {decays}) that "
        "validation images find best for it. Alpha is the strength of mixing: at 0.2 one image "
        "dominates, at 1 all weights are alike, above that halves prevail."
    )
