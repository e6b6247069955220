"""Detectors on a mixed pyramid: the plain losses, weighed; one backbone pass; clear refusals."""

import runpy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import forward_with, hooks_on, mixed_by_loop, output_at
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign

from manifold_mixup import ManifoldMixup, Mix, mixed_detection_loss

DETECTORS = [FasterRCNN, RetinaNet, FCOS]
CANVAS = 96  # pixels; every image of these tests is padded to it
SCALED = [(64, 96), (64, 64)]
MIX = Mix(torch.tensor([0.3, 0.9, 1.0, 0.0]), [1, 2, 0, 0])  # partners are no permutation
Targets = list[dict[str, Tensor]]


class Pyramid(nn.Module):
    """A backbone of two levels, with strides of 8 and 16 pixels."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(32, 32, 2, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Both levels."""
        fine = self.stem(images).relu()
        return OrderedDict(fine=fine, coarse=self.down(fine))


def make(kind: type[nn.Module], **settings: Any) -> Any:
    """A small detector of 3 classes and background; Faster R-CNN draws every anchor there is."""
    torch.manual_seed(0)
    settings = {"size_divisible": CANVAS, "_skip_resize": True, **settings}
    if kind is FasterRCNN:
        model: Any = FasterRCNN(
            Pyramid(),
            4,
            rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
            box_roi_pool=MultiScaleRoIAlign(["fine", "coarse"], 3, 2),
            **{"rpn_batch_size_per_image": 9999, "box_batch_size_per_image": 9999, **settings},
        )
    else:
        anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
        model = kind(Pyramid(), 4, anchor_generator=anchors, **settings)
    for name, parameter in model.named_parameters():
        if "backbone" not in name and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)  # heads that tell one image from another
    return model


def cells(*rows: tuple[float, ...]) -> dict[str, Tensor]:
    """Boxes and labels of rows x1, y1, x2, y2, label."""
    boxes = torch.tensor([row[:4] for row in rows]).float().view(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([int(row[4]) for row in rows]).long()}


def batch() -> tuple[list[Tensor], Targets]:
    """Four images of different sizes with 2, 1, 0 and 3 boxes."""
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 80), torch.rand(3, 90, 60)]
    targets = [cells((2, 4, 30, 28, 1), (20, 20, 60, 60, 2)), cells((8, 8, 76, 30, 3)), cells()]
    few = cells((1, 1, 17, 17, 1), (30, 2, 50, 40, 2), (5, 40, 42, 64, 3))
    return [*images, torch.rand(3, 70, 52)], [*targets, few]


