"""From names to a run on disk and back: train, go on, evaluate, predict, draw."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from nets import forward_with, mixed_by_loop, output_at
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss
from timm.data import create_transform, resolve_data_config

from manifold_mixup import Mix, freeze, load_backbone, load_run, replace_head
from manifold_mixup._files import write_json
from manifold_mixup._progress import untracked
from manifold_mixup.data import LabelledImages, Split, load_data
from manifold_mixup.inspection import trace
from manifold_mixup.models import input_size
from manifold_mixup.reports import CURVE, RELIABILITY, plot_curve
from manifold_mixup.reports.plots import plot_reliability
from manifold_mixup.runs import (
    Run,
    TrainConfig,
    evaluate_run,
    find_images,
    predict_images,
    train_run,
)
from manifold_mixup.runs.checkpoint import CONFIG, FEATURES, HEAD, MODEL, RUN, STATE
from manifold_mixup.runs.inference import held_out
from manifold_mixup.runs.prepare import head_input
from manifold_mixup.training import DECAYS, fit_temperature

CLASSES = {"dark": 60, "light": 190, "middle": 125}


def paint(file: Path, grey: float, seed: int) -> Path:
    """A noisy picture of a grey level."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(grey, 40, (24, 20))
    Image.fromarray(noise.clip(0, 255).astype("uint8")).save(file)
    return file


