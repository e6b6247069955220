"""The two ways to train: the whole model in every step, or its stored features."""

from torch import Tensor

from manifold_mixup.inspection import Trace, find_entries
from manifold_mixup.models import cut_traced

WAYS = ("auto", "hooked", "cached")


def choose_way(
    way: str,
    found: Trace,
    layer: str,
    example: Tensor,
    *,
    is_random: bool,
    views: int,
) -> tuple[str, str]:
    """Whether to train on stored features.

    Args:
        way: ``"hooked"``, ``"cached"``, or ``"auto"``: cached if it gives the same numbers.
        found: The dry run of the model on the example, in which the layer's output was kept.
        layer: Where to mix.
        example: A batch of images (B, C, H, W).
        is_random: Whether images are augmented, anew in each epoch.
        views: How many augmented views of each image to store; 0 for none.

    Returns:
        ``"hooked"`` or ``"cached"``, and why it is not cached where that was not asked for.

    Raises:
        ValueError: The way is unknown, ``"cached"`` is not possible, or what is for stored
            features was asked for without them.
    """
    check_way(way)
    if way == "hooked" and views:
        raise ValueError(f"--views {views} is for stored features; leave out --way hooked")
    if way == "hooked":
        return way, ""
    if is_random and not views:
        reason = "augmented images differ in each epoch (--views K stores K views of each)"
    else:
        reason = _reason_against(found, layer, example)
    if reason and way == "cached":
        raise ValueError(f"--way cached is not possible: {reason}")
    if reason and views:
        raise ValueError(
            f"--views {views} is for stored features, not possible here: {reason}; leave it out: "
            "--augment alone draws anew in each epoch"
        )
    return ("hooked", reason) if reason else ("cached", "")


def check_way(way: str) -> None:
    """Raise a ValueError that lists the ways unless this is one of them."""
    if way not in WAYS:
        raise ValueError(f"--way {way}: choose one of {', '.join(WAYS)}")


def _reason_against(found: Trace, layer: str, example: Tensor) -> str:
    entries = find_entries(found.model, layer)
    if len(entries) > 1:
        return f"{layer!r} stands for {len(entries)} layers, one of which is drawn in each step"
    if entries[0][0].is_input:
        return "mixed images have features of their own"
    try:
        cut_traced(found, entries[0][0].name, (example,), {})
    except ValueError as error:
        return str(error)
    return ""
