"""Manifold mixup in a fastai `Learner`: one callback."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from manifold_mixup.hooks import ManifoldMixup
from manifold_mixup.inspection import Entry, eval_mode
from manifold_mixup.mixing import Mix, mixed_loss
from manifold_mixup.models import keep_frozen

try:
    from fastai.callback.core import (
        Callback,
        CancelBatchException,
        CancelEpochException,
        CancelFitException,
        CancelTrainException,
        CancelValidException,
    )
    from fastai.learner import Metric
except ImportError as error:
    raise ImportError(
        f'{error}; fastai comes with the extra: pip install "manifold-mixup[fastai]"'
    ) from error

# What fastai goes on from by itself.
_CANCELLED = (
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
    CancelValidException,
)
# Batches of an epoch, about, whose clean loss is measured.
_MEASURED = 8


class ManifoldMixupCallback(Callback):  # type: ignore[misc]  # fastai is not typed
    """Mix at named layers in the training batches of a fastai `Learner`.

        learn = vision_learner(dls, resnet18, cbs=ManifoldMixupCallback("0.7", alpha=0.4))
        learn.fine_tune(3)

    Every training batch is one step of `ManifoldMixup`, its loss that of `mixed_loss` with the
    learner's own loss function. Validation, `predict` and `get_preds` are as without it, and so is
    the learner after each fit, an interrupted one too. The training loss is that of mixed samples,
    which lies above the validation loss as a rule; the column ``clean_train_loss`` tells that of
    some of the epoch's batches unmixed, in eval mode.
    What `freeze` froze stays so where fastai would train its BatchNorms (`train_bn`).

    Args:
        layers: What to mix, by name, as in `ManifoldMixup`.
        clean_loss: Whether to measure the loss of unmixed batches, about 8 of each epoch.
        **options: Further arguments of `ManifoldMixup`, such as `alpha`.

    Raises:
        ValueError: When a fit begins, as in `ManifoldMixup`; or a batch has not one target.
    """

    # Behind what changes the batch, ahead of the Recorder, which asks for the metrics' names.
    order, run_valid = 45, False

    def __init__(
        self, layers: Entry | list[Entry], *, clean_loss: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self.layers, self.clean_loss, self.options = layers, clean_loss, options
        self._mixup: ManifoldMixup | None = None
        self._state: dict[str, Any] = {}
        self._open: AbstractContextManager[Mix] | None = None
        self._own_loss: Any = None
        self._own_metrics: Any = None
        self._clean = _CleanTrainLoss()

    def before_fit(self) -> None:
        """Attach, and see to it that nothing stays should the fit be interrupted."""
        keep_frozen(self.learn.model)
        self._mixup = ManifoldMixup(self.learn.model, self.layers, **self.options)
        if self._state:  # a second fit goes on drawing
            self._mixup.load_state_dict(self._state)
        if self.clean_loss:
            self._own_metrics = self.learn.metrics
            self.learn.metrics = [*self._own_metrics, self._clean]
        # A KeyboardInterrupt calls no event.
        self.learn._do_epoch = self._left_clean(self.learn._do_epoch)

    def before_train(self) -> None:
        """Begin to measure anew."""
        self._clean.losses = []

    def before_batch(self) -> None:
        """Begin a step."""
        assert self._mixup is not None
        if len(self.learn.yb) != 1:
            raise ValueError(f"a batch has {len(self.learn.yb)} targets, expected one")
        if self.clean_loss and self.iter % max(1, self.n_iter // _MEASURED) == 0:
            self._clean.losses.append(self._loss_of_clean())
        self._open = self._mixup(self.learn.yb[0])
        mix, criterion = self._open.__enter__(), self.learn.loss_func
        self._own_loss = criterion
        self.learn.loss_func = lambda pred, target: mixed_loss(pred, target, mix, criterion)

    def after_loss(self) -> None:
        """End the step, with an error unless it mixed, before anything learns from it."""
        step, self._open = self._open, None
        self._restore_loss()
        if step is not None:
            step.__exit__(None, None, None)

    def after_cancel_batch(self) -> None:
        """Leave a step that ended early."""
        self._leave_step()

    def after_fit(self) -> None:
        """Detach, and leave the learner as it was."""
        self._leave_step()
        self.learn.__dict__.pop("_do_epoch", None)
        if self._own_metrics is not None:
            self.learn.metrics, self._own_metrics = self._own_metrics, None
        if self._mixup is not None:
            self._state = self._mixup.state_dict()
            self._mixup.detach()
            self._mixup = None

    def _leave_step(self) -> None:
        self._open = None
        if self._mixup is not None:
            self._mixup.end()
        self._restore_loss()

    def _restore_loss(self) -> None:
        if self._own_loss is not None:
            self.learn.loss_func, self._own_loss = self._own_loss, None

    def _left_clean(self, run: Callable[[], None]) -> Callable[[], None]:
        def run_and_leave() -> None:
            try:
                run()
            except _CANCELLED:
                raise
            except BaseException:
                self.after_fit()
                raise

        return run_and_leave

    @torch.no_grad()
    def _loss_of_clean(self) -> float:
        with eval_mode(self.learn.model):
            loss: Tensor = self.learn.loss_func(self.learn.model(*self.learn.xb), *self.learn.yb)
        return float(loss.mean())


class _CleanTrainLoss(Metric):  # type: ignore[misc]
    """The mean loss of the unmixed batches that were measured, as a column of fastai's table."""

    name = "clean_train_loss"

    def __init__(self) -> None:
        self.losses: list[float] = []

    @property
    def value(self) -> float | None:
        return sum(self.losses) / len(self.losses) if self.losses else None
