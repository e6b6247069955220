"""What mixing costs: the operation beside every other way to write it, and a step with a hook.

    python scripts/benchmark_mix.py [operation] [draw] [step] [memory]

On a shared AMD processor, Linux, Python 3.11.7, torch 2.14.1, timm 1.0.31.

operation, 1 thread: `Mix` takes 0.95 to 1.16 of the fastest other way without a gradient and 0.14
to 1.11 with one, at all sizes, float32 and bfloat16, contiguous and channels_last; `lam * x + (1 -
lam) * x[partner]` takes 2.6 to 5 times as long. With 2 threads it is 1.1 to 1.4 of the fastest at
256x2048 and 32x512x7x7, 1.9 for 256x2048 in bfloat16.

step, CPU time with the hook over that without, median of 40 pairs and its 95 % interval:
ResNet-18, batches of 8 and 32: 1.006 [0.999, 1.013] and 0.997 [0.987, 1.003];
ResNet-50, batches of 8 and 16: 1.005 [0.996, 1.018] and 0.998 [0.978, 1.012].

memory, peak of three steps with the hook over that without, batches of 32, median of 5: ResNet-18
0.99, ResNet-50 0.90.
"""

import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup import ManifoldMixup, Mix, freeze, mixed_loss

SIZES = [(32, 2048, 7, 7), (32, 512, 7, 7), (32, 256, 56, 56), (256, 2048)]
STEPS = [("resnet18", 8), ("resnet18", 32), ("resnet50", 8), ("resnet50", 16)]
Way = Callable[[Tensor], Tensor]


