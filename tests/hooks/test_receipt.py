"""Features that are mixed, and targets that are not."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup, Mix, mixed_loss, rebalance

Loss = Callable[[Tensor, Tensor, Mix], Tensor]


def attached(**options: Any) -> tuple[nn.Module, ManifoldMixup]:
    """A small model, mixed strongly at its first layer."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, ManifoldMixup(
        model, "0", **{"alpha": 1.0, "example": torch.randn(2, 4)} | options
    )


def batch() -> tuple[Tensor, Tensor]:
    """Six samples, of three classes."""
    return torch.randn(6, 4), torch.arange(6) % 3


def test_plain_loss_in_a_step_that_gives_no_mix_raises_at_its_end() -> None:
    """Without `as mix` nobody can mix the targets any more."""
    model, mixup = attached()
    features, target = batch()

    with pytest.raises(RuntimeError, match="never applied to the targets"), mixup(target):
        F.cross_entropy(model(features), target)
    with mixup(target) as mix:  # no step stays open, and the complaint is made once
        mixed_loss(model(features), target, mix)


def test_plain_loss_raises_in_the_next_step_at_the_latest() -> None:
    """A loop that names the mix and takes a plain loss does not get beyond its second step."""
    model, mixup = attached()
    steps = 0

    def train() -> None:
        nonlocal steps
        for features, target in [batch()] * 5:
            with mixup(target) as mix:  # noqa: F841
                F.cross_entropy(model(features), target).backward()
            steps += 1

    with pytest.raises(RuntimeError, match=r"features_only=True"):
        train()
    assert steps == 1


def by_hand(logits: Tensor, target: Tensor, mix: Mix) -> Tensor:
    """The two terms, without `mixed_loss`."""
    losses = [F.cross_entropy(logits, t, reduction="none") for t in (target, target[mix.partner])]
    return (mix.lam * losses[0] + (1 - mix.lam) * losses[1]).mean()


def rebalanced(logits: Tensor, target: Tensor, mix: Mix) -> Tensor:
    """Remix, whose loss gets a mix of its own."""
    return mixed_loss(logits, target, rebalance(mix, target, counts=[90, 9, 1]))


USES: dict[str, Loss] = {
    "mixed_loss": mixed_loss,
    "by hand": by_hand,
    "targets": lambda x, t, mix: F.cross_entropy(x, mix.target(t, 3)),
    "one-hot": lambda x, t, mix: F.cross_entropy(x, mix(F.one_hot(t, 3).float())),
    "rebalance": rebalanced,
    "moved": lambda x, t, mix: mixed_loss(x, t, mix.to("cpu")),
    "compiled": torch.compile(mixed_loss, backend="eager"),
    "compiled by hand": torch.compile(by_hand, backend="eager"),
    "partial": functools.partial(mixed_loss, criterion=nn.CrossEntropyLoss()),
}


# The compiler itself looks at .grad of logits, which are no leaves.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)
@pytest.mark.parametrize("is_after", [False, True], ids=["inside", "after"])
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_every_way_to_take_the_mix_to_the_targets_counts(use: Loss, is_after: bool) -> None:
    """In the block or after it, by the library or by hand, compiled or not."""
    model, mixup = attached()

    for features, target in [batch() for _ in range(3)]:
        with mixup(target) as mix:
            logits = model(features)
            if not is_after:
                use(logits, target, mix).backward()
        if is_after:
            use(logits, target, mix).backward()


def test_a_loss_may_be_taken_after_many_steps() -> None:
    """As long as somebody holds the mixes, they are not lost."""
    model, mixup = attached()
    held = []

    for features, target in [batch() for _ in range(4)]:
        with mixup(target) as mix:
            held.append((model(features), target, mix))
    torch.stack([mixed_loss(*one) for one in held]).mean().backward()
    held.clear()

    features, target = batch()
    with mixup(target) as mix:
        mixed_loss(model(features), target, mix)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"prob": 0.0}, {"features_only": True}])
def test_a_plain_loss_is_right_where_nothing_is_mixed_or_so_it_is_meant(options: Any) -> None:
    """Steps that mix nothing need no mixed targets, nor do those of `features_only`."""
    model, mixup = attached(**options)

    for features, target in [batch() for _ in range(3)]:
        with mixup(target):
            F.cross_entropy(model(features), target).backward()


def test_a_step_that_failed_does_not_complain_later() -> None:
    """A batch that is left out after an error needs no loss."""
    model, mixup = attached()
    features, target = batch()

    with pytest.raises(RuntimeError, match="mat1 and mat2"), mixup(target):
        model(features[:, :3])
    with mixup(target) as mix:
        mixed_loss(model(features), target, mix)
