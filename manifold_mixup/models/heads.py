"""Heads for pooled features: linear, MLP and cosine, from features (B, D) to logits (B, C)."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node

from manifold_mixup.inspection import (
    ancestors,
    arguments,
    example_input,
    first_logits,
    take_samples,
    undisturbed,
)
from manifold_mixup.models.backbone import CLASSIFIERS, _auxiliary_names, _resized

HEADS = ("linear", "mlp", "cosine")


class MLPHead(nn.Module):
    """One hidden layer: features -> linear -> ReLU -> linear -> logits.

    Unlike a linear head it is not affine, so that mixed features are more than mixed logits. The
    hidden width is that of fastai's `create_head`; BatchNorm and dropout, which stand there too,
    are left out: mixing is the regularizer here, and statistics of mixed batches would not be
    those of clean ones.

    Args:
        in_features: Width of the features D.
        num_classes: Number of classes C.
        hidden: Width of the hidden layer.

    Example:
        >>> MLPHead(8, num_classes=3)(torch.randn(5, 8)).shape
        torch.Size([5, 3])

    Reference:
        Howard and Gugger, fastai: A Layered API for Deep Learning, Information 11(2), 2020.
        https://arxiv.org/abs/2002.04688
    """

    def __init__(self, in_features: int, num_classes: int, *, hidden: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.out = nn.Linear(hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        logits: Tensor = self.out(F.relu(self.hidden(features)))
        return logits


class CosineHead(nn.Module):
    """The angle between features and one direction for each class, times a scale.

        logits[i, c]  =  scale * cos(features[i], weight[c])

    The length of the features does not count, and there is no bias. Cosines alone lie in
    [-1, 1], which no softmax makes a confident prediction of: the scale is trained with the rest.

    Args:
        in_features: Width of the features D.
        num_classes: Number of classes C.
        scale: Where the scale begins, above 0; 10 as in the paper's own code.

    Example:
        >>> head, features = CosineHead(8, num_classes=3), torch.randn(5, 8)
        >>> torch.allclose(head(features), head(7 * features), atol=1e-5)
        True

    Reference:
        Gidaris and Komodakis, Dynamic Few-Shot Visual Learning without Forgetting, CVPR 2018,
        section 3.2. https://arxiv.org/abs/1804.09458
    """

    def __init__(self, in_features: int, num_classes: int, *, scale: float = 10.0) -> None:
        super().__init__()
        # Only the directions count: drawn evenly over the sphere, at the length a linear head has.
        self.weight = nn.Parameter(torch.randn(num_classes, in_features) / in_features**0.5)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def make_head(kind: str, in_features: int, num_classes: int) -> nn.Module:
    """Make a new head of one of the `HEADS`.

    Args:
        kind: ``"linear"`` (`torch.nn.Linear`), ``"mlp"`` (`MLPHead`) or ``"cosine"``
            (`CosineHead`).
        in_features: Width of the features D, at least 1.
        num_classes: Number of classes C, at least 1.

    Raises:
        ValueError: The kind is unknown, or a number is below 1.

    Example:
        >>> make_head("linear", 512, num_classes=37)
        Linear(in_features=512, out_features=37, bias=True)
    """
    check_head(kind)
    for name, value in (("in_features", in_features), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if kind == "linear":
        return nn.Linear(in_features, num_classes)
    if kind == "mlp":
        return MLPHead(in_features, num_classes)
    return CosineHead(in_features, num_classes)


def check_head(kind: str) -> None:
    """Raise a ValueError that lists the `HEADS` unless this is one of them."""
    if kind not in HEADS:
        raise ValueError(f"head={kind!r} is unknown; choose one of {', '.join(HEADS)}")


def replace_head(
    model: nn.Module, num_classes: int, *, head: str = "linear", example: Any = None
) -> nn.Module:
    """Replace every classifier of a model by a new one.

    In models of timm, what `reset_classifier` makes anew; in others the layers that give the
    output, which is seen by running the model, if they are called as classifiers are: ``fc``,
    ``classifier``, ``head``, ``score``, …. A call that is refused leaves the model as it was.

    Args:
        model: The model, changed in place.
        num_classes: Number of classes C, at least 1.
        head: The kind of the new one; see `make_head`.
        example: What the model takes, to see what gives its output: a tensor (B, *), a tuple of
            positional or a dict of keyword arguments. Only needed by models that tell no input
            size and take neither images, rows nor tokens.

    Returns:
        The new head; a `ModuleList` of them if the model has several.

    Raises:
        ValueError: No classifier is found, `num_classes` is below 1, or the kind of head is
            unknown or does not fit.

    Example:
        >>> import torchvision
        >>> replace_head(torchvision.models.resnet18(), num_classes=37)
        Linear(in_features=512, out_features=37, bias=True)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    check_head(head)
    with _unchanged_if_refused(model):
        heads = _new_heads(model, num_classes, example)
        if head != "linear":
            heads = [_set_head(model, one, head, num_classes) for one in heads]
    for owner in (model, getattr(model, "config", None)):  # Transformers' losses ask for it
        if hasattr(owner, "num_labels"):
            owner.num_labels = num_classes  # type: ignore[union-attr]
    return heads[0] if len(heads) == 1 else nn.ModuleList(heads)


