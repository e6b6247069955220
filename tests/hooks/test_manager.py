"""The life of a ManifoldMixup: names, steps, the proof of the mix, and what it leaves behind."""

import copy
import pickle
import random
import re
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from nets import (
    Apply,
    Residual,
    Text,
    Wide,
    batch,
    forward_with,
    hooks_on,
    mixed_by_loop,
    output_at,
    small_net,
)
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup, freeze, mixed_loss

Pair = namedtuple("Pair", ("first", "second"))


@dataclass
class Features:
    """What a modern backbone returns."""

    hidden: Tensor
    pooled: Tensor
    note: str = "kept"


class Keyword(nn.Module):
    """A model that takes keyword arguments only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()

    def forward(self, *, values: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits, of what `keep` marks."""
        hidden = torch.tanh(self.stem(values))
        return self.head(hidden if keep is None else hidden * keep[:, None])


class Towers(nn.Module):
    """Two inputs, each with its own layer, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8).double(), nn.Linear(4, 8).double()
        self.head = nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x."""
        return self.head(torch.tanh(self.left(x) + self.right(x * x)))


class Table(nn.Module):
    """Continuous numbers beside the embedding of an index."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4).double()
        self.head = nn.Linear(8, 3).double()

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        """Logits for numbers (B, 4) and kinds (B,)."""
        return self.head(torch.cat([numbers, self.embedding(kinds)], 1))


def attached(model: nn.Module, layers: Any, **options: Any) -> ManifoldMixup:
    """A manager that mixes strongly, tried on four samples of `batch`."""
    if "example" not in options:
        options["example"] = torch.randn(4, 4, dtype=torch.float64)
    return ManifoldMixup(model, layers, **{"alpha": 1.0, **options})


def draws(mixup: ManifoldMixup, model: nn.Module, steps: int) -> list[Any]:
    """What a manager draws in some steps: layer, weights and partners."""
    features, target = batch()
    drawn = []
    for _ in range(steps):
        with mixup(target) as mix:
            model(features)
        drawn.append((mixup.drawn, mix.lam.tolist(), mix.partner.tolist()))
    return drawn


# What is mixed.


@pytest.mark.parametrize("layer", ["stem", "body", "head"])
def test_hooked_model_equals_the_model_cut_by_hand(layer: str) -> None:
    """A step gives what running, mixing and going on by hand gives."""
    model, (features, target) = small_net(), batch()
    cut = [name for name, _ in model.named_children()].index(layer) + 1

    with attached(model, layer)(target) as mix:
        logits = model(features)

    expected = model[cut:](mixed_by_loop(mix, model[:cut](features)))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(logits, model(features))


def test_mixing_before_the_head_equals_the_head_on_mixed_features() -> None:
    """Features may be stored and mixed later: the head then gives the same logits."""
    model, (features, target) = small_net(), batch()
    stored = model[:2](features).detach()

    with attached(model, "body")(target) as mix:
        logits = model(features)

    assert torch.equal(logits, model.head(mix(stored)))


def test_gradients_reach_both_partners() -> None:
    """A sample's loss depends on its partner's input by its share."""
    model, (features, target) = small_net(), batch()
    features.requires_grad_()

    with attached(model, "stem")(target) as mix:
        model(features)[0].sum().backward()

    expected = sorted({0, int(mix.partner[0])})
    assert features.grad is not None
    assert features.grad.abs().sum(1).nonzero().flatten().tolist() == expected


def test_input_is_mixed() -> None:
    """The layer "input" mixes what the model takes."""
    model, (features, target) = small_net(), batch()

    with attached(model, "input")(target) as mix:
        logits = model(features)

    torch.testing.assert_close(logits, model(mixed_by_loop(mix, features)), rtol=0, atol=1e-12)


def test_keyword_input_is_mixed_and_masks_are_not() -> None:
    """Of keyword inputs the floating-point ones are mixed, others are passed on."""
    model, (features, target) = Keyword(), batch()
    keep = torch.tensor([True, False] * 3)

    with attached(model, "input", example={"values": features})(target) as mix:
        logits = model(values=features, keep=keep)

    expected = model(values=mixed_by_loop(mix, features), keep=keep)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_model_of_keyword_arguments_is_tried_in_its_first_step() -> None:
    """Without an example the first step's own keyword arguments serve to try the layer."""
    model, (features, target) = Keyword(), batch()
    mixup = ManifoldMixup(model, "stem", alpha=1.0)

    with mixup(target) as mix:
        logits = model(values=features)

    expected = model.head(torch.tanh(mixed_by_loop(mix, model.stem(features))))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_text_is_mixed_behind_the_embedding() -> None:
    """For indices the embedding's output is mixed, in a model that may be frozen."""
    model, indices = Text().double(), torch.randint(10, (6, 5))
    freeze(model, except_="head")

    with attached(model, "embedding", example=indices)(torch.zeros(6)) as mix:
        logits = model(indices)

    mixed = mixed_by_loop(mix, model.embedding(indices))
    expected = forward_with(model, "embedding", mixed, indices)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_input_that_becomes_indices_is_refused() -> None:
    """A model that was tried on numbers and then gets indices mixes nothing: the step raises."""
    model, (features, target) = Apply(lambda x: x.double()), batch()

    with (
        pytest.raises(TypeError, match="'input': the model takes no floating-point.*embedding"),
        attached(model, "input", example=features)(target),
    ):
        model(features.long())


