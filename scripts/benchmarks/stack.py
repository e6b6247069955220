"""Measure 64 linear heads trained as one stack.

    python scripts/benchmark.py stack

One thread of a shared AMD processor, Linux, Python 3.11, torch 2.14.1; one epoch of 64 heads (16
settings x 4 seeds) on 5,000 x 2048 features, 37 classes; medians of 5 rounds over the time of the
bare products of each seed's heads:

    batches                                   32    256
    AdamW, as one stack                     1.49   1.28
    AdamW, one head after the other         7.18   4.06   (closed form: 2.29, 2.03)
    SGD with momentum, as one stack         1.44   1.24
    SGD, one head after the other           6.36   3.86   (closed form: 2.27, 1.97)

On an Intel Xeon with AVX-512 (`stack speed --rounds 3`), whose products take 0.73 and 0.57 s:

    AdamW, as one stack                     2.72   1.80   (of 4 epochs in one call: 2.61, 1.67)
    AdamW, its update alone                 1.05   0.23
    AdamW, one head after the other        24.82   7.80   (closed form: 7.95, 3.87)
    SGD with momentum, as one stack         2.39   1.63   (of 4 epochs in one call: 2.39, 1.58)
    SGD, its update alone                   0.73   0.18
    SGD, one head after the other          20.55   7.22   (closed form: 7.30, 3.81)

Products and update together make 2.05 and 1.73 the least there with batches of 32.

Stack and separate trainings agree to 4.3e-5 in the weights with batches of 32; with batches of 256
and AdamW 2 of 4,849,664 weights differ by up to 2.8e-4, where float32 and float64 trainings of one
head alone differ by 1e-4; with SGD to 4e-8.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.measuring import time_alternately
from benchmarks.options import Device, Rounds
from benchmarks.printing import print_head, print_row, print_setting, print_times, threads
from manifold_mixup import Mix, mixed_loss
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.loading import find_device
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import HeadStack, train_stack

ALPHAS, RATES, DECAYS = (0.0, 0.2, 0.4, 1.0), (0.001, 0.01), (0.01, 0.1)
OPTIMIZERS = ("adamw", "sgd")


class Section(str, Enum):
    """What can be measured."""

    AGREEMENT = "agreement"
    SPEED = "speed"


class Problem:
    """Features of noisy clusters, not negative as pooled ones are, and the heads to train."""

    def __init__(self, n: int, d: int, c: int, seeds: int, device: torch.device) -> None:
        generator = seeded_generator("benchmark")
        self.target = torch.randint(c, (n,), generator=generator)
        centres = torch.randn(c, d, generator=generator)
        noise = torch.randn(n, d, generator=generator)
        self.features = (0.3 * centres[self.target] + noise).relu_().to(device)
        self.weight = (torch.randn(c, d, generator=generator) / d**0.5).to(device)
        self.bias = torch.zeros(c, device=device)
        self.device, self.seeds = device, seeds
        self.grid = [
            HeadSettings(alpha=alpha, lr=lr, weight_decay=weight_decay, seed=seed)
            for seed, alpha, lr, weight_decay in itertools.product(
                range(seeds), ALPHAS, RATES, DECAYS
            )
        ]

    def gather(self, index: Tensor) -> Tensor:
        """Features of some samples."""
        return self.features.index_select(0, index.to(self.device))

    def sizes(self) -> tuple[int, int, int, int]:
        """Samples, features of each, classes, and heads of a seed."""
        return *self.features.shape, len(self.bias), len(self.grid) // self.seeds


def stacked(
    problem: Problem,
    settings: Sequence[HeadSettings],
    batch_size: int,
    optimizer: str,
    epochs: int = 1,
) -> HeadStack:
    """Some epochs of some heads in one call."""
    return train_stack(
        problem.gather,
        problem.target,
        settings,
        problem.weight,
        problem.bias,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
    )


def closed_form_alone(problem: Problem, batch_size: int, optimizer: str) -> None:
    """One epoch of every head, one after the other, by the same closed form."""
    for settings in problem.grid:
        stacked(problem, [settings], batch_size, optimizer)


def ordinary(
    problem: Problem,
    settings: HeadSettings,
    batch_size: int,
    optimizer: str,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """One epoch of one head as a careful loop has it: weight, and loss of every step."""
    n, d, c, _ = problem.sizes()
    head = nn.Linear(d, c).to(problem.device, dtype)
    with torch.no_grad():
        head.weight.copy_(problem.weight)
        head.bias.copy_(problem.bias)
    decay = settings.weight_decay
    if optimizer == "sgd":
        optim = torch.optim.SGD(head.parameters(), settings.lr, 0.9, weight_decay=decay)
    else:
        optim = torch.optim.AdamW(head.parameters(), settings.lr, weight_decay=decay)
    generator = seeded_generator(settings.seed, "mix", 0)
    order = torch.randperm(n, generator=seeded_generator(settings.seed, 0))
    losses = []
    for step, batch in enumerate(order.split(batch_size)):
        share = step / math.ceil(n / batch_size)
        optim.param_groups[0]["lr"] = settings.lr * (1 + math.cos(math.pi * share)) / 2
        mix = Mix.sample(len(batch), settings.alpha, generator=generator).to(problem.device)
        logits = head(mix(problem.gather(batch).to(dtype)))
        target = problem.target[batch].to(problem.device)
        loss = mixed_loss(logits, target, mix, F.cross_entropy)
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.detach())
    return head.weight.detach(), torch.stack(losses)


def ordinary_alone(problem: Problem, batch_size: int, optimizer: str) -> None:
    """One epoch of every head, one after the other, as a careful loop has it."""
    for settings in problem.grid:
        ordinary(problem, settings, batch_size, optimizer)


def products(problem: Problem, batch_size: int) -> Callable[[], None]:
    """The bare products of an epoch: forward and gradient of the heads of each seed in turn."""
    (n, d, c, k), device = problem.sizes(), problem.device
    weights = [torch.randn(k * c, d, device=device) for _ in range(problem.seeds)]
    features = problem.features[:batch_size].clone()
    gradient = torch.randn(k * c, batch_size, device=device)
    logits, out = torch.empty_like(gradient), torch.empty_like(weights[0])

    def run() -> None:
        for weight in weights:
            for _ in range(n // batch_size):
                torch.mm(weight, features.t(), out=logits)
                torch.mm(gradient, features, out=out)

    return run


def updates(problem: Problem, optimizer: str, batch_size: int) -> Callable[[], None]:
    """The optimizer's fused kernel alone, on the heads of each seed in turn."""
    (n, d, c, k), device = problem.sizes(), problem.device
    tensors = [torch.rand(4, k, c, d, device=device).unbind() for _ in range(problem.seeds)]
    step = torch.tensor(1.0, device=device)
    sgd = {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "is_first_step": False}
    adamw = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
    both = {"lr": 1e-3, "weight_decay": 0.01, "maximize": False}

    def run() -> None:
        for of_seed in tensors:
            for _, i in itertools.product(range(n // batch_size), range(k)):
                weight, gradient, first, second = ([tensor[i]] for tensor in of_seed)
                if optimizer == "sgd":
                    torch._fused_sgd_(weight, gradient, first, **sgd, **both)
                else:
                    lists = (weight, gradient, first, second, [], [step])
                    torch._fused_adamw_(*lists, **adamw, **both)

    return run


def print_speed(problem: Problem, batch_size: int, rounds: int) -> None:
    """Times of one epoch of all heads."""
    ways: dict[str, Callable[[], object]] = {"bare products": products(problem, batch_size)}
    for name in OPTIMIZERS:
        of_epoch = (batch_size, name)
        ways |= {
            f"{name}: stack": lambda a=of_epoch: stacked(problem, problem.grid, *a),
            f"{name}: stack, 4 epochs": lambda a=of_epoch: stacked(problem, problem.grid, *a, 4),
            f"{name}: update alone": updates(problem, name, batch_size),
            f"{name}: alone, closed form": lambda a=of_epoch: closed_form_alone(problem, *a),
            f"{name}: alone, ordinary loop": lambda a=of_epoch: ordinary_alone(problem, *a),
        }
    title = f"one epoch of {len(problem.grid)} heads, batches of {batch_size}, {threads()}"
    print_times(title, time_alternately(ways, rounds, problem.device), base="bare products")


def print_agreement(problem: Problem, batch_size: int) -> None:
    """How far the heads of a stack lie from separate trainings, in float32 and float64."""
    print_head(
        f"largest differences of {len(problem.grid)} heads, batches of {batch_size}",
        "loss of a step",
        "weight",
        "weights above 1e-4",
        "weight, separate float32 to float64",
    )
    for optimizer in OPTIMIZERS:
        stack = stacked(problem, problem.grid, batch_size, optimizer)
        of_loss, of_weight, above, of_dtype = [], [], 0, []
        for k, settings in enumerate(problem.grid):
            weight, losses = ordinary(problem, settings, batch_size, optimizer)
            exact, _ = ordinary(problem, settings, batch_size, optimizer, torch.float64)
            difference = (stack.weight[k] - weight).abs()
            above += int((difference > 1e-4).sum())
            of_weight.append(float(difference.max()))
            of_loss.append(float((stack.losses[k] - losses).abs().max()))
            of_dtype.append(float((weight - exact).abs().max()))
        print_row(
            optimizer,
            f"{max(of_loss):.1e}",
            f"{max(of_weight):.1e}",
            f"{above:,} of {stack.weight.numel():,}",
            f"{max(of_dtype):.1e}",
        )


def main(
    sections: Annotated[list[Section] | None, typer.Argument(help="[default: all]")] = None,
    rounds: Rounds = 5,
    batch_size: Annotated[list[int] | None, typer.Option(help="[default: 32 and 256]")] = None,
    samples: int = 5000,
    features: Annotated[int, typer.Option(help="Of each sample.")] = 2048,
    classes: int = 37,
    seeds: Annotated[int, typer.Option(help="For each of the 16 settings.")] = 4,
    device: Device = "cpu",
) -> None:
    """Measure many linear heads trained as one stack, with one thread on a CPU."""
    where = find_device(device)
    torch.set_num_threads(1)
    print_setting(where)
    problem = Problem(samples, features, classes, seeds, where)
    for size in batch_size or (32, 256):
        if not sections or Section.AGREEMENT in sections:
            print_agreement(problem, size)
        if not sections or Section.SPEED in sections:
            print_speed(problem, size, rounds)
