"""Heads for pooled features: linear, MLP and cosine, from features (B, D) to logits (B, C)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.models.backbone import _HEADS, _classifier_names, _resized

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


def replace_head(model: nn.Module, num_classes: int, *, head: str = "linear") -> nn.Module:
    """Replace every classifier of a timm or torchvision model by a new one.

    Args:
        model: The model, changed in place.
        num_classes: Number of classes C, at least 1.
        head: The kind of the new one; see `make_head`.

    Returns:
        The new head; a `ModuleList` of them if the model has several.

    Raises:
        ValueError: No classifier is found, `num_classes` is below 1, or the kind of head is
            unknown or does not fit.

    Example:
        >>> import torchvision
        >>> replace_head(torchvision.models.resnet18(), num_classes=37)
        Linear(in_features=512, out_features=37, bias=True)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    check_head(head)
    before = list(model.parameters())
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(num_classes)  # type: ignore[operator]
    else:
        for name in _classifier_names(model):
            _set_module(model, name, _resized(model.get_submodule(name), num_classes))
    old = {id(parameter) for parameter in before}
    heads = [m for m in model.modules() if {id(p) for p in m.parameters(recurse=False)} - old]
    if not heads:
        raise ValueError(
            f"{type(model).__name__}: no classifier found (looked for {', '.join(_HEADS)}); "
            "replace it yourself and pass it on, as in freeze(model, except_=model.my_head)"
        )
    if head != "linear":
        heads = [_set_head(model, one, head, num_classes) for one in heads]
    for one in heads:  # an older timm makes them in float32 on the CPU
        one.to(before[-1].device, before[-1].dtype)
    return heads[0] if len(heads) == 1 else nn.ModuleList(heads)


def _set_head(model: nn.Module, linear: nn.Module, kind: str, num_classes: int) -> nn.Module:
    """Put a head of another kind in the place of a linear one."""
    name = next(name for name, module in model.named_modules() if module is linear)
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"head={kind!r} takes features (B, D), but {type(model).__name__} ends in a "
            f"{type(linear).__name__} ('{name}'); choose head='linear'"
        )
    head = make_head(kind, linear.in_features, num_classes)
    _set_module(model, name, head)
    return head


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
