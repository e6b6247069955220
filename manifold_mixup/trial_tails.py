"""Trials of all that lies behind a layer, trained on its stored features one after the other."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.kept import Kept
from manifold_mixup.metrics import predict_logits
from manifold_mixup.progress import Track, untracked
from manifold_mixup.resume import load_parameters
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
    with the first seed alone.

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
    one = _Tail(tail, linear, store, ways.options, kept or Kept())
    grid = len(ways.lrs), len(ways.weight_decays)
    total = len(trials) * (grid[0] * grid[1] + len(starts) - 1)
    progress = iter(track(range(total), total, store.layer))
    trained = []
    for trial in trials:
        began = time.perf_counter()
        tried = []
        for settings in ways.settings(trial, starts[0].seed):
            next(progress)
            tried.append((settings, one.train(trial, settings, starts[0])))
        nll = torch.tensor([_nll(outcome, starts[0]) for _, outcome in tried])
        settings, first = tried[choose(trial, nll)]
        outcomes = [first]
        for start in starts[1:]:
            next(progress)
            outcomes.append(one.train(trial, replace(settings, seed=start.seed), start))
        seconds = time.perf_counter() - began
        found = _finite(outcomes, trial)
        trained.append(Trained(trial, settings, nll.view(grid), found, seconds))
    return trained


@dataclass(frozen=True)
class _Tail:
    """Trains a tail again and again from the same beginning."""

    tail: Tail
    linear: nn.Linear
    store: FeatureStore
    options: Mapping[str, Any]
    kept: Kept

    def train(self, trial: Trial, settings: HeadSettings, start: Start) -> Outcome | None:
        """What a training comes to; None if it diverges."""
        name = f"{trial.name} {settings.lr:g} {settings.weight_decay:g} {start.seed}"
        tensors = self.kept.get(name) or self.kept.put(name, self._trained(settings, start))
        if not tensors:
            return None
        logits = {part: tensors[part] for part in _PARTS}
        return Outcome(**logits, mixed_loss=float(tensors["mixed_loss"]))

    def _trained(self, settings: HeadSettings, start: Start) -> dict[str, Tensor]:
        store = self.store.with_targets(start.target)
        with _unchanged(self.tail):
            load_parameters(
                dict(self.linear.named_parameters()), {"weight": start.weight, "bias": start.bias}
            )
            try:
                training = train_head(
                    self.tail, store.take(start.train), **asdict(settings), **self.options
                )
            except RuntimeError:  # the loss is not finite any more
                return {}
            tensors = {
                part: predict_logits(self.tail, store.take(getattr(start, part)))[0].double()
                for part in _PARTS
            }
        return tensors | {"mixed_loss": torch.tensor(training.metrics["mixed_loss"])}


def _nll(outcome: Outcome | None, start: Start) -> float:
    if outcome is None:
        return math.inf
    return float(mended_nll(outcome.val[None], start.target[start.val]))


def _finite(outcomes: Sequence[Outcome | None], trial: Trial) -> list[Outcome]:
    found = [outcome for outcome in outcomes if outcome is not None]
    if len(found) < len(outcomes):
        raise RuntimeError(
            f"a tail of '{trial.name}' diverged under another seed; lower the rates"
        )
    return found


@contextmanager
def _unchanged(tail: nn.Module) -> Iterator[None]:
    """Let parameters be trained, and bring them back."""
    before = {name: p.detach().clone() for name, p in tail.named_parameters() if p.requires_grad}
    try:
        yield
    finally:
        load_parameters(dict(tail.named_parameters()), before)
