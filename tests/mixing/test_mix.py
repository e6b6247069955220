"""What a mix does to tensors and targets, and how it is drawn."""

import copy
import dataclasses
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from manifold_mixup import Mix
from manifold_mixup._random import seeded_generator

LAM = [0.9, 0.25, 1.0, 0.0, 0.5]
PARTNER = [2, 0, 1, 4, 3]
PLAIN = [0.9, 0.25, 0.6, 0.1, 0.5]
HALF = torch.bfloat16
MIXES = {
    "cycle": Mix(PLAIN, PARTNER),
    "cycle, exact": Mix(LAM, PARTNER),
    "shared partners": Mix(PLAIN, [2, 2, 1, 1, 2]),
    "by themselves": Mix(PLAIN, [0, 2, 1, 3, 4]),
    "partners only": Mix(0.0, [2, 2, 1, 0, 3]),
    "rounds to 1": Mix([1 - 1e-12, 1e-60, 0.5, 0.5, 0.5], [1, 0, 3, 4, 2]),
}


def by_loop(mix: Mix, values: Tensor) -> Tensor:
    """The definition, one sample at a time and in Python's own floats."""
    mixed = []
    for i, own in enumerate(values):
        lam, other = float(mix.lam[i]), values[int(mix.partner[i])]
        mixed.append(lam * own + (1 - lam) * other)
    return torch.stack(mixed)


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """One row for each class index, with a 1 in its column."""
    rows = torch.zeros(len(target), num_classes, dtype=torch.float64)
    for i, t in enumerate(target.tolist()):
        rows[i, t] = 1
    return rows


def matrix(mix: Mix) -> Tensor:
    """What each sample takes from each, as a product would have it (B, B)."""
    taken = torch.zeros(len(mix), len(mix), dtype=torch.float64)
    for i, (lam, partner) in enumerate(zip(mix.lam, mix.partner, strict=True)):
        taken[i, i] += lam
        taken[i, partner] += 1 - lam
    return taken


def product(weights: Tensor, values: Tensor) -> Tensor:
    """Each sample's weighted sum of all, in float64."""
    return (weights @ values.double().reshape(len(values), -1)).view(values.shape)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of each term of a sum."""
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=2 * eps, atol=8 * eps)


@pytest.fixture(params=MIXES)
def mix(request: pytest.FixtureRequest) -> Mix:
    """Partners that are a permutation or not, weights that are exact or not."""
    return MIXES[request.param]


def sparse_csr(values: Tensor) -> Tensor:
    """The values in compressed rows."""
    return torch.sparse_csr_tensor(
        torch.arange(len(values) + 1) * values.shape[1],
        torch.arange(values.shape[1]).repeat(len(values)),
        values.flatten(),
        values.shape,
    )


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4, 2), (5, 2, 1, 3, 2), (5, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_mix_equals_loop_over_samples(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each sample becomes lam times itself plus 1 - lam times its partner, on any axes."""
    mix = Mix(LAM, PARTNER)
    values = torch.randn(shape, dtype=dtype)

    torch.testing.assert_close(mix(values), by_loop(mix, values), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "lam", [0.3, [0.3] * 5, torch.tensor(0.3, dtype=torch.float64), np.full(5, 0.3)]
)
def test_one_lam_stands_for_every_sample(lam: Any) -> None:
    """A number, a 0-d tensor and a constant vector are the same mix, in full precision."""
    mix = Mix(lam, PARTNER)

    assert mix.lam.dtype == torch.float64
    assert mix.lam.tolist() == [0.3] * 5


