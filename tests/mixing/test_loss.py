"""The loss of mixed features, against sums written out sample by sample."""

import copy
import functools
import math
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup import Mix, mixed_loss
from manifold_mixup._random import seeded_generator

B, C = 7, 4
TARGET = torch.tensor([0, 3, 1, 1, 2, 0, 3])
WEIGHT = torch.tensor([0.2, 1.5, 3.0, 0.7], dtype=torch.float64)
POS_WEIGHT = torch.tensor([2.0, 0.5, 1.0, 4.0], dtype=torch.float64)
REDUCTIONS = ["mean", "sum", "none"]


def logits() -> Tensor:
    """Logits (B, C) that want a gradient."""
    values = 2 * torch.randn(B, C, dtype=torch.float64, generator=seeded_generator("logits"))
    return values.requires_grad_()


def probabilities() -> Tensor:
    """Soft targets (B, C)."""
    values = torch.randn(B, C, dtype=torch.float64, generator=seeded_generator("soft"))
    return values.softmax(1)


def labels() -> Tensor:
    """Multi-label targets (B, C)."""
    values = torch.rand(B, C, dtype=torch.float64, generator=seeded_generator("labels"))
    return (values < 0.5).double()


def some_mix() -> Mix:
    """A mix with weights of 0, 1 and between."""
    return Mix([0.9, 0.25, 1.0, 0.0, 0.5, 0.6, 0.35], [3, 0, 5, 6, 1, 2, 4])


def mixed_one_hot(target: Tensor, mix: Mix) -> Tensor:
    """Rows of class weights, filled in one sample at a time."""
    rows = torch.zeros(len(target), C, dtype=torch.float64)
    for i in range(len(target)):
        lam, partner = float(mix.lam[i]), int(mix.partner[i])
        rows[i, int(target[i])] += lam
        rows[i, int(target[partner])] += 1 - lam
    return rows


def cross_entropy_by_loop(
    values: Tensor,
    target: Tensor,
    mix: Mix,
    *,
    reduction: str,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Cross entropy of a mix from its definition, with the divisor of its weighted mean."""
    weights = [1.0] * C if weight is None else weight.tolist()

    def loss(i: int, t: int) -> Tensor | float:
        if t == ignore_index:
            return 0.0
        surprise = torch.logsumexp(values[i], 0) - values[i]
        smooth = sum(weights[c] * surprise[c] for c in range(C)) / C
        return (1 - label_smoothing) * weights[t] * surprise[t] + label_smoothing * smooth

    def count(t: int) -> float:
        return 0.0 if t == ignore_index else weights[t]

    losses, divisor = [], 0.0
    for i in range(len(values)):
        lam, own, other = float(mix.lam[i]), int(target[i]), int(target[int(mix.partner[i])])
        losses.append(lam * loss(i, own) + (1 - lam) * loss(i, other) + 0 * values[i, 0])
        divisor += lam * count(own) + (1 - lam) * count(other)
    total = torch.stack(losses)
    return {"none": total, "sum": total.sum(), "mean": total.sum() / divisor}[reduction]


# Every criterion with the kind of target it takes.
CRITERIA: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "cross_entropy": (F.cross_entropy, TARGET.clone),
    "nll_loss": (F.nll_loss, TARGET.clone),
    "NLLLoss": (nn.NLLLoss(weight=WEIGHT, ignore_index=1), TARGET.clone),
    "sum": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), TARGET.clone),
    "none": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="none"), TARGET.clone),
    "everything": (
        nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1, label_smoothing=0.1),
        TARGET.clone,
    ),
    "partial": (
        functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=3, label_smoothing=0.2),
        TARGET.clone,
    ),
    "partial module": (
        functools.partial(nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1)),
        TARGET.clone,
    ),
    "margin": (nn.MultiMarginLoss(weight=WEIGHT), TARGET.clone),
    "soft": (nn.CrossEntropyLoss(label_smoothing=0.1), probabilities),
    "weighted soft": (nn.CrossEntropyLoss(weight=WEIGHT), probabilities),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=POS_WEIGHT), labels),
    "bce function": (F.binary_cross_entropy_with_logits, labels),
    "bce sum": (nn.BCEWithLogitsLoss(weight=WEIGHT, reduction="sum"), labels),
    "bce none": (nn.BCEWithLogitsLoss(reduction="none"), labels),
    "soft margin": (nn.MultiLabelSoftMarginLoss(weight=WEIGHT), labels),
    "kl batchmean": (nn.KLDivLoss(reduction="batchmean"), probabilities),
    "kl sum": (functools.partial(F.kl_div, reduction="sum"), probabilities),
    "mse": (nn.MSELoss(), probabilities),
}
criteria = pytest.mark.parametrize(("criterion", "target"), CRITERIA.values(), ids=CRITERIA)


def test_loss_equals_cross_entropy_of_mixed_one_hot() -> None:
    """The default loss is the cross entropy with the mixed one-hot targets."""
    values, mix = logits(), some_mix()

    loss = mixed_loss(values, TARGET, mix)

    expected = F.cross_entropy(values, mixed_one_hot(TARGET, mix))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore_index", [-100, 1, 3])
def test_loss_and_gradient_equal_loop(
    reduction: str, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> None:
    """Weights, smoothing and ignored targets give the definition's value and gradient."""
    values, mix = logits(), some_mix()
    settings: dict[str, Any] = {
        "weight": weight,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "reduction": reduction,
    }
    expected = cross_entropy_by_loop(values, TARGET, mix, **settings)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), values)

    for criterion in (
        nn.CrossEntropyLoss(**settings),
        functools.partial(F.cross_entropy, **settings),
    ):
        loss = mixed_loss(values, TARGET, mix, criterion)
        (gradient,) = torch.autograd.grad(loss.sum(), values)

        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_nll_of_log_probabilities_equals_loop(reduction: str, ignore_index: int) -> None:
    """The negative log-likelihood has the same weighted mean as cross entropy."""
    values, mix = logits(), some_mix()
    settings: dict[str, Any] = {
        "weight": WEIGHT,
        "ignore_index": ignore_index,
        "reduction": reduction,
    }
    expected = cross_entropy_by_loop(values, TARGET, mix, **settings)

    for criterion in (nn.NLLLoss(**settings), functools.partial(F.nll_loss, **settings)):
        loss = mixed_loss(values.log_softmax(1), TARGET, mix, criterion)

        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)


