"""Compare ways to train behind one backbone on one data set, and beside them the rivals."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from manifold_mixup import extract_features
from manifold_mixup._progress import track
from manifold_mixup.comparison import (
    Case,
    Comparison,
    Ways,
    compare_rows,
    compare_stores,
    draw_head,
    draw_start,
    find_head,
    make_row,
    rows_of_all,
)
from studies.rivals import AUGMENTS, solve_augmented
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
    replicates: int,
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
        replicates: How many, whatever they tell.
        device: To compute on.
        rivals: Whether to solve the rivals too, for which the head has to be alone.
    """
    model = loaded.model.to(device)
    began = time.perf_counter()
    store = extract_features(model, loaded.layer, loaded.dataset, folder, track=track).load()
    extraction = time.perf_counter() - began
    head = find_head(model, store)
    like = head.layer.module.weight.detach(), head.layer.module.bias.detach()
    for case in cases:
        began = time.perf_counter()
        starts = [
            draw_start(loaded.data, seed, case, None if head.is_alone else draw_head(seed, like))
            for seed in range(replicates)
        ]
        layer, heads = loaded.layer, {loaded.layer: head}
        # No width is narrow enough to stop at: every case has as many replicates.
        found = compare_stores(model, {layer: store}, heads, starts, ways, worth=1e-9, track=track)
        rows, worth = found.rows, 0.01
        if rivals:
            taken = rows_of_all(head.layer, store)
            others = [solve_augmented(name, taken, starts, ways, layer) for name in AUGMENTS]
            rows = [*rows, *(make_row(one, starts, store.targets) for one in others)]
        found = compare_rows(rows, found.grids, worth=worth)
        yield Study(case, found, extraction, time.perf_counter() - began)
