"""CSV files end to end: rendered digits by several labels, by a value and by class."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score, r2_score
from test_train import numbers, settings, stop_at, train

from manifold_mixup import evaluate, load_run
from manifold_mixup.cli import main
from manifold_mixup.data import ImageSet, Split, load_data, split_images
from manifold_mixup.reports import RELIABILITY, SCATTER
from manifold_mixup.runs.checkpoint import RUN
from manifold_mixup.training import Labels, predict_logits

N = 240
TAGS = {"even": {0, 2, 4, 6, 8}, "loop": {0, 6, 8, 9}, "high": {7, 8, 9}}
LABELS: dict[str, Callable[[int], str]] = {
    "labels": lambda digit: ";".join(tag for tag, digits in TAGS.items() if digit in digits),
    "values": lambda digit: f"{20 + 1.5 * digit}",
    "classes": lambda digit: f"a{digit}",
}
BY_STEPS = {"epochs": 12, "batch_size": 32, "lr": 0.03}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of digits, and a CSV file for each task."""
    folder, bunch = tmp_path_factory.mktemp("digits"), load_digits()
    for task, label in LABELS.items():
        with (folder / f"{task}.csv").open("w", newline="") as opened:
            rows = [(f"{i}.png", label(int(bunch.target[i]))) for i in range(N)]
            csv.writer(opened).writerows([("path", "label"), *rows])
    for i in range(N):
        Image.fromarray((bunch.images[i] * 255 / 16).round().astype("uint8")).save(
            folder / f"{i}.png"
        )
    return folder


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run for labels and one for values; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for task in ("labels", "values"):
        train(settings(digits / f"{task}.csv"), folder / task)
    return folder


def truth(names: list[str]) -> np.ndarray:
    """The digit that each picture shows."""
    return load_digits().target[[int(Path(name).stem) for name in names]]


def by_hand(run: Any, digits: Path, names: list[str]) -> Any:
    """Outputs (n, *) of a run's model for pictures, one after the other."""
    rows = []
    for name in names:
        with Image.open(digits / name) as image, torch.no_grad():
            rows.append(run.model(run.transform(image.convert("L"))[None])[0].double())
    return torch.stack(rows)


def test_labels_are_learned_and_measured(digits: Path, runs: Path) -> None:
    """Well above chance; the reloaded run measures the same, by the thresholds of its task."""
    info, run = json.loads((runs / "labels" / RUN).read_text()), load_run(runs / "labels")
    part = split_images(load_data(digits / "labels.csv"))["test"]
    found = evaluate(run.model, ImageSet(part, run.transform, 1), task=run.task)

    shown = truth(part.names)
    chance = np.mean([np.isin(shown, list(numbers)).mean() for numbers in TAGS.values()])
    assert info["settings"]["task"] == "labels"
    assert info["metrics"]["mean_average_precision"] > chance + 0.3
    assert info["metrics"]["f1"] > 0.6
    assert found.pop("f1_by_class") == pytest.approx(info["metrics"].pop("f1_by_class"))
    assert found == pytest.approx(info["metrics"], rel=1e-5)
    assert (runs / "labels" / RELIABILITY).is_file()


def test_thresholds_are_the_best_on_validation(digits: Path, runs: Path) -> None:
    """Of all that could be chosen none has a higher F1 on the images of the validation part."""
    run = load_run(runs / "labels")
    names = run.info["held_out"]["val"]
    probability, shown = by_hand(run, digits, names).sigmoid().numpy(), truth(names)

    assert isinstance(run.task, Labels)
    for c, name in enumerate(run.classes):
        has = np.isin(shown, list(TAGS[name]))
        tried = np.unique(probability[:, c])
        best = max(f1_score(has, probability[:, c] >= t, zero_division=0) for t in tried)
        mine = f1_score(has, probability[:, c] >= run.task.thresholds[c], zero_division=0)
        assert mine == pytest.approx(best)


def test_values_are_learned_and_measured_in_their_unit(digits: Path, runs: Path) -> None:
    """R2 and errors of predictions by hand, brought back by the mean and deviation of the run."""
    info, run = json.loads((runs / "values" / RUN).read_text()), load_run(runs / "values")
    names = info["held_out"]["test"]
    wanted = 20 + 1.5 * truth(names)
    train_values = [20 + 1.5 * digit for digit in truth([f"{i}.png" for i in range(N)])]
    mean, std = info["task"]["mean"][0], info["task"]["std"][0]
    predicted = by_hand(run, digits, names)[:, 0].numpy() * std + mean

    assert info["settings"]["task"] == "values"
    assert info["metrics"]["r2"] > 0.5
    assert info["metrics"]["r2"] == pytest.approx(r2_score(wanted, predicted), rel=1e-4)
    assert info["metrics"]["mae"] == pytest.approx(np.abs(wanted - predicted).mean(), rel=1e-4)
    assert abs(mean - np.mean(train_values)) < 1
    assert (runs / "values" / SCATTER).is_file()
    assert not (runs / "values" / RELIABILITY).exists()


