"""One training, from the names of data and model to a run on disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from manifold_mixup._progress import ALONE, Ranks, Track, untracked
from manifold_mixup.data import is_csv, join_splits
from manifold_mixup.features import MANIFEST, FeatureStore, Samples, find_tail, place_store
from manifold_mixup.hooks import KINDS
from manifold_mixup.inspection import find_device
from manifold_mixup.reports import CURVE, plot_curve, plot_quality
from manifold_mixup.runs.checkpoint import (
    FEATURES,
    MODEL,
    STATE,
    check_places,
    claimed_folder,
    read_finished,
    read_state,
    save_run,
    write_state,
)
from manifold_mixup.runs.config import TrainConfig
from manifold_mixup.runs.options import how_to_go_on
from manifold_mixup.runs.prepare import (
    Job,
    class_indices,
    describe_job,
    describe_shares,
    list_asked,
    prepare_job,
    store_features,
)
from manifold_mixup.runs.selection import check_auto, choose_alpha, choose_rate
from manifold_mixup.training import (
    AUTO,
    DECAY,
    EPOCHS,
    Alpha,
    Diverged,
    Say,
    Task,
    TrainingState,
    Values,
    failures_unwarned,
    load_parameters,
    predict_logits,
    show_quality,
    train_head,
)

# All samples but those of the test part.
KNOWN = "known"

# The options that `train_head` takes by these names.
HYPERPARAMETERS = (
    *("layer", "alpha", "mixes", "weight_decay", "optimizer", "epochs", "seed", "batch_size"),
    *("lr", "label_smoothing", "class_weight", "pairing", "exclude", "prob", "clean_weight"),
    "patience",
)

# Of these, and of what goes on with a training, a short one to choose the rate has none.
_OF_LONG = ("lr", "patience", "resume", "on_epoch")


def train_run(
    config: TrainConfig, *, say: Say, track: Track, ranks: Ranks = ALONE
) -> tuple[Path, dict[str, Any]]:
    """Train a head and write the run, or go on with an interrupted one.

    Args:
        config: What is asked for; a ``layer`` or ``task`` of None is chosen.
        say: Takes each line to show.
        track: Shows how far a step is.
        ranks: The processes that share the pass through the backbone, of which this is the first.

    Returns:
        The folder, and what its ``run.json`` says.

    Raises:
        ValueError: Model, layer or data are not what they should be.
        OSError: A file or folder is missing, or cannot be written.
        KeyboardInterrupt: Its message says what was kept.
    """
    where, data = find_device(config.device), Path(config.data)
    check_places(data, config.output, config.features)
    name, again = data.stem if is_csv(data) else data.name, config.resume
    given: dict[str, Any] = {"overwrite": config.overwrite, "resume": again}
    with claimed_folder(config.output, name, **given) as folder:
        try:
            job = prepare_job(config, track)
            if config.alpha == AUTO:
                check_auto(job)
            if again and (finished := read_finished(folder, job.settings)):
                _check_asked(folder, finished, config)
                return folder, finished
            before = read_state(folder, job.settings) if again else None
            job.model.to(where)
            for line in describe_job(job):
                say(line)
            features = config.features or folder / FEATURES
            if ranks.world > 1:
                say(describe_shares(job, ranks.world))
                ranks.ask_for_help(features=str(features), damaged=job.data.damaged)
            sets = load_sets(job, features, say, track)
            return folder, run_job(Trainer(job, sets, say, track), folder, before)
        except KeyboardInterrupt:
            kept = (folder / STATE).exists() or (folder / FEATURES).exists()
            told = how_to_go_on(folder, is_kept=kept, overwrite=config.overwrite)
            raise KeyboardInterrupt(told) from None


def help_train(config: TrainConfig, features: str, damaged: dict[str, str]) -> None:
    """Compute this process's share of the features that another one trains on.

    Args:
        config: What both are asked for.
        features: Where they are stored.
        damaged: The images that the other one left out.
    """
    data = list_asked(config, untracked)
    checked = replace(data.without(damaged), damaged=damaged)
    job = prepare_job(config, untracked, checked=checked)
    job.model.to(find_device(config.device))
    if job.config.way == "cached":
        load_sets(job, Path(features), lambda line: None, untracked)


def load_sets(job: Job, directory: Path, say: Say, track: Track) -> dict[str, Samples]:
    """The samples of each part: images, or their features, which are stored now if they are not.

    Where features of all parts are stored together, all but the test part is there as `KNOWN` too.
    Shared features are those of all images, in the place and order that `compare` stores them in,
    so that they serve any seed.

    Args:
        job: The job.
        directory: Where features are stored.
        say: Takes each line to show.
        track: Shows how far the pass is.
    """
    config = job.config
    if config.way == "hooked":
        return {name: job.images(name) for name in job.parts}
    views, others = config.views, [name for name in job.parts if name != "train"]
    # Views are of training images alone.
    groups = {"train": ["train"], "clean": others} if views else {"": list(job.parts)}
    sets: dict[str, Samples] = {}
    for folder, names in groups.items():
        how: dict[str, Any] = {
            "classes": job.data.classes,
            "fold": config.fold and config.kind == "mix",
            "dtype": getattr(torch, config.dtype),
            "say": say,
            "track": track,
        }
        place = directory / folder
        if config.features is None or views or (place / MANIFEST).is_file():
            how["views"] = views if folder == "train" else 1
            store = store_features(
                config, job.model, config.layer, job.images(*names), place, **how
            )
        else:
            store = _shared(job, place, how)
        store = place_store(store, config.in_memory)
        begin, known = 0, list[int]()
        for name in names:
            own = range(begin, begin + len(job.parts[name]))
            sets[name], begin = store.take(own), own.stop
            known += [] if name == "test" else own
        if not views:
            sets[KNOWN] = store.take(known)
    return sets


def _shared(job: Job, directory: Path, how: Mapping[str, Any]) -> FeatureStore:
    """The features of all parts, one after the other, from those of all images."""
    config = job.config
    assert config.layer is not None  # it has been chosen
    name = quote(config.layer, safe="")
    name += "" if config.dtype == "float32" else f"-{config.dtype}"
    name += "" if how["fold"] else "-unfolded"
    whole: FeatureStore = store_features(
        config, job.model, config.layer, job.all_images, directory / name, **how
    )
    parts = join_splits(job.positions.values())
    store = whole.take(list(parts.sources))
    # Labels that were drawn again are those of this run alone.
    return store.with_targets(parts.targets) if config.label_noise else store


def _check_asked(folder: Path, finished: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise a ValueError if a finished run lacks what is asked for."""
    for flag, is_asked, is_there in (
        ("--baseline", bool(config.baseline), "baseline" in finished),
        ("--save-model", config.save_model, (folder / MODEL).is_file()),
    ):
        if is_asked and not is_there:
            raise ValueError(
                f"{folder}: is finished, without {flag}; train it anew with --overwrite"
            )


