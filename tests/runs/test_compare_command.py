"""Comparisons in every way there is: each row is what its command trains alone, harder data and
other domains included; an interrupted one goes on to the same numbers, and a price is told first.
"""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_compare import ROWS, clusters, net, starts_of
from test_rows import failed as failed_row
from test_rows import row as row_of
from torch import Tensor, nn

from manifold_mixup import FeatureStore, extract_features, load_run, train_head
from manifold_mixup._files import Kept
from manifold_mixup._progress import untracked
from manifold_mixup._random import seeded_generator
from manifold_mixup.cli import main
from manifold_mixup.comparison import (
    ELSEWHERE,
    Candidate,
    Candidates,
    Comparison,
    Head,
    Price,
    Scenario,
    compare,
    compare_rows,
    compare_stores,
    draw_replicate,
    estimate,
    find_head,
    list_scenarios,
)
from manifold_mixup.comparison.cost import share_by_class
from manifold_mixup.comparison.outcomes import nll_at_best_temperature
from manifold_mixup.comparison.train_candidates import Relabelled
from manifold_mixup.data import LabelledImages, Split, join_splits, list_data
from manifold_mixup.runs import CompareConfig, TrainConfig
from manifold_mixup.runs.selection import choose_alpha
from manifold_mixup.runs.winner import write_results
from manifold_mixup.training import Diverged, Passes

Told = tuple[int, str, str]
Run = Callable[..., Told]

QUICK = "--model digits --alphas 1 --seeds 2 --weight-decays 0.1,0.01"
# The fewest rows: one without mixing, one with.
TWO = f"{QUICK} --pairings any --clean-weights 0 --label-smoothing 0"
HARD = "--shots 3 --label-noise 0.4"
TAIL = "--layers layer3 --tail trainable --epochs 3 --lrs 0.0003,0.003"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos/``, 24 images of each of five digits, and ``scans/``, a few others of
    three of them.
    """
    home = tmp_path_factory.mktemp("digits")
    data = list_data("digits")
    images = join_splits(data.parts.values())
    for index, name in enumerate(data.classes):
        own = [i for i, target in enumerate(images.targets) if target == index]
        places = {"photos": own[:24], "scans": own[24:32] if index in (0, 2, 3) else []}
        for place, chosen in places.items():
            for i in chosen:
                file = home / place / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                images.sources[i].save(file)
    return home


@pytest.fixture
def run(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Run:
    """Run a command in a folder of its own: its status, and what it prints."""
    monkeypatch.chdir(tmp_path)
    for place in ("photos", "scans"):
        Path(place).symlink_to(digits / place)

    def of(*words: str) -> Told:
        capsys.readouterr()
        status = main([part for word in words for part in shlex.split(word)])
        return status, *capsys.readouterr()

    return of


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and pages without their pictures, which take longer than these trainings."""
    monkeypatch.setattr("manifold_mixup.reports.page.plot_figures", lambda found: [])
    for name in ("train.plot_curve", "train.plot_quality", "inference.plot_quality"):
        monkeypatch.setattr(f"manifold_mixup.runs.{name}", lambda *given: None)


def results(folder: str = "found") -> dict[str, Any]:
    """What a comparison wrote."""
    told: dict[str, Any] = json.loads(Path(folder, "results.json").read_text())
    return told


def timeless(value: Any) -> Any:
    """JSON values without seconds, and without the checksum over them."""
    if isinstance(value, list):
        return [timeless(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: timeless(one) for name, one in value.items() if name not in ("seconds", "sha256")
    }


def tailed() -> nn.Sequential:
    """A frozen layer, and behind it more than a head to train; not all in one mode."""
    torch.manual_seed(0)
    between = [nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3)]
    model = nn.Sequential(nn.Linear(6, 6), *between, nn.Linear(5, 3))
    model[0].requires_grad_(False)
    model[3].eval()
    return model


def store_of(model: nn.Module, layer: str, folder: Path, n: int = 60) -> FeatureStore:
    """Features of clusters at a layer."""
    return extract_features(model, layer, list(zip(*clusters(n), strict=True)), folder)


# Rows, and the commands that train them


