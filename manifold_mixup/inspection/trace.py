"""A dry run of a model: what each layer returns, how often it runs, how the output depends on it.

One forward pass on two samples records every module's calls, outputs and place in the autograd
graph; a second one on three samples tells which axis is the batch. Nothing of the model changes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from manifold_mixup.inspection.graph import Dominators, ancestors, descendants
from manifold_mixup.inspection.layers import INPUT, named_layers, unwrap
from manifold_mixup.inspection.modes import undisturbed
from manifold_mixup.inspection.nested import find_tensors, map_tensors, take_samples


@dataclass(frozen=True)
class Leaf:
    """One tensor that a module returned, and in `rows` what tells its samples apart."""

    shape: torch.Size
    dtype: torch.dtype
    node: Node | None
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


@dataclass
class Trace:
    """The dry run of a model: a run for each module, by id, and the graph of its output.

    `grows` says whether what the model returns grows with the first axis of what it takes;
    `output` is what it returned for two samples, `shapes` are those of the tensors in it.
    """

    model: nn.Module
    layers: dict[str, nn.Module]
    runs: dict[int, Run]
    inputs: set[Node]
    sources: set[Node]
    sinks: list[Node] = field(default_factory=list)
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
        is_around = self._around(nodes)
        if not any(map(is_around, self.sources)):
            return None
        first = min(self.run(name).ended or 0 for name in names)
        for name, run in self._last_first.items():
            if (run.ended or first) < first and any(is_around(n) for n in run.nodes):
                return name
        return INPUT

    def _around(self, nodes: set[Node]) -> Callable[[Node], bool]:
        """Whether a node leads to the output on a way that passes none of the given ones."""
        if len(nodes) > 1:
            return ancestors(self.sinks, avoiding=nodes).__contains__
        return partial(self._dominators.is_avoidable, *nodes)

    @cached_property
    def _dominators(self) -> Dominators:
        return Dominators(self.sinks)

    @cached_property
    def _last_first(self) -> dict[str, Run]:
        """The run of each layer by its name, those that end last first."""
        names = sorted(self.layers, key=lambda name: -(self.run(name).ended or 0))
        return {name: self.run(name) for name in names}


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
    if any(tensor.is_meta for tensor in root.parameters()):
        raise ValueError(
            f"{type(root).__name__} has parameters on the meta device, without values: load its "
            "weights first, by to_empty(device=...) and load_state_dict(...)"
        )
    if any(tensor.is_inference() for tensor in root.parameters()):
        made = "has parameters made under torch.inference_mode(): make the model outside of it"
        raise ValueError(f"{type(root).__name__} {made}")
    # The first two in another order, to see which rows of an output are theirs.
    two, three = (
        _watched(take_samples((args, dict(kwargs)), rows)) for rows in ([0, 1], [1, 0, 1])
    )
    inputs = {t.grad_fn for t in find_tensors(two).values() if t.grad_fn is not None}
    runs = {id(m): Run() for m in root.modules()}
    found = Trace(root, named_layers(root), runs, inputs, sources=set(inputs))
    # With gradients also for shapes alone: reentrant checkpointing would warn of their absence.
    with undisturbed(root), torch.enable_grad():
        kept = {found.layers[name] for name in keep}
        with _graph_explained(root), _recording(root, found, kept, count_flops):
            found.output = root(*two[0], **two[1])
        with _graph_explained(root), _recording_three(root, found):
            output_for_three = root(*three[0], **three[1])
    shapes, grown = (
        {p: t.shape for p, t in _tensors(o).items()} for o in (found.output, output_for_three)
    )
    found.shapes = list(shapes.values())
    found.grows = shapes != grown or not any(shapes.values())
    found.sinks = [t.grad_fn for t in _tensors(found.output).values() if t.grad_fn is not None]
    found.upstream = ancestors(found.sinks)
    return found


@torch.inference_mode(False)
def changes_output(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    modules: Iterable[nn.Module],
    is_mixed: Callable[[str, Tensor], bool],
) -> bool:
    """Whether swapping two samples in what some modules return changes what the model returns.

    Also True where that cannot be told: the samples do not differ there, or the model returns
    the same for all.

    Args:
        model: The model, wrapped or not.
        args: Positional inputs of a forward pass.
        kwargs: Keyword inputs.
        modules: Modules that return samples first.
        is_mixed: Whether a tensor of what they return takes part, by its path.
    """
    root = unwrap(model)
    # With gradients, of whose absence reentrant checkpointing would warn.
    inputs = _watched(take_samples((args, dict(kwargs)), [0, 1]))
    told = []

    def swap(module: nn.Module, args: Any, output: Any) -> Any:
        def swapped(path: str, tensor: Tensor) -> Tensor:
            if not is_mixed(path, tensor):
                return tensor
            told.append(not torch.equal(tensor, tensor.flip(0)))
            return tensor.flip(0)

        return map_tensors(output, swapped)

    with undisturbed(root), torch.enable_grad(), ExitStack() as stack:
        plain = find_tensors(map_tensors(root(*inputs[0], **inputs[1]), lambda _, t: t.clone()))
        for module in modules:
            stack.callback(module.register_forward_hook(swap).remove)
        changed = find_tensors(root(*inputs[0], **inputs[1]))
    differing = [t for t in plain.values() if t.ndim and not torch.equal(t, t.flip(0))]
    if not (any(told) and differing):
        return True
    return any(not torch.equal(tensor, changed[path]) for path, tensor in plain.items())


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
    root: nn.Module, found: Trace, kept: Set[nn.Module], count_flops: bool
) -> Iterator[None]:
    clock = itertools.count(1)
    with ExitStack() as stack:
        counter = stack.enter_context(_flop_counter()) if count_flops else None

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
            output = _mapped(output, lambda t: t.clone() if t.requires_grad else t)
            run.leaves = {path: _leaf(t, 2) for path, t in _tensors(output).items()}
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


def _leaf(tensor: Tensor, n: int) -> Leaf:
    rows = None
    if _floats(tensor) and len(tensor) == n and tensor.layout == torch.strided:
        flat = tensor.detach().reshape(n, -1)
        flat = flat.float() if flat.dtype.itemsize < 4 else flat
        rms = torch.linalg.vector_norm(flat, dim=1) / flat.shape[1] ** 0.5
        rows = torch.stack([flat.mean(1), rms], 1)
    return Leaf(tensor.shape, tensor.dtype, tensor.grad_fn, rows)


@torch.enable_grad()
def _watched(inputs: Any) -> Any:
    """The inputs as sources of a graph: clones of leaves, so that a model may change them."""

    def watched(_: str, tensor: Tensor) -> Tensor:
        tensor = tensor.clone() if tensor.is_inference() else tensor
        return tensor.detach().requires_grad_().clone() if _floats(tensor) else tensor

    return map_tensors(inputs, watched)


def _tensors(output: Any) -> dict[str, Tensor]:
    try:
        # A nested tensor has no shape to tell.
        return {path: t for path, t in find_tensors(output).items() if not t.is_nested}
    except TypeError:
        return {}


def _is_nested(output: Any) -> bool:
    return isinstance(output, Tensor) and output.is_nested


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0
