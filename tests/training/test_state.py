"""Trainings that fail are told: what counts as failed, what does not, and where it is said."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from manifold_mixup import load_run, train_head
from manifold_mixup.cli import main
from manifold_mixup.training import Classes, Diverged, Labels, Values
from manifold_mixup.training.state import Bar, FailedTraining, find_bar

Pairs = list[tuple[Tensor, Any]]

BAR = Bar(1.7, 1.6, "accuracy", 0.5, 1.0, "always answering 'daisy'")


def net(outputs: int = 3) -> nn.Sequential:
    """A stem that is mixed behind, and a head that is not linear."""
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))


def clusters(n: int, seed: int, shares: tuple[float, ...] = (0.4, 0.3, 0.3)) -> Pairs:
    """Features (4,) around the centre of their class, which is drawn with these shares."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.multinomial(torch.tensor(shares), n, replacement=True, generator=generator)
    noise = torch.randn(n, 4, generator=generator)
    return list(zip(4 * torch.eye(4)[target] + noise, target.tolist(), strict=True))


class Known(list[Any]):
    """Pairs whose targets are known without loading them."""

    @property
    def targets(self) -> list[int]:
        """Class indices (n,)."""
        return [target for _, target in self]


def relabelled(pairs: Pairs, share: float) -> Pairs:
    """The same with a share of the labels drawn anew."""
    draws = torch.Generator().manual_seed(0)
    redrawn = torch.rand(len(pairs), generator=draws) < share
    others = torch.randint(3, (len(pairs),), generator=draws)
    return [
        (x, int(other) if is_redrawn else target)
        for (x, target), other, is_redrawn in zip(pairs, others, redrawn, strict=True)
    ]


def trained(model: nn.Module, train: Pairs, val: Pairs | None, **options: Any) -> Any:
    """A training by steps, mixed behind the first layer."""
    usual: dict[str, Any] = {"layer": "0", "epochs": 12, "lr": 0.03, "alpha": 1.0}
    return train_head(model, train, validation=val, optimizer="adamw", **(usual | options))


# What counts as failed


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        ((1.2, 0.9, 0.8), ""),
        ((1.86, 0.9, 0.8), ""),  # within a tenth
        ((1.88, 0.9, 0.8), "the loss of clean training samples rose from 1.7 to 1.88"),
        ((math.nan, 0.9, 0.8), "the loss of clean training samples rose from 1.7 to nan"),
        ((1.2, 0.95, 0.51), ""),
        (
            (1.2, 0.95, 0.5),
            "it is no better than always answering 'daisy' (50.0%, and that 50.0%)",
        ),
        (
            (1.2, 0.95, 0.4),
            "it is no better than always answering 'daisy' (40.0%, and that 50.0%)",
        ),
        ((1.2, 0.8, 0.5), ""),  # as often right, but likelier
    ],
)
def test_reasons(measured: tuple[float, float, float], reason: str) -> None:
    """The training loss rose by a tenth, or validation has neither the quality nor the loss."""
    names = ("train_loss", "val_loss", "val_accuracy")

    assert BAR.why_failed(dict(zip(names, measured, strict=True))).endswith(reason)
    assert bool(BAR.why_failed(dict(zip(names, measured, strict=True)))) == bool(reason)


def test_a_good_head_may_end_above_where_it_began() -> None:
    """Mixing makes a sure head less sure; as long as logits of 0 are worse, nothing failed."""
    bar = Bar(begin=0.01, blank=1.1, name="accuracy")

    assert bar.why_failed({"train_loss": 1.0}) == ""
    assert bar.why_failed({"train_loss": 1.3}) != ""


@pytest.mark.parametrize(
    ("task", "target", "quality", "loss", "answer"),
    [
        (Classes(["a", "b"]), [0, 1, 1, 1], 0.75, 0.5623, "always answering 'b'"),
        (Classes(), [2, 2, 2, 0], 0.75, 0.5623, "always answering '2'"),
        (Classes(), [[0.5, 0.5], [0.0, 1.0]], 0.5, 0.5623, "always answering '1'"),
        (Labels(), [[0, 1], [1, 1], [0, 1], [0, 1]], 0.625, 0.2812, "the same labels for all"),
        (Values(), [1.0, 2.0, 3.0], 0.0, 2 / 3, "always the mean value"),
        (Values(mean=[2.0], std=[2.0]), [1.0, 3.0], 0.0, 0.25, "always the mean value"),
    ],
)
def test_one_answer_for_all_is_the_best_there_is(
    task: Any, target: Any, quality: float, loss: float, answer: str
) -> None:
    """Its quality is the share of the most frequent class, or what it is for other tasks."""
    bar = find_bar(task, 1.0, 1.0, torch.tensor(target))

    assert bar.quality == pytest.approx(quality, abs=1e-6)
    assert bar.loss == pytest.approx(loss, abs=1e-4)
    assert bar.answer == answer


