"""What a long step shows on a terminal: bars with a rate and the time left."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Wraps what a long step goes through and shows how far it is: an iterable, its length, its name.
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]


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
