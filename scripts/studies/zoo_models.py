"""The smallest architecture of each family, with random weights, and small inputs for it."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

SAMPLES, SIDES = 6, (64, 96, 128)
TASKS = ("SEQUENCE", "IMAGE")

# Not the smallest of a family that has others: making all of them takes minutes.
LARGE = re.compile("large|huge|giant|base|medium|_(xx?l|l|m|b)(_|$)|[3-9][0-9][0-9]")

# What makes a configuration of Transformers small; each takes what it knows.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_local_experts", "num_experts"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "ffn_hidden_size", "n_inner", "hidden_dim"), 64),
    **dict.fromkeys(("head_dim", "d_kv"), 16),
    **{"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"image_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-6},
}


@dataclass
class Subject:
    """A model in eval mode, in float64 where it runs so, and a batch (n, *) that it takes."""

    model: nn.Module
    inputs: Tensor


def list_architectures() -> list[str]:
    """The smallest of each family: ``timm:NAME``, ``torchvision:NAME``, ``transformers:KIND``."""
    import timm
    import torchvision
    from transformers.models.auto import modeling_auto

    families: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            families["timm", module, _family(name)].append(name)
    vision = torchvision.models
    for module in (vision, vision.segmentation, vision.video, vision.detection):
        for name in vision.list_models(module):
            families["torchvision", module.__name__, _family(name)].append(name)
    names = [f"{key[0]}:{_smallest(key[0], among)}" for key, among in families.items()]
    for task in TASKS:
        kinds = getattr(modeling_auto, f"MODEL_FOR_{task}_CLASSIFICATION_MAPPING_NAMES")
        names += [f"transformers:{kind}:{task}" for kind in kinds]
    return names


def load(name: str) -> Subject:
    """A model by the name that `list_architectures` gives, and inputs drawn at random."""
    torch.manual_seed(0)
    library, _, rest = name.partition(":")
    makers = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
    problem: Exception | None = None
    for model, inputs in makers[library](rest):
        model.eval()
        for dtype in (torch.float64, torch.float32):
            taken = inputs.to(dtype) if inputs.is_floating_point() else inputs
            try:
                with torch.no_grad():
                    given = tree_leaves(model.to(dtype)(taken[:2]))
                if not all(t.isfinite().all() for t in given if isinstance(t, Tensor)):
                    raise ValueError("gives values that are not finite")
                return Subject(model, taken)
            except Exception as error:  # the next size or type may do
                problem = error
    raise RuntimeError(f"does not run: {problem or 'no small configuration can be made'}")


def _family(name: str) -> str:
    found = re.match("[a-z]+", name)
    return found[0] if found else name


def _smallest(library: str, names: list[str]) -> str:
    """By the number of parameters, of models on no device."""
    sizes: dict[str, int] = {}
    small = [name for name in names if not LARGE.search(name)] or names
    for name in small if len(small) > 1 else []:
        try:
            with torch.device("meta"):
                sizes[name] = sum(p.numel() for p in _create(library, name).parameters())
        except Exception:  # one that reads its weights while it is made
            sizes[name] = 2**62
    return min(small, key=lambda name: sizes.get(name, 0))


def _create(library: str, name: str) -> nn.Module:
    if library == "timm":
        import timm

        made: nn.Module = timm.create_model(name)
        return made
    import torchvision

    off: dict[str, Any] = {"weights": None}
    if name in torchvision.models.list_models(torchvision.models.segmentation):
        off["weights_backbone"] = None
    if name in torchvision.models.list_models(torchvision.models.detection):
        off["weights_backbone"] = None
        off.update({} if name.startswith("ssd") else {"min_size": 64, "max_size": 64})
    return torchvision.models.get_model(name, **off)


def _timm(name: str) -> Iterator[tuple[nn.Module, Tensor]]:
    import timm

    config = timm.create_model(name).pretrained_cfg
    channels, height, width = config["input_size"]
    for side in SIDES:
        small = {"pretrained_cfg_overlay": {"input_size": (channels, side, side)}}
        options = [small, {**small, "img_size": side}]
        for own in options[1:] if config.get("fixed_input_size") else options:
            try:
                model = timm.create_model(name, **own)
            except Exception:  # takes no size, or not this one
                continue
            yield model, torch.randn(SAMPLES, channels, side, side)
    yield timm.create_model(name), torch.randn(SAMPLES, channels, height, width)


def _torchvision(name: str) -> Iterator[tuple[nn.Module, Tensor]]:
    import torchvision

    is_video = name in torchvision.models.list_models(torchvision.models.video)
    for side in (64, 112, 224, 299):
        frames = (16,) if is_video else ()
        yield _create("torchvision", name), torch.randn(SAMPLES, 3, *frames, side, side)


def _transformers(name: str) -> Iterator[tuple[nn.Module, Tensor]]:
    import transformers
    from transformers.models.auto import modeling_auto

    kind, task = name.split(":")
    kinds = getattr(modeling_auto, f"MODEL_FOR_{task}_CLASSIFICATION_MAPPING_NAMES")
    owner = kinds[kind] if isinstance(kinds[kind], str) else kinds[kind][0]
    cls = getattr(transformers, owner)
    for config in _small_configs(kind):
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in cls(config).parameters())
            if size > 50e6:
                continue
            model = cls(config)
        except Exception:  # numbers that do not go together
            continue
        if task == "SEQUENCE":
            inputs = torch.randint(3, 99, (SAMPLES, 16))
            inputs[:, -1] = 2
        else:
            side = getattr(config, "image_size", 64)
            channels = getattr(config, "num_channels", 3)
            side = side if isinstance(side, int) else side[0]
            inputs = torch.randn(SAMPLES, channels, side, side)
        yield model, inputs


def _small_configs(kind: str) -> Iterator[Any]:
    """Configurations from the smallest to the default one, of which some are inconsistent."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    known = vars(cls())
    for left_out in ((), ("head_dim", "d_kv"), ("hidden_size", "dim", "image_size")):
        yield cls(**{k: v for k, v in SMALL.items() if k in known and k not in left_out})
    yield cls()
