"""A dry run of a model: what each layer returns, how often it runs, how the output depends on it.

One forward pass on two samples records every module's calls, outputs and place in the autograd
graph; a second one on three samples tells which axis is the batch. Nothing of the model changes.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from manifold_mixup.layers import named_layers, unwrap
from manifold_mixup.modes import undisturbed
from manifold_mixup.outputs import find_tensors, map_tensors


@dataclass(frozen=True)
class Leaf:
    """One tensor that a module returned for two samples."""

    shape: torch.Size
    dtype: torch.dtype
    node: Node | None


@dataclass
class Run:
    """What one module did."""

    calls: int = 0
    kind: str = ""
    leaves: dict[str, Leaf] = field(default_factory=dict)
    shapes_for_three: dict[str, torch.Size] = field(default_factory=dict)
    flops: int = 0
    started: int | None = None
    ended: int | None = None


@dataclass
class Trace:
    """The dry run of a model: a run for each module, by id, and the graph of its output."""

    model: nn.Module
    layers: dict[str, nn.Module]
    runs: dict[int, Run]
    inputs: set[Node]
    sources: set[Node]
    sinks: list[Node] = field(default_factory=list)
    upstream: set[Node] = field(default_factory=set)
    flops: int = 0

    def run(self, name: str) -> Run:
        """What the layer of that name did."""
        return self.runs[id(self.layers[name])]

    def parameters_after(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters of modules that start only when the layer has ended, by name."""
        ended = self.run(name).ended
        if ended is None:
            return {}
        return {own: tensor for own, (started, tensor) in self._starts.items() if started > ended}

    def modules_until(self, name: str) -> set[nn.Module]:
        """The modules that have ended for good when the layer has, this one included."""
        until = self.run(name).ended
        ends = {module: self.runs[id(module)].ended for module in self.model.modules()}
        return {m for m, end in ends.items() if end is not None and until and end <= until}

    def modules_before(self, name: str) -> dict[str, nn.Module]:
        """The modules that start before the layer has ended, by name, the model itself included.

        A module that is never called is used by the one that holds it, and counts with that one.
        """
        ended = self.run(name).ended or 0
        modules = dict(self.model.named_modules())
        return {path: modules[path] for path, started in self._started.items() if started <= ended}

    @cached_property
    def _started(self) -> dict[str, int]:
        """When each module started first, by its name."""
        starts: dict[str, int] = {}
        for path, module in self.model.named_modules():
            started = self.runs[id(module)].started
            # A module that is never called is used by the one that holds it.
            starts[path] = starts.get(path.rpartition(".")[0], 0) if started is None else started
        return starts

    @cached_property
    def _starts(self) -> dict[str, tuple[int, nn.Parameter]]:
        """Every parameter, and when its module started first."""
        return {
            own: (self._started[path], parameter)
            for path, module in self.model.named_modules()
            for own, parameter in module.named_parameters(path, recurse=False)
        }

    @property
    def is_connected(self) -> bool:
        """Whether the graph leads from output to input (no_grad inside the model cuts it)."""
        return not self.sources.isdisjoint(self.upstream)

    def bypasses(self, nodes: set[Node]) -> bool:
        """Whether a path leads from the model's output to its input around the given nodes."""
        return not self.sources.isdisjoint(ancestors(self.sinks, avoiding=nodes))


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    count_flops: bool = False,
) -> Trace:
    """Run a model twice and record what every module does.

    The model runs in eval mode; its modes, buffers and all random states come back as they were.

    Args:
        model: The model, wrapped or not.
        args: Positional inputs of a forward pass, of any batch size.
        kwargs: Keyword inputs.
        count_flops: Count floating-point operations too.
    """
    root = unwrap(model)
    two, three = (_watched(_samples((args, dict(kwargs)), n)) for n in (2, 3))
    inputs = {t.grad_fn for t in find_tensors(two).values() if t.grad_fn is not None}
    runs = {id(m): Run() for m in root.modules()}
    found = Trace(root, named_layers(root), runs, inputs, sources=set(inputs))
    # With gradients also for shapes alone: reentrant checkpointing would warn of their absence.
    with undisturbed(root), torch.enable_grad():
        with _recording(root, found, count_flops):
            output = root(*two[0], **two[1])
        with _recording_shapes(root, found):
            root(*three[0], **three[1])
    found.sinks = [t.grad_fn for t in _tensors(output).values() if t.grad_fn is not None]
    found.upstream = ancestors(found.sinks)
    return found


