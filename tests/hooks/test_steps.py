"""What belongs to a step: its passes, its mode, its end; and whose numbers it draws."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import batch, mixed_by_loop, small_net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manifold_mixup import ManifoldMixup, Mix, mixed_loss


def attached(model: nn.Module, layers: Any = "body", **options: Any) -> ManifoldMixup:
    """A manager that mixes strongly, tried on four samples of `batch`."""
    return ManifoldMixup(
        model, layers, alpha=1.0, example=torch.randn(4, 4, dtype=torch.float64), **options
    )


def by_hand(model: nn.Sequential, mix: Mix, features: Tensor) -> Tensor:
    """The logits of the small net, mixed behind its body."""
    return model.head(mixed_by_loop(mix, model[:2](features)))


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of all parameters, which are cleared."""
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


# Passes that do not belong to a step


def evaluate_after_a_pass(model: nn.Module, features: Tensor) -> None:
    """Train, are interrupted, evaluate."""
    model(features)
    model.eval()
    with torch.no_grad():
        model(features)


def evaluate_at_once(model: nn.Module, features: Tensor) -> None:
    """Are interrupted before the step's own pass."""
    model.eval()
    model(features)


def go_without_gradients(model: nn.Module, features: Tensor) -> None:
    """Predict in training mode."""
    with torch.no_grad():
        model(features)


def go_in_inference_mode(model: nn.Module, features: Tensor) -> None:
    """Predict in inference mode."""
    with torch.inference_mode():
        model(features)


def take_another_batch(model: nn.Module, features: Tensor) -> None:
    """Go on with a last batch that is smaller."""
    model(features[:5])


@pytest.mark.parametrize("layer", ["body", "input"])
@pytest.mark.parametrize(
    "foreign",
    [
        evaluate_after_a_pass,
        evaluate_at_once,
        go_without_gradients,
        go_in_inference_mode,
        take_another_batch,
    ],
)
def test_pass_that_is_not_the_steps_own_is_refused_until_the_step_ends(
    foreign: Callable[[nn.Module, Tensor], None], layer: str
) -> None:
    """A step that is left open says so, and after `end` the model is itself."""
    model, (features, target) = small_net(), batch()
    plain = model(features)
    mixup = attached(model, layer)
    mixup(target).__enter__()

    with pytest.raises((RuntimeError, ValueError), match=r"step is still open: .* call end\(\)"):
        foreign(model, features)
    mixup.end()
    mixup.end()

    assert torch.equal(model(features), plain)
    with mixup(target) as mix:
        logits = model.train()(features)
    if layer == "body":
        torch.testing.assert_close(logits, by_hand(model, mix, features), rtol=0, atol=1e-12)


# At a graph break the compiler itself looks at .grad of tensors that are no leaves.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)
def test_compiled_pass_in_evaluation_mode_is_refused() -> None:
    """An open step does not reach a compiled model's evaluation either."""
    torch._dynamo.reset()
    model, (features, target) = small_net(), batch()
    mixup = attached(model)
    compiled = torch.compile(model, backend="eager")
    mixup(target).__enter__()

    model.eval()
    with pytest.raises(RuntimeError, match="step is still open"):
        compiled(features)
    mixup.end()

    assert torch.equal(compiled(features), model(features))


