"""What training one way came to, under every seed, and the row that it makes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup.comparison import Row
from manifold_mixup.scores import summarize
from manifold_mixup.settings import HeadSettings
from manifold_mixup.starts import Start
from manifold_mixup.temperature import fit_temperature
from manifold_mixup.trials import Trial

# Half octaves: the best of them lies within 19 % of the best there is.
_TEMPERATURES = tuple(2 ** (step / 2) for step in range(-6, 11))


@dataclass(frozen=True)
class Outcome:
    """What a trained head says of the samples of a `Start`.

    Attributes:
        val: Logits of those to choose by (n, C), in float64 on the CPU, as the next two.
        test: Of those to test on.
        train: Of those it was trained on, unmixed.
        mixed_loss: Mean training loss of the last epoch.
    """

    val: Tensor
    test: Tensor
    train: Tensor
    mixed_loss: float


@dataclass(frozen=True)
class Trained:
    """One way to train, done with the rate and weight decay that validation chose.

    Attributes:
        trial: The way to train.
        settings: Of its head under the first seed.
        nll: Of validation samples, for each rate and weight decay (R, W); see `mended_nll`.
        outcomes: One for each seed.
        seconds: What it took, all rates, decays and seeds together.
    """

    trial: Trial
    settings: HeadSettings
    nll: Tensor
    outcomes: list[Outcome]
    seconds: float


def mended_nll(logits: Tensor, target: Tensor) -> Tensor:
    """The mean NLL of K heads, each at the best of a few temperatures (K,).

    So heads are chosen by what remains when their confidence has been mended. Infinite where a
    logit is not finite.

    Args:
        logits: (K, n, C).
        target: Class indices (n,).

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]])
        >>> float(mended_nll(logits, torch.tensor([0, 1, 1]))) < float(
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


def choose(trial: Trial, nll: Tensor) -> int:
    """The place of the setting with the lowest validation NLL.

    Raises:
        RuntimeError: All heads diverged.
    """
    if float(nll.min()) == math.inf:
        raise RuntimeError(f"every head of '{trial.name}' diverged; lower the learning rates")
    return int(nll.argmin())


def make_row(
    trained: Trained, starts: Sequence[Start], target: Tensor, hooked_seconds: float
) -> Row:
    """Measure one way to train on the test samples of every seed.

    Args:
        trained: What came of it.
        starts: Those it was trained from.
        target: The true classes of all samples (N,).
        hooked_seconds: What it would take in a hooked loop.
    """
    measured = [
        _measure(outcome, start, target)
        for outcome, start in zip(trained.outcomes, starts, strict=True)
    ]
    metrics = {
        name: sum(each[name] for each, _, _ in measured) / len(measured) for name in measured[0][0]
    }
    return Row(
        trained.trial,
        trained.settings,
        {**metrics, "val_nll": float(trained.nll.min())},
        [each for each, _, _ in measured],
        torch.stack([correct for _, correct, _ in measured]),
        torch.stack([surprise for _, _, surprise in measured]),
        trained.outcomes[0].test,
        target[starts[0].test],
        trained.seconds,
        hooked_seconds,
    )


def _measure(
    outcome: Outcome, start: Start, target: Tensor
) -> tuple[dict[str, float], Tensor, Tensor]:
    """The metrics under one seed, and of every sample whether it is right and its NLL (N,)."""
    from sklearn.metrics import f1_score

    temperature = fit_temperature(outcome.val, start.target[start.val])
    own, logits = target[start.test], outcome.test
    plain, mended = summarize(logits, own), summarize(logits / temperature, own)
    told = logits.argmax(1)
    correct, surprise = (torch.full((len(target),), math.nan) for _ in range(2))
    correct[start.test] = (told == own).float()
    surprise[start.test] = F.cross_entropy(logits / temperature, own, reduction="none").float()
    metrics = {
        "accuracy": plain["accuracy"],
        "macro_f1": float(f1_score(own.numpy(), told.numpy(), average="macro", zero_division=0)),
        "nll": plain["nll"],
        "calibration_error": plain["calibration_error"],
        "mended_nll": mended["nll"],
        "mended_calibration_error": mended["calibration_error"],
        "temperature": temperature,
        "clean_loss": float(F.cross_entropy(outcome.train, start.target[start.train])),
        "mixed_loss": outcome.mixed_loss,
    }
    return metrics, correct, surprise
