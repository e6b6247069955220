"""The linear layer that gives a model's logits, what reaches it, and how affine that is."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup._random import seeded_generator
from manifold_mixup.inspection import eval_mode, first_logits, model_device, model_dtype
from manifold_mixup.models.folding import is_affine


@dataclass(frozen=True)
class LinearLayer:
    """The linear layer that gives the logits of a model, and what lies before it.

    Attributes:
        model: Anything that takes inputs or stored features.
        module: The layer, with a bias.
        is_next: Whether it takes the model's inputs themselves, at most flattened.
    """

    model: nn.Module
    module: nn.Linear
    is_next: bool

    def inputs_of(self, inputs: Tensor) -> Tensor:
        """What reaches the layer when the model, in eval mode, takes some inputs: (B, D)."""
        seen: list[Tensor] = []
        inputs = inputs.to(self.module.weight.device)
        if inputs.is_floating_point():  # and not tokens, or other numbers of things
            inputs = inputs.to(model_dtype(self.model))
        hook = self.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            with torch.no_grad(), eval_mode(self.model):
                self.model(inputs)
        finally:
            hook.remove()
        return seen[-1]

    def takes_what_comes(self, inputs: Tensor) -> bool:
        """Whether inputs like some reach the layer as they are, at most flattened."""
        # An activation may leave a few inputs as they are, but not those of either sign.
        drawn = torch.randn(inputs.shape, generator=seeded_generator("taken")).to(inputs)
        return _is_flat(self.inputs_of(drawn), drawn)

    def is_affine(self, shape: torch.Size) -> bool:
        """Whether mixing inputs of a shape (without the batch) equals mixing what reaches it."""
        if self.is_next:
            return True
        exact = copy.deepcopy(self.model).double().eval()
        with torch.no_grad():
            return is_affine(lambda x: first_logits(exact(x)), shape, model_device(exact))


def find_linear_layer(
    model: nn.Module, inputs: Tensor, parameters: Mapping[str, nn.Parameter]
) -> LinearLayer | None:
    """The linear layer, of some parameters alone, whose output is the logits; None if none is.

    Args:
        model: Anything that takes the inputs.
        inputs: Some inputs or stored features (B, *).
        parameters: What the layer may have, by name: all that is to be trained.

    Example:
        >>> tail = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> find_linear_layer(tail, torch.randn(3, 2, 2), dict(tail.named_parameters())).is_next
        True
    """
    own = {id(parameter) for parameter in parameters.values()}
    among = [
        module
        for module in model.modules()
        # Not a subclass, nor one whose weight is computed from others, as by weight_norm.
        if type(module) is nn.Linear
        and module.bias is not None
        and {id(module.weight), id(module.bias)} <= own
    ]
    given: dict[nn.Linear, list[tuple[Tensor, Tensor]]] = {one: [] for one in among}
    hooks = [
        one.register_forward_hook(lambda one, args, output: given[one].append((args[0], output)))
        for one in among
    ]
    try:
        with torch.no_grad(), eval_mode(model):
            logits = first_logits(model(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    for module, runs in given.items():
        if len(runs) == 1 and runs[0][1] is logits and _is_plain(module, *runs[0]):
            found = LinearLayer(model, module, is_next=False)
            is_next = _is_flat(runs[0][0], inputs) and found.takes_what_comes(inputs)
            return replace(found, is_next=is_next)
    return None


def _is_plain(module: nn.Linear, taken: Tensor, logits: Tensor) -> bool:
    """Whether a layer gives (B, C) that follow from its weight and bias, and no hook's own."""
    with torch.no_grad():
        own = F.linear(taken, module.weight, module.bias)
    is_alike = own.dtype == logits.dtype and own.shape == logits.shape
    return logits.ndim == 2 and is_alike and torch.allclose(own, logits, equal_nan=True)


def _is_flat(taken: Tensor, inputs: Tensor) -> bool:
    flat = inputs.flatten(1)
    return taken.shape == flat.shape and torch.equal(taken, flat.to(taken))