@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_batch_size_may_change(n: int) -> None:
    """Odd, last and single batches are mixed as they come; one sample alone is left as it is."""
    model = small_net()
    mixup = attached(model, "body")
    draws(mixup, model, 1)
    features, target = batch(n)

    with mixup(target) as mix:
        logits = model(features)

    expected = model.head(mixed_by_loop(mix, model[:2](features)))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert torch.equal(logits, model(features)) == (n == 1)


def test_alpha_zero_changes_nothing() -> None:
    """With alpha=0 a step's logits are the plain ones, bit for bit."""
    model, (features, target) = small_net(), batch()

    with attached(model, "body", alpha=0)(target):
        logits = model(features)

    assert torch.equal(logits, model(features))


# Several layers.


def test_one_of_several_layers_is_drawn_in_each_step() -> None:
    """Each step mixes one entry, told by `drawn`, and in time all of them."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, ["stem", "body", "head"])
    drawn = set()

    assert mixup.layers == ["stem", "body", "head"]
    assert mixup.drawn is None
    for _ in range(40):
        with mixup(target) as mix:
            logits = model(features)
        drawn.add(mixup.drawn)
        hidden = mixed_by_loop(mix, output_at(model, str(mixup.drawn), features))
        expected = forward_with(model, str(mixup.drawn), hidden, features)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert drawn == {"stem", "body", "head"}


def test_glob_stands_for_separate_entries() -> None:
    """A pattern gives one entry for each layer it matches, a module the entry of its name."""
    model = small_net()

    assert attached(model, "*").layers == ["stem", "body", "head"]
    assert attached(model, [model.body, "re:he.*"]).layers == ["body", "head"]


def test_tuple_is_mixed_together() -> None:
    """The layers of a tuple are mixed in the same step, by the same mix."""
    model, (features, target) = Towers(), batch()
    mixup = attached(model, [("left", "right")])

    with mixup(target) as mix:
        logits = model(features)

    left = mixed_by_loop(mix, model.left(features))
    right = mixed_by_loop(mix, model.right(features * features))
    expected = model.head(torch.tanh(left + right))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert mixup.drawn == ("left", "right")


def test_numbers_and_embeddings_of_a_table_are_mixed_together() -> None:
    """A tuple may hold the continuous input and the embedding of what is not continuous."""
    model = Table()
    (numbers, target), kinds = batch(), torch.randint(5, (6,))
    mixup = attached(model, ("input", "embedding"), example=(numbers, kinds))

    with mixup(target) as mix:
        logits = model(numbers, kinds)

    embedded = mixed_by_loop(mix, model.embedding(kinds))
    expected = model.head(torch.cat([mixed_by_loop(mix, numbers), embedded], 1))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("0", "0.branch"), "'0.branch' lies inside '0'"),
        (("0", "1"), "'1' is computed from '0'"),
        (("0.branch.0", "0.branch.1"), "'0.branch.1' is computed from '0.branch.0'"),
        (("input", "1"), "'1' is computed from 'input'"),
    ],
)
def test_layers_that_would_mix_twice_are_refused(layers: tuple[str, str], message: str) -> None:
    """A tuple must not hold a layer and one around it, or one computed from it."""
    model = nn.Sequential(Residual(4), Residual(4)).double()

    with pytest.raises(ValueError, match=message):
        attached(model, layers)
    assert hooks_on(model) == 0


# Life.


def test_nothing_is_mixed_outside_of_steps() -> None:
    """Before, between and after steps, and once detached, the model is bit for bit itself."""
    model, (features, target) = small_net(), batch()
    plain = model(features)
    mixup = attached(model, ["body", "input"], features_only=True)

    assert torch.equal(model(features), plain)
    with mixup(target):
        model(features)
    assert torch.equal(model(features), plain)
    mixup.detach()
    assert torch.equal(model(features), plain)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("after_forward", [False, True])
def test_error_in_a_step_ends_only_that_step(
    error: type[BaseException], after_forward: bool
) -> None:
    """The user's exception comes out as it is, the model is itself, and the next step mixes."""
    model, (features, target) = small_net(), batch()
    plain = model(features)
    mixup = attached(model, "body")
    raised = error("mine")

    with pytest.raises(error) as caught, mixup(target):  # noqa: PT012
        if after_forward:
            model(features)
        raise raised

    assert caught.value is raised
    assert torch.equal(model(features), plain)
    with mixup(target) as mix:
        logits = model(features)
    assert torch.equal(logits, model.head(mix(model[:2](features))))


