"""What a comparison makes of its rows: who is asked, what is answered, and how it is told."""

import json
import math
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import Candidate, Row, compare_rows
from manifold_mixup.comparison.rows import is_settled

PLAIN, SMOOTHED = Candidate("a"), Candidate("a", label_smoothing=0.1)
WEAK, STRONG = Candidate("a", alpha=0.4), Candidate("a", alpha=1.0)


def row(
    candidate: Candidate,
    right: float | Tensor,
    val_nll: float | Sequence[float] = 0.5,
    *,
    replicates: int = 6,
    samples: int = 400,
    at_temperature: float = 1.0,
) -> Row:
    """A row that is right in a share of the samples, the same ones in every replicate."""
    if isinstance(right, float):
        right = (torch.arange(samples) < right * samples).double().expand(replicates, -1)
    val = [val_nll] * len(right) if isinstance(val_nll, float) else list(val_nll)
    metrics = {"accuracy": float(right.mean()), "macro_f1": 0.5, "val_nll": sum(val) / len(val)}
    metrics |= {"nll": 1.0, "nll_at_temperature": at_temperature}
    metrics |= {"calibration_error": 0.1, "calibration_error_at_temperature": 0.01}
    by_replicate = [{"val_nll": one} for one in val]
    nothing = torch.zeros(0, 2), torch.zeros(0)
    settings = {"weight_decay": 0.1}
    return Row(candidate, settings, metrics, by_replicate, right, 1 - right, *nothing, seconds=1.0)


def failed(candidate: Candidate, replicates: int = 6, samples: int = 400) -> Row:
    """A row whose training failed."""
    unknown = torch.full((replicates, samples), math.nan)
    nothing = torch.zeros(0, 2), torch.zeros(0)
    return Row(candidate, {}, {}, [], unknown, unknown, *nothing, seconds=1.0, failed="it rose")


def test_validation_chooses_anew_in_every_replicate() -> None:
    """The deciding difference is, replicate by replicate, that of the rows of lowest NLL."""
    generator = seeded_generator("chosen")
    scores = [torch.randint(2, (4, 50), generator=generator).double() for _ in range(4)]
    elsewhere = Candidate("b")
    rows = [
        row(PLAIN, scores[0], [0.1, 0.9, 0.1, 0.9]),
        row(elsewhere, scores[1], [0.5, 0.5, 0.5, 0.5]),
        row(WEAK, scores[2], [0.3, 0.3, 0.9, 0.9]),
        row(STRONG, scores[3], [0.4, 0.4, 0.4, 0.4]),
    ]

    found = compare_rows(rows, [])

    plain = torch.stack([scores[place][r] for r, place in enumerate((0, 1, 0, 1))])
    mixed = torch.stack([scores[place][r] for r, place in enumerate((2, 2, 3, 3))])
    assert found.deciding.mean == pytest.approx(float((mixed - plain).mean()))
    assert found.deciding_nll.mean == pytest.approx(float((plain - mixed).mean()))
    assert (found.base, found.chosen, found.replicates) == (0, 3, 4)


def test_a_gain_is_used() -> None:
    """Where the interval lies above 0 the mix is the winner, named in the verdict."""
    found = compare_rows([row(PLAIN, 0.7), row(WEAK, 0.8)], [])

    assert (found.answer, found.winner) == ("use it", 1)
    assert found.verdict.startswith("use it: +10.0 points (")
    assert found.verdict.endswith(f", {WEAK.name}")


def test_without_a_gain_the_base_is_the_row_to_use() -> None:
    """Whether mixing is worse or cannot be told, the plain row is the winner."""
    worse = compare_rows([row(PLAIN, 0.8), row(WEAK, 0.7)], [])
    unsure = compare_rows([row(PLAIN, 0.5, samples=30), row(WEAK, 0.5, samples=30)], [])

    assert (worse.answer, worse.winner) == ("leave it off", 0)
    assert (unsure.answer, unsure.winner) == ("cannot tell", 0)


def test_gain_counts_from_what_it_is_worth() -> None:
    """The same rows rule out a gain of 5 points, but not one of 1."""
    rows = [row(PLAIN, 0.8, samples=100), row(WEAK, 0.8, samples=100)]

    assert compare_rows(rows, [], worth=0.05).answer == "leave it off"
    assert compare_rows(rows, [], worth=0.01).answer == "cannot tell"


def test_smoothed_labels_do_not_decide() -> None:
    """A row that neither mixes nor is plain is shown, and asked nothing."""
    rows = [row(PLAIN, 0.7), row(SMOOTHED, 0.9, 0.1), row(WEAK, 0.7)]

    found = compare_rows(rows, [])

    assert (found.base, found.chosen, found.winner) == (0, 2, 0)
    assert found.deciding.mean == 0
    assert found.accuracy[1].low > 0


