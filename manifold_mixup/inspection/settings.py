"""The settings that modules look at while they run: numbers, flags, names and the like."""

import functools
import hashlib
import types
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from numbers import Number
from typing import Any

import torch
from torch import nn

from manifold_mixup.inspection.layers import unwrap

# What every module has, and what is no setting.
_OF_EVERY_MODULE = frozenset(dir(nn.Module()))


_PLAIN = (Number, str, bytes, Enum, type(None), torch.dtype, torch.Size)


_MISSING = object()


# Longer texts are known by a checksum.
_LONGEST = 60


@contextmanager
def settings_read(model: nn.Module) -> Iterator[dict[str, dict[str, str]]]:
    """Inside the block, notes what modules of a model look up on themselves, by module and name.

    So the number of classes belongs to what a head does, not to what comes before it. Left out is
    what the modules set by themselves, such as counters. All is there when the block has ended.

    Args:
        model: The model, wrapped or not; its modules change their class inside the block.

    Example:
        >>> model = nn.Sequential(nn.Softmax(dim=1))
        >>> with settings_read(model) as settings:
        ...     _ = model(torch.ones(1, 2))
        >>> settings
        {'0': {'dim': '1'}}
    """
    names = {id(module): name for name, module in unwrap(model).named_modules()}
    settings: dict[str, dict[str, str]] = {}
    written: set[tuple[str, str]] = set()

    def read(module: nn.Module, name: str, value: Any) -> None:
        if id(module) not in names:  # made in the pass, as a slice of a ModuleList is
            return
        own = settings.setdefault(names[id(module)], {})
        if name not in own and (text := describe_setting(value)) is not None:
            own[name] = text

    def wrote(module: nn.Module, name: str) -> None:
        if id(module) in names:
            written.add((names[id(module)], name))

    with _watched(unwrap(model), read, wrote):
        yield settings
    now = describe_settings(model, settings)
    for module, own in list(settings.items()):
        for name in list(own):
            if (module, name) in written or own[name] != now[module][name]:
                del own[name]
        if not own:
            del settings[module]


def describe_settings(
    model: nn.Module, names: dict[str, dict[str, str]]
) -> dict[str, dict[str, str]]:
    """What the settings of these modules and names are now; nothing where there is none."""
    modules = dict(unwrap(model).named_modules())

    def text(module: str, name: str) -> str:
        return describe_setting(getattr(modules.get(module), name, _MISSING)) or ""

    return {module: {name: text(module, name) for name in own} for module, own in names.items()}


def describe_setting(value: Any) -> str | None:
    """A setting as text, the same for the same value; None for what is no setting."""
    text = _text(value)
    if text is None or len(text) <= _LONGEST:
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(value: Any) -> str | None:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        return f"partial{_text((value.func, value.args, value.keywords))}"
    if isinstance(value, dict):
        return f"dict{_text(list(value.items()))}"
    if isinstance(value, tuple | list | set | frozenset):
        inside = [_text(one) or type(one).__name__ for one in value]
        if isinstance(value, set | frozenset):
            inside.sort()
        return f"{type(value).__name__}({', '.join(inside)})"
    return None


@contextmanager
def _watched(model: nn.Module, read: Any, wrote: Any) -> Iterator[None]:
    """Modules in classes of the same behaviour that tell what is read and written."""
    changed: list[tuple[nn.Module, type, type]] = []
    kinds: dict[type, type] = {}
    try:
        for module in model.modules():
            kind = type(module)
            if isinstance(module, torch.jit.ScriptModule):  # whose attributes are not Python's
                continue
            if kind not in kinds:
                kinds[kind] = _watching(kind, read, wrote)
            module.__class__ = kinds[kind]
            changed.append((module, kind, kinds[kind]))
        yield
    finally:
        for module, kind, watching in changed:
            if type(module) is watching:
                module.__class__ = kind


def _watching(kind: Any, read: Any, wrote: Any) -> type:
    def look_up(self: Any, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        if name not in _OF_EVERY_MODULE and not name.startswith("__"):
            read(self, name, value)
        return value

    def assign(self: Any, name: str, value: Any) -> None:
        wrote(self, name)
        kind.__setattr__(self, name, value)

    inside = {"__getattribute__": look_up, "__setattr__": assign, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), inside)
