"""Run the backbone once over a data set and store what some of its layers return."""

import errno
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote

import torch
from torch import nn
from torch.utils.data import Subset

from manifold_mixup._progress import Track, share_of_work, untracked
from manifold_mixup.features.backbone_pass import Compute, Unfinished, fill, wait_for_others
from manifold_mixup.features.fingerprint import describe_data, is_same, listed_targets
from manifold_mixup.features.plan import (
    FUSED,
    ExtractionRequest,
    Say,
    agreed,
    check_machine,
    plan,
)
from manifold_mixup.features.shards import (
    AGAIN,
    TARGETS,
    Manifest,
    begin_manifest,
    beside,
    finish_manifest,
    numbered,
)
from manifold_mixup.features.store import FeatureStore
from manifold_mixup.features.views import Reading, Views, inputs_of
from manifold_mixup.inspection import Inputs, find_layers, model_device, undisturbed, unwrap
from manifold_mixup.models import fuse

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# Seconds without a new shard after which the work of other ranks is taken over, at the least.
_PATIENCE = 30.0


@overload
def extract_features(
    model: nn.Module,
    layers: str,
    dataset: Any,
    directory: str | Path,
    *,
    batch_size: int | None = ...,
    dtype: torch.dtype = ...,
    views: int = ...,
    fold: bool = ...,
    workers: int = ...,
    classes: Sequence[str] | None = ...,
    fast: bool = ...,
    overwrite: bool = ...,
    share: tuple[int, int] | None = ...,
    track: Track = ...,
    say: Say | None = ...,
) -> FeatureStore: ...


@overload
def extract_features(
    model: nn.Module,
    layers: list[str] | tuple[str, ...],
    dataset: Any,
    directory: str | Path,
    *,
    batch_size: int | None = ...,
    dtype: torch.dtype = ...,
    views: int = ...,
    fold: bool = ...,
    workers: int = ...,
    classes: Sequence[str] | None = ...,
    fast: bool = ...,
    overwrite: bool = ...,
    share: tuple[int, int] | None = ...,
    track: Track = ...,
    say: Say | None = ...,
) -> dict[str, FeatureStore]: ...


