"""Training behind a layer: the numbers of a plain loop, nothing else touched, resumable."""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy
import pytest
import timm
import torch
import torch.nn.functional as F
from nets import Shifted, forward_with, hooks_on, mixed_by_loop, output_at
from torch import Tensor, nn

from manifold_mixup import (
    Mix,
    evaluate,
    freeze,
    load_backbone,
    mixed_loss,
    replace_head,
    train_head,
)
from manifold_mixup._random import seeded_generator
from manifold_mixup.training import TrainingState

# Most train on noise, where there is nothing to learn.
pytestmark = pytest.mark.filterwarnings("ignore::manifold_mixup.training.state.FailedTraining")

Samples = list[tuple[Tensor, int]]


class Net(nn.Module):
    """Stem, BatchNorm, body and head on 4 features, with 3 classes, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Everything in turn."""
        return self.head(torch.tanh(self.body(self.norm(self.stem(x)))))


def samples(n: int = 22) -> Samples:
    """Pairs of 4 features in float64 and one of 3 classes."""
    return [(torch.randn(4, dtype=torch.float64), i % 3) for i in range(n)]


def tiny_model() -> nn.Module:
    """A real residual network, small, with a new head of 3 classes on a frozen backbone."""
    model = timm.create_model("resnet10t", in_chans=1, stem_width=8, channels=(8, 16, 16, 16))
    freeze(model, except_=replace_head(model, 3))
    return model.double()


