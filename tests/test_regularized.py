"""The clean loss beside the mixed one, noise on stored features, draws that repeat: exact."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import mixed_by_loop
from test_stack import C, D, N, Tail, assert_close, begin, samples, train, train_alone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manifold_mixup import FeatureStore, Mix, extract_features, train_head
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.feature_noise import add_noise
from manifold_mixup.resume import Training
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import HeadStack

BATCH = 8
STEPS = -(-N // BATCH)

# All that may stand side by side: plain, with the clean loss, with noise, mixed or not.
MANY = [
    HeadSettings(alpha=0.0, clean_weight=0.5, lr=0.1),
    HeadSettings(alpha=1.0),
    HeadSettings(alpha=1.0, clean_weight=2.0),
    HeadSettings(alpha=1.0, clean_weight=0.5, lr=0.1),
    HeadSettings(alpha=1.0, pairing="same-class", clean_weight=1.0, label_smoothing=0.2),
    HeadSettings(alpha=0.4, clean_weight=0.5, seed=7),
    HeadSettings(alpha=0.0, noise=0.3),
    HeadSettings(alpha=1.0, clean_weight=1.0, noise=0.3),
    HeadSettings(alpha=1.0, noise=0.1, seed=7),
]


def by_hand(
    features: Tensor,
    target: Tensor,
    start: tuple[Tensor, Tensor],
    settings: HeadSettings,
    tail: Callable[[Tensor], Tensor] = lambda features: features,
    *,
    epochs: int,
    mixed_epochs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and losses of a head that is trained by autograd, mixed sample by sample."""
    own = [tensor.clone().requires_grad_() for tensor in start]
    optimizer = torch.optim.AdamW(own, settings.lr, weight_decay=settings.weight_decay)
    smoothing = {"label_smoothing": settings.label_smoothing}
    losses = []
    for number in range(epochs):
        epoch = number if mixed_epochs is None else number % mixed_epochs
        if epoch == 0:
            generator = seeded_generator(settings.seed, "mix", 0)
        order = torch.randperm(N, generator=seeded_generator(settings.seed, epoch))
        for step, batch in enumerate(order.split(BATCH)):
            rate = (1 + math.cos(math.pi * (number + step / STEPS) / epochs)) / 2
            optimizer.param_groups[0]["lr"] = settings.lr * rate
            noise = seeded_generator(settings.seed, "noise", epoch, step)
            z = torch.randn(len(batch), *features.shape[1:], generator=noise).to(features)
            spread = ((features[batch] - features[batch].mean()) ** 2).mean().sqrt()
            stored = features[batch] + settings.noise * spread * z
            mix = Mix.sample(
                len(batch),
                settings.alpha,
                target=target[batch],
                pairing=settings.pairing,
                generator=generator,
            )
            mixed = F.linear(tail(mixed_by_loop(mix, stored)), *own)
            clean = F.linear(tail(stored), *own)
            goal = mix.target(F.one_hot(target[batch], C).double())
            loss = F.cross_entropy(mixed, goal, **smoothing)
            loss = loss + settings.clean_weight * F.cross_entropy(
                clean, target[batch], **smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return own[0].detach(), own[1].detach(), torch.stack(losses)


def wide_start() -> tuple[Tensor, Tensor]:
    """The weight (C, 4) and bias (C,) of a head behind a `Tail`."""
    return torch.randn(C, 4, dtype=torch.float64), torch.randn(C, dtype=torch.float64)


def stored(path: Path) -> tuple[nn.Module, FeatureStore, list[tuple[Tensor, int]]]:
    """A model in float64 of a frozen stem, a layer and a linear head; features of it; images."""
    model = nn.Sequential(nn.Linear(4, D), nn.Tanh(), nn.Linear(D, C)).double()
    model[0].requires_grad_(False)
    images = [(torch.randn(4).double(), i % C) for i in range(N)]
    return model, extract_features(model, "1", images, path, dtype=torch.float64), images


def rows(store: FeatureStore) -> tuple[Tensor, Tensor]:
    """All features (N, D) and targets (N,)."""
    return store.features.gather(torch.arange(N)), store.targets


# Many heads at once


@pytest.mark.parametrize("mixed_epochs", [None, 2])
@pytest.mark.parametrize("with_tail", [False, True])
def test_every_head_of_a_stack_is_the_one_of_a_loop_by_autograd(
    with_tail: bool, mixed_epochs: int | None
) -> None:
    """Clean loss, noise and repeated draws, heads of all kinds and seeds side by side."""
    data, tail = samples(), Tail() if with_tail else None
    start = wide_start() if with_tail else begin()
    options: dict[str, Any] = {"epochs": 3, "mixed_epochs": mixed_epochs}
    heads = [replace(one, seed=one.seed + more) for more in (0, 10) for one in MANY]
    stack = train(*data, heads, *start, batch_size=BATCH, between=tail, **options)

    for k, settings in enumerate(heads):
        behind = (tail,) if tail else ()
        assert_close(stack, k, by_hand(*data, start, settings, *behind, **options))
    assert len({tuple(row.tolist()) for row in stack.losses}) == len(heads)


@pytest.mark.parametrize("mixed_epochs", [None, 2])
@pytest.mark.parametrize("with_tail", [False, True])
def test_every_head_of_a_stack_is_the_one_of_train_head(
    with_tail: bool, mixed_epochs: int | None
) -> None:
    """The hooked loop alone gives the same losses and weights."""
    data, tail = samples(), Tail() if with_tail else None
    start = wide_start() if with_tail else begin()
    options: dict[str, Any] = {"epochs": 3, "batch_size": BATCH, "mixed_epochs": mixed_epochs}
    quiet = [settings for settings in MANY if settings.noise == 0]
    stack = train(*data, quiet, *start, between=tail, **options)

    for k, settings in enumerate(quiet):
        assert_close(stack, k, train_alone(*data, settings, *start, tail=tail, **options))


def test_company_of_heads_with_a_clean_loss_changes_nothing() -> None:
    """Those that do not weigh it come out the same beside those that do."""
    data, start = samples(), begin()
    chosen = [replace(settings, noise=0.0) for settings in MANY]
    together = train(*data, chosen, *start, epochs=2, batch_size=BATCH)
    plain = [k for k, settings in enumerate(chosen) if settings.clean_weight == 0]
    alone = train(*data, [chosen[k] for k in plain], *start, epochs=2, batch_size=BATCH)

    assert torch.allclose(together.weight[plain], alone.weight, rtol=0, atol=1e-12)
    assert torch.allclose(together.losses[plain], alone.losses, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("mixed_epochs", "computed"), [(None, 3), (1, 1), (2, 2), (3, 3), (9, 3)])
@pytest.mark.parametrize("clean_weight", [0.0, 1.0])
def test_between_runs_no_oftener_than_mixes_differ(
    clean_weight: float, mixed_epochs: int | None, computed: int
) -> None:
    """Once in a step for each mix and, if it counts, once for clean features; in the first
    `mixed_epochs` epochs only.
    """
    data, tail = samples(), Tail()
    settings = [
        HeadSettings(alpha=alpha, lr=lr, seed=seed, clean_weight=clean_weight)
        for alpha, lr, seed in itertools.product((0.4, 1.0), (0.01, 0.1), (0, 7))
    ]
    options: dict[str, Any] = {"epochs": 3, "batch_size": BATCH, "between": tail}
    train(*data, settings, *wide_start(), mixed_epochs=mixed_epochs, **options)

    assert tail.calls == computed * STEPS * 2 * (2 + (clean_weight > 0))


def test_what_is_not_mixed_is_the_clean_batch_itself() -> None:
    """Heads without mixing and clean losses share one run of `between` in a step."""
    data, tail = samples(), Tail()
    settings = [HeadSettings(alpha=alpha, clean_weight=1.0) for alpha in (0.0, 0.4)]
    train(*data, settings, *wide_start(), epochs=1, batch_size=BATCH, between=tail)

    assert tail.calls == STEPS * 2


@pytest.mark.parametrize("between", [None, Tail()])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_interrupted_stack_goes_on_with_the_same_bits(
    between: Callable[[Tensor], Tensor] | None, epoch: int
) -> None:
    """From within and after the epochs whose draws repeat."""
    data, stands = samples(), []
    start = wide_start() if between else begin()
    options: dict[str, Any] = {
        "epochs": 4,
        "batch_size": BATCH,
        "between": between,
        "mixed_epochs": 2,
    }
    straight = train(*data, MANY, *start, **options, on_epoch=stands.append)
    resumed = train(*data, MANY, *start, **options, resume=stands[epoch - 1])

    for name in ("weight", "bias", "losses"):
        assert torch.equal(getattr(resumed, name), getattr(straight, name))
    assert all(torch.equal(resumed.state[name], straight.state[name]) for name in straight.state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clean_weight": -1.0}, "clean_weight=-1.0 must be at least 0"),
        ({"clean_weight": math.nan}, "clean_weight=nan must be at least 0"),
        ({"noise": -0.1}, "noise=-0.1 must be at least 0"),
        ({"noise": math.inf}, "noise=inf must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    """By name, when they are made, and by `train_head`."""
    with pytest.raises(ValueError, match=message):
        HeadSettings(**changed)
    with pytest.raises(ValueError, match=message):
        train_head(nn.Linear(2, 2), [(torch.randn(2), 0)], layer="input", **changed)


# One head, its backbone in every step or not


@pytest.mark.parametrize("mixed_epochs", [None, 2])
@pytest.mark.parametrize(("clean_weight", "noise"), [(0.5, 0.0), (0.0, 0.2), (2.0, 0.2)])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_stored_features_train_as_in_a_loop_by_autograd(
    tmp_path: Path, alpha: float, clean_weight: float, noise: float, mixed_epochs: int | None
) -> None:
    """A linear head in closed form, and in the general way that a criterion of one's own takes."""
    model, store, _ = stored(tmp_path)
    wish = {"alpha": alpha, "lr": 0.05, "seed": 3, "clean_weight": clean_weight, "noise": noise}
    options: dict[str, Any] = {"epochs": 4, "mixed_epochs": mixed_epochs}
    start = model[2].weight.detach().clone(), model[2].bias.detach().clone()
    weight, bias, losses = by_hand(*rows(store), start, HeadSettings(**wish), **options)
    again = copy.deepcopy(model)
    found = train_head(model, store, batch_size=BATCH, **wish, **options)
    options["criterion"] = F.cross_entropy
    general = train_head(again, store, batch_size=BATCH, **wish, **options)

    for training in (found, general):
        assert training.losses == pytest.approx(losses.tolist(), abs=1e-9)
        assert torch.allclose(training.head["2.weight"], weight, atol=1e-9)
        assert torch.allclose(training.head["2.bias"], bias, atol=1e-9)


@pytest.mark.parametrize("head", ["linear", "dropout"])
@pytest.mark.parametrize(
    "wish", [{"clean_weight": 0.7}, {"mixed_epochs": 2}, {"clean_weight": 1.0, "mixed_epochs": 1}]
)
def test_cached_training_is_the_hooked_one(
    tmp_path: Path, head: str, wish: dict[str, Any]
) -> None:
    """With a linear head, and with dropout before it, whose draws repeat too."""
    hooked, _, images = stored(tmp_path / "unused")
    if head == "dropout":
        hooked[2] = nn.Sequential(nn.Dropout(0.3), hooked[2])
    cached = copy.deepcopy(hooked)
    store = extract_features(cached, "1", images, tmp_path / "store", dtype=torch.float64)
    options: dict[str, Any] = {"epochs": 4, "batch_size": BATCH, "alpha": 1.0, "lr": 0.05, **wish}
    expected = train_head(hooked, images, layer="1", **options)
    found = train_head(cached, store, **options)

    assert found.losses == pytest.approx(expected.losses, abs=1e-9)
    for name, tensor in expected.head.items():
        torch.testing.assert_close(found.head[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("way", ["hooked", "cached"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_draws_repeat_after_mixed_epochs(
    tmp_path: Path, way: str, dropout: float, alpha: float
) -> None:
    """With a head that hardly moves, the losses of epoch e are those of e % 3, and of no other."""
    model, _, images = stored(tmp_path / "unused")
    model[2] = nn.Sequential(nn.Dropout(dropout), model[2])
    store = extract_features(model, "1", images, tmp_path / "store", dtype=torch.float64)
    wish = {"noise": 0.2} if way == "cached" else {}
    options: dict[str, Any] = {"epochs": 7, "batch_size": BATCH, "alpha": alpha, "lr": 1e-12}
    data = store if way == "cached" else images
    training = train_head(model, data, layer="1", mixed_epochs=3, **options, **wish)
    epochs = torch.tensor(training.losses).view(7, STEPS)

    for epoch in range(3, 7):
        assert torch.allclose(epochs[epoch], epochs[epoch % 3], rtol=0, atol=1e-7)
    assert (epochs[0] - epochs[1]).abs().min() > 1e-4
    assert (epochs[1] - epochs[2]).abs().min() > 1e-4


def test_views_repeat_too(tmp_path: Path) -> None:
    """Of three views of each sample, an epoch sees that of the epoch whose draws it repeats."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 2)).double()

    class Random(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return BATCH

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.randn(1, dtype=torch.float64), index % 2

    store = extract_features(model, "1", Random(), tmp_path, views=3, dtype=torch.float64)
    model[0].requires_grad_(False)
    options: dict[str, Any] = {"epochs": 6, "batch_size": BATCH, "alpha": 0.0, "lr": 1e-12}
    losses = train_head(model, store, mixed_epochs=2, **options).losses

    assert losses[2:] == pytest.approx(2 * losses[:2], abs=1e-9)
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("way", ["hooked", "linear", "dropout", "lbfgs"])
def test_resumed_training_has_the_same_bits(tmp_path: Path, way: str) -> None:
    """From after any epoch, with clean loss, noise and draws that repeat."""
    model, _, images = stored(tmp_path / "unused")
    if way in ("hooked", "dropout"):
        model[2] = nn.Sequential(nn.Dropout(0.3), model[2])
    store = extract_features(model, "1", images, tmp_path / "store", dtype=torch.float64)
    data = images if way == "hooked" else store
    options: dict[str, Any] = {
        **({} if way == "hooked" else {"noise": 0.2}),
        **{"layer": "1", "epochs": 4, "batch_size": BATCH, "clean_weight": 0.5, "mixed_epochs": 2},
        **({"optimizer": "lbfgs", "lr": 1.0, "batch_size": N} if way == "lbfgs" else {}),
    }
    stands: list[Training] = []
    whole = train_head(copy.deepcopy(model), data, **options, on_epoch=stands.append)

    for stand in stands:
        resumed = train_head(copy.deepcopy(model), data, **options, resume=stand)
        assert resumed.losses == whole.losses
        assert all(torch.equal(tensor, whole.head[name]) for name, tensor in resumed.head.items())
        assert all(torch.equal(tensor, whole.state[key]) for key, tensor in resumed.state.items())


def test_lbfgs_finds_the_minimum_of_the_whole_loss(tmp_path: Path) -> None:
    """Of one batch that is always mixed alike: mixed, clean and penalty have no gradient left."""
    model, store, _ = stored(tmp_path)
    options: dict[str, Any] = {"batch_size": N, "mixed_epochs": 1, "optimizer": "lbfgs"}
    wish = {"alpha": 1.0, "clean_weight": 2.0, "weight_decay": 0.1, "lr": 1.0}
    train_head(model, store, epochs=12, **options, **wish)
    features, target = rows(store)
    order = torch.randperm(N, generator=seeded_generator(0, 0))
    mix = Mix.sample(N, 1.0, generator=seeded_generator(0, "mix", 0))
    features, target = features[order], target[order]
    head = model[2].requires_grad_()
    goal = mix.target(F.one_hot(target, C).double())
    loss = F.cross_entropy(head(mixed_by_loop(mix, features)), goal)
    loss = loss + 2 * F.cross_entropy(head(features), target)
    loss = loss + 0.05 * (head.weight.square().sum() + head.bias.square().sum())

    for gradient in torch.autograd.grad(loss, list(head.parameters())):
        assert gradient.abs().max() < 1e-3


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


def test_noise_is_for_stored_features() -> None:
    """For images it is refused, and the message says where it may be."""
    data = [(torch.randn(3), i % 2) for i in range(4)]
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"noise=0\.1 is for stored features"):
        train_head(model, data, layer="0", noise=0.1)


def test_a_schedule_of_alpha_cannot_repeat() -> None:
    """Mixes of other alphas are not the same ones."""
    data = [(torch.randn(3), i % 2) for i in range(4)]
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"mixed_epochs=2 repeats mixes: alpha= must be a number"):
        train_head(model, data, layer="0", mixed_epochs=2, alpha=lambda done: done)


def test_epochs_without_draws_are_refused(tmp_path: Path) -> None:
    """By name, whoever trains."""
    model, store, _ = stored(tmp_path)
    with pytest.raises(ValueError, match="mixed_epochs=0 must be at least 1"):
        train_head(model, store, mixed_epochs=0)
    with pytest.raises(ValueError, match="mixed_epochs=0 must be at least 1"):
        train(*samples(), MANY, *begin(), mixed_epochs=0)


# The noise


@pytest.mark.parametrize("shape", [(64, 100), (16, 8, 10, 10)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_noise_is_as_large_as_promised(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A share of the standard deviation of all values, with mean 0, whatever their mean."""
    features = (5 + 3 * torch.randn(shape)).to(dtype)
    noisy = add_noise(features, 0.2, seed=0, epoch=1, step=2)
    difference = (noisy.double() - features.double()).flatten()

    assert (noisy.dtype, noisy.shape) == (dtype, features.shape)
    assert difference.std() == pytest.approx(0.2 * 3, rel=0.05)
    assert abs(difference.mean()) < 5 * 0.6 / math.sqrt(len(difference))
    # In each dimension, too: it is the same for all of them.
    assert difference.view(shape[0], -1).std(0).mean() == pytest.approx(0.6, rel=0.1)


def test_noise_is_the_same_for_the_same_place_alone() -> None:
    """Seed, epoch and step decide it; so do neither the level nor the global generator."""
    features = torch.randn(6, 4)
    place = {"seed": 1, "epoch": 2, "step": 3}
    first = add_noise(features, 0.5, **place)
    torch.manual_seed(99)

    assert torch.equal(add_noise(features, 0.5, **place), first)
    assert torch.allclose(add_noise(features, 1.0, **place) - features, 2 * (first - features))
    for name in place:
        assert not torch.equal(add_noise(features, 0.5, **{**place, name: 4}), first)
    flat = add_noise(features.view(6, 2, 2), 0.5, **place).flatten(1)
    assert torch.equal(flat, first)


def test_no_noise_changes_no_bit() -> None:
    """The features themselves come out, those of one value and of one sample as well."""
    features = torch.tensor([[math.nan, -0.0, math.inf]])

    assert add_noise(features, 0.0, seed=0, epoch=0, step=0) is features
    one = torch.tensor([[2.0]])
    assert torch.equal(add_noise(one, 0.5, seed=0, epoch=0, step=0), one)


def test_stack_without_new_wishes_is_what_it_was() -> None:
    """Zero and None change no bit of a training."""
    data, start = samples(), begin()
    settings = [HeadSettings(alpha=1.0, lr=0.05), HeadSettings(alpha=0.0, seed=7)]
    more = [replace(one, clean_weight=0.0, noise=0.0) for one in settings]
    stacks: list[HeadStack] = [
        train(*data, settings, *start, epochs=3, batch_size=BATCH),
        train(*data, more, *start, epochs=3, batch_size=BATCH, mixed_epochs=3),
    ]

    assert torch.equal(stacks[0].weight, stacks[1].weight)
    assert torch.equal(stacks[0].losses, stacks[1].losses)
