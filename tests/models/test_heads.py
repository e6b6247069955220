"""Heads by their kind: what they compute, and which of them are affine."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection, segmentation

from manifold_mixup.models import CosineHead, MLPHead, replace_head
from manifold_mixup.models.heads import HEADS, check_head, make_head


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_gives_logits_and_every_parameter_a_gradient(kind: str) -> None:
    """From (B, D) to (B, C), and all that it has is trained."""
    head = make_head(kind, 6, num_classes=4)
    logits = head(torch.randn(5, 6))
    logits.square().sum().backward()

    assert logits.shape == (5, 4)
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


@pytest.mark.parametrize(("kind", "affine"), [("linear", True), ("mlp", False), ("cosine", False)])
def test_only_the_linear_head_is_affine(kind: str, affine: bool) -> None:
    """For the others, mixing features is not the same as mixing logits."""
    head = make_head(kind, 6, num_classes=4).double()
    a, b = torch.randn(2, 5, 6, dtype=torch.float64)
    same = torch.allclose(head(0.3 * a + 0.7 * b), 0.3 * head(a) + 0.7 * head(b), atol=1e-9)

    assert same is affine


def test_the_mlp_head_is_two_linear_maps_around_a_relu() -> None:
    """Its width is what is asked for, 512 by itself."""
    head, features = MLPHead(3, num_classes=2, hidden=7), torch.randn(4, 3)
    hidden = (features @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)

    assert torch.allclose(head(features), hidden @ head.out.weight.T + head.out.bias, atol=1e-6)
    assert head.hidden.out_features == 7
    assert MLPHead(3, num_classes=2).hidden.out_features == 512


def test_the_cosine_head_measures_angles() -> None:
    """Its logits are the scale times the cosine, whatever the lengths."""
    head, features = CosineHead(3, num_classes=2, scale=5), torch.randn(4, 3)
    cosines = nn.functional.cosine_similarity(features[:, None], head.weight[None], dim=2)
    before = head(features)
    with torch.no_grad():
        head.weight.mul_(9)

    assert torch.allclose(before, 5 * cosines, atol=1e-5)
    assert torch.allclose(head(features), before, atol=1e-5)


def test_a_linear_head_is_that_of_torch() -> None:
    """Nothing is to be learned about it."""
    assert type(make_head("linear", 6, num_classes=4)) is nn.Linear


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    """The message names what there is."""
    for refuse in (check_head, lambda kind: make_head(kind, 2, num_classes=2)):
        with pytest.raises(ValueError, match="head='tree' is unknown; choose one of linear, mlp"):
            refuse("tree")


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int]) -> None:
    """The message names the argument and its value."""
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        make_head("linear", *sizes)


# replace_head: the classifier is what gives the output


class Own(nn.Module):
    """Rows through `fc`, then through a layer of another name, with `head` beside them."""

    def __init__(self, last: str) -> None:
        super().__init__()
        setattr(self, last, nn.Linear(8, 4))  # registered first, used last
        self.last = last
        self.fc = nn.Linear(6, 8)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 4)."""
        h = self.fc(x).relu()
        logits: Tensor = getattr(self, self.last)(h + self.head(h))
        return logits


def state(model: nn.Module) -> tuple[dict[str, int], dict[str, Tensor], list[Any]]:
    """All modules and tensors by name, and the plain attributes of the model."""
    plain = [(k, v) for k, v in vars(model).items() if isinstance(v, int | str | bool)]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {name: id(module) for name, module in model.named_modules()}, tensors, plain


def check_refused(model: nn.Module, match: str, **asked: Any) -> None:
    """The call raises, and neither the model nor the random draws notice."""
    modules, tensors, plain = state(model)
    draws = torch.get_rng_state()
    with pytest.raises(ValueError, match=match):
        replace_head(model, 5, **asked)
    modules_now, tensors_now, plain_now = state(model)

    assert (modules, plain) == (modules_now, plain_now)
    assert all(torch.equal(tensor, tensors_now[name]) for name, tensor in tensors.items())
    assert torch.equal(draws, torch.get_rng_state())


def test_the_classifier_is_what_gives_the_output() -> None:
    """An inner `fc` and `head` are left as they are, whatever the order they are made in."""
    model = Own("classifier")
    inner = model.fc, model.head

    head = replace_head(model, 5)

    assert model.classifier is head
    assert (model.fc, model.head) == inner
    assert model(torch.randn(3, 6)).shape == (3, 5)


@pytest.mark.parametrize("kind", HEADS)
def test_an_inner_layer_of_a_known_name_is_not_the_classifier(kind: str) -> None:
    """The layer that gives the output is named, and nothing is replaced."""
    check_refused(Own("out"), "no classifier found: the output comes from 'out'", head=kind)


