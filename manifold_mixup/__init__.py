"""Manifold mixup for any PyTorch model: attach by layer name, prove that it mixed, train the head.

Shapes: B is the batch, C the number of classes, D the width of features, `*` any further axes.

The folders, in the order to read them. Each tells at its top what it knows, what it may import,
and in which order to read its files:

- `mixing`: what a mix is: draw it, apply it, the loss to match
- `inspection`: look at a model and change nothing: layers by name, a dry run, what can be mixed
- `hooks`: mix inside a running model, and prove it
- `models`: load a model, give it a new head, freeze it, cut it in two
- `data`: labelled images from folders, CSV files and sets known by name
- `features`: run the backbone once and store what a layer returns
- `linear_heads`: the mixed risk of a linear head, and its optimum
- `training`: train one head, or all behind a layer, and measure it
- `comparison`: whether mixing helps, over many ways to train and many splits
- `reports`: plots, pages and words for people
- `runs`: from the names of data and model to a folder on disk
- `integrations`: mixing in fastai, Lightning, Transformers and timm, each in a file of its own
- `cli`: the command line, a file: parse, call, print

Read the core first: `mixing`, `inspection` and `hooks`, which stand on torch alone and take an
afternoon. A folder imports only from those above it, never from one below, and from the folder,
not from its files; tests/contracts/test_imports.py holds who may import whom. `_random` (draws
that a seed decides), `_files` (files that are whole or not there) and `_progress` (bars, and the
processes of one command) serve all.
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
