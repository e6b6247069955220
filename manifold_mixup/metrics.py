"""How good a model is on clean samples, and how honest: accuracy, likelihood, calibration."""

from collections.abc import Sized
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.loading import Images, first_logits, image_loader, model_device
from manifold_mixup.modes import eval_mode
from manifold_mixup.progress import Track, untracked


def evaluate(
    model: nn.Module,
    dataset: Images,
    *,
    batch_size: int = 64,
    workers: int = 0,
    track: Track = untracked,
) -> dict[str, float]:
    """Measure a model in eval mode on clean samples; see `summarize`.

    Args:
        model: Gives logits (B, C); its modes come back as they were.
        dataset: Pairs of an image and a class index.
        batch_size: Samples in a forward pass.
        workers: Processes that load images; 0 loads them in this one.
        track: Shows how far it is.

    Raises:
        ValueError: The data set is empty.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> sorted(evaluate(model, [(torch.randn(4), 0), (torch.randn(4), 1)]))
        ['accuracy', 'calibration_error', 'n', 'nll']
    """
    logits, target = predict_logits(
        model, dataset, batch_size=batch_size, workers=workers, track=track
    )
    return summarize(logits, target)


def predict_logits(
    model: nn.Module,
    dataset: Images,
    *,
    batch_size: int = 64,
    workers: int = 0,
    track: Track = untracked,
    description: str = "evaluate",
) -> tuple[Tensor, Tensor]:
    """The logits (n, C) of every sample in order, and its target (n,), on the CPU."""
    if not len(cast(Sized, dataset)):
        raise ValueError("the data set is empty: nothing to evaluate")
    device = model_device(model)
    loader = image_loader(dataset, batch_size, device=device, workers=workers)
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
        "nll": F.cross_entropy(logits.double(), target).item(),
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
