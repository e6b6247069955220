"""What is compared: ways to train a head, each with a grid of rates and weight decays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from manifold_mixup.settings import HeadSettings

NO_MIXING, SMOOTHING, MIXUP = "no mixing", "label smoothing", "feature mixup"


@dataclass(frozen=True)
class Trial:
    """One way to train a head, a row of the comparison.

    Attributes:
        layer: Where its features come from, and are mixed.
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing.
        pairing: Who mixes with whom.
        label_smoothing: In [0, 1).
    """

    layer: str
    alpha: float = 0.0
    pairing: str = "any"
    label_smoothing: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether it mixes anything."""
        return self.alpha > 0

    @property
    def is_plain(self) -> bool:
        """Whether it does nothing at all to the training."""
        return not self.mixes and self.label_smoothing == 0

    @property
    def name(self) -> str:
        """What it does, in words.

        Example:
            >>> Trial("layer4", alpha=0.4, pairing="same-class").name
            'feature mixup at layer4, alpha 0.4, same-class'
        """
        if self.is_plain:
            return f"{NO_MIXING}, {self.layer}"
        if not self.mixes:
            return f"{SMOOTHING} {self.label_smoothing:g}, {self.layer}"
        pairing = "" if self.pairing == "any" else f", {self.pairing}"
        return f"{MIXUP} at {self.layer}, alpha {self.alpha:g}{pairing}"

    def settings(
        self, lrs: Sequence[float], weight_decays: Sequence[float], seed: int
    ) -> list[HeadSettings]:
        """A head's settings for each learning rate and weight decay."""
        return [
            HeadSettings(self.alpha, lr, weight_decay, self.label_smoothing, self.pairing, seed)
            for lr, weight_decay in product(lrs, weight_decays)
        ]


def list_trials(
    layers: Iterable[str],
    alphas: Iterable[float],
    pairings: Iterable[str],
    label_smoothing: float,
) -> list[Trial]:
    """Every way to compare: no mixing and smoothed labels at each layer, and each kind of mix.

    Example:
        >>> for trial in list_trials(["layer4"], [0, 0.4], ["any"], 0.1):
        ...     print(trial.name)
        no mixing, layer4
        label smoothing 0.1, layer4
        feature mixup at layer4, alpha 0.4
    """
    trials = []
    for layer in layers:
        trials.append(Trial(layer))
        if label_smoothing:
            trials.append(Trial(layer, label_smoothing=label_smoothing))
        mixed = product(dict.fromkeys(pairings), sorted(set(alphas) - {0}))
        trials += [Trial(layer, alpha, pairing) for pairing, alpha in mixed]
    return trials
