"""What is compared on: stores of the same samples, the head behind each, and the replicates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup._random import seeded_generator
from manifold_mixup.data import LabelledImages, check_harder, harden, split_images
from manifold_mixup.features import FeatureStore, find_tail
from manifold_mixup.models import LinearLayer, Tail, find_linear_layer

# The part that holds samples of another domain.
ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Replicate:
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
class Scenario:
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
            >>> Scenario(shots=5, label_noise=0.2).name
            '5 images a class, 20 % of the labels redrawn'
        """
        images = "image" if self.shots == 1 else "images"
        shots = "" if self.shots is None else f"{self.shots} {images} a class"
        noise = f"{100 * self.label_noise:.12g} % of the labels redrawn"
        return ", ".join(word for word in (shots, noise if self.label_noise else "") if word)


def list_scenarios(shots: Sequence[int], label_noises: Sequence[float]) -> list[Scenario]:
    """The data as they are, with few samples, and with wrong labels.

    Raises:
        ValueError: One of them is out of range.

    Example:
        >>> [scenario.name for scenario in list_scenarios([5], [0.2])]
        ['', '5 images a class', '20 % of the labels redrawn']
    """
    few = [Scenario(shots=one) for one in dict.fromkeys(shots)]
    wrong = [Scenario(label_noise=share) for share in dict.fromkeys(label_noises) if share]
    for scenario in (*few, *wrong):
        check_harder(scenario.shots, scenario.label_noise)
    return [Scenario(), *few, *wrong]


def draw_replicate(
    data: LabelledImages, seed: int, scenario: Scenario, head: tuple[Tensor, Tensor] | None = None
) -> Replicate:
    """Split as `manifold-mixup train` does with this seed.

    Args:
        data: The N samples, of classes, part after part. If one is `ELSEWHERE`, it is tested on in
            the place of the test part, which is held out all the same.
        seed: Decides the split, and what is left out or drawn anew.
        scenario: How hard the data are made.
        head: Where a training by steps begins.

    Raises:
        ValueError: A class has too few samples.

    Example:
        >>> from manifold_mixup.data import LabelledImages, Split
        >>> train = Split(range(20), [0, 1] * 10, ["s"] * 20)
        >>> data = LabelledImages("twenty", ["a", "b"], {"train": train})
        >>> replicate = draw_replicate(data, 0, Scenario())
        >>> len(replicate.train), len(replicate.val), len(replicate.test)
        (12, 4, 4)
    """
    target = torch.tensor([label for part in data.parts.values() for label in part.targets])
    parts = harden(
        split_images(data.by_position(), seed=seed),
        data.classes,
        shots=scenario.shots,
        label_noise=scenario.label_noise,
        seed=seed,
    )
    positions = {name: torch.tensor(list(part.sources)) for name, part in parts.items()}
    for name in ("train", "val"):
        target[positions[name]] = torch.tensor(parts[name].targets)
    tested = ELSEWHERE if ELSEWHERE in parts else "test"
    train, val, test = (positions[name] for name in ("train", "val", tested))
    return Replicate(seed, train, val, test, target, head)


