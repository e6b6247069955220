"""Where does mixing help? Every backbone on every data set there is, with what rivals it.

    python scripts/evidence.py heads         linear heads, by `compare`, beside LogisticRegression
                                             and augmented features (FroFA)
    python scripts/evidence.py blocks        the last block of a ResNet-18 and the head
    python scripts/evidence.py episodes      5-way tasks of 1 and of 5 images a class

Tables and texts have models of their own: scripts/tabular.py and scripts/text.py.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.options import SHARED, Device
from benchmarks.printing import print_head, print_row, print_setting
from manifold_mixup import extract_features, unfreeze
from manifold_mixup.comparison import Comparison, Row
from manifold_mixup.loading import find_device
from manifold_mixup.starts import list_cases
from manifold_mixup.trials import Ways
from studies.episodes import describe, difference, run_episodes
from studies.heads import Study, study
from studies.rivals import Rival
from studies.subjects import SUBJECTS, Subject

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Seeds = Annotated[int, typer.Option(min=2, help="How many, from 0.")]
Only = Annotated[str, typer.Option(help="Only subjects in whose name this occurs.")]
Features = Annotated[Path | None, typer.Option(help="Where features are stored, to be kept.")]

HEAD = (
    *("data", "backbone", "case", "accuracy without", "best mix", "accuracy, points", "NLL"),
    *("verdict", "LogisticRegression, points", "best FroFA, points", "seconds"),
)


@app.command()
def heads(
    only: Only = "", seeds: Seeds = 5, features: Features = None, device: Device = "cpu"
) -> None:
    """Linear heads on frozen features: clean, few samples, wrong labels."""
    where = find_device(device)
    print_setting(where, "torchvision", "timm", "scikit-learn")
    print_head(*HEAD)
    cases = list_cases([5, 20], [0.4])
    for subject in _chosen(only):
        with tempfile.TemporaryDirectory() as folder:
            kept = (features or Path(folder)) / f"{subject.data}-{subject.model}"
            ways = Ways(noises=(0.5,))
            for one in study(subject.load(), kept, cases, ways, seeds, device=where, rivals=True):
                _print_study(subject, subject.model, one)


@app.command()
def blocks(
    only: Only = "resnet18",
    seeds: Seeds = 5,
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    device: Device = "cpu",
) -> None:
    """Block 4 of a ResNet-18 and the head, mixed at layer3: clean, few samples, wrong labels."""
    where = find_device(device)
    print_setting(where, "torchvision", "timm")
    print_head(*HEAD)
    ways = Ways(
        alphas=(0.4, 1.0),
        pairings=("any",),
        clean_weights=(),
        noises=(),
        lrs=(0.0001, 0.0003, 0.001),
        weight_decays=(0.1,),
        epochs=epochs,
    )
    for subject in _chosen(only):
        loaded = subject.load()
        unfreeze(loaded.model, from_layer="layer4")
        loaded = type(loaded)(loaded.model, "layer3", loaded.dataset, loaded.data)
        with tempfile.TemporaryDirectory() as folder:
            for one in study(
                loaded,
                Path(folder, "features"),
                list_cases([20], [0.4]),
                ways,
                seeds,
                device=where,
                rivals=False,
            ):
                _print_study(subject, f"{subject.model}, block 4 trained", one)


@app.command()
def episodes(only: Only = "", features: Features = None, device: Device = "cpu") -> None:
    """Tasks of 5 classes and 1 or 5 images of each."""
    where = find_device(device)
    print_setting(where, "torchvision", "timm", "scikit-learn")
    print_head("data", "backbone", "shots", "head", "accuracy", "to no mixing")
    for subject in _chosen(only):
        loaded = subject.load()
        with tempfile.TemporaryDirectory() as folder:
            kept = (features or Path(folder)) / f"{subject.data}-{subject.model}"
            model = loaded.model.to(where)
            store = extract_features(model, loaded.layer, loaded.dataset, kept)
            taken = store.features.gather(torch.arange(len(store))).flatten(1)
        for shots in (1, 5):
            scores = run_episodes(taken, store.targets, shots)
            base = scores["linear head, no mixing"]
            for name, own in scores.items():
                cells = (subject.data, subject.model, shots, name, describe(own))
                print_row(*cells, "" if own is base else difference(own, base))


def _chosen(only: str) -> list[Subject]:
    """The subjects that can be loaded here."""
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED}: not there; weights and data sets lie beside the checkout")
    return [one for one in SUBJECTS if only in f"{one.data} {one.model}"]


def _print_study(subject: Subject, model: str, one: Study) -> None:
    found, case = one.found, one.case.name or "all"
    best = _best_mixed(found)
    logistic, frofa = _rivals(found)
    print_row(
        subject.data,
        model,
        case,
        f"{found.rows[found.base].metrics['accuracy']:.1%}",
        _short(found.rows[best]),
        _points(found, best),
        f"{found.nll[best].mean:+.3f} ({found.nll[best].low:+.3f} to {found.nll[best].high:+.3f})",
        _word(found),
        "-" if logistic is None else _points(found, logistic),
        "-" if frofa is None else _points(found, frofa),
        f"{one.extraction:.0f} + {one.training:.0f}",
    )


def _best_mixed(found: Comparison) -> int:
    """The place of the row to use, if it mixes; else of the best that mixes by validation."""
    if found.rows[found.winner].trial.mixes:
        return found.winner
    mixed = [i for i, row in enumerate(found.rows) if row.trial.mixes]
    return min(mixed, key=lambda i: found.rows[i].metrics["val_nll"])


def _rivals(found: Comparison) -> tuple[int | None, int | None]:
    """Places of LogisticRegression, and of the best of the others by validation."""
    places = [i for i, row in enumerate(found.rows) if isinstance(row.trial, Rival)]
    if not places:
        return None, None
    logistic, *others = places
    return logistic, min(others, key=lambda i: found.rows[i].metrics["val_nll"])


def _short(row: Row) -> str:
    variant = f", {row.trial.variant}" if row.trial.variant else ""
    return f"alpha {row.trial.alpha:g}{variant}"


def _points(found: Comparison, place: int) -> str:
    mean, low, high = (100 * end for end in vars(found.accuracy[place]).values())
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _word(found: Comparison) -> str:
    """What mixing does, in a word or two."""
    mixed = [i for i, row in enumerate(found.rows) if row.trial.mixes]
    if any(found.gains(i) for i in mixed):
        return "helps"
    return "worse in all rows" if all(found.loses(i) for i in mixed) else "no gain"


if __name__ == "__main__":
    app()
