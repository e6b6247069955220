"""Does mixing help on this data? Train every way on the same splits, and compare."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manifold_mixup._files import Kept
from manifold_mixup._progress import Track, untracked
from manifold_mixup.comparison.candidates import Candidate, Candidates
from manifold_mixup.comparison.outcomes import Measured, Trained, join_row, measure
from manifold_mixup.comparison.rows import Comparison, Grid, Row, compare_rows, is_settled
from manifold_mixup.comparison.subjects import (
    Head,
    Replicate,
    Scenario,
    by_layer,
    check_inputs,
    check_stores,
    draw_replicate,
    find_head,
    init_head,
)
from manifold_mixup.comparison.train_candidates import (
    Relabelled,
    SolvedCandidates,
    SteppedCandidates,
    rows_of_all,
)
from manifold_mixup.data import LabelledImages, Split
from manifold_mixup.features import FeatureStore
from manifold_mixup.inspection import INPUT
from manifold_mixup.linear_heads import few_threads
from manifold_mixup.models import LinearLayer
from manifold_mixup.training import Classes, check_pairs

# The fewest replicates that an interval is trusted with, and the most by default: where heads are
# solved for at the price of a look-up, and where each costs passes or trainings.
LEAST, MOST, MOST_DEAR = 5, 20, 5


# The smallest gain in accuracy worth having, by default.
WORTH = 0.01


def compare(
    model: nn.Module,
    stores: FeatureStore | Mapping[str, FeatureStore],
    *,
    alphas: Sequence[float] = Candidates.alphas,
    pairings: Sequence[str] = Candidates.pairings,
    label_smoothing: float = Candidates.label_smoothing,
    clean_weights: Sequence[float] = Candidates.clean_weights,
    weight_decays: Sequence[float] = Candidates.weight_decays,
    mixes: int | None = None,
    worth: float = WORTH,
    seeds: int | None = None,
    lrs: Sequence[float] = Candidates.lrs,
    epochs: int = Candidates.epochs,
    batch_size: int = Candidates.batch_size,
    shots: int | None = None,
    label_noise: float = 0.0,
    inputs: Any = None,
    track: Track = untracked,
) -> Comparison:
    """Find out whether mixing helps: train every way on the same splits, and compare.

    Each replicate holds out a fifth of every class to choose by and another fold to test on, and
    draws mixes of its own; five in a row test on all samples. Every way to train, mixing or not,
    gets the weight decay that validation samples find best for it. There are replicates until the
    interval of what mixing gains is half as wide as `worth` to either side, at least five of them.

    Args:
        model: The model whose features are stored; what requires gradients behind them is
            trained, and it is left as it was. A linear head is solved for; where more is to be
            trained, each setting costs a training of its own, and the linear head stands beside.
        stores: Features of one layer, or of several by name, of the same samples.
        alphas: Of lam ~ Beta(alpha, alpha); no mixing is always there.
        pairings: Who mixes with whom; see `draw_partner`. The first has a row for every alpha,
            the others for the one nearest to 1, if a mix costs no pass and no training.
        label_smoothing: Of a row without mixing that smooths its labels; 0 leaves it out.
        clean_weights: For each, a row of the alpha nearest to 1 whose loss has that of the
            unmixed samples beside it, with this weight (RegMixup).
        weight_decays: To choose from, where heads are solved for.
        mixes: How often all samples are mixed; None for 16, or for 2 where every mix has to pass
            through something that is not affine.
        worth: The smallest gain in accuracy worth having, in (0, 1).
        seeds: The most replicates, each with a seed of its own; None for 20, or for 5 where mixes
            have to pass through something, or more than a head is trained.
        lrs: Learning rates to choose from, where more than a head is trained.
        epochs: Passes over the training samples, there; the best by validation is kept.
        batch_size: Samples in a step.
        shots: Train on so many samples of each class; None for all.
        label_noise: Share of the training and validation labels that are drawn anew, below 1.
        inputs: The samples of the stores, in their order, for rows of input mixup, in which all
            of the model runs for every mix; None for no such rows.
        track: Shows how far it is.

    Raises:
        TypeError: The stores are none, or a number is given where several go.
        ValueError: No linear layer with a bias gives the logits, the stores are not of this
            model and of the same samples of classes, a class has too few samples, there is
            nothing to compare, `inputs` are other samples or given where more than a head is
            trained, or an argument is out of range.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(8, 2))
        >>> data = [(torch.randn(8) + i % 2, i % 2) for i in range(60)]
        >>> store = extract_features(model, "0", data, "compared/")
        >>> found = compare(model, store, alphas=[0, 1], pairings=["any"], clean_weights=[])
        >>> [row.candidate.name for row in found.rows]
        ['no mixing, 0', 'label smoothing 0.1, 0', 'feature mixup at 0, alpha 1']
        >>> found.answer
        'cannot tell'
    """
    check_compared(worth, seeds, [label_noise])
    offered = Candidates(
        *(alphas, pairings, label_smoothing, clean_weights, weight_decays, mixes),
        *(lrs, epochs, batch_size),
    )
    stores = by_layer(stores)
    check_stores(stores)
    store = next(iter(stores.values()))
    heads = {layer: find_head(model, one) for layer, one in stores.items()}
    if inputs is not None:
        check_inputs(model, store, heads, inputs)
    module = next(iter(heads.values())).layer.module
    like = module.weight.detach(), module.bias.detach()
    data, scenario = _data_of(store, module.out_features), Scenario(shots, label_noise)
    begins = not all(head.is_alone for head in heads.values())
    is_dear = inputs is not None or any(head.is_dear for head in heads.values())
    most = most_replicates(seeds, is_dear=is_dear)
    replicates = (
        draw_replicate(data, seed, scenario, init_head(seed, like) if begins else None)
        for seed in range(most)
    )
    return compare_stores(
        model, stores, heads, replicates, offered, worth=worth, inputs=inputs, track=track
    )


def compare_stores(
    model: nn.Module,
    stores: Mapping[str, FeatureStore],
    heads: Mapping[str, Head],
    replicates: Iterable[Replicate],
    offered: Candidates,
    *,
    worth: float = WORTH,
    inputs: Any = None,
    kept: Kept | None = None,
    track: Track = untracked,
) -> Comparison:
    """Compare as `compare` does, with given replicates.

    Args:
        model: The model.
        stores: Of the same samples, by layer.
        heads: What is trained behind each.
        replicates: The replicates there may be, drawn as they are needed.
        offered: What to compare.
        worth: The smallest gain in accuracy worth having.
        inputs: The samples of the stores, for rows of input mixup.
        kept: What an interrupted comparison has trained already.
        track: Shows how far it is.
    """
    target, kept = next(iter(stores.values())).targets, kept or Kept()
    num_classes = next(iter(heads.values())).layer.module.out_features
    for pairing in offered.pairings:
        check_pairs(Classes(), pairing, (), target[:2], num_classes)
    groups = _groups(model, stores, heads, offered, inputs, kept, track)
    rows, done, given = _Rows(groups, target, {}), list[Replicate](), list(replicates)
    for replicate in track(given, len(given), "replicates"):
        for group in groups:
            group.add(replicate)
        done.append(replicate)
        may_stop = LEAST <= len(done) < len(given)
        if may_stop and is_settled(rows.after(done), worth=worth):
            break
    grids = [
        _grid(group.trained, offered) for group in groups if isinstance(group, SolvedCandidates)
    ]
    return compare_rows(rows.after(done), grids, worth=worth)


@dataclass(frozen=True)
class _Rows:
    """The rows of all candidates; as these grow, each replicate is measured once."""

    groups: Sequence[SolvedCandidates | SteppedCandidates]
    target: Tensor
    measured: dict[Candidate, list[Measured]]

    def after(self, replicates: Sequence[Replicate]) -> list[Row]:
        """The rows when so many replicates are done."""
        with few_threads():
            return [self._row(one, replicates) for group in self.groups for one in group.trained]

    def _row(self, trained: Trained, replicates: Sequence[Replicate]) -> Row:
        own = self.measured.setdefault(trained.candidate, [])
        rest = zip(trained.outcomes[len(own) :], replicates[len(own) :], strict=True)
        own += [measure(outcome, replicate, self.target) for outcome, replicate in rest]
        return join_row(trained, own, self.target[replicates[0].test])


def _groups(
    model: nn.Module,
    stores: Mapping[str, FeatureStore],
    heads: Mapping[str, Head],
    offered: Candidates,
    inputs: Any,
    kept: Kept,
    track: Track,
) -> list[SolvedCandidates | SteppedCandidates]:
    """What is trained at each layer; behind frozen ones, rows that mix nothing are one and all."""
    groups: list[SolvedCandidates | SteppedCandidates] = []
    first = next(iter(stores))
    has_plain = True
    for layer, store in stores.items():
        head, own = heads[layer], kept.under(layer)
        if not head.is_alone:
            candidates = offered.candidates(layer, is_affine=False)
            groups.append(
                SteppedCandidates(
                    head.tail, head.layer.module, store, candidates, offered, own, track
                )
            )
            continue
        candidates = offered.candidates(layer, has_plain=has_plain, is_affine=head.is_affine)
        has_plain = False
        groups.append(_solved(head, store, candidates, offered, own, track))
    if has_plain:  # the linear head stands beside what is trained by steps
        alone = [Candidate(first, is_alone=True)]
        own = kept.under("alone")
        groups.insert(0, _solved(heads[first], stores[first], alone, offered, own, track))
    if inputs is not None:
        rows = rows_of_all(heads[first].layer, stores[first])
        groups.append(_mixed_inputs(model, heads[first], rows, inputs, offered, kept, track))
    return groups


def _mixed_inputs(
    model: nn.Module,
    head: Head,
    rows: Tensor,
    inputs: Any,
    offered: Candidates,
    kept: Kept,
    track: Track,
) -> SolvedCandidates:
    """Images that are mixed themselves, of which all pass through the whole model."""
    whole = LinearLayer(model, head.layer.module, is_next=False)
    own: dict[str, Any] = {"is_affine": False, "kept": kept.under(INPUT), "track": track}
    samples, candidates = partial(Relabelled, inputs), offered.candidates(INPUT)
    return SolvedCandidates(whole, samples, INPUT, rows, candidates, offered, **own)


def _solved(
    head: Head,
    store: FeatureStore,
    candidates: Sequence[Candidate],
    offered: Candidates,
    kept: Kept,
    track: Track,
) -> SolvedCandidates:
    def samples(positions: Tensor, target: Tensor) -> FeatureStore:
        return store.take(positions).with_targets(target)

    return SolvedCandidates(
        head.layer,
        samples,
        store.stored_layer,
        rows_of_all(head.layer, store),
        candidates,
        offered,
        is_affine=head.is_affine,
        kept=kept,
        track=track,
    )


def check_compared(worth: float, seeds: int | None, label_noises: Sequence[float]) -> None:
    """Raise a ValueError unless these are in range, and leave something to compare."""
    if not 0 < worth < 1:
        raise ValueError(
            f"worth={worth} must be in (0, 1): a share of the samples, 0.01 is 1 point"
        )
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1")
    if 1 in label_noises:
        raise ValueError("label_noise=1 draws all labels anew: there is nothing left to compare")


def most_replicates(seeds: int | None, *, is_dear: bool) -> int:
    """How many there may be at most: as many as are asked for, else what their price allows."""
    if seeds is not None:
        return seeds
    return MOST_DEAR if is_dear else MOST


def _grid(trained: Sequence[Trained], offered: Candidates) -> Grid:
    candidates, nll = [one.candidate for one in trained], torch.stack([one.nll for one in trained])
    return Grid(candidates, offered.decays, nll)


def _data_of(store: FeatureStore, num_classes: int) -> LabelledImages:
    """The stored samples as a data set without parts."""
    known = store.classes if len(store.classes) == num_classes else range(num_classes)
    targets = store.targets.tolist()
    part = Split(range(len(targets)), targets, [str(i) for i in range(len(targets))])
    return LabelledImages(str(store.directory), [str(name) for name in known], {"train": part})