def test_hooks_go_when_detached_and_only_ours() -> None:
    """Detaching, also twice, removes exactly the hooks that attaching added."""
    model, seen = small_net(), []
    model.body.register_forward_hook(lambda m, i, o: seen.append("theirs"))
    model.body.register_forward_pre_hook(lambda m, i: seen.append("theirs before"))
    mixup = attached(model, ["body", "head", "input"])
    during = hooks_on(model)
    seen.clear()

    mixup.detach()
    mixup.detach()
    model(batch()[0])

    assert (during, hooks_on(model)) == (5, 2)
    assert seen == ["theirs before", "theirs"]


def test_leaving_the_block_detaches() -> None:
    """`with ManifoldMixup(...)` removes its hooks at the end, also after an exception."""
    model = small_net()

    with pytest.raises(ZeroDivisionError), attached(model, "body"):  # noqa: PT012
        assert hooks_on(model) == 1
        raise ZeroDivisionError

    assert hooks_on(model) == 0


def test_detached_manager_refuses_a_step() -> None:
    """A step of a detached manager would mix the targets alone."""
    model, (_, target) = small_net(), batch()
    mixup = attached(model, "body")
    mixup.detach()

    with pytest.raises(RuntimeError, match="detached"), mixup(target):
        pass


@pytest.mark.parametrize(
    ("layers", "options", "error", "message"),
    [
        (["body", "boddy"], {}, ValueError, "no layer 'boddy'; did you mean 'body'"),
        (["body", 3], {}, TypeError, "got 3"),
        ([], {}, ValueError, "layers is empty"),
        (["body", nn.Tanh()], {}, ValueError, "Tanh .* is not part of this"),
        ("body", {"alpha": -0.1}, ValueError, "alpha=-0.1"),
        ("body", {"alpha": float("nan")}, ValueError, "alpha=nan"),
        ("body", {"pairing": "best"}, ValueError, "pairing='best'"),
    ],
)
def test_failed_construction_attaches_nothing(
    layers: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Wrong arguments raise, each with its value, and leave no hook behind."""
    model = small_net()

    with pytest.raises(error, match=message):
        attached(model, layers, **options)
    assert hooks_on(model) == 0


def test_failed_example_attaches_nothing() -> None:
    """An example that the model cannot take raises what the model says and leaves no hook."""
    model = small_net()

    with pytest.raises(ValueError, match="Sequential fails on the example given: .*multiplied"):
        attached(model, "body", example=torch.randn(2, 5, dtype=torch.float64))
    assert hooks_on(model) == 0


def test_frozen_model_in_eval_mode_is_mixed_and_stays_as_it_is() -> None:
    """Training a head with mixing changes only the head, and only it gets gradients."""
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3)
    ).double()
    freeze(model, except_="4")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mixup = attached(model, "3")
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)

    for _ in range(3):
        features, target = batch()
        with mixup(target) as mix:
            logits = model(features)
        assert torch.equal(logits, model[4](mix(model[:4](features))))
        mixed_loss(logits, target, mix).backward()
        optimizer.step()

    after = model.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert changed == ["4.weight", "4.bias"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == changed


def test_state_dict_has_no_trace_of_the_hooks() -> None:
    """Attached or not, a model has the same state_dict."""
    model = small_net()
    before = list(model.state_dict())

    attached(model, ["body", "input"])

    assert list(model.state_dict()) == before


# Contract 1: targets are mixed only if the features were.


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("layer", ["body", "input"])
def test_step_raises_unless_the_layer_ran_once(layer: str, calls: int) -> None:
    """A step in which the layer ran not at all or twice says so, and the next one mixes."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, layer)

    with pytest.raises(RuntimeError, match=f"'{layer}' ran {calls} times.* once"), mixup(target):
        _ = [model(features) for _ in range(calls)]

    draws(mixup, model, 1)


def test_layer_replaced_since_is_named() -> None:
    """If another module has taken the layer's place, the error says that."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, "body")
    model.body = nn.ReLU()

    with pytest.raises(RuntimeError, match="'body' ran 0 times.* replaced"), mixup(target):
        model(features)


def test_calling_forward_around_the_hooks_raises() -> None:
    """`module.forward(x)` runs no hook, which the step notices."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, "input")

    with pytest.raises(RuntimeError, match="layer 'input' ran 0 times"), mixup(target):
        model.forward(features)


@pytest.mark.parametrize(
    "several", [dict.fromkeys("ab", torch.zeros(6)), [torch.zeros(6), torch.zeros(6, 2)]]
)
def test_several_targets_are_one_batch(several: Any) -> None:
    """A dict or sequence of targets gives a mix of as many samples as each has."""
    model, (features, _) = small_net(), batch()
    mixup = attached(model, "body")

    with mixup(several) as mix:
        model(features)

    assert len(mix) == 6


@pytest.mark.parametrize(
    "target",
    [3, [0, 1], None, torch.tensor(1), [torch.zeros(2), torch.zeros(3)], {}],
    ids=repr,
)
def test_target_must_have_a_batch(target: Any) -> None:
    """What is no tensor (B, *) is refused as target, and the next step mixes."""
    model = small_net()
    mixup = attached(model, "body")

    with pytest.raises(TypeError, match=r"target must be a tensor \(B, \*\)"), mixup(target):
        pass

    draws(mixup, model, 1)


@pytest.mark.parametrize("layer", ["body", "input"])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_target_of_another_batch_is_refused(layer: str, n: int) -> None:
    """Targets of another number than the features raise an error with the layer's name."""
    model, (features, _) = small_net(), batch()
    mixup = attached(model, layer)

    with (
        pytest.raises(ValueError, match=f"layer '{layer}': mix of {n} samples .*6, "),
        mixup(torch.zeros(n)),
    ):
        model(features)


def test_a_name_in_output_that_stands_for_nothing_is_refused() -> None:
    """Each name in `output` must be there: mixing the others alone would be half a mix."""

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x, "b": 2 * x} if self.training else {"a": x, "b": 2 * x, "late": x}

    class Sum(nn.Module):
        def forward(self, parts: dict[str, Tensor]) -> Tensor:
            return parts["a"] + parts["b"]

    model, (features, target) = nn.Sequential(Named(), Sum()), batch()

    with pytest.raises(ValueError, match="without 'typo'.*output="):
        ManifoldMixup(model, "0", example=features, output=["a", "typo", "b"])
    mixup = ManifoldMixup(model, "0", example=features, output=["a", "b", "late"])
    with pytest.raises(TypeError, match="layer '0' .*without 'late'"), mixup(target):
        model(features)


