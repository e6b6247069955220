"""What a model does in training mode alone: auxiliary outputs, and samples in another order."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from manifold_mixup._random import same_random_states
from manifold_mixup.inspection.graph import ancestors
from manifold_mixup.inspection.layers import Layer, unwrap
from manifold_mixup.inspection.modes import undisturbed
from manifold_mixup.inspection.nested import find_tensors, map_tensors, take_samples

# Samples tried, and which of them are exchanged for others: half, and half of each half.
_ROWS = list(range(8))
_HALVES = ((0, 1, 2, 3), (0, 1, 4, 5))

IsMixed = Callable[[str, Tensor], bool]


class TrainingLook:
    """Passes of a model in its own modes, but for BatchNorms: these would join the samples.

    Args:
        model: The model, wrapped or not.
        args: Positional inputs of a forward pass.
        kwargs: Keyword inputs.
        layers: The layers to look at, none of them "input".
        is_mixed: Whether a tensor of what they return takes part, by its path.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        layers: list[Layer],
        is_mixed: IsMixed,
    ) -> None:
        self._model, self._layers, self._is_mixed = unwrap(model), layers, is_mixed
        with own_modes(self._model), torch.enable_grad():
            output, self._nodes, self._first = self._run(args, kwargs, _ROWS)
            self._sinks = {
                path: tensor.grad_fn
                for path, tensor in find_tensors(output).items()
                if tensor.grad_fn is not None and tensor.shape[:1] == (len(_ROWS),)
            }
            self._changed = [
                self._run(args, kwargs, [(i + 1) % 8 if i in half else i for i in _ROWS])[2]
                for half in _HALVES
            ]

    def unmixed(self, entry: tuple[Layer, ...]) -> list[str]:
        """The outputs that do not come from an entry's layers, where others do, by their paths."""
        nodes = {node for layer in entry for node in self._nodes.get(layer.name, ())}
        apart = [path for path, sink in self._sinks.items() if nodes.isdisjoint(ancestors([sink]))]
        return apart if len(apart) < len(self._sinks) else []

    def is_shuffled(self, layer: Layer) -> bool:
        """Whether other rows of what a layer returns change than those samples that did."""
        for half, values in zip(_HALVES, self._changed, strict=True):
            for path, before in self._first.get(layer.name, {}).items():
                after = values.get(layer.name, {}).get(path, before)
                differs = (after - before).flatten(1).abs().amax(1) > 1e-5 * before.abs().max()
                own = torch.tensor([row in half for row in _ROWS], device=differs.device)
                if bool((differs & ~own).any()) and bool((own & ~differs).any()):
                    return True
        return False

    def _run(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: list[int]
    ) -> tuple[Any, dict[str, set[Node]], dict[str, dict[str, Tensor]]]:
        """What the model returns for some samples; the layers' nodes and values."""
        inputs = take_samples((args, dict(kwargs)), rows)
        nodes: dict[str, set[Node]] = {}
        values: dict[str, dict[str, Tensor]] = {}

        def noting(name: str) -> Callable[..., Any]:
            def note(module: nn.Module, args: Any, output: Any) -> Any:
                def noted(path: str, tensor: Tensor) -> Tensor:
                    if not self._is_mixed(path, tensor) or tensor.shape[:1] != (len(rows),):
                        return tensor
                    values.setdefault(name, {})[path] = tensor.detach().clone()
                    # A copy, as a mix would make, with a node also behind what is frozen.
                    copy = (tensor if tensor.requires_grad else tensor.requires_grad_()).clone()
                    nodes.setdefault(name, set()).add(copy.grad_fn)  # type: ignore[arg-type]
                    return copy

                return map_tensors(output, noted)

            return note

        devices = {p.device for p in self._model.parameters() if p.device.type == "cuda"}
        with ExitStack() as stack:
            stack.enter_context(same_random_states(list(devices)))
            for layer in self._layers:
                hook = layer.module.register_forward_hook(noting(layer.name))
                stack.callback(hook.remove)
            return self._model(*inputs[0], **inputs[1]), nodes, values


@contextmanager
def own_modes(model: nn.Module) -> Iterator[None]:
    """Every module's own mode, but for BatchNorms; parameters that are replaced come back."""
    modes = [(module, module.training) for module in model.modules()]
    kept = [(p, p.data) for p in model.parameters() if type(p) is nn.Parameter]
    with undisturbed(model):
        for module, mode in modes:
            module.training = mode and not isinstance(module, _BatchNorm)
        try:
            yield
        finally:
            for parameter, data in kept:
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
