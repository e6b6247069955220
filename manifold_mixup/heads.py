"""Heads for pooled features: linear, MLP and cosine, from features (B, D) to logits (B, C)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = ("linear", "mlp", "cosine")


class MLPHead(nn.Module):
    """One hidden layer: features -> linear -> ReLU -> linear -> logits.

    Unlike a linear head it is not affine, so that mixed features are more than mixed logits. The
    hidden width is that of fastai's `create_head`; BatchNorm and dropout, which stand there too,
    are left out: mixing is the regularizer here, and statistics of mixed batches would not be
    those of clean ones.

    Args:
        in_features: Width of the features D.
        num_classes: Number of classes C.
        hidden: Width of the hidden layer.

    Example:
        >>> MLPHead(8, num_classes=3)(torch.randn(5, 8)).shape
        torch.Size([5, 3])

    Reference:
        Howard and Gugger, fastai: A Layered API for Deep Learning, Information 11(2), 2020.
        https://arxiv.org/abs/2002.04688
    """

    def __init__(self, in_features: int, num_classes: int, *, hidden: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.out = nn.Linear(hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        logits: Tensor = self.out(F.relu(self.hidden(features)))
        return logits


class CosineHead(nn.Module):
    """The angle between features and one direction for each class, times a scale.

        logits[i, c]  =  scale * cos(features[i], weight[c])

    The length of the features does not count, and there is no bias. Cosines alone lie in
    [-1, 1], which no softmax makes a confident prediction of: the scale is trained with the rest.

    Args:
        in_features: Width of the features D.
        num_classes: Number of classes C.
        scale: Where the scale begins, above 0; 10 as in the paper's own code.

    Example:
        >>> head, features = CosineHead(8, num_classes=3), torch.randn(5, 8)
        >>> torch.allclose(head(features), head(7 * features), atol=1e-5)
        True

    Reference:
        Gidaris and Komodakis, Dynamic Few-Shot Visual Learning without Forgetting, CVPR 2018,
        section 3.2. https://arxiv.org/abs/1804.09458
    """

    def __init__(self, in_features: int, num_classes: int, *, scale: float = 10.0) -> None:
        super().__init__()
        # Only the directions count: drawn evenly over the sphere, at the length a linear head has.
        self.weight = nn.Parameter(torch.randn(num_classes, in_features) / in_features**0.5)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def make_head(kind: str, in_features: int, num_classes: int) -> nn.Module:
    """Make a new head of one of the `HEADS`.

    Args:
        kind: ``"linear"`` (`torch.nn.Linear`), ``"mlp"`` (`MLPHead`) or ``"cosine"``
            (`CosineHead`).
        in_features: Width of the features D, at least 1.
        num_classes: Number of classes C, at least 1.

    Raises:
        ValueError: The kind is unknown, or a number is below 1.

    Example:
        >>> make_head("linear", 512, num_classes=37)
        Linear(in_features=512, out_features=37, bias=True)
    """
    check_head(kind)
    for name, value in (("in_features", in_features), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if kind == "linear":
        return nn.Linear(in_features, num_classes)
    if kind == "mlp":
        return MLPHead(in_features, num_classes)
    return CosineHead(in_features, num_classes)


def check_head(kind: str) -> None:
    """Raise a ValueError that lists the `HEADS` unless this is one of them."""
    if kind not in HEADS:
        raise ValueError(f"head={kind!r} is unknown; choose one of {', '.join(HEADS)}")