def test_nothing_mixed_cannot_be_told() -> None:
    """Without a row that mixes there is no answer, and no number."""
    found = compare_rows([row(PLAIN, 0.7), row(SMOOTHED, 0.8)], [])

    assert (found.verdict, found.chosen) == ("cannot tell: nothing was mixed", None)
    assert found.decided_by == ""
    assert math.isnan(found.deciding.mean)


def test_failed_rows_take_no_part() -> None:
    """A row that failed is no base, is not chosen, widens nothing, and is shown as what it is."""
    rows = [failed(PLAIN), row(Candidate("b"), 0.7), failed(STRONG), row(WEAK, 0.8)]

    found = compare_rows(rows, [])

    assert (found.base, found.chosen, found.winner) == (1, 3, 3)
    assert found.accuracy[3] == compare_rows([rows[1], rows[3]], []).accuracy[1]
    assert re.search(rf"{STRONG.name} +failed: it rose\n", str(found))


def test_all_mixing_failed_is_no_gain_and_no_harm() -> None:
    """If all that mixes failed, the verdict says so and why."""
    found = compare_rows([row(PLAIN, 0.7), failed(WEAK)], [])

    assert found.verdict == "cannot tell: all that mixes failed (it rose)"
    assert found.winner == 0


def test_no_base_is_an_error() -> None:
    """If no plain row was trained there is nothing to compare with."""
    with pytest.raises(
        RuntimeError, match=r"no row without mixing .* 'no mixing, a' failed: it r"
    ):
        compare_rows([failed(PLAIN), row(WEAK, 0.7)], [])


def test_settled_is_the_width_alone() -> None:
    """Narrow enough at half of the gain worth having, wherever the interval lies."""
    narrow = {"samples": 2000}
    for gain in (-0.1, 0.0):
        rows = [row(PLAIN, 0.7, **narrow), row(WEAK, 0.7 + gain, **narrow)]
        half_width = compare_rows(rows, []).deciding.half_width
        assert is_settled(rows, worth=2.01 * half_width)
        assert not is_settled(rows, worth=1.99 * half_width)


def test_nothing_to_decide_is_settled() -> None:
    """Where nothing mixes, or all that does failed, more replicates do not help."""
    assert is_settled([row(PLAIN, 0.7)], worth=0.01)
    assert is_settled([row(PLAIN, 0.7), failed(WEAK)], worth=0.01)


def test_harm_by_the_temperature_is_told() -> None:
    """Of the base and the row to use, where the NLL on test images rises by what is shown."""
    rows = [row(PLAIN, 0.7, at_temperature=1.01), row(WEAK, 0.9, at_temperature=1.0004)]

    found = compare_rows(rows, [])

    (told,) = found.warnings
    assert (
        told == f"{PLAIN.name}: the temperature makes the NLL on test images worse, 1.000 to 1.010"
    )
    assert told in str(found)


def test_table_has_every_row_and_the_verdict() -> None:
    """On a terminal: a line for each row, what decides, and last the verdict."""
    found = compare_rows([row(PLAIN, 0.7), row(WEAK, 0.8), failed(STRONG)], [])

    lines = str(found).splitlines()

    assert lines[1].split()[-6:] == ["70.0%", "base", "1.000", "1.000", "+0.100", "+0.010"]
    assert f"{found.points(1)}  " in lines[2]
    assert lines[-2] == found.decided_by
    assert lines[-1] == f"verdict: {found.verdict}"


def test_json_has_no_number_that_is_none() -> None:
    """All results are JSON, with null for what failed and for intervals too wide to be told."""
    few = {"samples": 4, "replicates": 5}
    rows = [row(PLAIN, 0.5, **few), row(WEAK, 0.75, **few), failed(STRONG, 5, 4)]

    told = json.loads(json.dumps(compare_rows(rows, []).to_dict(), allow_nan=False))

    unknown = {"mean": None, "low": None, "high": None}
    assert told["deciding"] == unknown
    assert told["deciding_nll"]["mean"] == -0.25
    assert [each["accuracy_difference"]["mean"] for each in told["rows"]] == [0.0, None, None]
    assert [each["failed"] for each in told["rows"]] == ["", "", "it rose"]
    assert told["rows"][1]["weight_decay"] == 0.1
    assert (told["answer"], told["worth"], told["replicates"]) == ("cannot tell", 0.01, 5)
    assert (told["base"], told["winner"]) == (PLAIN.name, PLAIN.name)
