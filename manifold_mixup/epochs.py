"""An epoch of a training: how far the training is."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """One of the epochs of a training.

    Attributes:
        number: Its place among them, from 0.
        epochs: How many there are.
    """

    number: int
    epochs: int

    def rate(self, share: float) -> float:
        """What learning rates are multiplied by when a share of this epoch is done: 1 down to 0.

        Example:
            >>> Epoch(1, 2).rate(0.0)
            0.5
        """
        return (1 + math.cos(math.pi * (self.number + share) / self.epochs)) / 2
