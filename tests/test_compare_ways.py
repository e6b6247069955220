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
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_compare import clusters, net
from torch import Tensor, nn

from manifold_mixup import (
    FeatureStore,
    extract_features,
    load_backbone,
    load_run,
    replace_head,
    train_head,
)
from manifold_mixup.auto import choose_alpha
from manifold_mixup.cli import main
from manifold_mixup.compare import compare, compare_stores, find_head
from manifold_mixup.comparison import Comparison
from manifold_mixup.data import list_data
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.kept import Kept
from manifold_mixup.parts import Data, Part, join_parts
from manifold_mixup.price import estimate, hooked_seconds
from manifold_mixup.progress import untracked
from manifold_mixup.starts import ELSEWHERE, Case, Start, draw_start, list_cases
from manifold_mixup.trained import choose, make_row, mended_nll
from manifold_mixup.trial_heads import check_memory, train_heads
from manifold_mixup.trial_tails import train_tails
from manifold_mixup.trials import Trial, Ways

Told = tuple[int, str, str]
Run = Callable[..., Told]

QUICK = "--model digits --alphas 1 --seeds 2 --epochs 3 --lrs 0.01,0.1 --weight-decays 0.01"
# The fewest rows: one without mixing, one with.
TWO = f"{QUICK} --pairings any --clean-weights 0 --noises 0 --label-smoothing 0"
HARD = "--shots 3 --label-noise 0.4"
TAIL = "--layers layer3 --tail trainable"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos/``, 24 images of each of five digits, and ``scans/``, a few others of
    three of them.
    """
    home = tmp_path_factory.mktemp("digits")
    data = list_data("digits")
    images = join_parts(data.parts.values())
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
    monkeypatch.setattr("manifold_mixup.report_page.draw_figures", lambda found: [])
    for name in ("trainer.draw_curve", "trainer.draw_quality", "inference.draw_quality"):
        monkeypatch.setattr(f"manifold_mixup.{name}", lambda *given: None)


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
    left_out = ("seconds", "hooked_seconds_estimate", "sha256")
    return {name: timeless(one) for name, one in value.items() if name not in left_out}


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


def starts_of(store: FeatureStore, linear: nn.Linear, seeds: tuple[int, ...]) -> list[Start]:
    """Starts of half of the samples, a few of them wrong, each with a head of its own."""
    order = torch.randperm(len(store), generator=seeded_generator("order"))
    train, val, test = (part.sort()[0] for part in order.split([30, 15, len(store) - 45]))
    wrong = store.targets.clone()
    wrong[train[:5]] = (wrong[train[:5]] + 1) % 3
    heads = {}
    for seed in seeds:
        generator = seeded_generator("head", seed)
        heads[seed] = [torch.randn(p.shape, generator=generator) for p in linear.parameters()]
    return [Start(seed, train, val, test, wrong, *heads[seed]) for seed in seeds]


# Rows, and the commands that train them


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (f"--with-input {HARD}", 7),
        (f"--layers layer3 --mixed-epochs 2 --pairings any --label-smoothing 0 {HARD}", 4),
        (f"{TAIL} --mixed-epochs 2 --pairings any --label-smoothing 0 {HARD}", 4),
    ],
)
def test_every_row_is_what_its_command_trains(run: Run, words: str, rows: int) -> None:
    """Its NLL to 1e-3 and its accuracy to one image, under both seeds; so is, by turns, a row of
    few images or wrong labels.
    """
    assert run(f"compare photos {QUICK} {words} --output found")[0] == 0
    found = results()
    assert len({row["nll"] for row in found["rows"]}) == len(found["rows"]) == rows

    wanted = [(row, seed) for row in found["rows"] for seed in range(2)]
    few, wrong = (case["rows"] for case in found["cases"].values())
    wanted += [((few, wrong)[place % 2][place], 1) for place in range(rows)]
    for row, seed in wanted:
        command = row["command"].removeprefix("manifold-mixup ")
        command = command.replace("--seed 0", f"--seed {seed}")
        alone = json.loads(run(f"{command} --json --output alone --overwrite")[1])
        assert alone["nll"] == pytest.approx(row["by_seed"][seed]["nll"], abs=1e-3), command
        assert abs(alone["accuracy"] - row["by_seed"][seed]["accuracy"]) * alone["n"] <= 1.01


@pytest.mark.usefixtures("unplotted")
def test_rows_tested_elsewhere_are_what_two_commands_give(run: Run) -> None:
    """The first trains on DATA alone, the second tests on all images of the other folder."""
    assert run(f"compare photos {TWO} --test-on scans --output found")[0] == 0

    for row in results()["rows"]:
        for seed, told in enumerate(row["by_seed"]):
            train, test = row["command"].replace("--seed 0", f"--seed {seed}").split(" && ")
            assert run(f"{train.removeprefix('manifold-mixup ')} --overwrite")[0] == 0
            alone = json.loads(run(f"{test.removeprefix('manifold-mixup ')} --json")[1])
            assert (alone["split"], alone["n"]) == ("all", 24)
            assert alone["nll"] == pytest.approx(told["nll"], abs=1e-3)
            assert abs(alone["accuracy"] - told["accuracy"]) * 24 <= 1.01


def test_elsewhere_is_neither_trained_on_nor_chosen_by() -> None:
    """The split of DATA is what it is without the other domain, which is tested on, all of it."""
    data = Data("forty", ["a", "b"], {"train": Part(range(40), [0, 1] * 20, ["s"] * 40)})
    other = Part(range(6), [1] * 6, ["t"] * 6)
    both = replace(data, parts={**data.parts, ELSEWHERE: other})
    begin = torch.zeros(2, 4), torch.zeros(2)

    for case in (Case(), Case(shots=2), Case(label_noise=0.5)):
        alone, found = (draw_start(one, 3, case, *begin) for one in (data, both))
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
    alone = json.loads(run(f"{row['command'].removeprefix('manifold-mixup ')} --json")[1])
    assert alone["nll"] == pytest.approx(row["by_seed"][0]["nll"], abs=1e-3)
    assert load_run("found/winner").classes == ["5.5", "6.5", "7.5"]


# The winner


@pytest.mark.parametrize(
    ("words", "winner", "name"),
    [
        ("", 0, "no mixing"),
        ("--layers layer4", 2, "feature mixup at layer4"),
        ("--layers layer4", 1, "feature noise"),
        ("--with-input", 4, "input mixup"),
        (f"{TAIL} --mixed-epochs 2", 3, "clean loss"),
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
    told = row["by_seed"][0]
    assert loaded.info["metrics"]["nll"] == pytest.approx(told["nll"], abs=1e-3)
    assert float(F.cross_entropy(logits, target)) == pytest.approx(told["nll"], abs=1e-3)
    assert float((logits.argmax(1) == target).float().mean()) == pytest.approx(told["accuracy"])
    shown = json.loads(run(f"predict {files[0]} --run found/winner --json")[1])
    assert shown["predictions"][0]["label"] == loaded.classes[int(logits[0].argmax())]


# Interrupted


def killed(words: str, after: int) -> int:
    """The status of a comparison that is killed when it has kept so many trainings."""
    code = (
        "import os, sys\n"
        "from manifold_mixup.cli import main\n"
        "from manifold_mixup.kept import Kept\n"
        "put, done = Kept.put, []\n"
        "def stop(*given):\n"
        "    kept = put(*given)\n"
        "    done.append(1)\n"
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
        counts["done"] += 1
        if counts["done"] == counts["stop"]:
            raise KeyboardInterrupt
        return put(self, *given)

    monkeypatch.setattr(Kept, "put", counted)
    return counts


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize("words", ["--layers layer3,layer4 --shots 3", TAIL])
def test_interrupted_comparison_gives_the_same(run: Run, puts: dict[str, int], words: str) -> None:
    """Stopped among its trainings, --resume trains the others, to the last digit; then nothing is
    kept. Resumed once more, a finished one gives the same again.
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

    status, _, error = run(f"{words} found --epochs 4 --resume")
    assert (status, error.count("\n")) == (2, 1)
    assert "started with epochs=3, now it is 4" in error
    whole = kept.read_bytes()
    for damage in (whole[:-9], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
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

    assert run(f"compare photos {TWO} --epochs 2 --output found --overwrite")[0] == 130

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


# Tails


def test_rows_of_tails_are_what_train_head_gives(tmp_path: Path) -> None:
    """Every row is the training of all behind the layer from the head of its start, with the
    setting that validation finds best under the first seed.
    """
    model = tailed()
    store = store_of(model, "0", tmp_path)
    head = find_head(model, store)
    starts = starts_of(store, model[5], (0, 3))
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "mixed_epochs": 2}
    ways = Ways([1], ["any"], lrs=[0.003, 0.1], weight_decays=[0.1], **options)
    wrong = store.with_targets(starts[0].target)

    def alone(found: Any, start: Start, lr: float) -> tuple[nn.Module, float]:
        own = deepcopy(model)
        with torch.no_grad():
            own[5].weight.copy_(start.weight)
            own[5].bias.copy_(start.bias)
        settings = {**asdict(found.settings), "seed": start.seed, "lr": lr}
        training = train_head(own, wrong.take(start.train), **settings, **options)
        return own.eval(), training.metrics["mixed_loss"]

    for found in train_tails(head.tail, head.linear, store, ways.trials("0"), starts, ways):
        row = make_row(found, starts, store.targets, 0.0)
        for start, told in zip(starts, row.by_seed, strict=True):
            own, loss = alone(found, start, found.settings.lr)
            with torch.no_grad():
                logits = own[1:](store.features.gather(start.test))
            expected = float(F.cross_entropy(logits, store.targets[start.test]))
            assert told["nll"] == pytest.approx(expected, abs=1e-5)
            assert told["mixed_loss"] == pytest.approx(loss, abs=1e-5)
        val = starts[0].val
        for place, lr in enumerate(ways.lrs):
            own, _ = alone(found, starts[0], lr)
            with torch.no_grad():
                logits = own[1:](store.features.gather(val))
            expected = float(mended_nll(logits[None], wrong.targets[val]))
            assert float(found.nll[place, 0]) == pytest.approx(expected, abs=1e-5)
        assert found.settings.lr == ways.lrs[int(found.nll[:, 0].argmin())]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_with_a_tail_comes_back_as_it_was(tmp_path: Path, training: bool) -> None:
    """Its values, what of it is to be trained, its modes and its gradients."""
    model = tailed().train(training)
    model[3].train(not training)
    store = store_of(model, "0", tmp_path)
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    modes = [module.training for module in model.modules()]

    found = compare(model, store, alphas=[1], seeds=2, epochs=2, lrs=[0.01], weight_decays=[0.1])

    assert len(found.rows) == 6
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


