"""fastai: one callback, in its own learner."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import hooks_on
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from manifold_mixup import Mix, freeze

pytestmark = pytest.mark.filterwarnings("ignore")  # fastai's own

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import fastai.callback.schedule  # noqa: F401  # gives a Learner lr_find and fine_tune
    from fastai.callback.core import Callback, CancelBatchException, CancelFitException
    from fastai.data.core import DataLoaders, Datasets
    from fastai.learner import Learner, load_learner
    from fastai.losses import (
        BCEWithLogitsLossFlat,
        CrossEntropyLossFlat,
        FocalLossFlat,
        LabelSmoothingCrossEntropyFlat,
        MSELossFlat,
    )
    from fastai.optimizer import SGD

    from manifold_mixup.integrations.fastai import ManifoldMixupCallback

LAYER = "1"


def net(outputs: int = 10) -> nn.Sequential:
    """A small net for digits, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, outputs),
    )


def digits(target: Any = None) -> DataLoaders:
    """Two parts of scikit-learn's digits, in batches of 32 in a fixed order."""
    found = load_digits()
    images = torch.from_numpy(found.images[:192]).float()[:, None] / 16
    classes = torch.from_numpy(found.target[:192])
    values = classes if target is None else target(classes)
    parts = [TensorDataset(images[own], values[own]) for own in (slice(128), slice(128, 192))]
    loaders = DataLoaders.from_dsets(*parts, bs=32, num_workers=0, device="cpu", shuffle=False)
    loaders[0].drop_last = False
    return loaders


def picture(index: int) -> Tensor:
    """One of the digits."""
    return torch.from_numpy(load_digits().images[index]).float()[None] / 16


def digit(index: int) -> int:
    """Which it is."""
    return int(load_digits().target[index])


def learner(
    *cbs: Callback, loss: Any = None, target: Any = None, outputs: int = 10, **kwargs: Any
) -> Learner:
    """A learner of the small net."""
    return Learner(
        digits(target),
        net(outputs),
        loss or CrossEntropyLossFlat(),
        opt_func=SGD,
        cbs=cbs,
        **kwargs,
    )


class Watch(Callback):
    """Keeps what the layer returned, what came behind it, and the loss, batch by batch."""

    order = 100

    def __init__(self) -> None:
        super().__init__()
        self.clean, self.behind, self.losses = [], [], []

    def before_fit(self) -> None:
        """Begin to watch."""
        model = self.learn.model
        self.handles = [
            model[1][1].register_forward_hook(lambda m, a, out: self.keep("clean", out)),
            model[2].register_forward_pre_hook(lambda m, a: self.keep("behind", a[0])),
        ]

    def before_batch(self) -> None:
        """Forget what was measured before the step."""
        self.clean.clear()
        self.behind.clear()

    def after_loss(self) -> None:
        """Keep all of a batch."""
        self.losses.append((self.learn.training, self.learn.pred, self.learn.y, self.learn.loss))
        self.losses[-1] = (*self.losses[-1], self.clean[-1], self.behind[-1])

    def after_fit(self) -> None:
        """Watch no more."""
        for handle in self.handles:
            handle.remove()

    def keep(self, name: str, value: Tensor) -> None:
        """What a hook saw."""
        getattr(self, name).append(value.detach().clone())


