"""Classes, labels and values: measures, thresholds, and training by each of their losses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, log_loss, r2_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from manifold_mixup import Mix, evaluate, extract_features, mixed_loss, train_head
from manifold_mixup._random import seeded_generator
from manifold_mixup.features import find_tail
from manifold_mixup.training import Classes, Labels, Task, Values, task_of
from manifold_mixup.training.metrics import best_thresholds, label_scores, value_scores
from manifold_mixup.training.preflight import try_samples
from manifold_mixup.training.tasks import find_task

# Most train on noise, where there is nothing to learn.
pytestmark = pytest.mark.filterwarnings("ignore::manifold_mixup.training.state.FailedTraining")


def net(outputs: int) -> nn.Sequential:
    """A layer to mix at and one behind it, on 4 features, in float64."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


TARGETS = {
    "classes": lambda x: int(x[0] > 0),
    "soft classes": lambda x: torch.stack([x[0].sigmoid(), (-x[0]).sigmoid()]),
    "labels": lambda x: (x[:2] > 0).double(),
    "boolean labels": lambda x: x[:2] > 0,
    "values": lambda x: 3 * x[:2] - 1,
    "one value": lambda x: float(x[0]),
}
CRITERIA: dict[str, Any] = {
    "classes": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]).double()),
    "soft classes": nn.CrossEntropyLoss(),
    "labels": nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0]).double()),
    "boolean labels": F.binary_cross_entropy_with_logits,
    "values": nn.HuberLoss(),
    "one value": nn.L1Loss(),
}


def samples(kind: str, n: int = 24) -> list[tuple[Tensor, Any]]:
    """Pairs of 4 features in float64 and a target of a kind."""
    inputs = torch.randn(n, 4, dtype=torch.float64)
    return [(x, TARGETS[kind](x)) for x in inputs]


# Measures


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_label_scores_are_those_of_scikit_learn(classes: int) -> None:
    """Average precision, F1 at the thresholds, and the likelihood of each label by itself."""
    logits = 3 * torch.randn(60, classes, dtype=torch.float64)
    target = (torch.rand(60, classes) < 0.3).double()
    thresholds = torch.rand(classes)
    names = [f"label {c}" for c in range(classes)]

    found = label_scores(logits, target, thresholds, names)

    probability = 1 / (1 + np.exp(-logits.numpy()))
    predicted = probability >= thresholds.double().numpy()
    f1 = [f1_score(target[:, c], predicted[:, c]) for c in range(classes)]
    assert found["mean_average_precision"] == pytest.approx(
        np.mean(
            [average_precision_score(target[:, c], probability[:, c]) for c in range(classes)]
        ),
        abs=1e-6,
    )
    assert found["f1_by_class"] == pytest.approx(dict(zip(names, f1, strict=True)), abs=1e-6)
    assert found["f1"] == pytest.approx(np.mean(f1), abs=1e-6)
    assert found["nll"] == pytest.approx(log_loss(target.flatten(), probability.flatten()))
    assert found["n"] == 60


def test_labels_that_no_sample_has_do_not_count_for_precision() -> None:
    """The mean is over the others; without any it is undefined."""
    logits = torch.tensor([[2.0, 5.0], [-2.0, -5.0]])
    scores = [
        label_scores(logits, torch.tensor(target), torch.tensor([0.5, 0.5]), ["a", "b"])
        for target in ([[1, 0], [0, 0]], [[0, 0], [0, 0]])
    ]

    assert [one["mean_average_precision"] for one in scores] == [1, None]
    assert scores[0]["f1_by_class"] == {"a": 1, "b": 0}


@pytest.mark.parametrize("width", [1, 3])
def test_value_scores_are_those_of_their_formulas(width: int) -> None:
    """R2 is a mean over the values, errors are over all numbers."""
    target = torch.randn(50, width, dtype=torch.float64) * 10 + 100
    predicted = target + torch.randn(50, width, dtype=torch.float64)

    found = value_scores(predicted, target)

    error = (predicted - target).numpy()
    assert found["r2"] == pytest.approx(r2_score(target, predicted), abs=1e-9)
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert found["n"] == 50


@pytest.mark.parametrize("n", [1, 4])
def test_share_of_no_variance_is_undefined(n: int) -> None:
    """One sample, or equal ones, have none to explain; the errors are there."""
    found = value_scores(torch.zeros(n, 1), torch.ones(n, 1))

    assert (found["r2"], found["mae"]) == (None, 1)


# Thresholds


