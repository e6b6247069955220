"""Mix at layers chosen by name, and prove in every step that it happened."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from manifold_mixup.hooks.draws import RankedGenerator, batch_size
from manifold_mixup.hooks.hook import FirstInputHook, InputHook, MixHook, OutputHook, Terms
from manifold_mixup.hooks.kinds import Kind, mix_class, sampler
from manifold_mixup.hooks.masks import MaskHooks
from manifold_mixup.hooks.preflight import Preflight
from manifold_mixup.hooks.receipt import Receipt, Receipts
from manifold_mixup.inspection import (
    Entry,
    Layer,
    Output,
    entry_name,
    find_entries,
    find_tensors,
    named_layers,
    unwrap,
)
from manifold_mixup.mixing import (
    Mix,
    Pairing,
    check_alpha,
    check_exclude,
    check_pairing,
    check_prob,
)


class ManifoldMixup:
    """Manifold mixup at named layers of any model, for your own training loop.

        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> mixup = ManifoldMixup(model, "1", alpha=0.4, example=torch.randn(2, 4))
        >>> images, target = torch.randn(8, 4), torch.randint(2, (8,))
        >>> with mixup(target) as mix:
        ...     loss = mixed_loss(model(images), target, mix)
        >>> loss.backward()
        >>> mixup.detach()

    Construction checks the names, runs the model once on a few samples to see that each layer can
    be mixed, and attaches the hooks. They do nothing outside of a step: evaluate as usual.
    A step (the `with` block) draws one `Mix` and one entry of `layers`, and mixes that entry's
    output in the next forward pass. If the layer did not run exactly once, the step raises, so
    targets are never mixed alone. Gradients and modes are left alone: see `freeze`.

    Where a callback begins a step that may never come to its end, `end` ends it.

    With activation checkpointing call `backward` once after each step, before another forward
    pass and before `detach`, which makes a recomputation run without the mix.
    With `torch.compile` attach before the first compiled call.

    Args:
        model: Any module, wrapped (compiled, DDP, …) or not.
        layers: What to mix: a pattern (see `find_layers`), a module, or a list of these, of which
            one is drawn each step. A tuple in the list is mixed together in one step.
        alpha: Of lam ~ Beta(alpha, alpha); 0 mixes nothing. It may be assigned between steps.
        pairing: Who mixes with whom; see `draw_partner`. Rules by class or target read the targets
            of each step: on a GPU they are waited for.
        exclude: Indices of classes that take no part, and whose loss stays what it is.
        per_sample: One lam for each sample, else one for the batch.
        kind: How to mix: `Mix`, `CutMix`, `MomentExchange` or `NoisyMix`, or a `functools.partial`
            of one with options of its `sample`.
        prob: Probability with which a step is mixed at all, in [0, 1]. A step that is not has the
            mix in which every lam is 1.
        seed: Of the draws. Distributed processes draw different ones from one seed, and from one
            `state_dict`; to go on exactly as before, give each process its own.
        example: A batch to try the model on: a tensor, a tuple of positional or a dict of keyword
            arguments. Needed only where the model does not tell its input size and the first
            step's input is too late to learn that a layer cannot be mixed.
        mask: Name by which the layers behind the mixed ones take the mask of padded batches, such
            as ``"attention_mask"``; there it is joined with the partner's, see `join_masks`.
            A name with "pad" in it marks what does not count, as ``key_padding_mask`` does.
        output: Which tensors to mix of a layer that returns several, or of a model that takes
            several: a position, a key or field name, a dotted path, several of these, or
            ``"all"`` floating-point ones.
        features_only: Whether targets stay as they are on purpose. If not, a step whose mix is
            never looked at raises, once nobody holds it any more: as a rule in the next step.

    Raises:
        ValueError: A pattern matches nothing, a layer cannot be mixed, or an argument is out of
            range. Nothing is attached then.

    Warns:
        UserWarning: A layer does not carry the whole signal, as inside a residual branch; what
            comes behind it depends on masks that are not joined; or an excluded class has no
            output in the model.

    Reference:
        Verma et al., Manifold Mixup: Better Representations by Interpolating Hidden States,
        ICML 2019. https://arxiv.org/abs/1806.05236
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Entry | list[Entry],
        *,
        alpha: float = 0.4,
        pairing: Pairing = "any",
        exclude: Iterable[int] = (),
        per_sample: bool = True,
        kind: Kind = Mix,
        prob: float = 1.0,
        seed: int = 0,
        example: Any = None,
        mask: str | None = None,
        output: Output = None,
        features_only: bool = False,
    ) -> None:
        check_pairing(pairing)
        self.exclude = check_exclude(exclude)
        check_prob(prob)
        self.alpha, self.pairing, self.per_sample, self.output = alpha, pairing, per_sample, output
        self.kind, self.prob, self._sample = kind, prob, sampler(kind)
        self._model = unwrap(model)
        self._entries = find_entries(model, layers)
        self._random = RankedGenerator(seed)
        self.mask = mask
        self._masks = None if mask is None else MaskHooks(model, mask)
        self._drawn: tuple[Layer, ...] | None = None
        self._step: Step | None = None
        self._receipts = Receipts(features_only)
        self._judge = Preflight(
            model, self._entries, output, self._sample, self.exclude, self._masks
        )
        self._trace_pending = not self._judge.try_now(example)
        self._handles: list[RemovableHandle] = []
        self._hooks: dict[int, MixHook] = {}
        self._attach()

    @property
    def alpha(self) -> float:
        """Of lam ~ Beta(alpha, alpha) in the steps to come; assign it for a schedule."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        check_alpha(alpha)
        self._alpha = alpha

    @property
    def layers(self) -> list[str | tuple[str, ...]]:
        """The entries, by name; a tuple is mixed together."""
        return [entry_name(entry) for entry in self._entries]

    @property
    def drawn(self) -> str | tuple[str, ...] | None:
        """The entry drawn in the last step, None before the first."""
        return None if self._drawn is None else entry_name(self._drawn)

    def __call__(self, target: Any, *, passes: int | None = 1) -> AbstractContextManager[Mix]:
        """One step: draw a mix for this batch and mix the next forward pass with it.

        Args:
            target: The batch's targets (B, *), or a dict or sequence of them; only their number
                and device matter here, unless `pairing` or `exclude` says more.
            passes: How many forward passes the mix is for: 2 for SAM, which runs the model twice
                on a batch; None for any number, as L-BFGS needs.

        Raises:
            RuntimeError: The manager is detached or a step is open already. In the block, the
                drawn layer runs once too often, or the model runs in evaluation mode or without
                gradients though the step began otherwise. At its end, the layer ran too rarely;
                or the mix of a step was never applied to the targets.
        """
        if passes is not None and passes < 1:
            raise ValueError(f"passes={passes}: expected 1 or more, or None for any number")
        return Step(self, target, passes)

    def end(self) -> None:
        """End the step that is open, whatever it did, and prove nothing; if none is, do nothing.

        It is for steps that were begun by hand and interrupted: what comes after is not mixed.
        """
        _OPEN.discard(self)
        self._step = None
        for hook in self._hooks.values():
            hook.mix = None
        if self._masks is not None:
            self._masks.end()

    def detach(self) -> None:
        """Remove the hooks; doing so again does nothing."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> "ManifoldMixup":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on drawing from here; of another rank, to draw apart from it."""
        return self._random.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on drawing from a state."""
        self._random.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        # Hooks of copies do nothing: a copy is detached, and says so.
        return {**vars(self), "_handles": [], "_hooks": {}, "_step": None}

    def __repr__(self) -> str:
        return (
            f"ManifoldMixup({type(self._model).__name__}, {self.layers}, alpha={self.alpha}, "
            f"pairing={self.pairing!r}, exclude={self.exclude}, per_sample={self.per_sample}, "
            f"kind={mix_class(self.kind).__name__}, prob={self.prob})"
        )

    def _probe_first_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Try the model on the first step's own input, with the hooks at rest."""
        is_new = self._model.training and not self._judge.has_seen_training
        if not (self._step and (self._trace_pending or is_new)):
            return
        mixes = [(h, h.mix, h.is_drawn, h.terms) for h in self._hooks.values()]
        is_pending, self._trace_pending = self._trace_pending, False
        for hook, *_ in mixes:
            hook.begin(None, is_drawn=False)
        if self._masks is not None:
            self._masks.end()
        try:
            if is_pending:
                self._judge(self._judge.trace(args, kwargs), args, kwargs)
            else:
                self._judge.look_in_training(args, kwargs)
        except BaseException:
            self._trace_pending = is_pending
            raise
        for hook, mix, is_drawn, terms in mixes:
            hook.begin(mix, is_drawn=is_drawn, terms=terms)
            if self._masks is not None and mix is not None and is_drawn:
                self._masks.begin(self._drawn or (), mix)

    def _attach(self) -> None:
        try:
            if not self._judge.has_seen_training:
                first = FirstInputHook(self._probe_first_input)
                self._handles.append(
                    self._model.register_forward_pre_hook(first, with_kwargs=True)
                )
            for layer in (layer for entry in self._entries for layer in entry):
                if id(layer.module) not in self._hooks:
                    self._hooks[id(layer.module)] = self._register(layer)
            if self._masks is not None:
                self._handles.extend(self._masks.register())
        except BaseException:
            self.detach()
            raise

    def _register(self, layer: Layer) -> MixHook:
        if layer.is_input:
            hook: InputHook | OutputHook = InputHook(layer.name, self.output, layer.module)
            handle = layer.module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            hook = OutputHook(layer.name, self.output)
            handle = layer.module.register_forward_hook(hook)
        self._handles.append(handle)
        return hook

    def _begin(self, step: "Step") -> Mix:
        """Begin a step."""
        if not self._handles:
            raise RuntimeError("this ManifoldMixup is detached; construct a new one to go on")
        if self._step is not None:
            raise RuntimeError(
                "a step is open already, and steps of one ManifoldMixup do not nest; leave its "
                "`with` block, or call end()"
            )
        if mixing := mixing_layer(self._model):
            raise RuntimeError(
                f"another ManifoldMixup is in a step at layer '{mixing}' of the same model, or of "
                "one around it: the features would be mixed twice; give one ManifoldMixup a tuple "
                "of layers, or leave the other's step"
            )
        generator = self._random.of_this_rank()
        mix = self._draw(step.target, generator).to(_device(self._model, step.target))
        choice = 0
        if len(self._entries) > 1:
            choice = int(torch.randint(len(self._entries), (), generator=generator))
        self._drawn = self._entries[choice]
        self._step = step
        _OPEN.add(self)
        drawn, terms = {id(layer.module) for layer in self._drawn}, Terms(self._model, step.passes)
        for key, hook in self._hooks.items():
            if key in drawn:
                hook.begin(mix, is_drawn=True, terms=terms)
            else:
                hook.begin(hook.idle_like(mix), is_drawn=False, terms=terms)
        if self._masks is not None:
            self._masks.begin(self._drawn, mix)
        return mix

    def _draw(self, target: Any, generator: torch.Generator) -> Mix:
        is_mixed = self.prob == 1 or float(torch.rand((), generator=generator)) < self.prob
        mix = self._sample(
            batch_size(target),
            self.alpha,
            target=target,
            pairing=self.pairing,
            exclude=self.exclude,
            per_sample=self.per_sample,
            generator=generator,
        )
        return mix if is_mixed else mix.unmixed()

    def _finish(self, step: "Step", *, is_used: bool) -> None:
        """End a step and, if it is used, prove that its layers ran."""
        if self._step is not step:
            if is_used:
                raise RuntimeError(
                    "this step was ended by end() before its block: do not use this loss"
                )
            return
        try:
            if is_used:
                self._check_fired(step.passes)
        finally:
            self.end()

    def _mixes_in(self, model: nn.Module) -> str | None:
        """The layer that an open step mixes in a model, or around it where that is a part."""
        own, is_part = set(model.modules()), model in self._model.modules()
        drawn = self._drawn or () if self._handles else ()
        return next((layer.name for layer in drawn if is_part or layer.module in own), None)

    def _check_fired(self, passes: int | None) -> None:
        """Raise unless the drawn layers ran once in each pass, in a model that was traced."""
        for layer in self._drawn or ():
            self._hooks[id(layer.module)].check_calls(passes, self._advice(layer))
        if self._masks is not None:
            self._masks.check_fired(self._drawn or ())
        if self._trace_pending:
            raise RuntimeError(
                f"{type(self._model).__name__} could not be traced in this step, because it is "
                "compiled or was not called itself: do not use this loss; pass example= when "
                "attaching"
            )

    def _advice(self, layer: Layer) -> str:
        if not layer.is_input and layer.module not in named_layers(self._model).values():
            return "it was replaced in the model since: attach a new ManifoldMixup"
        return (
            "run the model inside the `with` block; a model compiled and called before attaching "
            "keeps running without hooks: attach first, or call torch.compiler.reset()"
        )


def _device(model: nn.Module, target: Any) -> torch.device:
    """The device of the model, else that of the targets."""
    first: Tensor = next(model.parameters(), next(iter(find_tensors(target).values())))
    return first.device


class Step(AbstractContextManager[Mix]):
    """What a `with` block of `ManifoldMixup` enters: it is open until it is left, or `end`."""

    def __init__(self, mixup: ManifoldMixup, target: Any, passes: int | None) -> None:
        self.target, self.passes = target, passes
        self._mixup = mixup

    def __enter__(self) -> Mix:
        self._mixup._receipts.check()
        self._receipt = Receipt(self._mixup._begin(self))
        return self._receipt.hand_out()

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._mixup._finish(self, is_used=kind is None)
        if kind is None:
            self._mixup._receipts.add(self._receipt)


# Those with a step open; a model does not know which others it is a part of.
_OPEN: WeakSet[ManifoldMixup] = WeakSet()


def mixing_layer(model: nn.Module) -> str | None:
    """The layer at which a step is open in this model, or in one that this is a part of."""
    return next(filter(None, (other._mixes_in(model) for other in _OPEN)), None)
