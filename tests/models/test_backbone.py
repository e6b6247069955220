"""Pretrained models: loaded from a file, frozen, given a new head."""

import copy
import io
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from manifold_mixup import freeze, load_backbone, replace_head, unfreeze

TINY = "test_resnet"  # a timm model of half a million parameters

State = dict[str, Tensor]


class Net(nn.Module):
    """A token of its own, two blocks with BatchNorm and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.blocks = nn.Sequential(*[self.block() for _ in range(2)])
        self.head = nn.Linear(4, 3)

    @staticmethod
    def block() -> nn.Module:
        """A block that differs between training and evaluation."""
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Everything in turn."""
        return self.head(self.blocks(x + self.token))


def snapshot(model: nn.Module) -> State:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: State) -> set[str]:
    """The names of parameters and buffers that differ in any bit."""
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def train(model: nn.Module, images: Tensor, *, steps: int = 2) -> None:
    """A few ordinary steps, with the call to `train()` that every loop has."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(wanted, lr=0.1, momentum=0.9)
    for _ in range(steps):
        model.train()
        logits = model(images)
        loss = F.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def trainable(model: nn.Module) -> set[str]:
    """The names of parameters that take gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names_below(model: nn.Module, *prefixes: str) -> set[str]:
    """The names of all parameters below some modules."""
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def in_training(model: nn.Module) -> set[str]:
    """The names of modules in training mode."""
    return {name for name, module in model.named_modules() if module.training}


# freeze


def test_frozen_model_has_no_gradients_and_stays_in_eval_mode() -> None:
    """No parameter takes gradients and no module is in training mode, also after `train()`."""
    model = Net()
    F.mse_loss(model(torch.randn(5, 4)), torch.zeros(5, 3)).backward()

    freeze(model)

    for again in (model, model.train(), model.train(True), model.eval()):
        assert again is model
        assert trainable(model) == set()
        assert in_training(model) == set()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_freezing_changes_no_value() -> None:
    """A frozen model has the same state and gives what it gives in eval mode."""
    model, images = Net().eval(), torch.randn(5, 4)
    before, expected = snapshot(model), model(images)

    freeze(model)

    assert changed(model, before) == set()
    assert torch.equal(model.train()(images), expected)


@pytest.mark.parametrize("except_", ["head", ["head"], "[-1]"])
def test_training_beside_a_frozen_part_changes_the_head_only(except_: Any) -> None:
    """No parameter and no BatchNorm buffer of the frozen part moves, in many steps."""
    model = Net()
    freeze(model, except_=except_)
    before = snapshot(model)

    train(model, torch.randn(6, 4), steps=5)

    assert changed(model, before) == {"head.weight", "head.bias"}
    assert in_training(model) == {"", "head"}


@pytest.mark.parametrize(
    "choose",
    [
        lambda model: model.blocks[1],
        lambda model: [model.blocks[1]],
        lambda model: "blocks.1",
        lambda model: ["blocks[-1].*"],
        lambda model: nn.ModuleList([model.blocks[1]]),
        lambda model: [model.blocks[1][0], "blocks.1.1", model.blocks[1][2]],
    ],
)
def test_exceptions_are_modules_or_names(choose: Callable[[nn.Module], Any]) -> None:
    """What is excepted, by name or as module, trains and follows `train()` with all inside."""
    model = Net()

    freeze(model, except_=choose(model))

    assert trainable(model) == names_below(model, "blocks.1.")
    inside = {"", "blocks", "blocks.1", "blocks.1.0", "blocks.1.1", "blocks.1.2"}
    assert in_training(model.train()) == inside
    assert in_training(model.eval()) == set()


def test_exception_is_left_as_it_is() -> None:
    """Freezing again around what is frozen already does not wake it."""
    model = Net()
    freeze(model)

    freeze(model, except_="head")

    assert trainable(model) == set()


