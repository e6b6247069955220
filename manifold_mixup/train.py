"""Train what lies behind a layer on features mixed there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from manifold_mixup.cached import check_alike, check_unfolded, find_tail
from manifold_mixup.criteria import Criterion
from manifold_mixup.drawing import check_alpha, seeded_generator
from manifold_mixup.epochs import Epoch
from manifold_mixup.failure import Bar, FailedTraining, find_bar
from manifold_mixup.feature_noise import NoisyBatches
from manifold_mixup.kinds import Kind, mix_class
from manifold_mixup.layers import Entry, find_entries
from manifold_mixup.linear import LinearSteps, find_linear
from manifold_mixup.loading import (
    Batches,
    Samples,
    count,
    load_batches,
    model_device,
    model_dtype,
)
from manifold_mixup.manager import ManifoldMixup
from manifold_mixup.metrics import compute_logits, predict_logits
from manifold_mixup.mixing import Mix
from manifold_mixup.modes import training_mode
from manifold_mixup.pairing import Pairing, check_exclude
from manifold_mixup.probe import Trace, trace
from manifold_mixup.progress import Track, untracked
from manifold_mixup.resume import Training, load_parameters
from manifold_mixup.settings import HeadSettings, check_partners, check_training
from manifold_mixup.steps import OPTIMIZERS, Steps
from manifold_mixup.store import FeatureStore
from manifold_mixup.tasks import Classes, Task
from manifold_mixup.trial import try_samples

Alpha = float | Callable[[float], float]
# Samples to measure by name, and at which positions; None for all.
Measured = dict[str, tuple[Samples, Sequence[int] | None]]


def train_head(
    model: nn.Module,
    samples: Samples,
    *,
    layer: Entry | list[Entry] | None = None,
    task: Task | None = None,
    criterion: Criterion | None = None,
    alpha: Alpha = 0.4,
    epochs: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    lr: float = 0.01,
    weight_decay: float = 0.01,
    label_smoothing: float = 0.0,
    pairing: Pairing = "any",
    exclude: Iterable[int] = (),
    kind: Kind = Mix,
    prob: float = 1.0,
    clean_weight: float = 0.0,
    noise: float = 0.0,
    mixed_epochs: int | None = None,
    optimizer: str = "adamw",
    validation: Samples | None = None,
    patience: int | None = None,
    workers: int = 0,
    resume: Training | None = None,
    on_epoch: Callable[[Training], None] | None = None,
    track: Track = untracked,
) -> Training:
    """Train the parameters behind a layer on features mixed there, in place.

    Only parameters that require gradients are trained (see `freeze`), with a learning rate that
    falls to 0 along half a cosine. BatchNorm stays in eval mode. The loss of mixed
    samples lies above that of clean ones by nature, so every epoch measures clean ones too.
    The seed decides all that is random, dropout included.

    Args:
        model: The model, on the device to train on.
        samples: Pairs of an image and a target, for which the whole model runs in every step; or
            a store of features, for which only what comes after them does, to the same numbers.
            What Python, NumPy or PyTorch draw for an image is decided by the epoch and its
            position: view e in epoch e, as stored by `extract_features`.
        layer: Where to mix, for images; what `ManifoldMixup` takes. Features are mixed themselves.
        task: `Classes`, `Labels` or `Values`; None for what the targets tell (see `find_task`).
            Real values are trained as they are; `Values.standardized` brings them to one scale.
        criterion: The loss to train, any that `mixed_loss` takes; None for the task's: cross
            entropy, binary cross entropy, or the squared error.
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing. For a schedule a function that gives
            it for each epoch, from the share of epochs done before it, in [0, 1): with
            ``lambda done: 0.4 * done`` mixing sets in slowly.
        epochs: Number of passes over the data set.
        seed: Of the order of the samples and of the mixes.
        batch_size: Samples in a step.
        lr: Learning rate of the first step.
        weight_decay: Of the optimizer; for L-BFGS the weight of half the squared norm in the loss.
        label_smoothing: In [0, 1), of the training loss only.
        pairing: Who mixes with whom; see `draw_partner`.
        exclude: Indices of classes that take no part in mixing; they are trained on unmixed.
        kind: How to mix; see `ManifoldMixup`. Only `Mix` may be moved behind affine steps: for
            another kind extract features with ``fold=False``.
        prob: Probability with which a step is mixed at all; see `ManifoldMixup`.
        clean_weight: At least 0; above it the loss of a step is that of the mixed samples plus
            so many times that of the same samples unmixed, as in RegMixup, and is reported whole.
        noise: Standard deviation, in those of the stored features, of noise that is added to
            them before they are mixed; see `add_noise`. Clean samples of a step have it too.
        mixed_epochs: After so many epochs all draws repeat: the order, views, noise, mixes and
            dropout of epoch e are those of epoch ``e % mixed_epochs``. None for never.
        optimizer: ``"adamw"``, ``"sgd"`` (momentum 0.9), or ``"lbfgs"`` for stored features.
        validation: Measured after every epoch, never trained on; of the same kind as `samples`.
        patience: Stop after so many epochs without a lower validation loss, and keep the head of
            the epoch with the lowest one; None trains all epochs and keeps the last.
        workers: Processes that load images; 0 loads them in this one.
        resume: Where an interrupted training stood; with the same arguments otherwise, the
            numbers are those of a training without a break.
        on_epoch: Called after each epoch with where the training stands.
        track: Shows how far an epoch is.

    Raises:
        TypeError: A batch is no pair of tensors, or the criterion cannot be weighed.
        ValueError: The data set is empty, a layer cannot be mixed, nothing behind it requires
            gradients, the targets do not fit the model or the task, or an argument is out of
            range.
        Diverged: The loss is not finite any more; a RuntimeError.

    Warns:
        FailedTraining: The loss of clean samples rose, or the head is no better than one answer
            for all; the reason is in ``.failed``, too.

    Reference:
        Pinto et al., RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out
        Distribution Robustness, NeurIPS 2022. https://arxiv.org/abs/2206.14502

    Example:
        >>> data = [(torch.randn(4), i % 2) for i in range(8)]
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> training = train_head(model, data, layer="1", epochs=2, batch_size=4)
        >>> list(training.head), len(training.losses)
        (['2.weight', '2.bias'], 4)
    """
    check_training(epochs, batch_size, mixed_epochs=mixed_epochs)
    check_optimizer(optimizer, samples)
    if patience is not None and (patience < 1 or validation is None):
        raise ValueError(f"patience={patience} must be at least 1, and needs validation=")
    if criterion is not None and label_smoothing:
        raise ValueError("label_smoothing= is for the loss of classes; give it to criterion=")
    alphas, exclude = _alphas(alpha, epochs, mixed_epochs), check_exclude(exclude)
    check_partners(batch_size, max(alphas) if prob else 0.0)
    settings = HeadSettings(
        alphas[0], lr, weight_decay, label_smoothing, pairing, seed, exclude, clean_weight, noise
    )
    model, layer = _place(model, samples, validation, layer, kind, noise)
    draws: dict[str, Any] = {"pairing": pairing, "exclude": exclude}
    inputs, target, task = try_samples(
        model, samples, validation, task, criterion, batch_size=batch_size, **draws
    )
    measured: Measured = {"train": (samples, _clean_positions(samples, validation, seed))}
    if validation is not None:
        measured["val"] = validation, None
    done = resume or Training({})
    mixup = ManifoldMixup(
        model, layer, alpha=alphas[0], kind=kind, prob=prob, seed=seed, example=inputs, **draws
    )
    with mixup, _trained(model, layer, inputs) as parameters:
        is_plain = mix_class(kind) is Mix and prob == 1 and not callable(alpha)
        is_of_indices = isinstance(task, Classes) and not target.is_floating_point()
        is_usual = is_plain and is_of_indices and criterion is None and optimizer != "lbfgs"
        linear = find_linear(model, inputs, parameters) if is_usual else None
        steps: Steps | LinearSteps
        if linear is None:
            steps = Steps(model, parameters, mixup, settings, optimizer, task, criterion)
            predict = partial(predict_logits, model)
        else:
            steps = LinearSteps(linear, parameters, settings, optimizer)
            predict = partial(compute_logits, nn.Sequential(nn.Flatten(), linear))
        predict = partial(predict, batch_size=batch_size, workers=workers)
        bar = _measure_bar(model, predict, measured, task, criterion)
        steps.restore(done)
        while not done.is_over(epochs, patience):
            epoch = Epoch(len(done.epochs), epochs, mixed_epochs)
            mixup.alpha = alphas[epoch.number]
            batches = _shuffled(model, samples, settings, epoch.draws, batch_size, workers)
            losses = steps.run(batches, epoch, track)
            row = {"mixed_loss": sum(losses) / len(losses)}
            row |= _measure(model, predict, measured, task, criterion)
            keep_best = patience is not None
            done = done.after(losses, row, parameters, steps.state(), keep_best=keep_best)
            if on_epoch is not None:
                on_epoch(done)
        load_parameters(parameters, done.best)
    failed = bar.why_failed(done.metrics)
    if failed:
        warn(FailedTraining(failed, lr), stacklevel=2)
    return replace(done, head=done.best or done.head, failed=failed)


def _place(
    model: nn.Module,
    samples: Samples,
    validation: Samples | None,
    layer: Entry | list[Entry] | None,
    kind: Kind,
    noise: float,
) -> tuple[nn.Module, Entry | list[Entry]]:
    """What is trained and where it is mixed: of stored features the tail that takes them."""
    if isinstance(samples, FeatureStore):
        if isinstance(validation, FeatureStore):
            check_alike(samples, validation)
        check_unfolded(samples, kind)
        return find_tail(model, samples), samples.stored_layer
    if noise:
        raise ValueError(f"noise={noise} is for stored features: extract_features gives them")
    if layer is None:
        raise ValueError("say where to mix by layer=, such as layer='layer4'")
    return model, layer


def _shuffled(
    model: nn.Module,
    samples: Samples,
    settings: HeadSettings,
    epoch: int,
    batch_size: int,
    workers: int,
) -> Batches:
    """The batches of an epoch, in its own order, with its own view of each sample and noise."""
    generator = seeded_generator(settings.seed, epoch)
    order = torch.randperm(count(samples), generator=generator).tolist()
    device, dtype = model_device(model), model_dtype(model)
    batches = load_batches(
        samples, batch_size, device=device, workers=workers, order=order, view=epoch, dtype=dtype
    )
    if settings.noise:
        return NoisyBatches(batches, settings.noise, settings.seed, epoch)
    return batches


def _measure(
    model: nn.Module,
    predict: Callable[..., tuple[Tensor, Tensor]],
    measured: Measured,
    task: Task,
    criterion: Criterion | None,
) -> dict[str, float]:
    """Loss and quality of clean samples of each kind."""
    row, like = {}, next(model.parameters())
    for name, (samples, positions) in measured.items():
        logits, target = predict(samples, order=positions)
        task.check(model, logits, target)
        row[f"{name}_loss"] = _clean_loss(task, criterion, logits, target, like)
        row[f"{name}_{task.quality}"] = task.metrics(logits, target)[task.quality]
    return row


def _measure_bar(
    model: nn.Module,
    predict: Callable[..., tuple[Tensor, Tensor]],
    measured: Measured,
    task: Task,
    criterion: Criterion | None,
) -> Bar:
    """What the training has to get beyond, measured before its first step."""
    found = {name: predict(samples, order=own) for name, (samples, own) in measured.items()}
    for logits, target in found.values():
        task.check(model, logits, target)
    (logits, target), like = found["train"], next(model.parameters())
    begin, blank = (
        _clean_loss(task, criterion, one, target, like)
        for one in (logits, torch.zeros_like(logits))
    )
    validation = found["val"][1] if "val" in found else None
    return find_bar(task, begin, blank, validation, is_own_loss=criterion is None)


def _clean_loss(
    task: Task, criterion: Criterion | None, logits: Tensor, target: Tensor, like: Tensor
) -> float:
    """The loss of clean samples: the task's own, or that of a criterion given by the user."""
    if criterion is None:
        return task.loss(logits, target)
    own = task.prepared(target, like.dtype).to(like.device)
    with torch.no_grad():
        return float(criterion(logits.to(like), own).mean())


