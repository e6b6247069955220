"""The training of a job's head, measured and written as a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from manifold_mixup._progress import Track
from manifold_mixup.features import FeatureStore, Samples, find_tail
from manifold_mixup.hooks import KINDS
from manifold_mixup.reports import CURVE, plot_curve, plot_quality
from manifold_mixup.runs.checkpoint import save_run, write_state
from manifold_mixup.runs.prepare import Job, class_indices
from manifold_mixup.runs.selection import choose_alpha, choose_rate
from manifold_mixup.training import (
    AUTO,
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


# The settings that `train_head` takes.
HYPERPARAMETERS = (
    *("layer", "alpha", "mixes", "weight_decay", "optimizer", "epochs", "seed", "batch_size"),
    *("lr", "label_smoothing", "class_weight", "pairing", "exclude", "prob", "clean_weight"),
    "patience",
)


# Of these, and of what goes on with a training, a short one to choose the rate has none.
_OF_LONG = ("lr", "patience", "resume", "on_epoch")


@dataclass(frozen=True)
class Trainer:
    """Trains and measures the head of a job.

    Attributes:
        job: The job.
        sets: The samples of each part.
        workers: Processes that load images.
        say: Takes each line to show.
        track: Shows how far a step is.
    """

    job: Job
    sets: Mapping[str, Samples]
    workers: int
    say: Say
    track: Track

    @cached_property
    def model(self) -> nn.Module:
        """What takes the samples: the model, or of stored features what lies behind them."""
        model, train = self.job.model, self.sets["train"]
        return find_tail(model, train) if isinstance(train, FeatureStore) else model

    def train(self, **options: Any) -> tuple[TrainingState, dict[str, float]]:
        """Train by the job's settings, but for those given; with what was chosen, too."""
        settings = self.job.settings
        keywords = {name: settings[name] for name in HYPERPARAMETERS} | options
        keywords["exclude"] = class_indices(settings["exclude"], self.job.data.classes)
        if keywords["alpha"] == AUTO:
            keywords["alpha"] = self._chosen_alpha()
        alpha = keywords["alpha"]
        if settings["augment"] and not settings["views"] and keywords["optimizer"] == AUTO:
            # There is no set of samples that a head could be solved for.
            keywords["optimizer"] = "adamw"
            self.say("trained by steps (adamw): images are augmented anew in each epoch")
        keywords |= {
            "alpha": warmed(alpha, settings["alpha_warmup"]),
            "task": self.job.task,
            "kind": KINDS[settings["kind"]],
            "workers": self.workers,
            "track": self.track,
        }
        rates: list[float] = [] if keywords["lr"] is None else [keywords["lr"]]

        def ask() -> float:
            rates.append(self._chosen_rate(keywords))
            return rates[0]

        with failures_unwarned():  # the run tells
            training = self._survived(**{**keywords, "lr": keywords["lr"] or ask})
        chosen: dict[str, Any] = {"lr": rates[0] if rates else None}
        chosen["weight_decay"] = training.metrics.get("weight_decay", settings["weight_decay"])
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
        alpha, why = choose_alpha(self.job.model, known, self.job.settings, self.track)
        self.say(f"alpha: {alpha:g} ({why})")
        return alpha

    def test(self) -> tuple[Task, Tensor, Tensor]:
        """The task, with what validation chose for it, and logits and targets to test it."""
        task = self.job.task
        measure = partial(predict_logits, self.model, workers=self.workers, track=self.track)
        if not isinstance(task, Values):
            task = task.tuned(*measure(self.sets["val"]))
        return task, *measure(self.sets["test"])


def run_job(
    trainer: Trainer,
    folder: Path,
    before: TrainingState | None,
    *,
    baseline: bool,
    save_model: bool,
) -> dict[str, Any]:
    """Train from where an earlier training stood, measure on the test part, write the run."""
    job = trainer.job

    def keep(training: TrainingState) -> None:
        write_state(folder, training, job.settings)
        trainer.say(_epoch_line(training, job.settings["epochs"] or EPOCHS, job.task))

    start = {n: p.detach().clone() for n, p in job.model.named_parameters() if p.requires_grad}
    training, chosen = trainer.train(resume=before, on_epoch=keep)
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
    if baseline:
        trainer.say("the same without mixup")
        job.model.load_state_dict(start, strict=False)
        unmixed, _ = trainer.train(alpha=0.0, clean_weight=0.0)
        plain, *measured = trainer.test()
        failed = {"failed": unmixed.failed} if unmixed.failed else {}
        info["baseline"] = {**plain.metrics(*measured), **failed}
        job.model.load_state_dict(training.head, strict=False)
    title = f"{job.settings['model']}, mixed at {job.settings['layer']}"
    plot_curve(folder / CURVE, training.epochs, title, task.quality)
    plot_quality(folder, task, logits, target, f"{title}, test part")
    return save_run(folder, job.model, training, info, whole=save_model)


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
        place = f"weight decay {row['weight_decay']:<6g}"
    clean, validation = (
        show_quality(quality, row[f"{kind}_{quality}"]) for kind in ("train", "val")
    )
    return (
        f"{place}  loss: {row['mixed_loss']:.3f} mixed, "
        f"{row['train_loss']:.3f} clean, {row['val_loss']:.3f} validation  "
        f"{quality.replace('_', ' ')}: {clean} clean, {validation} validation"
    )