@contextmanager
def _unchanged_if_refused(model: nn.Module) -> Iterator[None]:
    """What modules hold comes back if the block raises, and the state of random draws too."""
    before = [
        (vars(m), {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(m).items()})
        for m in model.modules()
    ]
    state = torch.get_rng_state()
    try:
        yield
    except Exception:
        for own, values in before:
            own.clear()
            own.update(values)
        torch.set_rng_state(state)
        raise


def _new_heads(model: nn.Module, num_classes: int, example: Any) -> list[nn.Module]:
    """Put new linear heads or convolutions in the place of the classifiers."""
    before = list(model.parameters())
    is_timm = hasattr(model, "reset_classifier")
    if is_timm:
        _reset_classifier(model, num_classes)
    else:
        inputs, names = _find_classifiers(model, example)
        for name in names:
            _set_module(model, name, _resized(model.get_submodule(name), num_classes))
    old = {id(parameter) for parameter in before}
    heads = [m for m in model.modules() if {id(p) for p in m.parameters(recurse=False)} - old]
    if not heads:
        raise _not_found(model, "reset_classifier makes none")
    for one in heads:  # an older timm makes them in float32 on the CPU
        one.to(before[-1].device, before[-1].dtype)
    if not is_timm:
        _check_width(model, inputs, num_classes)
    return heads


def _reset_classifier(model: nn.Module, num_classes: int) -> None:
    """Call timm's `reset_classifier`; a pair of classifiers remains a pair."""
    reset: Any = model.reset_classifier
    takes_it = "distillation" in inspect.signature(reset).parameters
    pair = any(getattr(m, "distillation", None) is True for m in model.modules())
    reset(num_classes, **({"distillation": True} if takes_it and pair else {}))


def _not_found(model: nn.Module, reason: str) -> ValueError:
    return ValueError(
        f"{type(model).__name__}: no classifier found: {reason} (looked for "
        f"{', '.join(CLASSIFIERS)}); replace it yourself and pass it on, as in "
        "freeze(model, except_=model.my_head)"
    )


def _find_classifiers(model: nn.Module, example: Any) -> tuple[Any, list[str]]:
    """An input that the model takes, and the names of its classifiers, auxiliary ones first."""
    named = [name for name, _ in model.named_modules() if _is_called_so(name)]
    if not named:
        raise _not_found(model, "no layer has such a name")
    inputs, output, given = _run_on_any(model, example)
    logits = _logits(model, output)
    giving = [name for name, module in model.named_modules() if module in _last(logits, given)]
    if not giving:
        raise _not_found(model, "the output comes from no linear layer or convolution")
    if foreign := [name for name in giving if not _is_called_so(name)]:
        raise _not_found(model, f"the output comes from {_quoted(foreign)}, not from {named[0]!r}")
    nodes = [given[model.get_submodule(name)] for name in giving]
    if any(ancestors([node]).intersection(nodes) != {node} for node in nodes):
        raise _not_found(model, f"the output comes from {_quoted(giving)}, one behind the other")
    widths = {name: _width(model, name) for name in giving}
    if len(set(widths.values())) > 1:
        told = " and ".join(f"{name!r} ({width})" for name, width in widths.items())
        raise _not_found(model, f"the output comes from {told}, which differ in width")
    auxiliary = [name for name in _auxiliary_names(model) if name not in giving]
    return inputs, [*auxiliary, *giving]


def _is_called_so(name: str) -> bool:
    return not set(name.split(".")).isdisjoint(CLASSIFIERS)


