"""scripts/zoo.py sees what is wrong: its checks pass on what is right, and fail on what is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from torch import nn

from manifold_mixup import Mix, cut, replace_head
from studies import zoo_checks
from studies.zoo_models import Subject


@pytest.fixture
def subject() -> Subject:
    """A small ResNet in float64, and six images."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").double().eval()
    return Subject(model, torch.randn(6, 3, 32, 32, dtype=torch.float64))


class MixesNothing:
    """Draws a mix, and leaves the features as they are."""

    def __init__(self, model: nn.Module, layer: str, **options: Any) -> None:
        pass

    def __enter__(self) -> "MixesNothing":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    @contextmanager
    def __call__(self, target: torch.Tensor) -> Iterator[Mix]:
        """A step that does nothing."""
        yield Mix.sample(len(target), alpha=1.0)


def test_what_is_right_passes(subject: Subject) -> None:
    """Mix, cut, store and head of a model that all of it fits."""
    for check in (zoo_checks.check_mix, zoo_checks.check_cut, zoo_checks.check_store):
        assert check(subject, "layer3") < 1e-9
    assert zoo_checks.check_head(subject, "mlp") == 0


def test_a_mix_that_is_not_there_is_seen(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets that are mixed alone are a silent error."""
    monkeypatch.setattr(zoo_checks, "ManifoldMixup", MixesNothing)

    with pytest.raises(AssertionError, match="off from the mix by hand"):
        zoo_checks.check_mix(subject, "layer3")


def test_a_layer_that_is_bypassed_is_seen(subject: Subject) -> None:
    """One inside a residual branch does not carry the whole signal."""
    inside = [name for name, _ in subject.model.named_modules() if name.endswith("0.conv1")][-1]

    with (
        pytest.warns(UserWarning, match="bypass"),
        pytest.raises(AssertionError, match="listed as mixable"),
    ):
        zoo_checks.check_mix(subject, inside)


def test_halves_that_are_almost_the_whole_are_seen(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal means equal to the bit."""

    def almost(*args: Any) -> tuple[nn.Module, nn.Module]:
        prefix, tail = cut(*args)
        tail.register_forward_hook(lambda module, given, output: output * (1 + 1e-14))
        return prefix, tail

    monkeypatch.setattr(zoo_checks, "cut", almost)

    with pytest.raises(AssertionError, match="the halves are"):
        zoo_checks.check_cut(subject, "layer3")


def test_a_refused_call_that_changes_something_is_seen(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that was replaced before the refusal is a silent error."""

    def careless(model: nn.Module, classes: int, **options: Any) -> None:
        replace_head(model, classes)
        raise ValueError("no")

    monkeypatch.setattr(zoo_checks, "replace_head", careless)

    with pytest.raises(AssertionError, match="a module was replaced"):
        zoo_checks.check_head(subject, "linear")
