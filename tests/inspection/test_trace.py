"""The dry run: what it sees of a model, what it takes as input, and what it leaves alone."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from nets import Apply, Residual, Text, hooks_on
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup
from manifold_mixup.inspection import arguments, eval_mode, example_input, trace


def chain() -> nn.Sequential:
    """Two linear layers around a tanh."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


# What it sees.


def test_calls_and_shapes_are_recorded() -> None:
    """Each module's calls are counted, with its shapes for two and for three samples."""
    act = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 8), act, nn.ModuleList([nn.ReLU()]))
    model.append(nn.Flatten(0))
    model._modules.pop("4")

    found = trace(model, (torch.randn(7, 4),), {})

    assert [found.run(name).calls for name in found.layers] == [1, 2, 1, 2, 1]
    assert found.run("2").leaves[""].shape == (2, 8)
    assert found.run("2").leaves_for_three[""].shape == (3, 8)
    assert found.run("5").leaves_for_three[""].shape == (24,)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_example_may_have_any_batch_size(n: int) -> None:
    """Two and three samples are taken from an example, repeated where it has fewer."""
    sizes: list[int] = []
    model = Apply(lambda x, scale: sizes.append(len(x)) or x * scale)

    trace(model, (torch.randn(n, 4), torch.tensor(2.0)), {})

    assert sizes == [2, 3]


def test_floating_operations_are_counted_up_to_each_layer() -> None:
    """The count of a linear layer is 2 * B * in * out, and grows along the model."""
    found = trace(chain(), (torch.randn(2, 4),), {}, count_flops=True)

    assert [found.run(name).flops for name in "012"] == [2 * 2 * 32, 2 * 2 * 32, 2 * 2 * 56]
    assert found.flops == 2 * 2 * 56


def test_parameters_after_a_layer_are_those_that_start_later() -> None:
    """Parameters count as behind a layer if their module starts after the layer has ended."""
    model = nn.Sequential(Residual(4), nn.Linear(4, 3))

    found = trace(model, (torch.randn(2, 4),), {})

    assert list(found.parameters_after("0.branch.0")) == ["1.weight", "1.bias"]
    assert list(found.parameters_after("0")) == ["1.weight", "1.bias"]
    assert not found.parameters_after("1")


@pytest.mark.parametrize("frozen", [False, True])
def test_graph_is_seen_whether_frozen_or_not(frozen: bool) -> None:
    """The way from input to output is known for frozen models and for indices too."""
    text, images = Text().requires_grad_(not frozen), chain().requires_grad_(not frozen)

    assert trace(text, (torch.randint(10, (2, 5)),), {}).is_connected
    assert trace(images, (torch.randn(2, 4),), {}).is_connected


def test_graph_cut_by_no_grad_is_told() -> None:
    """A model that runs under no_grad inside has no way from output to input."""
    found = trace(Apply(torch.no_grad()(chain())), (torch.randn(2, 4),), {})

    assert not found.is_connected


@torch.no_grad()
def test_graph_is_recorded_under_no_grad() -> None:
    """The caller's gradient mode does not matter, and stays."""
    assert trace(chain(), (torch.randn(2, 4),), {}).is_connected
    assert not torch.is_grad_enabled()


def test_input_is_not_changed_by_a_model_that_works_in_place() -> None:
    """An in-place model gets copies."""
    example = -torch.ones(2, 4, requires_grad=True)
    before = example.clone()

    trace(nn.Sequential(nn.ReLU(inplace=True)), (example,), {})

    assert torch.equal(example, before)


def test_error_of_the_model_passes_and_nothing_remains() -> None:
    """If the model fails, its own error comes out; modes and hooks are as before."""
    model = chain()
    modes = [module.training for module in model.modules()]

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trace(model, (torch.randn(2, 5),), {})

    assert [module.training for module in model.modules()] == modes
    assert hooks_on(model) == 0


def test_eval_mode_gives_each_module_its_own_mode_back() -> None:
    """Every module is in eval mode inside the block and in its own mode afterwards."""
    model = chain()
    model[1].eval()

    with eval_mode(model):
        inside = [module.training for module in model.modules()]

    assert not any(inside)
    assert [module.training for module in model.modules()] == [True, True, False, True]


# What it takes as input.


def test_example_without_a_batch_is_refused() -> None:
    """An example needs a tensor with a first axis."""
    with pytest.raises(ValueError, match=r"holds no batch: pass a tensor \(B, \*\)"):
        trace(chain(), (torch.tensor(1.0),), {})


@pytest.mark.parametrize(
    ("example", "expected"),
    [("x", (("x",), {})), (("x", "y"), (("x", "y"), {})), ({"x": "y"}, ((), {"x": "y"}))],
)
def test_example_stands_for_arguments(example: Any, expected: Any) -> None:
    """A tuple is positional, a dict by keyword, all else a single argument."""
    assert arguments(example) == expected


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: timm.create_model("resnet18", in_chans=1), (2, 1, 224, 224)),
        (lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16), (2, 3, 32, 32)),
        (lambda: nn.DataParallel(timm.create_model("resnet18")), (2, 3, 224, 224)),
        (chain, None),
        (lambda: torchvision.models.resnet18(), None),
    ],
    ids=["timm", "torchvision", "wrapped", "own", "untold"],
)
def test_input_size_is_taken_where_the_model_tells_it(model: Any, shape: Any) -> None:
    """Models of timm and vision transformers tell their size, with the channels they have."""
    example = example_input(model())

    assert (None if example is None else tuple(example.shape)) == shape


@pytest.mark.parametrize("size", [(3, 8, 8), (5, 8, 8), None], ids=str)
def test_wrong_size_told_by_a_model_is_not_trusted(size: Any) -> None:
    """If the size that a model tells does not work, it is tried on its first step's input."""
    model = chain()
    model.pretrained_cfg = {"input_size": size}
    features = torch.randn(6, 4)

    with ManifoldMixup(model, "1", alpha=1.0)(torch.zeros(6)) as mix:
        logits = model(features)

    torch.testing.assert_close(logits, model[2](mix(model[:2](features))))


def test_configuration_of_another_kind_is_no_size() -> None:
    """A `pretrained_cfg` that is no dict, or an `image_size` that is no number, tells nothing."""
    model = chain()
    model.pretrained_cfg, model.image_size = SimpleNamespace(input_size=(3, 8, 8)), "32"

    assert example_input(model) is None


def test_buffer_put_in_place_of_another_is_taken_back() -> None:
    """A module that assigns its buffers anew, or fills an empty one, has the old ones back."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("cache", None)

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            self.cache = x.detach()
            return x

    model = Counting()
    count = model.count

    trace(model, (torch.randn(2, 4),), {})

    assert model.count is count
    assert count == 0
    assert model.cache is None


def test_what_a_model_keeps_of_a_pass_holds_no_graph() -> None:
    """It can be copied afterwards; what it held before, with a graph, is the same tensor."""

    class Keeping(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = super().forward(x)
            return self.kept

    model = Keeping(4, 3)
    model.made = made = 2 * model.weight

    trace(model, (torch.randn(2, 4),), {})

    assert model.kept.shape == (3, 3)
    assert not model.kept.requires_grad
    assert model.made is made
    del model.made
    copy.deepcopy(model)
