"""Manifold mixup in the `Trainer` of Transformers: a trainer that takes a layer."""

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup._random import seeded_generator
from manifold_mixup.hooks import ManifoldMixup
from manifold_mixup.inspection import Entry
from manifold_mixup.mixing import mixed_loss

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        f'{error}; Transformers comes with the extra: pip install "manifold-mixup[transformers]"'
    ) from error

Loss = Callable[[Tensor, Tensor], Tensor]


class ManifoldMixupTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that mixes at named layers of a model that classifies images or texts.

        trainer = ManifoldMixupTrainer(model, args, train_dataset=data,
                                       layer="bert.encoder.layer.9", mask="attention_mask")
        trainer.train()

    Only training is mixed; evaluation and prediction are the `Trainer`'s own. The loss is what the
    model itself takes for its `problem_type`, as a mean over all samples of a step of the
    optimizer, in however many pieces they come. Each step draws from the seed of the arguments,
    its own number and rank, so that a training that is resumed draws what it would have drawn.

    Args:
        *args: Those of `Trainer`.
        layer: What to mix, by name, as in `ManifoldMixup`.
        alpha: Of lam ~ Beta(alpha, alpha).
        mask: Name of the padding mask, as in `ManifoldMixup`: texts of different lengths need it.
        criterion: A loss with a mean, in place of the model's own.
        mixup: Further arguments of `ManifoldMixup`.
        **kwargs: Those of `Trainer`.

    Raises:
        ValueError: `compute_loss_func` is given; or, in the first step, as in `ManifoldMixup`.
    """

    def __init__(
        self,
        *args: Any,
        layer: Entry | list[Entry],
        alpha: float = 0.4,
        mask: str | None = None,
        criterion: Loss | None = None,
        mixup: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func= computes a loss of its own, which cannot be mixed; pass "
                "criterion=, a function of logits and labels"
            )
        self.layer, self.criterion = layer, criterion
        self.mixup_options = {
            "alpha": alpha,
            "mask": mask,
            "seed": self.args.seed,
            **(mixup or {}),
        }
        self._mixup: ManifoldMixup | None = None
        self._drawn_for = -1

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and detach however that ends."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._mixup is not None:
                self._mixup.detach()
                self._mixup = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of mixed samples in training, else that of `Trainer`."""
        if not (model.training and "labels" in inputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        own = {name: value for name, value in inputs.items() if name != "labels"}
        with self._attached(model)(labels) as mix:
            outputs = model(**own)
        loss = mixed_loss(outputs["logits"], labels, mix, self.criterion or self._own_loss(labels))
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            # What Trainer then expects is a part of the mean over all pieces, and all ranks.
            loss = loss * labels.ne(-100).sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _attached(self, model: nn.Module) -> ManifoldMixup:
        if self._mixup is None:
            self._mixup = ManifoldMixup(model, self.layer, **self.mixup_options)
            self._drawn_for = -1
        if self.state.global_step != self._drawn_for:
            self._drawn_for = self.state.global_step
            own = (self.mixup_options["seed"], self._drawn_for, self.args.process_index)
            generator = seeded_generator(*own, "transformers")
            self._mixup.load_state_dict({"generator": generator.get_state()})
        return self._mixup

    def _own_loss(self, labels: Tensor) -> Loss:
        """What the model itself would take, see its `problem_type`."""
        config = self.accelerator.unwrap_model(self.model).config
        kind = config.problem_type
        if kind == "regression" or (kind is None and config.num_labels == 1):
            return F.mse_loss
        if kind == "multi_label_classification" or labels.is_floating_point():
            return F.binary_cross_entropy_with_logits
        smoothing = self.args.label_smoothing_factor
        return functools.partial(F.cross_entropy, label_smoothing=smoothing)
