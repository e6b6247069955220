"""What a linear head at its optimum costs: beside scikit-learn, mixed, along decays, from disk.

    python scripts/benchmark.py heads [unmixed] [mixed] [path] [minimizer] [memory]

Processor time, 1 thread (OMP_NUM_THREADS=1) of 2 cores of a shared AMD EPYC with other jobs,
Linux, Python 3.11.7, torch 2.14.1, SciPy 1.17.1, scikit-learn 1.9.1. ResNet-18's features of 810
photos of flowers5 (810 x 512), medians of 7 rounds (minimizer: 5, another draw of 810), and
made-up ones (5000 x 2048, 37 classes), medians of 3, for the path of 2. "From features" counts
what is done once for all heads of the same features, "alone" does not.

unmixed, at decays 0.1 and 0.01, with the loosest tolerance by which ours is at least as low as
LogisticRegression with its default tolerance: photos 1.70 [1.63, 1.72] and 1.77 [1.71, 1.99] of
its time from features, of which turning them is most, and 0.41 and 0.66 alone; made up 0.48 and
0.66, alone 0.29 and 0.46. With tol=1e-6: photos 1.18 and 1.64 [1.46, 1.70], alone 0.38 and 1.00;
in float64 with tol=1e-8 0.98 and 1.15, alone 0.53 and 0.89.

mixed, 16 mixes beside none to the tolerance of a path: photos 1.15 and 1.03 from features, 1.67
and 1.09 alone; made up, alone, 1.11 and 0.76. To that of the head which is kept: photos 1.26 and
1.17, alone 1.59 and 1.27.

path, 9 decays beside one solve at 0.1 or 0.01, as exact as the head which is kept: photos 2.91
[2.84, 3.05] and 1.53 from features, 5.1 and 1.7 alone; with 16 mixes 1.60 and 0.95, alone 1.95 and
0.93; made up, alone, 2.0 [1.9, 2.2] and 1.0.

minimizer, photos: torch.optim.LBFGS takes 1.21 to 1.23 of SciPy's time to the same objective, with
2 to 4 evaluations more; without the change of variables it is 1.6 to 3.2, and 38, 66 evaluations
for 20, 39, with mixes 26, 59 for 11, 13.

memory, 50,000 x 2048 (391 MB) read from disk, 37 classes, 16 mixes, decay 0.1, 2 threads: 181 MB
above the imports for the solve (9.4 s), 204 MB for `train_head` (23 s).
"""

from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from torch import nn

from benchmarks.head_features import CLASSES, WIDTH, Given, MadeUp, made_up, of_photos
from benchmarks.head_ways import (
    ALPHA,
    EXACT,
    MIXES,
    PATH,
    Problem,
    as_they_are,
    fit,
    loosest,
    minimize_by_torch,
    standardize,
)
from benchmarks.measuring import (
    AnonymousPeak,
    Seconds,
    compare,
    in_own_process,
    median_seconds,
    process_mb,
    time_alternately,
    timed,
)
from benchmarks.options import SHARED, Rounds, Weights
from benchmarks.printing import format_seconds, print_head, print_row, print_setting, threads
from manifold_mixup import FeatureStore, extract_features, train_head
from manifold_mixup.linear_heads import MixedRisk, Standardized, draw_mixes, solve

CPU = torch.device("cpu")
# Those that validation chooses lie about there.
DECAYS = (0.1, 0.01)
PATH_DECAYS = [10 ** (1 - 5 * step / 8) for step in range(9)]  # 10 to 0.0001


class Section(str, Enum):
    """What can be measured."""

    UNMIXED = "unmixed"
    MIXED = "mixed"
    PATH = "path"
    MINIMIZER = "minimizer"
    MEMORY = "memory"


def cpu(seconds: list[Seconds]) -> str:
    """The median processor time."""
    return format_seconds(median_seconds(seconds).cpu)


def print_unmixed(given: Given, rounds: int) -> None:
    """Ours beside scikit-learn's, each pair to the same objective or a lower one of ours."""
    print_head(
        f"unmixed, {given.title}, {threads()}",
        "iterations, evaluations",
        "above the optimum",
        "CPU from features",
        "ours / scikit-learn's",
        "ours / scikit-learn's, solve alone",
    )
    for decay in DECAYS:
        problem = Problem(given, decay)
        for dtype, tolerance in (("float32", 1e-4), ("float32", 1e-6), ("float64", 1e-8)):
            features = given.features.to(getattr(torch, dtype))
            print_beside(problem, features, tolerance, f"decay {decay:g}, {dtype}", rounds)


