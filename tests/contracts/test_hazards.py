"""What a hook must survive: checkpointing, compilation, copies, autocast, several processes."""

import copy
import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.multiprocessing
from nets import Text, batch, hooks_on, mixed_by_loop, small_net
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from manifold_mixup import ManifoldMixup, freeze, mixed_loss

INDUCTOR = pytest.param(
    "inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
)


class Checkpointed(nn.Module):
    """A region that is recomputed in backward, unless switched off, between two layers."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 8), nn.Linear(8, 3)
        self.region = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 8))
        self.on, self.use_reentrant = True, use_reentrant
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x."""
        x = torch.tanh(self.before(x))
        if self.on:
            x = checkpoint(self.region, x, use_reentrant=self.use_reentrant)
        else:
            x = self.region(x)
        return self.after(torch.tanh(x))


def attached(model: nn.Module, layers: Any, **options: Any) -> ManifoldMixup:
    """A manager that mixes strongly, tried on four samples of `batch`."""
    example = torch.randn(4, 4, dtype=torch.float64)
    return ManifoldMixup(model, layers, **{"alpha": 1.0, "example": example, **options})


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of all parameters, which are cleared."""
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def trained(model: nn.Module, mixup: ManifoldMixup, data: list[tuple[Tensor, Tensor]]) -> Any:
    """The gradients of a mixed step and of a plain one for each batch."""
    found = []
    for seed, (features, target) in enumerate(data):
        torch.manual_seed(seed)
        with mixup(target) as mix:
            logits = model(features)
        mixed_loss(logits, target, mix).backward()
        found.append(gradients(model))
        nn.functional.cross_entropy(model(features), target).backward()
        found.append(gradients(model))
    return found


def assert_same(found: Any, expected: Any) -> None:
    """Nested lists of tensors are equal to float64 rounding."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# Activation checkpointing.


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize(
    "layers",
    [
        "before",
        "region",
        "region.0",
        "region.3",
        "after",
        "input",
        ["before", "region.1", "after"],
    ],
    ids=str,
)
def test_checkpointing_gives_the_gradients_of_the_plain_run(
    layers: Any, use_reentrant: bool
) -> None:
    """Recomputation in backward sees the mix of its step, and only a step's recomputation does."""
    model = Checkpointed(use_reentrant=use_reentrant)
    plain = copy.deepcopy(model)
    plain.on = False
    data = [batch() for _ in range(4)]

    found = trained(model, attached(model, layers), data)

    assert_same(found, trained(plain, attached(plain, layers), data))


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_recomputation_inside_of_the_step_is_no_second_run(use_reentrant: bool) -> None:
    """With `backward` inside the step the layer still ran once, and the gradients are the same."""
    model = Checkpointed(use_reentrant=use_reentrant).eval()
    features, target = batch()
    found = []

    for inside in (True, False):
        with attached(model, "region.0")(target) as mix:
            loss = mixed_loss(model(features), target, mix)
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found.append(gradients(model))

    assert_same(found[0], found[1])


@pytest.mark.parametrize(
    ("name", "layer"),
    [("vit", "patch_embed"), ("vit", "blocks.1"), ("resnet", "layer3.0"), ("resnet", "layer4.0")],
)
def test_checkpointing_of_timm_gives_the_gradients_of_the_plain_run(name: str, layer: str) -> None:
    """`set_grad_checkpointing` changes no gradient of a mixed step."""
    if name == "vit":
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=3)
    else:
        model = timm.create_model("resnet10t", num_classes=3)
    plain = copy.deepcopy(model.double())
    model.set_grad_checkpointing()
    data = [(torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randint(3, (4,)))]

    found = trained(model, attached(model, layer, example=data[0][0]), data)

    assert_same(found, trained(plain, attached(plain, layer, example=data[0][0]), data))


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_recomputation_that_cannot_be_told_apart_raises(use_reentrant: bool) -> None:
    """Two steps before one backward, or a forward pass between, would mix wrongly: an error."""
    model = Checkpointed(use_reentrant=use_reentrant)
    mixup, (features, target) = attached(model, "region.0"), batch()

    def loss() -> Tensor:
        with mixup(target) as mix:
            logits = model(features)
        return mixed_loss(logits, target, mix)

    with pytest.raises(RuntimeError, match="'region.0' is recomputed .* call backward"):
        (loss() + loss()).backward()
    total = loss()
    model(features)
    with pytest.raises(RuntimeError, match="'region.0' is recomputed .* call backward"):
        total.backward()


