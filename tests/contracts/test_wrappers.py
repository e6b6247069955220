"""What stands around or inside of models: Fabric, PEFT, TorchScript, FSDP, graphs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import batch, small_net
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup, extract_features, layer_table
from manifold_mixup.inspection import unwrap


@pytest.mark.parametrize("name", ["body", "_forward_module.body", "_original_module.body"])
@pytest.mark.parametrize("with_example", [True, False])
def test_model_set_up_by_fabric_is_mixed(name: str, with_example: bool) -> None:
    """Its layers are called as in the model inside, with Fabric's prefixes or without."""
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    model, (features, target) = small_net(), batch()
    wrapped = fabric.setup_module(model)
    mixup = ManifoldMixup(wrapped, name, example=features if with_example else None)

    with mixup(target) as mix:
        logits = wrapped(features)

    assert unwrap(wrapped) is model
    assert mixup.layers == ["body"]
    assert torch.equal(logits, model.head(mix(model[:2](features))))


@pytest.mark.parametrize("layer", ["body", "base_model.model.body", "input"])
@pytest.mark.parametrize("with_example", [True, False])
def test_model_with_adapters_of_peft_is_mixed(layer: str, with_example: bool) -> None:
    """Its layers are called as in the model inside, with PEFT's prefix or without."""
    peft = pytest.importorskip("peft")
    model, (features, target) = small_net(), batch()
    config = peft.LoraConfig(target_modules=["stem"], modules_to_save=["head"])
    wrapped = peft.get_peft_model(model, config).double()
    mixup = ManifoldMixup(wrapped, layer, example=features if with_example else None)

    with mixup(target) as mix:
        logits = wrapped(features)
    mixup.detach()

    inner = wrapped.base_model.model
    inputs = mix(features) if layer == "input" else features
    hidden = inner.body(inner.stem(inputs))
    assert unwrap(wrapped) is inner
    assert mixup.layers == [layer.removeprefix("base_model.model.")]
    assert torch.equal(logits, inner.head(hidden if layer == "input" else mix(hidden)))


class Named(nn.Module):
    """A model of one's own whose parts are called as wrappers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model, self.model = nn.Linear(4, 8), nn.Linear(8, 3)


def test_own_model_of_such_names_is_not_unwrapped() -> None:
    """A `base_model` is a wrapper's only where that is one of PEFT's."""
    model = Named()

    assert unwrap(model) is model


# torch has deprecated jit, under two kinds of warnings.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]


@pytest.mark.parametrize("layer", ["body", "input"])
def test_scripting_while_attached_says_to_detach(layer: str) -> None:
    """A hook cannot be compiled; without it the model can."""
    model, (features, _) = small_net(), batch()
    mixup = ManifoldMixup(model, layer, example=features)

    with pytest.raises(AttributeError, match=r"ManifoldMixup is attached; call its detach\(\)"):
        torch.jit.script(model)
    mixup.detach()

    assert torch.equal(torch.jit.script(model)(features), model(features))


def test_scripted_part_is_refused_and_leaves_the_others_mixable(tmp_path: Path) -> None:
    """TorchScript takes no hooks: not that layer, but those around it are mixed and stored."""
    model, (features, target) = small_net(), batch()
    model.body = torch.jit.script(model.body)

    for example in (None, features):
        with pytest.raises(ValueError, match="'body' is TorchScript, which takes no hooks"):
            ManifoldMixup(model, "body", example=example)
    with pytest.raises(ValueError, match="'input' is TorchScript"):
        ManifoldMixup(torch.jit.script(small_net()), "input")
    mixup = ManifoldMixup(model, "stem", example=features)
    with mixup(target) as mix:
        logits = model(features)
    mixup.detach()

    assert torch.equal(logits, model[1:](mix(model.stem(features))))
    assert [row.mixable for row in layer_table(model, features)] == [True, False, True]
    samples = list(zip(features, target, strict=True))
    store = extract_features(model, "stem", samples, tmp_path, fold=False, dtype=torch.float64)
    torch.testing.assert_close(
        torch.as_tensor(store.features[:]), model.stem(features).detach(), rtol=0, atol=1e-12
    )


class Graph(nn.Module):
    """A layer, a sum over neighbours, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()

    def forward(self, nodes: Any, edge_index: Tensor | None = None) -> Tensor:
        """Logits for each node."""
        if edge_index is None:
            nodes, edge_index = nodes.nodes, nodes.edge_index
        hidden = torch.relu(self.layer(nodes))
        source, to = edge_index
        return self.head(torch.zeros_like(hidden).index_add(0, to, hidden[source]))


class Data:
    """A graph in one object, as PyTorch Geometric has it."""

    def __init__(self, nodes: Tensor, edge_index: Tensor) -> None:
        self.nodes, self.edge_index = nodes, edge_index


@pytest.mark.parametrize("in_object", [True, False])
@pytest.mark.parametrize("with_example", [True, False])
def test_graphs_are_refused_by_what_they_are(in_object: bool, with_example: bool) -> None:
    """Rows of nodes and edges are no samples; the error says so, and what to mix."""
    model, (nodes, target) = Graph(), batch()
    edges = torch.tensor([[0, 2, 4, 5], [1, 3, 5, 0]])
    inputs = (Data(nodes, edges),) if in_object else (nodes, edges)

    def step() -> None:
        with ManifoldMixup(model, "layer", example=inputs if with_example else None)(target):
            model(*inputs)

    with pytest.raises(ValueError, match="Graph takes a graph .* its rows are nodes, not samples"):
        step()


class Sharded(Tensor):
    """What tells a parameter of a sharded model from others."""

    full_tensor = None


def test_features_of_a_sharded_model_are_refused(tmp_path: Path) -> None:
    """A process that has a part of each parameter is told to take the whole model."""
    model = small_net()
    model.stem.weight = nn.Parameter(torch.zeros(8, 4).as_subclass(Sharded))

    with pytest.raises(ValueError, match="Sequential is sharded, .* fully_shard"):
        extract_features(model, "stem", [(torch.zeros(4), 0)], tmp_path)