def _quoted(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(map(repr, names[:2])) + more


def _width(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise _not_found(model, f"{name!r} is a {type(layer).__name__}")
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _logits(model: nn.Module, output: Any) -> Tensor:
    """The logits in what a model returned."""
    if isinstance(output, Mapping) and not hasattr(output, "logits"):  # torchvision's segmentation
        output = tuple(output.values())
    many = not isinstance(output, Tensor) and not hasattr(output, "logits")
    first = first_logits(output) if not many or (isinstance(output, tuple) and output) else output
    if not isinstance(first, Tensor) or first.ndim == 0:
        raise _not_found(model, f"the model returns a {type(output).__name__}, and not logits")
    return first


def _run_on_any(model: nn.Module, example: Any) -> tuple[Any, Any, dict[nn.Module, Node]]:
    """The first of some inputs that a model takes, what it returns, and the nodes of layers."""
    failed = "it tells no input size"
    for inputs in [example] if example is not None else _guesses(model):
        try:
            return inputs, *_run(model, inputs)
        except Exception as error:  # whatever a model says of what it does not take
            failed = (str(error).strip() or type(error).__name__).splitlines()[0]
    told = "the example" if example is not None else "images, rows or tokens"
    raise ValueError(
        f"{type(model).__name__}: cannot see which layer gives the output, as it does not run on "
        f"{told} ({failed}); pass example=, what the model takes"
    )


def _run(model: nn.Module, inputs: Any) -> tuple[Any, dict[nn.Module, Node]]:
    """What a model returns for one sample, and the node of each layer that has a matrix."""
    given: dict[nn.Module, Node] = {}

    def mark(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        with torch.enable_grad():  # a copy, found in the graph even where nothing has a gradient
            needs = output.requires_grad and output.grad_fn is not None
            marked = (output if needs else output.detach().requires_grad_()).clone()
        given[module] = marked.grad_fn  # type: ignore[assignment]
        return marked

    args, kwargs = arguments(take_samples(inputs, [0]))
    with ExitStack() as stack:
        for module in model.modules():
            if _has_matrix(module):
                stack.callback(module.register_forward_hook(mark).remove)
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.enable_grad())
        return model(*args, **kwargs), given


def _has_matrix(module: nn.Module) -> bool:
    """Whether a module maps its input by a weight of its own: linear layers, convolutions, …."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return True
    is_leaf = not any(True for _ in module.children()) and not isinstance(module, nn.LayerNorm)
    return is_leaf and any(p.ndim > 1 for p in module.parameters(recurse=False))


def _last(logits: Tensor, given: dict[nn.Module, Node]) -> set[nn.Module]:
    """The layers from which logits are computed without another one between, sisters apart."""
    starts = [logits.grad_fn] if logits.grad_fn is not None else []
    around = ancestors(starts, avoiding=set(given.values()))
    next_to = {before for node in around for before, _ in node.next_functions} | set(starts)
    return {module for module, node in given.items() if node in next_to}


def _guesses(model: nn.Module) -> Iterator[Any]:
    """What a model may take, by what it tells and by its first layer."""
    if (told := example_input(model)) is not None:
        yield told
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    device, dtype = like.device, like.dtype
    config, wanted = getattr(model, "config", None), getattr(model, "main_input_name", None)
    if config is not None and wanted == "input_ids":
        end = getattr(config, "eos_token_id", None)  # where BART's family reads off its features
        last = end if isinstance(end, int) else 1
        yield {wanted: torch.tensor([[*[1] * 7, last]], device=device)}
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if wanted == "pixel_values" and side is not None:
        height, width = side if isinstance(side, list | tuple) else (side, side)
        yield {wanted: torch.zeros(1, channels, height, width, device=device, dtype=dtype)}
    layers = [module for module in model.modules() if _has_matrix(module)]
    shapes = dict.fromkeys(shape for layer in layers for shape in _shapes(layer))
    for shape in list(shapes)[:24]:  # the layer that is used first may not have been made first
        yield torch.zeros(shape, device=device, dtype=dtype)
    if any(isinstance(layer, nn.Embedding | nn.EmbeddingBag) for layer in layers):
        yield torch.ones(1, 8, dtype=torch.int64, device=device)


def _shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    """What a layer may take, for one sample, in usual sizes."""
    if isinstance(layer, nn.Linear):
        return [(1, layer.in_features), (1, 8, layer.in_features)]
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        axes = len(layer.kernel_size)
        sides = {1: (1024, 16000), 2: (224, 32, 28, 64, 299), 3: (32, 112)}[axes]
        return [(1, layer.in_channels, *[side] * axes) for side in sides]
    return []


def _check_width(model: nn.Module, inputs: Any, num_classes: int) -> None:
    """Refuse heads with which the model does not give the number of classes."""
    try:
        shape = tuple(_logits(model, _run(model, inputs)[0]).shape)
    except Exception as error:
        raise _not_found(model, f"with a new head it fails ({error})") from error
    if num_classes not in shape[1:] and (len(shape) > 1 or num_classes > 1):
        raise _not_found(model, f"with a new head for {num_classes} classes it returns {shape}")


def _set_head(model: nn.Module, linear: nn.Module, kind: str, num_classes: int) -> nn.Module:
    """Put a head of another kind in the place of a linear one."""
    name = next(name for name, module in model.named_modules() if module is linear)
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"head={kind!r} takes features (B, D), but {type(model).__name__} ends in a "
            f"{type(linear).__name__} ('{name}'); choose head='linear'"
        )
    head = make_head(kind, linear.in_features, num_classes)
    head.to(linear.weight.device, linear.weight.dtype)
    _set_module(model, name, head)
    return head


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, under every name that the other has."""
    old = model.get_submodule(name)
    for path, one in list(model.named_modules(remove_duplicate=False)):
        if one is old:
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, module)