# torch.compile.


@pytest.fixture
def _no_recompilation() -> Any:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


# A remark of the compiler of torch 2.6 on its own cache.
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles:UserWarning")
@pytest.mark.usefixtures("_no_recompilation")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", INDUCTOR])
@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("layer", ["body", "input"])
def test_compiled_model_mixes_with_one_graph(
    backend: str, attach_first: bool, per_sample: bool, layer: str
) -> None:
    """There is no graph break and no recompilation while weights, partners and steps change."""
    model = small_net()
    if attach_first:
        mixup = attached(model, layer, per_sample=per_sample)
        compiled = torch.compile(model, backend=backend, fullgraph=True)
    else:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        mixup = attached(compiled, layer, per_sample=per_sample)

    for _ in range(12):
        features, target = batch()
        with mixup(target) as mix:
            logits = compiled(features)
        mixed_loss(logits, target, mix).backward()
        found = gradients(model)

        if layer == "input":
            expected = model(mixed_by_loop(mix, features))
        else:
            expected = model.head(mixed_by_loop(mix, model[:2](features)))
        mixed_loss(expected, target, mix).backward()
        assert_same([logits, *found], [expected, *gradients(model)])


def test_compiled_model_that_tells_no_size_needs_an_example() -> None:
    """A compiled model cannot be probed on its first input, so it is refused at attach."""
    in_place = small_net()
    in_place.compile(backend="eager")

    for compiled in (in_place, torch.compile(small_net(), backend="eager")):
        with pytest.raises(ValueError, match="compiled and does not tell .* pass example="):
            ManifoldMixup(compiled, "body")


def test_model_compiled_after_attaching_without_example_raises() -> None:
    """A step in which the model could not be traced raises, although it mixed."""
    torch._dynamo.reset()
    model, (features, target) = small_net(), batch()
    mixup = ManifoldMixup(model, "body")
    compiled = torch.compile(model, backend="eager")

    with pytest.raises(RuntimeError, match="could not be traced .* pass example="), mixup(target):
        compiled(features)


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_model_is_itself_outside_of_steps(in_place: bool) -> None:
    """Plain forward passes before and between steps stay plain, the steps mix."""
    torch._dynamo.reset()
    model, (features, target) = small_net(), batch()
    expected = small_net()
    expected.load_state_dict(model.state_dict())
    mixup = attached(model, "body")
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="eager", fullgraph=True)
    if in_place:
        model.compile(backend="eager", fullgraph=True)
        compiled = model

    for _ in range(3):
        assert torch.equal(compiled(features), expected(features))
        with mixup(target) as mix:
            logits = compiled(features)
        assert torch.equal(logits, expected.head(mix(expected[:2](features))))


def test_layers_drawn_in_turn_share_one_graph() -> None:
    """Of several layers each step mixes the one drawn, all in one graph."""
    torch._dynamo.reset()
    model, (features, target) = small_net(), batch()
    expected = small_net()
    expected.load_state_dict(model.state_dict())
    mixup = attached(model, ["stem", "body", "head"])
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)

    for _ in range(20):
        with mixup(target) as mix:
            logits = compiled(features)
        cut = ["stem", "body", "head"].index(str(mixup.drawn)) + 1
        assert torch.equal(logits, expected[cut:](mix(expected[:cut](features))))
    assert len(graphs) == 1


