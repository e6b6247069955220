"""What is solved for a linear head: the rows that reach it, and the risk of its logits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from manifold_mixup._progress import Track
from manifold_mixup._random import seeded_generator
from manifold_mixup.features import FeatureStore, Samples, checked_batch, count, load_batches
from manifold_mixup.hooks import ManifoldMixup
from manifold_mixup.inspection import eval_mode, model_device, model_dtype
from manifold_mixup.linear_heads import (
    Gather,
    LinearHead,
    MixedRisk,
    Mixes,
    Ridge,
    Standardized,
    balanced_weights,
    draw_mixes,
    few_threads,
    solve,
)
from manifold_mixup.mixing import (
    Mix,
    Pairing,
    check_alpha,
    check_exclude,
    check_pairing,
    check_prob,
)
from manifold_mixup.models import LinearLayer
from manifold_mixup.training.metrics import labelled
from manifold_mixup.training.tasks import Classes, Labels, Task, Values, target_to_pair

# How often all samples are mixed; where mixed ones have to pass through something, each time costs
# a pass.
MIXES, COPIES = 16, 2


# By how much of the objective heads may miss their optimum: those of a path, and the one kept.
_PATH, _EXACT = 1e-6, 1e-11


# "balanced", weights of the classes, or of labels where they are there and where they are not.
ClassWeight = Literal["balanced"] | Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RiskSettings:
    """What a mixed risk is made of; see `train_head`.

    Attributes:
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing.
        mixes: K, how often all samples are mixed.
        pairing: Who mixes with whom.
        exclude: Classes that take no part.
        prob: Share of the risk that is of mixed samples.
        clean_weight: So many times the risk of the same samples unmixed is added.
        label_smoothing: In [0, 1).
        class_weight: ``"balanced"`` for weights by which every class counts the same, or the
            weights; None for 1.
        seed: Of the mixes.

    Raises:
        ValueError: One of them is out of range.
    """

    alpha: float = 0.4
    mixes: int = MIXES
    pairing: Pairing = "any"
    exclude: tuple[int, ...] = ()
    prob: float = 1.0
    clean_weight: float = 0.0
    label_smoothing: float = 0.0
    class_weight: ClassWeight | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_prob(self.prob)
        check_pairing(self.pairing)
        check_exclude(self.exclude)
        if self.mixes < 1:
            raise ValueError(f"mixes={self.mixes} must be at least 1")

    @property
    def is_mixed(self) -> bool:
        """Whether any of the risk is of mixed samples."""
        return self.alpha > 0 and self.prob > 0

    @property
    def has_clean(self) -> bool:
        """Whether any of it is of unmixed ones."""
        return not self.is_mixed or self.prob < 1 or self.clean_weight > 0

    def draw(self, target: Tensor) -> Mixes | None:
        """The mixes of samples with these targets, if any are mixed."""
        if not self.is_mixed:
            return None
        drawn: dict[str, Any] = {
            "pairing": self.pairing,
            "exclude": self.exclude,
            "seed": self.seed,
        }
        return draw_mixes(self.mixes, len(target), self.alpha, target=target, **drawn)


@dataclass(frozen=True)
class HeadProblem:
    """Rows, and the risk of the logits that a head gives them."""

    rows: Standardized
    risk: MixedRisk | Ridge

    def solve(
        self, weight_decay: float, start: LinearHead | None = None, *, exact: bool = False
    ) -> LinearHead:
        """The head of a weight decay: one of a path, or as near to the optimum as can be."""
        if isinstance(self.risk, Ridge):
            return self.risk.solve(weight_decay)
        tolerance = _EXACT if exact else _PATH
        how: dict[str, Any] = {"tolerance": tolerance, "precise": exact}
        with few_threads(self.rows.width * self.risk.linear.numel()):
            return solve(self.rows, self.risk, weight_decay, start, **how)


def make_problem(
    rows: Standardized,
    task: Task,
    target: Tensor,
    num_outputs: int,
    settings: RiskSettings,
    mixes: Mixes | None,
    *,
    copies: bool = False,
) -> HeadProblem:
    """The risk of a task, on rows that reach the head.

    Args:
        rows: Of n samples; with `copies` of K n mixed ones, and then of the clean ones if the
            settings have these count.
        task: What is trained for.
        target: Of the n samples.
        num_outputs: Number of classes, labels or values C.
        settings: Of the risk.
        mixes: What the logits are mixed by, or with `copies` the rows were.
        copies: Whether the rows are mixed already.
    """
    shares: dict[str, Any] = {
        "prob": settings.prob,
        "clean_weight": settings.clean_weight,
        "copies": copies,
    }
    target = task.prepared(target, torch.float64)
    weight = task_weights(settings.class_weight, task, target, num_outputs)
    if isinstance(task, Values):
        return HeadProblem(rows, Ridge(rows, target, mixes, **shares))
    if isinstance(task, Labels):
        return HeadProblem(rows, MixedRisk.of_labels(target, mixes, class_weight=weight, **shares))
    risk = MixedRisk.of_classes(
        target,
        num_outputs,
        mixes,
        class_weight=weight,
        label_smoothing=settings.label_smoothing,
        **shares,
    )
    return HeadProblem(rows, risk)


def affine_problem(
    layer: LinearLayer, store: FeatureStore, task: Task, settings: RiskSettings
) -> HeadProblem:
    """That of stored features between which and the head all is affine: logits are mixed.

    All views of a sample are samples.
    """
    target = store.targets.repeat(store.views, *[1] * (store.targets.ndim - 1))
    device = solving_device(layer.module.weight.device)
    rows = Standardized(rows_of(layer, store), len(target), device)
    mixes = settings.draw(target_to_pair(task, target))
    return make_problem(rows, task, target, layer.module.out_features, settings, mixes)


def passed_problem(
    mixed: Sequence[tuple[Tensor, Mix]],
    clean: Tensor | None,
    task: Task,
    target: Tensor,
    num_outputs: int,
    settings: RiskSettings,
    device: torch.device,
) -> HeadProblem:
    """That of samples which have passed through something, to the head, once for each mix.

    Args:
        mixed: For each mix the rows that reached the head (n, D), and what they were mixed by.
        clean: The rows of the samples as they are, where the settings have these count.
        task: What is trained for.
        target: Of the n samples.
        num_outputs: Number of classes, labels or values C.
        settings: Of the risk.
        device: Where to solve.
    """
    parts = [rows for rows, _ in mixed] + ([] if clean is None else [clean])
    mixes = Mixes.of(mix for _, mix in mixed) if mixed else None
    rows = torch.cat(parts)
    standardized = Standardized(rows.__getitem__, len(rows), solving_device(device))
    return make_problem(standardized, task, target, num_outputs, settings, mixes, copies=True)


def rows_of(layer: LinearLayer, store: FeatureStore) -> Gather:
    """What gives the rows that reach a head, of all views of stored samples, view after view."""
    n = len(store)

    def gather(index: Tensor) -> Tensor:
        features = store.features.gather(index % n, view=index // n)
        if layer.is_next:
            return features.flatten(1)
        return layer.inputs_of(features)

    return gather


def has_ignored(task: Task, target: Tensor) -> bool:
    """Whether some of a task's targets are ignored."""
    return isinstance(task, Classes) and len(labelled(target)) < len(target)


