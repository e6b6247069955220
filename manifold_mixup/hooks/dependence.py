"""What comes behind mixed layers, and depends on what the model is given for each sample alone."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.inspection import (
    Argument,
    Inputs,
    Layer,
    ancestors,
    arguments_of,
    find_tensors,
    map_tensors,
    own_modes,
    take_samples,
)

# What a model's targets are called, where the numbers cannot tell: among two classes.
_TARGETS = ("y", "label", "labels", "target", "targets")


def unmixed_inputs(
    model: nn.Module,
    entry: tuple[Layer, ...],
    inputs: Inputs,
    joined: dict[nn.Module, Argument],
    known: str | None,
) -> str | None:
    """What is wrong as what comes behind depends on integers of each sample; None if nothing is.

    Args:
        model: The model, not wrapped.
        entry: The layers that are mixed.
        inputs: Of a forward pass.
        joined: Modules behind that join an argument of theirs, such as a mask.
        known: The name of this argument, of which the model's own is looked at elsewhere.

    Raises:
        ValueError: The model takes the targets, and gives their logits a margin.
    """
    problem = None
    for path, tensor in find_tensors(inputs).items():
        name = _argument(model, path)
        if tensor.is_floating_point() or not tensor.ndim or name == known or "mask" in name:
            continue
        two, differs = differing_samples(inputs, tensor)
        values = find_tensors(two)[path]
        if len(values) != 2:  # one for all samples
            continue
        for other in exchanged(values) if differs else [_near(values)]:
            changes = changes_behind(model, entry, two, _replaced(two, path, other), joined)
            if any(_is_margin(name, values, other, *change) for change in changes):
                raise ValueError(_margin(entry, name))
            if differs and changes:
                problem = problem or _unmixed(model, entry, name)
    return problem


def _argument(model: nn.Module, path: str) -> str:
    """The name of an input by its path in positional and keyword inputs."""
    kind, _, inside = path.partition(".")
    place, dot, below = inside.partition(".")
    names = arguments_of(model, by_position=True)
    if kind == "0" and int(place) < len(names):
        place = names[int(place)]
    return place + dot + below


def differing_samples(inputs: Inputs, tensor: Tensor) -> tuple[Inputs, bool]:
    """Two samples that differ in one of the inputs, and whether there are such."""
    rows = (tensor != tensor[0]).reshape(len(tensor), -1).any(1).nonzero()
    return take_samples(inputs, [0, int(rows[0]) if len(rows) else 1]), len(rows) > 0


def exchanged(values: Tensor) -> list[Tensor]:
    """Values of two samples in which one has those of the other."""
    return [values[[row, row]] for row in (0, 1)]


def _near(values: Tensor) -> Tensor:
    """Values of which the second sample has others, near to its own."""
    other = values.clone()
    other[1] = (
        ~other[1]
        if values.dtype == torch.bool
        else torch.where(other[1] > 0, other[1] - 1, other[1] + 1)
    )
    return other


def _replaced(inputs: Inputs, path: str, value: Tensor) -> Inputs:
    replaced: Inputs = map_tensors(inputs, lambda p, t: value if p == path else t)
    return replaced


def _is_margin(name: str, own: Tensor, other: Tensor, before: Tensor, after: Tensor) -> bool:
    """Whether other class indices, or rows of 0 and 1, change the logits of these alone."""
    if before.ndim != 2 or after.shape != before.shape:
        return False
    width = before.shape[1]
    if own.ndim == 1 and own.dtype == torch.int64 and int(torch.cat([own, other]).max()) < width:
        own, other = (F.one_hot(values.clamp(min=0), width) for values in (own, other))
    if own.shape != before.shape or (width < 3 and name not in _TARGETS):
        return False
    differs = before != after
    return bool(differs.any()) and not bool((differs & (own == other).to(differs.device)).any())


def _margin(entry: tuple[Layer, ...], name: str) -> str:
    return (
        f"what comes behind layer {quoted(entry)} changes the logit of the class in '{name}' "
        "alone, as a margin does: of mixed features only their own target would have it; attach "
        "to the part of the model that gives the features, and weigh the losses of "
        f"head(features, {name}) and head(features, {name}[mix.partner]) by mix.between"
    )


def _unmixed(model: nn.Module, entry: tuple[Layer, ...], name: str) -> str:
    text = (
        f"what comes behind layer {quoted(entry)} depends on '{name}', which is not mixed, and "
        "sees each sample's own there, not its partner's; "
    )
    mixed = [layer.name for layer in entry]
    looked_up = [n for n, m in model.named_modules() if isinstance(m, nn.Embedding)]
    beside = [n for n in looked_up if n not in mixed]
    if any(layer.is_input for layer in entry) and beside:
        return f"{text}mix what its embedding returns too, as in layers={(*mixed, beside[0])}"
    return (
        f"{text}choose a layer behind which it is not used, or, of masks and lengths, join them "
        f"by mask='{name}' where a layer behind takes it"
    )


def quoted(entry: tuple[Layer, ...]) -> str:
    """The names of an entry's layers, for a message."""
    return " and ".join(f"'{layer.name}'" for layer in entry)


def changes_behind(
    model: nn.Module,
    entry: tuple[Layer, ...],
    inputs: Inputs,
    other: Inputs,
    takers: dict[nn.Module, Argument] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """What the model returns for some samples, and what for other inputs, where this differs.

    The second time layers return, and takers get for an argument, what they did the first time.
    Left out is what does not come from the layers, or is one value for the batch, as a loss is;
    nothing is returned where that cannot be told.
    """
    layers = [layer.module for layer in entry if not layer.is_input]
    replay = Replay(layers, takers or {})
    try:
        with torch.enable_grad(), replay:
            with own_modes(model):
                first = find_tensors(model(*inputs[0], **inputs[1]))
            replay.is_recorded = True
            with own_modes(model):
                second = find_tensors(model(*other[0], **other[1]))
    except Exception:  # what the model does not accept
        return []
    is_all = len(layers) < len(entry)
    return [
        (first[path], tensor)
        for path, tensor in second.items()
        if path in first
        and tensor.ndim
        and (is_all or _comes_from(tensor, replay.nodes))
        and not torch.equal(tensor.nan_to_num(), first[path].nan_to_num())
    ]


def _comes_from(tensor: Tensor, nodes: set[Any]) -> bool:
    return tensor.grad_fn is not None and not nodes.isdisjoint(ancestors([tensor.grad_fn]))


class Replay:
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

        def noted(_: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            # A clone, as a leaf must not be changed in place.
            tensor = tensor.detach().requires_grad_().clone()
            self.nodes.add(tensor.grad_fn)
            return tensor

        # The first time too, for without gradients torch may take another way, and round.
        return map_tensors(self._seen[module].pop(0) if self.is_recorded else output, noted)

    def _argument(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        argument = self._arguments[module]
        if not self.is_recorded:
            self._seen[module].append(argument.get(args, kwargs))
            return None
        return argument.replace(args, kwargs, self._seen[module].pop(0))