def test_of_several_inputs_the_chosen_ones_are_mixed() -> None:
    """With several floating-point inputs `output` says which are mixed; a mask stays as it is."""

    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return torch.cat([x, mask], 1)

    model, (features, target) = Masked(), batch()
    mask = (torch.rand_like(features) < 0.5).double()
    example = (features, mask)

    with (
        pytest.raises(TypeError, match=r"'input' takes several tensors \(0, 1\).*output="),
        ManifoldMixup(model, "input", example=example)(target),
    ):
        model(features, mask)
    with ManifoldMixup(model, "input", example=example, output="0")(target) as mix:
        mixed = model(features, mask)
    torch.testing.assert_close(mixed, torch.cat([mixed_by_loop(mix, features), mask], 1))
    with ManifoldMixup(model, "input", example=example, output="mask")(target) as mix:
        mixed = model(features, mask=mask)
    torch.testing.assert_close(mixed, torch.cat([features, mixed_by_loop(mix, mask)], 1))


def test_steps_do_not_nest() -> None:
    """A step within a step is refused, and the outer one still mixes."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, "body")

    with mixup(target) as mix:
        with pytest.raises(RuntimeError, match="do not nest"), mixup(target):
            pass
        logits = model(features)

    assert torch.equal(logits, model.head(mix(model[:2](features))))


# Draws.


def test_same_seed_gives_the_same_draws() -> None:
    """A seed fixes layers, weights and partners, whatever the global random state is."""
    first, second, other = small_net(), small_net(), small_net()
    layers = ["stem", "body", "head"]

    expected = draws(attached(first, layers, seed=1), first, 10)

    torch.manual_seed(123)
    assert draws(attached(second, layers, seed=1), second, 10) == expected
    assert draws(attached(other, layers, seed=2), other, 10) != expected


def test_steps_leave_the_global_random_state_alone() -> None:
    """Drawing uses the manager's own generator only."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, ["stem", "body"], features_only=True)
    before = torch.get_rng_state()

    with mixup(target):
        model(features)

    assert torch.equal(torch.get_rng_state(), before)


