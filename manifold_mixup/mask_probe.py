"""Which layers behind a mixed one take a mask, and what else there depends on it."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.inspection import (
    Argument,
    Inputs,
    Layer,
    Trace,
    ancestors,
    arguments_of,
    find_tensors,
    map_tensors,
    take_samples,
    undisturbed,
)


def takers_behind(found: Trace, entry: tuple[Layer, ...], name: str) -> list[nn.Module]:
    """The outermost modules behind the mixed layers that take an argument of this name."""
    if any(layer.is_input for layer in entry) and name in arguments_of(found.model):
        return [found.model]
    taking = {n: m for n, m in found.layers.items() if name in arguments_of(m)}
    behind = {n: m for n, m in taking.items() if any(_is_behind(found, n, e) for e in entry)}
    inside = {n for n in behind if any(n.startswith(f"{outer}.") for outer in behind)}
    return [module for n, module in behind.items() if n not in inside]


def _is_behind(found: Trace, name: str, layer: Layer) -> bool:
    run = found.run(name)
    if layer.is_input:
        return run.started is not None
    mixed = found.run(layer.name)
    if run.started is None or mixed.ended is None or run.started < mixed.ended:
        return False
    nodes, mixed_nodes = (
        {leaf.node for leaf in r.leaves.values() if leaf.node is not None} for r in (run, mixed)
    )
    return not (nodes and mixed_nodes) or not mixed_nodes.isdisjoint(ancestors(nodes))


def given_masks(model: nn.Module, inputs: Inputs, name: str | None = None) -> dict[str, Tensor]:
    """The model's inputs called like the mask, or, if there is none, like any mask."""
    arguments = [Argument(a, model) for a in arguments_of(model)]
    given = {a.name: a.get(*inputs) for a in arguments} | inputs[1]
    given = {n: value for n, value in given.items() if isinstance(value, Tensor) and value.ndim}
    masks = {n: value for n, value in given.items() if n == name or "mask" in n}
    return {name: masks[name]} if name in masks else masks


def depends_on_masks(
    model: nn.Module,
    entry: tuple[Layer, ...],
    inputs: Inputs,
    name: str | None = None,
    takers: Iterable[nn.Module] = (),
) -> bool:
    """Whether what comes behind some layers depends on the model's masks beside what takers get.

    The model runs twice, the second time with other masks, but with the layers' outputs and the
    takers' masks of the first. False where that cannot be told.
    """
    layers = [layer.module for layer in entry if not layer.is_input]
    if not layers or model in list(takers):
        return False
    inputs = take_samples((inputs[0], dict(inputs[1])), [0, 1])
    other = inputs
    for mask_name, mask in given_masks(model, inputs, name).items():
        changed = mask.clone()
        last = changed[..., -1:]
        changed[..., -1:] = ~last if mask.dtype == torch.bool else 1 - last
        other = Argument(mask_name, model).replace(*other, changed)
    if other is inputs:
        return False
    replay = _Replay(layers, {m: Argument(str(name), m) for m in takers})
    try:
        with undisturbed(model), torch.enable_grad(), replay:
            first = find_tensors(model(*inputs[0], **inputs[1]))
            replay.is_recorded = True
            second = find_tensors(model(*other[0], **other[1]))
    except Exception:  # a mask that the model does not accept
        return False
    return any(
        tensor.grad_fn is not None
        and not replay.nodes.isdisjoint(ancestors([tensor.grad_fn]))
        and not torch.equal(tensor.nan_to_num(), first[path].nan_to_num())
        for path, tensor in second.items()
    )


class _Replay:
    """Records what layers return and which arguments modules get, then gives the same again."""

    def __init__(self, layers: Iterable[nn.Module], arguments: dict[nn.Module, Argument]) -> None:
        self.is_recorded = False
        self.nodes: set[Any] = set()
        self._layers, self._arguments = list(layers), arguments
        self._seen: dict[nn.Module, list[Any]] = {m: [] for m in (*self._layers, *arguments)}

    def __enter__(self) -> None:
        self._stack = ExitStack()
        for layer in self._layers:
            self._stack.callback(layer.register_forward_hook(self._output).remove)
        for module in self._arguments:
            handle = module.register_forward_pre_hook(self._argument, with_kwargs=True)
            self._stack.callback(handle.remove)

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.is_recorded:
            self._seen[module].append(map_tensors(output, lambda _, t: t.detach().clone()))
            return None

        def noted(_: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            # A clone, as a leaf must not be changed in place.
            tensor = tensor.requires_grad_().clone()
            self.nodes.add(tensor.grad_fn)
            return tensor

        return map_tensors(self._seen[module].pop(0), noted)

    def _argument(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        argument = self._arguments[module]
        if not self.is_recorded:
            self._seen[module].append(argument.get(args, kwargs))
            return None
        return argument.replace(args, kwargs, self._seen[module].pop(0))
