"""What stored features come from: checksums of model and data, and what has changed in them."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from manifold_mixup._files import fingerprint
from manifold_mixup.features.views import Views
from manifold_mixup.inspection import unwrap

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


_DIGEST = 8  # characters of each file's


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


def describe_data(views: Views) -> dict[str, Any]:
    """What features depend on in a data set, in JSON values.

    Paths are known by name, size and time of change; then no sample is read, unless the data set
    or its transform does not say what it does. Of a set without paths, the targets and some
    samples are known.
    """
    files = list_files(views.dataset)
    transform = _transform(views.dataset)
    reads = files is None or bool(_ADDRESS.search(transform)) or not _says_all(views.dataset)
    return {
        "n": views.n,
        "transform": _ADDRESS.sub("", transform),
        "files": None if files is None else "".join(map(_file_digest, files)),
        "targets": _targets_digest(views.dataset),
        "samples": views.digests() if reads else None,
    }


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
        elif key == "files" and old and new:
            changed = _changed_files(old, new, files or [])
            known = "fewer files" if len(new) < len(old) else "the order of the files"
            changes.append(f"files {_listed(changed)}" if changed else known)
        elif key in ("files", "targets", "samples"):
            changes.append(f"the {key} of the data set")
        else:
            changes.append(f"{key} was {_excerpt(old, new)}, now is {_excerpt(new, old)}")
    return changes


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


def _digest(module: nn.Module) -> str:
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    own |= {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    # No other plain attributes: they change with what is no matter here, such as the head.
    numbers = {name: value for name, value in vars(module).items() if isinstance(value, float)}
    text = f"{type(module).__name__}({module.extra_repr()}) {numbers} {list(module._modules)}"
    return fingerprint(own, _ADDRESS.sub("", text))


def _file_digest(file: tuple[str, Path, Any]) -> str:
    name, path, target = file
    status = os.stat(path)
    text = f"{name} {status.st_size} {status.st_mtime_ns} {target}"
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]


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
    if isinstance(value, Subset):
        return _says_all(value.dataset)
    package = str(getattr(value, "__module__", "")).partition(".")[0]
    if package not in _PLAIN_SPEAKERS or type(value).__name__ == "Lambda":
        return False
    parts = [getattr(value, name, None) for name in ("transform", "target_transform", "loader")]
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


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"


def _excerpt(text: Any, other: Any) -> str:
    """A value; of a long text the part from where it differs from another one."""
    if not isinstance(text, str) or len(text) <= 60:
        return repr(text)
    start = max(0, len(os.path.commonprefix([text, str(other)])) - 20)
    return repr(f"…{text[start : start + 60]}…")
