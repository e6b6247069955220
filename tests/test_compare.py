"""Comparisons: every row is a training that could be made alone, and the verdict is honest."""

import inspect
import json
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from manifold_mixup import FeatureStore, extract_features, freeze, train_head
from manifold_mixup.cli import compare as command
from manifold_mixup.cli import main
from manifold_mixup.compare import compare
from manifold_mixup.comparison import Comparison, Row, compare_rows
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.report_page import write_page
from manifold_mixup.settings import HeadSettings
from manifold_mixup.starts import Case, Start
from manifold_mixup.trained import choose, make_row
from manifold_mixup.trial_heads import train_heads
from manifold_mixup.trials import Trial, Ways

FEW = "--alphas 0,1 --pairings any --clean-weights 0 --noises 0"
QUICK = f"{FEW} --seeds 2 --epochs 3 --lrs 0.003,0.03 --weight-decays 0.01,1"
# The same few rows from Python.
ROWS = {"alphas": [1], "pairings": ["any"], "clean_weights": [], "noises": []}


def clusters(n: int, classes: int = 3, width: int = 6, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features around a centre for each class, and their classes."""
    generator = seeded_generator("clusters", seed)
    target = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    return centres[target] + torch.randn(n, width, generator=generator), target


def net(width: int = 6, classes: int = 3) -> nn.Module:
    """A model of a frozen part and a linear head."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
    model[0].requires_grad_(False)
    return model


def store_of(model: nn.Module, layer: str, folder: Path, n: int = 90) -> FeatureStore:
    """Features of clusters at a layer."""
    return extract_features(model, layer, list(zip(*clusters(n), strict=True)), folder)


def row(trial: Trial, correct: Tensor, surprise: Tensor, val_nll: float) -> Row:
    """A row with given scores."""
    settings = HeadSettings(trial.alpha)
    nothing = torch.zeros(0, 2), torch.zeros(0)
    return Row(trial, settings, {"val_nll": val_nll}, [], correct, surprise, *nothing, 1.0)


def planted(
    gains: Sequence[float], nll_gains: Sequence[float], *, seed: int, n: int = 400, seeds: int = 5
) -> Comparison:
    """A comparison of a plain row with rows that are better by given amounts, plus chance."""
    generator = seeded_generator("planted", seed)
    easy = torch.rand(n, generator=generator)

    def scores(gain: float, nll_gain: float) -> tuple[Tensor, Tensor]:
        chance = 0.1 * torch.randn(seeds, n, generator=generator)
        correct = (easy + chance < 0.8 + gain).float()
        surprise = 1 - easy - nll_gain + 0.3 * torch.randn(seeds, n, generator=generator)
        return correct, surprise

    rows = [row(Trial("a"), *scores(0, 0), 0.5)]
    for place, (gain, nll_gain) in enumerate(zip(gains, nll_gains, strict=True)):
        rows.append(row(Trial("a", alpha=place + 1.0), *scores(gain, nll_gain), 0.5 - nll_gain))
    return compare_rows(rows, [])


def test_no_gain_is_claimed_where_there_is_none() -> None:
    """Of 100 comparisons with five rows of pure chance at most 8 claim a gain."""
    claimed = sum(planted([0] * 5, [0] * 5, seed=seed).winner != 0 for seed in range(100))

    assert claimed <= 8


@pytest.mark.parametrize(("gain", "nll_gain"), [(0.1, 0.0), (0.0, 0.12), (0.1, 0.12)])
def test_a_gain_of_three_half_widths_is_found(gain: float, nll_gain: float) -> None:
    """A row that is clearly better is the winner, and the verdict says to use it."""
    found = 0
    for seed in range(100):
        comparison = planted([0, gain], [0, nll_gain], seed=seed)
        found += comparison.winner == 2 and comparison.verdict.endswith("use it")

    assert found >= 90


@pytest.mark.parametrize(
    ("loss", "nll_loss", "word"), [(-0.1, 0.0, "accuracy"), (0.0, -0.12, "likelihood")]
)
def test_harm_is_told(loss: float, nll_loss: float, word: str) -> None:
    """Where every mixed row is clearly worse, the verdict says in what, and the plain one wins."""
    told = 0
    for seed in range(100):
        comparison = planted([loss] * 2, [nll_loss] * 2, seed=seed)
        told += (
            f"a worse {word} in every row here than no mixing" in comparison.verdict
            and comparison.winner == 0
        )

    assert told >= 90


def test_better_likelihood_does_not_pay_for_worse_accuracy() -> None:
    """A row that gains in one of the two and loses in the other is no winner."""
    assert planted([-0.1], [0.15], seed=0).winner == 0


def test_verdict_says_what_the_table_says() -> None:
    """A trade of one measure for the other, no mixed row, and a single seed have words."""
    trade = planted([-0.1], [0.15], seed=0)
    assert "better in one of accuracy and likelihood, but worse in the other" in trade.verdict
    assert trade.verdict.endswith("leave it off")
    assert "nothing was mixed" in planted([], [], seed=0).verdict
    assert "one seed alone" in planted([0.1], [0.0], seed=0, seeds=1).verdict
    assert "two seeds alone" in planted([0.1], [0.0], seed=0, seeds=2).verdict


def test_smoothing_that_wins_is_no_word_for_mixing() -> None:
    """If label smoothing is the row to use, the verdict says beside what mixing does."""
    found = planted([0.1, 0.0], [0.12, 0.0], seed=0)
    smoothed = replace(found.rows[1], trial=Trial("a", label_smoothing=0.1))
    found = compare_rows([found.rows[0], smoothed, found.rows[2]], [])

    assert found.verdict.startswith("label smoothing 0.1")
    assert "use it; mixing brings no gain" in found.verdict


def test_best_mix_is_the_one_to_use_or_else_that_of_validation() -> None:
    """What is told of mixing is told of one row, also where none is to be used."""
    assert planted([0.1, 0.0], [0.0, 0.03], seed=0).best_mixed == 1
    assert planted([0.0, 0.0], [0.0, 0.001], seed=0).best_mixed == 2
    assert planted([], [], seed=0).best_mixed is None


def test_cases_of_other_noise_have_other_names() -> None:
    """Results are kept by the name of a case."""
    assert Case(label_noise=0.2000001).name != Case(label_noise=0.2).name
    assert Case(label_noise=0.07).name == "7 % of the labels redrawn"


def test_no_accuracy_differs_by_more_than_all() -> None:
    """Where two seeds disagree, nothing is known: not even that is more than 100 points."""
    base, other = torch.zeros(2, 50), torch.stack([torch.zeros(50), torch.ones(50)])
    rows = [row(Trial("a"), base, base, 0.5), row(Trial("a", alpha=1.0), other, base, 0.4)]

    assert compare_rows(rows, []).points(1) == "+50.0 (-100.0 to +100.0)"


def test_base_is_the_plain_row_that_validation_prefers() -> None:
    """Of several rows without mixing, the lowest validation NLL counts, not the test scores."""
    correct, surprise = torch.ones(2, 5), torch.zeros(2, 5)
    rows = [
        row(Trial("a"), correct, surprise, 0.6),
        row(Trial("b"), 0 * correct, surprise, 0.4),
        row(Trial("b", label_smoothing=0.1), correct, surprise, 0.1),
    ]

    assert compare_rows(rows, []).base == 1


def test_trials_list_every_way_once() -> None:
    """A plain row, a smoothed one, one of noise; each pairing has every alpha above 0, and the
    first one has each beside the clean loss. The input has the mixes alone.
    """
    ways = Ways([0.4, 0, 0.4, 2], ["any", "same-class"], 0.1, [1.0], [0.5])
    trials = ways.trials("a")

    assert len(set(trials)) == len(trials) == 3 + 2 * 2 + 2
    assert sum(trial.is_plain for trial in trials) == 1
    assert sum(trial.mixes for trial in trials) == 6
    assert len({trial.name for trial in trials}) == len(trials)
    assert [trial.alpha for trial in ways.trials("input")] == [0.4, 2]


def test_trial_without_any_head_left_is_an_error() -> None:
    """If every head of a row diverged, the error names the row."""
    with pytest.raises(RuntimeError, match="'feature mixup at a, alpha 0.4' diverged"):
        choose(Trial("a", alpha=0.4), torch.full((2,), math.inf))


def test_rows_equal_heads_trained_alone(tmp_path: Path) -> None:
    """Each row has the scores of `train_head` with its settings, for every seed."""
    model = net()
    store = store_of(model, "1", tmp_path)
    order = torch.randperm(90, generator=seeded_generator("split"))
    train, val, test = order[:50].sort()[0], order[50:70].sort()[0], order[70:].sort()[0]
    head = model[2].weight.detach().clone(), model[2].bias.detach().clone()
    wrong = store.targets.clone()
    wrong[train[:8]] = (wrong[train[:8]] + 1) % 3
    starts = [Start(seed, train, val, test, wrong, *head) for seed in (0, 3)]
    ways = Ways(
        [0, 0.4],
        ["any", "other-class"],
        lrs=[0.01, 0.1],
        weight_decays=[0.01, 1.0],
        epochs=4,
        batch_size=10,
    )

    for found in train_heads(store.features.gather, ways.trials("1"), starts, ways):
        row = make_row(found, starts, store.targets, math.nan)
        for start, told in zip(starts, row.by_seed, strict=True):
            model[2].load_state_dict({"weight": head[0], "bias": head[1]})
            training = train_head(
                model,
                store.with_targets(wrong).take(train),
                validation=store.take(test),
                epochs=4,
                batch_size=10,
                **{**asdict(found.settings), "seed": start.seed},
            )
            assert told["nll"] == pytest.approx(training.metrics["val_loss"], abs=1e-5)
            assert told["accuracy"] == pytest.approx(training.metrics["val_accuracy"])
            assert told["mixed_loss"] == pytest.approx(training.metrics["mixed_loss"], abs=1e-5)


def test_samples_are_scored_where_they_were_tested(tmp_path: Path) -> None:
    """A sample has a score under the seeds that held it out to test, and none elsewhere."""
    found = compare(net(), store_of(net(), "1", tmp_path), **ROWS, seeds=3, epochs=2)

    for one in found.rows:
        tested = one.correct.isfinite()
        assert tested.sum(1).tolist() == [18, 18, 18]
        assert torch.equal(tested, one.surprise.isfinite())
        means = [one.correct[seed][tested[seed]].mean() for seed in range(3)]
        for mean, told in zip(means, one.by_seed, strict=True):
            assert float(mean) == pytest.approx(told["accuracy"])


def test_model_comes_back_as_it_was(tmp_path: Path) -> None:
    """Comparing trains heads of its own."""
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    compare(model, store_of(model, "1", tmp_path), **ROWS, seeds=1, epochs=1)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_layers_before_more_than_a_head_are_compared_too(tmp_path: Path) -> None:
    """Where something frozen but not affine lies between, it runs behind the mix."""
    model = net()
    stores = {layer: store_of(model, layer, tmp_path / layer) for layer in ("0", "1")}

    found = compare(model, stores, **ROWS, label_smoothing=0, seeds=2, epochs=2)

    plain, mixed, plain_behind, mixed_behind = found.rows
    assert torch.allclose(plain.surprise, plain_behind.surprise, atol=1e-5, equal_nan=True)
    assert not torch.allclose(mixed.surprise, mixed_behind.surprise, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"alphas": [-1]}, "alpha=-1"),
        ({"pairings": ["nearest"]}, "pairing='nearest'"),
        ({"lrs": [0]}, "lr=0"),
        ({"alphas": []}, "alphas is empty"),
        ({"batch_size": 1}, "batch_size=1 leaves a sample none to be mixed with"),
    ],
)
def test_wrong_arguments_are_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    """What is out of range is named before anything is trained."""
    store = store_of(net(), "1", tmp_path)

    with pytest.raises(ValueError, match=message):
        compare(net(), store, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": 0.4}, "alphas=0.4: expected a list"),
        ({"pairings": "any"}, "pairings='any': expected a list"),
        ({"pairings": [torch.argsort]}, "pairings: .* compare takes those by name"),
        ({"noises": 1}, "noises=1: expected a list"),
        ({"lrs": torch.tensor(0.1)}, "lrs=tensor.*: expected a list"),
        ({"weight_decays": None}, "weight_decays=None: expected a list"),
        ({"pairings": torch.argsort}, "pairings=.*: expected a list"),
    ],
)
def test_one_value_is_no_list(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    """What goes in a list is shown in one."""
    store = store_of(net(), "1", tmp_path)

    with pytest.raises(TypeError, match=message):
        compare(net(), store, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [list, str, tuple])
def test_stores_are_a_store_or_a_dict(wrap: Callable[..., Any], tmp_path: Path) -> None:
    """Anything else is named with what to give."""
    store = store_of(net(), "1", tmp_path)

    with pytest.raises(TypeError, match=f"stores is a {wrap.__name__}; give a FeatureStore"):
        compare(net(), wrap([store]))
    with pytest.raises(ValueError, match=r"stores\['mine'\] holds features of '1'; name it"):
        compare(net(), {"mine": store})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_those_of_the_store(dtype: torch.dtype, tmp_path: Path) -> None:
    """Others would be mixed beside features of these: fewer, in another order, and changed ones
    are refused. Those of a part of the store are wanted in its order.
    """
    model, samples = net(), list(zip(*clusters(90), strict=True))
    store = extract_features(model, "1", samples, tmp_path, dtype=dtype)
    few: dict[str, Any] = {**ROWS, "seeds": 1, "epochs": 1}

    found = compare(model, store, inputs=samples, **few)
    assert found.rows[-1].trial.name == "input mixup, alpha 1"
    part = store.take(range(89, -1, -1))
    assert compare(model, part, inputs=samples[::-1], **few).rows
    with pytest.raises(ValueError, match="has 60 samples, .* features of 90"):
        compare(model, store, inputs=samples[:60], **few)
    for others in (samples[::-1], [(x + 0.3, y) for x, y in samples]):
        with pytest.raises(ValueError, match="gives other features than"):
            compare(model, store, inputs=others, **few)
    with pytest.raises(ValueError, match="inputs= are nothing that the model takes: "):
        compare(model, store, inputs=[(x[:3], y) for x, y in samples], **few)
    views = extract_features(model, "1", samples, tmp_path / "views", views=2)
    with pytest.raises(ValueError, match="holds 2 views of each sample, inputs= have one"):
        compare(model, views, inputs=samples, **few)
    spoiled = [(x * (i < 89), y) for i, (x, y) in enumerate(samples)]
    with pytest.raises(ValueError, match="sample 89 gives other features than"):
        compare(model, store, inputs=spoiled, **few)


@pytest.mark.parametrize("width", [64, 512])
def test_inputs_of_a_store_in_half_precision_are_known(width: int, tmp_path: Path) -> None:
    """What rounding makes of units that are zero for all samples tells nothing."""
    torch.manual_seed(0)
    body = (nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    model = nn.Sequential(*body, nn.Linear(width, 3))
    freeze(model, except_=model[4])
    samples = list(zip(*clusters(90), strict=True))
    few: dict[str, Any] = {**ROWS, "seeds": 1, "epochs": 1}

    for layer in "01":
        folder = tmp_path / layer
        store = extract_features(model, layer, samples, folder, dtype=torch.bfloat16)
        assert compare(model, store, inputs=samples, **few).rows
        with pytest.raises(ValueError, match="sample 0 gives other features than"):
            compare(model, store, inputs=samples[::-1], **few)


def test_inputs_are_told_by_the_smaller_features_too(tmp_path: Path) -> None:
    """Those of transformers have a few numbers that are huge, and alike for all samples."""
    model, samples = net(), list(zip(*clusters(90), strict=True))
    with torch.no_grad():
        model[0].bias[0] = 1000.0
    store = extract_features(model, "1", samples, tmp_path)

    with pytest.raises(ValueError, match="sample 0 gives other features than"):
        compare(model, store, inputs=samples[::-1], **ROWS, seeds=1, epochs=1)


def test_only_a_linear_head_is_compared(tmp_path: Path) -> None:
    """If no linear layer alone is to be trained, the error says how to come to that."""
    model = net()
    store = store_of(model, "1", tmp_path)
    model.requires_grad_(False)

    with pytest.raises(ValueError, match="freeze"):
        compare(model, store, seeds=1)


def test_command_and_function_compare_the_same_by_default() -> None:
    """What the help shows is what `Ways` holds."""
    options = inspect.signature(command).parameters
    for field in fields(Ways):
        default = options[field.name].default
        if isinstance(field.default, tuple):
            assert default == ",".join(
                f"{one:g}" if isinstance(one, float) else one for one in field.default
            )
        else:
            assert default == field.default


def test_command_prints_rows_and_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has a line for each row, the verdict, and the command for the row to use."""
    monkeypatch.chdir(tmp_path)

    assert main(["compare", *QUICK.split(), "--output", "found"]) == 0

    shown = capsys.readouterr().out
    told = json.loads((tmp_path / "found" / "results.json").read_text())
    assert all(each["name"] in shown for each in told["rows"])
    assert told["verdict"] in shown
    assert len((tmp_path / "found" / "results.csv").read_text().splitlines()) == 4


def test_page_needs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report has the verdict, every row, the command, pictures within, and loads nothing."""
    monkeypatch.chdir(tmp_path)
    main(["compare", *QUICK.split(), "--output", "found"])

    page = (tmp_path / "found" / "report.html").read_text()
    told = json.loads((tmp_path / "found" / "results.json").read_text())
    winner = next(each for each in told["rows"] if each["name"] == told["winner"])

    assert told["verdict"][1:] in page
    mixed = next(each for each in told["rows"] if each["name"].startswith("feature mixup"))
    change, sure = mixed["accuracy_difference"], mixed["nll_difference"]
    ends = (f"{100 * change[end]:+.1f}" for end in ("mean", "low", "high"))
    assert "it changes the accuracy on test images by {} ({} to {}) points".format(*ends) in page
    assert "the NLL by {mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**sure) in page
    assert winner["command"] in page
    assert "manifold-mixup predict IMAGE --run found/winner" in page
    assert all(f"<td>{each['name']}</td>" in page for each in told["rows"])
    sources = re.findall(r"src='([^']{0,26})", page)
    assert len(sources) == 5 + 2 * 3
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<(link|script|iframe)|url\(|@import", page)


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    """What comes from file names is text in the page, not markup."""
    found = planted([0.0], [0.0], seed=0)
    trial = Trial("a<b>", alpha=1.0)
    rows = [replace(found.rows[0], logits=torch.zeros(4, 2), target=torch.arange(4) % 2)]
    rows.append(replace(rows[0], trial=trial))
    known = {"accuracy": 0.5, "nll": 1.0, "mended_nll": 1.0, "calibration_error": 0.0}
    known |= {"mended_calibration_error": 0.0, "macro_f1": 0.5, "val_nll": 1.0}
    known |= {"mixed_loss": 1.0, "clean_loss": 1.0}
    rows = [replace(each, metrics=known, by_seed=[{"temperature": 1.0}]) for each in rows]

    found = {Case(): compare_rows(rows, []), Case(shots=5): compare_rows(rows, [])}
    write_page(tmp_path / "page.html", found, title="<i>", about="&", train="'")

    page = (tmp_path / "page.html").read_text()
    assert "a&lt;b&gt;" in page
    assert "&lt;i&gt;" in page
    assert "a<b>" not in page
    assert "<i>" not in page


def test_printed_command_trains_the_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of a row gives its NLL to 1e-3 and its accuracy to one image, for any seed."""
    monkeypatch.chdir(tmp_path)
    main(["compare", *QUICK.split(), "--output", "found"])
    rows = json.loads((tmp_path / "found" / "results.json").read_text())["rows"]

    for place, (each, seed) in enumerate((each, seed) for each in rows for seed in range(2)):
        words = shlex.split(each["command"].replace("--seed 0", f"--seed {seed}"))[1:]
        capsys.readouterr()
        assert main([*words, "--json", "--output", f"run-{place}"]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert alone["nll"] == pytest.approx(each["by_seed"][seed]["nll"], abs=1e-3)
        assert abs(alone["accuracy"] - each["by_seed"][seed]["accuracy"]) <= 1.01 / alone["n"]


def test_patterns_stand_for_all_their_layers(tmp_path: Path) -> None:
    """Layers are chosen as everywhere, each once, and rows and commands have their names."""
    folder = tmp_path / "found"
    words = [*QUICK.split(), "--layers", "layer4[-1],re:layer4,global_pool.*,layer4"]

    assert main(["compare", *words, "--output", str(folder)]) == 0

    rows = json.loads((folder / "results.json").read_text())["rows"]
    layers = ["layer4.0", "layer4", "global_pool.pool", "global_pool.flatten"]
    assert [each["layer"] for each in rows if each["alpha"]] == layers
    assert all(f"--layer {each['layer']} " in each["command"] for each in rows)


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json stdout holds rows and verdict, and nothing else."""
    assert main(["compare", *QUICK.split(), "--json", "--output", str(tmp_path / "found")]) == 0

    told = json.loads(capsys.readouterr().out)
    assert {"rows", "verdict", "winner", "base"} <= told.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--alphas 0,much", "--alphas 0,much: expected numbers"),
        ("--alphas -1", "alpha=-1.0"),
        ("--weights none", "--weights none: every seed"),
        ("--layers nowhere", "nowhere"),
        ("--layers fc", "nothing behind layer 'fc'"),
        ("--layers input", "mixed by --with-input"),
        ("--layers layer4.0.conv1", "choose 'layer4.0'"),
        ("--pairings nearest", "pairing='nearest'"),
        ("--pairings near-target", "near-target"),
        ("--label-smoothing 2", "label_smoothing=2.0"),
        ("--epochs 0", "epochs=0"),
    ],
)
def test_wrong_options_are_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake on the command line is one line, status 2, and leaves no folder."""
    given = ["compare", *words.split(), "--output", str(tmp_path / "found")]

    assert main(given) == 2

    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1
    assert message in shown[0]
    assert not (tmp_path / "found").exists()


class Between(nn.Module):
    """A model with a BatchNorm and a dropout between a layer and its linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 3)
        self.first.requires_grad_(False)
        self.norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        logits: Tensor = self.head(self.drop(self.norm(self.first(x)).tanh()))
        return logits


