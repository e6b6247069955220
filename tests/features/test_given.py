"""What else may be given as samples, and what is told where it may not."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from manifold_mixup import (
    ManifoldMixup,
    cut,
    evaluate,
    extract_features,
    layer_table,
    train_head,
)


def net() -> nn.Sequential:
    """A small model of images of any size."""
    torch.manual_seed(0)
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *pooled)
    model[0].requires_grad_(False)
    return model


def pictures() -> list[tuple[torch.Tensor, int]]:
    """Twelve of two classes."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(3, 8, 8, generator=generator) + i % 2, i % 2) for i in range(12)]


class Columns(Dataset[Any]):
    """Samples with named columns, as Hugging Face has them."""

    def __init__(self, image: str, label: str) -> None:
        self.names = image, label

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(zip(self.names, pictures()[index], strict=True))


GIVEN = {
    "a loader": lambda: DataLoader(pictures(), 5, shuffle=True),  # type: ignore[arg-type]
    "columns": lambda: Columns("image", "label"),
    "other columns": lambda: Columns("img", "target"),
}


@pytest.mark.parametrize("case", GIVEN)
def test_samples_of_others_give_what_pairs_give(case: str, tmp_path: Any) -> None:
    """A loader's data set in our order, and columns by their names: the same to the bit."""
    heads, stores, measured = [], [], []
    for number, samples in enumerate((pictures(), GIVEN[case]())):
        model = net()
        own: dict[str, Any] = {"layer": "1", "weight_decay": 0.01, "say": lambda _: None}
        heads.append(train_head(model, samples, validation=samples, **own).head)
        stores.append(extract_features(model, "1", samples, tmp_path / str(number)))
        measured.append(evaluate(model, samples))

    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert torch.equal(stores[0].features[:], stores[1].features[:])
    assert torch.equal(stores[0].targets, stores[1].targets)
    assert measured[0] == measured[1]


class Table:
    """What a DataFrame has."""

    iloc = None

    def __len__(self) -> int:
        return 2


def with_nan() -> list[tuple[torch.Tensor, int]]:
    """Pictures of which the eighth holds a NaN."""
    given = pictures()
    given[7][0][0, 3, 3] = torch.nan
    return given


REFUSED: dict[str, tuple[Any, str]] = {
    "pictures": (
        [(Image.fromarray(np.zeros((8, 8, 3), "uint8")), i % 2) for i in range(4)],
        "they hold Image and int; give the data set a transform that makes tensors of one shape",
    ),
    "two sizes": (
        [(torch.zeros(3, 8 + i % 2, 8), i % 2) for i in range(4)],
        r"Tensor of shape \(3, 8, 8\) and Tensor of shape \(3, 9, 8\) and int; give the data set",
    ),
    "a table": (Table(), "a Table is a table, not pairs.*TensorDataset"),
    "columns of others": (Columns("x", "y"), "the columns x, y: expected one input of image"),
    "a loader of its own": (
        DataLoader(pictures(), collate_fn=list),  # type: ignore[arg-type]
        "has a collate_fn of its own.*give its data set",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_samples_are_refused_with_the_remedy(case: str, tmp_path: Any) -> None:
    """In one line, by whatever takes samples."""
    samples, message = REFUSED[case]
    for call in (
        lambda: train_head(net(), samples, layer="1"),
        lambda: evaluate(net(), samples),
        lambda: extract_features(net(), "1", samples, tmp_path),
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_image_of_nan_is_named_where_the_model_runs() -> None:
    """By its position, whatever the order it comes in."""
    with pytest.raises(ValueError, match="sample 7 of the data set holds NaN"):
        train_head(net(), with_nan(), layer="1", epochs=2, batch_size=4, say=lambda _: None)
    with pytest.raises(ValueError, match="sample 7 of the data set holds NaN"):
        evaluate(net(), with_nan())


@pytest.mark.parametrize("shape", [(3, 8, 8), (4,)])
def test_bytes_for_a_model_of_floats_are_refused_with_the_remedy(
    shape: tuple[int, ...], tmp_path: Any
) -> None:
    """By whatever runs the model, in one line."""
    first = nn.Conv2d(3, 4, 8) if len(shape) > 1 else nn.Linear(4, 4)
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(4, 2))
    images = torch.randint(256, (6, *shape), dtype=torch.uint8)
    samples = [(image, i % 2) for i, image in enumerate(images)]
    for call in (
        lambda: train_head(model, samples, layer="1"),
        lambda: evaluate(model, samples),
        lambda: extract_features(model, "1", samples, tmp_path),
        lambda: layer_table(model, images),
        lambda: cut(model, "1", images),
        lambda: ManifoldMixup(model, "1", example=images),
    ):
        with pytest.raises(
            (TypeError, ValueError), match=r"uint8 .* image.float\(\) / 255"
        ) as told:
            call()
        assert "\n" not in str(told.value)


class Scaling(nn.Sequential):
    """Takes bytes, and makes floats of them itself."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        return super().forward(images.float() / 255)


def test_bytes_for_a_model_that_scales_them_are_taken() -> None:
    """What is measured is what their floats give the model inside."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 2))
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    given = [
        [(image, i % 2) for i, image in enumerate(form)] for form in (images, images.float() / 255)
    ]

    assert evaluate(Scaling(*inner), given[0]) == evaluate(inner, given[1])
