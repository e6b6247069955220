"""A model cut in two behind a layer: a prefix that stops there, a tail that goes on from there."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.inspection import (
    Flow,
    Layer,
    Leaf,
    Run,
    Trace,
    arguments,
    bypass,
    defect,
    example_input,
    find_layers,
    find_tensors,
    map_tensors,
    named_layers,
    take_samples,
    trace,
    training_mode,
    undisturbed,
    unwrap,
)
from manifold_mixup.models.tail import Outline, Tail, build_tail


def cut(model: nn.Module, layer: str | nn.Module, example: Any = None) -> tuple["Prefix", Tail]:
    """Cut a model behind a layer, so that ``tail(prefix(x))`` is bit-equal to ``model(x)``.

    Both share the model's parameters, and the model is left as it was. The tail keeps the names of
    the model's layers: it trains (with dropout that its `forward` draws by a function, too),
    compiles, copies, and takes a `ManifoldMixup` as the model does.
    That the two halves give what the model gives is checked here, in eval mode, on two samples of
    the example.

    Args:
        model: Any module, wrapped or not.
        layer: Where to cut; what it returns has to be the only way forward.
        example: A batch of any size: a tensor (B, *), a tuple of positional or a dict of keyword
            arguments. May be left out where the model tells its input size.

    Returns:
        The prefix takes what the model takes. The tail takes what the prefix returned, and the
        model's inputs behind the first (attention masks, …) by the same names or positions.

    Raises:
        ValueError: The layer cannot be found, does not run exactly once, or something bypasses it,
            which the message names.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> prefix, tail = cut(model, "1", torch.randn(2, 4))
        >>> x = torch.randn(5, 4)
        >>> prefix(x).shape, torch.equal(tail(prefix(x)), model(x)), len(list(tail.parameters()))
        (torch.Size([5, 3]), True, 2)
    """
    example = example_input(model) if example is None else example
    if example is None:
        raise ValueError(
            f"{type(model).__name__} does not tell its input size; pass example=, a batch (B, *)"
        )
    entry = find_layers(model, layer)
    if len(entry) != 1 or entry[0].is_input:
        names = ", ".join(one.name for one in entry)
        raise ValueError(f"a model is cut at one layer, but {layer!r} stands for {names}")
    args, kwargs = arguments(example)
    try:
        found = trace(model, args, kwargs, keep=[entry[0].name])
    except Exception as error:
        name = type(unwrap(model)).__name__
        raise ValueError(f"{name} fails on the example to cut it by: {error}") from error
    name = entry[0].name
    tail = cut_traced(found, name, args, kwargs)
    return Prefix(found.model, name, _hidden_sizes(found.model, tail, name, args, kwargs)), tail


class Prefix(nn.Module):
    """A model up to a layer: takes what the model takes, returns what the layer returns.

    What comes after the layer does not run.

    Args:
        model: The model.
        layer: The layer's name.
        sizes: The shapes that each sample of an input has to have, by its path, where the tail
            needs them and the features do not tell them.
    """

    def __init__(
        self, model: nn.Module, layer: str, sizes: Mapping[str, torch.Size] | None = None
    ) -> None:
        super().__init__()
        self.model, self.layer, self.sizes = model, layer, sizes or {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns for these inputs.

        Raises:
            ValueError: They have another size than when the model was cut, and the tail needs it.
        """
        given = find_tensors((args, kwargs)) if self.sizes else {}
        for path, size in self.sizes.items():
            if path in given and given[path].shape[1:] != size:
                raise ValueError(
                    f"input of shape {tuple(given[path].shape)}, expected {tuple(size)} for a "
                    "sample as when the model was cut: what comes after "
                    f"'{self.layer}' uses the input's size, which the features do not tell; cut "
                    "it with an example of this size"
                )
        return run_until(self.model, [self.layer], *args, **kwargs)[self.layer]


def _hidden_sizes(
    model: nn.Module, tail: Tail, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, torch.Size]:
    """The inputs' sizes if the tail needs them and the features do not tell; else nothing.

    Found out on two samples that are one smaller, and one larger, along each axis.
    """
    two = take_samples((args, dict(kwargs)), [0, 1])
    for step in (-1, 1):
        other = map_tensors(two, partial(_resized, step))
        with suppress(Exception):  # the model takes no other size, or the features tell it
            expected, features = _run_plain(model, name, *other)
            tail._features.count(features)
            if _difference(tail, expected, features, *_behind(tail, *other)) is not None:
                return {p: t.shape[1:] for p, t in find_tensors(two).items() if t.ndim > 1}
    return {}


def _resized(step: int, path: str, tensor: Tensor) -> Tensor:
    """A tensor (B, C, *), or (B, T), with its last axes longer, repeated from their start."""
    for axis in range(min(2, tensor.ndim - 1), tensor.ndim) if tensor.ndim > 1 else ():
        n = tensor.shape[axis]
        rows = torch.arange(max(n + step, 1), device=tensor.device) % n
        tensor = tensor.index_select(axis, rows)
    return tensor


