"""A data set made harder on purpose: few images of each class, and labels that are wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from manifold_mixup._random import seeded_generator
from manifold_mixup.data.splits import Split


def few_of_each(
    targets: Sequence[int], shots: int, seed: int, *, classes: Sequence[str] | None = None
) -> list[int]:
    """Positions of so many images of each class, drawn with a seed, in order.

    With the same seed, those of fewer shots are among those of more.

    Args:
        targets: The class index of each of n images.
        shots: How many of each class to take, at least 1.
        seed: Of the draw.
        classes: Names of all classes, each of which needs that many; None for those of the
            targets.

    Raises:
        ValueError: A class has fewer images, or `shots` is out of range.

    Example:
        >>> targets = [0, 1, 0, 1, 1, 0]
        >>> positions = few_of_each(targets, 2, seed=0)
        >>> sorted(targets[i] for i in positions), positions == sorted(positions)
        ([0, 0, 1, 1], True)
    """
    check_harder(shots, 0.0)
    present = sorted(set(targets))
    for index in present if classes is None else range(len(classes)):
        if (n := targets.count(index)) < shots:
            name = f"{index}" if classes is None else f"'{classes[index]}'"
            raise ValueError(
                f"class {name} has {n} images to train on, shots={shots} needs {shots} of every "
                f"class; ask for at most {n}, or bring more"
            )
    return _at_most(targets, shots, seed)


def redraw(targets: Sequence[int], share: float, num_classes: int, seed: int) -> list[int]:
    """The same targets, but a share of them drawn again, uniformly among all classes.

    So one in `num_classes` of those drawn again stays right by chance. With the same seed, those
    drawn again for a smaller share are among those for a larger one, and get the same class.

    Args:
        targets: The class index of each of n samples.
        share: In [0, 1]; of n samples round(share * n) are drawn again.
        num_classes: Number of classes.
        seed: Of both draws: which samples, and what they get.

    Raises:
        ValueError: The share is out of range.

    Example:
        >>> again = redraw([0] * 100, 0.5, num_classes=2, seed=0)
        >>> len(again), 10 < sum(again) < 40  # 50 are drawn again, of which half change
        (100, True)
    """
    check_harder(None, share)
    generator = seeded_generator(seed, "labels")
    order = torch.randperm(len(targets), generator=generator).tolist()
    drawn = torch.randint(num_classes, (len(targets),), generator=generator).tolist()
    redrawn = list(targets)
    for place in order[: round(share * len(targets))]:
        redrawn[place] = drawn[place]
    return redrawn


def harden(
    parts: Mapping[str, Split],
    classes: Sequence[str],
    *,
    shots: int | None = None,
    label_noise: float = 0.0,
    seed: int,
) -> dict[str, Split]:
    """Fewer images to train on and to choose by, with wrong labels among theirs.

    Who has wrong labels has them in validation too, so both parts get them, each by a draw of its
    own. The test part is never touched. What stays is in the order it was.

    Args:
        parts: ``"train"``, ``"val"`` and ``"test"``, as `split_images` gives them.
        classes: Names of the classes, in order.
        shots: Images of each class to keep in the training part, and at most to keep in the
            validation part; None keeps all.
        label_noise: Share of the labels of both that are drawn again; see `redraw`.
        seed: Of the draws; the global random state is neither read nor changed.

    Raises:
        ValueError: A class has too few training images, the targets are no classes, or an
            argument is out of range.

    Example:
        >>> part = Split(range(20), [0, 1] * 10, [str(i) for i in range(20)])
        >>> parts = harden({"train": part, "val": part, "test": part}, "ab", shots=3, seed=0)
        >>> {name: len(images) for name, images in parts.items()}
        {'train': 6, 'val': 6, 'test': 20}
    """
    check_harder(shots, label_noise)
    if shots is None and not label_noise:
        return dict(parts)
    _check_classes(parts["train"].targets[0])
    hardened = dict(parts)
    for name in ("train", "val"):
        part, own = parts[name], seeded_generator(seed, "harder", name).initial_seed()
        if shots is not None and name == "train":
            part = part.take(few_of_each(part.targets, shots, own, classes=classes))
        elif shots is not None:
            part = part.take(_at_most(part.targets, shots, own))
        targets = redraw(part.targets, label_noise, len(classes), own)
        hardened[name] = replace(part, targets=targets)
    return hardened


def check_harder(shots: int | None, label_noise: float) -> None:
    """Raise a ValueError that names the argument that is out of range, if one is."""
    if shots is not None and shots < 1:
        raise ValueError(f"shots={shots} must be at least 1")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise} must be in [0, 1]")


def describe_harder(shots: int | None, label_noise: float) -> str:
    """What was made harder, in words; nothing if nothing was.

    Example:
        >>> describe_harder(5, 0.2)
        '5 images a class; 20 % of the training and validation labels are redrawn'
    """
    few = "" if shots is None else f"{shots} image{'s' if shots > 1 else ''} a class"
    share = f"{100 * label_noise:g} %"
    wrong = f"{share} of the training and validation labels are redrawn" if label_noise else ""
    return "; ".join(filter(None, (few, wrong)))


def _at_most(targets: Sequence[int], shots: int, seed: int) -> list[int]:
    """Positions of so many samples of each class, all of a class that has fewer."""
    generator = seeded_generator(seed, "shots")
    taken: list[int] = []
    for index in sorted(set(targets)):
        own = [i for i, target in enumerate(targets) if target == index]
        order = torch.randperm(len(own), generator=generator).tolist()
        taken += [own[place] for place in order[:shots]]
    return sorted(taken)


def _check_classes(target: Any) -> None:
    if isinstance(target, list):
        raise ValueError(
            f"shots and label_noise are for images of one class each; a target here is {target}"
        )