def test_parameter_shared_with_an_exception_trains() -> None:
    """A weight that lies in the frozen part and in the exception belongs to the exception."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight

    freeze(model, except_="1")

    assert model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("except_", "message"),
    [
        ("haed", "did you mean 'head'"),
        (["head", "blocks.7"], "no layer 'blocks.7'"),
        (nn.Linear(4, 3), "the Linear in except_ is not part of this Net"),
        ([nn.ReLU()], "the ReLU in except_ is not part of this Net"),
    ],
)
def test_unknown_exception_is_refused_and_nothing_frozen(except_: Any, message: str) -> None:
    """An exception that is not in the model is an error, and the model is as before."""
    model = Net()

    with pytest.raises(ValueError, match=message):
        freeze(model, except_=except_)

    assert trainable(model) == names_below(model, "")
    assert in_training(model) == {name for name, _ in model.named_modules()}


def duplicated_by_pickle(model: nn.Module) -> nn.Module:
    """The model as another process would get it."""
    return pickle.loads(pickle.dumps(model))


def duplicated_by_torch(model: nn.Module) -> nn.Module:
    """The model saved and loaded whole."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def duplicated_by_average(model: nn.Module) -> nn.Module:
    """The model in a moving average."""
    return AveragedModel(model).module


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, duplicated_by_pickle, duplicated_by_torch, duplicated_by_average],
)
def test_copy_of_a_frozen_model_is_frozen_by_itself(
    duplicate: Callable[[nn.Module], nn.Module],
) -> None:
    """A copy stays in eval mode, shares nothing with the original, and thaws alone."""
    model = Net()
    freeze(model)

    twin = duplicate(model)

    assert type(twin) is Net
    assert twin.train() is twin
    assert in_training(twin) == trainable(twin) == set()
    unfreeze(twin)
    assert in_training(twin.train()) == {name for name, _ in twin.named_modules()}
    assert in_training(model.train()) == trainable(model) == set()


def test_state_of_a_frozen_model_has_the_same_keys() -> None:
    """Freezing leaves no trace in what is saved."""
    model = Net()
    keys = list(model.state_dict())

    freeze(model)

    assert list(model.state_dict()) == keys


# unfreeze


def test_unfreezing_undoes_freezing() -> None:
    """All parameters train again and all modules follow `train()` and `eval()`."""
    model = Net()
    freeze(model)

    unfreeze(model)

    assert trainable(model) == names_below(model, "")
    assert in_training(model.train()) == {name for name, _ in model.named_modules()}
    assert in_training(model.eval()) == set()
    assert all("train" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("except_", [None, "head"])
@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel], ids=["bare", "wrapped"])
def test_unfreezing_from_a_layer(except_: str | None, wrap: Any) -> None:
    """The layer and all after it train and follow both modes; what comes before stays frozen."""
    model = Net()
    wrapped = wrap(model)
    freeze(wrapped, except_=except_)

    unfreeze(wrapped, from_layer="blocks[-1]")

    assert trainable(model) == names_below(model, "blocks.1.", "head.")
    wrapped.train()
    assert in_training(model) == {
        name for name, _ in model.named_modules() if not name.startswith("blocks.0")
    }
    wrapped.eval()
    assert in_training(model) == set()


def test_unfrozen_part_of_a_training_model_trains_at_once() -> None:
    """In a model in training mode, what is unfrozen joins it without another `train()`."""
    model = Net()
    freeze(model, except_="head")

    unfreeze(model, from_layer="blocks.1.1")

    assert in_training(model) == {"", "blocks", "blocks.1", "blocks.1.1", "blocks.1.2", "head"}


@pytest.mark.parametrize("choose", [lambda model: model.blocks[1], lambda model: "blocks.1"])
def test_only_what_is_unfrozen_moves(choose: Any) -> None:
    """Training behind a layer moves its parameters and BatchNorm buffers, none before it."""
    model = Net()
    freeze(model)
    unfreeze(model, from_layer=choose(model))
    before = snapshot(model)

    train(model, torch.randn(6, 4))

    frozen = {name for name in before if name.startswith(("token", "blocks.0"))}
    assert changed(model, before) == before.keys() - frozen