def test_draws_continue_from_a_loaded_state() -> None:
    """`load_state_dict` goes on as if the run had not been interrupted."""
    model, resumed = small_net(), small_net()
    mixup = attached(model, ["stem", "body"])
    draws(mixup, model, 3)
    state = mixup.state_dict()
    expected = draws(mixup, model, 5)
    other = attached(resumed, ["stem", "body"], seed=7)

    other.load_state_dict(state)

    assert draws(other, resumed, 5) == expected


@pytest.mark.parametrize("per_sample", [True, False])
def test_lam_is_drawn_per_sample_or_per_batch(per_sample: bool) -> None:
    """`per_sample` chooses between a weight for each sample and one for the batch."""
    model, (features, target) = small_net(), batch()

    with attached(model, "body", per_sample=per_sample)(target) as mix:
        model(features)

    assert len(mix.lam.unique()) == (6 if per_sample else 1)


# Layers that return several tensors.


def _pair(x: Tensor) -> Any:
    return x, x * x


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], Any]] = {
    "tuple": (_pair, lambda o: o[0] + o[1], (0, 1)),
    "list": (lambda x: [*_pair(x)], lambda o: o[0] + o[1], (0, 1)),
    "namedtuple": (lambda x: Pair(*_pair(x)), lambda o: o.first + o.second, (0, 1)),
    "dict": (lambda x: dict(zip("ab", _pair(x), strict=True)), lambda o: o["a"] + o["b"], "ab"),
    "dataclass": (
        lambda x: Features(*_pair(x)),
        lambda o: o.hidden + o.pooled if o.note == "kept" else None,
        ("hidden", "pooled"),
    ),
    "nested": (
        lambda x: {"a": [_pair(x)[0], None], "b": (_pair(x)[1],)},
        lambda o: o["a"][0] + o["b"][0],
        ("a.0", "b"),
    ),
}


