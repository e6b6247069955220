"""Transformers: a trainer that takes a layer, on small models of its own."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import hooks_on
from sklearn.datasets import load_digits
from torch import Tensor, nn

from manifold_mixup import Mix, join_masks

pytestmark = pytest.mark.filterwarnings("ignore")  # Transformers' own

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as t

    from manifold_mixup.integrations.transformers import ManifoldMixupTrainer

pytest.importorskip("accelerate", reason="the Trainer of Transformers needs accelerate")

LAYER = "vit.layers.0"
N = 64


def images(target: Any = None, n: int = N) -> list[dict[str, Any]]:
    """Some of scikit-learn's digits, as rows of a data set."""
    found = load_digits()
    pixels = torch.from_numpy(found.images[:n]).float()[:, None] / 16
    labels = torch.from_numpy(found.target[:n])
    labels = labels if target is None else target(labels)
    return [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]


def vit(**options: Any) -> nn.Module:
    """A small transformer for digits, the same each time, without dropout."""
    torch.manual_seed(0)
    config = t.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **{"num_labels": 10, **options},
    )
    return t.ViTForImageClassification(config)


def bert() -> nn.Module:
    """A small classifier of texts, the same each time."""
    torch.manual_seed(0)
    config = t.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        attn_implementation="eager",
    )
    return t.BertForSequenceClassification(config)


def texts() -> list[dict[str, Tensor]]:
    """Texts of 3 to 11 tokens, padded to 12."""
    torch.manual_seed(1)
    mask = (torch.arange(12) < (torch.arange(32) % 9 + 3)[:, None]).long()
    tokens = torch.randint(2, 50, (32, 12)) * mask
    rows = zip(tokens, mask, torch.arange(32) % 3, strict=True)
    return [{"input_ids": ids, "attention_mask": own, "labels": y} for ids, own, y in rows]


def arguments(folder: Path, **options: Any) -> Any:
    """Of a short training on the CPU, in a fixed order."""
    own = {
        "per_device_train_batch_size": 16,
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "seed": 0,
    }
    return t.TrainingArguments(str(folder), **{**own, **options})


class InOrder(ManifoldMixupTrainer):
    """Takes the samples in their order, so that only the mixes are drawn."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Watched(ManifoldMixupTrainer):
    """Keeps of each batch the mix, the layer's output and what came behind it, and the loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[Tensor, ...]] = []

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """With hooks before and after ours."""
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        layer, pairs = model.get_submodule(self.layer), dict[str, Tensor]()
        self._attached(model)
        handles = [
            layer.register_forward_hook(lambda m, a, o: pairs.update(clean=o), prepend=True),
            layer.register_forward_hook(lambda m, a, o: pairs.update(mixed=o)),
            model.register_forward_hook(lambda m, a, o: pairs.update(logits=o["logits"])),
        ]
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        for handle in handles:
            handle.remove()
        kept = (pairs["clean"], pairs["mixed"], pairs["logits"], inputs["labels"], loss)
        self.seen.append(tuple(one.detach() for one in kept))
        return loss