def changes_in_training(
    found: Trace, layer: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Whether a layer returns something else while what lies behind it is trained.

    So it is where a module around the layer does something in training alone before it, such as
    dropout by a function in its `forward`: unlike a module that ends before the layer, it cannot
    rest. Features that are stored are without that.

    Args:
        found: The dry run of the model.
        layer: Name of the layer.
        args: Positional inputs of a forward pass.
        kwargs: Its keyword inputs.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body = nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return self.body(nn.functional.dropout(x, 0.5, self.training))
        >>> model, x = Net(), torch.ones(2, 4)
        >>> changes_in_training(trace(model, (x,), {}), "body", (x,), {})
        True
    """
    with undisturbed(found.model), torch.no_grad():
        resting = find_tensors(run_until(found.model, [layer], *args, **kwargs))
        with training_mode(found.model, {}, found.modules_until(layer)):
            training = find_tensors(run_until(found.model, [layer], *args, **kwargs))
    return any(
        not torch.allclose(training[path], tensor, rtol=0, atol=1e-3 * float(tensor.abs().max()))
        for path, tensor in resting.items()
        if tensor.is_floating_point() and tensor.numel()
    )


class _Stop(BaseException):
    """Ends a forward pass; no Exception, which a model may catch."""


def run_until(model: nn.Module, names: Sequence[str], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Run a model until some layers have run, and no further.

    Args:
        model: The model, wrapped or not.
        names: Layers by name.
        args: The model's positional inputs.
        kwargs: Its keyword inputs.

    Returns:
        What each layer returned, by its name.

    Raises:
        RuntimeError: A layer did not run.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> {name: h.shape for name, h in run_until(model, ["0", "1"], torch.ones(2, 4)).items()}
        {'0': torch.Size([2, 3]), '1': torch.Size([2, 3])}
    """
    root, layers = unwrap(model), named_layers(model)
    returned: dict[str, Any] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        returned[name] = output
        if len(returned) == len(names):
            raise _Stop
        # What runs on may write to it in place.
        returned[name] = map_tensors(output, lambda _, tensor: tensor.clone())

    with ExitStack() as stack:
        for name in names:
            hook = layers[name].register_forward_hook(partial(keep, name))
            stack.callback(hook.remove)
        try:
            root(*args, **kwargs)
        except _Stop:
            return returned
    missing = next(name for name in names if name not in returned)
    raise RuntimeError(f"{type(root).__name__}: layer '{missing}' did not run")


@torch.inference_mode(False)
def cut_traced(found: Trace, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tail:
    """The tail of a model that was traced on these inputs, behind a layer kept; see `cut`."""
    model, run, layer = found.model, found.run(name), Layer(name, found.layers[name])
    varying = _varying(found, run)
    output = [path for path in varying if run.leaves[path].dtype.is_floating_point] or "all"
    if problem := defect(found, (layer,), output):
        raise ValueError(f"{type(model).__name__}: {problem}")
    args, kwargs = take_samples((args, dict(kwargs)), [0, 1])
    outline = Outline.of(run.value, run.leaves, run.leaves_for_three)
    inputs = _outlined(args, kwargs)
    # Few tails take what comes before the layer and is the same for all inputs: those run it anew.
    for runs_constants in (False, True):
        ended = _ended(found, layer, runs_constants)
        tail = build_tail(model, layer.module, outline, ended, inputs)
        problem = _problem(tail, found.output, run.value, args, kwargs)
        if problem is not None:  # with gradients, as in the dry run, a model may round otherwise
            problem = _problem(tail, *_run_plain(model, name, args, kwargs), args, kwargs)
        if problem is None:
            tail.used_before = _used_before(found, name, tail)
            return tail
    reason = bypass(found, (layer,), output) or f"layer '{layer.name}': {problem}"
    raise ValueError(f"{type(model).__name__} cannot be cut here: {reason}")


def _used_before(found: Trace, name: str, tail: Tail) -> dict[str, int]:
    """The parameters of a tail that are used before its layer too: their `id` by name."""
    modules = found.modules_before(name).values()
    before = {id(p) for module in modules for p in module.parameters(recurse=False)}
    own = tail.named_parameters(remove_duplicate=False)
    return {path: id(p) for path, p in own if id(p) in before}


def cut_layers(
    found: Trace, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Tail]:
    """The tails of a traced model behind some layers kept, by name; see `cut`."""
    # The last one first: a tail runs all behind its layer anew, and what modules keep of that
    # would hide that it bypasses a later layer.
    last_first = sorted(names, key=lambda name: found.run(name).ended or 0, reverse=True)
    tails = {name: cut_traced(found, name, args, kwargs) for name in last_first}
    return {name: tails[name] for name in names}


def _problem(
    tail: Tail, expected: Any, features: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """How the tail differs from the model, None if it does not; finds out what it needs.

    What modules have kept for later has to be that of other samples, as when tails are used.
    """
    # Most tails write to no stand-in, and few look at the tokens that the features came from.
    may_need_first = (False,) if next(iter(tail.inputs.values())).has_nan else (False, True)
    problem = None
    for needs_first, is_writable in itertools.product(may_need_first, (False, True)):
        tail.needs_first, tail.feed.is_writable = needs_first, is_writable
        problem = _difference(tail, expected, features, *_behind(tail, args, kwargs))
        if problem is None:
            break
    return problem


def _run_plain(
    model: nn.Module, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, Any]:
    """What model and layer return; then the samples swapped, up to the layer."""
    swapped = take_samples((args, dict(kwargs)), [1, 0])
    with undisturbed(model), torch.no_grad():
        features = run_until(model, [name], *args, **kwargs)[name]
        expected = model(*args, **kwargs)
        run_until(model, [name], *swapped[0], **swapped[1])
    return expected, features


def _behind(
    tail: Tail, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs that a tail takes, beside the features, of those that its model takes."""
    first = next(iter(tail.inputs))
    named = {**({first: args[0]} if args else {}), **kwargs}
    return args[1:], {n: v for n, v in named.items() if n != first or tail.needs_first}


def _varying(found: Trace, run: Run) -> list[str]:
    """The paths of what a module returned, but for what is the same for all inputs."""
    return [path for path, leaf in run.leaves.items() if not _is_constant(found, run, path, leaf)]


def _is_constant(found: Trace, run: Run, path: str, leaf: Leaf) -> bool:
    """Whether a tensor holds no samples or the same for each, and no gradient leads to it."""
    three = run.leaves_for_three.get(path)
    has_no_samples = three is not None and three.shape == leaf.shape
    is_same = leaf.rows is not None and torch.equal(leaf.rows[0], leaf.rows[1])
    return (has_no_samples or is_same) and leaf.node not in found.dependent


def _ended(found: Trace, layer: Layer, runs_constants: bool) -> dict[nn.Module, Outline | None]:
    """The outlines of what has ended before the layer; None for what is to run anew."""
    outlines: dict[nn.Module, Outline | None] = {}
    for module in _outermost_ended(found, layer, found.model, runs_constants):
        run = found.runs[id(module)]
        if runs_constants and len(_varying(found, run)) < len(run.leaves):
            outlines[module] = None
            continue
        with suppress(TypeError):  # what cannot be outlined stays in place, and runs on NaN
            outlines[module] = Outline.of(run.value, run.leaves, run.leaves_for_three)
    return outlines


def _outermost_ended(
    found: Trace, layer: Layer, module: nn.Module, runs_constants: bool
) -> Iterator[nn.Module]:
    """The outermost modules inside one that run once, and have ended when the layer has."""
    ended = found.modules_until(layer.name) - {layer.module}
    for child in set(module.children()) - {layer.module}:
        run = found.runs[id(child)]
        # Inside of what returns a constant beside other things may be what makes it.
        is_mixed = 0 < len(_varying(found, run)) < len(run.leaves) and any(child.children())
        if child in ended and run.calls == 1 and not (runs_constants and is_mixed):
            yield child
        else:
            yield from _outermost_ended(found, layer, child, runs_constants)


def _outlined(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Outline, ...], dict[str, Outline]]:
    """The outlines of a model's inputs, given for two samples."""
    three = take_samples((args, dict(kwargs)), [0, 1, 0])

    def outline(value: Any, larger: Any) -> Outline:
        return Outline.of(value, find_tensors(value), find_tensors(larger))

    positional = tuple(map(outline, args, three[0]))
    return positional, {name: outline(kwargs[name], three[1][name]) for name in kwargs}


def _difference(
    tail: Tail, expected: Any, features: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """How the tail differs from the model, None if it does not; tells it if it writes in place."""
    own = map_tensors(features, lambda _, tensor: tensor.clone())
    versions = {path: tensor._version for path, tensor in find_tensors(own).items()}
    tail.feed.watch = (flow := Flow()).mark
    try:
        with undisturbed(tail), torch.no_grad(), flow:
            actual = find_tensors(tail(own, *args, **kwargs))
    except Exception as error:  # whatever a model makes of NaN
        return f"what comes before it is used behind it too ({error})"
    finally:
        tail.feed.watch = None
    if any(tensor._version != versions[path] for path, tensor in find_tensors(own).items()):
        tail.feed.keeps_features = True
    wanted = find_tensors(expected)
    if wanted.keys() != actual.keys():
        return f"the tail returns {list(actual)}, the model {list(wanted)}"
    is_derived = any(map(flow.holds, actual.values()))
    if not is_derived and all(torch.equal(t, actual[path]) for path, t in wanted.items()):
        return None
    return "what comes before it is used behind it too"
