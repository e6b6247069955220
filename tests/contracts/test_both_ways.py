"""Training on stored features: the numbers of the hooked loop, for the price of one pass."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
from nets import Shifted, output_at
from torch import Tensor, nn
from torch.nn import functional as F

from manifold_mixup import (
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
from manifold_mixup.features import find_tail
from manifold_mixup.inspection import trace
from manifold_mixup.mixing.pairing import _warn_unmixed
from manifold_mixup.models import cut
from manifold_mixup.runs.config import TrainConfig
from manifold_mixup.runs.prepare import choose_way

# Most train on noise, where there is nothing to learn.
pytestmark = pytest.mark.filterwarnings("ignore::manifold_mixup.training.state.FailedTraining")

Samples = list[tuple[Tensor, int]]


def pictures(n: int = 30, channels: int = 3, side: int = 64) -> Samples:
    """Pairs of a random picture and one of 5 classes, each with a colour of its own."""
    shift = torch.randn(5, channels, 1, 1)
    return [(torch.randn(channels, side, side) + shift[i % 5], i % 5) for i in range(n)]


def resnet(trained: list[str], head: str = "linear") -> nn.Module:
    """A ResNet-18 with dropout before a new head of 5 classes, of which some layers train."""
    model = timm.create_model("resnet18", drop_rate=0.2)
    freeze(model, except_=[replace_head(model, 5, head=head), *trained])
    return model


OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "alpha": 1.0, "seed": 3}


@pytest.mark.parametrize(
    ("layer", "stored", "trained", "head"),
    [
        ("layer4", "global_pool", [], "linear"),
        ("layer4", "global_pool", [], "mlp"),
        ("layer4", "global_pool", [], "cosine"),
        ("layer3", "layer3", [], "linear"),
        ("layer3", "layer3", ["layer4"], "linear"),  # at the smaller rate of a pretrained block
    ],
)
def test_cached_training_is_the_hooked_one(
    tmp_path: Path, layer: str, stored: str, trained: list[str], head: str
) -> None:
    """From one seed: the loss of every step to 1e-5, the head to 1e-4, all that is measured."""
    hooked, data, validation = resnet(trained, head), pictures(), pictures(8)
    cached = copy.deepcopy(hooked)
    store = extract_features(cached, layer, data, tmp_path / "train")
    held = extract_features(cached, layer, validation, tmp_path / "val")
    options = {**OPTIONS, "lr": 1e-3 if trained else 1e-2}
    expected = train_head(hooked, data, layer=layer, validation=validation, **options)
    found = train_head(cached, store, validation=held, **options)

    assert store.stored_layer == stored
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert len(found.losses) == 12
    assert found.head.keys() == expected.head.keys()
    for name, tensor in expected.head.items():
        torch.testing.assert_close(found.head[name], tensor, rtol=0, atol=1e-4)
        assert torch.equal(cached.state_dict()[name], found.head[name])
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-4)


class Dropping(nn.Module):
    """A model whose own forward drops out by a function, before or behind its second layer."""

    def __init__(self, before: float = 0.0, behind: float = 0.0) -> None:
        super().__init__()
        self.before, self.behind = before, behind
        self.stem, self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = F.dropout(torch.tanh(self.stem(x)), self.before, training=self.training)
        h = F.dropout(torch.tanh(self.body(h)), self.behind, training=self.training)
        return self.head(h)


def points(n: int = 60) -> Samples:
    """Pairs of a random point and one of 3 classes."""
    return [(torch.randn(4), i % 3) for i in range(n)]


@pytest.mark.parametrize(
    ("made", "by"), [("own", "steps"), ("own", "optimum"), ("ghostnet", "steps")]
)
def test_dropout_by_a_function_behind_the_layer(tmp_path: Path, made: str, by: str) -> None:
    """By steps it is drawn from stored features as in the hooked loop, at the rate the model has;
    where the head is solved for both ways leave it out.
    """
    if made == "own":
        model, layer, data = Dropping(behind=0.5), "body", points()
        freeze(model, except_="head")
    else:
        model, layer, data = timm.create_model("ghostnet_050"), "conv_head", pictures(20, side=32)
        freeze(model, except_=replace_head(model, 5))
        assert model.drop_rate > 0
        assert not any(isinstance(m, nn.Dropout) for m in model.modules())
    rate = "behind" if made == "own" else "drop_rate"
    options = OPTIONS if by == "steps" else {"alpha": 1.0, "seed": 3, "weight_decay": 0.1}
    heads: dict[str, Any] = {}
    for way, drops in (("hooked", True), ("stored", True), ("without", False)):
        one = copy.deepcopy(model)
        if not drops:
            setattr(one, rate, 0.0)
        store = extract_features(one, layer, data, tmp_path / way)
        given: Any = {"samples": data, "layer": layer} if way == "hooked" else {"samples": store}
        heads[way] = train_head(one, **given, **options)

    found, expected, without = heads["stored"], heads["hooked"], heads["without"]
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    for name, tensor in expected.head.items():
        torch.testing.assert_close(found.head[name], tensor, rtol=0, atol=1e-4)
    is_without = found.losses == pytest.approx(without.losses, abs=1e-5)
    assert is_without == (by == "optimum")


def test_dropout_by_a_function_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """The tail on stored features gives the loss of the whole model, from the same draws."""
    model, data = Dropping(behind=0.5), points()
    freeze(model, except_="head")
    store = extract_features(model, "body", data, tmp_path)
    inputs, target = torch.stack([x for x, _ in data]), store.targets
    tail = find_tail(model, store)
    model.train()
    tail.train()
    mix = Mix.sample(60, alpha=1.0, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    with torch.no_grad():
        h = torch.tanh(mix(model.body(torch.tanh(model.stem(inputs)))))
    kept = F.dropout(torch.ones(60, 8), 0.5)
    expected = mixed_loss(model.head(h * kept), target, mix)
    torch.manual_seed(5)
    found = mixed_loss(tail(mix(every(store))), target, mix)

    torch.testing.assert_close(found, expected)


def test_dropout_by_a_function_before_the_layer_is_said(tmp_path: Path) -> None:
    """Stored features are without it, the hooked loop is not: one is told, and the command runs
    the whole model.
    """
    said: list[str] = []
    for rate in (0.0, 0.5):
        model = Dropping(before=rate)
        freeze(model, except_="head")
        extract_features(model, "body", points(), tmp_path / f"{rate}", say=said.append)
        told = [line for line in said if "by dropout as a function perhaps" in line]
        assert len(told) == (rate > 0)
        extract_features(model, "stem", points(), tmp_path / f"{rate} stem", say=said.append)
        assert [line for line in said if "by dropout as a function perhaps" in line] == told
        example = torch.randn(2, 4)
        found = trace(model, (example,), {}, keep=["stem", "body"])
        way, reason = choose_way(TrainConfig(), found, "body", example)
        assert (way, "changes what comes before 'body'" in reason) == (
            ("hooked", True) if rate else ("cached", False)
        )
        assert choose_way(TrainConfig(), found, "stem", example) == ("cached", "")


def every(store: FeatureStore) -> Tensor:
    """The features of all samples."""
    return store.features.gather(torch.arange(len(store)))


def shift() -> float:
    """What augments a picture: a draw from each of the global generators."""
    return float(torch.rand(1)) + random.random() + numpy.random.rand()


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_pictures_are_those_of_stored_views(tmp_path: Path, workers: int) -> None:
    """Epoch e trains on view e of every picture, whoever loads it; dropout draws on its own."""
    hooked, data = resnet([]), Shifted(pictures(), shift)
    cached = copy.deepcopy(hooked)
    store = extract_features(cached, "layer4", data, tmp_path, views=3)
    expected = train_head(hooked, data, layer="layer4", workers=workers, **OPTIONS)
    found = train_head(cached, store, **OPTIONS)

    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    for one, other in zip(found.epochs, expected.epochs, strict=True):  # of clean samples too
        assert one == pytest.approx(other, abs=1e-5)
    for name, tensor in expected.head.items():
        torch.testing.assert_close(found.head[name], tensor, rtol=0, atol=1e-4)
    index = torch.arange(len(store))
    assert not torch.allclose(*(store.features.gather(index, view=view) for view in (0, 1)))


@pytest.mark.parametrize(
    ("head", "wish"),
    [
        ("linear", {"pairing": "other-class"}),
        ("linear", {"pairing": "same-class", "exclude": [1, 3]}),
        ("linear", {"pairing": lambda target, generator: target.argsort(stable=True).roll(1)}),
        ("mlp", {"pairing": "other-class", "exclude": [0]}),
        ("mlp", {"exclude": [1, 3]}),
    ],
)
def test_who_mixes_with_whom_is_the_same_both_ways(
    tmp_path: Path, head: str, wish: dict[str, Any]
) -> None:
    """By class, without some classes, by a function: cached losses and head are the hooked."""
    hooked, data = resnet([], head), pictures()
    cached = copy.deepcopy(hooked)
    store = extract_features(cached, "layer4", data, tmp_path)
    options = {**OPTIONS, "lr": 1e-3, **wish}
    expected = train_head(hooked, data, layer="layer4", **options)
    found = train_head(cached, store, **options)

    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    for name, tensor in expected.head.items():
        torch.testing.assert_close(found.head[name], tensor, rtol=0, atol=1e-4)
    assert found.losses != train_head(copy.deepcopy(cached), store, **OPTIONS).losses


def test_all_classes_excluded_is_no_mixing(tmp_path: Path) -> None:
    """The losses are those of an alpha of 0, both ways, and a warning says it once."""
    start, data = resnet([]), pictures()
    store = extract_features(start, "layer4", data, tmp_path)
    plain = train_head(copy.deepcopy(start), store, **{**OPTIONS, "alpha": 0.0}).losses
    _warn_unmixed.cache_clear()
    with pytest.warns(UserWarning, match="nobody in a whole batch has a partner") as caught:
        found = train_head(copy.deepcopy(start), store, exclude=range(5), **OPTIONS).losses
    hooked = train_head(start, data, layer="layer4", exclude=range(5), **OPTIONS).losses

    assert len(caught) == 1
    assert found == pytest.approx(plain, abs=1e-5)
    assert hooked == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"exclude": [5]}, "there is no class 5; the classes are 0 to 4"),
        ({"exclude": ["rose"]}, "must hold class indices"),
        ({"pairing": "near-target"}, "needs floating targets"),
        ({"pairing": "twins"}, "pairing='twins' is unknown"),
    ],
)
def test_wish_that_cannot_be_is_refused_before_any_step(
    tmp_path: Path, wish: dict[str, Any], message: str
) -> None:
    """Both ways, with the head as it was."""
    model, data = resnet([]), pictures(8)
    before = model.fc.weight.clone()
    store = extract_features(model, "layer4", data, tmp_path)
    with pytest.raises((ValueError, TypeError), match=message):
        train_head(model, store, **OPTIONS, **wish)
    with pytest.raises((ValueError, TypeError), match=message):
        train_head(model, data, layer="layer4", **OPTIONS, **wish)

    assert torch.equal(model.fc.weight, before)


def test_cached_training_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    """From after any epoch it ends as without a break."""
    start = resnet([])
    store = extract_features(start, "layer4", pictures(), tmp_path)
    stands: list[Any] = []
    model = copy.deepcopy(start)
    whole = train_head(model, store, **OPTIONS, on_epoch=stands.append)
    for stand in stands[:-1]:
        resumed = train_head(copy.deepcopy(start), store, **OPTIONS, resume=stand)
        assert resumed.losses == whole.losses
        assert all(torch.equal(tensor, whole.head[name]) for name, tensor in resumed.head.items())


def weight_normed() -> nn.Module:
    """A linear head whose weight is computed from its parameters."""
    return nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))


def hooked() -> nn.Module:
    """A linear head with somebody's hook on it."""
    head = nn.Linear(6, 3)
    head.register_forward_hook(lambda module, args, output: 3 * output)
    return head