def test_unfreezing_a_wrapped_model_reaches_the_model_itself() -> None:
    """Parameters that belong to the model itself, such as a token, train again too."""
    model = Net()
    wrapped = nn.DataParallel(model)
    freeze(wrapped)

    unfreeze(wrapped)

    assert model.token.requires_grad
    assert in_training(wrapped.train().module) == {name for name, _ in model.named_modules()}


def test_unfreezing_from_an_unknown_layer_is_refused() -> None:
    """A wrong name is an error with close ones, and nothing thaws."""
    model = Net()
    freeze(model)

    with pytest.raises(ValueError, match="did you mean 'blocks.1'"):
        unfreeze(model, from_layer="block.1")
    assert trainable(model) == set()


@pytest.mark.parametrize(
    ("name", "pattern", "last_block", "head"),
    [
        ("test_resnet", "layer4", "layer4.", "fc"),
        ("test_vit", "blocks[-1]", "blocks.5.", "head"),
        ("test_efficientnet", "blocks[-1]", "blocks.4.", "classifier"),
    ],
)
def test_head_first_then_the_last_block(
    name: str, pattern: str, last_block: str, head: str
) -> None:
    """The usual two phases: train a new head alone, then the last block and all behind it."""
    model = timm.create_model(name)
    images = torch.randn(4, *model.pretrained_cfg["input_size"])
    new_head = replace_head(model, num_classes=3)
    freeze(model, except_=new_head)
    before = snapshot(model)

    train(model, images)

    assert changed(model, before) == {f"{head}.weight", f"{head}.bias"}

    unfreeze(model, from_layer=pattern)
    before = snapshot(model)

    train(model, images)

    keys = list(before)
    first = next(i for i, key in enumerate(keys) if key.startswith(last_block))
    assert changed(model, before) == set(keys[first:])
    assert in_training(model.eval()) == set()


# replace_head


def check_new_head(
    model: nn.Module, old: list[nn.Parameter], head: nn.Module, images: Tensor, num_classes: int
) -> None:
    """The head has all new parameters and no old one, and the model gives its width."""
    new = {id(p) for p in model.parameters()} - {id(p) for p in old}
    assert {id(p) for p in head.parameters()} == new
    assert len(new) >= 1
    with torch.no_grad():
        assert model.eval()(images).shape == (len(images), num_classes)


