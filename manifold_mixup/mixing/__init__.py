"""What a mix is: a weight and a partner for each sample, applied to features and to the loss.

Knows tensors alone, nothing of models, layers or data. Imports no other folder.

To read in this order: `mix` (the value: draw it, apply it, to targets too), `pairing` (who mixes
with whom), `partners` (partners by the classes of a batch), `loss` (the loss to match a mix, and
Remix), `criteria` (what the loss has to know of a criterion), `targets` (the forms of a target).
Then the other kinds of mixes: `cutmix` (boxes), `moment_exchange` (moments), `noisy_mix` (noise).
"""

from manifold_mixup.mixing.criteria import (
    Criterion,
    ignore_index,
    name_of,
    plain_form,
    takes_indices,
    takes_labels,
)
from manifold_mixup.mixing.cutmix import CutMix
from manifold_mixup.mixing.loss import mixed_loss, rebalance
from manifold_mixup.mixing.mix import Mix, check_alpha
from manifold_mixup.mixing.moment_exchange import MomentExchange
from manifold_mixup.mixing.noisy_mix import NoisyMix
from manifold_mixup.mixing.pairing import (
    NearTarget,
    Pairing,
    check_exclude,
    check_paired,
    check_pairing,
    check_prob,
)
from manifold_mixup.mixing.partners import are_probabilities

__all__ = [
    "Criterion",
    "CutMix",
    "Mix",
    "MomentExchange",
    "NearTarget",
    "NoisyMix",
    "Pairing",
    "are_probabilities",
    "check_alpha",
    "check_exclude",
    "check_paired",
    "check_pairing",
    "check_prob",
    "ignore_index",
    "mixed_loss",
    "name_of",
    "plain_form",
    "rebalance",
    "takes_indices",
    "takes_labels",
]
