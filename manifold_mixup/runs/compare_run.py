"""One comparison, from the names of data and model to its results on disk."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from manifold_mixup._files import Kept, read_json, write_json
from manifold_mixup._progress import Track
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import (
    ELSEWHERE,
    Candidates,
    Comparison,
    Head,
    Price,
    Replicate,
    Scenario,
    check_compared,
    compare_stores,
    draw_replicate,
    estimate,
    find_head,
    list_scenarios,
    most_replicates,
)
from manifold_mixup.data import (
    ImageSet,
    LabelledImages,
    Split,
    check_images,
    is_csv,
    join_splits,
    list_data,
)
from manifold_mixup.features import FeatureStore, extract_features, place_store
from manifold_mixup.inspection import INPUT, find_device, find_layers, trace
from manifold_mixup.models import (
    cut_layers,
    fold_traced,
    freeze,
    input_size,
    model_transform,
    replace_head,
)
from manifold_mixup.reports import settings_sentence, write_page
from manifold_mixup.runs.checkpoint import (
    FEATURES,
    SETTINGS,
    check_places,
    check_settings,
    claimed_folder,
    seeded_backbone,
)
from manifold_mixup.runs.prepare import check_tail, head_input
from manifold_mixup.runs.winner import (
    RESULTS,
    TABLE,
    draw_pairs,
    save_winner,
    train_command,
    write_results,
)
from manifold_mixup.training import Classes, Say, check_pairs, check_task, trained_parameters

PAGE, WINNER = "report.html", "winner"


_KEPT = "trained"


FILES = (SETTINGS, _KEPT, RESULTS, TABLE, PAGE, WINNER, FEATURES)


def compare_run(
    settings: Mapping[str, Any],
    *,
    output: Path | None,
    overwrite: bool,
    resume: bool,
    features: Path | None,
    device: str,
    workers: int,
    say: Say,
    track: Track,
) -> tuple[Path, dict[Scenario, Comparison]]:
    """Compare ways to train a head on a data set, and write what came of it.

    Args:
        settings: ``data``, ``task`` (``"classes"``, or None for as it looks), ``data_root`` (where
            a named data set lies, or None), ``skip_damaged`` (whether to leave damaged images
            out), ``test_on`` (images of another domain, or None), ``model``, ``weights``,
            ``layers`` (None for what the head takes), ``tail``, ``with_input``, ``worth``,
            ``seeds`` (the most replicates, or None), ``shots`` and ``label_noises`` (lists), and
            what `Candidates` takes by name, or None.
        output: The folder for the results; None for the next free one below ``runs/``.
        overwrite: Replace the results that are there.
        resume: Go on with those that are there.
        features: Where features are stored; None for the folder of the results.
        device: ``"auto"``, or a device's name.
        workers: Processes that load images.
        say: Takes each line to show.
        track: Shows how far a step is.

    Returns:
        The folder, and what was found for the data as they are and for each harder scenario.

    Raises:
        ValueError: Settings, model, layers or data are not what they should be.
        OSError: A file or folder is missing, or cannot be written.
        KeyboardInterrupt: Its message says how to go on.
    """
    given = {field.name: settings[field.name] for field in fields(Candidates)}
    offered = Candidates(**{name: value for name, value in given.items() if value is not None})
    scenarios = list_scenarios(settings["shots"], settings["label_noises"])
    check_together(settings)
    where, path = find_device(device), Path(settings["data"])
    for data_folder in filter(None, (settings["data"], settings["test_on"])):
        check_places(Path(data_folder), output, features)
    data = list_compared(settings)
    name = f"{path.stem if is_csv(path) else path.name}-compare"
    with claimed_folder(output, name, overwrite=overwrite, resume=resume, files=FILES) as folder:
        try:
            model, layers, is_dear = prepare_compared(settings, data)
            data = check_images(data, skip_damaged=settings["skip_damaged"], track=track)
            most = most_replicates(settings["seeds"], is_dear=is_dear)
            job = _Job(settings, offered, data, model.to(where), layers, most, workers)
            replicates = job.replicates(scenarios)  # or an error, before anything is written
            _begin(folder, {**settings, "images_sha256": data.sha256}, anew=not resume)
            found = job.run(
                folder,
                features or folder / FEATURES,
                replicates,
                overwrite=overwrite,
                say=say,
                track=track,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; the same command with --output {folder} --resume goes on"
            ) from None
        shutil.rmtree(folder / _KEPT, ignore_errors=True)
    return folder, found


@dataclass(frozen=True)
class _Job:
    """A comparison, loaded and checked."""

    settings: Mapping[str, Any]
    offered: Candidates
    data: LabelledImages
    model: nn.Module
    layers: list[str]
    most: int
    workers: int

    def replicates(self, scenarios: Sequence[Scenario]) -> dict[Scenario, list[Replicate]]:
        """Split, and the head that steps begin with, of `manifold-mixup train` with each seed."""
        has_steps = self.settings["tail"] == "trainable"
        heads = [self._head(seed) if has_steps else None for seed in range(self.most)]
        return {
            scenario: [
                draw_replicate(self.data, seed, scenario, head) for seed, head in enumerate(heads)
            ]
            for scenario in scenarios
        }

    def run(
        self,
        folder: Path,
        directory: Path,
        replicates: Mapping[Scenario, list[Replicate]],
        *,
        overwrite: bool,
        say: Say,
        track: Track,
    ) -> dict[Scenario, Comparison]:
        """Store features in a directory, compare for every scenario, and write all results."""
        dataset = self._dataset()
        say(f"data: {self.data.title}, {len(self.data.classes)} classes, {len(dataset)} images")
        if self.data.damaged:
            say(f"{len(self.data.damaged)} damaged images left out")
        say(str(self._price(dataset, replicates, directory)))
        stores = self._extract(dataset, directory, overwrite, say, track)
        heads = _find_heads(self.model, stores)
        self._say_left_out(heads, say)
        kept = Kept(folder / _KEPT)
        found = {
            scenario: compare_stores(
                self.model,
                stores,
                heads,
                own,
                self.offered,
                worth=self.settings["worth"],
                inputs=dataset if self.settings["with_input"] else None,
                kept=kept.under(scenario.name or "all"),
                track=track,
            )
            for scenario, own in replicates.items()
        }
        self._write(folder, found, stores, replicates[Scenario()][0])
        return found

    def _say_left_out(self, heads: Mapping[str, Head], say: Say) -> None:
        """Say which pairings have no row, where each would cost passes or trainings of its own."""
        first, *others = dict.fromkeys(self.offered.pairings)
        layers = [layer for layer, head in heads.items() if head.is_dear]
        layers += [INPUT] if self.settings["with_input"] else []
        if others and layers:
            say(
                f"{', '.join(layers)}: rows of pairing {first} alone, as each of "
                f"{', '.join(others)} would cost as much again"
            )

    def _dataset(self) -> ImageSet:
        """All images, part after part."""
        name, images = self.settings["model"], join_splits(self.data.parts.values())
        channels = input_size(name, self.model)[0]
        return ImageSet(images, model_transform(name, self.model), channels)

    def _head(self, seed: int) -> tuple[Tensor, Tensor]:
        model = seeded_backbone(self.settings["model"], self.settings["weights"], seed)
        head = replace_head(model, len(self.data.classes))
        assert isinstance(head, nn.Linear)  # as checked before
        device = next(self.model.parameters()).device
        return head.weight.detach().to(device), head.bias.detach().to(device)

    def _price(
        self, dataset: ImageSet, replicates: Mapping[Scenario, list[Replicate]], there: Path
    ) -> Price:
        return estimate(
            self.model,
            dataset,
            partial(_find_heads, self.model),
            self.layers,
            [of_scenario[0] for of_scenario in replicates.values()],
            self.most,
            self.offered,
            is_stored=_is_stored(there, self.layers),
            with_input=self.settings["with_input"],
            workers=self.workers,
        )

    def _extract(
        self, dataset: ImageSet, directory: Path, overwrite: bool, say: Say, track: Track
    ) -> dict[str, FeatureStore]:
        stores = extract_features(
            self.model,
            self.layers,
            dataset,
            directory,
            classes=self.data.classes,
            overwrite=overwrite,
            workers=self.workers,
            say=say,
            track=track,
        )
        return {layer: place_store(store, "auto") for layer, store in stores.items()}

    def _write(
        self,
        folder: Path,
        found: Mapping[Scenario, Comparison],
        stores: Mapping[str, FeatureStore],
        replicate: Replicate,
    ) -> None:
        """Write all results, and train the winner as a run."""
        settings, comparison = self.settings, found[Scenario()]
        images, classes = join_splits(self.data.parts.values()), self.data.classes
        write_results(folder, found, settings)
        row = comparison.rows[comparison.winner]
        parts = {name: part for name, part in self.data.parts.items() if name != ELSEWHERE}
        data = replace(self.data, parts=parts)
        device = next(self.model.parameters()).device
        options: dict[str, Any] = {"device": device, "workers": self.workers}
        save_winner(folder / WINNER, row, stores, replicate, settings, data, **options)
        channels = input_size(settings["model"], self.model)[0]
        write_page(
            folder / PAGE,
            found,
            title=f"{settings['model']} on {Path(settings['data']).name}",
            about=settings_sentence(settings, len(images), len(classes), comparison.replicates),
            predict=f"manifold-mixup predict IMAGE --run {shlex.quote(str(folder / WINNER))}",
            train=train_command(row, Scenario(), settings),
            pairs=draw_pairs(images, classes, channels),
        )


def _find_heads(model: nn.Module, stores: Mapping[str, FeatureStore]) -> dict[str, Head]:
    return {layer: find_head(model, store) for layer, store in stores.items()}


def _is_stored(directory: Path, layers: Sequence[str]) -> bool:
    """Whether features of all layers are there, to the last one."""
    try:
        for layer in layers:
            FeatureStore(directory / quote(layer, safe=""))
    except (ValueError, OSError):
        return False
    return True


def _begin(folder: Path, settings: dict[str, Any], *, anew: bool) -> None:
    """Note the settings; to go on, they have to be those noted before."""
    file = folder / SETTINGS
    if not anew and file.is_file():
        check_settings(folder, read_json(file, "start anew with --overwrite"), settings)
        return
    for name in (_KEPT, WINNER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (RESULTS, TABLE, PAGE):  # or those of an earlier one would pass for its own
        (folder / name).unlink(missing_ok=True)
    write_json(file, settings)


def check_together(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError for what does not go together."""
    check_tail(settings["tail"])
    check_compared(settings["worth"], settings["seeds"], settings["label_noises"])
    if settings["tail"] == "frozen":
        for name in ("lrs", "epochs", "batch_size"):
            if settings[name] is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')}: heads alone are brought to their optimum, there "
                    "are no steps; leave it out, or give --tail trainable"
                )
    check_task(settings["task"], None)
    if settings["with_input"] and settings["tail"] == "trainable":
        raise ValueError("--with-input trains heads alone; leave it out, or --tail trainable")
    if settings["weights"] == "none":
        raise ValueError("--weights none: every seed would have another backbone; give a file")
    if settings["test_on"] == settings["data"]:
        raise ValueError(f"--test-on {settings['data']}: that is DATA, which is trained on")


