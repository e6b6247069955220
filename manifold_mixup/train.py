"""Train what lies behind a layer on features mixed there."""

import math
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from manifold_mixup.drawing import seeded_generator
from manifold_mixup.layers import Entry, find_entries
from manifold_mixup.loading import Images, image_loader, model_device
from manifold_mixup.loss import mixed_loss
from manifold_mixup.manager import ManifoldMixup
from manifold_mixup.metrics import evaluate
from manifold_mixup.modes import eval_mode, training_mode
from manifold_mixup.probe import trace
from manifold_mixup.progress import Track, untracked
from manifold_mixup.resume import Training, advance, restore
from manifold_mixup.settings import check_training


def train_head(
    model: nn.Module,
    dataset: Images,
    *,
    layer: Entry | list[Entry],
    alpha: float = 0.4,
    epochs: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    lr: float = 0.01,
    weight_decay: float = 0.01,
    label_smoothing: float = 0.0,
    pairing: str = "any",
    validation: Images | None = None,
    workers: int = 0,
    resume: Training | None = None,
    on_epoch: Callable[[Training], None] | None = None,
    track: Track = untracked,
) -> Training:
    """Train the parameters behind a layer on features mixed there, in place.

    Only parameters that require gradients are trained (see `freeze`), with AdamW and a learning
    rate that falls to 0 along half a cosine. BatchNorm stays in eval mode. The loss of mixed
    samples lies above that of clean ones by nature, so every epoch measures clean ones too.
    The seed decides all that is random, dropout included.

    Args:
        model: The model, on the device to train on.
        dataset: Pairs of an image and a class index.
        layer: Where to mix; what `ManifoldMixup` takes.
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing.
        epochs: Number of passes over the data set.
        seed: Of the order of the samples and of the mixes.
        batch_size: Samples in a step.
        lr: Learning rate of the first step.
        weight_decay: Of AdamW.
        label_smoothing: In [0, 1), of the training loss only.
        pairing: Who mixes with whom; see `draw_partner`.
        validation: Measured after every epoch, never trained on.
        workers: Processes that load images; 0 loads them in this one.
        resume: Where an interrupted training stood; with the same arguments otherwise, the
            numbers are those of a training without a break.
        on_epoch: Called after each epoch with where the training stands.
        track: Shows how far an epoch is.

    Raises:
        ValueError: The data set is empty, a layer cannot be mixed, nothing behind it requires
            gradients, the model has fewer outputs than classes, or an argument is out of range.
        RuntimeError: The loss is not finite any more.

    Example:
        >>> data = [(torch.randn(4), i % 2) for i in range(8)]
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> training = train_head(model, data, layer="1", epochs=2, batch_size=4)
        >>> list(training.head), len(training.losses)
        (['2.weight', '2.bias'], 4)
    """
    check_training(epochs, batch_size, lr, weight_decay, label_smoothing)
    n = len(cast(Sized, dataset))
    if n == 0:
        raise ValueError("the data set is empty: nothing to train on")
    load = partial(image_loader, batch_size=batch_size, device=model_device(model))
    images, target = next(iter(load(dataset)))
    images = images.to(model_device(model))
    with torch.no_grad(), eval_mode(model):
        _check_outputs(model, model(images), target)
    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    done = resume or Training({})
    measured = {"train": _clean_samples(dataset, validation, seed), "val": validation}
    mixup = ManifoldMixup(model, layer, alpha=alpha, pairing=pairing, seed=seed, example=images)
    with mixup, _trained(model, layer, images) as parameters:
        optimizer = torch.optim.AdamW(parameters.values(), lr, weight_decay=weight_decay)
        restore(done, parameters, optimizer, mixup)
        for epoch in range(len(done.epochs), epochs):
            order = torch.randperm(n, generator=seeded_generator(seed, epoch)).tolist()
            loader = load(dataset, order=order, workers=workers)
            losses: list[Tensor] = []
            with _seeded(model, seed, epoch):
                for batch in track(loader, len(loader), f"epoch {epoch + 1}/{epochs}"):
                    share = (epoch + len(losses) / len(loader)) / epochs
                    _set_lr(optimizer, lr * (1 + math.cos(math.pi * share)) / 2)
                    losses.append(_train_step(model, mixup, criterion, optimizer, batch))
            mixed = _finite(torch.stack(losses), epoch)
            row = {"mixed_loss": sum(mixed) / len(mixed)}
            for name, samples in measured.items():
                if samples is not None:
                    metrics = evaluate(model, samples, batch_size=batch_size, workers=workers)
                    row[f"{name}_loss"] = metrics["nll"]
                    row[f"{name}_accuracy"] = metrics["accuracy"]
            done = advance(done, mixed, row, parameters, optimizer, mixup)
            if on_epoch is not None:
                on_epoch(done)
    return done