def test_soft_targets_equal_cross_entropy_of_mixed_targets() -> None:
    """Cross entropy is linear in the target, so probabilities may as well be mixed first."""
    values, target, mix = logits(), probabilities(), some_mix()

    loss = mixed_loss(values, target, mix)

    expected = F.cross_entropy(values, mix.target(target))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_multi_label_loss_equals_loop(reduction: str) -> None:
    """Binary cross entropy with positive weights is weighed sample by sample."""
    values, target, mix = logits(), labels(), some_mix()
    rows = []
    for i in range(B):
        lam, partner = float(mix.lam[i]), int(mix.partner[i])
        row = []
        for c in range(C):
            positive = POS_WEIGHT[c] * F.softplus(-values[i, c])
            negative = F.softplus(values[i, c])
            share = lam * target[i, c] + (1 - lam) * target[partner, c]
            row.append(share * positive + (1 - share) * negative)
        rows.append(torch.stack(row))
    unreduced = torch.stack(rows)
    expected = {"none": unreduced, "sum": unreduced.sum(), "mean": unreduced.mean()}[reduction]
    criterion = nn.BCEWithLogitsLoss(pos_weight=POS_WEIGHT, reduction=reduction)

    loss = mixed_loss(values, target, mix, criterion)

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)


def test_divergence_is_divided_by_the_batch() -> None:
    """The reduction `batchmean` sums over classes and means over samples."""
    target, mix = probabilities(), some_mix()
    log_q = logits().detach().log_softmax(1)
    total = 0.0
    for i in range(B):
        for j, share in ((i, float(mix.lam[i])), (int(mix.partner[i]), 1 - float(mix.lam[i]))):
            for c in range(C):
                p = float(target[j, c])
                total += share * p * (math.log(p) - float(log_q[i, c]))

    loss = mixed_loss(log_q, target, mix, nn.KLDivLoss(reduction="batchmean"))

    assert float(loss) == pytest.approx(total / B, rel=1e-12)


@criteria
def test_loss_without_mixing_is_the_criterions_own(
    criterion: Callable[..., Tensor], target: Callable[[], Tensor]
) -> None:
    """If every lam is 1, the loss and its gradient are the criterion's own to the bit."""
    values = logits()
    mix = Mix(1.0, some_mix().partner)

    loss = mixed_loss(values, target(), mix, criterion)

    expected = criterion(values, target())
    assert torch.equal(loss, expected)
    for a, b in zip(
        torch.autograd.grad(loss.sum(), values),
        torch.autograd.grad(expected.sum(), values),
        strict=True,
    ):
        assert torch.equal(a, b)