def ancestors(starts: Iterable[Node], avoiding: set[Node] | None = None) -> set[Node]:
    """The nodes of the autograd graph that lead to the given ones, these included."""
    avoided = avoiding or set()
    seen = set(avoided)
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(before for before, _ in node.next_functions if before is not None)
    return seen - avoided


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as inputs: a tuple stands for positional, a dict for keyword arguments.

    Example:
        >>> arguments({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


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


@contextmanager
def _recording(root: nn.Module, found: Trace, count_flops: bool) -> Iterator[None]:
    clock = itertools.count(1)
    with ExitStack() as stack:
        counter = stack.enter_context(_flop_counter()) if count_flops else None

        def before(module: nn.Module, args: Any) -> None:
            run = found.runs[id(module)]
            run.started = next(clock) if run.started is None else run.started

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            run = found.runs[id(module)]
            run.calls += 1
            run.kind = type(output).__name__
            # Integer inputs are not in the graph: what is looked up for them stands in for them.
            looked_up = isinstance(module, nn.Embedding) and args and args[0].shape[:1] == (2,)
            if looked_up:  # detached, as a frozen one's output has no gradient to find it by
                output = output.detach().requires_grad_()
            output = _with_own_nodes(output)
            run.leaves = {
                p: Leaf(t.shape, t.dtype, t.grad_fn) for p, t in _tensors(output).items()
            }
            run.ended = next(clock)
            run.flops = counter.get_total_flops() if counter else 0
            if looked_up:
                found.sources |= {leaf.node for leaf in run.leaves.values() if leaf.node}
            return output

        for module in list(root.modules())[1:]:
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield
        found.flops = counter.get_total_flops() if counter else 0


@contextmanager
def _recording_shapes(root: nn.Module, found: Trace) -> Iterator[None]:
    def after(module: nn.Module, args: Any, output: Any) -> None:
        shapes = {path: tensor.shape for path, tensor in _tensors(output).items()}
        found.runs[id(module)].shapes_for_three = shapes

    with ExitStack() as stack:
        for module in list(root.modules())[1:]:
            stack.callback(module.register_forward_hook(after).remove)
        yield


def _with_own_nodes(output: Any) -> Any:
    """A copy, as a mix would make, so that an Identity differs in the graph from what it takes."""
    try:
        return map_tensors(output, lambda _, t: t.clone() if t.requires_grad else t)
    except TypeError:  # rows that are not samples are never mixed
        return output


def _flop_counter() -> Any:
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


def _samples(inputs: Any, n: int) -> Any:
    """The inputs with n samples, repeated where they have fewer."""
    size = next((len(t) for t in find_tensors(inputs).values() if t.ndim and len(t)), None)
    if size is None:
        raise ValueError("the example holds no batch: pass a tensor (B, *), a tuple or a dict")

    def take(_: str, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != size:
            return tensor
        return tensor.index_select(0, torch.arange(n, device=tensor.device) % size)

    return map_tensors(inputs, take)


@torch.enable_grad()
def _watched(inputs: Any) -> Any:
    """The inputs as sources of a graph: clones of leaves, so that a model may change them."""
    return map_tensors(
        inputs, lambda _, t: t.detach().requires_grad_().clone() if _floats(t) else t
    )


def _tensors(output: Any) -> dict[str, Tensor]:
    try:
        return find_tensors(output)
    except TypeError:
        return {}


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0
