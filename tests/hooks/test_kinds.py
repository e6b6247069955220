"""Mixing by boxes, by moments and with noise: as values, in models, and in training."""

import copy
import pickle
import re
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import forward_with, output_at
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manifold_mixup import (
    CutMix,
    ManifoldMixup,
    Mix,
    MomentExchange,
    NoisyMix,
    extract_features,
    freeze,
    mixed_loss,
    train_head,
)
from manifold_mixup._random import seeded_generator
from manifold_mixup.training import Alpha

LAM = [0.9, 0.25, 1.0, 0.0, 0.5]
PARTNER = [2, 0, 1, 4, 3]
PLACE = torch.tensor([[0.0, 1.0], [0.3, 0.8], [0.5, 0.5], [0.2, 0.1], [1.0, 0.6]])
KINDS = [CutMix, MomentExchange, NoisyMix]


def maps(height: int = 5, width: int = 3) -> Tensor:
    """Five maps of four channels."""
    return torch.randn(5, 4, height, width, dtype=torch.float64)


def overlap(begin: float, end: float, cell: int) -> float:
    """How much of a cell, which is 1 long, an interval covers."""
    return max(0.0, min(end, cell + 1) - max(begin, cell))


def boxes_by_loop(mix: CutMix, values: Tensor) -> Tensor:
    """The definition, one cell at a time and in Python's own floats."""
    mixed, (height, width) = values.clone(), values.shape[2:]
    for i, lam in enumerate(mix.lam.tolist()):
        side = (1 - lam) ** 0.5
        top, left = (float(place) * (1 - side) for place in mix.place[i])
        other = values[int(mix.partner[i])]
        for y in range(height):
            for x in range(width):
                rows = overlap(top * height, (top + side) * height, y)
                columns = overlap(left * width, (left + side) * width, x)
                weight = 1 - rows * columns
                mixed[i, :, y, x] = weight * values[i, :, y, x] + (1 - weight) * other[:, y, x]
    return mixed


def moments_by_loop(mix: Mix, values: Tensor) -> Tensor:
    """Every column of channels, one after the other."""
    columns = values.flatten(2)
    mixed = columns.clone()
    for i, lam in enumerate(mix.lam.tolist()):
        for position in range(columns.shape[2]):
            own = columns[i, :, position].tolist()
            other = columns[int(mix.partner[i]), :, position].tolist()
            (mean, std), (mean_of_other, std_of_other) = moments(own), moments(other)
            new = [(v - mean) / std * std_of_other + mean_of_other for v in own]
            mixed[i, :, position] = torch.tensor(own if lam == 1 else new, dtype=values.dtype)
    return mixed.view_as(values)


def moments(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation, with 1e-5 added to the variance."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return mean, (variance + 1e-5) ** 0.5


# Boxes


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (5, 3), (2, 9)])
def test_box_equals_loop_over_cells(size: tuple[int, int]) -> None:
    """Each cell has as much of the partner as the box covers of it."""
    mix, values = CutMix(LAM, PARTNER, PLACE), maps(*size)

    torch.testing.assert_close(mix(values), boxes_by_loop(mix, values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (5, 3), (56, 56)])
def test_lam_is_the_share_of_the_map_at_every_size(size: tuple[int, int]) -> None:
    """Where samples are ones and their partners zeros, the mean of a map is lam, exactly."""
    drawn = CutMix.sample(200, alpha=1.0, generator=seeded_generator(0))
    zeros = torch.arange(200, 400)
    mix = CutMix(drawn.lam.repeat(2), torch.cat([zeros, zeros]), drawn.place.repeat(2, 1))
    values = torch.ones(400, 1, *size, dtype=torch.float64)
    values[200:] = 0
    share = mix(values)[:200].mean((1, 2, 3))

    torch.testing.assert_close(share, drawn.lam, rtol=0, atol=1e-13)


def test_one_value_puts_its_box_at_the_same_place_at_every_size() -> None:
    """Halving the resolution after mixing is mixing at half the resolution."""
    mix = CutMix(LAM, PARTNER, PLACE)
    values = torch.randn(5, 2, 1, 1, dtype=torch.float64)
    fine, coarse = (mix(values.expand(5, 2, side, side)) for side in (14, 7))

    torch.testing.assert_close(F.avg_pool2d(fine, 2), coarse, rtol=0, atol=1e-13)


