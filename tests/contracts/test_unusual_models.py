"""Models of unusual make: what can be done with them is right, and the rest is one clear line."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from manifold_mixup import (
    ManifoldMixup,
    cut,
    extract_features,
    freeze,
    layer_table,
    mixed_loss,
)
from manifold_mixup.models.folding import is_affine


def small() -> nn.Sequential:
    """A chain of three layers, at rest."""
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval()


def samples(*shape: int) -> list[tuple[Tensor, int]]:
    """Four samples of a shape, of two classes."""
    return [(torch.randn(*shape), i % 2) for i in range(4)]


class WithConstants(nn.Module):
    """Makes a float32 tensor in its forward, behind the layer that is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x."""
        return self.head(self.second(self.first(x) @ torch.eye(4)))


@pytest.mark.parametrize(
    ("model", "layer", "shape"),
    [
        (
            lambda: timm.create_model("mobilenetv3_small_050"),
            "blocks.5.0.bn1.act",
            (3, 64, 64),
        ),
        (lambda: timm.create_model("mobilenetv3_small_050"), "bn1.drop", (3, 64, 64)),
        (WithConstants, "first", (4,)),
    ],
)
def test_store_of_a_model_that_does_not_compute_in_float64(
    model: nn.Module, layer: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """The stored features are the layer's, or where a mix is the same, and give the logits."""
    net: nn.Module = model()
    net.eval()
    freeze(net)
    data = samples(*shape)
    x = torch.stack([image for image, _ in data])

    store = extract_features(net, layer, data, tmp_path, fast=False)

    _, tail = cut(net, store.manifest.stored_layer, x)
    with torch.no_grad():
        torch.testing.assert_close(tail(store.features[:]), net(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*jit:DeprecationWarning")
def test_scripted_module_hides_its_layers_alone(tmp_path: Path) -> None:
    """Before and behind a scripted module all goes on; the module itself is refused by name."""
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    model = nn.Sequential(nn.Linear(4, 4), scripted, nn.Linear(4, 2)).eval()
    data = samples(4)
    x = torch.stack([image for image, _ in data])

    rows = {row.name: row for row in layer_table(model, x)}
    prefix, tail = cut(model, "0", x)
    store = extract_features(model, "0", data, tmp_path)

    assert rows["0"].mixable
    assert rows["2"].mixable
    assert "is TorchScript, which takes no hooks" in rows["1"].reason
    assert torch.equal(tail(prefix(x)), model(x))
    torch.testing.assert_close(store.features[:], model[0](x).detach())
    with ManifoldMixup(model, "0", example=x)(torch.arange(4) % 2) as mix:
        mixed = model(x)
    torch.testing.assert_close(mixed, model[1:](mix(model[0](x))))
    with pytest.raises(ValueError, match="'1' is TorchScript, which takes no hooks"):
        ManifoldMixup(model, "1", example=x)


def test_model_without_values_is_refused() -> None:
    """A model on the meta device is told as such, with what to do."""
    with torch.device("meta"):
        model = small()
    told = r"on the meta device.*load its weights first"
    x = torch.randn(2, 4)

    with pytest.raises(ValueError, match=told):
        layer_table(model, x)
    with pytest.raises(ValueError, match=told):
        cut(model, "0", x)
    with pytest.raises(ValueError, match=told):
        ManifoldMixup(model, "0", example=x)


def test_inference_mode_changes_no_answer() -> None:
    """Under it a bypass is seen, a cut is bit-equal, and the tail can be trained afterwards."""
    model = nn.Sequential(small(), nn.Linear(2, 2))
    residual = timm.create_model("resnet18").eval()
    image = torch.randn(2, 3, 32, 32)
    expected = layer_table(residual, image)
    with torch.inference_mode():
        x = torch.randn(2, 4)
        rows = layer_table(residual, image)
        prefix, tail = cut(model, "0", x)
        features = prefix(x)
        assert torch.equal(tail(features), model(x))

    assert rows == expected
    tail(features.clone()).sum().backward()
    assert all(parameter.grad is not None for parameter in tail.parameters())


def test_forgotten_with_is_told() -> None:
    """The step itself in place of its mix is refused by the loss, which names the with block."""
    target = torch.tensor([0, 1])
    step = ManifoldMixup(small(), "0", example=torch.randn(2, 4))(target)

    with pytest.raises(TypeError, match="with mixup"):
        mixed_loss(torch.randn(2, 2), target, step)  # type: ignore[call-overload]


def test_exported_module_of_a_fixed_batch_is_refused() -> None:
    """It is told that its graph is for one batch size, and which model to give."""
    exported = torch.export.export(small(), (torch.randn(4, 4),)).module()

    with pytest.raises(ValueError, match="exported or traced.*give the module that it was made"):
        layer_table(exported, torch.randn(4, 4))


class Encoder(nn.Module):
    """A frozen encoder of padded sequences, of vectors or of tokens, with a head."""

    def __init__(self, first: nn.Module, *, enable_nested_tensor: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.first = first
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=enable_nested_tensor)
        self.head = nn.Linear(8, 2)
        freeze(self.eval(), except_="head")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits for sequences."""
        return self.head(self.encoder(self.first(x), src_key_padding_mask=mask).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("tokens", [True, False])
def test_nested_tensor_of_a_frozen_encoder_is_told_with_its_remedy(tokens: bool) -> None:
    """On attaching or in the first step the option is named, and with it the step goes through."""
    x = torch.randint(9, (4, 5)) if tokens else torch.randn(4, 5, 8)
    mask, target = torch.zeros(4, 5, dtype=torch.bool), torch.tensor([0, 1, 0, 1])
    mask[1::2, 3:] = True
    first = nn.Embedding(9, 8) if tokens else nn.Linear(8, 8)

    def step(model: nn.Module) -> Tensor:
        mixup = ManifoldMixup(
            model, "encoder.layers.0", example=(x, mask), mask="src_key_padding_mask"
        )
        with mixup(target) as mix:
            return mixed_loss(model(x, mask), target, mix)

    with pytest.raises((TypeError, ValueError), match=re.escape("enable_nested_tensor=False")):
        step(Encoder(first, enable_nested_tensor=True))
    assert step(Encoder(first, enable_nested_tensor=False)).isfinite()


class Sliced(nn.Module):
    """Runs some of its layers, by a slice that is a module made as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Through three of four."""
        for layer in self.layers[:3]:
            x = layer(x)
        return x


def test_modules_made_as_a_model_runs_do_no_harm(tmp_path: Path) -> None:
    """Features are those of a plain pass."""
    model, data = Sliced(), [(torch.randn(4), 0) for _ in range(6)]

    store = extract_features(model, "layers.0", data, tmp_path)

    expected = model.layers[0](torch.stack([x for x, _ in data]))
    torch.testing.assert_close(store.features.gather(torch.arange(6)), expected)


class Sized(nn.Embedding):
    """An embedding of places, given the size of the input."""

    def forward(self, size: torch.Size) -> Tensor:  # type: ignore[override]
        """The codes of as many places."""
        return super().forward(torch.arange(size[1]))


def test_embedding_that_takes_no_tensor_is_looked_at() -> None:
    """It is the same for every sample, which is why it cannot be mixed."""

    class Net(nn.Module):
        """A layer, and the codes of places."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.places = nn.Linear(4, 4), Sized(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            """Their sum."""
            return self.body(x) + self.places(x.shape[:2])

    rows = {row.name: row for row in layer_table(Net(), torch.randn(2, 3, 4))}

    assert rows["body"].mixable
    assert not rows["places"].mixable


def test_what_is_no_number_in_float64_is_not_affine() -> None:
    """So nothing is folded behind it."""
    assert not is_affine(lambda h: h / 0 * 0, torch.Size([3]), torch.device("cpu"))
    assert is_affine(lambda h: 2 * h, torch.Size([3]), torch.device("cpu"))
