"""What is computed from given tensors, followed step by step."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manifold_mixup.inspection import find_tensors


class Derived(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, marks what is computed from marked tensors.

    Neither autograd nor NaN leads through a comparison or an integer; this does. Not followed are
    numbers that leave PyTorch, by `item` or in a condition.

    Example:
        >>> given, other = torch.tensor([1, 5]), torch.ones(2)
        >>> with Derived() as derived:
        ...     derived.mark(given)
        ...     masked, doubled = other.masked_fill(given == 5, 0), 2 * other
        >>> derived.holds(masked), derived.holds(doubled)
        (True, False)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The memory of tensors, so that views count, kept so that no other tensor gets it.
        self._memory: dict[int, Any] = {}

    def mark(self, value: Any) -> None:
        """Mark every tensor in a nested value."""
        for tensor in find_tensors(value).values():
            storage = tensor.untyped_storage()
            self._memory[storage._cdata] = storage

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is marked."""
        return tensor.untyped_storage()._cdata in self._memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation and mark what it returns, if it takes something marked."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        takes_shape_alone = name.endswith("_like") or name.startswith("new_")
        given = (v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor))
        if not takes_shape_alone and any(map(self.holds, given)):
            self.mark(result)
        return result
