"""Many linear heads trained as one computation, each exactly as if it were trained alone.

Heads of one seed see the same batches, so that their weights meet the features in one wide
product, and seeds with the same heads go side by side. As a linear head is affine, each mix is
applied to the logits; the gradient is written out, and nothing is recorded for autograd.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from manifold_mixup.epochs import Epoch
from manifold_mixup.feed import Feed, Gather
from manifold_mixup.intake import Intake
from manifold_mixup.lanes import MOMENTS, Lane, side_by_side
from manifold_mixup.pairing import check_exclude
from manifold_mixup.settings import HeadSettings, check_partners, check_training


@dataclass(frozen=True)
class HeadStack:
    """Linear heads after some epochs: enough to use them, and to go on from there.

    The first axis of all tensors is K, the heads in the order of their settings.

    Attributes:
        weight: (K, C, D).
        bias: (K, C).
        losses: The whole training loss of every step, mixed and clean (K, steps). Where a head
            diverged it is not finite from there on; the other heads do not notice.
        epochs: How many there were.
        state: The optimizer's tensors and the states of the mixes' generators.
    """

    weight: Tensor
    bias: Tensor
    losses: Tensor
    epochs: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def diverged(self) -> Tensor:
        """Which heads have a loss that is not finite (K,)."""
        return ~self.losses.isfinite().all(1)

    def check_finite(self, settings: Sequence[HeadSettings]) -> None:
        """Raise a RuntimeError that names the first head that diverged and the epoch, if any."""
        if not bool(self.diverged.any()):
            return
        head = int(self.diverged.nonzero()[0])
        step = int((~self.losses[head].isfinite()).nonzero()[0])
        epoch = step // (self.losses.shape[1] // self.epochs) + 1
        raise RuntimeError(
            f"the loss of head {head} is not finite any more in epoch {epoch}; "
            f"lower its lr: {settings[head]}"
        )


def train_stack(
    gather: Gather,
    target: Tensor,
    settings: Sequence[HeadSettings],
    weight: Tensor,
    bias: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: str = "adamw",
    momentum: float = 0.9,
    rows: Mapping[int, Tensor] | None = None,
    between: Callable[[Tensor], Tensor] | None = None,
    mixed_epochs: int | None = None,
    resume: HeadStack | None = None,
    on_epoch: Callable[[HeadStack], bool | None] | None = None,
) -> HeadStack:
    """Train K linear heads together on features mixed there, each as `train_head` does it alone.

    Order, mixes, schedule and losses of each head are those of its seed and settings, whatever
    other heads are there; to float rounding, so are its losses and weights. A head that diverges
    does not disturb the others: see `HeadStack.diverged`.

    Args:
        gather: Gives the stored features of some samples.
        target: Class indices (n,).
        settings: Of the K heads.
        weight: Where they begin: (C, D), or one for each head (K, C, D). Not changed.
        bias: (C,) or (K, C). Not changed.
        epochs: Number of passes over the samples.
        batch_size: Samples in a step.
        optimizer: ``"adamw"`` or ``"sgd"``.
        momentum: Of SGD, in [0, 1).
        rows: Indices of the samples that each seed trains on (m,), as many of each; None for all
            samples.
        between: A frozen function from features (B, *) to what the heads take (B, D), where the
            mix comes before it and it is not affine. It runs once in a step for all heads that
            share their mixes, and once for all that weigh the clean loss and share their noise.
        mixed_epochs: After so many epochs their orders, noise and mixes repeat; None for never.
            What `between` makes of them is then kept in memory, and it does not run any more.
        resume: Where an interrupted training stood; with the same arguments otherwise, the
            numbers are those of a training without a break.
        on_epoch: Called after each epoch with where the training stands; ends it by returning
            True.

    Returns:
        Where the training stands after the last epoch, on the device of `weight`.

    Raises:
        ValueError: There are no samples or heads, a shape does not fit, or an argument is out of
            range.

    Example:
        >>> features, target = torch.randn(20, 4), torch.arange(20) % 3
        >>> settings = [HeadSettings(alpha=alpha, lr=0.1) for alpha in (0.0, 0.4)]
        >>> stack = train_stack(features.__getitem__, target, settings, torch.zeros(3, 4),
        ...                     torch.zeros(3), epochs=2)
        >>> stack.weight.shape, stack.losses.shape
        (torch.Size([2, 3, 4]), torch.Size([2, 2]))
    """
    check_training(epochs, batch_size, mixed_epochs=mixed_epochs)
    _check_optimizer(optimizer, momentum)
    for one in settings:
        check_exclude(one.exclude, weight.shape[-2])
        check_partners(batch_size, one.alpha)
    target = _checked_target(target, weight.shape[-2])
    rows = _checked_rows(rows, settings, len(target))
    feed = Feed(gather, target, rows, batch_size, between)
    done = resume or HeadStack(*_begin(settings, weight, bias), weight.new_empty(len(settings), 0))
    if len(done.weight) != len(settings):
        raise ValueError(f"{len(settings)} settings to go on with {len(done.weight)} heads")
    intakes = _intakes(settings, done, feed, optimizer, momentum)
    lanes, losses = [lane for intake in intakes for lane in intake.lanes], done.losses
    with torch.no_grad():
        for epoch in range(done.epochs, epochs):
            new = _train_epoch(intakes, Epoch(epoch, epochs, mixed_epochs), losses)
            losses = torch.cat([losses, new], 1)
            if on_epoch is not None or epoch == epochs - 1:
                done = _collect(lanes, losses, epoch + 1)
            if on_epoch is not None and on_epoch(done):
                break
    return done


def _intakes(
    settings: Sequence[HeadSettings], done: HeadStack, feed: Feed, optimizer: str, momentum: float
) -> list[Intake]:
    """All heads, in lanes: those whose steps are made together."""

    def lane(heads: list[int]) -> Lane:
        return Lane(
            heads,
            settings,
            {"weight": done.weight, "bias": done.bias, **done.state},
            optimizer=optimizer,
            momentum=momentum,
            steps=done.losses.shape[1],
            mixes_logits=feed.between is None,
        )

    mixes_features = feed.between is not None
    together = _together(settings, done.weight[0].numel(), alone=mixes_features)
    return [
        Intake([lane(heads) for heads in _sharing(some, settings, mix=mixes_features)], feed)
        for some in together
    ]


def _train_epoch(intakes: list[Intake], epoch: Epoch, like: Tensor) -> Tensor:
    """Train every head for one epoch: the losses of its steps (K, steps)."""
    steps = intakes[0].feed.steps
    losses = like.new_empty(len(like), steps)
    for intake in intakes:
        kept: list[list[Tensor]] = [[] for _ in intake.lanes]
        for step, inputs in enumerate(intake.steps(epoch)):
            rate = epoch.rate(step / steps)
            for lane, one, row in zip(intake.lanes, inputs, kept, strict=True):
                row.append(lane.step(one.features, one.mix, rate, one.clean))
        for lane, row in zip(intake.lanes, kept, strict=True):
            losses.index_copy_(0, lane.heads, torch.stack(row, 1))
    return losses


def _together(
    settings: Sequence[HeadSettings], size: int, *, alone: bool
) -> list[list[list[int]]]:
    """Seeds that go side by side, and the heads, of so many weights each, of each of them.

    They have the same heads; if asked, each seed goes alone.
    """
    of_seeds: dict[int, list[int]] = {}
    for head, one in enumerate(settings):
        of_seeds.setdefault(one.seed, []).append(head)
    alike: dict[object, list[list[int]]] = {}
    for seed, heads in of_seeds.items():
        # Side by side, heads with equal settings are changed by one call.
        heads.sort(key=lambda head: (settings[head].lr, settings[head].weight_decay))
        same = seed if alone else tuple(replace(settings[head], seed=0) for head in heads)
        alike.setdefault(same, []).append(heads)
    return [some for seeds in alike.values() for some in side_by_side(seeds, len(seeds[0]) * size)]


def _sharing(
    seeds: Sequence[list[int]], settings: Sequence[HeadSettings], *, mix: bool
) -> list[list[int]]:
    """Heads of some seeds that see the same noise, or, if asked, the same noise and mixes."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for head in chain.from_iterable(seeds):
        one = settings[head]
        key = (one.noise, *((one.alpha, one.pairing, one.exclude) if mix else ()))
        groups.setdefault(key, []).append(head)
    return list(groups.values())


