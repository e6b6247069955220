"""Layer names and the modules behind them: patterns, wrappers, close names for wrong ones."""

import difflib
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

INPUT = "input"


Entry = str | nn.Module | tuple["str | nn.Module", ...]


# Attributes behind which a wrapper keeps the model; `module` only where the class is a known one.
_WRAPPED = (
    "_orig_mod",
    "_checkpoint_wrapped_module",
    "_fsdp_wrapped_module",
    "_forward_module",
)


# Segments of names that wrappers add: Fabric names its model twice, PEFT by two segments.
_ADDED = (*_WRAPPED, "_original_module", "base_model.model", "module")


_MODULE_WRAPPERS = {
    "DistributedDataParallel",
    "DataParallel",
    "FullyShardedDataParallel",
    "AveragedModel",
    "ModelEma",
    "ModelEmaV2",
    "ModelEmaV3",
}


@dataclass(frozen=True)
class Layer:
    """A layer: its name without wrapper prefixes, and its module (for "input" the whole model)."""

    name: str
    module: nn.Module
    is_input: bool = False


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DDP, FSDP, EMA, checkpoint, Fabric and PEFT wrappers.

    A PEFT model of prompts is itself: it is more than what it wraps.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(layer)) is layer
        True
    """
    check_model(module)
    while True:
        attribute = next((name for name in _WRAPPED if name in module._modules), None)
        if attribute is None and _MODULE_WRAPPERS & {c.__name__ for c in type(module).__mro__}:
            attribute = "module"
        inner = module._modules[attribute] if attribute else _tuned(module)
        if inner is None:
            return module
        module = inner


def _tuned(module: nn.Module) -> nn.Module | None:
    """The model whose layers PEFT has replaced, inside of its two wrappers."""
    tuner: Any = dict(module._modules.items()).get("base_model", module)
    is_tuner = "BaseTuner" in {c.__name__ for c in type(tuner).__mro__}
    inner: nn.Module | None = tuner._modules["model"] if is_tuner else None
    return inner


def check_model(model: Any) -> None:
    """Raise a TypeError, with what to do, unless it is a model."""
    if isinstance(model, nn.Module):
        return
    remedy = f"model is a {type(model).__name__}: expected a torch.nn.Module"
    if isinstance(model, str):
        remedy = f"model is the name {model!r}: load it, as in load_backbone({model!r})"
    elif isinstance(model, type):
        remedy = f"model is the class {model.__name__}: expected one made of it"
    raise TypeError(remedy)


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer of a model by its dotted name, in order; a shared module under all its names.

    Names are those of `named_modules()` without the prefixes that wrappers add.

    Example:
        >>> list(named_layers(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))))
        ['0', '1', '1.0']
    """

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, wrapped in module._modules.items():
            if wrapped is not None:
                child = unwrap(wrapped)
                yield f"{prefix}{name}", child
                yield from walk(child, f"{prefix}{name}.")

    return dict(walk(unwrap(model), ""))


def find_layers(model: nn.Module, pattern: str | nn.Module) -> list[Layer]:
    """The layers that a pattern stands for, in the model's order.

    A pattern is an exact name (`layer4`), a glob by segments (`blocks.*`; `**` crosses dots), a
    name with positions counted as in a list (`blocks[-3].mlp`), a regular expression for the whole
    name (`re:layer[34]`), `"input"`, or a module of the model. Wrapper prefixes may be left in.

    Raises:
        TypeError: The pattern is neither text nor a module.
        ValueError: It matches nothing; the message has close names.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Linear(2, 2)))
        >>> [layer.name for layer in find_layers(model, "1[-1]")]
        ['1.1']
    """
    layers = named_layers(model)
    if isinstance(pattern, nn.Module):
        return [_by_module(model, layers, pattern)]
    if not isinstance(pattern, str):
        raise TypeError(f"a layer is chosen by name or module, got {pattern!r}")
    if pattern == INPUT and INPUT not in layers:
        return [Layer(INPUT, unwrap(model), is_input=True)]
    names = next(filter(None, (_matching(model, layers, p) for p in _spellings(pattern))), [])
    if not names:
        raise ValueError(_no_such_layer(model, layers, pattern))
    return _distinct([Layer(name, layers[name]) for name in names])


