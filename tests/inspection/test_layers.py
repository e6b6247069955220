"""Layer names, the patterns that stand for them, and errors that say what exists."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from manifold_mixup.inspection import find_entries, find_layers, named_layers, unwrap


class Block(nn.Module):
    """A block with two named parts."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(2, 2)
        self.mlp = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Both parts in turn."""
        return self.mlp(self.attn(x))


class Net(nn.Module):
    """A stem, twelve blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.Sequential(*[Block() for _ in range(12)])
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Everything in turn."""
        return self.head(self.blocks(self.stem(x)))


class OwnModule(nn.Module):
    """A user's model that happens to call its parts `module` and `input`."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(2, 2)
        self.module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Both parts in turn."""
        return self.module(self.input(x))


class Tied(nn.Module):
    """A model with one module under two names, and one that is absent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 2))
        self.second = self.first
        self.register_module("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        """The same twice."""
        return self.second(self.first(x))


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "AveragedModel": AveragedModel,
    "checkpoint": checkpoint_wrapper,
    "several": lambda model: nn.DataParallel(torch.compile(checkpoint_wrapper(model))),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def names(model: nn.Module, pattern: Any) -> list[str]:
    """The names that a pattern stands for."""
    return [layer.name for layer in find_layers(model, pattern)]


def entry_names(model: nn.Module, layers: Any) -> list[tuple[str, ...]]:
    """The names in each group of entries."""
    return [tuple(layer.name for layer in group) for group in find_entries(model, layers)]


def test_names_are_those_of_named_modules() -> None:
    """Without wrappers and shared modules, names and modules are PyTorch's own, in its order."""
    model = Net()

    layers = named_layers(model)

    assert list(layers.items()) == list(model.named_modules())[1:]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stem", ["stem"]),
        ("blocks.3.mlp.0", ["blocks.3.mlp.0"]),
        ("blocks.*", [f"blocks.{i}" for i in range(12)]),
        ("blocks.1?", ["blocks.10", "blocks.11"]),
        ("*", ["stem", "blocks", "head"]),
        ("blocks.*.mlp", [f"blocks.{i}.mlp" for i in range(12)]),
        ("*.11.*", ["blocks.11.attn", "blocks.11.mlp"]),
        ("**.attn", [f"blocks.{i}.attn" for i in range(12)]),
        ("blocks.11.mlp.**", ["blocks.11.mlp", "blocks.11.mlp.0", "blocks.11.mlp.1"]),
        ("**.11.**.0", ["blocks.11.mlp.0"]),
        ("blocks[0]", ["blocks.0"]),
        ("blocks[-1]", ["blocks.11"]),
        ("blocks[-3].mlp", ["blocks.9.mlp"]),
        ("blocks[1][-1]", ["blocks.1.mlp"]),
        ("blocks[1].mlp[0]", ["blocks.1.mlp.0"]),
        ("[0]", ["stem"]),
        ("[-1]", ["head"]),
        ("blocks[-1].*", ["blocks.11.attn", "blocks.11.mlp"]),
        ("blocks.1?[0]", ["blocks.10.attn", "blocks.11.attn"]),
        ("blocks.*.mlp[1]", [f"blocks.{i}.mlp.1" for i in range(12)]),
        ("re:stem|head", ["stem", "head"]),
        (r"re:blocks\.[12]", ["blocks.1", "blocks.2"]),
        (r"re:.*\.11\.mlp\.\d", ["blocks.11.mlp.0", "blocks.11.mlp.1"]),
    ],
)  # fmt: skip
def test_pattern_stands_for_layers(pattern: str, expected: list[str]) -> None:
    """Exact names, globs by segments, positions and full expressions find what they say."""
    model = Net()

    layers = find_layers(model, pattern)

    assert [layer.name for layer in layers] == expected
    for layer in layers:
        assert layer.module is model.get_submodule(layer.name)
        assert not layer.is_input


def test_position_counts_children_whatever_their_names() -> None:
    """A position is a place in the list of children, not a name."""
    model = nn.Sequential(nn.ModuleDict({"7": nn.ReLU(), "0": nn.Tanh()}))

    assert names(model, "0[0]") == ["0.7"]
    assert names(model, "0[-1]") == ["0.0"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks[12]", "layer 'blocks' has 12 children, so 'blocks[12]' does not exist"),
        ("blocks[-13].mlp", "layer 'blocks' has 12 children, so 'blocks[-13]' does not exist"),
        ("blocks.*[2]", "so 'blocks.*[2]' does not exist"),
        ("stem[0]", "layer 'stem' has 0 children"),
        ("[3]", "has 3 children"),
        ("blcks[0]", "Net has no layer 'blcks[0]'"),
        ("blocks[0].mpl", "did you mean 'blocks.0.mlp'"),
        ("blocks[x]", "Net has no layer 'blocks[x]'"),
    ],
)
def test_position_that_does_not_exist_is_refused(pattern: str, message: str) -> None:
    """A position outside of the children is an error that counts them."""
    with pytest.raises(ValueError, match=re.escape(message)):
        find_layers(Net(), pattern)


