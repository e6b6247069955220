"""Which layers can be mixed, the reason why others cannot, and what to choose instead."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from nets import Apply, Residual, Text, Wide, hooks_on
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup, freeze, layer_table
from manifold_mixup.inspection import LayerRow


class Catalogue(nn.Module):
    """A model with layers of all the kinds that cannot be mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.twice = nn.Tanh()
        self.pair = Apply(lambda x: (x, x))
        self.time_first = Apply(lambda x: x[None].expand(5, -1, -1))
        self.position = Apply(lambda x: torch.ones(5, 4))
        self.scale = Apply(lambda x: x.mean())
        self.windows = Apply(lambda x: x.repeat_interleave(3, 0))
        self.flat = Apply(lambda x: x.reshape(-1, 2))
        self.indices = Apply(lambda x: x.argsort(1))
        self.text = Apply(lambda x: "no tensor")
        self.aside = nn.Linear(4, 4)
        self.square = Apply(lambda x: x @ x.T)
        self.good = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x."""
        x = self.twice(self.twice(self.blocks[0](x)))
        self.aside(x), self.text(x), self.square(x)
        x = self.pair(x)[0] * self.position(x).mean() + self.time_first(x).mean(0)
        x = x + self.scale(x) + self.windows(x)[::3] + self.flat(x).reshape(-1, 4)
        return self.good(x + self.indices(x))


REASONS = {
    "unused": "never runs",
    "blocks": "never runs",
    "twice": "runs 2 times in one forward pass",
    "pair": r"returns a tuple \(0: \(2, 4\), 1: \(2, 4\)\): say what to mix by output=0 or",
    "time_first": r"shape \(5, 2, 4\) for 2 samples: axis 1 is the batch, not the first",
    "position": r"shape \(5, 4\) for any batch: none of its axes is the batch",
    "scale": r"shape \(\) for any batch",
    "windows": "returns 3 rows for each sample: windows or steps are folded into the batch",
    "flat": "returns 2 rows for each sample",
    "indices": "returns int64 values, which cannot be mixed",
    "text": "returns no tensor but a str",
    "aside": "does not contribute to the model's output",
    "square": r"shape \(2, 2\) for 2 samples and \(3, 3\) for 3",
}


def row_of(model: nn.Module, layer: str, example: Any = None) -> LayerRow:
    """The table's row of a layer."""
    return {row.name: row for row in layer_table(model, example)}[layer]


def warned(model: nn.Module, layer: str, example: Any = None) -> str:
    """The warning on attaching at a layer."""
    with pytest.warns(UserWarning, match=layer) as caught:
        ManifoldMixup(model, layer, example=example).detach()
    return str(caught[0].message)


@pytest.mark.parametrize("layer", REASONS)
def test_table_gives_the_reason_and_what_to_choose(layer: str) -> None:
    """A layer that cannot be mixed is listed with the reason and another choice."""
    row = row_of(Catalogue(), layer, torch.randn(2, 4))

    assert not row.mixable
    assert re.search(REASONS[layer], row.reason)
    assert "; choose " in row.reason


@pytest.mark.parametrize("deferred", [False, True], ids=["attach", "first step"])
@pytest.mark.parametrize("layer", [name for name in REASONS if name != "aside"])
def test_layer_that_cannot_be_mixed_is_refused(layer: str, deferred: bool) -> None:
    """Attaching, or the first step where nothing could be tried before, raises that reason."""
    model, features = Catalogue(), torch.randn(6, 4)

    with pytest.raises(ValueError, match=f"Catalogue: layer '{layer}' .*{REASONS[layer]}"):  # noqa: PT012
        mixup = ManifoldMixup(model, layer, example=None if deferred else features)
        with mixup(torch.zeros(6)):
            model(features)

    assert deferred or hooks_on(model) == 0


def test_table_describes_a_layer() -> None:
    """Shape, calls, parameters, cost and bytes of a layer are those counted by hand."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()

    first, _, last = layer_table(model, torch.randn(5, 4, dtype=torch.float64))

    cost = 4 * 6 / (4 * 6 + 6 * 3)
    assert first == LayerRow("0", (6,), 1, 6 * 3 + 3, pytest.approx(cost), 6 * 8, True, "")
    assert last == LayerRow("2", (3,), 1, 0, pytest.approx(1.0), 3 * 8, True, "")


def test_table_leaves_the_model_as_it_was() -> None:
    """Neither hooks, modes nor buffers change."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    layer_table(model, torch.randn(5, 4))

    assert hooks_on(model) == 0
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_table_needs_an_example_where_the_size_is_not_told() -> None:
    """Without an example, a model that tells no input size is refused."""
    with pytest.raises(ValueError, match="Linear does not tell its input size; pass example="):
        layer_table(nn.Linear(2, 2))


# Layers that miss a part of the signal.


