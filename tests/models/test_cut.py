"""A model cut in two: the halves give what the whole gives, and what bypasses a cut is named."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch._dynamo.testing
import torchvision
from nets import Apply, Residual, Text, Wide, batch, hooks_on, small_net
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup, cut, freeze, layer_table, mixed_loss
from manifold_mixup.models import run_until

tv = torchvision.models

# Cuts that must hold, and one inside a branch with what bypasses it there.
IMAGE_MODELS: list[tuple[str, Callable[[], nn.Module], list[str], str, str]] = [
    (
        "resnet18",
        lambda: timm.create_model("resnet18"),
        ["conv1", "maxpool", "layer2", "layer3.0", "layer4", "global_pool"],
        "layer3.0.conv2",
        "layer2",
    ),
    (
        "resnet50",
        lambda: timm.create_model("resnet50"),
        ["act1", "layer1", "layer3.4", "layer4"],
        "layer4.1.bn1",
        "layer4.0",
    ),
    (
        "vit_tiny",
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64),
        ["patch_embed", "norm_pre", "blocks.0", "blocks.8", "norm"],
        "blocks.4.attn",
        "blocks.3",
    ),
    (
        "convnext_atto",
        lambda: timm.create_model("convnext_atto"),
        ["stem", "stages.1", "stages.2.blocks.3", "head.global_pool"],
        "stages.3.blocks.1.mlp",
        "stages.3.blocks.0",
    ),
    (
        "swin_tiny",
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56),
        ["patch_embed", "layers.0", "layers.2.blocks.5", "norm"],
        "layers.1.blocks.1.attn",
        "layers.1.blocks.0",
    ),
    (
        "mobilenetv3_small",
        lambda: timm.create_model("mobilenetv3_small_100"),
        ["bn1", "blocks.2", "blocks", "conv_head"],
        "blocks.3.1.se",
        "blocks.3.0",
    ),
    (
        "efficientnet_b0",
        lambda: timm.create_model("efficientnet_b0"),
        ["conv_stem", "blocks.1", "blocks.6", "bn2"],
        "blocks.2.1.conv_pw",
        "blocks.2.0",
    ),
    (
        "densenet121",
        lambda: timm.create_model("densenet121"),
        ["features.pool0", "features.denseblock2", "features.transition3", "features"],
        "features.denseblock3.denselayer5",
        "features.denseblock3.denselayer4",
    ),
    (
        "regnety_002",
        lambda: timm.create_model("regnety_002"),
        ["stem", "s2", "s4.b3", "head.global_pool"],
        "s3.b2.conv2",
        "s3.b1",
    ),
    (
        "torchvision resnet18",
        lambda: tv.resnet18(),
        ["bn1", "layer1.0", "layer3", "avgpool"],
        "layer2.1.conv1",
        "layer2.0",
    ),
    (
        "torchvision resnet50",
        lambda: tv.resnet50(),
        ["relu", "layer2", "layer3.2", "layer4"],
        "layer4.2.bn3",
        "layer4.1",
    ),
    (
        "torchvision vit",
        lambda: tv.VisionTransformer(64, 16, 4, 4, 64, 128),
        ["conv_proj", "encoder.layers.encoder_layer_0", "encoder.ln", "heads"],
        "encoder.layers.encoder_layer_2.ln_1",
        "encoder.layers.encoder_layer_1",
    ),
    (
        "torchvision convnext_tiny",
        lambda: tv.convnext_tiny(),
        ["features.0", "features.3", "features.5.4", "avgpool"],
        "features.7.1.block",
        "features.7.0",
    ),
    (
        "torchvision swin_t",
        lambda: tv.swin_t(),
        ["features.0", "features.3.1", "norm", "avgpool"],
        "features.5.1.attn",
        "features.5.0",
    ),
    (
        "torchvision mobilenet_v3_small",
        lambda: tv.mobilenet_v3_small(),
        ["features.0", "features.4", "features", "classifier.1"],
        "features.5.block",
        "features.4",
    ),
    (
        "torchvision efficientnet_b0",
        lambda: tv.efficientnet_b0(),
        ["features.1", "features.4.2", "features.8", "classifier.0"],
        "features.2.1.block",
        "features.2.0",
    ),
    (
        "torchvision densenet121",
        lambda: tv.densenet121(),
        ["features.relu0", "features.denseblock1", "features.transition2", "features.norm5"],
        "features.denseblock4.denselayer2",
        "features.denseblock4.denselayer1",
    ),
    (
        "torchvision regnet_y_400mf",
        lambda: tv.regnet_y_400mf(),
        ["stem", "trunk_output.block2", "trunk_output", "avgpool"],
        "trunk_output.block3.block3-1.f",
        "trunk_output.block3.block3-0",
    ),
]


def images(name: str, n: int) -> Tensor:
    """Random images of a size that every model takes."""
    side = 56 if name == "swin_tiny" else 64
    return torch.randn(n, 3, side, side)


@pytest.mark.parametrize(
    ("name", "build", "layers", "inside", "source"), IMAGE_MODELS, ids=[m[0] for m in IMAGE_MODELS]
)
def test_halves_of_image_models(
    name: str, build: Callable[[], nn.Module], layers: list[str], inside: str, source: str
) -> None:
    """Bit-equal at two batch sizes other than that of the example; a branch is refused."""
    model = build().eval()
    for layer in layers:
        prefix, tail = cut(model, layer, images(name, 2))
        for n in (1, 3):
            x = images(name, n)
            with torch.no_grad():
                assert torch.equal(tail(prefix(x)), model(x)), layer

    with pytest.raises(ValueError, match=f"'{inside}' lies inside .* what '{source}' returns"):
        cut(model, inside, images(name, 2))


def text_inputs(n: int) -> dict[str, Tensor]:
    """Tokens, the last four of every other sample padding."""
    tokens, mask = torch.randint(2, 50, (n, 12)), torch.ones(n, 12, dtype=torch.long)
    tokens[1::2, 8:], mask[1::2, 8:] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}


def build_transformer(name: str) -> tuple[nn.Module, Callable[[int], dict[str, Tensor]]]:
    """A small model of Transformers, and inputs for it."""
    t = pytest.importorskip("transformers")
    width: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4
    }  # fmt: skip
    stages: dict[str, Any] = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]}
    patches: dict[str, Any] = {"image_size": 32, "patch_size": 8}
    gpt: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    sound: dict[str, Any] = {
        "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4),
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    config, kind, inputs = {
        "ViT": (t.ViTConfig(**width, **patches), "Image", "pixel_values"),
        "Dinov2": (t.Dinov2Config(**width, **patches), "Image", "pixel_values"),
        "Swin": (
            t.SwinConfig(
                image_size=32,
                patch_size=2,
                embed_dim=16,
                depths=[2, 2],
                num_heads=[2, 2],
                window_size=4,
            ),
            "Image",
            "pixel_values",
        ),
        "ConvNext": (t.ConvNextConfig(**stages), "Image", "pixel_values"),
        "ResNet": (t.ResNetConfig(embedding_size=8, **stages), "Image", "pixel_values"),
        "Bert": (t.BertConfig(vocab_size=50, intermediate_size=64, **width), "Sequence", ""),
        "DistilBert": (
            t.DistilBertConfig(vocab_size=50, dim=32, n_layers=4, n_heads=4, hidden_dim=64),
            "Sequence",
            "",
        ),
        "GPT2": (
            t.GPT2Config(vocab_size=50, n_embd=32, n_layer=4, n_head=4, **gpt),
            "Sequence",
            "",
        ),
        "Wav2Vec2": (t.Wav2Vec2Config(**sound, **width), "Sequence", "input_values"),
    }[name]
    shape = (800,) if name == "Wav2Vec2" else (3, 32, 32)
    model = getattr(t, f"{name}For{kind}Classification")(config).eval()
    return model, lambda n: {inputs: torch.randn(n, *shape)} if inputs else text_inputs(n)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("ViT", ["vit.embeddings", "vit.layernorm"]),
        (
            "Dinov2",
            [
                "dinov2.embeddings",
                "dinov2.encoder.layer.0",
                "dinov2.encoder.layer.3",
                "dinov2.layernorm",
            ],
        ),
        (
            "Swin",
            [
                "swin.embeddings.norm",
                "swin.encoder.layers.0",
                "swin.encoder.layers.1",
                "swin.layernorm",
            ],
        ),
        (
            "ConvNext",
            [
                "convnext.embeddings",
                "convnext.encoder.stages.0",
                "convnext.encoder.stages.3",
                "convnext.layernorm",
            ],
        ),
        (
            "ResNet",
            [
                "resnet.embedder",
                "resnet.encoder.stages.0",
                "resnet.encoder.stages.3",
                "resnet.pooler",
            ],
        ),
        (
            "Bert",
            ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.3", "bert.pooler"],
        ),
        (
            "DistilBert",
            [
                "distilbert.embeddings",
                "distilbert.transformer.layer.0",
                "distilbert.transformer.layer.3",
                "pre_classifier",
            ],
        ),
        ("GPT2", ["transformer.drop", "transformer.h.0", "transformer.h.3", "transformer.ln_f"]),
        (
            "Wav2Vec2",
            [
                "wav2vec2.feature_projection",
                "wav2vec2.encoder.layers.0",
                "wav2vec2.encoder.layers.3",
                "projector",
            ],
        ),
    ],
)
def test_halves_of_transformers(name: str, layers: list[str]) -> None:
    """Bit-equal for models of Transformers too; masks and tokens travel beside the features."""
    model, inputs = build_transformer(name)
    for layer in layers:
        prefix, tail = cut(model, layer, inputs(2))
        for n in (1, 3):
            given = inputs(n)
            first, *others = given
            kept = given if tail.needs_first else {key: given[key] for key in others}
            with torch.no_grad():
                assert torch.equal(tail(prefix(**given), **kept).logits, model(**given).logits)


def test_missing_input_is_named() -> None:
    """A tail that needs a mask does not go on without it."""
    model, inputs = build_transformer("Bert")
    prefix, tail = cut(model, "bert.encoder.layer.0", inputs(2))
    features = prefix(**inputs(2))
    with pytest.raises(TypeError, match=r"'attention_mask' is missing; give it beside"):
        tail(features)


class Positional(nn.Module):
    """A model of two inputs, the second of which comes in late, both by position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: Tensor, *shifts: Tensor) -> Tensor:
        """Logits, scaled and shifted."""
        return sum(shifts, self.head(self.stem(x)) * scale)