@given(
    lam=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    partner=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_mixed_value_lies_between_sample_and_partner(
    lam: list[float], partner: list[int], values: list[float]
) -> None:
    """A mix never leaves the interval between the two values, for any lam and any partner."""
    own = torch.tensor(values, dtype=torch.float64)
    other = own[torch.tensor(partner)]

    mixed = Mix(lam, partner)(own)

    slack = 1e-9 * (1 + own.abs().max())
    assert (mixed >= torch.minimum(own, other) - slack).all()
    assert (mixed <= torch.maximum(own, other) + slack).all()


def test_mix_leaves_its_input_untouched() -> None:
    """Mixing is out of place."""
    values = torch.randn(5, 3)
    before = values.clone()

    mixed = Mix(LAM, PARTNER)(values)

    assert torch.equal(values, before)
    assert mixed.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("memory", ["contiguous", "transposed", "every second", "expanded"])
def test_mix_reads_any_strides(memory: str) -> None:
    """A view mixes like its contiguous copy."""
    values = {
        "contiguous": torch.randn(5, 4, dtype=torch.float64),
        "transposed": torch.randn(4, 5, dtype=torch.float64).t(),
        "every second": torch.randn(10, 4, dtype=torch.float64)[::2],
        "expanded": torch.randn(5, 1, dtype=torch.float64).expand(5, 4),
    }[memory]
    mix = Mix(PLAIN, PARTNER)

    torch.testing.assert_close(mix(values), by_loop(mix, values), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_values_and_gradient_are_those_of_a_matrix_product(mix: Mix, dtype: torch.dtype) -> None:
    """A mix is a product with a matrix, its gradient one with the transposed."""
    values, upstream = torch.randn(2, 5, 3, 4).to(dtype)
    leaf = values.clone().requires_grad_()

    mixed = mix(leaf)
    (gradient,) = torch.autograd.grad(mixed, leaf, upstream)

    assert_near(mixed.detach(), product(matrix(mix), values))
    assert_near(gradient, product(matrix(mix).T, upstream))
    assert mixed.dtype == gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_gradients_do_not_change_the_values(mix: Mix, dtype: torch.dtype) -> None:
    """With a gradient, without one and in inference mode, the mix is the same."""
    values = torch.randn(5, 3).to(dtype)

    expected = mix(values.clone().requires_grad_()).detach()

    with torch.no_grad():
        assert torch.equal(mix(values), expected)
    with torch.inference_mode():
        assert torch.equal(mix(values.clone()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("partner", [[3, 4, 0, 1, 2], [3, 4, 0, 0, 0]])
def test_gradient_of_what_weighs_nothing_is_not_seen(
    dtype: torch.dtype, partner: list[int]
) -> None:
    """An infinite gradient does not reach a sample through a weight of 0."""
    leaf = torch.randn(5, 3).to(dtype).requires_grad_()
    upstream = torch.ones(5, 3, dtype=dtype)
    upstream[0] = torch.inf

    (gradient,) = torch.autograd.grad(Mix([1, 0, 0.5, 0.5, 0.5], partner)(leaf), leaf, upstream)

    assert bool(gradient[0].isinf().all())
    assert bool(gradient[1:].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_result_can_be_changed_in_place(mix: Mix, dtype: torch.dtype) -> None:
    """An in-place activation may follow the mix, and gradients pass through both."""
    leaf = torch.randn(5, 3, 4, 6).to(dtype).requires_grad_()

    (gradient,) = torch.autograd.grad(torch.relu_(mix(leaf)).sum(), leaf)

    assert_near(gradient, product(matrix(mix).T, (mix(leaf) > 0).to(dtype)))


def test_second_derivative_is_that_of_a_matrix_product(mix: Mix) -> None:
    """Double backward passes through the mix and through its gradient."""
    values, weights = torch.randn(5, 30, dtype=torch.float64), matrix(mix)

    def twice(apply: Any) -> Tensor:
        leaf = values.clone().requires_grad_()
        (first,) = torch.autograd.grad(apply(leaf).pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), leaf)[0]

    torch.testing.assert_close(twice(mix), twice(lambda leaf: weights @ leaf))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # forward mode uses it
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the transform itself
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_other_kinds_of_derivatives_agree(mix: Mix, dtype: torch.dtype) -> None:
    """Forward mode, batched gradients and functional transforms give what backward gives."""
    values, tangent = torch.randn(2, 5, 3, 4).to(dtype)
    leaf, upstream = values.clone().requires_grad_(), torch.randn(3, *values.shape).to(dtype)

    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(mix(forward_ad.make_dual(values, tangent)))
    (batched,) = torch.autograd.grad(mix(leaf), leaf, upstream, is_grads_batched=True)
    functional = torch.func.vjp(mix, values)[1](upstream[0])[0]

    assert dual.tangent is not None
    assert_near(dual.tangent, product(matrix(mix), tangent))
    for found, each in zip((*batched, functional), (*upstream, upstream[0]), strict=True):
        assert_near(found, product(matrix(mix).T, each))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the transform itself
def test_vectorized_mix_is_the_mix_of_each(mix: Mix) -> None:
    """`torch.func.vmap` over several batches mixes each of them."""
    batches = torch.randn(3, 5, 9)

    vectorized = torch.func.vmap(mix)(batches)

    torch.testing.assert_close(vectorized, torch.stack([mix(batch) for batch in batches]))


def test_subclass_is_kept(mix: Mix) -> None:
    """A tensor of a class of its own stays one."""

    class Image(Tensor):
        """Of a class of its own."""

    assert type(mix(torch.randn(5, 9).as_subclass(Image).to(HALF))) is Image


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64],
)
@pytest.mark.parametrize("lam", [LAM, PLAIN])
def test_mix_keeps_dtype_and_rounds_once(dtype: torch.dtype, lam: list[float]) -> None:
    """The result is the exact mix rounded to the values' own dtype."""
    mix = Mix(lam, PARTNER)
    values = torch.randn(5, 64, dtype=torch.float64).to(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64

    mixed = mix(values)

    real = dtype.to_real()
    assert mixed.dtype == dtype
    torch.testing.assert_close(
        mixed.to(wide), by_loop(mix, values.to(wide)), rtol=torch.finfo(real).eps, atol=1e-6
    )


def test_half_precision_does_not_overflow() -> None:
    """The difference of two float16 values may leave float16, their mix does not."""
    values = torch.tensor([60000.0, -60000.0], dtype=torch.float16)

    mixed = Mix([0.75, 0.5], [1, 0])(values)

    assert mixed.tolist() == [30000.0, 0.0]


@pytest.mark.parametrize("lam", [LAM, PLAIN])
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((5, 3, 4, 6), torch.channels_last),
        ((5, 3, 2, 4, 6), torch.channels_last_3d),
        ((5, 3, 4, 6), torch.contiguous_format),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mix_keeps_memory_format(
    lam: list[float],
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    """A channels-last map stays channels-last, with and without weights of 0."""
    values = torch.randn(shape, dtype=dtype).to(memory_format=memory_format)

    mixed = Mix(lam, PARTNER)(values)

    assert mixed.stride() == values.stride()


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, 3, dtype=torch.int64), "int64"),
        (torch.ones(2, 3, dtype=torch.uint8), "uint8"),
        (torch.ones(2, 3, dtype=torch.bool), "bool"),
        (torch.ones(2, 3).to_sparse(), "sparse_coo"),
    ],
)
def test_unmixable_tensor_is_refused_by_name(tensor: Tensor, kind: str) -> None:
    """Values that have no weighted mean are refused, and the message names their kind."""
    with pytest.raises(TypeError, match=f"cannot mix a .*{kind}"):
        Mix(0.5, [1, 0])(tensor)