@pytest.mark.parametrize(
    ("build", "layer", "choice"),
    [
        (lambda: timm.create_model("resnet18"), "layer4.0.conv1", "layer4.0"),
        (lambda: timm.create_model("resnet18"), "layer2.0.downsample", "layer2.0"),
        (lambda: timm.create_model("vit_tiny_patch16_224"), "blocks.3.mlp.fc1", "blocks.3"),
        (
            lambda: timm.create_model("densenet121"),
            "features.denseblock2.denselayer3",
            "features.denseblock2",
        ),
    ],
)  # fmt: skip
def test_layer_in_a_branch_is_named_with_its_block(
    build: Callable[[], nn.Module], layer: str, choice: str
) -> None:
    """Inside a residual or dense branch: a warning when attaching, and the block to choose."""
    model = build()
    expected = f"lies inside a residual or dense branch: .*; choose '{choice}'"

    row = row_of(model, layer)

    assert not row.mixable
    assert re.search(expected, row.reason)
    assert re.search(f"layer '{layer}' {expected}", warned(model, layer))


def test_layer_in_a_branch_of_a_frozen_text_model_is_named() -> None:
    """That holds for indices and frozen embeddings too."""
    model = Text().requires_grad_(False)

    assert "choose 'block'" in warned(model, "block.linear1", torch.randint(10, (2, 5)))


def test_unused_layer_is_refused() -> None:
    """Mixing a layer that the output does not depend on would mix the targets alone."""
    with pytest.raises(
        ValueError, match="layer 'aside' does not contribute to the model's output"
    ):
        ManifoldMixup(Catalogue(), "aside", example=torch.randn(2, 4))


@pytest.mark.parametrize("layer", ["0", "0.act", "1", "2"])
def test_layer_around_or_after_a_shortcut_is_whole(layer: str) -> None:
    """A block, its last activation, and what follows carry the whole signal."""
    model = nn.Sequential(Residual(4), nn.Identity(), Residual(4), nn.Linear(4, 3))

    assert row_of(model, layer, torch.randn(2, 4)).mixable
    ManifoldMixup(model, layer, example=torch.randn(2, 4))


@pytest.mark.parametrize("layer", ["0.shortcut", "0.branch", "0.branch.0"])
def test_each_side_of_a_shortcut_misses_the_other(layer: str) -> None:
    """Neither the branch nor an Identity that serves as shortcut carries the whole signal."""
    model = nn.Sequential(Residual(4), nn.Linear(4, 3))

    assert re.search("branch: .*; choose '0'", row_of(model, layer, torch.randn(2, 4)).reason)


def test_both_sides_of_a_shortcut_are_whole_together() -> None:
    """A tuple that covers every way through the model draws no warning."""
    model = nn.Sequential(Residual(4), nn.Linear(4, 3))

    mixup = ManifoldMixup(model, ("0.branch", "0.shortcut"), example=torch.randn(2, 4))

    assert mixup.layers == [("0.branch", "0.shortcut")]


def test_branch_is_seen_where_no_graph_leads() -> None:
    """Under no_grad inside the model, a branch lacks what it lacks; what is around it does not."""
    trunk = nn.Sequential(Residual(8))
    model = Wide(trunk, lambda x: x)
    trunk.forward = torch.no_grad()(trunk.forward)
    rows = {row.name: row for row in layer_table(model, torch.randn(2, 4, dtype=torch.float64))}

    assert [name for name, row in rows.items() if row.mixable] == [
        *("stem", "trunk", "trunk.0", "trunk.0.act", "head"),
    ]
    assert re.search("what 'stem' returns .*; choose 'trunk.0'", rows["trunk.0.branch"].reason)


class Around(nn.Module):
    """Logits of a body, joined in some way with what the stem before it returned."""

    def __init__(self, join: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        h = self.stem(x)
        return self.join(self.head, self.body(h), h)


@torch.no_grad()
def plainly(h: Tensor) -> Tensor:
    """The mean, computed without gradients."""
    return h.mean(1, keepdim=True)


JOINS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "detach": lambda head, body, h: head(body) * h.detach().mean(1, keepdim=True),
    "data": lambda head, body, h: head(body + h.data),
    "no_grad": lambda head, body, h: head(body) * plainly(h),
    "argmax": lambda head, body, h: head(body) + nn.functional.one_hot(h[:, :3].argmax(1), 3),
    "comparison": lambda head, body, h: head(body.masked_fill(h > 0, 0)),
    "sorting": lambda head, body, h: head(body.gather(1, h.argsort(1))),
    "buffer": lambda head, body, h: head(torch.zeros(2, len(h), 8).copy_(h.detach())[1] + body),
    "gradient": lambda head, body, h: head(body + h),
    "nothing": lambda head, body, h: head(body),
    "shape": lambda head, body, h: head(body + torch.ones_like(h) + h.new_ones(h.shape[1])),
    "constant": lambda head, body, h: head(body * torch.arange(8)),
}


