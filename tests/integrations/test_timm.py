"""timm: what its training script calls `mixup_fn`, for a layer."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from nets import hooks_on
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from manifold_mixup import Mix
from manifold_mixup.integrations.timm import ManifoldMixupFn

C = 7


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small model of timm's."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=C)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Mix:
    """The mix that every step draws: timm's own partners, and one lam."""
    mix, sample = Mix(0.7, [5, 4, 3, 2, 1, 0]), Mix.sample

    def draw(n: int, *args: Any, **options: Any) -> Mix:
        return mix if n == len(mix) else sample(n, *args, **options)

    monkeypatch.setattr(Mix, "sample", draw)
    return mix


@pytest.fixture
def mixup_fn(model: nn.Module, drawn: Mix) -> Iterator[ManifoldMixupFn]:
    """Attached to the model's last block, and detached."""
    model.train()
    fn = ManifoldMixupFn(model, "layer4", C, alpha=1.0)
    yield fn
    fn.detach()
    assert not hooks_on(model)


def batch() -> tuple[Tensor, Tensor]:
    """Images and classes."""
    return torch.randn(6, 3, 96, 96), torch.tensor([0, 1, 2, 3, 4, 6])


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What the layer returns, in eval mode."""
    seen: list[Tensor] = []
    handle = model.get_submodule("layer4").register_forward_hook(lambda m, a, o: seen.append(o))
    model(images)
    handle.remove()
    return seen[0]


def test_targets_are_those_of_timm(mixup_fn: ManifoldMixupFn, model: nn.Module) -> None:
    """For the same lam and partners; the images are not touched."""
    images, target = batch()
    before = images.clone()

    same, mixed = mixup_fn(images, target)
    model(images)

    assert same is images
    assert torch.equal(images, before)
    assert torch.allclose(mixed, mixup_target(target, C, 0.7, smoothing=0.1))


def test_next_forward_pass_is_mixed_and_only_that(
    mixup_fn: ManifoldMixupFn, model: nn.Module
) -> None:
    """The head gets the mixed features, then those of evaluation as they are."""
    images, target = batch()
    model.eval()
    clean = features(model, images)

    mixup_fn(images, target)
    mixed, after = model(images), model(images)

    blended = 0.7 * clean + 0.3 * clean[[5, 4, 3, 2, 1, 0]]
    assert torch.allclose(mixed, model.forward_head(blended), atol=1e-5)
    assert torch.allclose(after, model.forward_head(clean), atol=1e-5)


def test_a_training_loop_of_timm_learns(model: nn.Module) -> None:
    """With its loss for soft targets, in place of its own Mixup; turned off as its script does."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=C)
    fn = ManifoldMixupFn(net, "layer4", C, label_smoothing=0.0, alpha=0.4)
    images, target = batch()
    loss_fn, optimizer = SoftTargetCrossEntropy(), torch.optim.SGD(net.parameters(), 0.05)
    for step in range(12):
        fn.mixup_enabled = step < 6
        x, y = fn(images, target)
        loss = loss_fn(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fn.detach()

    assert loss.item() < 1.0


def test_model_that_is_not_called_is_told(mixup_fn: ManifoldMixupFn, model: nn.Module) -> None:
    """Targets would have been mixed alone."""
    images, target = batch()
    mixup_fn(images, target)

    with pytest.raises(RuntimeError, match="a step is open already"):
        mixup_fn(images, target)

    model(images)


def test_wrapped_model_is_mixed(drawn: Mix) -> None:
    """As timm's script compiles it."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=C).eval()
    images, target = batch()
    clean = features(net, images)
    compiled: Any = torch.compile(net, backend="eager")
    fn = ManifoldMixupFn(compiled, "layer4", C)

    fn(images, target)
    mixed = compiled(images)
    fn.detach()

    blended = 0.7 * clean + 0.3 * clean[[5, 4, 3, 2, 1, 0]]
    assert torch.allclose(mixed, net.forward_head(blended), atol=1e-5)


def test_it_takes_the_place_of_timm_s_mixup() -> None:
    """What the script reads and writes of it is there."""
    theirs = Mixup(num_classes=C)
    net = timm.create_model("test_resnet", num_classes=C)
    mine = ManifoldMixupFn(net, "layer4", C)

    shared = ("mixup_enabled", "label_smoothing", "num_classes")
    assert {n: getattr(mine, n) for n in shared} == {n: getattr(theirs, n) for n in shared}
    mine.detach()
