"""The benchmarks: each part runs at its smallest size, and its tables have all their rows."""

import itertools
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmark import app
from benchmarks import measuring
from benchmarks.measuring import Ratio, Seconds, alternate, compare, in_own_process
from benchmarks.peer_rows import ROWS

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    # Some parts choose their own number.
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of eight grey pictures each, in train/ and in test/."""
    for part, name, number in itertools.product(("train", "test"), "abc", range(8)):
        file = tmp_path / part / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = 10 * number + 80 * "abc".index(name)
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(file)
    return tmp_path


def tables(*arguments: str) -> dict[str, dict[str, list[str]]]:
    """The tables that a command prints, by title: the cells of every row, by its first one."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert re.search(rf"Python 3\S+ .*torch {re.escape(version('torch'))}", result.stdout)
    found: dict[str, dict[str, list[str]]] = {}
    for block in result.stdout.split("\n\n")[1:]:
        lines = [row for row in block.splitlines() if row.startswith("|")]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        assert len({len(row) for row in rows}) == 1
        found[rows[0][0]] = {row[0]: row[1:] for row in rows[2:]}
    return found


def test_store_has_memory_pass_and_types(photos: Path) -> None:
    """The pass is compared with the plain loop, 100 epochs with the pass, types with float32."""
    size = ["--rounds", "1", "--samples", "9", "--images", "4"]
    model = ["--model", "digits", "--weights", "pretrained", "--data", str(photos / "train")]
    memory, pass_, head, types = tables("store", *size, *model).values()

    assert list(memory) == ["extraction", "training"]
    assert list(pass_) == ["plain loop", "extraction"]
    assert list(head) == ["extraction", "100 epochs", "both"]
    assert list(types) == ["float32", "float16", "bfloat16"]
    wide, half, brain = ([float(cell) for cell in row[:4]] for row in types.values())
    assert wide == [0] * 4
    assert all(0 < a < b for a, b in zip(half, brain, strict=True))


def test_heads_have_all_tables(photos: Path) -> None:
    """Each of the parts is measured on the photos and on the made-up features, and from disk."""
    size = ["--rounds", "1", "--large-rounds", "1", "--images", "6", "--made", "80"]
    model = ["--model", "digits", "--weights", "pretrained", "--data", str(photos / "train")]
    *of_both, memory = tables("heads", *size, "--samples", "90", *model).values()

    unmixed, mixed, path, minimizers = of_both[:2], of_both[2:4], of_both[4:6], of_both[6:]
    assert [len(table) for table in unmixed] == [6, 6]
    assert [len(table) for table in mixed + path] == [4, 4, 6, 6]
    ways = ["solve (SciPy)", "torch.optim.LBFGS", "variables as they are"]
    assert [list(table) for table in minimizers] == [ways] * 8
    assert list(memory) == ["solve, decay 0.1", "train_head, decay 0.1"]


def test_mix_has_every_dtype_and_layout_of_a_size() -> None:
    """One table for each number of threads, without and with a gradient."""
    sizes = ["--size", "2x3", "--size", "2x3x2x2"]
    found = tables("mix", "operation", "--rounds", "1", *sizes)

    assert len(found) == 4
    for table in found.values():
        assert len(table) == 2 + 4
        assert "2x3x2x2 bfloat16 channels_last" in table


def test_mix_has_draw_step_and_memory() -> None:
    """A step with the hook stands beside one without, in time and in memory."""
    *draws, step, memory = tables(
        "mix", "draw", "step", "memory", "--rounds", "1", "--step", "resnet10t:2"
    ).values()

    assert [len(table) for table in draws] == [4, 4]
    assert list(step) == ["plain", "mixed"]
    assert list(memory) == ["resnet10t:2"]
    assert all(float(cell) > 0 for cell in memory["resnet10t:2"])


def test_peers_has_our_own_rows(photos: Path) -> None:
    """Every row trains in a process of its own and tells its accuracy."""
    rows = ["ours, solved", "ours, cached steps", "ours, hooked steps"]
    chosen = [part for row in rows for part in ("--row", row)]
    size = ["--images", "4", "--epochs", "1", "--seeds", "1", "--weights", "none"]
    (table,) = tables("peers", "--data", str(photos), *size, *chosen).values()

    assert list(table) == rows
    assert all(0 <= int(cells[-1]) <= 24 for cells in table.values())


def test_the_script_tells_its_options() -> None:
    """It runs as a file, and an unknown row is answered by those that there are."""
    command = [sys.executable, str(SCRIPT), "peers", "--help"]
    help_ = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wrong = CliRunner().invoke(app, ["peers", "--row", "nobody"])

    assert {"--data", "--epochs", "--row", "--device"} <= set(re.findall(r"--[\w-]+", help_))
    assert wrong.exit_code == 2
    assert all(row.split(",")[0] in wrong.output for row in ROWS)


def test_all_ways_take_their_turn_in_every_round() -> None:
    """What each gives is kept in order; the order within a round is random."""
    random.seed(0)
    turns: list[str] = []
    ways = {name: lambda name=name: turns.append(name) or len(turns) for name in "abc"}
    results = alternate(ways, 20)
    rounds = ["".join(turns[i : i + 3]) for i in range(0, 60, 3)]

    assert all(sorted(a_round) == ["a", "b", "c"] for a_round in rounds)
    assert len(set(rounds)) > 1
    assert all(turns[turn - 1] == name for name, of_way in results.items() for turn in of_way)


def test_ratios_are_taken_by_round() -> None:
    """A round that was slow for both ways does not matter."""
    base = [Seconds(1, 10), Seconds(100, 20), Seconds(2, 40)]
    own = [Seconds(3, 10), Seconds(300, 10), Seconds(6, 80)]

    assert compare(own, base, "wall") == Ratio(3, 3, 3)
    assert compare(own, base, "cpu") == Ratio(1, 0.5, 2)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_time_is_the_mean_of_the_repeats(repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call before them, which warms the cache, does not count."""
    calls: list[None] = []
    monkeypatch.setattr(measuring, "read_clocks", lambda _: Seconds(len(calls), 2 * len(calls)))

    assert measuring.timed(lambda: calls.append(None), CPU, repeats) == Seconds(1, 2)


def test_a_process_of_its_own_is_another() -> None:
    """And its result comes back."""
    assert in_own_process(os.getpid) != os.getpid()
