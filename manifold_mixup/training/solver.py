"""Bring a linear head to the optimum of the mixed risk, its weight decay chosen on validation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from manifold_mixup._progress import Track
from manifold_mixup._random import seeded_generator
from manifold_mixup.features import FeatureStore, Samples, count
from manifold_mixup.hooks import Kind, ManifoldMixup, mix_class
from manifold_mixup.linear_heads import LinearHead
from manifold_mixup.mixing import Criterion, Mix, name_of, plain_form
from manifold_mixup.models import LinearLayer
from manifold_mixup.training.evaluate import Found, measure_clean, samples_to_measure
from manifold_mixup.training.metrics import IGNORED
from manifold_mixup.training.problem import (
    COPIES,
    MIXES,
    HeadProblem,
    Passes,
    RiskSettings,
    affine_problem,
    has_ignored,
    passed_problem,
    rows_of,
)
from manifold_mixup.training.state import TrainingState, load_parameters
from manifold_mixup.training.tasks import Classes, Labels, Task, Values

AUTO: Literal["auto"] = "auto"


# From strong to weak, as each head is where the next one begins.
DECAYS = tuple(float(f"{10 ** (1 - step / 2):.3g}") for step in range(11))


# Gives rows that reach a head (B, D).
Rows = Callable[[], Tensor]


# Rows of a store that are read at a time.
_READ = 1024


@dataclass(frozen=True)
class Solver:
    """Solves for the head of a model.

    Attributes:
        layer: The head, in a model that takes the samples; it is changed in place.
        task: What is trained for.
        criterion: The user's loss, to measure; None for the task's own.
        settings: Of the risk.
        mixes: K; None for as many as the way to mix allows.
        mixup: Mixes in the model.
        batch_size: Samples that pass through the model at a time.
        workers: Processes that load images.
        track: Shows how far it is.
    """

    layer: LinearLayer
    task: Task
    criterion: Criterion | None
    settings: RiskSettings
    mixes: int | None
    mixup: ManifoldMixup
    batch_size: int
    workers: int
    track: Track

    def train(
        self,
        samples: Samples,
        validation: Samples | None,
        weight_decay: float | Literal["auto"],
        *,
        parameters: Mapping[str, nn.Parameter],
        done: TrainingState,
        on_epoch: Callable[[TrainingState], None] | None,
        say: Callable[[str], None],
    ) -> TrainingState:
        """Solve along the decays, or for a single one; see `train_head`.

        Without validation a fifth of the samples is held out to choose the decay by, and all of
        them are solved for with that.
        """
        decays = DECAYS if weight_decay == AUTO else (weight_decay,)
        is_held_out = weight_decay == AUTO and validation is None
        own, held = self._held_out(samples) if is_held_out else (samples, validation)
        problem, mixes = self.problem(own)
        clean = self._clean(own, held)
        done = self._path(problem, decays, clean, parameters, done, on_epoch)
        chosen = done.metrics["weight_decay"]
        load_parameters(parameters, done.best or done.head)
        if is_held_out:
            problem, mixes = self.problem(samples)
        self._write(problem, problem.solve(chosen, self._near(problem, chosen), exact=True))
        views = samples.views if isinstance(samples, FeatureStore) else 1
        say(describe(done, mixes, count(samples), views=views, is_held_out=is_held_out))
        head = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
        return replace(done, head=head, best=head if done.best else {})

    def problem(self, samples: Samples) -> tuple[HeadProblem, int]:
        """What is solved for some samples, and how often they are mixed."""
        is_mixed = self.settings.is_mixed
        if isinstance(samples, FeatureStore) and (
            not is_mixed or self.layer.is_affine(torch.Size(samples.shape))
        ):
            settings = self._settings(MIXES)
            problem = affine_problem(self.layer, samples, self.task, settings)
        else:
            settings = self._settings(COPIES)
            problem = self._passed(samples, settings)
        return problem, settings.mixes if is_mixed else 0

    def _settings(self, usual: int) -> RiskSettings:
        return replace(self.settings, mixes=usual if self.mixes is None else self.mixes)

    def _passed(self, samples: Samples, settings: RiskSettings) -> HeadProblem:
        passes, module = self._passes(samples), self.layer.module
        times = settings.mixes if settings.is_mixed else 0
        mixed = [passes.mixed(k, settings.seed) for k in range(times)]
        clean = passes.clean() if settings.has_clean else None
        like = torch.empty(len(passes.target), module.out_features)
        self.task.check(self.layer.model, like, passes.target)
        if has_ignored(self.task, passes.target):
            raise ValueError(
                f"a target is {IGNORED}, which only a training by steps ignores: give "
                "optimizer='adamw', or leave such samples out"
            )
        own = (self.task, passes.target, module.out_features, settings)
        return passed_problem(mixed, clean, *own, module.weight.device)

    def _path(
        self,
        problem: HeadProblem,
        decays: Sequence[float],
        clean: Mapping[str, tuple[list[Rows], Tensor]],
        parameters: Mapping[str, nn.Parameter],
        done: TrainingState,
        on_epoch: Callable[[TrainingState], None] | None,
    ) -> TrainingState:
        """The heads of all decays, one after the other, each measured; the best is kept."""
        start = None
        if done.epochs:  # go on from there, to the bit
            last = done.epochs[-1]
            weight, bias = done.state["weight"], done.state["bias"]
            start = LinearHead(weight, bias, last["weight_decay"], last["mixed_loss"], 0)
        rest = decays[len(done.epochs) :]
        for decay in self.track(rest, len(rest), "weight decays"):
            start = problem.solve(decay, start)
            self._write(problem, start)
            row = {"weight_decay": decay, "mixed_loss": start.risk, **self._measured(clean)}
            own = {"weight": start.weight, "bias": start.bias}
            state = {k: t.clone(memory_format=torch.contiguous_format) for k, t in own.items()}
            done = done.after([start.risk], row, parameters, state, keep_best="val" in clean)
            if on_epoch is not None:
                on_epoch(done)
        return done

    def _held_out(self, samples: Samples) -> tuple[Samples, Samples]:
        """Four fifths of the samples, and the fifth to choose by: of stored classes, of each."""
        n = count(samples)
        if n < 2:
            raise ValueError(
                "weight_decay='auto' chooses by samples that are held out: 1 is too few; give a "
                "number"
            )
        order = torch.randperm(n, generator=seeded_generator(self.settings.seed, "held out"))
        if isinstance(samples, FeatureStore) and samples.targets.ndim == 1:
            order = order[samples.targets[order].argsort(stable=True)]
        is_held = torch.zeros(n, dtype=torch.bool)
        is_held[order[n % 5 // 2 :: 5] if n >= 5 else order[:1]] = True
        own, held = (~is_held).nonzero().flatten(), is_held.nonzero().flatten()
        if isinstance(samples, FeatureStore):
            return samples.take(own), samples.take(held)
        return Subset(samples, own.tolist()), Subset(samples, held.tolist())

    def _clean(
        self, samples: Samples, validation: Samples | None
    ) -> dict[str, tuple[list[Rows], Tensor]]:
        """The rows that reach the head, some at a time, and the targets of what is measured."""
        measured = samples_to_measure(samples, validation, self.settings.seed)
        return {name: self._rows(*own) for name, own in measured.items()}

    def _rows(
        self, samples: Samples, positions: Sequence[int] | None
    ) -> tuple[list[Rows], Tensor]:
        """Stored ones are read each time they are needed, others have passed once and stay."""
        if isinstance(samples, FeatureStore) and self.layer.is_next:
            index = torch.arange(len(samples)) if positions is None else torch.tensor(positions)
            gather = rows_of(self.layer, samples)
            return [partial(gather, some) for some in torch.split(index, _READ)], samples.targets[
                index
            ]
        passes = self._passes(samples)
        rows = passes.clean(positions)
        return [lambda: rows], passes.target

    @torch.no_grad()
    def _measured(self, clean: Mapping[str, tuple[list[Rows], Tensor]]) -> dict[str, float]:
        module = self.layer.module
        found: Found = {
            name: (
                torch.cat([module(some().to(module.weight)).float().cpu() for some in rows]),
                target,
            )
            for name, (rows, target) in clean.items()
        }
        return measure_clean(self.layer.model, found, self.task, self.criterion)

    def _passes(self, samples: Samples) -> Passes:
        return Passes(
            self.layer,
            samples,
            self.task,
            self.mixup,
            batch_size=self.batch_size,
            workers=self.workers,
            track=self.track,
        )

    def _near(self, problem: HeadProblem, weight_decay: float) -> LinearHead:
        """The head as it is now."""
        weight, bias = self.layer.module.weight.detach(), self.layer.module.bias.detach()
        return LinearHead(*problem.rows.from_raw(weight, bias), weight_decay, math.inf, 0)

    @torch.no_grad()
    def _write(self, problem: HeadProblem, head: LinearHead) -> None:
        weight, bias = problem.rows.to_raw(head.weight, head.bias)
        self.layer.module.weight.copy_(weight)
        self.layer.module.bias.copy_(bias)


def why_by_steps(
    layer: LinearLayer | None,
    parameters: Mapping[str, nn.Parameter],
    task: Task,
    criterion: Criterion | None,
    kind: Kind,
    alpha: Any,
    for_steps: Mapping[str, Any],
) -> str:
    """Why a training cannot be solved for; nothing if it can.

    Args:
        layer: The linear layer that gives the logits, if one does.
        parameters: What is trained, by name.
        task: What for.
        criterion: The user's loss, if there is one.
        kind: How to mix.
        alpha: A number, or a function.
        for_steps: What is given that only steps have, by name; None if it is not.
    """
    for name, value in for_steps.items():
        if value is not None:
            return f"{name}= is given"
    if mix_class(kind) is not Mix:
        return f"{mix_class(kind).__name__} is not affine"
    if callable(alpha):
        return "alpha= changes from epoch to epoch"
    own = set() if layer is None else {id(p) for p in layer.module.parameters()}
    if own != {id(p) for p in parameters.values()}:
        return "more, or other, than one linear layer that gives the logits is trained"
    if isinstance(task, Values) and task.error != "mse":
        return f"{task.error} is not the squared error"
    if criterion is not None and convex_settings(criterion, task) is None:
        return f"{name_of(criterion)} has no solver"
    return ""


def convex_settings(criterion: Criterion | None, task: Task) -> dict[str, Any] | None:
    """What of `RiskSettings` a user's loss stands for; None if it is none that is solved for.

    Example:
        >>> convex_settings(nn.CrossEntropyLoss(label_smoothing=0.1), Classes())
        {'class_weight': None, 'label_smoothing': 0.1}
    """
    if criterion is None:
        return {}
    criterion, _ = plain_form(criterion)
    plain = {Classes: F.cross_entropy, Labels: F.binary_cross_entropy_with_logits}
    if criterion is plain.get(type(task), F.mse_loss):
        return {}
    if getattr(criterion, "reduction", None) != "mean":
        return None
    if isinstance(task, Values):
        return {} if type(criterion) is nn.MSELoss else None
    if isinstance(task, Classes) and type(criterion) is nn.CrossEntropyLoss:
        if criterion.ignore_index >= 0:  # a class that is none
            return None
        smoothing = criterion.label_smoothing
        return {"class_weight": criterion.weight, "label_smoothing": smoothing}
    if isinstance(task, Labels) and type(criterion) is nn.BCEWithLogitsLoss:
        return _label_settings(criterion)
    return None


def _label_settings(criterion: nn.BCEWithLogitsLoss) -> dict[str, Any] | None:
    absent, factor = criterion.weight, criterion.pos_weight
    if absent is None and factor is None:
        return {}
    like = absent if factor is None else factor
    assert like is not None
    absent = torch.ones_like(like) if absent is None else absent
    there = absent if factor is None else absent * factor
    if there.ndim > 1:
        return None
    # As in PyTorch, one number may be for all labels.
    return {"class_weight": (there.reshape(-1), absent.reshape(-1))}


def check_decay(weight_decay: Any) -> None:
    """Raise a ValueError unless it is ``"auto"``, or a number, at least 0."""
    if weight_decay == AUTO:
        return
    if not isinstance(weight_decay, int | float) or not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay={weight_decay!r} must be 'auto', or at least 0")


def describe(
    training: TrainingState, mixes: int, n: int, *, views: int = 1, is_held_out: bool = False
) -> str:
    """What was solved, and the decay that was chosen beside its neighbours, in a line."""
    rows = training.epochs
    of = f"{mixes} mixes of {n} samples" if mixes else f"{n} unmixed samples"
    of += f" in {views} views" if views > 1 else ""
    told = f"solved: a linear head at the optimum of {of}, weight decay"
    if len(rows) == 1:
        return f"{told} {rows[0]['weight_decay']:g}"
    best = training.best_epoch
    near = rows[max(0, best - 1) : best + 2]
    losses = ", ".join(f"{row['weight_decay']:g}: {row['val_loss']:.4f}" for row in near)
    end = {0: ", the strongest", len(rows) - 1: ", the weakest"}.get(best, "")
    by = "a held-out fifth's loss" if is_held_out else "validation loss"
    return f"{told} {rows[best]['weight_decay']:g}{end} of {len(rows)}, by {by} ({losses})"
