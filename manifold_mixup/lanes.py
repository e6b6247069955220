"""Linear heads that see features of equal noise: one wide product for those of each seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from manifold_mixup.closed_form import loss_gradient, mix_logits, unmix_gradient
from manifold_mixup.draws import Draws, HeadMixes
from manifold_mixup.settings import HeadSettings

T = TypeVar("T")

_NAMES = ("weight", "bias")

# What an optimizer keeps for every parameter.
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}

# The weights of several seeds side by side have so many numbers at the most: more of them would
# leave the cache between two steps, which costs more than wide products spare.
_SIDE_BY_SIDE = 2**22

# So much of the gradient is made at a time on a CPU, and used while it is in the cache.
_CACHED_BYTES = 2**21


@dataclass(frozen=True)
class _Update:
    """Parameters that one call of the optimizer changes, those of some heads with equal settings.

    All lists run over the same tensors; `moments` has one for each of the optimizer's `MOMENTS`.
    """

    lr: float
    weight_decay: float
    parameters: list[Tensor]
    gradients: list[Tensor]
    moments: list[list[Tensor]]


@dataclass(frozen=True)
class _Chunk:
    """Heads of every seed whose gradients are made at a time, to be used while in the cache.

    Attributes:
        rows: Their place in the K x C logits of a seed.
        gradient: Of their weights (G, heads, C, D).
        updates: What changes them.
    """

    rows: slice
    gradient: Tensor
    updates: list[_Update]


class Lane:
    """Some of many heads, of one noise, and what trains them, step by step.

    Args:
        heads: Places of these K heads among all: seed after seed, and but for that the same
            settings of every seed, those of equal learning rate and weight decay side by side.
        settings: Of all heads.
        tensors: Of all heads, copied: ``weight`` (*, C, D) and ``bias`` (*, C); to go on, also
            what `Lane.tensors` gave before.
        optimizer: ``"adamw"`` or ``"sgd"``.
        momentum: Of SGD.
        steps: How many there were before.
        mixes_logits: Whether to mix the logits; if not, the features that come are mixed.
    """

    def __init__(
        self,
        heads: list[int],
        settings: Sequence[HeadSettings],
        tensors: Mapping[str, Tensor],
        *,
        optimizer: str,
        momentum: float,
        steps: int,
        mixes_logits: bool,
    ) -> None:
        self.settings = [settings[head] for head in heads]
        self.heads = torch.tensor(heads, device=tensors["weight"].device)
        self.seeds = list(dict.fromkeys(one.seed for one in self.settings))
        self.noise = self.settings[0].noise
        own = {
            name: tensor.index_select(0, self.heads.to(tensor.device))
            for name, tensor in tensors.items()
        }
        self.weight, self.bias = own["weight"], own["bias"]
        self.draws = Draws(self.settings, own.get("generator"))
        self._optimizer, self._momentum, self.mixes_logits = optimizer, momentum, mixes_logits
        self._moments = {
            f"{moment}.{name}": own.get(f"{moment}.{name}", torch.zeros_like(own[name]))
            for moment in MOMENTS[optimizer]
            for name in _NAMES
        }
        self._steps = torch.tensor(float(steps), device=self.weight.device)
        smoothing = self.weight.new_tensor([one.label_smoothing for one in self.settings])
        self._smoothing = smoothing[:, None, None] if bool(smoothing.any()) else None
        clean_weight = self.weight.new_tensor([one.clean_weight for one in self.settings])
        self._weighing = clean_weight.nonzero().flatten()  # the heads that weigh the clean loss
        self._clean_weight = clean_weight[self._weighing][:, None, None]
        self.weighs_clean = len(self._weighing) > 0
        self._bias_gradient = torch.empty_like(self.bias)
        self._chunks = self._make_chunks()

    def tensors(self) -> dict[str, Tensor]:
        """All that the training has changed so far, every tensor (K, *)."""
        state = {"weight": self.weight, "bias": self.bias, "generator": self.draws.states()}
        return state | self._moments

    def step(
        self, features: Tensor, mix: HeadMixes, rate: float, clean: Tensor | None = None
    ) -> Tensor:
        """Change the heads by one step.

        Args:
            features: Of each seed (G, B, D).
            mix: Of this step.
            rate: What the learning rates are multiplied by.
            clean: Those of the same samples unmixed, where `features` are mixed and heads weigh
                the loss of these too.

        Returns:
            The loss of each head before the step (K,), of mixed and clean samples.
        """
        k, c, d = self.weight.shape
        if clean is not None:
            features = torch.cat([features, clean], 1)
        g, b = features.shape[:2]
        logits = torch.baddbmm(self.bias.view(g, -1, 1), self.weight.view(g, -1, d), features.mT)
        losses, gradient = self._whole_gradient(logits.view(k, c, b), mix)
        torch.sum(gradient, 2, out=self._bias_gradient)
        self._steps += 1
        of_seeds = gradient.view(g, -1, b)
        for chunk in self._chunks:
            torch.bmm(of_seeds[:, chunk.rows], features, out=chunk.gradient.flatten(1, 2))
            for update in chunk.updates:
                self._apply(update, rate)
        return losses

    def _whole_gradient(self, logits: Tensor, mix: HeadMixes) -> tuple[Tensor, Tensor]:
        """Losses (K,) and their gradient with respect to all logits.

        Args:
            logits: (K, C, B), or those of mixed samples and then those of clean ones (K, C, 2 B).
            mix: Of this step.
        """
        b = mix.classes.shape[2]
        losses, gradient = self._mixed_gradient(logits[:, :, :b], mix)
        if not self.weighs_clean:
            return losses, gradient
        some = self._weighing
        share = logits.new_full((1, 1, b), -1)
        smoothing = None if self._smoothing is None else self._smoothing[some]
        own = mix.classes[:, :1] if len(mix.classes) == 1 else mix.classes[some, :1]
        clean, beside = loss_gradient(logits[some, :, -b:], own, share, smoothing)
        losses.index_add_(0, some, clean * self._clean_weight.flatten())
        beside *= self._clean_weight
        if logits.shape[2] == b:
            return losses, gradient.index_add_(0, some, beside)
        whole = torch.zeros_like(gradient).index_copy_(0, some, beside)
        return losses, torch.cat([gradient, whole], 2)

    def _mixed_gradient(self, logits: Tensor, mix: HeadMixes) -> tuple[Tensor, Tensor]:
        """Losses of the mix (K,) and their gradient with respect to these logits (K, C, B)."""
        if not self.mixes_logits or mix.lam is None or mix.partner is None:
            return loss_gradient(logits, mix.classes, mix.share, self._smoothing)
        mixed = mix_logits(logits, mix.lam, mix.partner)
        losses, gradient = loss_gradient(mixed, mix.classes, mix.share, self._smoothing)
        return losses, unmix_gradient(gradient, mix.lam, mix.partner)

    def _make_chunks(self) -> list[_Chunk]:
        """Heads whose gradients are made at a time, and the calls that change them."""

        def key(head: int) -> tuple[float, float]:
            return self.settings[head].lr, self.settings[head].weight_decay

        g, (c, d) = len(self.seeds), self.weight.shape[1:]
        k = len(self.settings) // g
        on_cpu = self.weight.device.type == "cpu"
        most = max(1, _CACHED_BYTES // (g * c * d * self.weight.itemsize)) if on_cpu else k
        buffer = self.weight.new_empty(g * min(k, most) * c * d)
        chunks = []
        for first in range(0, k, most):
            heads = range(first, min(first + most, k))
            gradient = buffer[: g * len(heads) * c * d].view(g, -1, c, d)
            updates = [
                self._update_of(*equal, list(run), gradient, first)
                for equal, run in groupby(heads, key)
            ]
            chunks.append(_Chunk(slice(first * c, heads.stop * c), gradient, updates))
        return chunks

    def _update_of(
        self, lr: float, weight_decay: float, run: list[int], gradient: Tensor, first: int
    ) -> _Update:
        """What changes a run of heads of every seed, of which `first` is that of the gradient."""

        def of_seeds(tensor: Tensor) -> list[Tensor]:
            by_seed = torch.unflatten(tensor, 0, (len(self.seeds), -1))
            return [own[run[0] : run[-1] + 1] for own in by_seed]

        return _Update(
            lr,
            weight_decay,
            [part for name in _NAMES for part in of_seeds(getattr(self, name))],
            [
                *(own[run[0] - first : run[-1] + 1 - first] for own in gradient),
                *of_seeds(self._bias_gradient),
            ],
            [
                [part for name in _NAMES for part in of_seeds(self._moments[f"{moment}.{name}"])]
                for moment in MOMENTS[self._optimizer]
            ],
        )

    def _apply(self, update: _Update, rate: float) -> None:
        # What torch.optim calls for fused=True; its own bookkeeping costs more than the update.
        if self._optimizer == "sgd":
            torch._fused_sgd_(
                update.parameters,
                update.gradients,
                update.moments[0] if self._momentum else [],
                weight_decay=update.weight_decay,
                momentum=self._momentum,
                lr=rate * update.lr,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
        else:
            torch._fused_adamw_(
                update.parameters,
                update.gradients,
                update.moments[0],
                update.moments[1],
                [],
                [self._steps] * len(update.parameters),
                lr=rate * update.lr,
                beta1=0.9,
                beta2=0.999,
                weight_decay=update.weight_decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


def side_by_side(seeds: list[T], size: int) -> list[list[T]]:
    """Seeds, whose heads have so many weights each, some at a time: those to train together.

    Example:
        >>> side_by_side([0, 1, 2, 3, 4], 2**21)
        [[0], [1, 2], [3, 4]]
    """
    most = max(1, _SIDE_BY_SIDE // max(1, size))
    times = -(-len(seeds) // most)
    return [seeds[len(seeds) * i // times : len(seeds) * (i + 1) // times] for i in range(times)]
