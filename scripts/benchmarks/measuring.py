"""How all parts measure: clocks, rounds in random order, ratios, memory, separate processes."""

import random
import resource
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Seconds:
    """Time that has passed on the wall, and that this process and its children computed for."""

    wall: float
    cpu: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __truediv__(self, n: int) -> "Seconds":
        return Seconds(self.wall / n, self.cpu / n)


class Ratio(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.4g}"
        return f"{self.median:.4g} [{self.low:.4g}, {self.high:.4g}]"


def read_clocks(device: torch.device) -> Seconds:
    """Both clocks, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() + children.ru_utime + children.ru_stime
    return Seconds(time.perf_counter(), cpu)


def timed(work: Callable[[], Any], device: torch.device, repeats: int = 1) -> Seconds:
    """What a call takes, the mean of some calls."""
    result = work() if repeats > 1 else None  # a warm cache
    start = read_clocks(device)
    for _ in range(repeats):
        result = work()  # the last one lives on until then, as in training
    seconds = read_clocks(device) - start
    del result
    return seconds / repeats


def alternate(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each way gives in each round, in which all of them take their turn in random order."""
    results: dict[str, list[T]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name in random.sample(list(ways), len(ways)):
            results[name].append(ways[name]())
    return results


def time_alternately(
    ways: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, repeats: int = 1
) -> dict[str, list[Seconds]]:
    """What each way takes in each round, after one more that does not count."""
    measured = {name: partial(timed, way, device, repeats) for name, way in ways.items()}
    alternate(measured, 1)
    return alternate(measured, rounds)


def ratios(own: Sequence[Seconds], base: Sequence[Seconds], clock: str) -> list[float]:
    """One way's time over another's in each round; where one has fewer, they were the first."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(own, base, strict=False)]


def compare(own: Sequence[Seconds], base: Sequence[Seconds], clock: str) -> Ratio:
    """The median of the ratios by round; its interval comes from 10,000 bootstrap samples."""
    values, draw = ratios(own, base, clock), random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(10_000))
    return Ratio(statistics.median(values), medians[249], medians[-250])


def median_seconds(seconds: Sequence[Seconds]) -> Seconds:
    """The medians of both clocks."""
    return Seconds(
        statistics.median(s.wall for s in seconds), statistics.median(s.cpu for s in seconds)
    )


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a new process, which inherits no memory and no state."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def process_mb(what: str) -> float:
    """A kind of memory of this process in MB (Linux)."""
    # Not of getrusage, whose peak begins with that of the parent process.
    status = Path("/proc/self/status").read_text()
    line = next(row for row in status.splitlines() if row.startswith(what))
    return int(line.split()[1]) / 1024


def peak_mb(work: Callable[[], Any], device: torch.device) -> float:
    """MB that some work takes at its peak, on the device; on a CPU the first of its process."""
    if device.type != "cuda":
        before = process_mb("VmRSS")
        work()
        return process_mb("VmHWM") - before
    torch.cuda.reset_peak_memory_stats(device)
    allocated = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - allocated) / 2**20


class AnonymousPeak(threading.Thread):
    """The largest anonymous memory of this process while it is watched, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb, self._is_over = 0.0, threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self._is_over.wait(0.01):
            self.mb = max(self.mb, process_mb("RssAnon"))

    def __enter__(self) -> "AnonymousPeak":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self.join()
