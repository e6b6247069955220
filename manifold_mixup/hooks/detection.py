"""Detection: torchvision's detectors with their feature pyramid mixed, and the loss to match."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.hooks.manager import mixing_layer
from manifold_mixup.mixing import Mix

Target = Mapping[str, Tensor]


def is_two_stage(model: nn.Module) -> bool:
    """Whether a detector in training mode is a Faster R-CNN, not a RetinaNet or FCOS.

    Raises:
        TypeError: It is none of the three, or has masks or keypoints.
        ValueError: It, or its proposal network or box heads, is in evaluation mode.
    """
    from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet

    name = type(model).__name__
    if not isinstance(model, FasterRCNN | RetinaNet | FCOS):
        raise TypeError(
            f"model is a {name}: expected torchvision's FasterRCNN, RetinaNet or FCOS itself; "
            "take it out of its wrapper"
        )
    two_stage = isinstance(model, FasterRCNN)
    if two_stage and (model.roi_heads.has_mask() or model.roi_heads.has_keypoint()):
        raise TypeError(
            f"{name} predicts masks or keypoints, which are not mixed; use a FasterRCNN"
        )
    for part in ("", "rpn", "roi_heads") if two_stage else ("",):
        if not model.get_submodule(part).training:
            where = f"{name}.{part}" if part else name
            raise ValueError(
                f"{where} is in evaluation mode and has no losses; call model.train()"
            )
    return two_stage


def label_range(model: Any, *, two_stage: bool) -> tuple[int, int | None]:
    """The least label of a box, and the number of classes where a model's head tells it."""
    if two_stage:
        scores = getattr(model.roi_heads.box_predictor, "cls_score", None)
        return 1, getattr(scores, "out_features", None)
    return 0, getattr(getattr(model.head, "classification_head", None), "num_classes", None)


def check_batch(images: Sequence[Tensor], targets: Sequence[Target], n: int) -> None:
    """Raise unless there are n images, each with as many boxes as labels."""
    if not len(images) == len(targets) == n:
        raise ValueError(
            f"{len(images)} images, {len(targets)} targets and a mix of {n} samples: expected one "
            "target and one lam for each image"
        )
    for index, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise TypeError(
                f"image {index} is a {type(image).__name__}: expected a tensor (3, H, W)"
            )
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(
                f"image {index} has shape {tuple(image.shape)} and dtype {image.dtype}: expected "
                "floating values (3, H, W) in [0, 1]"
            )
    for index, target in enumerate(targets):
        _check_target(index, target)


def _check_target(index: int, target: Target) -> None:
    if not isinstance(target, Mapping):
        raise TypeError(
            f"target of image {index} is a {type(target).__name__}: expected "
            "{'boxes': (N, 4), 'labels': (N,)}"
        )
    missing = {"boxes", "labels"} - set(target)
    if missing:
        raise ValueError(
            f"target of image {index} has no {' and no '.join(sorted(missing))}: expected "
            "{'boxes': (N, 4), 'labels': (N,)}, with N = 0 for an image without objects"
        )
    boxes, labels = target["boxes"], target["labels"]
    if not (isinstance(boxes, Tensor) and isinstance(labels, Tensor)):
        raise TypeError(
            f"target of image {index} has a {type(boxes).__name__} of boxes and a "
            f"{type(labels).__name__} of labels: expected tensors (N, 4) and (N,)"
        )
    if not boxes.is_floating_point() or labels.dtype != torch.int64:
        raise TypeError(
            f"target of image {index} has boxes of dtype {boxes.dtype} and labels of dtype "
            f"{labels.dtype}: expected floating boxes and int64 labels"
        )
    if boxes.shape != (len(labels), 4) or labels.ndim != 1:
        raise ValueError(
            f"target of image {index} has boxes of shape {tuple(boxes.shape)} and labels of shape "
            f"{tuple(labels.shape)}: expected (N, 4) and (N,)"
        )


def check_boxes(targets: Sequence[Target]) -> None:
    """Raise unless all boxes are finite and have a positive width and height."""
    boxes = torch.cat([target["boxes"] for target in targets])
    good = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    if not good.all():
        image, box = _place(targets, good)
        values = targets[image]["boxes"][box].tolist()
        raise ValueError(
            f"box {box} of image {image} is {values}: expected finite x1 < x2 and y1 < y2 in "
            "pixels; drop it from the data"
        )


def check_labels(targets: Sequence[Target], low: int, num_classes: int | None) -> None:
    """Raise unless all labels lie in [low, num_classes), with no upper end for None."""
    labels = torch.cat([target["labels"] for target in targets])
    good = labels >= low
    if num_classes is not None:
        good &= labels < num_classes
    if not good.all():
        image, box = _place(targets, good)
        end = "no end" if num_classes is None else num_classes
        raise ValueError(
            f"box {box} of image {image} has label {int(targets[image]['labels'][box])}: expected "
            f"one in [{low}, {end}){', 0 being the background' if low else ''}"
        )