def half_frozen() -> nn.Module:
    """A linear head that keeps its bias."""
    head = nn.Linear(6, 3)
    head.bias.requires_grad_(False)
    return head


@pytest.mark.parametrize("make_head", [weight_normed, hooked, half_frozen])
def test_heads_that_are_not_simply_linear(
    tmp_path: Path, make_head: Callable[[], nn.Module]
) -> None:
    """What a head adds to a linear layer counts in cached training as in the hooked loop."""
    start = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), make_head()).double()
    start[0].requires_grad_(False)
    cached, data = copy.deepcopy(start), [(torch.randn(4).double(), i % 3) for i in range(30)]
    store = extract_features(cached, "1", data, tmp_path, dtype=torch.float64)
    expected = train_head(start, data, layer="1", **OPTIONS)
    found = train_head(cached, store, **OPTIONS)

    assert found.losses == pytest.approx(expected.losses, abs=1e-9)
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], tensor)


@pytest.mark.parametrize("fold", [True, False])
def test_folding_changes_the_size_and_not_the_result(tmp_path: Path, fold: bool) -> None:
    """Folded features are 2 x 2 times smaller here; the losses are the same to rounding."""
    start, data = resnet([]), pictures()
    store = extract_features(start, "layer4", data, tmp_path, fold=fold)
    found = train_head(copy.deepcopy(start), store, **OPTIONS)
    hooked = train_head(copy.deepcopy(start), data, layer="layer4", **OPTIONS)

    assert store.shape == ((512,) if fold else (512, 2, 2))
    assert found.losses == pytest.approx(hooked.losses, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stores_are_close(tmp_path: Path, dtype: torch.dtype) -> None:
    """Features are rounded once when they are stored, and all else is float32."""
    start, data = resnet([]), pictures()
    exact = extract_features(start, "layer4", data, tmp_path / "float32")
    store = extract_features(start, "layer4", data, tmp_path / "half", dtype=dtype)
    index = torch.arange(len(data))
    torch.testing.assert_close(
        store.features.gather(index), exact.features.gather(index).to(dtype).float()
    )
    losses = [train_head(copy.deepcopy(start), s, **OPTIONS).losses for s in (store, exact)]

    assert store.features.gather(index).dtype == torch.float32
    assert losses[0] == pytest.approx(losses[1], abs=1e-3 if dtype == torch.float16 else 1e-2)
    assert losses[0] != losses[1]


def test_evaluation_of_features_is_that_of_images(tmp_path: Path) -> None:
    """Accuracy, likelihood and calibration are those of the whole model."""
    model, data = resnet([]), pictures()
    store = extract_features(model, "layer4", data, tmp_path)
    assert evaluate(model, store) == pytest.approx(evaluate(model, data), abs=1e-5)


def test_part_of_a_store_trains_alone(tmp_path: Path) -> None:
    """Samples that are not taken have no part in the training."""
    model, data = resnet([]), pictures()
    store = extract_features(model, "layer4", data, tmp_path)
    chosen = list(range(3, 17))
    expected = train_head(
        copy.deepcopy(model), [data[i] for i in chosen], layer="layer4", **OPTIONS
    )
    found = train_head(copy.deepcopy(model), store.take(chosen), **OPTIONS)
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)


