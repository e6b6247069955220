"""Tensors inside what a module takes or returns: tuples, lists, dicts and dataclasses of them."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

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
