"""What logits and targets come to: accuracy, likelihood, calibration and their like."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# The class index of samples without a class, which cross entropy ignores.
IGNORED = -100


def labelled(target: Tensor) -> Tensor:
    """The targets of classes without those that are ignored.

    Example:
        >>> labelled(torch.tensor([2, -100]))
        tensor([2])
    """
    return target[target != IGNORED] if target.ndim == 1 else target


def of_known_class(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and targets of classes without those that are ignored."""
    return (logits[target != IGNORED] if target.ndim == 1 else logits), labelled(target)


def summarize(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Accuracy, negative log likelihood and signed calibration error of logits.

    Args:
        logits: (n, C).
        target: Class indices (n,).

    Returns:
        ``accuracy`` in [0, 1]; ``nll``, the mean negative log likelihood in nats;
        ``calibration_error``, the mean confidence minus the accuracy, in [-1, 1]: above 0 the
        model is over-confident, below 0 under-confident; ``n``, the number of samples.

    Raises:
        ValueError: The targets are no class indices.

    Example:
        >>> summarize(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))["accuracy"]
        0.5
    """
    if target.ndim != 1 or target.is_floating_point():
        raise ValueError(
            f"targets of shape {tuple(target.shape)} and dtype {target.dtype}: expected class "
            "indices (n,)"
        )
    confidence, predicted = logits.double().softmax(1).max(1)
    accuracy = (predicted == target).double().mean().item()
    return {
        "accuracy": accuracy,
        "nll": F.cross_entropy(logits.double(), target.long()).item(),
        "calibration_error": confidence.mean().item() - accuracy,
        "n": len(target),
    }


def reliability(
    logits: Tensor, target: Tensor, *, bins: int = 10
) -> tuple[list[float], list[float]]:
    """Mean confidence and accuracy of the samples in each bin of confidence, empty ones left out.

    Args:
        logits: (n, C).
        target: Class indices (n,).
        bins: Number of equal steps that confidence, from 0 to 1, is cut into.
    """
    from sklearn.calibration import calibration_curve

    confidence, predicted = logits.double().softmax(1).max(1)
    # Rounding may leave a softmax a hair above 1, where no bin is.
    confidence = confidence.clamp(max=1)
    correct = (predicted == target).long()
    accuracy, mean = calibration_curve(
        correct.numpy(), confidence.numpy(), n_bins=bins, pos_label=1
    )
    return mean.tolist(), accuracy.tolist()


def label_scores(
    logits: Tensor, target: Tensor, thresholds: Tensor, classes: Sequence[str]
) -> dict[str, Any]:
    """How well the labels of samples are found, each by itself.

    Args:
        logits: (n, C).
        target: 1 where a sample has a label, 0 where not, (n, C); soft ones count from 0.5 on.
        thresholds: The probability from which on a label is predicted (C,).
        classes: Names of the labels.

    Returns:
        ``mean_average_precision``, over the labels that a sample has at all, None if none is;
        ``f1``, the mean over all labels of ``f1_by_class``, which is 0 for a label that no sample
        has; ``nll``, the mean binary cross entropy of a label in nats; ``n``, the number of
        samples. Of a single label also ``accuracy``, at the threshold, and ``auroc``, the area
        under the ROC curve, None where all samples have the label, or none.

    Example:
        >>> logits, target = torch.tensor([[2.0], [-1.0], [1.0]]), torch.tensor([[1], [0], [0]])
        >>> scores = label_scores(logits, target, torch.tensor([0.5]), ["cat"])
        >>> scores["mean_average_precision"], round(scores["f1"], 3)
        (1.0, 0.667)
    """
    from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

    probability, truth = logits.double().sigmoid(), _is_there(target)
    found = (probability >= thresholds.double()).long()
    precisions = [
        binary_average_precision(probability[:, c], truth[:, c]).item()
        for c in truth.any(0).nonzero().flatten().tolist()
    ]
    f1 = [binary_f1_score(found[:, c], truth[:, c]).item() for c in range(truth.shape[1])]
    scores = {
        "mean_average_precision": sum(precisions) / len(precisions) if precisions else None,
        "f1": sum(f1) / len(f1),
        "f1_by_class": dict(zip(classes, f1, strict=True)),
        "nll": F.binary_cross_entropy_with_logits(logits.double(), target.double()).item(),
        "n": len(target),
    }
    return scores | (_binary_scores(probability, truth, found) if truth.shape[1] == 1 else {})


def _binary_scores(probability: Tensor, truth: Tensor, found: Tensor) -> dict[str, Any]:
    """What a single label has besides: how often it is right, and how well it is ranked."""
    from torchmetrics.functional.classification import binary_accuracy, binary_auroc

    varies = bool((truth != truth[0]).any())
    return {
        "accuracy": binary_accuracy(found, truth).item(),
        "auroc": binary_auroc(probability, truth).item() if varies else None,
    }


def _is_there(target: Tensor) -> Tensor:
    return (target >= 0.5).long()


def value_scores(predicted: Tensor, target: Tensor) -> dict[str, Any]:
    """How near predicted values come to true ones, in their own unit.

    Args:
        predicted: (n, D).
        target: (n, D).

    Returns:
        ``r2``, the mean over the D of the share of the variance that is explained, None where
        the true values do not vary; ``mae`` and ``rmse``, the mean absolute error and the root of
        the mean squared one, over all numbers; ``n``, the number of samples.

    Example:
        >>> value_scores(torch.tensor([[1.0], [4.0]]), torch.tensor([[1.0], [3.0]]))["mae"]
        0.5
    """
    from torchmetrics.functional.regression import (
        mean_absolute_error,
        mean_squared_error,
        r2_score,
    )

    predicted, target = predicted.double().contiguous(), target.double().contiguous()
    varies = bool((target != target[0]).any(0).all())
    return {
        "r2": r2_score(predicted, target).item() if varies else None,
        "mae": mean_absolute_error(predicted, target).item(),
        "rmse": mean_squared_error(predicted, target, squared=False).item(),
        "n": len(target),
    }


def show_quality(quality: str, value: float | None) -> str:
    """A quality as a percentage, R2 as a number; "undefined" where it is.

    Example:
        >>> show_quality("accuracy", 0.935), show_quality("r2", None)
        ('93.5%', 'undefined')
    """
    if value is None:
        return "undefined"
    return f"{value:.3f}" if quality == "r2" else f"{value:.1%}"


def best_thresholds(logits: Tensor, target: Tensor) -> list[float]:
    """For each label the probability from which on to predict it, so that F1 is highest.

    Candidates are 0.5 and the middles between neighbouring probabilities. Of equally good ones
    that nearest to 0.5 is taken, so 0.5 itself where it is among them, or where no sample has the
    label.

    Args:
        logits: (n, C), of samples that are not trained on.
        target: 1 where a sample has a label, 0 where not, (n, C).

    Example:
        >>> best_thresholds(torch.tensor([[-1.0], [-2.0], [-3.0]]), torch.tensor([[1], [1], [0]]))
        [0.08331...]
    """
    columns = zip(logits.double().sigmoid().unbind(1), _is_there(target).unbind(1), strict=True)
    return [_best_threshold(*column) for column in columns]


def _best_threshold(probability: Tensor, truth: Tensor) -> float:
    if not truth.any():
        return 0.5
    edges = torch.cat([probability.new_zeros(1), torch.unique(probability)])
    middles = (edges[1:] + edges[:-1]) / 2
    candidates = torch.cat([middles, probability.new_tensor([0.5])])
    order = probability.argsort()
    # How many samples, and how many with the label, lie below each candidate.
    below = torch.searchsorted(probability[order], candidates)
    with_label = torch.cat([truth.new_zeros(1), truth[order].cumsum(0)])[below]
    hits = truth.sum() - with_label
    f1 = 2 * hits / (truth.sum() + len(truth) - below)
    best = candidates[f1 == f1.max()]
    return float(best[(best - 0.5).abs().argmin()])


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
