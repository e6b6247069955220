"""Does mixing help on this data? Train every way on the same splits and seeds, and compare."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.cached import find_tail
from manifold_mixup.choose import validation_nll
from manifold_mixup.comparison import Comparison, Grid, Row, best_of, compare_rows
from manifold_mixup.drawing import check_alpha, seeded_generator
from manifold_mixup.feed import Gather
from manifold_mixup.linear import find_linear
from manifold_mixup.modes import eval_mode, training_mode
from manifold_mixup.progress import Track, untracked
from manifold_mixup.scores import summarize
from manifold_mixup.settings import check_training
from manifold_mixup.stack import HeadStack, train_stack
from manifold_mixup.store import FeatureStore
from manifold_mixup.task_choice import check_pairs
from manifold_mixup.tasks import Classes
from manifold_mixup.temperature import fit_temperature
from manifold_mixup.trials import Trial, list_trials

ALPHAS = (0.0, 0.2, 0.4, 1.0, 2.0)
WEIGHT_DECAYS = (0.01, 0.1, 1.0)
RATES = (0.001, 0.003, 0.01, 0.03)


@dataclass(frozen=True)
class Start:
    """What a seed decides besides order and mixes.

    Attributes:
        seed: The seed.
        train: Positions of the samples to train on (n,).
        val: Of those to choose by.
        test: Of those to test on.
        weight: Where the heads begin (C, D).
        bias: (C,).
    """

    seed: int
    train: Tensor
    val: Tensor
    test: Tensor
    weight: Tensor
    bias: Tensor


def compare(
    model: nn.Module,
    stores: FeatureStore | Mapping[str, FeatureStore],
    *,
    alphas: Sequence[float] = ALPHAS,
    pairings: Sequence[str] = ("any",),
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    lrs: Sequence[float] = RATES,
    label_smoothing: float = 0.1,
    seeds: int = 5,
    epochs: int = 30,
    batch_size: int = 32,
    track: Track = untracked,
) -> Comparison:
    """Find out whether mixing helps: train every way on the same splits and seeds, and compare.

    Each seed holds out a fifth of every class to choose by and another to test on, draws the
    heads' start, the order and the mixes. Every way to train, mixing or not, gets the learning
    rate and weight decay that validation samples find best for it.

    Args:
        model: The model whose features are stored, with the linear head that is to be trained; it
            is left as it was.
        stores: Features of one layer, or of several by name, of the same samples.
        alphas: Of lam ~ Beta(alpha, alpha); no mixing is always there.
        pairings: Who mixes with whom; see `draw_partner`.
        weight_decays: To choose from.
        lrs: Learning rates to choose from.
        label_smoothing: Of a row without mixing that smooths its labels; 0 leaves it out.
        seeds: How many.
        epochs: Passes over the training samples.
        batch_size: Samples in a step.
        track: Shows how far it is.

    Raises:
        ValueError: The head is not a single linear layer with a bias, the stores are not of this
            model and of the same samples of classes, a class has too few samples, or an argument
            is out of range.
        RuntimeError: All heads of a row diverged.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(8, 2))
        >>> data = [(torch.randn(8) + i % 2, i % 2) for i in range(60)]
        >>> store = extract_features(model, "0", data, "compared/")
        >>> found = compare(model, store, alphas=[0, 1], seeds=2, epochs=3)
        >>> [row.trial.name for row in found.rows]
        ['no mixing, 0', 'label smoothing 0.1, 0', 'feature mixup at 0, alpha 1']
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1")
    check_grid(alphas, pairings, label_smoothing, lrs, weight_decays, epochs, batch_size)
    stores = {stores.layer: stores} if isinstance(stores, FeatureStore) else dict(stores)
    _check_stores(stores)
    store = next(iter(stores.values()))
    linear, _ = find_head(model, store)
    return compare_stores(
        model,
        stores,
        [_start(seed, store.targets, linear) for seed in range(seeds)],
        alphas=alphas,
        pairings=pairings,
        label_smoothing=label_smoothing,
        lrs=lrs,
        weight_decays=weight_decays,
        epochs=epochs,
        batch_size=batch_size,
        track=track,
    )


def compare_stores(
    model: nn.Module,
    stores: Mapping[str, FeatureStore],
    starts: Sequence[Start],
    *,
    alphas: Sequence[float],
    pairings: Sequence[str],
    label_smoothing: float,
    **options: Any,
) -> Comparison:
    """Compare as `compare` does, with given splits and starts.

    Args:
        model: See `compare`, as for what is not listed here.
        stores: Of the same samples, by layer.
        starts: One for each seed.
        alphas: See there.
        pairings: See there.
        label_smoothing: See there.
        options: What `train_trials` takes.
    """
    for store, pairing in product(stores.values(), pairings):
        first = store.targets[:2]
        check_pairs(Classes(), pairing, (), first, len(starts[0].bias))
    rows: list[Row] = []
    grids = []
    for layer, store in stores.items():
        _, between = find_head(model, store)
        of_layer, grid = train_trials(
            partial(_flat if between is None else _as_stored, store),
            store.targets,
            list_trials([layer], alphas, pairings, label_smoothing),
            starts,
            between=between,
            **options,
        )
        rows += of_layer
        grids.append(grid)
    return compare_rows(rows, grids)


