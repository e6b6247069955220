"""Pretrained models of timm and torchvision: load one, give it a new head."""

import difflib
import pickle
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from manifold_mixup.heads import check_head, make_head

TORCHVISION = "torchvision:"

# The built-in model: a timm ResNet for 32 x 32 grey images, pretrained on the digits 0 to 4.
DIGITS = "digits"
DIGITS_ARCHITECTURE: dict[str, Any] = {
    "model_name": "resnet10t",
    "in_chans": 1,
    "num_classes": 5,
    "stem_width": 8,
    "channels": (16, 32, 48, 64),
    "pretrained_cfg_overlay": {
        "input_size": (1, 32, 32),
        "mean": (0.5,),
        "std": (0.5,),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    },
}

# Where torchvision's models keep their classifiers, auxiliary ones included.
_HEADS = ("aux1", "aux2", "AuxLogits", "aux_classifier", "fc", "classifier", "heads", "head")


def load_backbone(name: str, *, weights: str | Path = "pretrained") -> nn.Module:
    """Load a model with its own classifier.

    Args:
        name: A name of `timm.create_model`, ``torchvision:NAME``, or ``"digits"``, the small model
            that comes with the package.
        weights: ``"pretrained"`` for the published ones (downloaded when needed), ``"none"`` for
            random ones, or a file: safetensors, or tensors saved by `torch.save`. The classifier
            may be missing in a file or have another size; all else must fit.

    Raises:
        ValueError: The name is unknown or the file does not fit the model.
        FileNotFoundError: There is no such file.
        RuntimeError: The published weights cannot be had.

    Example:
        >>> sum(p.numel() for p in load_backbone("digits").parameters())
        125575
    """
    if name == DIGITS and weights == "pretrained":
        bundled = resources.files("manifold_mixup") / "digits.safetensors"
        with resources.as_file(bundled) as file:
            return load_backbone(name, weights=file)
    if weights not in ("pretrained", "none") and not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights {weights}: no such file; give a safetensors or .pth file, or 'none'"
        )
    model = _create(name, pretrained=weights == "pretrained")
    if weights not in ("pretrained", "none"):
        _load_weights(model, Path(weights), name)
    return model


