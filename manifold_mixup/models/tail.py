"""What of a model comes after a layer, as a model of its own that shares the parameters.

The modules around the layer are copied without what is in them. In these copies a stand-in that
returns NaN takes the place of every module that has ended before the layer has, and one that
returns the given features takes the place of the layer. So nothing is computed twice, and a value
that would reach the output around the layer makes it NaN. What is the same for all inputs and used
behind the layer, as rotary tables are, is computed again.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.inspection import find_tensors, map_tensors


@dataclass(frozen=True)
class Outline:
    """What a module takes or returns, without the values: its structure and its shapes.

    Attributes:
        value: The nested value, with a tensor on the meta device for each of its tensors.
        two: The shape of each tensor for 2 samples, by its path.
        three: The same for 3 samples.
    """

    value: Any
    two: Mapping[str, torch.Size]
    three: Mapping[str, torch.Size]

    @classmethod
    def of(cls, value: Any, two: Mapping[str, Any], three: Mapping[str, Any]) -> "Outline":
        """The outline of a value, and of what has shapes for 2 and for 3 samples."""
        bare = map_tensors(value, lambda _, tensor: tensor.detach().to("meta"))
        shapes = ({path: t.shape for path, t in found.items()} for found in (two, three))
        return cls(bare, *shapes)

    def filled(self, n: int, device: torch.device, *, is_writable: bool = False) -> Any:
        """The value for n samples: NaN throughout, 0 where a dtype has none.

        It takes no memory unless it has to be writable.
        """

        def blank(path: str, tensor: Tensor) -> Tensor:
            shape, fill = self._shape(path, n), torch.nan if _has_nan(tensor) else 0
            value = torch.full((), fill, dtype=tensor.dtype, device=device)
            return value.repeat(shape) if is_writable else value.expand(shape)

        return map_tensors(self.value, blank)

    @property
    def has_nan(self) -> bool:
        """Whether NaN can stand in for (a part of) the value."""
        return any(map(_has_nan, find_tensors(self.value).values()))

    def count(self, value: Any) -> int:
        """The number of samples in a value of this structure.

        Raises:
            ValueError: It has another structure, or other shapes.
        """
        tensors = find_tensors(value)
        if tensors.keys() != self.two.keys():
            raise ValueError(
                f"features with tensors at {list(tensors)}, expected them at {list(self.two)}: "
                "give what the prefix returns"
            )
        counts = {path: self._count(path, tensor) for path, tensor in tensors.items()}
        found = {n for n in counts.values() if n is not None}
        if len(found) != 1:
            raise ValueError(f"features hold different numbers of samples: {sorted(found)}")
        return found.pop()

    def _shape(self, path: str, n: int) -> list[int]:
        pairs = zip(self.two[path], self.three[path], strict=True)
        return [two + (three - two) * (n - 2) for two, three in pairs]

    def _count(self, path: str, tensor: Tensor) -> int | None:
        """The number of samples in one tensor; None if it does not tell."""
        two, three = self.two[path], self.three[path]
        grown = [axis for axis in range(len(two)) if two[axis] != three[axis]]
        n = 2
        if grown and tensor.ndim == len(two):
            axis = grown[0]
            n += (tensor.shape[axis] - two[axis]) // (three[axis] - two[axis])
        if list(tensor.shape) != self._shape(path, n):
            raise ValueError(
                f"features of shape {tuple(tensor.shape)}, expected {tuple(two)} for 2 samples as "
                "when the model was cut; cut it with an example of this size"
            )
        return n if grown else None


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass(eq=False)
class Feed:
    """What the stand-ins of a tail return during its forward pass.

    Attributes:
        features: For the layer.
        n: Number of samples in them.
        device: Where they are.
        keeps_features: Whether the layer returns a copy, because the tail writes to it in place.
        is_writable: Whether the others return memory of their own, because it writes to that.
        is_exact: Whether they return float64 for each floating-point type, as the tail computes.
        watch: Takes what they return, and what stands in for the model's first input, if given.
    """

    features: Any = None
    n: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    keeps_features: bool = False
    is_writable: bool = False
    is_exact: bool = False
    watch: Callable[[Any], object] | None = None

    def fill(self, outline: Outline) -> Any:
        """What stands in for a value of this outline."""
        value = outline.filled(self.n, self.device, is_writable=self.is_writable)
        if self.is_exact:
            value = map_tensors(value, lambda _, t: t.double() if t.is_floating_point() else t)
        if self.watch is not None:
            self.watch(value)
        return value


class Tail(nn.Module):
    """A model from behind a layer on: takes the layer's features, returns what the model returns.

    It is made by `cut`, is an instance of the model's class too, and has the names of its layers.
    `parameters()` are those that come into play only behind the layer.

    Attributes:
        feed: What the stand-ins in it return.
        needs_first: Whether it looks at the model's first input too.
        inputs: What the model takes, by name.
        used_before: The parameters in it that are used before the layer too: their `id` by name,
            which a copy's own have not.
    """

    feed: Feed
    needs_first: bool
    used_before: dict[str, int]
    inputs: dict[str, Outline]
    _features: Outline
    _positions: int

    def forward(self, features: Any, *others: Any, **named: Any) -> Any:
        """What the model returns.

        Args:
            features: What the prefix returned.
            others: The model's positional inputs behind the first.
            named: Its inputs by name; the first one only where the tail looks at it too.

        Raises:
            TypeError: An input that the model had when it was cut is missing.
            ValueError: The features have another shape than when the model was cut.
        """
        feed = self.feed
        feed.n = self._features.count(features)
        feed.device = next(iter(find_tensors(features).values())).device
        feed.features = features
        args, kwargs = self._filled(others, named)
        try:
            return super().forward(*args, **kwargs)
        finally:
            feed.features = None

    def _filled(
        self, others: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The model's inputs: those given, and a stand-in for the first."""
        names = list(self.inputs)
        given = {**dict(zip(names[1:], others, strict=False)), **named}
        values: dict[str, Any] = dict(given)
        for position, (name, outline) in enumerate(self.inputs.items()):
            if name in given:
                continue
            if outline.two and (position or self.needs_first):
                raise TypeError(
                    f"{type(self).__name__}: the model's input '{name}' is missing; give it "
                    f"beside the features, as in tail(features, {name}=...)"
                )
            values[name] = self.feed.fill(outline)
        positional = names[: self._positions]
        args = tuple(values.pop(name) for name in positional) + others[len(names) - 1 :]
        return args, values


