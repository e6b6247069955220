"""What a long comparison has trained so far, on disk, so that it can go on."""

from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from manifold_mixup.files import fingerprint, read_tensors, write_tensors

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
