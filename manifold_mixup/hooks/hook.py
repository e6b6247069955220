"""The hooks that mix: one for a layer's output, one for a model's input."""

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from manifold_mixup.inspection import (
    Output,
    arguments_of,
    find_missing,
    find_tensors,
    is_chosen,
    map_tensors,
)
from manifold_mixup.mixing import Mix

_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", bool)  # torch >= 2.7


_NO_EXPORT = "do not trace or export a model inside a step, the mix would become a part of it"


STILL_OPEN = (
    "if this pass does not belong to the step, the step is still open: leave its `with` block, "
    "or call end()"
)


TOO_OFTEN = (
    "run the model once in a step, and choose a layer that runs once; for several passes on one "
    "batch, as SAM and L-BFGS make them, say mixup(target, passes=2), or passes=None for any "
    f"number; {STILL_OPEN}"
)


class Terms:
    """What a step was begun for: other passes do not belong to it.

    Args:
        model: The model, whose mode and whose gradients stay what they are now.
        passes: How often it is going to run, None being any number.
    """

    def __init__(self, model: nn.Module, passes: int | None) -> None:
        self.model, self.passes = model, passes
        self.trains, self.has_gradients = model.training, torch.is_grad_enabled()

    def check(self) -> None:
        """Raise a RuntimeError where a pass is of another mode, or without gradients."""
        if self.trains and not self.model.training:
            raise RuntimeError(
                "the model was in training mode when this step began, and is in evaluation mode "
                f"now: set the mode before the step; {STILL_OPEN}"
            )
        if self.has_gradients and not torch.is_grad_enabled() and not _is_in_function():
            raise RuntimeError(
                "this step began with gradients, and the model runs without: begin it under "
                f"no_grad too; {STILL_OPEN}"
            )


def _is_in_function() -> bool:
    """Whether an autograd function runs, such as a reentrant checkpoint: it has no gradients."""
    if torch.compiler.is_compiling():
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("ctx"), FunctionCtx):
            return True
        frame = frame.f_back
    return False


