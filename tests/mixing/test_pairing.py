"""Who mixes with whom: what each rule promises, for any batch."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import small_net
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from manifold_mixup import ManifoldMixup, Mix, NearTarget, mixed_loss
from manifold_mixup._random import seeded_generator
from manifold_mixup.mixing import check_paired, check_pairing
from manifold_mixup.mixing.mix import draw_lam
from manifold_mixup.mixing.pairing import PAIRINGS, _warn_unmixed, draw_partner

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
)
CLASSES = st.lists(st.integers(0, 5), min_size=1, max_size=30)
MULTI = st.integers(1, 4).flatmap(
    lambda c: st.lists(st.lists(st.booleans(), min_size=c, max_size=c), min_size=1, max_size=20)
)
VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)
EXCLUDED = st.sets(st.integers(0, 5), max_size=3)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _warned_of_nothing() -> Iterator[None]:
    _warn_unmixed.cache_clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pairing=.*nobody in a whole batch")
        yield


def draw(pairing: Any, target: Any, exclude: Any = (), seed: int = 0) -> list[int]:
    """Partners from a seed, after what is true of them for any rule."""
    n = len(target)
    partner = draw_partner(
        n, pairing, target=target, exclude=exclude, generator=seeded_generator(seed)
    )
    assert (partner.dtype, partner.shape, partner.device.type) == (torch.int64, (n,), "cpu")
    assert 0 <= int(partner.min()) <= int(partner.max()) < n
    return partner.tolist()


def labels_of(rows: list[list[bool]]) -> list[set[int]]:
    """The labels of multi-label samples."""
    return [{c for c, has in enumerate(row) if has} for row in rows]


def frequencies(n: int, times: int, pairing: Any, target: Tensor) -> Tensor:
    """How often each sample had each partner (n, n)."""
    counts, generator = torch.zeros(n, n), seeded_generator(0)
    for _ in range(times):
        partner = draw_partner(n, pairing, target=target, generator=generator)
        counts[torch.arange(n), partner] += 1
    return counts


# Any


@pytest.mark.parametrize("n", [1, 2, 3, 8, 101])
def test_every_sample_is_taken_once(n: int) -> None:
    """Partners are a permutation of the batch."""
    partner = draw_partner(n)

    assert partner.dtype == torch.int64
    assert sorted(partner.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 5, 64])
def test_nobody_is_their_own_partner(n: int) -> None:
    """From two samples on, each is mixed with another one, in every draw."""
    generator = seeded_generator(0)

    for _ in range(50):
        assert (draw_partner(n, generator=generator) != torch.arange(n)).all()


def test_single_sample_is_its_own_partner() -> None:
    """A batch of one has nobody else."""
    assert draw_partner(1).tolist() == [0]


def test_every_other_sample_is_as_likely() -> None:
    """A chi-square test finds no preference among the others, for any sample."""
    counts = frequencies(6, 3000, "any", torch.zeros(6))

    for i in range(6):
        others = [int(counts[i, j]) for j in range(6) if j != i]
        assert stats.chisquare(others).pvalue > 1e-4


@given(n=st.integers(2, 40), seed=SEEDS)
def test_any_takes_one_permutation_from_the_generator_and_looks_at_no_target(
    n: int, seed: int
) -> None:
    """The draws are those of a random cycle, whatever stands for the target."""
    generator = seeded_generator(seed)
    order = torch.randperm(n, generator=generator).tolist()
    cycle = {one: order[place - 1] for place, one in enumerate(order)}
    drawn = seeded_generator(seed)
    partner = draw_partner(n, "any", target=object(), generator=drawn)

    assert partner.tolist() == [cycle[i] for i in range(n)]
    assert torch.equal(drawn.get_state(), generator.get_state())


# By class


@given(classes=CLASSES, seed=SEEDS)
def test_other_class_keeps_its_promise(classes: list[int], seed: int) -> None:
    """No pair has one class where there are two, and partners are taken as evenly as can be."""
    partner = draw("other-class", torch.tensor(classes), seed=seed)
    n, taken = len(classes), Counter(partner)
    largest, most = Counter(classes).most_common(1)[0]
    if most == n:
        assert partner == list(range(n))
        return

    assert all(classes[i] != classes[j] for i, j in enumerate(partner))
    if 2 * most <= n:
        assert set(taken.values()) == {1}
    else:
        # All of the large class need one of the few others; these need one of it.
        share, uneven = divmod(most, n - most)
        for i in range(n):
            if classes[i] == largest:
                assert taken[i] <= 1
            else:
                assert share <= taken[i] <= share + bool(uneven)


@given(classes=CLASSES, seed=SEEDS)
def test_same_class_keeps_its_promise(classes: list[int], seed: int) -> None:
    """All pairs have one class, each sample is taken once, only one alone is by itself."""
    partner = draw("same-class", torch.tensor(classes), seed=seed)
    counts = Counter(classes)

    assert sorted(partner) == list(range(len(classes)))
    for i, j in enumerate(partner):
        assert classes[i] == classes[j]
        assert (i == j) == (counts[classes[i]] == 1)


@given(rows=MULTI, seed=SEEDS)
@pytest.mark.parametrize("pairing", ["other-class", "same-class"])
def test_multi_label_pairs_have_no_common_label_or_some(
    pairing: str, rows: list[list[bool]], seed: int
) -> None:
    """Whoever can be paired so is, with somebody else; the rest are their own partners.

    To have none is like a label where there is but one.
    """
    labels = labels_of(rows)
    assume(any(len(own) != 1 for own in labels))
    partner = draw(pairing, torch.tensor(rows), seed=seed)

    def is_common(own: set[int], other: set[int]) -> bool:
        return own == other if len(rows[0]) == 1 else bool(own & other)

    for i, own in enumerate(labels):
        fits = {
            j
            for j, other in enumerate(labels)
            if j != i and is_common(own, other) == (pairing == "same-class")
        }
        assert partner[i] in (fits or {i})


@given(classes=CLASSES, exclude=EXCLUDED, seed=SEEDS)
@pytest.mark.parametrize("pairing", ["any", "other-class", "same-class"])
def test_excluded_classes_take_no_part(
    pairing: str, classes: list[int], exclude: set[int], seed: int
) -> None:
    """They are their own partners and nobody else's; the others keep their promise."""
    partner = draw(pairing, torch.tensor(classes), exclude, seed)
    some = [i for i, own in enumerate(classes) if own not in exclude]

    for i, j in enumerate(partner):
        if i not in some:
            assert j == i
            continue
        fits = {
            "any": [k for k in some if k != i],
            "other-class": [k for k in some if classes[k] != classes[i]],
            "same-class": [k for k in some if k != i and classes[k] == classes[i]],
        }[pairing]
        assert j in (fits or [i])