def interleaved(
    ways: dict[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each way in each round, in which all of them take their turn in random order."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            result = ways[name]() if repeats > 1 or count == 0 else None  # a warm cache
            start = clock()
            for _ in range(repeats):
                result = ways[name]()  # the last one lives on until then, as in training
            if count:
                seconds[name].append((clock() - start) / repeats)
            del result
    return seconds


def ratio(seconds: dict[str, list[float]], way: str, reference: str) -> float:
    """The median over the rounds of one way's time, the reference's being 1."""
    return statistics.median(a / b for a, b in zip(seconds[way], seconds[reference], strict=True))


class InversePermutation(torch.autograd.Function):
    """The mix by index_select and lerp, its gradient by the inverse permutation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
        """The mix."""
        ctx.save_for_backward(lam, partner)
        return x.index_select(0, partner).lerp_(x, lam)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Each sample's own gradient, and that of the one sample that it is the partner of."""
        lam, partner = ctx.saved_tensors
        inverse = partner.argsort()
        other = (1 - lam).index_select(0, inverse)
        return grad.index_select(0, inverse).mul_(other).addcmul_(grad, lam), None, None


def rows_in_a_loop(x: Tensor, lam: list[float], partner: list[int]) -> Tensor:
    """The mix of each sample by itself, into fresh memory."""
    own, mixed = x.unbind(), torch.empty_like(x)
    for i, row in enumerate(mixed.unbind()):
        torch.lerp(own[partner[i]], own[i], lam[i], out=row)
    return mixed


def in_float32(x: Tensor, mix: Mix) -> Tensor:
    """The mix of half-precision values with lam in float32, rounded once."""
    single = x.float()
    lam = mix.lam.float().view(-1, *[1] * (x.ndim - 1))
    return single.index_select(0, mix.partner).lerp_(single, lam).to(x.dtype)


def formulations(mix: Mix) -> dict[str, Way]:
    """All ways to mix that return fresh memory, from any partner and a lam for each sample."""
    partner = mix.partner

    def lam(x: Tensor) -> Tensor:
        return mix.lam.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    return {
        "naive": lambda x: (w := lam(x)) * x + (1 - w) * x[partner],
        "lerp": lambda x: torch.lerp(x[partner], x, lam(x)),
        "index_select, lerp_": lambda x: x.index_select(0, partner).lerp_(x, lam(x)),
        "rows in a loop": lambda x: rows_in_a_loop(x, mix.lam.tolist(), partner.tolist()),
        "float32 throughout": lambda x: in_float32(x, mix),
        "inverse permutation": lambda x: InversePermutation.apply(x, lam(x), partner),
        "Mix": mix,
    }


def operation_times(
    size: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, *, gradient: bool
) -> tuple[float, dict[str, float]]:
    """Milliseconds of `add(out=)` (twice with a gradient), and all ways relative to it."""
    x = torch.randn(size).to(dtype).contiguous(memory_format=layout)
    upstream, buffer = torch.randn_like(x), torch.empty_like(x)
    ways = formulations(Mix.sample(len(x), alpha=1.0))

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
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats = max(2, (1 << 23) // x.numel())
    seconds = interleaved(runs, 25, clock, repeats)
    relative = {name: ratio(seconds, name, "limit") for name in ways}
    return 1000 * statistics.median(seconds["limit"]), relative


def print_operation() -> None:
    """Compare the formulations at every size, with one thread and with two."""
    torch.empty(31 << 20, dtype=torch.uint8)  # once freed, glibc keeps pieces up to this size
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for gradient in (False, True):
            for size in SIZES:
                for dtype in (torch.float32, torch.bfloat16):
                    for layout in (torch.contiguous_format, torch.channels_last)[
                        : max(1, len(size) - 2)
                    ]:
                        limit, times = operation_times(size, dtype, layout, gradient=gradient)
                        best = min(value for name, value in times.items() if name != "Mix")
                        print(
                            f"{threads} thread(s), {'with' if gradient else 'no'} gradient,",
                            f"{'x'.join(map(str, size))} {str(dtype)[6:]} {str(layout)[6:]}:",
                            f"limit {limit:.3f} ms;",
                            "; ".join(f"{name} {value:.2f}" for name, value in times.items()),
                            f"; Mix/fastest {times['Mix'] / best:.2f}",
                            flush=True,
                        )


def print_draw() -> None:
    """Microseconds to draw a mix, to move it, and to construct one, of CPU time."""
    torch.set_num_threads(1)
    generator = torch.Generator()
    for n in (32, 256):
        mix, row = Mix.sample(n, alpha=1.0), torch.randn(n, 1)
        ways: dict[str, Callable[[], Any]] = {
            "Mix.sample": lambda n=n: Mix.sample(n, generator=generator),
            "Mix": lambda mix=mix: Mix(mix.lam, mix.partner),
            "mix.to": lambda mix=mix: mix.to("cpu"),
            "mix(tensor of 1 column)": lambda mix=mix, row=row: mix(row),
        }
        seconds = interleaved(ways, 100, repeats=20)
        for name, values in seconds.items():
            print(f"B={n}: {name} {1e6 * statistics.median(values):.1f} us")


def steps(name: str, batch: int) -> dict[str, Callable[[], None]]:
    """A training step of a frozen model's head, plain and mixed at its last block."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=100)
    freeze(model, except_="fc")
    images, target = torch.randn(batch, 3, 224, 224), torch.randint(100, (batch,))
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


def bootstrap(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of the median."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 40], medians[-draws // 40]


def print_step(pairs: int = 40) -> None:
    """Compare a step with the hook to the step without, in CPU time of the process."""
    torch.set_num_threads(1)
    for name, batch in STEPS:
        seconds = interleaved(steps(name, batch), pairs)
        ratios = [m / p for m, p in zip(seconds["mixed"], seconds["plain"], strict=True)]
        low, high = bootstrap(ratios)
        print(
            f"{name} B={batch}: mixed/plain {statistics.median(ratios):.4f} "
            f"[{low:.4f}, {high:.4f}], plain {statistics.median(seconds['plain']):.3f} s",
            flush=True,
        )


def peak_memory(name: str, batch: int, way: str) -> int:
    """KiB of the peak of three steps of one kind above the memory before them (Linux)."""
    step = steps(name, batch)[way]
    before = _memory("VmRSS")
    for _ in range(3):
        step()
    return _memory("VmHWM") - before


def _memory(what: str) -> int:
    # Not of getrusage, whose peak begins with that of the parent process.
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1])


def print_memory(runs: int = 5) -> None:
    """Compare the peak memory of both steps, each in processes of its own."""
    for name, batch in (("resnet18", 32), ("resnet50", 32)):
        peaks = {
            way: statistics.median(
                int(subprocess.check_output([sys.executable, __file__, name, str(batch), way]))
                for _ in range(runs)
            )
            for way in ("plain", "mixed")
        }
        print(f"{name} B={batch}: {json.dumps(peaks)} KiB, {peaks['mixed'] / peaks['plain']:.4f}")


def main(sections: Iterable[str]) -> None:
    """Print the sections asked for, or all."""
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"
    )
    known = {
        "operation": print_operation,
        "draw": print_draw,
        "step": print_step,
        "memory": print_memory,
    }
    for section in sections or known:
        known[section]()


if __name__ == "__main__":
    if sys.argv[-1] in ("plain", "mixed"):
        torch.set_num_threads(1)
        print(peak_memory(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
    else:
        main(sys.argv[1:])