def f1_of(truth: np.ndarray, probability: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """F1 of one label at each threshold, by counting."""
    found = probability >= thresholds[:, None]
    hits, misses = (found & (truth == 1)).sum(1), (~found & (truth == 1)).sum(1)
    return 2 * hits / (2 * hits + misses + (found & (truth == 0)).sum(1))


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_have_the_highest_f1_of_all(seed: int) -> None:
    """No threshold on a fine grid, nor at or between probabilities, does better."""
    draw = np.random.default_rng(seed)
    logits = torch.tensor(draw.normal(0, 2, (40, 3)).round(1))  # with ties
    target = torch.tensor(draw.random((40, 3)) < 0.3).double()

    chosen = best_thresholds(logits, target)

    for c in range(3):
        probability, truth = logits[:, c].sigmoid().numpy(), target[:, c].numpy()
        own = np.unique(probability)
        tried = np.concatenate([np.linspace(0.001, 0.999, 500), own, (own[1:] + own[:-1]) / 2])
        scores = f1_of(truth, probability, tried)
        (mine,) = f1_of(truth, probability, np.array([chosen[c]]))
        assert mine == f1_score(truth, probability >= chosen[c]) == pytest.approx(scores.max())
        nearest = np.abs(tried[scores == scores.max()] - 0.5).min()
        assert abs(chosen[c] - 0.5) <= nearest + 0.1


@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        ([-1.0, 1.0], [0, 0], 0.5),
        ([-1.0, 1.0], [0, 1], 0.5),
        ([1.0, 1.0], [1, 1], 0.5),
        ([1.0, 2.0], [0, 1], (1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(-2))) / 2),
    ],
)
def test_threshold_is_a_half_where_that_is_as_good(
    logits: list[float], target: list[int], expected: float
) -> None:
    """Without the label, or with nothing to gain; else it is between two probabilities."""
    found = best_thresholds(torch.tensor(logits)[:, None], torch.tensor(target)[:, None])

    assert found == pytest.approx([expected])


def test_thresholds_decide_predictions_and_f1() -> None:
    """A label is predicted from its threshold on; other measures do not change."""
    logits, target = torch.tensor([[0.0, 0.0], [2.0, -3.0]]), torch.tensor([[1, 1], [1, 0]])
    plain, tuned = Labels(["a", "b"]), Labels(["a", "b"], [0.6, 0.01])

    assert [row["labels"] for row in plain.predictions(logits)] == [["a", "b"], ["a"]]
    assert [row["labels"] for row in tuned.predictions(logits)] == [["b"], ["a", "b"]]
    assert tuned.predictions(logits)[0]["probabilities"] == {"a": 0.5, "b": 0.5}
    assert tuned.metrics(logits, target)["f1_by_class"] == pytest.approx({"a": 2 / 3, "b": 2 / 3})
    assert tuned.metrics(logits, target)["nll"] == plain.metrics(logits, target)["nll"]


# Tasks


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("classes", "classes"),
        ("soft classes", "classes"),
        ("labels", "labels"),
        ("boolean labels", "labels"),
        ("values", "values"),
        ("one value", "values"),
    ],
)
def test_targets_tell_their_task(kind: str, name: str) -> None:
    """Integers and probabilities are classes, zeros and ones labels, all else values.

    To cross entropy all are classes.
    """
    target = torch.utils.data.default_collate([y for _, y in samples(kind)])

    assert find_task(target).name == name
    assert find_task(target, nn.CrossEntropyLoss()).name == "classes"


@pytest.mark.parametrize("is_stored", [False, True])
def test_task_is_that_of_all_targets(is_stored: bool, tmp_path: Path) -> None:
    """The first batch may hold zeros and ones alone, of targets that are probabilities."""
    target = torch.eye(2).repeat(32, 1)
    target[40:] = torch.tensor([0.25, 0.75])
    data, model = TensorDataset(torch.randn(64, 4, dtype=torch.float64), target), net(2)
    samples = extract_features(model, "1", data, tmp_path) if is_stored else data
    own = find_tail(model, samples) if is_stored else model
    how: dict[str, Any] = {"pairing": "any", "exclude": (), "batch_size": 32}

    assert try_samples(own, samples, None, None, None, **how)[2].name == "classes"
    assert try_samples(own, samples, None, Labels(), None, **how)[2].name == "labels"


def test_one_value_near_1_is_no_probability() -> None:
    """A column has no other class to take the rest."""
    assert find_task(torch.tensor([[1.0], [0.995], [1.005]])).name == "values"


@pytest.mark.parametrize(
    "task",
    [
        Classes(["a", "b"]),
        Labels(["a", "b"], [0.25, 0.5]),
        Values(["value"], [3.5], [2.0], "huber"),
    ],
)
def test_a_task_comes_back_from_what_a_run_says(task: Task) -> None:
    """Thresholds and units too."""
    assert task_of({"classes": task.classes, "task": task.info()}) == task