def extract_features(
    model: nn.Module,
    layers: str | list[str] | tuple[str, ...],
    dataset: Any,
    directory: str | Path,
    *,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    views: int = 1,
    fold: bool = True,
    workers: int = 0,
    classes: Sequence[str] | None = None,
    fast: bool = True,
    overwrite: bool = False,
    share: tuple[int, int] | None = None,
    track: Track = untracked,
    say: Say | None = None,
) -> FeatureStore | dict[str, FeatureStore]:
    """Run a model over a data set once and store what layers return, to train heads on it.

    Interrupted, killed even, it goes on when called again, to the same bits. Started by torchrun,
    each process does its share.

    Where the same is stored already, only a few samples pass through the model, to be sure of it.
    All inputs are compared with their checksums, which reads the data set once; images in folders
    with transforms of timm or torchvision by the names, sizes and times of the files. The targets
    are those that the data set has now. `FeatureStore(directory)` takes what is stored unchecked;
    to store anew whatever is there, delete the directory.

    Args:
        model: The model; it computes in eval mode without gradients, and comes back as it was.
        layers: The name of a layer (see `find_layers`), or several: all are stored in one pass.
        dataset: Pairs of an input and a target. The input is a tensor, or several in a tuple or a
            dict, as the model takes them.
        directory: Where the store goes; with several layers, a folder in it for each.
        batch_size: Samples in a forward pass; None for 16 on a CPU, 128 elsewhere. A store that is
            there keeps its own.
        dtype: What to store features in; they are computed in the model's own type. On 500 photos
            float16 changed no loss of a head's training by more than 0.01 %, bfloat16 by 2.7 %,
            and neither the accuracy (``scripts/benchmark.py store dtype``).
        views: Number of augmented views of each sample, for a data set with random augmentation.
        fold: Store the output of a later layer where a mix gives exactly the same there.
        workers: Processes that load samples; 0 loads them in this one, beside the computation.
        classes: Class names in order; None for what the data set says, or numbers.
        fast: Compute with a copy of the model that has BatchNorm folded into convolutions and
            channels last, if it gives the same on two samples to 1e-5 of the largest value.
        overwrite: Replace features of something else that the directory holds.
        share: (rank, world): which of as many parts of the work is this process's; None for
            what a process group or torchrun says, (0, 1) to wait for no other.
        track: Shows how far it is.
        say: Takes each line to show.

    Returns:
        The store; of several layers a dict of stores by name.

    Raises:
        TypeError: The data set has no positions, or a sample is no pair.
        ValueError: A layer does not return one tensor with the batch first, the data set is empty
            or random while `views` is 1, an argument is out of range, or the directory holds
            features of something else.
        OSError: The disk is too small; what is stored already is kept.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> samples = [(torch.randn(4), i % 2) for i in range(8)]
        >>> store = extract_features(model, "1", samples, "features")
        >>> store.features.shape, store.targets.tolist()
        ((8, 3), [0, 1, 0, 1, 0, 1, 0, 1])
    """
    _check_arguments(Path(directory), batch_size, dtype, views)
    _check_whole(model)
    several = [layers] if isinstance(layers, str) else list(layers)
    names = [_one_layer(model, given) for given in several]
    top, device = Path(directory), model_device(model)
    folders = {n: top if isinstance(layers, str) else top / quote(n, safe="") for n in names}
    samples = Views(dataset, views)
    with undisturbed(unwrap(model)), _told_if_full(top):
        request = ExtractionRequest(
            dtype=str(dtype).removeprefix("torch."),
            fold=fold,
            fast=fast,
            overwrite=overwrite,
            batch_size=batch_size or (16 if device.type == "cpu" else 128),
            classes=_classes(samples.dataset) if classes is None else list(classes),
            views=samples,
            data=describe_data(samples),
            reading=Reading(samples, listed_targets(dataset), workers, track),
            workers=workers,
            share=share or share_of_work(),
            track=track,
            say=say or _say_nothing,
        )
        finished = _complete(model, folders, request)
        stores = {name: FeatureStore(folder) for name, folder in folders.items()}
        stores |= {name: _with_current_targets(stores[name], request) for name in finished}
    return stores[names[0]] if isinstance(layers, str) else stores


def _check_whole(model: nn.Module) -> None:
    """Raise a ValueError if this process has a part of the parameters alone: they are DTensors."""
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} is sharded, as by FSDP's fully_shard, and cannot be copied; "
            "extract features before that, or from a whole model with its full state dict"
        )


def _complete(
    model: nn.Module, folders: Mapping[str, Path], request: ExtractionRequest
) -> set[str]:
    """Make every store that is not there, finish those that are not whole; which had been."""
    there = {layer: agreed(folder, layer, model, request) for layer, folder in folders.items()}
    stores = [Unfinished(folders[layer], m) for layer, m in there.items() if m is not None]
    stores = [store for store in stores if store.missing or not store.manifest.checksums]
    new = [layer for layer, manifest in there.items() if manifest is None]
    finished = {layer for layer, manifest in there.items() if manifest and manifest.checksums}
    if not stores and not new:
        return finished
    for store in stores:
        check_machine(store.folder, store.manifest, model)
    first_two = [0, min(1, request.views.n - 1)]
    inputs = inputs_of(request.views, first_two, model_device(model))
    planned: dict[str, Manifest] = {}
    ready: dict[str, nn.Module] = {}
    if new:
        _check_samples(request)
        planned, fused = plan(model, new, request, inputs)
        if fused is not None:
            ready = {_form(manifest): fused.model for manifest in planned.values()}
    _check_room([*stores, *(Unfinished(folders[x], m) for x, m in planned.items())], request.say)
    for layer, manifest in planned.items():
        begin_manifest(folders[layer], manifest)
        # Another process may have begun it a moment ago, in another form.
        begun = agreed(folders[layer], layer, model, request, is_new=True) or manifest
        stores.append(Unfinished(folders[layer], begun))
    groups: dict[str, list[Unfinished]] = {}
    for store in stores:
        groups.setdefault(_form(store.manifest), []).append(store)
    for form, group in groups.items():
        _fill(group, _compute(model, group[0].manifest, inputs, ready.get(form)), request)
        for store in group:
            finish_manifest(store.folder, store.manifest)
    return finished


