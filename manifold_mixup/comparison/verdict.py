"""What an interval of a difference in accuracy answers, and that in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manifold_mixup.comparison.spread import (
    CONFIDENCE,
    Needed,
    bessel,
    find_spread,
    mean_score,
    quantile,
)

_DRAWS = 20_000


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds it with 95 %.

    Attributes:
        mean: Over replicates and test samples; NaN where nothing was measured, as are its ends.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """How far the ends lie from the middle."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


NOT_MEASURED = Interval(math.nan, math.nan, math.nan)


def paired_interval(scores: Tensor, *, largest: float = 0.0) -> Interval:
    """The mean of scores and the interval that holds it with 95 %, over replicates and samples.

    For differences, give those of each sample in each replicate: what both ways have in common
    then falls out. The interval covers another split and other draws as well as other test
    samples; see `find_spread`. A single replicate tells nothing of others: the interval is then
    about test samples alone.

    Args:
        scores: (R, N), of R replicates and N samples; NaN where a sample was not tested in a
            replicate.
        largest: The size that no score exceeds, such as 1 for differences of right and wrong; 0
            if it is not known.

    Raises:
        ValueError: There are no scores.

    Example:
        >>> interval = paired_interval(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]))
        >>> round(interval.mean, 3), interval.low < interval.mean < interval.high
        (0.667, True)
    """
    return _around(mean_score(scores), find_spread(scores, largest=largest).reach())


def simultaneous_intervals(scores: Sequence[Tensor], *, largest: float = 0.0) -> list[Interval]:
    """The means of several scores, and intervals that hold all together with 95 %.

    All reach equally many standard errors: as many as the largest of all deviations stays below,
    of means that vary together as these do (the max statistic). So rows that say the same count as
    one. The degrees of freedom are the fewest that any of them has.

    Args:
        scores: K of (R, N), as `paired_interval` takes them, all of the same samples in the same
            replicates.
        largest: The size that no score exceeds; 0 if it is not known.

    Raises:
        ValueError: There are no scores.

    Example:
        >>> scores = torch.tensor([[1.0, 0.0, 1.0, 0.5], [1.0, 0.5, 0.0, 1.0]])
        >>> alone, [twice, _] = paired_interval(scores), simultaneous_intervals([scores, scores])
        >>> round(alone.half_width / twice.half_width, 1)
        1.0

    Reference:
        Hothorn, Bretz and Westfall, Simultaneous inference in general parametric models,
        Biometrical Journal 2008. https://doi.org/10.1002/bimj.200810425
    """
    if not scores:
        return []
    spreads = [find_spread(one, largest=largest) for one in scores]
    errors = max_quantile(_alike(scores), min(spread.freedom for spread in spreads))
    return [
        _around(mean_score(one), errors * math.sqrt(spread.variance))
        for one, spread in zip(scores, spreads, strict=True)
    ]


def max_quantile(correlation: Tensor, freedom: float) -> float:
    """What the largest of K sizes stays below with 95 %, of a multivariate t.

    Args:
        correlation: (K, K).
        freedom: Degrees of freedom, above 0.

    Example:
        >>> round(max_quantile(torch.ones(3, 3), 4), 2)  # three that are one
        2.78
    """
    from scipy.stats import multivariate_t

    drawn = multivariate_t.rvs(None, correlation.numpy(), freedom, size=_DRAWS, random_state=0)
    sizes = torch.from_numpy(drawn).view(_DRAWS, -1).abs()
    # A single one's quantile is known, so that what chance makes of it is taken out of the rest.
    chance = float(sizes.quantile(CONFIDENCE, dim=0).mean()) / quantile(freedom)
    return float(sizes.amax(1).quantile(CONFIDENCE)) / chance


def _alike(scores: Sequence[Tensor]) -> Tensor:
    """How the means of scores vary together: the correlations (K, K) of their sums over each
    replicate and over each sample. One without any variance counts as independent.
    """
    sums = []
    for one in scores:
        apart = (one.double() - mean_score(one)).nan_to_num(0)
        sums.append(torch.cat([math.sqrt(bessel(len(one))) * apart.sum(1), apart.sum(0)]))
    alike = torch.corrcoef(torch.stack(sums)).view(len(sums), -1)
    return alike.nan_to_num(0).fill_diagonal_(1)


def _around(mean: float, reach: float) -> Interval:
    return Interval(mean, mean - reach, mean + reach)


Answer = Literal["use it", "leave it off", "cannot tell"]


