"""What training one way came to in every replicate, and the row that it makes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup.comparison.candidates import Candidate
from manifold_mixup.comparison.rows import Row
from manifold_mixup.comparison.subjects import Replicate
from manifold_mixup.training import fit_temperature, summarize

# Half octaves: the best of them lies within 19 % of the best there is.
_TEMPERATURES = tuple(2 ** (step / 2) for step in range(-6, 11))


@dataclass(frozen=True)
class Outcome:
    """What a trained head says of the samples of a `Replicate`.

    Attributes:
        val: Logits of those to choose by (n, C), in float64 on the CPU.
        test: Of those to test on, likewise.
        clean_loss: The mean loss of the samples it was trained on, unmixed.
        mixed_loss: That of mixed ones.
        chosen: What validation chose, by name.
        nll: Of validation samples for each weight decay that was tried (W,).
        failed: Why the training failed, if it did.
    """

    val: Tensor
    test: Tensor
    clean_loss: float
    mixed_loss: float
    chosen: dict[str, float]
    nll: Tensor
    failed: str = ""


@dataclass(frozen=True)
class Trained:
    """One way to train, done in some replicates.

    Attributes:
        candidate: The way to train.
        outcomes: One for each replicate.
        seconds: What it took, all settings and replicates together.
    """

    candidate: Candidate
    outcomes: list[Outcome]
    seconds: float

    @property
    def nll(self) -> Tensor:
        """Of validation samples for each weight decay, mean of the replicates (W,)."""
        return torch.stack([outcome.nll for outcome in self.outcomes]).mean(0)


def nll_at_best_temperature(logits: Tensor, target: Tensor) -> Tensor:
    """The mean NLL of K heads, each at the best of a few temperatures (K,).

    So heads are chosen by what remains when their confidence has been set right. Infinite where a
    logit is not finite.

    Args:
        logits: (K, n, C).
        target: Class indices (n,).

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]])
        >>> float(nll_at_best_temperature(logits, torch.tensor([0, 1, 1]))) < float(
        ...     F.cross_entropy(logits[0], torch.tensor([0, 1, 1])))
        True
    """
    own = target.long().expand(len(logits), -1)[:, :, None]
    nlls = [
        -(logits / temperature).log_softmax(2).gather(2, own).mean((1, 2))
        for temperature in _TEMPERATURES
    ]
    best = torch.stack(nlls).amin(0)
    return best.where(logits.isfinite().all(2).all(1), math.inf)


@dataclass(frozen=True)
class Measured:
    """What an outcome comes to on the test samples of its `Replicate`.

    Attributes:
        metrics: As a `Row` has them of one replicate.
        correct: Whether each of all N samples is told right; NaN where it was not tested.
        surprise: Its NLL at the temperature, likewise.
    """

    metrics: dict[str, float]
    correct: Tensor
    surprise: Tensor


def make_row(trained: Trained, replicates: Sequence[Replicate], target: Tensor) -> Row:
    """Measure one way to train on the test samples of every replicate.

    Args:
        trained: What came of it.
        replicates: The replicates it was trained in.
        target: The true classes of all samples (N,).
    """
    measured = [
        measure(outcome, replicate, target)
        for outcome, replicate in zip(trained.outcomes, replicates, strict=True)
    ]
    return join_row(trained, measured, target[replicates[0].test])


def join_row(trained: Trained, measured: Sequence[Measured], target: Tensor) -> Row:
    """The row of what was measured already.

    Args:
        trained: What came of one way to train.
        measured: The same in every replicate.
        target: The true classes of the test samples of the first (n,).
    """
    first = trained.outcomes[0]
    failed = next((one.failed for one in trained.outcomes if one.failed), "")
    by_replicate = [] if failed else [one.metrics for one in measured]
    means = {
        name: sum(each[name] for each in by_replicate) / len(by_replicate)
        for name in (by_replicate[0] if by_replicate else {})
        if name not in first.chosen
    }
    correct, surprise = (
        torch.stack([getattr(one, name) for one in measured]) for name in ("correct", "surprise")
    )
    if failed:  # in some replicates, and then there is no mean over all
        correct, surprise = (torch.full_like(one, math.nan) for one in (correct, surprise))
    return Row(
        trained.candidate,
        first.chosen,
        means,
        by_replicate,
        correct,
        surprise,
        first.test[:0] if failed else first.test,
        target[:0] if failed else target,
        trained.seconds,
        failed,
    )


def measure(outcome: Outcome, replicate: Replicate, target: Tensor) -> Measured:
    """Measure one replicate; nothing is known of a training that failed.

    Args:
        outcome: What came of it.
        replicate: What it had of its own.
        target: The true classes of all samples (N,).
    """
    from sklearn.metrics import f1_score

    correct, surprise = (torch.full((len(target),), math.nan) for _ in range(2))
    if outcome.failed:
        return Measured({}, correct, surprise)
    temperature = fit_temperature(outcome.val, replicate.target[replicate.val])
    own, logits = target[replicate.test], outcome.test
    plain, tempered = summarize(logits, own), summarize(logits / temperature, own)
    told = logits.argmax(1)
    correct[replicate.test] = (told == own).float()
    surprise[replicate.test] = F.cross_entropy(logits / temperature, own, reduction="none").float()
    metrics = {
        "accuracy": plain["accuracy"],
        "macro_f1": float(f1_score(own.numpy(), told.numpy(), average="macro", zero_division=0)),
        "nll": plain["nll"],
        "calibration_error": plain["calibration_error"],
        "nll_at_temperature": tempered["nll"],
        "calibration_error_at_temperature": tempered["calibration_error"],
        "temperature": temperature,
        "clean_loss": outcome.clean_loss,
        "mixed_loss": outcome.mixed_loss,
        "val_nll": float(outcome.nll.min()),
        **outcome.chosen,
    }
    return Measured(metrics, correct, surprise)