class _StandIn(nn.Module):
    """Has the attributes of another module, and returns NaN in the shape of what that returns."""

    def __init__(self, original: nn.Module, outline: Outline | None, feed: Feed) -> None:
        super().__init__()
        self._original = _Shared(original)
        self._outline, self.feed = outline, feed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns, without its values; for the layer, the features."""
        feed = self.feed
        if self._outline is not None:
            return feed.fill(self._outline)
        if feed.keeps_features:
            return map_tensors(feed.features, lambda _, tensor: tensor.clone())
        return feed.features

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"].module, name)


class _Shared:
    """Holds a module that copies share, and that is not a part of its holder."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


def build_tail(
    root: nn.Module,
    layer: nn.Module,
    features: Outline,
    ended: Mapping[nn.Module, Outline | None],
    inputs: tuple[tuple[Outline, ...], Mapping[str, Outline]],
) -> Tail:
    """Build the tail of a model, unverified.

    Args:
        root: The model.
        layer: The module that the features come from.
        features: What it returns.
        ended: The outermost modules that have ended when the layer has, and what they return;
            None for those that run anew.
        inputs: What the model takes.
    """
    feed = Feed()
    stand_ins: dict[nn.Module, nn.Module] = {
        module: _still(module) if outline is None else _StandIn(module, outline, feed)
        for module, outline in ended.items()
    }
    stand_ins[layer] = _StandIn(layer, None, feed)
    tail = _with_class_changed(_shallow(root, stand_ins))
    tail.feed, tail._features, tail.needs_first = feed, features, False
    tail.used_before = {}
    positional, keywords = inputs
    parameters = inspect.signature(root.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    names += [str(position) for position in range(len(names), len(positional))]
    tail.inputs = {**dict(zip(names, positional, strict=False)), **keywords}
    tail._positions = len(positional)
    return tail


def _with_class_changed(copied: nn.Module) -> Tail:
    """A copy of a model as a `Tail` that keeps the model's methods: its class becomes one of both.

    The model's own `forward` runs in it, whatever that looks up on itself.
    """
    copied.__class__ = type(f"{type(copied).__name__}Tail", (Tail, type(copied)), {})
    assert isinstance(copied, Tail)
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        copied.__dict__[name].clear()  # those of the model expect what it takes
    return copied


def _copied(module: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The module's stand-in, or a copy if there are stand-ins in it, or itself."""
    if module in stand_ins:
        return stand_ins[module]
    inside = set(module.modules())
    return module if inside.isdisjoint(stand_ins) else _shallow(module, stand_ins)


def _still(module: nn.Module) -> nn.Module:
    """A copy whose parameters, and those of all that is in it, are buffers."""
    return _shallow(module, {child: _still(child) for child in module.children()})


def _shallow(module: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A copy with its own containers; parameters it holds come before the layer: now buffers."""
    clone = module.__class__.__new__(module.__class__)
    clone.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict | set) else value
        for name, value in vars(module).items()
    }
    clone._compiled_call_impl = None
    clone._modules = {
        name: None if child is None else _copied(child, stand_ins)
        for name, child in module._modules.items()
    }
    for name, parameter in module._parameters.items():
        if parameter is not None:
            del clone._parameters[name]
            clone.register_buffer(name, parameter.detach(), persistent=False)
    if isinstance(stay := vars(module).get("train"), functools.partial):  # of a frozen module
        clone.__dict__["train"] = functools.partial(stay.func, clone)
    return clone