def test_a_cell_that_a_box_does_not_touch_is_untouched() -> None:
    """Infinite values stay on their side of the box's edge."""
    mix = CutMix(0.75, [1, 0], place=(0.0, 0.0))
    values = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), torch.inf)])
    mixed = mix(values)[0, 0]

    assert mixed[:2, :2].isinf().all()
    assert int(mixed.isinf().sum()) == 4
    assert not mixed.isnan().any()


def test_places_are_drawn_evenly_and_boxes_lie_inside() -> None:
    """Both coordinates are uniform and independent; one draw serves a batch if lam does."""
    mix = CutMix.sample(4000, alpha=1.0, generator=seeded_generator(1))
    one = CutMix.sample(8, per_sample=False)

    assert mix.place.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert mix.place.var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.004)
    assert abs(float(torch.corrcoef(mix.place.t())[0, 1])) < 0.06
    assert len(one.place.unique(dim=0)) == len(one.lam.unique()) == 1


def test_axes_say_where_the_map_is() -> None:
    """Maps with the channels last are mixed like those with the channels first."""
    values = maps()
    first = CutMix(LAM, PARTNER, PLACE)
    last = CutMix(LAM, PARTNER, PLACE, axes=(1, 2))

    assert torch.equal(last(values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), first(values))


@pytest.mark.parametrize("shape", [(5,), (5, 8), (5, 49, 8)])
def test_what_is_no_map_is_refused(shape: tuple[int, ...]) -> None:
    """Vectors and token sequences have no boxes."""
    with pytest.raises(ValueError, match=r"CutMix takes boxes from maps \(B, \*, H, W\), got"):
        CutMix(LAM, PARTNER)(torch.randn(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place": (0.5, 1.5)}, r"place must lie in \[0, 1\]"),
        ({"place": (0.5, float("nan"))}, r"place must lie in \[0, 1\]"),
        ({"place": (0.5,)}, r"place must have shape \(2,\) or \(5, 2\), got \(1,\)"),
        ({"axes": (1, 2, 3)}, r"axes=\(1, 2, 3\) must be two numbers"),
        ({"axes": (1.0, 2)}, r"axes=\(1.0, 2\) must be two numbers"),
    ],
)
def test_impossible_places_are_refused(options: dict[str, Any], message: str) -> None:
    """A box lies inside of the map."""
    with pytest.raises(ValueError, match=message):
        CutMix(LAM, PARTNER, **options)


def disagreement(logits: Tensor, target: Tensor) -> Tensor:
    """A loss of the whole batch, as that of Dice."""
    own = torch.nn.functional.one_hot(target, logits.shape[1]).movedim(-1, 1)
    return 1 - 2 * (logits.softmax(1) * own).sum() / (2 * own.sum())


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_loss_of_a_whole_batch_cannot_follow_boxes(lam: float) -> None:
    """One number says nothing of the pixels in a box; where no box is left, there is no need."""
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    mix = CutMix(lam, [1, 0])
    if lam == 0.5:
        with pytest.raises(
            TypeError, match="weighed pixel by pixel, and pixels differ .* use Mix"
        ):
            mixed_loss(logits, target, mix, disagreement)
    else:
        expected = disagreement(logits, target if lam else target.flip(0))
        torch.testing.assert_close(mixed_loss(logits, target, mix, disagreement), expected)


@pytest.mark.parametrize("axes", [(0, 1), (1, 1), (-4, 2), (2, 7)])
def test_axes_that_are_no_map_are_refused(axes: tuple[int, int]) -> None:
    """Two different axes, neither of them the batch."""
    with pytest.raises(ValueError, match="axes="):
        CutMix(LAM, PARTNER, axes=axes)(maps())


# Moments


def test_exchange_equals_loop_over_positions() -> None:
    """Normalized by its own moments over channels, given those of the partner."""
    mix, values = MomentExchange(LAM, PARTNER), maps()

    torch.testing.assert_close(mix(values), moments_by_loop(mix, values), rtol=0, atol=1e-12)


