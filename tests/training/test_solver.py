"""A linear head is brought to the optimum of its mixed risk, or a line says why by steps."""

import copy
import math
import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import Shifted, hooks_on, mixed_by_loop
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor, nn

from manifold_mixup import (
    CutMix,
    FeatureStore,
    Mix,
    evaluate,
    extract_features,
    freeze,
    load_backbone,
    mixed_loss,
    replace_head,
    train_head,
)
from manifold_mixup._random import seeded_generator
from manifold_mixup.linear_heads import Mixes, draw_mixes
from manifold_mixup.training import DECAYS, Classes, Labels, TrainingState, Values, solver
from manifold_mixup.training.solver import convex_settings

# Those by steps train on noise, where there is nothing to learn.
pytestmark = pytest.mark.filterwarnings("ignore::manifold_mixup.training.state.FailedTraining")

N, D, C = 60, 6, 3
Pairs = list[tuple[Tensor, Any]]


def net(outputs: int = C) -> nn.Sequential:
    """A frozen stem and a linear head, on 4 features, in float64."""
    model = nn.Sequential(nn.Linear(4, D), nn.Tanh(), nn.Linear(D, outputs)).double()
    freeze(model, except_="2")
    return model


TARGETS: dict[str, Callable[[Tensor, int], Any]] = {
    "classes": lambda x, i: (0, 1, 1, 2, 0, 1)[i % 6],
    "soft": lambda x, i: x[:3].softmax(0),
    "labels": lambda x, i: (x[:3] + torch.randn(3, dtype=x.dtype) > 0.5).double(),
    "values": lambda x, i: 3 * x[:3] + torch.randn(3, dtype=x.dtype),
}


def samples(kind: str = "classes", n: int = N) -> Pairs:
    """Pairs of 4 features in float64 and a target of a kind."""
    centres = torch.randn(6, 4, dtype=torch.float64)
    inputs = [centres[i % 6] + torch.randn(4, dtype=torch.float64) for i in range(n)]
    return [(x, TARGETS[kind](x, i)) for i, x in enumerate(inputs)]


def stored(model: nn.Module, data: Any, folder: Path, **options: Any) -> FeatureStore:
    """The features of the stem."""
    return extract_features(model, "1", data, folder, **{"dtype": torch.float64} | options)


def train(model: nn.Module, data: Any, **options: Any) -> tuple[TrainingState, str]:
    """A training, and the line that it says."""
    lines: list[str] = []
    training = train_head(model, data, **{"layer": "1"} | options, say=lines.append)
    (line,) = lines
    return training, line


def rows_of(store: FeatureStore, view: int = 0) -> Tensor:
    """All stored features (n, D)."""
    return store.features.gather(torch.arange(len(store)), view=view).flatten(1).double()


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of features, and the mean of their standard deviations."""
    return rows.mean(0), rows.std(0, correction=0).mean()


def standardized(rows: Tensor) -> Tensor:
    """Features as a weight decay is for."""
    mean, scale = moments(rows)
    return (rows - mean) / scale


def head_for_standardized(head: nn.Linear, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and bias of a head, for features that are standardized."""
    mean, scale = moments(rows)
    weight, bias = head.weight.detach().double(), head.bias.detach().double()
    return weight * scale, bias + weight @ mean


def objective(
    weight: Tensor, bias: Tensor, rows: Tensor, loss: Callable[[Tensor], Tensor], decay: float
) -> Tensor:
    """The loss of the logits of standardized features, and the penalty."""
    return loss(standardized(rows) @ weight.T + bias) + decay / 2 * weight.square().sum()


def slope(head: nn.Linear, rows: Tensor, loss: Callable[[Tensor], Tensor], decay: float) -> float:
    """How steep the objective is where a head is, by autograd."""
    own = [tensor.requires_grad_() for tensor in head_for_standardized(head, rows)]
    gradients = torch.autograd.grad(objective(own[0], own[1], rows, loss, decay), own)
    return max(float(gradient.abs().max()) for gradient in gradients)


# Nothing mixed: the heads of scikit-learn


@pytest.mark.parametrize("decay", [1.0, 0.01, 0.0001])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_unmixed_head_is_that_of_logistic_regression(
    tmp_path: Path, decay: float, class_weight: Any
) -> None:
    """The same objective to 1e-7 and the same predictions, also where rare classes count more."""
    model, data = net(), samples()
    store = stored(model, data, tmp_path)
    train(model, store, alpha=0, weight_decay=decay, class_weight=class_weight)

    rows, target = rows_of(store), store.targets
    fit = LogisticRegression(
        C=1 / (decay * N), tol=1e-12, max_iter=100_000, class_weight=class_weight
    ).fit(standardized(rows).numpy(), target.numpy())
    balanced = N / (C * target.bincount().double()) if class_weight else None
    loss = partial(F.cross_entropy, target=target, weight=balanced)
    theirs = torch.from_numpy(fit.coef_), torch.from_numpy(fit.intercept_)
    mine = head_for_standardized(model[2], rows)
    assert float(objective(*mine, rows, loss, decay)) == pytest.approx(
        float(objective(*theirs, rows, loss, decay)), rel=1e-7
    )
    predicted = model[2](rows).argmax(1)
    assert predicted.tolist() == fit.predict(standardized(rows).numpy()).tolist()


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_unmixed_labels_are_one_logistic_regression_each(
    tmp_path: Path, class_weight: Any
) -> None:
    """Against the rest; the loss is a mean over the labels, so each has a third of the penalty."""
    model, data = net(), samples("labels")
    store = stored(model, data, tmp_path)
    train(model, store, alpha=0, weight_decay=0.01, class_weight=class_weight)

    rows = rows_of(store)
    fit = OneVsRestClassifier(
        LogisticRegression(
            C=1 / (0.01 * N * C), tol=1e-12, max_iter=100_000, class_weight=class_weight
        )
    ).fit(standardized(rows).numpy(), store.targets.numpy())
    weight, bias = head_for_standardized(model[2], rows)
    for own, other, one in zip(weight, bias, fit.estimators_, strict=True):
        assert own.numpy() == pytest.approx(one.coef_[0], abs=1e-4)
        assert float(other) == pytest.approx(one.intercept_[0], abs=1e-4)


