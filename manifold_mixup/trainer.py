"""The training of a job's head, measured and written as a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from manifold_mixup.auto import AUTO, choose_alpha
from manifold_mixup.cached import find_tail
from manifold_mixup.checkpoint import CURVE, save_run, write_state
from manifold_mixup.kinds import KINDS
from manifold_mixup.loading import Samples
from manifold_mixup.metrics import predict_logits
from manifold_mixup.prepare import Job, class_indices
from manifold_mixup.progress import Track
from manifold_mixup.rates import RATES, choose_rate
from manifold_mixup.report import draw_curve, draw_quality
from manifold_mixup.resume import Training
from manifold_mixup.settings import HeadSettings
from manifold_mixup.store import FeatureStore
from manifold_mixup.tasks import Task, Values
from manifold_mixup.train import Alpha, train_head
from manifold_mixup.wording import show_quality

Say = Callable[[str], None]

DEFAULT_RATE = 0.01

# All samples but those of the test part.
KNOWN = "known"

# The settings that `train_head` takes.
HYPERPARAMETERS = (
    *("layer", "alpha", "epochs", "seed", "batch_size", "lr", "weight_decay"),
    *("label_smoothing", "pairing", "exclude", "prob", "clean_weight", "noise", "mixed_epochs"),
    *("optimizer", "patience"),
)


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

    def train(self, **options: Any) -> tuple[Training, dict[str, float]]:
        """Train by the job's settings, but for those given; with what was chosen, too."""
        settings = self.job.settings
        keywords = {name: settings[name] for name in HYPERPARAMETERS} | options
        keywords["exclude"] = class_indices(settings["exclude"], self.job.data.classes)
        if keywords["alpha"] == AUTO:
            keywords["alpha"] = self._chosen_alpha()
        if keywords["lr"] is None:
            keywords["lr"] = self._chosen_rate(keywords)
            is_end = keywords["lr"] in (RATES[0], RATES[-1])
            end = ", at the end of those tried" if is_end else ""
            self.say(f"learning rate: {keywords['lr']:g}{end}")
        chosen = {"alpha": keywords["alpha"], "lr": keywords["lr"]}
        keywords["alpha"] = warmed(keywords["alpha"], settings["alpha_warmup"])
        training = train_head(
            self.model,
            self.sets["train"],
            validation=self.sets["val"],
            task=self.job.task,
            kind=KINDS[settings["kind"]],
            workers=self.workers,
            track=self.track,
            **keywords,
        )
        return training, chosen

    def _chosen_alpha(self) -> float:
        known = self.sets[KNOWN]
        assert isinstance(known, FeatureStore)  # or it would have been refused
        alpha, why = choose_alpha(self.job.model, known, self.job.settings, self.track)
        self.say(f"alpha: {alpha:g} ({why})")
        return alpha

    def _chosen_rate(self, keywords: Mapping[str, Any]) -> float:
        """The learning rate that validation chooses, where that takes little; else a usual one."""
        store, validation = self.sets["train"], self.sets["val"]
        if self.job.settings["kind"] != "mix" or not (
            isinstance(store, FeatureStore) and isinstance(validation, FeatureStore)
        ):
            return DEFAULT_RATE
        others = {one.name for one in fields(HeadSettings)} - {"lr"}
        of_head = {name: keywords[name] for name in others}
        names = ("epochs", "batch_size", "optimizer", "patience", "mixed_epochs")
        return choose_rate(
            self.model,
            store,
            validation,
            HeadSettings(lr=DEFAULT_RATE, **of_head),
            task=self.job.task,
            **{name: keywords[name] for name in names},
        )

    def test(self) -> tuple[Task, Tensor, Tensor]:
        """The task, with what validation chose for it, and logits and targets to test it."""
        task = self.job.task
        measure = partial(predict_logits, self.model, workers=self.workers, track=self.track)
        if not isinstance(task, Values):
            task = task.tuned(*measure(self.sets["val"]))
        return task, *measure(self.sets["test"])


def run_job(
    trainer: Trainer, folder: Path, before: Training | None, *, baseline: bool, save_model: bool
) -> dict[str, Any]:
    """Train from where an earlier training stood, measure on the test part, write the run."""
    job = trainer.job

    def keep(training: Training) -> None:
        write_state(folder, training, job.settings)
        trainer.say(_epoch_line(training, job.settings["epochs"], job.task))

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
        "epochs": training.epochs,
        "losses": training.losses,
    }
    if baseline:
        trainer.say("the same without mixup")
        job.model.load_state_dict(start, strict=False)
        trainer.train(alpha=0.0, clean_weight=0.0)
        plain, *measured = trainer.test()
        info["baseline"] = plain.metrics(*measured)
        job.model.load_state_dict(training.head, strict=False)
    title = f"{job.settings['model']}, mixed at {job.settings['layer']}"
    draw_curve(folder / CURVE, training.epochs, title, task.quality)
    draw_quality(folder, task, logits, target, f"{title}, test part")
    return save_run(folder, job.model, training, info, whole=save_model)


def warmed(alpha: float, share: float) -> Alpha:
    """An alpha that rises linearly from 0 over a share of the epochs, if that is above 0."""
    if not (alpha and share):
        return alpha
    return lambda done: alpha * min(1.0, done / share)


def _epoch_line(training: Training, epochs: int, task: Task) -> str:
    row, quality = training.metrics, task.quality
    clean, validation = (
        show_quality(quality, row[f"{kind}_{quality}"]) for kind in ("train", "val")
    )
    return (
        f"epoch {len(training.epochs)}/{epochs}  loss: {row['mixed_loss']:.3f} mixed, "
        f"{row['train_loss']:.3f} clean, {row['val_loss']:.3f} validation  "
        f"{quality.replace('_', ' ')}: {clean} clean, {validation} validation"
    )
