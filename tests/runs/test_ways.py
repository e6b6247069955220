"""Runs by both ways: the same numbers from stored features and from the whole model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import STEPS, paint_classes, settings, train

from manifold_mixup import FeatureStore, load_run
from manifold_mixup._progress import untracked
from manifold_mixup.data import ImageSet, load_data, split_images
from manifold_mixup.runs.checkpoint import FEATURES, HEAD
from manifold_mixup.runs.compare import compare_run
from manifold_mixup.runs.config import CompareConfig
from manifold_mixup.runs.selection import HEAD_RATES
from manifold_mixup.runs.train import warmed
from manifold_mixup.training import predict_logits


@pytest.fixture(autouse=True)
def _unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without their pictures, which take longer than these trainings."""
    for name in ("plot_curve", "plot_quality"):
        monkeypatch.setattr(f"manifold_mixup.runs.train.{name}", lambda *given: None)
    monkeypatch.setattr("manifold_mixup.reports.page.plot_figures", lambda found: [])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve pictures."""
    return paint_classes(tmp_path_factory.mktemp("data") / "photos", 12)


@pytest.mark.parametrize(
    "changes",
    [
        STEPS,
        {**STEPS, "head": "mlp"},
        {**STEPS, "head": "cosine"},
        {**STEPS, "layer": "layer3", "tail": "trainable", "lr": 0.001},
        {**STEPS, "optimizer": "sgd"},
        {**STEPS, "patience": 1},
        {**STEPS, "pairing": "other-class"},
        {**STEPS, "exclude": ["light"], "batch_size": 32},
        {**STEPS, "kind": "cutmix", "layer": "layer3"},
        {**STEPS, "kind": "noisy", "prob": 0.5, "alpha_warmup": 0.5},
        {**STEPS, "clean_weight": 0.5},
        {**STEPS, "clean_weight": 2.0, "kind": "cutmix", "layer": "layer3"},
        {"alpha": 0.0},
        {"layer": "layer3"},
        {"layer": "layer3", "clean_weight": 0.5, "pairing": "other-class", "mixes": 3},
    ],
)
def test_both_ways_write_the_same_run(
    photos: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Losses and measures agree, and both runs load into the model that was measured: by steps,
    and where a head is solved for on unmixed samples, or mixed ones that pass through something.
    """
    infos = {}
    for way in ("cached", "hooked"):
        infos[way] = train(settings(photos, way=way, **changes), tmp_path / way)
        run = load_run(tmp_path / way)
        part = split_images(load_data(photos))["test"]
        images = ImageSet(part, run.transform, run.channels)
        found = run.task.metrics(*predict_logits(run.model, images))
        assert found == pytest.approx(infos[way]["metrics"], abs=1e-5)
    cached, hooked = infos["cached"], infos["hooked"]

    assert cached["losses"] == pytest.approx(hooked["losses"], abs=1e-4)
    assert cached["metrics"] == pytest.approx(hooked["metrics"], abs=1e-4)
    assert (tmp_path / "cached" / FEATURES).is_dir()
    assert not (tmp_path / "hooked" / FEATURES).exists()
    assert cached["head"] == hooked["head"]
    assert any(n.startswith("layer4") for n in cached["head"]) == ("tail" in changes)


@pytest.mark.parametrize(("kind", "stored"), [("mix", "global_pool"), ("cutmix", "layer4")])
def test_features_are_folded_only_where_the_kind_of_mix_may_be(
    photos: Path, tmp_path: Path, kind: str, stored: str
) -> None:
    """The run records the kind; nobody has to think of --no-fold."""
    model = {"model": "test_resnet", "weights": "none", "layer": "layer4"}
    info = train(settings(photos, kind=kind, **{**STEPS, "epochs": 1}, **model), tmp_path)

    assert FeatureStore(tmp_path / FEATURES).stored_layer == stored
    assert {info["settings"][name] for name in ("kind", "prob", "alpha_warmup")} == {kind, 1, 0}