def test_unmixed_values_are_ridge(tmp_path: Path) -> None:
    """The squared error is a mean over samples and values, and the penalty is halved."""
    model, data = net(), samples("values")
    store = stored(model, data, tmp_path)
    train(model, store, alpha=0, weight_decay=0.3)

    rows = rows_of(store)
    fit = Ridge(alpha=0.3 * N * C / 2).fit(standardized(rows).numpy(), store.targets.numpy())
    weight, bias = head_for_standardized(model[2], rows)
    assert weight.numpy() == pytest.approx(fit.coef_, abs=1e-9)
    assert bias.numpy() == pytest.approx(fit.intercept_, abs=1e-9)


@pytest.mark.shared
def test_head_of_real_features_is_that_of_logistic_regression(
    shared: Path, tmp_path: Path
) -> None:
    """Flowers as ResNet-18 sees them: the same objective and the same predictions."""
    from manifold_mixup.data import ImageSet, list_data
    from manifold_mixup.models import model_transform

    model = load_backbone("resnet18", weights=shared / "weights" / "resnet18_imagenet.safetensors")
    freeze(model, except_=replace_head(model, 5))
    part = list_data(shared / "datasets" / "flowers5").parts["train"].take(range(0, 1000, 16))
    images = ImageSet(part, model_transform("resnet18", model), 3)
    store = extract_features(model, "layer4", images, tmp_path)
    rows, target = rows_of(store), store.targets
    for decay in (1.0, 0.01):
        train_head(model, store, alpha=0, weight_decay=decay)

        c = 1 / (decay * len(rows))
        fit = LogisticRegression(C=c, tol=1e-12, max_iter=100_000)
        fit.fit(standardized(rows).numpy(), target.numpy())
        theirs = torch.from_numpy(fit.coef_), torch.from_numpy(fit.intercept_)
        mine = head_for_standardized(model.fc, rows)
        loss = partial(F.cross_entropy, target=target)
        assert float(objective(*mine, rows, loss, decay)) == pytest.approx(
            float(objective(*theirs, rows, loss, decay)), rel=1e-7
        )
        predicted = model.fc(rows.float()).argmax(1).tolist()
        assert predicted == fit.predict(standardized(rows).numpy()).tolist()


@pytest.mark.parametrize("kind", TARGETS)
def test_images_give_the_head_of_their_features(tmp_path: Path, kind: str) -> None:
    """Where nothing is mixed, one pass of the model and its store come to the same."""
    hooked, data = net(), samples(kind)
    cached = copy.deepcopy(hooked)
    store = stored(cached, data, tmp_path)
    for model, given in ((hooked, data), (cached, store)):
        train(model, given, alpha=0, weight_decay=0.01)

    torch.testing.assert_close(hooked[2].weight, cached[2].weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(hooked[2].bias, cached[2].bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize("criterion", [None, nn.CrossEntropyLoss()])
def test_mode_of_the_model_does_not_matter(criterion: Any) -> None:
    """A model in training mode is mixed in evaluation mode as one that is in it."""
    data, plain = samples(), net().eval()
    trained = copy.deepcopy(plain).train()
    for model in (plain, trained):
        train(model, data, criterion=criterion, weight_decay=0.01)

    assert trained.training
    assert torch.equal(plain[2].weight, trained[2].weight)


# The optimum of the mixed risk


def next_but_two(target: Tensor, generator: torch.Generator | None) -> Tensor:
    """A rule of one's own."""
    return (torch.arange(len(target)) + 3) % len(target)


def mixed_risk(mixes: Mixes, target: Tensor, criterion: Any) -> Callable[[Tensor], Tensor]:
    """The mean loss over all mixes, each made by hand of the logits of the samples."""

    def loss(logits: Tensor) -> Tensor:
        losses = []
        for lam, partner in zip(mixes.lam, mixes.partner, strict=True):
            mix = Mix(lam, partner)
            losses.append(mixed_loss(mixed_by_loop(mix, logits), target, mix, criterion))
        return torch.stack(losses).mean()

    return loss


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"pairing": "other-class"},
        {"pairing": "same-class"},
        {"pairing": next_but_two},
        {"exclude": (1,)},
        {"pairing": "other-class", "exclude": (0,)},
        {"label_smoothing": 0.2},
        {"prob": 0.3},
        {"clean_weight": 2.0},
        {"prob": 0.5, "clean_weight": 0.5, "exclude": (2,)},
    ],
    ids=lambda wish: " ".join(wish) or "plain",
)
def test_no_slope_is_left_in_the_mixed_risk(tmp_path: Path, wish: dict[str, Any]) -> None:
    """By autograd, with the mixes of the same seed written out sample by sample."""
    model, data = net(), samples()
    store = stored(model, data, tmp_path)
    train(model, store, alpha=0.7, mixes=4, weight_decay=0.01, seed=5, **wish)

    rows, target = rows_of(store), store.targets
    who = {name: wish[name] for name in ("pairing", "exclude") if name in wish}
    mixes = draw_mixes(4, N, 0.7, target=target, seed=5, **who)
    criterion = nn.CrossEntropyLoss(label_smoothing=wish.get("label_smoothing", 0.0))
    mixed, prob = mixed_risk(mixes, target, criterion), wish.get("prob", 1.0)
    clean = 1 - prob + wish.get("clean_weight", 0.0)

    def loss(logits: Tensor) -> Tensor:
        return prob * mixed(logits) + clean * criterion(logits, target)

    assert slope(model[2], rows, loss, 0.01) < 1e-5
    assert slope(model[2], rows, mixed_risk(draw_mixes(4, N, 0.7), target, criterion), 0.01) > 1e-4


