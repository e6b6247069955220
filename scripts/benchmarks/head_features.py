"""Features that heads are solved for: of photos, and made up."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.store import load_both
from manifold_mixup import extract_features

CLASSES, WIDTH = 37, 2048
# Made at a time, and what they are made of.
_ROWS, _LATENT = 1000, 1024


class MadeUp(Dataset[tuple[Tensor, int]]):
    """Features as a ResNet-50's are: after a ReLU, of very different size, 37 classes.

    The 2048 variances fall from 200 to below 1 of their mean in steps like those of real features,
    so that a linear head gets 85 to 90 of 100 right where 5,000 are trained on.
    """

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        spread = torch.arange(4, _LATENT + 4) ** -0.7
        self._spread = spread / spread.norm()
        size = (0.5 * torch.randn(WIDTH, generator=generator)).exp()
        self._map = torch.randn(_LATENT, WIDTH, generator=generator) * size
        self._means = 0.28 * torch.randn(CLASSES, _LATENT, generator=generator)
        self._n, self._rows = n, lru_cache(1)(self._make)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self._n:
            raise IndexError(index)
        return self._rows(index // _ROWS)[index % _ROWS], index % CLASSES

    def _make(self, block: int) -> Tensor:
        generator = torch.Generator().manual_seed(block)
        apart = torch.randn(_ROWS, _LATENT, generator=generator)
        target = torch.arange(block * _ROWS, (block + 1) * _ROWS) % CLASSES
        noise = 0.1 * torch.randn(_ROWS, WIDTH, generator=generator)
        return (((self._means[target] + apart) * self._spread) @ self._map + noise).relu()


@dataclass(frozen=True)
class Given:
    """Features in memory (n, D), the classes of their samples, and what they are of."""

    title: str
    features: Tensor
    target: Tensor
    num_classes: int


def made_up(n: int) -> Given:
    """So many made-up features."""
    rows, target = zip(*MadeUp(n), strict=True)
    features = torch.stack(rows)
    return Given(f"{n} x {WIDTH}, made up", features, torch.tensor(target), CLASSES)


def of_photos(data: Path, name: str, weights: str, images: int) -> Given:
    """What a backbone gives for photos of class folders: one pass."""
    model, chosen = load_both(data, weights, name, images, torch.device("cpu"))
    with TemporaryDirectory() as folder:
        store = extract_features(model, "layer4", chosen, folder)
        features = store.features[:].flatten(1)
        n, width = features.shape
        title = f"{n} x {width}, {data.parent.name}, {name}"
        return Given(title, features, store.targets, len(store.classes))
