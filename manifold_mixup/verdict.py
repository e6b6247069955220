"""How sure differences between ways to train are, over replicates and test samples at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_mixup.spread import CONFIDENCE, bessel, find_spread, mean_score, quantile

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