def test_inputs_travel_by_position_and_by_name() -> None:
    """The inputs behind the first are given as to the model."""
    x, scale, shift = torch.randn(3, 4), torch.rand(3, 1), torch.randn(3, 2)
    model = Positional()
    prefix, tail = cut(model, "stem", (x, scale))
    assert torch.equal(tail(prefix(x, scale), scale), model(x, scale))
    assert torch.equal(tail(prefix(x, scale), scale=scale), model(x, scale))
    prefix, tail = cut(model, "stem", (x, scale, shift))
    assert torch.equal(tail(prefix(x, scale, shift), scale, shift), model(x, scale, shift))


def test_cut_shares_parameters_and_leaves_the_model_alone() -> None:
    """No module, mode, hook or key of the model changes, and a step of the tail trains it."""
    model = timm.create_model("resnet18")
    freeze(model, except_="layer4")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    parts = [id(module) for module in model.modules()]
    prefix, tail = cut(model, "layer3", images("", 2))
    prefix(images("", 2))

    assert hooks_on(model) == 0
    assert modes == [module.training for module in model.modules()]
    assert parts == [id(module) for module in model.modules()]
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    own = dict(model.named_parameters())
    assert all(parameter is own[name] for name, parameter in tail.named_parameters())


def test_tail_has_the_parameters_behind_the_layer() -> None:
    """Parameters used only before the layer are not the tail's, those at the root included."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3)
    _, tail = cut(model, "blocks.1", images("", 2))
    own = {n: p for n, p in model.named_parameters() if n.startswith(("blocks.2", "norm", "head"))}

    assert dict(tail.named_parameters()).keys() == own.keys()
    assert tail.state_dict().keys() == own.keys()


def test_tail_trains_as_the_model_does() -> None:
    """Loss and gradients are those of the whole model, dropout included."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, drop_rate=0.5)
    freeze(model, except_=["blocks.2", "norm", "head", "head_drop"])
    prefix, tail = cut(model, "blocks.1", images("", 2))
    x, target = images("", 4), torch.arange(4)
    model.train()
    tail.train()
    found = []
    for logits in (lambda: model(x), lambda: tail(prefix(x))):
        torch.manual_seed(3)
        loss = nn.functional.cross_entropy(logits(), target)
        model.zero_grad()
        loss.backward()
        found.append([loss, *(p.grad for p in tail.parameters())])

    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(tail(prefix(x)), tail(prefix(x)))