def list_compared(settings: Mapping[str, Any]) -> LabelledImages:
    """The data set, if it is of classes that the pairings can mix, and what lies elsewhere."""
    name, task, root = (settings[one] for one in ("data", "task", "data_root"))
    data = list_data(name, task=task, root=root)
    if data.task != "classes":
        hint = f" ({data.why})" if data.why else ""
        hint += "; --task classes takes them for classes" if data.task == "values" else ""
        raise ValueError(f"{data.title}: compare is for classes, this has {data.task}{hint}")
    for pairing in settings["pairings"]:
        first = torch.tensor(data.parts["train"].targets[:2])
        check_pairs(Classes(), pairing, (), first, len(data.classes))
    if settings["test_on"] is None:
        return data
    elsewhere = _elsewhere(settings["test_on"], task, root, data)
    return replace(data, parts={**data.parts, ELSEWHERE: elsewhere})


def _elsewhere(name: str, task: str | None, root: str | None, data: LabelledImages) -> Split:
    """The test part of another data set, or all of it, with the classes of this one."""
    other = list_data(name, task=task if is_csv(Path(name)) else None, root=root)
    if other.task != "classes":
        hint = "; --task classes takes them for classes" if other.task == "values" else ""
        raise ValueError(f"--test-on {name}: has {other.task}, expected classes as in DATA{hint}")
    part = other.parts.get("test") or join_splits(other.parts.values())
    if unknown := sorted(set(other.classes) - set(data.classes)):
        raise ValueError(
            f"--test-on {name}: holds class '{unknown[0]}', which {data.title} has not "
            f"({', '.join(data.classes[:5])}{', …' if len(data.classes) > 5 else ''})"
        )
    trained_on = join_splits(part for key, part in data.parts.items() if key != "test")
    known, own = _files(trained_on), _files(part)
    if both := sorted(own[file] for file in known.keys() & own.keys()):
        raise ValueError(
            f"--test-on {name}: {both[0]} is in DATA too, where it may be trained on; name a "
            "folder of other images"
        )
    targets = [data.classes.index(other.classes[target]) for target in part.targets]
    return replace(part, targets=targets, names=[f"{name}/{one}" for one in part.names])


