"""Every option once: what the command line takes, a run stores and printed commands tell."""

import inspect
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer

from manifold_mixup import compare
from manifold_mixup.cli import app, main
from manifold_mixup.comparison import Candidates
from manifold_mixup.runs import CompareConfig, TrainConfig, flag_of, is_list, option_of, types_of
from manifold_mixup.runs.options import words_of

CONFIGS = {"train": TrainConfig, "compare": CompareConfig}
# A value that is not the default, for each field.
OTHERS: dict[str, dict[str, Any]] = {
    "train": {
        **{"data": "photos", "data_root": Path("root"), "skip_damaged": True, "model": "vit"},
        **{"weights": "a b.pth", "tail": "trainable", "batch_size": 8, "device": "cpu"},
        **{"workers": 2, "features": Path("it's"), "output": Path("run"), "overwrite": True},
        **{"task": "values", "shots": 3, "label_noise": 0.25, "augment": True, "views": 2},
        **{"head": "mlp", "layer": "blocks[-1]", "alpha": "auto", "pairing": "same-class"},
        **{"exclude": ("a", "b, c"), "kind": "noisy", "prob": 0.5, "alpha_warmup": 0.5},
        **{"clean_weight": 2.0, "optimizer": "sgd", "weight_decay": 1e-05, "epochs": 7},
        **{"lr": 0.003, "seed": 5, "label_smoothing": 0.1, "class_weight": "balanced"},
        **{"loss": "huber", "patience": 3, "way": "cached", "fold": False, "dtype": "float16"},
        **{"in_memory": "no", "baseline": False, "mixes": None, "save_model": False},
        **{"columns": ("a", "b, c"), "label_separator": "bar", "skip_unlabelled": True},
    },
    "compare": {
        **{"data": "photos", "data_root": Path("root"), "skip_damaged": True, "model": "vit"},
        **{"weights": "w.pth", "tail": "trainable", "mixes": 3, "batch_size": 8, "device": "cpu"},
        **{"workers": 2, "features": Path("f"), "output": Path("run"), "overwrite": True},
        **{"task": "classes", "shots": (1, 5), "label_noises": (0.2,), "test_on": "scans"},
        **{"layers": ("a", "re:b,c"), "alphas": (0.0, 0.7), "pairings": ("any", "other-class")},
        **{"clean_weights": (0.5,), "label_smoothing": 0.0, "weight_decays": (0.1, 1e-05)},
        **{"lrs": (0.001, 0.01), "epochs": 3, "worth": 0.02, "seeds": 4},
        **{"columns": ("a", "b, c"), "label_separator": "bar", "skip_unlabelled": True},
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_command_has_every_option_and_no_other(name: str) -> None:
    """What the command line takes beside them is how to print."""
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = {parameter.name for parameter in command.params}

    assert given == {one.name for one in fields(CONFIGS[name])} | {"as_json", "debug"}
    for parameter in command.params:
        assert parameter.help


@pytest.mark.parametrize("name", CONFIGS)
def test_printed_command_is_read_as_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option that is not what holds without it is told, and read back to the same value."""
    config = CONFIGS[name](**OTHERS[name])
    seen: list[Any] = []

    def note(given: Any, **_: Any) -> Any:
        seen.append(given)
        raise ValueError("seen")

    monkeypatch.setattr(f"manifold_mixup.cli.{name}_run", note)
    words = shlex.split(f"{name} {config.data} {' '.join(words_of(config))}")
    assert main(words) == 2

    assert seen == [config]
    told = {word for word in words if word.startswith("--")}
    for one in fields(config):
        changed = one.name != "data" and getattr(config, one.name) != one.default
        is_told = bool({flag_of(one), f"--no-{flag_of(one)[2:]}"} & told)
        assert is_told == changed


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_given_is_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command without options asks for what the class does without arguments."""
    seen: list[Any] = []
    monkeypatch.setattr(f"manifold_mixup.cli.{name}_run", lambda given, **_: seen.append(given))
    main([name])

    assert seen == [CONFIGS[name]()]


@pytest.mark.parametrize("config", CONFIGS.values())
def test_every_option_has_a_help_a_group_and_a_type_to_read(config: type) -> None:
    """None is without; what may be a few words alone says which."""
    kinds = types_of(config)
    for one in fields(config):
        told = option_of(one)
        assert told.help.endswith(".")
        assert told.group
        assert is_list(kinds[one.name]) <= (not isinstance(one.default, list))


def test_command_and_function_compare_the_same_by_default() -> None:
    """Fields, `Candidates` and the arguments of `compare` hold the same values."""
    function = inspect.signature(compare).parameters
    offered = CompareConfig().candidates()
    for one in fields(Candidates):
        assert list_of(getattr(offered, one.name)) == list_of(function[one.name].default)
    assert CompareConfig().worth == function["worth"].default


def list_of(value: Any) -> list[Any]:
    """Several values, or one."""
    return list(value) if isinstance(value, list | tuple) else [value]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a word of others": (lambda: TrainConfig(way="best"), "--way best: choose one of auto"),  # type: ignore[arg-type]
    "below the least": (lambda: TrainConfig(mixes=0), "--mixes 0 must be at least 1"),
    "above the most": (lambda: TrainConfig(alpha_warmup=2), "--alpha-warmup 2 must be at most 1"),
    "out of range": (lambda: TrainConfig(prob=1.5), "--prob 1.5 must be in"),
    "not together": (lambda: TrainConfig(mixes=2, lr=0.1), "leave out --lr"),
    "no output": (lambda: TrainConfig(resume=True), "--resume needs the --output"),
    "steps of a solved head": (lambda: CompareConfig(lrs=(0.1,)), "heads alone .* out --lrs"),
    "changed": (lambda: replace(TrainConfig(), views=1), "--views 1: all epochs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_from_python_too(case: str) -> None:
    """The class checks itself: no floor below has to."""
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "words", ["compare --alphas ''", "train --exclude ,", "compare --layers ''"]
)
def test_an_empty_list_is_not_what_holds_without_it(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked for by leaving the option out."""
    assert main(shlex.split(words)) == 2

    assert "is empty; give one at least, or leave it out" in capsys.readouterr().err


def test_a_list_will_do() -> None:
    """From Python several values come as a list or a tuple."""
    assert TrainConfig(exclude=["a", "b"]) == TrainConfig(exclude=("a", "b"))  # type: ignore[arg-type]


def test_it_is_frozen() -> None:
    """What was checked stays so."""
    with pytest.raises(AttributeError):
        TrainConfig().alpha = -1.0  # type: ignore[misc]
