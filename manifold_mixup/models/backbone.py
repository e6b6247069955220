"""Pretrained models of timm and torchvision, and the transforms that go with them."""

import difflib
import json
import pickle
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
_AUXILIARY = ("aux1", "aux2", "AuxLogits", "aux_classifier")
_HEADS = (*_AUXILIARY, "fc", "classifier", "heads", "head")

# What classifiers are called: those of torchvision, LRASPP's and Transformers' too.
CLASSIFIERS = (
    *_HEADS,
    "low_classifier",
    "high_classifier",
    "score",
    "cls_classifier",
    "distillation_classifier",
    "classification_head",
    "logits_proj",
    "sequence_summary",
)


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
        bundled = resources.files("manifold_mixup.models") / "digits.safetensors"
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


def describe_for_timm(model: nn.Module, classes: Sequence[str]) -> dict[str, Any] | None:
    """What timm builds a model and names its classes by; None if it is none of timm's.

    As ``config.json`` beside the tensors, ``model.safetensors``, it is what
    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads; the names are then the
    ``label_names`` of the model's ``pretrained_cfg``.

    Args:
        model: A model with a linear classifier.
        classes: Names of its classes, in the order of its logits.

    Example:
        >>> describe_for_timm(load_backbone("digits"), ["0", "1", "2", "3", "4"])["label_names"]
        ['0', '1', '2', '3', '4']
    """
    if not hasattr(model, "pretrained_cfg"):
        return None
    from timm.models._hub import save_config_for_hf

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        save_config_for_hf(model, str(file), model_config={"label_names": list(classes)})
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def torchvision_weights(name: str) -> Any:
    """The default weights entry of a ``torchvision:NAME`` model, with its transforms."""
    import torchvision

    return torchvision.models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT


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
    return _last_layers(model, _HEADS)


def _auxiliary_names(model: nn.Module) -> list[str]:
    """The classifiers that a model of torchvision has for training alone."""
    return _last_layers(model, _AUXILIARY)


def _last_layers(model: nn.Module, attributes: Sequence[str]) -> list[str]:
    """The last linear layer or convolution inside of each attribute."""
    found = []
    for attribute in attributes:
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
    """A new linear layer or convolution like one, for another number of classes."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kind: Any = next((kind for kind in kinds if isinstance(layer, kind)), None)
    if kind is not None:
        own: Any = layer
        made: nn.Module = kind(
            own.in_channels,
            num_classes,
            own.kernel_size,
            own.stride,
            own.padding,
            own.dilation,
            bias=own.bias is not None,
            padding_mode=own.padding_mode,
        )
        return made
    assert isinstance(layer, nn.Linear)
    return nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


Transform = Callable[[Any], Tensor]


def model_transform(name: str, model: nn.Module) -> Transform:
    """What the model's weights were evaluated with: resize, crop, normalize.

    Args:
        name: The model's name, as `load_backbone` takes it.
        model: The loaded model.
    """
    if name.startswith(TORCHVISION):
        preset: Transform = torchvision_weights(name).transforms()
        return preset
    from timm.data import create_transform, resolve_model_data_config

    transform: Transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return transform


def augmenting_transform(name: str, model: nn.Module) -> Transform:
    """What training images are cropped and flipped by, at random.

    Args:
        name: The model's name, as `load_backbone` takes it.
        model: The loaded model.
    """
    if name.startswith(TORCHVISION):
        from torchvision.transforms import v2

        preset = torchvision_weights(name).transforms()
        random: Transform = v2.Compose(
            [
                v2.RandomResizedCrop(preset.crop_size[0], interpolation=preset.interpolation),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(preset.mean, preset.std),
            ]
        )
        return random
    from timm.data import create_transform, resolve_model_data_config

    transform: Transform = create_transform(**resolve_model_data_config(model), is_training=True)
    return transform
