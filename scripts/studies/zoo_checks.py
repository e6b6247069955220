"""What is checked of one architecture, each against what plain hooks and PyTorch compute."""

import copy
import linecache
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from manifold_mixup import (
    ManifoldMixup,
    cut,
    extract_features,
    freeze,
    layer_table,
    replace_head,
    train_head,
)
from studies.zoo_models import SAMPLES, Subject, load

CLASSES = 7


class Refused(Exception):
    """The library said why it does not do something."""


def check(name: str) -> dict[str, Any]:
    """All that is checked of an architecture, as a row that JSON takes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began = time.perf_counter()
    row: dict[str, Any] = {"name": name, "layers": [], "head": {}}
    try:
        subject = load(name)
    except Exception as error:
        return {**row, "unbuilt": _line(error)}
    row["dtype"] = str(next(subject.model.parameters()).dtype).removeprefix("torch.")
    row["inputs"] = "x".join(map(str, subject.inputs.shape))
    row["head"] = {kind: _outcome(check_head, subject, kind) for kind in ("linear", "mlp")}
    try:
        with torch.no_grad():
            _logits(_call(subject.model, subject.inputs[:2]))
        table = layer_table(subject.model, subject.inputs[:2])
    except Exception as error:
        return {**row, "table": _said(error), "seconds": time.perf_counter() - began}
    row["table"] = {"layers": len(table), "seconds": round(time.perf_counter() - began, 1)}
    mixable = [one.name for one in table if one.mixable and one.parameters_after]
    row["table"]["mixable"] = len(mixable)
    if not mixable:
        row["table"]["reason"] = next((r.reason for r in table if r.calls == 1), "")
    for layer in _three(subject, mixable):
        row["layers"].append(
            {
                "layer": layer,
                "mix": _outcome(check_mix, subject, layer),
                "cut": _outcome(check_cut, subject, layer),
                "store": _outcome(check_store, subject, layer),
            }
        )
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row


def _outcome(function: Callable[..., float], *args: Any) -> dict[str, Any]:
    """How far off it is, that it is wrong, or why it was refused."""
    try:
        return {"off": function(*args)}
    except AssertionError as error:
        return {"silent": _line(error)}
    except Exception as error:
        return _said(error)


def _said(error: Exception) -> dict[str, str]:
    """It was refused if a line of the library raises it, and has crashed if another one does."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    file, number = ("", 0) if last is None else (last.tb_frame.f_code.co_filename, last.tb_lineno)
    is_own = "manifold_mixup" in file and linecache.getline(file, number).strip().startswith(
        "raise"
    )
    kind = "refused" if is_own or isinstance(error, Refused) else "crashed"
    return {kind: f"{type(error).__name__}: {_line(error)}"}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _call(model: nn.Module, inputs: Any) -> Any:
    torch.manual_seed(1)
    return model(inputs)


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    first = next(iter(output.values())) if isinstance(output, dict) else output[0]
    if not isinstance(first, Tensor):
        raise Refused("the model returns no logits")
    return first


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest, of the largest value."""
    scale = max(float(other.detach().abs().max()), 1e-12)
    return float((one - other).detach().abs().max()) / scale


def _tolerance(model: nn.Module) -> float:
    return 1e-9 if next(model.parameters()).dtype == torch.float64 else 2e-4


def _features(subject: Subject, layer: str) -> Any:
    """What a layer returns in a clean pass, by a hook of our own."""
    seen: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        # A copy, as what comes behind may write to it.
        seen.append(output.clone() if isinstance(output, Tensor) else output)

    hook = subject.model.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.no_grad():
            _call(subject.model, subject.inputs)
    finally:
        hook.remove()
    return seen[0]


def _with(subject: Subject, layer: str, features: Tensor) -> Tensor:
    """The logits with some features put in the place of what a layer returns."""
    hook = subject.model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: features.clone()
    )
    try:
        with torch.no_grad():
            return _logits(_call(subject.model, subject.inputs)).clone()
    finally:
        hook.remove()


def _three(subject: Subject, mixable: list[str]) -> list[str]:
    """The first, the middle and the last of the layers that return one tensor."""
    middle = len(mixable) // 2
    orders = (mixable, [*mixable[middle:], *mixable[:middle]], mixable[::-1])
    found = (next((name for name in order if _is_plain(subject, name)), None) for order in orders)
    return [name for name in dict.fromkeys(found) if name is not None]


def _is_plain(subject: Subject, layer: str) -> bool:
    return isinstance(_features(replace(subject, inputs=subject.inputs[:2]), layer), Tensor)


def check_mix(subject: Subject, layer: str) -> float:
    """What reaches the output is the mix of the layer's clean features, and of nothing else."""
    model, inputs = subject.model, subject.inputs
    features = _features(subject, layer)
    with torch.no_grad():
        clean = _logits(_call(model, inputs)).clone()
    target = torch.arange(len(features)) % 3
    with ManifoldMixup(model, layer, alpha=1.0, example=inputs) as mixup:
        with torch.no_grad(), mixup(target) as mix:
            mixed = _logits(_call(model, inputs)).clone()
        after = _logits(_call(model, inputs)).detach()
    lam = mix.lam.to(features.dtype).reshape(-1, *[1] * (features.ndim - 1))
    by_hand = _with(subject, layer, lam * features + (1 - lam) * features[mix.partner])
    off = _difference(mixed, by_hand)
    assert off < _tolerance(model), f"mixed output is {off:.2g} off from the mix by hand"
    assert torch.equal(after, clean), "the output outside of a step is not the clean one"
    swapped = _with(subject, layer, features[mix.partner])
    carried = _difference(swapped, clean[mix.partner])
    assert carried < _tolerance(model), (
        f"listed as mixable, but with the partners' features the output is {carried:.2g} off from "
        "the partners' output"
    )
    moved, spread = _difference(mixed, clean), _difference(clean[mix.partner], clean)
    assert moved > 0 or spread == 0, "targets are mixed, and the output is clean"
    return off


