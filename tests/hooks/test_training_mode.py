"""The trial looks at a model as it will run: in training mode, where that is what it is in."""

import copy
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from nets import batch
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup


class Shuffling(nn.Module):
    """A body between a shuffle of the batch and its undoing, in training mode alone."""

    def __init__(self, order: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.order = order
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x, in its order."""
        hidden = torch.tanh(self.stem(x))
        if not self.training:
            return self.head(self.body(hidden))
        order = self.order(len(x))
        return self.head(self.body(hidden[order])[order.argsort()])


ORDERS = [torch.randperm, lambda n: torch.arange(n).flip(0), lambda n: torch.arange(n).roll(1)]


@pytest.mark.parametrize("order", ORDERS, ids=["random", "reversed", "rolled"])
@pytest.mark.parametrize("with_example", [True, False])
def test_layer_in_a_shuffled_batch_is_refused(
    order: Callable[[int], Tensor], with_example: bool
) -> None:
    """Partners would be others than the targets'; layers around the shuffle are mixed."""
    torch.manual_seed(0)
    model, (features, target) = Shuffling(order), batch()
    example = features if with_example else None

    def step(layer: str) -> None:
        with ManifoldMixup(model, layer, example=example, features_only=True)(target):
            model(features)

    with pytest.raises(ValueError, match="'body' returns samples in another order .* training"):
        step("body")
    step("stem")
    ManifoldMixup(model.eval(), "body", example=features).detach()


def test_model_attached_in_evaluation_mode_is_tried_again_where_it_trains() -> None:
    """Its first step in training mode looks, and refuses again in the next."""
    model, (features, target) = Shuffling(torch.randperm).eval(), batch()
    mixup = ManifoldMixup(model, "body", example=features, features_only=True)
    with mixup(target):
        model(features)
    model.train()
    torch.manual_seed(0)

    for _ in range(2):
        with pytest.raises(ValueError, match="in another order"), mixup(target):
            model(features)
    mixup = ManifoldMixup(model.eval(), "stem", example=features)
    model.train()
    with mixup(target) as mix:
        logits = model(features)
    mixup.detach()

    expected = model.head(model.body(torch.tanh(mix(model.stem(features)))))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


class Noisy(nn.Module):
    """Layers whose values are random in training mode, sample by sample, or for all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x."""
        hidden = nn.functional.dropout(self.stem(x), 0.5, training=self.training)
        if self.training:
            with torch.no_grad():  # as momentum encoders do
                self.head.weight.data = self.head.weight.data * 0.5
        kept = torch.rand(len(x), 1) > 0.5 if self.training else 1
        return self.head(torch.relu(self.body(hidden) * kept))


def test_noise_is_no_shuffle_and_the_model_stays_as_it_is() -> None:
    """Dropped values and samples are no reason; weights, statistics, numbers are untouched."""
    model, (features, _) = Noisy(), batch()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()

    ManifoldMixup(model, ["stem", "stem.0", "body"], example=features)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def for_small_images(model: nn.Module) -> nn.Module:
    """An Inception-v3 whose auxiliary head takes smaller images than 299."""
    model.AuxLogits.conv1.conv = nn.Conv2d(128, 768, 1, bias=False)
    return model


def inception() -> nn.Module:
    """Inception-v3, with its auxiliary head."""
    return for_small_images(torchvision.models.inception_v3(num_classes=3, init_weights=False))


def googlenet() -> nn.Module:
    """GoogLeNet, with two auxiliary heads."""
    return torchvision.models.googlenet(num_classes=3, init_weights=False)


@pytest.mark.parametrize(
    ("make", "size", "late", "early", "named"),
    [
        (googlenet, 64, "inception5b", "inception3b", "'1', '2' does not"),
        (inception, 128, "Mixed_7a", "Mixed_6e", "'1' does not"),
    ],
)
def test_auxiliary_heads_before_the_layer_are_told(
    make: Callable[[], nn.Module], size: int, late: str, early: str, named: str
) -> None:
    """Their targets would be mixed, their features not; before them, or in eval mode, all is well.

    That it is so is what the gradients say: none goes from those outputs to the late layer.
    """
    model, images = make(), torch.randn(4, 3, size, size)
    model.train()
    seen: list[Tensor] = []
    handle = model.get_submodule(late).register_forward_hook(lambda m, i, o: seen.append(o))
    outputs = model(images)
    handle.remove()
    for place, output in enumerate(outputs):
        (gradient,) = torch.autograd.grad(
            output.sum(), seen[0], allow_unused=True, retain_graph=True
        )
        assert (gradient is None) == (f"'{place}'" in named)

    with pytest.warns(UserWarning, match=f"training mode, what .* {named} come from .*'{late}'"):
        ManifoldMixup(model, late, example=images).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ManifoldMixup(model, early, example=images).detach()
        ManifoldMixup(model.eval(), late, example=images).detach()


def test_auxiliary_head_that_runs_in_both_modes_is_told() -> None:
    """Timm's Inception-v3 returns both outputs always: what goes around the layer is named."""
    model = timm.create_model("inception_v3", num_classes=3, aux_logits=True)
    model = for_small_images(model).eval()

    with pytest.warns(UserWarning, match="'Mixed_7a' lies inside .* 'AuxLogits' returns bypasses"):
        ManifoldMixup(model, "Mixed_7a", example=torch.randn(2, 3, 128, 128))


def test_model_that_wants_more_in_training_mode_is_tried_in_evaluation_mode() -> None:
    """A detector asks for targets in training mode; without them, it is looked at as before."""

    class Asking(nn.Linear):
        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
            if self.training and target is None:
                raise ValueError("targets should not be None")
            return super().forward(x)

    model = nn.Sequential(nn.Linear(4, 8), Asking(8, 3))

    ManifoldMixup(model, "0", example=torch.randn(4, 4))
