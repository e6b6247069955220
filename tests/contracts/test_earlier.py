"""Runs and stores that the version before the folders wrote are read as it wrote them.

They lie in `tests/earlier`: `train --shots 4` on the digits, finished; and the same with
``--epochs 4 --baseline``, interrupted after two epochs, with the head it had without the break.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from manifold_mixup import FeatureStore, load_run
from manifold_mixup.cli import main

EARLIER = Path(__file__).parents[1] / "earlier"


@pytest.fixture(autouse=True)
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on a copy."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_finished_run_is_measured_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """Its test part gives the numbers that it wrote down, and it predicts."""
    wrote = json.loads(Path("finished/run.json").read_text())["metrics"]
    found = told(capsys, "evaluate", "--run", "finished")

    assert {name: found[name] for name in wrote} == pytest.approx(wrote, abs=1e-6)
    assert load_run("finished").classes == ["5", "6", "7", "8", "9"]


def test_finished_run_is_not_trained_again(capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--resume`` its numbers are read."""
    wrote = json.loads(Path("finished/run.json").read_text())["metrics"]
    found = told(capsys, "train", "--shots", "4", "--output", "finished", "--resume")

    assert {name: found[name] for name in wrote} == wrote


def test_finished_run_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    """An image gets one of its classes, with a probability."""
    Image.new("L", (8, 8), 7).save("grey.png")
    (row,) = told(capsys, "predict", "grey.png", "--run", "finished")["predictions"]

    assert row["label"] in load_run("finished").classes
    assert 0.2 <= row["probability"] <= 1


def test_interrupted_run_goes_on_to_the_head_without_a_break() -> None:
    """From the features and the state that the version before stored."""
    given = ["--shots", "4", "--epochs", "4", "--baseline", "--output", "interrupted"]
    assert main(["train", *given, "--resume"]) == 0

    expected = load_file("uninterrupted.safetensors")
    head = load_file("interrupted/head.safetensors")
    assert head.keys() == expected.keys()
    for name, tensor in head.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4)


def test_store_is_whole_and_trains() -> None:
    """Every checksum holds, and the shapes are those it told."""
    store = FeatureStore("finished/features")
    store.verify()
    assert (len(store), tuple(store.shape)) == (220, (64,))