def _with_current_targets(store: FeatureStore, request: ExtractionRequest) -> FeatureStore:
    """A store that was there, with the targets that the data set has now."""
    rows, stored = beside(store.directory, store.manifest, TARGETS)
    now = request.reading.targets(rows)
    assert stored is not None
    if is_same(stored, now):
        return store
    request.say(f"{store.directory}: targets have changed: those of the data set are taken")
    current = store.with_targets(now)
    if request.classes is None and store.classes == numbered(stored):
        current.classes = numbered(now)
    return current


def _compute(
    model: nn.Module, manifest: Manifest, inputs: Inputs, ready: nn.Module | None
) -> Compute:
    """What computes in the form of a store, with a faster copy that is ready or made again."""
    is_fused = manifest.form["computation"] == FUSED
    if is_fused and ready is None:
        ready = fuse(model, manifest.form["layers"], *inputs).model
    return Compute(ready or unwrap(model), model_device(model), is_fused=is_fused)


def _fill(stores: list[Unfinished], compute: Compute, request: ExtractionRequest) -> None:
    """Do this process's share of the work, and that of others if they do not come."""
    _, world = request.share
    began, missing = time.monotonic(), sum(len(store.missing) for store in stores)
    how: dict[str, Any] = {
        "is_marked": not request.reading.is_listed,
        "workers": request.workers,
        "track": request.track,
    }
    fill(stores, compute, request.views, request.share, **how)
    seconds = (time.monotonic() - began) * world / max(1, missing)
    if not wait_for_others(stores, patience=max(_PATIENCE, 3 * seconds)):
        request.say("the shards of other processes do not come: computed here")
        fill(stores, compute, request.views, **how)


def _form(manifest: Manifest) -> str:
    return json.dumps(manifest.form)


def _check_samples(request: ExtractionRequest) -> None:
    """Make sure that the samples can be read again; tell if views are for nothing."""
    first = request.views.digests()
    request.views.check_repeatable(first)
    if request.views.views > 1 and request.views.digests(view=1) == first:
        request.say(f"all {request.views.views} views of a sample are the same: one would do")


def _check_room(stores: list[Unfinished], say: Say) -> None:
    """Tell what is to be stored; raise an OSError if the disk has no room for it."""
    for store in stores:
        manifest, size = store.manifest, _readable(store.missing_bytes)
        views = f" in {manifest.views} views" if manifest.views > 1 else ""
        say(
            f"layer '{manifest.layer}': {manifest.n} samples{views} of {manifest.shape} "
            f"{manifest.dtype}, {size} to compute and store in {store.folder}"
        )
    folder = stores[0].folder
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    needed, free = sum(store.missing_bytes for store in stores), shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"{folder}: the features need {_readable(needed)}, the disk has {_readable(free)} "
            "left; make room, store dtype=torch.float16, or choose another directory"
        )


def _readable(size: int) -> str:
    """A number of bytes in the largest unit of which there is one."""
    number, units = float(size), ["bytes", "KB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.3g} {units[0]}"


@contextmanager
def _told_if_full(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"{directory}: the disk is full; what is stored is kept: make room and {AGAIN}"
        ) from error


def _one_layer(model: nn.Module, pattern: str) -> str:
    found = find_layers(model, pattern)
    if len(found) > 1 or found[0].is_input:
        names = ", ".join(layer.name for layer in found)
        raise ValueError(f"layer '{pattern}' stands for {names}; name layers one by one")
    return found[0].name


def _classes(dataset: Any) -> list[str] | None:
    """The class names that a data set tells."""
    if isinstance(dataset, Subset):
        return _classes(dataset.dataset)
    classes = getattr(dataset, "classes", None)
    return None if classes is None else [str(name) for name in classes]


def _check_arguments(
    directory: Path, batch_size: int | None, dtype: torch.dtype, views: int
) -> None:
    if directory.is_file():
        raise NotADirectoryError(f"{directory}: a file, expected a folder to store features in")
    if dtype not in _DTYPES:
        known = ", ".join(map(str, _DTYPES))
        raise ValueError(f"dtype={dtype} cannot be stored; choose one of {known}")
    for name, value in (("batch_size", batch_size), ("views", views)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _say_nothing(line: str) -> None:
    pass