def test_mix_in_the_tail_equals_the_mix_in_the_model() -> None:
    """A `ManifoldMixup` attached by the same name has the same effect; so has mixing before."""
    model = timm.create_model("resnet18")
    freeze(model, except_="fc")
    prefix, tail = cut(model, "layer3", images("", 2))
    x, target = images("", 5), torch.arange(5)
    logits = []
    for part, inputs in ((model, x), (tail, prefix(x))):
        with ManifoldMixup(part, "layer3", example=inputs) as mixup, mixup(target) as mix:
            logits.append(part(inputs))
            assert mixup.layers == ["layer3"]
            loss = mixed_loss(logits[-1], target, mix)
        loss.backward()

    assert torch.equal(*logits)
    assert torch.equal(tail(mix(prefix(x))), logits[0])


@pytest.mark.parametrize("layer", ["layer3", "global_pool"])
def test_tail_compiles_into_one_graph(layer: str) -> None:
    """No graph break, and no second graph for other features."""
    model = timm.create_model("resnet18").eval()
    prefix, tail = cut(model, layer, images("", 2))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(tail, backend=counter, fullgraph=True)
    for seed in range(3):
        torch.manual_seed(seed)
        x = images("", 4)
        with torch.no_grad():
            assert torch.equal(compiled(prefix(x)), model(x))

    assert counter.frame_count == 1