def pictures(n: int = 10) -> Samples:
    """Pairs of a small grey picture in float64 and one of 3 classes."""
    return [(torch.randn(1, 32, 32, dtype=torch.float64), i % 3) for i in range(n)]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The names of parameters and buffers that differ in any bit."""
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def plain_training(
    model: nn.Module,
    data: Samples,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    names: Iterable[str],
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    lr: float = 0.01,
    weight_decay: float = 0.01,
) -> list[float]:
    """A training written out: the loss of every step, for a loss of images and targets."""
    wanted = [parameter for name, parameter in model.named_parameters() if name in set(names)]
    optimizer = torch.optim.AdamW(wanted, lr, weight_decay=weight_decay)
    per_epoch = math.ceil(len(data) / batch_size)
    losses = []
    model.eval()
    for epoch in range(epochs):
        order = torch.randperm(len(data), generator=seeded_generator(seed, epoch)).tolist()
        for start in range(0, len(data), batch_size):
            chosen = [data[i] for i in order[start : start + batch_size]]
            images = torch.stack([image for image, _ in chosen])
            target = torch.tensor([wanted for _, wanted in chosen])
            progress = len(losses) / (epochs * per_epoch)
            optimizer.param_groups[0]["lr"] = 0.5 * lr * (1 + math.cos(math.pi * progress))
            loss = loss_of(images, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def assert_same_head(model: nn.Module, head: dict[str, Tensor], other: nn.Module) -> None:
    """The trained parameters equal those of the model and of another one to rounding."""
    state, expected = model.state_dict(), other.state_dict()
    assert head
    for name, tensor in head.items():
        assert torch.equal(tensor, state[name])
        assert torch.allclose(tensor, expected[name], rtol=1e-9, atol=1e-12)


# The same numbers as a loop written out


@pytest.mark.parametrize(
    ("make", "data", "layer", "names"),
    [
        (Net, samples, "norm", {"body.weight", "body.bias", "head.weight", "head.bias"}),
        (Net, samples, "body", {"head.weight", "head.bias"}),
        (tiny_model, pictures, "layer4", {"fc.weight", "fc.bias"}),
        (tiny_model, pictures, "layer2.0", {"fc.weight", "fc.bias"}),
    ],
)
def test_training_equals_a_loop_that_mixes_by_hand(
    make: Callable[[], nn.Module], data: Callable[[], Samples], layer: str, names: set[str]
) -> None:
    """Order, mixes, optimizer and learning rate are those of the page: so are losses and head."""
    model, dataset = make(), data()
    by_hand = copy.deepcopy(model)
    generator = seeded_generator(3, "mix", 0)

    def loss_of(images: Tensor, target: Tensor) -> Tensor:
        mix = Mix.sample(len(target), 0.7, generator=generator)
        features = mixed_by_loop(mix, output_at(by_hand, layer, images))
        losses = F.log_softmax(forward_with(by_hand, layer, features, images), 1)
        own = -losses[range(len(target)), target]
        other = -losses[range(len(target)), target[mix.partner]]
        return (mix.lam * own + (1 - mix.lam) * other).mean()

    expected = plain_training(
        by_hand, dataset, loss_of, names, epochs=3, batch_size=4, seed=3, lr=0.05, weight_decay=0.1
    )
    found = train_head(
        model,
        dataset,
        layer=layer,
        alpha=0.7,
        epochs=3,
        batch_size=4,
        seed=3,
        lr=0.05,
        weight_decay=0.1,
    )

    assert found.losses == pytest.approx(expected, rel=1e-9)
    assert found.head.keys() == names
    assert_same_head(model, found.head, by_hand)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_without_mixing_it_is_plain_training(label_smoothing: float) -> None:
    """With alpha 0 losses and head are those of cross entropy on the model as it is."""
    model, data = Net(), samples()
    plain = copy.deepcopy(model)
    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    names = {"head.weight", "head.bias"}

    expected = plain_training(
        plain, data, lambda x, y: criterion(plain(x), y), names, epochs=4, batch_size=5
    )
    found = train_head(
        model,
        data,
        layer="body",
        alpha=0,
        epochs=4,
        batch_size=5,
        label_smoothing=label_smoothing,
    )

    assert found.losses == pytest.approx(expected, rel=1e-12)
    assert_same_head(model, found.head, plain)


def test_one_of_several_layers_is_drawn_each_step() -> None:
    """The layer of a step is the third draw of the mixes' generator, and all that lies behind
    any of the layers trains.
    """
    model, data = Net(), samples()
    by_hand, layers = copy.deepcopy(model), ["norm", "body"]
    generator, drawn = seeded_generator(0, "mix", 0), []

    def loss_of(images: Tensor, target: Tensor) -> Tensor:
        mix = Mix.sample(len(target), generator=generator)
        layer = layers[int(torch.randint(2, (), generator=generator))]
        drawn.append(layer)
        features = mixed_by_loop(mix, output_at(by_hand, layer, images))
        return mixed_loss(forward_with(by_hand, layer, features, images), target, mix)

    names = {"body.weight", "body.bias", "head.weight", "head.bias"}
    expected = plain_training(by_hand, data, loss_of, names, epochs=3, batch_size=4)
    found = train_head(model, data, layer=layers, epochs=3, batch_size=4)

    assert set(drawn) == set(layers)
    assert found.losses == pytest.approx(expected, rel=1e-9)
    assert found.head.keys() == names
    assert_same_head(model, found.head, by_hand)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"alpha": 2.0}, {"lr": 0.02}, {"batch_size": 5}])
def test_every_setting_counts(changes: dict[str, Any]) -> None:
    """The same settings give the same bits; any other one gives other losses."""
    model, data = Net(), samples()
    options = {"layer": "body", "epochs": 2, "batch_size": 4}

    first, again, other = (
        train_head(copy.deepcopy(model), data, **{**options, **extra})
        for extra in ({}, {}, changes)
    )

    assert first.losses == again.losses
    assert all(torch.equal(tensor, again.head[name]) for name, tensor in first.head.items())
    assert first.losses != other.losses


@pytest.mark.parametrize("n", [1, 5, 9])
def test_last_batch_may_have_one_sample(n: int) -> None:
    """One sample alone is not mixed, and counts as a step like any other."""
    model, data = Net(), samples(n)

    training = train_head(model, data, layer="body", epochs=2, batch_size=4)

    assert len(training.losses) == 2 * math.ceil(n / 4)
    assert all(map(math.isfinite, training.losses))


def test_separable_features_are_learned() -> None:
    """A head on well separated features is right on every one of them."""
    centres = 4 * torch.eye(4, dtype=torch.float64)[:3]
    data = [(centres[i % 3] + torch.randn(4, dtype=torch.float64) / 2, i % 3) for i in range(60)]
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 3).double())

    training = train_head(model, data, layer="0", epochs=30, lr=0.1, validation=data)

    assert training.metrics["val_accuracy"] == training.metrics["train_accuracy"] == 1
    assert evaluate(model, data)["accuracy"] == 1


# What each epoch measures


def test_every_epoch_measures_mixed_and_clean_samples() -> None:
    """The row of an epoch has the mean of its steps, and validation measured as by `evaluate`."""
    model, data, validation = Net(), samples(10), samples(6)
    measured: list[dict[str, float]] = []

    training = train_head(
        model,
        data,
        layer="body",
        epochs=3,
        batch_size=4,
        validation=validation,
        on_epoch=lambda _: measured.append(evaluate(model, validation)),
    )

    assert len(training.epochs) == len(measured) == 3
    keys = {"mixed_loss", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    for epoch, (row, expected) in enumerate(zip(training.epochs, measured, strict=True)):
        steps = training.losses[3 * epoch : 3 * epoch + 3]
        assert row.keys() == keys
        assert row["mixed_loss"] == pytest.approx(sum(steps) / 3)
        assert row["val_loss"] == pytest.approx(expected["nll"], rel=1e-6)
        assert row["val_accuracy"] == expected["accuracy"]
    assert training.metrics == training.epochs[-1]


def test_clean_loss_is_that_of_a_fifth_without_validation() -> None:
    """With nothing to compare with, clean numbers are those of a fifth of the training set."""
    model, data = Net(), samples(10)

    training = train_head(model, data, layer="body", epochs=1)

    chosen = torch.randperm(10, generator=seeded_generator(0, "clean"))[:2].tolist()
    expected = evaluate(model, [data[i] for i in chosen])
    assert training.metrics.keys() == {"mixed_loss", "train_loss", "train_accuracy"}
    assert training.metrics["train_loss"] == pytest.approx(expected["nll"], rel=1e-6)
    assert training.metrics["train_accuracy"] == expected["accuracy"]


@pytest.mark.parametrize("n", [3, 6, 40])
def test_clean_samples_are_as_many_as_validation_has(n: int) -> None:
    """They are the same training samples in every epoch, never more than there are."""
    model, data, validation = Net(), samples(10), samples(n)
    expected: list[float] = []

    def measure(_: TrainingState) -> None:
        chosen = torch.randperm(10, generator=seeded_generator(0, "clean"))[:n].tolist()
        expected.append(evaluate(model, [data[i] for i in chosen])["nll"])

    training = train_head(
        model, data, layer="body", epochs=2, validation=validation, on_epoch=measure
    )

    assert [row["train_loss"] for row in training.epochs] == pytest.approx(expected, rel=1e-6)


def test_smoothing_is_of_the_training_loss_alone() -> None:
    """Clean and validation losses stay plain likelihoods, or runs could not be compared."""
    model, data = Net(), samples()

    training = train_head(
        model, data, layer="body", epochs=1, label_smoothing=0.5, validation=data
    )

    assert training.metrics["val_loss"] == pytest.approx(evaluate(model, data)["nll"], rel=1e-6)


def test_training_without_epochs_has_no_metrics() -> None:
    """Before the first epoch ends there is nothing measured."""
    assert TrainingState({}).metrics == {}


def test_progress_is_shown_for_every_epoch() -> None:
    """The tracker gets each epoch's batches, their number, and which epoch of how many it is."""
    seen: list[Any] = []

    def track(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        seen.append((total, description))
        yield from steps

    train_head(Net(), samples(9), layer="body", epochs=2, batch_size=4, track=track)

    assert seen == [(3, "epoch 1/2"), (3, "epoch 2/2")]


# Nothing else is touched


def test_only_what_lies_behind_the_layer_moves() -> None:
    """In a model that is not frozen at all, nothing before the layer and no buffer changes."""
    model = Net()
    before = snapshot(model)

    train_head(model, samples(), layer="norm", epochs=2)

    assert changed(model, before) == {"body.weight", "body.bias", "head.weight", "head.bias"}


def test_only_what_requires_gradients_moves() -> None:
    """Frozen parameters behind the layer stay, to the bit."""
    model = Net()
    freeze(model, except_="head")
    before = snapshot(model)

    training = train_head(model, samples(), layer="stem", epochs=2)

    assert changed(model, before) == set(training.head) == {"head.weight", "head.bias"}


def test_norms_behind_the_layer_train_with_fixed_statistics() -> None:
    """BatchNorm behind the layer learns scale and shift; its running statistics stay."""
    model = Net()
    before = snapshot(model)

    train_head(model, samples(), layer="stem", epochs=2)

    moved = changed(model, before)
    assert {"norm.weight", "norm.bias"} <= moved
    assert not any("running" in name or "tracked" in name for name in moved)


def test_tail_of_a_real_model_trains() -> None:
    """With the last stage of a residual network awake, it trains with the head, and no more."""
    model = tiny_model()
    model.layer4.requires_grad_(True)
    before = snapshot(model)

    training = train_head(model, pictures(), layer="layer3", epochs=1, batch_size=5)

    moved = changed(model, before)
    assert moved == set(training.head)
    assert {name.split(".")[0] for name in moved} == {"layer4", "fc"}


def test_tied_parameters_train_once() -> None:
    """A weight that two layers share is one parameter of the optimizer and of the head."""
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[3].weight = model[1].weight

    training = train_head(model, samples(), layer="0", epochs=1)

    assert training.head.keys() == {"1.weight", "1.bias", "3.bias"}
    assert model[3].weight is model[1].weight


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_gradients_come_back(training: bool) -> None:
    """Every module has its own mode again, what took gradients takes them, and none is left."""
    model = Net().train(training)
    model.body.train(not training)
    model.stem.bias.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    train_head(model, samples(), layer="body", epochs=1)

    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_before_the_layer_are_left_alone() -> None:
    """What a user has accumulated on other parameters is neither lost nor added to."""
    model = Net()
    model.stem.weight.grad = torch.ones_like(model.stem.weight)

    train_head(model, samples(), layer="body", epochs=1)

    assert torch.equal(model.stem.weight.grad, torch.ones_like(model.stem.weight))


class Stop(Exception):
    """What a test raises."""


def stop_with(error: BaseException) -> Callable[[Any], None]:
    """A callback that raises."""

    def stop(_: Any) -> None:
        raise error

    return stop


def stop_in_step(error: BaseException) -> Callable[..., Iterable[Any]]:
    """A tracker that raises after the second batch."""

    def track(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        yield from itertools.islice(steps, 2)
        raise error

    return track


@pytest.mark.parametrize("error", [Stop("enough"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["on_epoch", "track"])
def test_interrupted_training_leaves_a_usable_model(error: BaseException, where: str) -> None:
    """After an error or Ctrl-C no hook is left, modes are back, and the error is the user's."""
    model = Net().train()
    stop = stop_with(error) if where == "on_epoch" else stop_in_step(error)

    with pytest.raises(type(error)) as caught:
        train_head(model, samples(), layer="norm", epochs=3, batch_size=4, **{where: stop})

    assert caught.value is error
    assert hooks_on(model) == 0
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    x = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("layer", ["bdy", "head", ["norm", "nowhere"]])
def test_refused_layer_leaves_no_hook(layer: Any) -> None:
    """A layer that is unknown, or with nothing behind it, leaves the model as it was."""
    model = Net().train()
    before = snapshot(model)

    with pytest.raises(ValueError, match="no layer|nothing behind"):
        train_head(model, samples(), layer=layer)

    assert hooks_on(model) == 0
    assert all(module.training for module in model.modules())
    assert changed(model, before) == set()


def test_no_hook_is_left() -> None:
    """After training the model is a plain one again, with the user's own hooks."""
    model, seen = Net(), []
    model.body.register_forward_hook(lambda *_: seen.append(1))

    train_head(model, samples(), layer="body", epochs=1)

    assert hooks_on(model) == 1
    seen.clear()
    model(torch.randn(2, 4, dtype=torch.float64))
    assert seen == [1]


def test_seed_decides_dropout_too() -> None:
    """The numbers do not depend on what was drawn from the global generator before."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    data = samples()

    def trained(state: int, seed: int) -> list[float]:
        torch.manual_seed(state)
        return train_head(copy.deepcopy(model), data, layer="0", epochs=2, seed=seed).losses

    assert trained(5, 0) == trained(6, 0)
    assert trained(5, 0) != trained(5, 1)


def test_training_leaves_the_global_generator_unseeded() -> None:
    """What a user draws afterwards is not the same after every training."""
    drawn = []
    for state in (5, 6):
        torch.manual_seed(state)
        train_head(Net(), samples(), layer="body", epochs=1)
        drawn.append(torch.rand(1).item())

    assert drawn[0] != drawn[1]


def test_augmentation_leaves_the_global_generators_where_they_were() -> None:
    """Pictures that draw from those of Python, NumPy and PyTorch move none of them."""

    def states() -> list[object]:
        return [random.getstate(), numpy.random.get_state()[1].tolist(), torch.rand(3).tolist()]

    def draw() -> float:
        return random.random() + numpy.random.rand() + torch.rand(1).item()

    model, data, begin = Net(), Shifted(samples(), draw), torch.get_rng_state()
    before = states()
    torch.set_rng_state(begin)
    train_head(model, data, layer="body", epochs=2)
    assert states() == before


# Other optimizers, and an early end


def test_sgd_is_that_of_torch_with_momentum() -> None:
    """Each step is written out by hand: gradient plus decay, momentum 0.9, the falling rate."""
    model, data = Net(), samples(8)
    weight, velocity = model.head.weight.detach().clone(), 0.0
    bias_free = {"lr": 0.1, "weight_decay": 0.02, "batch_size": 8, "alpha": 0.0}
    model.head.bias.requires_grad_(False)
    training = train_head(model, data, layer="body", epochs=3, optimizer="sgd", **bias_free)
    features = torch.tanh(output_at(model.eval(), "body", torch.stack([x for x, _ in data])))
    target = torch.tensor([y for _, y in data])
    for epoch in range(3):
        weight.requires_grad_()
        loss = F.cross_entropy(F.linear(features.detach(), weight, model.head.bias), target)
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            velocity = 0.9 * velocity + gradient + 0.02 * weight
            weight = weight - 0.05 * (1 + math.cos(math.pi * epoch / 3)) * velocity

    assert torch.allclose(training.head["head.weight"], weight, rtol=1e-9)


@pytest.mark.parametrize("patience", [1, 2])
def test_training_ends_when_validation_gets_no_better(patience: int) -> None:
    """It stops `patience` epochs after the best one, whose head is kept and measured."""
    model, data, validation = Net(), samples(30), samples(12)
    stands: list[TrainingState] = []
    training = train_head(
        model,
        data,
        layer="norm",
        epochs=40,
        lr=0.1,
        validation=validation,
        patience=patience,
        on_epoch=stands.append,
    )
    losses = [row["val_loss"] for row in training.epochs]
    best = losses.index(min(losses))

    assert len(losses) == best + 1 + patience < 40
    assert all(
        len(losses[:e]) - 1 - losses.index(min(losses[:e])) < patience
        for e in range(1, len(losses))
    )
    assert_same_head(model, training.head, model)
    assert all(torch.equal(stands[best].head[name], t) for name, t in training.head.items())
    assert training.metrics == training.epochs[best]
    assert evaluate(model, validation)["nll"] == pytest.approx(losses[best], rel=1e-12)


def test_best_head_survives_a_break() -> None:
    """A training that goes on after its best epoch keeps that epoch's head."""
    start, data, validation = Net(), samples(30), samples(12)
    options = {"layer": "norm", "epochs": 40, "lr": 0.1, "validation": validation, "patience": 3}
    whole, stands = undisturbed(copy.deepcopy(start), data, **options)
    resumed = train_head(copy.deepcopy(start), data, **options, resume=stands[-2])

    assert resumed.epochs == whole.epochs
    assert all(torch.equal(tensor, whole.head[name]) for name, tensor in resumed.head.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer='adam': choose one of auto, adamw, sgd"),
        ({"patience": 0, "validation": samples(3)}, "patience=0 must be at least 1"),
        ({"patience": 3}, "patience=3 must be at least 1, and needs validation="),
        ({"layer": None}, "say where to mix by layer="),
        ({"batch_size": 1}, "batch_size=1 leaves a sample none to be mixed with"),
        ({"batch_size": 1, "alpha": lambda done: done}, "batch_size=1 leaves a sample none"),
    ],
)
def test_impossible_training_is_refused(options: dict[str, Any], message: str) -> None:
    """The message tells what to give instead."""
    with pytest.raises(ValueError, match=message):
        train_head(Net(), samples(), **{"layer": "body", **options})


def test_single_samples_train_unmixed() -> None:
    """A batch of one is no mistake where nothing is to be mixed."""
    training = train_head(Net(), samples(), layer="body", epochs=1, batch_size=1, alpha=0)

    assert len(training.losses) == len(samples())


# Going on after a break


def undisturbed(
    model: nn.Module, data: Samples, **options: Any
) -> tuple[TrainingState, list[TrainingState]]:
    """A training and where it stood after every epoch."""
    stands: list[TrainingState] = []
    return train_head(model, data, on_epoch=stands.append, **options), stands


@pytest.mark.parametrize("layer", ["0", ["0", "2"]])
def test_resumed_training_has_the_same_bits(layer: Any) -> None:
    """From after any epoch, losses, measures, head, optimizer and generator are those of a
    training without a break, also with dropout, and whatever was drawn in between.
    """
    start = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double()
    data, validation = samples(), samples(5)
    options = {"layer": layer, "epochs": 4, "batch_size": 4, "validation": validation}
    whole, stands = undisturbed(copy.deepcopy(start), data, **options)

    for epoch, stand in enumerate(stands, 1):
        torch.manual_seed(100 + epoch)
        model, later = copy.deepcopy(start), []
        resumed = train_head(model, data, **options, resume=stand, on_epoch=later.append)

        assert len(stand.epochs) == epoch
        assert len(later) == 4 - epoch
        assert resumed.losses == whole.losses
        assert resumed.epochs == whole.epochs
        assert resumed.state.keys() == whole.state.keys()
        assert all(torch.equal(tensor, whole.head[name]) for name, tensor in resumed.head.items())
        assert all(torch.equal(tensor, whole.state[key]) for key, tensor in resumed.state.items())
        assert changed(model, whole.head) == set()


def test_where_a_training_stands_does_not_move_with_it() -> None:
    """What `on_epoch` was given after the first epoch is still that of the first epoch."""
    copies: list[TrainingState] = []
    stands: list[TrainingState] = []

    def keep(training: TrainingState) -> None:
        stands.append(training)
        copies.append(copy.deepcopy(training))

    train_head(Net(), samples(), layer="body", epochs=3, on_epoch=keep)

    for stand, then in zip(stands, copies, strict=True):
        assert stand.losses == then.losses
        assert all(torch.equal(tensor, then.head[name]) for name, tensor in stand.head.items())
        assert all(torch.equal(tensor, then.state[key]) for key, tensor in stand.state.items())
    assert len(copies[0].epochs) == 1
    assert not torch.equal(copies[0].head["head.weight"], copies[2].head["head.weight"])


# What is refused


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", -3, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("lr", 0.0, "above 0"),
        ("lr", -0.1, "above 0"),
        ("lr", math.nan, "above 0"),
        ("lr", math.inf, "above 0"),
        ("weight_decay", -1.0, "'auto', or at least 0"),
        ("weight_decay", math.nan, "'auto', or at least 0"),
        ("label_smoothing", 1.0, r"in \[0, 1\)"),
        ("label_smoothing", -0.1, r"in \[0, 1\)"),
        ("alpha", -0.5, "a finite number, at least 0"),
        ("alpha", math.inf, "a finite number, at least 0"),
    ],
)
def test_argument_out_of_range_is_named_with_its_value(
    name: str, value: float, expected: str
) -> None:
    """The message says which argument, what came and what is expected; the model is untouched."""
    model = Net()
    before = snapshot(model)

    with pytest.raises(ValueError, match=f"{name}={value} must be {expected}"):
        train_head(model, samples(), layer="body", **{name: value})
    assert changed(model, before) == set()


def test_unknown_pairing_is_refused() -> None:
    """A rule that does not exist is an error that lists those that do."""
    with pytest.raises(ValueError, match="pairing='twins' is unknown; choose one of any"):
        train_head(Net(), samples(), layer="body", pairing="twins")


def test_nothing_to_train_is_refused() -> None:
    """With all behind the layer frozen, the message says so and what to do."""
    model = Net()
    freeze(model)

    with pytest.raises(ValueError, match=r"behind layer 'norm' requires gradients.*except_=head"):
        train_head(model, samples(), layer="norm")
    assert hooks_on(model) == 0


def test_nothing_to_train_on_is_refused() -> None:
    """An empty data set is an error that says so."""
    with pytest.raises(ValueError, match="the data set is empty: nothing to train on"):
        train_head(Net(), [], layer="body")


@pytest.mark.parametrize("batch_size", [4, 100])
def test_too_few_outputs_are_refused(batch_size: int) -> None:
    """A class beyond the model's outputs is named, also where it comes late in the data."""
    data = sorted(((x, target + 1) for x, target in samples()), key=lambda pair: pair[1])

    with pytest.raises(ValueError, match=r"logits of shape \(\d+, 3\), but a target is 3"):
        train_head(Net(), data, layer="body", batch_size=batch_size, epochs=1)


def test_negative_target_is_refused() -> None:
    """A class index starts at 0."""
    with pytest.raises(ValueError, match="a target is -1"):
        train_head(Net(), [(x, -1) for x, _ in samples()], layer="body")


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_the_training(spoil: float) -> None:
    """The epoch is named, a lower learning rate advised, and no epoch is reported as good."""
    data = samples()
    data[7] = torch.full((4,), spoil, dtype=torch.float64), 0
    model, seen = Net(), []

    with pytest.raises(RuntimeError, match="not finite any more in epoch 1; lower lr .0.01"):
        train_head(model, data, layer="body", epochs=2, on_epoch=seen.append)
    assert seen == []
    assert hooks_on(model) == 0


def test_diverging_training_is_stopped() -> None:
    """A learning rate far too high ends in an error, not in a head of nothing."""
    with pytest.raises(RuntimeError, match=r"not finite any more in epoch \d+"):
        train_head(
            Net().float(),
            [(x.float(), t) for x, t in samples()],
            layer="norm",
            epochs=50,
            lr=1e30,
            batch_size=2,
        )


def test_what_lies_before_the_layer_stays_in_eval_mode() -> None:
    """Dropout before the layer is at rest, so that stored features would be the same."""
    model = nn.Sequential(nn.Dropout(), nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 3)).double()
    modes: list[tuple[bool, bool]] = []
    model[3].register_forward_pre_hook(
        lambda module, args: (
            modes.append((model[0].training, model[2].training))
            if len(args[0]) == 4 and module.training
            else None
        )
    )

    train_head(model, samples(8), layer="1", epochs=1, batch_size=4, say=lambda line: None)

    assert set(modes) == {(False, True)}


def test_average_pooling_may_stand_before_or_behind_the_mix() -> None:
    """With a linear head, mixing the map of the last stage is mixing what its average gives."""
    losses = []
    for layer in ("layer4", "global_pool"):
        torch.manual_seed(0)
        model = load_backbone("digits").double()
        head = replace_head(model, 3)
        freeze(model, except_=head)
        data = [(torch.randn(1, 64, 64, dtype=torch.float64), i % 3) for i in range(12)]
        losses.append(train_head(model, data, layer=layer, epochs=2, batch_size=4).losses)

    torch.testing.assert_close(
        torch.tensor(losses[0], dtype=torch.float64),
        torch.tensor(losses[1], dtype=torch.float64),
        rtol=1e-10,
        atol=0,
    )
