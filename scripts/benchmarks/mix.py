"""What mixing costs: the operation beside every other way to write it, and a step with a hook.

    python scripts/benchmark.py mix [operation] [draw] [step] [memory]

On a shared AMD processor, Linux, Python 3.11.7, torch 2.14.1, timm 1.0.31.

step, CPU time with the hook over that without, median of 40 pairs and its 95 % interval:
ResNet-18, batches of 8 and 32: 1.006 [0.999, 1.013] and 0.997 [0.987, 1.003];
ResNet-50, batches of 8 and 16: 1.005 [0.996, 1.018] and 0.998 [0.978, 1.012].

memory, peak of three steps with the hook over that without, batches of 32, median of 5: ResNet-18
0.99, ResNet-50 0.90.

Both were measured when large tensors on the CPU were mixed row by row, which changed a step by
less than 0.2 %; memory was not measured again. `Mix` is index_select and lerp alone since, and
widens half precision to float32:

operation without a gradient, 1 thread of a shared machine with other jobs, `Mix` over the fastest
other way, 5 rounds: 1.03 [0.89, 1.04] (32x512x7x7) and 0.98 [0.66, 1.32] (256x2048) in float32,
1.5 [1.4, 1.9] with channels last; in bfloat16 1.6 [1.4, 3.0] (256x2048) and 11 [8, 13]
(32x512x7x7, 2.8 ms beside 0.25 ms; called by itself in a loop it took 0.7 ms).

On one NVIDIA H200 (torch 2.11.0), where a step is short, the Python of the hook and of the loss
shows: ResNet-18, 32 images, 2.28 ms without and 3.53 ms with mixing (1.58), ResNet-50 5.41 and
6.58 ms (1.22); criteria's signatures were still read in every step then. `Mix` alone took 1.01 to
1.24 of the fastest other way in float32 there, 1.3 to 2.4 in bfloat16, which it mixes in float32.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Annotated, Any

import timm
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.formulations import Way, formulations
from benchmarks.measuring import (
    Seconds,
    alternate,
    compare,
    in_own_process,
    median_seconds,
    peak_mb,
    ratios,
    time_alternately,
)
from benchmarks.options import Device
from benchmarks.printing import (
    format_seconds,
    print_head,
    print_row,
    print_setting,
    print_times,
    threads,
)
from manifold_mixup import ManifoldMixup, Mix, freeze, mixed_loss
from manifold_mixup.inspection import find_device

SIZES = ("32x2048x7x7", "32x512x7x7", "32x256x56x56", "256x2048")
STEPS = ("resnet18:8", "resnet18:32", "resnet50:8", "resnet50:16")
MEMORY_STEPS = ("resnet18:32", "resnet50:32")


class Section(str, Enum):
    """What can be measured."""

    OPERATION = "operation"
    DRAW = "draw"
    STEP = "step"
    MEMORY = "memory"


def time_operation(
    x: Tensor, mix: Mix, rounds: int, *, gradient: bool
) -> dict[str, list[Seconds]]:
    """What all ways take; "limit" is `torch.add(out=)`, twice with a gradient."""
    upstream, buffer = torch.randn_like(x), torch.empty_like(x)
    ways = formulations(mix)

    def limit() -> None:
        for _ in range(1 + gradient):
            torch.add(x, upstream, out=buffer)

    def run(way: Way) -> Callable[[], Tensor]:
        if not gradient:
            return lambda: way(x)
        leaf = x.clone().requires_grad_()
        return lambda: torch.autograd.grad(way(leaf), leaf, upstream)[0]

    if gradient:
        del ways["rows in a loop"]
    runs = {"limit": limit, **{name: run(way) for name, way in ways.items()}}
    repeats = min(max(2, (1 << 23) // x.numel()), 64)
    return time_alternately(runs, rounds, x.device, repeats)


def inputs(sizes: Sequence[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Random tensors of all sizes, dtypes and memory formats, each after what it is."""
    for name, dtype in itertools.product(sizes, (torch.float32, torch.bfloat16)):
        size = [int(n) for n in name.split("x")]
        for layout in [torch.contiguous_format] + [torch.channels_last] * (len(size) == 4):
            x = torch.randn(size, device=device).to(dtype).contiguous(memory_format=layout)
            yield f"{name} {str(dtype)[6:]} {str(layout)[6:]}", x


def print_operation(sizes: Sequence[str], rounds: int, device: torch.device) -> None:
    """Compare the formulations at every size; on a CPU with one thread and with two."""
    torch.empty(31 << 20, dtype=torch.uint8)  # once freed, glibc keeps pieces up to this size
    names = list(formulations(Mix.sample(2)))
    for n, gradient in itertools.product((1, 2) if device.type == "cpu" else (1,), (False, True)):
        torch.set_num_threads(n)
        clock = "cpu" if n == 1 and device.type == "cpu" else "wall"
        title = f"{'with' if gradient else 'no'} gradient, {threads()}, {clock} time / limit"
        print_head(title, "limit", *names, "Mix / fastest other")
        for what, x in inputs(sizes, device):
            mix = Mix.sample(len(x), alpha=1.0).to(device)
            seconds = time_operation(x, mix, rounds, gradient=gradient)
            print_row(what, *operation_cells(seconds, names, clock))


