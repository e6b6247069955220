"""Masks of padded batches: where hidden states are mixed, a sample's and its partner's joined."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from manifold_mixup.hooks.dependence import (
    changes_behind,
    differing_samples,
    exchanged,
    quoted,
)
from manifold_mixup.hooks.hook import MixHook
from manifold_mixup.inspection import (
    Argument,
    Inputs,
    Layer,
    Trace,
    ancestors,
    arguments_of,
    named_layers,
    unwrap,
)
from manifold_mixup.mixing import Mix


def join_masks(mask: Tensor, mix: Mix, *, marks_padding: bool = False) -> Tensor:
    """Join masks where hidden states are mixed: a token counts if it counts in either sample.

        mask[i]  ->  mask[i] or mask[partner[i]]

    Where lam is 1, only the sample's own tokens count; where it is 0, only its partner's.
    `ManifoldMixup(..., mask=)` does this for the layers behind the mixed one; in your own code,
    as when pooling the last hidden states, call it with the step's mix.

    Args:
        mask: (B, T) or (B, *), larger where a token counts: boolean, 0 and 1, or additive (0 where
            it counts, else a large negative number). One of shape (1, *) is for all samples.
            Or lengths (B,), of which the longer one counts.
        mix: The mix that was applied to the hidden states.
        marks_padding: A boolean or integer mask marks what does not count, as a
            `key_padding_mask` of torch does. Floating-point ones are additive there too.

    Returns:
        The joined mask, of the same shape and dtype.

    Raises:
        ValueError: Its first axis is not the batch.

    Example:
        >>> mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
        >>> join_masks(mask, Mix(0.75, [1, 0]))
        tensor([[1, 1, 1],
                [1, 1, 1]])
    """
    if mask.ndim == 0 or len(mask) not in (1, len(mix)):
        raise ValueError(
            f"mix of {len(mix)} samples, but a mask of shape {tuple(mask.shape)}: the first axis "
            "must be the batch"
        )
    if len(mask) != len(mix):
        return mask
    other = mask[mix.partner.to(mask.device)]
    join = torch.minimum if marks_padding and not mask.is_floating_point() else torch.maximum
    lam = mix.lam.to(mask.device).view(-1, *[1] * (mask.ndim - 1))
    return torch.where(lam == 1, mask, torch.where(lam == 0, other, join(mask, other)))


class MaskHook(MixHook):
    """Joins the mask that a layer behind the mixed one takes."""

    def __init__(self, name: str, argument: str, module: nn.Module) -> None:
        super().__init__(name, None)
        self.argument = Argument(argument, module)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What the layer takes, its mask joined; None leaves it as it is."""
        mix = self.current(module)
        mask = self.argument.get(args, kwargs)
        if mix is None or mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise TypeError(
                f"'{self.argument.name}' of '{self.name}' is a {type(mask).__name__}, which "
                "cannot be joined; use an attention that takes a tensor, such as sdpa"
            )
        try:
            joined = join_masks(mask, mix, marks_padding="pad" in self.argument.name)
        except ValueError as error:
            raise ValueError(f"'{self.argument.name}' of '{self.name}': {error}") from error
        return self.argument.replace(args, kwargs, joined)


