"""The ways to solve for a head that are compared: ours, scikit-learn's, with other minimizers."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.head_features import Given
from manifold_mixup.linear_heads import LinearHead, MixedRisk, Standardized, draw_mixes, solve

ALPHA, MIXES = 0.4, 16
# What `train_head` asks of the heads of a path, and of the one that it keeps.
PATH, EXACT = 1e-6, 1e-11
# What products in float32 can tell apart; below it `solve` goes on in float64.
_IN_FLOAT32 = 1e-7


@dataclass(frozen=True)
class Problem:
    """Features as they are, and what their head is solved for, without mixing or with."""

    given: Given
    decay: float
    is_mixed: bool = False

    def rows(self) -> Standardized:
        """The features, ready for products."""
        rows = Standardized(self.given.features.__getitem__, len(self.given.features))
        rows.principal  # noqa: B018 - computed when it is first asked for
        return rows

    def risk(self) -> MixedRisk:
        """What is minimized, with its mixes."""
        target, num_classes = self.given.target, self.given.num_classes
        mixes = draw_mixes(MIXES, len(target), ALPHA, target=target) if self.is_mixed else None
        return MixedRisk.of_classes(target, num_classes, mixes)

    def solve(self, tolerance: float, rows: Standardized | None = None) -> LinearHead:
        """Our head, also from rows that are there already."""
        is_precise = tolerance < _IN_FLOAT32
        rows = rows or self.rows()
        return solve(rows, self.risk(), self.decay, tolerance=tolerance, precise=is_precise)

    def path(self, decays: list[float], rows: Standardized | None = None) -> int:
        """Our heads of some decays, each from the one before; how many evaluations they take."""
        rows, risk, head, evaluations = rows or self.rows(), self.risk(), None, 0
        for decay in decays:
            head = solve(rows, risk, decay, head, tolerance=PATH)
            evaluations += head.evaluations
        return evaluations

    def objective(self, weight: Tensor, bias: Tensor) -> float:
        """That of a head for standardized features, in float64."""
        features = standardize(self.given.features.double())
        weight, bias = weight.double(), bias.double()
        value, _ = self.risk()(weight @ features.T + bias[:, None])
        return value + self.decay / 2 * float(weight.square().sum())

    def objective_of(self, head: LinearHead, rows: Standardized) -> float:
        """That of one of our heads."""
        weight, bias = rows.to_raw(head.weight, head.bias)
        return self.objective(weight * rows.scale, bias + weight @ rows.mean)

    def least(self, rows: Standardized) -> float:
        """The objective of the optimum, to more digits than any way is asked for."""
        return self.objective_of(self.solve(1e-13, rows), rows)


def standardize(features: Tensor) -> Tensor:
    """What `Standardized` does to features."""
    return (features - features.mean(0)) / features.std(0, correction=0).mean()


def fit(problem: Problem, tolerance: float, rows: Tensor) -> Any:
    """scikit-learn's head, with the same penalty."""
    penalty = 1 / (problem.decay * len(rows))
    model = LogisticRegression(C=penalty, tol=tolerance, max_iter=10_000)
    return model.fit(rows.numpy(), problem.given.target.numpy())


def loosest(solved: Callable[[float], float], limit: float) -> float:
    """The largest tolerance, in half decades, with which an objective is at most the limit."""
    tolerances = [10 ** (-half / 2) for half in range(4, 27)]
    return next(t for t in tolerances if solved(t) <= limit or t == tolerances[-1])


def minimize_by_torch(
    function: Callable[[Any], tuple[float, Any]], start: Any, **options: Any
) -> SimpleNamespace:
    """What SciPy's `minimize` does, by PyTorch's L-BFGS: to stand in for it."""
    variables = torch.from_numpy(start).clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [variables],
        max_iter=options["options"]["maxiter"],
        max_eval=options["options"]["maxfun"],
        tolerance_grad=0,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, gradient = function(variables.detach().numpy())
        variables.grad = torch.from_numpy(gradient)
        options["callback"](None)
        return value

    with suppress(StopIteration):
        optimizer.step(closure)
    return SimpleNamespace(x=variables.detach().numpy())


def as_they_are(rows: Standardized) -> Standardized:
    """Rows whose variables are not changed but by one number."""
    variance = rows.take(torch.arange(rows.n)).square().mean()
    none = torch.zeros(rows.width, 0, dtype=torch.float64)
    rows.principal = none, none[0], float(variance)
    return rows
