"""Whether layers can be mixed, by a dry run of the model: an error, a warning, or nothing."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.hooks.dependence import unmixed_inputs
from manifold_mixup.hooks.masks import MaskHooks, unnamed_masks
from manifold_mixup.inspection import (
    Inputs,
    Layer,
    Output,
    Trace,
    TrainingLook,
    arguments,
    bypass,
    changes_output,
    defect,
    entry_name,
    example_input,
    is_chosen,
    is_in_graph,
    trace,
    unwrap,
)
from manifold_mixup.mixing import Mix


class Preflight:
    """Judges the layers of a `ManifoldMixup`.

    Args:
        model: The model, wrapped or not.
        entries: The layers, those that are mixed together in one entry.
        output: Which of their outputs are mixed.
        sample: Draws mixes of the kind that is applied.
        exclude: Classes that take no part.
        masks: What joins masks behind the layers, if anything does.
    """

    def __init__(
        self,
        model: nn.Module,
        entries: list[tuple[Layer, ...]],
        output: Output,
        sample: Callable[..., Mix],
        exclude: tuple[int, ...],
        masks: MaskHooks | None,
    ) -> None:
        self._given, self._model = model, unwrap(model)
        self._entries, self._output, self._sample = entries, output, sample
        self._exclude, self._masks = exclude, masks
        self.has_seen_training = False

    def try_now(self, example: Any) -> bool:
        """Try the model at once if there is something to try it on, and tell whether there is."""
        if example is not None:
            self(self._trace_example(example), *arguments(example))
            return True
        guess = example_input(self._model)
        if guess is None:
            _refuse_compiled(self._given)
            return False
        try:
            found = trace(self._model, (guess,), {})
        except Exception:  # the size told does not fit: the first step has a real input
            return False
        self(found, (guess,), {})
        return True

    def _trace_example(self, example: Any) -> Trace:
        try:
            return self.trace(*arguments(example))
        except Exception as error:
            raise ValueError(
                f"{type(self._model).__name__} fails on the example given: {error}"
            ) from error

    def trace(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
        """A dry run of the model; a ValueError where it takes a graph, of which none can be."""
        try:
            return trace(self._model, args, kwargs)
        except Exception as error:
            if not _is_graph([*args, *kwargs.values()]):
                raise
            raise ValueError(
                f"{type(self._model).__name__} takes a graph (edge_index): its rows are nodes, "
                "not samples, so that its layers cannot be mixed; pool the nodes, and apply a Mix "
                "of your own to the graphs' features"
            ) from error

    def __call__(self, found: Trace, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise or warn by what a dry run of the model on some input showed."""
        for entry in self._entries:
            if problem := defect(found, entry, self._output):
                raise ValueError(f"{type(self._model).__name__}: {problem}")
            self._check_kind(found, entry)
            layers = [layer.module for layer in entry if not layer.is_input]
            if not layers or is_in_graph(found, entry, self._output):
                continue
            if not changes_output(self._model, args, kwargs, layers, self._is_mixed):
                raise ValueError(
                    f"{type(self._model).__name__}: mixing at {entry_name(entry)!r} does not "
                    "change what the model returns; choose another layer"
                )
        inputs = (args, dict(kwargs))
        if self._masks is None:
            problems = [unnamed_masks(self._model, self._entries, inputs)]
        else:
            problems = [self._masks.preflight(found, self._entries, inputs)]
        problems += [self._unknown_class(found)]
        bypasses = [bypass(found, entry, self._output) for entry in self._entries]
        beside = self._unmixed_inputs(inputs)
        problems += bypasses if any(bypasses) else [*beside, *self._in_training(args, kwargs)]
        self._warn(problems)

    def look_in_training(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise or warn by what the model does in training mode alone."""
        beside = self._unmixed_inputs((args, dict(kwargs)))
        self._warn([*beside, *self._in_training(args, kwargs)])

    def _warn(self, problems: Iterable[str | None]) -> None:
        for problem in filter(None, problems):
            warnings.warn(f"{type(self._model).__name__}: {problem}", stacklevel=5)

    def _unmixed_inputs(self, inputs: Inputs) -> list[str]:
        """What is wrong with the first entry behind which integers of the model's inputs count.

        Raises:
            ValueError: A margin depends on the targets, behind any entry.
        """
        masks = self._masks
        joined = {entry: masks.takers(entry) if masks else {} for entry in self._entries}
        known = masks.name if masks else None
        try:
            problems = [unmixed_inputs(self._model, e, inputs, joined[e], known) for e in joined]
        except ValueError as error:
            raise ValueError(f"{type(self._model).__name__}: {error}") from error
        return [problem for problem in problems if problem][:1]

    def _in_training(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
        """What is left unmixed in training mode, if the model is in it and can run on the input.

        Raises:
            ValueError: A layer sees the samples in another order there.
        """
        name = type(self._model).__name__
        layers = [one for entry in self._entries for one in entry if not one.is_input]
        if not self._model.training:
            return []
        self.has_seen_training = True
        try:
            look = TrainingLook(self._model, args, kwargs, layers, self._is_mixed)
        except Exception:  # it wants targets there, for instance
            return []
        for layer in layers:
            if look.is_shuffled(layer):
                self.has_seen_training = False
                raise ValueError(
                    f"{name}: layer '{layer.name}' returns samples in another order than the "
                    "model takes them in training mode: the targets would be those of others; "
                    "choose a layer outside of the shuffle"
                )
        return [
            f"in training mode, what the model returns at {', '.join(map(repr, paths))} does not "
            f"come from layer {entry_name(entry)!r}: its targets would be mixed though its "
            "features are not; choose an earlier layer, or give its loss the plain targets"
            for entry in self._entries
            if not any(layer.is_input for layer in entry) and (paths := look.unmixed(entry))
        ]

    def _unknown_class(self, found: Trace) -> str | None:
        """What is wrong with an excluded class for which the model has no output; else None."""
        width = max((shape[1] for shape in found.shapes if len(shape) > 1), default=1)
        if not self._exclude or width == 1 or self._exclude[-1] < width:
            return None
        return (
            f"exclude names class {self._exclude[-1]}, but the model returns {width} values for a "
            f"sample: if these are its classes, they are 0 to {width - 1}"
        )

    def _check_kind(self, found: Trace, entry: tuple[Layer, ...]) -> None:
        """Raise a ValueError if this kind of mix cannot be applied to what the layers return."""
        trial = self._sample(2, generator=torch.Generator())
        for layer in (layer for layer in entry if not layer.is_input):
            for path, leaf in found.run(layer.name).leaves.items():
                if not is_chosen(path, leaf.dtype, self._output):
                    continue
                try:
                    trial.check(torch.empty(leaf.shape, dtype=leaf.dtype, device="meta"))
                except (TypeError, ValueError) as error:
                    name = type(self._model).__name__
                    raise ValueError(f"{name}: layer '{layer.name}': {error}") from error

    def _is_mixed(self, path: str, tensor: Tensor) -> bool:
        return is_chosen(path, tensor.dtype, self._output)


def _is_graph(values: list[Any]) -> bool:
    """Whether a model was given pairs of nodes (2, E), or an object that holds some."""
    edges = [getattr(value, "edge_index", value) for value in values]
    return any(
        isinstance(e, Tensor) and e.dtype == torch.int64 and e.ndim == 2 and len(e) == 2
        for e in edges
    )


def _refuse_compiled(model: nn.Module) -> None:
    """Raise a ValueError for a compiled model: it shows no first input to trace it on."""
    if any(
        m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in model.modules()
    ):
        raise ValueError(
            f"{type(unwrap(model)).__name__} is compiled and does not tell its input size; pass "
            "example=, a batch (B, *)"
        )
