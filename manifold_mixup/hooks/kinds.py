"""The kinds of mixes, by name and as what draws them.

They share lam and partner, so that `mixed_loss` and `ManifoldMixup` take them as they are. A
sample whose lam is 1 stays exactly as it is.
"""

from collections.abc import Callable
from functools import partial

import torch

from manifold_mixup.mixing import CutMix, Mix, MomentExchange, NoisyMix

Kind = type[Mix] | partial[Mix]


# Options that all kinds have.
_COMMON = {"n", "alpha", "target", "pairing", "exclude", "per_sample", "generator"}


KINDS: dict[str, type[Mix]] = {
    "mix": Mix,
    "cutmix": CutMix,
    "moment-exchange": MomentExchange,
    "noisy": NoisyMix,
}


def mix_class(kind: Kind) -> type[Mix]:
    """The class of the mixes of a kind.

    Raises:
        TypeError: It is neither a class of mixes nor a `functools.partial` of one.
    """
    of = kind.func if isinstance(kind, partial) and not kind.args else kind
    if isinstance(of, type) and issubclass(of, Mix):
        return of
    raise TypeError(
        f"kind={kind!r}: expected Mix, CutMix, MomentExchange or NoisyMix, or a functools.partial "
        "of one with options by name"
    )


def sampler(kind: Kind) -> Callable[..., Mix]:
    """What draws mixes of a kind: a class's `sample`, with the options of a `functools.partial`.

    Raises:
        TypeError: It is no kind, or has no such options.
        ValueError: An option is out of range.

    Example:
        >>> sampler(partial(NoisyMix, additive=0.5))(8).additive
        0.5
    """
    options = kind.keywords if isinstance(kind, partial) else {}
    if common := _COMMON & options.keys():
        raise TypeError(f"{', '.join(sorted(common))} is no option of one kind; give it beside")
    draw: Callable[..., Mix] = partial(mix_class(kind).sample, **options)
    draw(2, generator=torch.Generator())  # an option that is wrong shows now
    return draw
