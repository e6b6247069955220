"""The clean loss beside the mixed one, as in RegMixup: by steps, that of a loop by autograd."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import mixed_by_loop
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manifold_mixup import FeatureStore, Mix, extract_features, train_head
from manifold_mixup._random import seeded_generator
from manifold_mixup.training import HeadSettings, TrainingState

N, D, C, BATCH = 22, 5, 3, 8
STEPS = -(-N // BATCH)

# All that may be asked for beside, mixed or not.
MANY = [
    HeadSettings(alpha=0.0, clean_weight=0.5, lr=0.1),
    HeadSettings(alpha=1.0),
    HeadSettings(alpha=1.0, clean_weight=2.0),
    HeadSettings(alpha=1.0, pairing="same-class", clean_weight=1.0, label_smoothing=0.2),
    HeadSettings(alpha=0.4, clean_weight=0.5, seed=7),
]


def by_hand(store: FeatureStore, head: nn.Linear, settings: HeadSettings) -> list[float]:
    """The losses of a head that is trained for three epochs, mixed sample by sample."""
    features, target = rows(store)
    optimizer = torch.optim.AdamW(
        head.parameters(), settings.lr, weight_decay=settings.weight_decay
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    draws, losses = seeded_generator(settings.seed, "mix", 0), []
    for epoch in range(3):
        order = torch.randperm(N, generator=seeded_generator(settings.seed, epoch))
        for step, batch in enumerate(order.split(BATCH)):
            rate = (1 + math.cos(math.pi * (epoch + step / STEPS) / 3)) / 2
            optimizer.param_groups[0]["lr"] = settings.lr * rate
            who: dict[str, Any] = {"target": target[batch], "pairing": settings.pairing}
            mix = Mix.sample(len(batch), settings.alpha, **who, generator=draws)
            goal = mix.target(F.one_hot(target[batch], C).double())
            loss = criterion(head(mixed_by_loop(mix, features[batch])), goal)
            clean = criterion(head(features[batch]), target[batch])
            loss = loss + settings.clean_weight * clean
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def stored(path: Path) -> tuple[nn.Module, FeatureStore, list[tuple[Tensor, int]]]:
    """A model in float64 of a frozen stem, a layer and a linear head; features of it; images."""
    model = nn.Sequential(nn.Linear(4, D), nn.Tanh(), nn.Linear(D, C)).double()
    model[0].requires_grad_(False)
    images = [(torch.randn(4).double(), i % C) for i in range(N)]
    return model, extract_features(model, "1", images, path, dtype=torch.float64), images


def rows(store: FeatureStore) -> tuple[Tensor, Tensor]:
    """All features (N, D) and targets (N,)."""
    return store.features.gather(torch.arange(N)), store.targets


@pytest.mark.parametrize("settings", MANY)
@pytest.mark.parametrize("way", ["hooked", "cached"])
def test_training_is_that_of_a_loop_by_autograd(
    tmp_path: Path, settings: HeadSettings, way: str
) -> None:
    """Each loss is the mixed one plus so many times the clean one, with images and features."""
    model, store, images = stored(tmp_path)
    head = copy.deepcopy(model[2])
    expected = by_hand(store, head, settings)
    data = store if way == "cached" else images

    found = train_head(model, data, layer="1", epochs=3, batch_size=BATCH, **vars(settings))

    assert found.losses == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(model[2].weight, head.weight, rtol=1e-9)
    assert torch.allclose(model[2].bias, head.bias, rtol=1e-9)


def test_draws_are_those_without_it(tmp_path: Path) -> None:
    """The clean loss takes no draw: with a head that hardly moves the mixed losses stay."""
    model, store, _ = stored(tmp_path)
    options: dict[str, Any] = {"epochs": 2, "batch_size": BATCH, "lr": 1e-12}
    mixed, unmixed, both = (
        torch.tensor(train_head(copy.deepcopy(model), store, **options, **request).losses)
        for request in (
            {"alpha": 1.0},
            {"alpha": 0.0},
            {"alpha": 1.0, "clean_weight": 0.7},
        )
    )

    assert torch.allclose(both, mixed + 0.7 * unmixed, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clean_weight": -1.0}, "clean_weight=-1.0 must be at least 0"),
        ({"clean_weight": math.nan}, "clean_weight=nan must be at least 0"),
    ],
)
def test_weight_out_of_range_is_refused(changed: dict[str, Any], message: str) -> None:
    """By name, when settings are made, and by `train_head`."""
    with pytest.raises(ValueError, match=message):
        HeadSettings(**changed)
    with pytest.raises(ValueError, match=message):
        train_head(nn.Linear(2, 2), [(torch.randn(2), 0)], layer="input", **changed)


@pytest.mark.parametrize("head", ["linear", "dropout"])
def test_cached_training_is_the_hooked_one(tmp_path: Path, head: str) -> None:
    """With a linear head, and with dropout before it, whose draws are the same."""
    hooked, _, images = stored(tmp_path / "unused")
    if head == "dropout":
        hooked[2] = nn.Sequential(nn.Dropout(0.3), hooked[2])
    cached = copy.deepcopy(hooked)
    store = extract_features(cached, "1", images, tmp_path / "store", dtype=torch.float64)
    options: dict[str, Any] = {"epochs": 4, "batch_size": BATCH, "alpha": 1.0, "lr": 0.05}
    expected = train_head(hooked, images, layer="1", clean_weight=0.7, **options)
    found = train_head(cached, store, clean_weight=0.7, **options)

    assert found.losses == pytest.approx(expected.losses, abs=1e-9)
    for name, tensor in expected.head.items():
        torch.testing.assert_close(found.head[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("way", ["hooked", "cached"])
def test_resumed_training_has_the_same_bits(tmp_path: Path, way: str) -> None:
    """From after any epoch, dropout included."""
    model, _, images = stored(tmp_path / "unused")
    model[2] = nn.Sequential(nn.Dropout(0.3), model[2])
    store = extract_features(model, "1", images, tmp_path / "store", dtype=torch.float64)
    data = images if way == "hooked" else store
    options: dict[str, Any] = {"layer": "1", "epochs": 4, "batch_size": BATCH, "clean_weight": 0.5}
    stands: list[TrainingState] = []
    whole = train_head(copy.deepcopy(model), data, **options, on_epoch=stands.append)

    for stand in stands:
        resumed = train_head(copy.deepcopy(model), data, **options, resume=stand)
        assert resumed.losses == whole.losses
        assert all(torch.equal(tensor, whole.head[name]) for name, tensor in resumed.head.items())
        assert all(torch.equal(tensor, whole.state[key]) for key, tensor in resumed.state.items())


def test_clean_loss_is_that_of_any_criterion(tmp_path: Path) -> None:
    """The one that is trained, here of real values, without a mix that is one already."""
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2)).double()
    data = [(torch.randn(3).double(), torch.randn(2).double()) for _ in range(6)]
    inputs, target = (torch.stack(tensors) for tensors in zip(*data, strict=True))
    before = F.l1_loss(model(inputs), target)
    options: dict[str, Any] = {"layer": "0", "epochs": 1, "batch_size": 6, "alpha": 0.0}
    training = train_head(model, data, criterion=nn.L1Loss(), clean_weight=0.25, **options)

    assert training.losses == pytest.approx([1.25 * before.item()], rel=1e-12)


class Checkpointed(nn.Module):
    """A layer and a part behind it whose activations are computed again in backward."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.layer, self.head, self.again = nn.Linear(3, 4), nn.Linear(4, 2), again
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        if self.again:
            return checkpoint(self._inner, x, use_reentrant=False)
        return self._inner(x)

    def _inner(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x)))


def test_clean_loss_goes_with_activation_checkpointing() -> None:
    """Both forward passes are recomputed, each as it was."""
    plain = Checkpointed(again=False)
    again = Checkpointed(again=True)
    again.load_state_dict(plain.state_dict())
    data = [(torch.randn(3).double(), i % 2) for i in range(12)]
    options: dict[str, Any] = {"layer": "layer", "epochs": 2, "batch_size": 4, "alpha": 1.0}
    expected = train_head(plain, data, clean_weight=1.0, **options)
    found = train_head(again, data, clean_weight=1.0, **options)

    assert found.losses == pytest.approx(expected.losses, rel=1e-12)
    assert torch.allclose(found.head["head.weight"], expected.head["head.weight"], rtol=1e-9)
