"""Train a head on real pictures: ours beside what people use today.

    pip install . fastai torchbearer
    python scripts/benchmark_peers.py --data flowers5/ --weights resnet18_imagenet.safetensors

Not run to the end yet: there is no result to report.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights

from manifold_mixup import (
    FeatureStore,
    evaluate,
    extract_features,
    freeze,
    load_backbone,
    replace_head,
    train_head,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"
MODEL, LAYER, ALPHA, BATCH_SIZE = "torchvision:resnet18", "layer4", 0.4, 32


class Seconds(NamedTuple):
    """Time that has passed on the wall, and that this process and its children computed for."""

    wall: float
    cpu: float

    def since(self, start: "Seconds") -> "Seconds":
        """The time between two readings."""
        return Seconds(self.wall - start.wall, self.cpu - start.cpu)


def read_clocks() -> Seconds:
    """Both clocks now; CPU time is that of user and system."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Seconds(time.perf_counter(), sum(use.ru_utime + use.ru_stime for use in usages))


@dataclass
class Task:
    """What is given to every row: a pretrained model, images, and how long to train."""

    model: nn.Module
    images: Dataset[tuple[Tensor, int]]
    classes: list[str]
    epochs: int
    seed: int
    directory: str
    start: Seconds = field(default_factory=read_clocks)
    extraction: Seconds | None = None

    def ready_model(self) -> nn.Module:
        """The model with a new head, all else frozen."""
        freeze(self.model, except_=replace_head(self.model, len(self.classes)))
        return self.model

    def store(self) -> FeatureStore:
        """Features of all images, extracted now."""
        store = extract_features(self.model, LAYER, self.images, self.directory)
        self.extraction = read_clocks().since(self.start)
        return store


def cached(task: Task) -> nn.Module:
    """Ours: the backbone runs once."""
    model = task.ready_model()
    train_head(
        model,
        task.store(),
        alpha=ALPHA,
        epochs=task.epochs,
        batch_size=BATCH_SIZE,
        seed=task.seed,
    )
    return model


def hooked(task: Task) -> nn.Module:
    """Ours: the backbone runs in every step."""
    model = task.ready_model()
    train_head(
        model,
        task.images,
        layer=LAYER,
        alpha=ALPHA,
        epochs=task.epochs,
        batch_size=BATCH_SIZE,
        seed=task.seed,
    )
    return model