def _place(targets: Sequence[Target], good: Tensor) -> tuple[int, int]:
    """The image and the box of the first entry that is not good, of all boxes in a row."""
    counts = [len(target["labels"]) for target in targets]
    row = int((~good).nonzero()[0])
    image = next(i for i in range(len(counts)) if sum(counts[: i + 1]) > row)
    return image, row - sum(counts[:image])


# What every image adds to each loss of its batch, (B,): their sum is the model's own loss.
Shares = dict[str, Tensor]


def mixed_detection_loss(
    model: nn.Module, images: Sequence[Tensor], targets: Sequence[Target], mix: Mix
) -> dict[str, Tensor]:
    """The training losses of a torchvision detector whose feature pyramid is mixed.

        losses  ->  lam * losses(own boxes) + (1 - lam) * losses(the partner's boxes)

    The mix is applied here, once, to every level of what the backbone returns: the heads must see
    the mixed features and two sets of boxes, which a hook in a forward pass cannot give them. So
    use it without a `ManifoldMixup`. If every lam is 1, the result is ``model(images, targets)``.

    A lam of its own for each sample weighs what its image adds to the model's loss, which
    torchvision divides by a number of the whole batch: of images (RetinaNet), of foreground points
    (FCOS), or of sampled anchors and proposals (Faster R-CNN). That number is taken over the
    batch, once for the own boxes and once for the partners'. With one lam for all samples this is
    exactly `lam` times the model's losses plus ``1 - lam`` times those of the exchanged boxes.

    Boxes are scaled with their own image. All images share one padded canvas with its origin in
    the upper left corner, where a partner's boxes keep their place. Proposals are clipped to the
    larger height and the larger width of the two images mixed.

    The cost is one pass of the backbone and of the heads that see the whole pyramid. The box head
    of Faster R-CNN runs twice, for the proposals drawn for the own and for the partners' boxes.

    Args:
        model: A `FasterRCNN`, `RetinaNet` or `FCOS` in training mode, itself and not in a wrapper.
        images: B images (3, H, W), floating, of any sizes.
        targets: For each image the ``"boxes"`` (N, 4), floating, as x1, y1, x2, y2 in pixels, and
            their ``"labels"`` (N,), int64. N may be 0.
        mix: The mix of these B samples, for instance ``Mix.sample(len(images))``.

    Returns:
        The losses under the model's own names, weighed already: train their sum.

    Raises:
        TypeError: The model is none of the three (one with masks or keypoints is not), or boxes
            or labels are of another dtype.
        ValueError: The model is in evaluation mode, the numbers of images, targets and mixed
            samples differ, or boxes or labels are impossible; the message names the image.
        RuntimeError: A `ManifoldMixup` is in a step on the same model.

    Example:
        >>> from torchvision.models.detection import FCOS
        >>> from torchvision.models.detection.anchor_utils import AnchorGenerator
        >>> backbone = nn.Conv2d(3, 32, kernel_size=8, stride=8)
        >>> backbone.out_channels = 32
        >>> anchors = AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),))
        >>> model = FCOS(backbone, 3, anchor_generator=anchors, min_size=32, max_size=64)
        >>> images = [torch.rand(3, 32, 32), torch.rand(3, 32, 48)]
        >>> targets = [
        ...     {"boxes": torch.tensor([[2.0, 4.0, 20.0, 24.0]]), "labels": torch.tensor([1])},
        ...     {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])},
        ... ]
        >>> losses = mixed_detection_loss(model, images, targets, Mix(0.75, [1, 0]))
        >>> sorted(losses)
        ['bbox_ctrness', 'bbox_regression', 'classification']
        >>> sum(losses.values()).backward()
    """
    two_stage = is_two_stage(model)
    if layer := mixing_layer(model):
        raise RuntimeError(
            f"a ManifoldMixup is in a step at layer '{layer}' of this model: the features would "
            "be mixed twice; use mixed_detection_loss outside of its step"
        )
    check_batch(images, targets, len(mix))
    check_boxes(targets)
    check_labels(targets, *label_range(model, two_stage=two_stage))
    if mix.is_identity:
        losses: dict[str, Tensor] = model(images, targets)
        return losses
    return _losses(model, images, targets, mix, _two_stage if two_stage else _one_stage)


def _losses(
    model: Any,
    images: Sequence[Tensor],
    targets: Sequence[Target],
    mix: Mix,
    heads: Callable[..., Callable[[list[Target]], Shares]],
) -> dict[str, Tensor]:
    canvas, boxes = model.transform(images, targets)
    features = model.backbone(canvas.tensors)
    if isinstance(features, Tensor):
        features = {"0": features}
    mixed = OrderedDict((level, mix(values)) for level, values in features.items())
    canvas.image_sizes = _joined_sizes(canvas.image_sizes, mix)
    shares = heads(model, canvas, mixed)
    own, other = shares(boxes), shares([boxes[i] for i in mix.partner.tolist()])
    return {name: mix.between(own[name], other[name]).sum() for name in own}


