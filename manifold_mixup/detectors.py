"""What a detector, its images, boxes and labels must be before a step may begin."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
