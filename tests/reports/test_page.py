"""The page of a comparison: the answer first, every row as what it is, nothing from outside."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import Candidate, Comparison, Grid, Row, Scenario, compare_rows
from manifold_mixup.reports import Pair, write_page
from manifold_mixup.reports.figures import plot_figures

TRIALS = [Candidate("a"), Candidate("a", alpha=0.4), Candidate("a", alpha=1.0)]
DECAYS = [0.01, 0.1, 1.0]


def row(candidate: Candidate, gain: float = 0.0, samples: int = 60, replicates: int = 5) -> Row:
    """A row whose heads add a gain to the logits of the true classes."""
    target = torch.arange(samples) % 3
    noise = torch.randn(replicates, samples, 3, generator=seeded_generator(candidate.name))
    logits = noise + (1 + gain) * F.one_hot(target, 3)
    correct = (logits.argmax(2) == target).double()
    surprise = -logits.log_softmax(2)[:, torch.arange(samples), target].double()
    known = {"accuracy": float(correct.mean()), "macro_f1": 0.5, "nll": 1.0, "val_nll": 1.0}
    known |= {"nll_at_temperature": 1.25, "calibration_error": 0.1}
    known |= {"calibration_error_at_temperature": 0.01}
    by_replicate = [{"val_nll": 1.0, "temperature": 1.5}] * replicates
    settings = {"weight_decay": 0.1}
    return Row(candidate, settings, known, by_replicate, correct, surprise, logits[0], target, 1.0)


def failed(candidate: Candidate, samples: int = 60) -> Row:
    """A row whose training failed."""
    unknown, nothing = torch.full((5, samples), math.nan), (torch.zeros(0, 3), torch.zeros(0))
    return Row(candidate, {}, {}, [], unknown, unknown, *nothing, 1.0, failed="loss <rose>")


def compared(gain: float = 0.0, samples: int = 60) -> Comparison:
    """A plain row, one that mixes and gains, and one that failed."""
    nll = torch.tensor([[0.5, 0.4, 0.6], [0.5, 0.3, math.inf], [math.nan] * 3])
    rows = [
        row(TRIALS[0], 0.0, samples),
        row(TRIALS[1], gain, samples),
        failed(TRIALS[2], samples),
    ]
    return compare_rows(rows, [Grid(TRIALS, DECAYS, nll)])


def page(folder: Path, found: Comparison, **options: str) -> str:
    """The page of a comparison, as it is written."""
    write_page(
        folder / "page.html", {Scenario(): found}, title="digits", about="About.", **options
    )
    return (folder / "page.html").read_text()


@pytest.mark.parametrize(
    ("gain", "samples", "answer"),
    [
        (3.0, 300, "Use it: +"),
        (-0.9, 300, "Leave it off: it is worse"),
        (0.0, 60, "Cannot tell: "),
    ],
)
def test_answer_comes_first(tmp_path: Path, gain: float, samples: int, answer: str) -> None:
    """The page begins with one of three answers, then what decides, then all the rest."""
    found = compared(gain, samples)

    shown = page(tmp_path, found)

    order = [f"<strong>{answer}", found.decided_by, "About.", "<table>", "<figure>"]
    places = [shown.index(each) for each in order]
    assert places == sorted(places)


def test_failed_row_is_shown_as_failed(tmp_path: Path) -> None:
    """In the place of its numbers stands why."""
    shown = page(tmp_path, compared())

    name = TRIALS[2].name
    assert f'{name}</td><td colspan="8">failed: loss &lt;rose&gt;</td></tr>' in shown
    assert "nan" not in re.sub(r"base64,[^']*", "", shown)


def test_intervals_that_are_too_wide_are_nowhere(tmp_path: Path) -> None:
    """With four test images the page tells no difference in accuracy."""
    shown = page(tmp_path, compared(samples=4))

    assert "shows only differences above 20.0 points" in shown
    assert "<td>not told</td>" in shown
    assert not re.search(r"[+-]\d+\.\d points \(", shown)


def test_harm_by_the_temperature_is_on_the_first_screen(tmp_path: Path) -> None:
    """Where it makes the likelihood worse on test, the page says so before the table."""
    shown = page(tmp_path, compared())

    told = "the temperature makes the NLL on test images worse, 1.000 to 1.250."
    assert shown.index(told) < shown.index("<table>")


def test_all_is_within_the_page(tmp_path: Path) -> None:
    """Three figures and the pairs are in the file, and nothing is loaded."""
    pair = Pair((b"first", b"second"), ("<cat>", "dog"), 0.25)
    write_page(
        tmp_path / "page.html",
        {Scenario(): compared(), Scenario(shots=5): compared()},
        title="digits",
        about="About.",
        predict="predict <IMAGE>",
        train="train it",
        pairs=[pair],
    )

    shown = (tmp_path / "page.html").read_text()

    sources = re.findall(r"src='([^']{0,22})", shown)
    assert len(sources) == 3 + 2
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<(link|script|iframe)|url\(|@import", shown)
    assert "0.25 &lt;cat&gt; + 0.75 dog" in shown
    assert "predict &lt;IMAGE&gt;" in shown
    assert f"With 5 images a class: {compared().verdict}" in shown


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    """What comes from file names is text in the page, not markup."""
    found = compare_rows([row(Candidate("a<b>")), row(Candidate("a<b>", alpha=1.0))], [])
    write_page(tmp_path / "page.html", {Scenario(): found}, title="<i>", about="&", train="'")

    shown = (tmp_path / "page.html").read_text()

    assert "a&lt;b&gt;" in shown
    assert "<h1>Does mixup help? &lt;i&gt;</h1>" in shown
    assert "a<b>" not in shown


def test_figures_need_what_they_show() -> None:
    """Without mixes there is no figure of alphas, without several decays none of them."""
    alone = compare_rows([row(TRIALS[0])], [Grid(TRIALS[:1], [0.1], torch.ones(1, 1))])

    heads = [head for head, _, picture in plot_figures(alone) if picture.startswith(b"<?xml")]

    assert len(heads) == 1
    assert not {"Accuracy and likelihood by alpha", "Must weight decay go with alpha?"} & {*heads}
