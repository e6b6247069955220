"""The store on disk: what is read is what was written, and what is damaged is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from manifold_mixup.features import FeatureStore
from manifold_mixup.features.shards import (
    FEATURES,
    MANIFEST,
    TARGETS,
    Manifest,
    begin_manifest,
    finish_manifest,
    shard_file,
    write_shard,
)

AGAIN = "extract again with the same arguments"


def a_manifest(features: Tensor, rows: int, made_of: str = "this") -> Manifest:
    """A manifest for features (views, n, *)."""
    views, n, *shape = features.shape
    return Manifest(
        layer="body",
        stored_layer="body",
        n=n,
        views=views,
        shape=tuple(shape),
        dtype=str(features.dtype).removeprefix("torch."),
        takes=(4,),
        rows=rows,
        form={"batch_size": 1},
        made_of={"modules": {}, "what": made_of},
    )


def save_store(
    folder: Path, features: Tensor, rows: int = 4, targets: Tensor | None = None, made_of: str = ""
) -> FeatureStore:
    """A store of features (views, n, *), in shards of so many rows, without a model."""
    manifest = a_manifest(features, rows, made_of)
    n, flat = manifest.n, features.flatten(0, 1)
    targets = torch.arange(n) % 3 if targets is None else targets
    begin_manifest(folder, manifest)
    for shard in range(manifest.shards):
        held = manifest.rows_of(shard)
        own = targets[held.start : min(held.stop, n)]
        tensors = {FEATURES: flat[held.start : held.stop].clone(), TARGETS: own.clone()}
        write_shard(folder, manifest, shard, tensors)
    finish_manifest(folder, manifest)
    return FeatureStore(folder)


def flip(file: Path, position: int, bits: int = 1) -> None:
    """Change a byte."""
    content = bytearray(file.read_bytes())
    content[position] ^= bits
    file.write_bytes(content)


# Read


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 20),
    views=st.integers(1, 3),
    rows=st.integers(1, 30),
    shape=st.sampled_from([(), (3,), (2, 1, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 99),
)
def test_gather_is_direct_indexing(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    views: int,
    rows: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Any index, across shards and repeated, of any view, mapped or in memory, also of a part."""
    torch.manual_seed(seed)
    features = torch.randn(views, n, *shape).to(dtype)
    store = save_store(tmp_path_factory.mktemp("store"), features, rows)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    index, view = torch.randint(n, (7,)), torch.randint(views, (7,))
    positions = torch.randperm(n)[: max(1, n // 2)]
    of_part = torch.randint(len(positions), (5,))

    for read in (store, store.load()):
        assert torch.equal(read.features.gather(index), features[0, index].to(wide))
        assert torch.equal(read.features.gather(index, view=view), features[view, index].to(wide))
        assert torch.equal(
            read.features.gather(index, view=views - 1), features[-1, index].to(wide)
        )
        for part in (read.take(positions.tolist()), read.take(positions).load()):
            assert len(part) == len(positions)
            assert torch.equal(part.targets, store.targets[positions])
            assert torch.equal(
                part.features.gather(of_part, view=views - 1),
                features[-1, positions[of_part]].to(wide),
            )


def test_what_is_gathered_is_memory_of_its_own(tmp_path: Path) -> None:
    """Whoever changes it changes neither the store nor another gather."""
    features = torch.randn(1, 10, 3)
    for store in (save_store(tmp_path, features), FeatureStore(tmp_path).load()):
        store.features.gather(torch.arange(3)).zero_()
        store.features[2].zero_()
        store.features[:5].zero_()

        assert torch.equal(store.features[:], features[0])
        assert torch.equal(FeatureStore(tmp_path).features[:], features[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "key", [0, 9, -1, slice(None), slice(3, 6), slice(0, 0), slice(None, None, 3), slice(-4, None)]
)
def test_positions_and_slices_are_those_of_a_tensor(
    tmp_path: Path, key: int | slice, dtype: torch.dtype
) -> None:
    """Features are indexed like the tensor that they stand for, in the type they are stored in."""
    features = torch.randn(1, 10, 3).to(dtype)
    store = save_store(tmp_path, features)

    assert store.features[key].dtype == dtype
    assert torch.equal(store.features[key], features[0][key])
    assert len(store.features) == len(store) == 10
    assert store.features.shape == (10, 3)
    assert store.shape == (3,)
    assert store.dtype == store.features.dtype == dtype
    assert store.features.nbytes == features.nbytes


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(("index", "view"), [([10], 0), ([0, -1], 0), ([0], 2), ([0], -1)])
def test_what_is_not_there_is_refused(
    tmp_path: Path, index: list[int], view: int, in_memory: bool
) -> None:
    """A position or view outside the store never gives another sample's features."""
    store = save_store(tmp_path, torch.randn(2, 10, 3))
    store = store.load() if in_memory else store

    with pytest.raises(IndexError, match="there is no (sample|view)"):
        store.features.gather(torch.tensor(index), view=view)
    with pytest.raises(IndexError):
        store.features[10]


def test_a_mask_takes_what_it_chooses(tmp_path: Path) -> None:
    """As in a tensor; what there is not is refused at once."""
    features = torch.randn(1, 5, 3)
    store = save_store(tmp_path, features)
    mask = torch.tensor([True, False, False, True, True])

    assert torch.equal(store.take(mask).features[:], features[0][mask])
    assert torch.equal(store.take(mask).targets, store.targets[mask])
    assert len(store.take([])) == 0
    for wrong in ([-1], [5], [True, False]):
        with pytest.raises(IndexError, match="sample"):
            store.take(wrong)


def test_a_part_of_a_part(tmp_path: Path) -> None:
    """Parts count from their own first sample."""
    features = torch.randn(1, 10, 3)
    store = save_store(tmp_path, features)

    part = store.take([9, 5, 5, 0]).take(torch.tensor([3, 1]))

    assert torch.equal(part.features[:], features[0, [0, 5]])
    assert part.targets.tolist() == [0, 2]


@pytest.mark.parametrize("targets", [torch.randn(10), torch.rand(10, 4), torch.ones(10, 2, 2)])
def test_targets_of_any_shape(tmp_path: Path, targets: Tensor) -> None:
    """Real values, several labels, images: targets come back as they were, without class names."""
    store = save_store(tmp_path, torch.randn(1, 10, 3), targets=targets)

    assert torch.equal(store.targets, targets)
    assert store.classes == []


@pytest.mark.parametrize("given", [torch.arange(10) * 3, torch.rand(10, 4), list(range(10))])
def test_other_targets_go_with_their_samples(tmp_path: Path, given: Tensor | list[int]) -> None:
    """A store with other targets has the same features, in parts and in memory too; the store it
    was made of, and the files, keep theirs.
    """
    store = save_store(tmp_path, torch.randn(1, 10, 3))
    other, expected = store.with_targets(given), torch.as_tensor(given)
    mask = torch.arange(10) % 3 == 1

    assert torch.equal(other.features[:], store.features[:])
    for one in (other, other.load()):
        assert torch.equal(one.targets, expected)
        assert torch.equal(one.take(mask).targets, expected[mask])
        assert torch.equal(one.take([7, 2, 5]).load().take([2, 0]).targets, expected[[5, 7]])
    for one in (store, FeatureStore(tmp_path)):
        assert torch.equal(one.targets, torch.arange(10) % 3)


def test_targets_of_a_part_are_replaced_by_as_many(tmp_path: Path) -> None:
    """A part takes a target for each of its own samples, again and again, and keeps a copy."""
    part = save_store(tmp_path, torch.randn(1, 10, 3)).take([9, 3, 4])
    given = torch.tensor([2, 0, 1])
    other = part.with_targets(given)
    given.zero_()

    assert other.targets.tolist() == [2, 0, 1]
    assert other.with_targets([5, 5, 6]).targets.tolist() == [5, 5, 6]
    assert torch.equal(other.features[:], part.features[:])


@pytest.mark.parametrize("given", [[0] * 9, [0] * 11, torch.tensor(1), torch.zeros(1, 10)])
def test_as_many_targets_as_samples(tmp_path: Path, given: Tensor | list[int]) -> None:
    """The error tells how many there must be."""
    store = save_store(tmp_path, torch.randn(1, 10, 3))

    with pytest.raises(ValueError, match="10 samples need as many targets, got targets of shape"):
        store.with_targets(given)


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    """Where nobody names the classes, their indices do."""
    assert save_store(tmp_path, torch.randn(1, 10, 3)).classes == ["0", "1", "2"]


def test_reading_the_map_needs_no_memory(tmp_path: Path) -> None:
    """All of a store of 100 MB is gathered, and the process has hardly more memory of its own."""
    save_store(tmp_path, torch.randn(1, 12_500, 2048), rows=4096)
    code = (
        "import sys, torch\n"
        "from manifold_mixup.features.store import FeatureStore\n"
        "import safetensors.torch\n"
        "def anonymous():\n"
        "    lines = dict(line.split(':') for line in open('/proc/self/status'))\n"
        "    return int(lines['RssAnon'].split()[0]) / 1024\n"
        "before = anonymous()\n"
        "store = FeatureStore(sys.argv[1])\n"
        "order = torch.randperm(len(store))\n"
        "total = sum(store.features.gather(i).sum() for i in order.split(32))\n"
        "print(anonymous() - before)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell anonymous memory")
    command = [sys.executable, "-c", code, str(tmp_path)]
    megabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert megabytes < 40


def test_nothing_in_a_shard_is_code(tmp_path: Path) -> None:
    """Any safetensors reader reads a shard; beside shards there are JSON and an empty lock."""
    features = torch.randn(1, 10, 3)
    save_store(tmp_path, features, rows=4)

    with safe_open(shard_file(tmp_path, 1), "pt") as opened:
        assert torch.equal(opened.get_tensor("features"), features[0, 4:8])
        assert opened.get_tensor("targets").tolist() == [1, 2, 0, 1]
    assert json.loads((tmp_path / MANIFEST).read_text())["shape"] == [3]
    assert not (tmp_path / ".lock").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        *(f"features-0000{shard}.safetensors" for shard in range(3)),
        MANIFEST,
    ]


# Damage


@settings(deadline=None, max_examples=80)
@given(share=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_any_changed_byte_is_named(
    tmp_path_factory: pytest.TempPathFactory, share: float, bits: int
) -> None:
    """A byte that changes anywhere in a shard, header included, is seen at the first read."""
    folder = tmp_path_factory.mktemp("store")
    save_store(folder, torch.randn(1, 10, 3))
    file = shard_file(folder, 1)
    place, before = int(share * file.stat().st_size), file.read_bytes()
    flip(file, place, bits)
    # Blanks that fill the header may be of any kind.
    assume(not {before[place], file.read_bytes()[place]} <= set(b" \t\r\n"))
    store = FeatureStore(folder)

    named = rf"features-00001\.safetensors: damaged .*; delete it and {AGAIN}: it alone"
    with pytest.raises(ValueError, match=named):
        store.verify()
    with pytest.raises(ValueError, match=named):
        store.features.gather(torch.tensor([0, 5]))
    assert store.features.gather(torch.tensor([0, 9])).shape == (2, 3)


def test_a_shard_is_checked_once_in_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first read checks a shard, later ones do not; parts share what has been checked."""
    store = save_store(tmp_path, torch.randn(1, 10, 3))
    import manifold_mixup.features.store as module

    checked, check = [], module.checked_shard
    monkeypatch.setattr(
        module, "checked_shard", lambda *given: checked.append(given[-1]) or check(*given)
    )
    for _ in range(2):
        store.features.gather(torch.tensor([0, 5]))
        store.take([1, 9]).features[:]

    assert checked == [0, 1, 2]
    store.verify()
    assert checked == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_cut_off_shard_is_named(tmp_path: Path, size: int) -> None:
    """Also what a full disk or a crash of the machine may leave."""
    store = save_store(tmp_path, torch.randn(1, 10, 3))
    file = shard_file(tmp_path, 2)
    file.write_bytes(file.read_bytes()[:size])

    with pytest.raises(ValueError, match=r"features-00002\.safetensors: damaged"):
        store.verify()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """A file that somebody deleted can be made anew."""
    store = save_store(tmp_path, torch.randn(1, 10, 3))
    shard_file(tmp_path, 1).unlink()

    with pytest.raises(ValueError, match=rf"00001.safetensors: missing; {AGAIN}"):
        store.verify()


@pytest.mark.parametrize("same_store", [True, False])
def test_a_shard_in_anothers_place_is_named(tmp_path: Path, same_store: bool) -> None:
    """Whole shards of other samples, or of another store, are no features of these."""
    features = torch.randn(1, 12, 3)
    store = save_store(tmp_path / "a", features)
    save_store(tmp_path / "b", features, made_of="something else")
    other = shard_file(tmp_path / "a", 2) if same_store else shard_file(tmp_path / "b", 1)
    shard_file(tmp_path / "a", 1).write_bytes(other.read_bytes())

    with pytest.raises(ValueError, match=r"features-00001\.safetensors: damaged"):
        store.verify()


def test_a_changed_manifest_is_named(tmp_path: Path) -> None:
    """JSON that somebody edited, or that is cut off, is not believed."""
    save_store(tmp_path, torch.randn(1, 10, 3))
    file = tmp_path / MANIFEST
    content = file.read_text()
    for changed in (content.replace('"n": 10', '"n": 11'), content[:50], "", "[]"):
        file.write_text(changed)
        with pytest.raises(ValueError, match=r"store\.json: damaged .* no shard is computed"):
            FeatureStore(tmp_path)


def test_an_unfinished_store_says_so(tmp_path: Path) -> None:
    """What is only begun cannot be trained on by mistake."""
    features = torch.randn(1, 10, 3)
    manifest = a_manifest(features, rows=4)
    begin_manifest(tmp_path, manifest)
    tensors = {FEATURES: features[0, :4], TARGETS: torch.arange(4)}
    write_shard(tmp_path, manifest, 0, tensors)

    with pytest.raises(ValueError, match=f"unfinished, 1 of 3 shards are there; {AGAIN}"):
        FeatureStore(tmp_path)


def test_a_folder_without_a_store_says_so(tmp_path: Path) -> None:
    """A wrong folder, or the one above several stores, is told apart."""
    with pytest.raises(FileNotFoundError, match=r"no store of features \(expected store\.json"):
        FeatureStore(tmp_path)
    save_store(tmp_path / "layer3", torch.randn(1, 4, 3))
    save_store(tmp_path / "layer4", torch.randn(1, 4, 3))
    with pytest.raises(FileNotFoundError, match="it holds those of layer3, layer4"):
        FeatureStore(tmp_path)


def test_a_manifest_is_begun_once(tmp_path: Path) -> None:
    """Of two processes that begin a store, the second keeps what the first has written."""
    features = torch.randn(1, 4, 3)
    begin_manifest(tmp_path, a_manifest(features, rows=4))
    before = (tmp_path / MANIFEST).read_bytes()
    begin_manifest(tmp_path, a_manifest(features, rows=2))

    assert (tmp_path / MANIFEST).read_bytes() == before