@criteria
@pytest.mark.parametrize(
    "mix",
    [Mix(0.3, range(B)), Mix([1 - 1e-13] + [1.0] * (B - 1), some_mix().partner)],
    ids=["own partners", "hardly mixed"],
)
def test_loss_agrees_with_the_criterion_at_its_limits(
    criterion: Callable[..., Tensor], target: Callable[[], Tensor], mix: Mix
) -> None:
    """With everyone their own partner, or a lam that nears 1, the criterion's value comes out."""
    values = logits()

    loss = mixed_loss(values, target(), mix, criterion)

    expected = criterion(values, target())
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)


@criteria
def test_criterion_is_not_modified(
    criterion: Callable[..., Tensor], target: Callable[[], Tensor]
) -> None:
    """A criterion gives the same value after a mixed loss as before, and keeps its reduction."""
    values = logits()
    before = criterion(values, target())
    attributes = copy.copy(vars(criterion)) if isinstance(criterion, nn.Module) else None

    mixed_loss(values, target(), some_mix(), criterion)

    assert torch.equal(criterion(values, target()), before)
    if isinstance(criterion, nn.Module):
        assert vars(criterion) == attributes


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_partial_of_a_module_is_the_module(reduction: str) -> None:
    """What it ignores, weighs and divides by is the module's."""
    criterion = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1, reduction=reduction)
    values, mix = logits(), some_mix()
    loss = mixed_loss(values, TARGET, mix, functools.partial(criterion))

    assert torch.equal(loss, mixed_loss(values, TARGET, mix, criterion))
    assert criterion.reduction == reduction


