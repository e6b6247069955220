"""What a comparison will take, told before it starts, from a few timed parts of it."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from manifold_mixup._progress import untracked
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison.candidates import Candidate, Candidates
from manifold_mixup.comparison.subjects import Head, Replicate
from manifold_mixup.comparison.train_candidates import Relabelled, SolvedCandidates, rows_of_all
from manifold_mixup.features import FeatureStore, extract_features
from manifold_mixup.hooks import ManifoldMixup
from manifold_mixup.inspection import INPUT, model_device
from manifold_mixup.linear_heads import is_small
from manifold_mixup.models import LinearLayer
from manifold_mixup.training import BATCH_SIZE, Classes, Passes, train_head, unchanged

_SAMPLE, _CLASSES = 64, 8  # images, of so many classes at most


_FEW = 16  # images that pass before time counts


@dataclass(frozen=True)
class Price:
    """Seconds of the parts of a comparison.

    Attributes:
        extraction: Of the one pass over the images.
        training: Of each layer, all rows, settings and replicates.
        passes: How many mixed images pass through what is frozen behind a layer, by layer.
        most: How many there may be.
    """

    extraction: float
    training: Mapping[str, float]
    passes: Mapping[str, int]
    most: int

    @property
    def seconds(self) -> float:
        """All together."""
        return self.extraction + sum(self.training.values())

    def __str__(self) -> str:
        parts = [f"extraction {_describe(self.extraction)}"]
        for layer, seconds in self.training.items():
            passes = self.passes.get(layer, 0)
            runs = f", where {passes:,} mixed images pass through what is frozen behind it"
            parts.append(f"{layer} {_describe(seconds)}{runs if passes else ''}")
        return (
            f"this takes about {_describe(self.seconds)}: {'; '.join(parts)}; for "
            f"{self.most} replicates, or fewer if they tell enough"
        )


def estimate(
    model: nn.Module,
    dataset: Any,
    find_heads: Callable[[Mapping[str, FeatureStore]], Mapping[str, Head]],
    layers: Sequence[str],
    replicates: Sequence[Replicate],
    most: int,
    offered: Candidates,
    *,
    is_stored: bool,
    with_input: bool,
    workers: int,
) -> Price:
    """Time a few parts of everything, on a few images, and on made-up features of the real size.

    Args:
        model: The model, on its device.
        dataset: Pairs of an image and a class, with the classes as its ``targets`` (N,).
        find_heads: Finds what is trained behind some stores.
        layers: Where to mix.
        replicates: The first replicate of each scenario.
        most: How many a scenario may have.
        offered: What is to be compared.
        is_stored: Whether the features are there already.
        with_input: Whether images are mixed too.
        workers: Processes that load images.
    """
    chosen = Subset(dataset, some_of_classes(dataset.targets, _SAMPLE))
    with tempfile.TemporaryDirectory() as folder:
        few = Subset(chosen, range(min(_FEW, len(chosen))))
        alone: dict[str, Any] = {"workers": workers, "share": (0, 1)}
        extract_features(model, list(layers), few, Path(folder, "few"), **alone)
        began = time.perf_counter()
        stores = extract_features(model, list(layers), chosen, Path(folder, "own"), **alone)
        each = (time.perf_counter() - began) / len(chosen)
        heads = find_heads(stores)
        first = stores[layers[0]]
        known = share_by_class(rows_of_all(heads[layers[0]].layer, first), first.targets)
        timed = _Timed(replicates, dataset.targets, known, offered, most)
        training, passes = timed.layers(stores, heads)
        if with_input:
            whole = LinearLayer(model, heads[layers[0]].layer.module, is_next=False)
            candidates = offered.candidates(INPUT)
            passes[INPUT] = timed.passes(candidates)
            training[INPUT] = timed.heads(whole, candidates)
            training[INPUT] += passes[INPUT] * timed.input_seconds(whole, chosen)
    return Price(0.0 if is_stored else each * len(dataset), training, passes, most)


@dataclass(frozen=True)
class _Timed:
    """Prices of trainings, by parts that are timed now.

    Attributes:
        replicates: The first replicate of each scenario.
        target: The true classes of all samples.
        known: By how much features vary with the class, as a share of how they vary in one.
        offered: What is to be compared.
        most: How many a scenario may have.
    """

    replicates: Sequence[Replicate]
    target: Tensor
    known: float
    offered: Candidates
    most: int

    def layers(
        self, stores: Mapping[str, FeatureStore], heads: Mapping[str, Head]
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Of each layer, what its rows take; and how many mixed images pass behind it."""
        training, passes, has_plain = dict[str, float](), dict[str, int](), True
        for layer, store in stores.items():
            head = heads[layer]
            if not head.is_alone:
                training[layer] = self.steps(head, store)
                continue
            how = {"has_plain": has_plain, "is_affine": head.is_affine}
            candidates, has_plain = self.offered.candidates(layer, **how), False
            training[layer] = self.heads(head.layer, candidates)
            if not head.is_affine:
                passes[layer] = self.passes(candidates)
                training[layer] += passes[layer] * self.pass_seconds(head, store)
        if has_plain:  # the linear head stands beside what is trained by steps
            first = next(iter(stores))
            alone = [Candidate(first, is_alone=True)]
            training[first] += self.heads(heads[first].layer, alone)
        return training, passes

    def passes(self, candidates: Sequence[Candidate]) -> int:
        """How many mixed images pass through something, of all replicates and scenarios."""
        streams = {
            (candidate.alpha, candidate.pairing) for candidate in candidates if candidate.mixes
        }
        images = sum(len(replicate.train) for replicate in self.replicates)
        mixes = self.offered.mixes_of(is_affine=False)
        return len(streams) * mixes * images * self.most

    def heads(self, layer: LinearLayer, candidates: Sequence[Candidate]) -> float:
        """What it takes to solve for the heads of some candidates, once their rows are there."""
        kinds = [
            [candidate for candidate in candidates if candidate.mixes is mixes]
            for mixes in (False, True)
        ]
        if is_small(len(self.target) * layer.module.weight.numel()):  # then all go side by side
            each = [self._heads(layer, candidates, replicate) for replicate in self.replicates]
        else:
            each = [
                len(kind) * self._heads(layer, kind[-1:], replicate)
                for replicate in self.replicates
                for kind in kinds
                if kind
            ]
        return self.most * sum(each)

    def _heads(
        self, layer: LinearLayer, candidates: Sequence[Candidate], replicate: Replicate
    ) -> float:
        rows = _made_up(self.target, layer.module.in_features, self.known)
        shown = SolvedCandidates(
            layer, _no_samples, "", rows, candidates, self.offered, is_affine=True
        )
        return _seconds(partial(shown.add, replicate), times=1)

    def pass_seconds(self, head: Head, store: FeatureStore) -> float:
        """Of one mixed image, from a layer to the head."""
        example = store.features.gather(torch.arange(2)).to(head.layer.module.weight)
        return self._pass(head.layer, store.stored_layer, store, example) / len(store)

    def input_seconds(self, layer: LinearLayer, images: Subset[Any]) -> float:
        """Of one mixed image, through all of the model."""
        target = torch.arange(len(images)) % layer.module.out_features
        some = Relabelled(images, torch.arange(len(images)), target)
        example = torch.stack([some[0][0], some[1][0]]).to(layer.module.weight)
        return self._pass(layer, INPUT, some, example) / len(some)

    def _pass(self, layer: LinearLayer, at: str, samples: Any, example: Tensor) -> float:
        how: dict[str, Any] = {"batch_size": BATCH_SIZE, "workers": 0}
        with ManifoldMixup(layer.model, at, example=example) as mixup:
            passes = Passes(layer, samples, Classes(), mixup, track=untracked, **how)
            return _seconds(lambda: passes.mixed(0, 0), device=model_device(layer.model))

    def steps(self, head: Head, store: FeatureStore) -> float:
        """Of all that is trained behind a layer by steps."""
        offered = self.offered
        part = store.take(range(min(offered.batch_size, len(store))))
        train = partial(
            train_head, head.tail, part, lr=1e-6, batch_size=len(part), say=lambda line: None
        )
        with unchanged(head.tail):
            once, thrice = (_seconds(partial(train, epochs=n)) for n in (1, 3))
        # A short one measures a fifth of its samples after each epoch, the others as many again.
        images = sum(len(replicate.train) for replicate in self.replicates)
        epochs = offered.epochs * images / len(part)
        candidates = offered.candidates(store.layer, is_affine=False)
        trainings = len(candidates) * (len(offered.lrs) + self.most - 1)
        return trainings * epochs * max(0.0, thrice - once) / 2


