"""The command line: parse, call, print."""

import atexit
import csv
import gc
import json
import logging
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer

from manifold_mixup import options as o
from manifold_mixup._progress import track
from manifold_mixup.data import is_csv, list_data
from manifold_mixup.inspection import find_device, layer_table
from manifold_mixup.models import DIGITS, input_size, load_backbone
from manifold_mixup.reports import (
    RELIABILITY,
    SCATTER,
    describe_labels,
    describe_metrics,
    describe_prediction,
)
from manifold_mixup.runs import (
    PAGE,
    WINNER,
    compare_run,
    evaluate_run,
    find_images,
    load_run,
    predict_images,
    told,
    train_run,
)
from manifold_mixup.training import AUTO
from manifold_mixup.version import __version__

# The exit status of a training that came to nothing.
FAILED = 3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 2 for a user's mistake, which one line on stderr tells."""
    if arguments is None:  # the process is ours
        # What is imported stays: to search it for garbage would take a second, most at the exit.
        gc.freeze()
        atexit.register(gc.freeze)
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    debug = "--debug" in given
    with warnings.catch_warnings(), _quiet_logs(debug):
        warnings.showwarning = _show_warning
        try:
            status = command.main(given, prog_name="manifold-mixup", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except Exception as error:
            if debug:
                raise
            return _explain(error)
    return status if isinstance(status, int) else 0


@app.callback(invoke_without_command=True)
def top(context: typer.Context, version: o.Version = False) -> None:
    """Manifold mixup for pretrained models: mix at a layer chosen by name, train the head."""
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def layers(
    model: o.ModelName, every: o.All = False, as_json: o.Json = False, debug: o.Debug = False
) -> None:
    """List the layers of a model that can be mixed, with their shapes and costs."""
    loaded = load_backbone(model, weights="none")
    rows = layer_table(loaded, torch.zeros(2, *input_size(model, loaded)))
    if as_json:
        keys = ("name", "shape", "calls", "mixable", "reason", "cost_before", "bytes_per_sample")
        _print_json({"layers": [{key: getattr(row, key) for key in keys} for row in rows]})
        return
    shown = [row for row in rows if row.mixable or every]
    width = max((len(row.name) for row in shown), default=5)
    typer.echo(f"{'layer':<{width}}  {'shape':>13}  {'KiB an image':>12}  cost before")
    for row in shown:
        shape, size = "x".join(map(str, row.shape)), row.bytes_per_sample / 1024
        line = f"{row.name:<{width}}  {shape:>13}  {size:12.1f}  {row.cost_before:11.1%}"
        typer.echo(f"{line}  {row.reason}".rstrip())
    if hidden := len(rows) - len(shown):
        typer.echo(f"{hidden} more cannot be mixed; --all says why", err=True)


@app.command()
def train(
    data: o.Data = None,
    model: o.Model = None,
    weights: o.Weights = "pretrained",
    task: o.Task = None,
    loss: o.Loss = None,
    layer: o.Layer = None,
    alpha: o.Alpha = "0.4",
    mixes: o.Mixes = None,
    weight_decay: o.WeightDecay = AUTO,
    optimizer: o.Optimizer = AUTO,
    epochs: o.Epochs = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = None,
    lr: o.LearningRate = None,
    label_smoothing: o.LabelSmoothing = 0.0,
    shots: o.Shots = None,
    label_noise: o.LabelNoise = 0.0,
    pairing: o.Pairing = "any",
    exclude: o.Exclude = None,
    kind: o.Kind = "mix",
    prob: o.Prob = 1.0,
    alpha_warmup: o.AlphaWarmup = 0.0,
    clean_weight: o.CleanWeight = 0.0,
    class_weight: o.ClassWeight = None,
    patience: o.Patience = None,
    head: o.Head = "linear",
    tail: o.Tail = "frozen",
    way: o.Way = "auto",
    augment: o.Augment = False,
    views: o.Views = 0,
    features: o.Features = None,
    fold: o.Fold = True,
    dtype: o.Dtype = "float32",
    in_memory: o.InMemory = "auto",
    baseline: o.Baseline = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    save_model: o.SaveModel = False,
    data_root: o.DataRoot = None,
    skip_damaged: o.SkipDamaged = False,
    device: o.Device = "auto",
    workers: o.Workers = 0,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Train the head of a frozen model; without DATA, on the built-in digits.

    The backbone runs once, and its features are stored, unless that would change the numbers.

    Of DATA without val/ or test/, a fifth each is held out for them.
    """
    _check_resume(output, overwrite=overwrite, resume=resume)
    settings = {
        "data": DIGITS if data is None else _absolute("DATA", data),
        "model": _model(model, data),
        "weights": _absolute("--weights", weights),
        "task": task,
        "loss": loss,
        "shots": shots,
        "label_noise": label_noise,
        "head": head,
        "tail": tail,
        "way": way,
        "augment": augment or views > 0,
        "views": views,
        "layer": layer,
        "alpha": _auto_or_number("--alpha", alpha),
        "mixes": mixes,
        "epochs": epochs,
        "seed": seed,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": _auto_or_number("--weight-decay", weight_decay),
        "label_smoothing": label_smoothing,
        "class_weight": class_weight,
        "pairing": pairing,
        "exclude": _names(exclude),
        "kind": kind,
        "prob": prob,
        "alpha_warmup": alpha_warmup,
        "clean_weight": clean_weight,
        "optimizer": optimizer,
        "patience": patience,
    }
    with _telling_interrupts():
        folder, info = train_run(
            settings,
            output=output,
            overwrite=overwrite,
            resume=resume,
            baseline=data is None if baseline is None else baseline,
            save_model=save_model,
            features=features,
            fold=fold,
            dtype=dtype,
            in_memory=in_memory,
            data_root=data_root,
            skip_damaged=skip_damaged,
            device=device,
            workers=workers,
            say=lambda line: typer.echo(line, err=as_json),
            track=track,
        )
    _print_trained(folder, info, as_json)
    if failed := info.get("failed"):
        chosen = "" if info["lr"] is None else f" than {info['lr']:g}"
        _complain(
            f"the training failed: {failed}; try another --lr{chosen} (without --lr validation "
            "chooses it), more --epochs, or --tail frozen"
        )
        raise typer.Exit(FAILED)


@app.command()
def compare(
    data: o.Data = None,
    model: o.Model = None,
    weights: o.Weights = "pretrained",
    task: o.ClassesTask = None,
    layers: o.Layers = None,
    alphas: o.Alphas = "0,0.2,0.4,1,2",
    pairings: o.Pairings = "any,same-class",
    clean_weights: o.CleanWeights = "1",
    label_smoothing: o.Smoothed = 0.1,
    with_input: o.WithInput = False,
    weight_decays: o.Decays = "10,3.16,1,0.316,0.1,0.0316,0.01,0.00316,0.001,0.000316,0.0001",
    mixes: o.Mixes = None,
    worth: o.Worth = 1.0,
    seeds: o.Seeds = None,
    tail: o.Tail = "frozen",
    lrs: o.Rates = None,
    epochs: o.Passes = None,
    batch_size: o.BatchSize = None,
    shots: o.Few = None,
    label_noise: o.Wrong = None,
    test_on: o.TestOn = None,
    features: o.Features = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    data_root: o.DataRoot = None,
    skip_damaged: o.SkipDamaged = False,
    device: o.Device = "auto",
    workers: o.Workers = 0,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Find out whether mixing helps on DATA: every way to train a head, side by side.

    The backbone runs once, and heads are brought to their optimum. Each row gets the weight decay
    that validation images find best for it; the verdict is about test images, over as many splits
    as it takes to know.
    """
    _check_resume(output, overwrite=overwrite, resume=resume)
    settings = {
        "data": DIGITS if data is None else _absolute("DATA", data),
        "task": task,
        "data_root": None if data_root is None else str(data_root.resolve()),
        "skip_damaged": skip_damaged,
        "model": _model(model, data),
        "weights": _absolute("--weights", weights),
        "layers": _names(layers),
        "alphas": _numbers("--alphas", alphas),
        "pairings": [word.strip() for word in pairings.split(",")],
        "clean_weights": _numbers("--clean-weights", clean_weights),
        "with_input": with_input,
        "lrs": None if lrs is None else _numbers("--lrs", lrs),
        "weight_decays": _numbers("--weight-decays", weight_decays),
        "label_smoothing": label_smoothing,
        "tail": tail,
        "seeds": seeds,
        "epochs": epochs,
        "batch_size": batch_size,
        "mixes": mixes,
        "worth": worth / 100,
        "shots": _wholes("--shots", shots),
        "label_noises": [] if label_noise is None else _numbers("--label-noise", label_noise),
        "test_on": None if test_on is None else _absolute("--test-on", test_on),
    }
    with _telling_interrupts():
        folder, found = compare_run(
            settings,
            output=output,
            overwrite=overwrite,
            resume=resume,
            features=features,
            device=device,
            workers=workers,
            say=lambda line: typer.echo(line, err=as_json),
            track=track,
        )
    if as_json:
        _print_json({**told(found, settings), "output": str(folder)})
        return
    for scenario, comparison in found.items():
        typer.echo(f"\n{scenario.name}\n{comparison}" if scenario.name else str(comparison))
    typer.echo(f"use it: manifold-mixup predict IMAGE --run {shlex.quote(str(folder / WINNER))}")
    typer.echo(f"report: {folder / PAGE}")


@app.command()
def evaluate(
    run: o.RunFolder,
    data: o.Data = None,
    weights: o.RunWeights = None,
    data_root: o.DataRoot = None,
    skip_damaged: o.SkipDamaged = False,
    device: o.Device = "auto",
    workers: o.Workers = 0,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Measure a run on DATA's test/, else on the files it held out, else on all of DATA.

    Without DATA, on what it was trained with.
    """
    loaded = load_run(run, weights=weights)
    loaded.model.to(find_device(device))
    settings = loaded.info["settings"]
    name = settings["data"] if data is None else _absolute("DATA", data)
    task = loaded.task.name if is_csv(Path(name)) else None
    dataset = list_data(name, task=task, root=data_root)
    result = evaluate_run(
        loaded, dataset, run, skip_damaged=skip_damaged, workers=workers, track=track
    )
    result |= {"seed": settings["seed"], "output": str(run)}
    if as_json:
        _print_json(result)
        return
    typer.echo(f"{result['split']}: {describe_metrics(result)}")
    _print_labels(result, loaded.info)
    if result["damaged"]:
        typer.echo(f"{len(result['damaged'])} damaged images left out", err=True)
    typer.echo(f"plot: {run / (SCATTER if loaded.task.name == 'values' else RELIABILITY)}")


@app.command()
def predict(
    images: o.Images,
    run: o.RunFolder,
    weights: o.RunWeights = None,
    skip_damaged: o.SkipDamaged = False,
    device: o.Device = "auto",
    workers: o.Workers = 0,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Tell the class of images and how probable it is, or their labels, or values."""
    paths, damaged = find_images(images, skip_damaged=skip_damaged, track=track)
    loaded = load_run(run, weights=weights)
    loaded.model.to(find_device(device))
    predictions = predict_images(loaded, paths, workers=workers, track=track)
    if as_json:
        _print_json({"predictions": predictions, "damaged": [str(path) for path in damaged]})
        return
    for row in predictions:
        typer.echo(f"{row['path']}\t{describe_prediction(row)}")
    if damaged:
        typer.echo(f"{len(damaged)} damaged images left out", err=True)


@contextmanager
def _quiet_logs(debug: bool) -> Iterator[None]:
    """Only errors from other libraries: the retries of a download are no news, for instance."""
    before = logging.root.manager.disable
    if not debug:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_resume(output: Path | None, *, overwrite: bool, resume: bool) -> None:
    if resume and (output is None or overwrite):
        raise ValueError("--resume needs the --output of a run, and no --overwrite")


@contextmanager
def _telling_interrupts() -> Iterator[None]:
    """Say what an interrupt says of how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _complain(str(interrupt) or "interrupted")
        raise typer.Exit(130) from None


def _print_trained(folder: Path, info: Mapping[str, Any], as_json: bool) -> None:
    """Print what a run measured on its test part, with and without mixup."""
    settings, baseline = info["settings"], info.get("baseline")
    if as_json:
        more = {"split": "test", "seed": settings["seed"], "output": str(folder)}
        more |= {"alpha": info["alpha"], "failed": info.get("failed", "")}
        more |= {"baseline": baseline} if baseline else {}
        _print_json({**info["metrics"], **more, "damaged": sorted(info["damaged"])})
        return
    name = "with mixup" if info["alpha"] else "without mixup"
    typer.echo(f"{name:<14} {describe_metrics(info['metrics'])}")
    _print_labels(info["metrics"], info)
    if baseline:
        failed = f"; failed: {baseline['failed']}" if baseline.get("failed") else ""
        typer.echo(f"without mixup  {describe_metrics(baseline)}{failed}")
    typer.echo(f"run: {folder}")


def _print_labels(metrics: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    for line in describe_labels(metrics, info.get("task", {})):
        typer.echo(line)


def _auto_or_number(option: str, given: str) -> float | str:
    """What an option is given: a number, or the word."""
    if given == AUTO:
        return AUTO
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"{option} {given}: expected a number, or {AUTO}") from None


def _numbers(option: str, given: str) -> list[float]:
    """The numbers of a list such as 0,0.4."""
    try:
        return [float(word) for word in given.split(",")]
    except ValueError:
        raise ValueError(f"{option} {given}: expected numbers, such as 0,0.4") from None


def _wholes(option: str, given: str | None) -> list[int]:
    """The whole numbers of a list such as 1,5; none if there is no list."""
    try:
        return [] if given is None else [int(word) for word in given.split(",")]
    except ValueError:
        raise ValueError(f"{option} {given}: expected whole numbers, such as 1,5") from None


def _names(text: str | None) -> list[str] | None:
    """Names with commas between them, in quotes where a name holds one; None if there is none."""
    cells = next(csv.reader([text or ""], skipinitialspace=True), [])
    return [cell.strip() for cell in cells if cell.strip()] or None


def _model(given: str | None, data: str | None) -> str:
    """The name of a model; without one, what suits DATA."""
    if given is None:
        return DIGITS if data is None else "resnet50"
    return given


def _absolute(option: str, name: str) -> str:
    """The whole path of what is a file or folder here; other names as they are."""
    if not name.strip():
        raise ValueError(f"{option} is empty; give a name, or leave it out")
    return str(Path(name).resolve()) if Path(name).exists() else name


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _explain(error: Exception) -> int:
    """Tell an error in one line; the exit status is 2 where it is the user's to mend."""
    if hasattr(error, "format_message"):  # the command line itself, of typer or click
        _complain(error.format_message())
        return 2
    if isinstance(error, ValueError | OSError | RuntimeError):
        _complain(str(error))
        return 2
    _complain(f"{type(error).__name__}: {error} (a defect; --debug shows where)")
    return 1


def _complain(message: str) -> None:
    typer.echo(f"manifold-mixup: {' '.join(message.split())}", err=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain(f"warning: {message}")
