"""Integers that a model takes beside what is mixed: told, refused or joined, never alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import mixed_by_loop
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from manifold_mixup import ManifoldMixup, mixed_loss


def own(name: str, layer: str = "body") -> str:
    """What is told of an input of which each sample's own counts."""
    return f"behind layer '{layer}' depends on '{name}', which is not mixed"


# Heads whose logits depend on the targets


class Margin(nn.Module):
    """Cosines, of which that of the sample's own class is lowered, in training mode or always."""

    def __init__(self, classes: int = 5, *, in_training: bool = False) -> None:
        super().__init__()
        self.body, self.weight = nn.Linear(4, 6), nn.Parameter(torch.randn(classes, 6))
        self.in_training = in_training
        self.double()

    def features(self, x: Tensor) -> Tensor:
        """What the head takes."""
        return torch.tanh(self.body(x))

    def head(self, hidden: Tensor, y: Tensor) -> Tensor:
        """Logits, with a margin for these classes."""
        cosine = F.linear(F.normalize(hidden), F.normalize(self.weight))
        if self.in_training and not self.training:
            return 8 * cosine
        if y.ndim == 1:
            y = F.one_hot(y, len(self.weight))
        return 8 * (cosine - 0.4 * y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits of features for classes."""
        return self.head(self.features(x), y)


@pytest.mark.parametrize("layer", ["body", "input"])
@pytest.mark.parametrize("in_training", [False, True])
@pytest.mark.parametrize("form", ["indices", "rows", "one class alone", "first step"])
def test_margin_for_targets_is_refused(layer: str, in_training: bool, form: str) -> None:
    """At attach or in the first step, also where the example's targets are all the same."""
    model, x, y = Margin(in_training=in_training), torch.randn(6, 4).double(), torch.arange(6) % 5
    y = {"rows": F.one_hot(y), "one class alone": y * 0}.get(form, y)

    def attach() -> None:
        if form != "first step":
            ManifoldMixup(model, layer, example=(x, y))
        with ManifoldMixup(model, layer)(y):
            model(x, y)

    with pytest.raises(ValueError, match=r"Margin: .* logit of the class in 'y' alone, as a marg"):
        attach()


def test_margin_of_two_classes_is_known_by_its_name() -> None:
    """There the numbers do not tell targets from another integer."""
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 2

    with pytest.raises(ValueError, match="as a margin does"):
        ManifoldMixup(Margin(2), "body", example=(x, y))


def test_margins_of_both_targets_are_weighed_as_the_refusal_says() -> None:
    """The loss is that of a loop over samples, each with its partner's margin in its turn."""
    model, x, y = Margin(), torch.randn(6, 4).double(), torch.arange(6) % 5
    body = nn.Sequential(model.body, nn.Tanh())
    with ManifoldMixup(body, "0", example=x)(y) as mix:
        hidden = body(x)
        first, second = (
            F.cross_entropy(model.head(hidden, own), own, reduction="none")
            for own in (y, y[mix.partner])
        )
        loss = mix.between(first, second).mean()

    mixed = torch.tanh(mixed_by_loop(mix, model.body(x)))
    expected = 0.0
    for i, (lam, j) in enumerate(zip(mix.lam.tolist(), mix.partner.tolist(), strict=True)):
        for weight, target in ((lam, y[[i]]), (1 - lam, y[[j]])):
            alone = F.cross_entropy(model.head(mixed[[i]], target), target)
            expected += weight * alone.item() / 6
    assert loss.item() == pytest.approx(expected, rel=1e-12)


class Unused(Margin):
    """Takes targets, and does nothing with them but a loss."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A loss, and logits."""
        logits = self.head(self.features(x), torch.zeros_like(y))
        return F.cross_entropy(logits, y), logits


def test_targets_for_the_models_own_loss_are_taken() -> None:
    """The logits do not depend on them, so that nothing is told."""
    ManifoldMixup(Margin(in_training=True).eval(), "body", example=example(5)).detach()
    ManifoldMixup(Unused(), "body", example=example(5)).detach()


def example(classes: int) -> tuple[Tensor, Tensor]:
    """Inputs and class indices."""
    return torch.randn(6, 4).double(), torch.arange(6) % classes


# Padded sequences


def packed_last(rnn: nn.GRU, x: Tensor, lengths: Tensor, *, is_sorted: bool) -> Tensor:
    """The last hidden state of each sequence."""
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=is_sorted)
    return rnn(packed)[1][-1]


