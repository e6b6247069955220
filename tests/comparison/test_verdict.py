"""Intervals of differences, and what they answer, against what is known of the numbers drawn."""

import math

import pytest
import torch
from torch import Tensor

from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import Interval
from manifold_mixup.comparison.spread import Needed, Spread, find_needed, find_spread
from manifold_mixup.comparison.verdict import (
    Answer,
    describe_answer,
    find_answer,
    max_quantile,
    paired_interval,
    show_points,
    simultaneous_intervals,
)
from manifold_mixup.training import fit_temperature


def normal(*shape: int, key: object = 0) -> Tensor:
    """Normal numbers, the same for the same shape and key."""
    generator = seeded_generator(str(key), *shape)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_mean_is_that_of_all_scores() -> None:
    """The mean is the plain one, of those that were tested."""
    scores = normal(4, 50)
    scores[1, 7:30] = math.nan

    assert paired_interval(scores).mean == pytest.approx(float(scores.nanmean()))


@pytest.mark.parametrize("of_replicates", [0.0, 0.3], ids=["samples alone", "replicates too"])
@pytest.mark.parametrize("masked", [False, True])
def test_interval_holds_the_truth_as_often_as_it_says(of_replicates: float, masked: bool) -> None:
    """With 12 replicates that shift all scores, about 95 of 100 intervals hold their mean."""
    held = 0
    for candidate in range(100):
        scores = (
            0.5 + normal(12, 80, key=(candidate, masked)) + normal(80, key=("sample", candidate))
        )
        scores += of_replicates * normal(12, 1, key=("seed", candidate))
        if masked:
            scores[normal(12, 80, key=("mask", candidate)) > 0] = math.nan
        interval = paired_interval(scores)
        held += interval.low <= 0.5 <= interval.high

    # The binomial spread is 2.2.
    assert 86 <= held <= 100


@pytest.mark.parametrize("of_each", [(0.0, 0.0, 1.0), (0.0, 1.0, 0.3), (0.1, 0.5, 1.0)])
@pytest.mark.parametrize("is_split", [False, True], ids=["same samples", "own samples"])
def test_interval_is_as_wide_as_means_scatter(
    of_each: tuple[float, float, float], is_split: bool
) -> None:
    """Whether replicates, samples or scores vary, five replicates tell how far means lie apart."""
    means, reaches, missed = [], [], 0
    for candidate in range(200):
        seed, sample, own = of_each
        scores = seed * normal(5, 1, key=("s", candidate)) + sample * normal(
            1, 100, key=("n", candidate)
        )
        scores = scores + own * normal(5, 100, key=("own", candidate))
        if is_split:
            scores[normal(5, 100, key=("split", candidate)) > -0.84] = math.nan
        interval = paired_interval(scores)
        means.append(interval.mean)
        reaches.append(interval.high - interval.mean)
        missed += not interval.low <= 0 <= interval.high

    # 1.96 for a spread that is known, 2.8 where 4 degrees of freedom tell it.
    assert 1.8 < sum(reaches) / 200 / float(torch.tensor(means).std()) < 3.3
    assert missed <= 20


def test_no_difference_at_all_has_no_width() -> None:
    """Where both ways do the same everywhere, the ends are 0."""
    interval = paired_interval(torch.zeros(3, 10))

    assert interval.low == interval.mean == interval.high == 0


@pytest.mark.parametrize(("n", "is_sure"), [(1, False), (2, False), (200, True)])
def test_few_samples_that_say_the_same_are_not_certain(n: int, is_sure: bool) -> None:
    """A gain in every one of two test samples may be chance; in 200 it is not."""
    assert (paired_interval(torch.ones(3, n)).low > 0) == is_sure


@pytest.mark.parametrize(("n_replicates", "most"), [(3, 6), (5, 2)])
def test_few_replicates_are_not_trusted_too_far(n_replicates: int, most: int) -> None:
    """Where replicates alone make a difference, few of 100 intervals at 99.5 % miss 0.

    With the quantiles of the normal distribution 12 and 4 did.
    """
    missed = 0
    for candidate in range(100):
        scores = 0.3 * normal(n_replicates, 300, key=("few", candidate))
        scores += 0.1 * normal(n_replicates, 1, key=("shift", candidate))
        missed += abs(float(scores.mean())) > find_spread(scores).reach(0.995)

    assert missed <= most