@given(rows=MULTI, exclude=st.sets(st.integers(0, 3), min_size=1), seed=SEEDS)
def test_any_excluded_label_excludes_a_sample(
    rows: list[list[bool]], exclude: set[int], seed: int
) -> None:
    """A multi-label sample takes part if it has none of the labels."""
    exclude = {one % len(rows[0]) for one in exclude}
    labels = labels_of(rows)
    assume(any(len(own) != 1 for own in labels))
    partner = draw("any", torch.tensor(rows).float(), exclude, seed)
    out = {i for i, own in enumerate(labels) if own & exclude}

    assert all(partner[i] == i for i in out)
    assert {partner[i] for i in range(len(rows)) if i not in out}.isdisjoint(out)


@given(classes=CLASSES, exclude=EXCLUDED, seed=SEEDS)
@pytest.mark.parametrize("pairing", ["any", "other-class", "same-class"])
def test_one_hot_and_soft_targets_count_as_their_largest_class(
    pairing: str, classes: list[int], exclude: set[int], seed: int
) -> None:
    """Indices, one-hot of any dtype and probabilities give the same draws."""
    indices = torch.tensor(classes)
    one_hot = F.one_hot(indices, 6)
    soft = (one_hot * 8 + torch.rand(one_hot.shape)).softmax(1)
    expected = draw(pairing, indices, exclude, seed)

    for target in (one_hot, one_hot.bool(), one_hot.half(), soft, soft.bfloat16(), indices.int()):
        assert draw(pairing, target, exclude, seed) == expected


def test_every_sample_of_other_classes_is_as_likely() -> None:
    """With classes of one size, by a chi-square test, for any sample; with labels as well."""
    classes = torch.tensor([0, 1, 2, 0, 1, 2, 3, 3])
    labels = F.one_hot(classes, 4).repeat_interleave(2, 1)

    for target in (classes, labels):
        counts = frequencies(8, 3000, "other-class", target)
        for i in range(8):
            others = [int(counts[i, j]) for j in range(8) if classes[j] != classes[i]]
            assert sum(others) == 3000
            assert stats.chisquare(others).pvalue > 1e-4


def test_one_large_class_takes_the_others_alike() -> None:
    """Where one class has most of the batch, and where it has half of it."""
    for classes in (torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 2])):
        n = len(classes)
        counts = frequencies(n, 3000, "other-class", classes)
        large = classes == 0
        for i in range(n):
            others = counts[i, large != large[i]]
            assert others.sum() == 3000
            assert stats.chisquare(others.tolist()).pvalue > 1e-4


