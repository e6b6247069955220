"""Comparisons: what replicates are, what rows hold, when there are enough, what is refused."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from manifold_mixup import FeatureStore, extract_features, freeze, train_head
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import (
    Candidates,
    Replicate,
    Row,
    Scenario,
    compare,
    compare_rows,
    draw_replicate,
    find_head,
)
from manifold_mixup.comparison.outcomes import nll_at_best_temperature
from manifold_mixup.data import LabelledImages, Split
from manifold_mixup.training import Passes

# The fewest rows: one without mixing, one with.
ROWS: dict[str, Any] = {
    **{"alphas": [1], "pairings": ["any"], "clean_weights": [], "label_smoothing": 0},
    "weight_decays": [1, 0.1, 0.01],
}


def clusters(n: int, classes: int = 3, width: int = 6, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features around a centre for each class, and their classes."""
    generator = seeded_generator("clusters", seed)
    target = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    return centres[target] + torch.randn(n, width, generator=generator), target


def net(width: int = 6, classes: int = 3) -> nn.Sequential:
    """A model of a frozen part and a linear head."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
    model[0].requires_grad_(False)
    return model


def store_of(model: nn.Module, layer: str, folder: Path, n: int = 90) -> FeatureStore:
    """Features of clusters at a layer."""
    return extract_features(model, layer, list(zip(*clusters(n), strict=True)), folder)


def starts_of(store: FeatureStore, seeds: int, scenario: Scenario) -> list[Replicate]:
    """The replicates of a comparison of a store of three classes."""
    part = Split(range(len(store)), store.targets.tolist(), [""] * len(store))
    data = LabelledImages("clusters", ["0", "1", "2"], {"train": part})
    return [draw_replicate(data, seed, scenario) for seed in range(seeds)]


# Rows


def test_default_rows_are_the_fewest_that_answer() -> None:
    """No mixing, smoothing, every alpha once, and one row for each other thing to ask."""
    assert [candidate.name for candidate in Candidates().candidates("a")] == [
        "no mixing, a",
        "label smoothing 0.1, a",
        "feature mixup at a, alpha 0.2",
        "feature mixup at a, alpha 0.4",
        "feature mixup at a, alpha 1",
        "feature mixup at a, alpha 2",
        "feature mixup at a, alpha 1, same-class",
        "feature mixup at a, alpha 1, with 1 x the clean loss",
    ]


def test_rows_are_listed_once() -> None:
    """What is asked for twice, or is nothing, makes no row; where a mix has its price no other
    pairing than the first does; and the input has mixes alone.
    """
    offered = Candidates([2, 0, 0.4, 2], ["any", "other-class", "any"], 0, [0, 0.5, 0.5])

    assert [candidate.name for candidate in offered.candidates("a")] == [
        "no mixing, a",
        "feature mixup at a, alpha 0.4",
        "feature mixup at a, alpha 2",
        "feature mixup at a, alpha 2, other-class",
        "feature mixup at a, alpha 2, with 0.5 x the clean loss",
    ]
    assert offered.candidates("a", has_plain=False) == offered.candidates("a")[1:]
    assert offered.candidates("a", is_affine=False) == [
        *offered.candidates("a")[:3],
        offered.candidates("a")[4],
    ]
    assert [candidate.name for candidate in offered.candidates("input")] == [
        *("input mixup, alpha 0.4", "input mixup, alpha 2"),
    ]


def test_unmixed_row_is_logistic_regression(tmp_path: Path) -> None:
    """In every replicate, with the penalty that has the lowest validation NLL at its best
    temperature.
    """
    store = store_of(net(), "1", tmp_path)
    x, y = store.features[:].double(), store.targets
    decays = [10, 1, 0.1, 0.01, 0.001]

    row = compare(net(), store, **{**ROWS, "weight_decays": decays}, seeds=3).rows[0]

    for replicate, told in zip(starts_of(store, 3, Scenario()), row.by_replicate, strict=True):
        own = x[replicate.train]
        rows = ((x - own.mean(0)) / own.std(0, correction=0).mean()).numpy()
        heads = [
            LogisticRegression(C=1 / (decay * len(own)), tol=1e-10, max_iter=10_000)
            .fit(rows[replicate.train], y[replicate.train])
            .decision_function(rows)
            for decay in decays
        ]
        logits = torch.from_numpy(np.stack(heads))
        nll = nll_at_best_temperature(logits[:, replicate.val], y[replicate.val])
        best = int(nll.argmin())
        tested = logits[best, replicate.test]
        assert told["weight_decay"] == decays[best]
        assert told["val_nll"] == pytest.approx(float(nll[best]), abs=1e-3)
        assert told["nll"] == pytest.approx(
            float(F.cross_entropy(tested, y[replicate.test])), abs=1e-4
        )
        right = (tested.argmax(1) == y[replicate.test]).double().mean()
        assert told["accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize(("layer", "rows"), [("0", 4), ("1", 5)])
def test_rows_equal_heads_trained_alone(layer: str, rows: int, tmp_path: Path) -> None:
    """Each has, in every replicate, the test NLL of `train_head` with what was chosen there; also
    of wrong labels, and where mixes have to pass through something that is not affine.
    """
    model = net()
    store = store_of(model, layer, tmp_path)
    options = {"pairings": ["any", "other-class"], "clean_weights": [0.5], "label_noise": 0.3}

    found = compare(model, store, **{**ROWS, **options, "label_smoothing": 0.1}, seeds=2)

    assert len(found.rows) == rows
    for replicate in starts_of(store, 2, Scenario(label_noise=0.3)):
        for row in found.rows:
            told, candidate = row.by_replicate[replicate.seed], row.candidate
            training = train_head(
                model,
                store.with_targets(replicate.target).take(replicate.train),
                validation=store.take(replicate.test),
                alpha=candidate.alpha,
                pairing=candidate.pairing,
                label_smoothing=candidate.label_smoothing,
                clean_weight=candidate.clean_weight,
                weight_decay=told["weight_decay"],
                seed=replicate.seed,
                say=lambda line: None,
            )
            assert told["mixed_loss"] == pytest.approx(training.metrics["mixed_loss"], abs=1e-4)
            with torch.no_grad():
                logits = model[int(layer) + 1 :](store.features.gather(replicate.test))
            nll = float(F.cross_entropy(logits, store.targets[replicate.test]))
            assert told["nll"] == pytest.approx(nll, abs=1e-4)


def test_rows_are_means_of_their_replicates(tmp_path: Path) -> None:
    """But for what was chosen, which is told of the first."""
    found = compare(net(), store_of(net(), "1", tmp_path), **ROWS, seeds=3)

    for row in found.rows:
        assert row.chosen == {"weight_decay": row.by_replicate[0]["weight_decay"]}
        assert row.metrics.keys() == row.by_replicate[0].keys() - {"weight_decay"}
        for name, value in row.metrics.items():
            assert value == pytest.approx(sum(each[name] for each in row.by_replicate) / 3)


def test_model_comes_back_as_it_was(tmp_path: Path) -> None:
    """Comparing trains heads of its own."""
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    compare(model, store_of(model, "1", tmp_path), **ROWS, seeds=1)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Replicates


@pytest.mark.parametrize("seeds", [5, 10])
def test_five_replicates_test_every_sample_once(seeds: int, tmp_path: Path) -> None:
    """A sample has a score under the seed that held it out to test, and none elsewhere."""
    found = compare(net(), store_of(net(), "1", tmp_path), **ROWS, seeds=seeds, worth=1e-4)

    for row in found.rows:
        tested = row.correct.isfinite()
        assert tested.sum(0).tolist() == [seeds // 5] * 90
        assert torch.equal(tested, row.surprise.isfinite())
        for own, is_tested, told in zip(row.correct, tested, row.by_replicate, strict=True):
            assert float(own[is_tested].mean()) == pytest.approx(told["accuracy"])


def test_own_test_part_is_tested_in_every_replicate() -> None:
    """What DATA holds out stays held out; training and validation are split anew."""
    parts = {
        name: Split(range(n), [0, 1] * (n // 2), ["s"] * n)
        for name, n in (("train", 40), ("test", 10))
    }

    replicates = [
        draw_replicate(LabelledImages("parts", ["a", "b"], parts), seed, Scenario())
        for seed in range(6)
    ]

    assert all(replicate.test.tolist() == list(range(40, 50)) for replicate in replicates)
    assert len({tuple(replicate.val.tolist()) for replicate in replicates}) == 6


def test_stops_where_the_interval_is_narrow_enough(tmp_path: Path) -> None:
    """At the first number of replicates, from five on, at which the deciding interval is half as
    wide as the gain worth having; whatever its sign.
    """
    model, store = net(), store_of(net(), "1", tmp_path)
    whole = compare(model, store, **ROWS, seeds=9, worth=1e-6)
    widths = {n: half_width(whole.rows, n) for n in range(5, 10)}
    assert whole.replicates == 9

    for worth in (0.99, *(2.001 * widths[n] for n in (6, 8))):
        enough = min(n for n, width in widths.items() if width <= worth / 2)
        assert compare(model, store, **ROWS, seeds=9, worth=worth).replicates == enough


def half_width(rows: Sequence[Row], n: int) -> float:
    """Of the deciding interval of the first n replicates."""
    first = [
        replace(
            row,
            correct=row.correct[:n],
            surprise=row.surprise[:n],
            by_replicate=row.by_replicate[:n],
        )
        for row in rows
    ]
    return compare_rows(first, []).deciding.half_width


def test_never_more_replicates_than_asked_for(tmp_path: Path) -> None:
    """Nor fewer than five, but where no more are asked for."""
    model, store = net(), store_of(net(), "1", tmp_path)

    for seeds, worth, expected in ((3, 0.99, 3), (6, 1e-6, 6), (6, 0.99, 5)):
        assert compare(model, store, **ROWS, seeds=seeds, worth=worth).replicates == expected


def only(replicate: int, seen: list[int] | None = None) -> Callable[..., Any]:
    """What shows how far it is, does one replicate alone, and notes how many there may be."""

    def track(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        if description != "replicates":
            return steps
        if seen is not None:
            seen.append(total)
        return [list(steps)[replicate]]

    return track


def test_most_replicates_are_by_their_price(tmp_path: Path) -> None:
    """Twenty where heads are solved for at once; five where mixes pass through something, or more
    than a head is trained.
    """
    model, samples = net(), list(zip(*clusters(90), strict=True))
    stores = extract_features(model, ["0", "1"], samples, tmp_path)
    few, seen = {**ROWS, "lrs": [0.01], "epochs": 1}, list[int]()
    track = only(0, seen)

    compare(model, stores["1"], **few, track=track)
    compare(model, stores["0"], **few, track=track)
    compare(model, stores["1"], **few, inputs=samples, track=track)
    compare(model, stores["0"], **few, seeds=7, track=track)
    blocks = nn.Sequential(nn.Identity(), *net().requires_grad_(True))
    compare(blocks, extract_features(blocks, "0", samples, tmp_path), **few, track=track)

    assert seen == [20, 5, 5, 7, 5]


# Layers


def test_rows_that_mix_nothing_are_there_once(tmp_path: Path) -> None:
    """Behind frozen layers they are the same at each; and a mix before something that is not
    affine is another than one behind it.
    """
    model = net()
    stores = {layer: store_of(model, layer, tmp_path / layer) for layer in ("0", "1")}

    found = compare(model, stores, **{**ROWS, "label_smoothing": 0.1}, seeds=2)
    behind = compare(model, stores["1"], **{**ROWS, "label_smoothing": 0.1}, seeds=2)

    assert [row.candidate.name for row in found.rows] == [
        *("no mixing, 0", "label smoothing 0.1, 0"),
        *("feature mixup at 0, alpha 1", "feature mixup at 1, alpha 1"),
    ]
    for row, same in zip((*found.rows[:2], found.rows[3]), behind.rows, strict=True):
        assert torch.allclose(row.surprise, same.surprise, atol=1e-4, equal_nan=True)
    assert not torch.allclose(
        found.rows[2].surprise, found.rows[3].surprise, atol=1e-3, equal_nan=True
    )


class Watched(nn.Tanh):
    """Notes what passes."""

    passed: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        self.passed.append(x)
        return super().forward(x)


def test_only_training_samples_are_mixed(tmp_path: Path) -> None:
    """What two samples are mixed to in a replicate is of two that it trains on: none to choose by
    or to test on ever passes but by itself. (Sample i is the i-th unit vector.)
    """
    n = 60
    model = nn.Sequential(nn.Identity(), Watched(), nn.Linear(n, 3))
    samples = list(zip(torch.eye(n), torch.arange(n) % 3, strict=True))
    store = extract_features(model, "0", samples, tmp_path)

    for replicate in starts_of(store, 3, Scenario()):
        Watched.passed.clear()
        compare(model, store, **ROWS, seeds=3, track=only(replicate.seed))
        pairs = [
            rows[(rows > 0).sum(1) == 2] for rows in Watched.passed if rows.dtype == torch.float32
        ]
        mixed = torch.cat(pairs)
        assert torch.allclose(mixed.sum(1), torch.ones(len(mixed)))
        assert len(mixed) > 1.8 * len(replicate.train)
        assert set(mixed.nonzero()[:, 1].tolist()) == set(replicate.train.tolist())


def test_rows_of_the_same_mixes_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mix of a replicate passes once, and serves the row beside the clean loss too."""
    calls: list[int] = []
    mixed = Passes.mixed

    def counted(self: Passes, k: int, seed: int) -> Any:
        calls.append(k)
        return mixed(self, k, seed)

    monkeypatch.setattr(Passes, "mixed", counted)
    model, options = net(), {**ROWS, "alphas": [0.5, 1], "clean_weights": [1, 2]}
    store = store_of(model, "0", tmp_path)

    compare(model, store, **options, seeds=2)
    assert calls == 2 * 2 * [0, 1]
    calls.clear()
    compare(model, store, **options, mixes=3, seeds=1)
    assert calls == 2 * [0, 1, 2]


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

    training = compare(model.train(), store, **ROWS, seeds=1)
    still = compare(model.eval(), store, **ROWS, seeds=1)

    assert [row.metrics for row in training.rows] == [row.metrics for row in still.rows]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("layer", ["0", "1"])