def fastai(task: Task, *, train_bn: bool = True) -> nn.Module:
    """MixUp of fastai in its learner: frozen body, its own head, optimizer and schedule."""
    from fastai.callback.mixup import MixUp
    from fastai.data.core import DataLoaders
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.learner import vision_learner

    one = Subset(task.images, [0])  # it insists on validation: as little as there can be
    learner = vision_learner(
        DataLoaders.from_dsets(task.images, one, bs=BATCH_SIZE, num_workers=0),
        lambda pretrained: task.model,
        cut=-2,
        n_out=len(task.classes),
        normalize=False,  # the images are already
        loss_func=CrossEntropyLossFlat(),
        train_bn=train_bn,
        cbs=MixUp(ALPHA),
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(task.epochs)
    return learner.model


def fastai_frozen_bn(task: Task) -> nn.Module:
    """The same, but BatchNorm of the body has no gradients either."""
    return fastai(task, train_bn=False)


def torchbearer(task: Task) -> nn.Module:
    """ManifoldMixup of torchbearer at the same layer, with the optimizer and schedule of ours."""
    from torch.optim.lr_scheduler import CosineAnnealingLR
    from torchbearer import Trial
    from torchbearer.callbacks import Mixup, TorchScheduler
    from torchbearer.callbacks.manifold_mixup import ManifoldMixup

    loader = DataLoader(task.images, BATCH_SIZE, shuffle=True)
    model = task.model.requires_grad_(False)
    head = replace_head(model, len(task.classes))
    optimizer = torch.optim.AdamW(head.parameters(), 0.01, weight_decay=0.01)
    cosine = TorchScheduler(
        lambda optimizer: CosineAnnealingLR(optimizer, task.epochs * len(loader)),
        step_on_batch=True,
    )
    # Not `freeze`: where the layer is in eval mode, torchbearer mixes the targets alone.
    mixup = ManifoldMixup(ALPHA).for_layers([LAYER])
    trial = Trial(model, optimizer, Mixup.mixup_loss, callbacks=[mixup, cosine], verbose=0)
    trial.with_train_generator(loader).run(task.epochs)
    return model


def logistic(task: Task) -> nn.Module:
    """LogisticRegression of scikit-learn on the features that ours stores, without mixup."""
    model = task.ready_model()
    store = task.store()
    fitted = LogisticRegression(max_iter=1000).fit(store.features[:].flatten(1), store.targets)
    with torch.no_grad():
        model.fc.weight.copy_(torch.from_numpy(fitted.coef_))
        model.fc.bias.copy_(torch.from_numpy(fitted.intercept_))
    return model


class Row(NamedTuple):
    """What trains, and the module to import before the time is taken."""

    train: Callable[[Task], nn.Module]
    module: str


ROWS = {
    "ours, cached": Row(cached, "manifold_mixup"),
    "ours, hooked": Row(hooked, "manifold_mixup"),
    "fastai MixUp": Row(fastai, "fastai.vision.all"),
    "fastai MixUp, train_bn=False": Row(fastai_frozen_bn, "fastai.vision.all"),
    "torchbearer ManifoldMixup": Row(torchbearer, "torchbearer"),
    "LogisticRegression": Row(logistic, "sklearn"),
}
# In these the backbone runs once, so that more seeds cost little.
QUICK = ("ours, cached", "LogisticRegression")


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


def measure(row: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one row in this process: what it took, and how many test images it gets right."""
    import_module(ROWS[row].module)
    random.seed(seed)
    torch.manual_seed(seed)
    test = load_images(options.data, "test")
    images = take_some(load_images(options.data, "train"), options.images)
    model = load_backbone(MODEL, weights=options.weights)
    with tempfile.TemporaryDirectory() as directory:
        task = Task(model, images, test.classes, options.epochs, seed, directory)
        trained = ROWS[row].train(task)
        seconds = read_clocks().since(task.start)
    right = round(len(test) * evaluate(trained, test)["accuracy"])
    return {"seconds": seconds, "extraction": task.extraction, "right": right, "of": len(test)}


def measure_apart(row: str, seed: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, *sys.argv, "--one", row, str(seed)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    run: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(row, seed, run, file=sys.stderr, flush=True)
    return run


def median_seconds(runs: list[dict[str, Any]], key: str = "seconds") -> Seconds | None:
    """The medians over some runs, None if they have no such part."""
    if runs[0][key] is None:
        return None
    wall, cpu = zip(*(run[key] for run in runs), strict=True)
    return Seconds(statistics.median(wall), statistics.median(cpu))


def format_row(row: str, runs: list[dict[str, Any]], ours: Seconds) -> str:
    """A line of the table."""
    seconds, extraction = median_seconds(runs), median_seconds(runs, "extraction")
    n, rights = runs[0]["of"], [run["right"] for run in runs]
    mean = statistics.mean(rights)
    interval = binomtest(round(mean), n).proportion_ci(method="wilson")
    cells = (
        row,
        f"{seconds.wall:.1f}",
        f"{seconds.cpu:.1f}",
        f"{extraction.wall:.1f}, {extraction.cpu:.1f}" if extraction else "",
        f"{seconds.wall / ours.wall:.1f}",
        f"{seconds.cpu / ours.cpu:.1f}",
        f"{mean / n:.1%} [{interval.low:.1%}, {interval.high:.1%}]",
        " ".join(map(str, rights)),
    )
    return f"| {' | '.join(cells)} |"


def print_versions() -> None:
    """What the numbers depend on."""
    names = ("torch", "torchvision", "fastai", "torchbearer", "scikit-learn")
    print(
        f"Python {platform.python_version()},",
        ", ".join(f"{name} {version(name)}" for name in names),
        f"; {torch.get_num_threads()} threads, {os.cpu_count()} cores",
        flush=True,
    )


def print_table(runs: dict[str, list[dict[str, Any]]]) -> None:
    """All rows, compared with the first."""
    print("| | wall s | CPU s | of it extraction | wall / ours | CPU / ours | accuracy | right |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    ours = median_seconds(next(iter(runs.values())))
    for row, of_row in runs.items():
        print(format_row(row, of_row, ours))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    folder = SHARED / "datasets" / "flowers5"
    weights = SHARED / "weights" / "resnet18_imagenet.safetensors"
    parser.add_argument("--data", type=Path, default=folder, help="folder of train/ and test/")
    parser.add_argument("--weights", type=Path, default=weights, help="of a ResNet-18")
    parser.add_argument("--images", type=int, default=200, help="to train on")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, help="of rows that take seconds")
    parser.add_argument("--slow-seeds", type=int, default=1, help="of the other rows")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every row in a process of its own, one after the other."""
    options = parse_options()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options)))
        return
    print_versions()
    runs: dict[str, list[dict[str, Any]]] = {row: [] for row in options.rows}
    for seed in range(max(options.seeds, options.slow_seeds)):
        for row in options.rows:
            if seed < (options.seeds if row in QUICK else options.slow_seeds):
                runs[row].append(measure_apart(row, seed))
    print_table(runs)


if __name__ == "__main__":
    main()
