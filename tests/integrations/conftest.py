"""What the tests of all frameworks share."""

from typing import Any

import pytest

from manifold_mixup import Mix


@pytest.fixture
def mixes(monkeypatch: pytest.MonkeyPatch) -> list[Mix]:
    """All mixes that are drawn, in order."""
    drawn: list[Mix] = []
    sample = Mix.sample

    def draw(n: int, *args: Any, **options: Any) -> Mix:
        mix = sample(n, *args, **options)
        if n > 2:  # of a batch, not of the trial
            drawn.append(mix)
        return mix

    monkeypatch.setattr(Mix, "sample", draw)
    return drawn
