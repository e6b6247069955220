"""The learning rate is the one whose short training validates best, and nothing else changes."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manifold_mixup import FeatureStore, extract_features, freeze, train_head
from manifold_mixup.models import CosineHead, MLPHead
from manifold_mixup.runs import selection
from manifold_mixup.runs.selection import (
    BLOCK_RATES,
    HEAD_RATES,
    LINEAR_RATES,
    Choice,
    choose_rate,
    suited_rates,
)
from manifold_mixup.training import Classes, Diverged, Labels, Task, Values, predict_logits

Pairs = list[tuple[Tensor, Any]]

# The toys are small, and some of the rates too low for them, as they should be.
pytestmark = pytest.mark.filterwarnings("ignore::manifold_mixup.training.state.FailedTraining")


class Jumpy(nn.Module):
    """A block with all that a training may leave traces in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.2)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 6)."""
        self.calls += 1
        return self.drop(torch.tanh(self.norm(self.linear(x))))


def block() -> nn.Module:
    """A model whose first layer is frozen, and all behind it is to be trained."""
    model = nn.Sequential(nn.Linear(6, 6), Jumpy(), nn.Linear(6, 3))
    freeze(model, except_=["1", "2"])
    return model


def samples(n: int, label: Any = lambda target: target) -> Pairs:
    """Features (6,) around the centre of one of three classes."""
    return [(2 * torch.eye(6)[i % 3] + torch.randn(6), label(i % 3)) for i in range(n)]


def store_of(model: nn.Module, pairs: Pairs, folder: Path) -> FeatureStore:
    """Their features behind the first layer."""
    return extract_features(model, "0", pairs, folder)


TASKS: list[tuple[Task, Any]] = [
    (Classes(), lambda target: target),
    (Labels(), lambda target: torch.eye(3)[target]),
    (Values(), lambda target: torch.eye(3)[target]),
]


@pytest.mark.parametrize(("task", "label"), TASKS, ids=["classes", "labels", "values"])
@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "hooked"])
def test_rate_is_the_best_of_trainings_one_by_one(
    tmp_path: Path, task: Task, label: Any, is_stored: bool
) -> None:
    """Each rate trains a copy for three epochs, mixed alike; the lowest clean loss is chosen."""
    model, train, val = block(), samples(60, label), samples(30, label)
    options: dict[str, Any] = {"alpha": 1.0, "clean_weight": 0.5, "batch_size": 8, "seed": 4}
    expected = {}
    for rate in (0.0001, 0.001, 0.02, 0.3):
        alone = copy.deepcopy(model)
        how = {"lr": rate, "epochs": 3, "optimizer": "sgd"}
        train_head(alone, train, task=task, layer="0", **how, **options)
        expected[rate] = task.loss(*predict_logits(alone, val))
    sets: Any = train, val
    if is_stored:
        sets = [store_of(model, own, tmp_path / str(len(own))) for own in sets]

    found = choose_rate(
        model, *sets, task=task, rates=list(expected), optimizer="sgd", layer="0", **options
    )

    assert dict(found.losses) == pytest.approx(expected, rel=1e-4)
    assert found.rate == min(expected, key=expected.__getitem__)
    assert found.begin == pytest.approx(task.loss(*predict_logits(model, val)), rel=1e-4)
    assert max(expected.values()) > 1.2 * min(expected.values())


@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "hooked"])
def test_the_model_is_left_as_it_was(tmp_path: Path, is_stored: bool) -> None:
    """To the bit: parameters, buffers, modes, gradients; and so is the global random state."""
    model, train, val = block().train(), samples(60), samples(30)
    model[1].norm.eval()
    sets: Any = train, val
    if is_stored:
        sets = [store_of(model, own, tmp_path / str(len(own))) for own in sets]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    choose_rate(model, *sets, task=Classes(), rates=[0.1, 1e30], layer="0")

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_rates_that_diverge_are_not_chosen() -> None:
    """Their loss is infinite; where all do, the error names the rates."""
    model, train, val = block(), samples(60), samples(30)

    found = choose_rate(model, train, val, task=Classes(), rates=[1e30, 1e-3], layer="0")

    assert found.losses[1e30] == math.inf
    assert found.rate == 1e-3
    with pytest.raises(
        Diverged, match=r"not finite after 3 epochs at any .* from 1e\+29 to 1e\+30"
    ):
        choose_rate(model, train, val, task=Classes(), rates=[1e29, 1e30], layer="0")


def test_other_errors_are_not_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of memory is no divergence, whatever it says."""

    def full(*given: Any, **options: Any) -> None:
        raise RuntimeError("out of memory: the loss is not finite any more")

    monkeypatch.setattr(selection, "train_head", full)

    with pytest.raises(RuntimeError, match="out of memory"):
        choose_rate(block(), samples(8), samples(8), task=Classes(), layer="0")


