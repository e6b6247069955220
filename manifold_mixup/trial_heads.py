"""Trials of a linear head, trained on stored features: all heads of some seeds as one stack."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.feed import Gather
from manifold_mixup.kept import Kept
from manifold_mixup.lanes import side_by_side
from manifold_mixup.modes import eval_mode
from manifold_mixup.progress import Track, untracked
from manifold_mixup.stack import train_stack
from manifold_mixup.starts import Start
from manifold_mixup.trained import Outcome, Trained, choose, mended_nll
from manifold_mixup.trials import Trial, Ways

Between = Callable[[Tensor], Tensor]


# Copies of the weights of one seed in memory while it trains; each trained seed keeps one more.
_COPIES = 7


def check_memory(layer: str, shape: Sequence[int], ways: Ways, seeds: int) -> None:
    """Raise a ValueError if the heads of a layer would not fit into this machine's memory.

    Args:
        layer: Where their features come from.
        shape: Of the weight of each (C, D).
        ways: What is compared.
        seeds: How many.
    """
    heads = ways.count(layer)
    needed, there = 4 * heads * math.prod(shape) * (_COPIES + seeds), _memory()
    if needed > there:
        raise ValueError(
            f"{heads} heads of {shape[0]} x {shape[1]} weights under {seeds} seeds need about "
            f"{needed / 1e9:.2g} GB of memory, this machine has {there / 1e9:.2g}; compare fewer "
            "learning rates, weight decays, alphas or seeds"
        )


def train_heads(
    features: Gather,
    trials: Sequence[Trial],
    starts: Sequence[Start],
    ways: Ways,
    *,
    between: Between | None = None,
    kept: Kept | None = None,
    track: Track = untracked,
) -> list[Trained]:
    """Train every trial on stored features of one layer.

    Args:
        features: Gives features of samples by their positions.
        trials: The ways to train.
        starts: One for each seed.
        ways: What rates and decays each may choose from, and for how long it trains.
        between: A frozen function from features to what the head takes; see `train_stack`.
        kept: What an interrupted comparison has trained already.
        track: Shows how far it is.
    """
    began = time.perf_counter()
    kept, taken = kept or Kept(), _all_of(features, len(starts[0].target), between)
    jobs = _jobs(trials, features, taken, starts, ways, between)
    found: dict[tuple[int, Trial], dict[str, Tensor]] = {}
    for job in track(jobs, len(jobs), trials[0].layer):
        stack = kept.get(job.name) or kept.put(job.name, _train(job, ways))
        owners = list(product((start.seed for start in job.starts), job.trials))
        for name, tensor in stack.items():
            for owner, heads in zip(owners, tensor.chunk(len(owners)), strict=True):
                found.setdefault(owner, {})[name] = heads
    seconds = (time.perf_counter() - began) / len(trials)
    return [
        _chosen(trial, [found[one.seed, trial] for one in starts], starts, ways, taken, seconds)
        for trial in trials
    ]


@dataclass(frozen=True)
class _Job:
    """What is trained as one stack, and kept by a name: some trials under some seeds."""

    name: str
    trials: Sequence[Trial]
    starts: Sequence[Start]
    gather: Gather
    between: Between | None


def _jobs(
    trials: Sequence[Trial],
    features: Gather,
    taken: Tensor,
    starts: Sequence[Start],
    ways: Ways,
    between: Between | None,
) -> list[_Job]:
    """All there is to train.

    Where nothing changes the features, what lies between gives the same in every step. Where it
    runs in each, that takes the most time: a seed by itself is done, and kept, the sooner.
    """
    moved = [one for one in trials if between is not None and (one.mixes or one.noise)]
    still = [one for one in trials if one not in moved]
    rows: Gather = partial(torch.index_select, taken, 0)  # faster than taken[index]
    size = len(still) * len(ways.settings(trials[0], 0)) * starts[0].weight.numel()
    jobs = [
        _Job(f"{some[0].seed} to {some[-1].seed} still", still, some, rows, None)
        for some in side_by_side(list(starts), size)
    ]
    jobs += [_Job(f"{one.seed} moved", moved, [one], features, between) for one in starts]
    return [job for job in jobs if job.trials]


def _train(job: _Job, ways: Ways) -> dict[str, Tensor]:
    """Weights (K, C, D), biases (K, C) and last losses (K,) of all settings, seed after seed."""
    seeds = [start.seed for start in job.starts]
    settings = [
        one for seed in seeds for trial in job.trials for one in ways.settings(trial, seed)
    ]
    of_each = len(settings) // len(seeds)
    positions = torch.cat([start.train for start in job.starts])
    rows = torch.split(torch.arange(len(positions)), [len(start.train) for start in job.starts])
    stack = train_stack(
        partial(_some, job.gather, positions),
        torch.cat([start.target[start.train] for start in job.starts]),
        settings,
        _repeated([start.weight for start in job.starts], of_each),
        _repeated([start.bias for start in job.starts], of_each),
        rows=dict(zip(seeds, rows, strict=True)),
        between=job.between,
        **ways.options,
    )
    last = stack.losses[:, -(stack.losses.shape[1] // stack.epochs) :].mean(1)
    tensors = {"weight": stack.weight, "bias": stack.bias, "mixed_loss": last}
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _repeated(tensors: Sequence[Tensor], times: int) -> Tensor:
    """Each tensor so many times, one after the other; a single one is not copied."""
    each = torch.stack(list(tensors))[:, None]
    return each.expand(-1, times, *each.shape[2:]).flatten(0, 1)


def _chosen(
    trial: Trial,
    heads: Sequence[dict[str, Tensor]],
    starts: Sequence[Start],
    ways: Ways,
    taken: Tensor,
    seconds: float,
) -> Trained:
    """The trial with the setting that is best for the validation samples of all seeds."""
    nlls = [
        mended_nll(logits_of(own, taken[start.val]), start.target[start.val])
        for own, start in zip(heads, starts, strict=True)
    ]
    nll = torch.stack(nlls).mean(0)
    best = choose(trial, nll)
    outcomes = []
    for own, start in zip(heads, starts, strict=True):
        one = {name: tensor[best, None] for name, tensor in own.items()}
        parts = {name: logits_of(one, taken[getattr(start, name)])[0] for name in _PARTS}
        outcomes.append(Outcome(**parts, mixed_loss=float(one["mixed_loss"])))
    grid = nll.view(len(ways.lrs), len(ways.weight_decays))
    settings = ways.settings(trial, starts[0].seed)[best]
    return Trained(trial, settings, grid, outcomes, seconds)


_PARTS = ("val", "test", "train")


def logits_of(heads: Mapping[str, Tensor], taken: Tensor) -> Tensor:
    """Logits of K heads (K, n, C), in float64.

    Args:
        heads: ``weight`` (K, C, D) and ``bias`` (K, C).
        taken: What the heads take (n, D).
    """
    weight, bias = heads["weight"].double(), heads["bias"].double()
    k, c, d = weight.shape
    wide = F.linear(taken.double(), weight.reshape(k * c, d), bias.reshape(-1))
    return wide.view(-1, k, c).transpose(0, 1)


@torch.no_grad()
def _all_of(features: Gather, n: int, between: Between | None) -> Tensor:
    """What the heads take of all samples, unmixed (n, D), on the CPU."""
    chunks = (features(index) for index in torch.split(torch.arange(n), 256))
    return torch.cat([(chunk if between is None else between(chunk)).cpu() for chunk in chunks])


def input_of(model: nn.Module, linear: nn.Linear, inputs: Tensor) -> Tensor:
    """What reaches a linear layer when a model, in eval mode, takes some inputs: (B, D)."""
    seen: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad(), eval_mode(model):
            model(inputs.to(linear.weight))
    finally:
        hook.remove()
    return seen[-1].float()


def _memory() -> float:
    """Bytes of memory that this machine has; without end if it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _some(features: Gather, positions: Tensor, index: Tensor) -> Tensor:
    return features(positions[index])