def paint_classes(folder: Path, n: int, *, seed: int = 0) -> Path:
    """Class folders with n pictures each."""
    for name, grey in CLASSES.items():
        for number in range(n):
            paint(folder / name / f"{number}.png", grey, 1000 * seed + 10 * grey + number)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve pictures."""
    return paint_classes(tmp_path_factory.mktemp("data") / "photos", 12)


# What makes a training go by steps, and a quick one.
STEPS = {"epochs": 3, "batch_size": 8, "lr": 0.01}


def settings(data: Path | str, **changes: Any) -> dict[str, Any]:
    """What a run stores where nothing is asked for, with the small model."""
    config = TrainConfig(data=str(data), model="digits")
    return {**config.stored(), **changes}


def train(wanted: dict[str, Any], output: Path | None, **changes: Any) -> dict[str, Any]:
    """Train a run; what its ``run.json`` says."""
    shown = {"say": lambda _: None, "track": untracked}
    shown |= {name: changes.pop(name) for name in shown.keys() & changes.keys()}
    given = {name: tuple(one) if isinstance(one, list) else one for name, one in wanted.items()}
    options = {"baseline": False, "device": "cpu", **changes}
    config = TrainConfig(**{**given, "output": output, **options})
    folder, info = train_run(config, **shown)
    assert json.loads((folder / RUN).read_text()) == info
    return info


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "photos-1"
    train(settings(photos), folder)
    return folder


@pytest.fixture(scope="module")
def stepped(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained by steps; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "photos-2"
    train(settings(photos, **STEPS), folder)
    return folder


def numbers(folder: Path) -> tuple[bytes, bytes]:
    """All that a run says, and its head, byte by byte."""
    return (folder / RUN).read_bytes(), (folder / HEAD).read_bytes()


def by_hand(run: Run, paths: list[Path], temperature: float = 1.0) -> np.ndarray:
    """Class probabilities (n, C) of pictures, one after the other."""
    rows = []
    for path in paths:
        with Image.open(path) as image:
            picture = run.transform(image.convert("L" if run.channels == 1 else "RGB"))
        with torch.no_grad():
            logits = run.model(picture[None])[0].double() / temperature
            rows.append(logits.softmax(0).numpy())
    return np.stack(rows)


# Train


def test_run_holds_all_that_is_promised(photos: Path, finished: Path) -> None:
    """Settings, classes, parts, numbers and two pictures; the layer chosen is written down."""
    info = json.loads((finished / RUN).read_text())

    assert {path.name for path in finished.iterdir()} == {RUN, HEAD, CURVE, RELIABILITY, FEATURES}
    expected = {"layer": "global_pool", "way": "cached", "task": "classes"}
    expected["images_sha256"] = load_data(photos).sha256
    assert info["settings"] == {**settings(photos), **expected}
    assert info["classes"] == sorted(CLASSES)
    measured = {"accuracy", "nll", "calibration_error", "n"}
    measured |= {"nll_at_temperature", "calibration_error_at_temperature"}
    assert info["metrics"].keys() == measured
    assert info["task"]["temperature"] > 0
    assert [row["weight_decay"] for row in info["epochs"]] == list(DECAYS)
    assert info["losses"] == [row["mixed_loss"] for row in info["epochs"]]
    assert (info["damaged"], "baseline" in info) == ({}, False)


def test_run_tells_what_was_chosen(finished: Path, stepped: Path) -> None:
    """The weight decay with the lowest validation loss, or the learning rate; alpha as it was."""
    solved, by_steps = (json.loads((folder / RUN).read_text()) for folder in (finished, stepped))

    best = min(solved["epochs"], key=lambda row: row["val_loss"])
    assert solved["weight_decay"] == best["weight_decay"]
    assert (solved["lr"], solved["alpha"], solved["failed"]) == (None, 0.4, "")
    assert (by_steps["lr"], by_steps["failed"]) == (0.01, "")
    assert len(by_steps["epochs"]) == 3
    assert len(by_steps["losses"]) == 3 * -(-21 // 8)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"weight_decay": 0.1}, "solved: .* optimum of 16 mixes of 21 samples, weight decay 0.1"),
        ({"weight_decay": 0.1, "mixes": 3}, "solved: .* optimum of 3 mixes of 21 samples"),
        ({"weight_decay": 0.1, "alpha": 0.0}, "solved: .* of 21 unmixed samples"),
        (STEPS, r"trained by steps \(adamw\): epochs= is given"),
        ({**STEPS, "head": "mlp"}, r"trained by steps \(adamw\): "),
    ],
    ids=str,
)
def test_a_line_says_how_the_head_is_trained(
    photos: Path, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    """Solved for, with how many mixes, or by steps, and why."""
    lines: list[str] = []

    train(settings(photos, **changes), tmp_path / "run", say=lines.append)

    assert sum(re.match(line, one) is not None for one in lines) == 1


def test_balanced_classes_are_weighed(photos: Path, tmp_path: Path) -> None:
    """With as many of each nothing changes; with few of one, its pictures are found more often."""
    shutil.copytree(photos, tmp_path / "photos")
    for number in range(3, 12):
        (tmp_path / "photos" / "middle" / f"{number}.png").unlink()
    heads = {
        name: train(settings(data, class_weight=weight, weight_decay=0.1), tmp_path / name)
        for name, data, weight in (
            ("rare", tmp_path / "photos", None),
            ("rare, balanced", tmp_path / "photos", "balanced"),
            ("whole", photos, None),
        )
    }

    assert heads["rare"]["head_sha256"] != heads["rare, balanced"]["head_sha256"]
    found = {}
    for name in heads:
        run = load_run(tmp_path / name)
        paths = sorted((photos / "middle").iterdir())
        found[name] = by_hand(run, paths)[:, run.classes.index("middle")].mean()
    assert found["rare"] < found["rare, balanced"]


def test_resume_with_other_pictures_is_refused(photos: Path, tmp_path: Path) -> None:
    """A split drawn anew could test on former training pictures, so the change is named."""
    shutil.copytree(photos, tmp_path / "photos")
    wanted = settings(tmp_path / "photos")

    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "run", say=stop_at(1))
    paint(tmp_path / "photos" / "dark" / "new.png", 0, 0)
    with pytest.raises(ValueError, match="images have changed since"):
        train(wanted, tmp_path / "run", resume=True)


def test_same_seed_same_run(photos: Path, finished: Path, tmp_path: Path) -> None:
    """A rerun gives the same bytes, whatever the random state before it; another seed others."""
    torch.manual_seed(77)
    train(settings(photos), tmp_path / "again")
    train(settings(photos, seed=1), tmp_path / "other")

    assert numbers(tmp_path / "again") == numbers(finished)
    assert numbers(tmp_path / "other") != numbers(finished)


def test_workers_change_no_number(photos: Path, finished: Path, tmp_path: Path) -> None:
    """Pictures loaded by other processes give the same run."""
    train(settings(photos), tmp_path / "two", workers=2)
    options = {**STEPS, "epochs": 1, "way": "hooked"}
    for workers in (0, 2):
        train(settings(photos, **options), tmp_path / f"hooked {workers}", workers=workers)

    assert numbers(tmp_path / "two") == numbers(finished)
    assert numbers(tmp_path / "hooked 2") == numbers(tmp_path / "hooked 0")


def test_metrics_are_those_of_the_test_part(photos: Path, finished: Path) -> None:
    """The numbers of a run are what scikit-learn makes of its held-out pictures."""
    run = load_run(finished)
    names = run.info["held_out"]["test"]
    target = [run.classes.index(name.split("/")[0]) for name in names]

    probability = by_hand(run, [photos / name for name in names])

    found = run.info["metrics"]
    assert found["n"] == len(names) == 8
    assert found["accuracy"] == pytest.approx(accuracy_score(target, probability.argmax(1)))
    assert found["nll"] == pytest.approx(log_loss(target, probability, labels=range(3)), rel=1e-5)
    error = probability.max(1).mean() - found["accuracy"]
    assert found["calibration_error"] == pytest.approx(error, abs=1e-6)


def test_temperature_is_chosen_by_validation(photos: Path, finished: Path) -> None:
    """It is what fits the validation part's logits best, and mends what is told of the test."""
    run = load_run(finished)
    logits, target = {}, {}
    for part in ("val", "test"):
        names = run.info["held_out"][part]
        target[part] = torch.tensor([run.classes.index(name.split("/")[0]) for name in names])
        rows = by_hand(run, [photos / name for name in names])
        logits[part] = torch.from_numpy(rows).log()

    temperature = run.info["task"]["temperature"]

    assert temperature == pytest.approx(fit_temperature(logits["val"], target["val"]), rel=1e-4)
    nll = torch.nn.functional.cross_entropy(logits["test"] / temperature, target["test"])
    assert run.info["metrics"]["nll_at_temperature"] == pytest.approx(float(nll), rel=1e-4)


