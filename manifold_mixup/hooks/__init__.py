"""Mix inside a running model, and prove in every step that it happened.

Knows when hooks act and what a step is; what a mix does is known by `mixing`, what a layer is by
`inspection`, the two folders that it may import. Nothing of data, stores or training.

To read in this order: `manager` (`ManifoldMixup`: layers by name, a step, its proof), `hook` (the
hooks for a layer's output and a model's input), `draws` (random numbers of each rank), `preflight`
(whether layers can be mixed: an error, a warning, or nothing), `receipt` (whether a step's mix
reached the targets), `kinds` (the kinds of mixes, by name), `masks` (padding masks behind mixed
layers), `dependence` (what else behind them sees each sample's own), `detection` (torchvision's
detectors; it is imported when their loss is asked for).
"""

from manifold_mixup.hooks.detection import mixed_detection_loss
from manifold_mixup.hooks.kinds import KINDS, Kind, mix_class, sampler
from manifold_mixup.hooks.manager import ManifoldMixup
from manifold_mixup.hooks.masks import join_masks
from manifold_mixup.hooks.preflight import Preflight

__all__ = [
    "Preflight",
    "KINDS",
    "Kind",
    "ManifoldMixup",
    "join_masks",
    "mix_class",
    "mixed_detection_loss",
    "sampler",
]