@pytest.mark.filterwarnings("ignore")  # that these kinds of tensor are deprecated or prototypes
@pytest.mark.parametrize("kind", ["quantized", "nested", "sparse_csr"])
def test_special_tensor_is_refused_by_name(kind: str) -> None:
    """Quantized, nested and compressed tensors are refused by name, not by a failing kernel."""
    tensor = {
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "sparse_csr": lambda: sparse_csr(torch.ones(2, 3)),
    }[kind]()

    with pytest.raises(TypeError, match=f"cannot mix a .*{kind}"):
        Mix(0.5, [1, 0])(tensor)


@pytest.mark.parametrize("name", ["lam", "partner"])
def test_mix_is_frozen(name: str) -> None:
    """Neither part of a mix can be replaced."""
    mix = Mix(0.5, [1, 0])

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(mix, name, torch.zeros(2))


def test_mix_does_not_follow_tensors_it_was_made_of() -> None:
    """Changing in place what a mix was made of does not change the mix."""
    lam = torch.tensor([0.75, 1.0], dtype=torch.float64)
    partner = torch.tensor([1, 0])
    mix = Mix(lam, partner)

    lam.zero_()
    partner.zero_()

    assert mix.lam.tolist() == [0.75, 1.0]
    assert mix.partner.tolist() == [1, 0]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: m.to("cpu")])