@pytest.mark.parametrize("task", ["labels", "values"])
@pytest.mark.parametrize("options", [{**BY_STEPS, "epochs": 3}, {"alpha": 0.0}], ids=str)
def test_stored_features_give_the_same_run(
    digits: Path, tmp_path: Path, task: str, options: dict[str, Any]
) -> None:
    """Losses, epochs, measures and thresholds agree by both ways."""
    infos = [
        train(settings(digits / f"{task}.csv", way=way, **options), tmp_path / way)
        for way in ("cached", "hooked")
    ]
    cached, hooked = infos

    assert cached["losses"] == pytest.approx(hooked["losses"], abs=1e-4)
    for mine, theirs in zip(cached["epochs"], hooked["epochs"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)
    for key in cached["metrics"]:
        assert cached["metrics"][key] == pytest.approx(hooked["metrics"][key], abs=1e-3)
    for key in ("thresholds", "mean", "std"):
        mine, theirs = cached["task"].get(key), hooked["task"].get(key)
        assert mine == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("task", ["labels", "values"])
def test_interrupted_run_goes_on_to_the_same_bytes(
    digits: Path, runs: Path, tmp_path: Path, task: str
) -> None:
    """After the third weight decay."""
    wanted = settings(digits / f"{task}.csv")
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "run", say=stop_at(3))

    train(wanted, tmp_path / "run", resume=True)

    assert numbers(tmp_path / "run") == numbers(runs / task)


def test_classes_of_a_file_are_those_of_folders(digits: Path, tmp_path: Path) -> None:
    """The same pictures in class folders and in a file give the same run."""
    for i, digit in enumerate(truth([f"{i}.png" for i in range(N)])):
        folder = tmp_path / "photos" / f"a{digit}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes((digits / f"{i}.png").read_bytes())
    files = sorted((tmp_path / "photos").rglob("*.png"))
    rows = "".join(f"photos/{f.parent.name}/{f.name},{f.parent.name}\n" for f in files)
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}")

    listed = train(settings(tmp_path / "list.csv"), tmp_path / "one")
    folders = train(settings(tmp_path / "photos"), tmp_path / "other")

    assert listed["losses"] == folders["losses"]
    assert listed["metrics"] == folders["metrics"]


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"loss": "huber"}, "trained by steps (adamw): huber is not the squared error"),
        ({"head": "mlp"}, "trained by steps (adamw): more, or other, than one linear layer"),
        (BY_STEPS, "trained by steps (adamw): epochs= is given"),
        ({"alpha": 0.0}, "solved: a linear head at the optimum of"),
    ],
    ids=str,
)
def test_other_ways_to_learn_values(
    digits: Path, tmp_path: Path, options: dict[str, Any], way: str
) -> None:
    """Each of them learns, and a line tells how."""
    lines: list[str] = []
    info = train(settings(digits / "values.csv", **options), tmp_path / "run", say=lines.append)

    assert info["metrics"]["r2"] > 0.3
    assert info["task"]["error"] == (options.get("loss") or "mse")
    assert sum(line.startswith(way) for line in lines) == 1


@pytest.mark.parametrize("options", [{}, {"epochs": 3, "lr": 0.01}], ids=["solved", "by steps"])
def test_rare_labels_count_the_same(digits: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Balanced, labels are found more often where they are there, the rarest one above all."""
    recall = {}
    for weight in (None, "balanced"):
        wanted = settings(digits / "labels.csv", class_weight=weight, **options)
        train(wanted, tmp_path / str(weight))
        run = load_run(tmp_path / str(weight))
        names = run.info["held_out"]["test"]
        has = np.isin(truth(names), list(TAGS["high"]))
        column = by_hand(run, digits, names)[:, run.classes.index("high")].sigmoid().numpy()
        recall[weight] = (column[has] > 0.5).mean()

    assert recall["balanced"] > recall[None]


def test_predictions_are_told_in_words_and_as_json(
    digits: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels from their thresholds on, each with its probability; values in their unit."""
    images = [str(digits / "0.png"), str(digits / "1.png")]
    run = load_run(runs / "labels")
    assert main(["predict", *images, "--run", str(runs / "labels"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert main(["predict", *images, "--run", str(runs / "labels")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["predict", *images, "--run", str(runs / "values"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["predictions"]

    assert isinstance(run.task, Labels)
    for row, line, image in zip(rows, lines, images, strict=True):
        assert row.keys() == {"path", "labels", "probabilities"}
        expected = [
            name
            for name, threshold in zip(run.classes, run.task.thresholds, strict=True)
            if row["probabilities"][name] >= threshold
        ]
        assert row["labels"] == expected
        assert line.startswith(f"{image}\t{', '.join(expected) or '(none)'}\t")
    dataset = ImageSet(Split([Path(images[0])], [0], ["0"]), run.transform, 1)
    logits, _ = predict_logits(run.model, dataset)
    assert list(rows[0]["probabilities"].values()) == pytest.approx(logits.sigmoid()[0].tolist())
    assert [set(row) for row in values] == [{"path", "value"}] * 2
    assert all(15 < row["value"] < 40 for row in values)


def test_evaluate_reads_other_files_for_the_run_s_task(
    digits: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One label a row, in another order, is enough for a run of labels; unknown ones are not."""
    file = digits / "new.csv"
    file.write_text("path,label,split\n5.png,loop,test\n6.png,,test\n0.png,even,test\n")
    assert main(["evaluate", str(file), "--run", str(runs / "labels"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    file.write_text("path,label\n5.png,purple\n")
    assert main(["evaluate", str(file), "--run", str(runs / "labels")]) == 2
    unknown = capsys.readouterr().err
    assert main(["evaluate", str(digits / "labels.csv"), "--run", str(runs / "values")]) == 2
    other = capsys.readouterr().err
    file.write_text("path,label\n5.png,1.5;2\n6.png,2;3\n")
    assert main(["evaluate", str(file), "--run", str(runs / "values")]) == 2
    wide = capsys.readouterr().err
    file.unlink()

    assert "has 2 values for an image, but the run predicts 1" in wide
    assert all(len(error.splitlines()) == 1 for error in (unknown, other, wide))
    assert (found["split"], found["n"]) == ("test", 3)
    assert found["f1_by_class"].keys() == {"even", "high", "loop"}
    assert "class 'purple' is not among those of the run (even, high, loop)" in unknown
    assert "expected a finite number" in other