def _alphas(alpha: Alpha, epochs: int, mixed_epochs: int | None) -> list[float]:
    """The alpha of each epoch."""
    if mixed_epochs is not None and callable(alpha):
        raise ValueError(f"mixed_epochs={mixed_epochs} repeats mixes: alpha= must be a number")
    alphas = [alpha(epoch / epochs) if callable(alpha) else alpha for epoch in range(epochs)]
    for one in alphas:
        check_alpha(one)
    return alphas


def check_optimizer(optimizer: str, samples: Samples) -> None:
    """Raise a ValueError unless the optimizer is known and can train on these samples."""
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
    if optimizer == "lbfgs" and not isinstance(samples, FeatureStore):
        raise ValueError(
            "optimizer='lbfgs' evaluates each mixed batch several times: it takes stored features"
        )


def trained_parameters(found: Trace, layer: Entry | list[Entry]) -> dict[str, nn.Parameter]:
    """What lies behind (any of) some layers and requires gradients, by name.

    Raises:
        ValueError: Nothing does.
    """
    layers = [one for entry in find_entries(found.model, layer) for one in entry]
    behind: dict[str, nn.Parameter] = {}
    for one in layers:
        own = found.model.named_parameters()
        behind |= dict(own) if one.is_input else found.parameters_after(one.name)
    wanted = {id(parameter) for parameter in behind.values() if parameter.requires_grad}
    if not wanted:
        raise ValueError(
            f"nothing behind layer {layer!r} requires gradients, so nothing would be trained; "
            "choose an earlier layer, or freeze(model, except_=head)"
        )
    # Tied parameters once, as optimizers want them.
    return {name: p for name, p in found.model.named_parameters() if id(p) in wanted}


@contextmanager
def _trained(
    model: nn.Module, layer: Entry | list[Entry], inputs: Tensor
) -> Iterator[dict[str, nn.Parameter]]:
    """Train what lies behind the layers; what a mix never reaches stays in eval mode."""
    found = trace(model, (inputs,), {})
    parameters = trained_parameters(found, layer)
    layers = [one for entry in find_entries(model, layer) for one in entry]
    until = [set() if one.is_input else found.modules_until(one.name) for one in layers]
    with training_mode(model, parameters, set.intersection(*until)):
        yield parameters


def _clean_positions(samples: Samples, validation: Samples | None, seed: int) -> list[int]:
    """Of as many training samples as validation has, else a fifth; the same in every epoch."""
    n = count(samples)
    order = torch.randperm(n, generator=seeded_generator(seed, "clean")).tolist()
    size = max(1, n // 5) if validation is None else count(validation)
    return order[:size]