def train_trials(
    features: Gather,
    target: Tensor,
    trials: Sequence[Trial],
    starts: Sequence[Start],
    *,
    lrs: Sequence[float],
    weight_decays: Sequence[float],
    epochs: int,
    batch_size: int,
    between: Callable[[Tensor], Tensor] | None = None,
    track: Track = untracked,
) -> tuple[list[Row], Grid]:
    """Train every trial on stored features of one layer, all heads of a seed as one stack.

    Args:
        features: Gives features of samples by their positions.
        target: Class indices (N,) of all samples.
        trials: The ways to train.
        starts: One for each seed.
        lrs: Learning rates that validation chooses from, for every trial by itself.
        weight_decays: The same of weight decays.
        epochs: Passes over the training samples.
        batch_size: Samples in a step.
        between: A frozen function from features to what the heads take; see `train_stack`.
        track: Shows how far it is.

    Returns:
        A row for each trial, and what validation said of every setting.
    """
    began = time.perf_counter()
    taken = _all_of(features, len(target), between)
    stacks, nlls = [], []
    for start in track(starts, len(starts), "compare"):
        stack = train_stack(
            partial(_some, features, start.train),
            target[start.train],
            [one for trial in trials for one in trial.settings(lrs, weight_decays, start.seed)],
            start.weight,
            start.bias,
            epochs=epochs,
            batch_size=batch_size,
            between=between,
        )
        held = taken[start.val].__getitem__, target[start.val]
        nll = validation_nll(*held, stack.weight, stack.bias)
        nlls.append(nll.nan_to_num(math.inf, posinf=math.inf).cpu())
        stacks.append(stack)
    nll = torch.stack(nlls).mean(0).view(len(trials), len(lrs), len(weight_decays))
    grid = Grid(list(trials), list(lrs), list(weight_decays), nll)
    seconds = (time.perf_counter() - began) / len(trials)
    return [
        _row(grid, i, stacks, starts, taken, target, seconds) for i in range(len(trials))
    ], grid


def check_grid(
    alphas: Sequence[float],
    pairings: Sequence[str],
    label_smoothing: float,
    lrs: Sequence[float],
    weight_decays: Sequence[float],
    epochs: int,
    batch_size: int,
) -> None:
    """Raise a ValueError that names the argument of `compare` that is out of range, if one is."""
    check_training(epochs, batch_size, label_smoothing=label_smoothing)
    for name, values in (
        ("alphas", alphas),
        ("pairings", pairings),
        ("lrs", lrs),
        ("weight_decays", weight_decays),
    ):
        if not len(values):
            raise ValueError(f"{name} is empty: give at least one")
    for alpha in alphas:
        check_alpha(alpha)
    for pairing in pairings:
        Trial("", pairing=pairing).settings(lrs, weight_decays, 0)


def find_head(
    model: nn.Module, store: FeatureStore
) -> tuple[nn.Linear, Callable[[Tensor], Tensor] | None]:
    """The linear head behind stored features, and what lies between, None if that is nothing.

    Raises:
        ValueError: What requires gradients is not a single linear layer with a bias.
    """
    tail = find_tail(model, store)
    parameters = {name: p for name, p in tail.named_parameters() if p.requires_grad}
    inputs = store.features.gather(torch.arange(min(2, len(store))))
    if parameters:
        with training_mode(tail, parameters, set()):
            linear = find_linear(tail, inputs.to(next(iter(parameters.values()))), parameters)
        if linear is not None:
            return linear, None
    heads = [
        module
        for module in tail.modules()
        if isinstance(module, nn.Linear)
        and {id(p) for p in module.parameters()} == {id(p) for p in parameters.values()}
    ]
    if len(heads) != 1 or heads[0].bias is None:
        raise ValueError(
            f"compare trains a linear layer with a bias alone, but behind '{store.layer}' "
            f"{', '.join(parameters) or 'nothing'} requires gradients; choose an earlier layer, "
            "or freeze(model, except_=head)"
        )
    return heads[0], partial(_input_of, tail, heads[0])


def _check_stores(stores: Mapping[str, FeatureStore]) -> None:
    """Make sure that there are stores, of the same samples, each of one of several classes."""
    if not stores:
        raise ValueError("stores is empty: give the features of at least one layer")
    first = next(iter(stores.values()))
    if first.targets.ndim != 1 or first.targets.is_floating_point():
        raise ValueError(
            f"{first.directory}: holds targets of shape {tuple(first.targets.shape)} and dtype "
            f"{first.targets.dtype}; compare is for class indices (n,)"
        )
    if first.targets.min() == first.targets.max():
        raise ValueError(f"{first.directory}: holds samples of one class, need at least 2")
    for store in stores.values():
        own, others = ({**one.manifest.made_of, "modules": None} for one in (store, first))
        if own != others or not torch.equal(store.targets, first.targets):
            raise ValueError(
                f"{store.directory}: holds features of other samples than {first.directory}; "
                "extract all layers in one call of extract_features"
            )