class Backwards(nn.Module):
    """A model that names its head first, and what is before it last."""

    def __init__(self, after: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.body, self.stem = nn.Linear(4, 3), nn.Linear(6, 4), nn.Linear(6, 6)
        self.after = after or nn.Identity()
        self.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        logits: Tensor = self.after(self.head(self.body(self.stem(x)).tanh()))
        return logits


def test_head_is_the_layer_that_gives_the_logits(tmp_path: Path) -> None:
    """Not the one that is named last; if something follows it, there is none to begin anew."""
    model = Backwards()
    assert find_head(model, store_of(model, "stem", tmp_path / "a")).linear is model.head

    model = Backwards(nn.Softplus())
    with pytest.raises(ValueError, match="ends in a linear layer"):
        find_head(model, store_of(model, "stem", tmp_path / "b"))


def test_inputs_are_mixed_for_heads_alone(tmp_path: Path) -> None:
    """Beside tails they would be compared with what is trained otherwise."""
    model, samples = tailed(), list(zip(*clusters(60), strict=True))

    with pytest.raises(ValueError, match="inputs= are mixed for heads alone"):
        compare(model, store_of(model, "0", tmp_path), inputs=samples, seeds=1, epochs=1)


def test_tails_that_diverge_are_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under whatever seed: then the next best setting is. Other failures are none of divergence,
    and if all diverge, the row is named.
    """
    model = tailed()
    store = store_of(model, "0", tmp_path)
    head, starts = find_head(model, store), starts_of(store, model[5], (0, 1))
    ways = Ways([0], ["any"], 0, [], [], lrs=[1e-9, 0.01, 1e30], weight_decays=[0.1], epochs=2)

    def trained(failing: dict[int, float], message: str) -> Any:
        def train(*given: Any, **options: Any) -> Any:
            if failing.get(options["seed"]) == options["lr"]:
                raise RuntimeError(message)
            return train_head(*given, **options)

        monkeypatch.setattr("manifold_mixup.trial_tails.train_head", train)
        (row,) = train_tails(head.tail, head.linear, store, [Trial("0")], starts, ways)
        return row

    usual = trained({}, "")
    assert usual.settings.lr == 0.01
    assert usual.nll[:, 0].isinf().tolist() == [False, False, True]
    assert trained({1: 0.01}, "the loss is not finite any more").settings.lr == 1e-9
    with pytest.raises(RuntimeError, match="out of memory"):
        trained({1: 0.01}, "out of memory")
    with pytest.raises(RuntimeError, match="every head of 'no mixing, 0' diverged"):
        train_tails(head.tail, head.linear, store, [Trial("0")], starts, replace(ways, lrs=[1e30]))


# Harder data


def test_labels_are_wrong_where_they_are_learned_alone() -> None:
    """A share of training and validation labels changes, each part's by itself; none else does."""
    target = [0, 1, 2, 3] * 100
    data = Data("many", ["a", "b", "c", "d"], {"train": Part(range(400), target, ["s"] * 400)})
    begin = torch.zeros(4, 4), torch.zeros(4)
    true = torch.tensor(target)

    usual = draw_start(data, 0, Case(), *begin)
    wrong = draw_start(data, 0, Case(label_noise=0.4), *begin)

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
    data = Data("many", ["a", "b"], {"train": Part(range(120), target, ["s"] * 120)})

    for shots in (1, 5, 20):
        start = draw_start(data, 2, Case(shots=shots), torch.zeros(2, 4), torch.zeros(2))
        assert start.target[start.train].bincount().tolist() == [shots] * 2
        assert start.target[start.val].bincount().tolist() == [min(shots, 12)] * 2
        assert len(start.test) == 24


def test_comparisons_of_wrong_labels_are_tested_on_true_ones(tmp_path: Path) -> None:
    """A row's test classes are those stored; its heads know the wrong ones, and are worse."""
    model = net()
    store = store_of(model, "1", tmp_path, 300)
    options: dict[str, Any] = {"alphas": [0], "seeds": 3, "epochs": 10, "label_smoothing": 0}

    right, wrong = (
        compare(model, store, **options, noises=[], label_noise=share).rows[0]
        for share in (0.0, 0.8)
    )

    assert torch.equal(right.target, wrong.target)
    assert torch.equal(right.correct.isfinite(), wrong.correct.isfinite())
    assert wrong.metrics["nll"] > right.metrics["nll"] + 0.1


def test_cases_have_names_of_their_own() -> None:
    """Or the results of one would stand in the place of another's."""
    cases = list_cases([1, 5, 5], [0.2, 0.201, 0.0004, 0])

    assert [case.name for case in cases] == [
        *("", "1 image a class", "5 images a class", "20 % of the labels redrawn"),
        *("20.1 % of the labels redrawn", "0.04 % of the labels redrawn"),
    ]


def test_harder_cases_are_told_everywhere(run: Run) -> None:
    """Under ``cases`` as JSON, in a column of the table, on the terminal, and on the page."""
    _, shown, _ = run(f"compare photos {TWO} {HARD} --output found")

    told, page = results(), Path("found/report.html").read_text()
    with Path("found/results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    names = ["3 images a class", "40 % of the labels redrawn"]
    assert list(told["cases"]) == names
    for case, found in {"": told, **told["cases"]}.items():
        assert found["verdict"] in shown
        own = [line for line in lines if line["case"] == case]
        assert [line["name"] for line in own] == [row["name"] for row in found["rows"]]
        assert [float(line["nll"]) for line in own] == [row["nll"] for row in found["rows"]]
    for case in names:
        assert case in shown
        assert told["cases"][case]["verdict"] in page
        assert f"<h2>{case}</h2>" in page
    assert len(lines) == 6


# The price


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize(
    "words", ["", "--layers layer4", "--layers layer3", "--with-input", f"{TAIL} --epochs 1"]
)
def test_price_is_told_before_the_work(run: Run, words: str) -> None:
    """Where more than stored features is used, above the line of the extraction."""
    shown = run(f"compare photos {TWO} {words} --output found")[1].splitlines()

    priced = [i for i, line in enumerate(shown) if line.startswith("this takes about")]
    stored = [i for i, line in enumerate(shown) if "to compute and store" in line]
    is_dear = words not in ("", "--layers layer4")
    assert len(priced) == is_dear
    assert len(stored) == 1
    assert not is_dear or priced[0] < stored[0]
    assert ("mixed batches" in "".join(shown)) == (words in ("--layers layer3", "--with-input"))


def test_price_is_told_of_heads_with_many_weights(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of theirs moves them all, which may take longer than the extraction."""
    ways, lines = "--lrs 0.01,0.1 --weight-decays 0.01,1", []
    model = load_backbone("digits")
    head = replace_head(model, 5)
    assert isinstance(head, nn.Linear)
    many = 2 * 4 * head.weight.numel()  # two rows, each with four settings
    for most in (many, many + 1):
        monkeypatch.setattr("manifold_mixup.compare_setup._MANY", most)
        lines.append(run(f"compare photos {TWO} {ways} --output found-{most}")[1])

    assert [told.count("this takes about") for told in lines] == [1, 0]


def test_heads_that_memory_cannot_hold_are_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the extraction, with what to leave out; what fits is compared."""
    shape, ways = (100, 2000), Ways([1], ["any"], 0, [], [], [0.01], [0.1, 0.2])
    weights = 4 * 2 * 2 * 100 * 2000  # bytes: two rows of two settings
    for gigabytes, fits in ((7 * weights, False), (20 * weights, True)):
        monkeypatch.setattr("manifold_mixup.trial_heads._memory", lambda: gigabytes)  # noqa: B023
        with nullcontext() if fits else pytest.raises(ValueError, match="4 heads of 100 x 2000"):
            check_memory("a", shape, ways, seeds=2)

    monkeypatch.setattr("manifold_mixup.trial_heads._memory", lambda: 10_000)
    status, _, error = run(f"compare photos {TWO} --output found")
    assert (status, error.count("\n")) == (2, 1)
    assert "of memory, this machine has 1e-05; compare fewer learning rates" in error
    assert not Path("found").exists()
    store = extract_features(net(), "1", list(zip(*clusters(90), strict=True)), tmp_path / "store")
    with pytest.raises(ValueError, match="GB of memory"):
        compare(net(), store, lrs=[0.1] * 1000)


@pytest.mark.parametrize(
    ("changes", "streams"),
    [
        ({"alphas": [0, 1], "pairings": ["any"], "clean_weights": [], "noises": []}, 1),
        ({"alphas": [1], "pairings": ["any"], "clean_weights": [1, 2], "noises": []}, 2),
        ({"alphas": [0.5, 1], "pairings": ["any", "same-class"], "noises": [0.5]}, 6),
        ({"alphas": [0.5, 1], "pairings": ["any"], "noises": [0.5], "mixed_epochs": 2}, 4),
        ({"alphas": [0.5, 1], "pairings": ["any"], "noises": [], "mixed_epochs": 9}, 3),
        ({"alphas": [0], "noises": []}, 0),
    ],
)
def test_mixed_batches_are_counted(changes: dict[str, Any], streams: int, tmp_path: Path) -> None:
    """The price names as many as what lies between a layer and its heads runs for."""
    model, samples = net(), list(zip(*clusters(60), strict=True))
    store = store_of(model, "0", tmp_path)
    starts = starts_of(store, model[2], (0, 3))
    ways = Ways(**changes, lrs=[0.01, 0.1], weight_decays=[0.1], epochs=3, batch_size=8)
    calls: list[int] = []

    def between(features: Tensor) -> Tensor:
        calls.append(len(features))
        return features.relu()

    def heads(stores: Any) -> Any:
        return {layer: find_head(model, one) for layer, one in stores.items()}

    train_heads(store.features.gather, ways.trials("0"), starts, ways, between=between)
    price = estimate(
        *(model, samples, heads, ["0"], starts[:1], 2, ways),
        **{"is_stored": False, "with_input": False, "workers": 0},
    )

    epochs = 2 if changes.get("mixed_epochs") == 2 else 3
    assert price.mixed_batches == {"0": len(calls) - 1}  # less the one of all samples as they are
    assert price.mixed_batches == {"0": streams * epochs * 4 * 2}
    assert price.extraction > 0
    assert price.training["0"] > 0


def test_estimate_leaves_the_model_and_mixes_any_order(tmp_path: Path) -> None:
    """Samples that come class after class can be paired by class too."""
    model = tailed()
    x, target = clusters(300)
    order = target.argsort()
    samples = list(zip(x[order], target[order], strict=True))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store = extract_features(model, "0", samples, tmp_path / "store")
    ways = Ways([1], ["other-class"], epochs=2, lrs=[0.1], weight_decays=[0.1])

    price = estimate(
        *(model, samples, lambda stores: {"0": find_head(model, stores["0"])}, ["0"]),
        *(starts_of(store, model[5], (0,)), 1, ways),
        **{"is_stored": True, "with_input": False, "workers": 0},
    )

    assert price.extraction == 0
    assert price.training["0"] > 0
    assert price.mixed_batches == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("layer", "trainings"), [("1", 2 * 3 * 3), ("0", 2 * 3 + 3 - 1)])
def test_hooked_seconds_are_steps_times_seconds(
    layer: str, trainings: int, tmp_path: Path
) -> None:
    """Of every training of a row, one by one: heads try all settings under all seeds, tails under
    the first alone.
    """
    model = net() if layer == "1" else tailed()
    linear = model[2] if layer == "1" else model[5]
    store = store_of(model, layer, tmp_path)
    starts = starts_of(store, linear, (0, 1, 2))
    ways = Ways([1], ["any"], lrs=[0.01, 0.1], weight_decays=[0, 0.1, 1], epochs=2, batch_size=8)

    found = compare_stores(
        *(model, {layer: store}, {layer: find_head(model, store)}, starts, ways),
        step_seconds=lambda name: {layer: 0.5}[name],
    )

    steps = trainings * 2 * 4
    assert [row.hooked_seconds for row in found.rows] == [0.5 * steps] * len(found.rows)


def test_a_hooked_step_is_timed() -> None:
    """It takes some time, and the model comes back as it was."""
    model = tailed().train()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    assert hooked_seconds(model, "0", clusters(8)[0], 32) > 0

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


# The choice


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 20.0])
def test_mended_nll_is_that_of_the_best_temperature(scale: float) -> None:
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

    found = mended_nll(logits, target)
    assert bool((found >= best - 1e-5).all())
    assert bool((found <= 1.02 * best).all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_heads_that_are_not_finite_are_never_chosen(value: float, column: int) -> None:
    """One logit is enough, of whatever class."""
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 0.1], [0.1, 0.0]]])
    logits[0, 0, column] = value
    nll = mended_nll(logits, torch.tensor([0, 1]))

    assert nll.isinf().tolist() == [True, False]
    assert choose(Trial("a"), nll) == 1