def _files(part: Split) -> dict[tuple[int, int], Path]:
    """The files that images come from, by what is the same for all links to a file."""
    paths = [Path(one) for one in part.sources if isinstance(one, str | Path)]
    found = {path: path.stat() for path in paths if path.exists()}
    return {(status.st_dev, status.st_ino): path for path, status in found.items()}


def prepare_compared(
    settings: Mapping[str, Any], data: LabelledImages
) -> tuple[nn.Module, list[str], bool]:
    """The model with only what is to be trained left to train, the layers, and whether a replicate
    costs more than solving for heads behind stored features.
    """
    model = seeded_backbone(settings["model"], settings["weights"], 0)
    head = replace_head(model, len(data.classes))
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(
            f"{settings['model']}: its head is no linear layer with a bias, which is all that "
            "compare trains; choose another --model"
        )
    size = input_size(settings["model"], model)
    example = torch.randn(2, *size, generator=seeded_generator(0, "example"))
    layers = _layers(model, settings["layers"]) or [head_input(trace(model, (example,), {}), head)]
    found = trace(model, (example,), {}, keep=layers)
    tails = cut_layers(found, layers, (example,), {})
    is_trainable = settings["tail"] == "trainable"
    behind = [m for layer in layers for m in found.modules_after(layer)] if is_trainable else []
    freeze(model, except_=[head, *behind])
    is_dear = is_trainable or settings["with_input"]
    for layer, tail in tails.items():  # or an error would come when all images have been read
        trained_parameters(found, layer)
        leaves = found.run(fold_traced(found, layer, tail)).leaves.values()
        is_dear = is_dear or next(iter(leaves)).shape[1:].numel() != head.in_features
    return model, layers, is_dear


def _layers(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """The names of all layers that some patterns stand for, each once."""
    found = [layer for pattern in patterns or () for layer in find_layers(model, pattern)]
    if any(layer.is_input for layer in found):
        raise ValueError("--layers input: images are mixed by --with-input; name layers to store")
    return list(dict.fromkeys(layer.name for layer in found))
