"""The choice among heads: by validation, at the best epoch, no longer than it pays."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manifold_mixup.choose import Choice, choose_settings, validation_nll
from manifold_mixup.feed import Gather
from manifold_mixup.settings import HeadSettings
from manifold_mixup.stack import HeadStack, train_stack

C, D = 3, 5
SETTINGS = [HeadSettings(lr=lr) for lr in (1e-6, 0.03, 3.0)]


def samples(n: int) -> tuple[Tensor, Tensor]:
    """Noisy features around 3 centres (n, D) and targets (n,)."""
    target = torch.arange(n) % C
    return torch.randn(n, D, dtype=torch.float64) + torch.eye(C, D).double()[target], target


def choose(
    train: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    settings: list[HeadSettings] = SETTINGS,
    **options: Any,
) -> Choice:
    """`choose_settings` on features in memory."""
    start = torch.zeros(C, D, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)
    options = {"epochs": 6, "batch_size": 8, "validation": in_memory(held), **options}
    return choose_settings(*in_memory(train), settings, *start, **options)


def in_memory(samples: tuple[Tensor, Tensor]) -> tuple[Gather, Tensor]:
    """Features and targets as they are asked for."""
    return samples[0].__getitem__, samples[1]


def test_validation_nll_is_the_mean_cross_entropy_of_each_head() -> None:
    """Also where there are more samples than are computed at a time."""
    features, target = samples(600)
    weight, bias = torch.randn(4, C, D).double(), torch.randn(4, C).double()
    nlls = validation_nll(features.__getitem__, target, weight, bias)

    for k in range(4):
        expected = F.cross_entropy(features @ weight[k].T + bias[k], target)
        assert torch.allclose(nlls[k], expected)


def test_the_head_chosen_is_the_best_of_all_epochs_and_settings() -> None:
    """It is the one that a look at every head after every epoch finds."""
    train, held = samples(40), samples(30)
    seen: list[tuple[float, int, int]] = []
    stacks: list[HeadStack] = []

    def look(stack: HeadStack) -> None:
        nlls = validation_nll(held[0].__getitem__, held[1], stack.weight, stack.bias)
        seen.extend((nll, stack.epochs, k) for k, nll in enumerate(nlls.tolist()))
        stacks.append(stack)

    start = torch.zeros(C, D, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)
    train_stack(*in_memory(train), SETTINGS, *start, epochs=6, batch_size=8, on_epoch=look)
    nll, epoch, k = min(seen)
    choice = choose(train, held, patience=6)

    assert (choice.settings, choice.epoch) == (SETTINGS[k], epoch)
    assert choice.nll == pytest.approx(nll)
    assert torch.equal(choice.weight, stacks[epoch - 1].weight[k])
    assert torch.equal(choice.bias, stacks[epoch - 1].bias[k])
    assert choice.nlls == pytest.approx([min(n for n, _, j in seen if j == i) for i in range(3)])


def test_training_ends_when_no_head_improves_any_more() -> None:
    """Patience counts epochs since the last improvement of any."""
    (features, target), (others, _) = samples(40), samples(30)
    gathered: list[Tensor] = []

    def gather(index: Tensor) -> Tensor:
        gathered.append(index)
        return features[index]

    # Of the wrong classes, the validation samples look worse with every epoch.
    choice = choose_settings(
        gather,
        target,
        [HeadSettings(lr=0.1)],
        torch.zeros(C, D, dtype=torch.float64),
        torch.zeros(C, dtype=torch.float64),
        validation=(others.__getitem__, (torch.arange(30) + 1) % C),
        patience=2,
        epochs=50,
        batch_size=40,
    )

    assert choice.epoch == 1
    assert len(gathered) == 1 + 2


def test_a_head_that_diverges_is_not_chosen() -> None:
    """Its likelihood is told as infinite; the rest are as good as without it."""
    settings = [HeadSettings(lr=1e308), HeadSettings(lr=0.03)]
    choice = choose(samples(40), samples(30), settings)

    assert choice.settings == settings[1]
    assert choice.nlls[0] == float("inf")


def test_if_all_diverge_there_is_no_choice() -> None:
    """The message says what to lower."""
    with pytest.raises(RuntimeError, match=r"all 1 heads diverged; lower lr: .*1e\+308"):
        choose(samples(40), samples(30), [HeadSettings(lr=1e308)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patience": 0}, "patience=0"),
        ({"validation": (lambda index: index, torch.zeros(0))}, "no validation samples"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    """Before anything is trained."""
    with pytest.raises(ValueError, match=message):
        choose(samples(40), samples(30), **changed)
