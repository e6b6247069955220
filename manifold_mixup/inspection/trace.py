"""A dry run of a model: what each layer returns, how often it runs, how the output depends on it.

One forward pass on two samples records every module's calls, outputs and place in the autograd
graph; a second one on three samples tells which axis is the batch. Nothing of the model changes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from manifold_mixup.inspection.flow import Flow, Step
from manifold_mixup.inspection.graph import Dominators, N, ancestors, descendants
from manifold_mixup.inspection.layers import INPUT, named_layers, unwrap
from manifold_mixup.inspection.modes import bytes_explained, undisturbed
from manifold_mixup.inspection.nested import (
    find_tensors,
    is_float,
    map_tensors,
    take_samples,
    watched,
)


@dataclass(frozen=True)
class Leaf:
    """One tensor that a module returned, and in `rows` what tells its samples apart."""

    shape: torch.Size
    dtype: torch.dtype
    node: Node | None
    step: Step | None
    rows: Tensor | None


@dataclass
class Run:
    """What one module did.

    `value` is what it returned for two samples if it was to be kept, else the structure of that;
    `is_nested` says that it returned a nested tensor, for two samples or for three.
    """

    calls: int = 0
    kind: str = ""
    value: Any = None
    leaves: dict[str, Leaf] = field(default_factory=dict)
    leaves_for_three: dict[str, Leaf] = field(default_factory=dict)
    is_nested: bool = False
    flops: int = 0
    started: int | None = None
    ended: int | None = None

    @property
    def nodes(self) -> list[Node]:
        """The nodes of what it returned."""
        return [leaf.node for leaf in self.leaves.values() if leaf.node is not None]

    @property
    def steps(self) -> list[Step]:
        """The steps of what it returned."""
        return [leaf.step for leaf in self.leaves.values() if leaf.step is not None]


@dataclass
class Trace:
    """The dry run of a model: a run for each module, by id, and the graph of its output.

    `grows` says whether what the model returns grows with the first axis of what it takes;
    `output` is what it returned for two samples, `shapes` are those of the tensors in it.
    What `sources` and `sinks` are in autograd's graph, `first_steps` and `last_steps` are in that
    of all that was computed.
    """

    model: nn.Module
    layers: dict[str, nn.Module]
    runs: dict[int, Run]
    inputs: set[Node]
    sources: set[Node]
    first_steps: set[Step] = field(default_factory=set)
    sinks: list[Node] = field(default_factory=list)
    last_steps: list[Step] = field(default_factory=list)
    upstream: set[Node] = field(default_factory=set)
    grows: bool = True
    output: Any = None
    shapes: list[torch.Size] = field(default_factory=list)
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

    def modules_after(self, name: str) -> list[nn.Module]:
        """The modules that start only when the layer has ended."""
        ended = self.run(name).ended
        starts = {module: self.runs[id(module)].started for module in self.model.modules()}
        return [m for m, start in starts.items() if start is not None and ended and start > ended]

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

    @cached_property
    def dependent(self) -> set[Node]:
        """The nodes that are computed from what the model takes."""
        returned = (node for run in self.runs.values() for node in run.nodes)
        known = ancestors([*self.sinks, *returned])
        return descendants(self.sources, known)

    def bypass(self, names: Iterable[str], nodes: set[Node]) -> str | None:
        """What reaches the model's output around the nodes of some layers; None if nothing does.

        It is the last layer to end before they do, or "input".
        """
        is_around = self._dominators.around(nodes)
        return self._last(names, self.sources, lambda run: run.nodes, is_around)

    def hidden_bypass(self, names: Iterable[str], steps: set[Step]) -> str | None:
        """The same where no gradient may lead, by the steps of some layers."""
        is_around = self._dominating_steps.around(steps)
        return self._last(names, self.first_steps, lambda run: run.steps, is_around)

    def _last(
        self,
        names: Iterable[str],
        sources: Iterable[N],
        returned: Callable[[Run], Iterable[N]],
        is_around: Callable[[N], bool],
    ) -> str | None:
        """The last layer before some others that returned what leads around, or "input"."""
        if not any(map(is_around, sources)):
            return None
        first = min(self.run(name).ended or 0 for name in names)
        for name, run in self._last_first.items():
            if (run.ended or first) < first and any(map(is_around, returned(run))):
                return name
        return INPUT

    @cached_property
    def _dominators(self) -> Dominators[Node]:
        return Dominators(self.sinks)

    @cached_property
    def _dominating_steps(self) -> Dominators[Step]:
        return Dominators(self.last_steps)

    @cached_property
    def _last_first(self) -> dict[str, Run]:
        """The run of each layer by its name, those that end last first."""
        names = sorted(self.layers, key=lambda name: -(self.run(name).ended or 0))
        return {name: self.run(name) for name in names}


def _check_values(root: nn.Module) -> None:
    """Raise a ValueError unless parameters have values that gradients can pass."""
    if any(tensor.is_meta for tensor in root.parameters()):
        raise ValueError(
            f"{type(root).__name__} has parameters on the meta device, without values: load its "
            "weights first, by to_empty(device=...) and load_state_dict(...)"
        )
    if any(tensor.is_inference() for tensor in root.parameters()):
        made = "has parameters made under torch.inference_mode(): make the model outside of it"
        raise ValueError(f"{type(root).__name__} {made}")


@torch.inference_mode(False)
def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    keep: Iterable[str] = (),
    count_flops: bool = False,
) -> Trace:
    """Run a model twice and record what every module does.

    The model runs in eval mode; its modes, buffers and all random states come back as they were.

    Args:
        model: The model, wrapped or not.
        args: Positional inputs of a forward pass, of any batch size.
        kwargs: Keyword inputs.
        keep: Layers whose output for two samples is kept, by name.
        count_flops: Count floating-point operations too.

    Raises:
        ValueError: The model has no values, or is a graph for another number of samples.
    """
    root = unwrap(model)
    _check_values(root)
    # The first two in another order, to see which rows of an output are theirs.
    two, three = (
        watched(take_samples((args, dict(kwargs)), rows)) for rows in ([0, 1], [1, 0, 1])
    )
    inputs = {t.grad_fn for t in find_tensors(two).values() if t.grad_fn is not None}
    runs = {id(m): Run() for m in root.modules()}
    found = Trace(root, named_layers(root), runs, inputs, sources=set(inputs))
    # With gradients also for shapes alone: reentrant checkpointing would warn of their absence.
    flow = Flow()
    with undisturbed(root), torch.enable_grad(), bytes_explained(root, two):
        kept = {found.layers[name] for name in keep}
        with _graph_explained(root), _recording(root, found, kept, flow, count_flops):
            found.first_steps |= {flow.mark(t) for t in find_tensors(two).values() if is_float(t)}
            found.output = root(*two[0], **two[1])
        with _graph_explained(root), _recording_three(root, found):
            output_for_three = root(*three[0], **three[1])
    shapes, grown = (
        {p: t.shape for p, t in _tensors(o).items()} for o in (found.output, output_for_three)
    )
    found.shapes = list(shapes.values())
    found.grows = shapes != grown or not any(shapes.values())
    returned = _tensors(found.output).values()
    trained = [t for t in returned if t.grad_fn is not None]
    found.sinks = [t.grad_fn for t in trained if t.grad_fn is not None]
    # What carries no gradient beside what does is no part of a loss.
    steps = map(flow.step, trained or returned)
    found.last_steps = [step for step in steps if step is not None]
    found.upstream = ancestors(found.sinks)
    return found


@contextmanager
def _graph_explained(root: nn.Module) -> Iterator[None]:
    """Says of an exported module, whose layers are not called either, what to use instead."""
    try:
        yield
    except Exception as error:
        if not isinstance(root, torch.fx.GraphModule):
            raise
        raise ValueError(
            f"{type(root).__name__} is exported or traced, for some number of samples alone "
            f"({error}): give the module that it was made from"
        ) from error


@contextmanager
def _recording(
    root: nn.Module, found: Trace, kept: Set[nn.Module], flow: Flow, count_flops: bool
) -> Iterator[None]:
    clock = itertools.count(1)
    with ExitStack() as stack:
        counter = stack.enter_context(_flop_counter()) if count_flops else None
        stack.enter_context(flow)

        def before(module: nn.Module, args: Any) -> None:
            run = found.runs[id(module)]
            run.started = next(clock) if run.started is None else run.started

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            run = found.runs[id(module)]
            run.calls += 1
            run.kind, run.is_nested = type(output).__name__, _is_nested(output)
            # Integer inputs are not in the graph: what is looked up for them stands in for them.
            shape = getattr(args[0], "shape", ()) if args else ()
            looked_up = isinstance(module, nn.Embedding) and shape[:1] == (2,)
            if looked_up:  # detached, as a frozen one's output has no gradient to find it by
                output = output.detach().requires_grad_()
            # A copy, as a mix would make: an Identity differs in the graph from what it takes.
            output = _mapped(
                output, lambda t: t.clone() if t.requires_grad or flow.holds(t) else t
            )
            if looked_up:
                found.first_steps |= {flow.mark(t) for t in _tensors(output).values()}
            run.leaves = {p: _leaf(t, 2, flow.step(t)) for p, t in _tensors(output).items()}
            run.value = _mapped(output, _copied if module in kept else _bare)
            run.ended = next(clock)
            run.flops = counter.get_total_flops() if counter else 0
            if looked_up:
                found.sources |= {leaf.node for leaf in run.leaves.values() if leaf.node}
            return output

        for module in _hookable(root):
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield
        found.flops = counter.get_total_flops() if counter else 0


@contextmanager
def _recording_three(root: nn.Module, found: Trace) -> Iterator[None]:
    def after(module: nn.Module, args: Any, output: Any) -> None:
        run = found.runs[id(module)]
        run.leaves_for_three = {path: _leaf(t, 3) for path, t in _tensors(output).items()}
        run.is_nested = run.is_nested or _is_nested(output)

    with ExitStack() as stack:
        for module in _hookable(root):
            stack.callback(module.register_forward_hook(after).remove)
        yield


def _hookable(root: nn.Module) -> list[nn.Module]:
    """The modules inside a model, but for those of TorchScript, which take no hooks."""
    return [m for m in list(root.modules())[1:] if not isinstance(m, torch.jit.ScriptModule)]


def _mapped(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    try:
        return map_tensors(output, lambda _, tensor: function(tensor))
    except TypeError:  # rows that are not samples are never mixed
        return output


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _bare(tensor: Tensor) -> Tensor:
    return torch.empty((), dtype=tensor.dtype, device="meta")


def _flop_counter() -> Any:
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


def _leaf(tensor: Tensor, n: int, step: Step | None = None) -> Leaf:
    rows = None
    if is_float(tensor) and len(tensor) == n and tensor.layout == torch.strided:
        flat = tensor.detach().reshape(n, -1)
        flat = flat.float() if flat.dtype.itemsize < 4 else flat
        rms = torch.linalg.vector_norm(flat, dim=1) / flat.shape[1] ** 0.5
        rows = torch.stack([flat.mean(1), rms], 1)
    return Leaf(tensor.shape, tensor.dtype, tensor.grad_fn, step, rows)


def _tensors(output: Any) -> dict[str, Tensor]:
    try:
        # A nested tensor has no shape to tell.
        return {path: t for path, t in find_tensors(output).items() if not t.is_nested}
    except TypeError:
        return {}


def _is_nested(output: Any) -> bool:
    return isinstance(output, Tensor) and output.is_nested
