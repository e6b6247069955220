"""Run the backbone once: what a layer returns is stored, checked, and read again.

Knows models, data sets of tensors and files; nothing of mixes, but that features may be stored
behind the affine steps that follow a layer. May import `inspection` and `models`.

To read in this order: `extract` (`extract_features`, from the request to stores that are whole),
`store` (`FeatureStore`: features and targets, read where they lie), `shards` (the files), `plan`
(what a store is to hold), `backbone_pass` (load batches, compute in threads, fill shards),
`fingerprint` (what features come from, and what has changed), `views` (samples in views that are
the same whenever they are read), `batches` (images or features, in batches for a model),
`matching` (the part of a model that takes what is stored).
"""

from manifold_mixup.features.batches import Batches, Samples, checked_batch, count, load_batches
from manifold_mixup.features.extract import extract_features
from manifold_mixup.features.fingerprint import targets_of
from manifold_mixup.features.matching import check_alike, find_tail, place_store
from manifold_mixup.features.plan import OtherFeatures
from manifold_mixup.features.shards import MANIFEST
from manifold_mixup.features.store import FeatureStore
from manifold_mixup.features.views import samples_of

__all__ = [
    "Batches",
    "FeatureStore",
    "MANIFEST",
    "OtherFeatures",
    "Samples",
    "check_alike",
    "checked_batch",
    "count",
    "extract_features",
    "find_tail",
    "load_batches",
    "place_store",
    "targets_of",
    "samples_of",
]
