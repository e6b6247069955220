"""Small products go side by side on one thread each; settings come back."""

import threading
from collections.abc import Iterator

import pytest
import torch

from manifold_mixup.linear_heads import few_threads, side_by_side


@pytest.fixture
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize(("work", "expected"), [(1000, 1), (2**30, 3)])
def test_small_products_have_one_thread(work: int, expected: int) -> None:
    """Only large ones are computed on all threads, and the number comes back, errors or not."""
    with few_threads(work):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 3

    with pytest.raises(ZeroDivisionError), few_threads(work):
        _ = 1 / 0
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
def test_items_go_side_by_side_in_their_order() -> None:
    """As many at a time as there are threads, each on one; what comes out keeps the order."""
    met = threading.Barrier(3, timeout=20)  # passed by three at a time alone

    def solve(item: int) -> tuple[int, int]:
        met.wait()
        return item, torch.get_num_threads()

    assert side_by_side(range(6), solve, 10) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
def test_an_error_of_one_item_comes_out() -> None:
    """What one of them raises is raised."""
    with pytest.raises(ZeroDivisionError):
        side_by_side([1, 0, 2], lambda item: 1 // item, 10)
    assert torch.get_num_threads() == 3