@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, STEPS], ids=["solved", "by steps"])
def test_held_out_pictures_teach_nothing(
    tmp_path: Path, part: str, options: dict[str, Any]
) -> None:
    """With quite other pictures to test or validate on, the head is the same to the bit."""
    for name, n in (("train", 6), ("val", 3), ("test", 3)):
        paint_classes(tmp_path / "data" / name, n, seed=n)
    first = train(settings(tmp_path / "data", **options), tmp_path / "one")
    for number, file in enumerate(sorted((tmp_path / "data" / part).rglob("*.png"))):
        paint(file, 255 - 20 * number, number)

    second = train(settings(tmp_path / "data", **options), tmp_path / "two")

    assert first["head_sha256"] == second["head_sha256"]
    assert first["losses"] == second["losses"]
    changed = {"test": first["metrics"]["nll"] != second["metrics"]["nll"]}
    changed["val"] = [r["val_loss"] for r in first["epochs"]] != [
        r["val_loss"] for r in second["epochs"]
    ]
    assert changed == {"test": part == "test", "val": part == "val"}


def test_held_out_pictures_are_no_training_pictures(photos: Path, tmp_path: Path) -> None:
    """Parts do not overlap: without the pictures of validation and test, others stay to train."""
    shutil.copytree(photos, tmp_path / "photos")
    held = train(settings(tmp_path / "photos"), tmp_path / "run")["held_out"]

    everything = set(load_data(tmp_path / "photos").parts["train"].names)
    assert not set(held["val"]) & set(held["test"])
    assert {*held["val"], *held["test"]} < everything
    assert len(everything - {*held["val"], *held["test"]}) == 21


def test_baseline_is_the_run_without_mixup(photos: Path, finished: Path, tmp_path: Path) -> None:
    """Beside the mixed head stands what `alpha` 0 gives; the mixed head is the one kept."""
    both = train(settings(photos), tmp_path / "both", baseline=True)
    plain = train(settings(photos, alpha=0.0), tmp_path / "plain")

    assert both["baseline"] == plain["metrics"]
    assert (tmp_path / "both" / HEAD).read_bytes() == (finished / HEAD).read_bytes()
    assert both["metrics"] == json.loads((finished / RUN).read_text())["metrics"]
    assert both["head_sha256"] != plain["head_sha256"]


