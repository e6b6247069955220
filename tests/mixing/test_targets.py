"""Every kind of target with every criterion for it, against sums over samples in float64."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm.data
import timm.loss
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from manifold_mixup import Mix, mixed_loss
from manifold_mixup._random import seeded_generator
from manifold_mixup.mixing.criteria import mixes_target

B, C, H, W = 6, 4, 3, 2
IGNORED = 255
WEIGHT = torch.tensor([0.2, 1.5, 3.0, 0.7], dtype=torch.float64)
MIXES = {
    "per sample": Mix([0.9, 0.25, 1.0, 0.0, 0.5, 0.6], [3, 0, 5, 4, 1, 2]),
    "one lam": Mix(0.3, [1, 2, 0, 4, 5, 3]),
}


def draw(*shape: int) -> Tensor:
    """Normal numbers, the same for the same shape."""
    return torch.randn(shape, dtype=torch.float64, generator=seeded_generator(*shape))


def indices(*shape: int, classes: int = C) -> Tensor:
    """Class indices, the same for the same shape."""
    return torch.randint(classes, shape, generator=seeded_generator("indices", *shape))


def masks() -> Tensor:
    """Dense class indices (B, H, W), some of which are to be ignored."""
    target = indices(B, H, W)
    target[:, 0, 0] = IGNORED
    target[1] = IGNORED
    return target


# What a criterion says of one row of logits and its target, an entry each, written out.
def surprise(row: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of logits (C, *) and indices (*)."""
    ignored = target == IGNORED
    log_p = row - row.exp().sum(0).log()
    picked = sum((target == c) * -log_p[c] for c in range(C))
    return torch.where(ignored, 0.0, picked)