def _row(
    grid: Grid,
    place: int,
    stacks: Sequence[HeadStack],
    starts: Sequence[Start],
    taken: Tensor,
    target: Tensor,
    seconds: float,
) -> Row:
    """What the best setting of a trial came to."""
    lr, weight_decay, val_nll = best_of(grid, place)
    trial = grid.trials[place]
    per_trial = grid.nll[place].numel()
    head = place * per_trial + int(grid.nll[place].argmin())
    measured = [
        _measure(stack, head, start, taken, target)
        for stack, start in zip(stacks, starts, strict=True)
    ]
    metrics = {
        name: sum(each[name] for each, _, _ in measured) / len(measured) for name in measured[0][0]
    }
    tested = starts[0].test
    return Row(
        trial,
        trial.settings([lr], [weight_decay], starts[0].seed)[0],
        {**metrics, "val_nll": val_nll},
        [each for each, _, _ in measured],
        torch.stack([correct for _, correct, _ in measured]),
        torch.stack([surprise for _, _, surprise in measured]),
        _logits(stacks[0], head, taken[tested]),
        target[tested],
        seconds,
    )


def _measure(
    stack: HeadStack, head: int, start: Start, taken: Tensor, target: Tensor
) -> tuple[dict[str, float], Tensor, Tensor]:
    """The metrics of one head, and of every sample whether it is right and its NLL (N,)."""
    from sklearn.metrics import f1_score

    held, tested, trained = (
        _logits(stack, head, taken[part]) for part in (start.val, start.test, start.train)
    )
    temperature, own = fit_temperature(held, target[start.val]), target[start.test]
    plain, mended = summarize(tested, own), summarize(tested / temperature, own)
    told = tested.argmax(1)
    correct, surprise = (torch.full((len(target),), math.nan) for _ in range(2))
    correct[start.test] = (told == own).float()
    surprise[start.test] = F.cross_entropy(tested / temperature, own, reduction="none").float()
    steps = stack.losses.shape[1] // stack.epochs
    metrics = {
        "accuracy": plain["accuracy"],
        "macro_f1": float(f1_score(own.numpy(), told.numpy(), average="macro", zero_division=0)),
        "nll": plain["nll"],
        "calibration_error": plain["calibration_error"],
        "mended_nll": mended["nll"],
        "mended_calibration_error": mended["calibration_error"],
        "temperature": temperature,
        "clean_loss": float(F.cross_entropy(trained, target[start.train])),
        "mixed_loss": float(stack.losses[head, -steps:].mean()),
    }
    return metrics, correct, surprise


def _logits(stack: HeadStack, head: int, taken: Tensor) -> Tensor:
    """Of what a head takes (n, D), in float64 on the CPU."""
    weight, bias = stack.weight[head].cpu(), stack.bias[head].cpu()
    return F.linear(taken.double(), weight.double(), bias.double())


def _start(seed: int, target: Tensor, linear: nn.Linear) -> Start:
    """A stratified split and a fresh head."""
    from sklearn.model_selection import train_test_split

    options: dict[str, Any] = {"random_state": seed}
    everything = range(len(target))
    fifth = max(int(target.max()) + 1, round(0.2 * len(target)))
    try:
        rest, test = train_test_split(
            everything, test_size=fifth, stratify=target.tolist(), **options
        )
        train, val = train_test_split(
            rest, test_size=fifth, stratify=target[rest].tolist(), **options
        )
    except ValueError as error:
        raise ValueError(
            f"too few samples to hold out two fifths of each class: {error}"
        ) from error
    bound = linear.in_features**-0.5
    generator = seeded_generator(seed, "head")
    weight, bias = (
        torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator).to(tensor.device)
        for tensor in (linear.weight.detach(), linear.bias.detach())
    )
    train, val, test = (torch.tensor(sorted(part)) for part in (train, val, test))
    return Start(seed, train, val, test, weight, bias)


@torch.no_grad()
def _all_of(features: Gather, n: int, between: Callable[[Tensor], Tensor] | None) -> Tensor:
    """What the heads take of all samples, unmixed (n, D), on the CPU."""
    chunks = (features(index) for index in torch.split(torch.arange(n), 256))
    return torch.cat([(chunk if between is None else between(chunk)).cpu() for chunk in chunks])


def _input_of(tail: nn.Module, linear: nn.Linear, features: Tensor) -> Tensor:
    """What reaches the linear layer when the tail, in eval mode, takes these features (B, D)."""
    seen: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with eval_mode(tail):
            tail(features.to(linear.weight))
    finally:
        hook.remove()
    return seen[-1].detach().float()


def _some(features: Gather, positions: Tensor, index: Tensor) -> Tensor:
    return features(positions[index])


def _flat(store: FeatureStore, index: Tensor) -> Tensor:
    return store.features.gather(index).flatten(1)


def _as_stored(store: FeatureStore, index: Tensor) -> Tensor:
    return store.features.gather(index)