def count_parameters(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "pixels", "width", "heads"),
    [
        ("resnet18", 64, 512, 1),
        ("vit_tiny_patch16_224", 224, 192, 1),
        ("deit_tiny_distilled_patch16_224", 224, 192, 2),
        ("convnext_atto", 64, 320, 1),
        ("mobilenetv3_small_100", 64, 1024, 1),
        ("test_efficientnet", 64, 256, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_new_head_of_timm_models(
    name: str, pixels: int, width: int, heads: int, dtype: torch.dtype
) -> None:
    """Every classifier of a timm model is replaced, and the head returned is all of them."""
    model = timm.create_model(name).to(dtype)
    old = list(model.parameters())

    head = replace_head(model, num_classes=5)

    check_new_head(model, old, head, torch.randn(2, 3, pixels, pixels, dtype=dtype), 5)
    assert count_parameters(head) == heads * (width + 1) * 5


@pytest.mark.parametrize(
    ("name", "width", "kind"),
    [
        ("resnet18", 512, nn.Linear),
        ("squeezenet1_1", 512, nn.Conv2d),
        ("mobilenet_v3_small", 1024, nn.Linear),
        ("shufflenet_v2_x0_5", 1024, nn.Linear),
        ("convnext_tiny", 768, nn.Linear),
        ("swin_t", 768, nn.Linear),
    ],
)
def test_new_head_of_torchvision_models(name: str, width: int, kind: type) -> None:
    """The last layer of a torchvision model is replaced by one of its kind, device and dtype."""
    model = torchvision.models.get_model(name).double()
    old = list(model.parameters())

    head = replace_head(model, num_classes=5)

    assert type(head) is kind
    check_new_head(model, old, head, torch.randn(2, 3, 64, 64, dtype=torch.float64), 5)
    assert count_parameters(head) == (width + 1) * 5


@pytest.mark.parametrize(("name", "heads"), [("googlenet", 3), ("inception_v3", 2)])
def test_auxiliary_heads_are_replaced_too(name: str, heads: int) -> None:
    """A model that trains with several classifiers gets all of them in one head."""
    model = torchvision.models.get_model(name, aux_logits=True, init_weights=False)
    old = list(model.parameters())

    head = replace_head(model, num_classes=5)

    check_new_head(model, old, head, torch.randn(1, 3, 75, 75), 5)
    assert len(head) == heads


def test_all_that_is_new_is_in_the_head() -> None:
    """Where a new classifier comes with a normalization of its own, the head has both."""
    model = timm.create_model("efficientvit_m0")
    old = list(model.parameters())

    head = replace_head(model, num_classes=5)

    check_new_head(model, old, head, torch.randn(1, 3, 224, 224), 5)
    assert {type(module) for module in head} == {nn.BatchNorm1d, nn.Linear}


def test_auxiliary_logits_have_the_new_width() -> None:
    """In training mode each of the outputs has the new number of classes."""
    model = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    head = replace_head(model, num_classes=5)
    freeze(model, except_=head)

    outputs = model.train()(torch.randn(2, 3, 64, 64))

    assert [tuple(logits.shape) for logits in outputs] == [(2, 5)] * 3


def test_model_without_classifier_gets_one() -> None:
    """A timm model created as a feature extractor gets a head as well."""
    model = timm.create_model(TINY, num_classes=0)
    old = list(model.parameters())

    head = replace_head(model, num_classes=5)

    check_new_head(model, old, head, torch.randn(2, 3, 64, 64), 5)


def test_new_head_trains_in_a_frozen_model() -> None:
    """A head put into a model that is frozen already takes gradients."""
    model = timm.create_model(TINY)
    freeze(model)

    head = replace_head(model, num_classes=5)

    assert trainable(model) == {"fc.weight", "fc.bias"}
    assert all(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("num_classes", [0, -2])
def test_head_without_classes_is_refused(num_classes: int) -> None:
    """A head has at least one class; the model keeps its own."""
    model = timm.create_model(TINY)
    before = snapshot(model)

    with pytest.raises(ValueError, match=f"num_classes={num_classes} must be at least 1"):
        replace_head(model, num_classes)
    assert changed(model, before) == set()


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(2, 2)), nn.ReLU()])
def test_model_with_no_known_classifier_is_refused(model: nn.Module) -> None:
    """Where no classifier is found, the message says how to go on by hand."""
    with pytest.raises(ValueError, match="no classifier found.*except_=model.my_head"):
        replace_head(model, 5)


# load_backbone


def save(state: Any, file: Path) -> Path:
    """Tensors in a file of the kind that its name says."""
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


def tiny_state(name: str = TINY) -> State:
    """Random weights of a small model."""
    return snapshot(timm.create_model(name))


@pytest.mark.parametrize("name", [TINY, "torchvision:squeezenet1_1"])
def test_no_weights_are_random_ones(name: str) -> None:
    """With "none" two models of one name differ, so nothing was loaded."""
    one, other = (load_backbone(name, weights="none") for _ in range(2))

    assert one.state_dict().keys() == other.state_dict().keys()
    assert changed(one, other.state_dict()) != set()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("as_text", [True, False])
def test_weights_come_from_a_file(tmp_path: Path, suffix: str, as_text: bool) -> None:
    """A file of tensors gives the model exactly these, its path being a text or not."""
    state = tiny_state()
    file = save(state, tmp_path / f"weights{suffix}")

    model = load_backbone(TINY, weights=str(file) if as_text else file)

    assert changed(model, state) == set()


