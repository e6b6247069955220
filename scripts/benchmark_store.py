"""What the one pass costs, what a hundred epochs add to it, and the memory of a large store.

    python scripts/benchmark_store.py memory
    python scripts/benchmark_store.py pass --data flowers5/train --weights resnet50.safetensors

Both on 2 cores of a shared AMD machine without a GPU, Linux, Python 3.11.7, torch 2.14.1:

memory: 50,000 x 2048 in float32 (391 MB) take 78 MB of anonymous memory above the imports to
extract, and 46 MB to train from.

pass, ResNet-50 at 224 pixels, 512 JPEGs, decoding included, medians of 5 interleaved rounds: the
extraction takes 0.645 of the time of a plain eager float32 loop with the same loader (0.639 in
processor time), and with 100 epochs of head training on top 1.048 of itself.
"""

import argparse
import copy
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from manifold_mixup import extract_features, freeze, load_backbone, replace_head, train_head
from manifold_mixup.data import ImageSet, list_data
from manifold_mixup.images import model_transform


class Vectors(Dataset[tuple[Tensor, int]]):
    """50,000 vectors of 2048 numbers, each made when it is asked for."""

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(2048, generator=generator), index % 37


class Peak(threading.Thread):
    """The largest anonymous memory of this process while it is watched, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb, self._is_over = 0.0, threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self._is_over.wait(0.01):
            self.mb = max(self.mb, anonymous_mb())

    def __enter__(self) -> "Peak":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self.join()


def anonymous_mb() -> float:
    """Anonymous memory of this process in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    line = next(row for row in status.splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def measure_memory() -> None:
    """Extract 50,000 x 2048 features, and train a head from the map."""
    model = nn.Sequential(nn.Identity(), nn.Linear(2048, 37))
    train_head(model, [(torch.randn(2048), 0)] * 8, layer="0", epochs=1)  # loads what is lazy
    before = anonymous_mb()
    with tempfile.TemporaryDirectory() as folder:
        with Peak() as extraction:
            store = extract_features(model, "0", Vectors(), folder, fold=False)
        with Peak() as training:
            train_head(model, store, epochs=2, batch_size=256)
        print(f"store: {len(store)} x {store.shape}, {store.features.nbytes / 2**20:.0f} MB")
    print(f"anonymous memory above the imports: extraction {extraction.mb - before:.0f} MB")
    print(f"anonymous memory above the imports: training {training.mb - before:.0f} MB")


def plain_pass(model: nn.Module, images: Dataset[tuple[Tensor, int]]) -> None:
    """What everybody writes: eager float32 inference, batch by batch."""
    with torch.inference_mode():
        for batch, _ in DataLoader(images, 16):
            model(batch)


def timed(work: object) -> tuple[float, float]:
    """Seconds on the clock and of all processors that a call takes."""
    wall, processors = time.perf_counter(), time.process_time()
    assert callable(work)
    work()
    return time.perf_counter() - wall, time.process_time() - processors


def measure_pass(data: Path, weights: Path, name: str, images: int, rounds: int) -> None:
    """Extraction beside the plain loop, and 100 epochs of head training beside extraction."""
    model = load_backbone(name, weights=weights)
    listed = list_data(data)
    head = replace_head(model, len(listed.classes))
    freeze(model, except_=head)
    part = listed.parts["train"]
    everything = ImageSet(part, model_transform(name, model), 3)
    chosen = Subset(everything, range(0, len(part), max(1, len(part) // images))[:images])
    rows = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            plain = timed(lambda: plain_pass(model, chosen))
            pass_ = timed(lambda f=folder: extract_features(model, "layer4", chosen, f))
            store = extract_features(model, "layer4", chosen, folder)
            trained = copy.deepcopy(model)
            hundred = timed(lambda m=trained, s=store: train_head(m, s.load(), epochs=100))
        rows.append((plain, pass_, hundred))
        print(
            f"{len(chosen)} images: plain {plain[0]:.1f} s, extraction {pass_[0]:.1f} s, "
            f"100 epochs {hundred[0]:.2f} s (processors: {plain[1]:.1f}, {pass_[1]:.1f}, "
            f"{hundred[1]:.2f})",
            flush=True,
        )
    for clock, kind in enumerate(("wall", "processor")):
        ratio = statistics.median(row[1][clock] / row[0][clock] for row in rows)
        total = statistics.median((row[1][clock] + row[2][clock]) / row[1][clock] for row in rows)
        print(f"{kind}: extraction / plain loop {ratio:.3f}, with 100 epochs {total:.3f}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("memory", "pass"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads"
    )
    if given.what == "memory":
        measure_memory()
    else:
        measure_pass(given.data, given.weights, given.model, given.images, given.rounds)


if __name__ == "__main__":
    main()
