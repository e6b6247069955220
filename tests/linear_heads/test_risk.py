"""The mixed risk is the mean loss of all mixed samples written out, and so is its gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup import Mix, mixed_loss
from manifold_mixup.linear_heads import MixedRisk, Mixes, balanced_weights, draw_mixes
from manifold_mixup.mixing import Pairing, rebalance

N, C, K = 37, 4, 5


def one_batch(mixes: Mixes, lam: Tensor) -> Mix:
    """K mixes of n samples as one mix of K n samples."""
    begin = torch.arange(len(mixes))[:, None] * mixes.lam.shape[1]
    return Mix(lam.flatten(), (mixes.partner + begin).flatten())


def written_out(
    logits: Tensor, target: Tensor, mixes: Mixes, criterion: Callable[..., Tensor]
) -> Tensor:
    """The loss of K n mixed samples, each made of logits that were mixed by hand."""
    repeated = target.repeat(len(mixes), *[1] * (target.ndim - 1))
    mixed = torch.cat(
        [
            Mix(lam, partner)(logits.T)
            for lam, partner in zip(mixes.lam, mixes.partner, strict=True)
        ]
    )
    return mixed_loss(mixed, repeated, one_batch(mixes, mixes.target_lam), criterion)


def check_equal(risk: MixedRisk, logits: Tensor, expected: Tensor) -> None:
    """The risk's value and gradient are those of an expression of the same logits."""
    (gradient,) = torch.autograd.grad(expected, logits)
    value, own = risk.to(logits)(logits.detach())

    assert value == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(own, gradient, rtol=1e-9, atol=1e-12)


@pytest.fixture
def logits() -> Tensor:
    """Logits of N samples, which come last."""
    return (3 * torch.randn(C, N, dtype=torch.float64)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    """Classes, one of them rare."""
    return torch.randint(C - 1, (N,)).index_fill_(0, torch.tensor([3, 11]), C - 1)


WEIGHT = torch.tensor([1.0, 0.2, 3.0, 0.7], dtype=torch.float64)


def own_rule(target: Tensor, generator: torch.Generator | None) -> Tensor:
    """A rule by which one sample is the partner of many."""
    return torch.randint(3, (len(target),), generator=generator)


@pytest.mark.parametrize("pairing", ["any", "other-class", "same-class", own_rule])
@pytest.mark.parametrize("exclude", [(), (1,)])
@pytest.mark.parametrize("options", [{}, {"per_sample": False}, {"alpha": 0.01}])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_classes(
    logits: Tensor,
    target: Tensor,
    pairing: Pairing,
    exclude: tuple[int, ...],
    options: dict[str, Any],
    weight: Tensor | None,
    smoothing: float,
) -> None:
    """Of class indices, for every pairing, exclusion, class weight and smoothing."""
    drawn = {"alpha": 0.7, "pairing": pairing, "exclude": exclude, "target": target} | options
    mixes = draw_mixes(K, N, **drawn)
    criterion = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)

    risk = MixedRisk.of_classes(target, C, mixes, class_weight=weight, label_smoothing=smoothing)

    check_equal(risk, logits, written_out(logits, target, mixes, criterion))


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_soft_targets(logits: Tensor, weight: Tensor | None, smoothing: float) -> None:
    """Of probabilities, as cross entropy takes them."""
    target = torch.randn(N, C, dtype=torch.float64).softmax(1)
    mixes = draw_mixes(K, N, 1.0)
    criterion = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)

    risk = MixedRisk.of_classes(target, C, mixes, class_weight=weight, label_smoothing=smoothing)

    check_equal(risk, logits, written_out(logits, target, mixes, criterion))


@pytest.mark.parametrize("pairing", ["any", "other-class", "same-class"])
def test_labels(logits: Tensor, pairing: str) -> None:
    """Of several labels for each sample, also soft ones."""
    labels = (torch.rand(N, C) > 0.6).double()
    mixes = draw_mixes(K, N, 0.4, target=labels, pairing=pairing)

    for target in (labels, 0.9 * labels + 0.03):
        risk = MixedRisk.of_labels(target, mixes)

        check_equal(risk, logits, written_out(logits, target, mixes, nn.BCEWithLogitsLoss()))


