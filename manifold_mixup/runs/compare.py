"""One comparison, from the names of data and model to its results on disk."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from manifold_mixup._files import Kept, read_json, write_json
from manifold_mixup._progress import ALONE, Ranks, Track, untracked
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import (
    ELSEWHERE,
    Candidates,
    Comparison,
    Head,
    Price,
    Replicate,
    Scenario,
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
    about_copies,
    check_images,
    is_csv,
    join_splits,
    list_data,
    split_images,
    telling_damaged,
)
from manifold_mixup.features import FeatureStore, place_store
from manifold_mixup.inspection import INPUT, find_device, find_layers, trace
from manifold_mixup.models import (
    cut_layers,
    fold_traced,
    freeze,
    input_size,
    model_transform,
    replace_head,
)
from manifold_mixup.reports import write_page
from manifold_mixup.runs.checkpoint import (
    FEATURES,
    SETTINGS,
    WINNER,
    check_places,
    check_settings,
    claimed_folder,
    seeded_backbone,
)
from manifold_mixup.runs.config import CompareConfig
from manifold_mixup.runs.options import how_to_go_on
from manifold_mixup.runs.prepare import head_input, list_asked, store_features, table_of
from manifold_mixup.runs.winner import (
    RESULTS,
    TABLE,
    about,
    draw_pairs,
    save_winner,
    train_command,
    write_results,
)
from manifold_mixup.training import Classes, Say, check_pairs, trained_parameters

PAGE, _KEPT = "report.html", "trained"
FILES = (SETTINGS, _KEPT, RESULTS, TABLE, PAGE, WINNER, FEATURES)


def compare_run(
    config: CompareConfig, *, say: Say, track: Track, ranks: Ranks = ALONE
) -> tuple[Path, dict[Scenario, Comparison]]:
    """Compare ways to train a head on a data set, and write what came of it.

    Args:
        config: What is asked for.
        say: Takes each line to show.
        track: Shows how far a step is.
        ranks: The processes that share the pass through the backbone, of which this is the first.

    Returns:
        The folder, and what was found for the data as they are and for each harder case.

    Raises:
        ValueError: Model, layers or data are not what they should be.
        OSError: A file or folder is missing, or cannot be written.
        KeyboardInterrupt: Its message says how to go on.
    """
    scenarios = list_scenarios(config.shots or (), config.label_noises or ())
    where, path = find_device(config.device), Path(config.data)
    for data_folder in filter(None, (config.data, config.test_on)):
        check_places(Path(data_folder), config.output, config.features)
    offered, data = config.candidates(), list_compared(config, track)
    name = f"{path.stem if is_csv(path) else path.name}-compare"
    given: dict[str, Any] = {"overwrite": config.overwrite, "resume": config.resume}
    with claimed_folder(config.output, name, **given, files=FILES) as folder:
        try:
            model, layers, is_dear = prepare_compared(config, data)
            data = check_images(data, skip_damaged=config.skip_damaged, track=track)
            most = most_replicates(config.seeds, is_dear=is_dear)
            own = model.to(where), layers, most, say, track, ranks
            job = _Job(config, offered, data, *own)
            replicates = job.replicates(scenarios)  # or an error, before anything is written
            _begin(folder, {**config.stored(), "images_sha256": data.sha256}, config.resume)
            found = job.run(folder, config.features or folder / FEATURES, replicates)
        except KeyboardInterrupt:
            kept = (folder / SETTINGS).exists() or (folder / FEATURES).exists()
            told = how_to_go_on(folder, is_kept=kept, overwrite=config.overwrite)
            raise KeyboardInterrupt(told) from None
        shutil.rmtree(folder / _KEPT, ignore_errors=True)
    return folder, found


def help_compare(config: CompareConfig, features: str, damaged: dict[str, str]) -> None:
    """Compute this process's share of the features that another one compares heads on.

    Args:
        config: What both are asked for.
        features: Where they are stored.
        damaged: The images that the other one left out.
    """
    data = list_compared(config, untracked)
    model, layers, _ = prepare_compared(config, data)
    data = replace(data.without(damaged), damaged=damaged)
    own = model.to(find_device(config.device)), layers, 0, lambda line: None, untracked, ALONE
    job = _Job(config, config.candidates(), data, *own)
    job.extract(job.dataset(), Path(features))


@dataclass(frozen=True)
class _Job:
    """A comparison, loaded and checked."""

    config: CompareConfig
    offered: Candidates
    data: LabelledImages
    model: nn.Module
    layers: list[str]
    most: int
    say: Say
    track: Track
    ranks: Ranks

    def replicates(self, scenarios: Sequence[Scenario]) -> dict[Scenario, list[Replicate]]:
        """Split, and the head that steps begin with, of `manifold-mixup train` with each seed."""
        has_steps = self.config.tail == "trainable"
        heads = [self._head(seed) if has_steps else None for seed in range(self.most)]
        return {
            scenario: [
                draw_replicate(self.data, seed, scenario, head) for seed, head in enumerate(heads)
            ]
            for scenario in scenarios
        }

    def run(
        self, folder: Path, directory: Path, replicates: Mapping[Scenario, list[Replicate]]
    ) -> dict[Scenario, Comparison]:
        """Store features in a directory, compare for every scenario, and write all results."""
        dataset, say = self.dataset(), self.say
        say(f"data: {self.data.title}, {len(self.data.classes)} classes, {len(dataset)} images")
        for line in (*self.data.about, *about_copies(self.data, self.data.parts)):
            say(line)
        say(str(self._price(dataset, replicates, directory)))
        if self.ranks.world > 1:
            say(f"{self.ranks.world} processes: each computes its share, the first one compares")
            self.ranks.ask_for_help(features=str(directory), damaged=self.data.damaged)
        stores = self.extract(dataset, directory)
        heads = _find_heads(self.model, stores)
        self._say_left_out(heads)
        kept = Kept(folder / _KEPT)
        found = {
            scenario: compare_stores(
                self.model,
                stores,
                heads,
                own,
                self.offered,
                worth=self.config.worth,
                inputs=dataset if self.config.with_input else None,
                kept=kept.under(scenario.name or "all"),
                track=self.track,
            )
            for scenario, own in replicates.items()
        }
        self._write(folder, found, stores, replicates[Scenario()][0])
        return found

    def _say_left_out(self, heads: Mapping[str, Head]) -> None:
        """Say which pairings have no row, where each would cost passes or trainings of its own."""
        first, *others = dict.fromkeys(self.offered.pairings)
        layers = [layer for layer, head in heads.items() if head.is_dear]
        layers += [INPUT] if self.config.with_input else []
        if others and layers:
            self.say(
                f"{', '.join(layers)}: rows of pairing {first} alone, as each of "
                f"{', '.join(others)} would cost as much again"
            )

    def dataset(self) -> ImageSet:
        """All images, part after part."""
        name, images = self.config.model, join_splits(self.data.parts.values())
        channels = input_size(name, self.model)[0]
        return ImageSet(images, model_transform(name, self.model), channels)

    def _head(self, seed: int) -> tuple[Tensor, Tensor]:
        model = seeded_backbone(self.config.model, self.config.weights, seed)
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
            with_input=self.config.with_input,
            workers=self.config.workers,
        )

    def extract(self, dataset: ImageSet, directory: Path) -> dict[str, FeatureStore]:
        """Store the features of all images, and give them by layer."""
        stores = store_features(
            self.config,
            self.model,
            self.layers,
            dataset,
            directory,
            classes=self.data.classes,
            say=self.say,
            track=self.track,
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
        config, comparison = self.config, found[Scenario()]
        images, classes = join_splits(self.data.parts.values()), self.data.classes
        write_results(folder, found, config)
        row = comparison.rows[comparison.winner]
        parts = {name: part for name, part in self.data.parts.items() if name != ELSEWHERE}
        data = replace(self.data, parts=parts)
        device = next(self.model.parameters()).device
        save_winner(folder / WINNER, row, stores, replicate, config, data, device=device)
        channels = input_size(config.model, self.model)[0]
        write_page(
            folder / PAGE,
            found,
            title=f"{config.model} on {Path(config.data).name}",
            about=about(config, len(images), len(classes), comparison.replicates),
            predict=f"manifold-mixup predict IMAGE --run {shlex.quote(str(folder / WINNER))}",
            train=train_command(row, Scenario(), config),
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


def _begin(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Note the settings; to go on, they have to be those noted before."""
    file = folder / SETTINGS
    if resume and file.is_file():
        check_settings(folder, read_json(file, "start anew with --overwrite"), settings)
        return
    for name in (_KEPT, WINNER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (RESULTS, TABLE, PAGE):  # or those of an earlier one would pass for its own
        (folder / name).unlink(missing_ok=True)
    write_json(file, settings)


def list_compared(config: CompareConfig, track: Track) -> LabelledImages:
    """The data set, if it is of classes that the pairings can mix, and what lies elsewhere."""
    data = list_asked(config, track)
    if data.task != "classes":
        hint = f" ({data.why})" if data.why else ""
        hint += "; --task classes takes them for classes" if data.task == "values" else ""
        raise ValueError(f"{data.title}: compare is for classes, this has {data.task}{hint}")
    with telling_damaged(data, skip_damaged=config.skip_damaged, track=track):
        first = torch.tensor(split_images(data)["train"].targets[:2])
    for pairing in config.pairings:
        check_pairs(Classes(), pairing, (), first, len(data.classes))
    if config.test_on is None:
        return data
    elsewhere, about = _elsewhere(config.test_on, config, data)
    notes = [*data.notes, *(f"--test-on {config.test_on}: {line}" for line in about)]
    return replace(data, parts={**data.parts, ELSEWHERE: elsewhere}, notes=notes)


def _elsewhere(name: str, config: CompareConfig, data: LabelledImages) -> tuple[Split, list[str]]:
    """The test part of another data set, or all of it, with the classes of this one; and what is
    told of that data set.
    """
    table = {"task": config.task, **table_of(config)} if is_csv(Path(name)) else {}
    other = list_data(name, root=config.data_root, **table)
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
    names = [f"{name}/{one}" for one in part.names]
    return replace(part, targets=targets, names=names), other.about


def _files(part: Split) -> dict[tuple[int, int], Path]:
    """The files that images come from, by what is the same for all links to a file."""
    paths = [Path(one) for one in part.sources if isinstance(one, str | Path)]
    found = {path: path.stat() for path in paths if path.exists()}
    return {(status.st_dev, status.st_ino): path for path, status in found.items()}


def prepare_compared(
    config: CompareConfig, data: LabelledImages
) -> tuple[nn.Module, list[str], bool]:
    """The model with only what is to be trained left to train, the layers, and whether a replicate
    costs more than solving for heads behind stored features.
    """
    model = seeded_backbone(config.model, config.weights, 0)
    head = replace_head(model, len(data.classes))
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(
            f"{config.model}: its head is no linear layer with a bias, which is all that "
            "compare trains; choose another --model"
        )
    size = input_size(config.model, model)
    example = torch.randn(2, *size, generator=seeded_generator(0, "example"))
    layers = _layers(model, config.layers) or [head_input(trace(model, (example,), {}), head)]
    found = trace(model, (example,), {}, keep=layers)
    tails = cut_layers(found, layers, (example,), {})
    is_trainable = config.tail == "trainable"
    behind = [m for layer in layers for m in found.modules_after(layer)] if is_trainable else []
    freeze(model, except_=[head, *behind])
    is_dear = is_trainable or config.with_input
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
