"""The learning rate that validation chooses is the best one of a list, tried one by one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manifold_mixup import FeatureStore, evaluate, extract_features, freeze, rates, train_head
from manifold_mixup.choose import validation_nll
from manifold_mixup.rates import RATES, choose_rate
from manifold_mixup.settings import HeadSettings

OPTIONS = {"epochs": 3, "batch_size": 8, "optimizer": "adamw"}


@pytest.fixture
def stores(tmp_path: Path) -> tuple[nn.Module, FeatureStore, FeatureStore]:
    """A frozen model with a linear head, and features to train on and to choose by."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    freeze(model, except_="2")
    centres = torch.randn(3, 6)

    def samples(n: int) -> list[tuple[Tensor, int]]:
        return [(centres[i % 3] + torch.randn(6), i % 3) for i in range(n)]

    train = extract_features(model, "1", samples(60), tmp_path / "train")
    return model, train, extract_features(model, "1", samples(30), tmp_path / "val")


@pytest.mark.parametrize(
    ("alpha", "wish", "mixed_epochs"),
    [(0.0, {}, None), (1.0, {}, None), (1.0, {"clean_weight": 4.0, "noise": 1.0}, 1)],
)
def test_rate_is_the_best_of_trainings_one_by_one(
    stores: tuple[nn.Module, FeatureStore, FeatureStore],
    alpha: float,
    wish: dict[str, float],
    mixed_epochs: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each rate is trained alone by `train_head`; the chosen one has the lowest NLL."""
    model, store, validation = stores
    nlls, found = [], []
    options = {"alpha": alpha, "seed": 4, **wish}
    for rate in RATES:
        alone = copy.deepcopy(model)
        more = {"epochs": 3, "batch_size": 8, "mixed_epochs": mixed_epochs}
        train_head(alone, store, lr=rate, **options, **more)
        nlls.append(evaluate(alone, validation)["nll"])
    before = model[2].weight.clone()

    def validated(*arguments: Any) -> Tensor:
        found.append(validation_nll(*arguments))
        return found[-1]

    monkeypatch.setattr(rates, "validation_nll", validated)
    settings = HeadSettings(**options)
    more = {"patience": None, "mixed_epochs": mixed_epochs}
    chosen = choose_rate(model, store, validation, settings, **more, **OPTIONS)

    assert found[0].tolist() == pytest.approx(nlls, abs=1e-5)
    assert chosen == RATES[nlls.index(min(nlls))]
    assert min(nlls) < max(nlls) / 1.5
    assert torch.equal(model[2].weight, before)
    assert model[2].training


def test_patience_chooses_by_the_best_epoch(
    stores: tuple[nn.Module, FeatureStore, FeatureStore],
) -> None:
    """With `patience` each head counts by its best epoch, as that is kept."""
    model, store, validation = stores
    bests = []
    for rate in RATES:
        options = {"epochs": 6, "batch_size": 8, "validation": validation, "patience": 6}
        training = train_head(copy.deepcopy(model), store, lr=rate, **options)
        bests.append(min(row["val_loss"] for row in training.epochs))
    options = {**OPTIONS, "epochs": 6, "patience": 6}
    chosen = choose_rate(model, store, validation, HeadSettings(), **options)
    assert chosen == RATES[bests.index(min(bests))]


def test_tail_that_is_no_linear_layer_keeps_its_rate(
    stores: tuple[nn.Module, FeatureStore, FeatureStore],
) -> None:
    """Where several parameters train, the rate of the settings is taken."""
    model, store, validation = stores
    model[2] = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    settings = HeadSettings(lr=0.007)
    assert choose_rate(model, store, validation, settings, patience=None, **OPTIONS) == 0.007