def _joined_sizes(sizes: list[tuple[int, int]], mix: Mix) -> list[tuple[int, int]]:
    """The smallest size that holds both images of a pair, or the one image that is left of it."""
    joined = []
    for own, lam, index in zip(sizes, mix.lam.tolist(), mix.partner.tolist(), strict=True):
        other = own if lam == 1 else sizes[index]
        own = other if lam == 0 else own
        joined.append((max(own[0], other[0]), max(own[1], other[1])))
    return joined


def _one_stage(
    model: Any, canvas: Any, features: dict[str, Tensor]
) -> Callable[[list[Target]], Shares]:
    """RetinaNet and FCOS: run the head; the losses are then a function of the boxes."""
    from torchvision.models.detection import FCOS

    levels = list(features.values())
    outputs = model.head(levels)
    anchors = model.anchor_generator(canvas, levels)
    is_fcos = isinstance(model, FCOS)
    sizes = [[level.shape[2] * level.shape[3] for level in levels]] if is_fcos else []

    def shares(targets: list[Target]) -> Shares:
        matched = _matcher(model).compute_loss(targets, outputs, anchors, *sizes)
        losses = [
            model.head.compute_loss(
                targets[i : i + 1],
                {name: output[i : i + 1] for name, output in outputs.items()},
                anchors[i : i + 1],
                matched[i : i + 1],
            )
            for i in range(len(targets))
        ]
        if not is_fcos:
            return _shares(losses, [1] * len(losses))
        counts = [int((match >= 0).sum()) for match in matched]
        return _shares(losses, [max(1, count) for count in counts], max(1, sum(counts)))

    return shares


def _matcher(model: Any) -> Any:
    """The model, but its `compute_loss` returns the box that each anchor is matched with."""
    matcher = copy.copy(model)
    head = SimpleNamespace(compute_loss=lambda targets, outputs, anchors, matched: matched)
    matcher.__dict__["head"] = head  # found before the module, which the copy shares
    return matcher


def _two_stage(
    model: Any, canvas: Any, features: dict[str, Tensor]
) -> Callable[[list[Target]], Shares]:
    """Faster R-CNN: propose regions; the losses are then a function of the boxes."""
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    rpn, levels = model.rpn, list(features.values())
    scores, deltas = rpn.head(levels)
    anchors = rpn.anchor_generator(canvas, levels)
    sizes = [level[0].numel() for level in scores]
    scores, deltas = concat_box_prediction_layers(scores, deltas)
    proposals = rpn.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
    proposals, _ = rpn.filter_proposals(proposals, scores, canvas.image_sizes, sizes)
    scores, deltas = scores.view(len(anchors), -1, 1), deltas.view(len(anchors), -1, 4)

    def shares(targets: list[Target]) -> Shares:
        first = _rpn_shares(rpn, scores, deltas, anchors, targets)
        sizes = canvas.image_sizes
        return {**_roi_shares(model.roi_heads, features, proposals, sizes, targets), **first}

    return shares


def _rpn_shares(
    rpn: Any, scores: Tensor, deltas: Tensor, anchors: list[Tensor], targets: list[Target]
) -> Shares:
    labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
    goals = rpn.box_coder.encode(matched, anchors)
    losses = [
        rpn.compute_loss(score, delta, [label], [goal])
        for score, delta, label, goal in zip(scores, deltas, labels, goals, strict=True)
    ]
    names = ("loss_objectness", "loss_rpn_box_reg")
    counts = [_sample_size(rpn.fg_bg_sampler, label) for label in labels]
    return _shares([dict(zip(names, loss, strict=True)) for loss in losses], counts)


def _sample_size(sampler: Any, labels: Tensor) -> int:
    """How many anchors of one image torchvision's sampler draws."""
    limit: int = sampler.batch_size_per_image
    positive = min(int((labels >= 1).sum()), int(limit * sampler.positive_fraction))
    return positive + min(int((labels == 0).sum()), limit - positive)


def _roi_shares(
    heads: Any,
    features: dict[str, Tensor],
    proposals: list[Tensor],
    sizes: list[tuple[int, int]],
    targets: list[Target],
) -> Shares:
    from torchvision.models.detection.roi_heads import fastrcnn_loss

    drawn, _, labels, goals = heads.select_training_samples(proposals, targets)
    logits, deltas = heads.box_predictor(
        heads.box_head(heads.box_roi_pool(features, drawn, sizes))
    )
    counts = [len(label) for label in labels]
    losses = [
        fastrcnn_loss(logit, delta, [label], [goal])
        for logit, delta, label, goal in zip(
            logits.split(counts), deltas.split(counts), labels, goals, strict=True
        )
    ]
    names = ("loss_classifier", "loss_box_reg")
    return _shares([dict(zip(names, loss, strict=True)) for loss in losses], counts)


def _shares(
    losses: list[dict[str, Tensor]], counts: list[int], total: int | None = None
) -> Shares:
    """Losses of single images, each a mean over its count, as parts of the mean over the total."""
    total = total or sum(counts)

    def share(loss: Tensor, count: int) -> Tensor:
        return loss * (count / total) if count else torch.zeros_like(loss)  # a mean of none is NaN

    return {
        name: torch.stack([share(loss[name], n) for loss, n in zip(losses, counts, strict=True)])
        for name in losses[0]
    }
