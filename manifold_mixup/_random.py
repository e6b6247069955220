"""Random numbers that a seed decides, and that disturb no others."""

import hashlib
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def seeded_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by numbers and words, such as `(seed, epoch)`.

    Example:
        >>> a, b = seeded_generator(0, 1), seeded_generator(0, 1)
        >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
        True
    """
    # PyTorch's CPU generator uses the low 32 bits of its seed only: hash, do not add.
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@contextmanager
def same_random_states(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """The random states of Python, NumPy and PyTorch come back as they were.

    Args:
        devices: GPUs whose states come back too.
    """
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
