"""What a head is trained for: classes, labels or values; all that differs between them is here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.mixing import (
    Criterion,
    are_probabilities,
    plain_form,
    takes_indices,
    takes_labels,
)
from manifold_mixup.training.metrics import (
    IGNORED,
    best_thresholds,
    fit_temperature,
    label_scores,
    labelled,
    of_known_class,
    summarize,
    value_scores,
)

LOSSES: dict[str, Callable[[], nn.Module]] = {"mse": nn.MSELoss, "huber": nn.HuberLoss}


@dataclass(frozen=True)
class Classes:
    """One of several classes for each sample: class indices (n,), cross entropy.

    Targets may be soft too, the probability of each class (n, C); the most probable one counts as
    right. Samples whose index is -100 have no class: cross entropy ignores them, and so does all
    that is measured.

    Attributes:
        classes: Class names in order; none if they are known by their index alone.
        temperature: What logits are divided by before they are told as probabilities; see
            `fit_temperature`. None leaves them as they are.

    Example:
        >>> Classes(["cat", "dog"]).predictions(torch.tensor([[0.0, 0.0]]).log_softmax(1))
        [{'label': 'cat', 'probability': 0.5}]
    """

    classes: list[str] = field(default_factory=list)
    temperature: float | None = None

    name: ClassVar[Literal["classes"]] = "classes"
    quality = "accuracy"  # the measure that every epoch tells beside the loss

    def criterion(
        self, label_smoothing: float = 0.0, class_weight: Tensor | None = None
    ) -> nn.Module:
        """The loss that is trained, with a weight for each class (C,)."""
        return nn.CrossEntropyLoss(class_weight, label_smoothing=label_smoothing)

    def check(self, model: nn.Module, logits: Tensor, target: Tensor) -> None:
        """Raise a ValueError unless these are logits (B, C) for class indices (n,) or (n, C)."""
        if target.ndim == 2 and target.is_floating_point():
            _check_shapes(model, logits, target, "probabilities (B, C)")
            _check_shares(target)
            return
        if target.ndim != 1 or target.is_floating_point():
            raise misfit(target, "class indices (B,)")
        if logits.ndim == 2 and logits.shape[1] == 1:
            raise ValueError(
                f"{type(model).__name__} gives one logit, and targets of shape "
                f"{tuple(target.shape)} and dtype {target.dtype} are class indices; give it a "
                "head with replace_head(model, num_classes), or make it a binary task by "
                "task=Labels() of manifold_mixup.training, in training also by "
                "criterion=nn.BCEWithLogitsLoss()"
            )
        given, target = len(target), labelled(target)
        if not len(target):
            raise ValueError(
                f"all of {given} targets are {IGNORED}, which is ignored: nothing is left to "
                "train on or to measure; leave such samples out, or take larger batches"
            )
        if logits.ndim != 2 or int(target.max()) >= logits.shape[1]:
            raise ValueError(
                f"{type(model).__name__} gives logits of shape {tuple(logits.shape)}, but a "
                f"target is {int(target.max())}; give it a head with "
                "replace_head(model, num_classes)"
            )
        if int(target.min()) < 0:
            raise ValueError(
                f"a target is {int(target.min())}, expected class indices from 0, or {IGNORED} "
                "for samples to ignore"
            )

    def prepared(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets as the criterion takes them."""
        return target.to(dtype) if target.is_floating_point() else target.long()

    def loss(self, logits: Tensor, target: Tensor) -> float:
        """The loss of clean samples, without label smoothing."""
        return F.cross_entropy(logits.double(), self.prepared(target, torch.float64)).item()

    def metrics(self, logits: Tensor, target: Tensor) -> dict[str, Any]:
        """What is measured on clean samples; see `summarize`.

        With a temperature also ``nll_at_temperature`` and ``calibration_error_at_temperature``,
        what it makes of these two.
        """
        logits, target = of_known_class(logits, target)
        right = target if target.ndim == 1 else target.argmax(1)
        metrics = {**summarize(logits, right), "nll": self.loss(logits, target)}
        if self.temperature is None:
            return metrics
        tempered = Classes().metrics(self.tempered(logits), target)
        names = ("nll", "calibration_error")
        return metrics | {f"{name}_at_temperature": tempered[name] for name in names}

    def tuned(self, logits: Tensor, target: Tensor) -> "Classes":
        """The task with the temperature that validation samples choose."""
        logits, target = of_known_class(logits, target)
        right = target.long() if target.ndim == 1 else target.argmax(1)
        return Classes(self.classes, fit_temperature(logits, right))

    def tempered(self, logits: Tensor) -> Tensor:
        """Logits at the temperature, in float64."""
        return logits.double() / (self.temperature or 1.0)

    def predictions(self, logits: Tensor) -> list[dict[str, Any]]:
        """The most probable class of each sample."""
        probability, index = self.tempered(logits).softmax(1).max(1)
        names = _names(self.classes, logits)
        return [
            {"label": names[i], "probability": p}
            for i, p in zip(index.tolist(), probability.tolist(), strict=True)
        ]

    def info(self) -> dict[str, Any]:
        """JSON values that `task_of` makes the task of again."""
        return {"name": self.name, "temperature": self.temperature}


