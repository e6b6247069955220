"""The command line: parse, call, print."""

import atexit
import gc
import json
import logging
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from inspect import Parameter, Signature
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer

from manifold_mixup._progress import Ranks, find_ranks, track
from manifold_mixup.inspection import find_device, layer_table
from manifold_mixup.models import input_size, load_backbone
from manifold_mixup.reports import (
    describe_labels,
    describe_layers,
    describe_metrics,
    describe_prediction,
)
from manifold_mixup.runs import (
    GROUPS,
    PAGE,
    WINNER,
    CompareConfig,
    TrainConfig,
    absolute,
    compare_run,
    evaluate_run,
    find_images,
    help_compare,
    help_train,
    list_measured,
    load_run,
    option_of,
    parameter_of,
    predict_images,
    read_words,
    told,
    train_run,
    typer_parameter,
    types_of,
)
from manifold_mixup.version import __version__

# The exit status of a training that came to nothing.
FAILED = 3

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
Config = TypeVar("Config", TrainConfig, CompareConfig)
JSON = typer.Option(
    "--json", rich_help_panel="Output", help="Print one JSON object; all else to stderr."
)
DEBUG = typer.Option("--debug", rich_help_panel="Output", help="Show the traceback of an error.")


def _help(name: str) -> str:
    """What is told of an option that commands without a configuration have, too."""
    return option_of(TrainConfig.__dataclass_fields__[name]).help