LOSSES: dict[str, tuple[Any, Any, int, Any]] = {
    "classes": (CrossEntropyLossFlat(), None, 10, F.cross_entropy),
    "smoothed": (
        LabelSmoothingCrossEntropyFlat(eps=0.1),
        None,
        10,
        lambda z, y, **o: F.cross_entropy(z, y, label_smoothing=0.1, **o),
    ),
    "multi-label": (
        BCEWithLogitsLossFlat(),
        lambda c: F.one_hot(c, 10).float(),
        10,
        lambda z, y, **o: F.binary_cross_entropy_with_logits(z, y, **o).mean(1),
    ),
    "focal": (
        FocalLossFlat(),
        None,
        10,
        lambda z, y, **o: (
            (1 - (-F.cross_entropy(z, y, **o)).exp()) ** 2 * F.cross_entropy(z, y, **o)
        ),
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_features_and_loss_of_each_batch_are_mixed_alike(kind: str, mixes: list[Mix]) -> None:
    """By the formula of the paper, written out for each sample."""
    loss, target, outputs, plain = LOSSES[kind]
    watch = Watch()
    learn = learner(
        ManifoldMixupCallback(LAYER, alpha=1.0), watch, loss=loss, target=target, outputs=outputs
    )

    learn.fit(3, 0.01)

    trained = [one[1:] for one in watch.losses if one[0]]
    assert len(mixes) == 12
    for mix, (pred, y, told, clean, behind) in zip(mixes, trained, strict=True):
        lam = mix.lam.float()[:, None, None, None]
        assert torch.allclose(behind, lam * clean + (1 - lam) * clean[mix.partner], atol=1e-6)
        own = plain(pred, y, reduction="none")
        other = plain(pred, y[mix.partner], reduction="none")
        expected = (mix.lam * own + (1 - mix.lam) * other).mean()
        assert float(told) == pytest.approx(float(expected), rel=1e-5)


def test_values_are_compared_with_the_mixed_value(mixes: list[Mix]) -> None:
    """Squared errors of real values."""
    watch = Watch()
    learn = learner(
        ManifoldMixupCallback(LAYER, alpha=1.0),
        watch,
        loss=MSELossFlat(),
        target=lambda c: c.float()[:, None],
        outputs=1,
    )

    learn.fit(1, 0.001)

    trained = [one[1:] for one in watch.losses if one[0]]
    for mix, (pred, y, told, _, _) in zip(mixes, trained, strict=True):
        lam = mix.lam.float()[:, None]
        expected = F.mse_loss(pred, lam * y + (1 - lam) * y[mix.partner])
        assert float(told) == pytest.approx(float(expected), rel=1e-5)


def test_validation_is_that_of_a_learner_without(mixes: list[Mix]) -> None:
    """With a learning rate of 0 the weights are the same, and so is all that validation tells."""
    with_mixup = learner(ManifoldMixupCallback(LAYER, alpha=1.0, clean_loss=False))
    plain = learner()
    for learn in (with_mixup, plain):
        learn.fit(2, 0.0)

    (_, mixed_loss_told), (_, told) = with_mixup.recorder.values[-1], plain.recorder.values[-1]
    assert mixed_loss_told == told
    assert torch.equal(with_mixup.get_preds()[0], plain.get_preds()[0])
    assert mixes


class Stop(Callback):
    """Raises in the second training batch."""

    order, run_valid = 200, False

    def __init__(self, error: BaseException, event: str) -> None:
        super().__init__()
        self.error, self.event = error, event

    def __call__(self, event_name: str) -> None:
        """At one event."""
        if event_name == self.event and self.learn.training and self.learn.iter == 1:
            raise self.error


def assert_left_clean(learn: Learner, loss: Any) -> None:
    """Nothing of ours is left, and the model is in no step."""
    assert not hooks_on(learn.model)
    assert learn.loss_func is loss
    assert "_do_epoch" not in vars(learn)
    assert not learn.metrics
    images = digits().one_batch()[0]
    model = learn.model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "before_step"])
