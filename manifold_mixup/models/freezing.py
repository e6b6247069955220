"""Freeze a model and unfreeze parts of it: gradients and eval mode together."""

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from manifold_mixup.inspection import check_model, find_layers

Modules = nn.Module | str | Sequence[nn.Module | str]


def freeze(model: nn.Module, except_: Modules | None = None) -> None:
    """Freeze a model: no gradients, and eval mode, which a later `model.train()` does not undo.

    Args:
        model: The model, changed in place. Modules around an exception still follow `train()`,
            their own parameters are frozen.
        except_: Modules or layer patterns (see `find_layers`) to leave as they are, with all that
            is inside them.

    Raises:
        ValueError: A pattern in `except_` matches nothing, or a module is not of this model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> freeze(model, except_="1")
        >>> model.train()[0].training, [p.requires_grad for p in model.parameters()]
        (False, [False, False, True, True])
    """
    check_model(model)
    spared = {id(m) for outer in _modules(model, except_) for m in outer.modules()}
    kept = {id(p) for m in model.modules() if id(m) in spared for p in m.parameters(recurse=False)}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
            parameter.grad = None
    for module in model.modules():
        if spared.isdisjoint(id(inner) for inner in module.modules()):
            module.training = False
            module.__dict__["train"] = functools.partial(_stay_in_eval, module)


def unfreeze(model: nn.Module, from_layer: str | nn.Module | None = None) -> None:
    """Undo `freeze` for a whole model, or for a layer and all that is defined after it.

    Args:
        model: The model, changed in place.
        from_layer: The first layer to train, in the order of `named_modules()`.

    Raises:
        ValueError: There is no such layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> freeze(model)
        >>> unfreeze(model, from_layer="1")
        >>> [layer.weight.requires_grad for layer in model]
        [False, True, True]
    """
    check_model(model)
    modules = list(model.modules())
    if from_layer is not None:
        first = find_layers(model, from_layer)[0].module
        modules = modules[[id(m) for m in modules].index(id(first)) :]
    freed = {id(module) for module in modules}
    for module in model.modules():
        # What lies around a freed module has to follow train() too, to pass it on.
        if not freed.isdisjoint(id(inner) for inner in module.modules()):
            module.__dict__.pop("train", None)
            module.training = model.training or module.training
    for module in modules:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_()


def keep_frozen(model: nn.Module) -> None:
    """Freeze again what a framework made trainable of a frozen model: parameters of BatchNorms.

    Warns:
        UserWarning: Other frozen modules have become trainable, so that somebody wants to train
            them: they stay so, in eval mode.
    """
    thawed = [
        (name, module)
        for name, module in model.named_modules()
        if _is_frozen(module) and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    others = [name for name, module in thawed if not isinstance(module, _BatchNorm)]
    if others:
        warnings.warn(
            f"{len(thawed)} frozen layers, such as '{others[0]}', are trained again, but in eval "
            "mode, where BatchNorms keep their statistics and nothing is dropped; call "
            "unfreeze(model) if that is not meant",
            stacklevel=3,
        )
        return
    for _, module in thawed:
        module.requires_grad_(False)


def _is_frozen(module: nn.Module) -> bool:
    train = vars(module).get("train")
    return isinstance(train, functools.partial) and train.func is _stay_in_eval


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _modules(model: nn.Module, chosen: Modules | None) -> Iterator[nn.Module]:
    if chosen is None:
        return
    own = {id(module) for module in model.modules()}
    # A ModuleList is one module, for instance what replace_head gives, though it is a sequence.
    if isinstance(chosen, str | nn.Module):
        chosen = [chosen]
    if not isinstance(chosen, Iterable):
        raise TypeError(f"except_={chosen!r}: expected modules of the model, or their names")
    for one in chosen:
        if not isinstance(one, nn.Module):
            yield from (layer.module for layer in find_layers(model, one))
        elif own.isdisjoint(id(inner) for inner in one.modules()):
            raise ValueError(
                f"the {type(one).__name__} in except_ is not part of this {type(model).__name__}; "
                "pass a module of this very model, or its name"
            )
        else:
            yield one
