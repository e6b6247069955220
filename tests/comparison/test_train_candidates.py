"""Rows of a comparison that are trained by steps: the best epoch, one rate for all replicates."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manifold_mixup import FeatureStore, extract_features, freeze, train_head
from manifold_mixup._files import Kept
from manifold_mixup.comparison import Candidate, Candidates, Replicate
from manifold_mixup.comparison.outcomes import Outcome
from manifold_mixup.comparison.train_candidates import SteppedCandidates
from manifold_mixup.features import find_tail
from manifold_mixup.training import Diverged, failures_unwarned, predict_logits

RATES = (0.001, 0.01, 0.1)
PLAIN, MIXED = Candidate("0"), Candidate("0", alpha=1.0, pairing="same-class", clean_weight=0.5)


@pytest.fixture
def model() -> nn.Sequential:
    """A frozen layer, and behind it more than a head to train."""
    torch.manual_seed(1)
    between = [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Tanh()]
    model = nn.Sequential(nn.Linear(6, 6), *between, nn.Linear(5, 3))
    freeze(model, except_=["1", "2", "5"])
    return model


@pytest.fixture
def store(model: nn.Module, tmp_path: Path) -> FeatureStore:
    """Its features of three classes that lie apart."""
    pairs = [(2 * torch.eye(6)[i % 3] + torch.randn(6), i % 3) for i in range(60)]
    return extract_features(model, "0", pairs, tmp_path / "store")


def start_of(store: FeatureStore, seed: int) -> Replicate:
    """A replicate with a split, a few wrong labels and a head of its own."""
    draws = torch.Generator().manual_seed(seed)
    train, val, test = torch.randperm(60, generator=draws).split([30, 15, 15])
    target = store.targets.clone()
    target[train[:5]] = (target[train[:5]] + 1) % 3
    head = torch.randn(3, 5, generator=draws), torch.zeros(3)
    return Replicate(seed, train, val, test, target, head)


def trials_of(
    model: nn.Module, store: FeatureStore, *candidates: Candidate, **options: Any
) -> Any:
    """Those candidates, of few epochs and the `RATES`."""
    offered = Candidates(lrs=RATES, epochs=4, batch_size=8)
    linear = model[5]  # type: ignore[index]
    return SteppedCandidates(
        find_tail(model, store), linear, store, candidates, offered, **options
    )


def alone(
    model: nn.Sequential,
    store: FeatureStore,
    candidate: Candidate,
    lr: float,
    replicate: Replicate,
) -> tuple[Tensor, Any]:
    """The test logits of a copy at its best epoch, and its training."""
    own, told = copy.deepcopy(model), store.with_targets(replicate.target)
    assert replicate.head is not None
    with torch.no_grad():
        own[5].weight.copy_(replicate.head[0])
        own[5].bias.copy_(replicate.head[1])
    settings = {name: getattr(candidate, name) for name in ("alpha", "pairing", "clean_weight")}
    steps = {"lr": lr, "epochs": 4, "batch_size": 8, "seed": replicate.seed, "optimizer": "adamw"}
    val = told.take(replicate.val)
    with failures_unwarned():
        training = train_head(
            own, told.take(replicate.train), validation=val, patience=4, **settings, **steps
        )
    return predict_logits(own, told.take(replicate.test))[0], training


@pytest.mark.parametrize("candidate", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_outcomes_are_what_train_head_gives(
    model: nn.Sequential, store: FeatureStore, candidate: Candidate
) -> None:
    """In each replicate from its own head, at the epoch that its validation finds best."""
    replicates = [start_of(store, seed) for seed in (0, 3)]
    candidates = trials_of(model, store, candidate)
    for replicate in replicates:
        candidates.add(replicate)
    (found,) = candidates.trained

    rate = found.outcomes[0].chosen["lr"]
    for replicate, outcome in zip(replicates, found.outcomes, strict=True):
        expected, training = alone(model, store, candidate, rate, replicate)
        assert torch.allclose(outcome.test.float(), expected, atol=1e-5)
        assert outcome.mixed_loss == pytest.approx(training.metrics["mixed_loss"], abs=1e-5)


def test_the_first_replicate_chooses_the_rate_for_all(
    model: nn.Sequential, store: FeatureStore
) -> None:
    """The one whose best epoch is likeliest on its validation; later ones train once each."""
    seen: list[int] = []

    def track(steps: Any, total: int, description: str) -> Any:
        seen.append(total)
        return steps

    candidates, replicates = trials_of(model, store, PLAIN, MIXED, track=track), [0, 1, 2]
    for seed in replicates:
        candidates.add(start_of(store, seed))

    for found in candidates.trained:
        rates = [outcome.chosen["lr"] for outcome in found.outcomes]
        assert len(set(rates)) == 1
        first = found.outcomes[0]
        others = [alone(model, store, found.candidate, lr, start_of(store, 0))[1] for lr in RATES]
        losses = [one.metrics["val_loss"] for one in others]
        assert float(first.nll) <= min(losses) + 1e-5  # at the best temperature
    assert seen == [2, 2, 2]


def test_a_rate_that_fails_is_not_chosen(
    model: nn.Sequential, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that diverges nor one whose training came to nothing."""
    usual = _with(model, store, monkeypatch, {})
    rate = usual.chosen["lr"]

    assert usual.failed == ""
    assert _with(model, store, monkeypatch, {rate: Diverged("spoilt", "")}).chosen["lr"] != rate
    assert _with(model, store, monkeypatch, {rate: "came to nothing"}).chosen["lr"] != rate