def print_beside(
    problem: Problem, features: torch.Tensor, tolerance: float, what: str, rounds: int
) -> None:
    """One pair: scikit-learn's tolerance, and the loosest of ours that gets as low."""
    ready, rows = standardize(features), problem.rows()
    least = problem.least(rows)
    peer = fit(problem, tolerance, ready)
    weight, bias = torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_)
    theirs = problem.objective(weight, bias)
    own = loosest(lambda t: problem.objective_of(problem.solve(t, rows), rows), theirs)
    head = problem.solve(own, rows)
    ways: dict[str, Callable[[], Any]] = {
        "whole": partial(problem.solve, own),
        "whole, theirs": lambda: fit(problem, tolerance, standardize(features)),
        "alone": partial(problem.solve, own, rows),
        "alone, theirs": partial(fit, problem, tolerance, ready),
    }
    seconds = time_alternately(ways, rounds, CPU)
    ratios = [
        str(compare(seconds[part], seconds[f"{part}, theirs"], "cpu"))
        for part in ("whole", "alone")
    ]
    print_row(
        f"{what}: scikit-learn, tol {tolerance:g}; ours {own:.0e}",
        f"{int(peer.n_iter_[0])}, {head.evaluations}",
        f"{theirs / least - 1:.1e}, {problem.objective_of(head, rows) / least - 1:.1e}",
        f"{cpu(seconds['whole, theirs'])}, {cpu(seconds['whole'])}",
        *ratios,
    )


def print_mixed(given: Given, rounds: int) -> None:
    """16 mixes beside none, to the same tolerance."""
    print_head(
        f"{MIXES} mixes, {given.title}, {threads()}",
        "evaluations",
        "CPU from features",
        f"{MIXES} mixes / none",
        f"{MIXES} mixes / none, solve alone",
    )
    for decay in DECAYS:
        plain, mixed = Problem(given, decay), Problem(given, decay, is_mixed=True)
        rows = plain.rows()
        for tolerance in (PATH, EXACT):
            ways: dict[str, Callable[[], Any]] = {
                "none": partial(plain.solve, tolerance),
                "mixed": partial(mixed.solve, tolerance),
                "none, alone": partial(plain.solve, tolerance, rows),
                "mixed, alone": partial(mixed.solve, tolerance, rows),
            }
            seconds = time_alternately(ways, rounds, CPU)
            evaluations = [way.solve(tolerance, rows).evaluations for way in (plain, mixed)]
            print_row(
                f"decay {decay:g}, tolerance {tolerance:g}",
                "{}, {}".format(*evaluations),
                f"{cpu(seconds['none'])}, {cpu(seconds['mixed'])}",
                compare(seconds["mixed"], seconds["none"], "cpu"),
                compare(seconds["mixed, alone"], seconds["none, alone"], "cpu"),
            )


def print_path(given: Given, rounds: int) -> None:
    """The heads of nine decays beside one, as exact as the one that is kept."""
    print_head(
        f"{given.title}, {len(PATH_DECAYS)} decays, {threads()}",
        "evaluations",
        "CPU from features",
        "path / one solve",
        "path / one solve, both alone",
    )
    for is_mixed in (False, True):
        for decay in (*DECAYS, PATH_DECAYS[-1]):
            problem = Problem(given, decay, is_mixed)
            rows = problem.rows()
            ways: dict[str, Callable[[], Any]] = {
                "path": partial(problem.path, PATH_DECAYS),
                "one": partial(problem.solve, EXACT),
                "path, alone": partial(problem.path, PATH_DECAYS, rows),
                "one, alone": partial(problem.solve, EXACT, rows),
            }
            seconds = time_alternately(ways, rounds, CPU)
            evaluations = problem.path(PATH_DECAYS, rows), problem.solve(EXACT, rows).evaluations
            print_row(
                f"{f'{MIXES} mixes' if is_mixed else 'unmixed'}, one solve at {decay:g}",
                "{}, {}".format(*evaluations),
                f"{cpu(seconds['path'])}, {cpu(seconds['one'])}",
                compare(seconds["path"], seconds["one"], "cpu"),
                compare(seconds["path, alone"], seconds["one, alone"], "cpu"),
            )


def print_minimizers(given: Given, rounds: int) -> None:
    """`solve` as it is, by PyTorch's L-BFGS, and without its change of variables."""
    for decay in DECAYS:
        for is_mixed in (False, True):
            problem = Problem(given, decay, is_mixed)
            mixed = f"{MIXES} mixes" if is_mixed else "unmixed"
            title = f"{given.title}, decay {decay:g}, {mixed}, {threads()}"
            print_head(title, "evaluations", "above the optimum", "CPU", "CPU / solve's")
            print_ways(problem, rounds)


