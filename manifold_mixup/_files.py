"""Files that are whole or not there, and named with what is wrong with them."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor


def part_name(name: str) -> str:
    """What a file is called until it is written whole."""
    return f".{name}.part"


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there, so that it is never half there."""
    partial = file.with_name(part_name(file.name))
    try:
        write(partial)
        os.replace(partial, file)
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(file)
        raise
    finally:
        partial.unlink(missing_ok=True)


def fingerprint(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """The sha256 of a text and of names, types, shapes and values.

    Example:
        >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(3)})
        False
    """
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors by name, and texts beside them."""
    from safetensors.torch import save

    # Clones, because tensors that share memory are refused.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_whole(file, lambda partial: partial.write_bytes(save(plain, metadata)))


def read_tensors(file: Path, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts that `write_tensors` wrote.

    Args:
        file: An existing file.
        advice: What the error says to do about a damaged file.

    Raises:
        ValueError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged ({error}); {advice}") from error


def write_json(file: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Write JSON values with their checksum under ``sha256``; what was written."""
    written = {**info, "sha256": fingerprint({}, json.dumps(info))}
    text = json.dumps(written, indent=2)
    write_whole(file, lambda partial: partial.write_text(text))
    return written


def read_json(file: Path, advice: str) -> dict[str, Any]:
    """What `write_json` wrote.

    Args:
        file: An existing file.
        advice: What the error says to do about a damaged file.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        info: dict[str, Any] = json.loads(file.read_text())
        rest = {key: value for key, value in info.items() if key != "sha256"}
        problem = "" if info["sha256"] == fingerprint({}, json.dumps(rest)) else "was changed"
    except ValueError as error:
        problem = str(error)
    except (AttributeError, LookupError):
        problem = "no JSON object with a checksum"
    if problem:
        raise ValueError(f"{file}: damaged ({problem}); {advice}")
    return info


_ADVICE = "delete it and go on with --resume"


class Kept:
    """Tensors by name, each written whole to a file of its own.

    Args:
        folder: Where they lie, made when the first is kept; None keeps nothing.

    Example:
        >>> kept = Kept(Path("kept"))
        >>> kept.get("a"), kept.put("a", {"x": torch.ones(1)}), Kept(Path("kept")).get("a")
        (None, {'x': tensor([1.])}, {'x': tensor([1.])})
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def under(self, name: str) -> "Kept":
        """A folder in this one."""
        return Kept(self.folder and self.folder / quote(name, safe=""))

    def get(self, name: str) -> dict[str, Tensor] | None:
        """What is kept by a name; None if nothing is.

        Raises:
            ValueError: The file is damaged.
        """
        file = self._file(name)
        if file is None or not file.is_file():
            return None
        tensors, metadata = read_tensors(file, _ADVICE)
        if metadata.get("sha256") != fingerprint(tensors):
            raise ValueError(f"{file}: damaged (other values than were kept); {_ADVICE}")
        return tensors

    def put(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep tensors by a name, and give them back."""
        if (file := self._file(name)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(file, tensors, {"sha256": fingerprint(tensors)})
        return tensors

    def _file(self, name: str) -> Path | None:
        return self.folder and self.folder / f"{quote(name, safe='')}.safetensors"
