"""Heads by their kind: what they compute, and which of them are affine."""

import pytest
import torch
from torch import nn

from manifold_mixup.models import CosineHead, MLPHead
from manifold_mixup.models.heads import HEADS, check_head, make_head


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_gives_logits_and_every_parameter_a_gradient(kind: str) -> None:
    """From (B, D) to (B, C), and all that it has is trained."""
    head = make_head(kind, 6, num_classes=4)
    logits = head(torch.randn(5, 6))
    logits.square().sum().backward()

    assert logits.shape == (5, 4)
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


@pytest.mark.parametrize(("kind", "affine"), [("linear", True), ("mlp", False), ("cosine", False)])
def test_only_the_linear_head_is_affine(kind: str, affine: bool) -> None:
    """For the others, mixing features is not the same as mixing logits."""
    head = make_head(kind, 6, num_classes=4).double()
    a, b = torch.randn(2, 5, 6, dtype=torch.float64)
    same = torch.allclose(head(0.3 * a + 0.7 * b), 0.3 * head(a) + 0.7 * head(b), atol=1e-9)

    assert same is affine


def test_the_mlp_head_is_two_linear_maps_around_a_relu() -> None:
    """Its width is what is asked for, 512 by itself."""
    head, features = MLPHead(3, num_classes=2, hidden=7), torch.randn(4, 3)
    hidden = (features @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)

    assert torch.allclose(head(features), hidden @ head.out.weight.T + head.out.bias, atol=1e-6)
    assert head.hidden.out_features == 7
    assert MLPHead(3, num_classes=2).hidden.out_features == 512


def test_the_cosine_head_measures_angles() -> None:
    """Its logits are the scale times the cosine, whatever the lengths."""
    head, features = CosineHead(3, num_classes=2, scale=5), torch.randn(4, 3)
    cosines = nn.functional.cosine_similarity(features[:, None], head.weight[None], dim=2)
    before = head(features)
    with torch.no_grad():
        head.weight.mul_(9)

    assert torch.allclose(before, 5 * cosines, atol=1e-5)
    assert torch.allclose(head(features), before, atol=1e-5)


def test_a_linear_head_is_that_of_torch() -> None:
    """Nothing is to be learned about it."""
    assert type(make_head("linear", 6, num_classes=4)) is nn.Linear


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    """The message names what there is."""
    for refuse in (check_head, lambda kind: make_head(kind, 2, num_classes=2)):
        with pytest.raises(ValueError, match="head='tree' is unknown; choose one of linear, mlp"):
            refuse("tree")


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int]) -> None:
    """The message names the argument and its value."""
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        make_head("linear", *sizes)
