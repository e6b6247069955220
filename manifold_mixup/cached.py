"""Stored features in the place of images: the part of a model that they go to."""

from manifold_mixup.features import FeatureStore
from manifold_mixup.hooks import Kind, mix_class
from manifold_mixup.mixing import Mix


def check_unfolded(store: FeatureStore, kind: Kind) -> None:
    """Raise a ValueError if a mix of this kind is another where the features were folded to."""
    if store.stored_layer != store.layer and mix_class(kind) is not Mix:
        raise ValueError(
            f"{store.directory}: holds features of '{store.stored_layer}' in the place of "
            f"'{store.layer}', but {mix_class(kind).__name__} is not the same there; "
            "extract them anew with fold=False"
        )
