"""A store that is used again holds what data set and model would give now, or is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from test_extract import bytes_of, every
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from manifold_mixup import FeatureStore, extract_features, freeze, replace_head, train_head
from manifold_mixup._files import read_json, write_json
from manifold_mixup.data import ImageSet, Split
from manifold_mixup.inspection import find_tensors

N = 100


def net() -> nn.Sequential:
    """Two layers before the one to store, and a head."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    freeze(model, except_="4")
    return model


class Plain(Dataset[Any]):
    """A data set that tells nothing but its samples."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.labels = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.labels[index])


def as_pairs(inputs: Tensor, targets: Tensor) -> Any:
    """A list of pairs."""
    return [(x, int(y)) for x, y in zip(inputs, targets, strict=True)]


KINDS: dict[str, Any] = {"plain": Plain, "tensors": TensorDataset, "pairs": as_pairs}


def unlooked_at() -> list[int]:
    """The 84 positions of 100 that were never looked at by earlier versions."""
    return sorted(set(range(N)) - {i * N // 16 for i in range(16)})


# The data set


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", ["84", "one"])
def test_corrected_labels_are_those_of_the_store(tmp_path: Path, kind: str, of: str) -> None:
    """Targets are those of the data set, in the store and in what is taken of it."""
    inputs, targets = torch.randn(N, 4), torch.arange(N) % 3
    extract_features(net_ := net(), "3", KINDS[kind](inputs, targets), tmp_path)
    before = bytes_of(tmp_path)
    chosen = unlooked_at() if of == "84" else [17]
    corrected = targets.clone()
    corrected[chosen] = 3 - corrected[chosen]
    said: list[str] = []
    store = extract_features(net_, "3", KINDS[kind](inputs, corrected), tmp_path, say=said.append)

    assert torch.equal(store.targets, corrected)
    assert torch.equal(store.take([99, 17]).targets, corrected[[99, 17]])
    assert store.classes == [str(i) for i in range(int(corrected.max()) + 1)]
    assert any("targets have changed" in line for line in said)
    assert bytes_of(tmp_path) == before


def test_a_head_is_trained_on_corrected_labels(tmp_path: Path) -> None:
    """Its weights are those of a head trained on features that are stored anew."""
    inputs, targets = torch.randn(N, 4), torch.arange(N) % 3
    model, corrected = net(), (torch.arange(N) % 3 + 1) % 3
    extract_features(model, "3", Plain(inputs, targets), tmp_path / "old")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heads = []
    for folder in ("old", "new"):
        model.load_state_dict(start)
        store = extract_features(model, "3", Plain(inputs, corrected), tmp_path / folder)
        heads.append(train_head(model, store, alpha=0.4).head)

    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (5,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_of_any_kind_are_current(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Values and several labels, too."""
    inputs, targets = torch.randn(N, 4), torch.rand(N, *shape).to(dtype)
    model = net()
    extract_features(model, "3", TensorDataset(inputs, targets), tmp_path)
    targets[17] += 1
    store = extract_features(model, "3", TensorDataset(inputs, targets), tmp_path)

    assert torch.equal(store.targets, targets)
    assert store.targets.dtype == dtype


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_any_changed_input_is_found(tmp_path: Path, kind: str, workers: int) -> None:
    """One value of one sample that was not looked at before is enough, and is named."""
    inputs, targets = torch.randn(N, 4), torch.arange(N) % 3
    model = net()
    extract_features(model, "3", KINDS[kind](inputs, targets), tmp_path, workers=workers)
    changed = inputs.clone()
    changed[17, 2] += 1e-3
    with pytest.raises(ValueError, match=r"the input of sample 17\)"):
        extract_features(model, "3", KINDS[kind](changed, targets), tmp_path, workers=workers)
    changed[unlooked_at()] += 1
    with pytest.raises(ValueError, match="the input of sample 1 and of 83 more"):
        extract_features(model, "3", KINDS[kind](changed, targets), tmp_path)
    anew = extract_features(model, "3", KINDS[kind](changed, targets), tmp_path, overwrite=True)
    with torch.no_grad():
        expected = model[:4](changed)

    torch.testing.assert_close(every(anew), expected, rtol=1e-5, atol=1e-5)


