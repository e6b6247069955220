"""Tables: embeddings of categories and continuous numbers mixed together, indices left alone."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import hooks_on, mixed_by_loop
from torch import Tensor, nn

from manifold_mixup import ManifoldMixup, Mix, mixed_loss

SCRIPT = Path(__file__).parents[2] / "scripts" / "tabular.py"
SIZES = (5, 3, 7)
LAYERS = [("embeddings.*", "input")]


class Table(nn.Module):
    """Categories (B, 3), each column with its embedding, and continuous numbers (B, 4)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 2) for size in SIZES)
        self.dropout, self.norm = nn.Dropout(dropout), nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2))
        self.double()

    def forward(self, categories: Tensor, continuous: Tensor) -> Tensor:
        """Logits (B, 2)."""
        columns = zip(self.embeddings, categories.unbind(1), strict=True)
        return self.behind([layer(column) for layer, column in columns], continuous)

    def behind(self, embedded: list[Tensor], continuous: Tensor) -> Tensor:
        """Logits from embedded categories and continuous numbers."""
        return self.body(
            torch.cat([self.dropout(torch.cat(embedded, 1)), self.norm(continuous)], 1)
        )


class OneEmbedding(Table):
    """The same table with one embedding for all columns, each with its own range of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(sum(SIZES), 2).double()])
        self.register_buffer("offsets", torch.tensor([0, *SIZES[:-1]]).cumsum(0))

    def forward(self, categories: Tensor, continuous: Tensor) -> Tensor:
        """Logits (B, 2)."""
        embedded = self.embeddings[0](categories + self.offsets)
        return self.behind(list(embedded.unbind(1)), continuous)


class OneDict(Table):
    """The same table, given as one dict."""

    def forward(self, row: dict[str, Any]) -> Tensor:
        """Logits (B, 2)."""
        return super().forward(row["categories"], row["continuous"])


def rows(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Categories, continuous numbers and classes of n rows."""
    categories = torch.stack([torch.randint(size, (n,)) for size in SIZES], 1)
    return categories, torch.randn(n, 4, dtype=torch.float64), torch.randint(2, (n,))


def expected_logits(model: Table, mix: Mix, categories: Tensor, continuous: Tensor) -> Tensor:
    """What the model makes of embeddings and numbers that are mixed by hand."""
    if isinstance(model, OneEmbedding):
        embedded = list(model.embeddings[0](categories + model.offsets).unbind(1))
    else:
        columns = zip(model.embeddings, categories.unbind(1), strict=True)
        embedded = [layer(column) for layer, column in columns]
    return model.behind([mixed_by_loop(mix, e) for e in embedded], mixed_by_loop(mix, continuous))


def call(model: Table, way: str, categories: Tensor, continuous: Tensor) -> Tensor:
    """The model on its inputs by position, by keyword, or in a dict."""
    named = {"categories": categories, "continuous": continuous}
    if way == "dict":
        return model(named)
    return model(**named) if way == "keyword" else model(categories, continuous)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (Table, "position"),
        (Table, "keyword"),
        (OneEmbedding, "position"),
        (OneDict, "dict"),
    ],
)
def test_embeddings_and_numbers_share_one_mix(kind: type[Table], way: str, mode: str) -> None:
    """Embeddings and numbers are mixed by one mix, and batch statistics see the result."""
    model = kind().train(mode == "train")
    categories, continuous, target = rows()
    given = categories.clone()
    mixup = ManifoldMixup(model, LAYERS, alpha=1.0)

    with mixup(target) as mix:
        logits = call(model, way, categories, continuous)

    expected = expected_logits(model, mix, categories, continuous)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert torch.equal(categories, given)
    assert mixup.drawn == (*[f"embeddings.{i}" for i in range(len(model.embeddings))], "input")


