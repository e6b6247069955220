"""Linear heads at their optimum: the mixed risk, and what minimizes it.

Mixing features before an affine head is mixing its logits. So the loss over K mixes of a whole
training set takes two products with the features, however many mixes there are, and it is convex:

    risk(W, b) = 1/(n K) sum_k sum_i loss(mix_k(X W' + b)[i], mix_k(target)[i]) + decay/2 |W|^2

To read in this order: `mixes` (K mixes as one value), `risk` (the loss and its gradient with
respect to the logits), `standardized` (the features, and the two products), `solve` (its optimum,
by L-BFGS), `ridge` (that of the squared error, a linear system), `threads` (how many). Nothing
here knows of models, stores or files. May import `mixing`.
"""

from manifold_mixup.linear_heads.mixes import Mixes, draw_mixes
from manifold_mixup.linear_heads.ridge import Ridge
from manifold_mixup.linear_heads.risk import MixedRisk, balanced_weights
from manifold_mixup.linear_heads.solve import LinearHead, solve
from manifold_mixup.linear_heads.standardized import Gather, Standardized
from manifold_mixup.linear_heads.threads import few_threads, is_small, side_by_side

__all__ = [
    "Gather",
    "LinearHead",
    "MixedRisk",
    "Mixes",
    "Ridge",
    "Standardized",
    "balanced_weights",
    "draw_mixes",
    "few_threads",
    "is_small",
    "side_by_side",
    "solve",
]