def test_samples_in_another_order_are_other_samples(tmp_path: Path) -> None:
    """The same pictures shuffled are refused."""
    inputs, targets = torch.randn(N, 4), torch.zeros(N, dtype=torch.int64)
    model = net()
    extract_features(model, "3", Plain(inputs, targets), tmp_path)
    order = torch.arange(N)
    order[17], order[18] = 18, 17
    with pytest.raises(ValueError, match="the input of sample 17 and of 1 more"):
        extract_features(model, "3", Plain(inputs[order], targets), tmp_path)


class Named(nn.Module):
    """A model whose features depend on texts beside its tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, words: list[str]) -> Tensor:
        """Logits."""
        return self.head(self.body(x * len(words[0])))


def test_changed_text_of_an_input_is_found(tmp_path: Path) -> None:
    """What is no tensor belongs to an input, too."""
    model, x = Named(), torch.randn(20, 4)
    data = [((x[i], "ab"), i % 2) for i in range(20)]
    extract_features(model, "body", data, tmp_path)
    extract_features(model, "body", data, tmp_path)
    data[7] = ((x[7], "abc"), 1)
    with pytest.raises(ValueError, match=r"the input of sample 7\)"):
        extract_features(model, "body", data, tmp_path)


def test_inputs_that_changed_while_a_store_is_not_whole(tmp_path: Path) -> None:
    """What is missing is not filled up from other samples or targets."""
    inputs, targets = torch.randn(N, 4), torch.arange(N) % 3
    model = net()
    extract_features(model, "3", Plain(inputs, targets), tmp_path, batch_size=2)
    info = read_json(tmp_path / "store.json", "")
    write_json(tmp_path / "store.json", {**without(info, "sha256"), "checksums": []})
    (tmp_path / "features-00003.safetensors").unlink()
    before = bytes_of(tmp_path)
    changed, other = inputs.clone(), targets.clone()
    changed[50] += 1
    other[50] += 1
    for data, named in ((Plain(changed, targets), "sample 50"), (Plain(inputs, other), "targets")):
        with pytest.raises(ValueError, match=named):
            extract_features(model, "3", data, tmp_path, batch_size=2)
    assert bytes_of(tmp_path) == before

    whole = extract_features(model, "3", Plain(inputs, targets), tmp_path, batch_size=2)
    with torch.no_grad():
        torch.testing.assert_close(every(whole), model[:4](inputs), rtol=1e-5, atol=1e-5)


def without(info: dict[str, Any], *names: str) -> dict[str, Any]:
    """A dict without some of its keys."""
    return {key: value for key, value in info.items() if key not in names}


def photos(folder: Path, n: int = 20) -> Path:
    """Grey images of two classes."""
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * i).convert("RGB").save(path)
    return folder


def conv() -> nn.Sequential:
    """A model of images 8 x 8."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


class Kept(ImageFolder):
    """A folder of images whose labels are not those of the folders."""

    shift = 0

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return image, target + self.shift


class Brighter(Subset[Any]):
    """A part of a data set that changes what it takes."""

    factor = 1.0

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return image * self.factor, target

    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


def test_files_are_known_by_size_and_time(tmp_path: Path) -> None:
    """None is read but for the four that pass the model; any that changes is named."""
    reads: list[str] = []
    data = ImageFolder(str(photos(tmp_path / "photos")), ToTensor())
    model = conv()
    extract_features(model, "1", data, tmp_path / "store")
    loader = data.loader
    data.loader = noted = lambda path: (reads.append(path), loader(path))[1]
    noted.__module__ = "torchvision"
    extract_features(model, "1", data, tmp_path / "store")
    assert len(reads) == 4

    file = tmp_path / "photos/b/17.png"
    Image.new("RGB", (8, 8), "red").save(file)
    os.utime(file, ns=(0, 0))
    with pytest.raises(ValueError, match="files '.*17.png'"):
        extract_features(model, "1", data, tmp_path / "store")


@pytest.mark.parametrize("how", ["samples", "method", "target_transform"])
def test_labels_of_files_are_current(tmp_path: Path, how: str) -> None:
    """However a folder of images comes to its labels."""
    shift = [0]
    change = (lambda target: target + shift[0]) if how == "target_transform" else None
    data = Kept(str(photos(tmp_path / "photos")), ToTensor(), change)
    model = conv()
    stored = extract_features(model, "1", data, tmp_path / "store").targets
    assert stored.tolist() == [0] * 10 + [1] * 10
    shift[0] = 2
    if how == "samples":
        data.samples = [(path, 1 - target) for path, target in data.samples]
    elif how == "method":
        data.shift = 3
    store = extract_features(model, "1", data, tmp_path / "store")

    assert store.targets.tolist() == [data[i][1] for i in range(20)]
    assert store.targets.tolist() != stored.tolist()