def test_copies_of_a_tail_are_its_own() -> None:
    """A deep copy gives the same, and moves by itself."""
    model = timm.create_model("resnet18").eval()
    prefix, tail = cut(model, "layer3", images("", 2))
    other = copy.deepcopy(tail)
    x = images("", 3)
    assert torch.equal(other(prefix(x)), model(x))

    nn.init.zeros_(other.fc.weight)
    assert not torch.equal(other(prefix(x)), model(x))
    assert torch.equal(tail(prefix(x)), model(x))


def test_features_are_not_written_to() -> None:
    """A tail that begins with an in-place step works on a copy."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    prefix, tail = cut(model, "0", torch.randn(2, 4))
    features = prefix(torch.randn(6, 4)).detach()
    before = features.clone()
    tail(features)

    assert torch.equal(features, before)
    assert features.lt(0).any()


def test_frozen_parts_of_a_tail_stay_in_eval_mode() -> None:
    """`train` of a tail reaches what the model trains, and no more."""
    model = timm.create_model("resnet18")
    freeze(model, except_="layer4.1")
    _, tail = cut(model, "layer3.0", images("", 2))
    tail.train()
    shared = set(model.modules())
    training = {name for name, module in tail.named_modules() if module.training}

    expected = {name for name, _ in model.named_modules() if name.startswith("layer4.1")}
    assert {n for n in training if tail.get_submodule(n) in shared} == expected | {"layer4"}
    assert "layer3" not in training


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 8), Residual(), nn.Linear(8, 3)),
            "1.branch",
            "what '0' returns",
        ),
        (
            nn.Sequential(Residual(4), nn.Linear(4, 3)),
            "0.branch",
            "what 'input' returns bypasses it",
        ),
        (nn.Sequential(nn.Linear(4, 4), Residual(4)), "0x", "has no layer '0x'"),
        (small_net().float(), "*", "a model is cut at one layer, but '\\*' stands for stem, body"),
        (small_net().float(), "input", "a model is cut at one layer, but 'input'"),
    ],
)
def test_cut_that_is_not_clean_is_refused(model: nn.Module, layer: str, message: str) -> None:
    """The error tells what bypasses the layer, or that there is no such layer."""
    with pytest.raises(ValueError, match=message):
        cut(model, layer, torch.randn(2, 4))


class Hidden(nn.Module):
    """A model in which the stem is used behind the body too, where no graph shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, weighed by what the stem returned."""
        h = self.stem(x)
        return self.head(self.body(h)) * h.detach().mean(1, keepdim=True)


def test_bypass_without_gradients_is_refused() -> None:
    """What reaches the output around the layer is found although it carries no gradient."""
    with pytest.raises(ValueError, match="layer 'body' .* what 'stem' returns bypasses it"):
        cut(Hidden(), "body", torch.randn(2, 4))


class Padded(nn.Module):
    """Ignores steps of zeros alone behind its body, found before it in one of three ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.kept = way, torch.zeros(1)
        self.mask = Apply(lambda x: x.sum(-1) == 0)
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mean over steps."""
        is_padding = self.mask(x) if self.way == "module" else x.sum(-1) == 0
        self.kept = x.mean((1, 2))
        h = self.body(x)
        if self.way == "kept":
            return self.head(h.mean(1)) * self.kept[:, None]
        return self.head(h.masked_fill(is_padding[:, :, None], 0).mean(1))


def keeping_elsewhere() -> nn.Module:
    """A model whose stem keeps what it takes, to be used behind the body."""
    kept: list[Tensor] = [torch.zeros(1)]
    stem = Apply(lambda x: kept.__setitem__(0, x.detach() * 1) or x)
    return nn.Sequential(stem, nn.Linear(4, 4), Apply(lambda h: h + kept[0]))


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (Padded("itself"), "body"),
        (Padded("module"), "body"),
        (Padded("kept"), "body"),
        (keeping_elsewhere(), "1"),
    ],
)
def test_bypass_that_the_example_does_not_show_is_refused(model: nn.Module, layer: str) -> None:
    """A mask without effect on the example, and what was kept of the samples before."""
    with pytest.raises(ValueError, match="cannot be cut here"):
        cut(model, layer, torch.rand(2, 5, 4) + 1)


class LastToken(nn.Module):
    """Classifies by the last token that is no padding, which is number 5."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of tokens (B, T)."""
        h = self.embedding(tokens)
        last = (torch.arange(tokens.shape[1]) * (tokens != 5)).argmax(1)
        return self.head(h[torch.arange(len(tokens)), last])


