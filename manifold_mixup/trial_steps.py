"""Trials of all that lies behind a layer, trained by steps on its stored features."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup._files import Kept
from manifold_mixup._progress import Track, untracked
from manifold_mixup.features import FeatureStore
from manifold_mixup.models import Tail
from manifold_mixup.starts import Start
from manifold_mixup.trained import Outcome, Trained, nll_at_best_temperature
from manifold_mixup.training import (
    Diverged,
    HeadSettings,
    failures_unwarned,
    load_parameters,
    predict_logits,
    train_head,
    unchanged,
)
from manifold_mixup.trials import Trial, Ways

_PARTS = ("val", "test", "train")
# Of AdamW. What regularizes a block is its rate and the epoch that validation chooses.
_DECAY = 0.01


class SteppedTrials:
    """The trials of a layer, done in one replicate after the other, each from the same weights.

    As each setting costs a training of its own, the learning rate of a trial is chosen in the
    first replicate alone. Every training keeps the epoch that is best on validation, so that no
    trial wins by stopping early alone.

    Args:
        tail: What lies behind the stored features; it is left as it was.
        linear: The head in it, which begins where a `Start` says.
        store: The features.
        trials: The ways to train.
        ways: What they may choose from.
        kept: What an interrupted comparison has trained already.
        track: Shows how many trainings are done.
    """

    def __init__(
        self,
        tail: Tail,
        linear: nn.Linear,
        store: FeatureStore,
        trials: Sequence[Trial],
        ways: Ways,
        kept: Kept | None = None,
        track: Track = untracked,
    ) -> None:
        self.tail, self.linear, self.store = tail, linear, store
        self.ways, self.kept, self.track = ways, kept or Kept(), track
        self._outcomes: dict[Trial, list[Outcome]] = {trial: [] for trial in trials}
        self._seconds = {trial: 0.0 for trial in trials}

    def add(self, start: Start) -> None:
        """Do one more replicate."""
        for trial in self.track(list(self._outcomes), len(self._outcomes), self.store.layer):
            began, done = time.perf_counter(), self._outcomes[trial]
            if done and done[0].failed:  # at every rate: there is none to go on with
                done.append(done[0])
                continue
            rates = [done[0].settings["lr"]] if done else self.ways.lrs
            tried = [self._outcome(trial, rate, start) for rate in rates]
            done.append(min(tried, key=lambda one: (bool(one.failed), float(one.nll))))
            self._seconds[trial] += time.perf_counter() - began

    @property
    def trained(self) -> list[Trained]:
        """What has come of each trial so far."""
        return [Trained(trial, own, self._seconds[trial]) for trial, own in self._outcomes.items()]

    def _outcome(self, trial: Trial, lr: float, start: Start) -> Outcome:
        name = f"{trial.name} lr {lr:g} seed {start.seed}"
        tensors = self.kept.get(name)
        if tensors is None:
            tensors = self.kept.put(
                name, self._trained(trial.steps(lr, _DECAY, start.seed), start)
            )
        reason = bytes(tensors["failed"].tolist()).decode()
        nll = nll_at_best_temperature(tensors["val"][None], start.target[start.val])
        losses = float(tensors["clean_loss"]), float(tensors["mixed_loss"])
        chosen = {"lr": lr, "weight_decay": _DECAY}
        return Outcome(tensors["val"], tensors["test"], *losses, chosen, nll, reason)

    def _trained(self, settings: HeadSettings, start: Start) -> dict[str, Tensor]:
        store = self.store.with_targets(start.target)
        assert start.head is not None  # given wherever something is trained by steps
        with unchanged(self.tail), failures_unwarned():
            begin = dict(zip(("weight", "bias"), start.head, strict=True))
            load_parameters(dict(self.linear.named_parameters()), begin)
            try:
                mixed_loss, failed = self._train(settings, store, start)
            except Diverged as error:
                mixed_loss, failed = math.nan, error.reason
            logits = {
                part: predict_logits(self.tail, store.take(getattr(start, part)))[0].double()
                for part in _PARTS
            }
        words = torch.tensor(list(failed.encode()), dtype=torch.uint8)
        clean_loss = F.cross_entropy(logits.pop("train"), start.target[start.train])
        losses = {"clean_loss": clean_loss, "mixed_loss": torch.tensor(mixed_loss)}
        return {**logits, **losses, "failed": words}

    def _train(
        self, settings: HeadSettings, store: FeatureStore, start: Start
    ) -> tuple[float, str]:
        """Train the tail; its loss on mixed samples, and why it failed if it did."""
        ways = self.ways
        own: Mapping[str, Any] = {
            name: getattr(settings, name)
            for name in ("alpha", "lr", "weight_decay", "label_smoothing", "pairing", "seed")
        }
        training = train_head(
            self.tail,
            store.take(start.train),
            **own,
            clean_weight=settings.clean_weight,
            validation=store.take(start.val),
            optimizer="adamw",
            epochs=ways.epochs,
            batch_size=ways.batch_size,
            patience=ways.epochs,
        )
        return training.metrics["mixed_loss"], training.failed
