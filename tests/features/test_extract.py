"""One pass of the backbone over a data set: right, resumable to the bit, and reused."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from nets import Shifted, hooks_on, output_at
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Lambda, ToTensor
from torchvision.transforms.v2 import ToDtype, ToImage

from manifold_mixup import FeatureStore, extract_features, freeze, replace_head

Samples = list[tuple[Tensor, int]]


def net() -> nn.Sequential:
    """Convolutions with BatchNorms that have seen something, pooling and a head."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    model(torch.randn(16, 2, 8, 8))
    freeze(model, except_="8")
    return model


def pictures(n: int = 37) -> Samples:
    """Pairs of a random picture and one of 3 classes."""
    return [(torch.randn(2, 8, 8), i % 3) for i in range(n)]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a store, byte by byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def every(store: FeatureStore) -> Tensor:
    """The features of all samples."""
    return store.features.gather(torch.arange(len(store)))


# What is stored


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_features_are_those_of_the_layer(tmp_path: Path, fast: bool, batch_size: int) -> None:
    """Each row is what the layer returns for that sample; targets stand beside it."""
    model, data = net(), pictures()
    store = extract_features(
        model, "5", data, tmp_path, fold=False, fast=fast, batch_size=batch_size
    )
    expected = output_at(model.eval(), "5", torch.stack([x for x, _ in data]))

    torch.testing.assert_close(every(store), expected, rtol=1e-5, atol=1e-5)
    assert store.targets.tolist() == [i % 3 for i in range(37)]
    assert (len(store), store.shape, store.stored_layer) == (37, (6, 4, 4), "5")
    assert FeatureStore(tmp_path).manifest == store.manifest


def test_pooled_features_are_stored_where_a_mix_can_be_folded(tmp_path: Path) -> None:
    """The store of layer 5 holds what the average behind it returns, 16 times fewer numbers."""
    model, data, said = net(), pictures(), []
    store = extract_features(model, "5", data, tmp_path, say=said.append)
    expected = output_at(model.eval(), "6", torch.stack([x for x, _ in data]))

    assert (store.layer, store.stored_layer) == ("5", "6")
    torch.testing.assert_close(every(store), expected, rtol=1e-5, atol=1e-5)
    assert any("layer '5': stored at '6'" in line for line in said)


