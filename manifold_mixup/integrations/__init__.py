"""Mixing where people already train: a file for each framework, which it alone imports.

Knows the frameworks' events, nothing of how to mix; thin, on `hooks`, `mixing` and `models`.
Import the file that you need: ``from manifold_mixup.integrations.fastai import ...``; what it
needs is installed by the extra of its name, as in ``pip install "manifold-mixup[fastai]"``.

To read, each on its own: `fastai` (a callback), `lightning` (a callback, for Fabric too),
`transformers` (a trainer), `timm` (what its training script calls ``mixup_fn``).
"""

__all__: list[str] = []
