"""Manifold mixup for any PyTorch model: attach by layer name, prove that it mixed, train the head.

Shapes: B is the batch, C the number of classes, D the width of features, `*` any further axes.
"""

from manifold_mixup.comparison import compare
from manifold_mixup.features import FeatureStore, extract_features
from manifold_mixup.hooks import ManifoldMixup, join_masks, mixed_detection_loss
from manifold_mixup.inspection import layer_table
from manifold_mixup.mixing import (
    CutMix,
    Mix,
    MomentExchange,
    NearTarget,
    NoisyMix,
    mixed_loss,
    rebalance,
)
from manifold_mixup.models import cut, freeze, load_backbone, replace_head, unfreeze
from manifold_mixup.runs import load_run
from manifold_mixup.training import evaluate, train_head
from manifold_mixup.version import __version__

__all__ = [
    "CutMix",
    "FeatureStore",
    "ManifoldMixup",
    "Mix",
    "MomentExchange",
    "NearTarget",
    "NoisyMix",
    "__version__",
    "compare",
    "cut",
    "evaluate",
    "extract_features",
    "freeze",
    "join_masks",
    "layer_table",
    "load_backbone",
    "load_run",
    "mixed_detection_loss",
    "mixed_loss",
    "rebalance",
    "replace_head",
    "train_head",
    "unfreeze",
]
