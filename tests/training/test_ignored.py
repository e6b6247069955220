"""Samples without a class, whose target is -100: ignored where cross entropy ignores them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup import (
    FeatureStore,
    ManifoldMixup,
    evaluate,
    extract_features,
    freeze,
    train_head,
)
from manifold_mixup._random import seeded_generator

Samples = list[tuple[Tensor, int]]


def network() -> nn.Sequential:
    """A body that is frozen, and a head for 3 classes."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    freeze(model, except_="2")
    return model


def samples(*, late: bool = False) -> Samples:
    """40 samples, of which a quarter has no class: of the first 32, or of the last alone."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator)
    none = [i >= 34 if late else i % 4 == 0 for i in range(40)]
    return [(x, -100 if none[i] else i % 3) for i, x in enumerate(inputs)]


def test_what_is_measured_is_of_samples_with_a_class() -> None:
    """All numbers are those of the same data set without the others."""
    model, own = network(), samples()

    found = evaluate(model, own)

    assert found == pytest.approx(evaluate(model, [one for one in own if one[1] != -100]))
    assert found["n"] == 30


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("criterion", [None, nn.CrossEntropyLoss()])
def test_first_step_has_the_loss_of_a_loop_that_ignores_them(
    stored: bool, criterion: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A term of such a target counts neither in the sum of the losses nor in its weights."""
    model, own = network(), samples()
    given: Any = extract_features(model, "1", own, tmp_path, fold=False) if stored else own
    layer = None if stored else "1"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    training = train_head(
        model, given, layer=layer, criterion=criterion, batch_size=40, epochs=1, lr=0.1
    )

    model.load_state_dict(before)
    inputs, target = torch.stack([x for x, _ in own]), torch.tensor([y for _, y in own])
    losses = weights = 0.0
    lam, partner, order = drawn(model, inputs, target)
    hidden = model[1](model[0](inputs[order]))
    share = torch.tensor(lam)[:, None].float()
    logits = model[2](share * hidden + (1 - share) * hidden[partner])
    for i, (w, j) in enumerate(zip(lam, partner, strict=True)):
        for part, y in ((w, target[order[i]]), (1 - w, target[order[j]])):
            if int(y) != -100:
                losses += part * F.cross_entropy(logits[i], y).item()
                weights += part
    assert training.losses == pytest.approx([losses / weights], rel=1e-5)


def drawn(model: nn.Module, inputs: Tensor, target: Tensor) -> Any:
    """The mix of the only step of a training with seed 0, and the order of its samples."""
    order = torch.randperm(40, generator=seeded_generator(0, 0))
    with ManifoldMixup(model, "1", example=inputs)(target[order]) as mix:
        model(inputs[order])
    return mix.lam.tolist(), mix.partner.tolist(), order


@pytest.mark.parametrize("stored", [False, True])
def test_such_a_head_is_trained_by_steps_unasked(
    stored: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line says why, and the classes of those that have one are learned with equal weights."""
    model, own = network(), samples()
    own = [(x + 3 * F.one_hot(torch.tensor(i % 3), 4), y) for i, (x, y) in enumerate(own)]
    given: Any = extract_features(model, "1", own, tmp_path, fold=False) if stored else own
    weight = torch.ones(3)

    before = evaluate(model, own)["nll"]

    train_head(model, given, layer=None if stored else "1", validation=given, class_weight=weight)

    assert "trained by steps (adamw): targets of -100 are ignored" in capsys.readouterr().out
    assert evaluate(model, own)["nll"] < before


def test_balanced_weights_are_those_of_samples_with_a_class(tmp_path: Path) -> None:
    """The same as given weights, each class's share of all that have one turned over."""
    model, own = network(), samples()
    store = extract_features(model, "1", own, tmp_path, fold=False)
    target = store.targets[store.targets >= 0]
    weights = len(target) / (3 * F.one_hot(target).sum(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    losses = []
    for given in ("balanced", weights):
        model.load_state_dict(before)
        losses.append(train_head(model, store, class_weight=given, epochs=2, lr=0.01).losses)

    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_found_late_where_a_head_is_solved_for_it_is_told_what_to_do() -> None:
    """The first batch has none, and the data set tells no targets."""
    with pytest.raises(ValueError, match="a target is -100, .* give optimizer='adamw'"):
        train_head(network(), samples(late=True), layer="1")


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(ignore_index=0), nn.MultiMarginLoss()], ids=["own", "none"]
)
def test_criterion_that_does_not_ignore_them_is_refused(criterion: nn.Module) -> None:
    """With the setting that does."""
    with pytest.raises(ValueError, match=r"a target is -100, which .* ignore_index=-100"):
        train_head(network(), samples(), layer="1", criterion=criterion)


def test_other_numbers_below_0_and_sets_without_any_class_are_refused() -> None:
    """With what is ignored, and with what to do."""
    own = samples()

    with pytest.raises(ValueError, match="a target is -1, expected .* -100 for samples to ignore"):
        evaluate(network(), [(x, -1) for x, _ in own])
    with pytest.raises(ValueError, match="all of 40 targets are -100, which is ignored"):
        evaluate(network(), [(x, -100) for x, _ in own])


def test_stored_targets_are_kept_as_they_are(tmp_path: Path) -> None:
    """A store knows which samples have no class."""
    own = samples()
    extract_features(network(), "1", own, tmp_path)

    assert FeatureStore(tmp_path).targets.tolist() == [y for _, y in own]
    assert FeatureStore(tmp_path).classes == ["0", "1", "2"]