def test_quality_that_is_undefined_is_not_judged() -> None:
    """Values that do not vary have no R2."""
    bar = find_bar(Values(), 1.0, 1.0, torch.ones(4))

    assert bar.why_failed({"train_loss": 0.5, "val_loss": 9.0, "val_r2": None}) == ""  # type: ignore[dict-item]


# Trainings that fail


def test_a_rate_far_too_high_fails() -> None:
    """The loss is finite, and higher than before the first step."""
    with pytest.warns(FailedTraining, match=r"samples rose from .* try another lr than 300,"):
        training = trained(net(), clusters(60, 0), clusters(30, 1), lr=300.0)

    assert training.failed.startswith("the loss of clean training samples rose from ")


@pytest.mark.parametrize(
    ("task", "label", "answer"),
    [
        (None, lambda target: target, "always answering '0'"),
        (Labels(), lambda target: F.one_hot(torch.tensor(target), 3), "the same labels for all"),
        (Values(), lambda target: torch.eye(3)[target], "always the mean value"),
    ],
)
def test_a_dead_network_fails(task: Any, label: Callable[[int], Any], answer: str) -> None:
    """It answers the same whatever comes in, which validation tells."""
    model = net()
    nn.init.constant_(model[1].bias, -1e6)
    train, val = (
        [(x, label(target)) for x, target in clusters(n, seed)] for n, seed in ((60, 0), (30, 6))
    )

    with pytest.warns(FailedTraining, match=f"no better than {answer}"):
        trained(model, train, val, task=task, lr=0.1, epochs=30)


def test_the_head_that_is_kept_is_judged() -> None:
    """With `patience` that is the one of the best epoch, whatever came after."""
    kept: list[Any] = []

    def spoil(training: Any) -> None:
        if not kept:
            nn.init.normal_(model[3].weight, std=1e3)
        kept.append(training)

    model = net()
    training = trained(
        model, clusters(60, 0), clusters(30, 1), lr=0.05, epochs=3, patience=3, on_epoch=spoil
    )

    assert training.failed == ""
    assert training.epochs[-1]["train_loss"] > 5 > training.metrics["train_loss"]


def test_loss_that_is_not_finite_is_an_error_of_its_own() -> None:
    """It names the epoch and the learning rate to lower."""
    with pytest.raises(Diverged, match=r"not finite any more in epoch 1; lower lr \(1e\+30\)"):
        trained(net(), clusters(60, 0), None, lr=1e30)


def test_a_head_spoilt_by_the_last_step_has_diverged() -> None:
    """Each loss is taken before its step, so none of them tells; clean samples do."""
    seen: list[Any] = []

    with pytest.raises(Diverged, match="in epoch 1; lower lr"):
        trained(net(), clusters(8, 0), None, lr=1e30, batch_size=8, on_epoch=seen.append)
    assert seen == []


