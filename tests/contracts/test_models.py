"""Mixing inside the models that people use, against models cut by hand."""

import functools

import pytest
import timm
import torch
import torchvision
from nets import forward_with, mixed_by_loop, output_at
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup, layer_table

# Four layers each, from the first to the last part of the model.
LAYERS = {
    "resnet18": ("maxpool", "layer2", "layer3.0", "global_pool"),
    "resnet50": ("conv1", "layer1", "layer4.1", "global_pool"),
    "vit_tiny_patch16_224": ("patch_embed", "blocks.0", "blocks.6", "norm"),
    "convnext_atto": ("stem", "stages.1", "stages.2.blocks.3", "head.norm"),
    "swin_tiny_patch4_window7_224": ("patch_embed", "layers.0", "layers.2.blocks.1", "norm"),
    "mobilenetv3_small_100": ("bn1", "blocks.1", "blocks.3.1", "global_pool"),
    "efficientnet_b0": ("conv_stem", "blocks.1", "blocks.4.2", "global_pool"),
    "densenet121": (
        "features.pool0",
        "features.denseblock2",
        "features.transition3",
        "features.norm5",
    ),
    "regnety_002": ("stem", "s2", "s3.b2", "head.global_pool"),
    "torchvision:resnet18": ("maxpool", "layer2", "layer3.0", "avgpool"),
    "torchvision:vit_b_16": (
        "conv_proj",
        "encoder.dropout",
        "encoder.layers.encoder_layer_5",
        "encoder.ln",
    ),
    "torchvision:convnext_tiny": ("features.0", "features.3", "features.5.4", "avgpool"),
    "torchvision:swin_t": ("features.0", "features.1", "features.5.2", "flatten"),
}
# Models that are built for one image size take it as an argument.
SIDES = {
    "vit_tiny_patch16_224": ("img_size", 32),
    "swin_tiny_patch4_window7_224": ("img_size", 64),
    "torchvision:vit_b_16": ("image_size", 32),
}


def build(name: str, **options: int) -> nn.Module:
    """A model with random weights in eval mode."""
    if name.startswith("torchvision:"):
        model = torchvision.models.get_model(
            name.removeprefix("torchvision:"), weights=None, **options
        )
    else:
        model = timm.create_model(name, **options)
    return model.eval()


@functools.lru_cache(maxsize=1)
def small_double(name: str) -> tuple[nn.Module, Tensor]:
    """A model in float64, and three small images for it."""
    argument, side = SIDES.get(name, (None, 64))
    model = build(name, **({argument: side} if argument else {})).double()
    for parameter in model.parameters():
        if (
            not parameter.any()
        ):  # a head or a branch that starts at zero would hide what it is given
            nn.init.normal_(parameter, std=0.1)
    return model, torch.randn(3, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, layers in LAYERS.items() for layer in layers]
)
@torch.no_grad()
def test_mixing_equals_the_model_cut_by_hand(name: str, layer: str) -> None:
    """To run, mix and go on by hand at a layer gives the logits of the hooked model."""
    model, images = small_double(name)
    features = output_at(model, layer, images)

    with (
        ManifoldMixup(model, layer, alpha=1.0, example=images) as mixup,
        mixup(torch.zeros(3)) as mix,
    ):
        mixed = model(images)

    expected = forward_with(model, layer, mixed_by_loop(mix, features), images)
    plain = model(images)
    assert (mixed - expected).abs().max() <= 1e-10 * min(1.0, float(expected.abs().max()))
    assert (mixed - plain).abs().max() > 1e-6 * plain.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_table_lists_layers_with_their_shapes(name: str) -> None:
    """The table has every layer, at least four of them mixable, with the shapes of a plain run."""
    model = build(name)
    images = torch.randn(3, 3, 224, 224)
    shapes: dict[str, list[torch.Size]] = {}

    def note(layer: str, output: object) -> None:
        shapes.setdefault(layer, []).append(
            output.shape if isinstance(output, Tensor) else torch.Size()
        )

    handles = [
        module.register_forward_hook(lambda m, i, output, layer=layer: note(layer, output))
        for layer, module in model.named_modules()
        if layer
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()

    rows = {row.name: row for row in layer_table(model, images)}

    mixable = [row for row in rows.values() if row.mixable]
    assert list(rows) == [layer for layer, _ in model.named_modules() if layer]
    assert {layer: row.calls for layer, row in rows.items() if row.calls} == {
        layer: len(calls) for layer, calls in shapes.items()
    }
    assert len(mixable) >= 4
    assert {row.name: [torch.Size([3, *row.shape])] for row in mixable} == {
        row.name: shapes[row.name] for row in mixable
    }
    assert set(LAYERS[name]) <= {row.name for row in mixable}
