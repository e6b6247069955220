"""One label for each sample and one logit: found as a binary task, trained and measured as one."""

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from manifold_mixup import ManifoldMixup, evaluate, extract_features, mixed_loss, train_head
from manifold_mixup._random import seeded_generator
from manifold_mixup.reports import describe_metrics
from manifold_mixup.training import Classes, Labels, TrainingState
from manifold_mixup.training.metrics import best_thresholds, label_scores
from manifold_mixup.training.tasks import find_task

FORMS = {
    "floats": lambda truth: truth.double(),
    "integers": lambda truth: truth.long(),
    "bytes": lambda truth: truth.byte(),
    "booleans": lambda truth: truth,
    "a column of floats": lambda truth: truth.double()[:, None],
    "a column of integers": lambda truth: truth.long()[:, None],
    "a column of booleans": lambda truth: truth[:, None],
}
BINARY: dict[str, Any] = {
    "module": nn.BCEWithLogitsLoss(),
    "function": F.binary_cross_entropy_with_logits,
    "partial": functools.partial(F.binary_cross_entropy_with_logits, reduction="mean"),
}


def net(outputs: int = 1) -> nn.Sequential:
    """A layer to mix at, and a head on its 4 features, in float64."""
    return nn.Sequential(nn.Identity(), nn.Linear(4, outputs)).double()


def noisy(n: int = 90) -> tuple[Tensor, Tensor]:
    """Features, and whether they lie on one side, with noise: no head is always right."""
    x = torch.randn(n, 4, dtype=torch.float64)
    return x, x[:, 0] + torch.randn(n, dtype=torch.float64) > 0.4


def train(model: nn.Module, samples: Any, **options: Any) -> tuple[TrainingState, str]:
    """Train a head at layer "0" on data, or on what is stored; what it said, too."""
    said: list[str] = []
    layer = {} if hasattr(samples, "stored_layer") else {"layer": "0"}
    return train_head(model, samples, **layer, **options, say=said.append), "".join(said)


# The task


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("criterion", BINARY)
def test_binary_cross_entropy_makes_a_binary_task(form: str, criterion: str) -> None:
    """Of zeros and ones in any form; soft ones too, but classes by index stay refused ones."""
    _, truth = noisy()

    assert find_task(FORMS[form](truth), BINARY[criterion]) == Labels()
    assert find_task(torch.tensor([0.05, 0.95]), BINARY[criterion]) == Labels()
    assert find_task(torch.tensor([0, 1, 2]), BINARY[criterion]) == Classes()


@pytest.mark.parametrize(
    ("target", "criterion", "name"),
    [
        (torch.tensor([0.0, 1.0]), None, "labels"),
        (torch.tensor([0.0, 0.9]), None, "values"),
        (torch.tensor([0.0, 1.0]), nn.MSELoss(), "values"),
        (torch.tensor([0.0, 1.0]), nn.BCELoss(), "values"),
        (torch.tensor([0, 1]), None, "classes"),
        (torch.tensor([False, True]), None, "classes"),
        (torch.tensor([0, 1]), nn.CrossEntropyLoss(), "classes"),
        (torch.tensor([[0.3, 0.7]]), nn.BCEWithLogitsLoss(), "classes"),
        (torch.tensor([[0.3, 0.9]]), nn.BCEWithLogitsLoss(), "labels"),
    ],
)
def test_without_it_only_floating_zeros_and_ones_are_binary(
    target: Tensor, criterion: Any, name: str
) -> None:
    """Integers are classes, and what a distance compares with are values."""
    assert find_task(target, criterion).name == name


def test_targets_of_a_data_set_that_its_samples_change_are_not_theirs() -> None:
    """A `target_transform` makes floats of integers: the task is that of the floats."""

    class Floats(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, float]:  # type: ignore[override]
            return self.tensors[0][index], float(self.tensors[1][index])

    x, truth = noisy()
    training, _ = train(net(), Floats(x, truth.long()))

    assert "train_mean_average_precision" in training.metrics


@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
@pytest.mark.parametrize("is_one_class", [False, True])
def test_one_logit_for_classes_is_refused_with_the_remedy(
    dtype: torch.dtype, is_one_class: bool
) -> None:
    """Even if all are of class 0, for which cross entropy of one logit is 0."""
    x, truth = noisy()
    data = TensorDataset(x, (truth & (not is_one_class)).to(dtype))

    with pytest.raises(ValueError, match=r"gives one logit.*task=Labels\(\).*BCEWithLogitsLoss"):
        train(net(), data)
    with pytest.raises(ValueError, match=r"gives one logit.*task=Labels\(\)"):
        evaluate(net(), data)


def test_what_is_no_share_is_refused() -> None:
    """Binary cross entropy takes any number, and goes below 0 for those above 1."""
    x, truth = noisy()

    with pytest.raises(ValueError, match=r"a target is 2.0, expected all from 0 to 1"):
        train(net(), TensorDataset(x, 2 * truth.double()), criterion=nn.BCEWithLogitsLoss())


# The head


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_unmixed_head_is_that_of_scikit_learn(form: str, is_stored: bool, tmp_path: Path) -> None:
    """To the optimum, and every measure is the one of its own predictions."""
    (x, truth), model = noisy(), net()
    data: Any = TensorDataset(x, FORMS[form](truth))
    if is_stored:
        data = extract_features(model, "0", data, tmp_path, dtype=torch.float64)
    _, said = train(model, data, criterion=nn.BCEWithLogitsLoss(), alpha=0, weight_decay=0.0)

    right = LogisticRegression(C=np.inf, tol=1e-12, max_iter=9999).fit(x.numpy(), truth.numpy())
    assert said.startswith("solved: ")
    assert model[1].weight[0].tolist() == pytest.approx(right.coef_[0], abs=1e-5)
    assert model[1].bias.item() == pytest.approx(right.intercept_[0], abs=1e-5)
    found, predicted = evaluate(model, data, task=Labels()), right.predict(x.numpy())
    probability = right.predict_proba(x.numpy())[:, 1]
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["f1"] == pytest.approx(f1_score(truth, predicted))
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, probability))
    assert found["nll"] == pytest.approx(log_loss(truth, probability), abs=1e-6)