def test_rare_differences_are_not_certain() -> None:
    """If one way is right more often in 1 of 50 samples, and never less often, at most 5 of 100
    intervals end below that, though many tests have no such sample.
    """
    short = 0
    for candidate in range(100):
        gains = torch.rand(80, dtype=torch.float64, generator=seeded_generator("rare", candidate))
        scores = (gains < 0.02).double().expand(10, -1)
        short += paired_interval(scores, largest=1.0).high < 0.02

    assert short <= 5


def test_right_and_wrong_alike_everywhere_has_a_width() -> None:
    """Of 50 samples none of which differs, the interval is that of two more that do."""
    interval = paired_interval(torch.zeros(10, 50), largest=1.0)

    assert interval.high == pytest.approx(2.01 * math.sqrt(2) / 50, rel=0.01)


def drawn(replicates: int, samples: int, parts: tuple[float, float, float], key: object) -> Tensor:
    """Scores with these standard deviations of replicates, of samples, and of their own."""
    of_replicates, of_samples, of_scores = parts
    scores = of_replicates * normal(replicates, 1, key=("r", key))
    scores = scores + of_samples * normal(samples, key=("n", key))
    return scores + of_scores * normal(replicates, samples, key=("own", key))


def test_parts_of_the_variance_are_those_that_scores_were_drawn_with() -> None:
    """Many replicates and samples tell what each part comes from."""
    spread = find_spread(drawn(100, 400, (0.2, 1.0, 2.0), "parts"))

    assert spread.of_replicates == pytest.approx(0.2**2 / 100, rel=0.5)
    assert spread.of_samples == pytest.approx(1 / 400, rel=0.2)
    assert spread.of_scores == pytest.approx(4 / (100 * 400), rel=0.3)


@pytest.mark.parametrize("kind", ["samples", "replicates"])
def test_as_many_more_as_are_needed_make_the_interval_narrow(kind: str) -> None:
    """Intervals of so many more samples, or replicates, are as narrow as asked, in the mean."""
    parts = (0.04, 0.3, 0.8) if kind == "samples" else (0.2, 0.3, 0.8)
    now = find_spread(drawn(20, 150, parts, "now"))
    target = 0.75 * now.reach()
    more = getattr(find_needed(now, target), kind)
    grown = {"replicates": 20, "samples": 150}
    grown[kind] += more

    reaches = [
        paired_interval(drawn(grown["replicates"], grown["samples"], parts, key)).half_width
        for key in range(30)
    ]

    assert more > 0
    assert sum(reaches) / 30 == pytest.approx(target, rel=0.15)


def test_what_does_not_help_is_not_asked_for() -> None:
    """Where samples make all of the variance, no number of replicates helps, and the other way."""
    of_samples = Spread(10, 100, 0.0, 0.01, 0.0, 0.0, is_tested_once=False)
    of_replicates = Spread(10, 100, 0.01, 0.0, 0.0, 0.0, is_tested_once=False)

    assert find_needed(of_samples, 0.1).replicates is None
    assert find_needed(of_replicates, 0.1).samples is None


def test_more_replicates_do_not_help_where_each_sample_was_tested_once() -> None:
    """Then what is a score's own may be the sample's, which only more samples tell."""
    scores = torch.full((5, 200), math.nan, dtype=torch.float64)
    for fold in range(5):
        scores[fold, fold::5] = normal(40, key=fold)
    spread = find_spread(scores)

    assert spread.is_tested_once
    assert find_needed(spread, spread.reach() / 3).replicates is None


def test_an_interval_that_is_narrow_needs_no_more() -> None:
    """What is there already is not asked for."""
    spread = find_spread(normal(10, 100))

    assert find_needed(spread, 2 * spread.reach()) == Needed(0, 0)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_quantile_of_independent_rows_is_that_of_sidak(n: int) -> None:
    """Of K independent normal means each has to hold with the K-th root of the confidence."""
    each = (1 + 0.95 ** (1 / n)) / 2

    expected = float(torch.special.ndtri(torch.tensor(each)))

    assert max_quantile(torch.eye(n), math.inf) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("freedom", "expected"), [(4, 2.776), (19, 2.093), (math.inf, 1.960)])
def test_quantile_of_rows_that_are_one_is_that_of_one(freedom: float, expected: float) -> None:
    """Of rows that all say the same, no more is asked than of a single one."""
    found = max_quantile(torch.ones(6, 6), freedom)

    assert found == pytest.approx(expected, rel=1e-3)


