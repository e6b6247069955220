"""Label weights for imbalanced classes."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from manifold_mixup import Mix, mixed_loss, rebalance

C = 4


def by_definition(lam: float, own: int, other: int, kappa: float, tau: float) -> float:
    """The label weight of one sample, from the numbers of training samples of its pair."""
    if own / other >= kappa and lam < tau:
        return 0.0
    if own / other <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam


@given(
    pairs=st.lists(st.tuples(st.integers(0, C - 1), st.floats(0, 1)), min_size=1, max_size=12),
    # Powers of two, so that all quotients are exact.
    counts=st.lists(st.sampled_from([1, 2, 4, 8, 16, 64]), min_size=C, max_size=C),
    kappa=st.sampled_from([1.5, 2.0, 4.0, 3.0, 10.0]),
    tau=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_label_weights_are_those_of_the_definition(
    pairs: list[tuple[int, float]], counts: list[int], kappa: float, tau: float, seed: int
) -> None:
    """One by one; the partners stay, and the mix given too."""
    n = len(pairs)
    partner = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    target = torch.tensor([one for one, _ in pairs])
    lam = [weight for _, weight in pairs]
    mix = Mix(lam, partner)
    found = rebalance(mix, target, counts, kappa, tau)
    sizes = [counts[one] for one in target.tolist()]

    assert found.lam.tolist() == [
        by_definition(lam[i], sizes[i], sizes[j], kappa, tau) for i, j in enumerate(partner)
    ]
    assert torch.equal(found.partner, partner)
    assert mix.lam.tolist() == lam


@pytest.mark.parametrize(
    "as_target",
    [torch.Tensor.int, lambda t: F.one_hot(t, 2), lambda t: F.one_hot(t, 2) * 0.8 + 0.1],
)
@pytest.mark.parametrize("as_counts", [list, torch.tensor, lambda c: torch.tensor(c).float()])
def test_kinds_of_targets_and_counts_are_alike(
    as_target: Callable[[Tensor], Tensor], as_counts: Callable[[list[int]], Any]
) -> None:
    """Indices, one-hot and probabilities; lists and tensors."""
    mix, target = Mix([0.4, 0.6, 0.3, 0.3], [1, 0, 3, 2]), torch.tensor([0, 1, 0, 0])
    found = rebalance(mix, as_target(target), as_counts([900, 100]))

    assert found.lam.tolist() == [0.0, 1.0, 0.3, 0.3]


def test_loss_is_that_of_the_rarer_class() -> None:
    """Features are mixed as drawn, and the label of the pair is the rare one's alone."""
    target, features = torch.tensor([0, 1]), torch.randn(2, 2)
    mix = Mix(0.5, [1, 0])
    tied = rebalance(mix, target, [3, 1], tau=0.6)
    loss = mixed_loss(mix(features), target, tied)

    assert torch.allclose(loss, F.cross_entropy(mix(features), torch.tensor([1, 1])))


def test_balanced_classes_and_unmixed_samples_change_nothing() -> None:
    """Where all classes have as many samples, or a sample is its own partner."""
    mix, target = Mix.sample(8, alpha=1.0), torch.arange(8) % C
    alone = Mix([1.0, 0.2, 0.8], [0, 2, 1])

    assert torch.equal(rebalance(mix, target, [5] * C).lam, mix.lam)
    assert rebalance(alone, torch.tensor([0, 1, 1]), [1, 100]).lam.tolist() == [1.0, 0.2, 0.8]
    assert rebalance(Mix.identity(8), target, [1, 10, 100, 1000]).is_identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kappa": 1.0}, "kappa=1.0 must be above 1"),
        ({"tau": 1.5}, r"tau=1.5 must be in \[0, 1\]"),
        ({"target": torch.tensor([0, 1, 0])}, r"shape \(3,\) for a mix of 2 samples"),
        ({"target": torch.tensor([[1, 1], [0, 1]])}, r"shape \(2, 2\) for a mix of 2 samples"),
        ({"target": torch.rand(2)}, "tells no classes"),
        ({"target": torch.tensor([0, 2])}, r"counts of shape \(2,\) for classes from 0 to 2"),
        ({"target": torch.tensor([-1, 1])}, r"counts of shape \(2,\) for classes from -1 to 1"),
        ({"counts": [[9, 1]]}, r"counts of shape \(1, 2\)"),
        ({"counts": [9, 0]}, "class 1 of this batch has 0 training samples, expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    """With the value and what is expected."""
    given_: dict[str, Any] = {"target": torch.tensor([0, 1]), "counts": [9, 1], **changes}

    with pytest.raises(ValueError, match=message):
        rebalance(Mix(0.5, [1, 0]), **given_)


def test_counts_by_name_are_refused() -> None:
    """A `Counter` has no order of classes."""
    mix, target = Mix(0.4, [1, 0]), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"counts is a Counter: .*counts\[c\] for c in range"):
        rebalance(mix, target, Counter([0, 0, 1]))  # type: ignore[arg-type]
