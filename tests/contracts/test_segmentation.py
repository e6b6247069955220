"""Segmentation: masks with pixels to ignore, named layers of real networks, a small training."""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from nets import forward_with, mixed_by_loop, output_at
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torchvision.models import segmentation

from manifold_mixup import ManifoldMixup, Mix, mixed_loss

IGNORED = 255
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
MIXES = {
    "each": Mix(torch.tensor([0.3, 1.0, 0.0, 0.8]), [1, 2, 3, 3]),
    "one": Mix(0.6, [1, 0, 3, 2]),
}


def masks(n: int = 4, side: int = 5, classes: int = 3) -> Tensor:
    """Random class indices (n, side, side), a fifth of them to be ignored."""
    target = torch.randint(classes, (n, side, side))
    return target.masked_fill(torch.rand(n, side, side) < 0.2, IGNORED)


def loss_by_pixel(logits: Tensor, target: Tensor, mix: Mix, weight: Tensor, reduction: str) -> Any:
    """Cross entropy with Python numbers: one pixel and one of its two classes after the other."""
    n, height, width = target.shape
    values = torch.zeros(n, height, width, dtype=torch.float64)
    divisor = 0.0
    for i, lam in enumerate(mix.lam.tolist()):
        for y in range(height):
            for x in range(width):
                scores = logits[i, :, y, x].exp()
                for share, sample in ((lam, i), (1 - lam, int(mix.partner[i]))):
                    label = int(target[sample, y, x])
                    if label != IGNORED:
                        cost = -(scores[label] / scores.sum()).log() * weight[label]
                        values[i, y, x] += share * cost
                        divisor += share * float(weight[label])
    return {"none": values, "sum": values.sum(), "mean": values.sum() / divisor}[reduction]


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_the_loss_of_masks_equals_a_loop_over_pixels(
    mix: Mix, reduction: str, weight: Tensor | None, dtype: torch.dtype
) -> None:
    """A pixel that is ignored in one of the two masks still counts with the other."""
    logits, target = torch.randn(4, 3, 5, 5, dtype=torch.float64), masks()
    criterion = nn.CrossEntropyLoss(weight, ignore_index=IGNORED, reduction=reduction)
    loss = mixed_loss(logits, target.to(dtype), mix, criterion)

    ones = torch.ones(3, dtype=torch.float64)
    expected = loss_by_pixel(logits, target, mix, ones if weight is None else weight, reduction)
    torch.testing.assert_close(loss, expected)


def test_a_mask_to_be_ignored_altogether_counts_nowhere() -> None:
    """Its sample learns from the partner alone, and the partner from itself alone."""
    logits, target, mix = torch.randn(2, 3, 5, 5, dtype=torch.float64), masks(2), Mix(0.7, [1, 0])
    target[1] = IGNORED
    criterion = functools.partial(F.cross_entropy, ignore_index=IGNORED, reduction="none")
    losses = mixed_loss(logits, target, mix, criterion)

    torch.testing.assert_close(losses[0], 0.7 * criterion(logits, target)[0])
    torch.testing.assert_close(losses[1], 0.3 * criterion(logits, target[[1, 0]])[1])


@pytest.mark.parametrize("label", [3, -1, 254])
def test_a_class_out_of_range_is_refused(label: int) -> None:
    """Unless it is the index to ignore."""
    target = masks()
    target[2, 0, 0] = label
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)

    with pytest.raises(ValueError, match=str(label)):
        mixed_loss(torch.randn(4, 3, 5, 5), target, Mix(0.5, [1, 0, 3, 2]), criterion)


def deeplab(**settings: Any) -> nn.Module:
    """DeepLabV3 on MobileNetV3, 3 classes, random weights."""
    make = segmentation.deeplabv3_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=3, **settings)


def lraspp() -> nn.Module:
    """LR-ASPP on MobileNetV3, 3 classes, random weights."""
    make = segmentation.lraspp_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=3)


class UNet(nn.Module):
    """A timm encoder and a user's decoder, which adds up the levels from the coarsest on."""

    def __init__(self, *, skips: bool) -> None:
        super().__init__()
        self.encoder = timm.create_model(
            "resnet10t", features_only=True, out_indices=(1, 2, 3) if skips else (2,)
        )
        widths = self.encoder.feature_info.channels()
        self.lateral = nn.ModuleList([nn.Conv2d(width, 16, 1) for width in widths])
        self.head = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits for every pixel."""
        levels = [
            lateral(x) for lateral, x in zip(self.lateral, self.encoder(images), strict=True)
        ]
        top = levels.pop()
        while levels:
            top = levels.pop() + F.interpolate(top, scale_factor=2.0)
        return F.interpolate(self.head(top), images.shape[2:], mode="bilinear")


NETWORKS: dict[str, tuple[Any, str, Any]] = {
    "deeplab, backbone": (functools.partial(deeplab, aux_loss=True), "backbone", "all"),
    "deeplab, shared block": (functools.partial(deeplab, aux_loss=True), "backbone.4", None),
    "deeplab, one output": (functools.partial(deeplab, aux_loss=False), "backbone", "out"),
    "deeplab, pyramid": (functools.partial(deeplab, aux_loss=False), "classifier.0", None),
    "deeplab, classifier": (functools.partial(deeplab, aux_loss=False), "classifier.2", None),
    "lraspp, backbone": (lraspp, "backbone", "all"),
    "lraspp, classifier": (lraspp, "classifier", None),
    "timm, every level": (functools.partial(UNet, skips=True), "encoder", "all"),
    "timm, stage": (functools.partial(UNet, skips=False), "encoder.layer2", None),
    "timm, stage before the skips": (functools.partial(UNet, skips=True), "encoder.layer1", None),
    "decoder": (functools.partial(UNet, skips=True), "head.0", None),
}


def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """The model in evaluation mode, with the statistics of these images, lest signals vanish."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    return model.eval()


