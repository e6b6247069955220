"""Solved heads are those of scikit-learn where nothing is mixed, and optima where something is."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor

from manifold_mixup.linear_heads import (
    LinearHead,
    MixedRisk,
    Ridge,
    Standardized,
    balanced_weights,
    draw_mixes,
    solve,
)

N, D, C = 90, 12, 3
EXACT: dict[str, Any] = {"tolerance": 1e-12, "precise": True}


@pytest.fixture
def target() -> Tensor:
    """Classes, one of them rare."""
    return torch.arange(N) % 7 % C


@pytest.fixture
def features(target: Tensor) -> Tensor:
    """Features of very different size that tell something of the class."""
    spread = torch.logspace(-2, 1, D, dtype=torch.float64)
    return spread * (torch.randn(N, D, dtype=torch.float64) + target[:, None] % D * 0.3) + 5


def standardized(features: Tensor) -> np.ndarray:
    """As `Standardized` says it, by hand."""
    scale = features.std(0, correction=0).mean()
    return ((features - features.mean(0)) / scale).numpy()


def of_standardized(rows: Standardized, head: LinearHead) -> tuple[Tensor, Tensor]:
    """A head for features that are centred and scaled, in their own directions."""
    weight, bias = rows.to_raw(head.weight, head.bias)
    return weight * rows.scale, bias + weight @ rows.mean


def logistic(features: Tensor, target: Tensor, decay: float, **options: Any) -> Any:
    """scikit-learn's head with the same penalty."""
    model = LogisticRegression(C=1 / (decay * N), tol=1e-12, max_iter=100_000, **options)
    return model.fit(standardized(features), target.numpy())


@pytest.mark.parametrize("decay", [1.0, 0.01, 0.0001])
@pytest.mark.parametrize("balanced", [False, True])
def test_unmixed_equals_logistic_regression(
    features: Tensor, target: Tensor, decay: float, balanced: bool
) -> None:
    """With alpha 0 the head is that of LogisticRegression, balanced too."""
    weight = balanced_weights(target, C) if balanced else None
    rows = Standardized(features.__getitem__, N)
    risk = MixedRisk.of_classes(target, C, class_weight=weight)

    head = solve(rows, risk, decay, **EXACT)

    expected = logistic(features, target, decay, class_weight="balanced" if balanced else None)
    assert of_standardized(rows, head)[0].numpy() == pytest.approx(expected.coef_, abs=0.01)
    own = torch.from_numpy(expected.coef_)
    logits = torch.from_numpy(expected.decision_function(standardized(features)).T)
    there = risk.to(own)(logits)[0] + decay / 2 * float(own.square().sum())
    assert head.objective == pytest.approx(there, rel=1e-7)
    weight_, bias = rows.to_raw(head.weight, head.bias)
    told = (features @ weight_.T + bias).argmax(1)
    assert told.tolist() == expected.predict(standardized(features)).tolist()


def test_labels_equal_one_against_the_rest(features: Tensor) -> None:
    """Multi-label heads are as many logistic regressions, but for the mean over the labels."""
    target = (features[:, :C] + torch.randn(N, C) > features[:, :C].mean(0)).double()
    rows = Standardized(features.__getitem__, N)

    head = solve(rows, MixedRisk.of_labels(target), 0.01 / C, **EXACT)

    model = LogisticRegression(C=1 / (0.01 * N), tol=1e-12, max_iter=100_000)
    expected = OneVsRestClassifier(model).fit(standardized(features), target.numpy())
    weight, _ = of_standardized(rows, head)
    for own, other in zip(weight, expected.estimators_, strict=True):
        assert own.numpy() == pytest.approx(other.coef_[0], abs=1e-4)


def test_values_equal_ridge(features: Tensor) -> None:
    """Without mixes the linear system is that of Ridge."""
    target = features[:, :2] * 3 + torch.randn(N, 2)

    rows = Standardized(features.__getitem__, N)
    weight, bias = of_standardized(rows, Ridge(rows, target).solve(0.3))

    # Its error is a sum over samples and values, ours a mean.
    expected = SklearnRidge(alpha=0.3 * N * 2 / 2).fit(standardized(features), target.numpy())
    assert weight.numpy() == pytest.approx(expected.coef_, abs=1e-9)
    assert bias.numpy() == pytest.approx(expected.intercept_, abs=1e-9)


