"""Which alpha, if any: asked of the samples that may be trained on and chosen by."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from manifold_mixup.compare import compare
from manifold_mixup.parts import join_parts, split_parts
from manifold_mixup.prepare import Job
from manifold_mixup.progress import Track
from manifold_mixup.store import FeatureStore
from manifold_mixup.trials import Ways

AUTO = "auto"
_SEEDS = 5

# Settings that a comparison of alphas has no rows for, with what they have to be.
_PLAIN = {
    **{"label_smoothing": 0.0, "clean_weight": 0.0, "noise": 0.0, "exclude": None, "prob": 1.0},
    **{"kind": "mix", "alpha_warmup": 0.0, "optimizer": "adamw", "views": 0, "task": "classes"},
    "patience": None,
}


def choose_alpha(
    model: nn.Module, store: FeatureStore, settings: Mapping[str, Any], track: Track
) -> tuple[float, str]:
    """The alpha that helps beyond noise; 0 if none does. And why, in words.

    The samples are split anew for each of five seeds, and mixing and not mixing compared as
    `compare` does it, each with its own learning rate unless one is given.

    Args:
        model: The model; it is left as it was.
        store: Features of the training and validation samples.
        settings: Of the training.
        track: Shows how far it is.
    """
    lr = settings["lr"]
    found = compare(
        model,
        store,
        pairings=[settings["pairing"]],
        label_smoothing=0,
        clean_weights=[],
        noises=[],
        weight_decays=[settings["weight_decay"]],
        lrs=Ways.lrs if lr is None else [lr],
        seeds=_SEEDS,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        mixed_epochs=settings["mixed_epochs"],
        track=track,
    )
    return found.rows[found.winner].trial.alpha, found.verdict


def check_auto(job: Job) -> None:
    """Raise a ValueError that names what `choose_alpha` has no answer for, if anything."""
    settings = job.settings
    if settings["way"] != "cached":
        raise ValueError("--alpha auto compares heads on stored features, which this way has not")
    if settings["head"] == "cosine":
        raise ValueError("--alpha auto compares heads that end in a linear layer; no cosine ones")
    for name, plain in _PLAIN.items():
        if settings[name] != plain:
            option = name.replace("_", "-")
            raise ValueError(
                f"--alpha auto: there is no choice of alpha for --{option} {settings[name]}; "
                f"give --alpha a number, or leave out --{option}"
            )
    known = join_parts(part for name, part in job.parts.items() if name != "test")
    try:
        for seed in range(_SEEDS):
            split_parts(replace(job.data, parts={"train": known}), seed=seed)
    except ValueError as error:
        raise ValueError(
            f"--alpha auto splits the training and validation images again: {error}; or give "
            "--alpha a number"
        ) from error
