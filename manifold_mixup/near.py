"""Partners by how near the targets of a regression are."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold_mixup.partners import pick


@dataclass(frozen=True)
class NearTarget:
    """A pairing for regression: the nearer another sample's target, the likelier it is taken.

        P(j | i)  ~  exp(-|y[i] - y[j]|^2 / (2 * bandwidth^2)),  j != i

    The string ``"near-target"`` stands for it with the bandwidth by itself.

    Args:
        bandwidth: In the units of the targets, above 0; None for half the standard deviation of
            each batch's targets (for vectors: of their distance from the mean).

    Raises:
        ValueError: The bandwidth is out of range.

    Example:
        >>> near = NearTarget(bandwidth=0.1)
        >>> near(torch.tensor([1.0, 5.0, 1.1, 5.1]), torch.Generator())
        tensor([2, 3, 0, 1])

    Reference:
        Yao et al., C-Mixup: Improving Generalization in Regression, NeurIPS 2022, section 3.
        https://arxiv.org/abs/2210.05775
    """

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ValueError(f"bandwidth={self.bandwidth} must be a finite number above 0")

    def __call__(self, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a partner for each sample (B,), on the CPU.

        Args:
            target: Real values (B, *).
            generator: A CPU generator; the global one if None.

        Raises:
            ValueError: The target is not floating, or a value is not finite.
        """
        values = _checked_values(target)
        n = len(values)
        if n < 2:
            return torch.arange(n)
        values = values - values.mean(0)
        width = self.bandwidth or math.sqrt(float(values.square().sum()) / n) / 2 or 1.0
        values /= math.sqrt(2) * width
        # -|y[i] - y[j]|^2 but for what is the same in a row.
        log_weight = torch.addmm(-values.square().sum(1), values, values.T, alpha=2)
        log_weight.fill_diagonal_(-math.inf)
        # The nearest one weighs 1, so that nobody is too far from all others.
        return pick((log_weight - log_weight.amax(1, keepdim=True)).float().exp_(), generator)


def _checked_values(target: Tensor) -> Tensor:
    """The targets as (B, D), in float64 on the CPU."""
    if not target.is_floating_point():
        raise ValueError(
            f"pairing 'near-target' needs floating targets (B, *), got {target.dtype}; use "
            "target.float() if its numbers are amounts, another pairing if they are classes"
        )
    values = target.detach().cpu().double().reshape(len(target), -1)
    if not values.isfinite().all():
        bad = int((~values.isfinite()).any(1).sum())
        raise ValueError(
            f"the targets of {bad} of {len(values)} samples are not finite: no distance to them"
        )
    return values
