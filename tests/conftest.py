"""Fixtures for the whole suite: seeds, the real data where it is at hand, a folder of pictures."""

import os
from pathlib import Path

import pytest
import torch

# Two workers of a test machine share its cores; more threads only disturb each other.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and data sets, beside the checkout or where SHARED_DATA says."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real weights and data sets at {folder} (set SHARED_DATA)")
    return folder
