"""How sure a difference between two ways to train is, over seeds and test samples at once."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


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


def paired_interval(scores: Tensor, *, confidence: float = 0.95) -> Interval:
    """The mean of scores and its interval, over seeds and samples at once.

    For differences, give those of each sample under each seed: what both ways have in common then
    falls out. A score deviates from the mean by what is its seed's, what is its sample's, and
    what is its own; the variance of the mean is what the sums over each seed tell, plus what those
    over each sample tell, less what single scores tell, which both have counted. So the interval
    covers another split and start as well as other test samples. A variance that a few seeds, or
    samples, tell is itself unsure: the reach is a quantile of Student's t, with Satterthwaite's
    degrees of freedom. A single seed tells nothing of others: the interval is then about test
    samples alone. One more sample that scores 0 is added to the variance, so that a few samples
    that all say the same are not certain.

    Args:
        scores: (S, N), of S seeds and N samples; NaN where a sample was not tested under a seed.
        confidence: In (0, 1).

    Raises:
        ValueError: There are no scores.

    Example:
        >>> interval = paired_interval(torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]))
        >>> round(interval.mean, 3), interval.low < interval.mean < interval.high
        (0.667, True)

    References:
        Cameron, Gelbach and Miller, Robust inference with multiway clustering, Journal of Business
        and Economic Statistics 2011. https://doi.org/10.1198/jbes.2010.07136
        Satterthwaite, An approximate distribution of estimates of variance components, Biometrics
        Bulletin 1946. https://doi.org/10.2307/3002019
    """
    from scipy.stats import t

    tested = scores.isfinite()
    if not bool(tested.any()):
        raise ValueError(f"scores of shape {tuple(scores.shape)} hold no number to compare")
    values, tested = scores.nan_to_num(0).double(), tested.double()
    mean = float(values.sum() / tested.sum())
    n_seeds, n_samples = len(scores), int(tested.any(0).sum())
    values, tested = F.pad(values, (0, 1)), F.pad(tested, (0, 1), value=float(tested.mean()))
    apart = (values - mean * tested) / tested.sum()
    of_seeds = float(apart.sum(1).square().sum()) * n_seeds / (n_seeds - 1) if n_seeds > 1 else 0.0
    of_samples, of_scores = (float(one.square().sum()) for one in (apart.sum(0), apart))
    variance = max(of_seeds + of_samples - of_scores, of_samples)
    if variance == 0:
        return Interval(mean, mean, mean)
    parts = ((of_seeds, n_seeds - 1), (of_samples, n_samples))
    freedom = variance**2 / sum(part**2 / n for part, n in parts if n)
    reach = float(t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - reach, mean + reach)