def test_moments_are_those_of_the_partner() -> None:
    """At every position the mean exactly, the deviation but for what 1e-5 does to it."""
    mix, values = MomentExchange(0.9, PARTNER), 10 * maps()
    mixed, partner = mix(values), values[mix.partner]

    torch.testing.assert_close(mixed.mean(1), partner.mean(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed.std(1), partner.std(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 8), 1), ((5, 7, 8), 2), ((5, 8, 2, 3), 1), ((5, 8, 2, 3, 2), 1)]
)
def test_channels_are_found(shape: tuple[int, ...], axis: int) -> None:
    """The second axis of maps, the last of vectors and sequences, or the one that is said."""
    values = torch.randn(shape, dtype=torch.float64)
    said = MomentExchange(LAM, PARTNER, axis=axis)
    moved = MomentExchange(LAM, PARTNER, axis=1)(values.movedim(axis, 1)).movedim(1, axis)

    assert torch.equal(MomentExchange(LAM, PARTNER)(values), said(values))
    torch.testing.assert_close(said(values), moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "axis"), [((5,), None), ((5, 8), 0), ((5, 8), 2), ((5, 8), -2)])
def test_what_has_no_channels_is_refused(shape: tuple[int, ...], axis: int | None) -> None:
    """Moments are never taken over the batch."""
    with pytest.raises(ValueError, match="moments are taken over channels"):
        MomentExchange(LAM, PARTNER, axis=axis)(torch.randn(shape))


def test_constant_channels_give_no_nan() -> None:
    """A dead position, all 0, gets its partner's mean; gradients stay finite."""
    values = torch.zeros(2, 4, dtype=torch.float64)
    values[1] = torch.arange(4.0)
    values.requires_grad_()
    mixed = MomentExchange(0.9, [1, 0])(values)
    mixed.square().sum().backward()

    assert mixed[0].tolist() == [1.5] * 4
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_lam_of_an_exchange_is_fixed_unless_it_is_to_be_drawn() -> None:
    """0.9, another number, or Beta; with alpha 0 nothing is exchanged."""
    draw = partial(MomentExchange.sample, 6)
    drawn = draw(1.0, keep=None, generator=seeded_generator(0))

    assert draw(0.4).lam.tolist() == [0.9] * 6
    assert draw(0.4, keep=0.5).lam.tolist() == [0.5] * 6
    assert torch.equal(drawn.lam, Mix.sample(6, 1.0, generator=seeded_generator(0)).lam)
    assert draw(0.0).is_identity


# Noise


def test_without_noise_it_is_a_mix() -> None:
    """Levels of 0 give the bits of `Mix`."""
    mix = NoisyMix(LAM, PARTNER, additive=0, multiplicative=0)
    for values in (maps(), maps().bfloat16()):
        assert torch.equal(mix(values), Mix(LAM, PARTNER)(values))