def test_values_are_learned_in_standard_and_told_in_their_own_unit() -> None:
    """Mean 0 and deviation 1 in training; what is measured and predicted is brought back."""
    target = torch.randn(100, 2, dtype=torch.float64) * torch.tensor([5.0, 0.1]) + 40
    task = Values.standardized(target, ["a", "b"])
    learned = task.prepared(target, torch.float64)

    assert learned.mean(0).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert learned.std(0, correction=0).tolist() == pytest.approx([1, 1])
    assert task.metrics(learned, target)["rmse"] == pytest.approx(0, abs=1e-9)
    expected = dict(zip("ab", target[0].tolist(), strict=True))
    assert task.predictions(learned)[0]["value"] == pytest.approx(expected)


def test_equal_values_teach_nothing() -> None:
    """They have no deviation to divide by."""
    with pytest.raises(ValueError, match="all training values are 7: there is nothing to learn"):
        Values.standardized(torch.tensor([7.0, 7.0]))


# Training


def test_a_label_whose_absence_weighs_nothing_has_a_loss() -> None:
    """Where it is there it counts as its weight says, and elsewhere not at all."""
    logits, target = torch.randn(8, 2), torch.randint(2, (8, 2)).float()
    there, absent = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])
    loss = Labels(["a", "b"]).criterion(class_weight=(there, absent))

    weight = torch.where(target == 1, there, absent)
    expected = F.binary_cross_entropy_with_logits(logits, target, weight=weight)
    torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize("kind", CRITERIA)
def test_training_is_a_plain_loop_with_the_criterion(kind: str) -> None:
    """Any criterion trains any target it takes; losses are those of a loop written out."""
    data, criterion = samples(kind), CRITERIA[kind]
    model, plain = net(1 if kind == "one value" else 2), net(1 if kind == "one value" else 2)
    plain.load_state_dict(model.state_dict())
    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.05, "seed": 3}
    training = train_head(model, data, layer="1", criterion=criterion, **options)

    target = torch.utils.data.default_collate([y for _, y in data])
    target = target if target.dtype == torch.int64 else target.double()
    target = target[:, None] if kind == "one value" else target
    optimizer = torch.optim.AdamW(plain[2].parameters(), 0.05, weight_decay=0.01)
    draws, losses = seeded_generator(3, "mix", 0), []
    for epoch in range(2):
        order = torch.randperm(24, generator=seeded_generator(3, epoch))
        for step, index in enumerate(order.split(8)):
            rate = (1 + math.cos(math.pi * (epoch + step / 3) / 2)) / 2
            optimizer.param_groups[0]["lr"] = 0.05 * rate
            mix = Mix.sample(8, 0.4, generator=draws)
            features = plain[:2](torch.stack([data[i][0] for i in index])).detach()
            loss = mixed_loss(plain[2](mix(features)), target[index], mix, criterion)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert training.losses == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("kind", ["soft classes", "labels", "values", "one value"])
