"""How good a model is on clean samples, and how honest: accuracy, likelihood, calibration."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.cached import find_tail
from manifold_mixup.loading import (
    Samples,
    count,
    first_logits,
    load_batches,
    model_device,
    model_dtype,
)
from manifold_mixup.modes import eval_mode
from manifold_mixup.progress import Track, untracked
from manifold_mixup.store import FeatureStore


def evaluate(
    model: nn.Module,
    samples: Samples,
    *,
    batch_size: int = 64,
    workers: int = 0,
    track: Track = untracked,
) -> dict[str, float]:
    """Measure a model in eval mode on clean samples; see `summarize`.

    Args:
        model: Gives logits (B, C); its modes come back as they were.
        samples: Pairs of an image and a class index; or a store of the model's features, so that
            only what comes after them runs.
        batch_size: Samples in a forward pass.
        workers: Processes that load images; 0 loads them in this one.
        track: Shows how far it is.

    Raises:
        ValueError: The data set is empty, or the features are not this model's.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> sorted(evaluate(model, [(torch.randn(4), 0), (torch.randn(4), 1)]))
        ['accuracy', 'calibration_error', 'n', 'nll']
    """
    logits, target = predict_logits(
        model, samples, batch_size=batch_size, workers=workers, track=track
    )
    return summarize(logits, target)


def predict_logits(
    model: nn.Module,
    samples: Samples,
    *,
    batch_size: int = 64,
    workers: int = 0,
    track: Track = untracked,
    description: str = "evaluate",
) -> tuple[Tensor, Tensor]:
    """The logits (n, C) of every sample in order, and its target (n,), on the CPU."""
    if not count(samples):
        raise ValueError("the data set is empty: nothing to evaluate")
    if isinstance(samples, FeatureStore):
        model = find_tail(model, samples)
    device = model_device(model)
    dtype = model_dtype(model)
    loader = load_batches(samples, batch_size, device=device, workers=workers, dtype=dtype)
    logits, targets = [], []
    # Not inference_mode: what a model caches in it could not be used in training afterwards.
    with torch.no_grad(), eval_mode(model):
        for images, target in track(loader, len(loader), description):
            output = model(images.to(device, non_blocking=True))
            logits.append(first_logits(output).float())
            targets.append(target)
    return torch.cat(logits).cpu(), torch.cat(targets)


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
