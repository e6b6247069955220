"""What trains a head on the same images: ours, and what people use today."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.measuring import Seconds, read_clocks
from manifold_mixup import FeatureStore, extract_features, freeze, replace_head, train_head

MODEL, LAYER, ALPHA, BATCH_SIZE = "torchvision:resnet18", "layer4", 0.4, 32


@dataclass
class Task:
    """What is given to every row: a pretrained model, images, and how long to train."""

    model: nn.Module
    images: Dataset[tuple[Tensor, int]]
    classes: list[str]
    epochs: int
    seed: int
    directory: str
    device: torch.device
    start: Seconds
    extraction: Seconds | None = None

    def ready_model(self) -> nn.Module:
        """The model with a new head, all else frozen."""
        freeze(self.model, except_=replace_head(self.model, len(self.classes)))
        return self.model.to(self.device)

    def store(self) -> FeatureStore:
        """Features of all images, extracted now."""
        store = extract_features(self.model, LAYER, self.images, self.directory)
        self.extraction = read_clocks(self.device) - self.start
        return store


def solved(task: Task) -> nn.Module:
    """Ours, as it is by default: the backbone runs once, and the head is solved for."""
    model = task.ready_model()
    train_head(model, task.store(), alpha=ALPHA, seed=task.seed, say=_say_nothing)
    return model


def cached(task: Task) -> nn.Module:
    """Ours by steps: the backbone runs once."""
    model = task.ready_model()
    train_head(
        model,
        task.store(),
        alpha=ALPHA,
        epochs=task.epochs,
        batch_size=BATCH_SIZE,
        seed=task.seed,
        say=_say_nothing,
    )
    return model


def hooked(task: Task) -> nn.Module:
    """Ours by steps: the backbone runs in every one."""
    model = task.ready_model()
    train_head(
        model,
        task.images,
        layer=LAYER,
        alpha=ALPHA,
        epochs=task.epochs,
        batch_size=BATCH_SIZE,
        seed=task.seed,
        say=_say_nothing,
    )
    return model


def fastai(task: Task, *, train_bn: bool = True) -> nn.Module:
    """MixUp of fastai in its learner: frozen body, its own head, optimizer and schedule."""
    from fastai.callback.mixup import MixUp
    from fastai.data.core import DataLoaders
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.learner import vision_learner

    one = Subset(task.images, [0])  # it insists on validation: as little as there can be
    learner = vision_learner(
        DataLoaders.from_dsets(task.images, one, bs=BATCH_SIZE, num_workers=0, device=task.device),
        lambda pretrained: task.model,
        cut=-2,
        n_out=len(task.classes),
        normalize=False,  # the images are already
        loss_func=CrossEntropyLossFlat(),
        train_bn=train_bn,
        cbs=MixUp(ALPHA),
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(task.epochs)
    return learner.model


def fastai_frozen_bn(task: Task) -> nn.Module:
    """The same, but BatchNorm of the body has no gradients either."""
    return fastai(task, train_bn=False)


def torchbearer(task: Task) -> nn.Module:
    """ManifoldMixup of torchbearer at the same layer, with the optimizer and schedule of ours."""
    from torch.optim.lr_scheduler import CosineAnnealingLR
    from torchbearer import Candidate
    from torchbearer.callbacks import Mixup, TorchScheduler
    from torchbearer.callbacks.manifold_mixup import ManifoldMixup

    loader = DataLoader(task.images, BATCH_SIZE, shuffle=True)
    model = task.model.requires_grad_(False)
    head = replace_head(model, len(task.classes))
    optimizer = torch.optim.AdamW(head.parameters(), 0.01, weight_decay=0.01)
    cosine = TorchScheduler(
        lambda optimizer: CosineAnnealingLR(optimizer, task.epochs * len(loader)),
        step_on_batch=True,
    )
    # Not `freeze`: where the layer is in eval mode, torchbearer mixes the targets alone.
    mixup = ManifoldMixup(ALPHA).for_layers([LAYER])
    trial = Candidate(model, optimizer, Mixup.mixup_loss, callbacks=[mixup, cosine], verbose=0)
    trial.to(task.device).with_train_generator(loader).run(task.epochs)
    return model


def logistic(task: Task) -> nn.Module:
    """LogisticRegression of scikit-learn on the features that ours stores, without mixup."""
    model = task.ready_model()
    store = task.store()
    fitted = LogisticRegression(max_iter=1000).fit(store.features[:].flatten(1), store.targets)
    with torch.no_grad():
        model.fc.weight.copy_(torch.from_numpy(fitted.coef_))
        model.fc.bias.copy_(torch.from_numpy(fitted.intercept_))
    return model


def _say_nothing(line: str) -> None:
    """How a head is trained is known here."""


class Row(NamedTuple):
    """What trains, the module to import before the time is taken, and its package."""

    train: Callable[[Task], nn.Module]
    module: str = "manifold_mixup"
    package: str | None = None


ROWS = {
    "ours, solved": Row(solved),
    "ours, cached steps": Row(cached),
    "ours, hooked steps": Row(hooked),
    "fastai MixUp": Row(fastai, "fastai.vision.all", "fastai"),
    "fastai MixUp, train_bn=False": Row(fastai_frozen_bn, "fastai.vision.all", "fastai"),
    "torchbearer ManifoldMixup": Row(torchbearer, "torchbearer", "torchbearer"),
    "LogisticRegression": Row(logistic, "sklearn", "scikit-learn"),
}
# In these the backbone runs once, so that more seeds cost little.
QUICK = ("ours, solved", "ours, cached steps", "LogisticRegression")