def test_short_trainings_are_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three epochs, or as few as the training has; of many samples some, fewer if not stored."""
    model, seen = block(), []

    def watched(model: nn.Module, own: Any, **options: Any) -> Any:
        seen.append((len(own), options["epochs"]))
        return train_head(model, own, **options)

    monkeypatch.setattr(selection, "train_head", watched)
    monkeypatch.setattr(selection, "MOST_STORED", 40)
    monkeypatch.setattr(selection, "MOST_IMAGES", 20)
    pairs = samples(60)
    store = store_of(model, pairs, tmp_path)
    usual: dict[str, Any] = {"task": Classes(), "rates": [0.01]}

    stored = choose_rate(model, store, store.take(range(30)), **usual, epochs=50)
    hooked = choose_rate(model, pairs, pairs[:10], **usual, epochs=2, layer="0")
    whole = choose_rate(model, pairs[:20], pairs, **usual, epochs=1, layer="0")

    assert seen == [(40, 3), (20, 2), (20, 1)]
    assert "3 epochs each on 40 of 60 samples)" in str(stored)
    assert "2 epochs each on 20 of 60 samples)" in str(hooked)
    assert "1 epoch each)" in str(whole)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (
            {0.1: 1.0, 0.2: 0.5, 0.3: 0.7},
            "0.2 (of 0.1 ... 0.3, by validation loss of 3 epochs each)",
        ),
        ({0.1: 0.5, 0.2: 0.6}, "0.1, the lowest (of 0.1 ... 0.2, by "),
        ({0.1: math.inf, 0.2: 0.6}, "0.2, the highest (of 0.1 ... 0.2, by "),
        ({0.1: 3.0, 0.2: 2.0, 0.3: math.inf}, "3 epochs each; none lowered it from 0.9)"),
    ],
)
def test_the_choice_is_told_in_a_line(losses: dict[float, float], told: str) -> None:
    """Which rate, of which, by what; an end of the range is said, and that none helped."""
    line = str(Choice(losses, 0.9, 3))

    assert line.startswith("learning rate: ")
    assert "\n" not in line
    assert told in line


@pytest.mark.parametrize(
    ("head", "trained", "expected"),
    [
        (nn.Linear(6, 3), ["2"], LINEAR_RATES),
        (MLPHead(6, 3), ["2"], HEAD_RATES),
        (CosineHead(6, 3), ["2"], HEAD_RATES),
        (nn.Linear(6, 3), ["1", "2"], BLOCK_RATES),
        (MLPHead(6, 3), ["1", "2"], BLOCK_RATES),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), ["2"], BLOCK_RATES),
    ],
)
def test_rates_suit_what_is_trained(
    head: nn.Module, trained: list[str], expected: tuple[float, ...]
) -> None:
    """Pretrained layers, and those that may be, get lower ones than heads that are new."""
    model = nn.Sequential(nn.Linear(6, 6), Jumpy(), head)
    freeze(model, except_=trained)

    assert suited_rates(model) == expected