def alone(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the command of a row comes to."""
    words = row["command"].removeprefix("manifold-mixup ")
    told: dict[str, Any] = json.loads(run(f"{words} --json --output alone --overwrite")[1])
    return told


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("--with-input", 6),
        ("--layers layer3 --pairings any --label-smoothing 0", 3),
        (f"{TAIL} --pairings any --label-smoothing 0", 4),
    ],
)
def test_every_row_is_what_its_command_trains(run: Run, words: str, rows: int) -> None:
    """It gives the accuracy of the first replicate, and its NLL to 1e-4; so it does of few images,
    and of wrong labels.
    """
    assert run(f"compare photos {QUICK} {words} {HARD} --output found")[0] == 0
    found = results()
    assert len({row["nll"] for row in found["rows"]}) == len(found["rows"]) == rows

    few, wrong = (scenario["rows"] for scenario in found["cases"].values())
    for row in [*found["rows"], few[-1], wrong[-1]]:
        told, expected = alone(run, row), row["by_replicate"][0]
        assert told["nll"] == pytest.approx(expected["nll"], abs=1e-4), row["command"]
        assert told["accuracy"] == pytest.approx(expected["accuracy"])


@pytest.mark.usefixtures("unplotted")
def test_rows_tested_elsewhere_are_what_two_commands_give(run: Run) -> None:
    """The first trains on DATA alone, the second tests on all images of the other folder."""
    assert run(f"compare photos {TWO} --test-on scans --output found")[0] == 0

    for row in results()["rows"]:
        train, test = row["command"].split(" && ")
        assert run(f"{train.removeprefix('manifold-mixup ')} --overwrite")[0] == 0
        told = json.loads(run(f"{test.removeprefix('manifold-mixup ')} --json")[1])
        assert (told["split"], told["n"]) == ("all", 24)
        assert told["nll"] == pytest.approx(row["by_replicate"][0]["nll"], abs=1e-4)
        assert told["accuracy"] == pytest.approx(row["by_replicate"][0]["accuracy"])


def test_elsewhere_is_neither_trained_on_nor_chosen_by() -> None:
    """The split of DATA is what it is without the other domain, which is tested on, all of it."""
    data = LabelledImages(
        "forty", ["a", "b"], {"train": Split(range(40), [0, 1] * 20, ["s"] * 40)}
    )
    other = Split(range(6), [1] * 6, ["t"] * 6)
    both = replace(data, parts={**data.parts, ELSEWHERE: other})

    for scenario in (Scenario(), Scenario(shots=2), Scenario(label_noise=0.5)):
        alone, found = (draw_replicate(one, 3, scenario) for one in (data, both))
        assert torch.equal(found.train, alone.train)
        assert torch.equal(found.val, alone.val)
        assert found.test.tolist() == list(range(40, 46))
        assert torch.equal(found.target[:40], alone.target)
        assert found.target[40:].tolist() == [1] * 6


def test_other_domains_need_classes_of_the_same_names(run: Run) -> None:
    """An unknown class is told with both data sets; so is DATA itself, and what has no classes."""
    Path("more/5").mkdir(parents=True)
    Path("more/ten").mkdir()
    for name in ("5", "ten"):
        Image.new("L", (8, 8)).save(f"more/{name}/0.png")
    Path("labels.csv").write_text("path,label\nmore/5/0.png,5;6\nmore/ten/0.png,6\n")

    for place, message in (
        ("more", r"more: holds class 'ten', which \S*photos has not \(5, 6, 7, 8, 9\)"),
        ("photos", "photos: that is DATA"),
        ("labels.csv", "has labels, expected classes"),
    ):
        status, _, error = run(f"compare photos {TWO} --test-on {place} --output found")
        assert status == 2
        assert error.count("\n") == 1
        assert re.search(message, error)
        assert not Path("found").exists()


def test_what_is_trained_on_is_no_other_domain(run: Run) -> None:
    """Images of DATA are known by whatever folder or link; those of its test part are free."""
    for part, first in (("train", 0), ("test", 12)):
        for source in (Path("photos") / name for name in "567"):
            Path("both", part, source.name).mkdir(parents=True)
            for file in sorted(source.iterdir())[first : first + 12]:
                Path("both", part, source.name, file.name).symlink_to(file.resolve())
    Path("link").symlink_to("both")
    for file in [file.resolve() for file in Path("photos").rglob("*.png")]:
        copy = Path("hard", file.parent.name, f"copy-{file.name}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, copy)

    for data, place in (("photos", "both"), ("both", "link/train"), ("photos", "hard")):
        status, _, error = run(f"compare {data} {TWO} --test-on {place} --output found")
        assert (status, error.count("\n")) == (2, 1)
        assert re.search(r"--test-on \S+: \S+\.png is in DATA too", error)
        assert not Path("found").exists()
    assert run(f"compare both {TWO} --test-on both/test --output found")[0] == 0


def test_command_tests_elsewhere_as_the_comparison_did(run: Run) -> None:
    """Both commands leave damaged images out where the comparison did."""
    for name in ("5", "6"):
        Path("torn", name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(f"torn/{name}/1.png")
    Path("torn/5/0.png").write_bytes(b"torn")

    assert run(f"compare photos {TWO} --test-on torn --output found")[0] == 2
    words = "--test-on torn --skip-damaged --seeds 1 --output found"
    assert run(f"compare photos {TWO} {words}")[0] == 0

    for command in results()["rows"][0]["command"].split(" && "):
        assert "--skip-damaged" in shlex.split(command)


def test_numbers_may_be_classes(run: Run) -> None:
    """Of a CSV file, with --task, which the commands and the winner have too; without it the
    error says so.
    """
    files = [file for name in "567" for file in sorted(Path("photos", name).iterdir())]
    lines = [f"{file},{file.parent.name}.5" for file in files]
    Path("numbers.csv").write_text("\n".join(["path,label", *lines]))

    status, _, error = run(f"compare numbers.csv {TWO} --output found")
    assert (status, error.count("\n")) == (2, 1)
    assert "this has values" in error
    assert "--task classes takes them for classes" in error
    assert run(f"compare numbers.csv {TWO} --task classes --output found")[0] == 0

    row = results()["rows"][0]
    assert alone(run, row)["nll"] == pytest.approx(row["by_replicate"][0]["nll"], abs=1e-4)
    assert load_run("found/winner").classes == ["5.5", "6.5", "7.5"]


def test_command_tells_where_the_data_are(run: Run, tmp_path: Path) -> None:
    """It leaves damaged images out where the comparison did, which says so."""
    for file in Path("photos").glob("[56]/*.png"):
        copy = Path("my photos", f"class {file.parent.name}", file.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    Path("my photos/class 5/damaged.png").write_bytes(b"damaged")
    words = f"'my photos' {TWO} --skip-damaged --data-root {tmp_path} --output 'my find'"

    shown = run(f"compare {words}")[1]

    assert "1 damaged images left out" in shown
    assert "predict IMAGE --run 'my find/winner'" in shown
    row = results("my find")["rows"][-1]
    command = shlex.split(row["command"])
    assert command[command.index("--data-root") + 1] == str(tmp_path)
    assert alone(run, row)["nll"] == pytest.approx(row["by_replicate"][0]["nll"], abs=1e-4)


@pytest.mark.usefixtures("unplotted")
def test_patterns_stand_for_all_their_layers(run: Run) -> None:
    """Layers are chosen as everywhere, each once, and rows and commands have their names."""
    layers = "--layers layer4[-1],re:layer4,global_pool.*,layer4"

    assert run(f"compare photos {TWO} {layers} --output found")[0] == 0

    rows = results()["rows"]
    names = ["layer4.0", "layer4", "global_pool.pool", "global_pool.flatten"]
    assert [row["layer"] for row in rows if row["alpha"]] == names
    assert all(f"--layer {row['layer']} " in row["command"] for row in rows)


def test_results_are_told_everywhere(run: Run) -> None:
    """On the terminal, on a page with the command of the row to use, and as one JSON object."""
    shown = run(f"compare photos {TWO} --output found")[1]
    told, page = results(), Path("found/report.html").read_text()

    lines = shown.splitlines()
    assert all(any(line.startswith(row["name"]) for line in lines) for row in told["rows"])
    assert lines[-3] == f"verdict: {told['verdict']}"
    assert (
        lines[-2] == "the head that came out best: manifold-mixup predict IMAGE --run found/winner"
    )
    assert "manifold-mixup predict IMAGE --run found/winner" in page
    assert told["rows"][0]["command"] in page
    assert len(re.findall(r"<figcaption>0\.\d\d [5-9] \+ 0\.\d\d [5-9]<", page)) == 3
    status, out, _ = run(f"compare photos {TWO} --output found --resume --json")
    again = json.loads(out)
    assert (status, again.pop("output")) == (0, "found")
    assert timeless({**again, "settings": told["settings"]}) == timeless(told)


# The winner


@pytest.mark.parametrize(
    ("words", "winner", "name"),
    [
        ("", 0, "no mixing"),
        ("--layers layer4", 1, "feature mixup at layer4"),
        ("--with-input", 3, "input mixup"),
        (TAIL, 0, "linear head alone"),
        (TAIL, 3, "clean loss"),
    ],
)
@pytest.mark.usefixtures("unplotted")
def test_winner_is_a_run(
    run: Run, words: str, winner: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever wins is there as a run that has the row's scores, loads, and predicts."""
    monkeypatch.setattr(Comparison, "winner", property(lambda found: winner))
    rest = "--pairings any --label-smoothing 0 --output found"

    assert run(f"compare photos {QUICK} {words} {rest}")[0] == 0

    row = results()["rows"][winner]
    assert name in row["name"]
    loaded = load_run("found/winner")
    files = [Path("photos", file) for file in loaded.info["held_out"]["test"]]
    images = torch.stack([loaded.transform(Image.open(file).convert("L")) for file in files])
    target = torch.tensor([loaded.classes.index(file.parent.name) for file in files])
    with torch.no_grad():
        logits = loaded.model(images)
    told = row["by_replicate"][0]
    assert loaded.info["metrics"]["nll"] == pytest.approx(told["nll"], abs=1e-4)
    assert float(F.cross_entropy(logits, target)) == pytest.approx(told["nll"], abs=1e-4)
    assert float((logits.argmax(1) == target).float().mean()) == pytest.approx(told["accuracy"])
    shown = json.loads(run(f"predict {files[0]} --run found/winner --json")[1])
    assert shown["predictions"][0]["label"] == loaded.classes[int(logits[0].argmax())]


# Interrupted


def killed(words: str, after: int) -> int:
    """The status of a comparison that is killed when it has kept so many trainings."""
    code = (
        "import os, sys\n"
        "from manifold_mixup.cli import main\n"
        "from manifold_mixup._files import Kept\n"
        "put, done = Kept.put, []\n"
        "def stop(self, *given):\n"
        "    kept = put(self, *given)\n"
        "    done.extend([1] if self.folder else [])\n"
        f"    return kept if len(done) < {after} else os.kill(os.getpid(), 9)\n"
        "Kept.put = stop\n"
        "main(sys.argv[1:])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    given = [sys.executable, "-c", code, *shlex.split(words)]
    return subprocess.run(given, env=environment, capture_output=True).returncode


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts what is kept as ``done``, and interrupts when that is ``stop``."""
    counts, put = {"done": 0, "stop": 0}, Kept.put

    def counted(self: Kept, *given: Any) -> Any:
        if self.folder is not None:
            counts["done"] += 1
            if counts["done"] == counts["stop"]:
                raise KeyboardInterrupt
        return put(self, *given)

    monkeypatch.setattr(Kept, "put", counted)
    return counts


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize("words", ["--layers layer3,layer4 --shots 3", TAIL])
def test_interrupted_comparison_gives_the_same(run: Run, puts: dict[str, int], words: str) -> None:
    """Stopped between replicates, or trainings by steps, --resume goes on to the same results, to
    the last digit; then nothing is kept. Resumed once more, a finished one gives the same again.
    """
    words = f"compare photos {TWO} {words}"
    assert run(f"{words} --output whole")[0] == 0
    total = puts["done"]
    puts |= {"done": 0, "stop": 3}
    status, _, error = run(f"{words} --output found")
    assert status == 130
    assert "the same command with --output found --resume goes on" in error
    assert sum(1 for file in Path("found/trained").rglob("*.safetensors")) == 2

    puts |= {"done": 0, "stop": 0}
    assert run(f"{words} --output found --resume")[0] == 0

    assert puts["done"] == total - 2
    assert timeless(results()) == timeless(results("whole"))
    assert not Path("found/trained").exists()
    assert run(f"{words} --output found --resume")[0] == 0
    assert timeless(results()) == timeless(results("whole"))
    assert not Path("found/trained").exists()


@pytest.mark.usefixtures("unplotted")
def test_killed_comparison_goes_on(run: Run) -> None:
    """Even kill -9 loses nothing that was kept; what was damaged is named, and other settings are
    refused.
    """
    words = f"compare photos {TWO} --output"
    assert run(f"{words} whole")[0] == 0
    assert killed(f"{words} found", 1) == -9
    (kept,) = Path("found/trained").rglob("*.safetensors")

    status, _, error = run(f"{words} found --worth 2 --resume")
    assert (status, error.count("\n")) == (2, 1)
    assert "started with worth=0.01, now it is 0.02" in error
    whole = kept.read_bytes()
    for damage in (whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damage)
        status, _, error = run(f"{words} found --resume")
        assert (status, error.count("\n")) == (2, 1)
        assert re.search(rf"{re.escape(str(kept))}: damaged .* delete it", error)
    kept.unlink()
    assert run(f"{words} found --resume")[0] == 0
    assert timeless(results()) == timeless(results("whole"))


@pytest.mark.usefixtures("unplotted")
def test_replaced_results_do_not_survive(run: Run, puts: dict[str, int]) -> None:
    """When --overwrite is interrupted, nothing of the earlier comparison passes for its own."""
    assert run(f"compare photos {TWO} --output found")[0] == 0
    puts |= {"done": 0, "stop": 1}

    assert run(f"compare photos {TWO} --worth 2 --output found --overwrite")[0] == 130

    assert sorted(path.name for path in Path("found").iterdir()) == ["features", "settings.json"]


def test_kept_tensors_come_back(tmp_path: Path) -> None:
    """By any name, nothing at all included; without a folder nothing is kept."""
    kept = Kept(tmp_path / "kept").under("a/b")
    tensors = {"x": torch.randn(2, 3), "whole": torch.arange(6).view(2, 3)[:, 1]}

    assert kept.get("x/../y *") is None
    assert kept.put("x/../y *", tensors) is tensors
    assert kept.put("nothing", {}) == {}

    found = Kept(tmp_path / "kept").under("a/b").get("x/../y *")
    assert found is not None
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert kept.get("nothing") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert Kept().put("x", tensors) is tensors
    assert Kept().get("x") is None


# Rows by steps


@pytest.mark.parametrize("training", [True, False])
def test_a_model_with_a_tail_comes_back_as_it_was(tmp_path: Path, training: bool) -> None:
    """Its values, what of it is to be trained, its modes and its gradients."""
    model = tailed().train(training)
    model[3].train(not training)
    store = store_of(model, "0", tmp_path)
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    modes = [module.training for module in model.modules()]

    found = compare(model, store, **ROWS, seeds=2, epochs=2, lrs=[0.01])

    assert [row.candidate.name for row in found.rows] == [
        "no mixing, linear head alone",
        "no mixing, 0",
        "feature mixup at 0, alpha 1",
    ]
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_inputs_are_mixed_for_heads_alone(tmp_path: Path) -> None:
    """Beside tails they would be compared with what is trained otherwise."""
    model, samples = tailed(), list(zip(*clusters(60), strict=True))

    with pytest.raises(ValueError, match="inputs= are mixed for heads alone"):
        compare(model, store_of(model, "0", tmp_path), inputs=samples, seeds=1, epochs=1)


def test_a_row_that_fails_in_one_replicate_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no base, has no numbers, and does not win; the others are what they are without it."""
    model = tailed()
    store = store_of(model, "0", tmp_path)
    options: dict[str, Any] = {**ROWS, "seeds": 2, "epochs": 10, "lrs": [0.03]}
    usual = compare(model, store, **options)

    def train(*given: Any, **own: Any) -> Any:
        if own["alpha"] and own["seed"] == 1:
            raise Diverged("it rose", "lower it")
        return train_head(*given, **own)

    monkeypatch.setattr("manifold_mixup.comparison.train_candidates.train_head", train)
    found = compare(model, store, **options)

    assert [row.failed for row in found.rows] == ["", "", "it rose"]
    assert found.verdict == "cannot tell: all that mixes failed (it rose)"
    assert found.rows[2].chosen == {"lr": 0.03, "weight_decay": 0.01}
    assert not found.rows[2].correct.isfinite().any()
    assert [row.metrics for row in found.rows[:2]] == [row.metrics for row in usual.rows[:2]]


def test_other_errors_than_divergence_go_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running out of memory makes no row that failed."""

    def train(*given: Any, **own: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("manifold_mixup.comparison.train_candidates.train_head", train)
    model = tailed()
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        compare(model, store_of(model, "0", tmp_path), **ROWS, seeds=1, epochs=1)


@pytest.mark.usefixtures("unplotted")
def test_rows_that_failed_are_told_everywhere(run: Run) -> None:
    """As such, with why; the head that was solved for wins, and nothing reads NaN. The command
    of such a row fails too.
    """
    words = f"compare photos {TWO} --layers layer3 --tail trainable --epochs 2 --lrs 1e30"

    status, shown, _ = run(f"{words} --output found")

    text, page = Path("found/results.json").read_text(), Path("found/report.html").read_text()
    alone, plain, mixed = results()["rows"]
    why = "the loss is not finite any more in epoch 1"
    assert status == 0
    assert (alone["failed"], plain["failed"], mixed["failed"]) == ("", why, why)
    assert results()["winner"] == alone["name"] == "no mixing, linear head alone"
    for row in (plain, mixed):
        assert re.search(rf"{row['name']} +failed: {why}\n", shown)
        assert f"{row['name']}</td><td colspan" in page
        assert run(f"{row['command'].removeprefix('manifold-mixup ')}")[0] == 3
    assert not re.search(r"\b(NaN|Infinity)\b", text)
    assert " nan" not in shown
    with Path("found/results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["lr"] for line in lines] == ["", "1e+30", "1e+30"]
    assert [line["failed"] for line in lines] == ["", why, why]
    assert (float(lines[0]["nll"]), lines[1]["nll"]) == (alone["nll"], "")


def test_table_has_all_columns_if_the_first_row_failed(tmp_path: Path) -> None:
    """They are those of all rows, each once."""
    rows = [failed_row(Candidate("b")), row_of(Candidate("a"), 0.7)]
    rows.append(row_of(Candidate("a", alpha=1.0), 0.8))
    config = CompareConfig(data="photos", model="m", weights="w")

    write_results(tmp_path, {Scenario(): compare_rows(rows, [])}, config)

    with (tmp_path / "results.csv").open(newline="") as file:
        first, *others = csv.DictReader(file)
    assert (first["failed"], first["accuracy"], first["weight_decay"]) == ("it rose", "", "")
    assert [float(line["accuracy"]) for line in others] == [0.7, 0.8]
    assert {"case", "name", "layer", "alpha", "nll", "val_nll", "command"} <= first.keys()
    assert not {"by_replicate", "accuracy_difference"} & first.keys()


# Harder data


def test_labels_are_wrong_where_they_are_learned_alone() -> None:
    """A share of training and validation labels changes, each part's by itself; none else does."""
    target = [0, 1, 2, 3] * 100
    data = LabelledImages(
        "many", ["a", "b", "c", "d"], {"train": Split(range(400), target, ["s"] * 400)}
    )
    true = torch.tensor(target)

    usual = draw_replicate(data, 0, Scenario())
    wrong = draw_replicate(data, 0, Scenario(label_noise=0.4))

    assert torch.equal(usual.target, true)
    for part, n in (("train", 240), ("val", 80)):
        own = getattr(wrong, part)
        assert torch.equal(own, getattr(usual, part))
        changed = int((wrong.target[own] != true[own]).sum())
        assert abs(changed - 0.4 * n * 0.75) <= 4 * (0.4 * n * 0.75 * 0.25) ** 0.5
    rest = torch.ones(400, dtype=torch.bool)
    rest[torch.cat([wrong.train, wrong.val])] = False
    assert torch.equal(wrong.target[rest], true[rest])
    assert torch.equal(rest.nonzero()[:, 0], wrong.test)


def test_few_samples_are_so_many_a_class() -> None:
    """To train on; at most as many to choose by, and as many as ever to test on."""
    target = [0, 1] * 60
    data = LabelledImages("many", ["a", "b"], {"train": Split(range(120), target, ["s"] * 120)})

    for shots in (1, 5, 20):
        replicate = draw_replicate(data, 2, Scenario(shots=shots))
        assert replicate.target[replicate.train].bincount().tolist() == [shots] * 2
        assert replicate.target[replicate.val].bincount().tolist() == [min(shots, 12)] * 2
        assert len(replicate.test) == 24


def test_comparisons_of_wrong_labels_are_tested_on_true_ones(tmp_path: Path) -> None:
    """A row's test classes are those stored; its heads know the wrong ones, and are worse."""
    model = net()
    store = store_of(model, "1", tmp_path, 300)

    right, wrong = (
        compare(model, store, **ROWS, seeds=3, label_noise=share).rows[0] for share in (0.0, 0.8)
    )

    assert torch.equal(right.target, wrong.target)
    assert torch.equal(right.correct.isfinite(), wrong.correct.isfinite())
    assert wrong.metrics["nll"] > right.metrics["nll"] + 0.1


def test_cases_have_names_of_their_own() -> None:
    """Or the results of one would stand in the place of another's."""
    scenarios = list_scenarios([1, 5, 5], [0.2, 0.201, 0.0004, 0])

    assert [scenario.name for scenario in scenarios] == [
        *("", "1 image a class", "5 images a class", "20 % of the labels redrawn"),
        *("20.1 % of the labels redrawn", "0.04 % of the labels redrawn"),
    ]


def test_harder_cases_are_told_everywhere(run: Run) -> None:
    """Under ``scenarios`` as JSON, in a column of the table, on the terminal, and on the page."""
    _, shown, _ = run(f"compare photos {TWO} {HARD} --output found")

    told, page = results(), Path("found/report.html").read_text()
    with Path("found/results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    names = ["3 images a class", "40 % of the labels redrawn"]
    assert list(told["cases"]) == names
    for scenario, found in {"": told, **told["cases"]}.items():
        assert found["verdict"] in shown
        own = [line for line in lines if line["case"] == scenario]
        assert [line["name"] for line in own] == [row["name"] for row in found["rows"]]
        assert [float(line["nll"]) for line in own] == [row["nll"] for row in found["rows"]]
    assert "on 120 images of 5 classes, with features of digits; 2 replicates" in page
    assert "(of 0.1, 0.01)" in page
    for scenario in names:
        assert scenario in shown
        assert told["cases"][scenario]["verdict"] in page
        assert f"<h2>{scenario}</h2>" in page
    assert len(lines) == 6


# The price


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize("words", ["", "--layers layer3 --with-input", TAIL])
def test_price_is_told_before_the_work(run: Run, words: str) -> None:
    """Always, above the line of the extraction; with how many images pass, where they do."""
    shown = run(f"compare photos {TWO} {words} --output found")[1].splitlines()

    (priced,) = [i for i, line in enumerate(shown) if line.startswith("this takes about")]
    (stored,) = [i for i, line in enumerate(shown) if "to compute and store" in line]
    assert priced < stored
    assert shown[priced].endswith("for 2 replicates, or fewer if they tell enough")
    passes = 2 * 2 * 72  # replicates, mixes, training images
    told = [f"where {passes} mixed images pass through what is frozen behind it"]
    assert re.findall(r"where [^;]*", shown[priced]) == (2 * told if "input" in words else [])


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize(
    ("words", "layers"),
    [("--layers layer3,layer4", "layer3"), ("--with-input", "input"), (TAIL, "layer3")],
)
def test_pairings_that_are_left_out_are_told(run: Run, words: str, layers: str) -> None:
    """A row that is asked for never goes missing without a word."""
    given = f"{TWO.replace('--pairings any', '--pairings any,same-class')} {words}"
    shown = run(f"compare photos {given} --output found")[1].splitlines()

    told = f"{layers}: rows of pairing any alone, as each of same-class would cost as much again"
    assert shown.count(told) == 1
    rows = {(row["layer"], row["pairing"]) for row in results()["rows"] if row["alpha"]}
    assert (layers, "any") in rows
    assert (layers, "same-class") not in rows


@pytest.mark.parametrize("share", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("classes", [3, 40])
def test_price_knows_how_well_features_tell_the_classes(share: float, classes: int) -> None:
    """By the variance between classes as a share of that within, which few samples show, too."""
    draws = torch.Generator().manual_seed(1)
    target = torch.arange(classes).repeat_interleave(6)
    centres = share**0.5 * torch.randn(classes, 500, generator=draws)
    rows = centres[target] + torch.randn(len(target), 500, generator=draws)

    assert share_by_class(rows, target) == pytest.approx(share, rel=0.25, abs=0.05)


def price_of(
    model: nn.Module, store: FeatureStore, samples: Any, offered: Candidates, **options: Any
) -> Price:
    """What three replicates of a comparison will take, told from the first."""

    def heads(stores: Mapping[str, FeatureStore]) -> dict[str, Head]:
        return {layer: find_head(model, one) for layer, one in stores.items()}

    usual = {"is_stored": False, "with_input": False, "workers": 0}
    replicates = starts_of(store, 1, Scenario())
    dataset = Relabelled(samples, torch.arange(len(samples)), store.targets)
    return estimate(
        *(model, dataset, heads, [store.layer], replicates, 3, offered), **{**usual, **options}
    )


@pytest.mark.parametrize(
    ("changes", "streams"),
    [
        ({"alphas": [0, 1], "pairings": ["any"], "clean_weights": []}, 1),
        ({"alphas": [1], "pairings": ["any"], "clean_weights": [1, 2]}, 1),
        ({"alphas": [0.5, 1], "pairings": ["any", "same-class"]}, 2),
        ({"alphas": [0.5, 1], "pairings": ["any"], "mixes": 5}, 2),
    ],
)
def test_mixed_images_are_counted(
    changes: dict[str, Any], streams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price names as many as pass through what is frozen, and its parts add up."""
    model, samples = net(), list(zip(*clusters(60), strict=True))
    store = store_of(model, "0", tmp_path)
    offered = Candidates(**changes, weight_decays=[0.1])
    price = price_of(model, store, samples, offered, with_input=True)
    passed, mixed = [], Passes.mixed

    def counted(self: Passes, k: int, seed: int) -> Any:
        rows, mix = mixed(self, k, seed)
        passed.append(len(rows))
        return rows, mix

    monkeypatch.setattr(Passes, "mixed", counted)
    heads = {"0": find_head(model, store)}
    compare_stores(model, {"0": store}, heads, starts_of(store, 3, Scenario()), offered)

    assert price.passes["0"] == sum(passed) == streams * offered.mixes_of(is_affine=False) * 36 * 3
    assert price.training.keys() == price.passes.keys() == {"0", "input"}
    assert min(price.extraction, *price.training.values()) > 0
    assert price.seconds == pytest.approx(price.extraction + sum(price.training.values()))


def test_estimate_leaves_the_model_and_mixes_any_order(tmp_path: Path) -> None:
    """Samples that come class after class can be paired by class too; what is stored is not
    extracted again.
    """
    model = tailed()
    x, target = clusters(300)
    order = target.argsort()
    samples = list(zip(x[order], target[order], strict=True))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store = extract_features(model, "0", samples, tmp_path / "store")
    offered = Candidates([1], ["other-class"], epochs=2, lrs=[0.1], weight_decays=[0.1])

    price = price_of(model, store, samples, offered, is_stored=True)

    assert price.extraction == 0
    assert price.training["0"] > 0
    assert price.passes == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# The choice


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 20.0])
def test_heads_are_chosen_by_their_best_temperature(scale: float) -> None:
    """Within 2 % of a search over 2,000 temperatures from 1/8 to 32, and never below it."""
    generator = seeded_generator("logits", scale)
    target = torch.randint(4, (50,), generator=generator)
    logits = torch.randn(6, 50, 4, generator=generator, dtype=torch.float64)
    logits += torch.linspace(0.2, 3, 6)[:, None, None] * F.one_hot(target, 4)
    logits *= scale

    best = torch.full((6,), torch.inf, dtype=torch.float64)
    for temperature in torch.logspace(-3, 5, 2000, base=2):
        nlls = [F.cross_entropy(one / temperature, target) for one in logits]
        best = torch.minimum(best, torch.stack(nlls))

    found = nll_at_best_temperature(logits, target)
    assert bool((found >= best - 1e-5).all())
    assert bool((found <= 1.02 * best).all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_heads_that_are_not_finite_are_never_chosen(value: float, column: int) -> None:
    """One logit is enough, of whatever class."""
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 0.1], [0.1, 0.0]]])
    logits[0, 0, column] = value

    nll = nll_at_best_temperature(logits, torch.tensor([0, 1]))

    assert nll.isinf().tolist() == [True, False]


# train --alpha auto


class Bins(nn.Module):
    """Which of 400 equal bins of [0, 1] a number lies in, one-hot."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1) -> (B, 400)."""
        return F.one_hot((400 * x[:, 0]).long().clamp(0, 399), 400).to(x.dtype)


def test_alpha_is_above_0_where_mixing_helps(tmp_path: Path) -> None:
    """A head that knows a number by its bin has seen few of them; mixes of a class lie in the
    others, with the right label. With nothing to learn from mixes it is 0.
    """
    config = TrainConfig(weight_decay=0.01, pairing="same-class", mixes=4)
    x = torch.rand(200, 1, generator=seeded_generator("numbers"))
    for name, target, helps in (
        ("fifths", (5 * x[:, 0]).long().clamp(max=4), True),
        ("shuffled", torch.arange(200) % 5, False),
    ):
        model = nn.Sequential(nn.Identity(), Bins(), nn.Linear(400, 5))
        before = model[2].weight.detach().clone()
        samples = list(zip(x, target, strict=True))
        store = extract_features(model, "0", samples, tmp_path / name, fast=False)

        alpha, why = choose_alpha(model, store, config, untracked)

        assert (alpha > 0) == helps
        assert why.startswith("use it") == helps
        assert torch.equal(model[2].weight, before)


def test_alpha_auto_trains_with_what_it_found(run: Run) -> None:
    """It is told and recorded; the run is that of the same alpha given. It works with --json,
    --baseline and --resume.
    """
    words = "train photos --model digits --weight-decay 0.1 --mixes 4 --json"
    status, out, said = run(f"{words} --alpha auto --baseline --output auto")
    assert status == 0
    found = json.loads(out)
    info = json.loads(Path("auto/run.json").read_text())
    (line,) = [line for line in said.splitlines() if line.startswith("alpha: ")]
    assert line.startswith(f"alpha: {info['alpha']:g} (")
    assert found["alpha"] == info["alpha"]
    assert info["settings"]["alpha"] == "auto"
    assert "nll" in found["baseline"]

    given = json.loads(run(f"{words} --alpha {info['alpha']} --baseline --output given")[1])
    assert given["nll"] == pytest.approx(found["nll"], abs=1e-6)
    again = json.loads(run(f"{words} --alpha auto --baseline --output auto --resume")[1])
    assert again == found
    status, _, error = run(f"{words} --alpha 0.2 --output auto --resume")
    assert (status, error.count("\n")) == (2, 1)
    assert "alpha='auto'" in error


def test_alpha_auto_needs_images_to_split_again(run: Run) -> None:
    """Where a class has too few of them, that is told before the backbone runs."""
    words = "--model digits --alpha auto --output auto"
    for part, count in (("train", 2), ("val", 0), ("test", 3)):
        for source in (Path("photos") / name for name in "56"):
            Path("few", part, source.name).mkdir(parents=True)
            for file in sorted(source.iterdir())[: max(1, count)]:
                if count or source.name == "5":
                    Path("few", part, source.name, file.name).symlink_to(file.resolve())

    status, _, error = run(f"train few {words}")

    assert (status, error.count("\n")) == (2, 1)
    assert "--alpha auto splits the training and validation images again" in error
    assert "few: class '6' has 2 images, need at least 3" in error
    assert "or give --alpha a number" in error
    assert not Path("auto").exists()


def test_alpha_asks_no_test_image(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is chosen on what may be trained on and chosen by: all but the test part."""
    seen: list[list[float]] = []

    def chosen(model: Any, store: FeatureStore, *rest: Any) -> tuple[float, str]:
        seen.append(store.features[:].sum(1).tolist())
        return 0.0, "asked"

    monkeypatch.setattr("manifold_mixup.runs.train.choose_alpha", chosen)
    assert run("train photos --model digits --alpha auto --output auto")[0] == 0

    store = FeatureStore("auto/features")
    sums = store.features[:].sum(1).tolist()
    assert len(sums) == 120
    assert sorted(seen[0]) == sorted(sums[:72] + sums[96:])  # training, test, validation


@pytest.mark.parametrize(
    "words",
    [
        *("--way hooked", "--layer input", "--augment", "--augment --views 2", "--patience 1"),
        *("--clean-weight 1", "--label-smoothing 0.1", "--optimizer sgd", "--optimizer adamw"),
        *("--epochs 1", "--lr 0.1", "--batch-size 8", "--class-weight balanced"),
        *("--kind cutmix --layer layer3", "--prob 0.5", "--alpha-warmup 0.5", "--exclude 5"),
        *("--head cosine", "--alpha much"),
    ],
)
def test_alpha_auto_says_what_it_is_not_for(run: Run, words: str) -> None:
    """One line that names the option, and nothing is written."""
    status, _, error = run(f"train photos --model digits --alpha auto {words}")

    assert (status, error.count("\n")) == (2, 1)
    assert "auto" in error
    assert not list(Path("runs").glob("*"))


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shots 0", "--shots 0 must be at least 1"),
        ("--shots a", "--shots a: expected whole numbers"),
        ("--shots 1.5", "--shots 1.5: expected whole numbers"),
        ("--shots 1000", "class '5' has 14 images to train on"),
        ("--label-noise 2", "label_noise=2.0 must be in [0, 1]"),
        ("--label-noise nan", "label_noise=nan must be in [0, 1]"),
        ("--label-noise x", "--label-noise x: expected numbers"),
        ("--clean-weights x", "--clean-weights x: expected numbers"),
        ("--clean-weights -1", "clean_weight=-1.0 must be at least 0"),
        ("--mixes 0", "'--mixes'"),
        ("--worth 0", "worth=0.0 must be in (0, 1)"),
        ("--worth 100", "worth=1.0 must be in (0, 1)"),
        ("--alphas 0", "nothing is mixed, and there is nothing to compare"),
        ("--alphas 0,much", "--alphas 0,much: expected numbers"),
        ("--alphas -1", "alpha=-1.0"),
        ("--label-noise 0.2,1", "label_noise=1 draws all labels anew"),
        ("--lrs 0.1", "optimum, without --tail trainable: leave out --lrs"),
        ("--epochs 3", "optimum, without --tail trainable: leave out --epochs"),
        ("--batch-size 8", "optimum, without --tail trainable: leave out --batch-size"),
        ("--epochs 0 --tail trainable", "--epochs 0 must be at least 1"),
        ("--lrs x --tail trainable", "--lrs x: expected numbers"),
        ("--weights none", "--weights none: every seed"),
        ("--layers nowhere", "nowhere"),
        ("--layers fc", "nothing behind layer 'fc'"),
        ("--layers input", "mixed by --with-input"),
        ("--layers layer4.0.conv1", "choose 'layer4.0'"),
        ("--pairings nearest", "pairing='nearest'"),
        ("--pairings near-target", "near-target"),
        ("--label-smoothing 2", "--label-smoothing 2.0"),
        ("--with-input --tail trainable", "--with-input trains heads alone"),
        ("--test-on nowhere", "nowhere: no such folder"),
        ("--test-on ''", "--test-on is empty"),
        ("--weights ''", "--weights is empty"),
        ("--model ''", "--model is empty"),
        (
            "--batch-size 1 --tail trainable",
            "--batch-size 1 leaves a sample none",
        ),
        ("--task values", "--task values: choose one of classes"),
        ("--task tags", "--task tags: choose one of"),
        ("--tail nothing", "--tail nothing: choose one of frozen, trainable"),
        ("--device abacus", "abacus"),
        ("--seeds 0", "--seeds"),
        ("--resume --overwrite", "--resume needs"),
        ("--layers fc --tail trainable", "nothing behind layer 'fc'"),
    ],
)
def test_mistakes_are_one_line(run: Run, words: str, message: str) -> None:
    """With status 2, and no folder is left."""
    status, _, error = run(f"compare photos {QUICK} {words} --output found")

    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not Path("found").exists()


def test_places_of_mistakes_are_one_line(run: Run) -> None:
    """Data of labels, results inside of what is tested on, and --resume of nowhere."""
    for name in "ab":
        Image.new("L", (8, 8)).save(f"{name}.png")
    Path("labels.csv").write_text("path,label\na.png,x;y\nb.png,y\n")
    for words, message in (
        ("labels.csv", "compare is for classes, this has labels"),
        ("''", "DATA is empty; give a name, or leave it out"),
        (f"photos {TWO} --test-on scans --output scans/found", "choose another --output"),
        (f"photos {TWO} --resume", "--resume needs the --output"),
    ):
        status, _, error = run(f"compare {words}")
        assert (status, error.count("\n")) == (2, 1)
        assert message in error
    assert not Path("scans/found").exists()
    assert not Path("runs").exists()