LOSSES: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "classes": (None, {}, F.cross_entropy),
    "labels": (
        lambda y: F.one_hot(y, 10).float(),
        {"problem_type": "multi_label_classification"},
        lambda z, y, **o: F.binary_cross_entropy_with_logits(z, y, **o).mean(1),
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_features_and_loss_of_each_batch_are_mixed_alike(
    kind: str, mixes: list[Mix], tmp_path: Path
) -> None:
    """Three epochs, each sample by the formula; nothing is left at the end."""
    target, options, plain = LOSSES[kind]
    model = vit(**options)
    trainer = Watched(
        model, arguments(tmp_path), train_dataset=images(target), layer=LAYER, alpha=1.0
    )

    trainer.train()

    assert len(mixes) == len(trainer.seen) == 12
    for mix, (clean, mixed, logits, labels, loss) in zip(mixes, trainer.seen, strict=True):
        lam = mix.lam.float()[:, None, None]
        assert torch.allclose(mixed, lam * clean + (1 - lam) * clean[mix.partner], atol=1e-6)
        own = plain(logits, labels, reduction="none")
        other = plain(logits, labels[mix.partner], reduction="none")
        expected = (mix.lam * own + (1 - mix.lam) * other).mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert not hooks_on(model)


def test_values_are_compared_with_the_mixed_value(mixes: list[Mix], tmp_path: Path) -> None:
    """Squared errors of one real value."""
    trainer = Watched(
        vit(num_labels=1),
        arguments(tmp_path, num_train_epochs=1, learning_rate=1e-4),
        train_dataset=images(lambda y: y.float()),
        layer=LAYER,
    )

    trainer.train()

    for mix, (_, _, logits, labels, loss) in zip(mixes, trainer.seen, strict=True):
        mixed = mix.lam * labels + (1 - mix.lam) * labels[mix.partner]
        assert float(loss) == pytest.approx(float(F.mse_loss(logits[:, 0], mixed.float())), 1e-5)


@pytest.mark.parametrize("pieces", [1, 2])
def test_without_mixing_it_is_the_trainer_itself(pieces: int, tmp_path: Path) -> None:
    """With alpha 0, gradients accumulated or not: the same weights, the same evaluation."""
    own = {"gradient_accumulation_steps": pieces, "label_smoothing_factor": 0.1}
    ours = ManifoldMixupTrainer(
        vit(), arguments(tmp_path, **own), train_dataset=images(), layer=LAYER, alpha=0.0
    )
    theirs = t.Trainer(vit(), arguments(tmp_path, **own), train_dataset=images())
    for trainer in (ours, theirs):
        trainer.train()

    for name, value in theirs.model.state_dict().items():
        assert torch.allclose(ours.model.state_dict()[name], value, atol=1e-6), name
    found, expected = (one.evaluate(images(n=96))["eval_loss"] for one in (ours, theirs))
    assert found == pytest.approx(expected, rel=1e-5)


class KeepGradient(t.TrainerCallback):
    """Keeps the gradient of the first step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before it is used."""
        self.gradient = torch.cat([p.grad.flatten() for p in kwargs["model"].parameters()])


def test_gradient_is_the_same_in_however_many_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 samples in 1, 2 and 4, each mixed with its neighbour by a lam of its own."""
    lam = torch.linspace(0.1, 0.9, 16)
    begun = [0]

    def draw(n: int, *args: Any, **options: Any) -> Mix:
        begin, begun[0] = begun[0], (begun[0] + n) % 16
        return Mix(lam[begin : begin + n], torch.arange(n).view(-1, 2).flip(1).flatten())

    gradients = []
    for pieces in (1, 2, 4):
        begun[0] = 0
        keep = KeepGradient()
        own = {
            "per_device_train_batch_size": 16 // pieces,
            "gradient_accumulation_steps": pieces,
            "num_train_epochs": 1,
            "max_grad_norm": 0.0,
        }
        trainer = InOrder(
            vit(),
            arguments(tmp_path, **own),
            train_dataset=images(n=16),
            layer=LAYER,
            callbacks=[keep],
        )
        trainer._attached(trainer.model)  # its trial draws a mix of its own
        monkeypatch.setattr(trainer._mixup, "_sample", draw)
        trainer.train()
        gradients.append(keep.gradient)

    for gradient in gradients[1:]:
        assert torch.allclose(gradient, gradients[0], atol=1e-6)
    assert gradients[0].norm() > 0.1


class Stop(t.TrainerCallback):
    """Interrupts after the second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As Ctrl-C does."""
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_interrupted_training_leaves_nothing(tmp_path: Path) -> None:
    """And can be begun again."""
    model = vit()
    trainer = ManifoldMixupTrainer(
        model, arguments(tmp_path), train_dataset=images(), layer=LAYER, callbacks=[Stop()]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()

    assert not hooks_on(model)
    trainer.remove_callback(Stop)
    trainer.train()


def test_resumed_training_is_the_one_without_a_break(tmp_path: Path) -> None:
    """From a checkpoint after an epoch, in new objects: the same weights."""
    own = {"save_strategy": "epoch", "num_train_epochs": 2}

    def trainer(**options: Any) -> Any:
        args = arguments(tmp_path, **{**own, **options})
        return InOrder(
            bert(),
            args,
            train_dataset=texts(),
            layer="bert.encoder.layer.0",
            mask="attention_mask",
            alpha=1.0,
        )

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_checkpointed_activations_change_nothing(tmp_path: Path) -> None:
    """What backward computes again is mixed again."""
    weights = []
    for checkpointed in (False, True):
        trainer = ManifoldMixupTrainer(
            vit(),
            arguments(tmp_path, gradient_checkpointing=checkpointed),
            train_dataset=images(),
            layer=LAYER,
            alpha=1.0,
        )
        trainer.train()
        weights.append(trainer.model.state_dict())

    assert all(torch.allclose(weights[1][k], v, atol=1e-6) for k, v in weights[0].items())


def test_texts_are_mixed_with_their_masks_joined(
    mixes: list[Mix], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers behind attend to the tokens of either text."""
    model, data = bert(), texts()
    given: list[Tensor] = []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: given.append(kwargs["attention_mask"]), with_kwargs=True
    )
    behind: list[Tensor] = []
    softmax = torch.nn.functional.softmax

    def keep(scores: Tensor, *args: Any, **options: Any) -> Tensor:
        weights = softmax(scores, *args, **options)
        if len(scores) == 16:
            behind.append(weights)
        return weights

    monkeypatch.setattr(torch.nn.functional, "softmax", keep)
    trainer = ManifoldMixupTrainer(
        model,
        arguments(tmp_path, num_train_epochs=1),
        train_dataset=data,
        layer="bert.encoder.layer.0",
        mask="attention_mask",
    )

    trainer.train()

    assert len(mixes) == 2
    own = [mask for mask in given if len(mask) == 16]
    assert len(own) == 2
    for mix, mask, weights in zip(mixes, own, behind[1::2], strict=True):  # of the second layer
        counts = join_masks(mask, mix).bool()
        assert torch.equal(weights[:, 0, 0] > 0, counts)


def test_loss_that_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    """Before anything is trained."""
    with pytest.raises(ValueError, match=r"compute_loss_func= .* pass criterion="):
        ManifoldMixupTrainer(
            vit(),
            arguments(tmp_path),
            train_dataset=images(),
            layer=LAYER,
            compute_loss_func=lambda *a, **k: None,
        )


def test_own_criterion_takes_the_place_of_the_model_s(mixes: list[Mix], tmp_path: Path) -> None:
    """Class weights, as an example."""
    criterion = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10))
    trainer = Watched(
        vit(),
        arguments(tmp_path, num_train_epochs=1),
        train_dataset=images(),
        layer=LAYER,
        criterion=criterion,
    )

    trainer.train()

    for mix, (_, _, logits, labels, loss) in zip(mixes, trainer.seen, strict=True):
        weights = criterion.weight
        terms = F.cross_entropy(logits, labels, weights, reduction="none")
        others = F.cross_entropy(logits, labels[mix.partner], weights, reduction="none")
        total = mix.lam * weights[labels] + (1 - mix.lam) * weights[labels[mix.partner]]
        expected = (mix.lam * terms + (1 - mix.lam) * others).sum() / total.sum()
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
