"""The command line: what it prints, writes and refuses, as a user sees it."""

import contextlib
import gc
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import manifold_mixup
from manifold_mixup.cli import main
from manifold_mixup.hooks.hook import MixHook

COMMAND = [sys.executable, "-m", "manifold_mixup"]
OPTIONS = (
    *("model", "weights", "layer", "alpha", "mixes", "weight-decay", "optimizer", "class-weight"),
    *("epochs", "seed", "batch-size", "lr"),
    *(
        "label-smoothing",
        "shots",
        "label-noise",
        "pairing",
        "exclude",
        "kind",
        "prob",
        "alpha-warmup",
        "clean-weight",
        "way",
        "device",
        "workers",
        "output",
        "overwrite",
        "resume",
    ),
    *("skip-damaged", "save-model", "data-root", "baseline", "json", "debug"),
)
QUICK = ["--model", "digits"]
STEPS = [*QUICK, "--epochs", "3", "--lr", "0.01"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Other processes shall run this package too, and not an older one that is installed.
    monkeypatch.setenv("PYTHONPATH", str(Path(manifold_mixup.__path__[0]).parent))


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    # A shell's background jobs, and their children, are born with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def paint(file: Path, grey: int, seed: int) -> None:
    """Write a noisy picture of a grey value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(grey, 30, (40, 40, 3))
    Image.fromarray(noise.clip(0, 255).astype("uint8")).save(file)


@pytest.fixture
def photos() -> Path:
    """Two classes of ten pictures, one dark and one light."""
    for name, grey in (("dark", 60), ("light", 190)):
        for number in range(10):
            paint(Path("photos", name, f"{number}.png"), grey, seed=grey + number)
    return Path("photos")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command with --json and give what it prints."""

    def call(*arguments: str) -> Any:
        status = main([*arguments, "--json"])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return json.loads(printed.out)

    return call


def files() -> set[str]:
    """Every file and folder below the current one."""
    return {path.as_posix() for path in Path().rglob("*")}


def test_train_writes_a_run_and_prints_its_accuracy(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of class folders becomes a run folder, told in plain lines."""
    status = main(["train", "photos", *QUICK, "--output", "runs/pets"])
    printed = capsys.readouterr()
    info = json.loads(Path("runs/pets/run.json").read_text())

    assert status == 0
    assert f"with mixup     accuracy {info['metrics']['accuracy']:.1%}" in printed.out
    assert "solved: a linear head at the optimum of 16 mixes of 12 samples" in printed.out
    assert printed.err == ""
    assert {path.name for path in Path("runs/pets").iterdir()} == {
        "run.json",
        "head.safetensors",
        "curve.png",
        "reliability.png",
        "features",
    }


@pytest.mark.parametrize(
    ("options", "place", "row"),
    [(QUICK, "weight decay 0.316 ", 3), (STEPS, "epoch 3/3 ", 2)],
    ids=["solved", "by steps"],
)
def test_each_row_tells_mixed_clean_and_validation_numbers_apart(
    photos: Path, capsys: pytest.CaptureFixture[str], options: list[str], place: str, row: int
) -> None:
    """A mixed loss above the clean one explains itself in the line of its epoch, or decay."""
    main(["train", "photos", *options, "--output", "out"])
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith(place))
    told = json.loads(Path("out/run.json").read_text())["epochs"][row]

    assert f"{told['mixed_loss']:.3f} mixed, {told['train_loss']:.3f} clean" in line
    assert f"{told['val_loss']:.3f} validation" in line
    assert f"{told['train_accuracy']:.1%} clean, {told['val_accuracy']:.1%} validation" in line


def test_excluded_classes_and_pairing_are_kept_and_compared(
    photos: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run says them by name; to go on with others is an error."""
    request = ["--pairing", "same-class", "--exclude", " light"]
    first = run("train", "photos", *QUICK, "--output", "out", *request)
    again = run("train", "photos", *QUICK, "--output", "out", "--resume", *request)
    settings = json.loads(Path("out/run.json").read_text())["settings"]
    capsys.readouterr()
    status = main(["train", "photos", *QUICK, "--output", "out", "--resume", *request[:2]])

    assert (settings["pairing"], settings["exclude"]) == ("same-class", ["light"])
    assert again == first
    assert status == 2
    assert "was started with exclude=['light'], now it is None" in capsys.readouterr().err


def test_what_is_asked_of_a_solved_head_reaches_the_run(
    photos: Path, run: Callable[..., Any]
) -> None:
    """Each option alone changes the head; a run says them all."""
    off = {"clean_weight": 0.0, "mixes": None, "class_weight": None, "weight_decay": "auto"}
    wishes = {
        "clean_weight": ("0.5", 0.5),
        "mixes": ("4", 4),
        "class_weight": ("balanced", "balanced"),
        "weight_decay": ("0.02", 0.02),
    }
    for number in range(5):
        Path("photos", "light", f"{number}.png").unlink()
    run("train", "photos", *QUICK, "--output", "plain")
    for name, (word, _) in wishes.items():
        run("train", "photos", *QUICK, "--output", name, f"--{name.replace('_', '-')}", word)
    infos = {name: json.loads(Path(name, "run.json").read_text()) for name in ("plain", *wishes)}

    said = {name: {key: info["settings"][key] for key in off} for name, info in infos.items()}
    assert said.pop("plain") == off
    assert said == {name: {**off, name: value} for name, (_, value) in wishes.items()}
    assert infos["weight_decay"]["weight_decay"] == 0.02
    assert len({info["head_sha256"] for info in infos.values()}) == 5


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            [],
            r"solved: .* of 16 mixes of 12 samples, weight decay \S+.* of 11, by validation loss",
        ),
        (["--epochs", "2"], r"trained by steps \(adamw\): epochs= is given"),
        (
            ["--batch-size", "4", "--lr", "0.1"],
            r"trained by steps \(adamw\): batch_size= is given",
        ),
        (["--head", "mlp", "--lr", "0.01"], r"trained by steps \(adamw\): lr= is given"),
        (["--kind", "cutmix", "--layer", "layer4"], "trained by steps .*: CutMix is not affine"),
        (["--alpha-warmup", "0.5"], "trained by steps .*: alpha= changes from epoch to epoch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_line_tells_how_the_head_is_trained(
    photos: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
) -> None:
    """By what, and by steps why; without --lr the rate that validation chose is told too."""
    assert main(["train", "photos", *QUICK, "--output", "out", *options]) in (0, 3)
    lines = capsys.readouterr().out.splitlines()

    assert sum(re.match(line, one) is not None for one in lines) == 1
    has_rate = any(one.startswith("learning rate: ") for one in lines)
    assert has_rate == (options != [] and "--lr" not in options)


def test_json_is_one_object_with_the_promised_keys(photos: Path, run: Callable[..., Any]) -> None:
    """With --json stdout holds one object, with fractions and not percentages."""
    trained = run("train", "photos", *QUICK, "--output", "out", "--seed", "3")
    evaluated = run("evaluate", "photos", "--run", "out")
    predicted = run("predict", "photos/dark", "--run", "out")

    keys = {"accuracy", "nll", "calibration_error", "n", "split", "seed", "output"}
    assert keys <= trained.keys()
    assert keys <= evaluated.keys()
    assert 0 <= trained["accuracy"] <= 1
    assert trained["seed"] == evaluated["seed"] == 3
    assert trained["split"] == "test"
    assert evaluated["split"] == "held-out"
    assert [row.keys() for row in predicted["predictions"]] == [
        {"path": None, "label": None, "probability": None}.keys()
    ] * 10


def test_evaluate_and_predict_agree_with_train(photos: Path, run: Callable[..., Any]) -> None:
    """The accuracy that train printed is that of evaluate, and of counting predictions."""
    trained = run("train", "photos", *QUICK, "--output", "out")
    evaluated = run("evaluate", "photos", "--run", "out")
    held_out = json.loads(Path("out/run.json").read_text())["held_out"]["test"]
    predicted = run("predict", *[f"photos/{name}" for name in held_out], "--run", "out")
    right = [row["label"] == Path(row["path"]).parent.name for row in predicted["predictions"]]

    for key in ("accuracy", "nll", "calibration_error", "n"):
        assert trained[key] == pytest.approx(evaluated[key], rel=1e-5)
    assert sum(right) / len(right) == trained["accuracy"]
    assert len(right) == trained["n"] == 4


def test_a_seed_fixes_every_number(photos: Path, run: Callable[..., Any]) -> None:
    """The same seed gives the same losses and the same bytes of the head, another one others."""
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run("train", "photos", *QUICK, "--seed", seed, "--output", name)
    losses = {
        name: json.loads(Path(name, "run.json").read_text())["losses"] for name in ("a", "b", "c")
    }
    heads = {name: Path(name, "head.safetensors").read_bytes() for name in ("a", "b", "c")}

    assert losses["a"] == losses["b"] != losses["c"]
    assert heads["a"] == heads["b"] != heads["c"]


def test_without_output_each_run_gets_the_next_free_folder(
    photos: Path, run: Callable[..., Any]
) -> None:
    """Two runs in a row are two folders below runs/."""
    outputs = [run("train", "photos", *QUICK)["output"] for _ in range(2)]

    assert outputs == ["runs/photos-1", "runs/photos-2"]


def test_nothing_given_trains_on_the_built_in_digits(run: Callable[..., Any]) -> None:
    """Without DATA the digits 5 to 9 are learned, with and without mixup."""
    result = run("train")

    assert result["output"] == "runs/digits-1"
    assert result["n"] == result["baseline"]["n"] == 180
    assert result["accuracy"] > 0.6
    assert result["baseline"]["accuracy"] > 0.6
    assert result["nll"] != result["baseline"]["nll"]


def test_layers_lists_what_can_be_mixed(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The list for people holds the mixable layers; that for programs all, with reasons."""
    rows = run("layers", "torchvision:resnet18")["layers"]
    main(["layers", "torchvision:resnet18"])
    printed = capsys.readouterr()
    by_name = {row["name"]: row for row in rows}

    assert by_name["layer3"]["shape"] == [256, 14, 14]
    assert by_name["layer3"]["mixable"]
    assert by_name["layer1.0.relu"]["calls"] == 2
    assert "runs 2 times" in by_name["layer1.0.relu"]["reason"]
    listed = [line.split()[0] for line in printed.out.splitlines()[1:]]
    assert listed == [row["name"] for row in rows if row["mixable"]]
    assert f"{len(rows) - len(listed)} more cannot be mixed" in printed.err


def test_help_and_version_leave_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    """Help names every command and option of train."""
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    options = capsys.readouterr().out

    assert all(name in printed for name in ("layers", "train", "evaluate", "predict"))
    for name in OPTIONS:
        assert f"--{name}" in options


def test_overwrite_replaces_a_run(photos: Path, run: Callable[..., Any]) -> None:
    """With --overwrite the folder holds the new run, whole."""
    run("train", "photos", *QUICK, "--output", "out", "--save-model")
    run("train", "photos", *QUICK, "--output", "out", "--seed", "1", "--overwrite")
    info = json.loads(Path("out/run.json").read_text())

    assert info["settings"]["seed"] == 1
    assert not Path("out/model.safetensors").exists()
    assert run("evaluate", "--run", "out")["nll"] == pytest.approx(
        info["metrics"]["nll"], rel=1e-5
    )


def test_skip_damaged_goes_on_and_counts(photos: Path, run: Callable[..., Any]) -> None:
    """A damaged picture is left out by name, and the run says so."""
    broken = Path("photos/dark/3.png")
    broken.write_bytes(broken.read_bytes()[:200])
    result = run("train", "photos", *QUICK, "--skip-damaged", "--output", "out")
    predicted = run("predict", "photos", "--run", "out", "--skip-damaged")

    assert result["damaged"] == ["dark/3.png"]
    assert len(predicted["predictions"]) == 19
    assert predicted["damaged"] == [str(broken)]


def spoil_one_class(photos: Path) -> None:
    """Leave one class."""
    for file in (photos / "light").iterdir():
        file.unlink()
    (photos / "light").rmdir()


def spoil_empty_class(photos: Path) -> None:
    """Add a class without pictures."""
    (photos / "nothing").mkdir()


def spoil_image(photos: Path) -> None:
    """Cut a picture short."""
    (photos / "dark" / "3.png").write_bytes((photos / "dark" / "3.png").read_bytes()[:200])


def spoil_output(photos: Path) -> None:
    """Put a file where a folder is to be."""
    Path("file").write_text("")


def spoil_nothing(photos: Path) -> None:
    """Leave all as it is."""


TORCHVISION = ["--model", "torchvision:resnet18", "--weights", "none"]
SWIN = ["--model", "swin_tiny_patch4_window7_224", "--weights", "none"]
VIT = ["--model", "vit_tiny_patch16_224", "--weights", "none"]
MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "unknown model": (spoil_nothing, ["--model", "resnt18"], "resnt18.*did you mean resnet18"),
    "unknown layer": (spoil_nothing, [*QUICK, "--layer", "layr4"], "layr4.*did you mean 'layer4'"),
    "layer that runs twice": (
        spoil_nothing,
        [*TORCHVISION, "--layer", "layer1.0.relu"],
        "'layer1.0.relu' runs 2 times.*choose 'layer1.0'",
    ),
    "layer that never runs": (
        spoil_nothing,
        [*VIT, "--layer", "blocks.0.attn.attn_drop"],
        "'blocks.0.attn.attn_drop' never runs.*choose 'blocks.0'",
    ),
    "windowed layer": (
        spoil_nothing,
        [*SWIN, "--layer", "layers.0.blocks.0.attn.qkv"],
        "64 rows for each sample.*windows.*choose 'layers.0.blocks.0'",
    ),
    "one class": (spoil_one_class, QUICK, "found 1 class folder .*need at least 2"),
    "empty class": (spoil_empty_class, QUICK, "photos: class 'nothing' has no images"),
    "damaged image": (spoil_image, QUICK, "photos/dark/3.png: damaged image.*--skip-damaged"),
    "negative alpha": (spoil_nothing, [*QUICK, "--alpha=-1"], "--alpha -1.0.*at least 0"),
    "no number": (spoil_nothing, [*QUICK, "--alpha", "much"], "--alpha"),
    "no epochs": (spoil_nothing, [*QUICK, "--epochs", "0"], "--epochs 0.*at least 1"),
    "no rate": (spoil_nothing, [*QUICK, "--lr", "0"], "--lr 0.0.*above 0"),
    "no seed": (spoil_nothing, [*QUICK, "--seed", "-1"], "'--seed'.*equal to 0"),
    "big seed": (spoil_nothing, [*QUICK, "--seed", str(2**32)], "'--seed'.*equal to 4294967295"),
    "smoothing": (spoil_nothing, [*QUICK, "--label-smoothing", "1"], "--label-smoothing 1.0"),
    "unknown pairing": (spoil_nothing, [*QUICK, "--pairing", "best"], "best.*any"),
    "pairing of real targets": (
        spoil_nothing,
        [*QUICK, "--pairing", "near-target"],
        "near-target.*needs floating targets",
    ),
    "unknown class": (
        spoil_nothing,
        [*QUICK, "--exclude", 'light, "grey, or so"'],
        "--exclude grey, or so: there is no such class; choose of dark, light",
    ),
    "unknown class among several": (
        spoil_nothing,
        [*QUICK, "--exclude", "light,grey"],
        "--exclude grey: there is no such class; choose of dark, light",
    ),
    "all classes": (
        spoil_nothing,
        [*QUICK, "--exclude", "light,dark"],
        "--exclude names every class: nothing would be mixed",
    ),
    "unknown way": (spoil_nothing, [*QUICK, "--way", "best"], "--way best.*hooked"),
    "clean weight": (spoil_nothing, [*QUICK, "--clean-weight=-1"], "--clean-weight -1.0 must be"),
    "no mixes": (spoil_nothing, [*QUICK, "--mixes", "0"], "'--mixes': .* 1"),
    "mixes by steps": (
        spoil_nothing,
        [*STEPS, "--mixes", "4"],
        "--mixes 4 is for a head that is solved for: leave out --epochs",
    ),
    "mixes of another head": (
        spoil_nothing,
        [*QUICK, "--mixes", "4", "--head", "mlp"],
        "--mixes 4 is for a head that is solved for: leave out --head",
    ),
    "mixes that are cut": (
        spoil_nothing,
        [*QUICK, "--mixes", "4", "--kind", "cutmix"],
        "--mixes 4 is for a head that is solved for: leave out --kind",
    ),
    "unfair weights": (
        spoil_nothing,
        [*QUICK, "--class-weight", "fair"],
        "--class-weight fair: choose one of balanced",
    ),
    "no weight decay": (
        spoil_nothing,
        [*QUICK, "--weight-decay", "much"],
        "--weight-decay much: expected a number, or auto",
    ),
    "negative weight decay": (
        spoil_nothing,
        [*QUICK, "--weight-decay=-1"],
        "--weight-decay -1.0 must be 'auto', or at least 0",
    ),
    "unknown optimizer": (
        spoil_nothing,
        [*QUICK, "--optimizer", "lbfgs"],
        "--optimizer lbfgs: choose one of auto, adamw, sgd",
    ),
    "unknown option": (spoil_nothing, [*QUICK, "--frobnicate"], "--frobnicate"),
    "unknown device": (spoil_nothing, [*QUICK, "--device", "abacus"], "abacus.*auto"),
    "resume what": (spoil_nothing, [*QUICK, "--resume"], "--resume needs the --output"),
    "no shots": (spoil_nothing, [*QUICK, "--shots", "0"], "--shots 0 must be at least 1"),
    "many shots": (
        spoil_nothing,
        [*QUICK, "--shots", "99"],
        "--shots 99 needs",
    ),
    "a huge rate": (spoil_nothing, [*QUICK, "--lr", "1e38"], "--lr 1e.38 .*at most 1e.30"),
    "hooked and features": (
        spoil_nothing,
        [*QUICK, "--way", "hooked", "--features", "x"],
        "--way hooked stores no features: leave out --features",
    ),
    "hooked and a type": (
        spoil_nothing,
        [*QUICK, "--way", "hooked", "--dtype", "float16"],
        "--way hooked stores no features: leave out --dtype",
    ),
    "no number of views": (spoil_nothing, [*QUICK, "--augment", "--views"], "--views"),
    "half an epoch": (spoil_nothing, [*QUICK, "--epochs", "2.5"], "--epochs.*integer"),
    "overwrite what": (spoil_nothing, [*QUICK, "--overwrite"], "--overwrite needs the --output"),
    "resume or overwrite": (
        spoil_nothing,
        [*QUICK, "--output", "out", "--resume", "--overwrite"],
        "--resume needs.*no --overwrite",
    ),
    "unwritable output": (spoil_output, [*QUICK, "--output", "file/run"], "file/run.*cannot be"),
    "foreign output": (
        spoil_nothing,
        [*QUICK, "--output", "photos", "--overwrite"],
        "photos: lies inside DATA.*--output",
    ),
    "missing weights": (
        spoil_nothing,
        ["--model", "resnet18", "--weights", "no.safetensors"],
        "no.safetensors: no such file",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    photos: Path, mistake: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A user's mistake ends with status 2 and one line that names it; no file is written."""
    spoil, options, expected = MISTAKES[mistake]
    spoil(photos)
    before = files()
    status = main(["train", "photos", *options])
    printed = capfd.readouterr()

    assert status == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert re.search(expected, printed.err), printed.err
    assert files() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "nowhere", *QUICK], "nowhere: no such folder"),
        (["train", "torch/mnist", *QUICK], "torch/mnist.*--data-root"),
        (["train", "tfds/mnist", *QUICK], "tfds/mnist.*iterable"),
        (["evaluate", "--run", "nowhere"], "nowhere: no finished run"),
        (["evaluate"], "--run"),
        (["predict", "nothing.png", "--run", "nowhere"], "nothing.png: no such file"),
        (["predict", "--run", "nowhere"], "images"),
        (["layers", "resnt18"], "resnt18.*did you mean resnet18"),
        (["layers", "torchvision:resnt18"], "resnt18.*did you mean resnet18"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_every_command_tells_a_mistake_in_one_line(
    arguments: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is missing or unknown is named, with status 2, whatever the command."""
    status = main(arguments)
    printed = capfd.readouterr()

    assert status == 2
    assert len(printed.err.splitlines()) == 1
    assert re.search(expected, printed.err), printed.err
    assert files() == set()


def test_an_existing_output_is_kept(
    photos: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is not replaced unless --overwrite says so, nor on a mistake."""
    run("train", "photos", *QUICK, "--output", "out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*.*")}
    statuses = [
        main(["train", "photos", *QUICK, "--output", "out"]),
        main(["train", "photos", *QUICK, "--output", "out", "--overwrite", "--layer", "no"]),
        main(["train", "photos", *QUICK, "--output", "out", "--resume", "--seed", "5"]),
    ]
    errors = capsys.readouterr().err.splitlines()

    assert statuses == [2, 2, 2]
    assert "holds a run" in errors[0]
    assert "seed=0, now it is 5" in errors[2]
    assert {path: path.read_bytes() for path in Path("out").rglob("*.*")} == before


def test_debug_shows_the_traceback(photos: Path) -> None:
    """With --debug the error itself comes out."""
    with pytest.raises(ValueError, match="alpha"):
        main(["train", "photos", *QUICK, "--alpha=-1", "--debug"])


class InterruptedAt(io.StringIO):
    """A terminal whose user presses Ctrl-C when a text appears."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def write(self, text: str) -> int:
        """Take the text, and interrupt."""
        if self.text in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def living_hooks() -> list[list[object]]:
    """The hooks of every module that is alive."""
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
    return [
        [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        for module in modules
    ]


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize(
    ("options", "place"),
    [(QUICK, "weight decay 1 "), (STEPS, "epoch 2/3")],
    ids=["solved", "by steps"],
)
def test_ctrl_c_leaves_a_run_that_resume_continues_to_the_same_numbers(
    photos: Path,
    run: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    place: str,
) -> None:
    """After Ctrl-C no hook is left, and --resume ends where an undisturbed run does."""
    gc.collect()
    gc.disable()  # a frozen model refers to itself, so that it stays alive
    try:
        with contextlib.redirect_stdout(InterruptedAt(place)):
            status = main(["train", "photos", *options, "--output", "out"])
        hooks = living_hooks()
    finally:
        gc.enable()
    printed = capsys.readouterr()
    left = {path.name for path in Path("out").iterdir()}
    resumed = run("train", "photos", *options, "--output", "out", "--resume")
    undisturbed = run("train", "photos", *options, "--output", "whole")

    assert status == 130
    assert printed.err.splitlines() == [
        "manifold-mixup: interrupted; the same command with --output out --resume goes on"
    ]
    assert left == {"state.safetensors", "features"}
    assert len(hooks) > 20
    assert not any(isinstance(hook, MixHook) for own in hooks for hook in own)
    assert resumed["nll"] == undisturbed["nll"]
    assert Path("out/head.safetensors").read_bytes() == Path("whole/head.safetensors").read_bytes()
    assert not Path("out/state.safetensors").exists()


def test_resume_of_a_finished_run_only_reads_it(photos: Path, run: Callable[..., Any]) -> None:
    """The same command again with --resume gives the same numbers and writes nothing."""
    first = run("train", "photos", *QUICK, "--output", "out")
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    again = run("train", "photos", *QUICK, "--output", "out", "--resume")

    assert again == first
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


@pytest.mark.usefixtures("_ctrl_c")
def test_a_sigint_ends_the_process_with_status_130(photos: Path) -> None:
    """A real Ctrl-C to the real command: one line, status 130, a state to go on from."""
    process = subprocess.Popen(
        [*COMMAND, "train", "photos", *STEPS, "--epochs", "500", "--output", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3/500"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate()

    assert process.returncode == 130
    assert errors.splitlines() == [
        "manifold-mixup: interrupted; the same command with --output out --resume goes on"
    ]
    assert {path.name for path in Path("out").iterdir()} <= {
        "features",
        "state.safetensors",
        ".state.safetensors.part",
    }


def shown_on(terminal: int) -> str:
    """All that is written on a terminal until its last writer is gone."""
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says so
        while more := os.read(terminal, 1 << 20):
            shown += more
    return shown.decode(errors="ignore")


def test_bars_show_on_a_terminal_only() -> None:
    """On a terminal stderr shows a bar with a rate; in a pipe it stays empty."""
    command = [*COMMAND, "train", "--no-baseline", "--output"]
    piped = subprocess.run([*command, "a"], capture_output=True, text=True, check=True)
    ours, theirs = pty.openpty()
    wide = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    with subprocess.Popen(
        [*command, "b"], stdout=subprocess.DEVNULL, stderr=theirs, env=wide
    ) as process:
        os.close(theirs)
        shown = shown_on(ours)
    os.close(ours)

    assert (process.returncode, piped.stderr) == (0, "")
    assert re.search(r"weight decays .*11/11", shown)
    assert re.search(r"\d/s", shown)


def test_picture_of_other_data_leaves_the_run_s_own(photos: Path, run: Callable[..., Any]) -> None:
    """It lies in a folder of its own, which goes with the run."""
    run("train", "photos", *QUICK, "--output", "a")
    own = (Path("a/reliability.png")).read_bytes()
    others = ["one/pets", "two/pets"]
    for folder in others:
        for name, grey in (("dark", 190), ("light", 60)):
            paint(Path(folder, name, "0.png"), grey, seed=1)

    plots = [Path(run("evaluate", folder, "--run", "a")["plot"]) for folder in others]

    assert len({*plots}) == 2
    assert all(plot.is_file() and plot.parts[:2] == ("a", "evaluations") for plot in plots)
    assert Path("a/reliability.png").read_bytes() == own
    assert Path(run("evaluate", "photos", "--run", "a")["plot"]) == Path("a/reliability.png")
    run("train", "photos", *QUICK, "--output", "a", "--overwrite")  # knows all that is there


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--way", "hooked", "--features", "f"], "--way hooked stores no features: .* --features"),
        (["--overwrite"], "--overwrite needs the --output of the run to replace"),
        (["--epochs", "2.5"], "'--epochs': .*2.5"),
        (["--epochs", "many"], "'--epochs': .*many"),
        (["--seed", "-1"], "'--seed': .*-1"),
        (["--lr", "fast"], "'--lr': .*fast"),
        (["--alpha", "much"], "alpha.* much|much.* alpha"),
    ],
)
def test_options_that_say_nothing_together_or_alone_are_refused_at_once(
    words: list[str], message: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line with the value, before anything is computed or written."""
    before = files()

    status = main(["train", "photos", *QUICK, *words])

    told = capsys.readouterr().err.strip()
    assert status == 2
    assert told.count("\n") == 0
    assert re.search(message, told), told
    assert files() == before


def test_comparison_in_the_place_of_a_run_tells_which_run_is_meant(
    photos: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The head that came out best, which is one."""
    more = ["--alphas", "0,0.4", "--clean-weights", "0", "--label-smoothing", "0", "--seeds", "1"]
    run("compare", "photos", *QUICK, *more, "--pairings", "any", "--output", "c")

    for command in (["predict", "photos"], ["evaluate", "photos"]):
        assert main([*command, "--run", "c"]) == 2
        assert "a comparison: the head that came out best is the run c/winner" in (
            capsys.readouterr().err
        )
    assert run("predict", "photos", "--run", "c/winner")["predictions"]


def test_what_kernels_find_is_a_defect_and_what_is_raised_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a RuntimeError that somebody wrote for a user is theirs to mend."""
    for error, status, told in (
        ("torch.zeros(2) @ torch.zeros(3)", 1, "RuntimeError: .* (a defect; --debug shows where)"),
        ("load_backbone('resnet0', weights='none')", 2, "resnet0. is unknown to timm"),
    ):
        names = {"torch": torch, "load_backbone": manifold_mixup.load_backbone}
        call = eval(f"lambda *_, **__: {error}", names)
        monkeypatch.setattr("manifold_mixup.cli.train_run", call)

        assert main(["train"]) == status
        assert re.search(told.replace("(", r"\(").replace(")", r"\)"), capsys.readouterr().err)


def test_folder_of_runs_in_the_place_of_a_run_names_those_in_it(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One level down."""
    assert main(["train", "photos", *QUICK, "--output", "runs/x"]) == 0
    capsys.readouterr()

    assert main(["predict", "photos/dark/0.png", "--run", "runs"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "runs: no finished run (expected run.json in it; it holds runs/x)" in told
