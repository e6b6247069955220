"""How far a mix may be pushed: behind every affine step that follows the layer."""

import copy
import math
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from manifold_mixup._random import seeded_generator
from manifold_mixup.inspection import (
    Trace,
    find_layers,
    is_mixable,
    model_device,
    trace,
    training_mode,
)
from manifold_mixup.models.cut import Prefix, cut_traced
from manifold_mixup.models.tail import Tail


def folded_layer(model: nn.Module, layer: str, example: Tensor) -> str:
    """The layer with the smallest features at which a mix has the same effect as at a layer.

        f(lam * h + (1 - lam) * h')  =  lam * f(h) + (1 - lam) * f(h')     for every affine f

    Average pooling, flattening and a frozen linear layer are affine; max pooling, an activation or
    a LayerNorm is not. Whether the steps are is measured in float64 on random features, in the
    mode they train in, so that an active dropout counts too. No step with parameters that require
    gradients is passed.

    Args:
        model: The model; it comes back as it was.
        layer: Where to mix, by name.
        example: A batch of images (B, C, H, W).

    Returns:
        The name of a layer behind it, or its own.

    Raises:
        ValueError: The model cannot be cut at the layer.

    Example:
        >>> import timm
        >>> folded_layer(timm.create_model("resnet18"), "layer4", torch.randn(2, 3, 64, 64))
        'global_pool'
    """
    name = find_layers(model, layer)[0].name
    found = trace(model, (example,), {}, keep=[name])
    return fold_traced(found, name, cut_traced(found, name, (example,), {}))


def fold_traced(found: Trace, name: str, tail: Tail) -> str:
    """`folded_layer` of a model that was traced, and cut at the layer."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in tail.modules()):
        return name  # TorchScript shares its tensors with copies
    exact = copy.deepcopy(tail).double()
    exact.feed.is_exact = True
    shape = next(iter(found.run(name).leaves.values())).shape[1:]
    device = model_device(found.model)
    reached = [name]
    # Where float64 meets what forward makes in another type, it ends.
    with suppress(RuntimeError), training_mode(exact, {}, set()), torch.no_grad():
        for later in _later_layers(found, name):
            if not is_affine(Prefix(exact, later), shape, device):
                break
            reached.append(later)
    return min(reached, key=lambda one: (_size(found, one), one.count(".")))


def _later_layers(found: Trace, name: str) -> list[str]:
    """The mixable layers behind one with nothing in between that trains, the next one first."""
    ends = {other: found.run(other).ended or 0 for other in found.layers}
    behind = found.parameters_after(name)
    later = [other for other in found.layers if ends[other] > ends[name]]
    return [
        other
        for other in sorted(later, key=ends.__getitem__)
        if is_mixable(found, other)
        and not any(
            behind[own].requires_grad for own in behind.keys() - found.parameters_after(other)
        )
    ]


def is_affine(
    function: Callable[[Tensor], Tensor], shape: torch.Size, device: torch.device
) -> bool:
    """Whether mixing before a function equals mixing after it, for small and large features.

    Args:
        function: From float64 features (B, *) to a tensor (B, *), in the mode that counts.
        shape: Of the features of one sample.
        device: Where the function computes.
    """
    generator = seeded_generator("affine")
    lam = torch.rand(4, dtype=torch.float64, generator=generator).to(device)

    def mix(x: Tensor) -> Tensor:
        return torch.lerp(x.roll(1, 0), x, lam.view(-1, *[1] * (x.ndim - 1)))

    for scale in (1.0, 100.0):
        h = scale * torch.randn(4, *shape, dtype=torch.float64, generator=generator).to(device)
        before, after = function(mix(h)), mix(function(h))
        largest = float(after.abs().max())
        if not (largest < math.inf and torch.allclose(before, after, rtol=0, atol=1e-9 * largest)):
            return False
    return True


def _size(found: Trace, name: str) -> int:
    return sum(leaf.shape.numel() for leaf in found.run(name).leaves.values())