def check_class_weight(given: ClassWeight | None, task: Task) -> None:
    """Raise a ValueError unless this weighs what the task has: classes, or labels."""
    if given is None:
        return
    if isinstance(task, Values):
        raise ValueError("class_weight= is for classes and labels, not for values")
    if isinstance(given, str):
        if given != "balanced":
            raise ValueError(f"class_weight={given!r}: expected 'balanced', or weights")
    elif isinstance(given, tuple) != isinstance(task, Labels):
        raise ValueError(
            "class_weight= is one tensor of weights for classes, and a pair for labels: where "
            "each is there, and where it is not"
        )


def task_weights(given: ClassWeight | None, task: Task, target: Tensor, num_outputs: int) -> Any:
    """The weights of a task's loss, by its targets where they are to be balanced; None for 1.

    Args:
        given: What is asked for.
        task: What is trained for.
        target: Of all training samples.
        num_outputs: Number of classes, labels or values C.

    Raises:
        ValueError: The weights are not one for each.
    """
    if given is None:
        return None
    if isinstance(given, str) and isinstance(task, Labels):
        return _balanced_labels(target)
    if isinstance(given, str):
        return balanced_weights(labelled(target), num_outputs)
    is_pair = isinstance(given, tuple)
    each = tuple(one.detach().cpu() for one in (given if isinstance(given, tuple) else (given,)))
    for weight in each:
        # As in PyTorch, one may be for all labels.
        is_one = is_pair and weight.shape == (1,)
        if not (is_one or weight.shape == (num_outputs,)) or not bool((weight >= 0).all()):
            raise ValueError(
                f"class_weight= of shape {tuple(weight.shape)}: expected {num_outputs} weights, "
                "at least 0"
            )
    return each if is_pair else each[0]