@pytest.mark.parametrize("part", ["all", "half"])
@pytest.mark.parametrize("target", [1, [1.0, 0.0], [0.1]])
def test_targets_of_the_package_are_those_that_samples_have(
    tmp_path: Path, target: Any, part: str
) -> None:
    """Classes, labels and values, told by files without reading one, to the bit."""
    paths = sorted(photos(tmp_path / "photos").rglob("*.png"))
    model = conv()
    for shift in (0, 0, 1):
        own = [target + i % 3 + shift if target == 1 else [t + i / 3 + shift for t in target]
               for i in range(20)]  # fmt: skip
        images: Any = ImageSet(Split(paths, own, [str(path) for path in paths]), ToTensor(), 3)
        images = Subset(images, range(3, 20, 2)) if part == "half" else images
        said: list[str] = []
        store = extract_features(model, "1", images, tmp_path / "store", say=said.append)
        expected = default_collate([images[i][1] for i in range(len(images))])
        assert store.targets.dtype == expected.dtype
        assert torch.equal(store.targets, expected)
        assert any("targets have changed" in line for line in said) == (shift == 1)


def test_part_that_changes_what_it_takes_is_read(tmp_path: Path) -> None:
    """A subclass of Subset does not say what it does, whatever it is a part of."""
    part = Brighter(ImageFolder(str(photos(tmp_path / "photos")), ToTensor()), range(3, 15))
    model = conv()
    extract_features(model, "1", part, tmp_path / "store")
    part.factor = 2.0
    with pytest.raises(ValueError, match="the input of sample 0 and of 11 more"):
        extract_features(model, "1", part, tmp_path / "store")


# The model


class Powered(nn.Module):
    """A model with settings of many kinds, of which the features depend on all but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.power, self.shape, self.is_positive, self.mode = 2, (2, 4), False, "sum"
        self.weights = {"first": 1, "second": [1, 2]}
        self.act: Any = torch.tanh
        self.calls = 0
        self.unread = torch.ones(1)
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 3)
        self.num_classes = 3

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.calls += 1
        x = x.reshape(-1, *self.shape) ** self.power
        x = x.flatten(1) if self.mode == "sum" else x.flip(1).flatten(1)
        x = x.abs() if self.is_positive else -x
        x = self.act(x) * self.weights["first"] + self.weights["second"][1]
        return self.head(self.body(x))[:, : self.num_classes]


CHANGED: dict[str, Any] = {
    "power": 3,
    "shape": (4, 2),
    "is_positive": True,
    "mode": "flip",
    "weights": {"first": 1, "second": [1, 3]},
    "act": F.relu,
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_setting_is_found(tmp_path: Path, name: str) -> None:
    """An int, tuple, bool, text, dict or function that comes into play before the layer."""
    model, data = Powered(), TensorDataset(torch.randn(20, 8), torch.arange(20) % 3)
    store = extract_features(model, "body", data, tmp_path)
    store.check_model(model)
    setattr(model, name, CHANGED[name])
    with pytest.raises(ValueError, match=f"setting {name} of the model itself was"):
        extract_features(model, "body", data, tmp_path)
    with pytest.raises(ValueError, match=f"setting {name} of the model itself was"):
        store.check_model(model)


@pytest.mark.parametrize(("name", "value"), [("num_classes", 2), ("calls", 7)])
def test_what_is_no_matter_before_the_layer_may_change(
    tmp_path: Path, name: str, value: int
) -> None:
    """What the head looks at, and what the model counts by itself."""
    model, data = Powered(), TensorDataset(torch.randn(20, 8), torch.arange(20) % 3)
    extract_features(model, "body", data, tmp_path)
    setattr(model, name, value)
    extract_features(model, "body", data, tmp_path).check_model(model)


def test_other_pooling_of_a_vit_is_another_model(tmp_path: Path) -> None:
    """With `reset_classifier(global_pool=...)` the features are those of the token no more."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3, fc_norm=False
    )
    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
    store = extract_features(model, "head_drop", data, tmp_path)
    model.reset_classifier(3, global_pool="avg")
    with pytest.raises(ValueError, match="setting global_pool of the model itself was 'token'"):
        extract_features(model, "head_drop", data, tmp_path)
    with pytest.raises(ValueError, match="global_pool"):
        store.check_model(model)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_new_head_and_frozen_weights_are_no_other_model(tmp_path: Path, name: str) -> None:
    """Features serve any number of classes."""
    size = 224 if "swin" in name else 32
    given: dict[str, Any] = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, **given)
    layer = replace_and_name(model, 3)
    data = TensorDataset(torch.randn(2, 3, size, size), torch.arange(2))
    extract_features(model, layer, data, tmp_path)
    assert replace_and_name(model, 7) == layer
    model.train()
    extract_features(model, layer, data, tmp_path).check_model(model)


