"""The closed form against autograd, and the mixes of many heads against those of single ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manifold_mixup import Mix, mixed_loss
from manifold_mixup.closed_form import loss_gradient, mix_logits, unmix_gradient
from manifold_mixup.drawing import seeded_generator
from manifold_mixup.draws import Draws, HeadMixes
from manifold_mixup.settings import HeadSettings

K, C, B = 3, 4, 6


def random_mixes() -> list[Mix]:
    """A mix for each head; partners repeat, and some weights are 0 or 1."""
    mixes = []
    for _ in range(K):
        lam = torch.rand(B, dtype=torch.float64)
        lam[0], lam[1] = 0, 1
        mixes.append(Mix(lam, torch.randint(B, (B,))))
    return mixes


def stacked(mixes: list[Mix], target: Tensor) -> HeadMixes:
    """The same mixes as many heads take them."""
    lam = torch.stack([mix.lam for mix in mixes])[:, None]
    partner = torch.stack([mix.partner for mix in mixes])[:, None]
    classes = torch.cat([target.expand(K, 1, -1), target[partner]], 1)
    return HeadMixes(lam, partner, classes, torch.cat([-lam, lam - 1], 1))


@pytest.mark.parametrize("smoothing", [None, [0.0, 0.1, 0.5]])
def test_loss_and_gradient_are_those_of_autograd(smoothing: list[float] | None) -> None:
    """For every head with its own mix and label smoothing, back to the logits before the mix."""
    mixes, target = random_mixes(), torch.randint(C, (B,))
    logits = torch.randn(K, B, C, dtype=torch.float64, requires_grad=True)
    expected = []
    for k, mix in enumerate(mixes):
        criterion = nn.CrossEntropyLoss(label_smoothing=smoothing[k] if smoothing else 0)
        expected.append(mixed_loss(mix(logits[k]), target, mix, criterion))
    torch.stack(expected).sum().backward()

    mix = stacked(mixes, target)
    mixed = mix_logits(logits.detach().transpose(1, 2), mix.lam, mix.partner)
    per_head = torch.tensor(smoothing)[:, None, None].double() if smoothing else None
    losses, gradient = loss_gradient(mixed, mix.classes, mix.share, per_head)
    gradient = unmix_gradient(gradient, mix.lam, mix.partner)

    assert torch.allclose(losses, torch.stack(expected), rtol=1e-12)
    assert torch.allclose(gradient.transpose(1, 2), logits.grad, atol=1e-15)


@pytest.mark.parametrize("alphas", [[0.4], [0.0, 0.4, 1.0, 0.4], [0.0, 0.0]])
@pytest.mark.parametrize(
    "wish", [{}, {"pairing": "other-class"}, {"pairing": "same-class", "exclude": (1,)}]
)
def test_draws_are_those_of_every_head_alone(alphas: list[float], wish: dict[str, Any]) -> None:
    """Step by step, each head gets the mixes that a training of its own would draw."""
    draws = Draws([HeadSettings(alpha=alpha, seed=3, **wish) for alpha in alphas])
    target, like = torch.randint(C, (5, B)), torch.zeros((), dtype=torch.float64)
    drawn = list(draws.mixes(target[:, None], like))

    for k, alpha in enumerate(alphas):
        generator = seeded_generator(3, "mix", 0)
        for own, mixes in zip(target, drawn, strict=True):
            mix = Mix.sample(B, alpha, target=own, generator=generator, **wish)
            features = torch.randn(B, dtype=torch.float64)
            lam, partner, classes, share = (
                None if tensor is None else tensor.expand(len(alphas), -1, -1)[k]
                for tensor in vars(mixes).values()
            )
            if lam is not None:
                mixed = mix_logits(features[None, None], lam[None], partner[None]).flatten()
                assert torch.allclose(mixed, mix(features), atol=1e-12)
            targets = torch.zeros(C, B, dtype=torch.float64).scatter_add_(0, classes, -share).T
            assert torch.allclose(targets, mix.target(own, C).double(), atol=1e-6)


def test_draws_go_on_from_their_states() -> None:
    """States are one a head, and give the draws that would have come, to each seed its own."""
    rules: list[dict[str, Any]] = [
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"alpha": 1.0, "pairing": "same-class"},  # draws what the first one does
        {"alpha": 1.0, "pairing": "other-class"},
        {"alpha": 0.4},
    ]
    settings = [HeadSettings(seed=seed, **rule) for seed in (3, 8) for rule in rules]
    draws, target, like = Draws(settings), torch.randint(C, (5, 2, B)), torch.zeros(())
    list(draws.mixes(target, like))
    states = draws.states().clone()
    wanted = list(draws.mixes(target, like))
    again = list(Draws(settings, states).mixes(target, like))

    assert len(states) == len(settings)
    for name in ("lam", "partner"):
        wished, got = ([getattr(mixes, name) for mixes in some] for some in (wanted, again))
        assert torch.equal(torch.stack(wished), torch.stack(got))
    assert not torch.equal(*wanted[0].lam[::5])
