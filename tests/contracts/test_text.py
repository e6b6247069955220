"""Text: hidden states mixed in a Transformers encoder, the masks behind joined."""

import functools
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import hooks_on, mixed_by_loop, output_at
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manifold_mixup import ManifoldMixup, Mix, join_masks, mixed_loss

SCRIPT = Path(__file__).parents[2] / "scripts" / "text.py"
LENGTHS = (12, 3, 7, 5)
MIXES = {
    "inner": Mix([0.6, 0.9, 0.2, 0.5], [1, 2, 3, 0]),
    "own alone": Mix([0.6, 1.0, 0.2, 0.5], [1, 2, 3, 0]),
    "partner alone": Mix([0.0, 0.5, 0.0, 0.5], [1, 2, 3, 0]),
}


def own_mask(lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    """1 where a token counts, (B, 12)."""
    return (torch.arange(12) < torch.tensor(lengths)[:, None]).long()


def joined_by_loop(mask: Tensor, mix: Mix) -> Tensor:
    """Which tokens count after the mix (B, T), one sample after the other."""
    joined = torch.zeros_like(mask)
    for i, (lam, partner) in enumerate(zip(mix.lam.tolist(), mix.partner.tolist(), strict=True)):
        for token in range(mask.shape[1]):
            own, other = lam > 0 and mask[i, token], lam < 1 and mask[partner, token]
            joined[i, token] = int(bool(own or other))
    return joined


def tokens() -> dict[str, Tensor]:
    """Inputs of four texts of different lengths."""
    mask = own_mask()
    return {"input_ids": torch.randint(2, 50, mask.shape) * mask, "attention_mask": mask}


@pytest.fixture
def drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mix:
    """A mix that every step draws."""
    mix, sample = MIXES[getattr(request, "param", "inner")], Mix.sample

    def draw(n: int, *args: Any, **options: Any) -> Mix:
        return mix if n == len(mix) else sample(n, *args, **options)

    monkeypatch.setattr(Mix, "sample", draw)
    return mix


# The function.

FORMS: dict[str, Any] = {
    "boolean": lambda m: m.bool(),
    "integer": lambda m: m,
    "floating": lambda m: m.double(),
    "additive": lambda m: ((1 - m) * torch.finfo(torch.float32).min)[:, None, None],
    "infinite": lambda m: torch.zeros(m.shape).masked_fill(m == 0, -torch.inf),
    "queries and keys": lambda m: m.bool()[:, None, None].expand(-1, 1, 12, -1),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_token_counts_if_it_counts_in_either(form: Any, mix: Mix) -> None:
    """In every form of mask, unless lam leaves one of the two samples out."""
    mask = own_mask()

    joined = join_masks(form(mask), mix)

    expected = form(joined_by_loop(mask, mix))
    assert joined.dtype == expected.dtype
    assert torch.equal(joined, expected)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_a_mask_may_mark_padding(mix: Mix) -> None:
    """A mask that marks what does not count is joined to mark what counts in neither."""
    mask = own_mask()

    joined = join_masks(mask == 0, mix, marks_padding=True)

    assert torch.equal(joined, joined_by_loop(mask, mix) == 0)


def test_a_mask_for_all_samples_stays() -> None:
    """A mask with one row for the whole batch is the same for partners."""
    mask = torch.ones(1, 12).tril()

    assert join_masks(mask, MIXES["inner"]) is mask


@pytest.mark.parametrize("shape", [(), (3, 12), (8, 12, 12)])
def test_a_mask_without_the_batch_is_refused(shape: tuple[int, ...]) -> None:
    """The first axis has to be the batch."""
    with pytest.raises(ValueError, match="mix of 4 samples, but a mask of shape"):
        join_masks(torch.ones(shape), MIXES["inner"])


# Encoders of Transformers.

transformers = pytest.importorskip("transformers")
WIDTH = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
KINDS = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "distilbert": "transformer.layer",
}


def classifier(kind: str, attention: str = "sdpa") -> nn.Module:
    """A small classifier of texts in float64, in eval mode."""
    t = transformers
    config = {
        "bert": lambda: t.BertConfig(vocab_size=50, intermediate_size=32, **WIDTH),
        "roberta": lambda: t.RobertaConfig(
            vocab_size=50, intermediate_size=32, pad_token_id=0, **WIDTH
        ),
        "distilbert": lambda: t.DistilBertConfig(
            vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=32
        ),
    }[kind]()
    config._attn_implementation = attention
    names = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
    model = getattr(t, f"{names[kind]}ForSequenceClassification")(config).double().eval()
    for parameter in model.parameters():  # weights that start small would hide a wrong mask
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def behind(model: nn.Module, kind: str, layer: int, hidden: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states, from those behind a layer and a mask (B, T) for the later ones."""
    additive = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(mask == 0, -1e300)
    if model.config._attn_implementation == "eager":
        expanded = additive[:, None, None]
    else:
        expanded = mask.bool()[:, None, None]
    for later in model.get_submodule(f"{kind}.{KINDS[kind]}")[layer + 1 :]:
        hidden = later(hidden, attention_mask=expanded)
    return hidden


def head(model: nn.Module, kind: str, hidden: Tensor) -> Tensor:
    """Logits from the last hidden states."""
    if kind == "bert":
        return model.classifier(model.bert.pooler(hidden))
    if kind == "roberta":
        return model.classifier(hidden)
    return model.classifier(F.relu(model.pre_classifier(hidden[:, 0])))


@pytest.mark.parametrize("drawn", MIXES, indirect=True)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_later_layers_see_joined_masks(kind: str, attention: str, drawn: Mix) -> None:
    """Layers up to the mixed one see a sample's own tokens, those behind the partner's too."""
    model, inputs = classifier(kind, attention), tokens()
    layer = f"{kind}.{KINDS[kind]}"
    example = inputs if attention == "sdpa" else None  # tried at attach, or in the first step
    mixup = ManifoldMixup(model, f"{layer}[0]", mask="attention_mask", example=example)

    with mixup(torch.zeros(4)) as mix:
        logits = model(**inputs).logits

    assert mix.lam is drawn.lam
    hidden = mixed_by_loop(mix, output_at(model, f"{layer}.0", **inputs))
    joined = joined_by_loop(inputs["attention_mask"], mix)
    expected = head(model, kind, behind(model, kind, 0, hidden, joined))
    own = head(model, kind, behind(model, kind, 0, hidden, inputs["attention_mask"]))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert (expected - own).abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_each_drawn_layer_has_its_own_layers_behind(kind: str) -> None:
    """Of several layers, the drawn one decides which layers see joined masks."""
    model, inputs, layer = classifier(kind), tokens(), f"{kind}.{KINDS[kind]}"
    mixup = ManifoldMixup(model, f"{layer}.*", alpha=1.0, mask="attention_mask", example=inputs)
    seen = set()

    for _ in range(12):
        with mixup(torch.zeros(4)) as mix:
            logits = model(**inputs).logits
        position = int(str(mixup.drawn)[-1])
        seen.add(position)
        hidden = mixed_by_loop(mix, output_at(model, str(mixup.drawn), **inputs))
        joined = joined_by_loop(inputs["attention_mask"], mix)
        expected = head(model, kind, behind(model, kind, position, hidden, joined))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert seen == {0, 1, 2}


def test_behind_the_embeddings_all_layers_see_joined_masks() -> None:
    """Mixed at the embeddings, every layer of the encoder sees the joined mask."""
    model, inputs = classifier("bert"), tokens()
    options = {"alpha": 1.0, "mask": "attention_mask"}

    with ManifoldMixup(model, "bert.embeddings", **options)(torch.zeros(4)) as mix:
        logits = model(**inputs).logits

    hidden = mixed_by_loop(mix, output_at(model, "bert.embeddings", **inputs))
    joined = joined_by_loop(inputs["attention_mask"], mix)
    expected = head(model, "bert", behind(model, "bert", -1, hidden, joined))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_embedded_inputs_are_mixed_with_their_masks() -> None:
    """With the model's own input mixed, the model itself takes the joined mask."""
    model, mask = classifier("bert"), own_mask()
    embedded = torch.randn(4, 12, 16, dtype=torch.float64)
    mixup = ManifoldMixup(model, "input", alpha=1.0, mask="attention_mask")

    with mixup(torch.zeros(4)) as mix:
        logits = model(inputs_embeds=embedded, attention_mask=mask).logits

    joined = joined_by_loop(mask, mix)
    expected = model(inputs_embeds=mixed_by_loop(mix, embedded), attention_mask=joined).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("given", [True, False], ids=["all ones", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_padding_nothing_changes(kind: str, given: bool) -> None:
    """Masks of ones, or none at all, give what a manager without mask= gives, to the bit."""
    model, layer = classifier(kind), f"{kind}.{KINDS[kind]}[1]"
    inputs = {"input_ids": torch.randint(2, 50, (4, 12))}
    if given:
        inputs["attention_mask"] = torch.ones(4, 12, dtype=torch.long)
    logits = []

    for mask in (None, "attention_mask"):
        options = {"alpha": 1.0, "example": inputs, "features_only": True}
        mixup = ManifoldMixup(model, layer, mask=mask, **options)
        with mixup, mixup(torch.zeros(4)):
            logits.append(model(**inputs).logits)

    assert torch.equal(*logits)


def test_outside_of_a_step_masks_stay_and_hooks_go() -> None:
    """Between steps and after detaching, each sample is alone again, to the bit."""
    model, inputs = classifier("bert"), tokens()
    plain = model(**inputs).logits
    before = hooks_on(model)

    options = {"mask": "attention_mask", "features_only": True}
    with ManifoldMixup(model, "bert.encoder.layer[0]", **options) as mixup:
        with mixup(torch.zeros(4)):
            mixed = model(**inputs).logits
        after = model(**inputs).logits

    assert not torch.equal(mixed, plain)
    assert torch.equal(after, plain)
    assert hooks_on(model) == before


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_sees_joined_masks_again(reentrant: bool) -> None:
    """Activation checkpointing of Transformers gives the gradients of the plain step."""
    model, inputs, target = classifier("bert").train(), tokens(), torch.tensor([0, 1, 0, 1])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    gradients = []

    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        options = {"alpha": 1.0, "mask": "attention_mask"}
        with ManifoldMixup(model, "bert.encoder.layer[0]", **options) as mixup:
            with mixup(target) as mix:
                loss = mixed_loss(model(**inputs).logits, target, mix)
            loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()

    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-12)


# Any model that takes a mask.


class Block(nn.Module):
    """A layer that returns its hidden states and weights; its inner layer takes the mask too."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, hidden: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) and weights (B, T)."""
        new, weights = self.attention(hidden, keep)
        return torch.tanh(new), weights


class Attention(nn.Module):
    """Every token gets the weighted mean of those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.value = nn.Linear(8, 1), nn.Linear(8, 8)

    def forward(self, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) and weights (B, T)."""
        score = self.score(hidden)[..., 0]
        if keep is not None:
            score = score.masked_fill(~keep, -torch.inf)
        weights = score.softmax(1)
        return hidden + self.value(torch.einsum("bt,btd->bd", weights, hidden))[:, None], weights


class MaskedMean(nn.Module):
    """The mean of the hidden states that count."""

    def forward(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """Pooled hidden states (B, D)."""
        return (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)


class Encoder(nn.Module):
    """Embedding, three layers, and masked mean pooling, as a module or beside the modules."""

    def __init__(self, *, pools_inside: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.pool, self.head = MaskedMean(), nn.Linear(8, 2)
        self.pools_inside = pools_inside
        self.call: Any = lambda layer, *args, **kwargs: layer(*args, **kwargs)
        self.double()
        nn.init.normal_(self.layers[2].attention.score.weight, std=3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, 2) of indices (B, T) with a boolean mask (B, T)."""
        return self.behind(-1, self.embedding(ids), mask, mask)

    def behind(self, layer: int, hidden: Tensor, mask: Tensor, pooled: Tensor) -> Tensor:
        """Logits, from hidden states behind a layer, and masks for layers and for pooling."""
        for later in self.layers[layer + 1 :]:
            hidden, _ = self.call(later, hidden, keep=mask)
        if self.pools_inside:
            return self.head(self.pool(hidden, pooled))
        return self.head((hidden * pooled[..., None]).sum(1) / pooled.sum(1, keepdim=True))


def text() -> tuple[Tensor, Tensor]:
    """Indices and boolean mask of four texts of different lengths."""
    return torch.randint(50, (4, 12)), own_mask().bool()


@pytest.mark.parametrize("drawn", MIXES, indirect=True)
@pytest.mark.parametrize("layer", [0, 2])
def test_masked_mean_counts_what_counts_in_either(layer: int, drawn: Mix) -> None:
    """Pooling in a module that takes the mask by the same name sees the joined one, once."""
    model, (ids, mask) = Encoder(), text()
    mixup = ManifoldMixup(model, f"layers[{layer}]", mask="keep", output=0, example=(ids, mask))

    with mixup(torch.zeros(4)) as mix:
        logits = model(ids, mask)

    hidden = mixed_by_loop(mix, output_at(model, f"layers.{layer}", ids, mask)[0])
    joined = joined_by_loop(mask.long(), mix).bool()
    expected = model.behind(layer, hidden, joined, joined)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, model.behind(layer, hidden, joined, mask))


def test_recomputed_layers_join_their_masks_again() -> None:
    """Activation checkpointing around the hooked layers gives the gradients of the plain step."""
    model, (ids, mask), target = Encoder(), text(), torch.tensor([0, 1, 0, 1])
    gradients = []

    for call in (model.call, functools.partial(checkpoint, use_reentrant=False)):
        model.call = call
        options = {"alpha": 1.0, "mask": "keep", "output": 0, "example": (ids, mask)}
        with ManifoldMixup(model, "layers[0]", **options) as mixup:
            with mixup(target) as mix:
                loss = mixed_loss(model(ids, mask), target, mix)
            loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        model.zero_grad()

    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-12)


def test_compiled_layers_join_their_masks() -> None:
    """A compiled model joins the masks behind whichever layer is drawn."""
    model, (ids, mask) = Encoder(), text()
    options = {"alpha": 1.0, "mask": "keep", "output": 0, "example": (ids, mask)}
    mixup = ManifoldMixup(model, "layers.*", **options)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    seen = set()

    for _ in range(8):
        with mixup(torch.zeros(4)) as mix:
            logits = compiled(ids, mask)
        layer = int(str(mixup.drawn)[-1])
        seen.add(layer)
        hidden = mixed_by_loop(mix, output_at(model, str(mixup.drawn), ids, mask)[0])
        joined = joined_by_loop(mask.long(), mix).bool()
        expected = model.behind(layer, hidden, joined, joined)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert seen == {0, 1, 2}


def test_pooling_beside_the_modules_is_told() -> None:
    """What else depends on the mask behind the layer is found by trying, and warned of."""
    model, (ids, mask) = Encoder(pools_inside=False), text()
    options = {"mask": "keep", "output": 0, "example": (ids, mask)}

    with pytest.warns(UserWarning, match=r"'layers.0' depends on the mask beside.*join_masks"):
        mixup = ManifoldMixup(model, "layers.0", **options)
    with mixup(torch.zeros(4)) as mix:
        logits = model(ids, mask)

    hidden = mixed_by_loop(mix, output_at(model, "layers.0", ids, mask)[0])
    joined = joined_by_loop(mask.long(), mix).bool()
    torch.testing.assert_close(logits, model.behind(0, hidden, joined, mask))


def test_pooling_in_the_loop_joins_by_hand() -> None:
    """CLS and masked mean pooling of an encoder's last hidden states, in a user's own loop."""
    model, inputs = classifier("bert").bert, tokens()
    mixup = ManifoldMixup(model, "encoder.layer[0]", alpha=1.0, mask="attention_mask")

    with mixup(torch.zeros(4)) as mix:
        hidden = model(**inputs).last_hidden_state
    keep = join_masks(inputs["attention_mask"], mix)
    pooled = MaskedMean()(hidden, keep)

    mixed = mixed_by_loop(mix, output_at(model, "encoder.layer.0", **inputs))
    joined = joined_by_loop(inputs["attention_mask"], mix)
    expanded = joined.bool()[:, None, None]
    for later in model.encoder.layer[1:]:
        mixed = later(mixed, attention_mask=expanded)
    torch.testing.assert_close(hidden[:, 0], mixed[:, 0], rtol=0, atol=1e-10)
    for i, row in enumerate(joined):
        counted = [mixed[i, token] for token in range(12) if row[token]]
        torch.testing.assert_close(pooled[i], sum(counted) / len(counted), rtol=0, atol=1e-10)


@pytest.mark.parametrize("layers", ["1", "0", "0.layers[0]"])
def test_padding_masks_of_torch_are_joined(layers: str) -> None:
    """In torch's own encoder the mask marks padding: behind the mix, what is padding in both."""

    class Native(nn.Sequential):
        def forward(self, hidden: Tensor, padding: Tensor) -> Tensor:
            for encoder in self:
                hidden = encoder(hidden, src_key_padding_mask=padding)
            return hidden.mean(1)

    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    model = Native(encoder(), encoder()).double()
    hidden, padding = torch.randn(4, 12, 8, dtype=torch.float64), own_mask() == 0
    options = {"alpha": 1.0, "mask": "src_key_padding_mask", "example": (hidden, padding)}

    with ManifoldMixup(model, layers, **options)(torch.zeros(4)) as mix:
        logits = model(hidden, padding)

    name = layers.replace("[0]", ".0")
    mixed = mixed_by_loop(mix, output_at(model, name, hidden, padding))
    joined = joined_by_loop(own_mask(), mix) == 0
    if name == "0.layers.0":
        mixed = model[0].layers[1](mixed, src_key_padding_mask=joined)
    if name != "1":
        mixed = model[1](mixed, src_key_padding_mask=joined)
    torch.testing.assert_close(logits, mixed.mean(1), rtol=0, atol=1e-10)


# What is told, and refused.


def test_padding_without_mask_is_told() -> None:
    """Hidden states of padded texts mixed without mask= are warned of; unpadded ones are not."""
    model, inputs = classifier("bert"), tokens()
    full = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}

    with pytest.warns(
        UserWarning, match="depends on 'attention_mask'.*mask='attention_mask'"
    ) as w:
        ManifoldMixup(model, "bert.encoder.layer.*", example=inputs)
    assert len(w) == 1
    ManifoldMixup(model, "bert.encoder.layer[0]", example=full)
    ManifoldMixup(model, "bert.encoder.layer[2]", example=inputs)


def test_a_mask_that_no_layer_takes_is_refused() -> None:
    """A name that no layer takes is an error that lists those they take."""
    model, inputs = classifier("bert"), tokens()
    before = hooks_on(model)

    with pytest.raises(ValueError, match="takes the mask 'attn_mask'; they take 'attention_mask'"):
        ManifoldMixup(model, "bert.encoder.layer[0]", mask="attn_mask", example=inputs)
    assert hooks_on(model) == before


def test_a_mask_that_layers_behind_do_not_take_is_refused() -> None:
    """The name by which the model takes the mask is not always that of its layers."""
    model, (ids, mask) = Encoder(), text()
    before = hooks_on(model)

    with pytest.raises(ValueError, match="no layer there takes 'mask'"):
        ManifoldMixup(model, "layers.0", mask="mask", output=0, example=(ids, mask))
    assert hooks_on(model) == before


def test_a_replaced_layer_is_noticed() -> None:
    """Masks that nobody joined any more end the step with an error."""
    model, inputs = classifier("bert"), tokens()
    options = {"mask": "attention_mask", "example": inputs}
    mixup = ManifoldMixup(model, "bert.encoder.layer[1]", **options)
    model.bert.encoder.layer[2] = classifier("bert").bert.encoder.layer[2]

    with (
        pytest.raises(RuntimeError, match=r"'bert.encoder.layer.2' should have joined"),
        mixup(torch.zeros(4)),
    ):
        model(**inputs)


# The script.


@pytest.mark.shared
def test_reviews_are_read_and_split_by_their_folds(shared: Path) -> None:
    """Each review is tested by one seed alone, and words come from the texts to train on."""
    script = runpy.run_path(str(SCRIPT))
    reviews = script["read_reviews"](None)
    sizes = []

    for seed in range(5):
        train, test, words = script["split"](reviews, seed)
        assert len(train[2]) + len(test[2]) == 2000
        assert int(test[2].sum()) * 2 == len(test[2])
        assert int(train[0].max()) < words
        assert torch.equal(train[1], (train[0] != script["PADDING"]).long())
        sizes.append(len(test[2]))
    assert sum(sizes) == 2000


@pytest.mark.shared
def test_the_script_compares_mixing_with_none(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A try on a few reviews prints the rows with and without mixing, and their difference."""
    script = runpy.run_path(str(SCRIPT))

    script["main"](["--rows", "40", "--epochs", "1", "--seeds", "2"])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split("(")[0].strip() for line in lines if line.startswith("alpha")] == [
        f"alpha {alpha}" for alpha in script["ALPHAS"]
    ]
    assert sum(line.startswith("  minus no mixing") for line in lines) == len(script["ALPHAS"]) - 1


def test_mask_of_pads_joins_what_counts() -> None:
    """A mixed sample counts the tokens of both, as with a mask of padding."""

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor, pad_mask: torch.Tensor) -> torch.Tensor:
            counts = (~pad_mask).to(x)
            return (x * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.mean = nn.Linear(3, 3), Mean()

        def forward(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.mean(self.body(x), pad_mask=pad)
            return pooled

    x, pad = torch.randn(2, 5, 3), torch.arange(5).expand(2, 5) >= torch.tensor([[5], [2]])
    model = Model()
    options: dict[str, Any] = {"mask": "pad_mask", "pairing": "other-class", "example": (x, pad)}
    with ManifoldMixup(model, "body", **options) as mixup:
        with mixup(torch.tensor([0, 1])) as mix:
            found = model(x, pad)
        h = model.body(x)

    torch.testing.assert_close(found, mix(h).mean(1))  # all five tokens count in both