def outputs_of(result: Any) -> dict[str, Tensor]:
    """What a network returns, by name."""
    return {"out": result} if isinstance(result, Tensor) else dict(result)


@pytest.mark.parametrize(("make", "layer", "output"), NETWORKS.values(), ids=NETWORKS)
def test_named_layers_of_segmentation_networks_mix(make: Any, layer: str, output: Any) -> None:
    """Every output equals the network whose layer returns values mixed by hand."""
    images, target = torch.rand(3, 3, 64, 64), masks(3, 64)
    model = settled(make(), images)
    mixup = ManifoldMixup(model, layer, output=output, example=images[:2])
    with mixup(target) as mix:
        found = outputs_of(model(images))
    mixup.detach()

    value = output_at(model, layer, images)
    if isinstance(value, Tensor):
        mixed: Any = mixed_by_loop(mix, value)
    elif isinstance(value, list):
        mixed = [mixed_by_loop(mix, level) for level in value]
    else:
        mixed = OrderedDict((k, mixed_by_loop(mix, level)) for k, level in value.items())
    expected = outputs_of(forward_with(model, layer, mixed, images))
    torch.testing.assert_close(found, expected)
    changes = {name: found[name] - logits for name, logits in outputs_of(model(images)).items()}
    assert all(bool((change.abs() > 1e-3).any()) for change in changes.values())


@pytest.mark.parametrize("name", ["deeplab, backbone", "lraspp, backbone"])
def test_several_maps_need_a_choice(name: str) -> None:
    """The backbone returns a dict of maps; the message lists them."""
    model, out = NETWORKS[name][0](), "low" if "lraspp" in name else "aux"

    with pytest.raises(ValueError, match=f"'backbone' returns a OrderedDict.*{out}.*output="):
        ManifoldMixup(model, "backbone", example=torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (functools.partial(deeplab, aux_loss=True), "classifier.0"),
        (functools.partial(UNet, skips=True), "encoder.layer2"),
    ],
    ids=["auxiliary head", "skip connection"],
)
def test_a_layer_that_is_passed_by_gives_a_warning(make: Any, layer: str) -> None:
    """The auxiliary output, or the finer levels, would not be mixed."""
    with pytest.warns(UserWarning, match=f"'{layer}' lies inside .* bypasses it"):
        ManifoldMixup(make(), layer, example=torch.rand(2, 3, 64, 64)).detach()


@pytest.mark.parametrize("name", ["deeplab, backbone", "lraspp, backbone", "timm, every level"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    """From the loss of each output; the auxiliary one is weighed by the user."""
    make, layer, output = NETWORKS[name]
    model, images, target = make(), torch.rand(4, 3, 64, 64), masks(4, 64)
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)
    with ManifoldMixup(model, layer, output=output, example=images) as mixup:
        with mixup(target) as mix:
            results = outputs_of(model(images))
            losses = mixed_loss(results, dict.fromkeys(results, target), mix, criterion)
            loss = losses["out"] + 0.4 * losses.get("aux", 0)
        loss.backward()

    plain = {k: mixed_loss(logits, target, mix, criterion) for k, logits in results.items()}
    torch.testing.assert_close(losses, plain)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def render(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images (n, 3, 32, 32) of a disc (1) and a square (2); their borders are ignored."""
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    y, x, size = (
        torch.randint(*r, (n, 2, 1, 1), generator=generator) for r in ((8, 24),) * 2 + ((4, 8),)
    )
    disc = ((row - y[:, 0]) ** 2 + (column - x[:, 0]) ** 2).sqrt() - size[:, 0]
    square = torch.maximum((row - y[:, 1]).abs(), (column - x[:, 1]).abs()) - size[:, 1]
    target = torch.zeros(n, 32, 32, dtype=torch.int64)
    for label, distance in ((1, disc), (2, square)):
        target[distance < 0.5] = label
        target[(distance >= 0.5) & (distance < 1.5)] = IGNORED
    shown = torch.stack([disc < 0.5, square < 0.5, (disc < 0.5) | (square < 0.5)], 1).float()
    return shown + 0.3 * torch.randn(n, 3, 32, 32, generator=generator), target


def mean_iou(logits: Tensor, target: Tensor) -> float:
    """Intersection over union of the pixels that count, averaged over the classes."""
    kept, predicted = target != IGNORED, logits.argmax(1)
    scores = []
    for label in range(3):
        found, true = (predicted == label) & kept, target == label
        scores.append(float((found & true).sum() / (found | true).sum()))
    return sum(scores) / len(scores)


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """As many rendered batches of 8."""
    generator = torch.Generator().manual_seed(0)
    return (render(8, generator) for _ in range(steps))


def test_training_with_mixed_features_learns_shapes(tmp_path: Path) -> None:
    """A small network reaches a good overlap on new images, and does so again from its file."""
    model, criterion = UNet(skips=True), nn.CrossEntropyLoss(ignore_index=IGNORED)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    images, target = render(32, torch.Generator().manual_seed(1))
    before = mean_iou(model.eval()(images), target)
    model.train()
    with ManifoldMixup(model, "encoder", output="all", example=images[:2]) as mixup:
        for shown, truth in batches(60):
            with mixup(truth) as mix:
                loss = mixed_loss(model(shown), truth, mix, criterion)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    logits = model.eval()(images)
    save_model(model, str(tmp_path / "model.safetensors"))
    again = UNet(skips=True).eval()
    load_model(again, str(tmp_path / "model.safetensors"))

    assert before < 0.4
    assert mean_iou(logits, target) > 0.7
    assert torch.equal(again(images), logits)