@dataclass(frozen=True)
class Trainer:
    """Trains and measures the head of a job.

    Attributes:
        job: The job.
        sets: The samples of each part.
        say: Takes each line to show.
        track: Shows how far a step is.
    """

    job: Job
    sets: Mapping[str, Samples]
    say: Say
    track: Track

    @cached_property
    def model(self) -> nn.Module:
        """What takes the samples: the model, or of stored features what lies behind them."""
        model, train = self.job.model, self.sets["train"]
        return find_tail(model, train) if isinstance(train, FeatureStore) else model

    def train(self, **options: Any) -> tuple[TrainingState, dict[str, float]]:
        """Train by the job's settings, but for those given; with what was chosen, too."""
        config = self.job.config
        keywords = {name: getattr(config, name) for name in HYPERPARAMETERS} | options
        keywords["exclude"] = class_indices(config.exclude, self.job.data.classes)
        if keywords["alpha"] == AUTO:
            keywords["alpha"] = self._chosen_alpha()
        alpha = keywords["alpha"]
        if config.augment and not config.views and keywords["optimizer"] == AUTO:
            # There is no set of samples that a head could be solved for.
            keywords["optimizer"] = "adamw"
            self.say("trained by steps (adamw): images are augmented anew in each epoch")
        keywords |= {
            "alpha": warmed(alpha, config.alpha_warmup),
            "task": self.job.task,
            "kind": KINDS[config.kind],
            "workers": config.workers,
            "track": self.track,
        }
        rates: list[float] = [] if keywords["lr"] is None else [keywords["lr"]]

        def ask() -> float:
            rates.append(self._chosen_rate(keywords))
            return rates[0]

        with failures_unwarned():  # the run tells
            training = self._survived(**{**keywords, "lr": keywords["lr"] or ask})
        chosen: dict[str, Any] = {"lr": rates[0] if rates else None}
        usual = DECAY if config.weight_decay == AUTO else config.weight_decay
        chosen["weight_decay"] = training.metrics.get("weight_decay", usual)
        return training, {"alpha": alpha, **chosen}

    def _chosen_rate(self, keywords: Mapping[str, Any]) -> float:
        """The learning rate that validation chooses, for what is trained by steps."""
        short = {name: value for name, value in keywords.items() if name not in _OF_LONG}
        short["epochs"] = EPOCHS if short["epochs"] is None else short["epochs"]
        short["optimizer"] = "adamw" if short["optimizer"] == AUTO else short["optimizer"]
        choice = choose_rate(self.model, self.sets["train"], self.sets["val"], **short)
        self.say(str(choice))
        return choice.rate

    def _survived(
        self, *, on_epoch: Callable[[TrainingState], None] | None = None, **keywords: Any
    ) -> TrainingState:
        """A training; if it diverges what it was after its last epoch, or before its first."""
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        start = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
        last = [keywords.pop("resume", None) or TrainingState(start)]

        def keep(training: TrainingState) -> None:
            last.append(training)
            if on_epoch is not None:
                on_epoch(training)

        try:
            return train_head(
                self.model,
                self.sets["train"],
                validation=self.sets["val"],
                resume=last[0],
                on_epoch=keep,
                say=self.say,
                **keywords,
            )
        except Diverged as error:
            head = last[-1].best or last[-1].head
            load_parameters(parameters, head)
            return replace(last[-1], head=head, failed=error.reason)

    def _chosen_alpha(self) -> float:
        known = self.sets[KNOWN]
        assert isinstance(known, FeatureStore)  # or it would have been refused
        alpha, why = choose_alpha(self.job.model, known, self.job.config, self.track)
        self.say(f"alpha: {alpha:g} ({why})")
        return alpha

    def test(self) -> tuple[Task, Tensor, Tensor]:
        """The task, with what validation chose for it, and logits and targets to test it."""
        task = self.job.task
        measure = partial(
            predict_logits, self.model, workers=self.job.config.workers, track=self.track
        )
        if not isinstance(task, Values):
            task = task.tuned(*measure(self.sets["val"]))
        return task, *measure(self.sets["test"])


