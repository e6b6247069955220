"""What a module's forward takes: its arguments by name and by position."""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

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
