"""What became of the mix of a step: whether anybody took it to the targets."""

import copy
import weakref
from typing import Any

from manifold_mixup.mixing import Mix


class Receipt:
    """Holds nothing of a mix that is handed out, and still knows whether it was looked at.

    Args:
        mix: What the features of a step are mixed with.
    """

    def __init__(self, mix: Mix) -> None:
        self._twin = mix.unread()  # what is noted of the one is noted of the other
        self._given: weakref.ref[Mix] | None = None

    def hand_out(self) -> Mix:
        """The mix, for whoever takes the loss."""
        given = copy.copy(self._twin)
        self._given = weakref.ref(given)
        return given

    @property
    def is_open(self) -> bool:
        """Whether it mixes, and nobody has looked at it."""
        return not (self._twin.is_identity or self._twin.is_read)

    @property
    def is_lost(self) -> bool:
        """Whether nobody has, and nobody can: a loss may be taken long after the step."""
        return self.is_open and (self._given is None or self._given() is None)


class Receipts:
    """Those of past steps whose mixes nobody has looked at yet.

    Args:
        features_only: Whether nobody has to.
    """

    def __init__(self, features_only: bool) -> None:
        self._is_needed = not features_only
        self._kept: list[Receipt] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": []}

    def add(self, receipt: Receipt) -> None:
        """Keep that of a step that has ended, and check all."""
        self._kept.append(receipt)
        self.check()

    def check(self) -> None:
        """Raise a RuntimeError if a mix is lost."""
        is_lost = any(receipt.is_lost for receipt in self._kept)
        self._kept = [one for one in self._kept if one.is_open and not one.is_lost]
        if is_lost and self._is_needed:
            raise RuntimeError(
                "the mix of a step was never applied to the targets, only to the features: take "
                "`with mixup(target) as mix:` and mixed_loss(logits, target, mix), or, if targets "
                "are to stay as they are, features_only=True"
            )