def test_a_trial_that_fails_says_so(
    model: nn.Sequential, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, at whatever rate."""
    diverged = _with(model, store, monkeypatch, dict.fromkeys(RATES, Diverged("spoilt", "")))
    in_vain = _with(model, store, monkeypatch, dict.fromkeys(RATES, "came to nothing"))

    assert (diverged.failed, in_vain.failed) == ("spoilt", "came to nothing")


def test_running_out_of_memory_is_no_failure_of_a_trial(
    model: nn.Sequential, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes up as it came, whatever it says."""
    error = RuntimeError("out of memory: the loss is not finite any more")

    with pytest.raises(RuntimeError, match="out of memory"):
        _with(model, store, monkeypatch, {0.01: error})


def test_a_loss_that_is_not_finite_is_a_failure(model: nn.Sequential, store: FeatureStore) -> None:
    """Of a real training, and the model is left as it was, as after any other."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    offered = Candidates(lrs=[1e30], epochs=2, batch_size=8)
    candidates = SteppedCandidates(find_tail(model, store), model[5], store, [PLAIN], offered)

    candidates.add(start_of(store, 0))

    assert candidates.trained[0].outcomes[0].failed.startswith("the loss is not finite any more")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_kept_is_not_trained_again(
    model: nn.Sequential,
    store: FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupted comparison goes on to the same outcomes, failures included."""
    kept = Kept(tmp_path / "kept")
    failing = {RATES[0]: "came to nothing"}
    first = _with(model, store, monkeypatch, failing, kept=kept)

    again = _with(
        model, store, monkeypatch, dict.fromkeys(RATES, Diverged("again", "")), kept=kept
    )

    assert torch.equal(first.test, again.test)
    assert (first.chosen, first.failed) == (again.chosen, again.failed)


def test_what_failed_at_every_rate_is_not_trained_again(
    model: nn.Sequential, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no rate to go on with, and its row tells of no replicate."""
    tried = []

    def train(*given: Any, **own: Any) -> Any:
        tried.append(own["lr"])
        return replace(train_head(*given, **own), failed="rose")

    monkeypatch.setattr("manifold_mixup.comparison.train_candidates.train_head", train)
    candidates = trials_of(model, store, PLAIN)
    for seed in range(3):
        candidates.add(start_of(store, seed))

    assert tried == list(RATES)
    assert [one.failed for one in candidates.trained[0].outcomes] == ["rose"] * 3


def _with(
    model: nn.Sequential,
    store: FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
    failing: dict[float, Exception | str],
    **options: Any,
) -> Outcome:
    """The first outcome of a candidate whose trainings fail at some rates."""

    def train(*given: Any, **own: Any) -> Any:
        failure = failing.get(own["lr"], "")
        if isinstance(failure, Exception):
            raise failure
        return replace(train_head(*given, **own), failed=failure)

    monkeypatch.setattr("manifold_mixup.comparison.train_candidates.train_head", train)
    candidates = trials_of(model, store, PLAIN, **options)
    candidates.add(start_of(store, 0))
    outcome: Outcome = candidates.trained[0].outcomes[0]
    return outcome
