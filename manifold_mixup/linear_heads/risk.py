"""The mean loss of mixed samples as a function of their logits, and its gradient, written out."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup.linear_heads.mixes import Mixes

Link = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class MixedRisk:
    """Cross entropy, of classes or of labels, over K mixes of n samples.

    Both are linear in the target: with a share `a` of each class and `s` of all of them the loss
    of logits z is ``s * log_partition(z) - a @ z``. What is linear in the logits is mixed once,
    here, whatever the logits are; what is left to be mixed in each evaluation is the partition.

    Attributes:
        link: Logits are those of a softmax over the classes, or of a sigmoid for each label.
        linear: The coefficients of the logits (C, n).
        total: What the partition of each sample counts (1, n), or of each of its labels (C, n);
            None for 1.
        mixes: None if nothing is mixed.
        mixed_weight: Of the partition of a mixed sample.
        clean_weight: Of that of an unmixed one.
    """

    link: Link
    linear: Tensor
    total: Tensor | None
    mixes: Mixes | None
    mixed_weight: float
    clean_weight: float

    @classmethod
    def of_classes(
        cls,
        target: Tensor,
        num_classes: int,
        mixes: Mixes | None = None,
        *,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        prob: float = 1.0,
        clean_weight: float = 0.0,
        copies: bool = False,
    ) -> "MixedRisk":
        """That of `mixed_loss` with cross entropy, all K n samples taken for one batch.

        Args:
            target: Class indices (n,), or probabilities of the classes (n, C).
            num_classes: C.
            mixes: None if nothing is mixed.
            class_weight: Of each class (C,).
            label_smoothing: In [0, 1).
            prob: Share of the risk that is of mixed samples; the rest is of the same unmixed.
            clean_weight: So many times the risk of the unmixed samples is added, as in RegMixup.
            copies: The logits will be of the mixed samples themselves, mix after mix, and then of
                the unmixed ones if these count: of something that is not affine (C, K n + n).

        Example:
            >>> risk = MixedRisk.of_classes(torch.tensor([0, 1]), 2, Mixes.of([Mix(0.5, [1, 0])]))
            >>> risk(torch.zeros(2, 2, dtype=torch.float64))[0]  # log 2
            0.693...
        """
        is_soft = target.ndim == 2
        share = target.double() if is_soft else F.one_hot(target.long(), num_classes).double()
        smooth = share * (1 - label_smoothing) + label_smoothing / num_classes
        counts = torch.ones(len(target), dtype=torch.float64)
        if class_weight is None:
            return cls._of("softmax", smooth.T, None, counts, mixes, prob, clean_weight, copies)
        weight = class_weight.double()
        counts = counts if is_soft else weight[target.long()]
        weighed = (smooth * weight).T
        total = weighed.sum(0, keepdim=True)
        return cls._of("softmax", weighed, total, counts, mixes, prob, clean_weight, copies)

    @classmethod
    def of_labels(
        cls,
        target: Tensor,
        mixes: Mixes | None = None,
        *,
        class_weight: tuple[Tensor, Tensor] | None = None,
        prob: float = 1.0,
        clean_weight: float = 0.0,
        copies: bool = False,
    ) -> "MixedRisk":
        """That of `mixed_loss` with binary cross entropy.

        Args:
            target: How much each sample has of each label (n, C), in [0, 1].
            mixes: None if nothing is mixed.
            class_weight: Of each label where it is there, and where it is not, (C,) each.
            prob: See `of_classes`.
            clean_weight: See there.
            copies: See there.
        """
        share = target.double().T
        counts = torch.full((len(target),), float(len(share)), dtype=torch.float64)
        total = None
        if class_weight is not None:
            there, absent = (weight.double()[:, None] for weight in class_weight)
            share, total = there * share, there * share + absent * (1 - share)
        return cls._of("sigmoid", share, total, counts, mixes, prob, clean_weight, copies)

    @classmethod
    def _of(
        cls,
        link: Link,
        share: Tensor,
        total: Tensor | None,
        counts: Tensor,
        mixes: Mixes | None,
        prob: float,
        clean_weight: float,
        copies: bool,
    ) -> "MixedRisk":
        mixed_share = 0.0 if mixes is None else prob
        clean = (1 - mixed_share + clean_weight) / float(counts.sum())
        if mixes is None or not mixed_share:
            return cls(link, clean * share, total, None, 0.0, clean)
        mixed = mixed_share / float(mixes.mixed_target(counts[None]).sum())
        if copies:
            ones = torch.ones_like(counts)[None] if total is None else total
            parts = [
                torch.cat([mixed * mixes.mixed_target(one).flatten(1), clean * one], 1)
                for one in (share, ones)
            ]
            linear, total = parts if clean else (one[:, : mixes.lam.numel()] for one in parts)
            return cls(link, linear, total, None, 0.0, 1.0)
        linear = clean * share
        for part in mixes.parts(len(share)):
            linear = linear + mixed * part.unmixed(part.mixed_target(share))
        return cls(link, linear, total, mixes, mixed, clean)

    def to(self, like: Tensor) -> "MixedRisk":
        """The same on the device, and in the type, of a tensor."""
        total = None if self.total is None else self.total.to(like)
        mixes = None if self.mixes is None else self.mixes.to(like)
        weights = self.mixed_weight, self.clean_weight
        return MixedRisk(self.link, self.linear.to(like), total, mixes, *weights)

    def __call__(self, logits: Tensor) -> tuple[float, Tensor]:
        """The risk of logits (C, n) of the type of `linear`, and its gradient (C, n)."""
        if self.mixes is None:
            return self._unmixed(logits)
        value = -float((self.linear * logits).sum(dtype=torch.float64))
        gradient = -self.linear
        if self.clean_weight:
            own, slope = self._partition(logits, self.total)
            value += self.clean_weight * own
            gradient.add_(slope, alpha=self.clean_weight)
        for part in self.mixes.parts(len(logits)):
            total = None if self.total is None else part.mixed_target(self.total)
            own, slope = self._partition(part.mixed(logits), total)
            value += self.mixed_weight * own
            gradient.add_(part.unmixed(slope), alpha=self.mixed_weight)
        return value, gradient

    def _unmixed(self, logits: Tensor) -> tuple[float, Tensor]:
        """The same, from logarithms of probabilities: a small loss stays exact in float32."""
        total = self.clean_weight * (1 if self.total is None else self.total)
        if self.link == "softmax":
            log_p = logits.log_softmax(0)
            value = -(self.linear * log_p).sum(dtype=torch.float64)
            return float(value), log_p.exp_().mul_(total).sub_(self.linear)
        absent = total - self.linear
        losses = self.linear * F.softplus(-logits) + absent * F.softplus(logits)
        return float(losses.sum(dtype=torch.float64)), logits.sigmoid() * total - self.linear

    def curvature(self) -> Tensor:
        """About how steep the risk is in the logits of each class: p (1 - p), mean of all (C,)."""
        n = self.linear.shape[1]
        clean = float(n if self.total is None else self.total.mean(0).sum())
        mixed = 0.0 if self.mixes is None else len(self.mixes) * clean
        weight = self.mixed_weight * mixed + self.clean_weight * clean
        p = (self.linear.sum(1) / weight).clamp(0.02, 0.98)
        return weight * p * (1 - p)

    def _partition(self, logits: Tensor, total: Tensor | None) -> tuple[float, Tensor]:
        """The sum of the log partitions of logits (C, *), as often as they count; its slope."""
        if self.link == "softmax":
            slope = logits.log_softmax(0)
            partition = logits[:1] - slope[:1]
            slope.exp_()
        else:
            partition, slope = F.softplus(logits), logits.sigmoid()
        if total is not None:
            partition, slope = partition * total, slope * total
        return float(partition.sum(dtype=torch.float64)), slope


def balanced_weights(target: Tensor, num_classes: int) -> Tensor:
    """Weights by which every class counts the same (C,): n / (C n_c); 0 where there is none.

    Args:
        target: Class indices (n,), or probabilities (n, C).
        num_classes: C.

    Example:
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000], dtype=torch.float64)
    """
    shares = target.double() if target.ndim == 2 else F.one_hot(target.long(), num_classes)
    counts = shares.double().sum(0)
    return (len(target) / (num_classes * counts)).where(counts > 0, 0)
