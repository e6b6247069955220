"""Where does mixing help? Every backbone on every data set there is, with what rivals it.

    python scripts/evidence.py heads         linear heads, by `compare`, beside LogisticRegression
                                             and augmented features (FroFA)
    python scripts/evidence.py blocks        the last block and the head
    python scripts/evidence.py episodes      5-way tasks of 1 and of 5 images a class

Tables and texts have models of their own: scripts/tabular.py and scripts/text.py.

heads: differences to the best row without mixing, with intervals that hold at 95 % for all rows of
a comparison together: in NLL of the mix to use, else of the best by validation; in points of
accuracy of LogisticRegression, and of the best FroFA by validation. A star: some mix is better in
accuracy or NLL, beyond noise. Bad: labels redrawn. Accuracies stand in the README. Seconds (s) are
without the extraction.

  data     backbone  images     NLL of the mix          LogisticRegr.      FroFA             s
  digits   built-in  all        -0.006 (-0.055, +0.042) -0.4 (-2.3, +1.4)  -0.1 (-1.3, +1.0)    5
  digits   built-in  5 each     +0.009 (-0.112, +0.129) +1.6 (-10.4, +13.5)+0.6 (-2.7, +3.9)    1
  digits   built-in  20 each    -0.023 (-0.111, +0.065) +3.2 (+0.2, +6.3)  -0.2 (-2.3, +1.9)    2
  digits   built-in  40 % bad   -0.008 (-0.028, +0.012) +1.1 (-2.2, +4.4)  +0.2 (-3.1, +3.6)    5
  flowers5 resnet18  all        +0.001 (-0.009, +0.011) +0.3 (-1.5, +2.0)  -0.4 (-2.3, +1.6)   14
  flowers5 resnet18  5 each     +0.127 (-0.902, +1.156) +1.2 (-8.8, +11.1) -1.1 (-4.3, +2.2)    2
  flowers5 resnet18  20 each    -0.003 (-0.127, +0.120) +0.6 (-3.9, +5.1)  +0.5 (-5.9, +7.0)    3
  flowers5 resnet18  40 % bad   -0.033 (-0.052, -0.014) +2.2 (-1.5, +5.8)  +0.6 (-1.4, +2.7)   19*
  flowers5 resnet50  all        +0.000 (-0.013, +0.014) +0.5 (-1.4, +2.3)  -0.2 (-3.2, +2.8)   35
  flowers5 resnet50  5 each     -0.020 (-0.103, +0.064) +0.5 (-8.6, +9.6)  +0.1 (-3.2, +3.4)    3
  flowers5 resnet50  20 each    -0.002 (-0.027, +0.024) +0.4 (-4.9, +5.7)  +0.5 (-3.2, +4.2)    7
  flowers5 resnet50  40 % bad   -0.020 (-0.030, -0.009) +0.2 (-4.3, +4.6)  +0.9 (-1.6, +3.4)   38*
  flowers5 mobilenet all        +0.002 (-0.012, +0.017) +0.4 (-0.9, +1.6)  +0.4 (-1.5, +2.4)   28
  flowers5 mobilenet 5 each     -0.015 (-0.255, +0.224) +0.6 (-17.0, +18.2)+0.2 (-11.6, +12.0)   3
  flowers5 mobilenet 20 each    -0.000 (-0.033, +0.033) -0.6 (-4.0, +2.7)  -0.6 (-2.4, +1.1)    5
  flowers5 mobilenet 40 % bad   -0.047 (-0.064, -0.030) +4.4 (-2.5, +11.2) +1.9 (-0.1, +3.9)   29*
  trash6   resnet18  all        +0.002 (-0.016, +0.021) -0.4 (-2.5, +1.8)  -0.8 (-2.2, +0.5)   17
  trash6   resnet18  5 each     +0.008 (-0.032, +0.048) -0.2 (-7.8, +7.4)  -2.3 (-9.3, +4.8)    2
  trash6   resnet18  20 each    -0.020 (-0.084, +0.043) +0.6 (-1.6, +2.8)  -0.6 (-2.6, +1.4)    4
  trash6   resnet18  40 % bad   -0.028 (-0.039, -0.016) +1.6 (-6.4, +9.6)  +0.5 (-4.2, +5.3)   20*
  trash6   resnet50  all        -0.014 (-0.044, +0.015) +0.7 (-1.0, +2.5)  +1.0 (-0.8, +2.7)   40
  trash6   resnet50  5 each     -0.022 (-0.097, +0.052) -0.6 (-9.5, +8.3)  +0.2 (-7.4, +7.9)    4
  trash6   resnet50  20 each    -0.003 (-0.024, +0.018) -1.1 (-3.2, +1.0)  +0.1 (-1.9, +2.1)   14
  trash6   resnet50  40 % bad   -0.009 (-0.033, +0.015) -1.0 (-5.0, +3.0)  -0.1 (-3.4, +3.2)   42
  trash6   mobilenet all        -0.003 (-0.034, +0.028) -0.7 (-3.8, +2.3)  -0.1 (-1.4, +1.3)   30
  trash6   mobilenet 5 each     +0.005 (-0.128, +0.138) +0.1 (-10.7, +10.8)-1.3 (-12.2, +9.7)   3
  trash6   mobilenet 20 each    -0.003 (-0.029, +0.023) -1.4 (-5.7, +2.9)  -1.0 (-6.4, +4.4)    7
  trash6   mobilenet 40 % bad   -0.043 (-0.072, -0.013) +2.2 (-4.2, +8.7)  +1.9 (-0.5, +4.3)   31*
  cifar10  resnet56  all        +0.001 (-0.003, +0.005) +0.1 (-0.3, +0.6)  -0.1 (-0.4, +0.3)   31
  cifar10  resnet56  5 each     -0.016 (-0.032, -0.000) +0.8 (-0.6, +2.3)  +0.4 (-1.0, +1.8)    2*
  cifar10  resnet56  20 each    +0.001 (-0.004, +0.005) +0.8 (-0.2, +1.7)  +0.1 (-0.7, +0.9)    4
  cifar10  resnet56  40 % bad   -0.003 (-0.008, +0.002) +0.1 (-0.3, +0.4)  +0.1 (-0.2, +0.4)   29
  mnist    vit       all        -0.008 (-0.021, +0.004) +0.3 (-0.4, +1.1)  +0.1 (-0.4, +0.6)   21
  mnist    vit       5 each     -0.048 (-0.249, +0.153) +4.0 (-0.8, +8.8)  +2.4 (-1.4, +6.2)    2
  mnist    vit       20 each    +0.009 (-0.020, +0.039) +0.8 (-0.5, +2.2)  -0.2 (-1.3, +0.8)    4
  mnist    vit       40 % bad   -0.047 (-0.074, -0.019) +0.8 (-0.9, +2.6)  +0.7 (-0.1, +1.5)   24*

Seeds 0 to 4, `OMP_NUM_THREADS=1`, beside other work on a 2-core Intel Xeon, Python 3.11.7, torch
2.14.1, torchvision 0.29.1, timm 1.0.31, scikit-learn 1.9.1. The CIFAR ResNet and the ViT were
trained on the training images of their sets; of MNIST 3,000 digits of the test part are used.

blocks, accuracy without and what mixing changes, in points and in NLL; 20 epochs, alpha 0.4 and 1:

  digits   built-in  all        98.2 %  -0.2 (-1.9, +1.4)  +0.003 (-0.026, +0.031)    22 s
  digits   built-in  20 each    81.0 %  -4.1 (-6.4, -1.8)  +0.099 (+0.076, +0.122)     6 s
  digits   built-in  40 % bad   95.4 %  +0.2 (-1.0, +1.5)  +0.002 (-0.023, +0.027)    21 s
  flowers5 resnet18  20 each    79.8 %  +0.6 (-4.0, +5.3)  +0.013 (-0.102, +0.127)   831 s
  flowers5 resnet18  20, bad    63.4 %  -1.2 (-4.2, +1.8)  +0.035 (-0.067, +0.137)   839 s
  trash6   resnet18  20 each    69.3 %  -1.8 (-8.1, +4.5)  +0.021 (-0.076, +0.118)  1050 s
  trash6   resnet18  20, bad    52.5 %  +0.8 (-7.5, +9.1)  +0.008 (-0.060, +0.077)   929 s
  cifar10  resnet56  20 each    71.8 %  +2.7 (+0.3, +5.0)  -0.114 (-0.209, -0.018)   328 s
  cifar10  resnet56  20, bad    51.9 %  +6.5 (+2.3, +10.8) -0.197 (-0.282, -0.112)   326 s
  mnist    vit       all        96.6 %  -0.3 (-1.2, +0.6)  +0.010 (-0.004, +0.024)   160 s
  mnist    vit       20 each    88.6 %  -2.5 (-4.9, -0.1)  +0.080 (+0.026, +0.135)    21 s
  mnist    vit       40 % bad   87.7 %  +2.4 (+1.4, +3.5)  -0.075 (-0.104, -0.046)   167 s

The same seeds, versions and machine; flowers, trash and CIFAR with `--few`. All of these images
take hours there and were not run.

episodes, accuracy in points over 200 of them with 95 % intervals, by images of each class; of
heads with mixing what it changes, paired. Rates, decays and penalties are those that are best in
50 other episodes of the same images. The same versions and machine:

  data     backbone     centre    logistic  head      alpha 0.4 alpha 1
  digits   built-in  1  53.0±1.2   53.8±1.2   51.9±1.2   -0.0±0.6   +0.1±0.6
  digits   built-in  5  66.4±0.9   75.2±0.8   73.9±0.8   -0.0±0.4   +0.2±0.5
  flowers5 resnet18  1  47.1±1.2   47.5±1.2   46.6±1.1   +0.0±0.5   +0.5±0.5
  flowers5 resnet18  5  69.3±0.8   70.5±0.8   70.0±0.8   +0.1±0.5   -0.2±0.4
  flowers5 resnet50  1  47.9±1.2   47.7±1.2   45.1±1.2   +0.5±0.6   +1.4±0.6
  flowers5 resnet50  5  70.0±0.8   71.8±0.8   72.2±0.8   +0.0±0.3   +0.1±0.4
  flowers5 mobilenet 1  46.1±1.2   46.8±1.2   45.5±1.2   -0.1±0.6   +0.2±0.6
  flowers5 mobilenet 5  69.6±0.9   71.0±0.8   71.0±0.8   +0.3±0.3   +0.3±0.4
  trash6   resnet18  1  42.1±1.1   41.0±1.1   40.8±1.1   +0.4±0.5   +0.5±0.4
  trash6   resnet18  5  59.0±0.9   58.8±0.9   58.4±0.9   +0.7±0.4   +0.7±0.4
  trash6   resnet50  1  44.3±1.1   44.7±1.1   43.0±1.0   -0.5±0.7   +0.4±0.7
  trash6   resnet50  5  61.9±0.9   62.4±0.9   61.9±0.9   +0.0±0.4   -0.3±0.4
  trash6   mobilenet 1  43.3±1.1   43.3±1.2   42.2±1.1   -0.5±0.5   +0.0±0.5
  trash6   mobilenet 5  61.7±1.0   61.6±0.9   61.4±0.9   +0.5±0.4   +0.2±0.3
  cifar10  resnet56  1  86.1±1.1   85.7±1.1   85.7±1.1   +0.1±0.4   +0.2±0.3
  cifar10  resnet56  5  92.8±0.5   92.9±0.5   92.3±0.5   +0.4±0.2   +0.4±0.2
  mnist    vit       1  96.5±0.4   96.3±0.5   95.8±0.5   +0.2±0.2   +0.3±0.2
  mnist    vit       5  98.4±0.2   98.2±0.2   98.0±0.2   +0.1±0.1   +0.1±0.1

Mixing changes little: with alpha 1 five of the eighteen are better by 0.3 to 1.4 points, beyond
their intervals, and none is worse.
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
from manifold_mixup.comparison import Comparison
from manifold_mixup.loading import find_device
from manifold_mixup.starts import Case, list_cases
from manifold_mixup.trials import Ways
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
            cases = list_cases([5, 20], [0.4])
            for one in study(
                subject.load(), folder, cases, Ways(), replicates, device=where, rivals=rivals
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
    ways = Ways(
        alphas=(alpha,),
        pairings=("any",),
        label_smoothing=0,
        clean_weights=(),
        lrs=[float(rate) for rate in lrs.split(",")],
        epochs=epochs,
    )
    cases = [Case(shots or None, float(share)) for share in noises.split(",")]
    for subject in _chosen(only, with_block=True):
        assert subject.last_block is not None
        layer, block = subject.last_block
        loaded = subject.load()
        unfreeze(loaded.model, from_layer=block)
        loaded = replace(loaded, layer=layer)
        with _folder(features, f"{subject.data}-{subject.model}-{layer}") as folder:
            for one in study(loaded, folder, cases, ways, replicates, device=where, rivals=False):
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
    rivals = [i for i, row in enumerate(found.rows) if isinstance(row.trial, Rival)]
    best = min(rivals, key=lambda i: found.rows[i].metrics["val_nll"], default=None)
    return "-" if best is None else found.points(best)


@contextmanager
def _folder(features: Path | None, name: str) -> Iterator[Path]:
    """Where features of a name lie, or a folder that goes."""
    with tempfile.TemporaryDirectory() as folder:
        yield (features or Path(folder)) / name


def _cells(subject: Subject, model: str, one: Study) -> tuple[str, ...]:
    """What a comparison found: accuracies in percent, differences in points."""
    found, case = one.found, one.case.name or "all"
    base = found.rows[found.base]
    first = fmean(each["accuracy"] for each in base.by_replicate[:5])
    gain, nll = found.deciding, found.deciding_nll
    ends = f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    chosen = "-" if found.chosen is None else found.rows[found.chosen].trial
    mix = chosen if isinstance(chosen, str) else f"{chosen.alpha:g} {chosen.variant}".strip()
    return (
        *(subject.data, model, case, f"{base.metrics['accuracy']:.1%}", f"{first:.1%}", mix),
        *(ends, f"{nll}", found.answer, f"{one.extraction:.0f} + {one.training:.0f}"),
    )


def _blocks(found: Comparison) -> tuple[str, ...]:
    """The accuracy of a block trained without and with mixing, and of the linear head alone."""
    alone, without, mixed = found.rows
    ordered = (without, mixed, alone)
    return tuple("failed" if r.failed else f"{r.metrics['accuracy']:.1%}" for r in ordered)


if __name__ == "__main__":
    app()
