"""Small models for the tests, and the plain hooks that their expected values come from."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup import Mix


def small_net() -> nn.Sequential:
    """Three named layers on 4 features, with 3 classes, in float64."""
    layers = OrderedDict(stem=nn.Linear(4, 8), body=nn.Tanh(), head=nn.Linear(8, 3))
    return nn.Sequential(layers).double()


class Shifted:
    """A data set that adds a random number to each picture, anew each time."""

    def __init__(self, samples: list[tuple[Tensor, int]], draw: Callable[[], Any]) -> None:
        self.samples, self.draw = samples, draw

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.samples[index]
        return image + self.draw(), target


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    """Features (n, 4) in float64 and class indices (n,) of 3 classes."""
    return torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))


def mixed_by_loop(mix: Mix, tensor: Tensor) -> Tensor:
    """The mix, one sample after the other."""
    lam, partner = mix.lam.tolist(), mix.partner.tolist()
    rows = [w * tensor[i] + (1 - w) * tensor[partner[i]] for i, w in enumerate(lam)]
    return torch.stack(rows)


def output_at(model: nn.Module, layer: str, *args: Any, **kwargs: Any) -> Any:
    """What a layer returns in a plain forward pass."""
    seen: list[Any] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append(o))
    model(*args, **kwargs)
    handle.remove()
    return seen[0]


def forward_with(model: nn.Module, layer: str, value: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's output when a layer returns a value in place of its own."""
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: value)
    output = model(*args, **kwargs)
    handle.remove()
    return output


def hooks_on(model: nn.Module) -> int:
    """The number of forward hooks on a model and all its modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Residual(nn.Module):
    """A block with a shortcut around a branch of two layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.shortcut = nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut."""
        return self.act(self.branch(x) + self.shortcut(x))


class Text(nn.Module):
    """A text classifier: indices (B, T) -> embedding -> transformer block -> mean -> head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, indices: Tensor) -> Tensor:
        """Logits for indices."""
        return self.head(self.block(self.embedding(indices)).mean(1))


class Wide(nn.Module):
    """A model whose `trunk` returns what a function makes of a tensor, read back by another."""

    def __init__(self, trunk: nn.Module, read: Any) -> None:
        super().__init__()
        self.stem, self.trunk, self.head = nn.Linear(4, 8), trunk, nn.Linear(8, 3)
        self.read = read
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x."""
        return self.head(self.read(self.trunk(torch.tanh(self.stem(x)))))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """The function's value."""
        return self.function(*args)