def soft_surprise(row: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of logits (C, *) and probabilities (C, *)."""
    log_p = row - row.exp().sum(0).log()
    return -(target * log_p).sum(0)


def bit_surprise(row: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of each entry."""
    p = 1 / (1 + (-row).exp())
    return -(target * p.log() + (1 - target) * (1 - p).log())


def hinge(row: Tensor, target: Tensor) -> Tensor:
    """How far other classes reach above a margin of 1 below the own one, over all classes."""
    return (
        torch.stack([(1 - row[target] + row[c]).clamp(min=0) for c in range(C)]).sum() / C - 1 / C
    )


def huber(row: Tensor, target: Tensor) -> Tensor:
    """Half the square up to a distance of 1, the distance less a half above."""
    far = (row - target).abs()
    return torch.where(far < 1, far**2 / 2, far - 0.5)


class Case(NamedTuple):
    """A kind of target with a criterion for it."""

    logits: Tensor
    target: Tensor
    criterion: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    ignored: bool = False


DENSE = {"ignore_index": IGNORED}
CASES = {
    "indices, cross entropy": Case(draw(B, C), indices(B), nn.CrossEntropyLoss, surprise),
    "int32 indices": Case(draw(B, C), indices(B).int(), nn.CrossEntropyLoss, surprise),
    "indices, hinge": Case(draw(B, C), indices(B), nn.MultiMarginLoss, hinge),
    "one-hot int": Case(draw(B, C), F.one_hot(indices(B), C), nn.CrossEntropyLoss, soft_surprise),
    "soft": Case(draw(B, C), draw(B, C).softmax(1), nn.CrossEntropyLoss, soft_surprise),
    "multi-label float": Case(
        draw(B, C), (draw(B, C) > 0).double(), nn.BCEWithLogitsLoss, bit_surprise
    ),
    "multi-label float32": Case(
        draw(B, C), (draw(B, C) > 0).float(), nn.BCEWithLogitsLoss, bit_surprise
    ),
    "multi-label bool": Case(draw(B, C), draw(B, C) > 0, nn.BCEWithLogitsLoss, bit_surprise),
    "multi-label uint8": Case(
        draw(B, C), (draw(B, C) > 0).byte(), nn.BCEWithLogitsLoss, bit_surprise
    ),
    "one label, logits (B, 1)": Case(
        draw(B, 1), indices(B, classes=2), nn.BCEWithLogitsLoss, bit_surprise
    ),
    "one label, logits (B,)": Case(draw(B), draw(B) > 0, nn.BCEWithLogitsLoss, bit_surprise),
    "values (B,), squared": Case(draw(B), draw(B, 7)[:, 0], nn.MSELoss, lambda x, y: (x - y) ** 2),
    "values (B,), logits (B, 1)": Case(
        draw(B, 1), draw(B, 7)[:, 0], nn.MSELoss, lambda x, y: (x - y) ** 2
    ),
    "values (B, 1), logits (B,)": Case(
        draw(B), draw(B, 7)[:, :1], nn.L1Loss, lambda x, y: (x - y).abs()
    ),
    "values (B, D), squared": Case(
        draw(B, 2), draw(B, 7)[:, :2], nn.MSELoss, lambda x, y: (x - y) ** 2
    ),
    "values (B, D), absolute": Case(
        draw(B, 2), draw(B, 7)[:, :2], nn.L1Loss, lambda x, y: (x - y).abs()
    ),
    "values (B, D), Huber": Case(draw(B, 2), draw(B, 7)[:, :2], nn.HuberLoss, huber),
    "values (B, D), smooth": Case(draw(B, 2), draw(B, 7)[:, :2], nn.SmoothL1Loss, huber),
    "dense": Case(
        draw(B, C, H, W),
        masks(),
        functools.partial(nn.CrossEntropyLoss, ignore_index=IGNORED),
        surprise,
        ignored=True,
    ),
    "dense soft": Case(
        draw(B, C, H, W), draw(B, C, H, W).softmax(1), nn.CrossEntropyLoss, soft_surprise
    ),
    "dense bool": Case(draw(B, 1, H, W), draw(B, H, W) > 0, nn.BCEWithLogitsLoss, bit_surprise),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_equals_a_loop_over_samples(case: Case, mix: Mix, reduction: str) -> None:
    """Each sample's loss is that of its mixed target, or of two targets weighed, by the table."""
    criterion = case.criterion(reduction=reduction)
    logits = case.logits.clone().requires_grad_()
    target = case.target
    if target.numel() == logits.numel():
        target = target.view_as(logits)
    if case.loss in (bit_surprise, soft_surprise):
        target = target.double()
    rows, count = [], 0.0
    for i in range(B):
        lam, own, other = float(mix.lam[i]), target[i], target[int(mix.partner[i])]
        if mixes_target(criterion):
            rows.append(case.loss(logits[i], lam * own + (1 - lam) * other))
        else:
            rows.append(lam * case.loss(logits[i], own) + (1 - lam) * case.loss(logits[i], other))
        if case.ignored:
            count += lam * int((own != IGNORED).sum()) + (1 - lam) * int((other != IGNORED).sum())
    losses = torch.stack(rows)
    mean = losses.sum() / (count if case.ignored else losses.numel())
    expected = {"none": losses, "sum": losses.sum(), "mean": mean}[reduction]

    loss = mixed_loss(logits, case.target, mix, criterion)

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    weights = draw(*loss.shape)  # any gradient from above
    (gradient,) = torch.autograd.grad(loss, logits, weights)
    (by_loop,) = torch.autograd.grad(expected, logits, weights)
    torch.testing.assert_close(gradient, by_loop, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (nn.MSELoss(), True),
        (functools.partial(F.huber_loss, delta=2.0), True),
        (F.smooth_l1_loss, True),
        (nn.CrossEntropyLoss(), False),
        (nn.MultiMarginLoss(), False),
        (lambda logits, target: logits, False),
    ],
)
def test_form_of_the_loss_can_be_asked(criterion: Any, expected: bool) -> None:
    """Distances get the mixed target, everything else two terms."""
    assert mixes_target(criterion) == expected


def test_absolute_error_is_least_at_the_mixed_value() -> None:
    """Of all predictions the mixed value has no error, which two terms would deny."""
    mix, target = Mix(0.75, [1, 0]), torch.tensor([0.0, 4.0])

    assert float(mixed_loss(torch.tensor([1.0, 3.0]), target, mix, nn.L1Loss())) == 0


def test_gradients_agree_where_only_values_differ() -> None:
    """Squared errors of two terms differ from that of the mixed target by a constant."""
    mix, target = MIXES["per sample"], draw(B, 7)[:, :2]
    logits = draw(B, 2).requires_grad_()

    loss = mixed_loss(logits, target, mix, nn.MSELoss())
    two_terms = mix.between((logits - target) ** 2, (logits - target[mix.partner]) ** 2).mean()

    assert bool(loss < two_terms)
    for one, other in zip(
        torch.autograd.grad(loss, logits), torch.autograd.grad(two_terms, logits), strict=True
    ):
        torch.testing.assert_close(one, other)


class Whole(nn.Module):
    """A criterion that tells the loss of a batch alone."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The square of the mean surprise, which no single sample has."""
        return F.cross_entropy(logits, target) ** 2


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_criterion_of_a_whole_batch_takes_one_lam(lam: float) -> None:
    """Without a `reduction` the two losses of the batch are weighed."""
    logits, target, partner = draw(B, C), indices(B), [1, 2, 0, 4, 5, 3]

    loss = mixed_loss(logits, target, Mix(lam, partner), Whole())

    own, other = Whole()(logits, target), Whole()(logits, target[partner])
    torch.testing.assert_close(loss, lam * own + (1 - lam) * other)


def test_criterion_of_a_whole_batch_is_refused_for_many_lams() -> None:
    """Without a `reduction` a lam for each sample has no meaning, and the message says why."""
    with pytest.raises(TypeError, match="samples differ in lam; use per_sample=False"):
        mixed_loss(draw(B, C), indices(B), MIXES["per sample"], Whole())


def test_several_targets_have_a_loss_each() -> None:
    """A dict or tuple of targets gives as many losses, by one criterion for all or one each."""
    mix = MIXES["per sample"]
    logits = {"kind": draw(B, C), "size": draw(B, 1)}
    target = {"kind": indices(B), "size": draw(B, 7)[:, 0]}
    criteria = {"kind": F.cross_entropy, "size": nn.HuberLoss()}
    expected = {
        name: mixed_loss(logits[name], target[name], mix, criteria[name]) for name in target
    }

    by_name = mixed_loss(logits, target, mix, criteria)
    by_place = mixed_loss(
        tuple(logits.values()), list(target.values()), mix, tuple(criteria.values())
    )
    one = mixed_loss([logits["kind"]] * 2, [target["kind"]] * 2, mix)

    assert by_name == expected
    assert by_place == tuple(expected.values())
    assert one == (expected["kind"], expected["kind"])


@pytest.mark.parametrize(
    ("logits", "target", "criterion", "message"),
    [
        ([draw(B, C)], [indices(B)] * 2, F.cross_entropy, "2 targets in a list, but logits of 1"),
        (draw(2, C), [indices(2)] * 2, F.cross_entropy, "logits of 2 in a Tensor"),
        ({"a": draw(B, C)}, {"b": indices(B)}, F.cross_entropy, "'b': there are no logits"),
        ([draw(B, C)] * 2, [indices(B)] * 2, [F.cross_entropy], "criterion of 1 in a list"),
        (
            {"a": draw(B, C)},
            indices(B),
            F.cross_entropy,
            "got a dict; of a model's output",
        ),
        ([draw(B, C)], "a", F.cross_entropy, "target must be a tensor"),
        ([draw(B, C)], [indices(3)], F.cross_entropy, "target 0: mix of 6 samples"),
    ],
)
def test_unlike_structures_are_refused(
    logits: Any, target: Any, criterion: Any, message: str
) -> None:
    """Logits, targets and criteria must be built alike, else the message names the odd one."""
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        mixed_loss(logits, target, MIXES["one lam"], criterion)


@pytest.mark.parametrize("lam", [0.3, 1.0])
@pytest.mark.parametrize(
    ("logits", "target", "criterion", "message"),
    [
        (draw(B, C), indices(B) + 1, F.cross_entropy, "[1, 4], expected them in [0, 4)"),
        (draw(B, C), indices(B) - 1, nn.MultiMarginLoss(), "[-1, 2], expected them in [0, 4)"),
        (draw(B, C, H, W), masks(), F.cross_entropy, "255], expected them in [0, 4)"),
        (draw(B), torch.tensor([1, math.nan, 1, 1, math.inf, 1]), nn.MSELoss(), "of 2 of 6"),
        (draw(B, C), draw(B, C) / 0, nn.BCEWithLogitsLoss(), "the first is sample 0"),
        (draw(B, 2), draw(B), nn.MSELoss(), "shape (6,) and dtype torch.float64"),
        (draw(B, C), draw(B), F.cross_entropy, "expected class indices (B, *) of an integer"),
    ],
)
def test_wrong_values_are_refused(
    logits: Tensor, target: Tensor, criterion: Any, message: str, lam: float
) -> None:
    """Indices out of range and values that are not finite are refused, mixed or not."""
    with pytest.raises(ValueError, match=re.escape(message)):
        mixed_loss(logits, target, Mix(lam, range(B)), criterion)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nn.CrossEntropyLoss, "the class CrossEntropyLoss: give one made of it"),
        ("mse", "criterion is a str: expected one loss"),
        (None, "criterion is a NoneType: expected one loss"),
        ({"a": F.cross_entropy}, "criterion is a dict: .* several are for a dict or sequence"),
        (nn.ModuleList([nn.CrossEntropyLoss()]), "criterion is a ModuleList: expected one loss"),
    ],
)
@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_what_is_no_criterion_is_refused(criterion: Any, message: str, lam: float) -> None:
    """With what came, whether anything is mixed or not."""
    with pytest.raises(TypeError, match=message):
        mixed_loss(draw(B, C), indices(B), Mix(lam, [1, 2, 0, 4, 5, 3]), criterion)