def test_tokens_that_the_tail_looks_at_travel() -> None:
    """Even if the example has no padding, so that its tokens make no difference."""
    model = LastToken().eval()
    prefix, tail = cut(model, "embedding", torch.randint(6, 10, (2, 6)))
    padded = torch.tensor([[7, 8, 5, 5, 5, 5], [6, 6, 6, 9, 8, 5]])

    assert torch.equal(tail(prefix(padded), tokens=padded), model(padded))
    with pytest.raises(TypeError, match="'tokens' is missing"):
        tail(prefix(padded))


@pytest.mark.parametrize(
    ("layer", "message"), [("0.relu", "runs 2 times"), ("1.out_proj", "never runs")]
)
def test_layer_that_does_not_run_once_is_refused(layer: str, message: str) -> None:
    """A layer that runs twice or never is no place to cut."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.relu(x) - 1)

    model = nn.Sequential(Twice(), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).self_attn)
    model[1].forward = lambda x: nn.MultiheadAttention.forward(model[1], x, x, x)[0]
    with pytest.raises(ValueError, match=message):
        cut(model, layer, torch.randn(2, 5, 4))


def test_features_of_another_shape_are_refused() -> None:
    """A tail knows the size of image that it was cut for."""
    model = timm.create_model("resnet18")
    prefix, tail = cut(model, "layer3", images("", 2))
    with pytest.raises(
        ValueError, match=r"features of shape \(2, 256, 6, 6\), expected \(2, 256, 4"
    ):
        tail(prefix(torch.randn(2, 3, 96, 96)))


def test_outputs_of_several_tensors_travel_whole() -> None:
    """A layer may return a dict; the tail takes all of it."""
    trunk = Apply(lambda h: {"a": h + 1, "b": (h * 2, 3)})
    model = Wide(trunk, lambda out: out["a"] * out["b"][1] + out["b"][0])
    x, _ = batch(5)
    prefix, tail = cut(model, "trunk", x)

    assert torch.equal(tail(prefix(x)), model(x))
    with pytest.raises(ValueError, match="give what the prefix returns"):
        tail(prefix(x)["a"])


def test_model_of_integers_is_cut() -> None:
    """Tokens come in as integers, features go on as numbers."""
    model, tokens = Text().eval(), torch.randint(10, (4, 6))
    prefix, tail = cut(model, "embedding", tokens)
    assert torch.equal(tail(prefix(tokens)), model(tokens))


def test_several_layers_are_read_in_one_pass() -> None:
    """Each as a pass of its own gives it, though later steps write in place; none runs on."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Tanh())
    x, runs = torch.randn(3, 4), []
    model[3].register_forward_hook(lambda *_: runs.append(1))
    found = run_until(model, ["0", "2"], x)

    assert torch.equal(found["0"], model[0](x))
    assert torch.equal(found["2"], model[:3](x))
    assert not runs
    assert hooks_on(model) == 1