def test_mixed_values_are_least_squares_of_all_mixed_samples(features: Tensor) -> None:
    """K mixes written out as K n samples, and the clean ones beside, give the same head."""
    target, mixes = torch.randn(N, 2, dtype=torch.float64), draw_mixes(4, N, 1.0)
    rows = Standardized(features.__getitem__, N)

    head = Ridge(rows, target, mixes, prob=0.5, clean_weight=0.25).solve(0.1)

    own = torch.from_numpy(standardized(features))
    mixed = [mixes.mixed(values.T).permute(1, 2, 0).flatten(0, 1) for values in (own, target)]
    share = np.concatenate([np.full(4 * N, 0.5 / (4 * N)), np.full(N, 0.75 / N)])
    model = SklearnRidge(alpha=0.1 * 2 / 2).fit(
        torch.cat([mixed[0], own]).numpy(), torch.cat([mixed[1], target]).numpy(), share
    )
    weight, bias = of_standardized(rows, head)
    assert weight.numpy() == pytest.approx(model.coef_, abs=1e-9)
    apart = torch.cat([mixed[0], own]) @ weight.T + bias
    errors = (apart - torch.cat([mixed[1], target])).square().mean(1)
    assert head.risk == pytest.approx(float((torch.from_numpy(share) * errors).sum()), rel=1e-9)


def test_values_of_copies(features: Tensor) -> None:
    """Given the mixed features themselves, the head is the one of mixes."""
    target, mixes = torch.randn(N, 2, dtype=torch.float64), draw_mixes(4, N, 1.0)
    options: dict[str, Any] = {"prob": 0.5, "clean_weight": 0.25}
    passed = torch.cat([mixes.mixed(features.T).flatten(1).T, features])
    rows, copies = Standardized(features.__getitem__, N), Standardized(passed.__getitem__, 5 * N)

    head = Ridge(rows, target, mixes, **options).solve(0.1)
    # The copies vary less, so the same penalty is another decay.
    decay = 0.1 * (rows.scale / copies.scale) ** 2
    other = Ridge(copies, target, mixes, copies=True, **options).solve(decay)

    one, two = rows.to_raw(head.weight, head.bias), copies.to_raw(other.weight, other.bias)
    assert torch.allclose(one[0], two[0], atol=1e-9)
    assert torch.allclose(one[1], two[1], atol=1e-8)
    assert head.risk == pytest.approx(other.risk, rel=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.001])
def test_mixed_optimum_has_no_gradient(features: Tensor, target: Tensor, decay: float) -> None:
    """Autograd finds no slope in the objective of K mixes written out."""
    rows, mixes = Standardized(features.__getitem__, N), draw_mixes(8, N, 1.0)

    head = solve(rows, MixedRisk.of_classes(target, C, mixes), decay, **EXACT)

    objective_there = head.objective
    parameters = [one.requires_grad_() for one in of_standardized(rows, head)]
    logits = parameters[0] @ torch.from_numpy(standardized(features)).T + parameters[1][:, None]
    shares = mixes.mixed(F.one_hot(target, C).T.double())
    loss = -(shares * mixes.mixed(logits).log_softmax(0)).sum() / (8 * N)
    objective = loss + decay / 2 * parameters[0].square().sum()
    for gradient in torch.autograd.grad(objective, parameters):
        assert float(gradient.abs().max()) < 1e-5
    assert objective_there == pytest.approx(float(objective.detach()), rel=1e-9)


