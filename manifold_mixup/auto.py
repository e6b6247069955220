"""Which alpha, if any: asked of the samples that may be trained on and chosen by."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from manifold_mixup._progress import Track
from manifold_mixup.comparison import LEAST, Ways, compare
from manifold_mixup.data import join_parts, split_parts
from manifold_mixup.features import FeatureStore
from manifold_mixup.prepare import Job
from manifold_mixup.training import AUTO

# Settings that a comparison of alphas has no rows for, with what they have to be.
_PLAIN = {
    **{"label_smoothing": 0.0, "clean_weight": 0.0, "exclude": None, "prob": 1.0},
    **{"kind": "mix", "alpha_warmup": 0.0, "views": 0, "task": "classes", "class_weight": None},
    **{"optimizer": "auto", "epochs": None, "lr": None, "batch_size": None, "patience": None},
}


def choose_alpha(
    model: nn.Module, store: FeatureStore, settings: Mapping[str, Any], track: Track
) -> tuple[float, str]:
    """The alpha that helps beyond noise; 0 if none does. And why, in words.

    The samples are split anew for each replicate, and mixing and not mixing compared as `compare`
    does it, each with its own weight decay unless one is given.

    Args:
        model: The model; it is left as it was.
        store: Features of the training and validation samples.
        settings: Of the training.
        track: Shows how far it is.
    """
    decay = settings["weight_decay"]
    found = compare(
        model,
        store,
        pairings=[settings["pairing"]],
        label_smoothing=0,
        clean_weights=[],
        weight_decays=Ways.weight_decays if decay == AUTO else [decay],
        mixes=settings["mixes"],
        track=track,
    )
    return found.rows[found.winner].trial.alpha, found.verdict


def check_auto(job: Job) -> None:
    """Raise a ValueError that names what `choose_alpha` has no answer for, if anything."""
    settings = job.settings
    if settings["way"] != "cached":
        raise ValueError("--alpha auto compares heads on stored features, which this way has not")
    if settings["head"] != "linear" or settings["tail"] != "frozen":
        raise ValueError(
            "--alpha auto compares linear heads alone; give --alpha a number, or leave out --head "
            "and --tail"
        )
    for name, plain in _PLAIN.items():
        if settings[name] != plain:
            option = name.replace("_", "-")
            raise ValueError(
                f"--alpha auto: there is no choice of alpha for --{option} {settings[name]}; "
                f"give --alpha a number, or leave out --{option}"
            )
    known = join_parts(part for name, part in job.parts.items() if name != "test")
    try:
        for seed in range(LEAST):
            split_parts(replace(job.data, parts={"train": known}), seed=seed)
    except ValueError as error:
        raise ValueError(
            f"--alpha auto splits the training and validation images again: {error}; or give "
            "--alpha a number"
        ) from error