# train --alpha auto


class Bins(nn.Module):
    """Which of 600 equal bins of [0, 1] a number lies in, one-hot."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1) -> (B, 600)."""
        return F.one_hot((600 * x[:, 0]).long().clamp(0, 599), 600).to(x.dtype)


def test_alpha_is_above_0_where_mixing_helps(tmp_path: Path) -> None:
    """A head that knows a number by its bin has seen few of them; mixes of a class lie in the
    others, with the right label. With nothing to learn from mixes it is 0.
    """
    settings: dict[str, Any] = {"epochs": 25, "batch_size": 256, "lr": 0.3, "weight_decay": 0.0}
    settings |= {"pairing": "same-class", "mixed_epochs": None}
    x = torch.rand(300, 1, generator=seeded_generator("numbers"))
    for name, target, helps in (
        ("fifths", (5 * x[:, 0]).long().clamp(max=4), True),
        ("shuffled", torch.arange(300) % 5, False),
    ):
        model = nn.Sequential(nn.Identity(), Bins(), nn.Linear(600, 5))
        before = model[2].weight.detach().clone()
        samples = list(zip(x, target, strict=True))
        store = extract_features(model, "0", samples, tmp_path / name, fast=False)

        alpha, why = choose_alpha(model, store, settings, untracked)

        assert (alpha > 0) == helps
        assert why.endswith("use it" if helps else "leave it off")
        assert torch.equal(model[2].weight, before)


