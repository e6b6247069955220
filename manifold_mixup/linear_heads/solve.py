"""The optimum of a risk: L-BFGS on logits that are an affine function of the features."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.linear_heads.risk import MixedRisk
from manifold_mixup.linear_heads.standardized import Products, Standardized

_EVALUATIONS = 5000
# About the curvature at the optimum, as a share of that of a head that only knows how frequent
# the classes are.
_FITTED = 0.25
# An objective that may as well be 0.
_TINY = 1e-12
# What products in float32 can tell apart of an objective.
_IN_FLOAT32 = 1e-7


@dataclass(frozen=True)
class LinearHead:
    """A head for standardized features, and what it came to.

    Attributes:
        weight: (C, width), in float64 on the CPU.
        bias: (C,).
        weight_decay: The weight of half the squared norm of `weight`.
        risk: The mean loss over all mixes, without the penalty.
        evaluations: How often the risk was computed.
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    risk: float
    evaluations: int

    @property
    def objective(self) -> float:
        """What is minimized: the risk and the penalty."""
        return self.risk + self.weight_decay / 2 * float(self.weight.square().sum())


def solve(
    features: Standardized,
    risk: MixedRisk,
    weight_decay: float,
    start: LinearHead | None = None,
    *,
    tolerance: float = 1e-6,
    precise: bool = False,
) -> LinearHead:
    """Minimize a risk plus half the weight decay times the squared norm of the weights.

    Variables are changed so that the curvature is about 1 in every direction, which changes
    nothing of the optimum: half the squared gradient is then about what is left to gain.

    Args:
        features: Of n samples.
        risk: Of their logits.
        weight_decay: At least 0.
        start: Where to begin, such as the head of another decay; None for zeros.
        tolerance: Stop when half the squared gradient is below so much of the objective.
        precise: Go on with products in float64 from where float32 ends.

    Reference:
        Liu and Nocedal, On the limited memory BFGS method for large scale optimization,
        Mathematical Programming 1989. https://doi.org/10.1007/BF01589116
    """
    even = _even(features, risk, weight_decay)
    origin = start or LinearHead(
        torch.zeros(len(risk.linear), features.width, dtype=torch.float64),
        torch.zeros(len(risk.linear), dtype=torch.float64),
        weight_decay,
        math.inf,
        0,
    )
    variables, evaluations = even.to_even(origin.weight, origin.bias), 0
    stages = [(torch.float32, max(tolerance, _IN_FLOAT32))]
    stages += [(torch.float64, tolerance)] if precise else []
    for dtype, until in stages:
        problem = _Problem(features.products(dtype), risk, weight_decay, even, until)
        variables = problem.minimize(variables)
        evaluations += problem.evaluations
    weight, bias = even.from_even(variables)
    return LinearHead(weight, bias, weight_decay, problem.risk_of(weight, bias), evaluations)


@dataclass(frozen=True)
class _Even:
    """A change of variables: weights shrunk along each direction by what the curvature is there.

    It is linear and can be undone, so that the optimum is the same, however rough the curvature.

    Attributes:
        directions: Those with a scale of their own (width, q); None for each weight's.
        scale: Of each class along them (C, q).
        others: Of each class along all others (C, 1).
        bias: Of each bias (C,).
    """

    directions: Tensor | None
    scale: Tensor
    others: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> "_Even":
        """The same, computed in a type."""
        directions = None if self.directions is None else self.directions.to(dtype)
        scale, others, bias = (one.to(dtype) for one in (self.scale, self.others, self.bias))
        return _Even(directions, scale, others, bias)

    def from_even(self, variables: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (C, width) and biases (C,) of variables (C, width + 1)."""
        return self._stretched(variables[:, :-1], self.scale, self.others), (
            variables[:, -1] * self.bias
        )

    def to_even(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The other way round."""
        inner = self._stretched(weight, 1 / self.scale, 1 / self.others)
        return torch.cat([inner, (bias / self.bias)[:, None]], 1)

    def slope(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The gradient of the variables, from those of weights and biases."""
        return torch.cat(
            [self._stretched(weight, self.scale, self.others), (bias * self.bias)[:, None]], 1
        )

    def _stretched(self, weight: Tensor, scale: Tensor, others: Tensor) -> Tensor:
        if self.directions is None:
            return weight * scale
        along = (weight @ self.directions) * (scale - others)
        return weight * others + along @ self.directions.T


def _even(features: Standardized, risk: MixedRisk, weight_decay: float) -> _Even:
    directions, variance, rest = features.principal
    curvature = _FITTED * risk.curvature().double().cpu()[:, None]
    least = weight_decay + 1e-6 * curvature  # without decay there may be none at all
    return _Even(
        directions,
        (curvature * variance + least).rsqrt(),
        (curvature * rest + least).rsqrt(),
        curvature.flatten().rsqrt(),
    )


class _Problem:
    """The objective as SciPy minimizes it."""

    def __init__(
        self,
        products: Products,
        risk: MixedRisk,
        weight_decay: float,
        even: _Even,
        tolerance: float,
    ) -> None:
        self.products, self.risk = products, risk.to(products.like)
        self.weight_decay, self.tolerance = weight_decay, tolerance
        self.even = even.to(products.dtype)
        self.evaluations, self._left = 0, math.inf

    def minimize(self, variables: Tensor) -> Tensor:
        """The variables of the optimum, from some to begin with."""
        from scipy.optimize import minimize

        shape = variables.shape
        found = minimize(
            lambda x: self._evaluate(torch.from_numpy(x).view(shape)),
            variables.flatten().numpy(),
            jac=True,
            method="L-BFGS-B",
            callback=self._stop,
            options={"maxfun": _EVALUATIONS, "maxiter": _EVALUATIONS, "ftol": 0, "gtol": 0},
        )
        return torch.from_numpy(found.x).view(shape)

    def risk_of(self, weight: Tensor, bias: Tensor) -> float:
        """The mean loss of a head, without the penalty."""
        return self.risk(self.products.logits(weight, bias))[0]

    def _evaluate(self, variables: Tensor) -> tuple[float, Any]:
        weight, bias = self.even.from_even(variables.to(self.products.dtype))
        value, gradient = self.risk(self.products.logits(weight, bias))
        slope = self.products.slope(gradient).cpu().add_(weight, alpha=self.weight_decay)
        squares = float(weight.square().sum(dtype=torch.float64))
        objective = value + self.weight_decay / 2 * squares
        even = self.even.slope(slope, gradient.sum(1).cpu()).double()
        self.evaluations += 1
        self._left = float(even.square().sum()) / 2 / max(objective, _TINY)
        return objective, even.flatten().numpy()

    def _stop(self, intermediate_result: Any) -> None:
        """End at the last point that was evaluated, which the line search has just accepted."""
        if self._left <= self.tolerance:
            raise StopIteration
