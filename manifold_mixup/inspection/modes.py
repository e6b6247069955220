"""Modes, devices and types of a model, and how it is left as it was."""

import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from manifold_mixup._random import same_random_states
from manifold_mixup.inspection.nested import find_tensors


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside the block; each one's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def training_mode(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], still: Set[nn.Module]
) -> Iterator[None]:
    """Training mode, and gradients for some parameters alone.

    Each module's own mode comes back, and no gradient is left.

    Args:
        model: The model.
        parameters: Those to train, by name.
        still: Modules that stay in eval mode, as every BatchNorm does.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = {id(parameter) for parameter in parameters.values()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    try:
        model.train()
        for module, _ in modes:
            if isinstance(module, _BatchNorm) or module in still:
                module.training = False
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in others:
            parameter.requires_grad_()
        for parameter in parameters.values():
            parameter.grad = None


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; modes, buffers and every random state come back as they were."""
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    # Those of a scripted module cannot be put in place of one another.
    own = (m._buffers for m in model.modules() if not isinstance(m, torch.jit.ScriptModule))
    buffers = [(held, dict(held)) for held in own]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(same_random_states(list(devices)))
        stack.enter_context(eval_mode(model))
        stack.enter_context(_no_graph_kept(model))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in values:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for held, before in buffers:  # a module may have put a new tensor in place of one
                held.clear()
                held.update(before)


@contextmanager
def _no_graph_kept(model: nn.Module) -> Iterator[None]:
    """What modules keep of the passes inside holds no graph, with which none could be copied."""
    before = _graphs(model)
    try:
        yield
    finally:
        # One that held a graph before, as under weight_norm, may need it in a pass that goes on.
        for module, name in _graphs(model) - before:
            vars(module)[name] = vars(module)[name].detach()


def _graphs(model: nn.Module) -> set[tuple[nn.Module, str]]:
    """The plain attributes of modules that are tensors with a graph."""
    return {
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }


@contextmanager
def bytes_explained(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Where a model fails inside the block on inputs of bytes, says what images are to be instead.

    Raises:
        TypeError: It fails, and some of its inputs are bytes.
    """
    try:
        yield
    except Exception as error:
        if not any(t.dtype == torch.uint8 and t.ndim > 1 for t in find_tensors(inputs).values()):
            raise
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"{type(model).__name__} fails on inputs of uint8 values ({reason}): give images as "
            "floats, scaled as for its training, such as image.float() / 255, or "
            "torchvision.transforms.v2.ToDtype(torch.float32, scale=True) and Normalize"
        ) from error


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's parameters, the CPU if it has none."""
    tensor: Any = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def model_dtype(model: nn.Module) -> torch.dtype:
    """The type that a model computes in: that of its parameters, float32 if it has none."""
    types = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(types, torch.float32)


def find_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is the best one at hand.

    Raises:
        ValueError: There is no such device here.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((device for device, exists in here.items() if exists), "cpu"))
    kind = name.split(":")[0]
    if name != "cpu" and not here.get(kind):
        raise ValueError(f"device {name!r} is not here; choose auto or cpu")
    return torch.device(name)