def operation_cells(
    seconds: dict[str, list[Seconds]], names: Sequence[str], clock: str
) -> list[str]:
    """The limit's time, every way's relative to it, and that of `Mix` to the fastest other."""
    limit = seconds["limit"]
    times = {
        name: statistics.median(ratios(own, limit, clock))
        for name, own in seconds.items()
        if name != "limit"
    }
    fastest = min(times.keys() - {"Mix"}, key=times.__getitem__)
    return [
        format_seconds(getattr(median_seconds(limit), clock)),
        *(f"{times[name]:.2f}" if name in times else "" for name in names),
        str(compare(seconds["Mix"], seconds[fastest], clock)),
    ]


def print_draw(rounds: int, device: torch.device) -> None:
    """What it takes to draw a mix, to move it, to construct one, and to apply it to little."""
    torch.set_num_threads(1)
    generator = torch.Generator()
    for n in (32, 256):
        mix, row = Mix.sample(n, alpha=1.0), torch.randn(n, 1, device=device)
        ways: dict[str, Callable[[], Any]] = {
            "Mix.sample": partial(Mix.sample, n, generator=generator),
            "Mix": partial(Mix, mix.lam, mix.partner),
            "mix.to": partial(mix.to, device),
            "mix of one column": partial(mix.to(device), row),
        }
        seconds = time_alternately(ways, rounds, device, repeats=20)
        print_times(f"{n} samples, {threads()}", seconds, base="Mix.sample")


def training_steps(step: str, device: torch.device) -> dict[str, Callable[[], None]]:
    """A training step of a frozen model's head, plain and mixed at its last block."""
    torch.manual_seed(0)
    name, batch = step.split(":")
    model = timm.create_model(name, num_classes=100).to(device)
    freeze(model, except_="fc")
    images = torch.randn(int(batch), 3, 224, 224, device=device)
    target = torch.randint(100, (int(batch),), device=device)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.01, momentum=0.9)
    mixup = ManifoldMixup(model, "layer4", alpha=0.4, example=images[:4])

    def finish(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        finish(F.cross_entropy(model(images), target))

    def mixed() -> None:
        with mixup(target) as mix:
            loss = mixed_loss(model(images), target, mix)
        finish(loss)

    return {"plain": plain, "mixed": mixed}


def print_step(steps: Sequence[str], rounds: int, device: torch.device) -> None:
    """Compare a step with the hook to the step without."""
    torch.set_num_threads(1)
    for step in steps:
        seconds = time_alternately(training_steps(step, device), rounds, device)
        print_times(f"step, {step}, {threads()}", seconds, base="plain")


def peak_of_steps(step: str, way: str, device: torch.device) -> float:
    """MB of the peak of three steps of one kind above the memory before them."""
    torch.set_num_threads(1)
    run = training_steps(step, device)[way]
    return peak_mb(lambda: [run() for _ in range(3)], device)


def print_memory(steps: Sequence[str], rounds: int, device: torch.device) -> None:
    """Compare the peak memory of both steps, each in processes of its own."""
    print_head("memory of three steps", "plain MB", "mixed MB", "mixed / plain")
    for step in steps:
        ways = {
            way: partial(in_own_process, peak_of_steps, step, way, device)
            for way in ("plain", "mixed")
        }
        peaks = alternate(ways, rounds)
        plain, mixed = (statistics.median(peaks[way]) for way in ("plain", "mixed"))
        print_row(step, f"{plain:.1f}", f"{mixed:.1f}", f"{mixed / plain:.4f}")


def main(
    sections: Annotated[list[Section] | None, typer.Argument(help="[default: all]")] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="[default: operation 25, draw 100, step 40, memory 5]"),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help=f"Of operation. [default: {', '.join(SIZES)}]")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(help="MODEL:BATCH of step and memory. [default: ResNet-18 and 50]"),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Measure the mixing operation beside every other way to write it, and a step with a hook."""
    where = find_device(device)
    print_setting(where, "timm")
    known = {
        Section.OPERATION: lambda: print_operation(size or SIZES, rounds or 25, where),
        Section.DRAW: lambda: print_draw(rounds or 100, where),
        Section.STEP: lambda: print_step(step or STEPS, rounds or 40, where),
        Section.MEMORY: lambda: print_memory(step or MEMORY_STEPS, rounds or 5, where),
    }
    for section in sections or Section:
        known[section]()
