"""Manifold mixup in timm's training script: what it calls ``mixup_fn``."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from manifold_mixup.hooks import ManifoldMixup
from manifold_mixup.inspection import Entry
from manifold_mixup.mixing import Mix


class ManifoldMixupFn:
    """Mix at named layers in place of timm's `Mixup`, which mixes images.

        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> images, target = torch.randn(8, 3, 2, 2), torch.randint(3, (8,))
        >>> mixup_fn = ManifoldMixupFn(model, "2", num_classes=3, example=images)
        >>> from timm.loss import SoftTargetCrossEntropy
        >>> images, target = mixup_fn(images, target)
        >>> loss = SoftTargetCrossEntropy()(model(images), target)

    Each call begins a step, which ends with the next forward pass of the model, and raises there
    unless it was mixed. Images come back as they are, targets as timm's losses for soft targets
    expect them. Set `mixup_enabled` to False to go on without mixing, as timm's script does.

    Args:
        model: The model that the loop calls, wrapped (`DistributedDataParallel`, compiled) or not.
        layers: What to mix, by name, as in `ManifoldMixup`.
        num_classes: C.
        label_smoothing: Of the targets, timm's default.
        **options: Further arguments of `ManifoldMixup`, such as `alpha`.

    Raises:
        ValueError: As in `ManifoldMixup`; or a class index lies outside [0, C).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Entry | list[Entry],
        num_classes: int,
        *,
        label_smoothing: float = 0.1,
        **options: Any,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixup_enabled = True
        self.mixup = ManifoldMixup(model, layers, **options)
        self._step: AbstractContextManager[Mix] | None = None
        self._handle = model.register_forward_hook(self._end, always_call=True)

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Begin a step.

        Args:
            x: Images (B, *).
            target: Class indices (B,), or probabilities of the classes or labels (B, C).

        Returns:
            The images as they are, and the targets to match what the step will mix (B, C).

        Raises:
            RuntimeError: The model was not called since the last call.
        """
        mix = Mix.identity(len(target))
        if self.mixup_enabled:
            step = self.mixup(target)
            mix = step.__enter__()
            self._step = step
        one_hot = None if target.is_floating_point() else self.num_classes
        mixed = mix.target(target, num_classes=one_hot)
        smoothed = mixed * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        return x, smoothed

    def detach(self) -> None:
        """Remove the hooks."""
        self._handle.remove()
        self.mixup.detach()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(None, None, None)