def test_partners_of_a_class_are_of_all_other_classes() -> None:
    """In one batch a class is not paired with one or two others alone."""
    classes = torch.arange(100) % 10
    partner = draw_partner(100, "other-class", target=classes, generator=seeded_generator(0))

    for one in range(10):
        assert len(set(classes[partner[classes == one]].tolist())) >= 4


def test_every_sample_of_the_same_class_is_as_likely() -> None:
    """By a chi-square test, for any sample."""
    classes = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0])
    counts = frequencies(8, 3000, "same-class", classes)

    for i in range(8):
        others = [int(counts[i, j]) for j in range(8) if j != i and classes[j] == classes[i]]
        assert sum(others) == 3000
        assert stats.chisquare(others).pvalue > 1e-4


# By nearness


@given(values=VALUES, seed=SEEDS)
def test_near_target_is_never_the_sample_itself(values: list[float], seed: int) -> None:
    """However far the others are, or if all are alike; unless there are no others."""
    partner = draw("near-target", torch.tensor(values), seed=seed)

    assert len(values) == 1 or all(i != j for i, j in enumerate(partner))


@pytest.mark.parametrize("bandwidth", [0.5, 3.0, None])
@pytest.mark.parametrize("dims", [0, 1, 3])
def test_near_target_follows_the_kernel(bandwidth: float | None, dims: int) -> None:
    """By a chi-square test, the distances measured one by one."""
    target = torch.randn([7, *[dims] * bool(dims)])
    rows = [row.flatten() for row in target.double()]
    mean = sum(rows) / 7
    spread = math.sqrt(sum(float((row - mean).square().sum()) for row in rows) / 7)
    width = bandwidth or spread / 2
    pairing = "near-target" if bandwidth is None else NearTarget(bandwidth)
    counts = frequencies(7, 3000, pairing, target)

    for i in range(7):
        others = [j for j in range(7) if j != i]
        squared = [float((rows[i] - rows[j]).square().sum()) for j in others]
        kernel = [math.exp(-d / (2 * width**2)) for d in squared]
        expected = [3000 * k / sum(kernel) for k in kernel]
        likely = [k for k, e in enumerate(expected) if e >= 5]  # the test's own condition
        rest = [k for k, e in enumerate(expected) if e < 5]
        found = [float(counts[i, others[k]]) for k in likely]
        wanted = [expected[k] for k in likely]
        if rest:
            found.append(sum(float(counts[i, others[k]]) for k in rest))
            wanted.append(sum(expected[k] for k in rest))
        assert stats.chisquare(found, wanted).pvalue > 1e-4


def test_outlier_takes_the_nearest() -> None:
    """A sample whose kernel underflows to 0 everywhere has a partner all the same."""
    partner = draw(NearTarget(1e-3), torch.tensor([0.0, 1.0, 2.0, 1e9]))

    assert partner[3] == 2
    assert NearTarget(1.0) == NearTarget(1.0) != NearTarget()


# By a function


def mirrored(target: Tensor, generator: torch.Generator | None) -> Tensor:
    """The samples backwards."""
    return torch.arange(len(target)).flip(0)


def test_function_gets_target_and_generator() -> None:
    """Its partners are those of the batch, without the excluded, of whatever integers."""
    target, generator, seen = torch.tensor([5, 6, 5, 7, 8]), seeded_generator(0), []

    def rule(*given: Any) -> list[int]:
        seen.append(given)
        return mirrored(*given).tolist()

    whole = draw_partner(5, rule, target=target, generator=generator)
    part = draw_partner(5, mirrored, target=target, exclude=[6], generator=generator)

    assert whole.tolist() == [4, 3, 2, 1, 0]
    assert part.tolist() == [4, 1, 3, 2, 0]
    assert torch.equal(seen[0][0], target)
    assert seen[0][1] is generator
    other = (target, "and more")
    assert draw_partner(2, lambda t, _: torch.tensor([t is other, 0]).int(), target=other)[0] == 1


