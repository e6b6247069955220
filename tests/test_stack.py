"""Many linear heads at a time: each comes out as alone, whatever stands beside it."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import mixed_by_loop
from torch import Tensor, nn

from manifold_mixup import Mix, train_head
from manifold_mixup import intake as intake_module
from manifold_mixup import lanes as lanes_module
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import HeadStack, train_stack

N, C, D = 22, 3, 5

GRID = [
    HeadSettings(alpha=alpha, lr=lr, weight_decay=decay, label_smoothing=smoothing, seed=seed)
    for seed, alpha, (lr, decay, smoothing) in itertools.product(
        (0, 7), (0.0, 0.4, 1.0), [(0.01, 0.1, 0.0), (0.1, 0.0, 0.2)]
    )
]


PAIRED = [
    HeadSettings(alpha=1.0, pairing="other-class"),
    HeadSettings(alpha=1.0, pairing="same-class"),
    HeadSettings(alpha=0.4, exclude=(1,)),
    HeadSettings(alpha=1.0, pairing="other-class", exclude=(0,), label_smoothing=0.1),
    HeadSettings(alpha=1.0, pairing=lambda target, _: target.argsort(stable=True).roll(1)),
    HeadSettings(alpha=1.0),
    HeadSettings(alpha=0.0, pairing="other-class", exclude=(2,)),
]


def samples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Features (N, D) and targets (N,)."""
    return torch.randn(N, D, dtype=dtype), torch.arange(N) % C


