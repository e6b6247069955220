"""What is given in another form than expected: one clear line, with what to do."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import small_net
from torch import nn

from manifold_mixup import (
    ManifoldMixup,
    Mix,
    cut,
    freeze,
    layer_table,
    mixed_loss,
    unfreeze,
)

# Values of a mix

TARGET = torch.tensor([0, 1])
MIXES: dict[str, tuple[Callable[[], Any], str]] = {
    "lam of text": (lambda: Mix("a", [1, 0]), "lam='a' must hold numbers"),
    "no lam": (lambda: Mix(None, [1, 0]), "lam=None must hold numbers"),
    "partners of text": (lambda: Mix(0.5, "ab"), "partner='ab' must hold numbers"),
    "ragged partners": (lambda: Mix(0.5, [[1], [1, 0]]), "must hold numbers"),
    "a list": (lambda: Mix(0.5, [1, 0])([1, 2]), "cannot mix a list: expected a tensor (B, *)"),
    "an array": (lambda: Mix(0.5, [1, 0])(np.ones(2)), "cannot mix a ndarray: expected a tensor"),
    "nothing": (lambda: Mix(0.5, [1, 0])(None), "cannot mix a NoneType: expected a tensor"),
    "alpha of text": (lambda: Mix.sample(4, alpha="x"), "alpha='x' must be a number, at least 0"),
    "no alpha": (lambda: Mix.sample(4, alpha=None), "alpha=None must be a number, at least 0"),
    "n of text": (lambda: Mix.sample("4"), "n='4' must be a number of samples"),
    "half a sample": (lambda: Mix.sample(4.5), "n=4.5 must be a number of samples"),
    "targets for n": (lambda: Mix.sample(TARGET), "must be a number of samples"),
    "a seed": (lambda: Mix.sample(4, generator=3), "generator=3 must be a torch.Generator"),
    "lam for the mix": (
        lambda: mixed_loss(torch.randn(2, 3), TARGET, 0.5),
        "mix must be a Mix, got a float",
    ),
    "no mix": (
        lambda: mixed_loss(torch.randn(2, 3), TARGET, None),
        "mix must be a Mix, got a NoneType",
    ),
}


@pytest.mark.parametrize("name", MIXES)
def test_wrong_part_of_a_mix_is_named(name: str) -> None:
    """With the value that it has."""
    call, message = MIXES[name]

    with pytest.raises(TypeError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("alpha", [1, np.float32(0.5), torch.tensor(0.5)])
def test_numbers_of_other_libraries_are_numbers(alpha: Any) -> None:
    """An alpha read from anywhere draws what the same number in Python draws."""
    draws = [
        Mix.sample(np.int64(4), alpha=value, generator=torch.Generator().manual_seed(0))
        for value in (alpha, float(alpha))
    ]

    torch.testing.assert_close(draws[0].lam, draws[1].lam)


# Models

MODELS: list[tuple[Any, str]] = [
    ("resnet18", "model is the name 'resnet18': load it, as in load_backbone('resnet18')"),
    (nn.Linear, "model is the class Linear: expected one made of it"),
    (None, "model is a NoneType: expected a torch.nn.Module"),
    ({"fc.weight": TARGET}, "model is a dict: expected a torch.nn.Module"),
]
USES: dict[str, Callable[[Any], Any]] = {
    "ManifoldMixup": lambda model: ManifoldMixup(model, "layer4"),
    "freeze": freeze,
    "unfreeze": unfreeze,
    "cut": lambda model: cut(model, "layer4"),
    "layer_table": layer_table,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("model", "message"), MODELS)
def test_what_is_no_model_is_told_how_to_become_one(use: str, model: Any, message: str) -> None:
    """Wherever one is taken."""
    with pytest.raises(TypeError, match=re.escape(message)):
        USES[use](model)


def test_exceptions_may_come_one_by_one_and_numbers_are_none() -> None:
    """What is left out of freezing are modules or names."""
    model = small_net()

    freeze(model, except_=(module for module in [model.head]))
    with pytest.raises(TypeError, match="except_=3: expected modules of the model"):
        freeze(model, except_=3)

    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
