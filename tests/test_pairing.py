"""Who mixes with whom."""

import pytest
import torch
from scipy import stats

from manifold_mixup.drawing import seeded_generator
from manifold_mixup.pairing import PAIRINGS, check_pairing, draw_partner


@pytest.mark.parametrize("n", [1, 2, 3, 8, 101])
def test_every_sample_is_taken_once(n: int) -> None:
    """Partners are a permutation of the batch."""
    partner = draw_partner(n)

    assert partner.dtype == torch.int64
    assert sorted(partner.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 5, 64])
def test_nobody_is_their_own_partner(n: int) -> None:
    """From two samples on, each is mixed with another one, in every draw."""
    generator = seeded_generator(0)

    for _ in range(50):
        assert (draw_partner(n, generator=generator) != torch.arange(n)).all()


def test_single_sample_is_its_own_partner() -> None:
    """A batch of one has nobody else."""
    assert draw_partner(1).tolist() == [0]


def test_every_other_sample_is_as_likely() -> None:
    """A chi-square test finds no preference among the others, for any sample."""
    n, draws, generator = 6, 3000, seeded_generator(0)
    counts = torch.zeros(n, n)

    for _ in range(draws):
        counts[torch.arange(n), draw_partner(n, generator=generator)] += 1

    for i in range(n):
        others = [int(counts[i, j]) for j in range(n) if j != i]
        assert stats.chisquare(others).pvalue > 1e-4


def test_generator_fixes_the_draw() -> None:
    """The same seed gives the same partners and leaves the global random state alone."""
    before = torch.get_rng_state()
    first, again, other = (draw_partner(64, generator=seeded_generator(s)) for s in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("pairing", ["nearest", "", None, ["any"]])
def test_unknown_pairing_lists_the_rules(pairing: str) -> None:
    """A rule that does not exist is refused with those that do."""
    with pytest.raises(ValueError, match=f"is unknown; choose one of {', '.join(PAIRINGS)}"):
        draw_partner(4, pairing)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_known_pairing_passes(pairing: str) -> None:
    """Every listed rule is accepted and draws."""
    check_pairing(pairing)

    assert len(draw_partner(4, pairing)) == 4
