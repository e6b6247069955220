"""The squared error of mixed samples: its optimum is the solution of a linear system."""

import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup.linear_heads.mixes import Mixes
from manifold_mixup.linear_heads.solve import LinearHead
from manifold_mixup.linear_heads.standardized import Standardized


class Ridge:
    """Heads for real values: the mean squared error over K mixes of n samples, as a system.

    Values are mixed as features are. The error is quadratic in the weights and biases, so what
    the samples say is summed up once, for every weight decay.

    Args:
        features: Of n samples.
        target: Their values (n, C).
        mixes: None if nothing is mixed.
        prob: See `MixedRisk.of_classes`.
        clean_weight: See there.
        copies: The features are of the mixed samples themselves, mix after mix, and then of the
            unmixed ones if these count (K n + n); see there.

    Example:
        >>> features = Standardized(torch.tensor([[0.0], [2.0]]).__getitem__, 2)
        >>> head = Ridge(features, torch.tensor([[1.0], [5.0]])).solve(0.0)
        >>> features.to_raw(head.weight, head.bias)
        (tensor([[2.]], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    def __init__(
        self,
        features: Standardized,
        target: Tensor,
        mixes: Mixes | None = None,
        *,
        prob: float = 1.0,
        clean_weight: float = 0.0,
        copies: bool = False,
    ) -> None:
        self._features, self._target = features, target.double()
        width, num_values = features.width + 1, target.shape[1]
        self._squares = torch.zeros(width, width, dtype=torch.float64)
        self._products = torch.zeros(width, num_values, dtype=torch.float64)
        self._norm = torch.zeros((), dtype=torch.float64)
        n, share = len(target), 0.0 if mixes is None else prob
        clean = (1 - share + clean_weight) / (n * num_values)
        mixed = 0.0 if mixes is None else share / (len(mixes) * n * num_values)
        if mixes is not None and copies:
            values = mixes.mixed_target(self._target.T).flatten(1).T
            self._target = torch.cat([values, self._target])[: features.n]
            weight = torch.full((features.n,), clean, dtype=torch.float64)
            weight[: len(values)] = mixed
            self._add(_identity(features.n), weight)
        else:
            self._add(_identity(n), torch.full((n,), clean, dtype=torch.float64))
            if mixes is not None:
                self._add(mixes, torch.full((n,), mixed, dtype=torch.float64))
        for tensor in (self._squares, self._products, self._norm):
            features.summed(tensor)

    def solve(self, weight_decay: float) -> LinearHead:
        """The weights and biases with the least error and penalty; see `solve` of the package."""
        penalty = torch.full((len(self._squares),), weight_decay / 2, dtype=torch.float64)
        penalty[-1] = 0  # the bias
        system = self._squares + penalty.diag()
        if weight_decay:
            whole = torch.cholesky_solve(self._products, torch.linalg.cholesky(system))
        else:  # of several solutions the least
            whole = torch.linalg.lstsq(system, self._products, driver="gelsd").solution
        error = self._norm - (whole * (2 * self._products - self._squares @ whole)).sum()
        return LinearHead(whole[:-1].T, whole[-1], weight_decay, max(float(error), 0.0), 1)

    def _add(self, mixes: Mixes, weight: Tensor) -> None:
        """Add what some mixes say of samples that weigh so much (n,)."""
        features, target = self._features, self._target
        for k in range(len(mixes) if bool(weight.any()) else 0):
            for own in features.own_rows():
                index = torch.arange(own.start, own.stop)
                lam, partner = mixes.lam[k, index, None], mixes.partner[k, index]
                rows = torch.lerp(features.take(partner), features.take(index), lam)
                rows = F.pad(rows, (0, 1), value=1.0)
                weighed = rows.T * weight[index]
                lam = mixes.target_lam[k, index, None]
                values = torch.lerp(target[partner], target[index], lam)
                self._squares += weighed @ rows
                self._products += weighed @ values
                self._norm += (values.square().sum(1) * weight[index]).sum()


def _identity(n: int) -> Mixes:
    lam = torch.ones(1, n, dtype=torch.float64)
    return Mixes(lam, torch.arange(n)[None], lam)
