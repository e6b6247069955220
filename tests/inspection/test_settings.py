"""What modules look up on themselves while they run is noted, and the model stays as it is."""

from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from manifold_mixup.inspection import describe_settings, settings_read


class Model(nn.Module):
    """Reads some of its settings, writes one, and leaves one alone."""

    scale = 2

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.unread, self.count = (1, 2), "unread", 0
        self.seen: list[int] = []
        self.body = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """A function of the settings."""
        self.count += 1
        self.seen.append(self.count)
        return self.body(x * self.scale + self.shift[0])


def test_what_is_read_is_noted() -> None:
    """By module and name, those of the class too; not what a pass changes."""
    model, x = Model(), torch.ones(2, 3)
    with settings_read(model) as settings:
        model(x)

    assert settings == {"": {"scale": "2", "shift": "tuple(1, 2)"}, "body": {"dim": "1"}}
    assert describe_settings(model, settings) == settings
    model.shift, model.body = (1, 3), nn.Identity()
    changed = {"": {"scale": "2", "shift": "tuple(1, 3)"}, "body": {"dim": ""}}
    assert describe_settings(model, settings) == changed


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "ghostnet_100"])
def test_model_computes_and_stays_what_it_is(name: str) -> None:
    """The same bits inside the block, the same classes after it, whatever happens."""
    model, x = timm.create_model(name).eval(), torch.randn(2, 3, 224, 224)
    kinds = [type(module) for module in model.modules()]
    with torch.no_grad(), settings_read(model) as settings:
        inside = model(x)
    with torch.no_grad():
        assert torch.equal(inside, model(x))
    assert [type(module) for module in model.modules()] == kinds
    assert describe_settings(model, settings) == settings
    with pytest.raises(ZeroDivisionError), settings_read(model):
        raise ZeroDivisionError
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        (True, 1),
        ("a", "b"),
        ((1, 2), [1, 2]),
        ({"a": [1]}, {"a": [2]}),
        (torch.float16, torch.float32),
        (torch.relu, torch.tanh),
        (partial(torch.sum, dim=1), partial(torch.sum, dim=2)),
        (list(range(100)), list(range(101))),
        (None, False),
    ],
)
def test_different_settings_have_different_texts(one: object, other: object) -> None:
    """And the same one has the same."""
    texts = []
    for value in (one, other, one):
        model = Model()
        model.unread = value
        texts.append(describe_settings(model, {"": {"unread": ""}})[""]["unread"])

    assert texts[0] == texts[2] != texts[1]
    assert all(texts)


def test_a_set_is_told_in_one_order() -> None:
    """Whatever order its members happen to have."""
    model, texts = Model(), set()
    for value in ({"b", "a", "c"}, {"c", "b", "a"}):
        model.unread = value
        texts.add(describe_settings(model, {"": {"unread": ""}})[""]["unread"])
    assert len(texts) == 1
