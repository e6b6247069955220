"""Where each replicate of a comparison begins: its split, its labels, and its head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manifold_mixup._random import seeded_generator
from manifold_mixup.data import Data, Part, check_harder, harden, split_parts

# The part that holds samples of another domain.
ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Start:
    """What a replicate has of its own besides order and mixes.

    Attributes:
        seed: What decides it.
        train: Positions of the samples to train on (n,).
        val: Of those to choose by.
        test: Of those to test on.
        target: The classes of all N samples as training and validation are told them; wrong for
            some where that is to be tried.
        head: Weight (C, D) and bias (C,) that a training by steps begins with; None where heads
            are solved for.
    """

    seed: int
    train: Tensor
    val: Tensor
    test: Tensor
    target: Tensor
    head: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """How hard the data are made on purpose.

    Attributes:
        shots: Samples of each class to train on; None for all.
        label_noise: Share of the training and validation labels that are drawn anew, in [0, 1].
    """

    shots: int | None = None
    label_noise: float = 0.0

    @property
    def name(self) -> str:
        """In words; nothing for the data as they are.

        Example:
            >>> Case(shots=5, label_noise=0.2).name
            '5 images a class, 20 % of the labels redrawn'
        """
        images = "image" if self.shots == 1 else "images"
        shots = "" if self.shots is None else f"{self.shots} {images} a class"
        noise = f"{100 * self.label_noise:.12g} % of the labels redrawn"
        return ", ".join(word for word in (shots, noise if self.label_noise else "") if word)


def list_cases(shots: Sequence[int], label_noises: Sequence[float]) -> list[Case]:
    """The data as they are, with few samples, and with wrong labels.

    Raises:
        ValueError: One of them is out of range.

    Example:
        >>> [case.name for case in list_cases([5], [0.2])]
        ['', '5 images a class', '20 % of the labels redrawn']
    """
    few = [Case(shots=one) for one in dict.fromkeys(shots)]
    wrong = [Case(label_noise=share) for share in dict.fromkeys(label_noises) if share]
    for case in (*few, *wrong):
        check_harder(case.shots, case.label_noise)
    return [Case(), *few, *wrong]


def draw_start(
    data: Data, seed: int, case: Case, head: tuple[Tensor, Tensor] | None = None
) -> Start:
    """Split as `manifold-mixup train` does with this seed.

    Args:
        data: The N samples, of classes, part after part. If one is `ELSEWHERE`, it is tested on in
            the place of the test part, which is held out all the same.
        seed: Decides the split, and what is left out or drawn anew.
        case: How hard the data are made.
        head: Where a training by steps begins.

    Raises:
        ValueError: A class has too few samples.

    Example:
        >>> data = Data("twenty", ["a", "b"], {"train": Part(range(20), [0, 1] * 10, ["s"] * 20)})
        >>> start = draw_start(data, 0, Case())
        >>> len(start.train), len(start.val), len(start.test)
        (12, 4, 4)
    """
    target = torch.tensor([label for part in data.parts.values() for label in part.targets])
    parts = harden(
        split_parts(_by_position(data), seed=seed),
        data.classes,
        shots=case.shots,
        label_noise=case.label_noise,
        seed=seed,
    )
    positions = {name: torch.tensor(list(part.sources)) for name, part in parts.items()}
    for name in ("train", "val"):
        target[positions[name]] = torch.tensor(parts[name].targets)
    tested = ELSEWHERE if ELSEWHERE in parts else "test"
    train, val, test = (positions[name] for name in ("train", "val", tested))
    return Start(seed, train, val, test, target, head)


def draw_head(seed: int, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias (uniform in +-D^-1/2, as `nn.Linear` begins) of the shapes of others."""
    bound = like[0].shape[1] ** -0.5
    generator = seeded_generator(seed, "head")
    weight, bias = (
        torch.empty(one.shape).uniform_(-bound, bound, generator=generator).to(one.device)
        for one in like
    )
    return weight, bias


def _by_position(data: Data) -> Data:
    """The same samples, with their positions among all in the place of their sources."""
    parts: dict[str, Part] = {}
    begin = 0
    for name, part in data.parts.items():
        end = begin + len(part)
        parts[name], begin = replace(part, sources=range(begin, end)), end
    return replace(data, parts=parts)