def test_baseline_has_no_clean_loss_beside(photos: Path, tmp_path: Path) -> None:
    """Without mixup the clean loss is the loss, once; all else stays."""
    wanted = {"label_smoothing": 0.2, "optimizer": "sgd", **STEPS}
    both = train(settings(photos, clean_weight=3.0, **wanted), tmp_path / "both", baseline=True)
    plain = train(settings(photos, alpha=0.0, **wanted), tmp_path / "plain")

    assert both["baseline"] == plain["metrics"]


def test_whole_model_holds_the_trained_head(photos: Path, tmp_path: Path) -> None:
    """After a baseline too, the model that is saved is the one with the mixed head."""
    train(settings(photos), tmp_path, save_model=True, baseline=True)
    whole = load_run(tmp_path)
    (tmp_path / MODEL).unlink()

    state = load_run(tmp_path).model.state_dict()

    assert all(
        torch.equal(tensor, state[name]) for name, tensor in whole.model.state_dict().items()
    )


def test_damaged_pictures_are_recorded(photos: Path, tmp_path: Path) -> None:
    """A run says which pictures it left out, and trains on the others."""
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "dark" / "x.png").write_text("none")
    lines: list[str] = []

    info = train(
        settings(tmp_path / "photos"),
        tmp_path / "run",
        skip_damaged=True,
        say=lines.append,
    )

    assert list(info["damaged"]) == ["dark/x.png"]
    assert "1 damaged images left out" in lines


# Go on after a break


def stop_at(row: int) -> Callable[[str], None]:
    """Interrupts when the line of an epoch, or of a weight decay, is said."""
    said: list[str] = []

    def say(line: str) -> None:
        said.extend([line] if line.startswith(("epoch ", "weight decay ")) else [])
        if len(said) == row:
            raise KeyboardInterrupt

    return say


@pytest.mark.parametrize("row", [1, 6, 11])
def test_resumed_run_has_the_same_numbers(
    photos: Path, finished: Path, tmp_path: Path, row: int
) -> None:
    """Interrupted after any decay and resumed, a run is that without a break, to the byte."""
    check_resumed(settings(photos), finished, tmp_path / "run", row)


@pytest.mark.parametrize("row", [1, 2, 3])
def test_resumed_run_by_steps_has_the_same_numbers(
    photos: Path, stepped: Path, tmp_path: Path, row: int
) -> None:
    """After any epoch, too."""
    check_resumed(settings(photos, **STEPS), stepped, tmp_path / "run", row)