def test_reduction_that_is_bound_by_place_is_none() -> None:
    """Nothing can change it any more, so that one lam is needed, as without a reduction."""

    def loss(reduction: str, values: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(values, target, reduction=reduction)

    criterion, values = functools.partial(loss, "sum"), logits()
    own, other = F.cross_entropy(values, TARGET), F.cross_entropy(values, TARGET.roll(1))
    partner = torch.arange(len(TARGET)).roll(1)
    found = mixed_loss(values, TARGET, Mix(0.25, partner), criterion)

    torch.testing.assert_close(found, len(TARGET) * (0.25 * own + 0.75 * other))
    with pytest.raises(TypeError, match="no `reduction`"):
        mixed_loss(values, TARGET, some_mix(), criterion)


def test_functions_of_a_step_are_not_held() -> None:
    """One made for a step may hold activations: it goes when the step is over."""

    def criterion(values: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(values, target, reduction=reduction)

    held = weakref.ref(criterion)
    mixed_loss(logits(), TARGET, some_mix(), criterion)
    criterion = None  # type: ignore[assignment]

    assert held() is None


def test_own_criterion_with_a_reduction_is_used() -> None:
    """Any function with a `reduction` works; its mean is the plain mean of its values."""

    def focal(values: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        surprise = F.cross_entropy(values, target, reduction="none")
        losses = (1 - (-surprise).exp()) ** 2 * surprise
        return losses if reduction == "none" else losses.mean()

    values, mix = logits().detach(), some_mix()

    loss = mixed_loss(values, TARGET, mix, focal)

    total = 0.0
    for i in range(B):
        lam, other = float(mix.lam[i]), int(mix.partner[i])
        own_loss = focal(values[i : i + 1], TARGET[i : i + 1])
        other_loss = focal(values[i : i + 1], TARGET[other : other + 1])
        total += lam * float(own_loss) + (1 - lam) * float(other_loss)
    assert float(loss) == pytest.approx(total / B, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_indices_may_have_any_integer_dtype(dtype: torch.dtype, lam: float) -> None:
    """Narrow integers are class indices too, mixed or not."""
    values, mix = logits(), Mix(lam, some_mix().partner)

    loss = mixed_loss(values, TARGET.to(dtype), mix)

    assert torch.equal(loss, mixed_loss(values, TARGET, mix))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_keeps_the_logits_dtype(dtype: torch.dtype) -> None:
    """The loss has the dtype that the criterion gives these logits."""
    values = logits().detach().to(dtype)

    loss = mixed_loss(values, TARGET, some_mix(), nn.CrossEntropyLoss(weight=WEIGHT.to(dtype)))

    expected = cross_entropy_by_loop(
        values.double(), TARGET, some_mix(), weight=WEIGHT, reduction="mean"
    )
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(float(expected), rel=8 * torch.finfo(dtype).eps)


def test_infinite_loss_of_a_target_that_weighs_0_is_not_seen() -> None:
    """A partner with weight 0 contributes 0, even where its loss is infinite."""
    values = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    mix = Mix([1.0, 0.5], [1, 0])

    loss = mixed_loss(values, torch.tensor([0, 1]), mix)

    assert float(loss) == pytest.approx(math.log(2) / 2)


def test_all_ignored_is_nan_as_the_criterion_says() -> None:
    """If every target is ignored a mean has nothing to divide by, as in PyTorch itself."""
    criterion = nn.CrossEntropyLoss(ignore_index=0)
    target = torch.zeros(B, dtype=torch.int64)

    loss = mixed_loss(logits(), target, some_mix(), criterion)

    assert loss.isnan()
    assert criterion(logits(), target).isnan()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.ones(B, dtype=torch.bool), "dtype torch.bool"),
        (torch.ones(B), "target of shape (7,) and dtype torch.float32"),
        (torch.ones(B, 1), "(7, 1)"),
        (torch.ones(B, C, 2, dtype=torch.int64), "(7, 4, 2)"),
        (torch.ones(B - 1, dtype=torch.int64), "mix of 7 samples"),
        (torch.tensor(1), "target of shape ()"),
    ],
)
@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_other_targets_are_refused(target: Tensor, message: str, lam: float) -> None:
    """Targets that are neither indices nor values like the logits are named and refused."""
    with pytest.raises(ValueError, match=re.escape(message)):
        mixed_loss(logits(), target, Mix(lam, range(B)))


def test_logits_of_another_batch_are_refused() -> None:
    """Logits, targets and mix must be the same batch, else the message has all three sizes."""
    with pytest.raises(
        ValueError, match=re.escape("mix of 7 samples, but logits of shape (3, 4)")
    ):
        mixed_loss(torch.randn(3, C), TARGET, some_mix())


class Quiet(nn.Module):
    """A criterion without a `reduction`."""

    def forward(self, values: Tensor, target: Tensor) -> Tensor:
        """The mean cross entropy."""
        return F.cross_entropy(values, target)


class Wrapper(nn.Module):
    """A criterion whose `reduction` does not reach the loss inside."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction
        self.inner = nn.CrossEntropyLoss(reduction=reduction)

    def forward(self, values: Tensor, target: Tensor) -> Tensor:
        """The loss inside."""
        return self.inner(values, target)


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (Quiet(), TypeError, "Quiet has no `reduction`, so it cannot be weighed sample by sample"),
        (lambda values, target: values.sum(), TypeError, "<lambda> has no `reduction`"),
        (Wrapper(), ValueError, "Wrapper with reduction='none' returned shape ()"),
        (Wrapper("median"), ValueError, "Wrapper has reduction='median'"),
    ],
)
def test_criterion_that_cannot_be_weighed_is_refused(
    criterion: Callable[..., Tensor], error: type[Exception], message: str
) -> None:
    """A loss that gives no value per sample is refused by name."""
    with pytest.raises(error, match=re.escape(message)):
        mixed_loss(logits(), TARGET, some_mix(), criterion)


class Focal(nn.CrossEntropyLoss):
    """A focal loss by inheritance: its mean is the plain one, whatever the class weights."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Of (B, C) and (B,)."""
        losses = F.cross_entropy(logits, target, weight=self.weight, reduction="none")
        losses = (1 - (-losses).exp()).square() * losses
        return losses.mean() if self.reduction == "mean" else losses


@pytest.mark.parametrize("lam", [1.0, 0.7, 0.5])
def test_subclass_with_a_forward_of_its_own_is_a_loss_of_its_own(lam: float) -> None:
    """Partners of the same class change nothing, so the loss is what the criterion gives."""
    logits, target = torch.randn(4, 3), torch.tensor([1, 1, 2, 2])
    criterion = Focal(weight=torch.tensor([1.0, 5.0, 0.2]))

    found = mixed_loss(logits, target, Mix(lam, [1, 0, 3, 2]), criterion)

    torch.testing.assert_close(found, criterion(logits, target))


def test_compiled_criterion_is_the_one_it_was_made_of() -> None:
    """Its loss is the same, and it keeps its reduction."""
    logits, target, mix = torch.randn(4, 3), torch.randn(4, 3), Mix(0.3, [1, 0, 3, 2])
    criterion = torch.compile(nn.L1Loss(), backend="eager")

    found = mixed_loss(logits, target, mix, criterion)

    torch.testing.assert_close(found, mixed_loss(logits, target, mix, nn.L1Loss()))
    assert criterion.reduction == "mean"


def test_loss_of_a_module_whose_name_begins_like_torch_is_of_its_user() -> None:
    """Its integer targets may mean anything, so they are taken as they are."""

    def loss(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(logits, target, reduction=reduction)

    logits, target, mix = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), Mix(0.3, [1, 0, 3, 2])
    expected = mixed_loss(logits, target, mix, loss)
    loss.__module__ = "torch_losses"

    torch.testing.assert_close(mixed_loss(logits, target, mix, loss), expected)


# Losses of others


def of_both(mix: Mix, own: Tensor, other: Tensor) -> Tensor:
    """Each sample's own part and its partner's."""
    lam = mix.lam.to(own).view(-1, *[1] * (own.ndim - 1))
    return lam * own + (1 - lam) * other


class Doubled(nn.CrossEntropyLoss):
    """Twice the cross entropy, weighted and reduced by the class that it inherits from."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Of (B, C) and (B,)."""
        return 2 * super().forward(logits, target)


def hidden(weight: Tensor | None, ignored: int) -> Callable[..., Tensor]:
    """A loss that weighs and ignores, of which nothing can be read from outside."""

    def loss(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(logits, target, weight, ignore_index=ignored, reduction=reduction)

    loss.__module__ = "mine"
    return loss


SMALL = torch.tensor([1.0, 5.0, 0.2])


@pytest.mark.parametrize(
    ("own", "plain", "factor"),
    [
        (Doubled(weight=SMALL), nn.CrossEntropyLoss(weight=SMALL), 2),
        (Doubled(weight=SMALL, ignore_index=1), nn.CrossEntropyLoss(SMALL, ignore_index=1), 2),
        (Doubled(), nn.CrossEntropyLoss(), 2),
        (hidden(None, 2), nn.CrossEntropyLoss(ignore_index=2), 1),
        (hidden(SMALL, -100), nn.CrossEntropyLoss(SMALL), 1),
        (hidden(SMALL, 1), nn.CrossEntropyLoss(SMALL, ignore_index=1), 1),
    ],
)
@pytest.mark.parametrize("shape", [(5,), (5, 2, 2)])
def test_mean_of_a_loss_of_ones_own_divides_as_it_does(
    own: Callable[..., Tensor], plain: nn.Module, factor: float, shape: tuple[int, ...]
) -> None:
    """By weights that are in it, wherever they are: as the loss that it is made of."""
    logits, target = torch.randn(5, 3, *shape[1:]), torch.randint(3, shape)
    mix = Mix([0.9, 0.3, 0.5, 1.0, 0.2], [1, 0, 0, 4, 2])

    found = mixed_loss(logits, target, mix, own)

    torch.testing.assert_close(found, factor * mixed_loss(logits, target, mix, plain))


@pytest.mark.parametrize("own", [Doubled(weight=SMALL), hidden(SMALL, 1)])
def test_loss_of_ones_own_keeps_its_scale_when_nothing_is_mixed(
    own: Callable[..., Tensor],
) -> None:
    """A step that is not mixed, as with prob < 1, has the loss of a mix that hardly mixes."""
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 2])
    partner = [1, 0, 3, 4, 2]

    hardly = mixed_loss(logits, target, Mix(1 - 1e-7, partner), own)

    expected = mixed_loss(logits, target, Mix(1.0, partner), own)
    torch.testing.assert_close(hardly, expected, rtol=1e-4, atol=1e-5)