@pytest.mark.parametrize("criterion", [nn.BCEWithLogitsLoss(), nn.MSELoss(), F.l1_loss])
def test_class_indices_are_no_values(criterion: Any) -> None:
    """A criterion that compares value by value is told how to get them."""
    with pytest.raises(ValueError, match=r"class indices of shape .*give one-hot targets"):
        mixed_loss(draw(B, C), indices(B), MIXES["per sample"], criterion)


def test_criteria_may_be_in_modules_of_several() -> None:
    """In a `ModuleDict` or `ModuleList`, as weights that move with a model are."""
    logits, target, mix = draw(B, C), indices(B), MIXES["per sample"]
    loss = mixed_loss(logits, target, mix)
    named = nn.ModuleDict({"a": nn.CrossEntropyLoss()})
    listed = nn.ModuleList([nn.CrossEntropyLoss()])

    assert torch.equal(mixed_loss({"a": logits}, {"a": target}, mix, named)["a"], loss)
    assert torch.equal(mixed_loss([logits], [target], mix, listed)[0], loss)


@pytest.mark.parametrize("target", [indices(B).double(), draw(B, C + 1), indices(B).bool()])
def test_values_of_another_number_of_classes_are_not_mixed(target: Tensor) -> None:
    """Floating class indices would pass for amounts, in a target without its class axis."""
    with pytest.raises(ValueError, match=f"for num_classes={C}: expected integer class indices"):
        MIXES["one lam"].target(target, num_classes=C)