def check_resumed(wanted: dict[str, Any], whole: Path, folder: Path, row: int) -> None:
    """A run that is interrupted after a row and resumed has the bytes of one that is not."""
    with pytest.raises(KeyboardInterrupt, match="run --resume goes on"):
        train(wanted, folder, say=stop_at(row))
    assert {path.name for path in folder.iterdir()} == {STATE, FEATURES}

    train(wanted, folder, resume=True)

    assert numbers(folder) == numbers(whole)
    assert not (folder / STATE).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"way": "hooked", "mixes": 2},
        {"way": "hooked", "layer": "layer3", "clean_weight": 0.5},
        {**STEPS, "clean_weight": 0.5, "way": "hooked"},
    ],
    ids=str,
)
def test_resumed_run_mixes_alike(photos: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Pictures that pass the model again are mixed as before the break."""
    wanted = settings(photos, **changes)
    train(wanted, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "run", say=stop_at(2))
    train(wanted, tmp_path / "run", resume=True)

    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_run_from_before_an_option_goes_on_without_it(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    """What its settings do not name was not used; to use it now is to change them."""
    shutil.copytree(finished, tmp_path / "run")
    info = json.loads((finished / RUN).read_text())
    for name in ("clean_weight", "mixes", "class_weight"):
        del info["settings"][name]
    del info["sha256"]
    before = write_json(tmp_path / "run" / RUN, info)

    assert train(settings(photos), tmp_path / "run", resume=True) == before
    with pytest.raises(ValueError, match=r"was started with clean_weight=None, now it is 0\.1"):
        train(settings(photos, clean_weight=0.1), tmp_path / "run", resume=True)


def test_run_interrupted_twice_within_an_epoch(
    photos: Path, stepped: Path, tmp_path: Path
) -> None:
    """Steps of an epoch that did not end are done again; twice stopped is no other than once."""

    def track(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        for number, step in enumerate(steps):
            if description == "epoch 3/3" and number == 1:
                raise KeyboardInterrupt
            yield step

    wanted = settings(photos, **STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path, say=stop_at(1))
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path, resume=True, track=track)

    train(wanted, tmp_path, resume=True)

    assert numbers(tmp_path) == numbers(stepped)


def test_interrupted_baseline_is_done_again(photos: Path, tmp_path: Path) -> None:
    """The head without mixup, stopped half way, starts from the same new head."""
    whole = train(settings(photos), tmp_path / "whole", baseline=True)

    def stop(line: str) -> None:
        if "without mixup" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(photos), tmp_path / "run", baseline=True, say=stop)

    assert train(settings(photos), tmp_path / "run", baseline=True, resume=True) == whole


def test_interrupt_before_the_first_epoch_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    """Without anything to go on from, no folder stays, and the message says so."""

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="before there was anything to keep"):
        train(settings(photos), tmp_path / "run", say=stop)
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_settings_is_refused(photos: Path, tmp_path: Path) -> None:
    """A setting that changed is named, and the state stays to go on from with the right one."""
    with pytest.raises(KeyboardInterrupt):
        train(settings(photos), tmp_path, say=stop_at(1))

    with pytest.raises(ValueError, match=r"was started with mixes=None, now it is 4"):
        train(settings(photos, mixes=4), tmp_path, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {STATE, FEATURES}


def test_finished_run_is_only_read(photos: Path, finished: Path, tmp_path: Path) -> None:
    """To resume what is finished changes no file and gives its numbers."""
    shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}

    info = train(settings(photos), tmp_path / "run", resume=True)

    assert info == json.loads((finished / RUN).read_text())
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_timm_builds_the_whole_model_and_names_its_classes(tmp_path: Path) -> None:
    """Plain timm, with its own transform and the names it finds, is as right as the run says,
    where names sort otherwise as numbers.
    """
    paint_classes(tmp_path / "greys", 12)
    for name, number in zip(CLASSES, ("10", "2", "1"), strict=True):
        (tmp_path / "greys" / name).rename(tmp_path / "greys" / number)
    folder = tmp_path / "run"
    info = train(settings(tmp_path / "greys", baseline=False), folder, save_model=True)

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    right = []
    for name in info["held_out"]["test"]:
        with Image.open(tmp_path / "greys" / name) as image:
            best = int(model(transform(image.convert("L"))[None]).argmax())
        right.append(model.pretrained_cfg["label_names"][best] == name.split("/")[0])

    assert model.pretrained_cfg["label_names"] == ["1", "10", "2"]
    assert info["metrics"]["accuracy"] == pytest.approx(np.mean(right))
    assert np.mean(right) > 0.8


def test_overwriting_gives_the_new_run(photos: Path, finished: Path, tmp_path: Path) -> None:
    """A run written over another one with other settings has nothing of it."""
    train(settings(photos, alpha=1.0, seed=4), tmp_path, save_model=True)

    train(settings(photos), tmp_path, overwrite=True)

    assert numbers(tmp_path) == numbers(finished)
    assert not (tmp_path / MODEL).exists()
    assert not (tmp_path / CONFIG).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": -1.0},
        {"epochs": 0},
        {"pairing": "twins"},
        {"pairing": "near-target"},
        {"kind": "blend"},
        {"prob": 1.5},
        {"alpha_warmup": -0.1},
        {"shots": 0},
        {"label_noise": 1.1},
        {"label_noise": -0.1},
        {"label_noise": float("nan")},
        {"clean_weight": -2.0},
        {"mixes": 0},
        {"class_weight": "fair"},
        {"optimizer": "lbfgs"},
        {"weight_decay": -0.5},
        {"weight_decay": "best"},
        {"model": "resnt18"},
        {"weights": "gone.safetensors"},
        {"layer": "layr4"},
        {"model": "torchvision:resnet18", "weights": "none", "layer": "layer1.0.relu"},
        {"layer": "fc"},
        {"data": "gone"},
    ],
    ids=str,
)
def test_mistake_leaves_no_folder(photos: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """A setting that cannot be is an error that says it, before anything is written."""
    wanted = {**settings(photos), **changes}

    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        train(wanted, tmp_path / "runs" / "x")

    assert str(list(changes.values())[-1]) in str(caught.value)
    assert not (tmp_path / "runs").exists()


# Where to mix when nobody says


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "test_resnet",
        "test_vit",
        "test_convnext",
        "test_efficientnet",
        "torchvision:squeezenet1_1",
        "torchvision:shufflenet_v2_x0_5",
    ],
)
def test_head_input_is_what_the_head_takes(name: str) -> None:
    """Mixing at the layer that is chosen is mixing what the new head takes: with a linear head,
    the logits.
    """
    model = load_backbone(name, weights="none").double().eval()
    head = replace_head(model, 3)
    freeze(model, except_=head)
    size = input_size(name, model)
    images = torch.randn(3, *size, dtype=torch.float64)
    mix = Mix([0.2, 0.7, 0.9], [1, 2, 0])

    layer = head_input(trace(model, (torch.zeros(2, *size, dtype=torch.float64),), {}), head)

    features = output_at(model, layer, images)
    mixed = forward_with(model, layer, mixed_by_loop(mix, features), images)
    taken: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    model(images)
    forward_with(model, layer, mixed_by_loop(mix, features), images)
    handle.remove()
    assert torch.allclose(taken[1], mixed_by_loop(mix, taken[0]), rtol=1e-9)
    assert mixed.shape == (3, 3)


# Evaluate


@pytest.fixture
def run(finished: Path) -> Run:
    """The finished run, loaded."""
    return load_run(finished)


def measure(run: Run, data: LabelledImages, folder: Path) -> dict[str, Any]:
    """What the run says of a data set."""
    return evaluate_run(run, data, folder, skip_damaged=False, workers=0, track=untracked)


def test_evaluation_agrees_with_training(photos: Path, run: Run, tmp_path: Path) -> None:
    """On the pictures it held out a loaded run gives the numbers of its training, to rounding."""
    found = measure(run, load_data(photos), tmp_path)

    assert (found.pop("split"), found.pop("damaged")) == ("held-out", [])
    assert found.pop("plot") == str(tmp_path / RELIABILITY)
    assert found.pop("about") == ["each folder is a class: dark, light, middle"]
    assert found == pytest.approx(run.info["metrics"], rel=1e-5)
    with Image.open(tmp_path / RELIABILITY) as picture:
        assert picture.format == "PNG"


def test_own_test_part_comes_first(run: Run, photos: Path, tmp_path: Path) -> None:
    """Where DATA has a test part, it is what is measured, even if its names are recorded too."""
    shutil.copytree(photos, tmp_path / "data" / "train")
    paint_classes(tmp_path / "data" / "test", 2, seed=9)

    found = measure(run, load_data(tmp_path / "data"), tmp_path)

    assert (found["split"], found["n"]) == ("test", 6)


def test_unknown_pictures_are_measured_whole(run: Run, tmp_path: Path) -> None:
    """New pictures without a test part are all new, and said to be all; validation is included."""
    for part in ("train", "val"):
        paint_classes(tmp_path / "data" / part, 2, seed=5)

    found = measure(run, load_data(tmp_path / "data"), tmp_path)

    assert (found["split"], found["n"]) == ("all", 12)


def test_same_names_in_another_data_set_are_not_held_out(run: Run, tmp_path: Path) -> None:
    """A name says little: of another data set everything is measured, as it is all new."""
    paint_classes(tmp_path / "data", 40, seed=5)
    data = load_data(tmp_path / "data")

    with pytest.warns(UserWarning, match="has names of the images that the run held out"):
        split, part = held_out(run, data)

    assert set(run.info["held_out"]["test"]) < set(part.names)
    assert (split, len(part)) == ("all", 120)


def test_missing_held_out_pictures_are_named(run: Run, photos: Path) -> None:
    """A test on what is left of the held-out pictures would be another test."""
    data = load_data(photos)
    lost = run.info["held_out"]["test"][0]

    with pytest.raises(ValueError, match=f"1 images .* are missing .*{lost}"):
        held_out(run, data.without([lost]))


def test_held_out_pictures_are_found_wherever_they_moved(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    """What was held out is known by its name below DATA, in a copy of it elsewhere too."""
    shutil.copytree(photos, tmp_path / "moved")

    split, part = held_out(run, load_data(tmp_path / "moved"))

    assert split == "held-out"
    assert sorted(part.names) == sorted(run.info["held_out"]["test"])
    assert measure(run, load_data(tmp_path / "moved"), tmp_path)["nll"] == pytest.approx(
        run.info["metrics"]["nll"], rel=1e-5
    )


@pytest.mark.parametrize(
    "order",
    [["dark", "light", "middle"], ["middle", "dark", "light"], ["light"], ["middle", "light"]],
)
def test_classes_belong_by_name(run: Run, photos: Path, tmp_path: Path, order: list[str]) -> None:
    """DATA may have the run's classes in another order, or only some of them."""
    paths = [photos / name / f"{number}.png" for name in order for number in range(3)]
    targets = [index for index in range(len(order)) for _ in range(3)]
    data = LabelledImages("some", order, {"test": Split(paths, targets, [str(p) for p in paths])})

    found = measure(run, data, tmp_path)

    wanted = [run.classes.index(path.parent.name) for path in paths]
    probability = by_hand(run, paths)
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, probability.argmax(1)))
    expected = log_loss(wanted, probability, labels=range(3))
    assert found["nll"] == pytest.approx(expected, rel=1e-5)


