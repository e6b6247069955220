"""A mix with noise that a seed and a shape decide, in compiled graphs too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifold_mixup._random import seeded_generator
from manifold_mixup.mixing.mix import Mix, as_rows, in_float32


@dataclass(frozen=True, eq=False, init=False, repr=False)
class NoisyMix(Mix):
    """A mix with noise: every value is stretched or shrunk a little, and moved.

        h[i]  ->  (1 + multiplicative * u) * (lam[i] * h[i] + (1 - lam[i]) * h[partner[i]])
                  + additive * z

    u is uniform in [-1, 1] and z standard normal, both drawn for each value; their mean is 0. The
    value holds the seed of its noise, so that the same features always become the same: when
    checkpointing recomputes them too. On a GPU the same seed gives other noise than on the CPU.

    Args:
        lam: Weight of the sample itself, in [0, 1]: a number, or one per sample (B,).
        partner: Index of the sample each one is mixed with, (B,).
        additive: Standard deviation of what is added, at least 0, in units of the features.
        multiplicative: How much a value may be stretched or shrunk, at least 0; 0.1 is 10 %.
        seed: Of the noise.

    Raises:
        TypeError: `partner` is not integer.
        ValueError: A shape or a range is wrong.

    Example:
        >>> features, mix = torch.eye(2), NoisyMix(0.75, [1, 0], additive=0.5)
        >>> torch.equal(mix(features), mix(features)), torch.equal(mix(features), features)
        (True, False)

    Reference:
        Lim et al., Noisy Feature Mixup, ICLR 2022. https://arxiv.org/abs/2110.02180
    """

    additive: float
    multiplicative: float
    seed: Tensor

    def __init__(
        self,
        lam: float | Sequence[float] | Tensor,
        partner: Sequence[int] | Tensor,
        *,
        additive: float = 0.1,
        multiplicative: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(lam, partner)
        for name, level in (("additive", additive), ("multiplicative", multiplicative)):
            if not 0 <= level < math.inf:
                raise ValueError(f"{name}={level} must be a finite number, at least 0")
            object.__setattr__(self, name, float(level))
        # A tensor, and on the CPU: a compiled graph would be made anew for each number.
        object.__setattr__(self, "seed", torch.tensor(int(seed)))

    @classmethod
    def sample(
        cls,
        n: int,
        alpha: float = 0.4,
        *,
        additive: float = 0.1,
        multiplicative: float = 0.1,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> "NoisyMix":
        """Draw lam and partner as `Mix.sample` does, then the seed of the noise.

        Args:
            n: Number of samples B, at least 1.
            alpha: Of Beta(alpha, alpha); 0 mixes nothing, and adds no noise.
            additive: Standard deviation of what is added, at least 0.
            multiplicative: How much a value may be stretched or shrunk, at least 0.
            generator: A CPU generator; the global one if None.
            options: See `Mix.sample` for these.

        Example:
            >>> NoisyMix.sample(32, additive=0.2).additive
            0.2
        """
        mix = Mix.sample(n, alpha, generator=generator, **options)
        seed = int(torch.randint(2**31, (), generator=generator))
        levels = {"additive": additive, "multiplicative": multiplicative}
        return cls(mix.lam, mix.partner, **levels, seed=seed)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Mix features (B, *) and add noise, out of place; else as `Mix`."""
        if self.additive == self.multiplicative == 0:
            return super().__call__(tensor)
        self.check(tensor)
        mixed = super().__call__(in_float32(tensor))
        normal, uniform = draw_noise(mixed, self.seed)
        noisy = mixed * (1 + self.multiplicative * uniform) + self.additive * normal
        keeps = as_rows((self.lam == 1).to(mixed.device), mixed)
        return torch.where(keeps, mixed, noisy).to(tensor.dtype)

    def check(self, tensor: Tensor) -> None:
        """Raise a TypeError or ValueError unless this can mix tensors like that one."""
        super().check(tensor)
        if tensor.is_complex():
            raise TypeError("noise is drawn for real values, got a complex tensor")


def draw_noise(like: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Standard normal numbers, and uniform ones in [-1, 1], of a tensor's shape, dtype and device.

    They are the same whenever they are drawn from a seed for a shape on a kind of device, whatever
    the memory format: when checkpointing recomputes too. No random state is read or changed.

    Args:
        like: Values (B, *).
        seed: A number, 0-d and on the CPU.

    Example:
        >>> normal, uniform = draw_noise(torch.zeros(2, 3), torch.tensor(0))
        >>> torch.equal(normal, draw_noise(torch.ones(2, 3), torch.tensor(0))[0])
        True
    """
    normal, uniform = _noise(like.detach(), seed).unbind()
    return normal, uniform


# An operation of its own, for a graph can hold no generator.
@torch.library.custom_op("manifold_mixup::noise", mutates_args=())
def _noise(like: Tensor, seed: Tensor) -> Tensor:
    # Hashed with the shape, so that the maps of one step differ in their noise.
    key = seeded_generator(int(seed), *like.shape).initial_seed()
    generator = torch.Generator(like.device).manual_seed(key)
    noise = torch.empty(2, *like.shape, dtype=like.dtype, device=like.device)
    noise[0].normal_(generator=generator)
    noise[1].uniform_(-1, 1, generator=generator)
    return noise


@_noise.register_fake
def _(like: Tensor, seed: Tensor) -> Tensor:
    return torch.empty(2, *like.shape, dtype=like.dtype, device=like.device)