def init_head(seed: int, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias (uniform in +-D^-1/2, as `nn.Linear` begins) of the shapes of others."""
    bound = like[0].shape[1] ** -0.5
    generator = seeded_generator(seed, "head")
    weight, bias = (
        torch.empty(one.shape).uniform_(-bound, bound, generator=generator).to(one.device)
        for one in like
    )
    return weight, bias


# What features of the same sample may differ by, if they were stored in bfloat16: by so much of
# what they vary by, but for so many of them.
_SAME = 0.05


@dataclass(frozen=True)
class Head:
    """What is trained behind stored features.

    Attributes:
        tail: All that lies behind them.
        layer: The linear layer in it that gives the logits.
        is_alone: Whether nothing else is trained.
        is_affine: Whether mixes may be pushed to the logits.
    """

    tail: Tail
    layer: LinearLayer
    is_alone: bool
    is_affine: bool

    @property
    def is_dear(self) -> bool:
        """Whether a replicate costs more than solving for heads."""
        return not (self.is_alone and self.is_affine)


def find_head(model: nn.Module, store: FeatureStore) -> Head:
    """What is to be trained behind stored features.

    Raises:
        ValueError: There is no linear layer with a bias that is.
    """
    tail = find_tail(model, store)
    parameters = {name: p for name, p in tail.named_parameters() if p.requires_grad}
    layer = None
    if parameters:
        inputs = store.features.gather(torch.arange(min(2, len(store))))
        layer = find_linear_layer(tail, inputs.to(next(tail.parameters())), parameters)
    if layer is None:
        raise ValueError(
            f"compare trains a head that ends in a linear layer with a bias, but behind "
            f"'{store.layer}' {', '.join(parameters) or 'nothing'} requires gradients; choose an "
            "earlier layer, or freeze(model, except_=head)"
        )
    own = {id(parameter) for parameter in layer.module.parameters()}
    is_alone = own == {id(parameter) for parameter in parameters.values()}
    return Head(tail, layer, is_alone, is_alone and layer.is_affine(torch.Size(store.shape)))


def gather_inputs(dataset: Any, index: Tensor) -> Tensor:
    """The inputs (B, *) of a data set at some positions (B,)."""
    return torch.stack([dataset[i][0] for i in index.tolist()])


def by_layer(stores: FeatureStore | Mapping[str, FeatureStore]) -> dict[str, FeatureStore]:
    """One store or several, by their layers."""
    if isinstance(stores, FeatureStore):
        return {stores.layer: stores}
    if isinstance(stores, Mapping) and all(isinstance(x, FeatureStore) for x in stores.values()):
        for name, store in stores.items():
            if name != store.layer:
                raise ValueError(
                    f"stores[{name!r}] holds features of '{store.layer}'; name it by that layer"
                )
        return dict(stores)
    raise TypeError(
        f"stores is a {type(stores).__name__}; give a FeatureStore, or a dict of them by layer, "
        "as extract_features returns them"
    )


def check_stores(stores: Mapping[str, FeatureStore]) -> None:
    """Make sure that there are stores, of the same samples, each of one of several classes."""
    if not stores:
        raise ValueError("stores is empty: give the features of at least one layer")
    first = next(iter(stores.values()))
    kind = first.targets.dtype
    if first.targets.ndim != 1 or kind.is_floating_point or kind == torch.bool:
        raise ValueError(
            f"{first.directory}: holds targets of shape {tuple(first.targets.shape)} and dtype "
            f"{kind}; compare is for class indices (n,)"
        )
    if first.targets.min() < 0:
        raise ValueError(
            f"{first.directory}: holds class {int(first.targets.min())}, expected indices from 0; "
            "take() the samples that have a class"
        )
    if first.targets.min() == first.targets.max():
        raise ValueError(f"{first.directory}: holds samples of one class, need at least 2")
    for store in stores.values():
        first.check_samples(store)


def check_inputs(
    model: nn.Module, store: FeatureStore, heads: Mapping[str, Head], inputs: Any
) -> None:
    """Make sure that a data set holds the samples whose features are stored, in their order."""
    if not all(head.is_alone for head in heads.values()):
        raise ValueError("inputs= are mixed for heads alone; freeze(model, except_=head), or none")
    head = heads[store.layer]
    if store.views > 1:
        raise ValueError(
            f"{store.directory}: holds {store.views} views of each sample, inputs= have one; "
            "extract features without views="
        )
    if len(inputs) != len(store):
        raise ValueError(
            f"inputs= has {len(inputs)} samples, {store.directory} features of {len(store)}; "
            "give the samples of the store, in its order"
        )
    chosen = torch.linspace(0, len(store) - 1, min(16, len(store))).long()
    stored = head.layer.inputs_of(store.features.gather(chosen)).float().cpu()
    try:
        whole = LinearLayer(model, head.layer.module, is_next=False)
        given = whole.inputs_of(gather_inputs(inputs, chosen)).float().cpu()
    except Exception as error:  # whatever a model makes of something else
        raise ValueError(f"inputs= are nothing that the model takes: {error}") from error
    # Each number by itself: beside a huge one, which transformers have, all others would be small.
    spread = stored.std(0)
    apart = (given - stored).abs() > _SAME * (stored.abs() + spread + spread.mean())
    differs = apart.float().mean(1) > _SAME
    if bool(differs.any()):
        raise ValueError(
            f"inputs= sample {int(chosen[differs][0])} gives other features than "
            f"{store.directory} holds of it; give the samples of the store, in its order, without "
            "random augmentation"
        )
