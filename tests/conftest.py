"""Fixtures for the whole suite: seeds, the real data where it is at hand, a folder of pictures."""

import os
from pathlib import Path

# One thread for each of the workers that run side by side, and for what they start: more of them
# would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


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