def test_alpha_auto_trains_with_what_it_found(run: Run) -> None:
    """It is told and recorded; the run is that of the same alpha given. It works with --json,
    --baseline and --resume.
    """
    words = "train photos --model digits --epochs 3 --lr 0.01 --json"
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
    words = "--model digits --epochs 1 --alpha auto --output auto"
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

    monkeypatch.setattr("manifold_mixup.trainer.choose_alpha", chosen)
    assert run("train photos --model digits --epochs 1 --alpha auto --output auto")[0] == 0

    store = FeatureStore("auto/features")
    sums = store.features[:].sum(1).tolist()
    assert len(sums) == 120
    assert sorted(seen[0]) == sorted(sums[:72] + sums[96:])  # training, test, validation


@pytest.mark.parametrize(
    "words",
    [
        *("--way hooked", "--layer input", "--augment", "--augment --views 2", "--noise 0.5"),
        *("--clean-weight 1", "--label-smoothing 0.1", "--optimizer sgd", "--patience 1"),
        *("--kind cutmix --layer layer3", "--prob 0.5", "--alpha-warmup 0.5", "--exclude 5"),
        *("--head cosine", "--alpha much"),
    ],
)
def test_alpha_auto_says_what_it_is_not_for(run: Run, words: str) -> None:
    """One line that names the option, and nothing is written."""
    status, _, error = run(f"train photos --model digits --epochs 1 --alpha auto {words}")

    assert (status, error.count("\n")) == (2, 1)
    assert "auto" in error
    assert not list(Path("runs").glob("*"))


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shots 0", "shots=0 must be at least 1"),
        ("--shots a", "--shots a: expected whole numbers"),
        ("--shots 1.5", "--shots 1.5: expected whole numbers"),
        ("--shots 1000", "class '5' has 14 images to train on"),
        ("--label-noise 2", "label_noise=2.0 must be in [0, 1]"),
        ("--label-noise nan", "label_noise=nan must be in [0, 1]"),
        ("--label-noise x", "--label-noise x: expected numbers"),
        ("--clean-weights x", "--clean-weights x: expected numbers"),
        ("--clean-weights -1", "clean_weight=-1.0 must be at least 0"),
        ("--noises -1", "noise=-1.0 must be at least 0"),
        ("--noises inf", "noise=inf must be at least 0"),
        ("--mixed-epochs 0", "mixed_epochs=0 must be at least 1"),
        ("--with-input --tail trainable", "--with-input trains heads alone"),
        ("--with-input --alphas 0", "--with-input mixes nothing"),
        ("--test-on nowhere", "nowhere: no such folder"),
        ("--test-on ''", "--test-on is empty"),
        ("--weights ''", "--weights is empty"),
        ("--model ''", "''"),
        ("--batch-size 1", "batch_size=1 leaves a sample none to be mixed with"),
        ("--task values", "has classes, not values"),
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
