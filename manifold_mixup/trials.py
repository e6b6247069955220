"""What is compared: ways to train a head, each with a grid of rates and weight decays."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from manifold_mixup.drawing import check_alpha
from manifold_mixup.layers import INPUT
from manifold_mixup.settings import HeadSettings, check_partners, check_training

NO_MIXING, SMOOTHING, NOISE = "no mixing", "label smoothing", "feature noise"
MIXUP, INPUT_MIXUP = "feature mixup", "input mixup"


@dataclass(frozen=True)
class Trial:
    """One way to train a head, a row of the comparison.

    Attributes:
        layer: Where its features come from, and are mixed; ``"input"`` for the images themselves.
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing.
        pairing: Who mixes with whom.
        label_smoothing: In [0, 1).
        clean_weight: Weight of the loss of the unmixed samples beside that of the mixed ones; see
            `train_head`.
        noise: Of the features, in units of their standard deviation; see `train_head`.
    """

    layer: str
    alpha: float = 0.0
    pairing: str = "any"
    label_smoothing: float = 0.0
    clean_weight: float = 0.0
    noise: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether it mixes anything."""
        return self.alpha > 0

    @property
    def is_plain(self) -> bool:
        """Whether it does nothing at all to the training."""
        return not (self.mixes or self.label_smoothing or self.noise)

    @property
    def name(self) -> str:
        """What it does, in words.

        Example:
            >>> Trial("layer4", alpha=0.4, pairing="same-class").name
            'feature mixup at layer4, alpha 0.4, same-class'
        """
        if self.is_plain:
            return f"{NO_MIXING}, {self.layer}"
        if self.noise:
            return f"{NOISE} {self.noise:g}, {self.layer}"
        if not self.mixes:
            return f"{SMOOTHING} {self.label_smoothing:g}, {self.layer}"
        where = INPUT_MIXUP if self.layer == INPUT else f"{MIXUP} at {self.layer}"
        return f"{where}, alpha {self.alpha:g}{self.variant and f', {self.variant}'}"

    @property
    def variant(self) -> str:
        """What its mixing has beside alpha, in words; nothing if it is the usual one."""
        pairing = "" if self.pairing == "any" else self.pairing
        clean = f"with {self.clean_weight:g} x the clean loss" if self.clean_weight else ""
        return ", ".join(word for word in (pairing, clean) if word)

    def settings(
        self, lrs: Sequence[float], weight_decays: Sequence[float], seed: int
    ) -> list[HeadSettings]:
        """A head's settings for each learning rate and weight decay."""
        return [
            HeadSettings(
                self.alpha,
                lr,
                weight_decay,
                self.label_smoothing,
                self.pairing,
                seed,
                clean_weight=self.clean_weight,
                noise=self.noise,
            )
            for lr, weight_decay in product(lrs, weight_decays)
        ]


@dataclass(frozen=True)
class Ways:
    """The ways to train at every layer of a comparison, and what each may choose from.

    Attributes:
        alphas: Of lam ~ Beta(alpha, alpha); no mixing is always there.
        pairings: Who mixes with whom; see `draw_partner`.
        label_smoothing: Of a row without mixing that smooths its labels; 0 leaves it out.
        clean_weights: For each, rows whose loss has that of the unmixed samples beside it, with
            this weight (RegMixup).
        noises: For each, a row without mixing whose features have noise of so many of their
            standard deviations.
        weight_decays: To choose from.
        lrs: Learning rates to choose from.
        epochs: Passes over the training samples.
        batch_size: Samples in a step.
        mixed_epochs: Mixes repeat after so many epochs, where something frozen but not affine
            lies between layer and head and runs once for each mixed batch; None for never.

    Raises:
        TypeError: One is a number or word where a list is expected, or a pairing is a function.
        ValueError: One of them is out of range.
    """

    alphas: Sequence[float] = (0.0, 0.2, 0.4, 1.0, 2.0)
    pairings: Sequence[str] = ("any", "same-class")
    label_smoothing: float = 0.1
    clean_weights: Sequence[float] = (1.0,)
    noises: Sequence[float] = (0.5,)
    weight_decays: Sequence[float] = (0.01, 0.1, 1.0)
    lrs: Sequence[float] = (0.001, 0.005, 0.02, 0.1)
    epochs: int = 30
    batch_size: int = 64
    mixed_epochs: int | None = None

    def __post_init__(self) -> None:
        check_training(
            self.epochs,
            self.batch_size,
            label_smoothing=self.label_smoothing,
            mixed_epochs=self.mixed_epochs,
        )
        needed = ("alphas", "pairings", "lrs", "weight_decays")
        for name in (*needed, "clean_weights", "noises"):
            given = getattr(self, name)
            if not _is_list(given):
                raise TypeError(f"{name}={given!r}: expected a list")
            if name in needed and not len(given):
                raise ValueError(f"{name} is empty: give at least one")
        if functions := [pairing for pairing in self.pairings if not isinstance(pairing, str)]:
            raise TypeError(f"pairings: {functions[0]!r} has no name; compare takes those by name")
        for alpha in self.alphas:
            check_alpha(alpha)
            check_partners(self.batch_size, alpha)
        for trial in self.trials(""):
            self.settings(trial, 0)

    @property
    def options(self) -> dict[str, Any]:
        """What `train_head` and `train_stack` take by name."""
        names = ("epochs", "batch_size", "mixed_epochs")
        return {name: getattr(self, name) for name in names}

    def count(self, layer: str) -> int:
        """How many heads a seed has at a layer: every trial with all it may choose from."""
        return len(self.trials(layer)) * len(self.lrs) * len(self.weight_decays)

    def settings(self, trial: Trial, seed: int) -> list[HeadSettings]:
        """A head's settings for each learning rate and weight decay, rates first."""
        return trial.settings(self.lrs, self.weight_decays, seed)

    def trials(self, layer: str) -> list[Trial]:
        """Every way to compare at a layer; at the input only mixes, for the others are the same.

        A mix with the clean loss beside it has the first pairing alone; so has the input.

        Example:
            >>> ways = Ways([0.4], ["any"], label_smoothing=0.1, clean_weights=[1], noises=[])
            >>> for trial in ways.trials("layer4"):
            ...     print(trial.name)
            no mixing, layer4
            label smoothing 0.1, layer4
            feature mixup at layer4, alpha 0.4
            feature mixup at layer4, alpha 0.4, with 1 x the clean loss
        """
        pairings, alphas = list(dict.fromkeys(self.pairings)), sorted(set(self.alphas) - {0})
        if layer == INPUT:
            return [Trial(layer, alpha, pairings[0]) for alpha in alphas]
        trials = [Trial(layer)]
        if self.label_smoothing:
            trials.append(Trial(layer, label_smoothing=self.label_smoothing))
        trials += [Trial(layer, noise=noise) for noise in sorted(set(self.noises) - {0})]
        trials += [Trial(layer, alpha, pairing) for pairing, alpha in product(pairings, alphas)]
        for weight, alpha in product(sorted(set(self.clean_weights) - {0}), alphas):
            trials.append(Trial(layer, alpha, pairings[0], clean_weight=weight))
        return trials


def _is_list(given: Any) -> bool:
    """Whether there may be several in it."""
    try:
        len(given)
    except TypeError:
        return False
    return not isinstance(given, str)