def test_copy_mixes_alike(duplicate: Any) -> None:
    """A copy, a deep copy and the mix on another device mix as the original does."""
    mix = Mix(LAM, PARTNER)
    values = torch.randn(5, 3)

    assert torch.equal(duplicate(mix)(values), mix(values))


def test_mix_survives_pickling() -> None:
    """A mix can be sent to another process."""
    mix = Mix(LAM, PARTNER)
    values = torch.randn(5, 3)

    assert torch.equal(pickle.loads(pickle.dumps(mix))(values), mix(values))


def test_mix_moves_to_another_device() -> None:
    """Both parts of a mix move."""
    moved = Mix(0.5, [1, 0]).to("meta")

    assert (moved.lam.device.type, moved.partner.device.type) == ("meta", "meta")
    assert moved(torch.ones(2, 3, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("mix", [Mix(1.0, PARTNER), Mix(LAM, range(5))])
def test_identity(mix: Mix, dtype: torch.dtype) -> None:
    """With lam = 1, or with everyone their own partner, nothing changes, not even in one bit."""
    values = torch.randn(5, 3, dtype=torch.float64).to(dtype)

    assert torch.equal(mix(values), values)


def test_only_weights_of_1_make_an_identity() -> None:
    """A mix knows whether it leaves everything as it is."""
    assert Mix(1.0, PARTNER).is_identity
    assert not Mix(LAM, PARTNER).is_identity
    assert not Mix(math.nextafter(1.0, 0.0), PARTNER).is_identity


def test_mix_keeps_batch_sum() -> None:
    """With one lam and a permutation, the sum over the batch stays."""
    values = torch.randn(5, 3, dtype=torch.float64)

    mixed = Mix(0.3, PARTNER)(values)

    torch.testing.assert_close(mixed.sum(0), values.sum(0), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_weight_of_0_contributes_0(bad: float, dtype: torch.dtype) -> None:
    """What weighs nothing is not seen, be it infinite or no number at all."""
    values = torch.tensor([2.0, bad, 5.0], dtype=dtype)

    mixed = Mix([1.0, 0.0, 0.5], [1, 0, 0])(values)

    assert mixed.tolist() == [2.0, 2.0, 3.5]


def test_weight_that_rounds_to_0_contributes_0() -> None:
    """A lam that the values' dtype cannot tell from 1 or 0 counts as 1 or 0."""
    values = torch.tensor([2.0, math.inf])

    mixed = Mix([1 - 1e-12, 1e-60], [1, 0])(values)

    assert mixed.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("lam", "partner", "error", "message"),
    [
        (1.5, [1, 0], ValueError, "from 1.5 to 1.5"),
        ([-0.25, 0.5], [1, 0], ValueError, "from -0.25 to 0.5"),
        (math.nan, [1, 0], ValueError, "lam must lie in [0, 1]"),
        ([0.5] * 3, [1, 0], ValueError, "shape (2,) like partner, got (3,)"),
        ([[0.5], [0.5]], [1, 0], ValueError, "got (2, 1)"),
        (0.5, [2, 0], ValueError, "partner must lie in [0, 2), got values from 0 to 2"),
        (0.5, [-1, 0], ValueError, "from -1 to 0"),
        (0.5, [[1, 0]], ValueError, "partner must have shape (B,), got (1, 2)"),
        (0.5, torch.zeros(0, dtype=torch.int64), ValueError, "got (0,)"),
        (0.5, [1.0, 0.0], TypeError, "torch.float32"),
        (0.5, [True, False], TypeError, "torch.bool"),
    ],
)
def test_wrong_lam_or_partner_is_refused(
    lam: Any, partner: Any, error: type[Exception], message: str
) -> None:
    """A mix that could not be applied is not made, and the message has the value."""
    with pytest.raises(error, match=re.escape(message)):
        Mix(lam, partner)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.uint16])