def test_other_errors_are_no_divergence() -> None:
    """Running out of memory goes up as it came."""

    class Full(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("out of memory: the loss is not finite")
            return super().forward(x)

    model = net()
    model[2] = Full()

    with pytest.raises(RuntimeError, match="out of memory") as error:
        trained(model, clusters(60, 0), None)
    assert not isinstance(error.value, Diverged)


# Trainings that do not

HEALTHY: dict[str, dict[str, Any]] = {
    "mixed": {},
    "unmixed": {"alpha": 0.0},
    "warmed up": {"alpha": lambda done: 2 * done, "clean_weight": 1.0},
    "few steps": {"epochs": 5, "lr": 0.05},
    "smoothed": {"label_smoothing": 0.3},
    "best epoch": {"patience": 10},
    "own loss": {"criterion": nn.MultiMarginLoss(), "alpha": 0.0},
}


@pytest.mark.parametrize("options", HEALTHY.values(), ids=HEALTHY)
@pytest.mark.parametrize("share", [0.0, 0.4], ids=["right", "40 % wrong"])
def test_no_false_alarm(options: dict[str, Any], share: float) -> None:
    """Whatever the seed, the way to mix and the labels, a training that learns has not failed."""
    for seed in range(5):
        torch.manual_seed(seed)
        train, val = (relabelled(clusters(n, seed + n), share) for n in (90, 60))
        assert trained(net(), train, val, seed=seed, **options).failed == ""


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_no_false_alarm_where_a_class_is_rare(class_weight: str | None) -> None:
    """Not even where it is weighed up, so that the head is right less often than one answer."""
    for seed in range(5):
        torch.manual_seed(seed)
        train, val = (clusters(n, seed + n, (0.9, 0.05, 0.05)) for n in (120, 60))
        own = {"seed": seed, "class_weight": class_weight}
        assert trained(net(), Known(train), val, **own).failed == ""


def test_training_on_is_no_failure() -> None:
    """From a head that is good already, mixed samples and smoothed labels lead up again."""
    model, train, val = net(), clusters(90, 0), clusters(60, 1)
    first = trained(model, train, val, alpha=0.0, epochs=60)
    again = trained(model, train, val, alpha=2.0, label_smoothing=0.3)

    assert again.metrics["train_loss"] > 1.1 * first.metrics["train_loss"]
    assert again.failed == ""


def test_a_resumed_training_is_judged_alike() -> None:
    """By where it began, not by where it was broken off."""
    stood: list[Any] = []
    whole = net()
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    options: dict[str, Any] = {"lr": 30.0, "epochs": 4}
    with pytest.warns(FailedTraining):
        expected = trained(whole, clusters(60, 0), None, on_epoch=stood.append, **options).failed
    broken = net()
    broken.load_state_dict(start)

    with pytest.warns(FailedTraining):
        assert (
            trained(broken, clusters(60, 0), None, resume=stood[1], **options).failed == expected
        )


# On the command line


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of fifteen noisy pictures, one dark and one light."""
    monkeypatch.chdir(tmp_path)
    for name, grey in (("dark", 60), ("light", 190)):
        Path("photos", name).mkdir(parents=True)
        for number in range(15):
            noise = np.random.default_rng(grey + number).normal(grey, 30, (32, 32, 3))
            picture = Image.fromarray(noise.clip(0, 255).astype("uint8"))
            picture.save(Path("photos", name, f"{number}.png"))
    return Path("photos")


BLOCK = (
    *("train", "photos", "--model", "digits", "--layer", "layer2", "--tail", "trainable"),
    *("--epochs", "4", "--output", "run"),
)


def written() -> dict[str, Any]:
    """What run.json says."""
    info: dict[str, Any] = json.loads(Path("run/run.json").read_text())
    return info


@pytest.mark.usefixtures("photos")
def test_a_run_that_failed_is_written_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    """One line says why and what to do, the exit status is 3, and again when it is resumed."""
    for more in ([], ["--resume"]):
        assert main([*BLOCK, "--lr", "30", *more]) == 3
        printed = capsys.readouterr()

        assert printed.err.startswith("manifold-mixup: the training failed: the loss of clean ")
        assert "; try another --lr than 30 (without --lr validation chooses it)" in printed.err
        assert printed.err.count("\n") == 1
        assert "accuracy" in printed.out
    assert written()["failed"].startswith("the loss of clean training samples rose from ")


@pytest.mark.usefixtures("photos")
def test_json_has_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the measures, on stdout alone; the line on stderr is the same."""
    assert main([*BLOCK, "--lr", "30", "--json"]) == 3
    printed = capsys.readouterr()

    assert json.loads(printed.out)["failed"] == written()["failed"] != ""
    assert "the training failed" in printed.err


@pytest.mark.usefixtures("photos")
def test_a_run_that_diverged_has_its_last_finite_head(capsys: pytest.CaptureFixture[str]) -> None:
    """Here that from before the first step; it loads, and the failure is told."""
    assert main([*BLOCK, "--lr", "1e30"]) == 3

    assert "failed: the loss is not finite any more in epoch 1; try" in capsys.readouterr().err
    assert written()["failed"] == "the loss is not finite any more in epoch 1"
    assert all(p.isfinite().all() for p in load_run("run").model.parameters())


@pytest.mark.usefixtures("photos")
def test_a_run_that_learns_has_not_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --lr a rate is chosen that suits the block, which a line tells."""
    assert main([*BLOCK]) == 0
    printed = capsys.readouterr()

    assert printed.err == ""
    assert "learning rate: 0.0" in printed.out
    assert "(of 1e-05 ... 0.001, by validation loss of 3 epochs each)" in printed.out
    assert written()["failed"] == ""
    assert written()["lr"] in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    assert written()["metrics"]["accuracy"] == 1


@pytest.mark.usefixtures("photos")
def test_a_baseline_that_failed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside what it measured."""
    assert main([*BLOCK, "--lr", "30", "--baseline"]) == 3

    assert written()["baseline"]["failed"] != ""
    assert "; failed: the loss of clean training samples rose" in capsys.readouterr().out
