"""What holds for large tensors on the CPU, which are mixed row by row."""

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from manifold_mixup import Mix
from manifold_mixup.rows import is_faster_by_rows

HALF = torch.bfloat16
PLAIN = [0.9, 0.25, 0.6, 0.1, 0.5]
EXACT = [0.9, 0.25, 1.0, 0.0, 0.5]
MIXES = {
    "cycle": Mix(PLAIN, [2, 0, 1, 4, 3]),
    "cycle, exact": Mix(EXACT, [2, 0, 1, 4, 3]),
    "shared partners": Mix(PLAIN, [2, 2, 1, 1, 2]),
    "shared partners, exact": Mix(EXACT, [2, 2, 1, 1, 2]),
    "by themselves": Mix(PLAIN, [0, 2, 1, 3, 4]),
    "partners only": Mix(0.0, [2, 2, 1, 0, 3]),
    "rounds to 1": Mix([1 - 1e-12, 1e-60, 0.5, 0.5, 0.5], [1, 0, 3, 4, 2]),
}
SHAPES = {
    "short rows": (5, 8, 30, 30),
    "rows of an odd length": (5, 9001),
    "rows in parts": (5, 16, 24, 24),
    "long rows": (5, 16, 65, 65),
    "long rows of an odd length": (5, 65537),
}


