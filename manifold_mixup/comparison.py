"""What a comparison found: its rows, how sure their differences are, and a verdict in words."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from manifold_mixup.settings import HeadSettings
from manifold_mixup.trials import Trial
from manifold_mixup.verdict import Interval, paired_interval


@dataclass(frozen=True)
class Row:
    """What one way to train came to, with the rate and weight decay that validation chose.

    Attributes:
        trial: The way to train.
        settings: Of its head under the first seed.
        metrics: Means over the seeds. On test samples ``accuracy``, ``macro_f1``, ``nll`` and
            ``calibration_error``, the last two also as ``mended_nll`` and
            ``mended_calibration_error`` at the temperature that validation chose; on training
            samples ``clean_loss``, and ``mixed_loss`` in the last epoch; on validation samples
            ``val_nll``.
        by_seed: The same for each seed by itself, without ``val_nll``.
        correct: Whether each of N samples is told right under each seed, (S, N); NaN where it
            was not tested.
        surprise: Its NLL at the temperature, likewise.
        logits: Of the test samples of the first seed (n, C), for plots.
        target: Their classes (n,).
        seconds: What its heads took to train, for all rates, decays and seeds; where heads train
            together, an equal share of what all took.
        hooked_seconds: What the same heads would take one by one in a loop that runs the whole
            model in every step: an estimate from five timed steps, NaN if none were timed.
    """

    trial: Trial
    settings: HeadSettings
    metrics: dict[str, float]
    by_seed: list[dict[str, float]]
    correct: Tensor = field(repr=False)
    surprise: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)
    target: Tensor = field(repr=False)
    seconds: float
    hooked_seconds: float = math.nan


@dataclass(frozen=True)
class Grid:
    """Validation NLL of every setting that was tried.

    Attributes:
        trials: The T ways to train.
        lrs: The learning rates.
        weight_decays: The weight decays.
        nll: Means over the seeds (T, rates, decays); infinite where a head diverged.
    """

    trials: list[Trial]
    lrs: list[float]
    weight_decays: list[float]
    nll: Tensor


@dataclass(frozen=True)
class Comparison:
    """Rows, and the plain one that all are compared with.

    Attributes:
        rows: One for each way to train.
        grids: One for each layer.
        base: Place of the best row without mixing, by validation.
        accuracy: Difference of each row to it in accuracy, corrected for the number of rows.
        nll: The same in NLL at the temperatures; below 0 is better.
    """

    rows: list[Row]
    grids: list[Grid]
    base: int
    accuracy: list[Interval]
    nll: list[Interval]

    @property
    def winner(self) -> int:
        """Place of the row to use: the base, unless another is better beyond noise."""
        better = [i for i in range(len(self.rows)) if self.gains(i)]
        return max(better, key=lambda i: self._worth(i), default=self.base)

    @property
    def best_mixed(self) -> int | None:
        """Place of the row to use, if it mixes; else of the best that mixes, by validation."""
        mixed = [i for i, row in enumerate(self.rows) if row.trial.mixes]
        if self.winner in mixed:
            return self.winner
        return min(mixed, key=lambda i: self.rows[i].metrics["val_nll"], default=None)

    @property
    def verdict(self) -> str:
        """What to do, in one sentence."""
        winner, base = self.rows[self.winner].trial, self.rows[self.base].trial
        mixing = f"{self._told_of_mixing()} {base.name}"
        if self.winner != self.base:
            told = f"{winner.name}: {self._told(self.winner)} against {base.name}; use it"
            told += "" if winner.mixes else f"; {mixing}"
        else:
            told = f"{mixing}; leave it off"
        few = {1: "one seed", 2: "two seeds"}.get(len(self.rows[0].correct))
        return f"{told} ({few} alone: try more)" if few else told

    def __str__(self) -> str:
        width = max(len(row.trial.name) for row in self.rows)
        lines = [f"{'':{width}}  accuracy  {'to the base':<19}     NLL  mended     calib.  mended"]
        for place, row in enumerate(self.rows):
            metrics = row.metrics
            lines.append(
                f"{row.trial.name:{width}}  {metrics['accuracy']:8.1%}  "
                f"{self.points(place):<19}  "
                f"{metrics['nll']:6.3f}  {metrics['mended_nll']:6.3f}  "
                f"{metrics['calibration_error']:+9.3f}  "
                f"{metrics['mended_calibration_error']:+6.3f}"
            )
        return "\n".join([*lines, f"verdict: {self.verdict}"])

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        rows = [
            {
                "name": row.trial.name,
                **asdict(row.trial),
                "lr": row.settings.lr,
                "weight_decay": row.settings.weight_decay,
                **row.metrics,
                "accuracy_difference": asdict(accuracy),
                "nll_difference": asdict(nll),
                "seconds": row.seconds,
                "hooked_seconds_estimate": _or_none(row.hooked_seconds),
                "by_seed": row.by_seed,
            }
            for row, accuracy, nll in zip(self.rows, self.accuracy, self.nll, strict=True)
        ]
        return {
            "verdict": self.verdict,
            "winner": self.rows[self.winner].trial.name,
            "base": self.rows[self.base].trial.name,
            "rows": rows,
        }

    def points(self, i: int) -> str:
        """How row i differs in accuracy, in points of a hundred, with the ends of the interval."""
        if i == self.base:
            return "base"
        one = self.accuracy[i]
        mean, low, high = (100 * end for end in (one.mean, one.low, one.high))
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"

    def gains(self, i: int) -> bool:
        """Whether row i is better than the base in one of the two beyond noise, worse in none."""
        up, down = self.accuracy[i].low > 0, self.nll[i].high < 0
        return (up or down) and not self.loses(i)

    def loses(self, i: int) -> bool:
        """Whether row i is worse than the base in accuracy or NLL, beyond noise."""
        return self.accuracy[i].high < 0 or self.nll[i].low > 0

    def _trades(self, i: int) -> bool:
        """Better in one of the two beyond noise, and worse in the other."""
        return (self.accuracy[i].low > 0 or self.nll[i].high < 0) and self.loses(i)

    def _told_of_mixing(self) -> str:
        """What mixing does, up to the name of the base."""
        mixed = [i for i, row in enumerate(self.rows) if row.trial.mixes]
        if not mixed:
            return "nothing was mixed, to compare with"
        if any(self.gains(i) for i in mixed):
            return "mixing gains too over"
        if any(self._trades(i) for i in mixed):
            return (
                "mixing is better in one of accuracy and likelihood, but worse in the other, than"
            )
        if all(self.loses(i) for i in mixed):
            is_wrong = all(self.accuracy[i].high < 0 for i in mixed)
            what = "accuracy" if is_wrong else "likelihood"
            return f"mixing has a worse {what} in every row here than"
        return "mixing brings no gain beyond noise here over"

    def _worth(self, i: int) -> tuple[float, float]:
        # Those that gain in accuracy first; among them, what validation says.
        return self.accuracy[i].low > 0, -self.rows[i].metrics["val_nll"]

    def _told(self, i: int) -> str:
        accuracy, nll = self.accuracy[i], self.nll[i]
        points = f"{self.points(i)} points"
        if accuracy.low > 0:
            return f"{points} and {'lower ' if nll.high < 0 else ''}NLL {nll}"
        return f"lower NLL {nll}, accuracy no different: {points}"


def compare_rows(
    rows: Sequence[Row], grids: Sequence[Grid], *, confidence: float = 0.95
) -> Comparison:
    """Compare all rows with the plain one that validation finds best.

    The intervals hold all together with this confidence (Bonferroni): both differences of every
    other row.

    Args:
        rows: Of the same seeds and splits; at least one of them plain.
        grids: Where they come from.
        confidence: In (0, 1).
    """
    plain = [i for i, row in enumerate(rows) if row.trial.is_plain]
    base = min(plain, key=lambda i: rows[i].metrics["val_nll"])
    level = 1 - (1 - confidence) / max(1, 2 * (len(rows) - 1))
    accuracy, nll = (
        [
            paired_interval(getattr(row, name) - getattr(rows[base], name), confidence=level)
            for row in rows
        ]
        for name in ("correct", "surprise")
    )
    # Two seeds tell so little that intervals reach beyond what accuracies can differ by.
    accuracy = [Interval(one.mean, max(one.low, -1), min(one.high, 1)) for one in accuracy]
    return Comparison(list(rows), list(grids), base, accuracy, nll)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