def test_a_model_that_cannot_be_run_asks_for_an_example() -> None:
    """Given one, its classifier is found."""

    class Two(Own):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x * scale)

    model = Two("classifier")
    check_refused(model, "pass example=")
    replace_head(model, 5, example=(torch.randn(2, 6), torch.ones(2, 1)))

    assert model(torch.randn(3, 6), torch.ones(3, 1)).shape == (3, 5)


def test_a_residual_path_around_the_classifier_is_refused() -> None:
    """Of layers that add up one behind the other, none alone gives the output."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.fc(x)
            return h + self.head(h)

    check_refused(Added(), "one behind the other")


@pytest.mark.parametrize(
    "make",
    [
        detection.ssdlite320_mobilenet_v3_large,
        detection.retinanet_resnet50_fpn,
        detection.fcos_resnet50_fpn,
    ],
)
def test_detectors_are_refused(make: Callable[..., nn.Module]) -> None:
    """Their heads give boxes and centerness too; nothing is taken for a classifier."""
    model = make(weights=None, weights_backbone=None)
    check_refused(model, "no classifier found: the model returns a list")


@pytest.mark.parametrize("classes", [1, 5, 21])
def test_both_classifiers_of_lraspp_are_replaced(classes: int) -> None:
    """Their sum has the classes asked for."""
    model = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=7
    )
    head = replace_head(model, classes)

    assert isinstance(head, nn.ModuleList)
    assert len(head) == 2
    assert model.eval()(torch.randn(1, 3, 64, 64))["out"].shape == (1, classes, 64, 64)


def test_segmentation_keeps_its_auxiliary_classifier_in_step() -> None:
    """Both outputs have the classes asked for, from convolutions as wide as before."""
    model = segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    replace_head(model, 5)
    outputs = model.eval()(torch.randn(1, 3, 64, 64))

    assert {k: v.shape[1] for k, v in outputs.items()} == {"out": 5, "aux": 5}


@pytest.mark.parametrize("name", ["repvit_m0_9", "iformer_t", "levit_128s"])
def test_a_pair_of_classifiers_remains_one(name: str) -> None:
    """A model of timm with a classifier for distillation keeps it, in the new width."""
    # LeViT always has the pair.
    model = timm.create_model(name, **({} if name == "levit_128s" else {"distillation": True}))
    replace_head(model, 5)
    for module in model.modules():
        if hasattr(module, "distilled_training"):
            module.distilled_training = True

    outputs = model.train()(torch.randn(2, 3, 224, 224))

    assert [tuple(one.shape) for one in outputs] == [(2, 5), (2, 5)]


def test_a_refused_kind_of_head_leaves_the_model_as_it_was() -> None:
    """LeViT's classifier has a normalization of its own: no MLP takes its place."""
    check_refused(timm.create_model("levit_128s"), "choose head='linear'", head="mlp")
    check_refused(torchvision.models.squeezenet1_1(), "choose head='linear'", head="cosine")


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_has_the_type_of_the_model(kind: str) -> None:
    """It computes in float64 where the model does."""
    model = timm.create_model("resnet10t").double()
    head = replace_head(model, 5, head=kind)

    assert {p.dtype for p in head.parameters()} == {torch.float64}
    assert model(torch.randn(2, 3, 32, 32, dtype=torch.float64)).shape == (2, 5)


@pytest.mark.parametrize("kind", HEADS)
def test_classifiers_of_transformers_are_found(kind: str) -> None:
    """`score` of a decoder, `classifier` of an encoder, and DeiT's pair; losses know the width."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "intermediate_size": 32, "vocab_size": 50}
    image = {**small, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
    gpt2 = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, pad_token_id=0)
    tokens, images = torch.randint(3, 50, (3, 6)), torch.randn(3, 3, 32, 32)
    tokens[:, -1] = 2  # BART reads off there
    bart = transformers.BartConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        vocab_size=50,
        max_position_embeddings=16,
    )
    xlnet = transformers.XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, vocab_size=50)
    cases: list[tuple[nn.Module, Tensor, int]] = [
        (transformers.BartForSequenceClassification(bart), tokens, 1),
        (transformers.XLNetForSequenceClassification(xlnet), tokens, 1),
        (transformers.GPT2ForSequenceClassification(gpt2), tokens, 1),
        (transformers.BertForSequenceClassification(transformers.BertConfig(**text)), tokens, 1),
        (
            transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**text)),
            tokens,
            1,
        ),
        (transformers.ViTForImageClassification(transformers.ViTConfig(**image)), images, 1),
        (
            transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**image)),
            images,
            2,
        ),
    ]
    for model, inputs, heads in cases:
        head = replace_head(model, 5, head=kind)
        output = model.eval()(inputs)

        assert (len(head) if isinstance(head, nn.ModuleList) else 1) == heads
        assert output.logits.shape == (3, 5)
        assert model.config.num_labels == 5
        assert not hasattr(output, "cls_logits") or output.cls_logits.shape == (3, 5)
        assert not hasattr(output, "cls_logits") or output.distillation_logits.shape == (3, 5)
