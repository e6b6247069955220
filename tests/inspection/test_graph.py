"""What leads where in an autograd graph, against a walk for each node, and how long that takes."""

import sys
import warnings
from typing import Any

import pytest
import torch
from nets import Residual
from torch import Tensor, nn
from torch.autograd.graph import Node

from manifold_mixup import ManifoldMixup, layer_table
from manifold_mixup.inspection import ancestors
from manifold_mixup.inspection.graph import Dominators


def random_graph(seed: int, n: int = 40) -> tuple[list[Node], list[Node]]:
    """The nodes of n sums of up to three tensors before each, and the nodes of some of them."""
    generator = torch.Generator().manual_seed(seed)
    tensors: list[Tensor] = [torch.ones((), requires_grad=True).clone() for _ in range(2)]
    for _ in range(n):
        near = tensors[-5:]
        chosen = torch.randint(len(near), (1 + seed % 3,), generator=generator).tolist()
        total = sum(near[i] for i in chosen)
        assert isinstance(total, Tensor)
        tensors.append(total.clone())
    nodes = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    return nodes, [nodes[-1], nodes[n // 2]] if seed % 2 else [nodes[-1]]


@pytest.mark.parametrize("seed", range(12))
def test_what_a_node_lets_around_it_is_what_a_walk_around_it_finds(seed: int) -> None:
    """For each two nodes, of whom some lead nowhere, one walk for all says what each own does."""
    nodes, sinks = random_graph(seed)

    dominators = Dominators(sinks)

    for node in nodes:
        around = ancestors(sinks, avoiding={node})
        assert [dominators.is_avoidable(node, start) for start in nodes] == [
            start in around for start in nodes
        ]


def calls_of(function: Any) -> int:
    """How many functions one calls, those of Python's own types included."""
    n = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal n
        n += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return n


def attach_everywhere(model: nn.Module, x: Tensor) -> None:
    """Attach at every layer of a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ManifoldMixup(model, "**", example=x).detach()


@pytest.mark.parametrize("ask", [layer_table, attach_everywhere])
def test_work_grows_with_the_number_of_layers_and_not_with_its_square(ask: Any) -> None:
    """Four times the layers take about four times the work."""
    x = torch.randn(2, 8)
    few, many = (nn.Sequential(*[Residual() for _ in range(n)]) for n in (12, 48))
    ask(few, x)  # what is done once, such as imports

    assert calls_of(lambda: ask(many, x)) < 6 * calls_of(lambda: ask(few, x))
