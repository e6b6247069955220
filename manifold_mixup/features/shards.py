"""Features on disk: shards of consecutive rows in safetensors, and a manifest in JSON.

Row `view * n + i` holds the features of sample i in a view of it; the rows of the first view have
the targets beside them, and checksums of the inputs where no list of files tells these.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifold_mixup._files import fingerprint, read_json, write_json, write_whole

MANIFEST = "store.json"


SHARDS = "features-[0-9]*.safetensors"


FEATURES, TARGETS, INPUTS = "features", "targets", "inputs"


AGAIN = "extract again with the same arguments"


@dataclass(frozen=True)
class Manifest:
    """What a store holds and how it was made, as ``store.json`` says it.

    Attributes:
        layer: Name of the layer that was asked for.
        stored_layer: Name of the layer whose output is stored; a later one if it was folded.
        n: Number of samples.
        views: Number of augmented views of each.
        shape: Shape of the features of one sample.
        dtype: Their type, such as ``"float32"``.
        takes: Shape of what the model takes of one sample; None if that is several tensors.
        rows: Rows in a shard; the last one may have fewer.
        form: How it was computed, as far as the last bit may depend on it.
        made_of: The fingerprint: what of model and data the features depend on.
        classes: Class names in order; None while they are unknown.
        checksums: The sha256 of every shard's tensors; empty while some are missing.
    """

    layer: str
    stored_layer: str
    n: int
    views: int
    shape: tuple[int, ...]
    dtype: str
    takes: tuple[int, ...] | None
    rows: int
    form: dict[str, Any]
    made_of: dict[str, Any]
    classes: list[str] | None = None
    checksums: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of rows in all."""
        return self.n * self.views

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.total // self.rows)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of the stored features."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def rows_of(self, shard: int) -> range:
        """The rows that a shard holds."""
        return range(shard * self.rows, min((shard + 1) * self.rows, self.total))

    def key(self, shard: int) -> str:
        """A text that differs for every shard of every store."""
        made = asdict(self) | {"classes": None, "checksums": []}
        return f"{hashlib.sha256(json.dumps(made).encode()).hexdigest()} {shard}"


def read_manifest(directory: Path) -> Manifest:
    """What ``store.json`` says, of a finished store or an unfinished one.

    Raises:
        FileNotFoundError: There is no store.
        ValueError: The file is damaged.
    """
    file = directory / MANIFEST
    if not file.is_file():
        inside = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST}"))
        hint = f"it holds those of {', '.join(inside)}" if inside else f"expected {MANIFEST} in it"
        raise FileNotFoundError(f"{directory}: no store of features ({hint})")
    info = read_json(file, f"delete it and {AGAIN}: no shard is computed again")
    del info["sha256"]
    info["shape"], takes = tuple(info["shape"]), info["takes"]
    info["takes"] = None if takes is None else tuple(takes)
    return Manifest(**info)


def begin_manifest(directory: Path, manifest: Manifest) -> None:
    """Make the directory, and write ``store.json`` unless another process has done so."""
    directory.mkdir(parents=True, exist_ok=True)
    with one_writer(directory):
        if not (directory / MANIFEST).is_file():
            write_json(directory / MANIFEST, asdict(manifest))


def finish_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the checksums that all shards state, and class names if there were none."""
    checksums, targets = [], []
    for shard in range(manifest.shards):
        tensors, stated = map_shard(shard_file(directory, shard))
        checksums.append(stated)
        targets.append(tensors[TARGETS])
    classes = manifest.classes or numbered(torch.cat(targets))
    with one_writer(directory):
        finished = replace(manifest, classes=classes, checksums=checksums)
        write_json(directory / MANIFEST, asdict(finished))


def remove_store(directory: Path) -> None:
    """Delete what a store consists of, and nothing else; for its one writer."""
    for file in directory.glob(SHARDS):
        file.unlink()
    (directory / MANIFEST).unlink(missing_ok=True)


def shard_file(directory: Path, shard: int) -> Path:
    """Where a shard lies."""
    return directory / f"features-{shard:05d}.safetensors"


def write_shard(
    directory: Path, manifest: Manifest, shard: int, tensors: Mapping[str, Tensor]
) -> None:
    """Write a shard: features (r, *), and what those rows that have it have beside them."""
    from safetensors.torch import save

    content = save(dict(tensors), {"sha256": fingerprint(tensors, manifest.key(shard))})
    with one_writer(directory):
        write_whole(shard_file(directory, shard), lambda partial: partial.write_bytes(content))


def map_shard(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a shard, mapped and not read yet, and the checksum that it states.

    Raises:
        ValueError: There is no such file, or it is no shard.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"{file}: missing; {AGAIN}: it alone is made anew")
    try:
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            return {n: opened.get_tensor(n) for n in names}, (opened.metadata() or {})["sha256"]
    except (SafetensorError, LookupError, RuntimeError) as error:
        raise _damaged(file, str(error)) from error


def beside(
    directory: Path, manifest: Manifest, name: str, shards: Sequence[int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """The samples whose first views are there, and what stands beside them.

    Args:
        directory: Where the store lies.
        manifest: What it says.
        name: What to read. It is not compared with a checksum, and is None if a shard lacks it.
        shards: Where to look; None for all that are there.
    """
    looked_at = range(manifest.shards) if shards is None else shards
    there = [s for s in looked_at if shard_file(directory, s).is_file()]
    there = [s for s in there if manifest.rows_of(s).start < manifest.n]
    found = [map_shard(shard_file(directory, s))[0].get(name) for s in there]
    rows = [row for s in there for row in manifest.rows_of(s) if row < manifest.n]
    whole = [tensor for tensor in found if tensor is not None]
    is_whole = there and len(whole) == len(found)
    return torch.tensor(rows, dtype=torch.int64), torch.cat(whole) if is_whole else None


def checked_shard(directory: Path, manifest: Manifest, shard: int) -> dict[str, Tensor]:
    """The tensors of a shard, mapped, all of their bytes compared with its checksum.

    Raises:
        ValueError: The shard is missing, damaged, or one of another store.
    """
    file = shard_file(directory, shard)
    tensors, stated = map_shard(file)
    found = fingerprint(tensors, manifest.key(shard))
    if found != stated or (manifest.checksums and found != manifest.checksums[shard]):
        raise _damaged(file, "other bytes than were written")
    return tensors


def one_writer(directory: Path) -> AbstractContextManager[Any]:
    """Keeps other processes from writing to a directory at the same time."""
    from filelock import FileLock

    return FileLock(directory / ".lock")


def numbered(targets: Tensor) -> list[str]:
    """Names for classes that are known by their index alone."""
    if targets.ndim > 1 or targets.is_floating_point() or not len(targets):
        return []
    return [str(index) for index in range(int(targets.max()) + 1)]


def _damaged(file: Path, problem: str) -> ValueError:
    return ValueError(f"{file}: damaged ({problem}); delete it and {AGAIN}: it alone is made anew")