def input_size(name: str, model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width in pixels of the images that a loaded model takes."""
    if name.startswith(TORCHVISION):
        side = int(torchvision_weights(name).transforms().crop_size[0])
        return 3, side, side
    channels, height, width = model.pretrained_cfg["input_size"]  # type: ignore[index]
    return channels, height, width


def torchvision_weights(name: str) -> Any:
    """The default weights entry of a ``torchvision:NAME`` model, with its transforms."""
    import torchvision

    return torchvision.models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT


def replace_head(model: nn.Module, num_classes: int, *, head: str = "linear") -> nn.Module:
    """Replace every classifier of a timm or torchvision model by a new one.

    Args:
        model: The model, changed in place.
        num_classes: Number of classes C, at least 1.
        head: The kind of the new one; see `make_head`.

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
    before = list(model.parameters())
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(num_classes)  # type: ignore[operator]
    else:
        for name in _classifier_names(model):
            _set_module(model, name, _resized(model.get_submodule(name), num_classes))
    old = {id(parameter) for parameter in before}
    heads = [m for m in model.modules() if {id(p) for p in m.parameters(recurse=False)} - old]
    if not heads:
        raise ValueError(
            f"{type(model).__name__}: no classifier found (looked for {', '.join(_HEADS)}); "
            "replace it yourself and pass it on, as in freeze(model, except_=model.my_head)"
        )
    if head != "linear":
        heads = [_set_head(model, one, head, num_classes) for one in heads]
    for one in heads:  # an older timm makes them in float32 on the CPU
        one.to(before[-1].device, before[-1].dtype)
    return heads[0] if len(heads) == 1 else nn.ModuleList(heads)


def _create(name: str, *, pretrained: bool) -> nn.Module:
    import timm
    import torchvision

    if name == DIGITS:
        model: nn.Module = timm.create_model(**DIGITS_ARCHITECTURE)
        return model
    is_torchvision = name.startswith(TORCHVISION)
    bare = name.removeprefix(TORCHVISION)
    classifiers = torchvision.models.list_models(torchvision.models)
    known = classifiers if is_torchvision else timm.list_models()
    exists = bare in known if is_torchvision else ":" in name or timm.is_model(name)
    if not exists:
        close = difflib.get_close_matches(bare, known, 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        library = "torchvision" if is_torchvision else "timm"
        raise ValueError(f"model '{name}' is unknown to {library}{hint}")
    try:
        if is_torchvision:
            model = torchvision.models.get_model(bare, weights="DEFAULT" if pretrained else None)
        else:
            model = timm.create_model(name, pretrained=pretrained)
        return model
    except Exception as error:
        if not pretrained:
            raise
        raise RuntimeError(
            f"the pretrained weights of {name} could not be loaded ({_first_line(error)}); "
            "give weights from a file, or 'none' for random ones"
        ) from error


def _load_weights(model: nn.Module, file: Path, name: str) -> None:
    from timm.models import load_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's protocol: the error says enough
            state = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes its reader raise
        reason = _first_line(error)
        if pickle.UnpicklingError in (type(error), type(error.__cause__)):  # says to execute it
            reason = "no file of tensors alone; save a model's state_dict()"
        raise ValueError(f"weights {file}: cannot be read ({reason})") from error
    if foreign := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"weights {file}: {foreign[0]!r} is not a tensor")
    own = model.state_dict()
    state = {**_classifier_state(model, own, state), **state}
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    resized = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or unexpected or resized:
        problems = [
            f"{kind} {keys[0]!r}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}"
            for kind, keys in (
                ("missing", missing), ("unexpected", unexpected), ("of another shape", resized)
            )
            if keys
        ]  # fmt: skip
        raise ValueError(f"weights {file} do not fit {name}: {', '.join(problems)}")
    model.load_state_dict(state)


def _classifier_state(
    model: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The model's own classifier where the state lacks it; one of another size is dropped."""
    heads = tuple(f"{name}." for name in _classifier_names(model))
    for key in [k for k in state if k.startswith(heads)]:
        if key not in own or own[key].shape != state[key].shape:
            del state[key]
    return {key: value for key, value in own.items() if key.startswith(heads)}


def _classifier_names(model: nn.Module) -> list[str]:
    if hasattr(model, "get_classifier"):
        head = model.get_classifier()  # type: ignore[operator]
        heads = list(head) if isinstance(head, tuple | list | nn.ModuleList) else [head]
        names = {id(module): name for name, module in model.named_modules()}
        return [names[id(module)] for module in heads if any(True for _ in module.parameters())]
    found = []
    for attribute in _HEADS:
        inside = getattr(model, attribute, None)
        if isinstance(inside, nn.Module):
            layers = [
                (f"{attribute}.{name}".rstrip("."), module)
                for name, module in inside.named_modules()
                if isinstance(module, nn.Linear | nn.Conv2d)
            ]
            found += [name for name, _ in layers[-1:]]
    return found


def _resized(layer: nn.Module, num_classes: int) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(
            layer.in_channels,
            num_classes,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            bias=layer.bias is not None,
        )
    assert isinstance(layer, nn.Linear)
    return nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)


def _set_head(model: nn.Module, linear: nn.Module, kind: str, num_classes: int) -> nn.Module:
    """Put a head of another kind in the place of a linear one."""
    name = next(name for name, module in model.named_modules() if module is linear)
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"head={kind!r} takes features (B, D), but {type(model).__name__} ends in a "
            f"{type(linear).__name__} ('{name}'); choose head='linear'"
        )
    head = make_head(kind, linear.in_features, num_classes)
    _set_module(model, name, head)
    return head


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