def test_heads_of_a_half_precision_model_are_compared(layer: str, tmp_path: Path) -> None:
    """Those of a bfloat16 model come to nearly what a float32 model gives."""
    model = net().bfloat16()
    x, target = clusters(90)
    half = extract_features(
        model, layer, list(zip(x.bfloat16(), target, strict=True)), tmp_path / "half"
    )
    whole = store_of(net(), layer, tmp_path / "whole")
    options = {**ROWS, "weight_decays": [0.1]}

    found, expected = (
        compare(one, store, **options, seeds=1) for one, store in ((model, half), (net(), whole))
    )

    for told, exact in zip(found.rows, expected.rows, strict=True):
        assert told.metrics["nll"] == pytest.approx(exact.metrics["nll"], abs=0.05)


# Inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_those_of_the_store(dtype: torch.dtype, tmp_path: Path) -> None:
    """Others would be mixed beside features of these: fewer, in another order, and changed ones
    are refused. Those of a part of the store are wanted in its order.
    """
    model, samples = net(), list(zip(*clusters(90), strict=True))
    store = extract_features(model, "1", samples, tmp_path, dtype=dtype)
    few: dict[str, Any] = {**ROWS, "seeds": 1}

    found = compare(model, store, inputs=samples, **few)
    assert found.rows[-1].candidate.name == "input mixup, alpha 1"
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
    few: dict[str, Any] = {**ROWS, "seeds": 1}

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
        compare(model, store, inputs=samples[::-1], **ROWS, seeds=1)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"worth": 0}, r"worth=0 must be in \(0, 1\)"),
        ({"worth": 1}, r"worth=1 must be in \(0, 1\): a share of the samples, 0.01 is 1 point"),
        ({"alphas": [-1]}, "alpha=-1"),
        ({"pairings": ["nearest"]}, "pairing='nearest'"),
        ({"lrs": [0]}, "lr=0"),
        ({"weight_decays": [-1]}, "weight_decay=-1"),
        ({"weight_decays": []}, "weight_decays is empty"),
        ({"alphas": []}, "alphas is empty"),
        ({"mixes": 0}, "mixes=0 must be at least 1"),
        ({"batch_size": 1}, "batch_size=1 leaves a sample none to be mixed with"),
        ({"alphas": [0]}, r"alphas=\[0\]: nothing is mixed, and there is nothing to compare"),
        ({"label_noise": 1}, "label_noise=1 draws all labels anew: there is nothing left"),
        ({"label_noise": 1.5}, r"label_noise=1.5 must be in \[0, 1\]"),
        ({"shots": 100}, "shots=100 needs 100 of every class"),
    ],
)
def test_wrong_arguments_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is out of range, or leaves nothing to compare, is named before anything is trained."""
    store = store_of(net(), "1", tmp_path)
    monkeypatch.setattr("manifold_mixup.comparison.train_candidates.SolvedCandidates.add", None)

    with pytest.raises(ValueError, match=message):
        compare(net(), store, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": 0.4}, "alphas=0.4: expected a list"),
        ({"pairings": "any"}, "pairings='any': expected a list"),
        ({"pairings": [torch.argsort]}, "pairings: .* compare takes those by name"),
        ({"clean_weights": 1}, "clean_weights=1: expected a list"),
        ({"lrs": torch.tensor(0.1)}, "lrs=tensor.*: expected a list"),
        ({"weight_decays": None}, "weight_decays=None: expected a list"),
        ({"pairings": torch.argsort}, "pairings=.*: expected a list"),
    ],
)
def test_one_value_is_no_list(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """What goes in a list is shown in one."""
    store = store_of(net(), "1", tmp_path)

    with pytest.raises(TypeError, match=message):
        compare(net(), store, **changes)


@pytest.mark.parametrize("wrap", [list, str, tuple])
def test_stores_are_a_store_or_a_dict(wrap: Callable[..., Any], tmp_path: Path) -> None:
    """Anything else is named with what to give."""
    store = store_of(net(), "1", tmp_path)

    with pytest.raises(TypeError, match=f"stores is a {wrap.__name__}; give a FeatureStore"):
        compare(net(), wrap([store]))
    with pytest.raises(ValueError, match=r"stores\['mine'\] holds features of '1'; name it"):
        compare(net(), {"mine": store})


def test_only_a_linear_head_is_compared(tmp_path: Path) -> None:
    """If no linear layer alone is to be trained, the error says how to come to that."""
    model = net()
    store = store_of(model, "1", tmp_path)
    model.requires_grad_(False)

    with pytest.raises(ValueError, match="freeze"):
        compare(model, store, seeds=1)


def test_layer_behind_the_head_is_refused(tmp_path: Path) -> None:
    """Where nothing is left to train, the error says to choose an earlier layer."""
    model = net()

    with pytest.raises(ValueError, match="nothing requires gradients; choose an earlier layer"):
        compare(model, store_of(model, "2", tmp_path))


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
    assert find_head(model, store_of(model, "stem", tmp_path / "a")).layer.module is model.head

    model = Backwards(nn.Softplus())
    with pytest.raises(ValueError, match="ends in a linear layer"):
        find_head(model, store_of(model, "stem", tmp_path / "b"))


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
