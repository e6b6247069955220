"""What the one pass costs and a hundred epochs add; the memory of a store; what types lose.

    python scripts/benchmark.py store memory
    python scripts/benchmark.py store pass --data flowers5/train --weights resnet50.safetensors
    python scripts/benchmark.py store dtype --model resnet18 --weights resnet18.safetensors

All on 2 cores of a shared AMD machine without a GPU, Linux, Python 3.11.7, torch 2.14.1:

memory: 50,000 x 2048 in float32 (391 MB) take 82 MB of anonymous memory above the imports to
extract, and 57 MB to train from (on an Intel Xeon of 2 cores).

pass, ResNet-50 at 224 pixels, 512 JPEGs, decoding included, with OMP_NUM_THREADS=1 beside other
work, medians of 3 interleaved rounds: the extraction takes 0.653 [0.646, 0.732] of the time of a
plain eager float32 loop with the same loader (0.655 in processor time), and with 100 epochs of
head training on top 1.031 [1.029, 1.039] of itself (1.029 in processor time). With two threads it
needs cores that are free: beside other work they wait for each other in every small step of the
training, and the same was 1.16.

dtype (with --images 500), 400 JPEGs to train on and 100 held out, 50 epochs, one seed: the largest
difference from a float32 store is, in float16, 8.6e-5 of a step's loss (1e-4 of that loss) and
1.2e-4 of a weight (4e-4 of the largest weight); in bfloat16 2.0e-2 (2.7e-2) and 1.6e-2 (5.5e-2).
All three heads get 88 of 100 right. timm 1.0.31, torchvision 0.29.1.
"""

import copy
import itertools
import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.measuring import AnonymousPeak, process_mb, time_alternately
from benchmarks.options import SHARED, Device, Rounds, Weights
from benchmarks.printing import print_head, print_row, print_setting, print_times, threads
from manifold_mixup import (
    FeatureStore,
    evaluate,
    extract_features,
    freeze,
    load_backbone,
    replace_head,
    train_head,
)
from manifold_mixup.data import ImageSet, list_data
from manifold_mixup.inspection import find_device
from manifold_mixup.models import input_size, model_transform

LAYER = "layer4"


class Section(str, Enum):
    """What can be measured."""

    MEMORY = "memory"
    PASS = "pass"
    DTYPE = "dtype"


class Vectors(Dataset[tuple[Tensor, int]]):
    """Vectors of 2048 numbers, each made when it is asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(2048, generator=generator), index % 37


def print_memory(samples: int, device: torch.device) -> None:
    """Extract features of 2048 numbers, and train a head from the map."""
    model = nn.Sequential(nn.Identity(), nn.Linear(2048, 37)).to(device)
    train_head(model, [(torch.randn(2048), 0)] * 8, layer="0", epochs=1)  # loads what is lazy
    before = process_mb("RssAnon")
    with tempfile.TemporaryDirectory() as folder:
        with AnonymousPeak() as extraction:
            store = extract_features(model, "0", Vectors(samples), folder, fold=False)
        with AnonymousPeak() as training:
            train_head(model, store, epochs=2, batch_size=256)
        size = store.features.nbytes / 2**20
    print_head(f"memory, {samples:,} x 2048", "stored MB", "anonymous MB above the imports")
    for name, peak in (("extraction", extraction), ("training", training)):
        print_row(name, f"{size:.0f}", f"{peak.mb - before:.0f}")


def plain_pass(
    model: nn.Module, images: Dataset[tuple[Tensor, int]], device: torch.device
) -> None:
    """What everybody writes: eager float32 inference, batch by batch, as large as extraction's."""
    on_gpu = device.type != "cpu"
    with torch.inference_mode():
        for batch, _ in DataLoader(images, 128 if on_gpu else 16, pin_memory=on_gpu):
            model(batch.to(device, non_blocking=True))