def test_class_that_the_run_does_not_know_is_named(run: Run, tmp_path: Path) -> None:
    """A run cannot be right on a class that it never saw: the error names both sides."""
    paint_classes(tmp_path / "data", 1)
    paint(tmp_path / "data" / "purple" / "0.png", 0, 0)

    with pytest.raises(ValueError, match=r"class 'purple' is not among.*\(dark, light, middle\)"):
        measure(run, load_data(tmp_path / "data"), tmp_path)


# Predict


def test_predictions_are_those_of_the_model(run: Run, photos: Path) -> None:
    """Class and probability of each picture, in order, are the model's at its temperature."""
    paths = sorted(photos.rglob("*.png"))[::5]

    rows = predict_images(run, paths, workers=0, track=untracked)

    probability = by_hand(run, paths, run.info["task"]["temperature"])
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [row["label"] for row in rows] == [run.classes[i] for i in probability.argmax(1)]
    assert [row["probability"] for row in rows] == pytest.approx(probability.max(1), rel=1e-5)


def test_pictures_are_found_among_files_and_in_folders(photos: Path, tmp_path: Path) -> None:
    """A file that is named counts whatever its ending; in folders endings decide."""
    strange = paint(tmp_path / "a.png", 9, 9).rename(tmp_path / "picture.of.mine")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "notes.txt").write_text("no picture")

    with pytest.warns(UserWarning, match="more: not taken for images, by their endings: .txt: 1"):
        found, damaged = find_images(
            [strange, photos / "dark", tmp_path / "more"], skip_damaged=False, track=untracked
        )

    assert found[0] == strange
    assert sorted(found[1:]) == sorted((photos / "dark").iterdir())
    assert damaged == {}


