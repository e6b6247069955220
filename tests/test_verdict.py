"""Intervals of paired differences, against what is known of the numbers drawn."""

import math

import pytest
import torch
from torch import Tensor

from manifold_mixup.drawing import seeded_generator
from manifold_mixup.temperature import fit_temperature
from manifold_mixup.verdict import Interval, paired_interval


def normal(*shape: int, key: object = 0) -> Tensor:
    """Normal numbers, the same for the same shape and key."""
    generator = seeded_generator(str(key), *shape)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_mean_is_that_of_all_scores() -> None:
    """The mean is the plain one, of those that were tested."""
    scores = normal(4, 50)
    scores[1, 7:30] = math.nan

    assert paired_interval(scores).mean == pytest.approx(float(scores.nanmean()))


@pytest.mark.parametrize("of_seeds", [0.0, 0.3], ids=["samples alone", "seeds too"])
@pytest.mark.parametrize("masked", [False, True])
def test_interval_holds_the_truth_as_often_as_it_says(of_seeds: float, masked: bool) -> None:
    """With 12 seeds that shift all scores, about 95 of 100 intervals hold the mean they have."""
    held = 0
    for trial in range(100):
        scores = 0.5 + normal(12, 80, key=(trial, masked)) + normal(80, key=("sample", trial))
        scores += of_seeds * normal(12, 1, key=("seed", trial))
        if masked:
            scores[normal(12, 80, key=("mask", trial)) > 0] = math.nan
        interval = paired_interval(scores)
        held += interval.low <= 0.5 <= interval.high

    # The binomial spread is 2.2.
    assert 86 <= held <= 100


@pytest.mark.parametrize("of_each", [(0.0, 0.0, 1.0), (0.0, 1.0, 0.3), (0.1, 0.5, 1.0)])
@pytest.mark.parametrize("is_split", [False, True], ids=["same samples", "own samples"])
def test_interval_is_as_wide_as_means_scatter(
    of_each: tuple[float, float, float], is_split: bool
) -> None:
    """Whether seeds, samples or single scores vary, five seeds tell how far means lie apart."""
    means, reaches, missed = [], [], 0
    for trial in range(200):
        seed, sample, own = of_each
        scores = seed * normal(5, 1, key=("s", trial)) + sample * normal(1, 100, key=("n", trial))
        scores = scores + own * normal(5, 100, key=("own", trial))
        if is_split:
            scores[normal(5, 100, key=("split", trial)) > -0.84] = math.nan
        interval = paired_interval(scores)
        means.append(interval.mean)
        reaches.append(interval.high - interval.mean)
        missed += not interval.low <= 0 <= interval.high

    # 1.96 for a spread that is known, 2.8 where 4 degrees of freedom tell it.
    assert 1.8 < sum(reaches) / 200 / float(torch.tensor(means).std()) < 3.3
    assert missed <= 20


def test_more_confidence_is_wider() -> None:
    """An interval at a higher level holds that at a lower one."""
    scores = normal(5, 100)
    narrow, wide = (paired_interval(scores, confidence=level) for level in (0.8, 0.99))

    assert wide.low < narrow.low < narrow.high < wide.high


def test_no_difference_at_all_has_no_width() -> None:
    """Where both ways do the same everywhere, the ends are 0."""
    interval = paired_interval(torch.zeros(3, 10))

    assert interval.low == interval.mean == interval.high == 0


@pytest.mark.parametrize(("n", "is_sure"), [(1, False), (2, False), (200, True)])
def test_few_samples_that_say_the_same_are_not_certain(n: int, is_sure: bool) -> None:
    """A gain in every one of two test samples may be chance; in 200 it is not."""
    assert (paired_interval(torch.ones(3, n)).low > 0) == is_sure


@pytest.mark.parametrize(("n_seeds", "most"), [(3, 6), (5, 2)])
def test_few_seeds_are_not_trusted_too_far(n_seeds: int, most: int) -> None:
    """Where seeds alone make a difference, few of 100 intervals at 99.5 % miss 0.

    With the quantiles of the normal distribution 12 and 4 did.
    """
    missed = 0
    for trial in range(100):
        scores = 0.3 * normal(n_seeds, 300, key=("few", trial))
        scores += 0.1 * normal(n_seeds, 1, key=("shift", trial))
        interval = paired_interval(scores, confidence=0.995)
        missed += interval.low > 0 or interval.high < 0

    assert missed <= most


def test_interval_reads_as_numbers() -> None:
    """Printed, an interval is its mean and its ends, with signs."""
    assert str(Interval(0.0131, 0.004, 0.022)) == "+0.013 (+0.004 to +0.022)"


def test_no_scores_are_refused() -> None:
    """Without a number there is nothing to compare."""
    with pytest.raises(ValueError, match=r"scores of shape \(2, 3\) hold no number"):
        paired_interval(torch.full((2, 3), math.nan))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_undoes_a_scale(temperature: float) -> None:
    """Labels drawn from a softmax have the temperature by which their logits were scaled."""
    logits = 2 * normal(20_000, 3)
    target = logits.softmax(1).multinomial(1, generator=seeded_generator("labels"))[:, 0]

    fitted = fit_temperature(logits * temperature, target)

    assert fitted == pytest.approx(temperature, rel=0.05)


def test_temperature_is_the_best_of_many() -> None:
    """No temperature of a fine grid fits better, a normal logarithm taken for granted."""
    logits, target = normal(40, 3), torch.arange(40) % 3

    def misfit(t: float) -> float:
        nll = torch.nn.functional.cross_entropy(logits / t, target)
        return float(nll) + math.log(t) ** 2 / 80

    fitted = misfit(fit_temperature(logits, target))

    assert fitted <= min(map(misfit, torch.logspace(-1.6, 1.6, 400).tolist())) + 1e-9


def test_few_samples_that_are_all_right_prove_little() -> None:
    """Twenty clear samples make a head surer, but not blindly so."""
    logits = 3 * torch.eye(2, dtype=torch.float64).repeat(10, 1)

    assert 0.2 < fit_temperature(logits, torch.arange(20) % 2) < 1


@pytest.mark.parametrize("logits", [torch.zeros(0, 2), torch.tensor([[math.nan, 0.0]])])
def test_useless_logits_are_refused(logits: Tensor) -> None:
    """Nothing, or no number, has no temperature."""
    with pytest.raises(ValueError, match="give no temperature"):
        fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64))