class MaskHooks:
    """The hooks of all modules that take a mask by one name, and which of them a step needs.

    Those are the outermost ones behind the mixed layers: what lies inside gets the joined mask
    from there. Layers before the mixed ones keep each sample's own.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self._model = unwrap(model)
        modules = {type(self._model).__name__: self._model, **named_layers(model)}
        taking = {n: m for n, m in modules.items() if name in arguments_of(m)}
        if not taking:
            known = {a: None for m in modules.values() for a in arguments_of(m) if "mask" in a}
            hint = f"; they take {', '.join(map(repr, known))}" if known else ""
            raise ValueError(
                f"{type(self._model).__name__}: no layer takes the mask '{name}'{hint}"
            )
        self._hooks = {id(m): (m, MaskHook(n, name, m)) for n, m in reversed(taking.items())}
        self._needed: dict[tuple[Layer, ...], set[int]] = {}

    def register(self) -> Iterator[RemovableHandle]:
        """Attach the hooks, at rest, one after the other."""
        for module, hook in self._hooks.values():
            yield module.register_forward_pre_hook(hook, with_kwargs=True)

    def preflight(
        self, found: Trace, entries: list[tuple[Layer, ...]], inputs: Inputs
    ) -> str | None:
        """Note which modules each entry needs; tell what else behind one depends on the mask.

        Raises:
            ValueError: No layer behind takes the mask, although something there depends on it.
        """
        taking = {entry: takers_behind(found, entry, self.name) for entry in entries}
        self._needed = {entry: {id(m) for m in takers} for entry, takers in taking.items()}
        for entry, takers in taking.items():
            if not depends_on_masks(self._model, entry, inputs, self.name, takers):
                continue
            if not takers:
                raise ValueError(
                    f"{type(self._model).__name__}: what comes behind layer {quoted(entry)} "
                    f"depends on a mask, but no layer there takes '{self.name}'; pass mask= with "
                    "the name by which they take it"
                )
            return (
                f"what comes behind layer {quoted(entry)} depends on the mask beside what layers "
                f"take as '{self.name}', and sees each sample's own there; pool in a module that "
                f"takes '{self.name}', or use join_masks(mask, mix)"
            )
        return None

    def takers(self, entry: tuple[Layer, ...]) -> dict[nn.Module, Argument]:
        """The modules that join their masks behind an entry, and the argument by which they do."""
        hooks = (self._hooks[key] for key in self._needed.get(entry, ()))
        return {module: hook.argument for module, hook in hooks}

    def begin(self, entry: tuple[Layer, ...], mix: Mix) -> None:
        """Start a step in which an entry is mixed."""
        needed = self._needed.get(entry, set())
        for key in set().union(*self._needed.values()):
            hook = self._hooks[key][1]
            hook.begin(mix if key in needed else hook.idle_like(mix), is_drawn=key in needed)

    def end(self) -> None:
        """End a step."""
        for _, hook in self._hooks.values():
            hook.mix = None

    def check_fired(self, entry: tuple[Layer, ...]) -> None:
        """Raise a RuntimeError if the layers that should have joined their masks never ran."""
        needed = [self._hooks[key][1] for key in self._needed.get(entry, ())]
        if needed and not any(hook.calls for hook in needed):
            raise RuntimeError(
                f"layer '{needed[0].name}' should have joined '{self.name}' in this step, but did "
                "not run: do not use this loss; if it was replaced in the model, attach a new "
                "ManifoldMixup"
            )


def unnamed_masks(
    model: nn.Module, entries: list[tuple[Layer, ...]], inputs: Inputs
) -> str | None:
    """What is wrong with mixing where padded samples keep their own masks; None if nothing is."""
    padded = [n for n, mask in given_masks(model, inputs).items() if (mask != mask.max()).any()]
    for entry in entries if padded else ():
        if depends_on_masks(model, entry, inputs):
            return (
                f"what comes behind layer {quoted(entry)} depends on '{padded[0]}', and sees each "
                "sample's own there, not its partner's tokens; join the masks by mask=, with the "
                f"name by which the layers take it, such as mask='{padded[0]}'"
            )
    return None


def takers_behind(found: Trace, entry: tuple[Layer, ...], name: str) -> list[nn.Module]:
    """The outermost modules behind the mixed layers that take an argument of this name."""
    if any(layer.is_input for layer in entry) and name in arguments_of(found.model):
        return [found.model]
    taking = {n: m for n, m in found.layers.items() if name in arguments_of(m)}
    behind = {n: m for n, m in taking.items() if any(_is_behind(found, n, e) for e in entry)}
    inside = {n for n in behind if any(n.startswith(f"{outer}.") for outer in behind)}
    return [module for n, module in behind.items() if n not in inside]


def _is_behind(found: Trace, name: str, layer: Layer) -> bool:
    run = found.run(name)
    if layer.is_input:
        return run.started is not None
    mixed = found.run(layer.name)
    if run.started is None or mixed.ended is None or run.started < mixed.ended:
        return False
    nodes, mixed_nodes = (
        {leaf.node for leaf in r.leaves.values() if leaf.node is not None} for r in (run, mixed)
    )
    return not (nodes and mixed_nodes) or not mixed_nodes.isdisjoint(ancestors(nodes))


def given_masks(model: nn.Module, inputs: Inputs, name: str | None = None) -> dict[str, Tensor]:
    """The model's inputs called like the mask, or, if there is none, like any mask."""
    arguments = [Argument(a, model) for a in arguments_of(model)]
    given = {a.name: a.get(*inputs) for a in arguments} | inputs[1]
    given = {n: value for n, value in given.items() if isinstance(value, Tensor) and value.ndim}
    masks = {n: value for n, value in given.items() if n == name or "mask" in n}
    return {name: masks[name]} if name in masks else masks


def depends_on_masks(
    model: nn.Module,
    entry: tuple[Layer, ...],
    inputs: Inputs,
    name: str | None = None,
    takers: Iterable[nn.Module] = (),
) -> bool:
    """Whether what comes behind some layers depends on the model's masks beside what takers get.

    False where that cannot be told; see `changes_behind`.
    """
    takers = list(takers)
    masks = given_masks(model, inputs, name)
    if any(layer.is_input for layer in entry):  # of numbers, output= says what is mixed
        masks = {n: mask for n, mask in masks.items() if not mask.is_floating_point()}
    if model in takers or not masks:
        return False
    two, _ = differing_samples(inputs, next(iter(masks.values())))
    replayed = {module: Argument(str(name), module) for module in takers}
    given = given_masks(model, two, name)
    others = _other_masks(model, two, {n: given[n] for n in masks})
    return any(changes_behind(model, entry, two, other, replayed) for other in others)


def _other_masks(model: nn.Module, inputs: Inputs, masks: dict[str, Tensor]) -> list[Inputs]:
    """Inputs of two samples in which the last marks of masks differ, or one has other lengths."""
    if all(_marks(mask) for mask in masks.values()):
        other = inputs
        for name, mask in masks.items():
            changed = mask.clone()
            last = changed[..., -1:]
            changed[..., -1:] = ~last if mask.dtype == torch.bool else 1 - last
            other = Argument(name, model).replace(*other, changed)
        return [other]
    return [
        Argument(name, model).replace(*inputs, values)
        for name, mask in masks.items()
        for values in exchanged(mask)
    ]


def _marks(mask: Tensor) -> bool:
    """Whether it tells of each token whether it counts, as no lengths do."""
    return mask.dtype == torch.bool or mask.is_floating_point() or int(mask.max()) <= 1
