"""Stored features in the place of images: the part of a model that they go to."""

import torch
from torch import nn

from manifold_mixup.cut import cut
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.store import FeatureStore
from manifold_mixup.tail import Tail


def find_tail(model: nn.Module, store: FeatureStore) -> Tail:
    """The part of a model that takes the features in a store.

    Raises:
        ValueError: The features are not this model's.
    """
    if isinstance(model, Tail):
        return model
    store.check_model(model)
    example = torch.randn(2, *store.input_shape, generator=seeded_generator("example"))
    like = next(model.parameters())
    return cut(model, store.stored_layer, example.to(like))[1]
