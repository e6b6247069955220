"""What a step draws from: how many samples, and random numbers of this process alone."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from manifold_mixup._random import seeded_generator
from manifold_mixup.inspection import find_tensors


class RankedGenerator:
    """A generator into which the rank is folded when it is first drawn from.

    By then the process group is there, although it may not have been before.

    Args:
        seed: The same for all ranks.
    """

    def __init__(self, seed: int) -> None:
        self._key: int | str = seed
        self._generator: torch.Generator | None = None
        self._rank = 0

    def of_this_rank(self) -> torch.Generator:
        """The generator, drawn from by no other rank."""
        rank = _rank()
        if self._generator is not None and self._rank != rank:
            state = bytes(self._generator.get_state().tolist())
            self._key, self._generator = hashlib.sha256(state).hexdigest(), None
        if self._generator is None:
            self._generator, self._rank = seeded_generator(self._key, "mix", rank), rank
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on drawing from here, and the rank that does."""
        return {"generator": self.of_this_rank().get_state(), "rank": self._rank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; from another rank's, with numbers of one's own."""
        generator = torch.Generator()
        generator.set_state(state["generator"])
        self._generator, self._rank = generator, state.get("rank", _rank())


def batch_size(target: Any) -> int:
    """The number of samples that the targets are of."""
    tensors = find_tensors(target)
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in tensors.values()}
    if len(sizes) == 1 and 0 not in sizes:
        return sizes.pop()
    what = {path: tuple(tensor.shape) for path, tensor in tensors.items() if path}
    shown = f"a {type(target).__name__} of {what}" if what else repr(target)
    raise TypeError(
        f"target must be a tensor (B, *) with the batch first, or several of one B, got {shown}"
    )


def _rank() -> int:
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if ready else 0