def _balanced_labels(target: Tensor) -> tuple[Tensor, Tensor]:
    """Weights by which having a label, or not, counts as much as half of the samples."""
    there, n = target.double().sum(0), len(target)
    pair = (n / (2 * count) for count in (there, n - there))
    one, other = (weight.where(weight.isfinite(), 1) for weight in pair)
    return one, other


class Passes:
    """Samples on their way through a model, in eval mode, to its head.

    Attributes:
        layer: The head, in a model that takes the samples.
        task: What is trained for.
        target: The targets of the samples that passed last, in the order of the rows.

    Args:
        layer: See above.
        samples: Images, or stored features.
        task: See above.
        mixup: Mixes in the model.
        batch_size: Samples that pass, and are mixed, at a time.
        workers: Processes that load images.
        track: Shows how far it is.
    """

    def __init__(
        self,
        layer: LinearLayer,
        samples: Samples,
        task: Task,
        mixup: ManifoldMixup,
        *,
        batch_size: int,
        workers: int,
        track: Track,
    ) -> None:
        self.layer, self.task, self._samples, self._mixup = layer, task, samples, mixup
        self._batch_size, self._workers, self._track = batch_size, workers, track
        self.target = torch.empty(0)

    def mixed(self, k: int, seed: int) -> tuple[Tensor, Mix]:
        """View k of all samples, mixed in batches of an order of its own; rows as they were."""
        n = count(self._samples)
        order = torch.randperm(n, generator=seeded_generator(seed, k))
        lam, partner = torch.ones(n, dtype=torch.float64), torch.arange(n)
        rows: list[Tensor] = []
        for index, inputs, target in self._batches(order, k):
            with eval_mode(self.layer.model), torch.no_grad(), self._mixup(target) as mix:
                rows.append(self.layer.inputs_of(inputs).cpu())
            lam[index], partner[index] = mix.lam.double().cpu(), index[mix.partner.cpu()]
        back = order.argsort()
        self.target = self.target[back]
        return torch.cat(rows)[back], Mix(lam, partner)

    def clean(self, order: Sequence[int] | None = None) -> Tensor:
        """All samples as they are, or those at some positions, in their order."""
        index = torch.arange(count(self._samples)) if order is None else torch.tensor(order)
        batches = self._batches(index, 0)
        return torch.cat([self.layer.inputs_of(inputs).cpu() for _, inputs, _ in batches])

    def _batches(self, order: Tensor, view: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Positions of samples, their inputs on the device, and their targets for mixing."""
        device, dtype = model_device(self.layer.model), model_dtype(self.layer.model)
        loading: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "workers": self._workers,
            "view": view,
        }
        loader = load_batches(self._samples, self._batch_size, order=order.tolist(), **loading)
        targets = []
        indices = torch.split(order, self._batch_size)
        batches = self._track(loader, len(loader), f"pass {view + 1}")
        for index, batch in zip(indices, batches, strict=True):
            inputs, target = checked_batch(batch)
            targets.append(target)
            prepared = self.task.prepared(target, dtype).to(device)
            yield index, inputs.to(device, non_blocking=True), prepared
        self.target = torch.cat(targets)


def solving_device(device: torch.device) -> torch.device:
    """Where to solve: on the head's device, but that of Apple, which knows no float64."""
    return torch.device("cpu") if device.type == "mps" else device