class InertInCopies:
    """A hook that becomes one that does nothing in a copy or a saved model."""

    @property
    def __name__(self) -> str:
        """What torch.jit.script asks for first, to compile the hook; there is none."""
        raise AttributeError(
            "torch.jit.script cannot compile a model to which a ManifoldMixup is attached; "
            "call its detach() before"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return do_nothing

    def __reduce__(self) -> Any:
        return _inert, ()


def do_nothing(*inputs: Any) -> None:
    """The hook in a copy of the model."""


def _inert() -> Callable[..., None]:
    return do_nothing


class MixHook(InertInCopies):
    """Mixes with `mix` while it is set, and likewise when checkpointing recomputes that step.

    Of several layers the drawn one mixes. In a compiled graph the others mix too, by a mix that
    changes nothing: so one graph serves all draws.
    """

    def __init__(self, name: str, output: Output) -> None:
        self.name = name
        self.output = output
        self.mix: Mix | None = None
        self.is_drawn = False
        self.calls = 0
        self.terms: Terms | None = None
        self._idle: Mix | None = None
        self._kept: Mix | None = None
        self._recomputed = 0
        self._ran_since = False

    def begin(self, mix: Mix | None, *, is_drawn: bool, terms: Terms | None = None) -> None:
        """Start a step, on terms if any, with this layer drawn or not; no mix keeps it at rest."""
        self.mix = mix
        self.is_drawn = is_drawn
        self.terms = terms
        self._kept = mix if is_drawn else None
        self.calls = self._recomputed = 0
        self._ran_since = False

    def idle_like(self, mix: Mix) -> Mix:
        """A mix of as many samples that changes nothing, this hook's own, as graphs expect."""
        if self._idle is None or len(self._idle) != len(mix):
            self._idle = mix.unmixed()
        return self._idle

    def current(self, module: nn.Module) -> Mix | None:
        """The mix for this call, if any; counts the call."""
        if torch.compiler.is_compiling():
            if self.mix is not None:
                if _is_exporting() or not torch.compiler.is_dynamo_compiling():
                    raise RuntimeError(f"layer '{self.name}': {_NO_EXPORT}")
                self._count()
            return self.mix
        if torch._C._current_graph_task_id() != -1:
            return self._for_recomputation()
        if self.mix is None or not self.is_drawn:
            self._ran_since = True
            return None
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError(f"layer '{self.name}': {_NO_EXPORT}")
        if getattr(module, "_is_replica", False):
            raise RuntimeError(
                f"layer '{self.name}': DataParallel splits the batch, so partners are elsewhere; "
                "use DistributedDataParallel"
            )
        self._count()
        return self.mix

    def _count(self) -> None:
        self.calls += 1
        if self.terms is None:
            return
        if self.terms.passes is not None and self.calls > self.terms.passes:
            raise RuntimeError(self._miscounted(self.terms.passes, TOO_OFTEN))
        self.terms.check()

    def check_calls(self, passes: int | None, advice: str) -> None:
        """Raise a RuntimeError, with advice, unless the layer ran once in each pass."""
        if self.calls < (passes or 1):
            raise RuntimeError(self._miscounted(passes, advice))
        if passes is not None and self.calls > passes:
            raise RuntimeError(self._miscounted(passes, TOO_OFTEN))

    def _miscounted(self, passes: int | None, advice: str) -> str:
        expected = {1: "exactly once", None: "at least once"}.get(passes, f"{passes} times")
        return (
            f"layer '{self.name}' ran {self.calls} times in this step, expected {expected}: "
            f"do not use this loss; {advice}"
        )

    def _for_recomputation(self) -> Mix | None:
        # Backward is running: activation checkpointing repeats a forward pass. Whose it is cannot
        # be seen, so it must be the last step's, or, after that, a later one's outside any step.
        is_done = self._recomputed >= max(1, self.calls)
        if self._kept is None or (self._ran_since and is_done):
            return None
        if self._ran_since or is_done:
            raise RuntimeError(
                f"layer '{self.name}' is recomputed by activation checkpointing, but not for the "
                "last step alone; call backward() once after each step, before any other forward "
                "(without one, begin a new step or detach first)"
            )
        self._recomputed += 1
        return self._kept

    def check_choice(self, tensors: dict[str, Tensor], what: str, output: Output) -> None:
        """Raise a TypeError unless `output` chooses among several tensors, each name one."""
        dtypes = {path: tensor.dtype for path, tensor in tensors.items()}
        missing = find_missing(dtypes, output)
        if missing or not any(is_chosen(path, d, output) for path, d in dtypes.items()):
            raise TypeError(
                f"layer '{self.name}' {what} ({', '.join(tensors)})"
                f"{f' without {missing[0]!r}' if missing else ''}; name what to mix by output="
            )

    def apply(self, mix: Mix, tensor: Tensor) -> Tensor:
        """Mix one tensor, with the layer's name in the error if that is impossible."""
        if torch.compiler.is_compiling():
            # Not mix(tensor), which recompiles for each mix in torch 2.6.
            return type(mix).__call__(mix, tensor)
        if mix.is_identity and tensor.ndim and len(tensor) == len(mix):
            return tensor
        try:
            return mix(tensor)
        except (TypeError, ValueError) as error:
            has_rows = tensor.ndim and not tensor.is_nested
            hint = f"; {STILL_OPEN}" if has_rows and len(tensor) != len(mix) else ""
            raise type(error)(f"layer '{self.name}': {error}{hint}") from error


class OutputHook(MixHook):
    """Mixes what a layer returns."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """What the layer returns, mixed; None leaves it as it is."""
        mix = self.current(module)
        if mix is None:
            return None
        if isinstance(output, Tensor):
            return self.apply(mix, output)
        kind = type(output).__name__
        self.check_choice(find_tensors(output), f"returns a {kind}", self.output)

        def mix_chosen(path: str, tensor: Tensor) -> Tensor:
            chosen = is_chosen(path, tensor.dtype, self.output)
            return self.apply(mix, tensor) if chosen else tensor

        return map_tensors(output, mix_chosen)


class InputHook(MixHook):
    """Mixes the floating-point tensors that a model takes, in dicts too; leaves all else alone."""

    def __init__(self, name: str, output: Output, model: nn.Module) -> None:
        super().__init__(name, output)
        self._arguments = arguments_of(model, by_position=True)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What the model takes, mixed; None leaves it as it is."""
        mix = self.current(module)
        if mix is None:
            return None
        given = {**{str(position): value for position, value in enumerate(args)}, **kwargs}
        chosen = self._chosen(self._tensors(given), self._by_position(len(args)))

        def mix_chosen(path: str, tensor: Tensor) -> Tensor:
            return self.apply(mix, tensor) if path in chosen else tensor

        # Not a union of types, which does not compile in torch 2.6.
        given = {
            name: map_tensors(value, mix_chosen, name)
            if isinstance(value, (Tensor, Mapping))
            else value
            for name, value in given.items()
        }
        args = tuple(given[str(position)] for position in range(len(args)))
        return args, {name: given[name] for name in kwargs}

    def _by_position(self, n: int) -> Output:
        """What to mix, with the names of the n arguments given by position turned into these."""
        if self.output is None or isinstance(self.output, int):
            return self.output
        names = [self.output] if isinstance(self.output, str) else self.output
        places = {name: str(i) for i, name in enumerate(self._arguments[:n])}
        parts = [str(name).partition(".") for name in names]
        return [places.get(first, first) + dot + rest for first, dot, rest in parts]

    def _chosen(self, tensors: dict[str, Tensor], output: Output) -> list[str]:
        """The paths of what to mix: the only floating-point tensor, or those that are named."""
        floating = {p: t for p, t in tensors.items() if t.is_floating_point() and t.ndim}
        if not floating:
            raise TypeError(
                "layer 'input': the model takes no floating-point tensor; mix the output of its "
                "embedding instead"
            )
        for name in find_missing({p: t.dtype for p, t in floating.items()}, output):
            for path, tensor in tensors.items():
                if is_chosen(path, tensor.dtype, name):
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    raise TypeError(
                        f"layer 'input': {path!r} holds {dtype} values, which cannot be mixed; "
                        "mix the output of its embedding instead"
                    )
        if len(floating) == 1:
            return list(floating)
        self.check_choice(floating, "takes several tensors", output)
        return [path for path, t in floating.items() if is_chosen(path, t.dtype, output)]

    def _tensors(self, value: Any, path: str = "") -> dict[str, Tensor]:
        """Every tensor in a tensor, or in a dict of them, by its path."""
        if isinstance(value, Tensor):
            return {path: value}
        if not isinstance(value, Mapping):
            if find_tensors(value):
                kind = type(value).__name__
                raise TypeError(f"layer 'input': a {kind} of tensors cannot be mixed; batch them")
            return {}
        below = [self._tensors(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()]
        return {inner: tensor for tensors in below for inner, tensor in tensors.items()}


class FirstInputHook(InertInCopies):
    """Shows every input of the model to a function."""

    def __init__(self, show: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> None:
        self.show = show

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Show an input; inside a compiled graph there is nothing to show."""
        if not torch.compiler.is_compiling():
            self.show(args, kwargs)
