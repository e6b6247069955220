"""What is computed from what in a forward pass, also where no gradient leads: a graph of steps."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manifold_mixup.inspection.nested import find_tensors


class Step:
    """An operation on marked tensors; ``next_functions`` are those before it, as in autograd."""

    def __init__(self, before: set["Step"]) -> None:
        self.next_functions = tuple((step, 0) for step in before)


class Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, follows what is computed from marked tensors.

    Neither autograd nor NaN leads through a comparison or an integer; this does. Not followed are
    numbers that leave PyTorch, by `item` or in a condition.

    Example:
        >>> import torch
        >>> given, other = torch.tensor([1, 5]), torch.ones(2)
        >>> with Flow() as flow:
        ...     first = flow.mark(given)
        ...     masked, doubled = other.masked_fill(given == 5, 0), 2 * other
        >>> flow.holds(masked), flow.holds(doubled)
        (True, False)
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The memory of tensors, so that views count, kept so that no other tensor gets it.
        self._memory: dict[int, tuple[Step, Any]] = {}

    def mark(self, value: Any) -> Step:
        """Mark every tensor in a nested value, as of one first step."""
        step = Step(set())
        self._set(find_tensors(value).values(), step)
        return step

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is marked, or computed from such."""
        return self.step(tensor) is not None

    def step(self, tensor: Tensor) -> Step | None:
        """The last step that a tensor came from; None for one that is not marked."""
        memory = _memory(tensor)
        known = None if memory is None else self._memory.get(memory._cdata)
        return None if known is None else known[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation and mark what it returns, if it takes something marked."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name.endswith("_like") or name.startswith("new_"):  # takes the shape alone
            return result
        before = {step for t in _tensors((args, kwargs)) if (step := self.step(t)) is not None}
        if before:
            self._set(_tensors(result), Step(before))
        return result

    def _set(self, tensors: Iterable[Tensor], step: Step) -> None:
        for tensor in tensors:
            memory = _memory(tensor)
            if memory is not None:
                self._memory[memory._cdata] = step, memory


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _memory(tensor: Tensor) -> Any:
    """Where a tensor is in memory; None for a sparse one."""
    try:
        return tensor.untyped_storage()
    except NotImplementedError:
        return None
