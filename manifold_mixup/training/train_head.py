"""Train what lies behind a layer on features mixed there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal
from warnings import warn

import torch
from torch import Tensor, nn

from manifold_mixup._progress import Track, untracked
from manifold_mixup._random import seeded_generator
from manifold_mixup.features import Batches, Samples, count, load_batches, samples_of, targets_of
from manifold_mixup.hooks import Kind, ManifoldMixup
from manifold_mixup.inspection import Entry, Trace, model_device, model_dtype, trace
from manifold_mixup.mixing import Criterion, Mix, Pairing, check_exclude
from manifold_mixup.models import LinearLayer, find_linear_layer
from manifold_mixup.training.evaluate import (
    Found,
    measure_bar,
    measure_clean,
    predict_logits,
    samples_to_measure,
)
from manifold_mixup.training.preflight import (
    Alpha,
    all_targets,
    alphas_of,
    check_options,
    given_or,
    place,
    trained_parameters,
    try_samples,
)
from manifold_mixup.training.problem import (
    ClassWeight,
    RiskSettings,
    check_class_weight,
    has_ignored,
    task_weights,
)
from manifold_mixup.training.solver import AUTO, Solver, convex_settings, why_by_steps
from manifold_mixup.training.state import FailedTraining, TrainingState, load_parameters
from manifold_mixup.training.steps import (
    Epoch,
    HeadSettings,
    Steps,
    as_finite,
    check_partners,
    check_training,
    training_behind,
)
from manifold_mixup.training.tasks import Task

Say = Callable[[str], None]

# What steps have where nothing else is asked for.
EPOCHS, BATCH_SIZE, RATE, DECAY = 10, 32, 0.01, 0.01


def train_head(
    model: nn.Module,
    samples: Samples,
    *,
    layer: Entry | list[Entry] | None = None,
    task: Task | None = None,
    criterion: Criterion | None = None,
    alpha: Alpha = 0.4,
    mixes: int | None = None,
    weight_decay: float | Literal["auto"] = AUTO,
    optimizer: str = AUTO,
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    lr: float | Callable[[], float] | None = None,
    label_smoothing: float = 0.0,
    class_weight: ClassWeight | None = None,
    pairing: Pairing = "any",
    exclude: Iterable[int] = (),
    kind: Kind = Mix,
    prob: float = 1.0,
    clean_weight: float = 0.0,
    validation: Samples | None = None,
    patience: int | None = None,
    workers: int = 0,
    resume: TrainingState | None = None,
    on_epoch: Callable[[TrainingState], None] | None = None,
    say: Say = print,
    track: Track = untracked,
) -> TrainingState:
    """Train the parameters behind a layer on features mixed there, in place.

    A linear head is brought to the optimum of the mixed risk, which is convex: the mean loss over
    K mixes of all samples, plus half the weight decay times the squared norm of its weights for
    features that are centred and divided by the mean of their standard deviations.
    There is nothing to choose but the decay, and that validation does. All else is trained by
    steps, as is a linear head if one of `lr`, `epochs`, `batch_size` and `patience` is given, or
    an optimizer; which of both it is, and why, is said in a line.

    Only parameters that require gradients are trained (see `freeze`). Where they are solved for,
    the model is in eval mode; by steps in training mode, but for BatchNorm, with a learning rate
    that falls to 0 along half a cosine. The loss of mixed samples lies above that of clean ones by
    nature, so clean ones are measured too. The seed decides all that is random, dropout included.

    Args:
        model: The model, on the device to train on.
        samples: Pairs of an image and a target, for which the whole model runs; or a store of
            features, for which only what comes after them does, to the same numbers.
            What Python, NumPy or PyTorch draw for an image is decided by the epoch (or mix) and
            its position: view e in epoch e, as stored by `extract_features`.
        layer: Where to mix, for images; what `ManifoldMixup` takes. Features are mixed themselves.
        task: `Classes`, `Labels` or `Values`; None for what the targets tell (see `find_task`).
            Real values are trained as they are; `Values.standardized` brings them to one scale.
        criterion: The loss to train, any that `mixed_loss` takes; None for the task's: cross
            entropy, binary cross entropy, or the squared error.
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing. For a schedule a function that gives
            it for each epoch, from the share of epochs done before it, in [0, 1): with
            ``lambda done: 0.4 * done`` mixing sets in slowly.
        mixes: K of a head that is solved for; None for 16, or for 2 where every mix has to pass
            through something that is not affine.
        weight_decay: At least 0. ``"auto"`` chooses from 10 to 0.0001 by the validation loss of a
            head that is solved for (without `validation` by that of a fifth of the samples, after
            which it is solved with all of them); by steps it is 0.01.
        optimizer: ``"auto"``, or for steps ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        epochs: Passes over the data set, by steps; None for 10.
        seed: Of the order of the samples and of the mixes.
        batch_size: Samples in a step; None for 32.
        lr: Learning rate of the first step; None for 0.01. A function is asked for it where there
            are steps.
        label_smoothing: In [0, 1), of the training loss only.
        class_weight: ``"balanced"`` lets every class count the same, however rare; or a weight for
            each class (C,), for labels a pair of these: where a label is there, and where not.
        pairing: Who mixes with whom; see `draw_partner`.
        exclude: Indices of classes that take no part in mixing; they are trained on unmixed.
        kind: How to mix; see `ManifoldMixup`. Only `Mix` may be moved behind affine steps: for
            another kind extract features with ``fold=False``.
        prob: Probability with which a step is mixed at all, or the share of the risk that is.
        clean_weight: At least 0; above it the loss is that of the mixed samples plus so many times
            that of the same samples unmixed, as in RegMixup, and is reported whole.
        validation: Measured after every epoch or decay, never trained on; of the same kind as
            `samples`.
        patience: Stop after so many epochs without a lower validation loss, and keep the head of
            the epoch with the lowest one; None trains all epochs and keeps the last.
        workers: Processes that load images; 0 loads them in this one.
        resume: Where an interrupted training stood; with the same arguments otherwise, the
            numbers are those of a training without a break.
        on_epoch: Called after each epoch or decay with where the training stands.
        say: Takes the line that tells how the head is trained.
        track: Shows how far an epoch is.

    Raises:
        TypeError: A batch is no pair of tensors, or the criterion cannot be weighed.
        ValueError: The data set is empty, a layer cannot be mixed, nothing behind it requires
            gradients, the targets do not fit the model or the task, or an argument is out of
            range.
        Diverged: The loss of steps is not finite any more; a RuntimeError.

    Warns:
        FailedTraining: By steps the loss of clean samples rose, or the head is no better than one
            answer for all; the reason is in ``.failed``, too.

    Reference:
        Pinto et al., RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out
        Distribution Robustness, NeurIPS 2022. https://arxiv.org/abs/2206.14502

    Example:
        >>> data = [(torch.randn(4), i % 2) for i in range(8)]
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> training = train_head(model, data, layer="1", epochs=2, batch_size=4)
        trained by steps (adamw): epochs= is given
        >>> list(training.head), len(training.losses)
        (['2.weight', '2.bias'], 4)
    """
    samples, validation = samples_of(samples), samples_of(validation)
    asked = _Asked(
        *(model, samples, validation, layer, task, criterion, alpha, mixes, weight_decay),
        *(optimizer, epochs, seed, batch_size, lr, label_smoothing, class_weight, pairing),
        *(exclude, kind, prob, clean_weight, patience, workers, track),
    )
    return asked.train(resume or TrainingState({}), on_epoch, say)


@dataclass(frozen=True)
class _Asked:
    """What `train_head` is asked for; see there."""

    model: nn.Module
    samples: Samples
    validation: Samples | None
    layer: Entry | list[Entry] | None
    task: Task | None
    criterion: Criterion | None
    alpha: Alpha
    mixes: int | None
    weight_decay: float | Literal["auto"]
    optimizer: str
    epochs: int | None
    seed: int
    batch_size: int | None
    lr: float | Callable[[], float] | None
    label_smoothing: float
    class_weight: ClassWeight | None
    pairing: Pairing
    exclude: Iterable[int]
    kind: Kind
    prob: float
    clean_weight: float
    patience: int | None
    workers: int
    track: Track

    def train(
        self, done: TrainingState, on_epoch: Callable[[TrainingState], None] | None, say: Say
    ) -> TrainingState:
        """Solve for what is trained, or train it by steps."""
        alphas, settings = self._checked()
        samples = self.samples, self.validation
        model, layer = place(self.model, *samples, self.layer, self.kind)
        batch_size = given_or(self.batch_size, BATCH_SIZE)
        draws: dict[str, Any] = {"pairing": self.pairing, "exclude": settings.exclude}
        loss = self.task, self.criterion
        inputs, target, task = try_samples(model, *samples, *loss, batch_size=batch_size, **draws)
        task.criterion(self.label_smoothing)  # which all but classes refuse
        check_class_weight(self.class_weight, task)
        found = trace(model, (inputs,), {})
        parameters = trained_parameters(found, layer)
        head = find_linear_layer(model, inputs, parameters)
        reason = self._why_by_steps(head, parameters, task, target)
        if reason:
            rate = self.lr() if callable(self.lr) else given_or(self.lr, RATE)
            settings = replace(settings, lr=rate)
        draws |= {"alpha": alphas[0], "kind": self.kind, "prob": self.prob, "seed": self.seed}
        mixup = ManifoldMixup(model, layer, example=inputs, **draws)
        session = _Session(
            *(model, layer, *samples, task, self.criterion, self.class_weight, settings),
            *(mixup, found, parameters, batch_size, self.workers, self.track),
        )
        with mixup:
            if not reason:
                assert head is not None  # or there would be one
                how = self.mixes, self.weight_decay, self.prob
                return session.solve(head, *how, done, on_epoch, say)
            if self.optimizer == AUTO:
                say(f"trained by steps (adamw): {reason}")
            name = "adamw" if self.optimizer == AUTO else self.optimizer
            return session.step(name, alphas, self.patience, done, on_epoch)

    def _checked(self) -> tuple[list[float], HeadSettings]:
        """The alpha of each epoch, and how the head is trained, with the rate still open."""
        own = {"label_smoothing": self.label_smoothing}
        own |= {"class_weight": self.class_weight is not None}
        limits = self.optimizer, self.weight_decay, self.patience
        check_options(*limits, self.validation, self.criterion, own)
        epochs, batch_size = given_or(self.epochs, EPOCHS), given_or(self.batch_size, BATCH_SIZE)
        check_training(epochs, batch_size)
        alphas, exclude = alphas_of(self.alpha, epochs), check_exclude(self.exclude)
        check_partners(batch_size, max(alphas) if self.prob else 0.0)
        decay = DECAY if isinstance(self.weight_decay, str) else self.weight_decay
        return alphas, HeadSettings(
            *(alphas[0], RATE, decay, self.label_smoothing, self.pairing, self.seed, exclude),
            self.clean_weight,
        )

    def _why_by_steps(
        self, head: LinearLayer | None, parameters: Any, task: Task, target: Tensor
    ) -> str:
        """Why this cannot be solved for; nothing if it can."""
        given = {name: getattr(self, name) for name in ("epochs", "batch_size", "patience")}
        given["lr"] = None if callable(self.lr) else self.lr
        reason = why_by_steps(head, parameters, task, self.criterion, self.kind, self.alpha, given)
        targets = given_or(targets_of(self.samples), target)
        if not reason and has_ignored(task, targets):
            reason = "targets of -100 are ignored"
        if not reason and self.optimizer != AUTO:
            reason = f"optimizer={self.optimizer!r} is given"
        if self.mixes is not None and reason:
            raise ValueError(f"mixes={self.mixes} is for a head that is solved for, but {reason}")
        return reason


@dataclass(frozen=True)
class _Session:
    """What a training has, however it is done; see `train_head`."""

    model: nn.Module
    layer: Entry | list[Entry]
    samples: Samples
    validation: Samples | None
    task: Task
    criterion: Criterion | None
    class_weight: ClassWeight | None
    settings: HeadSettings
    mixup: ManifoldMixup
    found: Trace
    parameters: dict[str, nn.Parameter]
    batch_size: int
    workers: int
    track: Track

    def solve(
        self,
        head: LinearLayer,
        mixes: int | None,
        weight_decay: float | Literal["auto"],
        prob: float,
        done: TrainingState,
        on_epoch: Callable[[TrainingState], None] | None,
        say: Say,
    ) -> TrainingState:
        """Bring a linear head to the optimum of its risk."""
        own = self.settings
        loss = {"label_smoothing": own.label_smoothing, "class_weight": self.class_weight}
        risk = RiskSettings(
            own.alpha,
            pairing=own.pairing,
            exclude=own.exclude,
            prob=prob,
            clean_weight=own.clean_weight,
            seed=own.seed,
            **(loss | (convex_settings(self.criterion, self.task) or {})),
        )
        self.mixup.prob = 1.0  # of the mixed share of the risk, all is mixed
        how = (self.mixup, self.batch_size, self.workers, self.track)
        solver = Solver(head, self.task, self.criterion, risk, mixes, *how)
        outcome: dict[str, Any] = {"done": done, "on_epoch": on_epoch, "say": say}
        given = (self.samples, self.validation, weight_decay)
        return solver.train(*given, parameters=self.parameters, **outcome)

    def step(
        self,
        optimizer: str,
        alphas: list[float],
        patience: int | None,
        done: TrainingState,
        on_epoch: Callable[[TrainingState], None] | None,
    ) -> TrainingState:
        """Train by steps, an epoch for each alpha; with what it failed at, if it did."""
        with training_behind(self.model, self.layer, self.found, self.parameters):
            steps = self._steps(optimizer)
            own, is_weighted = (self.task, self.criterion), self.class_weight is not None
            bar = measure_bar(self.model, self._predicted(), *own, is_weighted=is_weighted)
            steps.restore(done)
            while not done.is_over(len(alphas), patience):
                epoch = Epoch(len(done.epochs), len(alphas))
                self.mixup.alpha = alphas[epoch.number]
                losses = steps.run(self._shuffled(epoch.number), epoch, self.track)
                row = {"mixed_loss": sum(losses) / len(losses)}
                row |= measure_clean(self.model, self._predicted(), *own)
                # The last step may spoil the head after its loss was taken.
                as_finite(torch.tensor([row["train_loss"]]), epoch.number, self.settings.lr)
                state, keep_best = steps.state(), patience is not None
                done = done.after(losses, row, self.parameters, state, keep_best=keep_best)
                if on_epoch is not None:
                    on_epoch(done)
            load_parameters(self.parameters, done.best)
        failed = bar.why_failed(done.metrics)
        if failed:
            warn(FailedTraining(failed, self.settings.lr), stacklevel=4)
        return replace(done, head=done.best or done.head, failed=failed)

    def _steps(self, optimizer: str) -> Steps:
        weights: Any = None
        if self.class_weight is not None:
            is_given = not isinstance(self.class_weight, str)
            targets = torch.empty(0) if is_given else all_targets(self.samples)
            targets = self.task.prepared(targets, torch.float64)
            outputs = self._predicted()["train"][0].shape[1]
            weights = task_weights(self.class_weight, self.task, targets, outputs)
            like = next(iter(self.parameters.values()))
            one = isinstance(weights, Tensor)
            weights = weights.to(like) if one else tuple(weight.to(like) for weight in weights)
        loss = self.criterion or self.task.criterion(self.settings.label_smoothing, weights)
        common = (self.mixup, self.settings, optimizer, self.task, loss)
        return Steps(self.model, self.parameters, *common)

    def _predicted(self) -> Found:
        """Logits and targets of the samples that are measured."""
        measured = samples_to_measure(self.samples, self.validation, self.settings.seed)
        how: dict[str, Any] = {"batch_size": self.batch_size, "workers": self.workers}
        return {
            name: predict_logits(self.model, samples, order=positions, **how)
            for name, (samples, positions) in measured.items()
        }

    def _shuffled(self, epoch: int) -> Batches:
        """The batches of an epoch, in its own order, with its own view of each sample."""
        generator = seeded_generator(self.settings.seed, epoch)
        order = torch.randperm(count(self.samples), generator=generator).tolist()
        return load_batches(
            self.samples,
            self.batch_size,
            device=model_device(self.model),
            workers=self.workers,
            order=order,
            view=epoch,
            dtype=model_dtype(self.model),
        )