@pytest.mark.parametrize("layer", ["body", "input"])
def test_model_compiled_and_called_before_attaching_mixes_or_raises(layer: str) -> None:
    """A compiled model may not see later hooks: then the step raises, and a reset helps."""
    torch._dynamo.reset()
    model, (features, target) = small_net(), batch()
    compiled = torch.compile(model, backend="eager")
    compiled(features)
    mixup = attached(compiled, layer)

    with (
        pytest.raises(RuntimeError, match=r"ran 0 times .* torch.compiler.reset\(\)"),
        mixup(target),
    ):
        compiled(features)
    torch.compiler.reset()
    with mixup(target) as mix:
        logits = compiled(features)

    mixup.detach()
    expected = model(mix(features)) if layer == "input" else model.head(mix(model[:2](features)))
    assert torch.equal(logits, expected)


# The compiler itself looks at .grad of what the layer is given, which is no leaf.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)
@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_layer_compiled_alone_mixes(in_place: bool, attach_first: bool) -> None:
    """In a model of which only the layer is compiled, batches of any size are mixed."""
    torch._dynamo.reset()
    model, (features, target) = small_net(), batch()
    plain = copy.deepcopy(model)
    mixup = attached(model, "body") if attach_first else None
    if in_place:
        model.body.compile(backend="eager", fullgraph=True)
    else:
        model.body = torch.compile(model.body, backend="eager", fullgraph=True)
    mixup = mixup or attached(model, "body")

    for n in (6, 4, 6):
        with mixup(target[:n]) as mix:
            logits = model(features[:n])
        assert_same(logits, plain.head(mixed_by_loop(mix, plain[:2](features[:n]))))
        assert_same(model(features[:n]), plain(features[:n]))


def test_compiled_model_that_runs_twice_raises() -> None:
    """The proof that the layer ran once holds for compiled models too."""
    torch._dynamo.reset()
    model, (features, target) = small_net(), batch()
    mixup = attached(model, "body")
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    with pytest.raises(RuntimeError, match="'body' ran 2 times"), mixup(target):  # noqa: PT012
        compiled(features)
        compiled(features)


# At a graph break the compiler itself looks at .grad of tensors that are no leaves.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)
def test_compiled_step_with_targets_of_another_batch_raises() -> None:
    """Neither a compiled graph nor its fallback mixes with a mix of another size."""
    torch._dynamo.reset()
    model, (features, _) = small_net(), batch()
    mixup = attached(model, "body")
    compiled = torch.compile(model, backend="eager")

    with pytest.raises(ValueError, match="mix of 5 samples"), mixup(torch.zeros(5)):
        compiled(features)


# At a graph break the compiler itself looks at .grad of tensors that are no leaves.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("layer", ["before", "region", "region.0"])
def test_compiled_and_checkpointed_model_gives_the_gradients_of_the_plain_run(
    layer: str, use_reentrant: bool
) -> None:
    """Compilation and checkpointing together change no gradient of a mixed step."""
    torch._dynamo.reset()
    model = Checkpointed(use_reentrant=use_reentrant).eval()
    plain = copy.deepcopy(model)
    plain.on = False
    data = [batch() for _ in range(3)]
    mixup = attached(model, layer)

    found = trained(torch.compile(model, backend="aot_eager"), mixup, data)

    assert_same(found, trained(plain, attached(plain, layer), data))


# Copies, files and exports.


def through_pickle(model: nn.Module) -> nn.Module:
    """A model that was pickled and read again."""
    return pickle.loads(pickle.dumps(model))