def test_a_kind_that_needs_maps_asks_for_a_layer_of_them(photos: Path, tmp_path: Path) -> None:
    """Without a layer it would be what the head takes, vectors."""
    with pytest.raises(ValueError, match="layer '.*': CutMix takes boxes from maps"):
        train(settings(photos, kind="cutmix", layer=None), tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_alpha_rises_over_the_first_epochs() -> None:
    """Linearly from 0 over a share of them, then it stays; without a share it is constant."""
    rising = warmed(0.8, 0.5)

    assert callable(rising)
    assert [rising(epoch / 8) for epoch in range(8)] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8]
    )
    assert warmed(0.8, 0.0) == 0.8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"augment": True}, "augmented images differ in each epoch .*--views K"),
        ({"layer": "layer[34]"}, "stands for 2 layers"),
        ({"layer": "input", "tail": "trainable"}, "mixed images have features of their own"),
        ({"layer": "layer4.0.conv1"}, "what 'layer3' returns bypasses it"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*bypasses it:UserWarning")
def test_the_hooked_way_says_why(
    photos: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    """Where stored features would not do, the whole model runs; to insist is an error."""
    said: list[str] = []
    changes = {**changes, "epochs": 1, "lr": 0.001, "batch_size": 8}
    if changes.get("layer") == "layer[34]":
        changes["layer"] = "re:layer[34]"
    info = train(settings(photos, **changes), tmp_path / "run", say=said.append)
    with pytest.raises(ValueError, match=f"--way cached is not possible: .*{reason}"):
        train(settings(photos, way="cached", **changes), tmp_path / "other")

    assert info["settings"]["way"] == "hooked"
    assert sum(line.startswith("the whole model runs in every step: ") for line in said) == 1
    assert not (tmp_path / "other").exists()


def test_views_are_stored_and_taken_in_turn(photos: Path, tmp_path: Path) -> None:
    """Training images alone are augmented; each epoch trains on the next view."""
    said: list[str] = []
    steps = {"epochs": 2, "batch_size": 8, "lr": 1e-9}
    wanted = settings(photos, augment=True, views=2, alpha=0.0, **steps)
    info = train(wanted, tmp_path / "views", say=said.append)
    store, clean = (
        FeatureStore(tmp_path / "views" / FEATURES / name) for name in ("train", "clean")
    )
    plain = train(settings(photos), tmp_path / "plain")
    index = torch.arange(len(store))
    views = [store.features.gather(index, view=view) for view in range(2)]

    assert (store.views, clean.views, info["settings"]["way"]) == (2, 1, "cached")
    assert len(store) + len(clean) == 36
    assert not torch.allclose(*views)
    run = load_run(tmp_path / "views")
    for epoch, view in enumerate(views):  # the head hardly moves: each loss is that of its view
        loss = torch.nn.functional.cross_entropy(run.model.get_classifier()(view), store.targets)
        mixed = info["losses"][3 * epoch : 3 * epoch + 3]
        sizes = [8, 8, len(store) - 16]
        mean = sum(a * b for a, b in zip(mixed, sizes, strict=True)) / len(store)
        assert mean == pytest.approx(loss.item(), abs=1e-3)
    assert plain["settings"]["way"] == "cached"


def test_rate_is_chosen_and_written_down(photos: Path, tmp_path: Path) -> None:
    """Without one, validation chooses where there are steps, for the baseline too; the run is that
    of the rate given.
    """
    said: list[str] = []
    steps = {**STEPS, "head": "mlp", "lr": None}
    info = train(settings(photos, **steps), tmp_path / "run", baseline=True, say=said.append)
    given = train(settings(photos, **{**steps, "lr": info["lr"]}), tmp_path / "given")

    assert info["lr"] in HEAD_RATES
    assert len([line for line in said if line.startswith(f"learning rate: {info['lr']:g}")]) >= 1
    assert len([line for line in said if line.startswith("learning rate: ")]) == 2
    assert given["losses"] == info["losses"]


def test_runs_share_stored_features(photos: Path, tmp_path: Path) -> None:
    """With --features the second run computes nothing anew."""
    said: list[str] = []
    shared = tmp_path / "features"
    train(settings(photos), tmp_path / "one", features=shared)
    before = stored_files(shared)
    train(settings(photos, alpha=1.0), tmp_path / "two", features=shared, say=said.append)

    assert stored_files(shared) == before
    assert not any("to compute and store" in line for line in said)
    assert not (tmp_path / "two" / FEATURES).exists()
    assert (tmp_path / "two" / HEAD).exists()


def compared(photos: Path, folder: Path, **options: Any) -> list[str]:
    """A comparison of two rows with the model of `settings`; what it said."""
    said: list[str] = []
    given = {"alphas": (0.0, 1.0), "pairings": ("any",), "label_smoothing": 0.0, "seeds": 1}
    config = CompareConfig(data=str(photos), model="digits", output=folder, **given, **options)
    compare_run(config, say=said.append, track=untracked)
    return said


def stored_files(folder: Path) -> dict[Path, int]:
    """Every file in a folder, with its time of change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix}


@pytest.mark.parametrize("is_compared_first", [True, False])
def test_trainings_and_comparisons_share_stored_features(
    photos: Path, tmp_path: Path, is_compared_first: bool
) -> None:
    """One pass over all images serves every seed and split, few images and wrong labels; each run
    is what it is with features of its own.
    """
    shared, said = tmp_path / "features", list[str]()
    if is_compared_first:
        compared(photos, tmp_path / "found", features=shared)
    else:
        train(settings(photos), tmp_path / "first", features=shared)
    before = stored_files(shared)
    harder: tuple[dict[str, Any], ...] = ({}, {"seed": 1}, {"shots": 2}, {"label_noise": 0.5})
    for i, changes in enumerate(harder):
        given = settings(photos, **changes)
        one = train(given, tmp_path / f"{i}", features=shared, say=said.append)
        own = train(given, tmp_path / f"{i} own")
        assert one["losses"] == pytest.approx(own["losses"], abs=1e-4)
        assert one["metrics"] == pytest.approx(own["metrics"], abs=1e-4)
        assert one["held_out"] == own["held_out"]
    said += compared(photos, tmp_path / "again", features=shared)

    assert stored_files(shared) == before
    assert not any("to compute and store" in line for line in said)


def test_other_forms_of_shared_features_have_places_of_their_own(
    photos: Path, tmp_path: Path
) -> None:
    """Half precision, maps that are not folded, and views stand beside the rest."""
    shared = tmp_path / "features"
    maps = settings(photos, layer="layer4")
    train(maps, tmp_path / "0", features=shared)
    train(maps, tmp_path / "1", features=shared, dtype="float16")
    train(maps, tmp_path / "2", features=shared, fold=False)
    views = {"augment": True, "views": 2, "optimizer": "adamw", "epochs": 1, "lr": 0.01}
    train({**maps, **views}, tmp_path / "3", features=shared)

    names = {"layer4", "layer4-float16", "layer4-unfolded", "train", "clean"}
    assert {path.name for path in shared.iterdir()} == names


@pytest.mark.parametrize("command", ["train", "compare"])
def test_features_that_others_share_are_never_replaced(
    photos: Path, tmp_path: Path, command: str
) -> None:
    """Whatever --overwrite is for, it is not offered for them, and leaves them."""
    shared, other = tmp_path / "features", paint_classes(tmp_path / "other", 10)
    train(settings(photos), tmp_path / "one", features=shared)
    before = stored_files(shared)
    for overwrite in (False, True):
        given: dict[str, Any] = {"features": shared, "overwrite": overwrite}
        with pytest.raises(ValueError, match="something else .*; choose another --features$"):
            (
                train(settings(other), tmp_path / "run", **given)
                if command == "train"
                else compared(other, tmp_path / "run", **given)
            )
    assert stored_files(shared) == before


def test_features_of_a_run_are_replaced_with_it(photos: Path, tmp_path: Path) -> None:
    """They are its own: the message says so, and --overwrite does so."""
    folder = tmp_path / "run"
    train(settings(photos), folder)
    other = settings(paint_classes(tmp_path / "other", 10))
    for path in folder.iterdir():
        if path.name != FEATURES:
            path.unlink()
    with pytest.raises(ValueError, match="; start anew with --overwrite, or choose another --out"):
        train(other, folder)
    info = train(other, folder, overwrite=True)

    assert info["metrics"] == train(other, tmp_path / "anew")["metrics"]


def test_features_shared_by_an_earlier_version_are_used(photos: Path, tmp_path: Path) -> None:
    """They lie in the folder itself, in the order of one split; another one is refused."""
    shared, said = tmp_path / "features", list[str]()
    own = train(settings(photos), tmp_path / "run")
    shutil.copytree(tmp_path / "run" / FEATURES, shared)
    before = stored_files(shared)
    info = train(settings(photos), tmp_path / "one", features=shared, say=said.append)

    assert info["losses"] == own["losses"]
    assert not any("to compute and store" in line for line in said)
    with pytest.raises(ValueError, match="choose another --features$"):
        train(settings(photos, seed=1), tmp_path / "two", features=shared, overwrite=True)
    assert stored_files(shared) == before


def test_the_winner_of_a_comparison_is_not_replaced(photos: Path, tmp_path: Path) -> None:
    """It belongs to the comparison: no --overwrite is offered for it."""
    compared(photos, tmp_path / "found")
    before = stored_files(tmp_path / "found")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="in the folder of a run; choose another --out"):
            train(settings(photos), tmp_path / "found" / "winner", overwrite=overwrite)
    assert stored_files(tmp_path / "found") == before


def test_features_do_not_go_where_they_would_spoil_something(photos: Path, tmp_path: Path) -> None:
    """Not to a file, not into DATA, not among the files of this run or of another one."""
    (tmp_path / "file").touch()
    train(settings(photos), tmp_path / "other")
    for features, message in (
        (tmp_path / "file", "a file, expected a folder"),
        (photos / "features", "lies inside DATA"),
        (tmp_path / "other", "lies in the folder of a run"),
        (tmp_path / "run", "lies in the folder of a run"),
        (tmp_path / "run/store", "lies in the folder of a run"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            train(settings(photos), tmp_path / "run", features=features)
    assert not (tmp_path / "run").exists()
    train(settings(photos), tmp_path / "run", features=tmp_path / "run" / FEATURES)


@pytest.mark.parametrize(
    ("option", "wish"), [("--baseline", "baseline"), ("--save-model", "save_model")]
)
def test_finished_run_that_lacks_what_is_asked_for_says_so(
    photos: Path, tmp_path: Path, option: str, wish: str
) -> None:
    """--resume of it is no silent nothing; where it has it, it is read as ever."""
    info = train(settings(photos), tmp_path / "run")
    assert train(settings(photos), tmp_path / "run", resume=True) == info
    with pytest.raises(ValueError, match=f"is finished, without {option}; .*--overwrite"):
        train(settings(photos), tmp_path / "run", resume=True, **{wish: True})

    info = train(settings(photos), tmp_path / "run", overwrite=True, **{wish: True})
    assert train(settings(photos), tmp_path / "run", resume=True, **{wish: True}) == info


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_features_are_stored_in_half_precision(photos: Path, tmp_path: Path, dtype: str) -> None:
    """The store is half as large, the numbers nearly the same."""
    exact = train(settings(photos), tmp_path / "exact")
    half = train(settings(photos), tmp_path / "half", dtype=dtype)

    assert FeatureStore(tmp_path / "half" / FEATURES).manifest.dtype == dtype
    assert half["losses"] == pytest.approx(exact["losses"], abs=2e-2)
    assert half["losses"] != exact["losses"]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"head": "big"}, {}, "--head big: choose one of linear, mlp, cosine"),
        ({"tail": "long"}, {}, "--tail long: choose one of frozen, trainable"),
        ({"way": "best"}, {}, "--way best: choose one of auto, hooked, cached"),
        ({"way": "hooked", "augment": True, "views": 2}, {}, "--views 2 is for stored features"),
        ({"optimizer": "adam"}, {}, "--optimizer adam: choose one of auto, adamw, sgd"),
        (
            {"exclude": ["dark", "grey"]},
            {},
            "--exclude grey: there is no such class; choose of dark, light, middle",
        ),
        ({"views": 1, "augment": True}, {}, "--views 1: .* one view; give at least 2"),
        (
            {"views": 2, "augment": True, "layer": "input", "tail": "trainable"},
            {},
            "--views 2 is for stored features, not possible here: mixed images.*--augment alone",
        ),
        ({"batch_size": 1}, {}, "--batch-size 1 leaves a sample none to be mixed with"),
        ({"batch_size": 1, "alpha": "auto"}, {}, "--batch-size 1 leaves a sample none"),
        ({"patience": 0}, {}, "--patience 0 must be at least 1"),
        ({}, {"dtype": "int8"}, "--dtype int8: choose one of float32"),
        ({}, {"in_memory": "maybe"}, "--in-memory maybe: choose one of auto, yes, no"),
        ({"head": "mlp"}, {"save_model": True}, "--save-model: timm and torchvision know no mlp"),
    ],
)
def test_mistake_is_named_before_anything_is_written(
    photos: Path, tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    """An option that cannot be is an error that lists what can."""
    with pytest.raises(ValueError, match=message):
        train(settings(photos, **changes), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_interrupted_extraction_is_kept(photos: Path, tmp_path: Path) -> None:
    """Ctrl-C within the one pass says how to go on, and going on ends as without a break."""

    def stop_in_the_pass(steps: Any, total: int, description: str) -> Any:
        for step in steps:
            yield step
            if description == "extract features":
                raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match="--output .*run --resume goes on"):
        train(settings(photos), folder, track=stop_in_the_pass)
    whole = train(settings(photos), tmp_path / "whole")
    resumed = train(settings(photos), folder, resume=True)

    assert resumed["losses"] == whole["losses"]
    assert json.loads((folder / "run.json").read_text())["metrics"] == whole["metrics"]