@pytest.mark.parametrize(
    ("pattern", "close"),
    [
        ("haed", "'head'"),
        ("blocks.3.attm", "'blocks.3.attn'"),
        ("backbone.blocks.3.attn", "'blocks.3.attn'"),
        ("some.very.long.prefix.to.the.head", "'head'"),
        ("module.haed", "'head'"),
    ],
)
def test_wrong_name_gets_close_ones(pattern: str, close: str) -> None:
    """A name that does not exist is an error with the closest that do."""
    with pytest.raises(ValueError, match=re.escape(f"Net has no layer '{pattern}'")) as caught:
        find_layers(Net(), pattern)

    assert re.search(f"did you mean .*{re.escape(close)}", str(caught.value))


@pytest.mark.parametrize(
    "pattern", ["", "zzzzz", "zz*", "re:block", "re:", "blocks.", ".head", "HEAD", "*.zzz[0]"]
)
def test_pattern_without_match_is_refused(pattern: str) -> None:
    """A pattern that stands for nothing is an error that says where names are listed."""
    with pytest.raises(ValueError, match=re.escape(f"Net has no layer '{pattern}'")) as caught:
        find_layers(Net(), pattern)

    assert "manifold-mixup layers" in str(caught.value)


def test_broken_expression_is_refused() -> None:
    """A regular expression that does not parse is quoted with the reason."""
    with pytest.raises(ValueError, match=re.escape("'re:(' is not a regular expression")):
        find_layers(Net(), "re:(")


@pytest.mark.parametrize("pattern", [0, None, b"stem", ["stem"], {"stem"}])
def test_other_kinds_of_pattern_are_refused(pattern: Any) -> None:
    """A layer is chosen by text or module, by nothing else."""
    with pytest.raises(TypeError, match="by name or module"):
        find_layers(Net(), pattern)


def test_module_stands_for_itself() -> None:
    """A module of the model is found with its name."""
    model = Net()

    assert names(model, model.blocks[-1]) == ["blocks.11"]


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda model: nn.Linear(2, 2), "the Linear given as layer is not part of this Net"),
        (lambda model: model, "the layer is the whole Net; choose one inside it"),
        (lambda model: nn.DataParallel(model), "the layer is the whole Net"),
        (lambda model: Net().stem, "the Linear given as layer is not part of this Net"),
    ],
)
def test_module_that_is_no_layer_is_refused(choose: Any, message: str) -> None:
    """A foreign module, a twin in another model and the model itself are no layers."""
    model = Net()

    with pytest.raises(ValueError, match=message):
        find_layers(model, choose(model))


def test_input_stands_for_the_model() -> None:
    """The word "input" is the model's input, whatever wraps the model."""
    model = Net()

    (layer,) = find_layers(nn.DataParallel(model), "input")

    assert layer.is_input
    assert layer.module is model


def test_layer_called_input_is_a_layer() -> None:
    """In a model with a layer of that name, "input" is the layer."""
    model = OwnModule()

    (layer,) = find_layers(model, "input")

    assert not layer.is_input
    assert layer.module is model.input


@wrappers
def test_wrapper_adds_nothing_to_names(wrap: Any) -> None:
    """Names are the bare model's, and the modules are those inside the wrapper."""
    model = Net()

    wrapped = wrap(model)

    inside = unwrap(wrapped)
    assert type(inside) is Net
    assert named_layers(wrapped) == dict(list(inside.named_modules())[1:])


@wrappers
@pytest.mark.parametrize("make", [Net, OwnModule])
def test_names_with_wrapper_prefixes_are_understood(wrap: Any, make: Any) -> None:
    """Every name that PyTorch gives to a wrapped model's module finds that module."""
    wrapped = wrap(make())
    inside = {id(m): name for name, m in named_layers(wrapped).items()}

    for name, module in wrapped.named_modules():
        if id(module) in inside:
            assert names(wrapped, name) == [inside[id(module)]]
            assert find_layers(wrapped, name)[0].module is module


