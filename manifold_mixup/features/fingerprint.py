"""What stored features come from: checksums of model and data, and what has changed in them."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from manifold_mixup._files import fingerprint
from manifold_mixup.features.shards import (
    FEATURES,
    INPUTS,
    TARGETS,
    Manifest,
    beside,
    checked_shard,
    map_shard,
    shard_file,
)
from manifold_mixup.features.views import Reading, Views, inputs_of
from manifold_mixup.inspection import describe_settings, model_device, model_dtype, unwrap
from manifold_mixup.models import run_until

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


_DIGEST = 8  # characters of each file's


# So many samples pass through the model again, whenever a store is used again.
LOOKED_AT = 4


# Whose data sets and transforms say what they do.
_PLAIN_SPEAKERS = ("manifold_mixup", "timm", "torchvision")


def digests(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """A checksum of each module's own settings and weights, without what is inside it.

    Args:
        model: The model, wrapped or not.
        names: Names of modules, "" for the model itself; one that it lacks has "".
    """
    modules = dict(unwrap(model).named_modules())
    return {name: _digest(modules[name]) if name in modules else "" for name in names}


def describe_model(model: nn.Module, like: Mapping[str, Any]) -> dict[str, Any]:
    """What features depend on in a model: what another description tells, as it is now.

    Args:
        model: The model, wrapped or not.
        like: What to describe: checksums of ``"modules"``, and the ``"settings"`` they read,
            which versions before do not tell.
    """
    described: dict[str, Any] = {"modules": digests(model, like["modules"])}
    if "settings" in like:
        described["settings"] = describe_settings(model, like["settings"])
    return described


def describe_data(
    views: Views, keys: Iterable[str] = ("n", "transform", "paths")
) -> dict[str, Any]:
    """What features depend on in a data set but for its samples, in JSON values.

    Paths are known by name, size and time of change, where all that is done to them is known too;
    else each sample has to be read.

    Args:
        views: The samples.
        keys: What to describe; versions before have other ones.
    """
    dataset, files = views.dataset, list_files(views.dataset)
    describe: dict[str, Callable[[], Any]] = {
        "n": lambda: views.n,
        "transform": lambda: _ADDRESS.sub("", _transform(dataset)),
        "paths": lambda: None if listed_targets(dataset) is None else _joined(files, _path_digest),
        "files": lambda: None if files is None else _joined(files, _file_digest),
        # The text of files has their targets, too.
        "targets": lambda: _targets_digest(dataset),
        "samples": views.digests,
    }
    return {key: describe[key]() for key in keys}


def describe_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], files: list[str] | None = None
) -> list[str]:
    """What differs between two descriptions, in words; nothing if they are the same.

    Args:
        before: Of what is stored; only its keys are compared.
        now: Of what is given.
        files: Names of the files that are given now.
    """
    changes = []
    for key, old in before.items():
        new = now[key]
        if old == new:
            continue
        if key == "modules":
            changed = [name or "the model itself" for name in old if old[name] != new[name]]
            changes.append(f"weights or settings of {_listed(changed)}")
        elif key in ("files", "paths") and old and new:
            changed = _changed_files(old, new, files or [])
            known = "fewer files" if len(new) < len(old) else "the order of the files"
            changes.append(f"files {_listed(changed)}" if changed else known)
        elif key == "settings":
            changes += _changed_settings(old, new)
        elif key in ("files", "paths", "targets", "samples"):
            changes.append(f"the {'files' if key == 'paths' else key} of the data set")
        else:
            changes.append(f"{key} was {_excerpt(old, new)}, now is {_excerpt(new, old)}")
    return changes


def changed_samples(
    folder: Path, before: Manifest, reading: Reading, shards: Sequence[int] | None = None
) -> list[str]:
    """Which of the inputs that are in a store have changed, in words.

    Of one that is not whole the targets, too: what is missing would get others.

    Args:
        folder: Where the store lies.
        before: What it says.
        reading: What the samples are now.
        shards: What to compare; None for all that is there.
    """
    changes = []
    rows, inputs = beside(folder, before, INPUTS, shards)
    if inputs is not None:
        changed = rows[reading.checksums(rows) != inputs].tolist()
        if changed:
            checked_shard(folder, before, changed[0] // before.rows)  # or it would be the checksum
            more = f" and of {len(changed) - 1} more" if len(changed) > 1 else ""
            changes.append(f"the input of sample {changed[0]}{more}")
    rows, targets = beside(folder, before, TARGETS, shards)
    if (
        not before.checksums
        and targets is not None
        and not is_same(targets, reading.targets(rows))
    ):
        changes.append("the targets of the data set")
    return changes


def changed_features(folder: Path, before: Manifest, model: nn.Module, views: Views) -> list[str]:
    """Whether the model gives other features for a few samples than a store holds, in words."""
    shards = [s for s in range(before.shards) if shard_file(folder, s).is_file()]
    rows = torch.tensor([row for shard in shards for row in before.rows_of(shard)])
    if not len(rows):
        return []
    rows = rows[torch.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).long()]
    args, kwargs = inputs_of(views, rows.tolist(), model_device(model))
    layer = before.stored_layer
    with torch.no_grad():
        given = run_until(unwrap(model), [layer], *args, **kwargs)[layer]
    stored = torch.stack([_row(folder, before, row) for row in rows.tolist()]).double()
    if given.shape != stored.shape:
        return [f"layer '{layer}' gives {tuple(given.shape[1:])}, not {tuple(stored.shape[1:])}"]
    apart = (given.double().cpu() - stored).abs().flatten(1).amax(1)
    largest = stored.abs().max().item()
    differs = ~(apart <= _tolerance(before, model) * largest)
    if not differs.any():
        return []
    first = int(differs.nonzero()[0])
    return [
        f"the model gives sample {int(rows[first]) % before.n} features at '{layer}' that differ "
        f"by {apart[first].item():.3g} from those stored, of values up to {largest:.3g}"
    ]


def _row(folder: Path, manifest: Manifest, row: int) -> Tensor:
    shard, at = divmod(row, manifest.rows)
    return map_shard(shard_file(folder, shard))[0][FEATURES][at]


def _tolerance(manifest: Manifest, model: nn.Module) -> float:
    """Relative to the largest value: what rounding alone may change on this machine."""
    now = machine(device := model_device(model))
    is_same = device.type == "cpu" and all(manifest.form.get(key) == now[key] for key in now)
    own, stored = (torch.finfo(t).eps for t in (model_dtype(model), manifest.torch_dtype))
    return (1e-4 if is_same else 1e-2) + 4 * own + stored


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one type, one shape and the same values."""
    return one.dtype == other.dtype and torch.equal(one, other)


