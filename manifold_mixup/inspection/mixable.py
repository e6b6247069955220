"""Which layers can be mixed, why the others cannot, and which to choose instead."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from manifold_mixup.inspection.flow import Step
from manifold_mixup.inspection.graph import ancestors
from manifold_mixup.inspection.layers import INPUT, Layer, named_layers, unwrap
from manifold_mixup.inspection.modes import undisturbed
from manifold_mixup.inspection.nested import (
    Output,
    arguments,
    example_input,
    find_missing,
    find_tensors,
    is_chosen,
    map_tensors,
    take_samples,
    watched,
)
from manifold_mixup.inspection.trace import Leaf, Trace, trace


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model, as `layer_table` lists it.

    Attributes:
        name: Its dotted name.
        shape: Shape of its output for one sample, without the batch axis; () where it has none.
        calls: How often it runs in one forward pass.
        parameters_after: Number of parameters that are used only after it.
        cost_before: Share of the forward pass's operations up to its output, in [0, 1].
        bytes_per_sample: Size of its output for one sample, in bytes.
        mixable: Whether it can be mixed and carries the model's whole signal.
        reason: Why it is not mixable, and what to choose instead; empty where it is.
    """

    name: str
    shape: tuple[int, ...]
    calls: int
    parameters_after: int
    cost_before: float
    bytes_per_sample: int
    mixable: bool
    reason: str


def layer_table(model: nn.Module, example: Any = None) -> list[LayerRow]:
    """List every layer of a model with what matters for mixing there.

    Args:
        model: The model; it comes back as it was.
        example: A batch of any size: a tensor (B, *), a tuple of positional or a dict of keyword
            arguments. May be left out where the model tells its input size.

    Raises:
        ValueError: No example is given and the model tells no input size.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> for row in layer_table(model, torch.randn(8, 4)):
        ...     print(row.name, row.shape, row.parameters_after, row.mixable)
        0 (3,) 8 True
        1 (3,) 8 True
        2 (2,) 0 True
    """
    example = example_input(model) if example is None else example
    if example is None:
        raise ValueError(
            f"{type(model).__name__} does not tell its input size; pass example=, a batch (B, *)"
        )
    args, kwargs = arguments(example)
    found = trace(model, args, kwargs, count_flops=True)
    reasons = {name: _reason(found, name, None) for name in found.layers}
    return [_row(found, name, reasons) for name in found.layers]


def defect(found: Trace, entry: tuple[Layer, ...], output: Output = None) -> str | None:
    """Why these layers cannot be mixed (together), with what to choose instead; None if they can.

    Args:
        found: The model's dry run.
        entry: The layers that one mix is applied to.
        output: Which of a layer's outputs are mixed; see `ManifoldMixup`.
    """
    if not found.grows:
        return (
            "what it returns does not grow with the first axis of what it takes: "
            "put the batch first"
        )
    layers = [layer for layer in entry if not layer.is_input]
    for layer in layers:
        reason = _run_defect(found, layer.name, output)
        reason = reason or _constant(found, layer.name, output)
        if reason := reason or _unused(found, layer.name, output):
            instead = _instead(found, layer.name, partial(_reason, found, output=output))
            return f"layer '{layer.name}' {reason}{instead}"
    places = {layer.name: _nodes(found, layer.name, output) for layer in layers}
    if len(layers) < len(entry):
        if not found.inputs:
            return f"layer 'input': the model takes no floating-point tensor{_embeddings(found)}"
        places[INPUT] = found.inputs
    return _mixed_twice(places) if len(places) > 1 else None


def _mixed_twice(places: Mapping[str, set[Node]]) -> str | None:
    """Which of some layers is computed from another one, and would be mixed twice."""
    for later, starts in places.items():
        before = ancestors(starts) - starts
        for earlier, nodes in places.items():
            if not before.isdisjoint(nodes):
                return (
                    f"layer '{later}' is computed from '{earlier}': mixing both in one step "
                    "would mix twice; choose one of them"
                )
    return None


