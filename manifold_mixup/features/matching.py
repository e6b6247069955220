"""Stored features in the place of images: the part of a model that they go to."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from manifold_mixup._random import seeded_generator
from manifold_mixup.features.store import FeatureStore
from manifold_mixup.inspection import Trace, trace
from manifold_mixup.models import Tail, cut_traced

_CUT = "cut it yourself, and give the tail in its place: prefix, tail = cut(model, layer, example)"


def find_tail(model: nn.Module, store: FeatureStore) -> Tail:
    """The part of a model that takes the features in a store; a tail is that already.

    Raises:
        ValueError: The features are not this model's, or lie behind what is to be trained.
    """
    if isinstance(model, Tail):
        return model
    store.check_model(model)
    example = _example(model, store)
    try:
        found = trace(model, (example,), {}, keep=[store.stored_layer])
    except Exception as error:
        raise ValueError(
            f"{store.directory}: the model fails on random numbers of the shape it took "
            f"({error}); {_CUT}"
        ) from error
    behind = found.parameters_after(store.layer)
    _check_untied(found, store, behind)
    for name in behind.keys() - found.parameters_after(store.stored_layer):
        if behind[name].requires_grad:
            raise ValueError(
                f"{store.directory}: holds features of '{store.stored_layer}', but '{name}' "
                "before it is to be trained; extract them anew with fold=False"
            )
    return cut_traced(found, store.stored_layer, (example,), {})


def _check_untied(found: Trace, store: FeatureStore, behind: Mapping[str, nn.Parameter]) -> None:
    """Raise a ValueError if training would change what gave the features."""
    before = found.modules_before(store.stored_layer).values()
    used = {id(p) for module in before for p in module.parameters(recurse=False)}
    for name, parameter in behind.items():
        if parameter.requires_grad and id(parameter) in used:
            raise ValueError(
                f"{store.directory}: '{name}' is to be trained, but is used before "
                f"'{store.stored_layer}' too, so that the features would change with it; freeze "
                "it, or train on the images"
            )


def check_alike(store: FeatureStore, other: FeatureStore) -> None:
    """Make sure that two stores hold features of the same layer and model.

    Raises:
        ValueError: They do not.
    """
    if other.stored_layer != store.stored_layer:
        raise ValueError(
            f"{other.directory}: holds features of '{other.stored_layer}', {store.directory} of "
            f"'{store.stored_layer}'; train and validate on those of one layer"
        )
    made_of, others = store.manifest.made_of, other.manifest.made_of
    keys = {"modules", "settings"} & made_of.keys() & others.keys()
    if any(made_of[key] != others[key] for key in keys):
        raise ValueError(
            f"{other.directory}: these are features of another model than in {store.directory}; "
            "extract both by the same"
        )


def place_store(store: FeatureStore, in_memory: str) -> FeatureStore:
    """The store with its features in memory or not.

    Args:
        store: A store.
        in_memory: ``"yes"``, ``"no"``, or ``"auto"``: if they take half of the free memory at
            the most.
    """
    if in_memory == "auto":
        in_memory = "yes" if store.features.nbytes <= _free_memory() / 2 else "no"
    return store.load() if in_memory == "yes" else store


def _example(model: nn.Module, store: FeatureStore) -> Tensor:
    takes = store.manifest.takes
    if takes is None:
        raise ValueError(f"{store.directory}: holds features of a model of several inputs; {_CUT}")
    like = next(model.parameters())
    return torch.randn(2, *takes, generator=seeded_generator("example")).to(like)


def _free_memory() -> float:
    """Bytes that are free, as far as the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 4e9