def test_partner_may_have_any_integer_dtype(dtype: torch.dtype) -> None:
    """Integers of other widths are indices as well."""
    mix = Mix(0.5, torch.tensor([1, 0], dtype=dtype))

    assert mix.partner.dtype == torch.int64
    assert mix.partner.tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(197, 2, 4), (4, 5), ()])
def test_tensor_of_another_batch_is_refused(shape: tuple[int, ...]) -> None:
    """The first axis must be the batch, else the message has both sizes."""
    message = f"mix of 5 samples applied to a tensor of shape {shape}"

    with pytest.raises(ValueError, match=re.escape(message)):
        Mix(LAM, PARTNER)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_mix_compiles_into_one_graph(dtype: torch.dtype) -> None:
    """Compiled, a mix is one graph without a break, for all weights and partners."""
    torch._dynamo.reset()
    compiled = torch.compile(Mix.__call__, fullgraph=True, backend="eager")
    values = torch.randn(5, 3).to(dtype)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for mix in MIXES.values():
            assert_near(compiled(mix, values), product(matrix(mix), values))
    torch._dynamo.reset()


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 2.0, 8.0])
def test_lam_is_beta_distributed(alpha: float) -> None:
    """A Kolmogorov-Smirnov test cannot tell lam from SciPy's Beta(alpha, alpha)."""
    lam = Mix.sample(4000, alpha, generator=seeded_generator(0)).lam

    assert stats.kstest(lam.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.001


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 0.4, 1.0, 4.0])
def test_moments_of_lam(alpha: float) -> None:
    """The mean of lam is 1/2 and its variance 1/(4(2 alpha + 1)), within 5 standard errors."""
    n = 400_000
    lam = Mix.sample(n, alpha, generator=seeded_generator(1)).lam
    variance = 1 / (4 * (2 * alpha + 1))
    spread_of_squares = stats.beta(alpha, alpha).moment(4) ** 0.5

    assert float(lam.mean()) == pytest.approx(0.5, abs=5 * (variance / n) ** 0.5)
    assert float(lam.var()) == pytest.approx(variance, abs=5 * spread_of_squares / n**0.5)


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-3, 0.4, 1e3, 1e300])
def test_lam_lies_between_0_and_1(alpha: float) -> None:
    """Even for extreme alpha, every lam is a number in [0, 1]."""
    lam = Mix.sample(1000, alpha, generator=seeded_generator(0)).lam

    assert bool(((lam >= 0) & (lam <= 1)).all())


def test_tiny_alpha_chooses_one_of_two() -> None:
    """With a tiny alpha nearly all weights are 0 or 1, both about as often."""
    lam = Mix.sample(1000, 1e-3, generator=seeded_generator(0)).lam

    extreme = ((lam < 1e-6) | (lam > 1 - 1e-6)).double().mean()
    assert float(extreme) > 0.95
    assert 400 < int((lam > 0.5).sum()) < 600


def test_alpha_0_mixes_nothing() -> None:
    """An alpha of 0 keeps every sample as it is."""
    mix = Mix.sample(8, 0)
    values = torch.randn(8, 3)

    assert mix.is_identity
    assert torch.equal(mix(values), values)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_wrong_alpha_is_refused(alpha: float) -> None:
    """An alpha below 0 or not finite is refused, and the message has it."""
    with pytest.raises(ValueError, match=f"alpha={alpha}"):
        Mix.sample(4, alpha)


@pytest.mark.parametrize("n", [0, -3])
def test_empty_batch_is_refused(n: int) -> None:
    """There is nothing to mix in a batch without samples."""
    with pytest.raises(ValueError, match=f"n={n}"):
        Mix.sample(n)


def test_unknown_pairing_is_refused() -> None:
    """A rule that does not exist is refused when a mix is drawn."""
    with pytest.raises(ValueError, match="pairing='nearest'"):
        Mix.sample(4, pairing="nearest")


@pytest.mark.parametrize("per_sample", [True, False])
def test_single_sample_stays(per_sample: bool) -> None:
    """A batch of one is a no-op, not a crash."""
    mix = Mix.sample(1, per_sample=per_sample)

    assert mix.is_identity
    assert mix.partner.tolist() == [0]


