"""Compare ways to train behind one backbone on one data set, and beside them the rivals."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from manifold_mixup import extract_features
from manifold_mixup._progress import track
from manifold_mixup.comparison import (
    Candidates,
    Comparison,
    Scenario,
    compare_rows,
    compare_stores,
    draw_replicate,
    find_head,
    init_head,
    make_row,
    rows_of_all,
)
from studies.rivals import AUGMENTS, solve_augmented
from studies.subjects import Loaded


@dataclass(frozen=True)
class Study:
    """What came of one backbone, one data set and one scenario.

    Attributes:
        scenario: How hard the data were made.
        found: The comparison, rivals among its rows.
        extraction: Seconds of the one pass over the images, 0 where it had been made before.
        training: Seconds of all else.
    """

    scenario: Scenario
    found: Comparison
    extraction: float
    training: float


def study(
    loaded: Loaded,
    folder: Path,
    scenarios: Sequence[Scenario],
    offered: Candidates,
    most: int,
    *,
    device: torch.device,
    rivals: bool,
) -> Iterator[Study]:
    """Compare in every scenario.

    Args:
        loaded: Backbone and images.
        folder: Where features are stored.
        scenarios: How hard the data are made.
        offered: What is compared.
        most: How many, whatever they tell.
        device: To compute on.
        rivals: Whether to solve the rivals too, for which the head has to be alone.
    """
    model = loaded.model.to(device)
    began = time.perf_counter()
    store = extract_features(model, loaded.layer, loaded.dataset, folder, track=track).load()
    extraction = time.perf_counter() - began
    head = find_head(model, store)
    like = head.layer.module.weight.detach(), head.layer.module.bias.detach()
    for scenario in scenarios:
        began = time.perf_counter()
        replicates = [
            draw_replicate(
                loaded.data, seed, scenario, None if head.is_alone else init_head(seed, like)
            )
            for seed in range(most)
        ]
        layer, heads = loaded.layer, {loaded.layer: head}
        # No width is narrow enough to stop at: every scenario has as many replicates.
        found = compare_stores(
            model, {layer: store}, heads, replicates, offered, worth=1e-9, track=track
        )
        rows, worth = found.rows, 0.01
        if rivals:
            taken = rows_of_all(head.layer, store)
            others = [
                solve_augmented(name, taken, replicates, offered, layer) for name in AUGMENTS
            ]
            rows = [*rows, *(make_row(one, replicates, store.targets) for one in others)]
        found = compare_rows(rows, found.grids, worth=worth)
        yield Study(scenario, found, extraction, time.perf_counter() - began)