def test_layer_that_does_not_run_is_named() -> None:
    """A layer that is not reached is no silent empty result, and no hook is left."""
    model = nn.Sequential(nn.Linear(4, 4))
    model.unused = nn.Linear(4, 4)
    model.forward = model[0].forward
    with pytest.raises(RuntimeError, match="layer 'unused' did not run"):
        run_until(model, ["unused"], torch.ones(1, 4))
    assert hooks_on(model) == 0


def test_every_layer_listed_as_mixable_can_be_cut() -> None:
    """The table of layers and the cut agree about a whole model."""
    model = tv.resnet18().eval()
    for row in layer_table(model, images("", 2)):
        if row.mixable:
            cut(model, row.name, images("", 2))
        else:
            with pytest.raises(ValueError, match=row.reason.split(":")[0]):
                cut(model, row.name, images("", 2))


# What is the same for all inputs, made before the layer and used behind it.

DECODER: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2,
}  # fmt: skip


def build_with_constants(name: str) -> tuple[nn.Module, str, dict[str, Tensor]]:
    """A small model that hands tables of positions from block to block, and a layer and inputs."""
    tokens = {"input_ids": torch.randint(2, 50, (2, 12))}
    if name == "vit_srelpos":
        model = timm.create_model(
            "vit_srelpos_small_patch16_224", img_size=32, depth=3, embed_dim=32, num_heads=2
        )
        return model, "blocks.1", {"x": torch.randn(2, 3, 32, 32)}
    t = pytest.importorskip("transformers")
    if name == "T5":
        config = t.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
        return t.T5EncoderModel(config), "encoder.block.1", text_inputs(2)
    if name == "Funnel":
        config = t.FunnelConfig(
            vocab_size=50, block_sizes=[1, 1, 1], d_model=16, n_head=2, d_head=8, d_inner=32
        )
        return t.FunnelBaseModel(config), "encoder.blocks.1.0", tokens
    groups = {} if name == "GPTNeoX" else {"num_key_value_heads": 2}
    config = getattr(t, f"{name}Config")(use_cache=False, **groups, **DECODER)
    return getattr(t, f"{name}Model")(config), "layers.1", tokens