@pytest.mark.parametrize("n", [2, 7, 33])
def test_sample_has_one_lam_and_partner_each(n: int) -> None:
    """Odd and even batches get a lam and a partner for every sample."""
    mix = Mix.sample(n, alpha=1.0)

    assert len(mix) == n
    assert len(set(mix.lam.tolist())) == n
    assert sorted(mix.partner.tolist()) == list(range(n))


def test_one_lam_for_the_batch() -> None:
    """Without `per_sample` a batch has one lam, and the next batch another."""
    generator = seeded_generator(0)
    first, second = (Mix.sample(8, per_sample=False, generator=generator) for _ in range(2))

    assert len(set(first.lam.tolist())) == 1
    assert first.lam[0] != second.lam[0]


def test_seed_fixes_the_mix() -> None:
    """The same generator state gives the same mix, another seed or a later draw another."""
    generator = seeded_generator(0)
    first, later = Mix.sample(64, generator=generator), Mix.sample(64, generator=generator)
    again, other = (Mix.sample(64, generator=seeded_generator(seed)) for seed in (0, 1))

    assert torch.equal(first.lam, again.lam)
    assert torch.equal(first.partner, again.partner)
    for different in (later, other):
        assert not torch.equal(first.lam, different.lam)
        assert not torch.equal(first.partner, different.partner)


def test_global_random_state_is_left_alone() -> None:
    """A mix drawn from a generator does not disturb anyone else's draws."""
    before = torch.get_rng_state()

    Mix.sample(8, generator=seeded_generator(0))

    assert torch.equal(torch.get_rng_state(), before)


def test_without_generator_the_global_seed_counts() -> None:
    """`torch.manual_seed` fixes the mix where no generator is given."""
    mixes = []
    for _ in range(2):
        torch.manual_seed(3)
        mixes.append(Mix.sample(8))

    assert torch.equal(mixes[0].lam, mixes[1].lam)
    assert torch.equal(mixes[0].partner, mixes[1].partner)


@pytest.mark.parametrize(
    ("one", "other"), [((0,), (1,)), ((0,), (2**32,)), ((0, 1), (1, 0)), ((0, "a"), (0, "b"))]
)
def test_keys_seed_different_generators(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Keys that differ anywhere, be it above 32 bits or in their order, give other draws."""
    draws = [torch.rand(4, generator=seeded_generator(*key)) for key in (one, one, other)]

    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.uint16])
def test_mixed_indices_equal_mixed_one_hot(dtype: torch.dtype) -> None:
    """Class indices become one-hot rows, mixed as the features are."""
    mix = Mix(LAM, PARTNER)
    target = torch.tensor([0, 2, 2, 1, 3])

    mixed = mix.target(target.to(dtype), num_classes=4)

    assert mixed.dtype == torch.get_default_dtype()
    torch.testing.assert_close(mixed.double(), by_loop(mix, one_hot(target, 4)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mixed_probabilities_stay_probabilities(dtype: torch.dtype) -> None:
    """Floating targets are mixed as they are, in their own dtype."""
    mix = Mix(LAM, PARTNER)
    target = torch.rand(5, 4, dtype=torch.float64).softmax(1).to(dtype)

    mixed = mix.target(target)

    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed, by_loop(mix, target))
    torch.testing.assert_close(mixed.sum(1), torch.ones(5, dtype=dtype))


@pytest.mark.parametrize(
    ("target", "num_classes", "error", "message"),
    [
        (torch.tensor([0, 4]), 4, ValueError, "[0, 4], expected them in [0, 4)"),
        (torch.tensor([-1, 3]), 4, ValueError, "[-1, 3]"),
        (torch.tensor([0, 1]), None, ValueError, "pass num_classes="),
        (torch.tensor([[0, 2], [1, 1]]), None, TypeError, "pass num_classes="),
        (torch.tensor(1), 2, ValueError, "shape ()"),
        (torch.tensor([0, 1, 1]), 2, ValueError, "mix of 2 samples"),
    ],
)
def test_wrong_target_is_refused(
    target: Tensor, num_classes: int | None, error: type[Exception], message: str
) -> None:
    """Targets that are neither indices nor floating values are refused, with their kind."""
    with pytest.raises(error, match=re.escape(message)):
        Mix(0.5, [1, 0]).target(target, num_classes)