def replace_and_name(model: nn.Module, classes: int) -> str:
    """Give a model of timm a new head, freeze the rest; the name of the layer before the head."""
    freeze(model, except_=replace_head(model, classes))
    return "norm" if hasattr(model, "norm") else "global_pool"


class Hidden(nn.Module):
    """A model whose features depend on what no fingerprint knows."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.config = type("Config", (), {"factor": 1.0})()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(self.config.factor * x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_few_samples_pass_the_model_again(tmp_path: Path, dtype: torch.dtype) -> None:
    """So a difference that nothing tells is found, and rounding is none."""
    model, data = Hidden(), TensorDataset(torch.randn(N, 4), torch.arange(N) % 3)
    extract_features(model, "body", data, tmp_path, dtype=dtype)
    extract_features(model, "body", data, tmp_path, dtype=dtype)
    model.config.factor = 1.1
    with pytest.raises(ValueError, match="features at 'body' that differ by"):
        extract_features(model, "body", data, tmp_path, dtype=dtype)


def test_every_view_may_be_among_them(tmp_path: Path) -> None:
    """Views of samples are compared with themselves."""
    data = [(torch.randn(4), 0) for _ in range(10)]

    class Noisy(Plain):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return data[index][0] + torch.rand(4), 0

    noisy = Noisy(torch.zeros(10, 4), torch.zeros(10))
    model = Hidden()
    for _ in range(2):
        store = extract_features(model, "body", noisy, tmp_path, views=3)
    assert store.views == 3


# Stores of the version before


def test_what_cannot_be_checked_of_an_earlier_store_is_said(tmp_path: Path) -> None:
    """Samples and settings of it are unknown; it is read, with the targets of now."""
    inputs, targets = torch.randn(N, 4), torch.arange(N) % 3
    model = net()
    extract_features(model, "3", Plain(inputs, targets), tmp_path)
    made_earlier(tmp_path, Plain(inputs, targets))
    targets[17] = 1 - targets[17] % 2
    said: list[str] = []
    store = extract_features(model, "3", Plain(inputs, targets), tmp_path, say=said.append)

    assert torch.equal(store.targets, targets)
    assert any("earlier version" in line and "of the inputs 16" in line for line in said)
    inputs[0] += 1
    with pytest.raises(ValueError, match="the samples of the data set"):
        extract_features(model, "3", Plain(inputs, targets), tmp_path)


def made_earlier(folder: Path, data: Any) -> None:
    """Make a store what the version before would have written."""
    from safetensors.torch import load_file

    from manifold_mixup.features.fingerprint import describe_data
    from manifold_mixup.features.shards import Manifest, write_shard
    from manifold_mixup.features.views import Views

    store = FeatureStore(folder)
    keys = ("n", "transform", "files", "targets", "samples")
    made_of = {"modules": store.manifest.made_of["modules"], **describe_data(Views(data), keys)}
    info = without(read_json(folder / "store.json", ""), "sha256") | {"made_of": made_of}
    manifest = Manifest(**info | {"shape": tuple(info["shape"]), "takes": tuple(info["takes"])})
    info["checksums"] = []
    for shard, file in enumerate(sorted(folder.glob("*.safetensors"))):
        write_shard(folder, manifest, shard, without(load_file(file), "inputs"))
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            info["checksums"].append(opened.metadata()["sha256"])
    write_json(folder / "store.json", info)
    assert json.loads((folder / "store.json").read_text())["made_of"] == made_of
    assert find_tensors(FeatureStore(folder).targets)
