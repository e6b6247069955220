"""Accuracy, likelihood and calibration, against scikit-learn and against counting by hand."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn

from manifold_mixup import evaluate
from manifold_mixup.inspection import find_device, model_device
from manifold_mixup.training import predict_logits, reliability, summarize

Samples = list[tuple[Tensor, int]]


def samples(n: int = 23) -> Samples:
    """Pairs of 4 features and one of 3 classes."""
    return [(torch.randn(4), i % 3) for i in range(n)]


def sure(confidence: float, correct: int, wrong: int) -> tuple[Tensor, Tensor]:
    """Logits of 2 classes, all with one confidence in class 0, so many right and so many wrong."""
    logit = torch.tensor([confidence, 1 - confidence], dtype=torch.float64).log()
    return logit.repeat(correct + wrong, 1), torch.tensor([0] * correct + [1] * wrong)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_accuracy_and_likelihood_are_those_of_scikit_learn(classes: int, scale: float) -> None:
    """On random logits, from unsure to very sure, both agree with an independent library."""
    logits = scale * torch.randn(200, classes, dtype=torch.float64)
    target = torch.randint(classes, (200,))
    exponent = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    probability = exponent / exponent.sum(1, keepdims=True)

    found = summarize(logits, target)

    assert found["accuracy"] == accuracy_score(target, probability.argmax(1))
    expected = -np.log(probability[np.arange(200), target]).mean()
    assert found["nll"] == pytest.approx(expected, rel=1e-12)
    assert found["n"] == 200
    if scale == 1:
        assert found["nll"] == pytest.approx(
            log_loss(target, probability, labels=range(classes)), rel=1e-12
        )


def test_likelihood_of_a_sure_mistake_is_finite() -> None:
    """A logit 500 above the right one costs 500 nats, though its probability rounds to 0."""
    found = summarize(torch.tensor([[500.0, 0.0]]), torch.tensor([1]))

    assert found["nll"] == 500


@pytest.mark.parametrize(
    ("confidence", "correct", "wrong", "expected"),
    [
        (0.9, 6, 4, +0.3),
        (0.6, 9, 1, -0.3),
        (0.75, 3, 1, 0.0),
        (0.5 + 1e-9, 0, 4, +0.5),
        (1 - 1e-12, 4, 0, 0.0),
    ],
    ids=["over-confident", "under-confident", "honest", "always wrong", "always right"],
)
def test_calibration_error_has_a_sign(
    confidence: float, correct: int, wrong: int, expected: float
) -> None:
    """Above 0 the model is surer than it is right, below 0 less sure."""
    found = summarize(*sure(confidence, correct, wrong))

    assert found["calibration_error"] == pytest.approx(expected, abs=1e-8)


def test_calibration_error_weighs_every_sample_alike() -> None:
    """It is the mean over samples, not over bins or classes."""
    parts = [sure(0.9, 5, 1), sure(0.6, 1, 2)]
    logits, target = (torch.cat(tensors) for tensors in zip(*parts, strict=True))

    found = summarize(logits, target)

    assert found["calibration_error"] == pytest.approx((6 * 0.9 + 3 * 0.6) / 9 - 6 / 9)


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_reliability_counts_every_sample_in_its_bin(bins: int) -> None:
    """Mean confidence and accuracy of each bin equal those of a loop over the samples."""
    logits, target = 2 * torch.randn(300, 4, dtype=torch.float64), torch.randint(4, (300,))
    inside: dict[int, list[tuple[float, bool]]] = {}
    for row, wanted in zip(logits, target, strict=True):
        probability = (row.exp() / row.exp().sum()).tolist()
        best = max(range(4), key=probability.__getitem__)
        index = int(probability[best] * bins)
        inside.setdefault(index, []).append((probability[best], best == int(wanted)))

    confidence, accuracy = reliability(logits, target, bins=bins)

    expected = [tuple(np.mean(inside[index], axis=0)) for index in sorted(inside)]
    assert list(zip(confidence, accuracy, strict=True)) == [pytest.approx(row) for row in expected]


def test_reliability_agrees_with_the_calibration_error() -> None:
    """With one bin for all samples, confidence minus accuracy is the signed error."""
    logits, target = torch.randn(50, 3), torch.randint(3, (50,))

    (confidence,), (accuracy,) = reliability(logits, target, bins=1)

    error = summarize(logits, target)["calibration_error"]
    assert confidence - accuracy == pytest.approx(error)


@pytest.mark.parametrize("correct", [True, False])
def test_reliability_of_a_model_that_is_quite_sure(correct: bool) -> None:
    """A confidence that rounds to 1 has a bin, and all right or all wrong is no special case."""
    logits, target = torch.tensor([[90.0, 0.0]] * 3), torch.tensor([int(not correct)] * 3)

    assert reliability(logits, target) == ([1.0], [float(correct)])


# evaluate


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
def test_evaluation_equals_a_loop_over_the_samples(batch_size: int) -> None:
    """The batch size, and a last batch that is not full, change nothing."""
    model, data = nn.Linear(4, 3), samples()
    with torch.no_grad():
        logits = torch.stack([model(features[None])[0] for features, _ in data])
    target = torch.tensor([target for _, target in data])

    found = evaluate(model, data, batch_size=batch_size)

    expected = summarize(logits, target)
    assert found == pytest.approx(expected, rel=1e-6)
    assert (found["accuracy"], found["n"]) == (expected["accuracy"], 23)


def test_logits_come_in_the_order_of_the_samples() -> None:
    """Logits and targets belong together and to their positions, also from other processes."""
    model, data = nn.Linear(4, 3), samples(9)

    logits, target = predict_logits(model, data, batch_size=2)
    parallel = predict_logits(model, data, batch_size=2, workers=2)

    assert target.tolist() == [wanted for _, wanted in data]
    assert torch.allclose(logits, model(torch.stack([x for x, _ in data])))
    assert torch.equal(parallel[0], logits)
    assert torch.equal(parallel[1], target)


def test_evaluation_is_in_eval_mode_and_every_module_s_mode_comes_back() -> None:
    """Dropout and BatchNorm behave as in use, buffers stay, modes are restored one by one."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = samples()

    first, again = evaluate(model, data), evaluate(model, data)

    assert first == again
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_come_back_after_an_error() -> None:
    """A sample that the model cannot take leaves it in training mode, as it was."""
    model = nn.Sequential(nn.Linear(4, 3)).train()

    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.randn(5), 0)])
    assert model.training
    assert model[0].training


