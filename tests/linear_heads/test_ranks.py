"""Several processes that share the samples between them come to the head of one alone."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manifold_mixup.linear_heads import MixedRisk, Ridge, Standardized, draw_mixes, solve
from manifold_mixup.linear_heads import standardized as chunks

N, D, C = 90, 12, 3
HELD = (2**20, 0)
EXACT: dict[str, Any] = {"tolerance": 1e-10, "precise": True}


def data() -> tuple[Tensor, Tensor]:
    """Features (N, D) and the class of each, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(N) % 7 % C
    centres = torch.randn(C, D, dtype=torch.float64, generator=generator)
    noise = torch.randn(N, D, dtype=torch.float64, generator=generator)
    return centres[target] + 2 * noise + 5, target


def heads(held: int) -> dict[str, Tensor]:
    """Heads of classes, of labels and of values, mixed, for the features as they are.

    So many numbers may be held in memory.
    """
    features, target = data()
    rows = Standardized(features.__getitem__, N, held=held)
    mixes, labels = draw_mixes(4, N, 1.0), torch.eye(C, dtype=torch.float64)[target]
    found = {
        "classes": solve(rows, MixedRisk.of_classes(target, C, mixes), 0.1, **EXACT),
        "labels": solve(rows, MixedRisk.of_labels(labels, mixes), 0.1, **EXACT),
        "values": Ridge(rows, features[:, :2].square(), mixes, prob=0.5).solve(0.1),
    }
    raw = {name: rows.to_raw(head.weight, head.bias) for name, head in found.items()}
    return {name: torch.cat([weight, bias[:, None]], 1) for name, (weight, bias) in raw.items()}


def solve_as(rank: int, folder: str) -> None:
    """One of two processes, which reads every other chunk of 16 samples."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    chunks._ROWS = 16
    store = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save([heads(held) for held in HELD], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_have_the_head_of_one(tmp_path: Path) -> None:
    """Both the same to the bit, and that of one process to rounding, also with features that are
    read again and again.
    """
    torch.multiprocessing.spawn(solve_as, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))

    for held, one, two in zip(HELD, first, second, strict=True):
        for name, alone in heads(held).items():
            assert torch.equal(one[name], two[name])
            torch.testing.assert_close(one[name], alone, rtol=1e-4, atol=1e-4)
