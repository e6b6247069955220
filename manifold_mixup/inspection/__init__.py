"""Look at a model and change nothing: its layers by name, a dry run of it, what can be mixed.

Knows any PyTorch module, nothing of mixes or of training. Imports no other folder.

To read in this order: `layers` (names, patterns, and the modules behind them), `nested` (tensors
inside whatever a module takes and gives), `modes` (modes, device and type, and how a model comes
back as it was), `settings` (what modules look up on themselves as they run), `flow` (what is
computed from what, also where no gradient leads), `graph` (what leads where in such a graph or in
autograd's), `trace` (the dry run: what each layer returns, and how the output depends on it),
`mixable` (which layers can be mixed, why the others cannot, which to choose
instead), `training` (what the model does in training mode alone).
"""

from manifold_mixup.inspection.flow import Flow
from manifold_mixup.inspection.graph import ancestors
from manifold_mixup.inspection.layers import (
    INPUT,
    Entry,
    Layer,
    check_model,
    entry_name,
    find_entries,
    find_layers,
    named_layers,
    unwrap,
)
from manifold_mixup.inspection.mixable import (
    LayerRow,
    bypass,
    changes_output,
    defect,
    is_in_graph,
    is_mixable,
    layer_table,
)
from manifold_mixup.inspection.modes import (
    bytes_explained,
    eval_mode,
    find_device,
    model_device,
    model_dtype,
    training_mode,
    undisturbed,
)
from manifold_mixup.inspection.nested import (
    Argument,
    Inputs,
    Output,
    arguments,
    arguments_of,
    example_input,
    find_missing,
    find_tensors,
    first_logits,
    is_chosen,
    map_tensors,
    take_samples,
)
from manifold_mixup.inspection.settings import describe_settings, settings_read
from manifold_mixup.inspection.trace import Leaf, Run, Trace, trace
from manifold_mixup.inspection.training import TrainingLook, own_modes

__all__ = [
    "Argument",
    "Entry",
    "Flow",
    "INPUT",
    "Inputs",
    "Layer",
    "LayerRow",
    "Leaf",
    "Output",
    "Run",
    "Trace",
    "TrainingLook",
    "ancestors",
    "arguments",
    "arguments_of",
    "bypass",
    "bytes_explained",
    "changes_output",
    "check_model",
    "defect",
    "describe_settings",
    "entry_name",
    "eval_mode",
    "example_input",
    "find_device",
    "find_entries",
    "find_layers",
    "find_missing",
    "find_tensors",
    "first_logits",
    "is_chosen",
    "is_in_graph",
    "is_mixable",
    "layer_table",
    "map_tensors",
    "model_device",
    "model_dtype",
    "named_layers",
    "own_modes",
    "settings_read",
    "take_samples",
    "trace",
    "training_mode",
    "undisturbed",
    "unwrap",
]