def print_ways(problem: Problem, rounds: int) -> None:
    """Three ways to solve one problem, to the same objective or a lower one."""
    rows, plain = problem.rows(), as_they_are(problem.rows())
    least = problem.least(rows)

    def by_torch(tolerance: float) -> Any:
        with patch("scipy.optimize.minimize", minimize_by_torch):
            return problem.solve(tolerance, rows)

    solvers: dict[str, Callable[[float], Any]] = {
        "solve (SciPy)": lambda tolerance: problem.solve(tolerance, rows),
        "torch.optim.LBFGS": by_torch,
        "variables as they are": lambda tolerance: problem.solve(tolerance, plain),
    }
    limit = problem.objective_of(problem.solve(PATH, rows), rows)
    ways, cells = {}, {}
    for name, solver in solvers.items():
        tolerance = loosest(lambda t, s=solver: problem.objective_of(s(t), rows), limit)
        head = solver(tolerance)
        ways[name] = partial(solver, tolerance)
        above = problem.objective_of(head, rows) / least - 1
        cells[name] = head.evaluations, f"{above:.1e}"
    seconds = time_alternately(ways, rounds, CPU)
    for name, own in seconds.items():
        print_row(name, *cells[name], cpu(own), compare(own, seconds["solve (SciPy)"], "cpu"))


def linear_model() -> nn.Module:
    """A model whose features are what it is given."""
    return nn.Sequential(nn.Identity(), nn.Linear(WIDTH, CLASSES))


def store_made_up(folder: str, samples: int) -> None:
    """Write made-up features, shard by shard."""
    extract_features(linear_model(), "0", MadeUp(samples), folder, fold=False)


def solve_from_disk(folder: str) -> Any:
    """The whole of one head's solution, the features read where they lie."""
    store = FeatureStore(folder)
    mixes = draw_mixes(MIXES, len(store), ALPHA, target=store.targets)
    rows = Standardized(store.features.gather, len(store))
    return solve(rows, MixedRisk.of_classes(store.targets, CLASSES, mixes), DECAYS[0])


def train_from_disk(folder: str) -> Any:
    """The same by `train_head`, to the last digit, and measured."""
    store = FeatureStore(folder)
    return train_head(
        linear_model(), store, weight_decay=DECAYS[0], alpha=ALPHA, say=lambda _: None
    )


def peak_of(work: Callable[[str], Any], folder: str, few: str) -> tuple[float, Seconds]:
    """Anonymous MB above the imports, and the time that it takes."""
    work(few)  # loads what is lazy
    before = process_mb("RssAnon")
    with AnonymousPeak() as peak:
        seconds = timed(lambda: work(folder), CPU)
    return peak.mb - before, seconds


def print_memory(samples: int) -> None:
    """Solve for a head of features on disk, in processes of their own."""
    with TemporaryDirectory() as folder, TemporaryDirectory() as few:
        in_own_process(store_made_up, folder, samples)
        in_own_process(store_made_up, few, CLASSES * 2)
        size = FeatureStore(folder).features.nbytes / 2**20
        title = f"{samples:,} x {WIDTH}, {size:.0f} MB on disk, {MIXES} mixes"
        print_head(title, "anonymous MB above the imports", "wall", "CPU")
        for name, work in (("solve", solve_from_disk), ("train_head", train_from_disk)):
            mb, seconds = in_own_process(peak_of, work, folder, few)
            times = map(format_seconds, (seconds.wall, seconds.cpu))
            print_row(f"{name}, decay {DECAYS[0]:g}", f"{mb:.0f}", *times)


def main(
    sections: Annotated[list[Section] | None, typer.Argument(help="[default: all]")] = None,
    rounds: Rounds = 15,
    large_rounds: Annotated[int, typer.Option(min=1, help="Of the made-up features.")] = 5,
    data: Annotated[Path, typer.Option(help="Folder of class folders.")] = (
        SHARED / "datasets" / "flowers5" / "train"
    ),
    model: Annotated[str, typer.Option(help="With a layer4.")] = "resnet18",
    weights: Weights = str(SHARED / "weights" / "resnet18_imagenet.safetensors"),
    images: Annotated[int, typer.Option(help="To extract from.")] = 810,
    made: Annotated[int, typer.Option(help="Made-up samples to solve for.")] = 5_000,
    samples: Annotated[int, typer.Option(help="The same, from disk.")] = 50_000,
) -> None:
    """Measure what linear heads at their optimum cost, in time and in memory."""
    chosen = sections or list(Section)
    print_setting(CPU, "scipy", "scikit-learn")
    tables = {
        Section.UNMIXED: print_unmixed,
        Section.MIXED: print_mixed,
        Section.PATH: print_path,
        Section.MINIMIZER: print_minimizers,
    }
    if tables.keys() & set(chosen):
        photos, large = of_photos(data, model, weights, images), made_up(made)
        for section in (one for one in chosen if one in tables):
            tables[section](photos, rounds)
            tables[section](large, large_rounds)
    if Section.MEMORY in chosen:
        print_memory(samples)