def begin(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The weight (C, D) and bias (C,) of a new head."""
    return torch.randn(C, D, dtype=dtype), torch.randn(C, dtype=dtype)


def train(features: Tensor, target: Tensor, *args: Any, **options: Any) -> HeadStack:
    """`train_stack` on features in memory."""
    return train_stack(features.__getitem__, target, *args, **options)


def train_alone(
    features: Tensor,
    target: Tensor,
    settings: HeadSettings,
    weight: Tensor,
    bias: Tensor,
    tail: nn.Module | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and losses of one head, by `train_head` on a model of a frozen tail and it."""
    head = nn.Linear(weight.shape[1], C).to(weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    model = nn.Sequential(nn.Identity(), tail or nn.Identity(), head)
    data = list(zip(features, target.tolist(), strict=True))
    training = train_head(model, data, layer="0", **vars(settings), **options)
    losses = torch.tensor(training.losses, dtype=torch.float64)
    return head.weight.detach(), head.bias.detach(), losses


def assert_close(stack: HeadStack, k: int, alone: tuple[Tensor, Tensor, Tensor]) -> None:
    """A head of the stack is the one trained alone."""
    for got, wanted in zip((stack.weight[k], stack.bias[k], stack.losses[k]), alone, strict=True):
        assert torch.allclose(got, wanted, rtol=0, atol=1e-9)


# Each head as alone


@pytest.mark.parametrize("batch_size", [8, 11, 100])
def test_every_head_comes_out_as_train_head_trains_it_alone(batch_size: int) -> None:
    """Order, mixes, schedule, optimizer and loss are those of the hooked loop."""
    data, start = samples(), begin()
    stack = train(*data, GRID, *start, epochs=3, batch_size=batch_size)

    for k, settings in enumerate(GRID):
        alone = train_alone(*data, settings, *start, epochs=3, batch_size=batch_size)
        assert_close(stack, k, alone)


@pytest.mark.parametrize("with_tail", [False, True])
def test_every_pairing_and_exclusion_is_that_of_train_head(with_tail: bool) -> None:
    """Heads side by side that mix by class, by a function or not some classes, as alone."""
    data, tail = samples(), Tail() if with_tail else None
    start = begin()
    if with_tail:
        start = torch.randn(C, 4, dtype=torch.float64), start[1]
    stack = train(*data, PAIRED, *start, epochs=3, batch_size=8, between=tail)

    for k, settings in enumerate(PAIRED):
        alone = train_alone(*data, settings, *start, tail=tail, epochs=3, batch_size=8)
        assert_close(stack, k, alone)
    assert len({float(row[0]) for row in stack.losses}) == len(PAIRED)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_that_of_torch(momentum: float) -> None:
    """The loop written out, with the mixes applied to features one by one."""
    (features, target), (weight, bias) = samples(), begin()
    one_hot = F.one_hot(target).double()
    settings = [HeadSettings(lr=0.1, weight_decay=wd, seed=5) for wd in (0.0, 0.1)]
    options = {"epochs": 2, "batch_size": 8, "optimizer": "sgd", "momentum": momentum}
    stack = train(features, target, settings, weight, bias, **options)

    for k, one in enumerate(settings):
        own = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        optimizer = torch.optim.SGD(own, one.lr, momentum, weight_decay=one.weight_decay)
        generator, losses = seeded_generator(5, "mix", 0), []
        for epoch in range(2):
            order = torch.randperm(N, generator=seeded_generator(5, epoch))
            for step, batch in enumerate(order.split(8)):
                rate = (1 + math.cos(math.pi * (epoch + step / 3) / 2)) / 2
                optimizer.param_groups[0]["lr"] = one.lr * rate
                mix = Mix.sample(len(batch), one.alpha, generator=generator)
                logits = F.linear(mixed_by_loop(mix, features[batch]), *own)
                loss = F.cross_entropy(logits, mix.target(one_hot[batch]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        alone = own[0].detach(), own[1].detach(), torch.stack(losses)
        assert_close(stack, k, alone)


def test_float32_equals_to_float_rounding() -> None:
    """Losses to 1e-5 and weights to 1e-4, what is promised for every step."""
    data, start = samples(torch.float32), begin(torch.float32)
    stack = train(*data, GRID, *start, epochs=3, batch_size=8)

    for k, settings in enumerate(GRID):
        weight, bias, losses = train_alone(*data, settings, *start, epochs=3, batch_size=8)
        assert (stack.losses[k] - losses).abs().max() < 1e-5
        assert (stack.weight[k] - weight).abs().max() < 1e-4
        assert (stack.bias[k] - bias).abs().max() < 1e-4


def test_the_company_of_other_heads_changes_nothing() -> None:
    """In any order, in any selection, a head is the same."""
    data, start = samples(), begin()
    everything = train(*data, GRID, *start, epochs=2, batch_size=8)
    chosen = [9, 2, 5]
    few = train(*data, [GRID[k] for k in chosen], *start, epochs=2, batch_size=8)

    for place, k in enumerate(chosen):
        alone = everything.weight[k], everything.bias[k], everything.losses[k]
        assert_close(few, place, alone)


@pytest.mark.parametrize("with_tail", [False, True])
def test_seeds_may_train_each_on_samples_of_its_own(with_tail: bool) -> None:
    """Each head is the one trained alone on what its seed has, in that order."""
    (features, target), tail = samples(), Tail() if with_tail else None
    rows = {seed: torch.randperm(N)[:13] for seed in (0, 7)}
    start = torch.randn(C, 4 if with_tail else D, dtype=torch.float64), torch.zeros(C).double()
    options: dict[str, Any] = {"epochs": 2, "batch_size": 5}
    settings = [*GRID, *(replace(one, clean_weight=0.5) for one in GRID)]
    stack = train(features, target, settings, *start, rows=rows, between=tail, **options)

    for k, one in enumerate(settings):
        own = rows[one.seed]
        alone = train_alone(features[own], target[own], one, *start, tail=tail, **options)
        assert_close(stack, k, alone)


def test_heads_of_several_seeds_may_share_one_stream_of_mixes() -> None:
    """Nothing but rates sets the heads of a seed apart."""
    data, start = samples(), begin()
    settings = [HeadSettings(alpha=1.0, lr=lr, seed=seed) for seed in (0, 7) for lr in (0.1, 0.01)]
    stack = train(*data, settings, *start, epochs=2, batch_size=8)

    for k, one in enumerate(settings):
        alone = train_alone(*data, one, *start, epochs=2, batch_size=8)
        assert_close(stack, k, alone)


def test_rows_without_a_seed_are_refused() -> None:
    """No samples are not all samples."""
    with pytest.raises(ValueError, match="rows= has no samples for seed 0"):
        train(*samples(), [HeadSettings()], *begin(), rows={})


def test_how_much_is_made_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the bytes of gradient, nor the seeds, nor the steps whose mixes are drawn at once."""
    data, start = samples(), begin()
    once = train(*data, GRID, *start, epochs=2, batch_size=4)
    monkeypatch.setattr(lanes_module, "_CACHED_BYTES", 2 * C * D * 8)
    monkeypatch.setattr(lanes_module, "_SIDE_BY_SIDE", 1)
    monkeypatch.setattr(intake_module, "_DRAWN", 1)
    bit_by_bit = train(*data, GRID, *start, epochs=2, batch_size=4)

    assert torch.allclose(once.weight, bit_by_bit.weight, rtol=0, atol=1e-12)
    assert torch.allclose(once.losses, bit_by_bit.losses, rtol=0, atol=1e-12)


def test_heads_may_begin_each_in_its_own_place_and_nothing_given_is_changed() -> None:
    """(K, C, D) is a beginning for each, and stays what it was."""
    data, starts = samples(), [begin() for _ in GRID]
    weight, bias = (torch.stack(tensors) for tensors in zip(*starts, strict=True))
    kept = weight.clone(), bias.clone()
    stack = train(*data, GRID, weight, bias, epochs=1)

    for k in (0, 3, 10):
        assert_close(stack, k, train_alone(*data, GRID[k], *starts[k], epochs=1))
    assert torch.equal(weight, kept[0])
    assert torch.equal(bias, kept[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_features_may_lie_in_a_memory_map(tmp_path: Path, dtype: torch.dtype) -> None:
    """Whatever gives rows will do, in half precision too: they are computed in the weights'."""
    (features, target), start = samples(torch.float32), begin(torch.float32)
    stored = torch.from_file(
        str(tmp_path / "features"), shared=True, size=N * D, dtype=dtype
    ).view(N, D)
    stored.copy_(features)
    mapped = train(stored, target, GRID, *start, epochs=1)
    in_memory = train(stored.clone().float(), target, GRID, *start, epochs=1)

    assert torch.equal(mapped.weight, in_memory.weight)


# A frozen part between the mix and the heads


class Tail(nn.Module):
    """A frozen map that is not affine, from 5 features to 4; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, 4).double().requires_grad_(False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """The map."""
        self.calls += 1
        return torch.tanh(self.linear(x))


def test_between_runs_once_for_all_heads_that_share_their_mixes() -> None:
    """Features are mixed before it; the heads are those of the hooked loop."""
    data, tail = samples(), Tail()
    start = torch.randn(C, 4, dtype=torch.float64), torch.randn(C, dtype=torch.float64)
    stack = train(*data, GRID, *start, epochs=2, batch_size=8, between=tail)
    steps, seeds, alphas = 2 * 3, 2, 3

    assert tail.calls == steps * seeds * alphas
    for k, settings in enumerate(GRID):
        alone = train_alone(*data, settings, *start, tail=tail, epochs=2, batch_size=8)
        assert_close(stack, k, alone)


def test_each_batch_is_gathered_once_for_all_heads() -> None:
    """Of all seeds; of each seed where a part lies between."""
    (features, target), tail = samples(), Tail()
    start = torch.randn(C, 4, dtype=torch.float64), torch.randn(C, dtype=torch.float64)
    taken: list[Tensor] = []

    def gather(index: Tensor) -> Tensor:
        taken.append(index)
        return features[index]

    train_stack(gather, target, GRID, *start, epochs=1, batch_size=8, between=tail)
    train_stack(gather, target, GRID, *begin(), epochs=1, batch_size=8)

    assert len(taken) == 2 * 3 + 3
    for epoch in (taken[:3], taken[3:6]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(N))
    assert sorted(torch.cat(taken[6:]).tolist()) == sorted(2 * list(range(N)))


# To stop and to go on


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("between", [None, Tail().linear])
def test_an_interrupted_training_goes_on_with_the_same_bits(
    optimizer: str, between: Callable[[Tensor], Tensor] | None
) -> None:
    """From what on_epoch was given, weights, losses and state come out the same."""
    data, stacks = samples(), []
    start = torch.randn(C, 4 if between else D, dtype=torch.float64), torch.zeros(C).double()
    options = {"epochs": 4, "batch_size": 8, "optimizer": optimizer, "between": between}
    straight = train(*data, GRID, *start, **options)

    def stop(stack: HeadStack) -> bool:
        stacks.append(stack)
        return stack.epochs == 2

    stopped = train(*data, GRID, *start, **options, on_epoch=stop)
    resumed = train(*data, GRID, *start, **options, resume=stacks[-1])

    assert [stack.epochs for stack in stacks] == [1, 2]
    assert stopped is stacks[-1]
    assert (resumed.epochs, stopped.losses.shape[1]) == (4, 2 * 3)
    for name in ("weight", "bias", "losses"):
        assert torch.equal(getattr(resumed, name), getattr(straight, name))
    assert resumed.state.keys() == straight.state.keys()
    assert all(torch.equal(resumed.state[name], straight.state[name]) for name in straight.state)


def test_a_finished_training_is_not_trained_on() -> None:
    """Resumed with as many epochs as it has, it is given back."""
    data, start = samples(), begin()
    done = train(*data, GRID, *start, epochs=1)

    assert train(*data, GRID, *start, epochs=1, resume=done) is done


# Heads that diverge, and mistakes


def test_a_head_that_diverges_does_not_disturb_the_others() -> None:
    """It is marked by its losses, and named on demand with its settings and epoch."""
    data, start = samples(), begin()
    settings = [GRID[2], replace(GRID[2], lr=1e308), GRID[4]]
    stack = train(*data, settings, *start, epochs=2, batch_size=8)
    without = train(*data, [settings[0], settings[2]], *start, epochs=2, batch_size=8)

    assert stack.diverged.tolist() == [False, True, False]
    assert torch.allclose(stack.weight[[0, 2]], without.weight, rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError, match=r"head 1 is not finite .* epoch 1; .*lr=1e\+308"):
        stack.check_finite(settings)
    without.check_finite(settings)


def test_the_epoch_of_a_divergence_is_named() -> None:
    """It is the first one with a loss that is not finite."""
    losses = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, math.nan]])
    stack = HeadStack(torch.zeros(2, C, D), torch.zeros(2, C), losses, epochs=2)

    with pytest.raises(RuntimeError, match="head 1 is not finite any more in epoch 2"):
        stack.check_finite(GRID)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": []}, "no settings"),
        ({"target": torch.zeros(0).long()}, r"shape \(0,\)"),
        ({"target": torch.zeros(N)}, "dtype torch.float32"),
        ({"target": torch.arange(N)}, r"lie in \[0, 21\], expected them in \[0, 3\)"),
        ({"bias": torch.zeros(2)}, r"weight of shape \(3, 5\) and bias of shape \(2,\)"),
        ({"weight": torch.zeros(2, C, D), "bias": torch.zeros(2, C)}, r"\(2, 3, 5\).*12 settings"),
        ({"weight": torch.zeros(C, 4).double()}, r"\(3, 4\) got features of shape \(44, 5\)"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1}, "batch_size=1 leaves a sample none to be mixed with"),
        ({"settings": [HeadSettings(exclude=(3,))]}, "no class 3; the classes are 0 to 2"),
        ({"settings": [HeadSettings(pairing="near-target")]}, "needs floating targets"),
        ({"optimizer": "adam"}, "optimizer='adam' is unknown; choose one of adamw, sgd"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"rows": {0: torch.arange(3)}}, "rows= has no samples for seed 7"),
        ({"rows": {0: torch.arange(3), 7: torch.arange(4)}}, "rows= .* {0: 3, 7: 4}"),
        (
            {"resume": HeadStack(torch.zeros(2, C, D), torch.zeros(2, C), torch.zeros(2, 0))},
            "12 settings to go on with 2 heads",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    """Before anything is trained, with the value."""
    (features, target), (weight, bias) = samples(), begin()
    options: dict[str, Any] = {
        "target": target,
        "settings": GRID,
        "weight": weight,
        "bias": bias,
    }

    with pytest.raises(ValueError, match=message):
        train_stack(features.__getitem__, **(options | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": -1}, "alpha=-1"),
        ({"lr": 0}, "lr=0"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"label_smoothing": 1}, "label_smoothing=1"),
        ({"pairing": "best"}, "pairing='best'"),
        ({"exclude": [-1]}, "no class -1"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    """When they are made, as `train_head` refuses them."""
    with pytest.raises(ValueError, match=message):
        HeadSettings(**changed)