def load_images(data: Path, name: str, model: nn.Module, n: int) -> Subset[tuple[Tensor, int]]:
    """So many images of the training part, evenly spread over it, as the model takes them."""
    part = list_data(data).parts["train"]
    everything = ImageSet(part, model_transform(name, model), input_size(name, model)[0])
    return Subset(everything, range(0, len(part), max(1, len(part) // n))[:n])


def load_both(
    data: Path, weights: str, name: str, images: int, device: torch.device
) -> tuple[nn.Module, Subset[tuple[Tensor, int]]]:
    """A model with a head to train, and so many images for it."""
    model = load_backbone(name, weights=weights)
    chosen = load_images(data, name, model, images)
    torch.manual_seed(0)
    head = replace_head(model, len(list_data(data).classes))
    freeze(model.to(device), except_=head)
    return model, chosen


def print_pass(
    data: Path, weights: str, name: str, images: int, rounds: int, device: torch.device
) -> None:
    """Extraction beside the plain loop, and 100 epochs of head training beside extraction."""
    model, chosen = load_both(data, weights, name, images, device)
    with tempfile.TemporaryDirectory() as top:
        folders = (Path(top, str(number)) for number in itertools.count())
        store = extract_features(model, LAYER, chosen, next(folders))
        ways = {
            "plain loop": lambda: plain_pass(model, chosen, device),
            "extraction": lambda: extract_features(model, LAYER, chosen, next(folders)),
            "100 epochs": lambda: train_head(model, store.load(), epochs=100),
        }
        seconds = time_alternately(ways, rounds, device)
    title = f"{name}, {len(chosen)} images, {threads()}"
    plain, extraction, hundred = seconds.values()
    print_times(title, {"plain loop": plain, "extraction": extraction}, base="plain loop")
    both = [a + b for a, b in zip(extraction, hundred, strict=True)]
    of_extraction = {"extraction": extraction, "100 epochs": hundred, "both": both}
    print_times(f"{title}, a head after them", of_extraction, base="extraction")


def head_on(store: FeatureStore, model: nn.Module) -> tuple[Tensor, Tensor, float]:
    """Losses of all steps, weights, and accuracy on every fifth image, which is not trained on."""
    own, is_held_out = copy.deepcopy(model), torch.arange(len(store)) % 5 == 0
    training = train_head(own, store.take(~is_held_out), epochs=50)
    weights = torch.cat([tensor.flatten() for tensor in training.head.values()])
    accuracy = evaluate(own, store.take(is_held_out))["accuracy"]
    return torch.tensor(training.losses), weights, accuracy


def print_dtypes(data: Path, weights: str, name: str, images: int, device: torch.device) -> None:
    """A head trained for 50 epochs on a store of each type, beside that on float32."""
    model, chosen = load_both(data, weights, name, images, device)
    heads = {}
    for one in (torch.float32, torch.float16, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            store = extract_features(model, LAYER, chosen, folder, dtype=one)
            heads[store.manifest.dtype] = head_on(store, model)
    what = ("loss of a step", "of that loss", "weight", "of the largest weight", "accuracy")
    print_head(f"{name}, {len(chosen)} images, largest difference from float32", *what)
    wide_losses, wide_weights, _ = heads["float32"]
    for dtype, (losses, own, accuracy) in heads.items():
        loss, weight = (losses - wide_losses).abs(), (own - wide_weights).abs()
        of_largest = weight.max() / wide_weights.abs().max()
        numbers = (loss.max(), (loss / wide_losses).max(), weight.max(), of_largest)
        print_row(dtype, *(f"{float(number):.1e}" for number in numbers), f"{accuracy:.4f}")


def main(
    sections: Annotated[list[Section] | None, typer.Argument(help="[default: all]")] = None,
    rounds: Rounds = 3,
    samples: Annotated[int, typer.Option(help="Vectors to store, for memory.")] = 50_000,
    data: Annotated[Path, typer.Option(help="Folder of class folders, for pass and dtype.")] = (
        SHARED / "datasets" / "flowers5" / "train"
    ),
    model: Annotated[str, typer.Option(help="With a layer4, for pass and dtype.")] = "resnet50",
    weights: Weights = str(SHARED / "weights" / "resnet50_imagenet.safetensors"),
    images: Annotated[int, typer.Option(help="To extract from, for pass and dtype.")] = 512,
    device: Device = "cpu",
) -> None:
    """Measure the pass over images and what 100 epochs add; a store's memory; smaller types."""
    where = find_device(device)
    print_setting(where, "torchvision", "timm")
    known = {
        Section.MEMORY: lambda: print_memory(samples, where),
        Section.PASS: lambda: print_pass(data, weights, model, images, rounds, where),
        Section.DTYPE: lambda: print_dtypes(data, weights, model, images, where),
    }
    for section in sections or Section:
        known[section]()