def test_quantile_lies_between_for_rows_that_are_alike() -> None:
    """The more alike rows are, the nearer they come to one."""
    alike = [max_quantile(torch.eye(5) * (1 - r) + r, 10) for r in (0, 0.5, 0.9, 1)]

    assert alike == sorted(alike, reverse=True)


def test_intervals_hold_all_together() -> None:
    """Of 100 times eight rows that are alike at least 90 have all means within; by themselves, at
    95 % each, fewer do. The binomial spread is 2.2.
    """
    held = alone = 0
    for candidate in range(100):
        common = drawn(8, 60, (0.1, 0.7, 0.5), ("common", candidate))
        scores = [common + drawn(8, 60, (0.1, 0.7, 0.5), (row, candidate)) for row in range(8)]
        held += all(one.low <= 0 <= one.high for one in simultaneous_intervals(scores))
        alone += all(one.low <= 0 <= one.high for one in map(paired_interval, scores))

    assert held >= 90
    assert alone < held


def test_a_single_row_has_its_own_interval() -> None:
    """Together with none, a row's interval is the one it has by itself."""
    scores = normal(6, 50)

    (found,) = simultaneous_intervals([scores])

    assert found.low == pytest.approx(paired_interval(scores).low)


def test_no_rows_have_no_intervals() -> None:
    """There may be nothing beside the base."""
    assert simultaneous_intervals([]) == []


@pytest.mark.parametrize(
    ("ends", "answer", "why"),
    [
        ((-0.004, 0.0061), "leave it off", "gains of more than 0.7 points are ruled out"),
        ((-0.004, 0.00999), "leave it off", "gains of more than 1.0 points are ruled out"),
        ((0.002, 0.008), "leave it off", "+0.5 points (+0.2 to +0.8) is less than the 1.0 worth"),
        ((-0.03, -0.01), "leave it off", "it is worse, -2.0 points (-3.0 to -1.0)"),
        ((-0.9, -0.1), "leave it off", "it is worse, a difference that is not told"),
        ((0.001, 0.03), "use it", "+1.6 points (+0.1 to +3.0)"),
        ((0.1, 0.9), "use it", "a difference that is not told"),
        ((-0.02, 0.03), "cannot tell", "only differences above 2.5 points; about 1,300 more imag"),
        ((-0.02, 0.03), "cannot tell", " or 7 more replicates would show 1.0"),
        (
            (-0.002, 0.014),
            "cannot tell",
            "only differences above 0.8 points; about 1,300 more",
        ),
        ((-0.002, 0.014), "cannot tell", " or 7 more replicates would show 0.5"),
        ((-0.5, 0.9), "cannot tell", "only differences above 20.0 points"),
    ],
)
def test_three_answers(ends: tuple[float, float], answer: Answer, why: str) -> None:
    """An interval answers by its ends alone: use it, leave it off, or cannot tell."""
    gain = Interval(sum(ends) / 2, *ends)

    assert find_answer(gain, 0.01) == answer
    told = describe_answer(gain, 0.01, Needed(1234, 7))
    assert told.startswith(f"{answer}: ")
    assert why in told


@pytest.mark.parametrize(
    ("needed", "told"),
    [
        (Needed(80, None), "; about 80 more images to test on would show 1.0"),
        (Needed(None, 1), "; about 1 more replicate would show 1.0"),
        (Needed(None, None), "; neither more images nor replicates alone would show 1.0"),
    ],
)
def test_what_cannot_help_is_left_out(needed: Needed, told: str) -> None:
    """The verdict asks for what would tell, and for nothing else."""
    assert told in describe_answer(Interval(0.0, -0.03, 0.03), 0.01, needed)


def test_half_as_wide_as_the_gain_worth_having_always_tells() -> None:
    """Wherever an interval of that width lies, it says to use it or to leave it off."""
    for mean in torch.linspace(-0.03, 0.03, 601).tolist():
        answer = find_answer(Interval(mean, mean - 0.00499, mean + 0.00499), 0.01)
        assert answer in ("use it", "leave it off")


def test_wide_intervals_are_not_told() -> None:
    """Beyond 20 points either way an interval says nothing, nor does one that is not known."""
    assert show_points(Interval(0.0, -0.2, 0.2)) == "+0.0 (-20.0 to +20.0)"
    assert show_points(Interval(0.0, -0.21, 0.21)) == "not told"
    assert show_points(Interval(math.nan, math.nan, math.nan)) == "not told"


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