def plain(model: Any, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
    """The model's own losses from a fixed random state."""
    torch.manual_seed(1)
    return model(images, targets)


def mixed(model: Any, images: list[Tensor], targets: Targets, mix: Mix) -> dict[str, Tensor]:
    """The losses under test from the same random state."""
    torch.manual_seed(1)
    return mixed_detection_loss(model, images, targets, mix)


def counted(
    model: Any, monkeypatch: pytest.MonkeyPatch, run: Any
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Losses of a run of one image, and what torchvision divided each of them by."""
    counts = {"": 1}
    with monkeypatch.context() as patch:
        if isinstance(model, FasterRCNN):
            for part in ("rpn", "roi_heads"):
                sampler = getattr(model, part).fg_bg_sampler

                def spy(labels: Any, part: str = part, sampler: Any = sampler) -> Any:
                    drawn = sampler(labels)
                    counts[part] = int(sum(mask.sum() for masks in drawn for mask in masks))
                    return drawn

                patch.setattr(getattr(model, part), "fg_bg_sampler", spy)
        elif isinstance(model, FCOS):
            own = model.head.compute_loss

            def spy_on_head(targets: Any, outputs: Any, anchors: Any, matched: Any) -> Any:
                counts[""] = int((matched[0] >= 0).sum())
                return own(targets, outputs, anchors, matched)

            patch.setattr(model.head, "compute_loss", spy_on_head)
        losses = run()
    first = {"loss_objectness": "rpn", "loss_rpn_box_reg": "rpn"}
    default = "roi_heads" if isinstance(model, FasterRCNN) else ""
    return losses, {name: counts[first.get(name, default)] for name in losses}


def by_hand(
    model: Any, images: list[Tensor], targets: Targets, mix: Mix, patch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """Each mixed image through the model by itself, its losses weighed by count and by lam."""
    padded = torch.zeros(len(images), 3, CANVAS, CANVAS)
    for row, image in zip(padded, model.transform(images)[0].tensors, strict=True):
        row.copy_(image)
    levels = {k: mixed_by_loop(mix, v) for k, v in model.backbone(padded).items()}
    lam, partner = mix.lam.tolist(), mix.partner.tolist()
    total: dict[str, Tensor] = {}
    for whose in ("own", "partner"):
        rows = []
        for i, j in enumerate(partner):
            pair = [images[k].shape[1:] for k, w in ((i, lam[i]), (j, 1 - lam[i])) if w > 0]
            blank = torch.zeros(3, max(s[0] for s in pair), max(s[1] for s in pair))
            features = OrderedDict((k, v[i : i + 1]) for k, v in levels.items())
            target = targets[i if whose == "own" else j]

            def run(blank: Any = blank, features: Any = features, target: Any = target) -> Any:
                return forward_with(model, "backbone", features, [blank], [target])

            rows.append(counted(model, patch, run))
        for name in rows[0][0]:
            number = max(1, sum(counts[name] for _, counts in rows))
            for i, (losses, counts) in enumerate(rows):
                weight = lam[i] if whose == "own" else 1 - lam[i]
                part = weight * losses[name] * max(1, counts[name]) / number
                total[name] = total.get(name, torch.zeros(())) + part
    return total


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("resized", [False, True])
def test_a_lam_of_1_gives_the_plain_losses(kind: type[nn.Module], resized: bool) -> None:
    """The same values and the same random state after them, drawn anchors included."""
    drawing = {"rpn_batch_size_per_image": 16, "box_batch_size_per_image": 8}
    sizes = {"_skip_resize": False, "min_size": (48, 64), "max_size": 96} if resized else {}
    model = make(kind, **(drawing if kind is FasterRCNN else {}), **sizes)
    images, targets = batch()
    expected, after = plain(model, images, targets), torch.get_rng_state()
    losses = mixed(model, images, targets, Mix(1.0, [1, 2, 3, 0]))

    assert list(losses) == list(expected)
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_lam_next_to_1_gives_the_plain_losses(kind: type[nn.Module]) -> None:
    """Own boxes are matched and drawn first, from the random state that the model would use."""
    drawing = {"rpn_batch_size_per_image": 16, "box_batch_size_per_image": 8}
    model = make(kind, **(drawing if kind is FasterRCNN else {}))
    images, targets = [torch.rand(3, 64, 64) for _ in range(4)], batch()[1]
    losses = mixed(model, images, targets, Mix(1 - 1e-9, [1, 2, 3, 0]))

    torch.testing.assert_close(losses, plain(model, images, targets))


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_lam_of_0_gives_the_losses_of_the_partners(kind: type[nn.Module]) -> None:
    """Only the partner is left of each sample: its features, its boxes and its size."""
    model, (images, targets), partner = make(kind), batch(), [1, 2, 3, 0]
    losses = mixed(model, images, targets, Mix(0.0, partner))
    expected = plain(model, [images[i] for i in partner], [targets[i] for i in partner])

    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_sample_mixed_with_itself_keeps_its_losses(kind: type[nn.Module]) -> None:
    """Whatever its lam."""
    model, (images, targets) = make(kind), batch()
    losses = mixed(model, images, targets, Mix(torch.rand(4), range(4)))

    torch.testing.assert_close(losses, plain(model, images, targets))


@pytest.mark.parametrize("kind", DETECTORS)
def test_one_lam_weighs_the_losses_of_the_batch(kind: type[nn.Module]) -> None:
    """With features mixed by hand: lam x the model's losses + (1 - lam) x those of the others."""
    model, targets, mix = make(kind), batch()[1], Mix(0.7, [1, 0, 0, 2])
    images = [torch.rand(3, 64, 64) for _ in targets]
    levels = output_at(model, "backbone", images, targets)
    features = OrderedDict((k, mixed_by_loop(mix, v)) for k, v in levels.items())
    exchanged = [targets[i] for i in mix.partner]
    own = forward_with(model, "backbone", features, images, targets)
    other = forward_with(model, "backbone", features, images, exchanged)
    losses = mixed_detection_loss(model, images, targets, mix)

    expected = {name: 0.7 * own[name] + 0.3 * other[name] for name in own}
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("mix", [MIX, Mix(0.4, [3, 2, 1, 0])], ids=["each", "one"])
def test_each_sample_has_its_own_lam(
    kind: type[nn.Module], mix: Mix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of different sizes: equal to every mixed image by itself, on the size of both."""
    model, (images, targets) = make(kind), batch()
    expected = by_hand(model, images, targets, mix, monkeypatch)

    torch.testing.assert_close(mixed(model, images, targets, mix), expected)


@pytest.mark.parametrize("kind", DETECTORS)
def test_boxes_are_scaled_with_their_own_image(kind: type[nn.Module]) -> None:
    """A partner's boxes too: equal to scaling images and boxes by hand beforehand."""
    images = [torch.rand(3, 32, 48), torch.rand(3, 40, 40)]
    targets = [cells((2, 4, 30, 28, 1)), cells((8, 8, 36, 30, 3))]
    large = [
        F.interpolate(i[None], s, mode="bilinear")[0] for i, s in zip(images, SCALED, strict=True)
    ]
    scaled = [
        {**target, "boxes": target["boxes"] * factor}
        for target, factor in zip(targets, (2.0, 1.6), strict=True)
    ]
    mix = Mix(torch.tensor([0.3, 0.6]), [1, 0])
    losses = mixed(make(kind, _skip_resize=False, min_size=64), images, targets, mix)

    torch.testing.assert_close(losses, mixed(make(kind), large, scaled, mix), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", DETECTORS)
def test_the_backbone_runs_once_and_every_level_is_mixed_once(kind: type[nn.Module]) -> None:
    """What the heads see is the backbone's output, mixed by the one mix."""
    model, (images, targets) = make(kind), batch()
    outputs: list[dict[str, Tensor]] = []
    seen: list[list[Tensor]] = []
    head = model.rpn.head if kind is FasterRCNN else model.head
    model.backbone.register_forward_hook(lambda m, i, o: outputs.append(o))
    head.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    mixed_detection_loss(model, images, targets, MIX)

    assert len(outputs) == len(seen) == 1
    assert list(outputs[0]) == ["fine", "coarse"]
    for level, found in zip(outputs[0].values(), seen[0], strict=True):
        torch.testing.assert_close(found, mixed_by_loop(MIX, level))


@pytest.mark.parametrize("kind", DETECTORS)
def test_gradients_reach_every_parameter_and_the_model_stays_as_it_was(
    kind: type[nn.Module],
) -> None:
    """Nothing is left on the model, and its targets are not changed."""
    model, (images, targets) = make(kind), batch()
    before, attributes = {k: v.clone() for k, v in model.state_dict().items()}, set(vars(model))
    kept = [{k: v.clone() for k, v in target.items()} for target in targets]
    sum(mixed_detection_loss(model, images, targets, MIX).values()).backward()

    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert set(vars(model)) == attributes
    assert hooks_on(model) == 0
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(targets, kept, rtol=0, atol=0)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_partner_whose_boxes_are_wrong_costs(kind: type[nn.Module]) -> None:
    """The losses depend on the partner's boxes just where 1 - lam is above 0."""
    model, (images, targets) = make(kind), batch()
    moved = [targets[0], cells((40, 8, 50, 30, 1)), *targets[2:]]
    losses = mixed(model, images, targets, Mix(torch.tensor([0.3, 0.0, 1, 1]), [1, 0, 2, 3]))
    others = mixed(model, images, moved, Mix(torch.tensor([0.3, 0.0, 1, 1]), [1, 0, 2, 3]))
    alone = mixed(model, images, targets, Mix(torch.tensor([1, 0.0, 0.5, 1]), [1, 0, 2, 3]))

    assert all(not torch.equal(losses[name], others[name]) for name in losses)
    assert all(bool(loss.isfinite()) for loss in alone.values())


@pytest.mark.parametrize("kind", DETECTORS)
def test_images_without_objects_give_finite_losses(kind: type[nn.Module]) -> None:
    """All of them, too."""
    model, images = make(kind), batch()[0]
    losses = mixed_detection_loss(model, images, [cells()] * 4, MIX)

    assert all(bool(loss.isfinite()) for loss in losses.values())


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_resnet_with_a_feature_pyramid_trains(kind: type[nn.Module]) -> None:
    """The pyramid that users build, its pooled level included: every level takes part."""
    layers = {f"layer{number}": str(number - 1) for number in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(resnet18(), layers, [64, 128, 256, 512], 64)
    model: Any = kind(backbone, 4, **_settings(kind), min_size=64, max_size=96)
    losses = mixed_detection_loss(model, *batch(), Mix(0.8, [1, 2, 3, 0]))
    sum(losses.values()).backward()

    assert set(losses) == set(model(*batch()))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def _settings(kind: type[nn.Module]) -> dict[str, Any]:
    if kind is FasterRCNN:
        return {"rpn_post_nms_top_n_train": 64, "box_batch_size_per_image": 16}  # fewer, faster
    anchors = AnchorGenerator(((4,), (8,), (16,), (32,), (64,)), ((1.0,),) * 5)
    return {"anchor_generator": anchors}


def spoilt(**changes: Any) -> Targets:
    """Targets whose second image has other entries; None takes one away."""
    targets = batch()[1]
    targets[1] = {k: v for k, v in {**targets[1], **changes}.items() if v is not None}
    return targets


def flat(*box: float) -> Tensor:
    """One box."""
    return torch.tensor([box]).float()


WRONG_TARGETS = {
    "fewer boxes than images": (batch()[1][:3], "4 images, 3 targets and a mix of 4"),
    "no boxes": (spoilt(boxes=None), "image 1 has no boxes"),
    "no labels": (spoilt(labels=None), "image 1 has no labels"),
    "a label too many": (
        spoilt(labels=torch.tensor([1, 2])),
        r"image 1 has boxes of shape \(1, 4",
    ),
    "no width": (spoilt(boxes=flat(8, 8, 8, 30)), "box 0 of image 1 is .*x1 < x2"),
    "a negative height": (spoilt(boxes=flat(8, 30, 40, 8)), "box 0 of image 1 is"),
    "NaN": (spoilt(boxes=flat(8, 8, float("nan"), 30)), "box 0 of image 1 is .*nan"),
    "infinite": (spoilt(boxes=flat(8, 8, float("inf"), 30)), "box 0 of image 1 is .*inf"),
    "a label too large": (
        spoilt(labels=torch.tensor([4])),
        r"box 0 of image 1 has label 4.*, 4\)",
    ),
    "a negative label": (spoilt(labels=torch.tensor([-1])), "box 0 of image 1 has label -1"),
}


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize(("targets", "message"), WRONG_TARGETS.values(), ids=WRONG_TARGETS)
@pytest.mark.parametrize("mix", [MIX, Mix.identity(4)], ids=["mixed", "identity"])
def test_wrong_targets_are_refused_before_the_backbone_runs(
    kind: type[nn.Module], targets: Targets, message: str, mix: Mix
) -> None:
    """The message names the image and the box."""
    model, images = make(kind), batch()[0]
    model.backbone.register_forward_pre_hook(lambda m, i: pytest.fail("the backbone ran"))

    with pytest.raises(ValueError, match=message):
        mixed_detection_loss(model, images, targets, mix)


def test_the_place_of_a_wrong_box_counts_images_without_boxes() -> None:
    """The last box of the last image."""
    images, targets = batch()
    targets[3]["boxes"][2, 3] = 0

    with pytest.raises(ValueError, match="box 2 of image 3 is"):
        mixed_detection_loss(make(FCOS), images, targets, MIX)


def test_the_background_is_no_label_of_faster_rcnn() -> None:
    """It keeps class 0 to itself; the others do not."""
    targets = spoilt(labels=torch.tensor([0]))
    mixed_detection_loss(make(FCOS), batch()[0], targets, MIX)

    with pytest.raises(ValueError, match="label 0.*background"):
        mixed_detection_loss(make(FasterRCNN), batch()[0], targets, MIX)


@pytest.mark.parametrize(
    "changes", [{"boxes": torch.tensor([[8, 8, 40, 30]])}, {"labels": torch.tensor([1.0])}]
)
def test_other_dtypes_are_refused(changes: dict[str, Tensor]) -> None:
    """Boxes are floating, labels are int64."""
    with pytest.raises(TypeError, match="target of image 1 .* expected floating boxes and int64"):
        mixed_detection_loss(make(RetinaNet), batch()[0], spoilt(**changes), MIX)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(1, 4), "target of image 1 is a Tensor: expected {'boxes'"),
        ({"boxes": [[8.0, 8, 40, 30]], "labels": [1]}, "target of image 1 has a list of boxes"),
    ],
)
def test_what_is_no_target_is_refused(target: Any, message: str) -> None:
    """Boxes and labels are tensors in a dict."""
    images, targets = batch()
    with pytest.raises(TypeError, match=message):
        mixed_detection_loss(make(FCOS), images, [targets[0], target, *targets[2:]], MIX)


def test_what_is_no_image_is_refused() -> None:
    """A file's name, for instance."""
    images: list[Any] = batch()[0]
    with pytest.raises(TypeError, match="image 0 is a str: expected a tensor"):
        mixed_detection_loss(make(FCOS), ["0.png", *images[1:]], batch()[1], MIX)


@pytest.mark.parametrize("image", [torch.rand(1, 3, 64, 64), torch.zeros(3, 64, 64).byte()])
def test_images_of_another_shape_or_dtype_are_refused(image: Tensor) -> None:
    """One batched image in the list, or one of bytes."""
    images, targets = batch()

    with pytest.raises(ValueError, match="image 3 has shape"):
        mixed_detection_loss(make(RetinaNet), [*images[:3], image], targets, MIX)


def test_a_mix_of_another_size_is_refused() -> None:
    """It would exchange boxes with the wrong images."""
    with pytest.raises(ValueError, match="4 images, 4 targets and a mix of 3"):
        mixed_detection_loss(make(FCOS), *batch(), Mix(0.5, [1, 2, 0]))


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_model_in_evaluation_mode_is_refused(kind: type[nn.Module]) -> None:
    """It would return detections."""
    with pytest.raises(ValueError, match=rf"{kind.__name__} is in evaluation mode.*train\(\)"):
        mixed_detection_loss(make(kind).eval(), *batch(), MIX)


@pytest.mark.parametrize("part", ["rpn", "roi_heads"])
def test_a_part_in_evaluation_mode_is_refused(part: str) -> None:
    """Its losses would be left out in silence."""
    model = make(FasterRCNN)
    model.get_submodule(part).eval()

    with pytest.raises(ValueError, match=f"FasterRCNN.{part} is in evaluation mode"):
        mixed_detection_loss(model, *batch(), MIX)


def test_other_models_are_refused() -> None:
    """A wrapper, another network, and a detector with masks."""
    masks = MaskRCNN(
        Pyramid(), 4, rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((1.0,),) * 2)
    )
    for model, name in ((nn.Sequential(make(FCOS)), "Sequential"), (Pyramid(), "Pyramid")):
        with pytest.raises(TypeError, match=f"model is a {name}.*FasterRCNN, RetinaNet or FCOS"):
            mixed_detection_loss(model, *batch(), MIX)
    with pytest.raises(TypeError, match="MaskRCNN predicts masks"):
        mixed_detection_loss(masks, *batch(), MIX)


def test_features_are_not_mixed_twice() -> None:
    """A step of a ManifoldMixup on the same model is refused."""
    model, (images, targets) = make(FCOS), batch()
    mixup = ManifoldMixup(model.backbone, "stem", example=torch.rand(2, 3, 32, 32))

    with pytest.raises(RuntimeError, match="'stem' .* mixed twice"), mixup(torch.zeros(4)) as mix:
        mixed_detection_loss(model, images, targets, mix)


@pytest.fixture
def script() -> dict[str, Any]:
    """The names in the example script, if its metric is installed."""
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    return runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "detection.py"))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["BloodImage_00338", "BloodImage_00343"])
def test_the_script_leaves_out_boxes_without_an_area(
    script: dict[str, Any], shared: Path, name: str
) -> None:
    """One box each of two images; the others lie in the scaled image."""
    data = shared / "datasets" / "bccd_detection"
    image, target = script["load_sample"](data, name, 120)
    objects = (data / "Annotations" / f"{name}.xml").read_text().count("<object>")

    assert image.shape == (3, 120, 160)
    assert 0 <= image.min() < image.max() <= 1
    assert len(target["boxes"]) == len(target["labels"]) == objects - 1
    assert bool((target["boxes"] <= torch.tensor([160, 120, 160, 120])).all())


@pytest.mark.shared
def test_the_script_compares_with_and_without_mixing(
    script: dict[str, Any],
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On two images, in one epoch: both ways for both seeds, and the paired difference."""
    files = {
        "--data": shared / "datasets" / "bccd_detection",
        "--weights": shared / "weights" / "resnet18_imagenet.safetensors",
    }
    size = ["--seeds", "2", "--epochs", "1", "--limit", "2", "--height", "64"]
    given = [str(part) for pair in files.items() for part in pair]
    monkeypatch.setattr("sys.argv", ["detection.py", *given, *size])
    script["main"]()
    printed = capsys.readouterr().out

    for seed in (0, 1):
        for alpha in (0.4, 0.0):
            assert f"seed {seed}, alpha {alpha}: mAP" in printed
    assert "mAP: with minus without, paired by seed: " in printed