# Seeds, devices


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("pairing", [*PAIRINGS, NearTarget(2.0), mirrored])
def test_generator_fixes_the_draw(pairing: Any, device: str) -> None:
    """One seed gives the same partners on any device and leaves the global state alone."""
    target = torch.arange(64) % 7
    target = target.double() if "ear" in str(pairing) else target
    before = torch.get_rng_state()
    first, again, other = (
        draw(pairing, one, () if target.is_floating_point() else (3,), seed)
        for one, seed in ((target, 0), (target.to(device), 0), (target, 1))
    )

    assert first == again
    assert pairing is mirrored or first != other
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_global_generator_is_the_default(pairing: str) -> None:
    """Without a generator, `torch.manual_seed` decides."""
    target = torch.randn(64) if pairing == "near-target" else torch.arange(64) % 5
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(draw_partner(64, pairing, target=target).tolist())

    assert drawn[0] == drawn[1]


# What is refused


@pytest.mark.parametrize("pairing", ["nearest", "", None, ["any"]])
def test_unknown_pairing_lists_the_rules(pairing: str) -> None:
    """A rule that does not exist is refused with those that do."""
    with pytest.raises(ValueError, match=f"is unknown; choose one of {', '.join(PAIRINGS)}"):
        draw_partner(4, pairing)


@pytest.mark.parametrize("pairing", [*PAIRINGS, mirrored])
def test_known_pairing_passes(pairing: Any) -> None:
    """Every listed rule is accepted, and a function."""
    check_pairing(pairing)


INDICES, REAL = torch.tensor([0, 1, 2, 0]), torch.randn(4)
NAN = torch.tensor([0.0, 1.0, math.nan, 2.0])


@pytest.mark.parametrize(
    ("pairing", "target", "exclude", "error", "message"),
    [
        ("other-class", None, (), TypeError, "pairing='other-class' needs target=, .*got none"),
        ("same-class", (INDICES,), (), TypeError, "got a tuple; of several targets, a function"),
        ("near-target", None, (), TypeError, "pairing='near-target' needs target="),
        ("any", None, (1,), TypeError, r"exclude=\(1,\) needs target=, .*got none"),
        (mirrored, (INDICES,), (1,), TypeError, r"exclude=\(1,\) needs target="),
        ("other-class", INDICES[:3], (), ValueError, r"shape \(3,\) for 4 samples"),
        ("near-target", REAL[:3], (), ValueError, r"shape \(3,\) for 4 samples"),
        ("any", torch.tensor(1), (1,), ValueError, r"shape \(\) for 4 samples"),
        ("other-class", REAL, (), ValueError, "float32 tells no classes.*target.long"),
        ("any", REAL, (1,), ValueError, "float32 tells no classes"),
        ("same-class", torch.zeros(4, 2, 2).long(), (), ValueError, r"\(4, 2, 2\) and dtype"),
        ("same-class", NAN[:, None].expand(4, 3), (), ValueError, "target holds NaN"),
        ("near-target", NAN, (), ValueError, "targets of 1 of 4 samples are not finite"),
        ("near-target", REAL / 0, (), ValueError, "targets of 4 of 4 samples are not finite"),
        ("near-target", INDICES, (), ValueError, "needs floating .*int64; use target.float"),
        ("any", INDICES, (-1,), ValueError, "there is no class -1; the classes are from 0 on"),
        ("any", torch.rand(4, 3), (3,), ValueError, "no class 3; the classes are 0 to 2"),
        ("any", INDICES, ("cat",), TypeError, "must hold class indices"),
        ("any", INDICES, (0.5,), TypeError, "must hold class indices"),
        ("any", INDICES, 2, TypeError, "exclude=2 must hold class indices"),
        (lambda *_: None, INDICES, (), TypeError, "returned a NoneType, expected indices"),
        (lambda *_: torch.zeros(4), INDICES, (), TypeError, "returned torch.float32"),
        (lambda *_: torch.zeros(4, 1).int(), INDICES, (), ValueError, r"shape \(4, 1\) for 4"),
        (lambda *_: torch.arange(4) + 1, INDICES, (), ValueError, "from 1 to 4.*in \\[0, 4\\)"),
        (lambda *_: torch.arange(4) - 1, INDICES, (), ValueError, "from -1 to 2"),
    ],
)
def test_bad_input_is_named(
    pairing: Any, target: Any, exclude: Any, error: type[Exception], message: str
) -> None:
    """What cannot be paired is refused, with what came and what is expected."""
    with pytest.raises(error, match=message):
        draw_partner(4, pairing, target=target, exclude=exclude)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.inf, math.nan])
def test_bandwidth_is_a_number_above_0(bandwidth: float) -> None:
    """Anything else is refused when it is given."""
    with pytest.raises(ValueError, match="bandwidth=.* must be a finite number above 0"):
        NearTarget(bandwidth)


