"""How a long command goes on: bars of progress, and the processes that share its work."""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

# Wraps what a long step goes through and shows how far it is: an iterable, its length, its name.
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# What the first process tells the others: what to help with, and its exit status at the end.
_WORK, _STATUS = "work", "status"

# Seconds that the first process waits for the others to hear of its end.
_PATIENCE = 10.0


def untracked(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show nothing."""
    return steps


def track(steps: Iterable[Any], total: int, description: str) -> Iterator[Any]:
    """Go through the steps of something long, with a bar on stderr if that is a terminal.

    Args:
        steps: What to go through.
        total: How many there are.
        description: What is going on.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
    with bar:
        yield from bar.track(steps, total, description=description)


def share_of_work() -> tuple[int, int]:
    """The number of this process and of all, as a process group or torchrun gives them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class Ranks:
    """The processes of one command.

    The first does all that is to be done once: it trains, writes and prints. The others do their
    share of what it tells them to help with, in silence, and end as it does.

    Attributes:
        rank: The number of this one, from 0.
        world: How many there are.
        store: Where they leave each other messages; None for one alone.
    """

    rank: int = 0
    world: int = 1
    store: Any = None

    @property
    def is_helper(self) -> bool:
        """Whether this is not the first."""
        return self.rank > 0

    def ask_for_help(self, **work: Any) -> None:
        """Tell the others what there is to share, in JSON values."""
        if self.world > 1:
            self.store.set(_WORK, json.dumps(work))

    def awaited_work(self) -> dict[str, Any] | None:
        """What the first process asks for; None if it ends without."""
        self._wait(_WORK, _STATUS)
        if not self.store.check([_WORK]):
            return None
        work: dict[str, Any] = json.loads(self.store.get(_WORK))
        return work

    @contextmanager
    def one_voice(self) -> Iterator[io.StringIO]:
        """Inside the block all but the first process print nothing; what it would have been."""
        heard = io.StringIO()
        if not self.is_helper:
            yield heard
            return
        with redirect_stdout(io.StringIO()), redirect_stderr(heard):
            yield heard

    def end(self, status: int, heard: str = "") -> int:
        """The exit status of all, that of the first process.

        Args:
            status: Of this process.
            heard: What it would have printed of an error.
        """
        if self.world == 1:
            return status
        if self.is_helper:
            self._wait(_STATUS)
            of_all = int(self.store.get(_STATUS))
            if status and not of_all:
                print(f"process {self.rank} did not help: {heard.strip()}", file=sys.stderr)
            self.store.set(f"left {self.rank}", "")
            return of_all
        self.store.set(_STATUS, str(status))
        left, until = [f"left {rank}" for rank in range(1, self.world)], time.monotonic()
        while not self.store.check(left) and time.monotonic() - until < _PATIENCE:
            time.sleep(0.05)
        return status

    def _wait(self, *names: str) -> None:
        """Wait for one of some messages, so that Ctrl-C is heard."""
        while not any(self.store.check([name]) for name in names):
            time.sleep(0.05)


ALONE = Ranks()


def find_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The processes that this one was started with.

    Args:
        environment: What torchrun has set: ``RANK``, ``WORLD_SIZE``, and where to meet.

    Raises:
        ValueError: It is not all there.

    Example:
        >>> find_ranks({}).world
        1
    """
    world = int(environment.get("WORLD_SIZE", 1))
    if world == 1:
        return ALONE
    if missing := [name for name in _NAMES if name not in environment]:
        raise ValueError(
            f"WORLD_SIZE={world} is set, but not {', '.join(missing)}, by which several processes "
            "meet; start them by torchrun, or unset WORLD_SIZE for one alone"
        )
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # Not a process group: in one, the first could not train alone.
    store, rank, world = next(rendezvous("env://"))
    return Ranks(rank, world, store)
