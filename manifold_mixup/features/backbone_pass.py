"""The pass through the backbone: load batches, compute in threads, fill shards."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from manifold_mixup._progress import Track
from manifold_mixup.features.shards import (
    FEATURES,
    INPUTS,
    TARGETS,
    Manifest,
    shard_file,
    write_shard,
)
from manifold_mixup.features.views import Marked, Views, as_inputs, as_targets, collate
from manifold_mixup.inspection import arguments, map_tensors
from manifold_mixup.models import channels_last, run_until, shared_copy

Item = TypeVar("Item")


Result = TypeVar("Result")


@dataclass(frozen=True)
class Unfinished:
    """A store that may lack shards: where it lies, and what it is to hold."""

    folder: Path
    manifest: Manifest

    @property
    def missing(self) -> list[int]:
        """The shards that are not there."""
        shards = range(self.manifest.shards)
        return [shard for shard in shards if not shard_file(self.folder, shard).is_file()]

    @property
    def missing_bytes(self) -> int:
        """Size of their features."""
        rows = sum(len(self.manifest.rows_of(shard)) for shard in self.missing)
        return rows * torch.Size(self.manifest.shape).numel() * self.manifest.torch_dtype.itemsize


class Compute:
    """Computes layers of a model in several threads at a time, one intra-op thread in each.

    So all cores have work without waiting for each other, and no bit depends on their number.

    Args:
        model: The model, or a faster copy; it stays as it is.
        device: Where it is.
        is_fused: Whether it takes images with their channels last.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, is_fused: bool) -> None:
        self.device, self.is_fused, self.is_copy = device, is_fused, True
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        # Each pass is stopped by hooks at its last layer: every thread has modules of its own.
        try:
            models = [shared_copy(model) for _ in range(self.threads)]
        except Exception:  # whatever a model that holds a lock, for instance, raises
            models, self.threads, self.is_copy = [model], 1, False
        self._models: SimpleQueue[nn.Module] = SimpleQueue()
        for one in models:
            self._models.put(one)

    def __call__(self, layers: Sequence[str], inputs: Any) -> dict[str, Tensor]:
        """What the layers return, by name."""
        model = self._models.get()
        try:
            # What a model keeps for itself in inference mode could not be trained with later.
            with torch.inference_mode() if self.is_copy else torch.no_grad():
                args, kwargs = arguments(map_tensors(as_inputs(inputs), self._placed))
                return run_until(model, layers, *args, **kwargs)
        finally:
            self._models.put(model)

    def _placed(self, path: str, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, non_blocking=True)
        return channels_last(tensor) if self.is_fused else tensor


def fill(
    stores: Sequence[Unfinished],
    compute: Compute,
    views: Views,
    share: tuple[int, int] = (0, 1),
    *,
    is_marked: bool,
    workers: int,
    track: Track,
) -> None:
    """Compute the missing shards of some stores in one pass over the samples, and write them.

    Args:
        stores: Stores of the same samples, in shards of one batch size times a power of two.
        compute: Computes their layers.
        views: The samples.
        share: (rank, world): which of as many parts of the work to do.
        is_marked: Whether to store a checksum of each input.
        workers: Processes that load samples; 0 loads them in this thread.
        track: Shows how far it is.
    """
    jobs = _jobs(stores, *share)
    loader: DataLoader[Any] = DataLoader(
        Marked(views) if is_marked else views,
        batch_sampler=[list(job.rows) for job in jobs],
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),  # its own, or it would draw from the global one
    )
    fillings = [_Filling(store) for store in stores]

    def work(item: tuple[_Job, Any]) -> tuple[_Job, dict[str, Tensor], list[Tensor]]:
        job, (inputs, targets, *marks) = item
        names = [stores[i].manifest.stored_layer for i in job.stores]
        outputs = compute(sorted(set(names)), inputs)
        beside = {TARGETS: as_targets(targets)} | ({INPUTS: marks[0]} if marks else {})
        return job, beside, [outputs[name] for name in names]

    batches = zip(jobs, track(loader, len(jobs), "extract features"), strict=True)
    for job, beside, outputs in _in_threads(work, batches, compute.threads):
        for i, output in zip(job.stores, outputs, strict=True):
            fillings[i].add(job.rows, output, beside)


