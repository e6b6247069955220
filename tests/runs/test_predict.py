"""A finished run in Python says what the command says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manifold_mixup import load_run
from manifold_mixup.cli import main
from manifold_mixup.runs import Run

# Turned by a quarter, as phones write it.
TURNED = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures that only their upright form tells apart, with tags that turn them.

    The run beside them was trained on these.
    """
    top = tmp_path_factory.mktemp("turned")
    for name, axis in (("across", 0), ("down", 1)):
        for number in range(10):
            ramp = np.linspace(0, 255, 24)[:, None].repeat(20, 1)
            grey = ramp if axis == 0 else np.linspace(0, 255, 20)[None].repeat(24, 0)
            noise = np.random.default_rng(number).normal(0, 60, grey.shape)
            upright = Image.fromarray((grey + noise).clip(0, 255).astype("uint8"))
            exif = Image.Exif()
            exif[0x0112] = TURNED
            file = top / "photos" / name / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            upright.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    given = ["--model", "digits", "--output", str(top / "run")]
    assert main(["train", str(top / "photos"), *given]) == 0
    return top


@pytest.fixture
def run(folder: Path) -> Run:
    """The run, loaded."""
    return load_run(folder / "run")


@pytest.fixture
def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What the command says of all pictures."""
    given = [str(folder / "photos"), "--run", str(folder / "run"), "--json"]
    assert main(["predict", *given]) == 0
    predictions: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["predictions"]
    return predictions


def test_predictions_are_those_of_the_command(
    run: Run, folder: Path, told: list[dict[str, Any]]
) -> None:
    """Of a folder, of its files, and of the pictures that PIL opens, by name and to the bit."""
    files = [row["path"] for row in told]

    assert run.predict(folder / "photos") == told
    assert run.predict(iter(files)) == told
    assert [row["label"] for row in run.predict(files[0])] == [told[0]["label"]]
    assert run.predict([Image.open(file) for file in files]) == told
    assert run.predict(Image.open(files[3]).copy())[0]["path"] is None


def test_transform_takes_an_image_as_it_is(run: Run, told: list[dict[str, Any]]) -> None:
    """Upright and grey: the model at the run's temperature gives what the command says."""
    for row in told:
        with Image.open(row["path"]) as image:
            turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
            picture = run.transform(image)
        with torch.no_grad():
            logits = run.model(torch.stack([picture, run.transform(Image.fromarray(turned))]))
        both = (logits.double() / run.info["task"]["temperature"]).softmax(1)

        assert torch.equal(both[0], both[1])
        assert torch.equal(picture, run.transform(row["path"]))
        assert run.classes[int(both[0].argmax())] == row["label"]
        assert float(both[0].max()) == pytest.approx(row["probability"], rel=1e-5)


def test_what_cannot_be_predicted_is_told(run: Run, tmp_path: Path) -> None:
    """A tensor, a missing file, and a damaged one."""
    (tmp_path / "damaged.png").write_bytes(b"none")

    with pytest.raises(TypeError, match="cannot predict a Tensor: give files, folders or PIL"):
        run.predict(torch.zeros(1, 1, 8, 8))
    with pytest.raises(FileNotFoundError, match="missing.png: no such file"):
        run.predict("missing.png")
    with pytest.raises(ValueError, match=r"damaged.png: damaged image .* --skip-damaged"):
        run.predict([tmp_path / "damaged.png"])
