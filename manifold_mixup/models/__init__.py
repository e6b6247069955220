"""Load a model, give it a new head, freeze it, cut it in two, and make it faster.

Knows the models of timm and torchvision, and which of their steps are affine; nothing of data,
stores or training, and no `Mix`. May import `inspection`.

To read in this order: `backbone` (load one, and the transforms of its images; the weights of the
built-in one lie beside it), `heads` (a new head: linear, MLP or cosine), `freezing`, `cut` (a
model as prefix and tail, bit-equal to the whole), `tail` (how what comes after a layer is made a
model of its own), `folding` (how far behind the layer a mix may be applied), `linear_layer` (the
layer that gives the logits), `fused` (a copy that computes the same faster).
"""

from manifold_mixup.models.backbone import (
    DIGITS,
    Transform,
    augmenting_transform,
    describe_for_timm,
    input_size,
    load_backbone,
    model_transform,
)
from manifold_mixup.models.cut import (
    changes_in_training,
    cut,
    cut_layers,
    cut_traced,
    run_until,
)
from manifold_mixup.models.folding import fold_traced
from manifold_mixup.models.freezing import freeze, keep_frozen, unfreeze
from manifold_mixup.models.fused import Fused, channels_last, fuse, shared_copy
from manifold_mixup.models.heads import CosineHead, MLPHead, replace_head
from manifold_mixup.models.linear_layer import LinearLayer, find_linear_layer
from manifold_mixup.models.tail import Tail

__all__ = [
    "CosineHead",
    "DIGITS",
    "Fused",
    "LinearLayer",
    "MLPHead",
    "Tail",
    "Transform",
    "augmenting_transform",
    "changes_in_training",
    "channels_last",
    "cut",
    "cut_layers",
    "cut_traced",
    "describe_for_timm",
    "find_linear_layer",
    "fold_traced",
    "freeze",
    "fuse",
    "input_size",
    "keep_frozen",
    "load_backbone",
    "model_transform",
    "replace_head",
    "run_until",
    "shared_copy",
    "unfreeze",
]
