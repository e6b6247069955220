"""Compare ways to train behind one backbone on one data set, and beside them the rivals."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from manifold_mixup import extract_features
from manifold_mixup.compare import compare_stores, find_head
from manifold_mixup.comparison import Comparison, compare_rows
from manifold_mixup.progress import track
from manifold_mixup.starts import Case, draw_head, draw_start
from manifold_mixup.trained import make_row
from manifold_mixup.trials import Ways
from studies.rivals import AUGMENTS, fit_logistic, train_augmented
from studies.subjects import Loaded


@dataclass(frozen=True)
class Study:
    """What came of one backbone, one data set and one case.

    Attributes:
        case: How hard the data were made.
        found: The comparison, rivals among its rows.
        extraction: Seconds of the one pass over the images, 0 where it had been made before.
        training: Seconds of all else.
    """

    case: Case
    found: Comparison
    extraction: float
    training: float


def study(
    loaded: Loaded,
    folder: Path,
    cases: Sequence[Case],
    ways: Ways,
    seeds: int,
    *,
    device: torch.device,
    rivals: bool,
) -> Iterator[Study]:
    """Compare in every case.

    Args:
        loaded: Backbone and images.
        folder: Where features are stored.
        cases: How hard the data are made.
        ways: What is compared.
        seeds: How many.
        device: To compute on.
        rivals: Whether to train the rivals too, for which the head has to be linear.
    """
    model = loaded.model.to(device)
    began = time.perf_counter()
    store = extract_features(model, loaded.layer, loaded.dataset, folder, track=track).load()
    extraction = time.perf_counter() - began
    head = find_head(model, store)
    like = head.linear.weight.detach(), head.linear.bias.detach()
    for case in cases:
        began = time.perf_counter()
        starts = [
            draw_start(loaded.data, seed, case, *draw_head(seed, like)) for seed in range(seeds)
        ]
        layer = loaded.layer
        found = compare_stores(model, {layer: store}, {layer: head}, starts, ways, track=track)
        if rivals:
            taken = store.features.gather(torch.arange(len(store))).flatten(1)
            others = [fit_logistic(taken, starts)]
            others += [train_augmented(name, taken, starts, ways, layer) for name in AUGMENTS]
            rows = [make_row(one, starts, store.targets, float("nan")) for one in others]
            found = compare_rows([*found.rows, *rows], found.grids)
        yield Study(case, found, extraction, time.perf_counter() - began)