def test_both_ways_are_the_same_and_stored_targets_come_back(kind: str, tmp_path: Path) -> None:
    """A store keeps targets of any kind; its losses, measures and head are the hooked ones."""
    data, outputs = samples(kind), 1 if kind == "one value" else 2
    models = [net(outputs), net(outputs)]
    models[1].load_state_dict(models[0].state_dict())
    store = extract_features(models[1], "1", data, tmp_path / "store", dtype=torch.float64)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.1}
    hooked = train_head(models[0], data, layer="1", validation=data, **options)
    cached = train_head(models[1], store, validation=store, **options)

    collated = torch.utils.data.default_collate([y for _, y in data])
    assert torch.equal(store.targets, collated)
    assert store.classes == []
    assert cached.losses == pytest.approx(hooked.losses, rel=1e-9)
    for mine, theirs in zip(cached.epochs, hooked.epochs, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    from_store, from_data = evaluate(models[1], store), evaluate(models[0], data)
    assert from_store.pop("f1_by_class", {}) == from_data.pop("f1_by_class", {})
    assert from_store == pytest.approx(from_data, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "measure", "least"),
    [("labels", "mean_average_precision", 0.95), ("values", "r2", 0.9), ("one value", "r2", 0.9)],
)
def test_what_can_be_learned_is_learned(kind: str, measure: str, least: float) -> None:
    """Without a word about the task; every epoch tells its loss and its quality."""
    data = samples(kind, 200)
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 1 if kind == "one value" else 2)).double()
    training = train_head(model, data[:150], layer="0", validation=data[150:], epochs=20, lr=0.1)

    assert evaluate(model, data[150:])[measure] > least
    assert training.metrics.keys() == {
        *("mixed_loss", "train_loss", "val_loss", f"train_{measure}", f"val_{measure}")
    }
    assert training.metrics[f"val_{measure}"] == pytest.approx(
        evaluate(model, data[150:])[measure]
    )


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ([[0.0, math.nan]], {}, "a target is nan, not finite"),
        ([[0.0, math.inf]], {}, "a target is inf, not finite"),
        ([[0.0, 2.0]], {"task": Labels()}, "a target is 2.0, expected all from 0 to 1"),
        ([[0.0, 1.0, 1.0]], {}, r"output of shape \(\d, 2\) for targets of shape .*, 3\).*head"),
        (
            [0.5],
            {"task": Labels()},
            r"output of shape .*, 2\) for targets of shape \(4,\);",
        ),
        ([[[0.5]]], {"task": Labels()}, r"targets of shape .* expected labels \(B,\) or \(B, C\)"),
        ([[[1]]], {}, r"targets of shape .*, 1, 1\).*expected class indices"),
        (
            [[0.0, 1.0]],
            {"label_smoothing": 0.1},
            "label_smoothing=0.1 is for classes, not for lab",
        ),
        ([0], {"label_smoothing": 0.1, "criterion": F.cross_entropy}, "give it to criterion="),
    ],
)
def test_targets_that_do_not_fit_are_refused_before_any_step(
    targets: list[Any], options: dict[str, Any], message: str
) -> None:
    """In one line with what came, and the head is as it was."""
    model = net(2)
    before = model[2].weight.clone()
    target = targets[0] if isinstance(targets[0], int) else torch.tensor(targets[0])
    data = [(torch.randn(4, dtype=torch.float64), target) for _ in range(4)]

    with pytest.raises(ValueError, match=message):
        train_head(model, data, layer="1", **options)
    assert torch.equal(model[2].weight, before)


def test_bad_target_far_back_in_a_store_is_found_first(tmp_path: Path) -> None:
    """All stored targets are checked before the first step."""
    data = samples("values", 40)
    data[35][1][1] = math.nan
    model = net(2)
    store = extract_features(model, "1", data, tmp_path / "store", dtype=torch.float64)

    with pytest.raises(ValueError, match="a target is nan"):
        train_head(model, store, batch_size=8)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([5], "validation: .* a target is 5"),
        ([-1], "validation: a target is -1"),
        ([0.5], "validation: targets of shape"),
        ([], "validation= is empty"),
    ],
)
def test_bad_validation_is_refused_before_any_step(targets: list[Any], message: str) -> None:
    """Not after an epoch, and no measure of it is silently NaN."""
    model = net(2)
    before = model[2].weight.clone()
    validation = [(torch.randn(4, dtype=torch.float64), target) for target in targets]

    with pytest.raises(ValueError, match=message):
        train_head(model, samples("classes"), layer="1", validation=validation)
    assert torch.equal(model[2].weight, before)


def test_bad_validation_target_far_back_is_named() -> None:
    """What the first batch could not show, the first measure of all does."""
    validation = samples("one value", 40)
    validation[35] = (validation[35][0], math.nan)

    with pytest.raises(ValueError, match="a target is nan, not finite"):
        train_head(net(1), samples("one value"), layer="1", validation=validation)


def test_features_are_validated_on_features(tmp_path: Path) -> None:
    """What is trained then is the tail, which takes no images."""
    data, model = samples("classes"), net(2)
    store = extract_features(model, "1", data, tmp_path / "store", dtype=torch.float64)

    with pytest.raises(ValueError, match="validation= is a list, but training is on the features"):
        train_head(model, store, validation=data)


def test_criterion_must_give_one_number() -> None:
    """There is no gradient of several losses."""
    criterion = nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(ValueError, match=r"CrossEntropyLoss gives a loss of shape \(24,\)"):
        train_head(net(2), samples("classes"), layer="1", criterion=criterion)


@pytest.mark.parametrize("target", [(0, 1), {"a": 0}])
def test_several_targets_are_refused(target: Any) -> None:
    """For a loop of one's own, in training and in evaluation."""
    data = [(torch.randn(4, dtype=torch.float64), target)] * 4
    with pytest.raises(TypeError, match="a tensor of inputs and one of targets; for others mix"):
        train_head(net(2), data, layer="1")
    with pytest.raises(TypeError, match="a tensor of inputs and one of targets"):
        evaluate(net(2), data)
