"""Measure 64 linear heads trained as one stack.

    python scripts/benchmark_stack.py

One thread of a shared AMD processor, Linux, Python 3.11, torch 2.14.1; one epoch of 64 heads (16
settings x 4 seeds) on 5,000 x 2048 features, 37 classes; medians of 5 rounds over the time of the
bare products of each seed's heads:

    batches                                   32    256
    AdamW, as one stack                     1.49   1.28
    AdamW, one head after the other         7.18   4.06   (closed form: 2.29, 2.03)
    SGD with momentum, as one stack         1.44   1.24
    SGD, one head after the other           6.36   3.86   (closed form: 2.27, 1.97)

Stack and separate trainings agree to 4.3e-5 in the weights with batches of 32; with batches of 256
and AdamW 2 of 4,849,664 weights differ by up to 2.8e-4, where float32 and float64 trainings of one
head alone differ by 1e-4; with SGD to 4e-8.
"""

import argparse
import itertools
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup import Mix, mixed_loss
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import HeadStack, train_stack

N, D, C, SEEDS = 5000, 2048, 37, 4

# 16 settings, for each of 4 seeds.
GRID = [
    HeadSettings(alpha=alpha, lr=lr, weight_decay=weight_decay, seed=seed)
    for seed, alpha, lr, weight_decay in itertools.product(
        range(SEEDS), (0.0, 0.2, 0.4, 1.0), (0.001, 0.01), (0.01, 0.1)
    )
]


class Data:
    """Features of noisy clusters, not negative as pooled ones are, and the start of all heads."""

    def __init__(self) -> None:
        generator = seeded_generator("benchmark")
        self.target = torch.randint(C, (N,), generator=generator)
        centres = torch.randn(C, D, generator=generator)
        noise = torch.randn(N, D, generator=generator)
        self.features = (0.3 * centres[self.target] + noise).relu_()
        self.weight = torch.randn(C, D, generator=generator) / D**0.5
        self.bias = torch.zeros(C)

    def gather(self, index: Tensor) -> Tensor:
        """Features of some samples."""
        return self.features.index_select(0, index)


def stacked(
    data: Data, settings: Sequence[HeadSettings], batch_size: int, optimizer: str
) -> HeadStack:
    """One epoch of some heads in one call."""
    return train_stack(
        data.gather,
        data.target,
        settings,
        data.weight,
        data.bias,
        epochs=1,
        batch_size=batch_size,
        optimizer=optimizer,
    )


def closed_form_alone(data: Data, batch_size: int, optimizer: str) -> None:
    """One epoch of every head, one after the other, by the same closed form."""
    for settings in GRID:
        stacked(data, [settings], batch_size, optimizer)