def wait_for_others(stores: Sequence[Unfinished], patience: float) -> bool:
    """Wait while other processes write shards; whether all are there.

    Args:
        stores: Stores that several processes fill.
        patience: Seconds without a new shard after which to wait no longer.
    """
    last, since = -1, 0.0
    while missing := sum(len(store.missing) for store in stores):
        if missing != last:
            last, since = missing, time.monotonic()
        if time.monotonic() - since > patience:
            return False
        time.sleep(0.05)
    return True


class _Job(NamedTuple):
    """A batch, and the positions of the stores that need it."""

    rows: range
    stores: list[int]


def _jobs(stores: Sequence[Unfinished], rank: int, world: int) -> list[_Job]:
    """The batches of a share that are still to be done, in order."""
    manifests = [store.manifest for store in stores]
    missing = [set(store.missing) for store in stores]
    total, size = manifests[0].total, manifests[0].form["batch_size"]
    # The shards of all stores lie within those of the largest ones.
    largest = max(manifest.rows for manifest in manifests)
    jobs = []
    for start in range(0, total, size):
        needing = [i for i, m in enumerate(manifests) if start // m.rows in missing[i]]
        if needing and start // largest % world == rank:
            jobs.append(_Job(range(start, min(start + size, total)), needing))
    return jobs


def _in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """The results in order, while this thread fetches the next items."""
    waiting: deque[Future[Result]] = deque()
    start = partial(torch.set_num_threads, 1)
    with _one_intra_op_thread(), ThreadPoolExecutor(threads, initializer=start) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _one_intra_op_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Filling:
    """Gathers the rows of a store, which come in order, and writes each shard when it is full."""

    def __init__(self, store: Unfinished) -> None:
        self.folder, self.manifest = store.folder, store.manifest
        self.features = torch.empty(0)
        self.beside: list[dict[str, Tensor]] = []

    def add(self, rows: range, output: Any, beside: Mapping[str, Tensor]) -> None:
        """Take what the layer returned for a batch, and what stands beside each row."""
        manifest = self.manifest
        shard, at = divmod(rows.start, manifest.rows)
        held = manifest.rows_of(shard)
        if at == 0:
            self.features = torch.empty(len(held), *manifest.shape, dtype=manifest.torch_dtype)
            self.beside = []
        features = self.features[at : at + len(rows)]
        features.copy_(self._checked(rows, output))
        if not features.isfinite().all():
            self._refuse(rows, features, output)
        own = max(0, manifest.n - rows.start)
        self.beside.append({name: tensor[:own] for name, tensor in beside.items()})
        if rows.stop == held.stop:
            joined = {name: torch.cat([one[name] for one in self.beside]) for name in beside}
            write_shard(self.folder, manifest, shard, {FEATURES: self.features, **joined})

    def _checked(self, rows: range, output: Any) -> Tensor:
        expected = (len(rows), *self.manifest.shape)
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if found != expected:
            raise ValueError(
                f"layer '{self.manifest.stored_layer}' returns {found} for samples "
                f"{rows.start % self.manifest.n} and following, expected {expected} as for the "
                "first ones; bring all samples to one shape"
            )
        checked: Tensor = output
        return checked

    def _refuse(self, rows: range, features: Tensor, output: Tensor) -> None:
        row = int((~features.isfinite()).flatten(1).any(1).nonzero()[0])
        sample = (rows.start + row) % self.manifest.n
        where = f"layer '{self.manifest.stored_layer}' gives sample {sample} values"
        if output[row].isfinite().all():
            highest = output[row].abs().max().item()
            raise ValueError(
                f"{where} up to {highest:g}, too large for {self.manifest.dtype}; "
                "store them with dtype=torch.float32"
            )
        raise ValueError(f"{where} that are not finite; look at that sample and the weights")
