"""Steps of a training whose tail is one linear layer: its gradient is written out."""

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifold_mixup.epochs import Epoch
from manifold_mixup.lanes import Lane
from manifold_mixup.loading import Batches, first_logits
from manifold_mixup.modes import eval_mode
from manifold_mixup.progress import Track
from manifold_mixup.resume import Training, load_parameters
from manifold_mixup.settings import HeadSettings
from manifold_mixup.steps import MOMENTUM, as_finite
from manifold_mixup.tail import Tail

Batch = tuple[Tensor, Tensor]

_NAMES = ("weight", "bias")
# Mixes are drawn for batches of so many numbers at a time.
_DRAWN = 2**22


class LinearSteps:
    """What `Steps` does, several times faster, for a single linear layer.

    Args:
        linear: The layer, changed in place.
        parameters: Its weight and bias, by their names in the model.
        settings: Of the training.
        optimizer: ``"adamw"`` or ``"sgd"``.
    """

    def __init__(
        self,
        linear: nn.Linear,
        parameters: Mapping[str, nn.Parameter],
        settings: HeadSettings,
        optimizer: str,
    ) -> None:
        self.linear, self.parameters = linear, parameters
        self.settings, self.optimizer = settings, optimizer
        self.lane = self._lane({}, 0)

    def restore(self, done: Training) -> None:
        """Go on from where a training stood, if it had begun."""
        if done.epochs:
            load_parameters(self.parameters, done.head)
            self.lane = self._lane(done.state, len(done.losses))

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs besides the parameters."""
        tensors = self.lane.tensors()
        return {n: t.cpu().clone() for n, t in tensors.items() if n not in _NAMES}

    def run(self, batches: Batches, epoch: Epoch, track: Track) -> list[float]:
        """Train for an epoch; the whole loss of every step, mixed and clean."""
        losses: list[Tensor] = []
        if epoch.draws == 0:
            self.lane.draws.begin()
        tracked = track(batches, len(batches), f"epoch {epoch.number + 1}/{epoch.epochs}")
        for together in _of_one_size(tracked):
            targets = torch.stack([target for _, target in together]).long()
            mixes = self.lane.draws.mixes(targets[:, None], self.linear.weight)
            for (inputs, _), mix in zip(together, mixes, strict=True):
                features = inputs.to(self.linear.weight.device).flatten(1)
                rate = epoch.rate(len(losses) / len(batches))
                losses.append(self.lane.step(features[None], mix, rate))
        with torch.no_grad():
            for name in _NAMES:
                getattr(self.linear, name).copy_(getattr(self.lane, name)[0])
        return as_finite(torch.cat(losses), epoch.number, self.settings.lr)

    def _lane(self, state: Mapping[str, Tensor], steps: int) -> Lane:
        device = self.linear.weight.device
        own = {name: getattr(self.linear, name).detach()[None] for name in _NAMES}
        moved = {n: t if n == "generator" else t.to(device) for n, t in state.items()}
        return Lane(
            [0],
            [self.settings],
            {**moved, **own},
            optimizer=self.optimizer,
            momentum=MOMENTUM,
            steps=steps,
            mixes_logits=True,
        )


def _of_one_size(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Some batches of one size at a time, as mixes drawn one by one cost more than a step."""
    together: list[Batch] = []
    for inputs, target in batches:
        most = max(1, _DRAWN // inputs.numel())
        if together and (len(together) >= most or len(target) != len(together[0][1])):
            yield together
            together = []
        together.append((inputs, target))
    if together:
        yield together


def find_linear(
    tail: nn.Module, inputs: Tensor, parameters: Mapping[str, nn.Parameter]
) -> nn.Linear | None:
    """The linear layer that a tail is, now and in eval mode; None if it is more or less than that.

    Args:
        tail: A tail, in the mode to train in.
        inputs: Features that it takes (B, *).
        parameters: Those that are trained, by name.
    """
    if not isinstance(tail, Tail):
        return None
    wanted = {id(parameter) for parameter in parameters.values()}
    for module in tail.modules():
        # Not its parameters: a weight may be computed from others, as by weight_norm.
        if isinstance(module, nn.Linear) and {id(module.weight), id(module.bias)} == wanted:
            return module if _is_alone(tail, module, inputs) else None
    return None


@torch.no_grad()
def _is_alone(tail: nn.Module, linear: nn.Linear, inputs: Tensor) -> bool:
    features = inputs.flatten(1)
    if features.shape[1] != linear.in_features:
        return False
    with torch.random.fork_rng(devices=[]):
        expected = F.linear(features, linear.weight, linear.bias)  # its hooks left out
        # Twice, because dropout may by chance drop nothing.
        outputs = [tail(inputs), tail(inputs)]
        with eval_mode(tail):
            outputs.append(tail(inputs))
    return all(torch.equal(first_logits(output), expected) for output in outputs)