@pytest.mark.parametrize("kind", ["soft", "labels", "values"])
def test_no_slope_is_left_for_other_targets(tmp_path: Path, kind: str) -> None:
    """Probabilities, labels and real values, with their losses."""
    model, data = net(), samples(kind)
    store = stored(model, data, tmp_path)
    train(model, store, alpha=0.7, mixes=4, weight_decay=0.01)

    criterion: Any = {"labels": F.binary_cross_entropy_with_logits, "values": F.mse_loss}.get(
        kind, F.cross_entropy
    )
    mixes = draw_mixes(4, N, 0.7, target=store.targets)
    loss = mixed_risk(mixes, store.targets, criterion)
    assert slope(model[2], rows_of(store), loss, 0.01) < 1e-5


def test_sixteen_mixes_by_default(tmp_path: Path) -> None:
    """As many as make the risk nearly that of all mixes; the line says it."""
    model, data = net(), samples()
    store = stored(model, data, tmp_path)
    again = copy.deepcopy(model)
    _, line = train(model, store, weight_decay=0.1)
    train(again, store, weight_decay=0.1, mixes=16)

    assert f"the optimum of 16 mixes of {N} samples, weight decay 0.1" in line
    assert torch.equal(model[2].weight, again[2].weight)


# Weighted classes, and losses of the user's own


WEIGHT = torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)
LOSSES: list[tuple[str, Any, dict[str, Any]]] = [
    ("classes", F.cross_entropy, {}),
    ("classes", nn.CrossEntropyLoss(), {}),
    (
        "classes",
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2),
        {"class_weight": WEIGHT, "label_smoothing": 0.2},
    ),
    ("soft", nn.CrossEntropyLoss(WEIGHT), {"class_weight": WEIGHT}),
    ("labels", F.binary_cross_entropy_with_logits, {}),
    ("labels", nn.BCEWithLogitsLoss(), {}),
    (
        "labels",
        nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
        {"class_weight": (WEIGHT, torch.ones(3))},
    ),
    (
        "labels",
        nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT),
        {"class_weight": (WEIGHT**2, WEIGHT)},
    ),
    (
        "labels",
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]).double()),
        {"class_weight": (torch.full((3,), 3.0), torch.ones(3))},
    ),
    ("values", nn.MSELoss(), {}),
    ("values", F.mse_loss, {}),
]


@pytest.mark.parametrize(("kind", "criterion", "options"), LOSSES)
def test_loss_of_ones_own_is_solved_as_the_options_it_stands_for(
    tmp_path: Path, kind: str, criterion: Any, options: dict[str, Any]
) -> None:
    """To the same bits."""
    model, data = net(), samples(kind)
    store, again = stored(model, data, tmp_path), copy.deepcopy(model)
    _, line = train(model, store, weight_decay=0.01, criterion=criterion)
    train(again, store, weight_decay=0.01, **options)

    assert line.startswith("solved: ")
    torch.testing.assert_close(model[2].weight, again[2].weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("kind", "criterion", "options"), LOSSES)
def test_the_same_holds_by_steps(kind: str, criterion: Any, options: dict[str, Any]) -> None:
    """Each loss is the same, given as a loss or by options; weights need no targets beside."""
    model, data = net(), samples(kind)
    again = copy.deepcopy(model)
    training, line = train(model, data, epochs=2, criterion=criterion)
    expected, _ = train(again, data, epochs=2, **options)

    assert line == "trained by steps (adamw): epochs= is given"
    assert training.losses == pytest.approx(expected.losses, rel=1e-6)


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_balanced_by_steps_are_the_weights_of_the_training_set(tmp_path: Path, kind: str) -> None:
    """A class by n / (C n_c); for a label n / (2 n_c) where it is there, and where it is not."""
    model, data = net(), samples(kind)
    store, again = stored(model, data, tmp_path), copy.deepcopy(model)
    targets = store.targets.double()
    there = targets.sum(0)
    weights: Any = N / (C * store.targets.bincount()) if kind == "classes" else None
    weights = (N / (2 * there), N / (2 * (N - there))) if weights is None else weights
    training, _ = train(model, store, epochs=2, class_weight="balanced")
    expected, _ = train(again, store, epochs=2, class_weight=weights)

    assert training.losses == pytest.approx(expected.losses, rel=1e-6)


# Which way is taken


class Focal(nn.CrossEntropyLoss):
    """A loss that is none of PyTorch's."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of what is not known yet."""
        losses = F.cross_entropy(logits, target, reduction="none")
        losses = (1 - (-losses).exp()) * losses
        return losses if self.reduction == "none" else losses.mean()


