"""How one head is trained, as a value, and which values are allowed."""

import math
from dataclasses import dataclass

from manifold_mixup.mixing import Pairing, check_alpha, check_exclude, check_pairing


@dataclass(frozen=True)
class HeadSettings:
    """What may differ from head to head where many are trained together; see `train_head`.

    Attributes:
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing.
        lr: Learning rate of the first step, above 0.
        weight_decay: Of the optimizer, at least 0.
        label_smoothing: In [0, 1).
        pairing: Who mixes with whom; see `draw_partner`.
        seed: Of the order of the samples and of the mixes.
        exclude: Indices of classes that take no part in mixing, in order.
        clean_weight: Of the loss of the same samples unmixed, added to that of the mixed ones;
            at least 0.

    Raises:
        ValueError: One of them is out of range.

    Example:
        >>> from dataclasses import replace
        >>> [replace(HeadSettings(), lr=lr).lr for lr in (0.1, 0.01)]
        [0.1, 0.01]
    """

    alpha: float = 0.4
    lr: float = 0.01
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    pairing: Pairing = "any"
    seed: int = 0
    exclude: tuple[int, ...] = ()
    clean_weight: float = 0.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_pairing(self.pairing)
        object.__setattr__(self, "exclude", check_exclude(self.exclude))
        check_training(
            lr=self.lr,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            clean_weight=self.clean_weight,
        )


def check_partners(batch_size: int, alpha: float) -> None:
    """Raise a ValueError if samples are to be mixed in batches of one."""
    if batch_size == 1 and alpha > 0:
        raise ValueError(
            "batch_size=1 leaves a sample none to be mixed with; give at least 2, or alpha=0"
        )


def check_training(
    epochs: int = 1,
    batch_size: int = 1,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    clean_weight: float = 0.0,
) -> None:
    """Raise a ValueError that names the argument unless all that are given are in range."""
    for name, value, holds, expected in (
        ("epochs", epochs, epochs >= 1, "at least 1"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("lr", lr, 0 < lr < math.inf, "above 0"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0"),
        ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)"),
        ("clean_weight", clean_weight, 0 <= clean_weight < math.inf, "at least 0"),
    ):
        if not holds:
            raise ValueError(f"{name}={value} must be {expected}")