def test_mean_that_cannot_be_known_is_asked_for() -> None:
    """One that divides by something that is in no single sample."""

    class Odd(nn.Module):
        """Divides by the number of classes that occur."""

        reduction = "mean"

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            """Of (B, C) and (B,)."""
            losses = F.cross_entropy(logits, target, reduction="none")
            return losses if self.reduction == "none" else losses.sum() / target.unique().numel()

    with pytest.raises(ValueError, match=r"Odd gives .* cannot be known; use its reduction='sum'"):
        mixed_loss(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), Mix(0.3, [1, 0, 3, 2]), Odd())


def losses_of_fastai() -> dict[str, tuple[Any, Any]]:
    """Each beside its plain form."""
    from fastai.losses import (
        BCEWithLogitsLossFlat,
        CrossEntropyLossFlat,
        FocalLossFlat,
        L1LossFlat,
        LabelSmoothingCrossEntropyFlat,
        MSELossFlat,
    )

    return {
        "classes": (CrossEntropyLossFlat(), nn.CrossEntropyLoss()),
        "weighted": (CrossEntropyLossFlat(weight=SMALL), nn.CrossEntropyLoss(SMALL)),
        "smoothed": (
            LabelSmoothingCrossEntropyFlat(eps=0.2),
            nn.CrossEntropyLoss(label_smoothing=0.2),
        ),
        "focal": (
            FocalLossFlat(gamma=2.0),
            lambda z, y, reduction="none": focal(z, y),
        ),
        "labels": (BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss()),
        "values": (MSELossFlat(), nn.MSELoss()),
        "distances": (L1LossFlat(), nn.L1Loss()),
    }


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Of each sample, with gamma 2."""
    losses = F.cross_entropy(logits, target, reduction="none")
    return (1 - (-losses).exp()).square() * losses


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["classes", "weighted", "smoothed", "focal", "labels", "values", "distances"]
)
@pytest.mark.parametrize("lam", [[0.9, 0.3, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0]])
def test_losses_of_fastai_give_what_their_plain_forms_give(kind: str, lam: list[float]) -> None:
    """Mixed and not."""
    theirs, plain = losses_of_fastai()[kind]
    logits, mix = torch.randn(4, 3), Mix(lam, [1, 0, 3, 2])
    target = torch.tensor([0, 1, 2, 0])
    if kind in ("labels", "values", "distances"):
        target = F.one_hot(target, 3).float()

    found = mixed_loss(logits, target, mix, theirs)

    if kind == "focal":
        expected = of_both(mix, focal(logits, target), focal(logits, target[mix.partner])).mean()
    else:
        expected = mixed_loss(logits, target, mix, plain)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("axis", [1, -1])
def test_dense_losses_of_fastai_have_their_own_axis_of_classes(axis: int) -> None:
    """As in segmentation, axis 1, or in sequences, the last."""
    from fastai.losses import CrossEntropyLossFlat

    logits, target = torch.randn(4, 3, 2, 2), torch.randint(3, (4, 2, 2))
    mix = Mix([0.9, 0.3, 0.5, 1.0], [1, 0, 3, 2])

    found = mixed_loss(logits.movedim(1, axis), target, mix, CrossEntropyLossFlat(axis=axis))

    torch.testing.assert_close(found, mixed_loss(logits, target, mix, nn.CrossEntropyLoss()))


@pytest.mark.parametrize("soft", [False, True])
def test_losses_of_timm_give_what_their_plain_forms_give(soft: bool) -> None:
    """For classes, and for probabilities where they take them."""
    import timm.loss

    logits, mix = torch.randn(4, 3), Mix([0.9, 0.3, 0.5, 1.0], [1, 0, 3, 2])
    target = torch.tensor([0, 1, 2, 0])
    given = torch.rand(4, 3).softmax(1) if soft else target
    pairs: list[tuple[Any, Any, Tensor]] = [
        (timm.loss.SoftTargetCrossEntropy(), nn.CrossEntropyLoss(), given),
        (
            timm.loss.LabelSmoothingCrossEntropy(0.2),
            nn.CrossEntropyLoss(label_smoothing=0.2),
            target,
        ),
        (
            timm.loss.BinaryCrossEntropy(smoothing=0.0),
            nn.BCEWithLogitsLoss(),
            F.one_hot(target, 3).float(),
        ),
    ]
    for theirs, plain, one in pairs:
        found = mixed_loss(logits, one, mix, theirs)
        torch.testing.assert_close(found, mixed_loss(logits, one, mix, plain))

    indices = mixed_loss(logits, target, mix, timm.loss.BinaryCrossEntropy(smoothing=0.0))
    expected = mixed_loss(logits, F.one_hot(target, 3), mix, nn.BCEWithLogitsLoss())
    torch.testing.assert_close(indices, expected)
