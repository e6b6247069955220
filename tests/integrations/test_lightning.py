"""Lightning: a callback, and one step of it in `training_step`."""

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import hooks_on
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from manifold_mixup import Mix, freeze, mixed_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl

    from manifold_mixup.integrations.lightning import ManifoldMixupCallback


def digits(part: slice = slice(128)) -> DataLoader[Any]:
    """Some of scikit-learn's digits, in batches of 32 in a fixed order."""
    found = load_digits()
    images = torch.from_numpy(found.images[part]).float()[:, None] / 16
    return DataLoader(TensorDataset(images, torch.from_numpy(found.target[part])), 32)


class Classifier(pl.LightningModule):
    """A small net, trained with or without mixing; keeps what is needed to check it."""

    def __init__(self, mixup: ManifoldMixupCallback | None, lr: float = 0.01) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        )
        self.mixup, self.lr = mixup, lr
        self.mixes: list[Mix] = []
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.validated: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mixed if there is a callback."""
        images, target = batch
        if self.mixup is None:
            return F.cross_entropy(self.net(images), target)
        pairs: dict[str, Tensor] = {}
        handles = [
            self.net[2].register_forward_hook(
                lambda m, a, o: pairs.update(mixed=o), prepend=False
            ),
            self.net[2].register_forward_hook(lambda m, a, o: pairs.update(clean=o), prepend=True),
        ]
        with self.mixup(target) as mix:
            logits = self.net(images)
            loss = mixed_loss(logits, target, mix)
        for handle in handles:
            handle.remove()
        self.mixes.append(mix)
        own = F.cross_entropy(logits, target, reduction="none")
        other = F.cross_entropy(logits, target[mix.partner], reduction="none")
        expected = (mix.lam * own + (1 - mix.lam) * other).mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        self.seen.append((mix.lam, pairs["clean"].detach(), pairs["mixed"].detach()))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Never mixed."""
        images, target = batch
        self.validated.append(float(F.cross_entropy(self.net(images), target)))

    def configure_optimizers(self) -> Any:
        """Plain steps."""
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), self.lr)


def trainer(folder: Path, *callbacks: pl.Callback, epochs: int = 3, **options: Any) -> pl.Trainer:
    """A trainer on the CPU that says little."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    own = {"accelerator": "cpu", "devices": 1, "max_epochs": epochs, "default_root_dir": folder}
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **own, **options})


def test_features_and_loss_of_each_batch_are_mixed_alike(tmp_path: Path) -> None:
    """Three epochs, each sample by the formula; nothing is left at the end."""
    mixup = ManifoldMixupCallback("2", model="net", alpha=1.0)
    model = Classifier(mixup)

    trainer(tmp_path, mixup).fit(model, digits())

    assert len(model.mixes) == 12
    for mix, (lam, clean, mixed) in zip(model.mixes, model.seen, strict=True):
        lam = lam.float()[:, None, None, None]
        assert torch.allclose(mixed, lam * clean + (1 - lam) * clean[mix.partner], atol=1e-6)
    assert not hooks_on(model)


def test_validation_is_that_of_a_run_without(tmp_path: Path) -> None:
    """With a learning rate of 0 to the bit."""
    mixup = ManifoldMixupCallback("2", model="net", alpha=1.0)
    mixed, plain = Classifier(mixup, lr=0.0), Classifier(None, lr=0.0)
    for model, callbacks in ((mixed, [mixup]), (plain, [])):
        trainer(tmp_path, *callbacks, epochs=1).fit(model, digits(), digits(slice(128, 192)))

    assert mixed.validated == plain.validated


class Stop(pl.Callback):
    """Raises in the second batch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_before_backward(self, trainer: pl.Trainer, *args: Any) -> None:
        """In the middle of a step of the trainer."""
        if trainer.global_step == 1:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("stop")])
def test_interrupted_fit_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    """Whatever ended it."""
    mixup = ManifoldMixupCallback("2", model="net")
    model = Classifier(mixup)

    with pytest.raises((type(error), SystemExit)):
        trainer(tmp_path, mixup, Stop(error)).fit(model, digits())

    assert not hooks_on(model)


def test_step_outside_of_a_fit_is_refused() -> None:
    """A callback that the trainer does not know would never mix."""
    with pytest.raises(RuntimeError, match=r"not in a fit: pass it to the Trainer"):
        ManifoldMixupCallback("2")(torch.zeros(4))


def test_frozen_layers_stay_frozen(tmp_path: Path) -> None:
    """Though Lightning puts modules into training mode, before and after validation."""
    mixup = ManifoldMixupCallback("2", model="net")
    model = Classifier(mixup, lr=0.1)
    freeze(model.net, except_="4")
    before = copy.deepcopy(model.net[:4].state_dict())

    trainer(tmp_path, mixup).fit(model, digits(), digits(slice(128, 192)))

    after = model.net[:4].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_resumed_fit_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    """One epoch, a checkpoint, and two more, in new objects, beside three at once."""
    whole, first, second = (ManifoldMixupCallback("2", model="net") for _ in range(3))
    once, part, rest = Classifier(whole), Classifier(first), Classifier(second)

    trainer(tmp_path, whole).fit(once, digits())
    begun = trainer(tmp_path, first, epochs=1)
    begun.fit(part, digits())
    begun.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path, second).fit(rest, digits(), ckpt_path=str(tmp_path / "one.ckpt"))

    drawn = [mix.lam for mix in (*part.mixes, *rest.mixes)]
    assert torch.equal(torch.cat(drawn), torch.cat([mix.lam for mix in once.mixes]))
    for name, value in once.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


RANKS = """
import sys, torch, pathlib
sys.path[:0] = [{tests!r}, {here!r}]
from test_lightning import Classifier, ManifoldMixupCallback, digits, trainer

def run(epochs, checkpoint, save):
    mixup = ManifoldMixupCallback("2", model="net")
    model = Classifier(mixup)
    own = trainer(pathlib.Path({folder!r}), mixup, epochs=epochs, devices=2, strategy="ddp",
                  use_distributed_sampler=False, enable_checkpointing=False)
    own.fit(model, digits(), ckpt_path=checkpoint)
    if save:
        own.save_checkpoint({folder!r} + "/one.ckpt")
    return own.global_rank, torch.cat([mix.lam for mix in model.mixes])

rank, whole = run(2, None, False)
_, part = run(1, None, True)
_, rest = run(2, {folder!r} + "/one.ckpt", False)
torch.save([whole, torch.cat([part, rest])], {folder!r} + f"/drawn{{rank}}.pt")
"""


@pytest.mark.distributed
def test_each_rank_draws_its_own_before_and_after_resuming(tmp_path: Path) -> None:
    """Two gloo ranks: different mixes, and those of a fit without a break."""
    script = tmp_path / "ranks.py"
    here = Path(__file__).parent
    script.write_text(RANKS.format(tests=str(here.parent), here=str(here), folder=str(tmp_path)))
    subprocess.run(
        [sys.executable, script],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    (one, resumed), (other, other_resumed) = (
        torch.load(tmp_path / f"drawn{rank}.pt") for rank in range(2)
    )
    assert torch.equal(one, resumed)
    assert torch.equal(other, other_resumed)
    assert not torch.equal(one, other)
