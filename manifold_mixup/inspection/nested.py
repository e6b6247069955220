"""Tensors inside whatever a module takes and gives."""

import copy
import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from manifold_mixup.inspection.layers import unwrap

Output = int | str | Sequence[int | str] | None


def map_tensors(value: Any, function: Callable[[str, Tensor], Tensor], path: str = "") -> Any:
    """Rebuild a nested value with a function applied to every tensor in it.

    The function gets each tensor's path: keys, field names and positions joined by dots, the empty
    string for a bare tensor. Whatever is not a tensor or a container is kept.

    Raises:
        TypeError: The value holds a `PackedSequence`, whose rows are not samples.

    Example:
        >>> map_tensors({"a": (torch.ones(1), None)}, lambda path, tensor: path)
        {'a': ('a.0', None)}
    """

    def below(key: Any, item: Any) -> Any:
        return map_tensors(item, function, f"{path}.{key}" if path else str(key))

    if isinstance(value, Tensor):
        return function(path, value)
    if isinstance(value, PackedSequence):
        raise TypeError("a PackedSequence holds time steps, not samples; unpack it before mixing")
    if isinstance(value, Mapping):
        rebuilt: Any = copy.copy(value)
        for key in value:
            rebuilt[key] = below(key, value[key])
        return rebuilt
    if isinstance(value, (tuple, list)):  # a union does not compile in torch 2.6
        items = [below(index, item) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{n: below(n, getattr(value, n)) for n in names})
    return value


def find_tensors(value: Any) -> dict[str, Tensor]:
    """Every tensor in a nested value, by its path."""
    found: dict[str, Tensor] = {}

    def note(path: str, tensor: Tensor) -> Tensor:
        found[path] = tensor
        return tensor

    map_tensors(value, note)
    return found


def is_chosen(path: str, dtype: torch.dtype, output: Output) -> bool:
    """Whether `output` chooses the tensor of this path and dtype.

    A bare tensor is always chosen. Of several, None chooses none, ``"all"`` every floating-point
    one, a position or name (or several of these) whatever stands there or below.

    Example:
        >>> is_chosen("hidden.0", torch.float32, "hidden")
        True
    """
    return path == "" or any(_covers(name, path, dtype) for name in _names(output))


def find_missing(dtypes: Mapping[str, torch.dtype], output: Output) -> list[int | str]:
    """The names in `output` that stand for none of these tensors; none for a bare tensor.

    Example:
        >>> find_missing({"a": torch.float32, "b": torch.float32}, ["a", "c"])
        ['c']
    """
    if "" in dtypes:
        return []
    return [
        name
        for name in _names(output)
        if not any(_covers(name, path, dtype) for path, dtype in dtypes.items())
    ]


def _names(output: Output) -> Sequence[int | str]:
    if output is None:
        return ()
    return [output] if isinstance(output, (str, int)) else output


def _covers(name: int | str, path: str, dtype: torch.dtype) -> bool:
    return dtype.is_floating_point if name == "all" else f"{path}.".startswith(f"{name}.")


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Argument:
    """An argument of a module's forward, given by position or by keyword."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        names = arguments_of(module, by_position=True)
        self.position = names.index(name) if name in names else sys.maxsize

    def get(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Its value, None where it is not given."""
        return args[self.position] if self.position < len(args) else kwargs.get(self.name)

    def replace(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any) -> Inputs:
        """The inputs with another value of it."""
        if self.position < len(args):
            return (*args[: self.position], value, *args[self.position + 1 :]), dict(kwargs)
        return args, {**kwargs, self.name: value}


def arguments_of(module: nn.Module, *, by_position: bool = False) -> list[str]:
    """The names of what forward takes, or only of what it may take by position."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    by_keyword_only = inspect.Parameter.KEYWORD_ONLY
    collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [p for p in parameters if p.kind not in collecting]
    return [p.name for p in named if not (by_position and p.kind == by_keyword_only)]


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as inputs: a tuple stands for positional, a dict for keyword arguments.

    Example:
        >>> arguments({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def take_samples(inputs: Any, rows: list[int]) -> Any:
    """These samples of nested inputs, repeated where they have fewer.

    Raises:
        ValueError: The inputs hold no tensor with samples.

    Example:
        >>> take_samples({"x": torch.tensor([4, 5])}, [1, 0, 2])
        {'x': tensor([5, 4, 4])}
    """
    size = next((len(t) for t in find_tensors(inputs).values() if t.ndim and len(t)), None)
    if size is None:
        raise ValueError("the example holds no batch: pass a tensor (B, *), a tuple or a dict")

    def take(_: str, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != size:
            return tensor
        return tensor.index_select(0, torch.tensor(rows, device=tensor.device) % size)

    return map_tensors(inputs, take)


@torch.enable_grad()
def watched(inputs: Any) -> Any:
    """The inputs as sources of a graph: clones of leaves, so that a model may change them."""

    def source(_: str, tensor: Tensor) -> Tensor:
        tensor = tensor.clone() if tensor.is_inference() else tensor
        return tensor.detach().requires_grad_().clone() if is_float(tensor) else tensor

    return map_tensors(inputs, source)


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor holds floating-point numbers, and has an axis."""
    return tensor.is_floating_point() and tensor.ndim > 0


def example_input(model: nn.Module) -> Tensor | None:
    """Two random images of the size that the model tells, or None if it tells none.

    Example:
        >>> example_input(nn.Linear(2, 2)) is None
        True
    """
    root = unwrap(model)
    config = getattr(root, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    side = getattr(root, "image_size", None)
    if size is None and isinstance(side, int):
        size = (3, side, side)
    if size is None:
        return None
    convolution = next((m for m in root.modules() if isinstance(m, nn.Conv2d)), None)
    channels = convolution.in_channels if convolution is not None else size[0]
    like = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, *size[1:], generator=generator).to(like)


def first_logits(output: Any) -> Tensor:
    """The logits (B, C) in what a model returns: itself, its `logits`, or the first of several.

    Example:
        >>> first_logits((torch.zeros(1, 2), torch.ones(1, 2)))
        tensor([[0., 0.]])
    """
    if isinstance(output, Tensor):
        return output
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits
