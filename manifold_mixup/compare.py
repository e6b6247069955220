"""Does mixing help on this data? Train every way on the same splits and seeds, and compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup.cached import find_tail
from manifold_mixup.comparison import Comparison, Grid, compare_rows
from manifold_mixup.feed import Gather
from manifold_mixup.kept import Kept
from manifold_mixup.layers import INPUT
from manifold_mixup.linear import find_linear
from manifold_mixup.loading import first_logits
from manifold_mixup.modes import eval_mode, training_mode
from manifold_mixup.parts import Data, Part
from manifold_mixup.progress import Track, untracked
from manifold_mixup.starts import Case, Start, draw_head, draw_start
from manifold_mixup.store import FeatureStore
from manifold_mixup.tail import Tail
from manifold_mixup.task_choice import check_pairs
from manifold_mixup.tasks import Classes
from manifold_mixup.trained import Trained, make_row
from manifold_mixup.trial_heads import check_memory, input_of, train_heads
from manifold_mixup.trial_tails import train_tails
from manifold_mixup.trials import Ways

# What a hooked loop would take for one step at a layer, in seconds.
StepSeconds = Callable[[str], float]

# What features of the same sample may differ by, if they were stored in bfloat16: by so much of
# what they vary by, but for so many of them.
_SAME = 0.05


@dataclass(frozen=True)
class Head:
    """What is trained behind stored features.

    Attributes:
        tail: All that lies behind them.
        linear: The linear layer that gives the logits.
        is_alone: Whether nothing else is trained.
        is_next: Whether it takes the features as they are stored.
    """

    tail: Tail
    linear: nn.Linear
    is_alone: bool
    is_next: bool


def compare(
    model: nn.Module,
    stores: FeatureStore | Mapping[str, FeatureStore],
    *,
    alphas: Sequence[float] = Ways.alphas,
    pairings: Sequence[str] = Ways.pairings,
    label_smoothing: float = Ways.label_smoothing,
    clean_weights: Sequence[float] = Ways.clean_weights,
    noises: Sequence[float] = Ways.noises,
    weight_decays: Sequence[float] = Ways.weight_decays,
    lrs: Sequence[float] = Ways.lrs,
    seeds: int = 5,
    epochs: int = Ways.epochs,
    batch_size: int = Ways.batch_size,
    mixed_epochs: int | None = None,
    shots: int | None = None,
    label_noise: float = 0.0,
    inputs: Any = None,
    track: Track = untracked,
) -> Comparison:
    """Find out whether mixing helps: train every way on the same splits and seeds, and compare.

    Each seed holds out a fifth of every class to choose by and another to test on, draws the
    heads' start, the order and the mixes. Every way to train, mixing or not, gets the learning
    rate and weight decay that validation samples find best for it.

    Args:
        model: The model whose features are stored; what requires gradients behind them is
            trained, and it is left as it was. Linear heads train all together, in seconds;
            where more is to be trained, each setting costs a training of its own.
        stores: Features of one layer, or of several by name, of the same samples.
        alphas: Of lam ~ Beta(alpha, alpha); no mixing is always there.
        pairings: Who mixes with whom; see `draw_partner`.
        label_smoothing: Of a row without mixing that smooths its labels; 0 leaves it out.
        clean_weights: For each, rows whose loss has that of the unmixed samples beside it, with
            this weight (RegMixup).
        noises: For each, a row without mixing whose features have noise of so many of their
            standard deviations.
        weight_decays: To choose from.
        lrs: Learning rates to choose from; pretrained blocks want lower ones than a head.
        seeds: How many.
        epochs: Passes over the training samples.
        batch_size: Samples in a step.
        mixed_epochs: Mixes repeat after so many epochs, which bounds how often what is frozen but
            not affine behind a layer runs; None for never.
        shots: Train on so many samples of each class; None for all.
        label_noise: Share of the training and validation labels that are drawn anew.
        inputs: The samples of the stores, in their order, for rows of input mixup, in which all
            of the model runs for every mixed batch; None for no such rows.
        track: Shows how far it is.

    Raises:
        TypeError: The stores are none, or a number is given where several go.
        ValueError: No linear layer with a bias gives the logits, the stores are not of this
            model and of the same samples of classes, a class has too few samples, `inputs` are
            other samples or given where more than a head is trained, or an argument is out of
            range.
        RuntimeError: All heads of a row diverged.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(8, 2))
        >>> data = [(torch.randn(8) + i % 2, i % 2) for i in range(60)]
        >>> store = extract_features(model, "0", data, "compared/")
        >>> found = compare(model, store, alphas=[0, 1], pairings=["any"], clean_weights=[],
        ...                 noises=[], seeds=2, epochs=3)
        >>> [row.trial.name for row in found.rows]
        ['no mixing, 0', 'label smoothing 0.1, 0', 'feature mixup at 0, alpha 1']
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1")
    ways = Ways(
        alphas,
        pairings,
        label_smoothing,
        clean_weights,
        noises,
        weight_decays,
        lrs,
        epochs,
        batch_size,
        mixed_epochs,
    )
    stores = _by_layer(stores)
    _check_stores(stores)
    store = next(iter(stores.values()))
    heads = {layer: find_head(model, one) for layer, one in stores.items()}
    if inputs is not None and not all(head.is_alone for head in heads.values()):
        raise ValueError("inputs= are mixed for heads alone; freeze(model, except_=head), or none")
    if inputs is not None:
        _check_inputs(model, store, heads[store.layer], inputs)
    linear = next(iter(heads.values())).linear
    if all(head.is_alone for head in heads.values()):
        check_memory(store.layer, linear.weight.shape, ways, seeds)
    like = linear.weight.detach(), linear.bias.detach()
    data, case = _data_of(store, len(linear.bias)), Case(shots, label_noise)
    starts = [draw_start(data, seed, case, *draw_head(seed, like)) for seed in range(seeds)]
    gather = None if inputs is None else partial(gather_inputs, inputs)
    return compare_stores(model, stores, heads, starts, ways, inputs=gather, track=track)


def compare_stores(
    model: nn.Module,
    stores: Mapping[str, FeatureStore],
    heads: Mapping[str, Head],
    starts: Sequence[Start],
    ways: Ways,
    *,
    inputs: Gather | None = None,
    step_seconds: StepSeconds | None = None,
    kept: Kept | None = None,
    track: Track = untracked,
) -> Comparison:
    """Compare as `compare` does, with given splits and starts.

    Args:
        model: The model.
        stores: Of the same samples, by layer.
        heads: What is trained behind each.
        starts: One for each seed.
        ways: What to compare.
        inputs: Gives the model's inputs by their positions, for rows of input mixup.
        step_seconds: Tells what a step of a hooked loop would take.
        kept: What an interrupted comparison has trained already.
        track: Shows how far it is.
    """
    target, kept = next(iter(stores.values())).targets, kept or Kept()
    for pairing in ways.pairings:
        check_pairs(Classes(), pairing, (), target[:2], len(starts[0].bias))
    found = []
    for layer, store in stores.items():
        found.append(_train(heads[layer], store, starts, ways, kept.under(layer), track))
    if inputs is not None and (mixed := ways.trials(INPUT)):
        linear = next(iter(heads.values())).linear
        between, own = partial(input_of, model, linear), kept.under(INPUT)
        found.append(
            train_heads(inputs, mixed, starts, ways, between=between, kept=own, track=track)
        )
    rows = []
    for one in (trained for of_layer in found for trained in of_layer):
        is_alone = one.trial.layer == INPUT or heads[one.trial.layer].is_alone
        steps = _steps(one, starts, ways, is_alone=is_alone)
        hooked = steps * step_seconds(one.trial.layer) if step_seconds else float("nan")
        rows.append(make_row(one, starts, target, hooked))
    return compare_rows(rows, [_grid(of_layer, ways) for of_layer in found])


def find_head(model: nn.Module, store: FeatureStore) -> Head:
    """What is to be trained behind stored features.

    Raises:
        ValueError: There is no linear layer with a bias that is.
    """
    tail = find_tail(model, store)
    parameters = {name: p for name, p in tail.named_parameters() if p.requires_grad}
    wanted = {id(p) for p in parameters.values()}
    linears = [
        module
        for module in tail.modules()
        if isinstance(module, nn.Linear) and {id(p) for p in module.parameters()} <= wanted
    ]
    inputs = store.features.gather(torch.arange(min(2, len(store))))
    linear = _last_of(linears, tail, inputs) if linears else None
    if linear is None or linear.bias is None:
        raise ValueError(
            f"compare trains a head that ends in a linear layer with a bias, but behind "
            f"'{store.layer}' {', '.join(parameters) or 'nothing'} requires gradients; choose an "
            "earlier layer, or freeze(model, except_=head)"
        )
    is_alone = {id(p) for p in linear.parameters()} == wanted
    with training_mode(tail, parameters, set()):
        taken = inputs.to(linear.weight)
        is_next = is_alone and find_linear(tail, taken, parameters) is not None
    return Head(tail, linear, is_alone, is_next)


def _last_of(linears: Sequence[nn.Linear], tail: Tail, inputs: Tensor) -> nn.Linear | None:
    """The one of some layers that gives the logits, if one does."""
    given: dict[nn.Linear, Tensor] = {}
    hooks = [
        one.register_forward_hook(lambda linear, args, output: given.update({linear: output}))
        for one in linears
    ]
    try:
        with torch.no_grad(), eval_mode(tail):
            logits = first_logits(tail(inputs.to(linears[0].weight)))
    finally:
        for hook in hooks:
            hook.remove()
    return next((linear for linear, output in given.items() if output is logits), None)


def gather_inputs(dataset: Any, index: Tensor) -> Tensor:
    """The inputs (B, *) of a data set at some positions (B,)."""
    return torch.stack([dataset[i][0] for i in index.tolist()])


def _train(
    head: Head,
    store: FeatureStore,
    starts: Sequence[Start],
    ways: Ways,
    kept: Kept,
    track: Track,
) -> list[Trained]:
    """Train every trial of a layer."""
    options: dict[str, Any] = {"kept": kept, "track": track}
    trials = ways.trials(store.layer)
    if not head.is_alone:
        return train_tails(head.tail, head.linear, store, trials, starts, ways, **options)
    if head.is_next:
        return train_heads(partial(_flat, store), trials, starts, ways, **options)
    between = partial(input_of, head.tail, head.linear)
    return train_heads(store.features.gather, trials, starts, ways, between=between, **options)


def _steps(trained: Trained, starts: Sequence[Start], ways: Ways, *, is_alone: bool) -> int:
    """How many steps all trainings of a row take, one by one."""
    tried, seeds = trained.nll.numel(), len(starts)
    trainings = tried * seeds if is_alone else tried + seeds - 1
    return trainings * ways.epochs * -(-len(starts[0].train) // ways.batch_size)


def _grid(trained: Sequence[Trained], ways: Ways) -> Grid:
    trials, nll = [one.trial for one in trained], torch.stack([one.nll for one in trained])
    return Grid(trials, list(ways.lrs), list(ways.weight_decays), nll)


def _data_of(store: FeatureStore, num_classes: int) -> Data:
    """The stored samples as a data set without parts."""
    known = store.classes if len(store.classes) == num_classes else range(num_classes)
    targets = store.targets.tolist()
    part = Part(range(len(targets)), targets, [str(i) for i in range(len(targets))])
    return Data(str(store.directory), [str(name) for name in known], {"train": part})


def _by_layer(stores: FeatureStore | Mapping[str, FeatureStore]) -> dict[str, FeatureStore]:
    if isinstance(stores, FeatureStore):
        return {stores.layer: stores}
    if isinstance(stores, Mapping) and all(isinstance(x, FeatureStore) for x in stores.values()):
        for name, store in stores.items():
            if name != store.layer:
                raise ValueError(
                    f"stores[{name!r}] holds features of '{store.layer}'; name it by that layer"
                )
        return dict(stores)
    raise TypeError(
        f"stores is a {type(stores).__name__}; give a FeatureStore, or a dict of them by layer, "
        "as extract_features returns them"
    )


def _check_stores(stores: Mapping[str, FeatureStore]) -> None:
    """Make sure that there are stores, of the same samples, each of one of several classes."""
    if not stores:
        raise ValueError("stores is empty: give the features of at least one layer")
    first = next(iter(stores.values()))
    kind = first.targets.dtype
    if first.targets.ndim != 1 or kind.is_floating_point or kind == torch.bool:
        raise ValueError(
            f"{first.directory}: holds targets of shape {tuple(first.targets.shape)} and dtype "
            f"{kind}; compare is for class indices (n,)"
        )
    if first.targets.min() < 0:
        raise ValueError(
            f"{first.directory}: holds class {int(first.targets.min())}, expected indices from 0; "
            "take() the samples that have a class"
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


def _check_inputs(model: nn.Module, store: FeatureStore, head: Head, inputs: Any) -> None:
    """Make sure that a data set holds the samples whose features are stored, in their order."""
    if store.views > 1:
        raise ValueError(
            f"{store.directory}: holds {store.views} views of each sample, inputs= have one; "
            "extract features without views="
        )
    if len(inputs) != len(store):
        raise ValueError(
            f"inputs= has {len(inputs)} samples, {store.directory} features of {len(store)}; "
            "give the samples of the store, in its order"
        )
    chosen = torch.linspace(0, len(store) - 1, min(16, len(store))).long()
    stored = input_of(head.tail, head.linear, store.features.gather(chosen)).cpu()
    try:
        given = input_of(model, head.linear, gather_inputs(inputs, chosen)).cpu()
    except Exception as error:  # whatever a model makes of something else
        raise ValueError(f"inputs= are nothing that the model takes: {error}") from error
    # Each number by itself: beside a huge one, which transformers have, all others would be small.
    spread = stored.std(0)
    apart = (given - stored).abs() > _SAME * (stored.abs() + spread + spread.mean())
    differs = apart.float().mean(1) > _SAME
    if bool(differs.any()):
        raise ValueError(
            f"inputs= sample {int(chosen[differs][0])} gives other features than "
            f"{store.directory} holds of it; give the samples of the store, in its order, without "
            "random augmentation"
        )


def _flat(store: FeatureStore, index: Tensor) -> Tensor:
    return store.features.gather(index).flatten(1)