def through_torch(model: nn.Module) -> nn.Module:
    """A model that was saved and loaded by torch."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "make_copy",
    [copy.deepcopy, AveragedModel, timm.utils.ModelEmaV3, through_pickle, through_torch],
)
@pytest.mark.parametrize("in_step", [False, True])
def test_copy_of_a_model_does_not_mix(
    make_copy: Callable[[nn.Module], nn.Module], in_step: bool
) -> None:
    """Copies made outside or inside a step are inert, whatever the original does."""
    model, (features, target) = small_net(), batch()
    plain = model(features)
    mixup = attached(model, ["body", "input"], features_only=True)
    twin = None if in_step else make_copy(model)

    with mixup(target):
        twin = twin or make_copy(model)
        copied = twin(features)
        mixed = model(features)

    assert torch.equal(copied, plain)
    assert not torch.allclose(mixed, plain)
    assert torch.equal(twin(features), plain)


def test_copy_of_a_model_can_be_attached_itself() -> None:
    """A copy has hooks of its own, independent of the original's."""
    model, (features, target) = small_net(), batch()
    attached(model, "body")
    twin = copy.deepcopy(model)

    with attached(twin, "body")(target) as mix:
        logits = twin(features)
        plain = model(features)

    assert torch.equal(logits, model.head(mix(model[:2](features))))
    assert torch.equal(plain, model(features))


# torch has deprecated jit.trace, under two kinds of warnings.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_tracing_is_refused_in_a_step_and_plain_outside() -> None:
    """A mix never becomes a part of a traced model."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, "body", features_only=True)

    with pytest.raises(RuntimeError, match="layer 'body': do not trace"), mixup(target):
        torch.jit.trace(model, features)
    traced = torch.jit.trace(model, features)

    with mixup(target):
        model(features)
        assert torch.equal(traced(features), forward_plain(model, features))


@pytest.mark.parametrize("layer", ["body", "input"])
def test_export_is_refused_in_a_step_and_plain_outside(layer: str) -> None:
    """A mix never becomes a part of an exported model."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, layer)

    with pytest.raises(RuntimeError, match=f"layer '{layer}': do not trace or"), mixup(target):
        torch.export.export(model, (features,), strict=False)
    exported = torch.export.export(model, (features,), strict=False).module()

    assert torch.equal(exported(features), model(features))


def forward_plain(model: nn.Sequential, features: Tensor) -> Tensor:
    """The model's layers, called without their hooks."""
    for layer in model:
        features = layer.forward(features)
    return features


# Number formats.


@pytest.mark.parametrize("layer", ["stem", "body"])
@pytest.mark.parametrize("way", ["autocast", "model"])
def test_half_precision_is_kept(layer: str, way: str) -> None:
    """A bfloat16 layer stays bfloat16, and is mixed as in float32 and rounded once."""
    model, (features, target) = small_net().float(), batch()
    features = features.float()
    if way == "model":
        model, features = model.bfloat16(), features.bfloat16()
    outputs: list[Tensor] = []
    module = model.get_submodule(layer)
    module.register_forward_hook(lambda m, i, o: outputs.append(o))
    mixup = attached(model, layer, example=features)
    module.register_forward_hook(lambda m, i, o: outputs.append(o))
    outputs.clear()

    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"), mixup(target) as mix:
        loss = mixed_loss(model(features), target, mix)
    loss.backward()

    before, after = outputs
    expected = mixed_by_loop(mix, before.double()).bfloat16()
    assert before.dtype == after.dtype == torch.bfloat16
    torch.testing.assert_close(after, expected, rtol=2**-8, atol=1e-7)
    assert all(p.grad is not None for p in model.parameters())


def test_channels_last_is_kept() -> None:
    """The mixed output has the memory format of the plain one."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)

    with attached(model, "0", example=images, features_only=True)(torch.zeros(4)):
        output = model(images)

    assert output.is_contiguous(memory_format=torch.channels_last)


def test_layer_followed_by_work_in_place_is_mixed() -> None:
    """An in-place activation after the layer changes the mix's result, not the mix."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).double()
    features, target = batch()

    with attached(model, "0")(target) as mix:
        logits = model(features)
    logits.sum().backward()

    expected = model[2](torch.relu(mixed_by_loop(mix, model[0](features))))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_inference_mode_is_no_hindrance() -> None:
    """A mixed loss can be measured without autograd, also in a first step that tries the model."""
    model = Text().double()
    with torch.inference_mode():
        indices = torch.randint(10, (6, 5))
        mixup = ManifoldMixup(model.eval(), "block", alpha=1.0)
        with mixup(torch.zeros(6)) as mix:
            logits = model(indices)

        hidden = model.block(model.embedding(indices))
        assert_same(logits, model.head(mixed_by_loop(mix, hidden).mean(1)))