@pytest.mark.parametrize(
    ("pairing", "target", "exclude", "message"),
    [
        ("twins", INDICES, (), "pairing='twins' is unknown"),
        ("any", INDICES, (3,), "no class 3; the classes are 0 to 2"),
        ("near-target", INDICES, (), "needs floating"),
        ("other-class", REAL, (), "tells no classes"),
    ],
)
def test_wishes_are_checked_before_anything_is_drawn(
    pairing: str, target: Tensor, exclude: tuple[int, ...], message: str
) -> None:
    """With the number of classes known, so is a class that does not exist."""
    before = torch.get_rng_state()
    check_paired("other-class", INDICES, (2,), 3)
    check_paired("near-target", REAL, (), 1)

    with pytest.raises(ValueError, match=message):
        check_paired(pairing, target, exclude, 3)
    assert torch.equal(torch.get_rng_state(), before)


# Wishes that cannot be met


@pytest.mark.parametrize(
    ("pairing", "exclude"), [("other-class", ()), ("any", (1,)), ("other-class", (1, 2))]
)
def test_batch_without_pairs_is_left_alone_and_said_once(
    pairing: str, exclude: tuple[int, ...]
) -> None:
    """One class in the batch, or none that takes part: an identity, and one warning."""
    target = torch.ones(4).long()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mixes = [Mix.sample(4, target=target, pairing=pairing, exclude=exclude) for _ in range(3)]

    assert all(mix.is_identity for mix in mixes)
    assert [warning.category for warning in caught] == [UserWarning]
    assert "nobody in a whole batch has a partner" in str(caught[0].message)


def test_one_sample_is_nothing_to_warn_of() -> None:
    """The last batch of an epoch may be that small."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Mix.sample(1, target=torch.tensor([0]), pairing="other-class").is_identity


# In a mix, and in a step


@given(classes=CLASSES, exclude=EXCLUDED, seed=SEEDS, per_sample=st.booleans())
@pytest.mark.parametrize("pairing", ["any", "other-class", "same-class"])
def test_mix_keeps_those_without_a_partner(
    pairing: str, classes: list[int], exclude: set[int], seed: int, per_sample: bool
) -> None:
    """Their lam is 1; that of the others is what is drawn without any wish."""
    target, n = torch.tensor(classes), len(classes)
    mix = Mix.sample(
        n,
        target=target,
        pairing=pairing,
        exclude=exclude,
        per_sample=per_sample,
        generator=seeded_generator(seed),
    )
    drawn = draw_lam(0.4, n if per_sample else 1, seeded_generator(seed)).expand(n)

    for i, j in enumerate(mix.partner.tolist()):
        assert mix.lam[i] == (1 if i == j else drawn[i])


@pytest.mark.parametrize("pairing", ["any", "other-class", "same-class"])
@pytest.mark.parametrize("as_target", [torch.clone, lambda t: F.one_hot(t, 3).double()])
def test_excluded_samples_keep_features_and_loss_to_the_bit(
    pairing: str, as_target: Callable[[Tensor], Tensor]
) -> None:
    """In a loop with hooks, the others being mixed as the rule says."""
    model, images = small_net(), torch.randn(12, 4, dtype=torch.float64)
    classes = torch.arange(12) % 3
    target, out = as_target(classes), classes == 1
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    mixup = ManifoldMixup(model, "body", alpha=1.0, pairing=pairing, exclude=[1])
    plain = model(images)
    with mixup, mixup(target) as mix:
        logits = model(images)
        losses = mixed_loss(logits, target, mix, criterion)

    assert torch.equal(logits[out], plain[out])
    assert torch.equal(losses[out], criterion(plain, target)[out])
    assert not torch.isclose(logits[~out], plain[~out]).all(1).any()
    assert not torch.isin(mix.partner[~out], out.nonzero().flatten()).any()
    assert "exclude=(1,)" in repr(mixup)


def test_steps_draw_what_mix_sample_draws() -> None:
    """A manager passes its targets on, and stops at a kind that the rule cannot read."""
    model, target = small_net(), torch.arange(12) % 3
    images = torch.randn(12, 4, dtype=torch.float64)
    mixup, generator = (
        ManifoldMixup(model, "body", pairing="other-class", features_only=True),
        seeded_generator(0, "mix", 0),
    )
    for _ in range(3):
        with mixup(target) as mix:
            model(images)
        wanted = Mix.sample(12, target=target, pairing="other-class", generator=generator)
        assert torch.equal(mix.partner, wanted.partner)
        assert torch.equal(mix.lam, wanted.lam)
    with pytest.raises(ValueError, match="tells no classes"), mixup(target.float()):
        pass
    with mixup(target):  # a step that never began does not stay open
        model(images)