def pooled(x: Tensor, lengths: Tensor) -> Tensor:
    """The mean over the steps of each sequence."""
    counts = torch.arange(x.shape[1]) < lengths[:, None]
    return (x * counts[..., None]).sum(1) / lengths[:, None]


class Sequences(nn.Module):
    """Sequences whose padding counts in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.body, self.rnn = nn.Linear(4, 6), nn.GRU(6, 6, batch_first=True)
        self.head, self.way = nn.Linear(6, 3), way
        self.double()

    def forward(self, x: Tensor, n_steps: Tensor) -> Tensor:
        """Logits of sequences (B, T, 4), of which so many steps count."""
        hidden = torch.tanh(self.body(x))
        if self.way == "pooled":
            return self.head(pooled(hidden, n_steps))
        if self.way == "last":
            return self.head(self.rnn(hidden)[0][torch.arange(len(x)), n_steps - 1])
        return self.head(packed_last(self.rnn, hidden, n_steps, is_sorted=False))


@pytest.mark.parametrize("layer", ["body", "input"])
@pytest.mark.parametrize("way", ["pooled", "last", "packed"])
@pytest.mark.parametrize("with_example", [True, False])
def test_lengths_behind_a_mixed_layer_are_told(layer: str, way: str, with_example: bool) -> None:
    """As a mask is, whatever they are called; where no sequence is shorter nothing is told."""
    model, x = Sequences(way), torch.randn(6, 5, 4).double()

    def attach(lengths: Tensor) -> None:
        given = (x, lengths) if with_example else None
        with ManifoldMixup(model, layer, example=given)(torch.zeros(6)) as mix:
            model(x, lengths)
            assert len(mix.lam) == 6

    with pytest.warns(UserWarning, match=own("n_steps", layer)):
        attach(torch.tensor([5, 5, 5, 4, 2, 1]))
    attach(torch.full((6,), 5))


def test_layers_behind_what_depends_on_lengths_are_taken() -> None:
    """Nothing is told where the layer's own output holds all of it."""
    inputs = torch.randn(6, 5, 4).double(), torch.tensor([5, 5, 4, 4, 2, 1])

    ManifoldMixup(Sequences("pooled"), "head", example=inputs).detach()


class Marked(nn.Module):
    """Token ids, whose padding is found in them; or a mask that is not called one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits of tokens (B, T)."""
        valid = ids != 0 if valid is None else valid
        hidden = torch.tanh(self.body(ids)) * valid[..., None]
        return self.head(hidden.sum(1) / valid.sum(1, keepdim=True))


def test_padding_found_in_tokens_and_marks_of_any_name_are_told() -> None:
    """The model sees there which tokens are a sample's own."""
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 2, 0]])

    with pytest.warns(UserWarning, match=own("ids")):
        ManifoldMixup(Marked(), "body", example=ids).detach()
    with pytest.warns(UserWarning, match=own("valid")):
        ManifoldMixup(Marked(), "body", example=(ids, ids != 0)).detach()


class Pool(nn.Module):
    """The mean over the steps that count."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) of (B, T, D)."""
        return pooled(x, lengths)