@pytest.mark.parametrize("gradients_inside", [True, False])
def test_step_in_evaluation_mode_and_without_gradients_mixes(gradients_inside: bool) -> None:
    """A step that began in evaluation mode, or without gradients, is for just that."""
    model, (features, target) = small_net().eval(), batch()

    with torch.set_grad_enabled(gradients_inside), attached(model)(target) as mix:
        logits = model(features)

    torch.testing.assert_close(logits, by_hand(model, mix, features), rtol=0, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_of_a_whole_model_is_no_pass_without_gradients(use_reentrant: bool) -> None:
    """A reentrant checkpoint runs first without gradients, which is the step's own pass."""
    model, (features, target) = small_net(), batch()
    mixup, found = attached(model), []

    with mixup(target) as mix:
        logits = checkpoint(model, features.requires_grad_(), use_reentrant=use_reentrant)
        mixed_loss(logits, target, mix).backward()
    found = gradients(model)

    mixed_loss(by_hand(model, mix, features), target, mix).backward()
    torch.testing.assert_close(found, gradients(model), rtol=0, atol=1e-12)


def test_step_ended_inside_of_its_block_says_so() -> None:
    """A loss of targets that are mixed alone is not handed out."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model)

    with pytest.raises(RuntimeError, match=r"ended by end\(\)"), mixup(target):  # noqa: PT012
        mixup.end()
        model(features)


def test_step_entered_by_hand_stays_open() -> None:
    """`mixup(target).__enter__()` mixes features too, though nobody keeps the step."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model)

    mix = mixup(target).__enter__()
    gc.collect()
    logits = model(features)

    with pytest.raises(RuntimeError, match=r"open already.* call end\(\)"), mixup(target):
        pass
    mixup.end()
    torch.testing.assert_close(logits, by_hand(model, mix, features), rtol=0, atol=1e-12)


# Several passes


@pytest.mark.parametrize("passes", [2, None])
@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_one_mix_serves_the_passes_of_sam(passes: int | None, use_reentrant: bool | None) -> None:
    """Both gradients of a step of SAM are those of one mix, also where passes are recomputed."""
    model, (features, target) = small_net(), batch()
    mixup, found, expected = attached(model), [], []
    features.requires_grad_()

    def run(inputs: Tensor) -> Tensor:
        if use_reentrant is None:
            return model(inputs)
        return checkpoint(model, inputs, use_reentrant=use_reentrant)

    def climb() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)

    before = [p.detach().clone() for p in model.parameters()]
    with mixup(target, passes=passes) as mix:
        for _ in range(2):
            mixed_loss(run(features), target, mix).backward()
            found += gradients(model)
            climb()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    for _ in range(2):
        mixed_loss(by_hand(model, mix, features), target, mix).backward()
        expected += gradients(model)
        climb()

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# A remark of torch on what its own optimizer does.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_lbfgs_minimizes_the_loss_of_one_mix() -> None:
    """`passes=None` lets an optimizer look as often as it needs; the loss is that of its mix."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model)
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")

    with mixup(target, passes=None) as mix:

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = mixed_loss(model(features), target, mix)
            loss.backward()
            return loss

        first = optimizer.step(closure).item()
        last = closure().item()

    expected = mixed_loss(by_hand(model, mix, features), target, mix)
    assert last < first
    torch.testing.assert_close(last, expected.item(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("passes", "calls"), [(1, 2), (2, 1), (2, 3), (3, 0), (None, 0)])
def test_another_number_of_passes_is_refused(passes: int | None, calls: int) -> None:
    """Too many or too few passes raise; the error tells how to ask for several."""
    model, (features, target) = small_net(), batch()
    often = {1: "exactly once", None: "at least once"}.get(passes, f"{passes} times")
    advice = r".* passes=" if passes is not None and calls > passes else ""

    with (
        pytest.raises(RuntimeError, match=f"ran {calls} times .* expected {often}{advice}"),
        attached(model)(target, passes=passes),
    ):
        _ = [model(features) for _ in range(calls)]


@pytest.mark.parametrize("passes", [0, -1])
def test_impossible_numbers_of_passes_are_refused(passes: int) -> None:
    """A step is for one pass at least."""
    with pytest.raises(ValueError, match=f"passes={passes}: expected 1 or more"):
        attached(small_net())(torch.zeros(6), passes=passes)


# Managers of parts


@pytest.mark.parametrize("outer_first", [True, False])
@pytest.mark.parametrize("layer", ["head", "input", "body.0"])
def test_part_of_a_model_in_a_step_is_not_mixed_again(layer: str, outer_first: bool) -> None:
    """Managers of a model and of a module inside it are refused together, mix one by one."""
    part = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).double()
    model = small_net()
    model.body = part
    features, target = batch()
    outer = attached(model, layer)
    inner = ManifoldMixup(part, "1", example=torch.randn(4, 8, dtype=torch.float64))
    first, second = (outer, inner) if outer_first else (inner, outer)

    first(target).__enter__()
    with pytest.raises(RuntimeError, match="another ManifoldMixup is in a step"), second(target):
        pass
    first.end()
    with inner(target) as mix:
        logits = model(features)

    expected = model.head(mixed_by_loop(mix, part(model.stem(features))))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_heads_on_one_backbone_have_steps_side_by_side() -> None:
    """Steps in parts that no other model runs do not hinder each other."""
    backbone, heads = nn.Linear(4, 8), [nn.Sequential(nn.Tanh(), nn.Linear(8, 3)) for _ in "ab"]
    models = [nn.Sequential(backbone, head).double() for head in heads]
    features, target = batch()
    first, second = (attached(model, "1.0") for model in models)

    with first(target) as one, second(target) as other:
        logits = [model(features) for model in models]

    hidden = torch.tanh(backbone(features))
    for found, head, mix in zip(logits, heads, (one, other), strict=True):
        torch.testing.assert_close(found, head[1](mixed_by_loop(mix, hidden)), rtol=0, atol=1e-12)


# Ranks


def become(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Go on as the process of this rank in a group."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)


def drawn(mixup: ManifoldMixup, n: int = 3) -> list[list[float]]:
    """The weights of n steps."""
    found = []
    for _ in range(n):
        mixup.end()
        found.append(mixup(torch.zeros(6)).__enter__().lam.tolist())
    mixup.end()
    return found


def test_ranks_draw_apart_whenever_their_group_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager made before the group draws what one made after it does; rank 0 as without."""
    alone = drawn(attached(small_net(), seed=3))
    early = [attached(small_net(), seed=3) for _ in range(3)]
    found = []

    for rank, mixup in enumerate(early):
        become(monkeypatch, rank)
        found.append(drawn(mixup))
        assert found[-1] == drawn(attached(small_net(), seed=3))

    assert found[0] == alone
    assert len({str(one) for one in found}) == 3


@pytest.mark.parametrize("loads_early", [True, False])
def test_checkpoint_of_one_rank_gives_others_their_own_draws(
    monkeypatch: pytest.MonkeyPatch, loads_early: bool
) -> None:
    """Rank 0 goes on exactly; others draw apart; each goes on exactly from its own state."""
    first = attached(small_net())
    drawn(first)
    state = first.state_dict()
    expected = drawn(first)
    found = []
    for rank in range(3):
        mixup = attached(small_net(), seed=9)
        if loads_early:
            mixup.load_state_dict(state)
            become(monkeypatch, rank)
        else:
            become(monkeypatch, rank)
            mixup.load_state_dict(state)
        found.append(drawn(mixup))
        own = mixup.state_dict()
        again = attached(small_net(), seed=7)
        again.load_state_dict(own)
        assert drawn(again) == drawn(mixup)
        monkeypatch.undo()

    assert found[0] == expected
    assert len({str(one) for one in found}) == 3


def test_ranks_part_when_their_group_begins_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps before the group are the same on all ranks, those after it are not."""
    found = []
    for rank in range(3):
        mixup = attached(small_net())
        drawn(mixup)
        become(monkeypatch, rank)
        found.append(drawn(mixup))
        monkeypatch.undo()

    assert len({str(one) for one in found}) == 3