def _collect(lanes: list[Lane], losses: Tensor, epochs: int) -> HeadStack:
    """Copy what the lanes hold, in the order of the settings."""
    state: dict[str, Tensor] = {}
    for lane in lanes:
        for name, tensor in lane.tensors().items():
            whole = state.setdefault(name, tensor.new_empty(len(losses), *tensor.shape[1:]))
            whole.index_copy_(0, lane.heads.to(whole.device), tensor)
    return HeadStack(state.pop("weight"), state.pop("bias"), losses, epochs, state)


def _begin(
    settings: Sequence[HeadSettings], weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The weights (K, C, D) and biases (K, C) of heads before the first step."""
    k = len(settings)
    if k == 0:
        raise ValueError("there are no settings: nothing to train")
    if bias.shape != weight.shape[:-1] or weight.shape[:-2] not in ((), (k,)):
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} and bias of shape {tuple(bias.shape)} for {k} "
            f"settings, expected (C, D) and (C,), or ({k}, C, D) and ({k}, C)"
        )
    c, d = weight.shape[-2:]
    return weight.detach().expand(k, c, d), bias.detach().expand(k, c)


def _checked_target(target: Tensor, num_classes: int) -> Tensor:
    if target.ndim != 1 or len(target) == 0 or target.is_floating_point():
        raise ValueError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype}, expected class "
            "indices (n,) of at least 1 sample"
        )
    if not 0 <= int(target.min()) <= int(target.max()) < num_classes:
        raise ValueError(
            f"targets lie in [{int(target.min())}, {int(target.max())}], expected them in "
            f"[0, {num_classes}), the classes of the heads"
        )
    return target.long().cpu()


def _checked_rows(
    rows: Mapping[int, Tensor] | None, settings: Sequence[HeadSettings], n: int
) -> Mapping[int, Tensor]:
    """The samples of each seed, if these are as many of each."""
    if rows is None:
        rows = {one.seed: torch.arange(n) for one in settings}
    sizes = {seed: len(own) for seed, own in rows.items()}
    if missing := [one.seed for one in settings if not sizes.get(one.seed)]:
        raise ValueError(f"rows= has no samples for seed {missing[0]}")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"rows= has other numbers of samples for some seeds: {sizes}")
    return rows


def _check_optimizer(optimizer: str, momentum: float) -> None:
    if optimizer not in MOMENTS:
        raise ValueError(f"optimizer={optimizer!r} is unknown; choose one of {', '.join(MOMENTS)}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must be in [0, 1)")