Json = Annotated[bool, JSON]
Debug = Annotated[bool, DEBUG]
Data = Annotated[str | None, typer.Argument(metavar="DATA", help=_help("data"))]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
All = Annotated[bool, typer.Option("--all", help="Those that cannot be mixed too, and why.")]
RunFolder = Annotated[Path, typer.Option("--run", help="The folder that `train` wrote.")]
RunWeights = Annotated[
    str | None,
    typer.Option("--weights", help="The backbone's weights, if they are not where they were."),
]
DataRoot = Annotated[Path | None, typer.Option(help=_help("data_root"))]
Columns = Annotated[str | None, typer.Option(help=_help("columns"))]
LabelSeparator = Annotated[str | None, typer.Option(help=_help("label_separator"))]
SkipUnlabelled = Annotated[bool, typer.Option("--skip-unlabelled", help=_help("skip_unlabelled"))]
SkipDamaged = Annotated[bool, typer.Option("--skip-damaged", help=_help("skip_damaged"))]
Device = Annotated[str, typer.Option(help=_help("device"))]
Workers = Annotated[int, typer.Option(min=0, max=256, help=_help("workers"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 2 for a user's mistake, which one line on stderr tells."""
    if arguments is None:  # the process is ours
        # What is imported stays: to search it for garbage would take a second, most at the exit.
        gc.freeze()
        atexit.register(gc.freeze)
    if isinstance(sys.stdout, TextIOWrapper):  # or a file's name that it cannot show would end all
        sys.stdout.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        ranks = find_ranks()
    except ValueError as error:
        return _explain(error)
    with ranks.one_voice() as heard:
        status = _obey(given, ranks)
    return ranks.end(status, heard.getvalue())


def _obey(given: list[str], ranks: Ranks) -> int:
    """Run a command; its exit status."""
    command = typer.main.get_command(app)
    debug = "--debug" in given and not ranks.is_helper
    with warnings.catch_warnings(), _quiet_logs(debug):
        warnings.showwarning = _show_warning
        try:
            own: dict[str, Any] = {"prog_name": "manifold-mixup", "standalone_mode": False}
            status = command.main(given, **own, obj=ranks)
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except Exception as error:
            if debug:
                raise
            return _explain(error)
    return status if isinstance(status, int) else 0


@app.callback(invoke_without_command=True)
def top(context: typer.Context, version: Version = False) -> None:
    """Manifold mixup for pretrained models: mix at a layer chosen by name, train the head."""
    if context.obj.is_helper and context.invoked_subcommand not in ("train", "compare"):
        raise typer.Exit  # there is nothing to share
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help=_help("model"))],
    every: All = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the layers of a model that can be mixed, with their shapes and costs."""
    loaded = load_backbone(model, weights="none")
    rows = layer_table(loaded, torch.zeros(2, *input_size(model, loaded)))
    if as_json:
        keys = ("name", "shape", "calls", "mixable", "reason", "cost_before", "bytes_per_sample")
        _print_json({"layers": [{key: getattr(row, key) for key in keys} for row in rows]})
        return
    shown = [row for row in rows if row.mixable or every]
    for line in describe_layers(shown):
        typer.echo(line)
    if hidden := len(rows) - len(shown):
        typer.echo(f"{hidden} more cannot be mixed; --all says why", err=True)


def _command(
    configuration: type[Config],
    act: Callable[[Config, bool, Ranks], None],
    help_with: Callable[..., None],
    *examples: str,
) -> None:
    """Make a command of a configuration: its options, with their types, defaults, help, groups.

    Args:
        configuration: Whose fields are the options.
        act: Does what is asked for, and prints it; whether as JSON is the second argument, the
            processes are the third. Its docstring is the command's help.
        help_with: What a process beside the first does, with what the first asks it for.
        examples: Commands to show.
    """
    kinds = types_of(configuration)

    def command(context: typer.Context, **words: Any) -> None:
        as_json, _ = words.pop("as_json"), words.pop("debug")
        if words["data"] is not None:
            words["data"] = absolute("DATA", words["data"])
        config, ranks = configuration(**read_words(configuration, words)), context.obj
        if not ranks.is_helper:
            act(config, as_json, ranks)
        elif (work := ranks.awaited_work()) is not None:
            help_with(config, **work)

    ordered = sorted(fields(configuration), key=lambda one: GROUPS.index(option_of(one).group))
    options = [parameter_of(one, kinds[one.name]) for one in ordered]
    options += [
        typer_parameter("as_json", bool, False, JSON),
        typer_parameter("debug", bool, False, DEBUG),
    ]
    options.append(Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context))
    command.__signature__ = Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in options}
    command.__doc__ = "\n\n".join(
        " ".join(paragraph.split()) for paragraph in (act.__doc__ or "").split("\n\n")
    )
    shown = "\n\n".join(f"manifold-mixup {line}" for line in examples)
    app.command(act.__name__.strip("_"), epilog=f"Examples:\n\n{shown}")(command)


def _train(config: TrainConfig, as_json: bool, ranks: Ranks) -> None:
    """Train the head of a frozen model; without DATA, on the built-in digits.

    The backbone runs once, and its features are stored, unless that would change the numbers.

    Of DATA without val/ or test/, a fifth each is held out for them.
    """
    with _telling_interrupts():
        folder, info = train_run(config, say=_say(as_json), track=track, ranks=ranks)
    _print_trained(folder, info, as_json)
    if failed := info.get("failed"):
        chosen = "" if info["lr"] is None else f" than {info['lr']:g}"
        _complain(
            f"the training failed: {failed}; try another --lr{chosen} (without --lr validation "
            "chooses it), more --epochs, or --tail frozen"
        )
        raise typer.Exit(FAILED)


def _compare(config: CompareConfig, as_json: bool, ranks: Ranks) -> None:
    """Find out whether mixing helps on DATA: every way to train a head, side by side.

    The backbone runs once, and heads are brought to their optimum. Each row gets the weight decay
    that validation images find best for it; the verdict is about test images, over as many splits
    as it takes to know.
    """
    with _telling_interrupts():
        folder, found = compare_run(config, say=_say(as_json), track=track, ranks=ranks)
    if as_json:
        _print_json({**told(found, config), "output": str(folder)})
        return
    for scenario, comparison in found.items():
        typer.echo(f"\n{scenario.name}\n{comparison}" if scenario.name else str(comparison))
    use = f"manifold-mixup predict IMAGE --run {shlex.quote(str(folder / WINNER))}"
    typer.echo(f"the head that came out best: {use}")
    typer.echo(f"report: {folder / PAGE}")


_command(
    TrainConfig,
    _train,
    help_train,
    "train photos/ --model resnet50 --layer layer4 --alpha 0.4",
    "train photos/ --model resnet18 --layer layer3 --tail trainable --output runs/block",
)
_command(
    CompareConfig,
    _compare,
    help_compare,
    "compare photos/ --model resnet50",
    "compare photos/ --layers layer3,layer4 --label-noise 0.2 --output runs/compare",
)


@app.command()
def evaluate(
    run: RunFolder,
    data: Data = None,
    weights: RunWeights = None,
    data_root: DataRoot = None,
    columns: Columns = None,
    label_separator: LabelSeparator = None,
    skip_unlabelled: SkipUnlabelled = False,
    skip_damaged: SkipDamaged = False,
    device: Device = "auto",
    workers: Workers = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a run on DATA's test/, else on the files it held out, else on all of DATA.

    Without DATA, on what it was trained with.
    """
    loaded = load_run(run, weights=weights)
    loaded.model.to(find_device(device))
    words = {"columns": columns, "label_separator": label_separator}
    table = {**read_words(TrainConfig, words), "skip_unlabelled": skip_unlabelled}
    given: dict[str, Any] = {"skip_damaged": skip_damaged, "track": track}
    dataset = list_measured(loaded, data, data_root, table, **given)
    result = evaluate_run(loaded, dataset, run, workers=workers, **given)
    result |= {"seed": loaded.info["settings"]["seed"], "output": str(run)}
    if as_json:
        _print_json(result)
        return
    typer.echo(f"{result['split']}: {describe_metrics(result)}")
    _print_labels(result, loaded.info)
    for line in result["about"]:
        typer.echo(line, err=True)
    typer.echo(f"plot: {result['plot']}")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    run: RunFolder,
    weights: RunWeights = None,
    skip_damaged: SkipDamaged = False,
    device: Device = "auto",
    workers: Workers = 0,
    as_json: Json = False,
    debug: Debug = False,
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
    baseline = info.get("baseline")
    if as_json:
        more = {"split": "test", "seed": info["settings"]["seed"], "output": str(folder)}
        more |= {"alpha": info["alpha"], "failed": info.get("failed", "")}
        more |= {"baseline": baseline} if baseline else {}
        _print_json({**info["metrics"], **more, "damaged": sorted(info["damaged"])})
        return
    is_mixed = info["alpha"] and info["settings"]["prob"]
    name = "with mixup" if is_mixed else "without mixup"
    typer.echo(f"{name:<14} {describe_metrics(info['metrics'])}")
    _print_labels(info["metrics"], info)
    if baseline:
        failed = f"; failed: {baseline['failed']}" if baseline.get("failed") else ""
        typer.echo(f"without mixup  {describe_metrics(baseline)}{failed}")
    typer.echo(f"run: {folder}")


def _say(as_json: bool) -> Callable[[str], None]:
    """Shows a line; beside JSON on stderr."""
    return lambda line: typer.echo(line, err=as_json)


def _print_labels(metrics: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    for line in describe_labels(metrics, info.get("task", {})):
        typer.echo(line)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _explain(error: Exception) -> int:
    """Tell an error in one line; the exit status is 2 where it is the user's to mend."""
    if hasattr(error, "format_message"):  # the command line itself, of typer or click
        tell = getattr(error.__cause__, "errors", None)  # of pydantic: its text has no value
        got = f", got {tell()[0]['input']!r}" if tell else ""
        error = ValueError(error.format_message() + got)
    if isinstance(error, ValueError | OSError) or _is_told(error):
        _complain(str(error))
        return 2
    _complain(f"{type(error).__name__}: {error} (a defect; --debug shows where)")
    return 1


def _is_told(error: Exception) -> bool:
    """Whether somebody wrote it for a user: what PyTorch's kernels find is no such message."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_raised = isinstance(error, RuntimeError) and (last.line or "").startswith("raise ")
    return is_raised or isinstance(error, torch.OutOfMemoryError)


def _complain(message: str) -> None:
    typer.echo(f"manifold-mixup: {' '.join(message.split())}", err=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain(f"warning: {message}")