def hinge(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Another one, as a function."""
    return F.multi_margin_loss(logits, target, reduction=reduction)


MORE = "more, or other, than one linear layer that gives the logits is trained"
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"epochs": 1}, "epochs= is given"),
    "batch size": ({"batch_size": 8}, "batch_size= is given"),
    "rate": ({"lr": 0.1}, "lr= is given"),
    "patience": ({"patience": 3, "validation": samples()}, "patience= is given"),
    "kind": ({"kind": CutMix, "layer": "input"}, "CutMix is not affine"),
    "schedule": ({"alpha": lambda done: done}, "alpha= changes from epoch to epoch"),
    "class": ({"criterion": Focal()}, "Focal has no solver"),
    "function": ({"criterion": hinge}, "hinge has no solver"),
    "partial": ({"criterion": partial(F.cross_entropy, label_smoothing=0.1)}, "no solver"),
    "sum": ({"criterion": nn.CrossEntropyLoss(reduction="sum")}, "CrossEntropyLoss has no solver"),
    "ignored": ({"criterion": nn.CrossEntropyLoss(ignore_index=2)}, "has no solver"),
}


@pytest.mark.parametrize(("options", "reason"), REASONS.values(), ids=REASONS)
def test_a_line_says_why_it_goes_by_steps(options: dict[str, Any], reason: str) -> None:
    """One line, and so many losses as there are steps; mixes would be in vain, and are refused."""
    shape = {"layer": "1"} | options
    data = samples()
    model: nn.Module = net()
    if options.get("kind") is CutMix:
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        data = [(torch.randn(1, 4, 4), i % 3) for i in range(N)]
    training, line = train(copy.deepcopy(model), data, **shape)

    assert line.startswith("trained by steps (adamw): ")
    assert reason in line
    steps = math.ceil(N / options.get("batch_size", 32))
    assert len(training.losses) == steps * len(training.epochs)
    assert "weight_decay" not in training.metrics
    with pytest.raises(ValueError, match="mixes=4 is for a head that is solved for, but .*"):
        train_head(model, data, **shape, mixes=4)


@pytest.mark.parametrize("error", ["mse", "huber"])
def test_other_errors_of_values_go_by_steps(error: str) -> None:
    """The squared one is solved for, Huber's is not; nor is a criterion that measures another."""
    _, line = train(net(), samples("values"), task=Values(error=error))
    _, other = train(net(), samples("values"), criterion=nn.HuberLoss())

    expected = "trained by steps (adamw): huber is not the squared error"
    assert line.startswith("solved: ") if error == "mse" else line == expected
    assert other == "trained by steps (adamw): HuberLoss has no solver"


def two_layers() -> nn.Module:
    """A head of two layers."""
    model = net()
    model[2] = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, C)).double()
    return model


def whole_tail() -> nn.Module:
    """What lies before the head is trained too."""
    model = nn.Sequential(*net(), nn.Linear(C, C).double())
    return model.requires_grad_(True)


def without_bias() -> nn.Module:
    """A head that is no affine function of its own."""
    model = net()
    model[2] = nn.Linear(D, C, bias=False).double()
    return model


def frozen_bias() -> nn.Module:
    """A head that keeps its bias."""
    model = net()
    model[2].bias.requires_grad_(False)
    return model


def weight_normed() -> nn.Module:
    """A head whose weight is computed from its parameters."""
    model = net()
    model[2] = nn.utils.parametrizations.weight_norm(model[2])
    return model


def hooked() -> nn.Module:
    """A head with somebody's hook, which changes its logits."""
    model = net()
    model[2].register_forward_hook(lambda module, args, output: 3 * output)
    return model


def followed() -> nn.Module:
    """A head whose logits go on."""
    return nn.Sequential(*net(), nn.Tanh())


@pytest.mark.parametrize(
    "make",
    [two_layers, whole_tail, without_bias, frozen_bias, weight_normed, hooked, followed],
)
def test_heads_that_are_not_simply_linear_go_by_steps(make: Callable[[], nn.Module]) -> None:
    """Whatever it is that stands between the weights and the logits."""
    _, line = train(make(), samples())

    assert line == f"trained by steps (adamw): {MORE}"


