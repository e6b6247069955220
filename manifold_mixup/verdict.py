"""How sure a difference between two ways to train is, over seeds and test samples at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup.drawing import seeded_generator

_RESAMPLES = 1000  # enough for a width to 2 percent


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds it with some confidence.

    Attributes:
        mean: Over seeds and test samples.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def paired_interval(scores: Tensor, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean of scores and its interval, whose width a bootstrap over seeds and samples tells.

    For differences, give those of each sample under each seed: what both ways have in common then
    falls out. Seeds and samples are drawn again independently, so the interval covers another
    split and start as well as other test samples; as few seeds vary less among themselves than all
    would, their part of the variance is widened by S / (S - 1). A variance that a few seeds, or
    samples, tell is itself unsure: the reach is a quantile of Student's t, with Satterthwaite's
    degrees of freedom. At two or three seeds it is still a little short, and a single one tells
    nothing of others: the interval is then about test samples alone. One more sample that scores 0
    is added to the bootstrap, so that a few samples that all say the same are not certain.

    Args:
        scores: (S, N), of S seeds and N samples; NaN where a sample was not tested under a seed.
        confidence: In (0, 1).
        seed: Of the bootstrap.

    Raises:
        ValueError: There are no scores.

    Example:
        >>> interval = paired_interval(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]))
        >>> round(interval.mean, 3), interval.low < interval.mean < interval.high
        (0.667, True)

    References:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007.
        https://arxiv.org/abs/0712.1111
        Satterthwaite, An approximate distribution of estimates of variance components, Biometrics
        Bulletin 1946. https://doi.org/10.2307/3002019
    """
    return paired_intervals([scores], confidence=confidence, seed=seed)[0]


def paired_intervals(
    scores: Sequence[Tensor], *, confidence: float = 0.95, seed: int = 0
) -> list[Interval]:
    """`paired_interval` of several scores of one shape, which share the draws of the bootstrap."""
    generator = seeded_generator(seed, "bootstrap")
    n_seeds, n_samples = scores[0].shape
    draws = _weights(n_seeds, generator), _weights(n_samples + 1, generator)
    return [_interval(one, *draws, confidence) for one in scores]


def _interval(scores: Tensor, seeds: Tensor, samples: Tensor, confidence: float) -> Interval:
    """The interval of scores by how often seeds and samples are drawn in each resample."""
    from scipy.stats import t

    tested = scores.isfinite()
    if not bool(tested.any()):
        raise ValueError(f"scores of shape {tuple(scores.shape)} hold no number to compare")
    values, tested = scores.nan_to_num(0).double(), tested.double()
    mean = float(values.sum() / tested.sum())
    n_samples = int(tested.any(0).sum())
    values, tested = F.pad(values, (0, 1)), F.pad(tested, (0, 1), value=float(tested.mean()))
    n_seeds = len(scores)
    if n_seeds > 1:
        seeds = 1 + (seeds - 1) * math.sqrt(n_seeds / (n_seeds - 1))
    variance = _variance(*(((seeds @ one) * samples).sum(1) for one in (values, tested)))
    if variance == 0:
        return Interval(mean, mean, mean)
    of_seeds = _variance(*(seeds @ one.sum(1) for one in (values, tested)))
    of_samples = _variance(*(samples @ one.sum(0) for one in (values, tested)))
    parts = ((of_seeds, n_seeds - 1), (of_samples, n_samples))
    freedom = variance**2 / sum(part**2 / n for part, n in parts if n)
    reach = float(t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - reach, mean + reach)


def _variance(totals: Tensor, counts: Tensor) -> float:
    """Of the mean score over resamples, given the sum of the scores and their number in each."""
    return float((totals[counts > 0] / counts[counts > 0]).var())


def _weights(n: int, generator: torch.Generator) -> Tensor:
    """How often each of n is drawn, in each resample: (resamples, n)."""
    drawn = torch.randint(n, (_RESAMPLES, n), generator=generator)
    weights = torch.zeros(_RESAMPLES, n, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(weights))