def test_features_of_another_model_are_refused(tmp_path: Path) -> None:
    """Weights before the layer that are not those the features came from are an error."""
    model = resnet([])
    store = extract_features(model, "layer4", pictures(), tmp_path)
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="weights"):
        train_head(model, store, **OPTIONS)
    with pytest.raises(ValueError, match="weights"):
        evaluate(model, store)


def test_validation_by_features_of_something_else_is_refused(tmp_path: Path) -> None:
    """Not those of another layer of the same shape, nor those of another model."""

    def small() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
        )

    data = [(torch.randn(4), i % 3) for i in range(9)]
    model = small()
    store = extract_features(model, "3", data, tmp_path / "store")
    for wrong, layer, message in ((model, "1", "holds features of '1'"), (small(), "3", "model")):
        held = extract_features(wrong, layer, data, tmp_path / message, fold=False)
        with pytest.raises(ValueError, match=message):
            train_head(model, store, validation=held)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_class_indices_of_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    """They are what they are as int64, both ways."""
    data = [(torch.randn(4), torch.tensor(i % 2)) for i in range(9)]
    typed = [(x, target.to(dtype)) for x, target in data]
    start = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    losses = []
    for samples in (data, typed):
        store = extract_features(start, "1", samples, tmp_path / str(samples is typed))
        for given in (samples, store):
            training = train_head(
                copy.deepcopy(start), given, layer="1", validation=given, patience=2, **OPTIONS
            )
            losses.append(training.losses + [row["val_loss"] for row in training.epochs])

    assert losses[2] == losses[0]
    assert losses[3] == losses[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_model_of_another_type_than_its_store(tmp_path: Path, dtype: torch.dtype) -> None:
    """Stored features come to its tail in the type that it computes in."""
    start = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
    data = [(torch.randn(4).to(dtype), i % 3) for i in range(30)]
    store = extract_features(start, "1", data, tmp_path)
    expected = train_head(copy.deepcopy(start), data, layer="1", lr=1e-3, **OPTIONS)
    found = train_head(copy.deepcopy(start), store, lr=1e-3, **OPTIONS)

    assert store.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float64 else 0.03
    assert found.losses == pytest.approx(expected.losses, abs=tolerance)
    assert evaluate(start, store)["n"] == 30


def test_training_in_a_mapped_store_is_that_in_memory(tmp_path: Path) -> None:
    """Where the features lie changes no bit of what comes out."""
    model = resnet([])
    store = extract_features(model, "layer4", pictures(), tmp_path)
    losses = [
        train_head(copy.deepcopy(model), one, **OPTIONS).losses
        for one in (store.load(), store, FeatureStore(tmp_path))
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("layer", "trained"), [("layer4", []), ("layer3", ["layer4"])], ids=["head", "block 4"]
)
def test_real_model_trains_alike_both_ways(
    shared: Path, tmp_path: Path, layer: str, trained: list[str]
) -> None:
    """A pretrained ResNet-18 on flowers: cached losses to 1e-5, head to 1e-4 of the hooked run."""
    from manifold_mixup.data import ImageSet, list_data
    from manifold_mixup.models import model_transform

    weights = shared / "weights" / "resnet18_imagenet.safetensors"
    hooked = load_backbone("resnet18", weights=weights)
    freeze(hooked, except_=[replace_head(hooked, 5), *trained])
    part = list_data(shared / "datasets" / "flowers5").parts["train"].take(range(0, 1000, 25))
    images = ImageSet(part, model_transform("resnet18", hooked), 3)
    cached = copy.deepcopy(hooked)
    options = {"epochs": 2, "batch_size": 10, "alpha": 0.4, "lr": 1e-5 if trained else 1e-3}
    expected = train_head(hooked, images, layer=layer, **options)
    # A tail that trains amplifies rounding: there the store is computed as the model computes.
    store = extract_features(cached, layer, images, tmp_path, fast=not trained)
    found = train_head(cached, store, **options)

    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    for name, tensor in expected.head.items():
        torch.testing.assert_close(found.head[name], tensor, rtol=0, atol=1e-4)


def test_tail_of_any_model_can_be_trained(tmp_path: Path) -> None:
    """A plain `nn.Sequential` and a data set of vectors do as well."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(4), i % 3) for i in range(12)]
    store = extract_features(model, "1", data, tmp_path)
    other = copy.deepcopy(model)
    found = train_head(model, store, epochs=2)
    expected = train_head(other, data, layer="1", epochs=2)

    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert torch.allclose(
        store.features.gather(torch.tensor([2])), output_at(model, "1", data[2][0][None])
    )
    assert cut(model, "1", torch.randn(2, 4))[1](store.features.gather(torch.arange(2))).shape == (
        2,
        3,
    )


class Tied(nn.Module):
    """Uses the weight of a layer behind another one before it too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4)."""
        logits: Tensor = self.b(self.a(self.first(x)).relu())
        return logits


def test_weights_tied_across_the_layer_are_not_trained_on_features(tmp_path: Path) -> None:
    """Their training would change the features; frozen they are as good as others."""
    model, data = Tied(), [(torch.randn(4), i % 4) for i in range(8)]
    store = extract_features(model, "a", data, tmp_path)

    with pytest.raises(ValueError, match="'b.weight' is to be trained, but is used before 'a'"):
        train_head(model, store, epochs=1)
    model.first.weight.requires_grad_(False)
    assert train_head(model, store, epochs=1).losses


def test_tail_that_shares_weights_with_its_prefix_is_not_trained(tmp_path: Path) -> None:
    """Given by hand, on a store or on features as data; a copy's weights are its own."""
    model, data = Tied(), [(torch.randn(4), i % 4) for i in range(8)]
    store = extract_features(model, "a", data, tmp_path)
    prefix, tail = cut(model, "a", torch.randn(2, 4))
    features = [(prefix(x[None])[0].detach(), y) for x, y in data]

    for samples, at in ((store, {}), (features, {"layer": "a"})):
        with pytest.raises(ValueError, match=r"'b.weight' is to be trained, but is used before"):
            train_head(tail, samples, epochs=1, **at)
    before = model(torch.ones(1, 4))
    assert "b.weight" in train_head(copy.deepcopy(tail), store, epochs=1).head
    assert torch.equal(model(torch.ones(1, 4)), before)
    evaluate(tail, store)
    model.b.weight.requires_grad_(False)
    assert list(train_head(tail, store, epochs=1).head) == ["b.bias"]
    assert torch.equal(prefix(data[0][0][None])[0], features[0][0])


def test_features_of_looked_up_tokens_say_how_to_be_used(tmp_path: Path) -> None:
    """What a model took is known by shape alone: of whole numbers the tail has to be given."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    data = [(torch.randint(9, (3,)), i % 2) for i in range(8)]
    store = extract_features(model, "2", data, tmp_path)

    with pytest.raises(ValueError, match="fails on random numbers .*give the tail in its place"):
        train_head(model, store, epochs=1)