@dataclass(frozen=True)
class Labels:
    """Any number of labels for each sample: zeros and ones (n, C), binary cross entropy.

    One label, and so a binary task, may be (n,) too. Targets may be soft, from 0 to 1: a label
    counts as there from 0.5 on.

    Attributes:
        classes: Names of the labels in order; none if they are known by their index alone.
        thresholds: The probability from which on each label is predicted; none for 0.5.

    Example:
        >>> Labels(["cat", "dog"]).predictions(torch.tensor([[0.0, -99.0]]))[0]["labels"]
        ['cat']
    """

    classes: list[str] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)

    name: ClassVar[Literal["labels"]] = "labels"
    quality = "mean_average_precision"

    def criterion(
        self,
        label_smoothing: float = 0.0,
        class_weight: tuple[Tensor, Tensor] | None = None,
    ) -> nn.Module:
        """The loss that is trained, with weights of labels: there, and not there, (C,) each."""
        _refuse_smoothing(label_smoothing, self.name)
        if class_weight is None:
            return nn.BCEWithLogitsLoss()
        there, absent = class_weight
        absent = absent.clamp(min=1e-20)  # a ratio to 0 would be none
        return nn.BCEWithLogitsLoss(absent, pos_weight=there / absent)

    def check(self, model: nn.Module, logits: Tensor, target: Tensor) -> None:
        """Raise a ValueError unless these are logits (B, C) for zeros and ones (n,) or (n, C)."""
        _check_shapes(model, logits, target, "labels (B,) or (B, C)")
        _check_shares(target)

    def prepared(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets as the criterion takes them: (n, C)."""
        return _columns(target).to(dtype)

    def loss(self, logits: Tensor, target: Tensor) -> float:
        """The loss of clean samples."""
        own = self.prepared(target, torch.float64)
        return F.binary_cross_entropy_with_logits(logits.double(), own).item()

    def metrics(self, logits: Tensor, target: Tensor) -> dict[str, Any]:
        """What is measured on clean samples; see `label_scores`."""
        names = _names(self.classes, logits)
        return label_scores(logits, _columns(target), self._thresholds(logits), names)

    def tuned(self, logits: Tensor, target: Tensor) -> "Labels":
        """The task with the thresholds that validation samples choose; see `best_thresholds`."""
        return Labels(self.classes, best_thresholds(logits, _columns(target)))

    def predictions(self, logits: Tensor) -> list[dict[str, Any]]:
        """The labels of each sample, and how probable each of all is."""
        probability, names = logits.double().sigmoid(), _names(self.classes, logits)
        there = (probability >= self._thresholds(logits)).tolist()
        return [
            {
                "labels": [name for name, has in zip(names, own, strict=True) if has],
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for own, row in zip(there, probability.tolist(), strict=True)
        ]

    def info(self) -> dict[str, Any]:
        """JSON values that `task_of` makes the task of again."""
        return {"name": self.name, "thresholds": self.thresholds}

    def _thresholds(self, logits: Tensor) -> Tensor:
        return torch.tensor(self.thresholds or [0.5] * logits.shape[1], dtype=torch.float64)


@dataclass(frozen=True)
class Values:
    """Real values for each sample, (n,) or (n, D); the model predicts them standardized.

    Attributes:
        classes: Names of the D values; none if they are known by their index alone.
        mean: What is taken from each before training; none for 0.
        std: What each is divided by then; none for 1.
        error: The loss of the standardized values, ``"mse"`` or ``"huber"`` (delta 1).

    Example:
        >>> Values(mean=[20.0], std=[5.0]).predictions(torch.tensor([[-1.0]]))
        [{'value': 15.0}]
    """

    classes: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    error: str = "mse"

    name: ClassVar[Literal["values"]] = "values"
    quality = "r2"

    @classmethod
    def standardized(
        cls, target: Tensor, classes: Sequence[str] = (), error: str = "mse"
    ) -> "Values":
        """The task whose mean and standard deviation are those of training targets.

        Raises:
            ValueError: All targets are the same.
        """
        rows = _columns(target).double()
        std = rows.std(0, correction=0)
        if not (std > 0).all():
            same = rows[0][std == 0][0].item()
            raise ValueError(f"all training values are {same:g}: there is nothing to learn")
        return cls(list(classes), rows.mean(0).tolist(), std.tolist(), error)

    def criterion(self, label_smoothing: float = 0.0, class_weight: None = None) -> nn.Module:
        """The loss that is trained."""
        _refuse_smoothing(label_smoothing, self.name)
        return LOSSES[self.error]()

    def check(self, model: nn.Module, logits: Tensor, target: Tensor) -> None:
        """Raise a ValueError unless these are outputs (B, D) for finite values (n,) or (n, D)."""
        _check_shapes(model, logits, target, "values (B,) or (B, D)")
        if not target.isfinite().all():
            raise ValueError(f"a target is {target[~target.isfinite()][0].item()}, not finite")

    def prepared(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets as the criterion takes them: standardized, (n, D)."""
        rows = _columns(target).double()
        return ((rows - self._row(self.mean, 0, rows)) / self._row(self.std, 1, rows)).to(dtype)

    def loss(self, logits: Tensor, target: Tensor) -> float:
        """The loss of clean samples, of standardized values."""
        own = self.prepared(target, torch.float64)
        return float(self.criterion()(logits.double(), own).item())

    def metrics(self, logits: Tensor, target: Tensor) -> dict[str, Any]:
        """What is measured on clean samples, in the unit of the targets; see `value_scores`."""
        return value_scores(self.restored(logits), _columns(target))

    def predictions(self, logits: Tensor) -> list[dict[str, Any]]:
        """The value of each sample, or its values by name where there are several."""
        rows, names = self.restored(logits).tolist(), _names(self.classes, logits)
        if len(names) == 1:
            return [{"value": row[0]} for row in rows]
        return [{"value": dict(zip(names, row, strict=True))} for row in rows]

    def info(self) -> dict[str, Any]:
        """JSON values that `task_of` makes the task of again."""
        return {"name": self.name, "mean": self.mean, "std": self.std, "error": self.error}

    def restored(self, logits: Tensor) -> Tensor:
        """Outputs of the model (n, D) in the unit of the targets."""
        rows = logits.double()
        return rows * self._row(self.std, 1, rows) + self._row(self.mean, 0, rows)

    def _row(self, numbers: list[float], default: float, like: Tensor) -> Tensor:
        return like.new_tensor(numbers or [default] * like.shape[1])


Task = Classes | Labels | Values


def _columns(target: Tensor) -> Tensor:
    return target[:, None] if target.ndim == 1 else target


def _names(classes: list[str], logits: Tensor) -> list[str]:
    return classes or [str(index) for index in range(logits.shape[1])]


def _check_shapes(model: nn.Module, logits: Tensor, target: Tensor, expected: str) -> None:
    if target.ndim not in (1, 2):
        raise misfit(target, expected)
    columns = _columns(target).shape[1]
    if logits.ndim != 2 or logits.shape[1] != columns:
        raise ValueError(
            f"{type(model).__name__} gives an output of shape {tuple(logits.shape)} for targets "
            f"of shape {tuple(target.shape)}; give it a head with replace_head(model, {columns})"
        )


def _check_shares(target: Tensor) -> None:
    fits = (target >= 0) & (target <= 1)
    if not fits.all():
        raise ValueError(f"a target is {target[~fits][0].item()}, expected all from 0 to 1")


def misfit(target: Tensor, expected: str) -> ValueError:
    """The error that targets are of no form that is expected."""
    return ValueError(
        f"targets of shape {tuple(target.shape)} and dtype {target.dtype}: expected {expected}; "
        "for others mix in your own loop with ManifoldMixup"
    )


def _refuse_smoothing(label_smoothing: float, name: str) -> None:
    if label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing} is for classes, not for {name}")


