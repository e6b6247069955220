"""How sure differences between ways to train are, over replicates and test samples at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_mixup.drawing import seeded_generator
from manifold_mixup.spread import bessel, find_spread, mean_score

_DRAWS = 20_000


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds it with some confidence.

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


def paired_interval(scores: Tensor, *, confidence: float = 0.95, largest: float = 0.0) -> Interval:
    """The mean of scores and its interval, over replicates and samples at once.

    For differences, give those of each sample in each replicate: what both ways have in common
    then falls out. The interval covers another split and other draws as well as other test
    samples; see `find_spread`. A variance that a few replicates, or samples, tell is itself
    unsure: the reach is a quantile of Student's t, with Satterthwaite's degrees of freedom. A
    single replicate tells nothing of others: the interval is then about test samples alone.

    Args:
        scores: (R, N), of R replicates and N samples; NaN where a sample was not tested in a
            replicate.
        confidence: In (0, 1).
        largest: The size that no score exceeds, such as 1 for differences of right and wrong; 0
            if it is not known.

    Raises:
        ValueError: There are no scores.

    Example:
        >>> interval = paired_interval(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]))
        >>> round(interval.mean, 3), interval.low < interval.mean < interval.high
        (0.667, True)

    Reference:
        Satterthwaite, An approximate distribution of estimates of variance components, Biometrics
        Bulletin 1946. https://doi.org/10.2307/3002019
    """
    return _around(mean_score(scores), find_spread(scores, largest=largest).reach(confidence))


def simultaneous_intervals(
    scores: Sequence[Tensor], *, confidence: float = 0.95, largest: float = 0.0
) -> list[Interval]:
    """The means of several scores, and intervals that hold all together.

    All reach equally many standard errors: as many as the largest of all deviations stays below
    with this confidence, of means that vary together as these do (the max statistic). So rows that
    say the same count as one. The degrees of freedom are the fewest that any of them has.

    Args:
        scores: K of (R, N), as `paired_interval` takes them, all of the same samples in the same
            replicates.
        confidence: In (0, 1).
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
    freedom = min(one.freedom for one in spreads)
    errors = max_quantile(_covariance(scores), freedom, confidence=confidence)
    return [
        _around(mean_score(one), errors * math.sqrt(spread.variance))
        for one, spread in zip(scores, spreads, strict=True)
    ]


def max_quantile(covariance: Tensor, freedom: float, *, confidence: float) -> float:
    """What the largest of K sizes stays below, of a multivariate t with these correlations.

    Args:
        covariance: (K, K), in any unit. One without any variance counts as independent.
        freedom: Degrees of freedom, above 0.
        confidence: In (0, 1).

    Example:
        >>> round(max_quantile(torch.ones(3, 3), 4, confidence=0.95), 2)  # three that are one
        2.78
    """
    from scipy.stats import t

    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp(min=1e-9 * float(values.max()) + 1e-200).sqrt()
    root = root / root.norm(dim=1, keepdim=True)
    generator = seeded_generator("max statistic")
    normal = torch.randn(_DRAWS, len(root), dtype=torch.float64, generator=generator)
    # With that many the quantiles are normal ones; there is no gamma draw of infinity.
    shape = torch.full((_DRAWS, 1), min(freedom, 1e6) / 2, dtype=torch.float64)
    sizes = (normal @ root.T).abs() / (torch._standard_gamma(shape, generator) / shape).sqrt()
    # A single one's quantile is known, so that what chance makes of it is taken out of the rest.
    chance = float(sizes.quantile(confidence, dim=0).mean()) / t.ppf((1 + confidence) / 2, freedom)
    return float(sizes.amax(1).quantile(confidence)) / float(chance)


def _covariance(scores: Sequence[Tensor]) -> Tensor:
    """How the means of scores vary together (K, K), up to a factor; its parts are those of
    `find_spread`, without what was not seen.
    """
    means = torch.tensor([[mean_score(one)] for one in scores], dtype=torch.float64)
    over_replicates = own = torch.zeros(len(scores), len(scores), dtype=torch.float64)
    by_sample = torch.zeros(len(scores), scores[0].shape[1], dtype=torch.float64)
    for replicate in zip(*scores, strict=True):
        apart = (torch.stack(replicate).double() - means).nan_to_num(0)
        over_replicates = over_replicates + torch.outer(apart.sum(1), apart.sum(1))
        own = own + apart @ apart.T
        by_sample += apart
    of_replicates = _positive(bessel(len(scores[0])) * over_replicates - own)
    return of_replicates + _positive(by_sample @ by_sample.T - own) + own


def _positive(covariance: Tensor) -> Tensor:
    """The nearest that is one: eigenvalues are not below 0."""
    values, vectors = torch.linalg.eigh(covariance)
    positive: Tensor = (vectors * values.clamp(min=0)) @ vectors.T
    return positive


def _around(mean: float, reach: float) -> Interval:
    return Interval(mean, mean - reach, mean + reach)