def test_pictures_that_cannot_be_predicted_are_named(photos: Path, tmp_path: Path) -> None:
    """Missing files, damaged ones and folders without pictures are errors of their own."""
    good, bad, empty = photos / "dark" / "0.png", tmp_path / "bad.png", tmp_path / "empty"
    bad.write_text("no picture")
    empty.mkdir()

    def find(*paths: Path, skip: bool = False) -> Any:
        return find_images(paths, skip_damaged=skip, track=untracked)

    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file or folder"):
        find(good, tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"bad\.png: damaged image"):
        find(good, bad)
    with pytest.raises(ValueError, match="empty: no images"):
        find(empty)
    with pytest.raises(ValueError, match=r"bad\.png: no images"):
        find(bad, skip=True)
    assert find(good, bad, skip=True)[0] == [good]


# Draw


ROW = {"mixed_loss": 0.9, "train_loss": 0.5, "train_accuracy": 0.8}


@pytest.mark.parametrize("epochs", [1, 3, 200])
@pytest.mark.parametrize("validation", [{}, {"val_loss": 0.6, "val_accuracy": 0.7}])
def test_curve_is_drawn(tmp_path: Path, epochs: int, validation: dict[str, float]) -> None:
    """With or without validation, of one epoch or many, the curve is a picture of its numbers."""
    rows = [{**ROW, **validation}] * epochs
    plot_curve(tmp_path / "undefined.png", [{"train_r2": None}], "title", "r2")
    plot_curve(tmp_path / "one.png", rows, "title")
    plot_curve(tmp_path / "same.png", rows, "title")
    plot_curve(tmp_path / "other.png", [*rows[1:], {**rows[0], "mixed_loss": 0.1}], "title")

    one, same, other = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "same", "other")
    )

    assert one.shape[0] > 300
    assert one.shape[1] > 800
    assert (one == same).all()
    assert one.shape != other.shape or (one != other).any()


