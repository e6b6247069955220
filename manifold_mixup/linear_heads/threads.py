"""How many threads solve: many small products are slower on several than on one."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

# Multiplications in a product from which on it gains from several threads.
_LARGE = 2**26


def is_small(work: int) -> bool:
    """Whether products of so many multiplications are best done side by side."""
    return work < _LARGE


@contextmanager
def few_threads(work: int = 0) -> Iterator[None]:
    """PyTorch on one thread unless products are large, and SciPy's vectors on one in any case.

    Args:
        work: Multiplications in a product.
    """
    threads = torch.get_num_threads()
    with _blas().limit(limits=1, user_api="blas"):
        try:
            if is_small(work):
                torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)


def side_by_side(items: Sequence[T], function: Callable[[T], R], work: int) -> list[R]:
    """What a function makes of each item, on a thread of its own if its products are small.

    As many at a time as PyTorch has threads; so the results are the same with any number of them.

    Args:
        items: What it is called with.
        function: What solves for heads.
        work: Multiplications in a product.
    """
    threads = torch.get_num_threads()
    with few_threads(work):
        if threads == 1 or not is_small(work):
            return [function(item) for item in items]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))


@cache
def _blas() -> Any:
    """The libraries of linear algebra that NumPy and SciPy have loaded."""
    import scipy.optimize  # noqa: F401  (loads its own)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