def check_cut(subject: Subject, layer: str) -> float:
    """Both halves give the whole to the bit, for other samples than they were cut by."""
    backbone, tail = cut(subject.model, layer, subject.inputs[:2])
    rows = subject.inputs[2:5]
    with torch.no_grad():
        whole = [t for t in tree_leaves(_call(subject.model, rows)) if isinstance(t, Tensor)]
        torch.manual_seed(1)
        first = {next(iter(tail.inputs)): rows} if tail.needs_first else {}
        halves = tail(backbone(rows), **first)
    parts = [t for t in tree_leaves(halves) if isinstance(t, Tensor)]
    assert len(parts) == len(whole), f"{len(parts)} tensors instead of {len(whole)}"
    for one, other in zip(parts, whole, strict=True):
        assert torch.equal(one, other), f"the halves are {_difference(one, other):.2g} off"
    return 0.0


def check_store(subject: Subject, layer: str) -> float:
    """The losses of training on stored features are those of training on the samples."""
    hooked = copy.deepcopy(subject.model)
    freeze(hooked, except_=replace_head(hooked, 3, **_example(subject)))
    cached = copy.deepcopy(hooked)
    data = [(subject.inputs[i], i % 3) for i in range(SAMPLES)]
    options: dict[str, Any] = {"alpha": 1.0, "epochs": 1, "batch_size": 3, "lr": 1e-3, "seed": 3}
    dtype = next(hooked.parameters()).dtype
    quiet = {"say": lambda line: None}
    with tempfile.TemporaryDirectory() as folder:
        store = extract_features(cached, layer, data, Path(folder) / "store", dtype=dtype)
        tokens = not subject.inputs.is_floating_point()  # then the tail has to be given by hand
        behind = cut(cached, store.stored_layer, subject.inputs[:2])[1] if tokens else cached
        found = train_head(behind, store, **options, **quiet).losses
    expected = train_head(hooked, data, layer=layer, **options, **quiet).losses
    off = max(abs(a - b) / max(abs(b), 1) for a, b in zip(found, expected, strict=True))
    assert off < 1e-4, f"losses of stored features are {off:.2g} off: {found} for {expected}"
    return off


def _example(subject: Subject) -> dict[str, Any]:
    return {} if hasattr(subject.model, "reset_classifier") else {"example": subject.inputs[:1]}


def check_head(subject: Subject, kind: str) -> float:
    """The output has the classes asked for, or a refused call has changed nothing."""
    model, inputs = copy.deepcopy(subject.model), subject.inputs[:2]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(name, id(module)) for name, module in model.named_modules()]
    with torch.no_grad():
        output = [t for t in tree_leaves(_call(model, inputs)) if isinstance(t, Tensor)]
    old = {id(p) for p in model.parameters()}
    try:
        head = replace_head(model, CLASSES, head=kind, **_example(subject))
    except Exception:
        _check_unchanged(model, before, modules)
        with torch.no_grad():
            now = [t for t in tree_leaves(_call(model, inputs)) if isinstance(t, Tensor)]
        assert all(map(torch.equal, output, now)), "a refused call has changed the output"
        raise
    new = {id(p) for p in model.parameters()} - old
    assert new == {id(p) for p in head.parameters()}, "the head is not all that is new"
    with torch.no_grad():
        shape = tuple(_logits(_call(model.eval(), inputs)).shape)
    assert CLASSES in shape[1:], f"asked for {CLASSES} classes, the output is {shape}"
    _check_giving(model, inputs, head)
    return 0.0


def _check_unchanged(
    model: nn.Module, before: dict[str, Tensor], modules: list[tuple[str, int]]
) -> None:
    now = model.state_dict()
    assert [(n, id(m)) for n, m in model.named_modules()] == modules, "a module was replaced"
    assert now.keys() == before.keys(), "a refused call has changed the state"
    assert all(torch.equal(now[k], before[k]) for k in before), "a refused call changed a tensor"


def _check_giving(model: nn.Module, inputs: Any, head: nn.Module) -> None:
    """With a head of zeros the output is the same for all samples and classes."""
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        logits = _logits(_call(model, inputs))
    head.load_state_dict(state)
    told = float((logits - logits.flatten()[0]).abs().max())
    assert told == 0, "with the head at zero the output still differs between samples"