def test_hook_that_only_looks_changes_nothing() -> None:
    """The head is linear all the same."""
    model, seen = net(), list[int]()
    model[2].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    _, line = train(model, samples())

    assert line.startswith("solved: ")
    assert seen


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_optimizer_is_for_steps(optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for, there is nothing to explain; mixes beside are refused."""
    training = train_head(net(), samples(), layer="1", optimizer=optimizer)

    assert capsys.readouterr().out == ""
    assert len(training.losses) == 10 * math.ceil(N / 32)
    with pytest.raises(ValueError, match=f"but optimizer='{optimizer}' is given"):
        train_head(net(), samples(), layer="1", optimizer=optimizer, mixes=4)


def test_a_rate_is_asked_for_where_there_are_steps() -> None:
    """A function that gives it is called once by steps, and never for a head that is solved."""
    asked: list[int] = []

    def rate() -> float:
        asked.append(1)
        return 0.05

    model, data = net(), samples()
    again = copy.deepcopy(model)
    train(net(), data, lr=rate)
    assert asked == []
    training, _ = train(model, data, lr=rate, epochs=2)
    expected, _ = train(again, data, lr=0.05, epochs=2)
    assert asked == [1]
    assert training.losses == expected.losses


# Behind something that is not affine


class Counted(nn.Module):
    """Counts the samples that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0

    def forward(self, x: Tensor) -> Tensor:
        """What comes in."""
        self.samples += len(x)
        return x


def deep(layer: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A model with something that is not affine behind its layer; it up to there, and from there
    to its head.
    """
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, D), nn.ReLU(), nn.Linear(D, C))
    freeze(model.double(), except_="4")
    at = 0 if layer == "input" else int(layer) + 1
    return model, model[:at], model[at:4]


def passed_by_hand(
    before: nn.Module, behind: nn.Module, data: Pairs, count: int, seed: int
) -> tuple[Tensor, list[Mix]]:
    """The rows that reach the head, of mixes in batches of 32, and who was mixed with whom."""
    images, target = (torch.stack([*map(torch.as_tensor, one)]) for one in zip(*data, strict=True))
    draws, rows, mixes = seeded_generator(seed, "mix", 0), [], []
    for k in range(count):
        lam, partner = torch.ones(len(data)).double(), torch.arange(len(data))
        own = torch.empty(len(data), D, dtype=torch.float64)
        order = torch.randperm(len(data), generator=seeded_generator(seed, k))
        for index in order.split(32):
            mix = Mix.sample(len(index), 0.7, target=target[index], generator=draws)
            own[index] = behind(mixed_by_loop(mix, before(images[index]))).detach()
            lam[index], partner[index] = mix.lam.double(), index[mix.partner]
        rows.append(own)
        mixes.append(Mix(lam, partner))
    return torch.cat(rows), mixes


@pytest.mark.parametrize(
    ("layer", "way"), [("input", "images"), ("0", "images"), ("0", "features")]
)
@pytest.mark.parametrize("wish", [{}, {"mixes": 3}, {"prob": 0.6, "clean_weight": 0.5}], ids=str)
def test_rows_were_mixed_before_what_is_not_affine(
    tmp_path: Path, layer: str, wish: dict[str, Any], way: str
) -> None:
    """The head is the optimum for rows that are mixed, go through it, and reach the head."""
    (model, before, behind), data = deep(layer), samples()
    options: dict[str, Any] = {"layer": layer, "alpha": 0.7, "weight_decay": 0.01, "seed": 3}
    given: Any = data
    if way == "features":
        given = extract_features(model, layer, data, tmp_path, dtype=torch.float64)
    _, line = train(model, given, **options, **wish)

    count, prob = wish.get("mixes", 2), wish.get("prob", 1.0)
    rows, mixes = passed_by_hand(before, behind, data, count, seed=3)
    target = torch.tensor([one for _, one in data])
    clean = 1 - prob + wish.get("clean_weight", 0.0)
    if clean:
        rows = torch.cat([rows, behind(before(torch.stack([x for x, _ in data]))).detach()])

    def loss(logits: Tensor) -> Tensor:
        own = zip(logits[: count * N].split(N), mixes, strict=True)
        mixed = torch.stack([mixed_loss(part, target, mix) for part, mix in own]).mean()
        return prob * mixed + (clean * F.cross_entropy(logits[-N:], target) if clean else 0)

    assert f"{count} mixes of {N} samples" in line
    assert slope(model[4], rows, loss, 0.01) < 1e-5


@pytest.mark.parametrize(
    ("wish", "passes"),
    [
        ({}, 2),
        ({"mixes": 5}, 5),
        ({"clean_weight": 1.0}, 3),
        ({"prob": 0.5, "mixes": 4}, 5),
        ({"alpha": 0.0}, 1),
        ({"prob": 0.0}, 1),
    ],
    ids=str,
)
def test_each_mix_costs_a_pass_and_no_more(wish: dict[str, Any], passes: int) -> None:
    """Of all samples, and one of the clean ones if they count; those that are measured pass once
    for all decays.
    """
    model, data, validation = deep("input")[0], samples(), samples(n=12)
    counted = Counted()
    model = nn.Sequential(counted, model)
    tried = []
    for decay in (0.01, "auto"):
        counted.samples = 0
        options: dict[str, Any] = {"layer": "input", "validation": validation, **wish}
        train(model, data, weight_decay=decay, **options)
        tried.append(counted.samples)

    assert tried[0] == tried[1]
    # To see that all fits: of validation, too, and of two samples in the mode of steps.
    first_batches = 3 * 32 + 12 + 2
    assert passes * N + 12 + 12 <= tried[0] <= passes * N + 12 + 12 + first_batches


def test_tokens_are_looked_up() -> None:
    """Whole numbers that go into a model stay such."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.ReLU(), nn.Linear(12, 2))
    freeze(model, except_="3")
    data = [(torch.randint(9, (3,)), i % 2) for i in range(20)]
    _, line = train(model, data, layer="0")

    assert "2 mixes of 20 samples" in line


# Stores


def test_all_views_of_a_sample_are_samples(tmp_path: Path) -> None:
    """With three views of each, the head is that of three times as many."""
    model = net()
    data = Shifted(samples(), lambda: float(torch.rand(1)))
    store = stored(model, data, tmp_path, views=3)
    _, line = train(model, store, alpha=0, weight_decay=0.01)
    assert f"{N} unmixed samples in 3 views" in line

    rows = torch.cat([rows_of(store, view) for view in range(3)])
    loss = partial(F.cross_entropy, target=store.targets.repeat(3))
    assert slope(model[2], rows, loss, 0.01) < 1e-5
    assert slope(model[2], rows[:N], partial(F.cross_entropy, target=store.targets), 0.01) > 1e-4


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_folded_features_give_the_head_of_whole_ones(tmp_path: Path, alpha: float) -> None:
    """Behind the layer all is affine, so that mixing what the head takes is mixing the maps."""
    start = load_backbone("digits")
    freeze(start, except_=replace_head(start, C))
    data = [(torch.randn(1, 64, 64) + i % C, i % C) for i in range(24)]
    heads = []
    for fold in (True, False):
        model = copy.deepcopy(start)
        store = extract_features(model, "layer4", data, tmp_path / str(fold), fold=fold)
        _, line = train(model, store, layer=None, alpha=alpha, weight_decay=0.01)
        heads.append(model.fc.weight.detach())
        assert ("16 mixes of 24" if alpha else "24 unmixed samples") in line
        assert store.shape == ((64,) if fold else (64, 4, 4)) or not fold

    torch.testing.assert_close(heads[0], heads[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stores_are_solved_as_they_are_rounded(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Features are rounded once, when they are stored."""
    model, data = net(), samples()
    store = stored(model, data, tmp_path, dtype=dtype)
    train(model, store, alpha=0, weight_decay=0.01)

    rows = rows_of(store)
    loss = partial(F.cross_entropy, target=store.targets)
    assert torch.equal(rows, rows.to(dtype).double())
    assert slope(model[2], rows, loss, 0.01) < 1e-5


def test_features_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    """Where they lie changes nothing of the head."""
    model, data = net(), samples()
    store = stored(model, data, tmp_path)
    heads = []
    for one in (store.load(), FeatureStore(tmp_path)):
        again = copy.deepcopy(model)
        train(again, one, weight_decay=0.01)
        heads.append(again[2].weight.detach())

    torch.testing.assert_close(heads[0], heads[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_of_another_type_than_its_store(tmp_path: Path, dtype: torch.dtype) -> None:
    """The head is the optimum in float64, rounded to what it is made of."""
    exact = net().to(dtype).double()
    model = copy.deepcopy(exact).to(dtype)
    data = [(x.to(dtype), target) for x, target in samples()]
    store = stored(model, data, tmp_path, dtype=torch.float32)
    train(model, store, alpha=0, weight_decay=0.01)

    expected = LogisticRegression(C=1 / (0.01 * N), tol=1e-12, max_iter=100_000)
    expected.fit(standardized(rows_of(store)).numpy(), store.targets.numpy())
    weight, _ = head_for_standardized(model[2], rows_of(store))
    near = 1e-3 if dtype == torch.float32 else 0.03
    assert model[2].weight.dtype == dtype
    assert weight.numpy() == pytest.approx(expected.coef_, abs=near)


@pytest.mark.parametrize("way", ["images", "features"])
def test_dropout_before_the_head_is_left_out(tmp_path: Path, way: str) -> None:
    """There is no noise in what is solved: the head is that of the model without dropout."""
    start, data = net(), samples()
    heads = []
    for share in (0.0, 0.5):
        model = nn.Sequential(*start[:2], nn.Dropout(share), copy.deepcopy(start[2])).train()
        given: Any = data
        if way == "features":
            given = stored(model, data, tmp_path / str(share))
        train(model, given, weight_decay=0.01)
        heads.append(model[3].weight.detach())
        assert model[2].training

    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=1e-7)


def test_stored_maps_of_something_not_affine_pass_it(tmp_path: Path) -> None:
    """Features behind which max pooling follows are mixed before it, with two mixes."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, C))
    )
    freeze(model, except_="3")
    data = [(torch.randn(1, 6, 6), i % C) for i in range(20)]
    store = extract_features(model, "0", data, tmp_path)
    _, line = train(model, store, layer=None, weight_decay=0.1)

    assert "2 mixes of 20 samples" in line


def test_an_activation_that_changed_two_samples_in_nothing_is_still_one(tmp_path: Path) -> None:
    """Whether mixes may be pushed behind it is not told by the first samples, all above 0."""
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(D, C))
    freeze(model, except_="2")
    data = [(torch.rand(D) if i < 4 else torch.randn(D), i % C) for i in range(N)]
    store = extract_features(model, "0", data, tmp_path)
    _, line = train(model, store, layer=None, weight_decay=0.1)

    assert "2 mixes of 60 samples" in line


# The weight decay


def test_validation_chooses_the_decay(tmp_path: Path) -> None:
    """Every decay is measured; the head is that of the one with the lowest validation loss."""
    model, data, validation = net(), samples(), samples(n=30)
    store, held = stored(model, data, tmp_path / "a"), stored(model, validation, tmp_path / "b")
    again = copy.deepcopy(model)
    training, line = train(model, store, validation=held)
    losses = {row["weight_decay"]: row["val_loss"] for row in training.epochs}
    chosen = min(losses, key=losses.__getitem__)
    train(again, store, weight_decay=chosen)

    assert list(losses) == list(DECAYS)
    assert (DECAYS[0], DECAYS[-1], len(DECAYS)) == (10.0, 0.0001, 11)
    assert list(DECAYS) == sorted(DECAYS, reverse=True)
    assert training.metrics["weight_decay"] == chosen
    assert training.metrics == training.epochs[list(DECAYS).index(chosen)]
    torch.testing.assert_close(model[2].weight, again[2].weight, rtol=0, atol=1e-5)
    assert f"weight decay {chosen:g}" in line
    assert "of 11, by validation loss (" in line


def test_a_row_measures_clean_samples_and_the_risk(tmp_path: Path) -> None:
    """Of the head of its decay: as many training samples as validation has, and all of that."""
    model, data, validation = net(), samples(), samples(n=12)
    store, held = stored(model, data, tmp_path / "a"), stored(model, validation, tmp_path / "b")
    measured: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def measure(_: TrainingState) -> None:
        chosen = torch.randperm(N, generator=seeded_generator(0, "clean"))[:12].tolist()
        measured.append((evaluate(model, store.take(chosen)), evaluate(model, held)))

    training, _ = train(model, store, validation=held, alpha=0, on_epoch=measure)

    keys = {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert len(measured) == 11
    for row, (clean, held_out) in zip(training.epochs, measured, strict=True):
        assert row.keys() == keys | {"weight_decay", "mixed_loss"}
        assert row["train_loss"] == pytest.approx(clean["nll"], rel=1e-5)
        assert row["train_accuracy"] == clean["accuracy"]
        assert row["val_loss"] == pytest.approx(held_out["nll"], rel=1e-5)
        assert row["val_accuracy"] == held_out["accuracy"]
    assert training.losses == [row["mixed_loss"] for row in training.epochs]
    assert training.losses == sorted(training.losses, reverse=True)
    assert training.failed == ""


@pytest.mark.parametrize("way", ["images", "features"])
@pytest.mark.parametrize("n", [4, 7, 60])
def test_without_validation_a_fifth_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, n: int
) -> None:
    """To choose the decay by; the head is then solved for with all samples."""
    model, data = net(), samples(n=n)
    seen: list[tuple[int, int]] = []
    whole = solver.samples_to_measure

    def watched(own: Any, held: Any, seed: int) -> Any:
        seen.append((len(own), len(held)))
        return whole(own, held, seed)

    monkeypatch.setattr(solver, "samples_to_measure", watched)
    given: Any = stored(model, data, tmp_path) if way == "features" else data
    again = copy.deepcopy(model)
    training, line = train(model, given, alpha=0)
    decay = training.metrics["weight_decay"]
    monkeypatch.undo()
    train(again, given, alpha=0, weight_decay=decay)

    ((own, held),) = seen
    assert own + held == n
    assert abs(held - n / 5) < 1
    assert "by a held-out fifth's loss" in line
    assert f"{n} unmixed samples" in line
    images = torch.stack([image for image, _ in data])
    probabilities = [one(images).softmax(1) for one in (model, again)]
    torch.testing.assert_close(*probabilities, rtol=0, atol=1e-3)


def test_the_fifth_has_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stored classes each gives its share, also a rare one."""
    data = [(x, int(i % 6 == 0)) for i, (x, _) in enumerate(samples())]
    model, counts = net(), list[list[int]]()
    whole = solver.samples_to_measure

    def watched(own: Any, held: Any, seed: int) -> Any:
        counts.extend(part.targets.bincount().tolist() for part in (own, held))
        return whole(own, held, seed)

    monkeypatch.setattr(solver, "samples_to_measure", watched)
    train(model, stored(model, data, tmp_path))

    assert counts == [[40, 8], [10, 2]]


@pytest.mark.parametrize(
    ("wrong", "alpha", "told"),
    [(True, 1.0, "weight decay 10, the strongest of 11"), (False, 0, "0.0001, the weakest of 11")],
)
def test_an_end_of_the_range_is_said(tmp_path: Path, wrong: bool, alpha: float, told: str) -> None:
    """Where labels mean nothing the strongest is best, where all is clear the weakest."""
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 2)).double()
    inputs = torch.randn(80, 4, dtype=torch.float64)
    targets = torch.randint(2, (80,)) if wrong else (inputs[:, 0] > 0).long()
    inputs[:, 0] += 5 * inputs[:, 0].sign()
    data = list(zip(inputs, targets.tolist(), strict=True))
    _, line = train(model, data[:40], layer="0", validation=data[40:], alpha=alpha)

    assert told in line


def test_the_choice_is_told_beside_its_neighbours() -> None:
    """Their losses, so that one sees how flat it is there."""
    data = samples(n=200)
    _, line = train(net(), data[:40], validation=data[40:], alpha=0)

    inside = line[line.index("(") + 1 : line.index(")")]
    told = dict(one.split(": ") for one in inside.split(", "))
    losses = [float(loss) for loss in told.values()]
    decays = [float(decay) for decay in told]
    at = DECAYS.index(decays[0])
    assert tuple(decays) == DECAYS[at : at + 3]
    assert losses[1] == min(losses)
    assert f"weight decay {decays[1]:g} of 11" in line


def test_one_decay_needs_no_validation() -> None:
    """It is solved for once, exactly, and the line has nothing to explain."""
    training, line = train(net(), samples(), alpha=0, weight_decay=0.02)

    assert line == (
        f"solved: a linear head at the optimum of {N} unmixed samples, weight decay 0.02"
    )
    assert [row["weight_decay"] for row in training.epochs] == [0.02]
    assert training.metrics.keys() == {
        *("weight_decay", "mixed_loss", "train_loss", "train_accuracy")
    }


def test_progress_is_shown_for_passes_and_decays() -> None:
    """The tracker gets each pass with its batches, and the decays with their number."""
    seen: list[Any] = []

    def track(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        seen.append((total, description))
        yield from steps

    train(deep("input")[0], samples(), layer="input", validation=samples(), track=track)

    assert (11, "weight decays") in seen
    assert [one for one in seen if one[1].startswith("pass ")][:2] == [
        (2, "pass 1"),
        (2, "pass 2"),
    ]


# A break, and what is left as it was


@pytest.mark.parametrize("way", ["features", "images", "values", "held out"])
def test_resumed_training_has_the_same_bits(tmp_path: Path, way: str) -> None:
    """From after any decay, whatever was drawn in between."""
    start, data = net(), samples("values" if way == "values" else "classes")
    given: Any = data if way == "images" else stored(start, data, tmp_path)
    held = None if way == "held out" else given
    stands: list[TrainingState] = []
    options: dict[str, Any] = {"validation": held, "mixes": 3}
    whole, _ = train(copy.deepcopy(start), given, **options, on_epoch=stands.append)

    assert len(stands) == 11
    for number in (1, 6, 11):
        stand = stands[number - 1]
        torch.manual_seed(number)
        model, later = copy.deepcopy(start), list[TrainingState]()
        resumed, _ = train(model, given, **options, resume=stand, on_epoch=later.append)

        assert len(later) == 11 - number
        assert resumed.epochs == whole.epochs
        assert resumed.losses == whole.losses
        for name, tensor in whole.head.items():
            assert torch.equal(resumed.head[name], tensor)
            assert torch.equal(model.state_dict()[name], tensor)


def test_where_a_training_stands_does_not_move_with_it() -> None:
    """What `on_epoch` was given after the first decay is still that of the first decay, and can
    be written to a file.
    """
    stands, copies = list[TrainingState](), list[TrainingState]()

    def keep(training: TrainingState) -> None:
        stands.append(training)
        copies.append(copy.deepcopy(training))

    train(net(), samples("values"), validation=samples("values"), on_epoch=keep)

    for stand, then in zip(stands, copies, strict=True):
        assert stand.losses == then.losses
        for own, other in ((stand.head, then.head), (stand.state, then.state)):
            assert all(torch.equal(tensor, other[name]) for name, tensor in own.items())
            assert all(tensor.is_contiguous() for tensor in own.values())
    assert not torch.equal(copies[0].head["2.weight"], copies[-1].head["2.weight"])


@pytest.mark.parametrize("way", ["features", "images"])
def test_the_same_bits_again(tmp_path: Path, way: str) -> None:
    """Whatever was drawn from the global generators before; another seed mixes otherwise."""
    start, data = net(), samples()
    given: Any = stored(start, data, tmp_path) if way == "features" else data
    heads = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        model = copy.deepcopy(start)
        train(model, given, seed=seed, weight_decay=0.01)
        heads.append(model[2].weight)

    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_where_it_begins_does_not_matter(tmp_path: Path) -> None:
    """The optimum is one: a head that is far away comes to the same."""
    model, data = net(), samples()
    store, other = stored(model, data, tmp_path), copy.deepcopy(model)
    nn.init.normal_(other[2].weight, std=30)
    for one in (model, other):
        train(one, store, weight_decay=0.01)

    torch.testing.assert_close(model[2].weight, other[2].weight, rtol=0, atol=1e-5)


def states() -> list[Any]:
    """Those of the generators of Python, NumPy and PyTorch."""
    own = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    return [random.getstate(), *own]


@pytest.mark.parametrize("layer", ["1", "input"])
def test_global_random_states_stay(layer: str) -> None:
    """Nothing is drawn from them, though the data set does."""

    def draw() -> float:
        return random.random() + np.random.rand() + float(torch.rand(1))

    model, data = net(), Shifted(samples(), draw)
    before = states()
    train(model, data, layer=layer)

    assert states() == before


@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_head_is_touched(training: bool) -> None:
    """Not the modes, other parameters, buffers, what requires gradients, nor a hook."""
    model = nn.Sequential(
        *(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.ReLU(), nn.Linear(6, C))
    ).double()
    model.requires_grad_(False)[4].requires_grad_(True)
    model.train(training)
    model[2].train(not training)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]

    trained, _ = train(model, samples(), layer="0")

    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == trained.head.keys() == {"4.weight", "4.bias"}
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[4].weight.grad is None
    assert hooks_on(model) == 0


class Stop(Exception):
    """What a test raises."""


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["on_epoch", "track"])
def test_interrupted_training_leaves_a_usable_model(error: BaseException, where: str) -> None:
    """After an error or Ctrl-C no hook is left, modes are back, and the error is the user's."""

    def track(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        yield next(iter(steps))
        raise error

    def on_epoch(_: TrainingState) -> None:
        raise error

    model = net().train().requires_grad_(True)
    before = [module.training for module in model.modules()]
    with pytest.raises(type(error)) as caught:
        train(model, samples(), **{where: locals()[where]})

    assert caught.value is error
    assert hooks_on(model) == 0
    assert [module.training for module in model.modules()] == before


# What is refused


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("classes", 3, r"logits of shape \(\d+, 3\), but a target is 3"),
        ("classes", -1, "a target is -1"),
        ("labels", torch.tensor([0.0, 2.0, 1.0]).double(), "a target is 2.0, expected all from 0"),
        ("values", torch.tensor([0.0, math.nan, 1.0]).double(), "a target is nan, not finite"),
    ],
)
def test_bad_target_far_back_is_named(kind: str, target: Any, message: str) -> None:
    """What the first batch does not show, those that passed do; the head stays as it was."""
    model, data = net(), samples(kind, 100)
    data[90] = (data[90][0], target)
    before = model[2].weight.clone()

    with pytest.raises(ValueError, match=message):
        train(model, data, weight_decay=0.1)
    assert torch.equal(model[2].weight, before)
    assert hooks_on(model) == 0


def test_features_that_are_not_finite_are_named() -> None:
    """Before anything is solved."""
    data = samples()
    data[50] = (torch.full((4,), math.nan).double(), 0)

    with pytest.raises(ValueError, match="feature 0 is not finite in all 60 samples"):
        train(net(), data, alpha=0, weight_decay=0.1)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("classes", {"mixes": 0}, "mixes=0 must be at least 1"),
        ("classes", {"weight_decay": "best"}, "weight_decay='best' must be 'auto', or at least 0"),
        ("classes", {"class_weight": "fair"}, "class_weight='fair': expected 'balanced'"),
        ("classes", {"class_weight": torch.ones(2)}, r"class_weight= of shape \(2,\): expected 3"),
        ("classes", {"class_weight": -torch.ones(3)}, "expected 3 weights, at least 0"),
        ("classes", {"class_weight": (torch.ones(3), torch.ones(3))}, "one tensor of weights for"),
        ("labels", {"class_weight": torch.ones(3)}, "and a pair for labels"),
        ("values", {"class_weight": "balanced"}, "is for classes and labels, not for values"),
        ("labels", {"label_smoothing": 0.1}, "label_smoothing=0.1 is for classes, not for labels"),
        ("values", {"label_smoothing": 0.1}, "label_smoothing=0.1 is for classes, not for values"),
        (
            "classes",
            {"class_weight": WEIGHT, "criterion": F.cross_entropy},
            "class_weight= is for the loss of classes; give it to criterion=",
        ),
        ("classes", {"prob": 1.5}, "prob=1.5"),
        ("classes", {"clean_weight": -1.0}, "clean_weight=-1.0 must be at least 0"),
        ("classes", {"exclude": [5]}, "there is no class 5"),
        ("classes", {"pairing": "near-target"}, "needs floating targets"),
    ],
)
@pytest.mark.parametrize("steps", [{}, {"epochs": 1}], ids=["solved", "by steps"])
def test_what_cannot_be_is_refused(
    kind: str, options: dict[str, Any], message: str, steps: dict[str, Any]
) -> None:
    """Either way, by name, and the head stays as it was."""
    if "mixes" in options and steps:
        message = "mixes=0 is for a head that is solved for, but epochs= is given"
    model = net()
    before = model[2].weight.clone()

    with pytest.raises(ValueError, match=message):
        train(model, samples(kind), **options, **steps)
    assert torch.equal(model[2].weight, before)