def find_task(target: Tensor, criterion: Criterion | None = None) -> Task:
    """The task that targets tell: by their type, and whether they are zeros and ones.

    Args:
        target: Integers or booleans (n,): classes. Zeros and ones (n, C), or floating (n,):
            labels. Others (n, C), at least 0 and of sum 1 in each row: probabilities of classes.
            Other numbers (n,) or (n, D): values.
        criterion: If it is one of classes, such as cross entropy, all of them are classes. To
            binary cross entropy with logits zeros and ones (n,) of any type are labels, and so
            are all floating targets but probabilities of classes. To any other floating
            targets (n,) are values.

    Raises:
        ValueError: They are none of these.

    Example:
        >>> find_task(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).name
        'labels'
    """
    if criterion is not None and takes_indices(plain_form(criterion)[0]):
        return Classes()
    if target.ndim not in (1, 2):
        raise misfit(target, "class indices (B,), labels (B, C) or values (B,) or (B, D)")
    of_labels = criterion is not None and takes_labels(plain_form(criterion)[0])
    is_binary = bool(((target == 0) | (target == 1)).all())
    if target.ndim == 1 and not target.is_floating_point():
        return Labels() if of_labels and is_binary else Classes()
    if is_binary and (target.ndim == 2 or criterion is None):
        return Labels()
    if target.ndim == 2 and target.shape[1] > 1 and are_probabilities(target):
        return Classes()
    return Labels() if of_labels and target.is_floating_point() else Values()


def target_to_pair(task: Task, target: Tensor) -> Tensor:
    """Targets as partners are drawn by: labels (n, C), all else as they are."""
    return _columns(target) if isinstance(task, Labels) else target


def task_of(info: Mapping[str, Any]) -> Task:
    """The task of a run, from what ``run.json`` says."""
    own = dict(info.get("task", {"name": "classes"}))
    task = {"classes": Classes, "labels": Labels, "values": Values}[own.pop("name")]
    made: Task = task(info["classes"], **own)
    return made