def test_features_in_chunks(
    monkeypatch: pytest.MonkeyPatch, features: Tensor, target: Tensor
) -> None:
    """Features that are read again and again give the head of those in memory."""
    risk = MixedRisk.of_classes(target, C, draw_mixes(4, N, 1.0))
    rows = Standardized(features.__getitem__, N)
    held = solve(rows, risk, 0.01, **EXACT)
    for name in ("_ROWS", "_SEEN"):
        monkeypatch.setattr(f"manifold_mixup.linear_heads.standardized.{name}", 32)
    reads: list[int] = []

    def gather(index: Tensor) -> Tensor:
        reads.append(len(index))
        return features[index]

    chunks = Standardized(gather, N, held=0)
    read = solve(chunks, risk, 0.01, **EXACT)

    own = of_standardized(rows, held)[0].numpy()
    assert of_standardized(chunks, read)[0].numpy() == pytest.approx(own, abs=1e-4)
    assert read.objective == pytest.approx(held.objective, rel=1e-10)
    assert max(reads) <= 32
    assert len(reads) > 3 * held.evaluations


def test_few_samples_need_few_directions(target: Tensor) -> None:
    """Where samples are fewer than features, the head is the same, and found in their span."""
    few, wide = target[:20], torch.randn(20, 300, dtype=torch.float64)
    risk = MixedRisk.of_classes(few, C, draw_mixes(4, 20, 1.0))
    narrow, whole = Standardized(wide.__getitem__, 20), Standardized(wide.__getitem__, 20, held=0)

    heads = [solve(rows, risk, 0.01, **EXACT) for rows in (narrow, whole)]

    assert (narrow.width, whole.width) == (19, 300)
    one, other = (
        rows.to_raw(head.weight, head.bias)
        for rows, head in zip((narrow, whole), heads, strict=True)
    )
    assert torch.allclose(one[0], other[0], atol=1e-4)
    assert torch.allclose(one[1], other[1], atol=1e-4)


def test_heads_go_to_raw_features_and_back(features: Tensor) -> None:
    """A head for raw features gives the same logits as the one for standardized ones."""
    rows = Standardized(features.__getitem__, N)
    weight, bias = torch.randn(C, D, dtype=torch.float64), torch.randn(C, dtype=torch.float64)

    inner = rows.from_raw(weight, bias)

    logits = rows.take(torch.arange(N)) @ inner[0].T + inner[1]
    assert torch.allclose(logits, features @ weight.T + bias)
    for back, own in zip(rows.to_raw(*inner), (weight, bias), strict=True):
        assert torch.allclose(back, own)


def test_the_same_bits_again(features: Tensor, target: Tensor) -> None:
    """Solving again, from the same start, gives the same bits, whatever was drawn meanwhile."""
    risk = MixedRisk.of_classes(target, C, draw_mixes(4, N, 1.0))

    def path() -> LinearHead:
        rows = Standardized(features.float().__getitem__, N)
        return solve(rows, risk, 0.01, solve(rows, risk, 0.1))

    first = path()
    torch.randn(7)
    second = path()

    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_the_random_state_stays(features: Tensor, target: Tensor) -> None:
    """Nothing is drawn from the global generator."""
    before = torch.get_rng_state()

    solve(Standardized(features.__getitem__, N), MixedRisk.of_classes(target, C), 0.1)

    assert torch.equal(torch.get_rng_state(), before)


def test_constant_features(target: Tensor) -> None:
    """Features that tell nothing give a head of the classes' frequencies."""
    rows = Standardized(torch.ones(N, D).__getitem__, N)

    head = solve(rows, MixedRisk.of_classes(target, C), 0.1, **EXACT)

    assert float(head.weight.abs().max()) < 1e-6
    assert torch.allclose(head.bias.softmax(0), target.bincount().double() / N, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_samples(n: int) -> None:
    """One sample of a class, or two, give a head that tells them, however small the loss."""
    rows, target = Standardized((torch.eye(3)[:n]).__getitem__, n), torch.arange(n)

    head = solve(rows, MixedRisk.of_classes(target, 2), 0.0001, **EXACT)

    weight, bias = rows.to_raw(head.weight, head.bias)
    assert (torch.eye(3)[:n].double() @ weight.T + bias).argmax(1).tolist() == target.tolist()


def test_features_that_are_not_finite_are_named() -> None:
    """NaN in a feature is told before anything is solved."""
    features = torch.ones(5, 3)
    features[4, 1] = torch.nan

    with pytest.raises(ValueError, match="feature 1 is not finite"):
        Standardized(features.__getitem__, 5)