# Where one of two tensors is chosen, the other one bypasses the mix, as it should.
@pytest.mark.filterwarnings("ignore:.*.* bypasses it:UserWarning")
@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("chosen", ["first", "second", "both", "all"])
def test_chosen_outputs_are_mixed(kind: str, chosen: str) -> None:
    """Of a container exactly the tensors that `output` chooses are mixed."""
    make, read, (first, second) = CONTAINERS[kind]
    output = {"first": first, "second": second, "both": [first, second], "all": "all"}[chosen]
    model, (features, target) = Wide(Apply(make), read), batch()

    with attached(model, "trunk", output=output)(target) as mix:
        logits = model(features)

    one, two = _pair(torch.tanh(model.stem(features)))
    one = one if chosen == "second" else mixed_by_loop(mix, one)
    two = two if chosen == "first" else mixed_by_loop(mix, two)
    torch.testing.assert_close(logits, model.head(one + two), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("deferred", [False, True], ids=["attach", "first step"])
def test_outputs_must_be_chosen(kind: str, deferred: bool) -> None:
    """A layer that returns several tensors is refused with a hint at `output=`."""
    make, read, _ = CONTAINERS[kind]
    model, (features, target) = Wide(Apply(make), read), batch()

    with pytest.raises(ValueError, match=r"'trunk' returns a .* output="):  # noqa: PT012
        mixup = attached(model, "trunk", example=None if deferred else features)
        with mixup(target):
            model(features)


def test_output_that_is_not_there_is_refused() -> None:
    """A name in `output` that the layer does not return is an error, with what it returns."""
    model = Wide(Apply(lambda x: {"a": x, "b": x}), lambda o: o["a"] + o["b"])

    with pytest.raises(ValueError, match=r"returns a dict \(a: \(2, 8\), b: \(2, 8\)\)"):
        attached(model, "trunk", output="c")


def test_integer_output_beside_floating_ones_is_left_alone() -> None:
    """``output="all"`` mixes floating-point tensors only, and says what goes around them."""
    model = Wide(Apply(lambda x: (x, x.argmax(1))), lambda o: o[0] * o[1][:, None])
    features, target = batch()

    with pytest.warns(UserWarning, match="bypasses it without gradients"):
        mixup = attached(model, "trunk", output="all")
    with mixup(target) as mix:
        logits = model(features)

    hidden = torch.tanh(model.stem(features))
    expected = model.head(mixed_by_loop(mix, hidden) * hidden.argmax(1)[:, None])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_sequence_of_an_lstm_is_mixed() -> None:
    """The output of a batch-first LSTM is mixed; its states, batch second, are refused."""
    trunk = nn.Sequential(nn.Unflatten(1, (4, 2)), nn.LSTM(2, 8, batch_first=True))
    model, (features, target) = Wide(trunk, lambda o: o[0][:, -1]), batch()

    with attached(model, "trunk.1", output=0)(target) as mix:
        logits = model(features)

    sequence = output_at(model, "trunk.1", features)[0]
    expected = model.head(mixed_by_loop(mix, sequence)[:, -1])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"at '1.0' .* axis 1 is the batch, not the first"):
        attached(model, "trunk.1", output="all")


# Construction tries the model and leaves it as it was.