def large(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values that need a gradient, so many that they are mixed row by row."""
    values = torch.randn(shape).to(dtype)
    assert is_faster_by_rows(values.clone().requires_grad_(), has_exact=False)
    return values


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


def assert_near(found: Tensor, expected: Tensor, *values: Tensor) -> None:
    """Equal to half a unit in the last place, and to 1 part in 2**17 of the values mixed."""
    size = max(float(each.abs().max()) for each in values)
    rtol = torch.finfo(found.dtype).eps
    atol = 4 * size * (2**-17 if found.dtype == HALF else 2**-23)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)


@pytest.fixture(params=MIXES)
def mix(request: pytest.FixtureRequest) -> Mix:
    """Partners that are a permutation or not, weights that are exact or not."""
    return MIXES[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradient_are_those_of_a_matrix_product(
    mix: Mix, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """A mix is a product with a matrix, its gradient one with the transposed."""
    values, upstream = large(shape, dtype), large(shape, dtype)
    leaf = values.clone().requires_grad_()

    mixed = mix(leaf)
    (gradient,) = torch.autograd.grad(mixed, leaf, upstream)

    assert_near(mixed.detach(), product(matrix(mix), values), values)
    assert_near(gradient, product(matrix(mix).T, upstream), upstream)
    assert mixed.dtype == gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_do_not_change_the_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """With a gradient, without one and in inference mode, the mix is the same to rounding."""
    mix, values = MIXES["cycle, exact"], large(shape, dtype)

    expected = mix(values.clone().requires_grad_()).detach()

    with torch.no_grad():
        assert torch.equal(mix(values), expected)
    with torch.inference_mode():
        assert torch.equal(mix(values.clone()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_what_weighs_nothing_is_not_seen(
    shape: tuple[int, ...], dtype: torch.dtype, needs_gradient: bool
) -> None:
    """Rows with a weight of 0 or 1 are copies to the bit, whatever the other value is."""
    values = torch.randn(shape).to(dtype)
    values[3], values[0, 0] = torch.inf, torch.nan
    mix = Mix([1.0, 0.0, 1.0, 1e-60, 1 - 1e-12], [3, 4, 3, 2, 0])

    mixed = mix(values.requires_grad_(needs_gradient)).detach()

    assert torch.equal(mixed[1:], values.detach()[[4, 2, 2, 4]])
    assert torch.equal(mixed[0].isnan(), values[0].isnan())


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("partner", [[3, 4, 0, 1, 2], [3, 4, 0, 0, 0]])
def test_gradient_of_what_weighs_nothing_is_not_seen(
    shape: tuple[int, ...], dtype: torch.dtype, partner: list[int]
) -> None:
    """An infinite gradient does not reach a sample through a weight of 0."""
    leaf = large(shape, dtype).requires_grad_()
    upstream = torch.ones(shape, dtype=dtype)
    upstream[0] = torch.inf

    (gradient,) = torch.autograd.grad(Mix([1, 0, 0.5, 0.5, 0.5], partner)(leaf), leaf, upstream)

    assert bool(gradient[0].isinf().all())
    assert bool(gradient[1:].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize("lam", [PLAIN, EXACT])
@pytest.mark.parametrize("side", [32, 70], ids=["short rows", "long rows"])
def test_any_layout_in_memory_mixes_alike(
    dtype: torch.dtype, needs_gradient: bool, lam: list[float], side: int
) -> None:
    """Channels-last and other layouts give the values of a contiguous copy, and are kept."""
    mix, images = Mix(lam, [2, 0, 1, 4, 3]), torch.randn(10, 16, side, side).to(dtype)
    last = images.contiguous(memory_format=torch.channels_last)
    layouts = {
        "channels last": last[:5],
        "tokens": images[:5].flatten(2).transpose(1, 2),
        "every second": last[::2],
        "some channels": last[:5, :8],
        "samples innermost": images[:5].flatten(1).t().contiguous().t(),
        "expanded": images[:5, :1].expand(5, 16, side, side),
    }

    for name, layout in layouts.items():
        mixed = mix(layout.detach().requires_grad_(needs_gradient))
        dense = mix(layout.detach().contiguous().requires_grad_(needs_gradient))
        torch.testing.assert_close(mixed, dense, rtol=1e-6 if dtype != HALF else 8e-3, atol=1e-6)
        if name in ("channels last", "tokens"):
            assert mixed.stride() == layout.stride()
        elif "s" in name and layout.ndim == 4 and name != "expanded":
            assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [32, 70], ids=["short rows", "long rows"])
def test_result_can_be_changed_in_place(
    mix: Mix, dtype: torch.dtype, memory_format: torch.memory_format, side: int
) -> None:
    """An in-place activation may follow the mix, and gradients pass through both."""
    images = large((5, 16, side, side), dtype).contiguous(memory_format=memory_format)
    leaf = images.requires_grad_()

    (gradient,) = torch.autograd.grad(torch.relu_(mix(leaf)).sum(), leaf)

    passed = (mix(images) > 0).to(dtype)
    assert_near(gradient, product(matrix(mix).T, passed), passed)


def test_second_derivative_is_that_of_a_matrix_product(mix: Mix) -> None:
    """Double backward passes through the mix and through its gradient."""
    values, weights = torch.randn(5, 9000), matrix(mix).float()

    def twice(apply: Any) -> Tensor:
        leaf = values.clone().requires_grad_()
        (first,) = torch.autograd.grad(apply(leaf).pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), leaf)[0]

    torch.testing.assert_close(
        twice(mix), twice(lambda leaf: weights @ leaf), rtol=1e-4, atol=1e-4
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # forward mode uses it
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_other_kinds_of_derivatives_agree(mix: Mix, dtype: torch.dtype) -> None:
    """Forward mode, batched gradients and functional transforms give what backward gives."""
    values, tangent = large((5, 9, 30, 40), dtype), large((5, 9, 30, 40), dtype)
    leaf, upstream = values.clone().requires_grad_(), torch.randn(3, *values.shape).to(dtype)

    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(mix(forward_ad.make_dual(values, tangent)))
    (batched,) = torch.autograd.grad(mix(leaf), leaf, upstream, is_grads_batched=True)
    functional = torch.func.vjp(mix, values)[1](upstream[0])[0]

    assert dual.tangent is not None
    assert torch.equal(dual.tangent, mix(tangent))
    for found, each in zip(batched, upstream, strict=True):
        assert torch.equal(found, torch.autograd.grad(mix(leaf), leaf, each)[0])
    assert_near(functional, product(matrix(mix).T, upstream[0]), upstream[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the transform itself
def test_vectorized_second_derivative_is_that_of_a_matrix_product(mix: Mix) -> None:
    """A batched double backward, as vectorized Hessians use it, passes through the mix twice."""
    leaf, weights = torch.randn(5, 2, 60, 60, requires_grad=True), torch.randn(2, 5, 2, 60, 60)
    (first,) = torch.autograd.grad(mix(leaf).pow(2).sum(), leaf, create_graph=True)

    (second,) = torch.autograd.grad(first, leaf, weights, is_grads_batched=True)

    twice = matrix(mix).T @ matrix(mix) * 2
    for found, each in zip(second, weights, strict=True):
        torch.testing.assert_close(found.double(), product(twice, each), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the transform itself
def test_vectorized_mix_is_the_mix_of_each(mix: Mix) -> None:
    """`torch.func.vmap` over several batches mixes each of them."""
    batches = torch.randn(3, 5, 9000)

    vectorized = torch.func.vmap(mix)(batches)

    torch.testing.assert_close(vectorized, torch.stack([mix(batch) for batch in batches]))


def test_subclass_is_kept() -> None:
    """A tensor of a class of its own stays one."""

    class Image(Tensor):
        """Of a class of its own."""

    values = torch.randn(5, 9000).as_subclass(Image).to(HALF)

    assert type(MIXES["cycle"](values)) is Image


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_large_tensor_compiles_into_one_graph(dtype: torch.dtype) -> None:
    """Compiled, the mix of a large tensor is one graph for all weights and partners."""
    torch._dynamo.reset()
    compiled = torch.compile(Mix.__call__, fullgraph=True, backend="eager")
    values = large((5, 9000), dtype)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for mix in MIXES.values():
            assert_near(compiled(mix, values), product(matrix(mix), values), values)
    torch._dynamo.reset()
