"""Data made harder on purpose: few images, wrong labels, and a test part that stays as it is."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifold_mixup.cli import main
from manifold_mixup.data import Split, harden, load_data, split_images
from manifold_mixup.data.degrade import few_of_each, redraw
from manifold_mixup.features import FeatureStore
from manifold_mixup.runs.checkpoint import RUN

CLASSES = ["lily", "rose", "tulip"]
QUICK = ["train", "--no-baseline", "--weight-decay", "0.1"]


def part_of(name: str, counts: list[int]) -> Split:
    """A part with so many images of each class, in a mixed order."""
    targets = [index for index, n in enumerate(counts) for _ in range(n)]
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0)).tolist()
    names = [f"{name}{i}" for i in order]
    return Split(names, [targets[i] for i in order], names)


def parts_of(train: int = 40, val: int = 10) -> dict[str, Split]:
    """Three parts; the second class has 5 images fewer in training, 7 in validation."""
    return {
        "train": part_of("train", [train, train - 5, train]),
        "val": part_of("val", [val, val - 7, val]),
        "test": part_of("test", [10, 10, 10]),
    }


@given(
    counts=st.lists(st.integers(4, 12), min_size=2, max_size=5),
    shots=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_so_many_of_each_class_are_kept(counts: list[int], shots: int, seed: int) -> None:
    """Every class has `shots` positions, none is taken twice, and they are in order."""
    targets = part_of("", counts).targets
    positions = few_of_each(targets, shots, seed)

    assert Counter(targets[i] for i in positions) == dict.fromkeys(range(len(counts)), shots)
    assert positions == sorted(set(positions))
    assert set(few_of_each(targets, shots - 1, seed) if shots > 1 else ()) <= set(positions)


def test_every_image_is_as_likely_to_be_kept() -> None:
    """Over 2,000 seeds, 2 of 5 take each of them in 2 of 5 cases."""
    kept = Counter(i for seed in range(2000) for i in few_of_each([0] * 5 + [1] * 5, 2, seed))
    spread = math.sqrt(2000 * 0.4 * 0.6)

    assert all(abs(kept[i] - 800) < 4 * spread for i in range(10))


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_share_of_wrong_labels(share: float, num_classes: int) -> None:
    """Of the share that is drawn again one in C stays right by chance, within 4 deviations; what
    is wrong is any of the other classes alike.
    """
    n, pairs = 10_000, num_classes * (num_classes - 1)
    targets = [i % num_classes for i in range(n)]
    redrawn = redraw(targets, share, num_classes, seed=0)
    moves = Counter((old, new) for old, new in zip(targets, redrawn, strict=True) if old != new)
    chance = 1 - 1 / num_classes
    expected = share * n * chance

    spread = math.sqrt(share * n * chance / num_classes)
    assert abs(sum(moves.values()) - expected) <= 4 * spread
    assert len(moves) == (pairs if share else 0)
    assert all(abs(m - expected / pairs) < 5 * math.sqrt(expected / pairs) for m in moves.values())


def test_more_wrong_labels_are_the_same_and_others() -> None:
    """What is wrong at a small share is wrong in the same way at a larger one."""
    targets = [i % 4 for i in range(400)]
    few, many = (redraw(targets, share, 4, seed=1) for share in (0.2, 0.5))

    changed = [i for i in range(400) if few[i] != targets[i]]
    assert 0 < len(changed) <= 80
    assert all(many[i] == few[i] for i in changed)
    assert many != few


def test_training_and_validation_parts_are_hardened_alone() -> None:
    """The training part has 5 of each class, the validation part at most 5, the test part all."""
    parts = parts_of()
    hard = harden(parts, CLASSES, shots=5, seed=0)

    assert Counter(hard["train"].targets) == {0: 5, 1: 5, 2: 5}
    assert Counter(hard["val"].targets) == {0: 5, 1: 3, 2: 5}
    assert hard["test"] == parts["test"]


@pytest.mark.parametrize("shots", [None, 5])
def test_images_keep_their_order_and_their_names(shots: int | None) -> None:
    """What stays is in the order it was, each image with its own name, the labels aside."""
    parts = parts_of()
    hard = harden(parts, CLASSES, shots=shots, label_noise=0.3, seed=0)

    for name, part in hard.items():
        places = [parts[name].names.index(one) for one in part.names]
        assert places == sorted(places)
        assert part.sources == [parts[name].sources[i] for i in places]
        assert len(part.targets) == len(places)


def test_labels_are_redrawn_by_a_draw_for_each_part() -> None:
    """Training and validation labels change, by draws that differ; test labels do not."""
    same = part_of("", [100, 100, 100])
    hard = harden(dict.fromkeys(("train", "val", "test"), same), CLASSES, label_noise=0.5, seed=0)

    changed = {
        name: [old != new for old, new in zip(same.targets, part.targets, strict=True)]
        for name, part in hard.items()
    }
    assert not any(changed["test"])
    for name in ("train", "val"):
        assert abs(sum(changed[name]) - 100) < 4 * math.sqrt(150 * 2 / 9)
    both = sum(a and b for a, b in zip(changed["train"], changed["val"], strict=True))
    assert abs(both - 100 / 3) < 15  # a third of a third, as of independent draws


def test_labels_are_redrawn_after_the_choice_of_images() -> None:
    """The images kept are those kept without noise: a class has its shots by its right label."""
    clean, noisy = (
        harden(parts_of(), CLASSES, shots=5, label_noise=noise, seed=3) for noise in (0, 1)
    )

    for name in ("train", "val"):
        assert clean[name].names == noisy[name].names
        assert clean[name].targets != noisy[name].targets


def test_a_seed_decides_alone() -> None:
    """The same seed gives the same parts, whatever the random state, which stays; another seed
    gives others.
    """
    request: dict[str, Any] = {"shots": 5, "label_noise": 0.4}
    first = harden(parts_of(), CLASSES, **request, seed=0)
    torch.manual_seed(1)
    state = torch.get_rng_state()

    assert harden(parts_of(), CLASSES, **request, seed=0) == first
    assert torch.equal(torch.get_rng_state(), state)
    other = harden(parts_of(), CLASSES, **request, seed=1)
    for name in ("train", "val"):
        assert other[name].names != first[name].names
    noisy = [
        harden(parts_of(), CLASSES, label_noise=0.4, seed=seed)["train"].targets for seed in (0, 1)
    ]
    assert noisy[0] != noisy[1]


def test_nothing_asked_changes_nothing() -> None:
    """Without shots and noise the parts are those given, whatever their targets are."""
    labels = Split(["a"], [[1.0, 0.0]], ["a"])
    for parts in (parts_of(), {"train": labels, "val": labels, "test": labels}):
        assert harden(parts, CLASSES, seed=0) == parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 38}, "class 'rose' has 35 images to train on, shots=38 .* at most 35"),
        ({"shots": 0}, "shots=0"),
        ({"label_noise": -0.1}, "label_noise=-0.1"),
        ({"label_noise": 1.5}, "label_noise=1.5"),
    ],
)
def test_wrong_wishes_are_named(changes: dict[str, Any], message: str) -> None:
    """A class with too few images is named with its number; so is what is out of range."""
    with pytest.raises(ValueError, match=message):
        harden(parts_of(), CLASSES, **changes, seed=0)


def test_a_class_that_is_not_there_has_too_few() -> None:
    """Where classes are named, each of them counts; else those that are there."""
    assert few_of_each([0, 2, 2], 1, 0)[0] == 0
    with pytest.raises(ValueError, match="class 'rose' has 0 images"):
        few_of_each([0, 2, 2], 1, 0, classes=CLASSES)
    with pytest.raises(ValueError, match="class 0 has 1 images"):
        few_of_each([0, 2, 2], 2, 0)


@pytest.mark.parametrize("changes", [{"shots": 1}, {"label_noise": 0.5}])
@pytest.mark.parametrize("target", [[1.0, 0.0], [2.5]])
def test_only_classes_are_made_harder(changes: dict[str, Any], target: list[float]) -> None:
    """Labels and values of images are refused, with a target."""
    part = Split(["a"], [target], ["a"])

    with pytest.raises(ValueError, match=r"images of one class each; a target here is \["):
        harden({"train": part, "val": part, "test": part}, CLASSES, **changes, seed=0)


# On the command line


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in a folder of its own: its status, and what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        status = main(list(words))
        return (status, *capsys.readouterr())

    return call


def test_train_with_few_images_and_wrong_labels(run: Callable[..., tuple[int, str, str]]) -> None:
    """A run of 5 images of each digit stores their features alone, with the labels they got, says
    so, and is measured on the same test part as any other run, which evaluate measures too.
    """
    status, shown, _ = run(*QUICK, "--shots", "5", "--label-noise", "0.2", "--output", "hard")
    info = json.loads(Path("hard", RUN).read_text())
    data = load_data("digits")
    parts = split_images(data, seed=0)
    hard = harden(parts, data.classes, shots=5, label_noise=0.2, seed=0)

    assert status == 0
    assert "images: 25 train, 25 val, 180 test" in shown
    assert "\n5 images a class; 20 % of the training and validation labels are redrawn\n" in shown
    assert (info["settings"]["shots"], info["settings"]["label_noise"]) == (5, 0.2)
    assert info["held_out"] == {name: hard[name].names for name in ("val", "test")}
    store = FeatureStore("hard/features")
    assert store.targets.tolist() == [one for part in hard.values() for one in part.targets]
    assert hard["test"] == parts["test"]
    status, shown, _ = run("evaluate", "--run", "hard", "--json")
    measured = json.loads(shown)
    assert (status, measured["split"], measured["n"]) == (0, "held-out", 180)
    for key in ("accuracy", "nll"):
        assert measured[key] == pytest.approx(info["metrics"][key], rel=1e-5)


def test_other_wishes_do_not_go_on_with_a_run(run: Callable[..., tuple[int, str, str]]) -> None:
    """--resume with the same wish reads the run, with another one it is refused."""
    assert run(*QUICK, "--shots", "5", "--output", "few")[0] == 0
    assert run(*QUICK, "--shots", "5", "--output", "few", "--resume")[0] == 0

    for words, message in (
        (["--shots", "6"], "started with shots=5, now it is 6"),
        ([], "started with shots=5, now it is None"),
        (["--shots", "5", "--label-noise", "0.5"], "label_noise=0.0, now it is 0.5"),
    ):
        status, _, error = run(*QUICK, *words, "--output", "few", "--resume")
        assert status == 2
        assert message in error


def test_features_of_all_images_serve_a_part_of_them(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    """A run on few of them has the numbers of one with features of its own, and they stay."""
    few = [*QUICK, "--shots", "5", "--no-baseline"]
    assert run(*QUICK, "--features", "kept", "--output", "all")[0] == 0

    assert run(*few, "--features", "kept", "--output", "shared")[0] == 0
    assert run(*few, "--output", "own")[0] == 0

    shared, own = (json.loads(Path(name, "run.json").read_text()) for name in ("shared", "own"))
    assert shared["metrics"] == pytest.approx(own["metrics"])
    assert len(FeatureStore("kept/global_pool")) == 896


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shots 200", "digits: class '5' has 109 images to train on, --shots 200"),
        ("--shots 0", "--shots 0 must be at least 1"),
        ("--label-noise 20", "--label-noise 20.0 must be in [0, 1]"),
    ],
)
def test_mistakes_are_one_line(
    run: Callable[..., tuple[int, str, str]], words: str, message: str
) -> None:
    """What cannot be is said in one line, with status 2, and no run is begun."""
    status, _, error = run(*QUICK, *words.split())

    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("runs").exists()


def test_labels_of_a_csv_file_are_not_made_harder(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    """The error tells the file and what its targets are."""
    rows = [f"{i}.png,{i / 7}" for i in range(40)]
    Path("values.csv").write_text("\n".join(["path,label", *rows]))
    for i in range(40):
        Path(f"{i}.png").touch()
    status, _, error = run(*QUICK, "values.csv", "--model", "digits", "--shots", "5")

    assert status == 2
    assert "values.csv: shots and label_noise are for images of one class each" in error