def _check_outputs(model: nn.Module, logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 2 or int(target.max()) >= logits.shape[1]:
        raise ValueError(
            f"{type(model).__name__} gives logits of shape {tuple(logits.shape)}, but a target is "
            f"{int(target.max())}; give it a head with replace_head(model, num_classes)"
        )
    if int(target.min()) < 0:
        raise ValueError(f"a target is {int(target.min())}, expected class indices from 0")


@contextmanager
def _trained(
    model: nn.Module, layer: Entry | list[Entry], images: Tensor
) -> Iterator[dict[str, nn.Parameter]]:
    """Train what lies behind (any of) the layers and requires gradients: these, by name.

    What ends before all of the layers, and so is never reached by a mix, stays in eval mode.
    """
    found = trace(model, (images,), {})
    layers = [layer for entry in find_entries(model, layer) for layer in entry]
    names = [layer.name for layer in layers if not layer.is_input]
    behind = dict(found.model.named_parameters()) if len(names) < len(layers) else {}
    for name in names:
        behind |= found.parameters_after(name)
    wanted = {id(parameter) for parameter in behind.values() if parameter.requires_grad}
    if not wanted:
        raise ValueError(
            f"nothing behind layer {layer!r} requires gradients, so nothing would be trained; "
            "choose an earlier layer, or freeze(model, except_=head)"
        )
    until = [found.modules_until(name) for name in names]
    before = set.intersection(*until) if len(names) == len(layers) else set()
    # Tied parameters once, as optimizers want them.
    parameters = {name: p for name, p in found.model.named_parameters() if id(p) in wanted}
    with training_mode(model, parameters, before):
        yield parameters


def _clean_samples(dataset: Images, validation: Images | None, seed: int) -> Images:
    """As many training samples as validation has, else a fifth; the same in every epoch."""
    n = len(cast(Sized, dataset))
    order = torch.randperm(n, generator=seeded_generator(seed, "clean")).tolist()
    size = max(1, n // 5) if validation is None else len(cast(Sized, validation))
    return Subset(dataset, order[:size])


def _train_step(
    model: nn.Module,
    mixup: ManifoldMixup,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
) -> Tensor:
    device = model_device(model)
    images, target = (tensor.to(device, non_blocking=True) for tensor in batch)
    with mixup(target) as mix:
        logits = model(images)
        _check_outputs(model, logits, batch[1])
        loss = mixed_loss(logits, target, mix, criterion)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _finite(losses: Tensor, epoch: int) -> list[float]:
    if not losses.isfinite().all():
        raise RuntimeError(f"the loss is not finite any more in epoch {epoch + 1}; lower lr")
    values: list[float] = losses.tolist()
    return values


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@contextmanager
def _seeded(model: nn.Module, seed: int, epoch: int) -> Iterator[None]:
    """Draw dropout and random transforms from a seed; the global random states come back."""
    device = model_device(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seeded_generator(seed, "model", epoch).initial_seed())
        yield