def is_whole(model: nn.Module, layer: str, x: Tensor) -> bool:
    """Whether samples that are exchanged at a layer are exchanged in what the model returns."""
    plain = model(x)
    hook = model.get_submodule(layer).register_forward_hook(lambda m, args, out: out.flip(0))
    exchanged = model(x)
    hook.remove()
    return torch.allclose(exchanged, plain.flip(0), atol=1e-5)


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("join", JOINS)
def test_a_layer_is_mixable_if_its_samples_decide_the_output(join: str, is_frozen: bool) -> None:
    """What goes around it is seen with gradients and without, and nothing else is taken for it."""
    model, x = Around(JOINS[join]).requires_grad_(not is_frozen), torch.randn(6, 4)
    rows = {row.name: row for row in layer_table(model, x)}

    assert rows["stem"].mixable
    assert rows["body"].mixable == is_whole(model, "body", x)
    assert rows["body"].mixable == (join in ("nothing", "shape", "constant"))
    if not rows["body"].mixable:
        assert "what 'stem' returns bypasses it" in warned(model, "body", x)


def test_what_is_returned_without_gradients_beside_logits_is_no_bypass() -> None:
    """No loss of it trains anything."""
    model = Around(lambda head, body, h: (head(body), h.detach()))  # type: ignore[arg-type, return-value]

    assert row_of(model, "body", torch.randn(2, 4)).mixable


# The cases that made this necessary.


class Encoded(nn.Module):
    """A body and a learned code of places, which is the same whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 2)."""
        places = torch.arange(3.0).expand(len(x), 3)
        return self.head(self.body(x) + self.code(places))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_what_does_not_depend_on_the_input_is_refused(is_frozen: bool) -> None:
    """Mixed it would be what it was, and the targets be mixed alone; other layers stay mixable."""
    model, x = Encoded(), torch.randn(4, 4)
    if is_frozen:
        freeze(model, except_="head")
    mixable = {row.name: row.mixable for row in layer_table(model, x)}

    assert not mixable["code"]
    assert mixable["head"]
    with pytest.raises(ValueError, match="'code' returns the same for every sample"):
        ManifoldMixup(model, "code", example=x)
    ManifoldMixup(model, "head", example=x).detach()


def test_activation_that_runs_twice_is_refused_with_its_block() -> None:
    """The BasicBlock of torchvision calls one ReLU twice."""
    model = torchvision.models.resnet18()
    message = r"'layer1.0.relu' runs 2 times in one forward pass; choose 'layer1.0'"

    with pytest.raises(ValueError, match=message):
        ManifoldMixup(model, "layer1.0.relu", example=torch.randn(2, 3, 64, 64))
    assert hooks_on(model) == 0


@pytest.mark.parametrize("layer", ["layers.0.blocks.0.attn", "layers.0.blocks.0.attn.qkv"])
def test_windowed_layer_is_refused_with_its_block(layer: str) -> None:
    """Swin folds 64 windows into the batch."""
    model = timm.create_model("swin_tiny_patch4_window7_224")

    with pytest.raises(ValueError, match=f"'{layer}' .*64 rows .*; choose 'layers.0.blocks.0'"):
        ManifoldMixup(model, layer)
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("self_attn.out_proj", "never runs in a forward pass"),
        ("self_attn", r"returns a tuple \(0: \(2, 5, 8\)\): say what to mix by output=0"),
    ],
)
def test_attention_of_torch_is_refused(layer: str, message: str) -> None:
    """MultiheadAttention uses its projection's weights without calling it, and returns a tuple."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    with pytest.raises(ValueError, match=f"layer '{layer}' {message}"):
        ManifoldMixup(model, layer, example=torch.randn(2, 5, 8))


def test_sequence_first_layer_is_refused() -> None:
    """A recurrent layer with time as first axis cannot be mixed as it is."""
    model = nn.Sequential(nn.GRU(4, 8))

    row = row_of(
        nn.Sequential(Apply(lambda x: x.transpose(0, 1)), model), "0", torch.ones(2, 5, 4)
    )

    assert "axis 1 is the batch, not the first" in row.reason


class Sorted(nn.Module):
    """Sorts its samples by what they hold, as for packing, and brings them back at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 2)."""
        order = x[:, 0].argsort(descending=True, stable=True)
        logits: torch.Tensor = self.head(self.features(x[order]))
        return logits[order.argsort()]


@pytest.mark.parametrize("first", [(1.0, 2.0), (2.0, 1.0)])
def test_samples_sorted_inside_are_noticed(first: tuple[float, float]) -> None:
    """Whichever of the two that a model is tried on comes first."""
    example = torch.randn(2, 4)
    example[:, 0] = torch.tensor(first)

    with pytest.raises(ValueError, match="samples in another order than the model takes them"):
        ManifoldMixup(Sorted(), "features", example=example)
