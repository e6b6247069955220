"""The autograd graph of a dry run: what leads where, and what every way to the output passes."""

from collections.abc import Iterable

from torch.autograd.graph import Node


def ancestors(starts: Iterable[Node], avoiding: set[Node] | None = None) -> set[Node]:
    """The nodes of the autograd graph that lead to the given ones, these included."""
    avoided = avoiding or set()
    seen = set(avoided)
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(before for before, _ in node.next_functions if before is not None)
    return seen - avoided


def descendants(starts: Iterable[Node], known: set[Node]) -> set[Node]:
    """The nodes that the given ones lead to, these included, among those that are known."""
    behind = _users(known)
    reached, waiting = set(starts), list(starts)
    while waiting:
        fresh = [node for node in behind.get(waiting.pop(), ()) if node not in reached]
        reached.update(fresh)
        waiting += fresh
    return reached


class Dominators:
    """Which nodes every way to an output passes, found in one walk for all nodes.

    Asked node by node, a walk around each would take as many walks as a model has layers.

    Args:
        sinks: The nodes of the output.
    """

    def __init__(self, sinks: Iterable[Node]) -> None:
        ends = set(sinks)
        known = ancestors(ends)
        users = _users(known)
        # The last node that every way passes behind each node; None stands for the output.
        self._next: dict[Node, Node | None] = {}
        self._depth: dict[Node | None, int] = {None: 0}
        for node in _from_sinks(known, users):
            behind: list[Node | None] = [*users.get(node, ())]
            common = None if node in ends else behind[0]
            for other in behind:
                common = self._join(common, other)
            self._next[node], self._depth[node] = common, self._depth[common] + 1
        self._span = self._spans()

    def is_avoidable(self, node: Node, start: Node) -> bool:
        """Whether a way from `start` to the output passes by a node, which is not `start`."""
        if start not in self._span or node not in self._span:
            return start in self._span
        first, last = self._span[node]
        return not first <= self._span[start][0] <= last

    def _join(self, one: Node | None, other: Node | None) -> Node | None:
        """The first node that the ways from two nodes share."""
        while one is not other:
            if self._depth[one] < self._depth[other]:
                one, other = other, one
            assert one is not None
            one = self._next[one]
        return one

    def _spans(self) -> dict[Node, tuple[int, int]]:
        """A number for each node, and the last of those that only it lets through."""
        sizes = dict.fromkeys(self._next, 1)
        inside: dict[Node | None, int] = {None: 0}
        for node in reversed(self._next):
            behind = self._next[node]
            if behind is not None:
                sizes[behind] += sizes[node]
        spans: dict[Node, tuple[int, int]] = {}
        for node, behind in self._next.items():  # those behind come first
            first = inside[behind]
            inside[behind] += sizes[node]
            inside[node] = first + 1
            spans[node] = first, first + sizes[node] - 1
        return spans


def _users(known: Iterable[Node]) -> dict[Node, list[Node]]:
    """The nodes that take what each node gives."""
    users: dict[Node, list[Node]] = {}
    for node in known:
        for before, _ in node.next_functions:
            if before is not None:
                users.setdefault(before, []).append(node)
    return users


def _from_sinks(known: set[Node], users: dict[Node, list[Node]]) -> list[Node]:
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