def test_interrupted_fit_leaves_nothing(event: str) -> None:
    """Though fastai calls no event then, and a later fit works."""
    loss = CrossEntropyLossFlat()
    learn = learner(ManifoldMixupCallback(LAYER), Stop(KeyboardInterrupt(), event), loss=loss)

    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)

    assert_left_clean(learn, loss)
    learn.remove_cbs(learn.cbs.filter(lambda cb: isinstance(cb, Stop)))
    learn.fit(1)


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "before_step"])
@pytest.mark.parametrize("error", [CancelBatchException, CancelFitException])
def test_cancelled_fit_leaves_nothing(error: type[Exception], event: str) -> None:
    """And a cancelled batch is followed by the next."""
    loss, watch = CrossEntropyLossFlat(), Watch()
    learn = learner(ManifoldMixupCallback(LAYER), watch, Stop(error(), event), loss=loss)

    learn.fit(1)

    assert_left_clean(learn, loss)
    cancelled_early = event in ("before_batch", "after_pred")
    trained = sum(one[0] for one in watch.losses)
    assert trained == (4 if error is CancelBatchException else 2) - cancelled_early


def test_second_fit_goes_on_drawing(mixes: list[Mix]) -> None:
    """`fine_tune` fits twice: the draws are those of one fit as long."""
    twice, once = (learner(ManifoldMixupCallback(LAYER, clean_loss=False)) for _ in range(2))

    twice.fit(1)
    twice.fit(1)
    drawn = [mix.lam for mix in mixes]
    mixes.clear()
    once.fit(2)

    assert torch.equal(torch.cat(drawn), torch.cat([mix.lam for mix in mixes]))


def test_learning_rate_finder_works() -> None:
    """It trains, cancels, and brings the model back."""
    learn = learner(ManifoldMixupCallback(LAYER))
    before = [p.clone() for p in learn.model.parameters()]

    learn.lr_find(num_it=10, show_plot=False)

    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters(), strict=True))
    assert_left_clean(learn, learn.loss_func)


def test_column_tells_the_loss_of_unmixed_batches() -> None:
    """With a learning rate of 0 that of the training part as `validate` has it."""
    learn = learner(ManifoldMixupCallback(LAYER, alpha=1.0))
    expected = learn.validate(ds_idx=0)[0]

    learn.fit(1, 0.0)

    names, values = learn.recorder.metric_names, learn.recorder.values[-1]
    told = dict(zip(names[1:], values, strict=False))["clean_train_loss"]
    # BatchNorm's statistics move while it trains, the first batch saw those of the start
    assert told == pytest.approx(expected, rel=0.1)


def test_exported_learner_predicts(tmp_path: Path) -> None:
    """As the learner itself did."""
    items = Datasets(range(96), [[picture], [digit]], splits=[range(64), range(64, 96)])
    loaders = items.dataloaders(bs=32, device="cpu", num_workers=0)
    learn = Learner(
        loaders, net(), CrossEntropyLossFlat(), cbs=ManifoldMixupCallback(LAYER), path=tmp_path
    )
    learn.fit(1)
    expected = learn.get_preds()[0]

    learn.export("learner.pkl")
    loaded = load_learner(tmp_path / "learner.pkl")

    found = loaded.get_preds(dl=loaded.dls.test_dl(range(64, 96)))[0]
    assert torch.equal(found, expected)


def test_frozen_batchnorms_stay_frozen() -> None:
    """Where fastai's own `freeze` would train them."""
    learn = learner(
        ManifoldMixupCallback(LAYER),
        splitter=lambda m: [list(m[:2].parameters()), list(m[2:].parameters())],
    )
    freeze(learn.model, except_="4")
    learn.freeze()
    before = {name: t.clone() for name, t in learn.model[:2].state_dict().items()}

    learn.fit(1, 0.1)

    after = learn.model[:2].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_frozen_layers_that_fastai_trains_are_told() -> None:
    """They are trained, in eval mode, which nobody may have meant."""
    learn = learner(ManifoldMixupCallback(LAYER), splitter=lambda model: [[*model.parameters()]])
    freeze(learn.model, except_="4")
    learn.unfreeze()

    with pytest.warns(
        UserWarning, match=r"2 frozen layers, such as '0', are trained again.*unfreeze"
    ):
        learn.fit(1, 0.1)