def machine(device: torch.device) -> dict[str, str]:
    """What the last bits of a computation depend on, beside its form."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return {"torch": torch.__version__, "device": f"{device.type} {kind}".strip()}


def list_files(dataset: Any) -> list[tuple[str, Path, Any]] | None:
    """Name, path and target of each sample; None if they do not come from one path each.

    Known are what has `named_files` of these, torchvision's `samples`, and a `Subset` of either.
    """
    if isinstance(dataset, Subset):
        files = list_files(dataset.dataset)
        return None if files is None else [files[index] for index in dataset.indices]
    named = getattr(dataset, "named_files", None)
    if named is not None:
        names, paths, targets = named
    else:
        samples = getattr(dataset, "samples", None)
        if not isinstance(samples, list) or not all(isinstance(s, tuple) for s in samples):
            return None
        paths, targets = [sample[0] for sample in samples], [sample[1:] for sample in samples]
        names = None
    if not all(isinstance(path, str | Path) for path in paths):
        return None
    return [
        (n, Path(p), t) for n, p, t in zip(names or _relative(paths), paths, targets, strict=True)
    ]


def _relative(paths: Sequence[Any]) -> list[str]:
    """Paths below the folder that all of them are in."""
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [os.path.relpath(path, root) for path in paths]


def listed_targets(dataset: Any) -> Tensor | None:
    """The targets that samples have, where their files tell all; None where they have to be read.

    So it is where only this package, timm and torchvision have a hand in how a file becomes a
    sample, and nothing changes its target.
    """
    files = list_files(dataset)
    if not files or _ADDRESS.search(_transform(dataset)) or not _says_all(dataset):
        return None
    try:
        given = [_only(target) if isinstance(target, tuple) else target for *_, target in files]
        targets = torch.tensor(given)
    except (TypeError, ValueError, RuntimeError):  # no numbers, or several
        return None
    return torch.tensor(given, dtype=torch.float64) if targets.is_floating_point() else targets


def _only(values: tuple[Any]) -> Any:
    (value,) = values
    return value


def _digest(module: nn.Module) -> str:
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    own |= {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    # No other plain attributes: they change with what is no matter here, such as the head.
    numbers = {name: value for name, value in vars(module).items() if isinstance(value, float)}
    parts = [name for name, _ in module._modules.items()]  # a scripted one has no more of a dict
    text = f"{type(module).__name__}({module.extra_repr()}) {numbers} {parts}"
    return fingerprint(own, _ADDRESS.sub("", text))


def _joined(
    files: Sequence[tuple[str, Path, Any]] | None, digest: Callable[[tuple[str, Path, Any]], str]
) -> str:
    return "".join(map(digest, files or ()))


def _path_digest(file: tuple[str, Path, Any]) -> str:
    return _file_digest((*file[:2], ""))


def _file_digest(file: tuple[str, Path, Any]) -> str:
    name, path, target = file
    status = os.stat(path)
    text = f"{name} {status.st_size} {status.st_mtime_ns} {target}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]


def _targets_digest(dataset: Any) -> str | None:
    """A checksum of all targets, where they are at hand without reading samples."""
    targets = targets_of(dataset)
    return None if targets is None else fingerprint({"targets": targets})


def targets_of(dataset: Any) -> Tensor | None:
    """All targets of a data set (n, *), where they are at hand without reading samples."""
    if isinstance(dataset, Subset):
        targets = targets_of(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices)]
    tensors = getattr(dataset, "tensors", None)
    targets = tensors[-1] if isinstance(tensors, tuple) else getattr(dataset, "targets", None)
    try:
        return None if targets is None else torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None


def _transform(dataset: Any) -> str:
    """What a data set says of itself and of what it does with a sample."""
    if isinstance(dataset, Subset):
        return _transform(dataset.dataset)
    names = ("transform", "target_transform", "transforms", "channels")
    said = [f"{name}={getattr(dataset, name)!r}" for name in names if hasattr(dataset, name)]
    return f"{type(dataset).__name__}({', '.join(said)})"


def _says_all(value: Any) -> bool:
    """Whether the text of a data set or transform, with its files, tells all that it does."""
    if type(value) is Subset:
        return _says_all(value.dataset)
    if getattr(value, "target_transform", None) is not None:
        return False
    package = str(getattr(value, "__module__", "")).partition(".")[0]
    if package not in _PLAIN_SPEAKERS or type(value).__name__ == "Lambda":
        return False
    parts = [getattr(value, name, None) for name in ("transform", "loader")]
    inside = getattr(value, "transforms", None)
    parts += inside if isinstance(inside, list | tuple) else [inside]
    return all(part is None or _says_all(part) for part in parts)


def _changed_files(before: str, now: str, names: list[str]) -> list[str]:
    old, new = (
        [digests[at : at + _DIGEST] for at in range(0, len(digests), _DIGEST)]
        for digests in (before, now)
    )
    known = set(old)
    return [name for name, digest in zip(names, new, strict=True) if digest not in known]


def _changed_settings(
    before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """The first setting of each module that is another one."""
    changes = []
    for module, own in before.items():
        name = next((name for name, text in own.items() if now[module][name] != text), None)
        if name is not None:
            whose = f"of {module!r}" if module else "of the model itself"
            new = now[module][name] or "nothing"
            changes.append(f"setting {name} {whose} was {own[name]}, now is {new}")
    return changes[:1] + ([f"{len(changes) - 1} more settings"] if len(changes) > 1 else [])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"


def _excerpt(text: Any, other: Any) -> str:
    """A value; of a long text the part from where it differs from another one."""
    if not isinstance(text, str) or len(text) <= 60:
        return repr(text)
    start = max(0, len(os.path.commonprefix([text, str(other)])) - 20)
    return repr(f"…{text[start : start + 60]}…")
