"""Trials of all that lies behind a layer, trained on its stored features one after the other."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.kept import Kept
from manifold_mixup.metrics import predict_logits
from manifold_mixup.progress import Track, untracked
from manifold_mixup.resume import load_parameters, unchanged
from manifold_mixup.settings import HeadSettings
from manifold_mixup.starts import Start
from manifold_mixup.store import FeatureStore
from manifold_mixup.tail import Tail
from manifold_mixup.train import train_head
from manifold_mixup.trained import Outcome, Trained, choose, mended_nll
from manifold_mixup.trials import Trial, Ways

_PARTS = ("val", "test", "train")


def train_tails(
    tail: Tail,
    linear: nn.Linear,
    store: FeatureStore,
    trials: Sequence[Trial],
    starts: Sequence[Start],
    ways: Ways,
    *,
    kept: Kept | None = None,
    track: Track = untracked,
) -> list[Trained]:
    """Train every trial from where the tail stands now; it is left as it was.

    As each setting costs a training of its own, the rate and weight decay of a trial are chosen
    with the first seed alone; those that diverge under another one give way to the next best.

    Args:
        tail: What lies behind the stored features.
        linear: The head in it, which begins where a start says.
        store: The features.
        trials: See `train_heads`, as for all that follow.
        starts: See there.
        ways: See there.
        kept: See there.
        track: See there.
    """
    tails = _Tails(tail, linear, store, ways.options, kept or Kept())
    grid = len(ways.lrs), len(ways.weight_decays)
    total = len(trials) * (grid[0] * grid[1] + len(starts) - 1)
    progress = iter(track(range(total), total, store.layer))
    trained = []
    for trial in trials:
        began = time.perf_counter()
        settings, first = ways.settings(trial, starts[0].seed), []
        for one in settings:
            next(progress, None)
            first.append(tails.train(one, starts[0]))
        nll = torch.tensor([_nll(outcome, starts[0]) for outcome in first])
        outcomes: list[Outcome] = []
        while len(outcomes) < len(starts):
            best = choose(trial, nll)
            chosen = first[best]
            assert chosen is not None  # or its NLL would be infinite
            outcomes = [chosen, *tails.train_others(settings[best], starts[1:], progress)]
            nll[best] = nll[best] if len(outcomes) == len(starts) else math.inf
        seconds = time.perf_counter() - began
        trained.append(Trained(trial, settings[best], nll.view(grid), outcomes, seconds))
    return trained


@dataclass(frozen=True)
class _Tails:
    """Trains a tail again and again from the same beginning."""

    tail: Tail
    linear: nn.Linear
    store: FeatureStore
    options: Mapping[str, Any]
    kept: Kept

    def train(self, settings: HeadSettings, start: Start) -> Outcome | None:
        """What a training comes to; None if it diverges."""
        name = " ".join(str(value) for value in asdict(settings).values())
        tensors = self.kept.get(name)
        if tensors is None:
            tensors = self.kept.put(name, self._trained(settings, start))
        if not tensors:
            return None
        logits = {part: tensors[part] for part in _PARTS}
        return Outcome(**logits, mixed_loss=float(tensors["mixed_loss"]))

    def train_others(
        self, settings: HeadSettings, starts: Sequence[Start], progress: Iterator[int]
    ) -> Iterator[Outcome]:
        """What it comes to from some starts, until it diverges."""
        for start in starts:
            next(progress, None)
            outcome = self.train(replace(settings, seed=start.seed), start)
            if outcome is None:
                return
            yield outcome

    def _trained(self, settings: HeadSettings, start: Start) -> dict[str, Tensor]:
        store = self.store.with_targets(start.target)
        with unchanged(self.tail):
            load_parameters(
                dict(self.linear.named_parameters()), {"weight": start.weight, "bias": start.bias}
            )
            try:
                training = train_head(
                    self.tail, store.take(start.train), **asdict(settings), **self.options
                )
            except RuntimeError as error:
                if "not finite" in str(error):
                    return {}
                raise
            tensors = {
                part: predict_logits(self.tail, store.take(getattr(start, part)))[0].double()
                for part in _PARTS
            }
        return tensors | {"mixed_loss": torch.tensor(training.metrics["mixed_loss"])}


def _nll(outcome: Outcome | None, start: Start) -> float:
    if outcome is None:
        return math.inf
    return float(mended_nll(outcome.val[None], start.target[start.val]))
