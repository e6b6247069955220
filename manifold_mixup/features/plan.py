"""What a store is to hold: as one that is there already says, or planned anew."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup._progress import Track
from manifold_mixup.features.fingerprint import (
    LOOKED_AT,
    changed_features,
    changed_samples,
    describe_changes,
    describe_data,
    describe_model,
    digests,
    list_files,
    machine,
)
from manifold_mixup.features.shards import (
    AGAIN,
    MANIFEST,
    Manifest,
    checked_shard,
    one_writer,
    read_manifest,
    remove_store,
    shard_file,
)
from manifold_mixup.features.views import Reading, Views
from manifold_mixup.inspection import (
    Inputs,
    Layer,
    Trace,
    defect,
    model_device,
    settings_read,
    trace,
    unwrap,
)
from manifold_mixup.models import (
    Fused,
    changes_in_training,
    cut_layers,
    fold_traced,
    fuse,
    run_until,
)

Say = Callable[[str], None]


PLAIN, FUSED = "plain", "BatchNorm folded, channels last"


# Relative to the largest value: what folding BatchNorm may change in float32.
_TOLERANCE = 1e-5


_SHARD_BYTES = 2**25


# A store has at least so many shards, so that little is lost when its making is interrupted.
_SHARDS = 16


@dataclass(frozen=True)
class ExtractionRequest:
    """What a store is asked for.

    Attributes:
        dtype: Of the features, such as ``"float32"``.
        fold: Whether to store a later layer where a mix gives the same there.
        fast: Whether the computation may use a faster copy of the model.
        batch_size: Samples in a forward pass, of a store that is planned anew.
        overwrite: Whether to replace a store of something else.
        classes: Class names, None if they are unknown.
        views: The samples.
        data: What `describe_data` says of them.
        reading: Their targets and checksums as they are now.
        workers: Processes that load samples.
        share: (rank, world): which of as many parts of the work is this process's.
        track: Shows how far the pass is.
        say: Takes each line to show.
    """

    dtype: str
    fold: bool
    fast: bool
    overwrite: bool
    batch_size: int
    classes: list[str] | None
    views: Views
    data: dict[str, Any]
    reading: Reading
    workers: int
    share: tuple[int, int]
    track: Track
    say: Say


class OtherFeatures(ValueError):
    """A folder holds features of something else.

    Attributes:
        differs: What differs, without what to do.
    """

    def __init__(self, folder: Path, changes: Sequence[str]) -> None:
        self.differs = f"{folder}: holds features of something else ({'; '.join(changes)})"
        super().__init__(
            f"{self.differs}; choose another directory, or replace them by overwrite=True"
        )


def agreed(
    folder: Path, layer: str, model: nn.Module, request: ExtractionRequest, *, is_new: bool = False
) -> Manifest | None:
    """What the store in a folder says, if that is what is asked for; None if there is none.

    Args:
        folder: The folder.
        layer: Name of the layer.
        model: The model, at rest.
        request: What is asked for.
        is_new: Whether it has just been begun, so that there is nothing yet to compare.

    Raises:
        OtherFeatures: It is a store of something else; the message says what differs.
    """
    try:
        return _agreed(folder, layer, model, request, is_new=is_new)
    except ValueError:
        if not request.overwrite:
            raise
    with one_writer(folder):
        try:  # another process may have replaced it a moment ago
            return _agreed(folder, layer, model, request, is_new=is_new)
        except ValueError:
            remove_store(folder)
    return None


def _agreed(
    folder: Path, layer: str, model: nn.Module, request: ExtractionRequest, *, is_new: bool
) -> Manifest | None:
    if not (folder / MANIFEST).is_file():
        return None
    before = read_manifest(folder)
    changes = _changes(before, layer, model, request)
    if not changes and not before.checksums:
        _drop_damaged(folder, before, request, is_new=is_new)
    if not changes and not is_new:
        changes = changed_samples(folder, before, request.reading)
    if not changes and not is_new:
        changes = changed_features(folder, before, model, request.views)
        if not changes and "settings" not in before.made_of:
            request.say(_unchecked(folder, before))
    if changes:
        raise OtherFeatures(folder, changes)
    return before


def _changes(
    before: Manifest, layer: str, model: nn.Module, request: ExtractionRequest
) -> list[str]:
    """What differs between what a store says and what is asked for, in words."""
    # None stands for samples that were known by their files.
    made_of = {k: v for k, v in before.made_of.items() if k != "samples" or v is not None}
    others = [key for key in made_of if key not in {"modules", "settings", *request.data}]
    given = {**describe_model(model, made_of), **request.data}
    given |= describe_data(request.views, others)
    files = [name for name, _, _ in list_files(request.views.dataset) or ()]
    changes = describe_changes(made_of, given, files)
    was = {"layer": before.layer, "dtype": before.dtype, "views": before.views}
    now = {"layer": layer, "dtype": request.dtype, "views": request.views.views}
    if request.classes is not None and before.classes is not None:
        was, now = was | {"classes": before.classes}, now | {"classes": request.classes}
    if not request.fold:
        was, now = was | {"stored_layer": before.stored_layer}, now | {"stored_layer": layer}
    if not request.fast:
        was, now = was | {"form": before.form["computation"]}, now | {"form": PLAIN}
    return changes + describe_changes(was, now)


def _unchecked(folder: Path, before: Manifest) -> str:
    """What cannot be checked of a store that an earlier version wrote, in words."""
    inputs = "" if before.made_of.get("samples") is None else ", and of the inputs 16"
    return (
        f"{folder}: written by an earlier version: whether flags and names that are set in the "
        f"model have changed is checked by {LOOKED_AT} samples alone{inputs}; to be sure, delete "
        "it and extract again"
    )


def _drop_damaged(
    folder: Path, manifest: Manifest, request: ExtractionRequest, *, is_new: bool
) -> None:
    """Delete the damaged shards of a store that was never finished, so that they are made anew.

    If it has just been begun, also those of other samples, which an earlier one left.
    """
    for shard in range(manifest.shards):
        if not (file := shard_file(folder, shard)).is_file():
            continue
        try:
            checked_shard(folder, manifest, shard)
            if is_new and changed_samples(folder, manifest, request.reading, [shard]):
                file.unlink(missing_ok=True)
        except ValueError:
            request.say(f"{file}: damaged, computed again")
            file.unlink(missing_ok=True)


def check_machine(folder: Path, manifest: Manifest, model: nn.Module) -> None:
    """Make sure that what is missing in a store would have the same bits as if made at once.

    Raises:
        ValueError: It was begun with another version of PyTorch or on another kind of device.
    """
    now = machine(model_device(model))
    was = {key: manifest.form[key] for key in now}
    if changes := describe_changes(was, now):
        raise ValueError(
            f"{folder}: is not whole, and the rest would be computed differently "
            f"({'; '.join(changes)}); delete it and {AGAIN}"
        )


def plan(
    model: nn.Module,
    layers: Sequence[str],
    request: ExtractionRequest,
    inputs: Inputs,
) -> tuple[dict[str, Manifest], Fused | None]:
    """What new stores of some layers are to hold, and the faster copy of the model, if any.

    Args:
        model: The model, at rest.
        layers: Names of layers.
        request: What is asked for.
        inputs: Of two samples.

    Raises:
        ValueError: A layer does not return one tensor with a row for each sample.
    """
    args, kwargs = inputs
    found = trace(model, args, kwargs, keep=layers)
    for layer in layers:
        _check_layer(found, layer)
    tails = cut_layers(found, layers, args, kwargs)
    takes = args[0].shape[1:] if len(args) == 1 and isinstance(args[0], Tensor) else None
    may_fold = request.fold and takes is not None
    stored = {x: fold_traced(found, x, tail) if may_fold else x for x, tail in tails.items()}
    for layer, later in stored.items():
        if later != layer:
            request.say(
                f"layer '{layer}': stored at '{later}', up to where a mix can be moved exactly"
            )
        if changes_in_training(found, layer, args, kwargs):
            request.say(
                f"layer '{layer}': stored as in use; in training {type(found.model).__name__} "
                "changes what comes before it, by dropout as a function perhaps"
            )
    together = sorted(set(stored.values()))
    fused = _fused(model, together, inputs, request.say) if request.fast else None
    if fused is None:
        with torch.no_grad():
            outputs = run_until(unwrap(model), together, *args, **kwargs)
    else:
        outputs = fused.outputs
    settings = {layer: _settings(model, layer, inputs) for layer in together}
    form = {
        "batch_size": request.batch_size,
        "computation": PLAIN if fused is None else FUSED,
        "layers": together,
        **machine(model_device(model)),
    }
    manifests = {
        layer: _manifest(
            found, layer, later, outputs[later].shape[1:], takes, form, settings[later], request
        )
        for layer, later in stored.items()
    }
    return manifests, fused


def _manifest(
    found: Trace,
    layer: str,
    stored: str,
    shape: torch.Size,
    takes: torch.Size | None,
    form: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, str]],
    request: ExtractionRequest,
) -> Manifest:
    row = shape.numel() * getattr(torch, request.dtype).itemsize
    total, rows = len(request.views), int(form["batch_size"])
    # Powers of two, so that the shards of one layer lie within those of another.
    while 2 * rows * row <= _SHARD_BYTES and 2 * rows * _SHARDS <= total:
        rows *= 2
    modules = digests(found.model, found.modules_before(stored))
    return Manifest(
        layer=layer,
        stored_layer=stored,
        n=request.views.n,
        views=request.views.views,
        shape=tuple(shape),
        dtype=request.dtype,
        takes=None if takes is None else tuple(takes),
        rows=rows,
        form=dict(form),
        made_of={"modules": modules, "settings": settings, **request.data},
        classes=request.classes,
    )


def _settings(model: nn.Module, layer: str, inputs: Inputs) -> dict[str, dict[str, str]]:
    """What modules look up on themselves until a layer has run."""
    args, kwargs = inputs
    with torch.no_grad(), settings_read(model) as settings:
        run_until(unwrap(model), [layer], *args, **kwargs)
    return settings


def _check_layer(found: Trace, name: str) -> None:
    """Raise a ValueError unless a layer returns one finite tensor with the batch first."""
    leaves = found.run(name).leaves
    if leaves and "" not in leaves:
        parts = ", ".join(f"{path}: {tuple(leaf.shape)}" for path, leaf in leaves.items())
        raise ValueError(
            f"layer '{name}' returns a {found.run(name).kind} ({parts}), which cannot be stored; "
            "choose a layer that returns one tensor"
        )
    if reason := defect(found, (Layer(name, found.layers[name]),)):
        raise ValueError(reason)
    finite = found.run(name).value.isfinite().flatten(1).all(1)
    if not finite.all():  # which a cut would take for features that do not carry all
        sample = int((~finite).nonzero()[0])
        raise ValueError(
            f"layer '{name}' gives sample {sample} values that are not finite; look at that "
            "sample and the weights"
        )


def _fused(
    model: nn.Module,
    layers: Sequence[str],
    inputs: Inputs,
    say: Say,
) -> Fused | None:
    """A faster copy of the model if there is one that gives the same."""
    try:
        fused = fuse(model, layers, *inputs)
    except Exception as error:  # whatever a copy of a model may raise
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    else:
        if fused.error <= _TOLERANCE:
            return fused
        problem = f"its features differ by {fused.error:.1g}"
    say(
        f"{type(unwrap(model)).__name__}: computed as it is, no faster copy of it works: {problem}"
    )
    return None