@pytest.mark.parametrize("level", [0.1, 1.0])
def test_added_noise_is_normal_with_mean_zero(level: float) -> None:
    """Mean and deviation over many values, and the share within one deviation."""
    values = torch.randn(2, 50_000, dtype=torch.float64)
    mix = NoisyMix(0.5, [1, 0], additive=level, multiplicative=0)
    noise = (mix(values) - Mix(0.5, [1, 0])(values)) / level

    assert float(noise.mean()) == pytest.approx(0, abs=5 / 100_000**0.5)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float((noise.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.01)


def test_stretching_is_uniform_with_mean_zero() -> None:
    """Each value by a share of its own, of at most the level, whatever its size is."""
    values = torch.randn(2, 50_000, dtype=torch.float64)
    mixed = Mix(0.5, [1, 0])(values)
    mix = NoisyMix(0.5, [1, 0], additive=0, multiplicative=0.2)
    share = (mix(values) / mixed - 1) / 0.2

    assert float(share.abs().max()) <= 1 + 1e-9
    assert float(share.mean()) == pytest.approx(0, abs=5 / (3 * 100_000) ** 0.5)
    assert float(share.var()) == pytest.approx(1 / 3, abs=0.01)


def test_noise_is_a_function_of_seed_and_shape() -> None:
    """The same value gives the same noise, in any memory format, and disturbs no random state."""
    mix, values = NoisyMix(LAM, PARTNER, seed=3), maps()
    before = torch.get_rng_state()
    noisy = mix(values)
    again = mix(values.contiguous(memory_format=torch.channels_last))

    assert torch.equal(noisy, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(noisy, NoisyMix(LAM, PARTNER, seed=4)(values))


def test_maps_of_several_sizes_have_noise_of_their_own() -> None:
    """Of one step, too: what is drawn for one map is not the beginning of another's."""
    mix = NoisyMix([0.5] * 5, PARTNER, multiplicative=0)
    zeros = torch.zeros(5, 100, dtype=torch.float64)

    assert not torch.equal(mix(zeros[:, :50]).flatten()[:50], mix(zeros).flatten()[:50])


@pytest.mark.parametrize("level", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["additive", "multiplicative"])
def test_impossible_levels_are_refused(name: str, level: float) -> None:
    """A level is a finite number, at least 0."""
    with pytest.raises(ValueError, match=f"{name}="):
        NoisyMix(LAM, PARTNER, **{name: level})


def test_noise_is_refused_for_complex_values() -> None:
    """The error says so."""
    with pytest.raises(TypeError, match="complex"):
        NoisyMix(LAM, PARTNER)(torch.randn(5, 3, dtype=torch.complex64))


# What all of them share


@pytest.mark.parametrize("kind", KINDS)
def test_sample_with_lam_one_stays_exactly_as_it_is(kind: type[Mix]) -> None:
    """Bit by bit, infinite values too; the others change."""
    values = maps()
    values[2, 0, 0, 0] = torch.inf
    mixed = kind(LAM, [2, 0, 2, 4, 3])(values)

    assert torch.equal(mixed[2], values[2])
    assert not torch.equal(mixed[1], values[1])


@pytest.mark.parametrize("kind", [CutMix, MomentExchange])
def test_sample_that_is_its_own_partner_stays_as_it_is(kind: type[Mix]) -> None:
    """There is nothing to mix in."""
    values = maps()

    assert torch.equal(kind(0.5, torch.arange(5))(values), values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_dtype_and_memory_format_are_kept(
    kind: type[Mix], memory: torch.memory_format, dtype: torch.dtype
) -> None:
    """Out of place, in the tensor's own dtype, rounded once from float32 where that is more."""
    values = maps().to(dtype, memory_format=memory)
    before, mix = values.clone(), kind(LAM, PARTNER)
    mixed = mix(values)
    wide = mix(values.float() if dtype.itemsize < 4 else values)

    assert torch.equal(values, before)
    assert mixed.dtype == dtype
    assert mixed.stride() == values.stride()
    assert torch.equal(mixed, wide.to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_right(kind: type[Mix]) -> None:
    """As differences of values say, for samples and partners."""
    values = maps(3, 2).requires_grad_()

    assert torch.autograd.gradcheck(kind([0.9, 0.25, 0.6, 0.1, 0.5], PARTNER), values)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_and_losses_are_weighed_as_by_a_mix(kind: type[Mix]) -> None:
    """What is done to features does not matter there."""
    mix, plain = kind(LAM, PARTNER), Mix(LAM, PARTNER)
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3
    soft = torch.rand(5, 3, dtype=torch.float64)

    assert torch.equal(mix.target(target, num_classes=3), plain.target(target, num_classes=3))
    assert torch.equal(mix.target(soft), plain.target(soft))
    assert torch.equal(mix.between(logits, soft), plain.between(logits, soft))
    for one, criterion in ((target, F.cross_entropy), (soft, F.cross_entropy), (soft, F.mse_loss)):
        expected = mixed_loss(logits, one, plain, criterion)
        assert torch.equal(mixed_loss(logits, one, mix, criterion), expected)


def test_dense_targets_get_the_boxes_of_the_features() -> None:
    """Segmentation: a pixel's loss is weighed as its features are, at the targets' own size."""
    mix, size = CutMix(LAM, PARTNER, PLACE), (6, 4)
    logits = torch.randn(5, 3, *size, dtype=torch.float64)
    target = torch.randint(3, (5, *size))
    rows = F.one_hot(target, 3).movedim(-1, 1).double()
    expected = boxes_by_loop(mix, rows)
    soft = -(expected * logits.log_softmax(1)).sum(1).mean()

    torch.testing.assert_close(mix.target(rows), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(mix.target(target, 3).double(), expected, rtol=0, atol=1e-6)
    for one in (target, rows):
        torch.testing.assert_close(mixed_loss(logits, one, mix), soft, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", [CutMix, NoisyMix, partial(MomentExchange, keep=None)])
def test_lam_and_partner_are_those_that_mix_would_draw(kind: Any, alpha: float) -> None:
    """From the same seed, with the same options."""
    of, options = (kind.func, kind.keywords) if isinstance(kind, partial) else (kind, {})
    mix = of.sample(8, alpha, per_sample=False, generator=seeded_generator(5), **options)
    plain = Mix.sample(8, alpha, per_sample=False, generator=seeded_generator(5))

    assert torch.equal(mix.lam, plain.lam)
    assert torch.equal(mix.partner, plain.partner)
    assert mix.is_identity == (alpha == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_draws_the_same_value(kind: type[Mix]) -> None:
    """All of it comes from the generator, and the next draw is another one."""
    generator = seeded_generator(2)
    first, second = (kind.sample(5, 1.0, generator=generator) for _ in range(2))
    again, values = kind.sample(5, 1.0, generator=seeded_generator(2)), maps()

    assert torch.equal(first(values), again(values))
    assert not torch.equal(first(values), second(values))


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_frozen_and_can_be_copied(kind: type[Mix]) -> None:
    """A copy, a pickled one and one moved to a device do the same."""
    mix, values = kind.sample(5, 1.0), maps()
    with pytest.raises(AttributeError):
        mix.lam = torch.ones(5)  # type: ignore[misc]

    for same in (copy.deepcopy(mix), pickle.loads(pickle.dumps(mix)), mix.to("cpu")):
        assert torch.equal(same(values), mix(values))
    assert type(mix.to("meta")) is kind


@pytest.mark.parametrize("kind", [Mix, *KINDS])
def test_unmixed_changes_nothing_and_is_of_the_same_kind(kind: type[Mix]) -> None:
    """It is the identity for as many samples, and shares no tensor with the mix."""
    mix, values = kind.sample(5, 1.0), maps()
    unmixed = mix.unmixed()

    assert type(unmixed) is kind
    assert unmixed.is_identity
    assert not mix.is_identity
    assert torch.equal(unmixed(values), values)
    for name, value in vars(mix).items():
        assert not isinstance(value, Tensor) or getattr(unmixed, name) is not value


@pytest.mark.parametrize("kind", KINDS)
def test_integers_and_other_batches_are_refused(kind: type[Mix]) -> None:
    """The checks of `Mix` are made first."""
    mix = kind(LAM, PARTNER)
    with pytest.raises(TypeError, match="cannot mix a int64 tensor"):
        mix(torch.ones(5, 4, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mix of 5 samples .* \(4, 4, 3, 3\)"):
        mix(torch.ones(4, 4, 3, 3))


# In models


def conv_net() -> nn.Sequential:
    """Maps, pooled features and logits of 3 classes, in float64."""
    layers = OrderedDict(
        stem=nn.Conv2d(2, 4, 3, padding=1),
        act=nn.Tanh(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(4, 3),
    )
    return nn.Sequential(layers).double()


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    """Images (n, 2, 7, 5) in float64 and class indices (n,) of 3 classes."""
    return torch.randn(n, 2, 7, 5, dtype=torch.float64), torch.arange(n) % 3


@pytest.mark.parametrize("layer", ["stem", "input"])
@pytest.mark.parametrize("kind", [*KINDS, partial(NoisyMix, additive=1.0)])
def test_hook_mixes_by_the_kind(kind: Any, layer: str) -> None:
    """The logits are those of features mixed by hand with the step's own value."""
    model, (images, target) = conv_net(), batch()
    mixup = ManifoldMixup(model, layer, alpha=1.0, kind=kind, example=images)
    with mixup(target) as mix:
        logits = model(images)
    if layer == "input":
        expected = model(mix(images))
    else:
        expected = forward_with(model, layer, mix(output_at(model, layer, images)), images)

    assert torch.equal(logits, expected)
    assert not torch.equal(logits, model(images))
    assert not hasattr(mix, "additive") or mix.additive == (1.0 if kind is not NoisyMix else 0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_mixes_in_the_same_way(kind: type[Mix], reentrant: bool) -> None:
    """With activation checkpointing the gradients are those without it."""
    model, (images, target) = conv_net(), batch()
    images.requires_grad_()
    grads = []
    for run in (lambda x: model(x), lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        with ManifoldMixup(model, "stem", alpha=1.0, kind=kind, example=images) as mixup:
            with mixup(target) as mix:
                loss = mixed_loss(run(images), target, mix)
            grads.append(
                torch.autograd.grad(loss, images) if not reentrant else backward(loss, images)
            )

    assert torch.equal(grads[0][0], grads[1][0])


def backward(loss: Tensor, images: Tensor) -> tuple[Tensor]:
    """The gradient of a loss, by `backward`, as reentrant checkpointing wants it."""
    images.grad = None
    loss.backward()
    assert images.grad is not None
    return (images.grad,)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_compiles_into_one_graph(kind: type[Mix]) -> None:
    """For all draws of lam, layer and whether to mix; logits and gradients are the eager ones."""
    model, (images, target) = conv_net(), batch()
    graphs: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    results = []
    for run in (model, torch.compile(model, backend=count, fullgraph=True)):
        rows = []
        layers = ["stem", "act"]
        with ManifoldMixup(model, layers, kind=kind, prob=0.7, example=images) as mixup:
            for _ in range(8):
                with mixup(target) as mix:
                    loss = mixed_loss(run(images), target, mix)
                (grad,) = torch.autograd.grad(loss, model.stem.weight)
                rows.append(torch.cat([loss.detach().view(1), grad.flatten()]))
        results.append(torch.stack(rows))

    assert len(graphs) == 1
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", ["flat", ["stem", "flat"], ("stem", "flat")])
def test_layer_that_a_kind_cannot_take_is_an_error_at_attach(layers: Any) -> None:
    """It names the layer, and attaches nothing."""
    model, (images, _) = conv_net(), batch()
    if layers == ("stem", "flat"):
        layers, expected = [layers], "mixing both"
    else:
        expected = r"Sequential: layer 'flat': CutMix takes boxes from maps .* got shape \(2, 4\)"
    with pytest.raises(ValueError, match=expected):
        ManifoldMixup(model, layers, kind=CutMix, example=images)

    assert not any(module._forward_hooks for module in model.modules())


def test_layer_that_a_kind_cannot_take_is_an_error_in_the_first_step() -> None:
    """Where the model could not be tried before."""
    model, (images, target) = conv_net(), batch()
    mixup = ManifoldMixup(model, "flat", kind=CutMix)
    with pytest.raises(ValueError, match="layer 'flat': CutMix"), mixup(target):
        model(images)


def test_input_that_a_kind_cannot_take_is_an_error_in_the_step() -> None:
    """It names the input."""
    model = nn.Linear(4, 3)
    mixup = ManifoldMixup(model, "input", kind=CutMix, alpha=1.0, example=torch.randn(2, 4))
    with pytest.raises(ValueError, match="layer 'input': CutMix"), mixup(torch.zeros(6)):
        model(torch.randn(6, 4))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("cutmix", TypeError, "kind='cutmix': expected Mix, CutMix, "),
        (partial(NoisyMix, 0.5), TypeError, "expected Mix, CutMix, "),
        (partial(torch.sin), TypeError, "expected Mix, CutMix, "),
        (partial(NoisyMix, loud=1), TypeError, "loud"),
        (partial(NoisyMix, additive=-1), ValueError, "additive=-1"),
        (partial(CutMix, pairing="any"), TypeError, "pairing"),
    ],
)
def test_what_is_no_kind_is_refused_at_attach(
    kind: Any, error: type[Exception], message: str
) -> None:
    """Before anything is attached."""
    model, (images, _) = conv_net(), batch()
    with pytest.raises(error, match=message):
        ManifoldMixup(model, "stem", kind=kind, example=images)

    assert not model.stem._forward_hooks


# Now and then, and more and more


def drawn(steps: int, **options: Any) -> list[Mix]:
    """The mixes of some steps of a small net."""
    model, (images, target) = conv_net(), batch()
    mixes = []
    with ManifoldMixup(model, "stem", alpha=1.0, example=images, **options) as mixup:
        for _ in range(steps):
            with mixup(target) as mix:
                model(images)
            mixes.append(mix)
    return mixes


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_share_of_mixed_steps_is_the_probability(prob: float) -> None:
    """The others change nothing; they come by chance, not in turn."""
    mixed = [not mix.is_identity for mix in drawn(200, prob=prob)]

    assert sum(mixed) / 200 == pytest.approx(prob, abs=0.1)
    if prob == 0.3:
        assert len({tuple(mixed[i : i + 3]) for i in range(198)}) == 8


def test_an_unmixed_step_still_proves_that_the_layer_ran() -> None:
    """A step without a forward pass is an error, mixed or not."""
    model, (images, target) = conv_net(), batch()
    mixup = ManifoldMixup(model, "stem", prob=0.0, example=images)
    with mixup(target) as mix:
        loss = mixed_loss(model(images), target, mix)
    with pytest.raises(RuntimeError, match="ran 0 times"), mixup(target):
        pass

    assert torch.equal(loss, F.cross_entropy(model(images), target))


def test_without_a_probability_old_seeds_draw_what_they_did() -> None:
    """The chance is drawn only where there is one."""
    generator = seeded_generator(7, "mix", 0)
    for mix in drawn(3, seed=7):
        plain = Mix.sample(6, 1.0, generator=generator)
        assert torch.equal(mix.lam, plain.lam)
        assert torch.equal(mix.partner, plain.partner)


@pytest.mark.parametrize("prob", [-0.1, 1.1, float("nan")])
def test_impossible_probabilities_are_refused(prob: float) -> None:
    """At attach."""
    with pytest.raises(ValueError, match="prob="):
        drawn(1, prob=prob)


def test_alpha_may_be_assigned_between_steps() -> None:
    """The next step draws from it; a wrong one is refused and changes nothing."""
    model, (images, target) = conv_net(), batch()
    mixup = ManifoldMixup(model, "stem", alpha=0.0, example=images)
    with mixup(target) as off:
        model(images)
    mixup.alpha = 1.0
    with pytest.raises(ValueError, match="alpha=-1"):
        mixup.alpha = -1
    with mixup(target) as on:
        model(images)

    assert off.is_identity
    assert not on.is_identity
    assert mixup.alpha == 1.0


# In training


Samples = list[tuple[Tensor, int]]


def pictures(n: int = 24) -> Samples:
    """Pairs of a random image and one of 3 classes."""
    images, target = batch(n)
    return list(zip(images.float(), target.tolist(), strict=True))


def frozen_net() -> nn.Module:
    """The small net with nothing to train but its head."""
    model = conv_net().float()
    freeze(model, except_=model.head)
    return model


def named(wishes: dict[str, Any]) -> str:
    """Wishes in words that are the same in every process."""
    return re.sub(r" at 0x\w+", "", str(wishes))


def half_way(done: float) -> float:
    """No mixing in the first half of the training, then alpha 1."""
    return float(done >= 0.5)


OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 5, "alpha": 1.0, "seed": 3, "lr": 0.05}


@pytest.mark.parametrize(
    "options",
    [
        {"kind": CutMix},
        {"kind": MomentExchange},
        {"kind": NoisyMix},
        {"kind": partial(NoisyMix, additive=0.5)},
        {"kind": CutMix, "prob": 0.5, "alpha": half_way},
        {"prob": 0.5},
        {"alpha": half_way},
    ],
    ids=named,
)
def test_cached_training_is_the_hooked_one(tmp_path: Path, options: dict[str, Any]) -> None:
    """By every kind, with chance and schedule, from features as they are at the layer."""
    model, data, options = frozen_net(), pictures(), OPTIONS | options
    store = extract_features(model, "act", data, tmp_path, fold="kind" not in options)
    cached = train_head(copy.deepcopy(model), store, **options)
    hooked = train_head(copy.deepcopy(model), data, layer="act", **options)
    plain = train_head(copy.deepcopy(model), data, layer="act", **OPTIONS)

    assert cached.losses == pytest.approx(hooked.losses, abs=1e-5)
    for name, tensor in hooked.head.items():
        torch.testing.assert_close(cached.head[name], tensor, rtol=0, atol=1e-5)
    assert hooked.losses != pytest.approx(plain.losses, abs=1e-3)


@pytest.mark.parametrize("kind", [*KINDS, partial(NoisyMix, additive=0)])
def test_folded_features_are_refused_for_other_kinds(tmp_path: Path, kind: Any) -> None:
    """They lie behind steps after which such a mix would be another; `Mix` may be told by a
    partial.
    """
    model, options = frozen_net(), OPTIONS | {"epochs": 1}
    store = extract_features(model, "act", pictures(), tmp_path)
    with pytest.raises(ValueError, match="'pool' in the place of 'act', but .*fold=False"):
        train_head(model, store, kind=kind, **options)

    train_head(model, store, kind=partial(Mix), **options)
    assert store.stored_layer == "pool"


def test_schedule_is_asked_once_for_each_epoch() -> None:
    """By the share of epochs done; a constant one is the constant."""
    asked: list[float] = []

    def schedule(done: float) -> float:
        asked.append(done)
        return 1.0

    constant = train_head(frozen_net_of_seed(), pictures_of_seed(), layer="act", **OPTIONS)
    told = OPTIONS | {"alpha": schedule}
    scheduled = train_head(frozen_net_of_seed(), pictures_of_seed(), layer="act", **told)

    assert asked == [0, 0.25, 0.5, 0.75]
    assert scheduled.losses == constant.losses


def frozen_net_of_seed() -> nn.Module:
    """The same small net each time."""
    torch.manual_seed(1)
    return frozen_net()


def pictures_of_seed() -> Samples:
    """The same images each time."""
    torch.manual_seed(2)
    return pictures()


def test_schedule_changes_the_mixes_when_it_says_so() -> None:
    """The first epochs are those without mixing, to the bit; later ones are not."""

    def losses(alpha: Alpha) -> list[float]:
        told = OPTIONS | {"alpha": alpha}
        return train_head(frozen_net_of_seed(), pictures_of_seed(), layer="act", **told).losses

    off, rising = losses(0.0), losses(half_way)

    assert rising[:10] == off[:10]
    assert rising[10:] != pytest.approx(off[10:], abs=1e-3)


@pytest.mark.parametrize("way", ["cached", "hooked"])
def test_training_by_kind_chance_and_schedule_is_resumed_to_the_same_bits(
    tmp_path: Path, way: str
) -> None:
    """From after any epoch it ends as without a break."""
    start, data = frozen_net(), pictures()
    options = OPTIONS | {"kind": NoisyMix, "prob": 0.6, "alpha": lambda done: 2 * done}
    where: dict[str, Any] = {"layer": "act"} if way == "hooked" else {}
    samples: Any = data
    if way == "cached":
        samples = extract_features(start, "act", data, tmp_path, fold=False)
    stands: list[Any] = []
    whole = train_head(copy.deepcopy(start), samples, on_epoch=stands.append, **where, **options)

    for stand in stands[:-1]:
        model = copy.deepcopy(start)
        resumed = train_head(model, samples, resume=stand, **where, **options)
        assert resumed.losses == whole.losses
        assert all(torch.equal(resumed.head[n], t) for n, t in whole.head.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": lambda done: 1 - 2 * done}, r"alpha=-0\.5"),
        ({"prob": 2.0}, r"prob=2\.0"),
        ({"kind": CutMix, "layer": "flat"}, "layer 'flat': CutMix"),
    ],
)
def test_impossible_wishes_are_refused_before_the_first_step(
    options: dict[str, Any], message: str
) -> None:
    """A schedule is looked through to its end."""
    model = frozen_net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        train_head(model, pictures(), **{"layer": "act", **OPTIONS, **options})

    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
