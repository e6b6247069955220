"""How all parts print: the hardware and versions, and tables in Markdown, row by row."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.measuring import Seconds, compare, median_seconds
from manifold_mixup.version import __version__


def print_setting(device: torch.device, *packages: str) -> None:
    """What the numbers depend on."""
    hardware = f"{processor()}, {os.cpu_count()} cores"
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda}), {hardware}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    print(
        f"{hardware}; {platform.system()}, Python {platform.python_version()}, "
        f"manifold_mixup {__version__}, {versions}",
        flush=True,
    )


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def threads() -> str:
    """How many threads there are now, in words."""
    n = torch.get_num_threads()
    return f"{n} thread{'s' if n > 1 else ''}"


def print_head(*cells: str) -> None:
    """Begin a table."""
    print()
    print_row(*cells)
    print_row("---", *["---:"] * (len(cells) - 1))


def print_row(*cells: object) -> None:
    """Print a line of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def format_seconds(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    unit, scale = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{scale * seconds:.4g} {unit}"


def time_head(base: str) -> tuple[str, ...]:
    """What stands above `time_cells`."""
    return "wall", "CPU", f"wall / {base}", f"CPU / {base}"


def time_cells(own: Sequence[Seconds], base: Sequence[Seconds]) -> tuple[str, ...]:
    """Medians of both clocks, and of their ratios by round with 95 % intervals."""
    median = median_seconds(own)
    ratios = [str(compare(own, base, clock)) for clock in ("wall", "cpu")]
    return format_seconds(median.wall), format_seconds(median.cpu), *ratios


def print_times(title: str, seconds: Mapping[str, Sequence[Seconds]], base: str) -> None:
    """Print a table of what each way takes, also relative to one of them."""
    print_head(title, *time_head(base))
    for name, own in seconds.items():
        print_row(name, *time_cells(own, seconds[base]))