def _embeddings(found: Trace) -> str:
    """Advice to mix what the model looks up, by the names of its embeddings."""
    names = [n for n, m in found.layers.items() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    named = ", ".join(repr(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"; mix the output of its embedding instead ({named})" if names else ""


def bypass(found: Trace, entry: tuple[Layer, ...], output: Output = None) -> str | None:
    """Why these layers do not carry the model's whole signal, with what to choose; or None."""
    if any(layer.is_input for layer in entry):
        return None
    names = [layer.name for layer in entry]
    if reason := _bypassed(found, names, output):
        quoted = " and ".join(f"'{name}'" for name in names)
        instead = _instead(found, names[0], partial(_reason, found, output=output))
        return f"layer {quoted} {reason}{instead}"
    return None


def is_mixable(found: Trace, name: str) -> bool:
    """Whether a layer can be mixed and carries the model's whole signal."""
    return _reason(found, name, None) is None


def is_in_graph(found: Trace, entry: tuple[Layer, ...], output: Output = None) -> bool:
    """Whether the graph tells where the layers' outputs go (no_grad inside the model hides it)."""
    layers = [layer for layer in entry if not layer.is_input]
    return found.is_connected and all(_nodes(found, layer.name, output) for layer in layers)


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
    inputs = watched(take_samples((args, dict(kwargs)), [0, 1]))
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


def _row(found: Trace, name: str, reasons: Mapping[str, str | None]) -> LayerRow:
    run = found.run(name)
    leaf = next(iter(run.leaves.values()), None)
    shape = tuple(leaf.shape[1:]) if leaf is not None else ()
    reason = reasons[name]
    return LayerRow(
        name=name,
        shape=shape,
        calls=run.calls,
        parameters_after=sum(p.numel() for p in found.parameters_after(name).values()),
        cost_before=run.flops / found.flops if found.flops else 0.0,
        bytes_per_sample=_bytes_per_sample(leaf) if leaf is not None else 0,
        mixable=reason is None,
        reason=f"{reason}{_instead(found, name, reasons.get)}" if reason else "",
    )


def _bytes_per_sample(leaf: Leaf) -> int:
    return leaf.shape.numel() // 2 * leaf.dtype.itemsize


def _reason(found: Trace, name: str, output: Output) -> str | None:
    """Why a single layer should not be mixed."""
    return (
        _run_defect(found, name, output)
        or _constant(found, name, output)
        or _unused(found, name, output)
        or _bypassed(found, [name], output)
    )


def _run_defect(found: Trace, name: str, output: Output) -> str | None:
    run = found.run(name)
    if run.calls == 0 and isinstance(found.layers[name], torch.jit.ScriptModule):
        return "is TorchScript, which takes no hooks"
    if run.calls == 0:
        return "never runs in a forward pass"
    if run.calls > 1:
        return f"runs {run.calls} times in one forward pass"
    if run.is_nested:
        return (
            "returns a nested tensor: make its nn.TransformerEncoder with "
            "enable_nested_tensor=False, or set use_nested_tensor = False on it"
        )
    if not run.leaves:
        return f"returns no tensor but a {run.kind}"
    chosen = {p: leaf for p, leaf in run.leaves.items() if is_chosen(p, leaf.dtype, output)}
    missing = find_missing({path: leaf.dtype for path, leaf in run.leaves.items()}, output)
    if missing or not chosen:
        parts = ", ".join(f"{path}: {tuple(leaf.shape)}" for path, leaf in run.leaves.items())
        first = next(iter(run.leaves))
        return (
            f"returns a {run.kind} ({parts}){f' without {missing[0]!r}' if missing else ''}: "
            f"say what to mix by output={int(first) if first.isdigit() else first!r} "
            "or output='all'"
        )
    for path, leaf in chosen.items():
        if reason := _leaf_defect(leaf, run.leaves_for_three.get(path)):
            return f"returns {f'at {path!r} ' if path else ''}{reason}"
    return None


def _leaf_defect(leaf: Leaf, leaf_for_three: Leaf | None) -> str | None:
    shape = tuple(leaf.shape)
    for_three = leaf_for_three.shape if leaf_for_three is not None else None
    if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
        return f"{str(leaf.dtype).removeprefix('torch.')} values, which cannot be mixed"
    if for_three is None or len(for_three) != len(shape):
        return f"values of shape {shape} for 2 samples, without a batch axis"
    grown = [axis for axis in range(len(shape)) if shape[axis] != for_three[axis]]
    if not grown:
        return f"values of shape {shape} for any batch: none of its axes is the batch"
    if grown[0] > 0:
        return (
            f"values of shape {shape} for 2 samples: axis {grown[0]} is the batch, not the first"
        )
    if len(grown) > 1 or shape[0] * 3 != for_three[0] * 2:
        return f"values of shape {shape} for 2 samples and {tuple(for_three)} for 3"
    if shape[0] != 2:
        return (
            f"{shape[0] // 2} rows for each sample: windows or steps are folded into the batch, "
            "and a mix would pair rows of different places"
        )
    return _order_defect(leaf.rows, leaf_for_three.rows if leaf_for_three is not None else None)


def _order_defect(rows: Tensor | None, rows_for_three: Tensor | None) -> str | None:
    """What is wrong if rows stay where they are although the model's samples were swapped."""
    if rows is None or rows_for_three is None:
        return None
    slack = 1e-3 * (rows[0] - rows[1]).abs().max()
    # The three were the second sample, the first, and the second again.
    is_own, is_other = (
        (rows_for_three - rows[order]).abs().amax(1) <= slack for order in ([1, 0, 1], [0, 1, 0])
    )
    is_second = torch.tensor([True, False, True], device=rows.device) ^ is_other
    is_known = bool((is_own ^ is_other).all()) and 0 < int(is_second.sum()) < 3
    if is_known and bool(is_other.any()):
        return "samples in another order than the model takes them"
    return None


def _constant(found: Trace, name: str, output: Output) -> str | None:
    """Mixing what is the same for every sample leaves it as it is, and mixes the targets alone."""
    if not found.is_connected or not found.dependent.isdisjoint(_nodes(found, name, output)):
        return None
    leaves = found.run(name).leaves.items()
    rows = [leaf.rows for path, leaf in leaves if is_chosen(path, leaf.dtype, output)]
    if all(one is not None and torch.equal(one[0], one[1]) for one in rows):
        return "returns the same for every sample, whatever the model takes"
    return None


def _unused(found: Trace, name: str, output: Output) -> str | None:
    nodes = _nodes(found, name, output)
    if nodes and found.is_connected and nodes.isdisjoint(found.upstream):
        return "does not contribute to the model's output"
    return None


def _bypassed(found: Trace, names: Sequence[str], output: Output) -> str | None:
    nodes = {node for name in names for node in _nodes(found, name, output)}
    if nodes and found.is_connected and (source := found.bypass(names, nodes)):
        return f"lies inside a residual or dense branch: what '{source}' returns bypasses it"
    steps = {step for name in names for step in _steps(found, name, output)}
    if steps and (source := found.hidden_bypass(names, steps)):
        return (
            f"misses a part of the signal: what '{source}' returns bypasses it without gradients "
            "(by detach, no_grad, a comparison or an index)"
        )
    return None


def _instead(found: Trace, name: str, reason: Callable[[str], str | None]) -> str:
    """What to choose: the closest mixable layer around this one, else the last one inside it."""
    segments = name.split(".")
    around = [".".join(segments[:depth]) for depth in range(len(segments) - 1, 0, -1)]
    inside = [f"{name}.{inner}" for inner in reversed(named_layers(found.layers[name]))]
    for other in around + sorted(inside, key=lambda inner: inner.count(".")):
        if reason(other) is None:
            return f"; choose '{other}'"
    return "; choose another layer (layer_table(model) tells which can be mixed)"


def _nodes(found: Trace, name: str, output: Output) -> set[Node]:
    leaves = found.run(name).leaves.items()
    return {x.node for path, x in leaves if x.node and is_chosen(path, x.dtype, output)}


def _steps(found: Trace, name: str, output: Output) -> set[Step]:
    leaves = found.run(name).leaves.items()
    return {x.step for path, x in leaves if x.step and is_chosen(path, x.dtype, output)}
