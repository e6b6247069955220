"""What a comparison found: its rows, how sure their differences are, and a verdict in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.comparison.candidates import Candidate
from manifold_mixup.comparison.spread import Needed, find_needed, find_spread
from manifold_mixup.comparison.verdict import (
    NOT_MEASURED,
    Answer,
    Interval,
    describe_answer,
    describe_gain,
    find_answer,
    is_told,
    paired_interval,
    show_points,
    simultaneous_intervals,
    wanted_half_width,
)

# By which two that are right or wrong can differ.
_LARGEST = 1.0


@dataclass(frozen=True)
class Row:
    """What one way to train came to, with the settings that validation chose.

    Attributes:
        candidate: The way to train.
        chosen: What validation chose in the first replicate, by name, such as ``weight_decay``.
        metrics: Means over the replicates. On test samples ``accuracy``, ``macro_f1``, ``nll`` and
            ``calibration_error``, the last two also as ``nll_at_temperature`` and
            ``calibration_error_at_temperature``, which validation chose; on training samples
            ``clean_loss`` and ``mixed_loss``; on validation samples ``val_nll``.
        by_replicate: The same for each replicate by itself, with its ``temperature`` and settings.
        correct: Whether each of N samples is told right in each of R replicates, (R, N); NaN where
            it was not tested.
        surprise: Its NLL at the temperature, likewise.
        logits: Of the test samples of the first replicate (n, C), for plots.
        target: Their classes (n,).
        seconds: What it took, all replicates and settings together.
        failed: Why its training failed, if it did; all numbers are then NaN, or missing.
    """

    candidate: Candidate
    chosen: dict[str, float]
    metrics: dict[str, float]
    by_replicate: list[dict[str, float]]
    correct: Tensor = field(repr=False)
    surprise: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)
    target: Tensor = field(repr=False)
    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class Grid:
    """Validation NLL of every weight decay that was tried.

    Attributes:
        candidates: The T ways to train.
        weight_decays: W of them.
        nll: Means over the replicates (T, W); infinite or NaN where a training failed.
    """

    candidates: list[Candidate]
    weight_decays: list[float]
    nll: Tensor


@dataclass(frozen=True)
class Comparison:
    """Rows, and whether to mix: the mix that validation chooses against none as it chooses it.

    Attributes:
        rows: One for each way to train.
        grids: One for each layer.
        worth: The smallest gain in accuracy worth having.
        base: Place of the best row without mixing, by validation.
        chosen: Place of the best row that mixes, by validation; None if none was trained.
        deciding: What the mix that validation chooses in each replicate gains in accuracy over no
            mixing; not measured if there is none.
        deciding_nll: The same in NLL at the temperatures, below 0 is better; it decides nothing.
        needed: What would make `deciding` as narrow as `wanted_half_width`.
        accuracy: Difference of each row to the base in accuracy; all hold together.
        nll: The same in NLL at the temperatures.
    """

    rows: list[Row]
    grids: list[Grid]
    worth: float
    base: int
    chosen: int | None
    deciding: Interval
    deciding_nll: Interval
    needed: Needed
    accuracy: list[Interval]
    nll: list[Interval]

    @property
    def replicates(self) -> int:
        """How many there are."""
        return len(self.rows[self.base].correct)

    @property
    def answer(self) -> Answer:
        """Whether to mix."""
        return find_answer(self.deciding, self.worth)

    @property
    def winner(self) -> int:
        """Place of the row to use: the base, unless the answer is to mix."""
        return self.base if self.chosen is None or self.answer != "use it" else self.chosen

    @property
    def verdict(self) -> str:
        """What to do, in one sentence."""
        if self.chosen is None:
            failed = [row for row in self.rows if row.candidate.mixes]
            why = f"all that mixes failed ({failed[0].failed})" if failed else "nothing was mixed"
            return f"{self.answer}: {why}"
        told = describe_answer(self.deciding, self.worth, self.needed)
        return (
            f"{told}, {self.rows[self.chosen].candidate.name}" if self.answer == "use it" else told
        )

    @property
    def decided_by(self) -> str:
        """What the verdict rests on, in one sentence."""
        if self.chosen is None:
            return ""
        return (
            f"the mix that validation chooses, against no mixing: {describe_gain(self.deciding)}, "
            f"NLL {self.deciding_nll}, over {self.replicates} "
            f"{'replicate' if self.replicates == 1 else 'replicates'}"
        )

    @property
    def warnings(self) -> list[str]:
        """Where the temperature does harm on test samples, of the base and the row to use."""
        told = []
        for place in sorted({self.base, self.winner}):
            row = self.rows[place]
            before, after = row.metrics["nll"], row.metrics["nll_at_temperature"]
            if after - before >= 0.001:  # the last digit that is shown
                told.append(
                    f"{row.candidate.name}: the temperature makes the NLL on test images worse, "
                    f"{before:.3f} to {after:.3f}"
                )
        return told

    def __str__(self) -> str:
        width = max(len(row.candidate.name) for row in self.rows)
        head = f"{'':{width}}  accuracy  {'to the base':<19}     NLL    at T     calib.    at T"
        lines = [self._line(place, width) for place in range(len(self.rows))]
        told = [self.decided_by, *self.warnings, f"verdict: {self.verdict}"]
        return "\n".join([head, *lines, "(at T: at the temperature)", *filter(None, told)])

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; None for what is not known, or not to 20 points."""
        found = {
            "verdict": self.verdict,
            "answer": self.answer,
            "deciding": _told(self.deciding),
            "deciding_nll": asdict(self.deciding_nll),
            "worth": self.worth,
            "replicates": self.replicates,
            "needed": asdict(self.needed),
            "warnings": self.warnings,
            "winner": self.rows[self.winner].candidate.name,
            "base": self.rows[self.base].candidate.name,
            "rows": [self._row(place) for place in range(len(self.rows))],
        }
        return {name: _finite(value) for name, value in found.items()}

    def points(self, i: int) -> str:
        """How row i differs in accuracy, in points of a hundred, with the ends of the interval."""
        return "base" if i == self.base else show_points(self.accuracy[i])

    def _line(self, i: int, width: int) -> str:
        """Row i in the table for the terminal."""
        row, m = self.rows[i], self.rows[i].metrics
        if row.failed:
            return f"{row.candidate.name:{width}}  failed: {row.failed}"
        return (
            f"{row.candidate.name:{width}}  {m['accuracy']:8.1%}  {self.points(i):<19}  "
            f"{m['nll']:6.3f}  {m['nll_at_temperature']:6.3f}  "
            f"{m['calibration_error']:+9.3f}  {m['calibration_error_at_temperature']:+6.3f}"
        )

    def _row(self, i: int) -> dict[str, Any]:
        row = self.rows[i]
        return {
            "name": row.candidate.name,
            **asdict(row.candidate),
            **row.chosen,
            **row.metrics,
            "accuracy_difference": _told(self.accuracy[i]),
            "nll_difference": asdict(self.nll[i]),
            "seconds": row.seconds,
            "failed": row.failed,
            "by_replicate": row.by_replicate,
        }