def test_weights_of_a_wrapped_model_load(tmp_path: Path) -> None:
    """Keys with the prefix of a data-parallel wrapper, inside a training state, are understood."""
    state = tiny_state()
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}

    model = load_backbone(TINY, weights=save(wrapped, tmp_path / "last.pth"))

    assert changed(model, state) == set()


@pytest.mark.parametrize("num_classes", [0, 7])
def test_classifier_may_be_missing_or_of_another_size(tmp_path: Path, num_classes: int) -> None:
    """Weights without a classifier, or with a smaller one, fill all the rest."""
    state = snapshot(timm.create_model(TINY, num_classes=num_classes))

    model = load_backbone(TINY, weights=save(state, tmp_path / "weights.safetensors"))

    rest = {key: value for key, value in state.items() if not key.startswith("fc.")}
    assert changed(model, rest) == set()
    assert model.fc.out_features == 1000


def test_any_of_several_classifiers_may_be_missing(tmp_path: Path) -> None:
    """In a model with two heads one may have another size and the other be absent."""
    name = "deit_tiny_distilled_patch16_224"
    state = tiny_state(name)
    del state["head_dist.weight"], state["head_dist.bias"]
    state["head.weight"], state["head.bias"] = torch.randn(7, 192), torch.randn(7)

    model = load_backbone(name, weights=save(state, tmp_path / "weights.safetensors"))

    rest = {key: value for key, value in state.items() if not key.startswith("head")}
    assert len(rest) == len(state) - 2
    assert changed(model, rest) == set()


def rename_first(state: State) -> None:
    """The state with a key that the model does not have."""
    state["stem.weight"] = state.pop("conv1.0.weight")


def add_to_classifier(state: State) -> None:
    """The state with a tensor below the classifier that the model does not have."""
    state["layer5.weight"] = torch.ones(1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("conv1.0.weight"), "missing 'conv1.0.weight'$"),
        (rename_first, "missing 'conv1.0.weight', unexpected 'stem.weight'$"),
        (lambda state: state.update(z=torch.ones(1)), "unexpected 'z'$"),
        (
            lambda state: state.update({"conv1.0.weight": torch.ones(1)}),
            "of another shape 'conv1.0.weight'$",
        ),
        (lambda state: state.clear(), r"missing 'conv1.0.weight' and \d+ more$"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, spoil: Callable[[State], Any], message: str
) -> None:
    """The first missing, unexpected and reshaped keys are in one line with file and model."""
    state = tiny_state()
    spoil(state)
    file = save(state, tmp_path / "weights.safetensors")

    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(TINY, weights=file)
    assert f"weights {file} do not fit {TINY}: " in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """A file for another architecture names the first missing and the first unexpected key."""
    file = save(tiny_state("test_vit"), tmp_path / "vit.safetensors")

    with pytest.raises(ValueError, match=r"missing 'conv1.0.weight' and .*, unexpected 'blocks"):
        load_backbone(TINY, weights=file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 7, 0.5])
def test_damaged_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    """A file that was cut short is one clear error in one line, whatever its reader raised."""
    file = save(tiny_state(), tmp_path / f"weights{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])

    with pytest.raises(ValueError, match=re.escape(f"weights {file}: cannot be read")) as caught:
        load_backbone(TINY, weights=file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [[1, 2], torch.ones(3), "text", {"conv1.0.weight": 3}, {"state_dict": 3}, {3: 4}]
)
def test_file_of_other_things_than_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    """What is no mapping from names to tensors is refused in one line."""
    file = save(content, tmp_path / "weights.pth")

    with pytest.raises(ValueError, match=re.escape(f"weights {file}")):
        load_backbone(TINY, weights=file)


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_pickled_object_is_refused_and_not_executed(tmp_path: Path) -> None:
    """A file that would run code when it is unpickled is refused before it can."""
    marker = tmp_path / "executed"
    file = save({**tiny_state(), "trap": Trap(marker)}, tmp_path / "weights.pth")

    with pytest.raises(ValueError, match=r"cannot be read \(no file of tensors alone; save a"):
        load_backbone(TINY, weights=file)
    assert not marker.exists()

    torch.load(file, weights_only=False)
    assert marker.exists(), "the trap works"


def test_plain_pickle_is_one_error_without_a_warning(tmp_path: Path) -> None:
    """What torch remarks on the protocol of a pickle adds no second line to the error."""
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Trap(tmp_path / "executed"), protocol=4))

    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="no file of tensors alone"):
            load_backbone(TINY, weights=tmp_path / "weights.pth")
    assert remarks == []