def test_weighted_labels(logits: Tensor) -> None:
    """Weights for each label, where it is there and where it is not, weigh both terms."""
    target, there, absent = (torch.rand(N, C) > 0.6).double(), WEIGHT, WEIGHT.flip(0)
    mixes = draw_mixes(K, N, 0.4)

    def criterion(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        losses = -there * target * F.logsigmoid(logits)
        losses = losses - absent * (1 - target) * F.logsigmoid(-logits)
        return losses.mean() if reduction == "mean" else losses

    risk = MixedRisk.of_labels(target, mixes, class_weight=(there, absent))

    check_equal(risk, logits, written_out(logits, target, mixes, criterion))


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_clean_and_unmixed_shares(logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """RegMixup adds the clean loss; with a probability below 1 some of the risk is unmixed."""
    mixes, criterion = draw_mixes(K, N, 0.4), nn.CrossEntropyLoss(weight)
    mixed, clean = written_out(logits, target, mixes, criterion), criterion(logits.T, target)
    options: dict[str, Any] = {"class_weight": weight, "prob": 0.7, "clean_weight": 1.5}

    risk = MixedRisk.of_classes(target, C, mixes, **options)

    check_equal(risk, logits, 0.7 * mixed + 0.3 * clean + 1.5 * clean)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_nothing_mixed(
    logits: Tensor, target: Tensor, weight: Tensor | None, scale: float
) -> None:
    """Without mixes it is the criterion itself, also where losses are tiny."""
    sure = (scale * F.one_hot(target, C).T.double() + 0.1 * logits.detach()).requires_grad_()
    labels = F.one_hot(target, C).double()

    of_classes = MixedRisk.of_classes(target, C, class_weight=weight)
    check_equal(of_classes, sure, F.cross_entropy(sure.T, target, weight))
    check_equal(
        MixedRisk.of_labels(labels), sure, F.binary_cross_entropy_with_logits(sure.T, labels)
    )


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize(("prob", "clean_weight"), [(1.0, 0.0), (0.6, 0.0), (1.0, 2.0)])
def test_copies_that_passed_through_something(
    logits: Tensor, target: Tensor, weight: Tensor | None, prob: float, clean_weight: float
) -> None:
    """Given the logits of mixed samples, the risk is the one that mixes logits itself."""
    mixes = draw_mixes(K, N, 1.0)
    options: dict[str, Any] = {"prob": prob, "clean_weight": clean_weight}
    labels = F.one_hot(target, C).double()
    pairs = [
        [
            MixedRisk.of_classes(target, C, mixes, class_weight=weight, copies=copies, **options),
            MixedRisk.of_labels(labels, mixes, copies=copies, **options),
        ]
        for copies in (False, True)
    ]

    own = logits.detach()
    passed = torch.cat([mixes.mixed(own).flatten(1), own], 1)
    for mixing, given in zip(*pairs, strict=True):
        risk = given.to(own)
        expected = mixing.to(own)(own)[0]
        assert risk(passed[:, : risk.linear.shape[1]])[0] == pytest.approx(expected, rel=1e-12)


def test_remix_weighs_targets_alone(logits: Tensor, target: Tensor) -> None:
    """Targets have the weights of Remix, logits those that were drawn."""
    counts = target.bincount(minlength=C)
    mixes = draw_mixes(K, N, 1.0, target=target, remix_counts=counts)
    plain = draw_mixes(K, N, 1.0)

    assert torch.equal(mixes.lam, plain.lam)
    for k in range(K):
        mix = Mix(mixes.lam[k], mixes.partner[k])
        assert torch.equal(mixes.target_lam[k], rebalance(mix, target, counts).lam)
    risk = MixedRisk.of_classes(target, C, mixes)
    check_equal(risk, logits, written_out(logits, target, mixes, nn.CrossEntropyLoss()))


def test_mixes_in_parts(monkeypatch: pytest.MonkeyPatch, logits: Tensor, target: Tensor) -> None:
    """A few mixes at a time give the same."""
    mixes = draw_mixes(K, N, 1.0)
    risk = MixedRisk.of_classes(target, C, mixes, class_weight=WEIGHT).to(logits)
    value, gradient = risk(logits.detach())
    monkeypatch.setattr("manifold_mixup.linear_heads.mixes._MIXED", 2 * N * C)

    again, same = risk(logits.detach())

    assert again == pytest.approx(value, rel=1e-14)
    assert torch.allclose(same, gradient, rtol=1e-12, atol=1e-15)


def test_fewer_mixes_are_the_first_of_more(target: Tensor) -> None:
    """Mix k is decided by the seed and k alone."""
    few, many = draw_mixes(2, N, 0.4, seed=3), draw_mixes(4, N, 0.4, seed=3)

    assert torch.equal(few.lam, many.lam[:2])
    assert torch.equal(few.partner, many.partner[:2])
    assert not torch.equal(few.lam, draw_mixes(2, N, 0.4, seed=4).lam)


def test_partners_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many samples partners are drawn in groups, and are still of the wanted class."""
    monkeypatch.setattr("manifold_mixup.linear_heads.mixes._GROUP", 10)
    target = torch.arange(95) % 2

    mixes = draw_mixes(3, 95, 0.4, target=target, pairing="other-class")

    assert bool((target[mixes.partner] != target).all())
    assert mixes.partner.sort(1).values[0].unique().numel() > 60


def test_balanced_weights_count_every_class_the_same(target: Tensor) -> None:
    """The weights of a class's samples sum to n / C; a class without samples weighs nothing."""
    weight = balanced_weights(target, C + 1)

    sums = torch.zeros(C + 1, dtype=torch.float64).index_add_(0, target, weight[target])
    assert torch.allclose(sums[:C], torch.tensor(N / (C + 1), dtype=torch.float64))
    assert weight[C] == 0
