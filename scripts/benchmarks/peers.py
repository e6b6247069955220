"""Train a head on real pictures: ours beside what people use today.

    pip install . fastai torchbearer
    python scripts/benchmark.py peers --data flowers5/ --weights resnet18_imagenet.safetensors

200 training and 340 test photos of five kinds of flowers, ResNet-18, 30 epochs, mixed at layer4
(fastai mixes images), `--images 200 --epochs 30`; seeds 0 to 2 of the rows that run the backbone
once, seed 0 of the others, accuracies with Wilson intervals over the test photos:

| | CPU s | of it extraction | CPU / ours | accuracy | right |
|---|---:|---:|---:|---:|---:|
| ours, cached | 6.7 | 6.2 | 1.0 | 81.8% [77.3%, 85.5%] | 279 277 278 |
| ours, hooked | 286.3 | | 46.1 | 82.1% [77.6%, 85.8%] | 279 |
| fastai MixUp | 440.7 | | 70.9 | 80.9% [76.4%, 84.7%] | 275 |
| fastai MixUp, train_bn=False | 269.6 | | 43.4 | 77.9% [73.2%, 82.0%] | 265 |
| torchbearer ManifoldMixup | 270.1 | | 43.5 | 78.5% [73.9%, 82.6%] | 267 |
| LogisticRegression | 6.5 | 6.5 | 1.0 | 83.5% [79.2%, 87.1%] | 284 284 284 |

One thread, another job on the other core; wall and processor time are within 2 % of each other.
With seed 0 ours, cached, gets as many photos right as ours, hooked; no row of mixup beats plain
LogisticRegression on the stored features. Python 3.11.7, torch 2.14.1, torchvision 0.29.1,
fastai 2.8.12, torchbearer 0.5.5, scikit-learn 1.9.1; `OMP_NUM_THREADS=1` on a 2-core Intel Xeon.
"""

import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer
from scipy.stats import binomtest
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights

from benchmarks.measuring import Seconds, in_own_process, median_seconds, read_clocks
from benchmarks.options import SHARED, Device, Weights
from benchmarks.peer_rows import MODEL, QUICK, ROWS, Task
from benchmarks.printing import (
    format_seconds,
    print_head,
    print_row,
    print_setting,
    threads,
    time_cells,
    time_head,
)
from manifold_mixup import evaluate, load_backbone
from manifold_mixup.inspection import find_device


@dataclass(frozen=True)
class Given:
    """What is the same for all rows and seeds."""

    data: Path
    weights: str
    images: int
    epochs: int
    device: torch.device


@dataclass(frozen=True)
class Run:
    """What one training took, and how many test images its model gets right."""

    seconds: Seconds
    extraction: Seconds | None
    right: int
    of: int


def load_images(data: Path, part: str) -> ImageFolder:
    """The images of a part as the model takes them, read once so that no row waits for a disk."""
    images = ImageFolder(str(data / part), ResNet18_Weights.DEFAULT.transforms())
    for path, _ in images.samples:
        Path(path).read_bytes()
    return images


def take_some(images: ImageFolder, n: int) -> Subset[tuple[Tensor, int]]:
    """The same n images at every call, of each class in proportion."""
    chosen, _ = train_test_split(
        range(len(images)), train_size=n, stratify=images.targets, random_state=0
    )
    return Subset(images, sorted(chosen))


def measure(row: str, seed: int, given: Given) -> Run:
    """Train one row in this process."""
    import_module(ROWS[row].module)
    random.seed(seed)
    torch.manual_seed(seed)
    test = load_images(given.data, "test")
    images = take_some(load_images(given.data, "train"), given.images)
    model = load_backbone(MODEL, weights=given.weights)
    with tempfile.TemporaryDirectory() as directory:
        start = read_clocks(given.device)
        task = Task(
            model, images, test.classes, given.epochs, seed, directory, given.device, start
        )
        trained = ROWS[row].train(task)
        seconds = read_clocks(given.device) - start
    right = round(len(test) * evaluate(trained, test)["accuracy"])
    return Run(seconds, task.extraction, right, len(test))


def measure_all(seeds: dict[str, int], given: Given) -> dict[str, list[Run]]:
    """Every row with its number of seeds, each in a process of its own, one after the other."""
    runs: dict[str, list[Run]] = {row: [] for row in seeds}
    for seed in range(max(seeds.values())):
        for row in (row for row, n in seeds.items() if seed < n):
            runs[row].append(in_own_process(measure, row, seed, given))
            print(row, seed, runs[row][-1], file=sys.stderr, flush=True)
    return runs


def extraction_cell(runs: Sequence[Run]) -> str:
    """The median time of the extraction, where there is one."""
    parts = [run.extraction for run in runs if run.extraction]
    if not parts:
        return ""
    median = median_seconds(parts)
    return f"{format_seconds(median.wall)}, {format_seconds(median.cpu)}"


def accuracy_cell(runs: Sequence[Run]) -> str:
    """The mean accuracy, with the interval of one such test."""
    n, mean = runs[0].of, statistics.mean(run.right for run in runs)
    interval = binomtest(round(mean), n).proportion_ci(method="wilson")
    return f"{mean / n:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def print_runs(runs: dict[str, list[Run]]) -> None:
    """All rows, compared with the first."""
    base = next(iter(runs))
    seconds = {row: [run.seconds for run in of_row] for row, of_row in runs.items()}
    print_head(threads(), *time_head(base), "extraction (wall, CPU)", "accuracy", "right")
    for row, of_row in runs.items():
        print_row(
            row,
            *time_cells(seconds[row], seconds[base]),
            extraction_cell(of_row),
            accuracy_cell(of_row),
            " ".join(str(run.right) for run in of_row),
        )


def check_rows(rows: list[str] | None) -> list[str]:
    """The rows given, or all; an error names those that there are."""
    for row in rows or ():
        if row not in ROWS:
            raise typer.BadParameter(f"{row!r} is none of {', '.join(map(repr, ROWS))}")
    return rows or list(ROWS)


def main(
    data: Annotated[Path, typer.Option(help="Folder of train/ and test/.")] = (
        SHARED / "datasets" / "flowers5"
    ),
    weights: Weights = str(SHARED / "weights" / "resnet18_imagenet.safetensors"),
    images: Annotated[int, typer.Option(help="To train on.")] = 200,
    epochs: int = 30,
    seeds: Annotated[int, typer.Option(min=1, help="Of rows that take seconds.")] = 3,
    slow_seeds: Annotated[int, typer.Option(min=1, help="Of the other rows.")] = 1,
    row: Annotated[list[str] | None, typer.Option(help="[default: all]")] = None,
    device: Device = "cpu",
) -> None:
    """Train a head on real pictures, ours beside fastai, torchbearer and scikit-learn."""
    rows = check_rows(row)
    given = Given(data, weights, images, epochs, find_device(device))
    packages = [ROWS[row].package for row in rows]
    print_setting(given.device, "torchvision", *dict.fromkeys(filter(None, packages)))
    print_runs(measure_all({row: seeds if row in QUICK else slow_seeds for row in rows}, given))
