"""Label weights for imbalanced classes: the rarer class of a pair may get the label alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manifold_mixup.mixing import Mix
from manifold_mixup.partners import read_labels


def rebalance(
    mix: Mix,
    target: Tensor,
    counts: Sequence[int] | Tensor,
    kappa: float = 3.0,
    tau: float = 0.5,
) -> Mix:
    """The mix for the targets of imbalanced classes; the features keep the one that was drawn.

        lam[i]  ->  0       if n[i] / n[j] >= kappa    and      lam[i] < tau
                    1       if n[i] / n[j] <= 1/kappa  and  1 - lam[i] < tau
                    lam[i]  else

    where j is the partner of i, and n the number of training samples of their classes. So where a
    sample of a rare class was mixed with one of a frequent class, and weighs enough, the label is
    the rare one.

    Args:
        mix: What the features were mixed with, of B samples.
        target: Class indices (B,), or one-hot or probabilities (B, C): the largest counts.
        counts: Number of training samples of each class (C,).
        kappa: How many times more samples a class must have to give its label up, above 1.
        tau: How far from the label that is kept the features may be, in [0, 1]; 0 changes nothing.

    Returns:
        The mix for the loss.

    Raises:
        TypeError: `counts` is a dict.
        ValueError: The target tells no classes, is multi-label or of another length than the mix,
            or has a class without a count; or an argument is out of range.

    Example:
        >>> mix = Mix([0.4, 0.6, 0.4, 0.6], [1, 0, 3, 2])
        >>> rebalance(mix, torch.tensor([0, 1, 0, 0]), counts=[900, 100]).lam
        tensor([0.0000, 1.0000, 0.4000, 0.6000], dtype=torch.float64)

        In a loop, only the loss gets it:

        >>> model = nn.Linear(4, 2)
        >>> features, target = torch.randn(4, 4), torch.tensor([0, 1, 0, 0])
        >>> logits = model(mix(features))
        >>> loss = mixed_loss(logits, target, rebalance(mix, target, counts=[900, 100]))

    Reference:
        Chou et al., Remix: Rebalanced Mixup, 2020, section 3. https://arxiv.org/abs/2007.03943
    """
    if not kappa > 1:
        raise ValueError(f"kappa={kappa} must be above 1")
    if not 0 <= tau <= 1:
        raise ValueError(f"tau={tau} must be in [0, 1]")
    if isinstance(counts, Mapping):
        raise TypeError(
            f"counts is a {type(counts).__name__}: expected numbers in the order of the classes, "
            "such as [counts[c] for c in range(num_classes)]"
        )
    own = _class_sizes(target, torch.as_tensor(counts), len(mix)).to(mix.lam)
    other = own[mix.partner]
    lam = mix.lam.masked_fill((own >= kappa * other) & (mix.lam < tau), 0)
    lam = lam.masked_fill((own * kappa <= other) & (1 - mix.lam < tau), 1)
    return Mix(lam, mix.partner)


def _class_sizes(target: Tensor, counts: Tensor, n: int) -> Tensor:
    """How many training samples the class of each sample has (B,)."""
    classes = read_labels(target)
    if classes.shape != (n,):
        raise ValueError(
            f"target of shape {tuple(target.shape)} for a mix of {n} samples: expected one class "
            "for each"
        )
    counts = counts.to(classes.device)
    low, high = int(classes.min()), int(classes.max())
    if counts.ndim != 1 or not 0 <= low <= high < len(counts):
        raise ValueError(
            f"counts of shape {tuple(counts.shape)} for classes from {low} to {high}: expected "
            "the number of training samples of each class (C,)"
        )
    sizes = counts[classes]
    if not bool((sizes > 0).all()):
        wrong = int(classes[~(sizes > 0)][0])
        raise ValueError(
            f"counts: class {wrong} of this batch has {counts[wrong].item()} training samples, "
            "expected at least 1"
        )
    return sizes
