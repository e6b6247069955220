"""What a comparison will take, told before it starts, from a few timed steps."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from manifold_mixup.compare import Head, gather_inputs
from manifold_mixup.features import extract_features
from manifold_mixup.layers import INPUT
from manifold_mixup.loading import model_device
from manifold_mixup.loss import mixed_loss
from manifold_mixup.manager import ManifoldMixup
from manifold_mixup.modes import training_mode
from manifold_mixup.resume import unchanged
from manifold_mixup.stack import train_stack
from manifold_mixup.starts import Start
from manifold_mixup.store import FeatureStore
from manifold_mixup.train import train_head
from manifold_mixup.trial_heads import input_of
from manifold_mixup.trials import Ways

_SAMPLE = 64  # images
_TIMED = 5  # steps


@dataclass(frozen=True)
class Price:
    """Seconds of the parts of a comparison.

    Attributes:
        extraction: Of the one pass over the images.
        training: Of each layer, all rows, settings and seeds.
        mixed_batches: How many batches what is frozen behind a layer runs for, by layer: mixed
            ones, noisy ones, and clean ones whose loss stands beside that of mixed ones.
    """

    extraction: float
    training: Mapping[str, float]
    mixed_batches: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """All together."""
        return self.extraction + sum(self.training.values())

    def __str__(self) -> str:
        parts = [f"extraction {_readable(self.extraction)}"]
        for layer, seconds in self.training.items():
            batches = self.mixed_batches.get(layer, 0)
            runs = f", what is frozen behind it runs for {batches:,} mixed batches"
            parts.append(f"{layer} {_readable(seconds)}{runs if batches else ''}")
        return f"this takes about {_readable(self.seconds)}: {'; '.join(parts)}"


def estimate(
    model: nn.Module,
    dataset: Any,
    find_heads: Callable[[Mapping[str, FeatureStore]], Mapping[str, Head]],
    layers: Sequence[str],
    starts: Sequence[Start],
    seeds: int,
    ways: Ways,
    *,
    is_stored: bool,
    with_input: bool,
    workers: int,
) -> Price:
    """Time a few steps of everything, on a few images.

    Args:
        model: The model, on its device.
        dataset: Pairs of an image and a class.
        find_heads: Finds what is trained behind some stores.
        layers: Where to mix.
        starts: The first of each case.
        seeds: How many starts a case has.
        ways: What is to be compared.
        is_stored: Whether the features are there already.
        with_input: Whether images are mixed too.
        workers: Processes that load images.
    """
    chosen = _spread(dataset, _SAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        few = _spread(dataset, 16)
        extract_features(model, list(layers), few, Path(folder, "few"), workers=workers)
        began = time.perf_counter()
        stores = extract_features(
            model, list(layers), chosen, Path(folder, "own"), workers=workers
        )
        each = (time.perf_counter() - began) / len(chosen)
        heads = find_heads(stores)
        timed = _Timed(starts, ways, seeds, model_device(model))
        training, batches = {}, {}
        for layer, store in stores.items():
            training[layer] = timed.training(heads[layer], store)
            if heads[layer].is_alone and not heads[layer].is_next:
                batches[layer] = timed.mixed_batches(layer)
        if with_input:
            between = partial(input_of, model, heads[layers[0]].linear)
            batches[INPUT] = timed.mixed_batches(INPUT)
            training[INPUT] = timed.heads(
                partial(gather_inputs, chosen), INPUT, len(chosen), between
            )
    return Price(0.0 if is_stored else each * len(dataset), training, batches)


@dataclass(frozen=True)
class _Timed:
    """Prices of trainings, by steps that are timed now."""

    starts: Sequence[Start]
    ways: Ways
    seeds: int
    device: torch.device

    @property
    def steps(self) -> int:
        """Of one epoch, of all cases together."""
        return sum(-(-len(start.train) // self.ways.batch_size) for start in self.starts)

    def mixed_batches(self, layer: str) -> int:
        """For how many batches something between a layer and its heads runs."""
        trials = [one for one in self.ways.trials(layer) if one.mixes or one.noise]
        streams = {(one.alpha, one.pairing, one.noise) for one in trials}
        clean = any(one.clean_weight for one in trials)  # runs once more, for all of these
        epochs = min(self.ways.mixed_epochs or self.ways.epochs, self.ways.epochs)
        return (len(streams) + clean) * self.seeds * self.steps * epochs

    def training(self, head: Head, store: FeatureStore) -> float:
        """Of all rows of a layer."""
        if not head.is_alone:
            return self._tails(head, store)
        between = None if head.is_next else partial(input_of, head.tail, head.linear)
        return self.heads(store.features.gather, store.layer, len(store), between)

    def heads(self, gather: Callable[[Tensor], Tensor], layer: str, n: int, between: Any) -> float:
        """Of linear heads, with what lies between."""
        index = torch.arange(n)[: self.ways.batch_size]

        def taken() -> Tensor:
            features = gather(index)
            return features.flatten(1) if between is None else between(features)

        features = taken().cpu()
        trials = self.ways.trials(layer)
        settings = [one for trial in trials for one in self.ways.settings(trial, 0)]
        target = torch.arange(len(features)) % len(self.starts[0].bias)
        train = partial(
            train_stack,
            features.__getitem__,
            target,
            settings,
            self.starts[0].weight,
            self.starts[0].bias,
            batch_size=len(index),
        )
        # To begin and to end copies all heads, which a training does once.
        few, more = (self._seconds(partial(train, epochs=epochs)) for epochs in (1, 9))
        step = (more - few) / 8 if more > few else more / 9
        seconds = self.seeds * self.steps * self.ways.epochs * step
        if between is not None:
            of_all = len(self.starts) * len(self.starts[0].target) / len(index)
            seconds += (self.mixed_batches(layer) + of_all) * self._seconds(taken)
        return seconds

    def _tails(self, head: Head, store: FeatureStore) -> float:
        """Of all that lies behind a layer."""
        ways, part = self.ways, store.take(range(min(self.ways.batch_size, len(store))))
        settings = asdict(ways.trials(store.layer)[-1].settings(ways.lrs[:1], (0.0,), 0)[0])
        train = partial(train_head, head.tail, part, batch_size=len(part), **settings)
        with unchanged(head.tail):
            once, thrice = (self._seconds(partial(train, epochs=epochs)) for epochs in (1, 3))
        grid = len(ways.lrs) * len(ways.weight_decays)
        trainings = len(ways.trials(store.layer)) * (grid + self.seeds - 1)
        return trainings * ways.epochs * self.steps * max(0.0, thrice - once) / 2

    def _seconds(self, function: Callable[[], Any]) -> float:
        """What a call takes, the median of three."""
        return seconds_of(function, self.device, 3)


def hooked_seconds(model: nn.Module, layer: str, images: Tensor, batch_size: int) -> float:
    """What a training step takes in a loop that runs the whole model, loading left out.

    Args:
        model: The model; it comes back as it was.
        layer: Where to mix.
        images: Some images (B, C, H, W), a few of a batch on a CPU: time grows with their number.
        batch_size: Images in a step.
    """
    device = model_device(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    target = torch.zeros(len(images), dtype=torch.long, device=device)
    images = images.to(device)

    def step() -> None:
        with mixup(target) as mix:
            loss: Tensor = mixed_loss(model(images), target, mix, F.cross_entropy)
        torch.autograd.grad(loss, list(parameters.values()))

    mixup = ManifoldMixup(model, layer, example=images[:2])
    with mixup, training_mode(model, parameters, set()):
        return seconds_of(step, device, _TIMED) * batch_size / len(images)


def _spread(dataset: Any, most: int) -> Subset[Any]:
    """Some samples, from first to last: the first alone may be of one class."""
    n = min(most, len(dataset))
    return Subset(dataset, [place * len(dataset) // n for place in range(n)])


def seconds_of(function: Callable[[], Any], device: torch.device, times: int) -> float:
    """What a call takes: the median of some, after one that is not counted."""
    function()
    taken = []
    for _ in range(times):
        _wait(device)
        began = time.perf_counter()
        function()
        _wait(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _readable(seconds: float) -> str:
    """Seconds, minutes or hours.

    Example:
        >>> _readable(90)
        '1.5 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