@pytest.mark.parametrize("factor", [torch.tensor([3.0]), torch.tensor(3.0)])
def test_pos_weight_is_the_weight_of_samples_with_the_label(factor: Tensor) -> None:
    """Of one number, with an axis and without: the head is scikit-learn's with that weight."""
    (x, truth), model = noisy(), net()
    criterion = nn.BCEWithLogitsLoss(pos_weight=factor.double())
    data = TensorDataset(x, truth.double())
    _, said = train(model, data, criterion=criterion, alpha=0, weight_decay=0.0)

    right = LogisticRegression(C=np.inf, tol=1e-12, max_iter=9999, class_weight={0: 1, 1: 3})
    right.fit(x.numpy(), truth.numpy())
    assert said.startswith("solved: ")
    assert model[1].weight[0].tolist() == pytest.approx(right.coef_[0], abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_solved", [False, True])
@pytest.mark.parametrize("pairing", ["any", "other-class"])
def test_every_form_is_mixed_alike(
    form: str, is_solved: bool, pairing: Any, tmp_path: Path
) -> None:
    """Stored and hooked, balanced, by steps and solved: the head of a column of floats."""
    x, truth = noisy()
    how: dict[str, Any] = {"task": Labels(), "class_weight": "balanced", "pairing": pairing}
    how |= {"weight_decay": 0.01} if is_solved else {"epochs": 2, "batch_size": 16}
    heads = []
    for i, one in enumerate((form, "a column of floats")):
        torch.manual_seed(0)
        model, data = net(), TensorDataset(x, FORMS[one](truth))
        store = extract_features(model, "0", data, tmp_path / str(i), dtype=torch.float64)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        for samples in (data, store):
            model.load_state_dict(state)
            train(model, samples, validation=samples, **how)
            heads.append(model[1].weight.detach().clone())

    assert torch.equal(heads[0], heads[2])
    assert torch.equal(heads[1], heads[3])
    if not is_solved:  # which else mixes what is stored more often
        assert torch.allclose(heads[0], heads[1], atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_first_step_is_that_of_the_hooked_loop(form: str) -> None:
    """The loss of one batch is that of a loop of one's own, with `mixed_loss`."""
    (x, truth), model, criterion = noisy(16), net(), nn.BCEWithLogitsLoss()
    data = TensorDataset(x, FORMS[form](truth))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    training, _ = train(model, data, criterion=criterion, epochs=1, batch_size=16, seed=3)

    model.load_state_dict(state)
    losses = []
    with ManifoldMixup(model, "0", alpha=0.4, seed=3) as mixup:
        order = torch.randperm(16, generator=seeded_generator(3, 0))
        with mixup(data.tensors[1][order]) as mix:
            logits = model(x[order])
            losses.append(mixed_loss(logits, data.tensors[1][order], mix, criterion).item())
    assert training.losses == pytest.approx(losses, rel=1e-9)


# The measures


def test_binary_measures_are_at_the_threshold_that_is_chosen() -> None:
    """Accuracy and F1 follow it, the ranking does not."""
    x, truth = noisy()
    logits = x[:, :1] - 1
    task = Labels().tuned(logits, truth.double())
    found, plain = task.metrics(logits, truth.double()), Labels().metrics(logits, truth.long())

    assert task.thresholds == best_thresholds(logits, truth[:, None])
    predicted = logits[:, 0].sigmoid() >= task.thresholds[0]
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["f1"] == pytest.approx(f1_score(truth, predicted))
    assert found["f1"] > plain["f1"]
    assert found["auroc"] == plain["auroc"] == pytest.approx(roc_auc_score(truth, logits[:, 0]))


def test_one_kind_of_samples_has_no_auroc() -> None:
    """It is None, without a warning; accuracy is what it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Labels().metrics(torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 1.0]))

    assert found["auroc"] is None
    assert found["accuracy"] == 0.5


@pytest.mark.parametrize("labels", [1, 3])
def test_soft_labels_count_from_a_half_on(labels: int) -> None:
    """Smoothed targets are measured as the hard ones that they come of, but for the loss."""
    logits = torch.randn(40, labels, dtype=torch.float64)
    hard = (torch.rand(40, labels) < 0.5).double()
    soft, thresholds = 0.1 + 0.8 * hard, torch.full((labels,), 0.5)
    names = [str(c) for c in range(labels)]
    found, right = (label_scores(logits, one, thresholds, names) for one in (soft, hard))

    expected = F.binary_cross_entropy_with_logits(logits, soft).item()
    assert found == {**right, "nll": pytest.approx(expected)}
    assert best_thresholds(logits, soft) == best_thresholds(logits, hard)


def test_binary_measures_are_told_in_a_line() -> None:
    """Beside those of labels; an undefined one is told as such."""
    logits = torch.tensor([[1.0], [-1.0], [2.0]])
    metrics = Labels().metrics(logits, torch.tensor([1.0, 0.0, 0.0]))
    line = "mean average precision 50.0%, accuracy 66.7%, AUROC 50.0%, F1 66.7%, NLL 0.918"

    assert describe_metrics(metrics) == f"{line} (3 images)"
    same = Labels().metrics(logits, torch.tensor([1.0, 1.0, 1.0]))
    assert "AUROC undefined" in describe_metrics(same)