@pytest.mark.parametrize("pattern", ["module.blocks[-1]", "_orig_mod.blocks.11", "module.*.11"])
def test_prefixes_may_be_left_in_patterns(pattern: str) -> None:
    """A pattern written for a wrapped model finds the same layers in the bare one."""
    assert names(Net(), pattern) == ["blocks.11"]


def test_wrapped_child_is_seen_through() -> None:
    """A wrapper around a part of the model, and a module given with its wrapper, add nothing."""
    block = Block()
    model = nn.Sequential(checkpoint_wrapper(block), nn.ReLU())

    assert list(named_layers(model)) == ["0", "0.attn", "0.mlp", "0.mlp.0", "0.mlp.1", "1"]
    assert names(model, model[0]) == ["0"]
    assert find_layers(model, "0")[0].module is block


def test_own_attribute_called_module_is_no_wrapper() -> None:
    """A user's model with a part called `module` is not mistaken for a wrapper."""
    model = OwnModule()

    assert unwrap(model) is model
    assert list(named_layers(model)) == ["input", "module", "module.0", "module.1"]


def test_shared_module_has_all_its_names() -> None:
    """A module under two names is found by both, and once by a pattern for both."""
    model = Tied()

    assert list(named_layers(model)) == ["first", "first.0", "second", "second.0"]
    assert names(model, "second.0") == ["second.0"]
    assert find_layers(model, "second")[0].module is model.first
    assert names(model, "*") == ["first"]
    assert names(model, model.second) == ["first"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("stem", [("stem",)]),
        (["stem", "head"], [("stem",), ("head",)]),
        ("blocks.1?", [("blocks.10",), ("blocks.11",)]),
        (("stem", "head"), [("stem", "head")]),
        ([("stem", "blocks.1?"), "head"], [("stem", "blocks.10", "blocks.11"), ("head",)]),
        (["input", "stem"], [("input",), ("stem",)]),
        ([("input", "stem")], [("input", "stem")]),
    ],
)
def test_entries_are_groups_mixed_together(layers: Any, expected: list[tuple[str, ...]]) -> None:
    """A pattern gives a group for each match, a tuple one group of all its matches."""
    assert entry_names(Net(), layers) == expected


def test_entries_may_be_modules() -> None:
    """Modules and names may stand side by side."""
    model = Net()

    assert entry_names(model, [model.head, (model.stem, "blocks.0")]) == [
        ("head",),
        ("stem", "blocks.0"),
    ]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["stem", "stem"], [("stem",)]),
        (["blocks.0", "blocks.*"], [(f"blocks.{i}",) for i in range(12)]),
        ([("stem", "head"), ("head", "stem")], [("stem", "head")]),
        ([("stem", "stem")], [("stem",)]),
        ([("stem", "stem"), "stem"], [("stem",)]),
    ],
)
def test_duplicate_entries_are_merged(layers: Any, expected: list[tuple[str, ...]]) -> None:
    """What is named twice, in any order, is drawn and mixed as one."""
    assert entry_names(Net(), layers) == expected


def test_names_of_a_shared_module_are_one_entry() -> None:
    """A module that has two names is not drawn twice as often."""
    assert entry_names(Tied(), ["first", "second"]) == [("first",)]


@pytest.mark.parametrize(
    "layers", [("blocks", "blocks.3"), ("blocks.3.mlp.0", "blocks.3"), ("**",)]
)
def test_layer_and_its_ancestor_are_not_mixed_together(layers: tuple[str, ...]) -> None:
    """A group with a layer inside another would mix twice, so it is refused."""
    with pytest.raises(ValueError, match="lies inside 'blocks.*mix twice"):
        find_entries(Net(), [layers])


def test_layer_and_its_ancestor_may_take_turns() -> None:
    """As separate entries, of which one is drawn, they are fine."""
    assert entry_names(Net(), ["blocks", "blocks.3"]) == [("blocks",), ("blocks.3",)]


@pytest.mark.parametrize("layers", [["stem", "haed"], [("stem", "haed")], ["stem", "zz*"]])
def test_each_entry_must_match(layers: Any) -> None:
    """One pattern that stands for nothing spoils the list, however good the others are."""
    with pytest.raises(ValueError, match="has no layer '(haed|zz\\*)'"):
        find_entries(Net(), layers)


@pytest.mark.parametrize("layers", [[], (), ["stem", ()]])
def test_empty_entry_is_refused(layers: Any) -> None:
    """Nothing cannot be mixed."""
    with pytest.raises(ValueError, match="layers is empty"):
        find_entries(Net(), layers)
