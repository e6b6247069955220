"""hooks."""

from manifold_mixup.hooks.detection import mixed_detection_loss
from manifold_mixup.hooks.hook import MixHook
from manifold_mixup.hooks.kinds import KINDS, Kind, mix_class, sampler
from manifold_mixup.hooks.manager import ManifoldMixup
from manifold_mixup.hooks.masks import join_masks
from manifold_mixup.hooks.preflight import Preflight

__all__ = [
    "Preflight",
    "KINDS",
    "Kind",
    "ManifoldMixup",
    "MixHook",
    "join_masks",
    "mix_class",
    "mixed_detection_loss",
    "sampler",
]