def orange_points(file: Path) -> list[tuple[int, int]]:
    """The corners of the area that the curve of a reliability picture covers, in pixels."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - [0, 0x72, 0xB2]).sum(2) < 12)
    # The legend shows the same colour, at the left above.
    right = columns > pixels.shape[1] * 0.6
    return [(int(columns[right].mean()), int(rows[right].mean()))]


def test_reliability_is_drawn_where_it_belongs(tmp_path: Path) -> None:
    """A surer model's point lies further right, a better one's higher."""
    target = torch.tensor([0, 0, 0, 1])
    places = {}
    for name, confidence, wanted in (
        ("unsure", 0.75, target),
        ("sure", 0.95, target),
        ("right", 0.95, torch.zeros(4).long()),
    ):
        logits = torch.tensor([[confidence, 1 - confidence]]).log().repeat(4, 1)
        plot_reliability(tmp_path / f"{name}.png", logits, wanted, "title")
        ((column, row),) = orange_points(tmp_path / f"{name}.png")
        places[name] = column, row

    assert places["sure"][0] > places["unsure"][0] + 20
    assert abs(places["sure"][1] - places["unsure"][1]) < 4
    assert places["right"][1] < places["sure"][1] - 20


@pytest.mark.shared
def test_run_on_real_flowers_agrees_with_itself(shared: Path, tmp_path: Path) -> None:
    """With real weights and photos, training, evaluation and prediction tell the same."""
    flowers = shared / "datasets" / "flowers5"
    for name in ("daisy", "sunflowers"):
        for part in ("train", "test"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for file in sorted((flowers / part / name).iterdir())[:6]:
                shutil.copy(file, tmp_path / "data" / part / name)
    weights = shared / "weights" / "resnet18_imagenet.safetensors"
    wanted = settings(tmp_path / "data", model="resnet18", weights=str(weights), layer="layer4")

    info = train(wanted, tmp_path / "run")

    run = load_run(tmp_path / "run")
    paths, _ = find_images([tmp_path / "data" / "test"], skip_damaged=False, track=untracked)
    rows = predict_images(run, paths, workers=0, track=untracked)
    found = measure(run, load_data(tmp_path / "data"), tmp_path)
    assert (found.pop("split"), found.pop("damaged")) == ("test", [])
    assert found.pop("plot") == str(tmp_path / RELIABILITY)
    assert found.pop("about") == ["parts: train/ for train, test/ for test"]
    assert found == pytest.approx(info["metrics"], rel=1e-5)
    right = [row["label"] == Path(row["path"]).parent.name for row in rows]
    assert sum(right) / 12 == info["metrics"]["accuracy"]


def test_patience_says_what_is_kept(photos: Path, tmp_path: Path) -> None:
    """Where it ended, and which epoch's head the run has."""
    said: list[str] = []
    steps = {**STEPS, "epochs": 40, "lr": 1.0, "patience": 1}
    info = train(settings(photos, **steps), tmp_path / "run", say=said.append)

    losses = [row["val_loss"] for row in info["epochs"]]
    best, ended = losses.index(min(losses)) + 1, len(losses)
    told = f"stopped after epoch {ended}: epoch {best} is kept, the best on validation"
    assert said.count(told) == 1
    assert best < ended < 40


def test_files_left_out_are_told_by_their_endings(
    finished: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """What Pillow reads is taken, whatever its ending; what it does not is counted by name."""
    for name in ("one.gif", "two.JPE", "three.png"):
        Image.new("L", (8, 8)).save(tmp_path / name, {"J": "JPEG"}.get(name[4]))
    for name in ("a.heic", "b.HEIC", "notes"):
        (tmp_path / name).write_bytes(b"?")
    images, damaged = find_images([tmp_path], skip_damaged=False, track=untracked)

    assert {path.name for path in images} == {"one.gif", "two.JPE", "three.png"}
    assert not damaged
    (told,) = (str(one.message) for one in recwarn)
    assert told.endswith(
        "not taken for images, by their endings: .heic: 2 (pip install pillow-heif), none: 1"
    )