@torch.inference_mode()
def test_model_made_in_inference_mode_is_told_so() -> None:
    """Nothing can be learned of what leads where in it, nor can it be trained."""
    model, indices = Text().double(), torch.randint(10, (6, 5))

    with pytest.raises(ValueError, match="parameters made under torch.inference_mode"):
        ManifoldMixup(model.eval(), "block", example=indices)


# Several devices and processes.


def test_data_parallel_replicas_are_refused() -> None:
    """A replica of DataParallel sees a part of the batch, so it must not mix."""
    model, (features, target) = small_net(), batch()
    mixup = attached(model, "body")
    replica = model._replicate_for_data_parallel()
    replica.body = model.body._replicate_for_data_parallel()

    with pytest.raises(RuntimeError, match="use DistributedDataParallel"), mixup(target):
        replica(features)


def train_as(rank: int, folder: str) -> None:
    """One of two processes: three mixed steps, all that matters of them is saved."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = small_net()
    parallel = DistributedDataParallel(model)
    mixup = attached(parallel, ["stem", "module.body"], seed=3)
    torch.manual_seed(rank)
    steps = []
    for _ in range(3):
        features, target = batch()
        with mixup(target) as mix:
            logits = parallel(features)
        mixed_loss(logits, target, mix).backward()
        steps.append((features, target, mix.lam, mix.partner, mixup.drawn, gradients(model)))
    torch.save({"state": model.state_dict(), "steps": steps}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_processes_draw_their_own_mixes_and_agree_on_gradients(tmp_path: Path) -> None:
    """From one seed two processes draw different mixes; both get the mean of the gradients."""
    torch.multiprocessing.spawn(train_as, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model = small_net()
    model.load_state_dict(first["state"])

    for one, two in zip(first["steps"], second["steps"], strict=True):
        assert not torch.equal(one[2], two[2])
        assert_same(one[-1], two[-1])
        own = [by_hand(model, *step[:-1]) for step in (one, two)]
        assert_same(one[-1], [(a + b) / 2 for a, b in zip(*own, strict=True)])


def by_hand(
    model: nn.Sequential,
    features: Tensor,
    target: Tensor,
    lam: Tensor,
    partner: Tensor,
    layer: str,
) -> list[Tensor]:
    """The gradients of one process alone, mixed without the library."""
    cut = {"stem": 1, "body": 2}[layer]
    hidden, own = model[:cut](features), lam[:, None]
    logits = model[cut:](own * hidden + (1 - own) * hidden[partner])
    losses = [
        nn.functional.cross_entropy(logits, t, reduction="none") for t in (target, target[partner])
    ]
    (lam * losses[0] + (1 - lam) * losses[1]).mean().backward()
    return gradients(model)


def test_frozen_backbone_in_a_compiled_step_trains_the_head_only() -> None:
    """Freezing, compiling and mixing go together."""
    torch._dynamo.reset()
    model, (features, target) = small_net(), batch()
    freeze(model, except_="head")
    mixup = attached(model, "body")

    with mixup(target) as mix:
        logits = torch.compile(model, backend="aot_eager", fullgraph=True)(features)
    mixed_loss(logits, target, mix).backward()

    assert [n for n, p in model.named_parameters() if p.grad is not None] == [
        "head.weight",
        "head.bias",
    ]
    mixup.detach()
    assert hooks_on(model) == 0