def test_several_layers_are_stored_in_one_pass(tmp_path: Path) -> None:
    """Every sample is read once for the pass, and each store is that of its layer alone."""
    model, data = net(), Counted(pictures())
    stores = extract_features(model, ["2", "5"], data, tmp_path / "both")
    reads = dict(data.reads)
    alone = extract_features(model, "2", data, tmp_path / "alone")

    assert list(stores) == ["2", "5"]
    looked_at = {0, 1, *(i * 37 // 16 for i in range(16))}  # before the pass
    assert {reads[i] for i in range(37) if i not in looked_at} == {1}
    torch.testing.assert_close(every(stores["2"]), every(alone), rtol=1e-6, atol=1e-6)
    assert stores["5"].stored_layer == "6"


class Counted:
    """A data set that counts how often each sample is read."""

    def __init__(self, samples: Samples) -> None:
        self.samples, self.reads = samples, dict.fromkeys(range(len(samples)), 0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads[index] += 1
        return self.samples[index]


def test_real_backbone_is_fused_to_the_same_features(tmp_path: Path) -> None:
    """On a ResNet-18 the faster copy is used, and differs by rounding alone."""
    model = timm.create_model("resnet18")
    freeze(model, except_=replace_head(model, 3))
    data = [(torch.randn(3, 64, 64), i % 3) for i in range(6)]
    fast = extract_features(model, "layer4", data, tmp_path / "fast")
    plain = extract_features(model, "layer4", data, tmp_path / "plain", fast=False)

    assert fast.manifest.form["computation"] != plain.manifest.form["computation"]
    torch.testing.assert_close(every(fast), every(plain), rtol=1e-4, atol=1e-5)


def test_model_and_random_states_come_back(tmp_path: Path) -> None:
    """No weight, buffer, mode, hook or memory format changes, and no draw is used up."""
    model, data = net(), pictures()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    random.seed(3)
    drawn = torch.rand(1).item(), random.random()
    torch.manual_seed(3)
    random.seed(3)
    extract_features(model, "5", data, tmp_path)

    assert (torch.rand(1).item(), random.random()) == drawn
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert model[0].weight.is_contiguous()
    assert hooks_on(model) == 0


# Asked for again


def test_same_store_is_used_again(tmp_path: Path) -> None:
    """Nothing is written or said; every sample is read once, and four more pass the model."""
    model, data, said = net(), Counted(pictures()), []
    extract_features(model, "5", data, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    data.reads = dict.fromkeys(range(37), 0)
    store = extract_features(model, "5", data, tmp_path, say=said.append)

    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert sorted(data.reads.values()) == [1] * 33 + [2] * 4
    assert said == []
    assert len(store) == 37


def changed_weight(model: nn.Module, data: Samples) -> dict[str, Any]:
    """Another convolution."""
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] += 1
    return {}


def changed_statistics(model: nn.Module, data: Samples) -> dict[str, Any]:
    """Another running mean."""
    model[1].running_mean[0] += 1
    return {}


def changed_picture(model: nn.Module, data: Samples) -> dict[str, Any]:
    """Another first picture."""
    data[0] = (data[0][0] + 1, 0)
    return {}


def inserted(model: nn.Module, data: Samples) -> dict[str, Any]:
    """One layer more before the one asked for, inside another."""
    model[2].add_module("after", nn.Tanh())
    return {}


def changed_number(model: nn.Module, data: Samples) -> dict[str, Any]:
    """A number that a layer has as a plain attribute."""
    model[2].slope = 0.5
    return {}


def changed_attribute(model: nn.Module, data: Samples) -> dict[str, Any]:
    """A tensor that is neither a parameter nor a buffer."""
    model[2].shift = torch.ones(1)
    return {}


def fewer(model: nn.Module, data: Samples) -> dict[str, Any]:
    """One sample less."""
    data.pop()
    return {}


CHANGES: list[tuple[Any, dict[str, Any], str]] = [
    (changed_weight, {}, "3"),
    (changed_statistics, {}, "1"),
    (inserted, {}, "weights or settings of '2'"),
    (changed_number, {}, "weights or settings of '2'"),
    (changed_attribute, {}, "weights or settings of '2'"),
    (changed_picture, {}, "sample"),
    (fewer, {}, "37"),
    (lambda model, data: {}, {"dtype": torch.float16}, "float16"),
    (lambda model, data: {}, {"layers": "2"}, "layer"),
    (lambda model, data: {}, {"fold": False}, "stored_layer"),
]


@pytest.mark.parametrize(("change", "options", "named"), CHANGES)
def test_other_features_are_not_taken_for_these(
    tmp_path: Path, change: Any, options: dict[str, Any], named: str
) -> None:
    """What differs is named and the store is kept; `overwrite` replaces it."""
    model, data = net(), pictures()
    extract_features(model, "5", data, tmp_path)
    before = bytes_of(tmp_path)
    change(model, data)
    asked = {"layers": "5", **options}
    with pytest.raises(ValueError, match=f"features of something else .*{named}.*overwrite"):
        extract_features(model, dataset=data, directory=tmp_path, **asked)
    assert bytes_of(tmp_path) == before

    new = extract_features(model, dataset=data, directory=tmp_path, overwrite=True, **asked)
    assert bytes_of(tmp_path) != before
    assert (len(new), new.layer) == (len(data), asked["layers"])


class Times(nn.Module):
    """A transform that does not say by how much it multiplies."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        """The image, brighter."""
        return image * self.factor


class Brighter(ImageFolder):
    """A folder of images that are changed where no transform says so."""

    factor = 1.0

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return image * self.factor, target


def folder_of(folder: Path, kind: str, factor: float) -> ImageFolder:
    """Images multiplied by a factor in one of several ways that cannot be read off."""
    multiplied = {
        "lambda": Compose([ToTensor(), Lambda(lambda image: factor * image)]),
        "transform": Compose([ToTensor(), Times(factor)]),
        "module": nn.Sequential(ToImage(), ToDtype(torch.float32), Times(factor)),
    }
    if kind == "loader":
        grey = Image.new("RGB", (8, 8), int(9 * factor))
        return ImageFolder(str(folder), ToTensor(), loader=lambda path: grey)
    data = (ImageFolder if kind in multiplied else Brighter)(
        str(folder), multiplied.get(kind, ToTensor())
    )
    data.factor = factor
    return data


@pytest.mark.parametrize("kind", ["lambda", "transform", "module", "loader", "data set"])
def test_change_that_a_data_set_does_not_tell_is_found(tmp_path: Path, kind: str) -> None:
    """Files alone stand for a data set only if nothing unknown is done to them."""
    for path in (tmp_path / "photos/a/1.png", tmp_path / "photos/b/1.png"):
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), "grey").save(path)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    for _ in range(2):  # the same is found to be the same
        extract_features(model, "1", folder_of(tmp_path / "photos", kind, 1.0), tmp_path / "store")
    with pytest.raises(ValueError, match="the input of sample 0 and of 1 more"):
        extract_features(model, "1", folder_of(tmp_path / "photos", kind, 2.0), tmp_path / "store")


def test_weights_behind_the_layer_do_not_matter(tmp_path: Path) -> None:
    """Features of a model whose head was trained since are those of before."""
    model, data = net(), pictures()
    extract_features(model, "5", data, tmp_path)
    nn.init.zeros_(model[8].weight)
    extract_features(model, "5", data, tmp_path).check_model(model)


# Random augmentation


def test_random_pictures_need_views(tmp_path: Path) -> None:
    """Without `views=` random augmentation is an error, and nothing is stored."""
    data = Shifted(pictures(), lambda: torch.rand(1))
    with pytest.raises(ValueError, match="differs each time it is read.*views="):
        extract_features(net(), "5", data, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random])
def test_views_differ_and_are_the_same_again(tmp_path: Path, draw: Any) -> None:
    """Each view is a draw of its own, decided by view and sample alone."""
    model, data = net(), Shifted(pictures(), draw)
    stores = [extract_features(model, "5", data, tmp_path / name, views=3) for name in "ab"]
    index = torch.arange(37)
    views = [[store.features.gather(index, view=v) for v in range(3)] for store in stores]

    assert stores[0].views == 3
    assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))
    assert not torch.allclose(views[0][0], views[0][1])
    assert stores[0].targets.tolist() == [i % 3 for i in range(37)]


def test_no_bit_depends_on_the_number_of_threads(tmp_path: Path) -> None:
    """A batch is computed by one thread, however many there are."""
    model, data, before = net(), pictures(), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            extract_features(model, "5", data, tmp_path / f"{threads}", batch_size=4)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "3")


# Interrupted


SCRIPT = """
    import sys, time, torch
    from torch import nn
    from manifold_mixup import extract_features
    torch.set_num_threads(1)
    class Slow:
        def __len__(self):
            return 96
        def __getitem__(self, index):
            time.sleep(float(sys.argv[2]))
            return torch.randn(4, generator=torch.Generator().manual_seed(index)), index % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    extract_features(model, "1", Slow(), sys.argv[1], batch_size=2)
    """


def start(folder: Path, pause: float, **environment: str) -> "subprocess.Popen[bytes]":
    """A process that stores 96 samples, of which each takes a while."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(pause)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    )


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Kill -9 again and again; what is left is always continued to the undisturbed store.

    The number of kills is KILLS in the environment.
    """
    assert start(tmp_path / "whole", 0).wait() == 0
    whole, killed, left = bytes_of(tmp_path / "whole"), tmp_path / "killed", []
    moments = random.Random(0)
    for _ in range(int(os.environ.get("KILLS", "2"))):
        before = shards_in(killed)
        process = start(killed, 0.02)
        while process.poll() is None and shards_in(killed) == before:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        left.append(shards_in(killed) if process.wait() else 24)
        if left[-1] == 24:
            assert start(killed, 0).wait() == 0
            assert bytes_of(killed) == whole
            shutil.rmtree(killed)
    assert start(killed, 0).wait() == 0

    assert bytes_of(killed) == whole
    assert 0 < left[0] < 24


def shards_in(folder: Path) -> int:
    """The number of shards in a store."""
    return len(list(folder.glob("features-*")))


@pytest.mark.distributed
def test_several_processes_store_what_one_does(tmp_path: Path) -> None:
    """Each does its share, as started by torchrun."""
    assert start(tmp_path / "one", 0).wait() == 0
    ranks = [start(tmp_path / "two", 0.005, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert [process.wait() for process in ranks] == [0, 0]
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_shards_of_a_store_without_manifest_are_not_taken_over(tmp_path: Path) -> None:
    """What was left of another store is made anew; files of others stay as they are."""
    model, data = net(), pictures()
    other = tmp_path / "features-mine.safetensors"
    extract_features(model, "5", [(x + 1, y) for x, y in data], tmp_path, batch_size=2)
    (tmp_path / "store.json").unlink()
    other.write_text("mine")
    found = every(extract_features(model, "5", data, tmp_path, batch_size=2))
    expected = extract_features(model, "5", data, tmp_path / "new", batch_size=2)

    assert torch.equal(found, every(expected))
    extract_features(model, "2", data, tmp_path, overwrite=True)
    assert other.read_text() == "mine"


def test_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    """Before anything is read or computed."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file: a file, expected a folder"):
        extract_features(net(), "5", pictures(), tmp_path / "file")


def test_damaged_shard_of_an_unfinished_store_is_made_again(tmp_path: Path) -> None:
    """What was spoiled before the store was whole is found when it goes on."""
    model, data, said = net(), pictures(), []
    extract_features(model, "5", data, tmp_path, batch_size=2)
    whole = bytes_of(tmp_path)
    manifest = tmp_path / "store.json"
    unfinished = {**json.loads(manifest.read_text()), "checksums": []}
    from manifold_mixup._files import write_json

    write_json(manifest, {k: v for k, v in unfinished.items() if k != "sha256"})
    first, second = sorted(tmp_path.glob("features-*"))[:2]
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.unlink()
    extract_features(model, "5", data, tmp_path, batch_size=2, say=said.append)

    assert any(first.name in line and "damaged" in line for line in said)
    assert bytes_of(tmp_path) == whole


def test_full_disk_is_told_before_and_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are one clear error; what is stored is kept and continued."""
    model, data = net(), pictures()
    usage = type("Usage", (), {"free": 10})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="the features need .* the disk has 10 bytes left"):
            extract_features(model, "5", data, tmp_path / "store")
    written: list[Path] = []
    plainly = Path.write_bytes

    def write_bytes(path: Path, content: bytes) -> int:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return plainly(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(OSError, match="the disk is full; what is stored is kept"):
            extract_features(model, "5", data, tmp_path / "store", batch_size=2)
    assert len(list((tmp_path / "store").glob("features-*"))) == 3
    extract_features(model, "5", data, tmp_path / "store", batch_size=2)
    extract_features(model, "5", data, tmp_path / "whole", batch_size=2)
    assert bytes_of(tmp_path / "store") == bytes_of(tmp_path / "whole")


# What is refused


class Endless(IterableDataset[Any]):
    """A data set without positions."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "9"}, "has no layer '9'"),
        ({"layers": "*"}, "name layers one by one"),
        ({"layers": "input"}, "name layers one by one"),
        ({"dataset": []}, "the data set is empty"),
        ({"dtype": torch.int8}, "dtype=torch.int8 cannot be stored"),
        ({"views": 0}, "views=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"dataset": [torch.randn(2, 8, 8)]}, "expected a pair"),
        ({"dataset": Endless()}, "expected a map-style set"),
    ],
)
def test_mistake_is_named_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """A wrong argument is an error that says it, and no folder is left."""
    asked: dict[str, Any] = {"layers": "5", "dataset": pictures(), **options}
    with pytest.raises((ValueError, TypeError), match=message):
        extract_features(net(), directory=tmp_path / "store", **asked)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("fold", [True, False])
def test_layer_in_a_branch_is_refused(tmp_path: Path, fold: bool) -> None:
    """Features that are not the only way forward are not worth a pass."""
    model = timm.create_model("resnet18")
    data = [(torch.randn(3, 32, 32), 0)]
    with pytest.raises(ValueError, match="'layer4.1.conv1' .* what 'layer4.0' returns bypasses"):
        extract_features(model, "layer4.1.conv1", data, tmp_path / "store", fold=fold)


def test_values_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    """The sample, the value and the way out are named."""
    model, data = net(), pictures()
    data[20] = (data[20][0] * 1e7, 2)
    with pytest.raises(ValueError, match="sample 20 .* too large for float16; .*torch.float32"):
        extract_features(model, "5", data, tmp_path, dtype=torch.float16)


@pytest.mark.parametrize("position", [0, 1, 20])
def test_sample_of_nan_is_named(tmp_path: Path, position: int) -> None:
    """Also one that the model is tried on: no layer is blamed for it."""
    data = pictures()
    data[position][0][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"sample {position} .*not finite"):
        extract_features(net(), "5", data, tmp_path)


@pytest.mark.parametrize("position", [0, 20])
def test_values_that_a_model_mends_may_be_missing(tmp_path: Path, position: int) -> None:
    """Of any sample: what counts is what the layer returns."""

    class Mending(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nan_to_num(x)

    data = pictures()
    data[position][0][0, 0, 0] = float("nan")
    store = extract_features(nn.Sequential(Mending(), net()), "1.5", data, tmp_path)

    assert len(store) == len(data)


class Keeping(nn.Linear):
    """Keeps what it returned last."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8)."""
        self.kept = super().forward(x).tanh()
        return self.kept


class Bypassed(nn.Module):
    """Uses behind a layer what a module before it has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.b = nn.Linear(4, 8), Keeping(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        logits: Tensor = self.head(self.b(self.m(self.a(x).relu())).relu() + self.m.kept)
        return logits


@pytest.mark.parametrize("layers", [["b"], ["a", "b"], ["b", "a"]])
def test_bypassed_layer_is_refused_beside_any_other(layers: list[str], tmp_path: Path) -> None:
    """A tail cut at another layer runs what the bypass comes from, and must not hide it."""
    samples = [(torch.randn(4), i % 3) for i in range(6)]

    with pytest.raises(ValueError, match="cannot be cut here: layer 'b'"):
        extract_features(Bypassed(), layers, samples, tmp_path)