def test_one_sample_cannot_choose() -> None:
    """None would be left to solve for."""
    with pytest.raises(ValueError, match="1 is too few; give a number"):
        train(net(), samples(n=1))


@pytest.mark.filterwarnings("ignore")
def test_losses_of_fastai_and_timm_are_solved_as_their_plain_forms() -> None:
    """They stand for the same risk."""
    import timm.loss
    from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat

    weight = torch.tensor([1.0, 2.0, 0.5])
    pairs: list[tuple[Any, Any, Any]] = [
        (CrossEntropyLossFlat(weight=weight), nn.CrossEntropyLoss(weight), Classes()),
        (BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss(), Labels()),
        (timm.loss.SoftTargetCrossEntropy(), nn.CrossEntropyLoss(), Classes()),
        (
            timm.loss.LabelSmoothingCrossEntropy(0.2),
            nn.CrossEntropyLoss(label_smoothing=0.2),
            Classes(),
        ),
    ]
    for theirs, plain, task in pairs:
        found, expected = convex_settings(theirs, task), convex_settings(plain, task)
        assert found is not None
        assert {k: v if v is None else torch.as_tensor(v).tolist() for k, v in found.items()} == {
            k: v if v is None else torch.as_tensor(v).tolist() for k, v in (expected or {}).items()
        }
