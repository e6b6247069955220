"""Where the variance of a mean over replicates and samples comes from, and what would lower it."""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

from torch import Tensor

CONFIDENCE = 0.95


# One that speaks for either way.
_IMAGINED = 2


# More than anybody would add.
_MOST_SAMPLES, _MOST_REPLICATES = 1_000_000, 200


@dataclass(frozen=True)
class Spread:
    """The parts of the variance of a mean over R replicates and N samples.

        score = mean + the replicate's part + the sample's part + its own

    Attributes:
        n_replicates: R.
        n_samples: N.
        of_replicates: Variance by the replicates' parts; falls as 1 / R.
        of_samples: By the samples' parts; falls as 1 / N.
        of_scores: By what single scores have of their own; falls as 1 / (R N).
        of_unseen: By samples that were not seen; falls as 1 / N^2.
        is_tested_once: Whether no sample was tested in two replicates. What is a score's own may
            then be the sample's, and is not taken to fall with more replicates.
    """

    n_replicates: int
    n_samples: int
    of_replicates: float
    of_samples: float
    of_scores: float
    of_unseen: float
    is_tested_once: bool

    @property
    def variance(self) -> float:
        """Of the mean."""
        return self.of_replicates + self.of_samples + self.of_scores + self.of_unseen

    @property
    def freedom(self) -> float:
        """Satterthwaite's degrees of freedom: a variance that few tell is itself unsure.

        Reference:
            Satterthwaite, An approximate distribution of estimates of variance components,
            Biometrics Bulletin 1946. https://doi.org/10.2307/3002019
        """
        over_replicates = self.of_replicates + self.of_scores
        over_samples = self.of_samples + self.of_scores + self.of_unseen
        unsure = over_samples**2 / self.n_samples
        if self.n_replicates > 1:
            unsure += over_replicates**2 / (self.n_replicates - 1)
        return self.variance**2 / unsure if unsure else math.inf

    def reach(self, confidence: float = CONFIDENCE) -> float:
        """Half the width of the interval of the mean."""
        return quantile(self.freedom, confidence) * math.sqrt(self.variance)

    def grown(self, *, samples: int = 0, replicates: int = 0) -> "Spread":
        """What is to be expected with so many more."""
        n_samples, n_replicates = self.n_samples + samples, self.n_replicates + replicates
        by_samples, by_replicates = self.n_samples / n_samples, self.n_replicates / n_replicates
        by_both = by_samples * (1 if self.is_tested_once else by_replicates)
        return replace(
            self,
            n_replicates=n_replicates,
            n_samples=n_samples,
            of_replicates=by_replicates * self.of_replicates,
            of_samples=by_samples * self.of_samples,
            of_scores=by_both * self.of_scores,
            of_unseen=by_samples**2 * self.of_unseen,
        )


@dataclass(frozen=True)
class Needed:
    """How many more would make an interval narrow enough; None where none are enough.

    Attributes:
        samples: More test samples, in as many replicates.
        replicates: More replicates, of the same samples.
    """

    samples: int | None
    replicates: int | None


def find_spread(scores: Tensor, *, largest: float = 0.0) -> Spread:
    """The parts of the variance of the mean of scores.

    The sums over each replicate vary by the replicates' parts and by what single scores have of
    their own; so do those over each sample by theirs. No part is less than 0.

    Where few samples differ at all, the few that would speak against them may not have been seen.
    Two more are therefore imagined, one for either way, as large as samples usually are: the mean
    of their sizes, weighted by themselves, with one of the largest size among them.

    Args:
        scores: (R, N), of R replicates and N samples; NaN where a sample was not tested in a
            replicate.
        largest: The size that no score exceeds; 0 if it is not known.

    Raises:
        ValueError: There are no scores.

    Example:
        >>> import torch
        >>> spread = find_spread(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        >>> spread.of_replicates > spread.of_samples
        True

    References:
        Cameron, Gelbach and Miller, Robust inference with multiway clustering, Journal of Business
        and Economic Statistics 2011. https://doi.org/10.1198/jbes.2010.07136
        Agresti and Min, Simple improved confidence intervals for comparing matched proportions,
        Statistics in Medicine 2005. https://doi.org/10.1002/sim.1781
    """
    tested = scores.isfinite()
    if not bool(tested.any()):
        raise ValueError(f"scores of shape {tuple(scores.shape)} hold no number to compare")
    n, n_samples, n_replicates = int(tested.sum()), int(tested.any(0).sum()), len(scores)
    apart = (scores.double() - mean_score(scores)).nan_to_num(0) / n
    of_scores, over_replicates, over_samples = (
        float(one.square().sum()) for one in (apart, apart.sum(1), apart.sum(0))
    )
    over_replicates *= bessel(n_replicates)
    return Spread(
        n_replicates,
        n_samples,
        of_replicates=max(over_replicates - of_scores, 0.0),
        of_samples=max(over_samples - of_scores, 0.0),
        of_scores=of_scores,
        of_unseen=_IMAGINED * (_usual_size(scores, largest) / n_samples) ** 2,
        is_tested_once=n == n_samples,
    )


def mean_score(scores: Tensor) -> float:
    """Of all that were tested."""
    return float(scores.double().nanmean())


def quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """What the size of a Student's t stays below."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))


def bessel(n: int) -> float:
    """What squares around the mean of n are too small by; 0 for one, which tells nothing."""
    return n / (n - 1) if n > 1 else 0.0


def find_needed(spread: Spread, half_width: float) -> Needed:
    """How many more samples, or replicates, would make the interval as narrow as this.

    Args:
        spread: Where the variance comes from now.
        half_width: Of the interval, above 0.

    Example:
        >>> of_samples = Spread(10, 100, 0.0, 0.01, 0.0, 0.0, is_tested_once=False)
        >>> find_needed(of_samples, of_samples.reach() / 2)
        Needed(samples=293, replicates=None)
    """

    def is_enough(**more: int) -> bool:
        return spread.grown(**more).reach() <= half_width

    samples = bisect_left(range(_MOST_SAMPLES), True, key=lambda n: is_enough(samples=n))
    replicates = bisect_left(range(_MOST_REPLICATES), True, key=lambda n: is_enough(replicates=n))
    return Needed(
        samples if samples < _MOST_SAMPLES else None,
        replicates if replicates < _MOST_REPLICATES else None,
    )


def _usual_size(scores: Tensor, largest: float) -> float:
    """The mean size of samples, weighted by itself, with one of the largest among them."""
    sizes = scores.double().nanmean(0).nan_to_num(0).abs()
    total = float(sizes.sum()) + largest
    return (float(sizes.square().sum()) + largest**2) / total if total else 0.0