class Restless(nn.Module):
    """A layer that draws from every random source, counts, and replaces a buffer, in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", None)
        self.count: Tensor
        self.last: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """The same, with noise."""
        noise = torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002
        self.count = self.count + 1
        self.last = x.detach()
        return x + noise


def test_trying_the_model_leaves_it_as_it_was() -> None:
    """Modes, buffers, gradients and all random states are bit-identical after construction."""
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), Restless(), nn.Linear(8, 3)
    ).double()
    model[1].eval()
    example, _ = batch()
    modes = [module.training for module in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    attached(model, "2", example=example)

    assert [module.training for module in model.modules()] == modes
    assert [id(b) for b in model.buffers()] == [id(b) for b, _ in buffers]
    assert all(torch.equal(b, before) for b, before in buffers)
    assert model[3].last is None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert all(p.grad is None for p in model.parameters())


def test_first_step_with_dropout_is_not_disturbed_by_the_try() -> None:
    """A model that is tried in its first step has the dropout of a plain run there."""
    model, (features, target) = nn.Sequential(small_net(), nn.Dropout()), batch()
    mixup = ManifoldMixup(model, "0.body", alpha=1.0)
    torch.manual_seed(5)

    with mixup(target) as mix:
        logits = model(features)

    torch.manual_seed(5)
    inner = model[0]
    assert torch.equal(logits, model[1](inner.head(mix(inner[:2](features)))))


def test_failed_try_in_the_first_step_fails_again() -> None:
    """A layer found unfit in the first step is refused in every step, and never mixed."""
    model, (features, target) = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)).double(), batch()
    mixup = ManifoldMixup(model, "1", alpha=1.0)

    for _ in range(2):
        with pytest.raises(ValueError, match="'1' returns 4 rows for each sample"), mixup(target):
            model(features)


# Wrapped models.


@pytest.mark.parametrize("layer", ["body", "module.body", "_orig_mod.body"])
def test_names_are_those_of_the_model_inside_a_wrapper(layer: str) -> None:
    """Wrapper prefixes may be left in or out."""
    model, (features, target) = small_net(), batch()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    wrapped.device_ids = []  # as where there is no GPU
    mixup = attached(wrapped, layer)

    with mixup(target) as mix:
        logits = model(features)

    assert mixup.layers == ["body"]
    assert torch.equal(logits, model.head(mix(model[:2](features))))


def test_shared_module_is_one_layer_under_all_its_names() -> None:
    """A module with two names is found by both, and is one entry."""
    model = small_net()
    model.head.add_module("again", model.body)

    assert attached(model, ["body", "head.again"]).layers == ["body"]
    assert attached(model, "head.again").layers == ["head.again"]


def test_layer_that_is_named_input_is_a_layer() -> None:
    """A model with a child called "input" means that child by it."""
    model, (features, target) = nn.Sequential(), batch()
    model.add_module("input", nn.Linear(4, 8).double())
    model.add_module("head", nn.Linear(8, 3).double())

    with attached(model, "input")(target) as mix:
        logits = model(features)

    expected = model.head(mixed_by_loop(mix, model.input(features)))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_repr_tells_what_is_mixed() -> None:
    """The manager shows its model's class and its entries."""
    shown = repr(attached(small_net(), ["body", ("stem",)]))

    assert re.fullmatch(r"ManifoldMixup\(Sequential, \['body', 'stem'\], alpha=1.0, .*\)", shown)


@pytest.mark.parametrize(("exclude", "warns"), [([7], True), ([0, 3], True), ([0, 2], False)])
def test_excluded_class_without_an_output_is_warned_of(exclude: list[int], warns: bool) -> None:
    """Class indices alone do not tell how many classes there are; what the model returns does."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ManifoldMixup(model, "1", exclude=exclude, example=torch.randn(2, 4)).detach()

    told = [str(one.message) for one in caught]
    expected = f"exclude names class {exclude[-1]}, but the model returns 3 values for a sample"
    assert [expected in one for one in told] == [True] * warns


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copy_is_detached_and_says_so(again: Any) -> None:
    """With its model or without; what it was copied from goes on."""
    holder = nn.ModuleDict({"model": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))})
    options = {"example": torch.randn(2, 4), "features_only": True}
    holder.mixup = ManifoldMixup(holder["model"], "0", **options)
    target = torch.tensor([0, 1, 0])

    copied = again(holder)

    with pytest.raises(RuntimeError, match="is detached; construct a new one"):
        copied.mixup(target).__enter__()
    with holder.mixup(target):
        holder["model"](torch.randn(3, 4))
