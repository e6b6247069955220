"""What an interval of a difference in accuracy answers, and that in words."""

import math
from typing import Literal

from manifold_mixup.spread import Needed
from manifold_mixup.verdict import Interval

Answer = Literal["use it", "leave it off", "cannot tell"]

# Half the width, in accuracy, from which on an interval says nothing and is not told.
_WIDEST = 0.2


def find_answer(gain: Interval, worth: float) -> Answer:
    """Whether to use what gains so much accuracy.

    Args:
        gain: In accuracy, a fraction.
        worth: The smallest gain worth having.

    Example:
        >>> find_answer(Interval(0.001, -0.004, 0.006), 0.01)
        'leave it off'
    """
    if gain.high < worth:
        return "leave it off"
    return "use it" if gain.low > 0 else "cannot tell"


def wanted_half_width(gain: Interval, worth: float) -> float:
    """How narrow an interval that cannot tell is to be: first as the gain worth having; one that
    is no wider than that gain tells for certain at half of it.
    """
    return worth if gain.half_width > worth else worth / 2


def is_told(gain: Interval) -> bool:
    """Whether the interval is known, and narrow enough to say anything."""
    return gain.half_width <= _WIDEST


def show_points(gain: Interval) -> str:
    """A difference in points of a hundred, with the ends of its interval.

    Example:
        >>> show_points(Interval(0.012, 0.005, 0.019)), show_points(Interval(0.1, -0.4, 0.6))
        ('+1.2 (+0.5 to +1.9)', 'not told')
    """
    if not is_told(gain):
        return "not told"
    mean, low, high = (100 * end for end in (gain.mean, gain.low, gain.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def in_points(share: float) -> str:
    """A share of 1 in points of a hundred, with a decimal at least.

    Example:
        >>> in_points(0.01), in_points(0.0025)
        ('1.0', '0.25')
    """
    points = round(100 * share, 6)
    return f"{points:.1f}" if round(points, 1) == points else f"{points:g}"


def describe_gain(gain: Interval) -> str:
    """The same within a sentence.

    Example:
        >>> describe_gain(Interval(0.012, 0.005, 0.019))
        '+1.2 points (+0.5 to +1.9)'
        >>> describe_gain(Interval(0.1, -0.4, 0.6))
        'a difference that is not told, for it is not known to 20 points'
    """
    if not is_told(gain):
        return "a difference that is not told, for it is not known to 20 points"
    return show_points(gain).replace(" ", " points ", 1)


def describe_answer(gain: Interval, worth: float, needed: Needed) -> str:
    """The answer, and why.

    Args:
        gain: In accuracy, a fraction.
        worth: The smallest gain worth having.
        needed: For `wanted_half_width`, if it cannot be told.

    Example:
        >>> describe_answer(Interval(0.001, -0.005, 0.0071), 0.01, Needed(0, 0))
        'leave it off: gains of more than 0.8 points are ruled out'
        >>> describe_answer(Interval(0.0, -0.03, 0.03), 0.01, Needed(1432, None)).split("; ")[1]
        'about 1,500 more images to test on would show 1.0'
    """
    answer = find_answer(gain, worth)
    if answer == "use it":
        return f"{answer}: {describe_gain(gain)}"
    why = _refusal(gain, worth) if answer == "leave it off" else _doubt(gain, worth, needed)
    return f"{answer}: {why}"


def _refusal(gain: Interval, worth: float) -> str:
    if gain.high < 0:
        return f"it is worse, {describe_gain(gain)}"
    if gain.low > 0:
        return f"{describe_gain(gain)} is less than the {in_points(worth)} worth having"
    return f"gains of more than {in_points(min(_raised(gain.high), worth))} points are ruled out"


def _doubt(gain: Interval, worth: float, needed: Needed) -> str:
    more = []
    if needed.samples is not None:
        more.append(f"{_rounded(needed.samples):,} more images to test on")
    if needed.replicates is not None:
        kind = "replicate" if needed.replicates == 1 else "replicates"
        more.append(f"{needed.replicates} more {kind}")
    would = f"about {' or '.join(more)}" if more else "neither more images nor replicates alone"
    return (
        "this data shows only differences above "
        f"{in_points(_raised(min(gain.half_width, _WIDEST)))} points; {would} would show "
        f"{in_points(wanted_half_width(gain, worth))}"
    )


def _rounded(n: int) -> int:
    """To two digits, upwards: 1,432 to 1,500."""
    unit = int(10 ** max(len(str(n)) - 2, 0))
    return -(-n // unit) * unit


def _raised(share: float) -> float:
    """To a tenth of a point, upwards."""
    return math.ceil(round(1000 * share, 6)) / 1000