@pytest.mark.parametrize(
    "name", ["Llama", "Mistral", "Qwen2", "GPTNeoX", "T5", "Funnel", "vit_srelpos"]
)
def test_tables_of_positions_are_no_bypass(name: str) -> None:
    """Bit-equal behind a block; the tables' own parameters are not the tail's."""
    model, layer, inputs = build_with_constants(name)
    model.eval()
    prefix, tail = cut(model, layer, inputs)

    given = {key: torch.cat([value.flip(0), value[:1]]) for key, value in inputs.items()}
    first, *others = given
    with torch.no_grad():
        expected, actual = (
            model(**given), tail(prefix(**given), **{key: given[key] for key in others})
        )  # fmt: skip

    assert torch.equal(*(x if isinstance(x, Tensor) else x[0] for x in (actual, expected)))
    before = {id(p) for p in model.get_submodule(layer).parameters()}
    before |= {id(p) for n, p in model.named_parameters() if "relative" in n or "rel_pos" in n}
    assert before.isdisjoint(map(id, tail.parameters()))


class Upsampled(nn.Module):
    """A map of the size of its images, or their mean."""

    def __init__(self, needs_size: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)
        self.needs_size = needs_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, *), or (B, 2)."""
        h = self.head(self.stem(x))
        size = x.shape[-2:]
        return nn.functional.interpolate(h, size) if self.needs_size else h.mean((2, 3))


@pytest.mark.parametrize("size", [33, 34])
def test_size_that_features_hide_is_right_or_refused(size: int) -> None:
    """33 and 34 pixels give features of one shape; a tail that needs no size takes both."""
    x, other = torch.randn(2, 3, size, size), torch.randn(2, 3, 67 - size, 67 - size)
    prefix, tail = cut(Upsampled(needs_size=True), "stem", x)
    assert torch.equal(tail(prefix(x)), prefix.model(x))
    with pytest.raises(ValueError, match="uses the input's size, which the features do not tell"):
        prefix(other)

    prefix, tail = cut(Upsampled(needs_size=False), "stem", x)
    assert torch.equal(tail(prefix(other)), prefix.model(other))


class Shifted(nn.Module):
    """Returns features, and beside them a table that a later layer adds."""

    def __init__(self, depends: bool) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(4, 4), nn.Embedding(4, 4)
        self.depends = depends

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and the table, the same for all samples or shifted by their mean."""
        table = self.table(torch.arange(4))[:1]
        return self.linear(x), table + x.mean().detach() if self.depends else table


class WithTable(nn.Module):
    """Adds behind a layer the table that a module before it returned."""

    def __init__(self, depends: bool) -> None:
        super().__init__()
        self.first, self.middle, self.head = Shifted(depends), nn.Tanh(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for x."""
        x, table = self.first(x)
        return self.head(self.middle(x) + table)


def test_table_that_depends_on_the_input_is_a_bypass() -> None:
    """Shaped as a constant, computed without gradients, a mean of the batch still is refused."""
    x = torch.randn(2, 4)
    prefix, tail = cut(WithTable(depends=False), "middle", x)

    assert torch.equal(tail(prefix(x)), prefix.model(x))
    assert {name for name, _ in tail.named_parameters()} == {"head.weight", "head.bias"}
    with pytest.raises(ValueError, match="'middle' .* what 'first' returns bypasses it"):
        cut(WithTable(depends=True), "middle", x)
