"""features."""

from manifold_mixup.features.batches import Batches, Samples, checked_batch, count, load_batches
from manifold_mixup.features.extract import extract_features
from manifold_mixup.features.matching import check_alike, find_tail, place_store
from manifold_mixup.features.shards import (
    FEATURES,
    MANIFEST,
    TARGETS,
    Manifest,
    begin_manifest,
    finish_manifest,
    shard_file,
    write_shard,
)
from manifold_mixup.features.store import FeatureStore

__all__ = [
    "Batches",
    "FEATURES",
    "FeatureStore",
    "MANIFEST",
    "Manifest",
    "Samples",
    "TARGETS",
    "begin_manifest",
    "check_alike",
    "checked_batch",
    "count",
    "extract_features",
    "find_tail",
    "finish_manifest",
    "load_batches",
    "place_store",
    "shard_file",
    "write_shard",
]