class Pooling(nn.Module):
    """Sequences, pooled in a module that takes their lengths, or beside it."""

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.body, self.pool, self.head = nn.Linear(4, 6), Pool(), nn.Linear(6, 3)
        self.pooled: Callable[..., Tensor] = self.pool if inside else pooled
        self.double()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits of sequences (B, T, 4)."""
        return self.head(self.pooled(torch.tanh(self.body(x)), lengths))


@pytest.mark.parametrize("layer", ["body", "input"])
def test_lengths_are_joined_by_name(layer: str) -> None:
    """The longer of both counts, as of masks a token counts in either; no layer, no joining."""
    model, x = Pooling(inside=True), torch.randn(6, 5, 4).double()
    lengths = torch.tensor([5, 4, 3, 3, 2, 1])
    mixup = ManifoldMixup(model, layer, mask="lengths", example=(x, lengths))
    with mixup(torch.zeros(6)) as mix:
        logits = model(x, lengths)

    longer = [max(own, lengths[j]) for own, j in zip(lengths, mix.partner.tolist(), strict=True)]
    hidden = mixed_by_loop(mix, model.body(x) if layer == "body" else x)
    hidden = torch.tanh(hidden if layer == "body" else model.body(hidden))
    expected = model.head(pooled(hidden, torch.stack(longer)))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    mixup.detach()
    beside = Pooling(inside=False)
    beside.pool = nn.Identity()
    with pytest.raises(ValueError, match="behind layer 'body' depends on a mask, but no layer"):
        ManifoldMixup(beside, "body", mask="lengths", example=(x, lengths))


def test_embedded_inputs_without_a_joined_mask_are_told() -> None:
    """Padding counts at the input as behind any layer."""

    class Embedded(Pooling):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(x, attention_mask.sum(1))

    x, mask = torch.randn(3, 2, 4).double(), torch.tensor([[1, 1], [1, 1], [1, 0]])

    with pytest.warns(UserWarning, match="behind layer 'input' depends on 'attention_mask'"):
        ManifoldMixup(Embedded(inside=False), "input", example=(x, mask)).detach()


# Tables


class Table(nn.Module):
    """Numbers beside categories that are looked up, or made into rows of 0 and 1."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.embedding, self.head, self.way = nn.Embedding(3, 3), nn.Linear(7, 2), way
        self.double()

    def forward(self, numbers: Tensor, kind: Tensor) -> Tensor:
        """Logits (B, 2)."""
        rows = {
            "looked up": lambda: self.embedding(kind),
            "rows": lambda: F.one_hot(kind, 3).double(),
            "unused": lambda: torch.zeros(len(numbers), 3).double(),
        }[self.way]()
        return self.head(torch.cat([numbers, rows], 1))


class Dict(Table):
    """The same, given as one dict."""

    def forward(self, row: dict[str, Tensor]) -> Tensor:
        """Logits (B, 2)."""
        return super().forward(row["numbers"], row["kind"])


@pytest.mark.parametrize("way", ["looked up", "rows"])
@pytest.mark.parametrize("form", ["several", "one dict", "named"])
def test_categories_beside_a_mixed_input_are_told(way: str, form: str) -> None:
    """Only the numbers are mixed; with the embedding too nothing is left out."""
    numbers, kind = torch.randn(6, 4).double(), torch.arange(6) % 3
    inputs: Any = (numbers, kind)
    model, name = Table(way), "kind"
    if form == "one dict":
        model, name, inputs = Dict(way), "row.kind", ({"numbers": numbers, "kind": kind},)
    output = "numbers" if form == "named" else None

    with pytest.warns(UserWarning, match=rf"{own(name, 'input')}.*\('input', 'embedding'\)"):
        mixup = ManifoldMixup(model, "input", example=inputs, output=output)
    mixup.detach()
    if way == "looked up" and form != "named":
        together = ManifoldMixup(model, ("input", "embedding"), example=inputs)
        with together(kind) as mix:
            logits = model(*inputs)
        mixed = torch.cat([mixed_by_loop(mix, t) for t in (numbers, model.embedding(kind))], 1)
        torch.testing.assert_close(logits, model.head(mixed), rtol=0, atol=1e-12)


def test_integers_for_all_samples_are_not_told() -> None:
    """They are the same for a sample and its partner."""

    class Shared(Table):
        def forward(self, numbers: Tensor, kind: Tensor) -> Tensor:
            return super().forward(numbers, kind.expand(len(numbers)))

    inputs = torch.randn(6, 4).double(), torch.ones(1, dtype=torch.int64)
    ManifoldMixup(Shared("looked up"), "input", example=inputs).detach()


def test_integers_that_change_nothing_are_not_told() -> None:
    """A step is as it was, and its loss that of the mixed numbers."""
    numbers, kind = torch.randn(6, 4).double(), torch.arange(6) % 3
    model, target = Table("unused"), torch.arange(6) % 2
    with ManifoldMixup(model, "input", example=(numbers, kind))(target) as mix:
        loss = mixed_loss(model(numbers, kind), target, mix)

    logits = model(mixed_by_loop(mix, numbers), kind)
    torch.testing.assert_close(loss, mixed_loss(logits, target, mix))