def test_dropout_comes_after_the_mix() -> None:
    """Dropout on embeddings falls on the mixed ones: a dropped number is 0 in both samples."""
    model, (categories, continuous, target) = Table(dropout=0.5), rows()
    mixup = ManifoldMixup(model, LAYERS, alpha=1.0, example=(categories, continuous))

    torch.manual_seed(1)
    with mixup(target) as mix:
        logits = model(categories, continuous)

    torch.manual_seed(1)
    expected = expected_logits(model, mix, categories, continuous)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_a_step_trains_every_part() -> None:
    """The loss of a mixed step reaches the embeddings of the sample and of its partner."""
    model, (categories, continuous, target) = Table(), rows()

    with ManifoldMixup(model, LAYERS, alpha=1.0)(target) as mix:
        loss = mixed_loss(model(categories, continuous)[:1], target[:1], Mix(1.0, [0]))
    loss.backward()

    for column, layer in enumerate(model.embeddings):
        pair = {int(categories[0, column]), int(categories[mix.partner[0], column])}
        assert layer.weight.grad is not None
        assert set(layer.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == pair


@pytest.mark.parametrize("n", [2, 3, 31])
def test_outside_of_a_step_a_table_is_not_mixed(n: int) -> None:
    """Before, between and after steps the model's logits are the plain ones."""
    model, (categories, continuous, target) = Table().eval(), rows(n)
    plain = model(categories, continuous)

    options = {"example": (categories, continuous), "features_only": True}
    with ManifoldMixup(model, LAYERS, **options) as mixup:
        before = model(categories, continuous)
        with mixup(target):
            model(categories, continuous)
        after = model(categories, continuous)

    assert torch.equal(before, plain)
    assert torch.equal(after, plain)
    assert hooks_on(model) == 0


class OnlyCategories(nn.Module):
    """A table without continuous numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 2) for size in SIZES)
        self.head = nn.Linear(6, 2)

    def forward(self, categories: Tensor) -> Tensor:
        """Logits (B, 2)."""
        columns = zip(self.embeddings, categories.unbind(1), strict=True)
        return self.head(torch.cat([layer(column) for layer, column in columns], 1))


@pytest.mark.parametrize("layers", ["input", [("input", "embeddings.*")]])
@pytest.mark.parametrize("deferred", [False, True], ids=["attach", "first step"])
def test_indices_cannot_be_mixed(layers: Any, deferred: bool) -> None:
    """A model of indices alone has no input to mix: the error names its embeddings, at once."""
    model, (categories, _, target) = OnlyCategories(), rows()
    message = r"'input': .*no floating-point.*output of its embedding.*'embeddings.0'"

    if deferred:
        mixup = ManifoldMixup(model, layers)
        with pytest.raises(ValueError, match=message), mixup(target):
            model(categories)
    else:
        with pytest.raises(ValueError, match=message):
            ManifoldMixup(model, layers, example=categories)
        assert hooks_on(model) == 0


@pytest.mark.filterwarnings("ignore:.*which is not mixed")
@pytest.mark.parametrize(
    ("output", "way", "named"),
    [
        ("categories", "keyword", "categories"),
        (0, "position", "0"),
        ("categories", "position", "0"),
        (["continuous", "categories"], "position", "0"),
        ("0.categories", "dict", "0.categories"),
    ],
)
def test_an_integer_input_cannot_be_chosen(output: Any, way: str, named: str) -> None:
    """To name an integer input by output= is an error that points to the embedding."""
    model = OneDict() if way == "dict" else Table()
    categories, continuous, target = rows()
    mixup = ManifoldMixup(model, "input", output=output)

    message = rf"'input'.*'{named}' holds int64.*output of its embedding"
    with pytest.raises(TypeError, match=message), mixup(target):
        call(model, way, categories, continuous)


@pytest.mark.shared
def test_the_adult_table_is_read_whole(shared: Path) -> None:
    """Every row of both parts, incomes as 0 and 1, categories within range, numbers in scale."""
    script = runpy.run_path(str(SCRIPT))
    train, test, sizes = script["load"](None)

    assert [len(train[2]), len(test[2])] == [32561, 16281]
    assert [int(train[2].sum()), int(test[2].sum())] == [7841, 3846]
    assert train[1].shape[1] == 6
    assert torch.allclose(train[1].mean(0), torch.zeros(6), atol=1e-3)
    for categories, _, _ in (train, test):
        assert categories.shape[1] == len(sizes) == 8
        assert (categories.amax(0) < torch.tensor(sizes)).all()
    assert train[0].min() == 1


@pytest.mark.shared
def test_the_script_compares_mixing_with_none(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A try on a few rows prints the rows with and without mixing, and their difference."""
    script = runpy.run_path(str(SCRIPT))

    script["main"](["--rows", "300", "--epochs", "1", "--seeds", "2"])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split("(")[0].strip() for line in lines if line.startswith("alpha")] == [
        f"alpha {alpha}" for alpha in script["ALPHAS"]
    ]
    assert sum(line.startswith("  minus no mixing") for line in lines) == len(script["ALPHAS"]) - 1


def test_intervals_cover_seeds_and_rows() -> None:
    """The script's interval holds the true mean in about 95 of 100 draws of seeds and rows."""
    interval = runpy.run_path(str(SCRIPT))["interval"]
    hits = []

    for _ in range(300):
        of_seeds, of_rows = torch.randn(5, 1, 1), 20 * torch.randn(1, 400, 1)
        mean, half = interval((of_seeds + of_rows).double())
        hits.append(abs(mean[0]) <= half[0])

    assert 0.93 <= sum(hits) / len(hits) <= 1.0
