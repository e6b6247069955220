"""What is compared: ways to train a head, and what each may choose from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from manifold_mixup.inspection import INPUT
from manifold_mixup.mixing import check_alpha
from manifold_mixup.training import (
    COPIES,
    DECAYS,
    MIXES,
    HeadSettings,
    RiskSettings,
    check_partners,
    check_training,
)

NO_MIXING, SMOOTHING, LINEAR = "no mixing", "label smoothing", "linear head alone"


MIXUP, INPUT_MIXUP = "feature mixup", "input mixup"


@dataclass(frozen=True)
class Candidate:
    """One way to train a head, a row of the comparison.

    Attributes:
        layer: Where its features come from, and are mixed; ``"input"`` for the images themselves.
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing.
        pairing: Who mixes with whom.
        label_smoothing: In [0, 1).
        clean_weight: Weight of the loss of the unmixed samples beside that of the mixed ones; see
            `train_head`.
        is_alone: Whether the linear head alone is solved for, where others train more.
    """

    layer: str
    alpha: float = 0.0
    pairing: str = "any"
    label_smoothing: float = 0.0
    clean_weight: float = 0.0
    is_alone: bool = False

    @property
    def mixes(self) -> bool:
        """Whether it mixes anything."""
        return self.alpha > 0

    @property
    def is_plain(self) -> bool:
        """Whether it does nothing at all to the training."""
        return not (self.mixes or self.label_smoothing)

    @property
    def name(self) -> str:
        """What it does, in words.

        Example:
            >>> Candidate("layer4", alpha=0.4, pairing="same-class").name
            'feature mixup at layer4, alpha 0.4, same-class'
        """
        if self.is_alone:
            return f"{NO_MIXING}, {LINEAR}"
        if self.is_plain:
            return f"{NO_MIXING}, {self.layer}"
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

    def risk(self, mixes: int, seed: int) -> RiskSettings:
        """What is solved for."""
        return RiskSettings(
            self.alpha,
            mixes,
            self.pairing,
            clean_weight=self.clean_weight,
            label_smoothing=self.label_smoothing,
            seed=seed,
        )

    def steps(self, lr: float, weight_decay: float, seed: int) -> HeadSettings:
        """What is trained by steps."""
        own = (self.label_smoothing, self.pairing, seed)
        return HeadSettings(self.alpha, lr, weight_decay, *own, clean_weight=self.clean_weight)


@dataclass(frozen=True)
class Candidates:
    """The ways to train at every layer of a comparison, and what each may choose from.

    Attributes:
        alphas: Of lam ~ Beta(alpha, alpha); no mixing is always there.
        pairings: Who mixes with whom; see `draw_partner`. The first has a row for every alpha,
            the others for the one nearest to 1, if a mix costs no pass and no training.
        label_smoothing: Of a row without mixing that smooths its labels; 0 leaves it out.
        clean_weights: For each, a row of the alpha nearest to 1 whose loss has that of the
            unmixed samples beside it, with this weight (RegMixup).
        weight_decays: To choose from, for heads that are solved for. A coarse grid flatters
            mixing, of which there are several rows to choose from and so more to be lucky with.
        mixes: How often all samples are mixed; None for 16, or for 2 where every mix has to pass
            through something that is not affine.
        lrs: Learning rates to choose from, for what is trained by steps.
        epochs: Passes over the training samples, by steps; the best by validation is kept.
        batch_size: Samples in a step.

    Raises:
        TypeError: One is a number or word where a list is expected, or a pairing is a function.
        ValueError: One of them is out of range.
    """

    alphas: Sequence[float] = (0.0, 0.2, 0.4, 1.0, 2.0)
    pairings: Sequence[str] = ("any", "same-class")
    label_smoothing: float = 0.1
    clean_weights: Sequence[float] = (1.0,)
    weight_decays: Sequence[float] = DECAYS
    mixes: int | None = None
    lrs: Sequence[float] = (0.00003, 0.0001, 0.0003, 0.001)
    epochs: int = 20
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_training(self.epochs, self.batch_size, label_smoothing=self.label_smoothing)
        needed = ("alphas", "pairings", "lrs", "weight_decays")
        for name in (*needed, "clean_weights"):
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
        if not any(self.alphas):
            raise ValueError(
                f"alphas={list(self.alphas)}: nothing is mixed, and there is nothing to compare; "
                "give an alpha above 0"
            )
        for one in self.weight_decays:
            check_training(weight_decay=one)
        for candidate in self.candidates(""):
            candidate.risk(self.mixes_of(is_affine=True), 0)
            for lr in self.lrs:
                candidate.steps(lr, 0.0, 0)

    def mixes_of(self, *, is_affine: bool) -> int:
        """How often all samples are mixed; each mix passes what is not affine."""
        usual = MIXES if is_affine else COPIES
        return usual if self.mixes is None else self.mixes

    @property
    def decays(self) -> list[float]:
        """The weight decays from strong to weak, each once."""
        return sorted(set(self.weight_decays), reverse=True)

    def candidates(
        self, layer: str, *, has_plain: bool = True, is_affine: bool = True
    ) -> list[Candidate]:
        """Every way to compare at a layer; at the input only mixes, for the others are the same.

        Args:
            layer: Where.
            has_plain: Whether rows that mix nothing belong to it: behind frozen layers they are
                the same at all of these.
            is_affine: Whether mixes may be pushed to the logits; where each has to pass through
                something, other pairings than the first are left out.

        Example:
            >>> offered = Candidates([0.4, 1], ["any"], label_smoothing=0.1, clean_weights=[1])
            >>> for candidate in offered.candidates("layer4"):
            ...     print(candidate.name)
            no mixing, layer4
            label smoothing 0.1, layer4
            feature mixup at layer4, alpha 0.4
            feature mixup at layer4, alpha 1
            feature mixup at layer4, alpha 1, with 1 x the clean loss
        """
        pairings, alphas = list(dict.fromkeys(self.pairings)), sorted(set(self.alphas) - {0})
        mixed = [Candidate(layer, alpha, pairings[0]) for alpha in alphas]
        if layer == INPUT:
            return mixed
        candidates = [Candidate(layer)] if has_plain else []
        if self.label_smoothing and has_plain:
            candidates.append(Candidate(layer, label_smoothing=self.label_smoothing))
        middle = min(alphas, key=lambda alpha: abs(math.log(alpha)))
        if is_affine:
            mixed += [Candidate(layer, middle, pairing) for pairing in pairings[1:]]
        weights = sorted(set(self.clean_weights) - {0})
        mixed += [Candidate(layer, middle, pairings[0], clean_weight=weight) for weight in weights]
        return candidates + mixed


def _is_list(given: Any) -> bool:
    """Whether there may be several in it."""
    try:
        len(given)
    except TypeError:
        return False
    return not isinstance(given, str)