def _no_samples(positions: Tensor, target: Tensor) -> Any:
    raise AssertionError("rows that are affine pass through nothing")


def _made_up(target: Tensor, width: int, known: float) -> Tensor:
    """Features (N, D) that tell the classes as well as real ones, and vary as these do.

    What is easily told, or not at all, is solved in fewer steps.
    """
    generator = seeded_generator("price")
    spread = torch.logspace(0, -1.5, width)
    centres = torch.randn(int(target.max()) + 1, width, generator=generator) * math.sqrt(known)
    noise = torch.randn(len(target), width, generator=generator)
    return (centres[target] + noise) * spread


def share_by_class(rows: Tensor, target: Tensor) -> float:
    """By how much rows (n, D) vary with the class, as a share of how they vary within one."""
    found = [rows[target == one] for one in torch.unique(target)]
    n, k = len(rows), len(found)
    if n == k:
        return 0.0
    inside = sum(float((own - own.mean(0)).square().sum()) for own in found) / (n - k)
    between = sum(len(own) * float((own.mean(0) - rows.mean(0)).square().sum()) for own in found)
    # Means of few samples differ even where their classes do not.
    return max(0.0, (between / (k - 1) / inside - 1) * k / n) if inside else 1.0


def some_of_classes(target: Tensor, most: int) -> list[int]:
    """Positions of some samples, as many of each of a few classes, from first to last.

    Example:
        >>> some_of_classes(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 4)
        [0, 2, 4, 6]
    """
    classes = _spread(torch.unique(target), _CLASSES).tolist()
    own = ((target == one).nonzero().flatten() for one in classes)
    return [int(at) for one in own for at in _spread(one, max(1, most // len(classes)))]


def _spread(values: Tensor, most: int) -> Tensor:
    """Some of the values, from first to last."""
    n = min(most, len(values))
    return values[torch.arange(n) * len(values) // n]


def _seconds(
    function: Callable[[], Any], *, times: int = 3, device: torch.device | None = None
) -> float:
    """What a call takes: the least of some."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _describe(seconds: float) -> str:
    """Seconds, minutes or hours.

    Example:
        >>> _describe(90)
        '1.5 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