def test_half_precision_is_measured_in_full() -> None:
    """A bfloat16 model's metrics come from its logits in float64, not in bfloat16."""
    model = nn.Linear(4, 3).bfloat16()
    data = [(features.bfloat16(), target) for features, target in samples()]
    logits = torch.stack([model(features[None])[0] for features, _ in data])

    found = evaluate(model, data)

    expected = log_loss([t for _, t in data], logits.detach().double().softmax(1).numpy())
    assert found["nll"] == pytest.approx(expected, rel=2e-2)
    assert predict_logits(model, data)[0].dtype == torch.float32


def test_nothing_to_evaluate_is_an_error() -> None:
    """An empty data set has no accuracy."""
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate(nn.Linear(4, 3), [])


def test_evaluation_shows_how_far_it_is() -> None:
    """The tracker sees every batch, their number and what they are for."""
    seen: list[Any] = []

    def track(steps: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        seen.extend([total, description])
        yield from steps

    evaluate(nn.Linear(4, 3), samples(9), batch_size=4, track=track)

    assert seen == [3, "evaluate"]


# Devices


def test_device_of_a_model() -> None:
    """A model lies where its parameters lie; without any it is at home on the CPU."""
    assert model_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert model_device(nn.ReLU()) == torch.device("cpu")


def test_automatic_device_is_one_that_works() -> None:
    """The best device at hand can hold a tensor."""
    device = find_device("auto")

    assert torch.ones(2, device=device).sum().item() == 2
    if torch.cuda.is_available():
        assert device.type == "cuda"


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "xla", "CPU", "cuda", "cuda:0", "mps"])
def test_device_that_is_not_here_is_refused(name: str) -> None:
    """An unknown or absent device is an error that names it before anything is loaded."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if here.get(name.split(":")[0]):
        pytest.skip(f"{name} is here")

    with pytest.raises(ValueError, match=f"device '{name}' is not here; choose auto or cpu"):
        find_device(name)