def find_entries(model: nn.Module, layers: Entry | list[Entry]) -> list[tuple[Layer, ...]]:
    """What `ManifoldMixup` draws from: entries of one or more layers, mixed together in a step.

    A pattern stands for its matches as separate entries, a tuple of patterns for one entry of all
    its matches.

    Raises:
        ValueError: A pattern matches nothing, an entry holds a layer and its own ancestor, or
            there is no layer at all.
    """
    entries: list[tuple[Layer, ...]] = []
    for given in layers if isinstance(layers, list) else [layers]:
        if isinstance(given, tuple):
            together = [layer for pattern in given for layer in find_layers(model, pattern)]
            entries.append(tuple(_distinct(together)))
        else:
            entries.extend((layer,) for layer in find_layers(model, given))
    if not entries or not all(entries):
        raise ValueError("layers is empty: name at least one layer, such as 'layer4'")
    distinct: dict[frozenset[int], tuple[Layer, ...]] = {}
    for entry in entries:
        _refuse_ancestors(entry)
        for layer in entry:
            if isinstance(layer.module, torch.jit.ScriptModule):
                raise ValueError(
                    f"layer '{layer.name}' is TorchScript, which takes no hooks; choose another "
                    "layer, or script the model after its training"
                )
        distinct.setdefault(frozenset(id(layer.module) for layer in entry), entry)
    return list(distinct.values())


def entry_name(entry: tuple[Layer, ...]) -> str | tuple[str, ...]:
    """The name of an entry's layer; the names of several that are mixed together."""
    return entry[0].name if len(entry) == 1 else tuple(layer.name for layer in entry)


def _by_module(model: nn.Module, layers: dict[str, nn.Module], wanted: nn.Module) -> Layer:
    for name, module in layers.items():
        if module is unwrap(wanted):
            return Layer(name, module)
    root = type(unwrap(model)).__name__
    if unwrap(wanted) is unwrap(model):
        raise ValueError(f"the layer is the whole {root}; choose one inside it, or 'input'")
    raise ValueError(
        f"the {type(wanted).__name__} given as layer is not part of this {root}; "
        "pass a module of this very model, or its name"
    )


def _matching(model: nn.Module, layers: dict[str, nn.Module], pattern: str) -> list[str]:
    if pattern in layers:
        return [pattern]
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise ValueError(f"'{pattern}' is not a regular expression: {error}") from error
        return [name for name in layers if expression.fullmatch(name)]
    if position := re.fullmatch(r"(.*?)\[(-?\d+)\](.*)", pattern):
        parent, index, rest = position[1], int(position[2]), position[3]
        children = _children(model, layers, parent, index)
        return [name for c in children for name in _matching(model, layers, f"{c}{rest}")]
    if "*" in pattern or "?" in pattern:
        return [name for name in layers if _glob(pattern.split("."), name.split("."))]
    return [pattern] if pattern in layers else []


def _children(
    model: nn.Module, layers: dict[str, nn.Module], parent: str, index: int
) -> list[str]:
    """The child at a position in each layer that matches `parent`, in the model if it is empty."""
    parents = {name: layers[name] for name in _matching(model, layers, parent)}
    if not parent:
        parents = {"": unwrap(model)}
    children = {name: list(module._modules) for name, module in parents.items()}
    found = [
        f"{name}.{inside[index]}".removeprefix(".")
        for name, inside in children.items()
        if -len(inside) <= index < len(inside)
    ]
    if parents and not found:
        most = max(len(inside) for inside in children.values())
        raise ValueError(
            f"layer '{parent}' has {most} children, so '{parent}[{index}]' does not exist"
        )
    return found


def _glob(pattern: list[str], name: list[str]) -> bool:
    if not pattern or not name:
        return not name and all(segment == "**" for segment in pattern)
    if pattern[0] == "**":
        return _glob(pattern[1:], name) or _glob(pattern, name[1:])
    return fnmatch.fnmatchcase(name[0], pattern[0]) and _glob(pattern[1:], name[1:])


def _spellings(pattern: str) -> Iterator[str]:
    """The pattern, then with ever fewer of the segments in it that a wrapper may have added."""
    yield pattern
    while added := next((one for one in _ADDED if f".{one}." in f".{pattern}."), None):
        pattern = f".{pattern}.".replace(f".{added}.", ".", 1).strip(".")
        yield pattern


def _no_such_layer(model: nn.Module, layers: dict[str, nn.Module], pattern: str) -> str:
    *_, wanted = _spellings(pattern)
    last = wanted.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(wanted, layers, 3)
    close = close or [name for name in layers if name.rsplit(".", 1)[-1] == last][:3]
    hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    return (
        f"{type(unwrap(model)).__name__} has no layer '{pattern}'{hint} "
        "(layer_table(model), or `manifold-mixup layers`, lists them)"
    )


def _distinct(layers: list[Layer]) -> list[Layer]:
    first: dict[int, Layer] = {}
    for layer in layers:
        first.setdefault(id(layer.module), layer)
    return list(first.values())


def _refuse_ancestors(entry: tuple[Layer, ...]) -> None:
    for outer in entry:
        below = {id(module) for module in outer.module.modules()} - {id(outer.module)}
        for inner in entry:
            if not outer.is_input and id(inner.module) in below:
                raise ValueError(
                    f"layer '{inner.name}' lies inside '{outer.name}': mixing both in one step "
                    "would mix twice; choose one of them"
                )
