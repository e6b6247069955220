"""A graph of operations: what leads where, and what every way to the output passes."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar


class Linked(Protocol):
    """A node of autograd's graph, or a `Step`: knows those before it."""

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """The nodes before it, each with a number."""


N = TypeVar("N", bound=Linked)


def ancestors(starts: Iterable[N], avoiding: set[N] | None = None) -> set[N]:
    """The nodes of a graph that lead to the given ones, these included."""
    avoided = avoiding or set()
    seen = set(avoided)
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(before for before, _ in node.next_functions if before is not None)
    return seen - avoided


def descendants(starts: Iterable[N], known: set[N]) -> set[N]:
    """The nodes that the given ones lead to, these included, among those that are known."""
    behind = _users(known)
    reached, waiting = set(starts), list(starts)
    while waiting:
        fresh = [node for node in behind.get(waiting.pop(), ()) if node not in reached]
        reached.update(fresh)
        waiting += fresh
    return reached


class Dominators(Generic[N]):
    """Which nodes every way to an output passes, found in one walk for all nodes.

    Asked node by node, a walk around each would take as many walks as a model has layers.

    Args:
        sinks: The nodes of the output.
    """

    def __init__(self, sinks: Iterable[N]) -> None:
        self._sinks = ends = set(sinks)
        known = ancestors(ends)
        users = _users(known)
        # The last node that every way passes behind each node; None stands for the output.
        self._next: dict[N, N | None] = {}
        self._depth: dict[N | None, int] = {None: 0}
        for node in _from_sinks(known, users):
            behind: list[N | None] = [*users.get(node, ())]
            common = None if node in ends else behind[0]
            for other in behind:
                common = self._join(common, other)
            self._next[node], self._depth[node] = common, self._depth[common] + 1
        self._span = self._spans()

    def around(self, nodes: set[N]) -> Callable[[N], bool]:
        """Whether a node leads to the output on a way that passes none of the given ones."""
        if len(nodes) > 1:
            return ancestors(self._sinks, avoiding=nodes).__contains__
        return partial(self.is_avoidable, *nodes)

    def is_avoidable(self, node: N, start: N) -> bool:
        """Whether a way from `start` to the output passes by a node, which is not `start`."""
        if start not in self._span or node not in self._span:
            return start in self._span
        first, last = self._span[node]
        return not first <= self._span[start][0] <= last

    def _join(self, one: N | None, other: N | None) -> N | None:
        """The first node that the ways from two nodes share."""
        while one is not other:
            if self._depth[one] < self._depth[other]:
                one, other = other, one
            assert one is not None
            one = self._next[one]
        return one

    def _spans(self) -> dict[N, tuple[int, int]]:
        """A number for each node, and the last of those that only it lets through."""
        sizes = dict.fromkeys(self._next, 1)
        inside: dict[N | None, int] = {None: 0}
        for node in reversed(self._next):
            behind = self._next[node]
            if behind is not None:
                sizes[behind] += sizes[node]
        spans: dict[N, tuple[int, int]] = {}
        for node, behind in self._next.items():  # those behind come first
            first = inside[behind]
            inside[behind] += sizes[node]
            inside[node] = first + 1
            spans[node] = first, first + sizes[node] - 1
        return spans


def _users(known: Iterable[N]) -> dict[N, list[N]]:
    """The nodes that take what each node gives."""
    users: dict[N, list[N]] = {}
    for node in known:
        for before, _ in node.next_functions:
            if before is not None:
                users.setdefault(before, []).append(node)
    return users


def _from_sinks(known: set[N], users: dict[N, list[N]]) -> list[N]:
    """The nodes in an order in which each stands behind all that take what it gives."""
    left = {node: len(users.get(node, ())) for node in known}
    order = [node for node, n in left.items() if n == 0]
    for node in order:
        for before, _ in node.next_functions:
            if before is not None:
                left[before] -= 1
                if left[before] == 0:
                    order.append(before)
    return order