def run_job(trainer: Trainer, folder: Path, before: TrainingState | None) -> dict[str, Any]:
    """Train from where an earlier training stood, measure on the test part, write the run."""
    job = trainer.job

    def keep(training: TrainingState) -> None:
        write_state(folder, training, job.settings)
        trainer.say(_epoch_line(training, job.config.epochs or EPOCHS, job.task))

    start = {n: p.detach().clone() for n, p in job.model.named_parameters() if p.requires_grad}
    training, chosen = trainer.train(resume=before, on_epoch=keep)
    if training.best and job.config.patience is not None:
        ended, best = len(training.epochs), training.best_epoch + 1
        trainer.say(f"stopped after epoch {ended}: epoch {best} is kept, the best on validation")
    task, logits, target = trainer.test()
    info = {
        "settings": job.settings,
        "classes": job.data.classes,
        "task": task.info(),
        "channels": job.channels,
        "held_out": {name: job.parts[name].names for name in ("val", "test")},
        "damaged": job.data.damaged,
        **chosen,
        "metrics": task.metrics(logits, target),
        "failed": training.failed,
        "epochs": training.epochs,
        "losses": training.losses,
    }
    if job.config.has_baseline:
        trainer.say("the same without mixup")
        job.model.load_state_dict(start, strict=False)
        unmixed, _ = trainer.train(alpha=0.0, clean_weight=0.0)
        plain, *measured = trainer.test()
        failed = {"failed": unmixed.failed} if unmixed.failed else {}
        info["baseline"] = {**plain.metrics(*measured), **failed}
        job.model.load_state_dict(training.head, strict=False)
    title = f"{job.config.model}, mixed at {job.config.layer}"
    plot_curve(folder / CURVE, training.epochs, title, task.quality)
    plot_quality(folder, task, logits, target, f"{title}, test part")
    return save_run(folder, job.model, training, info, whole=job.config.save_model)


def warmed(alpha: float, share: float) -> Alpha:
    """An alpha that rises linearly from 0 over a share of the epochs, if that is above 0."""
    if not (alpha and share):
        return alpha
    return lambda done: alpha * min(1.0, done / share)


def _epoch_line(training: TrainingState, epochs: int, task: Task) -> str:
    """What an epoch measured, or a weight decay of a head that is solved for."""
    row, quality = training.epochs[-1], task.quality
    place = f"epoch {len(training.epochs)}/{epochs}"
    if "weight_decay" in row:
        place = f"weight decay {row['weight_decay']:<8g}"
    clean, validation = (
        show_quality(quality, row[f"{kind}_{quality}"]) for kind in ("train", "val")
    )
    return (
        f"{place}  loss: {row['mixed_loss']:.3f} mixed, "
        f"{row['train_loss']:.3f} clean, {row['val_loss']:.3f} validation  "
        f"{quality.replace('_', ' ')}: {clean} clean, {validation} validation"
    )