def ordinary(
    data: Data, settings: HeadSettings, batch_size: int, optimizer: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One epoch of one head as a careful loop has it: weight, and loss of every step."""
    head = nn.Linear(D, C).to(dtype)
    with torch.no_grad():
        head.weight.copy_(data.weight)
        head.bias.copy_(data.bias)
    decay = settings.weight_decay
    if optimizer == "sgd":
        optim = torch.optim.SGD(head.parameters(), settings.lr, 0.9, weight_decay=decay)
    else:
        optim = torch.optim.AdamW(head.parameters(), settings.lr, weight_decay=decay)
    generator = seeded_generator(settings.seed, "mix", 0)
    order = torch.randperm(N, generator=seeded_generator(settings.seed, 0))
    losses = []
    for step, batch in enumerate(order.split(batch_size)):
        share = step / math.ceil(N / batch_size)
        optim.param_groups[0]["lr"] = settings.lr * (1 + math.cos(math.pi * share)) / 2
        mix = Mix.sample(len(batch), settings.alpha, generator=generator)
        logits = head(mix(data.gather(batch).to(dtype)))
        loss = mixed_loss(logits, data.target[batch], mix, F.cross_entropy)
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.detach())
    return head.weight.detach(), torch.stack(losses)


def ordinary_alone(data: Data, batch_size: int, optimizer: str) -> None:
    """One epoch of every head, one after the other, as a careful loop has it."""
    for settings in GRID:
        ordinary(data, settings, batch_size, optimizer, torch.float32)


def products(data: Data, batch_size: int) -> Callable[[], None]:
    """The bare products of an epoch: forward and gradient, of 16 heads, for each seed in turn."""
    k = len(GRID) // SEEDS
    weights = [torch.randn(k * C, D) for _ in range(SEEDS)]
    features = data.features[:batch_size].clone()
    gradient = torch.randn(k * C, batch_size)
    logits, out = torch.empty(k * C, batch_size), torch.empty(k * C, D)

    def run() -> None:
        for weight in weights:
            for _ in range(N // batch_size):
                torch.mm(weight, features.t(), out=logits)
                torch.mm(gradient, features, out=out)

    return run


def updates(optimizer: str, steps: int) -> Callable[[], None]:
    """The optimizer's fused kernel alone, on the heads of each seed in turn."""
    k = len(GRID) // SEEDS
    tensors = [[torch.rand(k, C, D) for _ in range(4)] for _ in range(SEEDS)]
    step = torch.tensor(1.0)

    def run() -> None:
        for weight, gradient, first, second in tensors:
            for _, i in itertools.product(range(steps), range(k)):
                if optimizer == "sgd":
                    torch._fused_sgd_(
                        [weight[i]],
                        [gradient[i]],
                        [first[i]],
                        weight_decay=0.01,
                        momentum=0.9,
                        lr=1e-3,
                        dampening=0.0,
                        nesterov=False,
                        maximize=False,
                        is_first_step=False,
                    )
                else:
                    torch._fused_adamw_(
                        [weight[i]],
                        [gradient[i]],
                        [first[i]],
                        [second[i]],
                        [],
                        [step],
                        lr=1e-3,
                        beta1=0.9,
                        beta2=0.999,
                        weight_decay=0.01,
                        eps=1e-8,
                        amsgrad=False,
                        maximize=False,
                    )

    return run


def compare(variants: dict[str, Callable[[], object]], rounds: int) -> None:
    """CPU seconds of each in random order, and the median of its ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name in random.sample(list(variants), len(variants)):
            begin = time.process_time()
            variants[name]()
            if turn:
                seconds[name].append(time.process_time() - begin)
    base = next(iter(seconds.values()))
    for name, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, base, strict=True))
        print(
            f"  {name:34s} {statistics.median(own):7.2f} s  ratio {statistics.median(ratios):6.2f}"
            f"  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def speed(data: Data, batch_size: int, rounds: int) -> None:
    """Times of one epoch of 64 heads."""
    print(f"one epoch of {len(GRID)} heads, batches of {batch_size}:")
    variants: dict[str, Callable[[], object]] = {"bare products": products(data, batch_size)}
    for name in ("adamw", "sgd"):
        arguments = (batch_size, name)
        variants |= {
            f"{name}: stack": lambda a=arguments: stacked(data, GRID, *a),
            f"{name}: update alone": updates(name, N // batch_size),
            f"{name}: alone, closed form": lambda a=arguments: closed_form_alone(data, *a),
            f"{name}: alone, ordinary loop": lambda a=arguments: ordinary_alone(data, *a),
        }
    compare(variants, rounds)


def agreement(data: Data, batch_size: int) -> None:
    """How far the heads of a stack lie from 64 separate trainings."""
    for optimizer in ("adamw", "sgd"):
        stack = stacked(data, GRID, batch_size, optimizer)
        apart = losses_apart = reference = 0.0
        above = 0
        for k, settings in enumerate(GRID):
            weight, losses = ordinary(data, settings, batch_size, optimizer, torch.float32)
            exact, _ = ordinary(data, settings, batch_size, optimizer, torch.float64)
            difference = (stack.weight[k] - weight).abs()
            apart = max(apart, float(difference.max()))
            above += int((difference > 1e-4).sum())
            losses_apart = max(losses_apart, float((stack.losses[k] - losses).abs().max()))
            reference = max(reference, float((weight - exact).abs().max()))
        print(
            f"batches of {batch_size}, {optimizer}: losses differ by {losses_apart:.1e} at most, "
            f"weights by {apart:.1e} ({above} of {stack.weight.numel():,} by more than 1e-4); "
            f"separate float32 and float64 trainings by {reference:.1e}"
        )


def main() -> None:
    """Measure agreement and speed, with one thread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["speed", "agreement"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, 1 thread")
    data = Data()
    for batch_size in (32, 256):
        if arguments.only != "speed":
            agreement(data, batch_size)
        if arguments.only != "agreement":
            speed(data, batch_size, arguments.rounds)


if __name__ == "__main__":
    main()
