"""Who mixes with whom: a partner for every sample of a batch."""

import torch
from torch import Tensor

PAIRINGS = ("any",)


def draw_partner(
    n: int, pairing: str = "any", *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a partner for each of n samples.

    ``"any"`` draws a random cycle through the batch: every other sample is as likely a partner,
    each is taken exactly once, and nobody is paired with itself (unless the batch has one sample).

    Args:
        n: Number of samples, at least 1.
        pairing: The rule, one of `PAIRINGS`.
        generator: A CPU generator; the global one if None.

    Returns:
        Indices (n,), int64, on the CPU.

    Raises:
        ValueError: The rule is unknown.

    Example:
        >>> sorted(draw_partner(4).tolist())
        [0, 1, 2, 3]
    """
    check_pairing(pairing)
    order = torch.randperm(n, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def check_pairing(pairing: str) -> None:
    """Raise a ValueError that lists the rules unless this is one of them."""
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing={pairing!r} is unknown; choose one of {', '.join(PAIRINGS)}")
