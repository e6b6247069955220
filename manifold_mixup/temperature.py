"""One number that a trained head's logits are divided by, for a confidence that fits."""

import math

import torch.nn.functional as F
from torch import Tensor

# Bounds of the search, far outside of what a head needs.
_LOWEST, _HIGHEST = 0.02, 50.0


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature T for which `logits / T` fit the targets best, in [0.02, 50].

    Above 1 it lowers the confidence of a head, below 1 it raises it; which class is the most
    probable never changes. Fit it on validation samples, never on those that are tested. Its
    logarithm is taken to be normal with a standard deviation of 1 beforehand, as little as a
    sample says, so that a few samples, all of them right, do not make the head infinitely sure.

    Args:
        logits: (n, C), n at least 1.
        target: Class indices (n,).

    Raises:
        ValueError: There are no samples, or a logit is not finite.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]] * 4)
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 2)
        2.21

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
        https://arxiv.org/abs/1706.04599
    """
    from scipy.optimize import minimize_scalar

    if not len(target) or not bool(logits.isfinite().all()):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} give no temperature: expected finite ones of "
            "at least 1 sample"
        )
    logits = logits.double()

    def misfit(log_temperature: float) -> float:
        nll = F.cross_entropy(logits / math.exp(log_temperature), target)
        return float(nll) + log_temperature**2 / (2 * len(target))

    bounds = (math.log(_LOWEST), math.log(_HIGHEST))
    found = minimize_scalar(misfit, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))
