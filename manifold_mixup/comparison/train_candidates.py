"""Candidates in one replicate after the other: heads are solved for, all else goes by steps."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from manifold_mixup._files import Kept
from manifold_mixup._progress import Track, untracked
from manifold_mixup.comparison.candidates import Candidate, Candidates
from manifold_mixup.comparison.outcomes import Outcome, Trained, nll_at_best_temperature
from manifold_mixup.comparison.subjects import Replicate
from manifold_mixup.features import FeatureStore
from manifold_mixup.hooks import ManifoldMixup
from manifold_mixup.inspection import INPUT
from manifold_mixup.linear_heads import LinearHead, Standardized, side_by_side
from manifold_mixup.mixing import Mix
from manifold_mixup.models import LinearLayer, Tail
from manifold_mixup.training import (
    BATCH_SIZE,
    Classes,
    Diverged,
    HeadProblem,
    HeadSettings,
    Passes,
    failures_unwarned,
    load_parameters,
    make_problem,
    passed_problem,
    predict_logits,
    rows_of,
    solving_device,
    train_head,
    unchanged,
)

_PARTS = ("val", "test")


# Weight decays that are worse than the best before a path ends.
_WORSE = 2


# What is kept of an outcome beside its logits.
_NUMBERS = ("nll", "weight_decay", "clean_loss", "mixed_loss")


class SolvedCandidates:
    """The candidates of a layer, done in one replicate after the other.

    Args:
        layer: The head, in a model that takes the samples: of stored features what lies behind.
        samples: Gives samples to train on, by their positions and classes, and the layer to mix
            at; for what is not affine.
        rows: What reaches the head of all samples, unmixed (N, D).
        candidates: The ways to train.
        offered: What they may choose from.
        is_affine: Whether mixes may be pushed to the logits.
        kept: What an interrupted comparison has solved already.
        track: Shows how far passes are.
    """

    def __init__(
        self,
        layer: LinearLayer,
        samples: Callable[[Tensor, Tensor], Any],
        at: str,
        rows: Tensor,
        candidates: Sequence[Candidate],
        offered: Candidates,
        *,
        is_affine: bool,
        kept: Kept | None = None,
        track: Track = untracked,
    ) -> None:
        self.layer, self.samples, self.at, self.rows = layer, samples, at, rows
        self.candidates, self.offered, self.is_affine = list(candidates), offered, is_affine
        self.kept, self.track = kept or Kept(), track
        self._outcomes: dict[Candidate, list[Outcome]] = {
            candidate: [] for candidate in candidates
        }
        self._seconds = 0.0

    def add(self, replicate: Replicate) -> None:
        """Do one more replicate."""
        began = time.perf_counter()
        name = f"{replicate.seed}"
        found = self.kept.get(name)
        if found is None:
            found = self.kept.put(name, self._solved(replicate))
        for place, candidate in enumerate(self.candidates):
            own = {key: found[f"{place}.{key}"] for key in (*_PARTS, *_NUMBERS)}
            self._outcomes[candidate].append(outcome_of(own))
        self._seconds += time.perf_counter() - began

    @property
    def trained(self) -> list[Trained]:
        """What has come of each candidate so far."""
        each = self._seconds / max(1, len(self.candidates))
        return [Trained(candidate, own, each) for candidate, own in self._outcomes.items()]

    def _solved(self, replicate: Replicate) -> dict[str, Tensor]:
        shared = _Shared(self, replicate)
        problems = [shared.problem(candidate) for candidate in self.candidates]
        work = len(replicate.train) * self.rows.shape[1] * self.layer.module.out_features
        solved = side_by_side(problems, shared.solve, work)
        return {
            f"{place}.{name}": tensor
            for place, own in enumerate(solved)
            for name, tensor in own.items()
        }


class _Shared:
    """What the candidates of one replicate share."""

    def __init__(self, of: SolvedCandidates, replicate: Replicate) -> None:
        self.of, self.replicate = of, replicate
        self.target = replicate.target[replicate.train]
        self._copies: dict[tuple[float, str], list[tuple[Tensor, Mix]]] = {}

    @cached_property
    def standardized(self) -> Standardized:
        """The rows to train on."""
        rows = self.of.rows[self.replicate.train]
        device = solving_device(self.of.layer.module.weight.device)
        return Standardized(rows.__getitem__, len(rows), device)

    def solve(self, problem: HeadProblem) -> dict[str, Tensor]:
        """What the head of the best weight decay comes to."""
        return solve_along(problem, self.of.offered.decays, self.of.rows, self.replicate)

    def problem(self, candidate: Candidate) -> HeadProblem:
        """What is solved for a candidate."""
        mixes = self.of.offered.mixes_of(is_affine=self.of.is_affine)
        risk = candidate.risk(mixes, self.replicate.seed)
        outputs, task = self.of.layer.module.out_features, Classes()
        if self.of.is_affine or not candidate.mixes:
            own = risk.draw(self.target)
            return make_problem(self.standardized, task, self.target, outputs, risk, own)
        key = candidate.alpha, candidate.pairing
        if key not in self._copies:
            self._copies[key] = self._passed(candidate, mixes)
        clean = self.of.rows[self.replicate.train] if risk.has_clean else None
        device = self.of.layer.module.weight.device
        return passed_problem(self._copies[key], clean, task, self.target, outputs, risk, device)

    def _passed(self, candidate: Candidate, mixes: int) -> list[tuple[Tensor, Mix]]:
        """Mixed samples that have passed to the head."""
        layer, seed = self.of.layer, self.replicate.seed
        samples = self.of.samples(self.replicate.train, self.target)
        options: dict[str, Any] = {
            "alpha": candidate.alpha,
            "pairing": candidate.pairing,
            "seed": seed,
        }
        first = (
            torch.stack([samples[i][0] for i in range(2)])
            if self.of.at == INPUT
            else samples.features.gather(torch.arange(min(2, len(samples))))
        )
        example = first.to(layer.module.weight)
        with ManifoldMixup(layer.model, self.of.at, example=example, **options) as mixup:
            how: dict[str, Any] = {"batch_size": BATCH_SIZE, "workers": 0}
            passes = Passes(layer, samples, Classes(), mixup, track=self.of.track, **how)
            return [passes.mixed(k, seed) for k in range(mixes)]


def solve_along(
    problem: HeadProblem, decays: Sequence[float], rows: Tensor, replicate: Replicate
) -> dict[str, Tensor]:
    """Solve for each weight decay, and measure the head that validation finds best.

    Weaker decays cost more and more: when two in a row are worse than the best, none is tried any
    more.

    Args:
        problem: What is solved.
        decays: From strong to weak.
        rows: What reaches the head of all samples, unmixed (N, D).
        replicate: Which of them to choose by and to test on.

    Returns:
        Logits of its ``val`` and ``test`` samples (n, C); its ``weight_decay``, ``clean_loss`` and
        ``mixed_loss``; and the validation ``nll`` of every decay at its best temperature (W,),
        infinite for those that were not tried.
    """

    def logits(part: str, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(rows[getattr(replicate, part)].double(), weight, bias)

    heads: list[LinearHead] = []
    nll = torch.full((len(decays),), math.inf, dtype=torch.float64)
    for place, decay in enumerate(decays):
        heads.append(problem.solve(decay, heads[-1] if heads else None))
        val = logits("val", *problem.rows.to_raw(heads[-1].weight, heads[-1].bias))
        nll[place] = nll_at_best_temperature(val[None], replicate.target[replicate.val])
        if place - int(nll.argmin()) == _WORSE:
            break
    best = int(nll.argmin())
    head = problem.solve(decays[best], heads[best], exact=True)  # as it would be alone
    chosen = problem.rows.to_raw(head.weight, head.bias)
    clean = F.cross_entropy(logits("train", *chosen), replicate.target[replicate.train])
    numbers = {"weight_decay": head.weight_decay, "mixed_loss": head.risk, "clean_loss": clean}
    return {
        **{name: torch.as_tensor(value, dtype=torch.float64) for name, value in numbers.items()},
        **{part: logits(part, *chosen) for part in _PARTS},
        "nll": nll,
    }


def outcome_of(solved: Mapping[str, Tensor]) -> Outcome:
    """What `solve_along` found, as every comparison has it."""
    losses = float(solved["clean_loss"]), float(solved["mixed_loss"])
    chosen = {"weight_decay": float(solved["weight_decay"])}
    return Outcome(solved["val"], solved["test"], *losses, chosen, solved["nll"])


class Relabelled(Dataset[tuple[Tensor, int]]):
    """Some samples of a data set, with other classes."""

    def __init__(self, dataset: Any, positions: Tensor, target: Tensor) -> None:
        self.dataset, self.positions, self.targets = dataset, positions.tolist(), target

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset[self.positions[index]][0], int(self.targets[index])


@torch.no_grad()
def rows_of_all(layer: LinearLayer, store: FeatureStore) -> Tensor:
    """What reaches a head of all stored samples, unmixed (N, D), in float32 on the CPU."""
    gather = rows_of(layer, store)
    chunks = torch.split(torch.arange(len(store)), 256)
    return torch.cat([gather(index).float().cpu() for index in chunks])


# Of AdamW. What regularizes a block is its rate and the epoch that validation chooses.
_DECAY = 0.01


class SteppedCandidates:
    """The candidates of a layer, in one replicate after the other, each from the same weights.

    As each setting costs a training of its own, the learning rate of a candidate is chosen in the
    first replicate alone. Every training keeps the epoch that is best on validation, so that no
    candidate wins by stopping early alone.

    Args:
        tail: What lies behind the stored features; it is left as it was.
        linear: The head in it, which begins where a `Replicate` says.
        store: The features.
        candidates: The ways to train.
        offered: What they may choose from.
        kept: What an interrupted comparison has trained already.
        track: Shows how many trainings are done.
    """

    def __init__(
        self,
        tail: Tail,
        linear: nn.Linear,
        store: FeatureStore,
        candidates: Sequence[Candidate],
        offered: Candidates,
        kept: Kept | None = None,
        track: Track = untracked,
    ) -> None:
        self.tail, self.linear, self.store = tail, linear, store
        self.offered, self.kept, self.track = offered, kept or Kept(), track
        self._outcomes: dict[Candidate, list[Outcome]] = {
            candidate: [] for candidate in candidates
        }
        self._seconds = {candidate: 0.0 for candidate in candidates}

    def add(self, replicate: Replicate) -> None:
        """Do one more replicate."""
        for candidate in self.track(list(self._outcomes), len(self._outcomes), self.store.layer):
            began, done = time.perf_counter(), self._outcomes[candidate]
            if done and done[0].failed:  # at every rate: there is none to go on with
                done.append(done[0])
                continue
            rates = [done[0].chosen["lr"]] if done else self.offered.lrs
            tried = [self._outcome(candidate, rate, replicate) for rate in rates]
            done.append(min(tried, key=lambda one: (bool(one.failed), float(one.nll))))
            self._seconds[candidate] += time.perf_counter() - began

    @property
    def trained(self) -> list[Trained]:
        """What has come of each candidate so far."""
        return [
            Trained(candidate, own, self._seconds[candidate])
            for candidate, own in self._outcomes.items()
        ]

    def _outcome(self, candidate: Candidate, lr: float, replicate: Replicate) -> Outcome:
        name = f"{candidate.name} lr {lr:g} seed {replicate.seed}"
        tensors = self.kept.get(name)
        if tensors is None:
            tensors = self.kept.put(
                name, self._trained(candidate.steps(lr, _DECAY, replicate.seed), replicate)
            )
        reason = bytes(tensors["failed"].tolist()).decode()
        nll = nll_at_best_temperature(tensors["val"][None], replicate.target[replicate.val])
        losses = float(tensors["clean_loss"]), float(tensors["mixed_loss"])
        chosen = {"lr": lr, "weight_decay": _DECAY}
        return Outcome(tensors["val"], tensors["test"], *losses, chosen, nll, reason)

    def _trained(self, settings: HeadSettings, replicate: Replicate) -> dict[str, Tensor]:
        store = self.store.with_targets(replicate.target)
        assert replicate.head is not None  # given wherever something is trained by steps
        with unchanged(self.tail), failures_unwarned():
            begin = dict(zip(("weight", "bias"), replicate.head, strict=True))
            load_parameters(dict(self.linear.named_parameters()), begin)
            try:
                mixed_loss, failed = self._train(settings, store, replicate)
            except Diverged as error:
                mixed_loss, failed = math.nan, error.reason
            logits = {
                part: predict_logits(self.tail, store.take(getattr(replicate, part)))[0].double()
                for part in (*_PARTS, "train")
            }
        words = torch.tensor(list(failed.encode()), dtype=torch.uint8)
        clean_loss = F.cross_entropy(logits.pop("train"), replicate.target[replicate.train])
        losses = {"clean_loss": clean_loss, "mixed_loss": torch.tensor(mixed_loss)}
        return {**logits, **losses, "failed": words}

    def _train(
        self, settings: HeadSettings, store: FeatureStore, replicate: Replicate
    ) -> tuple[float, str]:
        """Train the tail; its loss on mixed samples, and why it failed if it did."""
        offered = self.offered
        own: Mapping[str, Any] = {
            name: getattr(settings, name)
            for name in ("alpha", "lr", "weight_decay", "label_smoothing", "pairing", "seed")
        }
        training = train_head(
            self.tail,
            store.take(replicate.train),
            **own,
            clean_weight=settings.clean_weight,
            validation=store.take(replicate.val),
            optimizer="adamw",
            epochs=offered.epochs,
            batch_size=offered.batch_size,
            patience=offered.epochs,
        )
        return training.metrics["mixed_loss"], training.failed