@pytest.mark.parametrize("weights", ["nowhere.safetensors", "", "."])
def test_missing_file_is_named(weights: str) -> None:
    """Weights that are no file are an error before a model is built."""
    with pytest.raises(FileNotFoundError, match=re.escape(f"weights {weights}: no such file")):
        load_backbone("no_such_model", weights=weights)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", "model 'resnt18' is unknown to timm; did you mean resnet18 or "),
        ("torchvision:resnt18", "unknown to torchvision; did you mean resnet18 or "),
        ("torchvision:convnext_atto", "unknown to torchvision; did you mean convnext_"),
        ("zzzzzz", "model 'zzzzzz' is unknown to timm"),
        ("torchvision:", "model 'torchvision:' is unknown to torchvision"),
        ("", "model '' is unknown to timm"),
    ],
)
@pytest.mark.parametrize("weights", ["none", "pretrained"])
def test_unknown_model_gets_close_names(name: str, message: str, weights: str) -> None:
    """A model that does not exist is an error with the closest that do, without any download."""
    with pytest.raises(ValueError, match=re.escape(message)):
        load_backbone(name, weights=weights)


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision finds the published weights of squeezenet1_1 without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    file = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    return file


def test_pretrained_weights_are_the_published_ones(downloaded: Path) -> None:
    """Without a word on weights, the model gets what its library publishes."""
    state = snapshot(torchvision.models.squeezenet1_1())
    save(state, downloaded)

    model = load_backbone("torchvision:squeezenet1_1")

    assert changed(model, state) == set()


def test_failed_pretrained_weights_say_what_to_do(downloaded: Path) -> None:
    """Published weights that cannot be had are one line that names the two other ways."""
    downloaded.write_bytes(b"half a file")

    with pytest.raises(RuntimeError, match="squeezenet1_1 could not be loaded.*'none'") as caught:
        load_backbone("torchvision:squeezenet1_1")
    assert "\n" not in str(caught.value)


def test_built_in_model_is_small_and_pretrained() -> None:
    """The model that comes with the package takes grey pictures and is always the same."""
    model, again = load_backbone("digits"), load_backbone("digits")

    assert count_parameters(model) == 125575
    assert changed(model, again.state_dict()) == set()
    assert model.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert changed(load_backbone("digits", weights="none"), model.state_dict()) != set()


@pytest.mark.shared
@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_real_weights_fit_timm_and_torchvision(shared: Path, name: str) -> None:
    """One file of real ImageNet weights fills the resnet18 of both libraries to the bit."""
    file = shared / "weights" / "resnet18_imagenet.safetensors"

    model = load_backbone(name, weights=file)

    state = {
        key: value.to(model.state_dict()[key].dtype) for key, value in load_file(file).items()
    }
    assert state.keys() == model.state_dict().keys()
    assert changed(model, state) == set()


@pytest.mark.shared
def test_real_weights_of_another_model_are_refused(shared: Path) -> None:
    """Weights of a resnet50 do not go into a resnet18, and the first keys say why."""
    file = shared / "weights" / "resnet50_imagenet.safetensors"

    with pytest.raises(ValueError, match=r"do not fit resnet18: .*unexpected 'layer1.0.bn3"):
        load_backbone("resnet18", weights=file)
