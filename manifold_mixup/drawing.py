"""Random draws: a generator from a seed, a lam from a Beta distribution."""

import math

import torch
from torch import Tensor


def check_alpha(alpha: float) -> None:
    """Raise a ValueError unless alpha is a finite number, at least 0."""
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be a finite number, at least 0 (0 = no mixing)")


def check_prob(prob: float) -> None:
    """Raise a ValueError unless this is a probability."""
    if not 0 <= prob <= 1:
        raise ValueError(f"prob={prob} must be in [0, 1] (1 = every step is mixed)")


def draw_lam(alpha: float, n: int, generator: torch.Generator | None) -> Tensor:
    """Draw from Beta(alpha, alpha), (n,) in float64, exact also where its values crowd at 0 and 1.

    A Gamma(alpha) draw underflows for small alpha, so it is made in logarithms from Gamma(alpha+1)
    (Marsaglia and Tsang 2000, section 6); their difference is the logit of lam.
    """
    if alpha == 0:
        return torch.ones(n, dtype=torch.float64)
    shape = torch.full((2, n), alpha + 1, dtype=torch.float64)
    gamma = torch._standard_gamma(shape, generator=generator).log()
    power = torch.rand(2, n, dtype=torch.float64, generator=generator).log()
    # The differences come first: for an alpha near 0 both of the logarithms would be infinite.
    return torch.sigmoid(gamma[0] - gamma[1] + (power[0] - power[1]) / alpha)
