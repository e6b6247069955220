"""An epoch of a training: how far the training is, and whose draws the epoch repeats."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """One of the epochs of a training.

    Attributes:
        number: Its place among them, from 0.
        epochs: How many there are.
        mixed_epochs: How many there are whose draws differ; None for all of them.

    Example:
        >>> [Epoch(number, 5, mixed_epochs=2).draws for number in range(5)]
        [0, 1, 0, 1, 0]
    """

    number: int
    epochs: int
    mixed_epochs: int | None = None

    @property
    def draws(self) -> int:
        """The number of the epoch that first drew what this one draws."""
        return self.number % (self.mixed_epochs or self.epochs)

    @property
    def repeats(self) -> bool:
        """Whether epochs of this training repeat the draws of others."""
        return self.mixed_epochs is not None and self.mixed_epochs < self.epochs

    def rate(self, share: float) -> float:
        """What learning rates are multiplied by when a share of this epoch is done: 1 down to 0.

        Example:
            >>> Epoch(1, 2).rate(0.0)
            0.5
        """
        return (1 + math.cos(math.pi * (self.number + share) / self.epochs)) / 2
