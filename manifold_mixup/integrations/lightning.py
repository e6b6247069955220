"""Manifold mixup in a Lightning `Trainer`: a callback, and a step of it in `training_step`."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.hooks import ManifoldMixup
from manifold_mixup.inspection import Entry
from manifold_mixup.mixing import Mix

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_warn
except ImportError as error:
    raise ImportError(
        f'{error}; Lightning comes with the extra: pip install "manifold-mixup[lightning]"'
    ) from error


class ManifoldMixupCallback(Callback):  # type: ignore[misc]  # Lightning counts as untyped
    """Mix at named layers in the training steps of a `LightningModule`.

        mixup = ManifoldMixupCallback("layer4", model="model", alpha=0.4)

        class Classifier(LightningModule):
            def training_step(self, batch, batch_idx):
                images, target = batch
                with mixup(target) as mix:
                    return mixed_loss(self.model(images), target, mix)

        Trainer(callbacks=mixup).fit(Classifier(), dataloader)

    It is attached while the trainer fits, and detached however that ends. A checkpoint holds the
    generators of all ranks, so that each goes on drawing its own mixes. With Fabric there is
    nothing to call back: use `ManifoldMixup` itself.

    Args:
        layers: What to mix, by name, as in `ManifoldMixup`.
        model: Which attribute of the `LightningModule` is called with the batch's inputs, and has
            these layers; None if it is the `LightningModule` itself.
        **options: Further arguments of `ManifoldMixup`, such as `alpha`.

    Raises:
        ValueError: When the fit begins, as in `ManifoldMixup`.
    """

    def __init__(
        self, layers: Entry | list[Entry], *, model: str | None = None, **options: Any
    ) -> None:
        self.layers, self.model, self.options = layers, model, options
        self.mixup: ManifoldMixup | None = None
        self._state: Tensor | None = None  # where it was when a fit ended
        self._states: list[Tensor | None] = []  # those of a checkpoint

    def __call__(self, target: Any) -> AbstractContextManager[Mix]:
        """One step, as that of `ManifoldMixup`.

        Raises:
            RuntimeError: The trainer does not fit, or does not know the callback.
        """
        if self.mixup is None:
            raise RuntimeError(
                "this callback is not in a fit: pass it to the Trainer, as in "
                "Trainer(callbacks=mixup), and call it in training_step alone"
            )
        return self.mixup(target)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, and go on drawing from where a checkpoint was written."""
        model = pl_module if self.model is None else pl_module.get_submodule(self.model)
        self.mixup = ManifoldMixup(model, self.layers, **self.options)
        states, self._states = self._states, []
        if states and len(states) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint holds the generators of {len(states)} ranks, this fit has "
                f"{trainer.world_size}: mixes are drawn anew from the seed"
            )
        elif states and states[trainer.global_rank] is not None:
            self.mixup.load_state_dict({"generator": states[trainer.global_rank]})

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Detach."""
        self._detach()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """The generators of all ranks; every rank has to ask for it, as Lightning does."""
        own = self._state if self.mixup is None else self.mixup.state_dict()["generator"]
        states = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, own)
        return {"generators": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on drawing from there in the next fit, if it has as many ranks."""
        self._states = state_dict["generators"]

    def _detach(self) -> None:
        if self.mixup is not None:
            self._state = self.mixup.state_dict()["generator"]
            self.mixup.detach()
            self.mixup = None