def compare_rows(rows: Sequence[Row], grids: Sequence[Grid], *, worth: float = 0.01) -> Comparison:
    """Ask whether the mix that validation chooses gains over no mixing as validation chooses it.

    In every replicate validation chooses anew on both sides; rows that failed take no part. Each
    row by itself is compared with the base, by intervals that hold all together: those of accuracy
    among themselves, and those of NLL.

    Args:
        rows: Of the same replicates, each tested on the same samples.
        grids: Where they come from.
        worth: The smallest gain in accuracy worth having, a fraction above 0.

    Raises:
        RuntimeError: No row without mixing was trained.
    """
    plain, mixed = _sides(rows)
    if not plain:
        why = next(
            (f"'{row.candidate.name}' failed: {row.failed}" for row in rows if row.failed), ""
        )
        raise RuntimeError(f"no row without mixing was trained, to compare with; {why}")
    base = min(plain, key=lambda i: rows[i].metrics["val_nll"])
    deciding, deciding_nll, needed = NOT_MEASURED, NOT_MEASURED, Needed(None, None)
    if mixed:
        correct, surprise = _deciding_scores(rows)
        deciding = paired_interval(correct, largest=_LARGEST)
        deciding_nll = paired_interval(surprise)
        needed = find_needed(
            find_spread(correct, largest=_LARGEST), wanted_half_width(deciding, worth)
        )
    return Comparison(
        list(rows),
        list(grids),
        worth,
        base,
        min(mixed, key=lambda i: rows[i].metrics["val_nll"], default=None),
        deciding,
        deciding_nll,
        needed,
        _differences([row.correct for row in rows], base, _LARGEST),
        _differences([row.surprise for row in rows], base, 0.0),
    )


def is_settled(rows: Sequence[Row], *, worth: float) -> bool:
    """Whether more replicates are not needed: the deciding interval is at most as wide as the gain
    worth having, so that it has an answer wherever it lies; or there is nothing to decide.
    """
    if not all(_sides(rows)):
        return True
    correct, _ = _deciding_scores(rows)
    return paired_interval(correct, largest=_LARGEST).half_width <= worth / 2


def _sides(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Places of the trained rows on both sides of the question: that do nothing, that mix."""
    trained = [i for i, row in enumerate(rows) if not row.failed]
    plain = [i for i in trained if rows[i].candidate.is_plain]
    return plain, [i for i in trained if rows[i].candidate.mixes]


def _deciding_scores(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """What mixing gains in accuracy and NLL, (R, N) each, as validation of a replicate chooses."""
    sides = _sides(rows)
    correct, surprise = [], []
    for replicate in range(len(rows[sides[0][0]].correct)):
        plain, mixed = (
            rows[min(side, key=lambda i: rows[i].by_replicate[replicate]["val_nll"])]
            for side in sides
        )
        correct.append(mixed.correct[replicate] - plain.correct[replicate])
        surprise.append(mixed.surprise[replicate] - plain.surprise[replicate])
    return torch.stack(correct), torch.stack(surprise)


def _differences(scores: Sequence[Tensor], base: int, largest: float) -> list[Interval]:
    """Of all scores to those of the base; not measured where a training failed."""
    trained = [i for i, one in enumerate(scores) if i != base and bool(one.isfinite().any())]
    found = simultaneous_intervals([scores[i] - scores[base] for i in trained], largest=largest)
    known = {base: Interval(0.0, 0.0, 0.0), **dict(zip(trained, found, strict=True))}
    return [known.get(i, NOT_MEASURED) for i in range(len(scores))]


def _told(gain: Interval) -> dict[str, float]:
    """A difference in accuracy as JSON values, not known if its interval is too wide to tell."""
    return asdict(gain if is_told(gain) else NOT_MEASURED)


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
