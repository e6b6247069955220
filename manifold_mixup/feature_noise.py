"""Noise on stored features, as large as a share of what they vary by."""

from collections.abc import Iterator

import torch
from torch import Tensor

from manifold_mixup.drawing import seeded_generator
from manifold_mixup.loading import Batches
from manifold_mixup.mixing import in_float32


def add_noise(features: Tensor, noise: float, *, seed: int, epoch: int, step: int) -> Tensor:
    """Add noise to the stored features of a step, the same whenever it is asked for.

        h  ->  h + noise * s * z

    z is standard normal, drawn in float32 for the shape of the features by a CPU generator of its
    own; s is the standard deviation of all of their values, one number (n in its divisor).

    Args:
        features: Of a batch (B, *), of any floating-point dtype. Not changed.
        noise: At least 0; 0 gives the features themselves.
        seed: Of the training.
        epoch: Its number, from 0.
        step: The number of the batch in the epoch, from 0.

    Example:
        >>> features = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
        >>> add_noise(features, 0.1, seed=0, epoch=0, step=0).shape
        torch.Size([2, 2])
    """
    if noise == 0:
        return features
    z = torch.randn(features.shape, generator=seeded_generator(seed, "noise", epoch, step))
    wide = in_float32(features)
    return (wide + noise * wide.std(correction=0) * z.to(wide)).to(features.dtype)


class NoisyBatches:
    """Batches of stored features and targets, with the noise of an epoch on the features.

    Args:
        batches: Of features (B, *) and targets.
        noise: See `add_noise`, as for the others.
        seed: See there.
        epoch: See there.
    """

    def __init__(self, batches: Batches, noise: float, seed: int, epoch: int) -> None:
        self.batches, self.noise, self.seed, self.epoch = batches, noise, seed, epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (features, target) in enumerate(self.batches):
            noisy = add_noise(features, self.noise, seed=self.seed, epoch=self.epoch, step=step)
            yield noisy, target
