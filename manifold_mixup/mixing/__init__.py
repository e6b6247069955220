"""mixing."""

from manifold_mixup.mixing.criteria import Criterion, mixes_target, name_of, takes_indices
from manifold_mixup.mixing.cutmix import CutMix
from manifold_mixup.mixing.loss import mixed_loss, rebalance
from manifold_mixup.mixing.mix import Mix, check_alpha, check_prob, draw_lam
from manifold_mixup.mixing.moment_exchange import MomentExchange
from manifold_mixup.mixing.noisy_mix import NoisyMix
from manifold_mixup.mixing.pairing import (
    PAIRINGS,
    NearTarget,
    Pairing,
    _warn_unmixed,
    check_exclude,
    check_paired,
    check_pairing,
    draw_partner,
)
from manifold_mixup.mixing.partners import are_probabilities

__all__ = [
    "Criterion",
    "CutMix",
    "Mix",
    "MomentExchange",
    "NearTarget",
    "NoisyMix",
    "PAIRINGS",
    "Pairing",
    "_warn_unmixed",
    "are_probabilities",
    "check_alpha",
    "check_exclude",
    "check_paired",
    "check_pairing",
    "check_prob",
    "draw_lam",
    "draw_partner",
    "mixed_loss",
    "mixes_target",
    "name_of",
    "rebalance",
    "takes_indices",
]