# Half the width, in accuracy, from which on an interval says nothing and is not told.
_WIDEST = 0.2


def find_answer(gain: Interval, worth: float) -> Answer:
    """Whether to use what gains so much accuracy.

    Args:
        gain: In accuracy, a fraction.
        worth: The smallest gain worth having.

    Example:
        >>> find_answer(Interval(0.001, -0.004, 0.006), 0.01)
        'leave it off'
    """
    if gain.high < worth:
        return "leave it off"
    return "use it" if gain.low > 0 else "cannot tell"


def wanted_half_width(gain: Interval, worth: float) -> float:
    """How narrow an interval that cannot tell is to be: first as the gain worth having; one that
    is no wider than that gain tells for certain at half of it.
    """
    return worth if gain.half_width > worth else worth / 2


def is_told(gain: Interval) -> bool:
    """Whether the interval is known, and narrow enough to say anything."""
    return gain.half_width <= _WIDEST


def show_points(gain: Interval) -> str:
    """A difference in points of a hundred, with the ends of its interval.

    Example:
        >>> show_points(Interval(0.012, 0.005, 0.019)), show_points(Interval(0.1, -0.4, 0.6))
        ('+1.2 (+0.5 to +1.9)', 'not told')
    """
    if not is_told(gain):
        return "not told"
    mean, low, high = (100 * end for end in (gain.mean, gain.low, gain.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def in_points(share: float) -> str:
    """A share of 1 in points of a hundred, with a decimal at least.

    Example:
        >>> in_points(0.01), in_points(0.0025)
        ('1.0', '0.25')
    """
    points = round(100 * share, 6)
    return f"{points:.1f}" if round(points, 1) == points else f"{points:g}"


def describe_gain(gain: Interval) -> str:
    """The same within a sentence.

    Example:
        >>> describe_gain(Interval(0.012, 0.005, 0.019))
        '+1.2 points (+0.5 to +1.9)'
        >>> describe_gain(Interval(0.1, -0.4, 0.6))
        'a difference that is not told, for it is not known to 20 points'
    """
    if not is_told(gain):
        return "a difference that is not told, for it is not known to 20 points"
    return show_points(gain).replace(" ", " points ", 1)


def describe_answer(gain: Interval, worth: float, needed: Needed) -> str:
    """The answer, and why.

    Args:
        gain: In accuracy, a fraction.
        worth: The smallest gain worth having.
        needed: For `wanted_half_width`, if it cannot be told.

    Example:
        >>> describe_answer(Interval(0.001, -0.005, 0.0071), 0.01, Needed(0, 0))
        'leave it off: gains of more than 0.8 points are ruled out'
        >>> describe_answer(Interval(0.0, -0.03, 0.03), 0.01, Needed(1432, None)).split("; ")[1]
        'about 1,500 more images to test on would show 1.0'
    """
    answer = find_answer(gain, worth)
    if answer == "use it":
        return f"{answer}: {describe_gain(gain)}"
    why = _refusal(gain, worth) if answer == "leave it off" else _doubt(gain, worth, needed)
    return f"{answer}: {why}"


def _refusal(gain: Interval, worth: float) -> str:
    if gain.high < 0:
        return f"it is worse, {describe_gain(gain)}"
    if gain.low > 0:
        return f"{describe_gain(gain)} is less than the {in_points(worth)} worth having"
    return f"gains of more than {in_points(min(_raised(gain.high), worth))} points are ruled out"


def _doubt(gain: Interval, worth: float, needed: Needed) -> str:
    more = []
    if needed.samples is not None:
        more.append(f"{_rounded(needed.samples):,} more images to test on")
    if needed.replicates is not None:
        kind = "replicate" if needed.replicates == 1 else "replicates"
        more.append(f"{needed.replicates} more {kind}")
    would = f"about {' or '.join(more)}" if more else "neither more images nor replicates alone"
    return (
        "this data shows only differences above "
        f"{in_points(_raised(min(gain.half_width, _WIDEST)))} points; {would} would show "
        f"{in_points(wanted_half_width(gain, worth))}"
    )


def _rounded(n: int) -> int:
    """To two digits, upwards: 1,432 to 1,500."""
    unit = int(10 ** max(len(str(n)) - 2, 0))
    return -(-n // unit) * unit


def _raised(share: float) -> float:
    """To a tenth of a point, upwards."""
    return math.ceil(round(1000 * share, 6)) / 1000
