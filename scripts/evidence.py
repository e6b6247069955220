"""Where does mixing help? Every backbone on every data set there is, with what rivals it.

    python scripts/evidence.py heads         linear heads, by `compare`, beside augmented features
    python scripts/evidence.py blocks        the last block and the head, beside the linear head
    python scripts/evidence.py episodes      5-way tasks of 1 and of 5 images a class

Tables and texts have models of their own: scripts/tabular.py and scripts/text.py.

heads: accuracy in percent of the head without mixing, what the mix that validation chooses changes
in points and in NLL at the temperature (95 % intervals over 20 replicates and test images, worth 1
point), and the answer. Bad: labels redrawn.

  flowers5 resnet18  all       88.1  -0.0 (-0.6, +0.5)  +0.003 (-0.005, +0.011)  leave it off
  flowers5 resnet18  5 each    70.2  -0.2 (-0.9, +0.4)  +0.013 (-0.010, +0.036)  leave it off
  flowers5 resnet18  20 each   81.2  -0.1 (-0.6, +0.3)  +0.004 (-0.004, +0.013)  leave it off
  flowers5 resnet18  40 % bad  82.9  +0.2 (-0.3, +0.6)  -0.006 (-0.009, -0.003)  leave it off
  trash6   resnet18  all       81.0  -0.2 (-0.8, +0.4)  +0.006 (-0.003, +0.014)  leave it off
  trash6   resnet18  5 each    57.8  -0.3 (-1.2, +0.6)  +0.004 (-0.008, +0.016)  leave it off
  trash6   resnet18  20 each   70.4  -0.1 (-0.6, +0.4)  -0.003 (-0.010, +0.003)  leave it off
  trash6   resnet18  40 % bad  72.8  +0.1 (-0.6, +0.8)  -0.007 (-0.012, -0.002)  leave it off
  dtd10    resnet18  all       83.4  +0.2 (-0.5, +0.8)  -0.003 (-0.013, +0.008)  leave it off
  dtd10    resnet18  5 each    69.9  +0.2 (-0.3, +0.8)  -0.004 (-0.012, +0.004)  leave it off
  dtd10    resnet18  20 each   78.1  +0.3 (-0.2, +0.7)  +0.001 (-0.005, +0.006)  leave it off
  dtd10    resnet18  40 % bad  77.9  +0.2 (-0.3, +0.7)  -0.013 (-0.019, -0.007)  leave it off
  elpv4    resnet18  all       73.1  -0.4 (-1.0, +0.3)  +0.008 (-0.000, +0.016)  leave it off
  elpv4    resnet18  5 each    37.1  +0.8 (-0.4, +1.9)  -0.000 (-0.018, +0.018)  cannot tell
  elpv4    resnet18  20 each   45.3  +0.5 (-0.4, +1.5)  -0.006 (-0.014, +0.002)  cannot tell
  elpv4    resnet18  40 % bad  71.3  -0.2 (-0.7, +0.3)  -0.001 (-0.005, +0.004)  leave it off
  digits   built-in  all       95.1  +0.1 (-0.5, +0.7)  -0.006 (-0.018, +0.007)  leave it off
  digits   built-in  5 each    74.9  +2.0 (+0.6, +3.3)  -0.036 (-0.124, +0.052)  use it
  digits   built-in  20 each   89.9  +0.6 (-0.2, +1.5)  -0.032 (-0.052, -0.012)  cannot tell
  digits   built-in  40 % bad  89.5  +0.4 (-0.2, +1.1)  -0.017 (-0.023, -0.011)  cannot tell
  mnist    vit       all       97.6  +0.0 (-0.2, +0.3)  -0.001 (-0.005, +0.003)  leave it off
  mnist    vit       5 each    96.9  -0.4 (-0.8, -0.1)  +0.040 (-0.008, +0.088)  leave it off
  mnist    vit       20 each   97.2  -0.0 (-0.2, +0.1)  +0.006 (-0.000, +0.013)  leave it off
  mnist    vit       40 % bad  97.3  +0.1 (-0.1, +0.2)  -0.008 (-0.009, -0.007)  leave it off
  cifar10  resnet56  all       87.1  -0.0 (-0.2, +0.2)  +0.006 (+0.002, +0.011)  leave it off
  cifar10  resnet56  5 each    84.9  -0.0 (-0.3, +0.3)  +0.010 (-0.004, +0.023)  leave it off
  cifar10  resnet56  20 each   86.0  +0.1 (-0.1, +0.3)  -0.000 (-0.005, +0.005)  leave it off
  cifar10  resnet56  40 % bad  86.5  -0.0 (-0.1, +0.1)  -0.005 (-0.007, -0.003)  leave it off
  flowers5 resnet50  all       89.5  +0.2 (-0.5, +0.8)  -0.000 (-0.017, +0.016)  leave it off
  flowers5 resnet50  5 each    72.7  -0.4 (-1.2, +0.4)  +0.011 (-0.007, +0.029)  leave it off
  flowers5 resnet50  20 each   82.5  -0.1 (-0.5, +0.4)  -0.001 (-0.005, +0.002)  leave it off
  flowers5 resnet50  40 % bad  83.8  +0.1 (-0.5, +0.7)  -0.007 (-0.013, -0.002)  leave it off
  trash6   resnet50  all       83.7  +0.4 (-0.5, +1.2)  -0.001 (-0.016, +0.014)  cannot tell
  trash6   resnet50  5 each    61.1  +0.0 (-0.5, +0.5)  +0.008 (-0.004, +0.021)  leave it off
  trash6   resnet50  20 each   74.1  -0.1 (-0.5, +0.4)  +0.002 (-0.003, +0.007)  leave it off
  trash6   resnet50  40 % bad  76.4  -0.1 (-0.7, +0.4)  -0.005 (-0.009, -0.000)  leave it off
  flowers5 mobilenet all       89.2  -0.3 (-0.9, +0.2)  +0.007 (-0.003, +0.017)  leave it off
  flowers5 mobilenet 5 each    71.1  -0.4 (-1.1, +0.4)  +0.011 (-0.009, +0.031)  leave it off
  flowers5 mobilenet 20 each   83.1  -0.2 (-0.6, +0.2)  +0.006 (-0.004, +0.017)  leave it off
  flowers5 mobilenet 40 % bad  83.6  +0.3 (-0.3, +0.9)  -0.004 (-0.011, +0.002)  leave it off
  trash6   mobilenet all       82.3  +0.3 (-0.5, +1.0)  -0.006 (-0.024, +0.011)  cannot tell
  trash6   mobilenet 5 each    59.9  -0.8 (-1.6, +0.0)  +0.005 (-0.004, +0.014)  leave it off
  trash6   mobilenet 20 each   72.3  +0.1 (-0.3, +0.6)  +0.005 (+0.000, +0.010)  leave it off
  trash6   mobilenet 40 % bad  73.9  +0.4 (-0.2, +1.0)  -0.010 (-0.016, -0.003)  cannot tell
  flowers5 efficient all       90.1  +0.1 (-0.3, +0.6)  +0.003 (-0.002, +0.007)  leave it off
  flowers5 efficient 5 each    73.0  -0.3 (-1.0, +0.5)  +0.009 (-0.008, +0.026)  leave it off
  flowers5 efficient 20 each   82.7  -0.0 (-0.4, +0.4)  +0.006 (-0.003, +0.015)  leave it off
  flowers5 efficient 40 % bad  83.9  +0.2 (-0.3, +0.8)  -0.008 (-0.012, -0.004)  leave it off
  trash6   efficient all       85.3  +0.2 (-0.3, +0.7)  -0.002 (-0.009, +0.006)  leave it off
  trash6   efficient 5 each    62.1  +0.1 (-0.5, +0.6)  +0.001 (-0.011, +0.013)  leave it off
  trash6   efficient 20 each   75.4  -0.2 (-0.7, +0.2)  -0.003 (-0.007, +0.002)  leave it off
  trash6   efficient 40 % bad  77.6  +0.3 (-0.3, +0.8)  -0.012 (-0.017, -0.008)  leave it off
  dtd10    efficient all       89.7  -0.0 (-0.6, +0.6)  +0.003 (-0.003, +0.009)  leave it off
  dtd10    efficient 5 each    74.7  -0.1 (-0.6, +0.4)  +0.003 (-0.009, +0.016)  leave it off
  dtd10    efficient 20 each   84.1  -0.1 (-0.5, +0.3)  +0.004 (-0.001, +0.009)  leave it off
  dtd10    efficient 40 % bad  83.2  +0.1 (-0.4, +0.7)  -0.009 (-0.014, -0.005)  leave it off
  elpv4    efficient all       75.0  -0.5 (-1.3, +0.3)  +0.008 (-0.001, +0.016)  leave it off
  elpv4    efficient 5 each    34.5  -0.7 (-1.4, +0.0)  +0.012 (-0.009, +0.033)  leave it off
  elpv4    efficient 20 each   47.1  +0.5 (-0.3, +1.3)  -0.002 (-0.010, +0.005)  cannot tell
  elpv4    efficient 40 % bad  72.9  -0.1 (-0.7, +0.5)  -0.001 (-0.004, +0.002)  leave it off
  dtd10    mobilenet all       85.0  +0.1 (-0.4, +0.6)  +0.001 (-0.006, +0.008)  leave it off
  dtd10    mobilenet 5 each    71.9  -0.0 (-0.5, +0.5)  +0.000 (-0.010, +0.011)  leave it off
  dtd10    mobilenet 20 each   80.3  -0.1 (-0.6, +0.4)  +0.004 (-0.002, +0.009)  leave it off
  dtd10    mobilenet 40 % bad  79.6  +0.0 (-0.5, +0.5)  -0.007 (-0.012, -0.002)  leave it off
  elpv4    mobilenet all       71.7  -0.2 (-1.0, +0.6)  +0.008 (+0.001, +0.015)  leave it off
  elpv4    mobilenet 5 each    39.2  -0.0 (-0.7, +0.7)  +0.010 (-0.002, +0.021)  leave it off
  elpv4    mobilenet 20 each   49.4  -0.1 (-1.1, +1.0)  -0.010 (-0.022, +0.001)  leave it off
  elpv4    mobilenet 40 % bad  69.9  +0.0 (-0.5, +0.5)  +0.000 (-0.004, +0.004)  leave it off
  dtd10    resnet50  all       86.5  -0.1 (-0.7, +0.5)  +0.005 (-0.004, +0.015)  leave it off
  dtd10    resnet50  5 each    72.9  +0.0 (-0.5, +0.5)  +0.001 (-0.006, +0.008)  leave it off
  dtd10    resnet50  20 each   81.5  -0.3 (-0.7, +0.1)  +0.004 (-0.002, +0.009)  leave it off
  dtd10    resnet50  40 % bad  81.2  +0.1 (-0.5, +0.6)  -0.013 (-0.017, -0.009)  leave it off
  elpv4    resnet50  all       74.7  +0.0 (-0.6, +0.7)  +0.009 (+0.001, +0.016)  leave it off
  elpv4    resnet50  5 each    35.4  +0.2 (-0.6, +1.0)  +0.018 (-0.017, +0.053)  cannot tell
  elpv4    resnet50  20 each   46.3  +0.2 (-0.6, +1.0)  -0.006 (-0.014, +0.001)  leave it off
  elpv4    resnet50  40 % bad  72.2  -0.3 (-0.8, +0.3)  +0.001 (-0.001, +0.003)  leave it off
  cifar10  resnet20  all       84.7  -0.1 (-0.3, +0.1)  +0.005 (+0.002, +0.009)  leave it off
  cifar10  resnet20  5 each    80.9  -0.1 (-0.8, +0.6)  +0.020 (-0.018, +0.059)  leave it off
  cifar10  resnet20  20 each   83.3  -0.0 (-0.2, +0.2)  +0.000 (-0.006, +0.006)  leave it off
  cifar10  resnet20  40 % bad  83.6  -0.0 (-0.2, +0.2)  -0.004 (-0.006, -0.002)  leave it off

Seeds 0 to 19, `--no-rivals`, `OMP_NUM_THREADS=1`, beside other work on a 2-core AMD EPYC, Python
3.11.7, torch 2.14.1, torchvision 0.29.1, timm 1.0.31, scipy 1.17.1. The CIFAR ResNets and the ViT
were trained on the training images of their sets; of MNIST 3,000 digits of the test part are used.
A comparison takes 2 to 60 seconds, the extraction left out. Augmented features (FroFA) were run on
32 of these with decays in steps of ten, and are surely better in one (trash6, mobilenet, 40 % bad,
+1.6, 0.6 to 2.5), where mixing seemed to be so too until the decays were finer.

blocks, accuracy in percent without mixing, with it (alpha 1), and of the linear head alone, each
at its best epoch and rate by validation, 20 epochs, 5 replicates; then what mixing changes against
the better of the two that do not mix, by validation:

  digits   built-in  20 each             93.7  93.9  90.1  +0.6 (-3.6, +4.7)
  digits   built-in  20 each, 20 % bad   89.4  86.3  81.6  -1.2 (-8.8, +6.3)
  digits   built-in  20 each, 40 % bad   78.5  75.9  69.6  -2.8 (-11.0, +5.4)
  digits   built-in  all                 97.5  97.8  95.8  +0.2 (-1.1, +1.5)
  digits   built-in  all, 20 % bad       94.5  96.9  90.5  +2.3 (+0.6, +4.1)
  digits   built-in  all, 40 % bad       94.6  95.0  89.4  +0.8 (-1.1, +2.6)

  mnist    vit       20 each             94.4  93.4  97.2  -3.8 (-5.5, -2.1)
  mnist    vit       20 each, 20 % bad   81.7  81.5  96.8  -15.3 (-18.4, -12.1)
  mnist    vit       20 each, 40 % bad   66.0  70.4  93.6  -23.1 (-30.2, -16.0)
  cifar10  resnet20  20 each             68.5  70.1  83.3  -13.2 (-16.6, -9.8)
  cifar10  resnet20  20 each, 20 % bad   56.3  60.8  80.3  -19.5 (-24.5, -14.4)
  cifar10  resnet20  20 each, 40 % bad   32.5  34.6  76.5  -42.0 (-51.7, -32.3)
  trash6   resnet18  20 each             60.9  66.2  71.0  -4.9 (-10.5, +0.8)

`blocks --lrs 0.001,0.003,0.01` for digits and MNIST, 0.0003 to 0.003 for CIFAR (0.003 to 0.03 in
its last row), `--lrs 0.0001,0.0003 --epochs 15` for trash, with `--shots 20`, and 0 for digits.
Backbones of MNIST and CIFAR were trained on images of their sets, so that their last blocks can
only lose. Blocks behind photos take 20 to 30 minutes of a core for each case: but for one they
were not run to their end on this engine.

The episodes were not run on this engine.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer

from benchmarks.options import SHARED, Device
from benchmarks.printing import print_head, print_row, print_setting
from manifold_mixup import extract_features, unfreeze
from manifold_mixup.comparison import Candidates, Comparison, Scenario, list_scenarios
from manifold_mixup.inspection import find_device
from studies.episodes import WAYS, describe, difference, run_episodes
from studies.heads import Study, study
from studies.rivals import Rival
from studies.subjects import SUBJECTS, Subject

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Replicates = Annotated[int, typer.Option(min=2, help="How many, with seeds from 0.")]
Only = Annotated[str, typer.Option(help="Only subjects in whose name this occurs.")]
Features = Annotated[Path | None, typer.Option(help="Where features are stored, to be kept.")]

HEAD = (
    *("data", "backbone", "case", "without", "first five", "mix", "changes, points"),
    *("NLL", "answer", "seconds"),
)


@app.command()
def heads(
    only: Only = "",
    replicates: Replicates = 20,
    rivals: Annotated[bool, typer.Option(help="Augmented features, too.")] = True,
    features: Features = None,
    device: Device = "cpu",
) -> None:
    """Linear heads on frozen features: all images, few, wrong labels."""
    where = find_device(device)
    print_setting(where, "torchvision", "timm", "scipy")
    print_head(*HEAD, "best FroFA, points")
    for subject in _chosen(only):
        with _folder(features, f"{subject.data}-{subject.model}") as folder:
            scenarios = list_scenarios([5, 20], [0.4])
            for one in study(
                subject.load(),
                folder,
                scenarios,
                Candidates(),
                replicates,
                device=where,
                rivals=rivals,
            ):
                print_row(*_cells(subject, subject.model, one), _best_rival(one.found))


@app.command()
def blocks(
    only: Only = "",
    replicates: Replicates = 5,
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    alpha: Annotated[float, typer.Option(help="Of the row that mixes.")] = 1.0,
    lrs: Annotated[str, typer.Option(help="Rates to choose from.")] = "0.0001,0.0003,0.001",
    shots: Annotated[int, typer.Option(help="Images of a class; 0 for all.")] = 20,
    noises: Annotated[str, typer.Option(help="Shares of labels redrawn.")] = "0,0.2,0.4",
    features: Features = None,
    device: Device = "cpu",
) -> None:
    """The last block and the head, mixed before that, beside the linear head at its optimum."""
    where = find_device(device)
    print_setting(where, "torchvision", "timm", "scipy")
    print_head(*HEAD, "block without", "block with", "linear head")
    offered = Candidates(
        alphas=(alpha,),
        pairings=("any",),
        label_smoothing=0,
        clean_weights=(),
        lrs=[float(rate) for rate in lrs.split(",")],
        epochs=epochs,
    )
    scenarios = [Scenario(shots or None, float(share)) for share in noises.split(",")]
    for subject in _chosen(only, with_block=True):
        assert subject.last_block is not None
        layer, block = subject.last_block
        loaded = subject.load()
        unfreeze(loaded.model, from_layer=block)
        loaded = replace(loaded, layer=layer)
        with _folder(features, f"{subject.data}-{subject.model}-{layer}") as folder:
            for one in study(
                loaded, folder, scenarios, offered, replicates, device=where, rivals=False
            ):
                print_row(*_cells(subject, f"{subject.model}, {block}", one), *_blocks(one.found))


@app.command()
def episodes(only: Only = "", features: Features = None, device: Device = "cpu") -> None:
    """Tasks of 5 classes and 1 or 5 images of each."""
    where = find_device(device)
    print_setting(where, "torchvision", "timm", "scipy")
    print_head("data", "backbone", "shots", "head", "accuracy", "to no mixing")
    for subject in _chosen(only):
        loaded = subject.load()
        if len(loaded.data.classes) < WAYS:
            continue
        with _folder(features, f"{subject.data}-{subject.model}") as folder:
            model = loaded.model.to(where)
            store = extract_features(model, loaded.layer, loaded.dataset, folder)
            taken = store.features.gather(torch.arange(len(store))).flatten(1)
        for shots in (1, 5):
            scores = run_episodes(taken, store.targets, shots)
            base = scores["linear head, no mixing"]
            for name, own in scores.items():
                cells = (subject.data, subject.model, shots, name, describe(own))
                print_row(*cells, "" if own is base else difference(own, base))


def _chosen(only: str, *, with_block: bool = False) -> list[Subject]:
    """The subjects that can be loaded here, all or those whose last block can be trained."""
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED}: not there; weights and data sets lie beside the checkout")
    able = {f"{one.data} {one.model}": one for one in SUBJECTS if one.last_block or not with_block}
    if found := [one for name, one in able.items() if only in name]:
        return found
    raise SystemExit(f"--only {only!r}: occurs in none of {', '.join(able)}")


def _best_rival(found: Comparison) -> str:
    """What the best of the rivals by validation changes."""
    rivals = [i for i, row in enumerate(found.rows) if isinstance(row.candidate, Rival)]
    best = min(rivals, key=lambda i: found.rows[i].metrics["val_nll"], default=None)
    return "-" if best is None else found.points(best)


@contextmanager
def _folder(features: Path | None, name: str) -> Iterator[Path]:
    """Where features of a name lie, or a folder that goes."""
    with tempfile.TemporaryDirectory() as folder:
        yield (features or Path(folder)) / name


def _cells(subject: Subject, model: str, one: Study) -> tuple[str, ...]:
    """What a comparison found: accuracies in percent, differences in points."""
    found, scenario = one.found, one.scenario.name or "all"
    base = found.rows[found.base]
    first = fmean(each["accuracy"] for each in base.by_replicate[:5])
    gain, nll = found.deciding, found.deciding_nll
    ends = f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    chosen = "-" if found.chosen is None else found.rows[found.chosen].candidate
    mix = chosen if isinstance(chosen, str) else f"{chosen.alpha:g} {chosen.variant}".strip()
    return (
        *(subject.data, model, scenario, f"{base.metrics['accuracy']:.1%}", f"{first:.1%}", mix),
        *(ends, f"{nll}", found.answer, f"{one.extraction:.0f} + {one.training:.0f}"),
    )


def _blocks(found: Comparison) -> tuple[str, ...]:
    """The accuracy of a block trained without and with mixing, and of the linear head alone."""
    alone, without, mixed = found.rows
    ordered = (without, mixed, alone)
    return tuple("failed" if r.failed else f"{r.metrics['accuracy']:.1%}" for r in ordered)


if __name__ == "__main__":
    app()
