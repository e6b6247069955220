"""Which backbones are tried on which data sets, all with real pretrained weights."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.v2 import Compose, Normalize, ToDtype, ToImage

from benchmarks.options import SHARED
from manifold_mixup import freeze, load_backbone, replace_head
from manifold_mixup.data import ImageSet, LabelledImages, Split, join_splits, list_data
from manifold_mixup.models import DIGITS, input_size, model_transform

WEIGHTS, SETS = SHARED / "weights", SHARED / "datasets"


@dataclass(frozen=True)
class Loaded:
    """A backbone with a new head, and images for it.

    Attributes:
        model: Of which the head alone is to be trained.
        layer: Where to mix.
        dataset: Pairs of a tensor and a class, part after part.
        data: The same as a data set.
    """

    model: nn.Module
    layer: str
    dataset: Dataset[tuple[Tensor, int]]
    data: LabelledImages


@dataclass(frozen=True)
class Subject:
    """A backbone on a data set.

    Attributes:
        data: Name of the data set.
        model: Name of the backbone.
        load: Loads both.
        last_block: The layer to mix at if the last block is trained too, and that block.
    """

    data: str
    model: str
    load: Callable[[], Loaded]
    last_block: tuple[str, str] | None = None


def load_images(data: str, model: str, weights: str, layer: str) -> Loaded:
    """A folder of images for a model of timm or torchvision."""
    file = str(WEIGHTS / weights) if weights else "pretrained"
    backbone, listed = load_backbone(model, weights=file), list_data(data)
    channels, transform = input_size(model, backbone)[0], model_transform(model, backbone)
    freeze(backbone, except_=replace_head(backbone, len(listed.classes)))
    dataset = ImageSet(join_splits(listed.parts.values()), transform, channels)
    return Loaded(backbone, layer, dataset, listed)


def load_cifar(depth: int) -> Loaded:
    """Small pictures for a ResNet that was trained on others of their kind."""
    model = CifarResNet((depth - 2) // 6)
    model.load_state_dict(load_file(WEIGHTS / f"cifar10_resnet{depth}.safetensors"))
    model.linear = nn.Linear(64, 10)
    freeze(model, except_=model.linear)
    listed = list_data(SETS / "cifar10")
    norm = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = Compose([ToImage(), ToDtype(torch.float32, scale=True), norm])
    dataset = ImageSet(join_splits(listed.parts.values()), transform, 3)
    return Loaded(model, "layer3", dataset, listed)


def load_mnist(n: int) -> Loaded:
    """Digits of MNIST's test part for a small ViT that was trained on its train part."""
    from timm.models import VisionTransformer

    model = VisionTransformer(
        **{"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10, "embed_dim": 64},
        **{"depth": 6, "num_heads": 8, "mlp_ratio": 2.0, "qkv_bias": False, "final_norm": False},
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        global_pool="token",
    )
    model.load_state_dict(load_file(WEIGHTS / "vit_mnist_backbone.safetensors"), strict=False)
    freeze(model, except_=model.head)
    files = SETS / "mnist_t10k"
    images = _bytes_of(files / "t10k-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)[:n] / 255
    target = _bytes_of(files / "t10k-labels-idx1-ubyte.gz", 8)[:n].long()
    part = Split(range(n), target.tolist(), [f"{i}" for i in range(n)])
    data = LabelledImages("mnist", [f"{digit}" for digit in range(10)], {"train": part})
    return Loaded(model, "blocks.5", TensorDataset((images - 0.1307) / 0.3081, target), data)


def _bytes_of(file: Path, header: int) -> Tensor:
    """What an IDX file holds behind its header."""
    with gzip.open(file) as opened:
        return torch.frombuffer(bytearray(opened.read()[header:]), dtype=torch.uint8)


class CifarResNet(nn.Module):
    """A ResNet for 32 x 32 pixels, of three stages; shortcuts pad channels with zeros.

    He et al., Deep Residual Learning, CVPR 2016, section 4.2. https://arxiv.org/abs/1512.03385
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.flatten(self.pool(x)))
        return logits

    def _stage(self, before: int, width: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(
            _Block(before, width), *(_Block(width, width) for _ in range(blocks - 1))
        )


class _Block(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.padding = (1 if before == width else 2), (width - before) // 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(inner + F.pad(short, (0, 0, 0, 0, self.padding, self.padding)))


def _folder(data: str, model: str, layer: str, last: tuple[str, str] | None = None) -> Subject:
    name = model.split(":")[-1]
    load = partial(load_images, str(SETS / data), model, f"{name}_imagenet.safetensors", layer)
    return Subject(data, name, load, last)


_LAST = "layer3", "layer4"
_LOAD_DIGITS = partial(load_images, DIGITS, DIGITS, "", "global_pool")
_PHOTOS = ("flowers5", "trashnet6", "dtd10_textures", "elpv_solar4")
_BACKBONES = (
    ("resnet18", "layer4", _LAST),
    ("resnet50", "layer4", _LAST),
    ("torchvision:mobilenet_v2", "features", None),
    ("tf_efficientnet_lite0", "bn2", ("blocks.5", "blocks.6")),
)
SUBJECTS = [
    Subject("digits", "built-in", _LOAD_DIGITS, _LAST),
    *(_folder(data, *backbone) for data in _PHOTOS for backbone in _BACKBONES),
    Subject("cifar10", "cifar_resnet20", partial(load_cifar, 20), ("layer2", "layer3")),
    Subject("cifar10", "cifar_resnet56", partial(load_cifar, 56), ("layer2", "layer3")),
    Subject("mnist", "vit_mnist", partial(load_mnist, 3000), ("blocks.4", "blocks.5")),
]
