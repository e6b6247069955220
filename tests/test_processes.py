"""Several processes of one command: one output, the numbers of one process, and no waiting."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import manifold_mixup
from manifold_mixup import extract_features
from manifold_mixup._progress import find_ranks
from manifold_mixup.cli import main
from manifold_mixup.features import plan
from manifold_mixup.features.shards import one_writer

TRAIN = ["train", "--epochs", "60", "--lr", "0.01", "--no-baseline", "--output", "run"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(manifold_mixup.__path__[0]).parent))


def start(ranks: int, *arguments: str) -> subprocess.Popen[str]:
    """Start a command under torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    # Behind -- as torchrun would take --run for the beginning of an option of its own.
    command = [*torchrun, *where, "-m", "manifold_mixup", "--", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def finish(ranks: int, *arguments: str) -> tuple[int, str, str]:
    """Run a command under torchrun: its status, and what it prints."""
    process = start(ranks, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def kill_when(process: subprocess.Popen[str], file: Path) -> bool:
    """Kill torchrun and its processes as soon as there is a file; whether it was in time."""
    while not file.is_file() and process.poll() is None:
        time.sleep(0.01)
    was_running = process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in children.read_text().split() if was_running else ():
        os.kill(int(pid), signal.SIGKILL)
    process.kill()
    process.communicate()
    return was_running


def alone(*arguments: str, folder: str) -> Path:
    """Run a command in this process, in a folder of its own."""
    Path(folder).mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(list(arguments)) == 0
    finally:
        os.chdir(before)
    return Path(folder)


@pytest.mark.distributed
def test_killed_training_goes_on_with_any_number_of_processes() -> None:
    """Two are killed; one and three come to the head of a training of one, and print once."""
    expected = alone(*TRAIN, folder="one") / "run"
    assert kill_when(start(2, *TRAIN), Path("run/state.safetensors"))
    shutil.copytree("run", "killed/run")
    resumed = alone(*TRAIN, "--resume", folder="killed") / "run"
    status, out, err = finish(3, *TRAIN, "--resume", "--json")
    heads = [(place / "head.safetensors") for place in (expected, resumed, Path("run"))]

    assert status == 0, err
    accuracy = json.loads((expected / "run.json").read_text())["metrics"]["accuracy"]
    assert json.loads(out)["accuracy"] == accuracy
    assert err.count("epoch 60/60") == err.count("3 processes") == 1
    assert len({head.read_bytes() for head in heads}) == 1
    assert {p.name for p in Path("run").iterdir()} == {p.name for p in expected.iterdir()}


@pytest.mark.distributed
def test_comparison_and_evaluation_are_those_of_one_process() -> None:
    """The same rows, the same winner, one report; and one answer about it."""
    compared = ["compare", "--alphas", "0,1", "--pairings", "any", "--seeds", "2"]
    compared += ["--weight-decays", "0.1", "--clean-weights", "0", "--label-smoothing", "0"]
    own = alone(*compared, "--output", "both", folder="one") / "both"
    status, out, err = finish(2, *compared, "--output", "both")
    places = own, Path("both")
    results = [json.loads((place / "results.json").read_text()) for place in places]
    heads = [place / "winner" / "head.safetensors" for place in places]

    assert status == 0, err
    assert out.count("report: ") == out.count("2 processes") == 1
    rows = [[one | {"seconds": 0} for one in found["rows"]] for found in results]
    assert rows[0] == rows[1]
    assert heads[0].read_bytes() == heads[1].read_bytes()
    status, out, err = finish(2, "evaluate", "--run", "both/winner", "--json")
    assert status == 0, err
    assert json.loads(out)["split"] == "held-out"


@pytest.mark.distributed
def test_mistake_is_told_once_by_all() -> None:
    """And nobody waits for the others."""
    status, out, err = finish(2, "train", "nowhere", "--output", "run")

    assert status != 0
    assert out == ""
    assert err.count("manifold-mixup: nowhere: no such folder") == 1


def test_processes_that_cannot_meet_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing, and what starts them."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert find_ranks({"WORLD_SIZE": "1", "RANK": "0"}).world == 1
    assert main(["train"]) == 2
    assert "WORLD_SIZE=2 is set, but not RANK, MASTER_ADDR" in capsys.readouterr().err


def test_a_process_may_store_features_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torchrun says of others, which would be waited for."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    model, said = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), list[str]()
    samples = [(torch.randn(4), i % 2) for i in range(40)]
    store = extract_features(model, "1", samples, "own", share=(0, 1), say=said.append)

    assert len(store) == 40
    assert not [line for line in said if "other processes" in line]


def test_store_that_another_process_has_replaced_is_not_replaced_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two overwrite an older one at once: the second takes what the first has begun."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    old, new = ([(torch.randn(4), i % 2) for i in range(40)] for _ in range(2))
    extract_features(model, "1", old, "store")
    written = list[Any]()

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        monkeypatch.setattr(plan, "one_writer", one_writer)
        extract_features(model, "1", new, folder, overwrite=True)
        written.extend(file.stat().st_mtime_ns for file in sorted(folder.glob("features-*")))
        yield

    monkeypatch.setattr(plan, "one_writer", late)
    extract_features(model, "1", new, "store", overwrite=True)

    assert written
    assert [f.stat().st_mtime_ns for f in sorted(Path("store").glob("features-*"))] == written
