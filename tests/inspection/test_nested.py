"""Tensors found and replaced inside whatever a module returns."""

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from manifold_mixup.inspection import find_tensors, is_chosen, map_tensors

Pair = namedtuple("Pair", ["left", "right"])


class Typed(NamedTuple):
    """A named tuple with types."""

    logits: Tensor
    aux: Tensor | None


@dataclasses.dataclass
class Record:
    """A plain dataclass."""

    features: Tensor
    mask: Tensor | None = None
    size: int = 3


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    """A dataclass that cannot be written to, with a field it computes."""

    features: Tensor
    doubled: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.features)


class ModelOutput(OrderedDict):
    """A dict whose entries are attributes as well, as transformers' outputs are."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


def ones() -> Tensor:
    """A small tensor."""
    return torch.ones(2)


def plus_one(path: str, tensor: Tensor) -> Tensor:
    """A function to map."""
    return tensor + 1


def same(one: Any, other: Any) -> bool:
    """Whether two nested values have the same types and the same tensors."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    if isinstance(one, dict | UserDict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


CONTAINERS = {
    "tensor": (ones, {""}),
    "tuple": (lambda: (ones(), ones()), {"0", "1"}),
    "list": (lambda: [ones(), None], {"0"}),
    "empty": (lambda: ((), [], {}), set()),
    "namedtuple": (lambda: Pair(ones(), ones()), {"0", "1"}),
    "typed tuple": (lambda: Typed(ones(), None), {"0"}),
    "return type": (lambda: torch.max(torch.ones(2, 2), 0), {"0", "1"}),
    "dict": (lambda: {"a": ones(), "b": 3}, {"a"}),
    "dict of numbers": (lambda: {0: ones(), 1: ones()}, {"0", "1"}),
    "OrderedDict": (lambda: OrderedDict(b=ones(), a=ones()), {"b", "a"}),
    "defaultdict": (lambda: defaultdict(list, a=ones()), {"a"}),
    "UserDict": (lambda: UserDict(a=ones()), {"a"}),
    "ModelOutput": (lambda: ModelOutput(logits=ones(), past=(ones(),)), {"logits", "past.0"}),
    "dataclass": (lambda: Record(ones(), ones()), {"features", "mask"}),
    "None member": (lambda: Record(ones()), {"features"}),
    "frozen dataclass": (lambda: FrozenRecord(ones()), {"features"}),
    "nested": (
        lambda: {"a": (ones(), [Record(ones()), Pair(None, ones())]), "b": "text"},
        {"a.0", "a.1.0.features", "a.1.1.1"},
    ),
    "no tensor": (lambda: "text", set()),
    "class": (lambda: Record, set()),
}
containers = pytest.mark.parametrize(("build", "paths"), CONTAINERS.values(), ids=CONTAINERS)


@containers
def test_every_tensor_is_found_by_its_path(build: Any, paths: set[str]) -> None:
    """Keys, field names and positions, joined by dots, lead to every tensor."""
    assert set(find_tensors(build())) == paths


@containers
def test_container_is_rebuilt_in_kind(build: Any, paths: set[str]) -> None:
    """Without a change the result has the same types, order and tensors."""
    value = build()

    assert same(map_tensors(value, lambda path, tensor: tensor), value)


@containers
def test_every_tensor_is_replaced_and_the_original_kept(build: Any, paths: set[str]) -> None:
    """Each tensor is replaced in the result; what was given stays as it was."""
    value = build()
    before = {path: tensor.clone() for path, tensor in find_tensors(value).items()}

    mapped = find_tensors(map_tensors(value, plus_one))

    assert mapped.keys() == before.keys()
    for path, tensor in before.items():
        assert torch.equal(mapped[path], tensor + 1)
        assert torch.equal(find_tensors(value)[path], tensor)


def test_model_output_keeps_attributes_and_keys_alike() -> None:
    """In a dict with attributes both ways to an entry show the replaced tensor."""
    mapped = map_tensors(ModelOutput(logits=ones()), plus_one)

    assert torch.equal(mapped.logits, 2 * ones())
    assert torch.equal(mapped["logits"], 2 * ones())


def test_fields_that_a_dataclass_computes_follow() -> None:
    """A field that is not an argument is computed again from the replaced ones."""
    mapped = map_tensors(FrozenRecord(ones()), plus_one)

    assert torch.equal(mapped.doubled, 4 * ones())


@pytest.mark.parametrize("wrap", [lambda packed: packed, lambda packed: (packed, ones())])
def test_packed_sequence_is_refused(wrap: Any) -> None:
    """The rows of a packed sequence are time steps, so it is refused wherever it stands."""
    packed = pack_sequence([torch.ones(3), torch.ones(2)])

    with pytest.raises(TypeError, match="PackedSequence holds time steps"):
        map_tensors(wrap(packed), plus_one)


@pytest.mark.parametrize(
    ("path", "output", "chosen"),
    [
        ("", None, True),
        ("", 0, True),
        ("", "all", True),
        ("0", None, False),
        ("0", 0, True),
        ("0", "0", True),
        ("1", 0, False),
        ("10", 1, False),
        ("0.1", 0, True),
        ("0.1", "0.1", True),
        ("0.1", 1, False),
        ("hidden.0", "hidden", True),
        ("hidden_states", "hidden", False),
        ("outer.hidden", "hidden", False),
        ("outer.hidden", ["hidden", "outer.hidden"], True),
        ("3", [0, 3], True),
        ("3", (0, "logits"), False),
        ("3", [], False),
        ("3", "all", True),
        ("a.b", "all", True),
        ("all", "all", True),
    ],
)
def test_output_chooses_by_position_name_or_path(path: str, output: Any, chosen: bool) -> None:
    """A bare tensor is always chosen; of several, what stands at or below the given places."""
    assert is_chosen(path, torch.float32, output) is chosen


@pytest.mark.parametrize(
    ("dtype", "chosen"), [(torch.bfloat16, True), (torch.int64, False), (torch.bool, False)]
)
def test_all_means_all_floating(dtype: torch.dtype, chosen: bool) -> None:
    """The word "all" leaves indices and masks out; naming a place does not."""
    assert is_chosen("mask", dtype, "all") is chosen
    assert is_chosen("mask", dtype, "mask")