def test_own_criterion_takes_targets_of_its_own_form() -> None:
    """A criterion that PyTorch does not know may compare two outputs with one value."""

    def likelihood(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        losses = (output[:, 0] - target) ** 2 / output[:, 1].exp() + output[:, 1]
        return losses if reduction == "none" else losses.mean()

    mix, output, target = MIXES["per sample"], draw(B, 2), draw(B)

    loss = mixed_loss(output, target, mix, likelihood)

    total = 0.0
    for i in range(B):
        for j, share in ((i, mix.lam[i]), (int(mix.partner[i]), 1 - mix.lam[i])):
            total += float(share * likelihood(output[i : i + 1], target[j : j + 1]))
    assert float(loss) == pytest.approx(total / B)


def test_lists_of_labels_stay_integers() -> None:
    """The multi-label margin takes lists of classes that end in -1, never mixed."""
    mix, logits = MIXES["per sample"], draw(B, C)
    target = torch.tensor([[0, 2, -1, -1], [3, -1, 0, 0], [1, -1, 2, 2]] * 2)
    each = nn.MultiLabelMarginLoss(reduction="none")

    loss = mixed_loss(logits, target, mix, nn.MultiLabelMarginLoss())

    expected = mix.between(each(logits, target), each(logits, target[mix.partner])).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_mixed_multi_label_targets_are_values(dtype: torch.dtype) -> None:
    """A multi-label target of any dtype is mixed as numbers."""
    mix, target = MIXES["per sample"], (draw(B, C) > 0).to(dtype)

    mixed = mix.target(target)

    expected = mix.lam[:, None] * target + (1 - mix.lam)[:, None] * target[mix.partner]
    torch.testing.assert_close(mixed, expected.float())


def test_mixed_masks_are_one_hot_maps() -> None:
    """Dense indices become maps of one-hot vectors, empty where they are ignored."""
    mix, target = MIXES["per sample"], masks()

    mixed = mix.target(target, num_classes=C, ignore_index=IGNORED)

    assert mixed.shape == (B, C, H, W)
    for i, c, h, w in [(0, 1, 0, 0), (1, 2, 1, 1), (4, int(target[4, 2, 1]), 2, 1)]:
        lam, partner = float(mix.lam[i]), int(mix.partner[i])
        share = lam * (target[i, h, w] == c) + (1 - lam) * (target[partner, h, w] == c)
        assert float(mixed[i, c, h, w]) == pytest.approx(float(share))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_that_of_timm(smoothing: float) -> None:
    """The mixed and smoothed targets of timm with its soft cross entropy give our loss."""
    images, target = draw(B, 3, 4, 4).float(), torch.tensor([0, 1, 2, 3, 1, 2])
    logits = draw(B, C).float()
    mixup = timm.data.Mixup(mixup_alpha=1.0, label_smoothing=smoothing, num_classes=C)
    mixed_images, soft = mixup(images.clone(), target)
    delta = images.flip(0) - images
    lam = 1 - float(((mixed_images - images) * delta).sum() / (delta * delta).sum())
    mix = Mix(lam, range(B)[::-1])

    loss = mixed_loss(logits, target, mix, nn.CrossEntropyLoss(label_smoothing=smoothing))

    expected = timm.loss.SoftTargetCrossEntropy()(logits, soft.to(logits.device))
    torch.testing.assert_close(mix(images), mixed_images, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_targets_equal_those_of_torchvision() -> None:
    """The mixed targets of torchvision are ours, and so is their cross entropy."""
    images, target = draw(B, 3, 4, 4).float(), torch.tensor([0, 1, 2, 3, 1, 2])
    logits = draw(B, C).float()
    _, soft = v2.MixUp(alpha=1.0, num_classes=C)(images, target)
    lam = float(soft[1, 1])  # its partner, the sample before, is of another class
    mix = Mix(lam, torch.arange(B).roll(1))

    torch.testing.assert_close(mix.target(target, C), soft, rtol=0, atol=1e-6)
    expected = F.cross_entropy(logits, soft)
    torch.testing.assert_close(mixed_loss(logits, target, mix), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["stacked indices", "unstacked labels", "unstacked values"])
def test_loss_equals_that_of_fastai(kind: str) -> None:
    """A training step of fastai with its MixUp has our loss, of the lam and partners it drew."""
    from fastai.callback.core import Callback
    from fastai.callback.mixup import MixUp
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, L1LossFlat

    class Seen(Callback):
        """What a step trained on and what came out."""

        order = -1  # before mixing

        def before_batch(self) -> None:
            if self.training:
                (self.own,) = self.yb

        def after_loss(self) -> None:
            if self.training:
                self.logits, self.loss = self.pred.detach(), self.learn.loss.detach()

    target, theirs, ours = {
        "stacked indices": (torch.randperm(B), CrossEntropyLossFlat(), F.cross_entropy),
        "unstacked labels": (torch.eye(B), BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss()),
        "unstacked values": (draw(B, B).float(), L1LossFlat(), nn.L1Loss()),
    }[kind]
    data = list(zip(draw(B, 3).float(), target, strict=True))
    loaders = DataLoaders.from_dsets(data, data, bs=B, num_workers=0, device="cpu")
    mixup, seen = MixUp(1.0), Seen()
    learner = Learner(loaders, nn.Linear(3, B), theirs, cbs=[mixup, seen])
    learner.remove_cbs(learner.cbs.filter(lambda cb: cb.name == "progress"))
    learner.fit(1)
    own, other = seen.own, mixup.yb1[0]
    partner = [next(j for j in range(B) if torch.equal(own[j], row)) for row in other]

    loss = mixed_loss(seen.logits, own, Mix(mixup.lam, partner), ours)

    torch.testing.assert_close(loss, seen.loss, rtol=0, atol=1e-6)
