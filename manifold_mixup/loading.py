"""Batches for a model: which device they go to, and how they are loaded."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Images = Dataset[tuple[Tensor, int]]


def image_loader(
    dataset: Images,
    batch_size: int,
    *,
    device: torch.device,
    workers: int = 0,
    order: Sequence[int] | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Load batches of images (B, C, H, W) and class indices (B,).

    Args:
        dataset: Pairs of an image and a class index.
        batch_size: B; the last batch may be smaller.
        device: Where the batches will go.
        workers: Processes that load images; 0 loads them in this one.
        order: Positions in the data set, in the order to load; its own if None.
    """
    return DataLoader(
        cast(Dataset[tuple[Tensor, Tensor]], dataset),  # as its batches are
        batch_size,
        sampler=order,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )


def first_logits(output: Any) -> Tensor:
    """The logits (B, C) in what a model returns: itself, its `logits`, or the first of several.

    Example:
        >>> first_logits((torch.zeros(1, 2), torch.ones(1, 2)))
        tensor([[0., 0.]])
    """
    if isinstance(output, Tensor):
        return output
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's parameters, the CPU if it has none."""
    tensor: Any = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def find_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is the best one at hand.

    Raises:
        ValueError: There is no such device here.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((device for device, exists in here.items() if exists), "cpu"))
    kind = name.split(":")[0]
    if name != "cpu" and not here.get(kind):
        raise ValueError(f"device {name!r} is not here; choose auto or cpu")
    return torch.device(name)