def test_what_lies_between_is_in_eval_mode(tmp_path: Path) -> None:
    """A model left in training mode gives the same numbers, and no statistic of it moves."""
    torch.manual_seed(0)
    model = Between()
    store = store_of(model, "first", tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    training = compare(model.train(), store, **ROWS, seeds=1, epochs=1)
    still = compare(model.eval(), store, **ROWS, seeds=1, epochs=1)

    assert training.rows[0].metrics == still.rows[0].metrics
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("layer", ["0", "1"])
def test_heads_of_a_half_precision_model_are_compared(layer: str, tmp_path: Path) -> None:
    """A bfloat16 model has its heads trained in float32, to nearly what a float32 model gives."""
    model = net().bfloat16()
    x, target = clusters(90)
    half = extract_features(
        model, layer, list(zip(x.bfloat16(), target, strict=True)), tmp_path / "half"
    )
    whole = store_of(net(), layer, tmp_path / "whole")

    found, expected = (
        compare(one, store, **ROWS, seeds=1, epochs=3)
        for one, store in ((model, half), (net(), whole))
    )

    for told, exact in zip(found.rows, expected.rows, strict=True):
        assert told.metrics["nll"] == pytest.approx(exact.metrics["nll"], abs=0.05)


@pytest.mark.parametrize("change", ["fewer", "others", "order"])
def test_stores_of_other_samples_are_refused(change: str, tmp_path: Path) -> None:
    """Rows could not be paired, so the error names the store."""
    model = net()
    stores = {"0": store_of(model, "0", tmp_path / "first")}
    samples = list(zip(*clusters(90, seed=change == "others"), strict=True))
    samples = {"fewer": samples[:60], "others": samples, "order": samples[::-1]}[change]
    stores["1"] = extract_features(model, "1", samples, tmp_path / "second")

    with pytest.raises(ValueError, match="second: holds features of other samples than"):
        compare(model, stores)


def test_stores_must_be_of_several_classes(tmp_path: Path) -> None:
    """No store, soft targets and a single class are named before anything is trained."""
    model, x = net(), clusters(30)[0]

    with pytest.raises(ValueError, match="stores is empty"):
        compare(model, {})
    for name, target, message in (
        ("soft", torch.eye(3).repeat(10, 1), "compare is for class indices"),
        ("two", torch.arange(30) % 2 == 0, "compare is for class indices"),
        ("none", torch.arange(30) % 3 - 1, "holds class -1, expected indices from 0"),
        ("one", torch.zeros(30, dtype=torch.int64), "one class, need at least 2"),
    ):
        store = extract_features(model, "1", list(zip(x, target, strict=True)), tmp_path / name)
        with pytest.raises(ValueError, match=message):
            compare(model, store)


def test_layer_behind_the_head_is_refused(tmp_path: Path) -> None:
    """Where nothing is left to train, the error says to choose an earlier layer."""
    model = net()

    with pytest.raises(ValueError, match="nothing requires gradients; choose an earlier layer"):
        compare(model, store_of(model, "2", tmp_path))


def test_interrupted_comparison_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--resume goes on from the features that are stored, with the same settings alone."""
    folder = str(tmp_path / "found")
    assert main(["compare", *QUICK.split(), "--lrs", "1e30", "--output", folder]) == 2
    assert not Path(folder, "results.json").exists()
    capsys.readouterr()

    assert main(["compare", *QUICK.split(), "--output", folder]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["compare", *QUICK.split(), "--output", folder, "--resume"]) == 2
    assert "started with lrs=[1e+30], now it is [0.003, 0.03]" in capsys.readouterr().err
    words = [*QUICK.split(), "--lrs", "1e30", "--output", folder, "--resume"]
    assert main(["compare", *words]) == 2
    assert "to compute and store" not in capsys.readouterr().out


def test_nothing_is_written_into_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results or features inside DATA would be images of the next run; a run's folder is its."""
    monkeypatch.chdir(tmp_path)
    for place in ("photos/a", "photos/b", "run", "compared"):
        Path(place).mkdir(parents=True)
    Path("run/run.json").write_text('{"backbone_sha256": ""}')
    Path("compared/settings.json").write_text('{"images_sha256": ""}')

    for words, message in (
        ("--output photos/found", "photos/found: lies inside DATA; choose another --output"),
        ("--features photos/kept", "photos/kept: lies inside DATA; choose another --features"),
        ("--features run", "run: lies in the folder of a run"),
        ("--features compared", "compared: lies in the folder of a run"),
        ("--features compared/trained", "compared/trained: lies in the folder of a run"),
        ("--features run/sub/features", "run/sub/features: lies in the folder of a run"),
    ):
        assert main(["compare", "photos", *words.split()]) == 2
        assert message in capsys.readouterr().err
    assert not Path("photos/found").exists()


def test_command_tells_where_the_data_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of a row leaves damaged images out where the comparison did, which says so."""
    monkeypatch.chdir(tmp_path)
    for place in range(20):
        folder = Path("my photos", f"class {place % 2}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 80 * (place % 2) + place).save(folder / f"{place}.png")
    Path("my photos/class 0/0.png").write_bytes(b"damaged")
    words = ["my photos", "--model", "digits", "--skip-damaged", "--data-root", str(tmp_path)]
    assert main(["compare", *words, *QUICK.split(), "--output", "my find"]) == 0
    each = json.loads(Path("my find/results.json").read_text())["rows"][-1]
    shown = capsys.readouterr().out
    assert "1 damaged images left out" in shown
    assert "predict IMAGE --run 'my find/winner'" in shown

    command = shlex.split(each["command"])
    assert command[command.index("--data-root") + 1] == str(tmp_path)
    assert main([*command[1:], "--json", "--output", "run"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["nll"] == pytest.approx(each["by_seed"][0]["nll"], abs=1e-3)
