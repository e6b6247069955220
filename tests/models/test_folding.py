"""How far a mix may be pushed: exactly as far as the steps behind the layer are affine."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from nets import output_at
from torch import Tensor, nn

from manifold_mixup import Mix, freeze, replace_head
from manifold_mixup.models.folding import folded_layer

tv = torchvision.models


def frozen(model: nn.Module) -> nn.Module:
    """A model of which only a new head of 5 classes trains."""
    freeze(model, except_=replace_head(model, 5))
    return model


@pytest.mark.parametrize(
    ("build", "layer", "reached"),
    [
        (lambda: timm.create_model("resnet18"), "layer4", "global_pool"),
        (lambda: timm.create_model("resnet18"), "layer3", "layer3"),
        (lambda: timm.create_model("resnet18"), "global_pool", "global_pool"),
        (lambda: timm.create_model("resnet18", global_pool="max"), "layer4", "layer4"),
        (lambda: timm.create_model("convnext_atto"), "stages", "head.global_pool"),
        (lambda: timm.create_model("mobilenetv3_small_100"), "blocks", "global_pool"),
        (lambda: timm.create_model("densenet121"), "features", "global_pool"),
        (lambda: timm.create_model("regnety_002"), "s4", "head.global_pool"),
        (lambda: tv.resnet18(), "layer4", "avgpool"),
        (lambda: tv.mobilenet_v2(), "features", "classifier.0"),
        (lambda: tv.efficientnet_b0(), "features", "avgpool"),
    ],
)
def test_mix_is_folded_behind_averages_alone(
    build: Callable[[], nn.Module], layer: str, reached: str
) -> None:
    """Average pooling lets a mix through; max pooling, activations and blocks do not."""
    model, x = frozen(build()), torch.randn(2, 3, 64, 64)
    assert folded_layer(model, layer, x) == reached


def test_folded_mix_is_the_same_mix() -> None:
    """Mixing the map and pooling gives what mixing the pooled features gives."""
    model, x = frozen(timm.create_model("resnet18")).double(), torch.randn(6, 3, 64, 64).double()
    reached = folded_layer(model, "layer4", x)
    mix = Mix.sample(6, alpha=1.0)
    pooled = output_at(model, reached, x)
    folded = mix(pooled)
    by_hand = mix(output_at(model, "layer4", x)).mean((2, 3))

    torch.testing.assert_close(folded, by_hand, rtol=0, atol=1e-12)
    assert (folded - pooled).abs().max() > 0.01


class Steps(nn.Module):
    """Named steps on features (B, 4), one after the other, and a head."""

    def __init__(self, **steps: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        for name, step in steps.items():
            self.add_module(name, step)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x."""
        for step in self.children():
            x = step(x)
        return x


@pytest.mark.parametrize(
    ("steps", "trains", "reached"),
    [
        ({"narrow": nn.Linear(4, 2)}, "", "narrow"),
        ({"narrow": nn.Linear(4, 2)}, "narrow", "stem"),
        ({"narrow": nn.Linear(4, 2), "act": nn.Tanh()}, "", "narrow"),
        ({"act": nn.ReLU(), "narrow": nn.Linear(4, 2)}, "", "stem"),
        ({"norm": nn.LayerNorm(4), "narrow": nn.Linear(4, 2)}, "", "stem"),
        ({"norm": nn.BatchNorm1d(4), "narrow": nn.Linear(4, 2)}, "", "narrow"),
        ({"pool": nn.AdaptiveMaxPool1d(2)}, "", "stem"),
        ({"pool": nn.AdaptiveAvgPool1d(2)}, "", "pool"),
    ],
)
def test_each_step_counts(steps: dict[str, nn.Module], trains: str, reached: str) -> None:
    """A frozen affine step is passed; one that trains, or is not affine, is not."""
    model = Steps(**steps)
    freeze(model, except_=["head", *([trains] if trains else [])])
    assert folded_layer(model, "stem", torch.randn(3, 4)) == reached


@pytest.mark.parametrize(("is_frozen", "reached"), [(True, "narrow"), (False, "stem")])
def test_active_dropout_stops_a_mix(is_frozen: bool, reached: str) -> None:
    """Dropout that is drawn in training is no affine step; a frozen one does nothing."""
    model = Steps(drop=nn.Dropout(0.5), narrow=nn.Linear(4, 2))
    freeze(model, except_=["head"] if is_frozen else ["head", "drop"])
    assert folded_layer(model, "stem", torch.randn(3, 4)) == reached


def test_features_at_the_edge_of_an_activation_do_not_deceive() -> None:
    """A ReLU is no affine step, also behind another one, where no feature lies below 0."""
    model = Steps(first=nn.ReLU(), second=nn.ReLU(), narrow=nn.Linear(4, 2))
    freeze(model, except_="head")
    assert folded_layer(model, "first", torch.randn(3, 4)) == "first"


def test_model_comes_back_as_it_was() -> None:
    """No mode, value or gradient flag changes."""
    model = frozen(timm.create_model("resnet18"))
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    folded_layer(model, "layer4", torch.randn(2, 3, 64, 64))

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    after = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    assert after == flags
