"""Train one head, or all behind a layer, on mixed features; measure it; go on after a break.

Knows a single training: its task, its steps or its solver, its measures, why it failed. Nothing
of folders of images, command lines, or other trainings. May import `mixing`, `inspection`,
`hooks`, `models`, `features` and `linear_heads`.

To read in this order: `train_head` (the one call, and which way it goes), `preflight` (whether
samples, model, task and options fit), `tasks` (classes, labels, values: what differs between
them), `metrics` (what logits and targets come to), `problem` (rows and risk of a linear head),
`solver` (its optimum, the weight decay chosen on validation), `steps` (all else, by AdamW or SGD),
`state` (where a training stands, and whether it came to nothing), `evaluate` (measure a model).
"""

from manifold_mixup.training.evaluate import evaluate, predict_logits
from manifold_mixup.training.metrics import fit_temperature, reliability, show_quality, summarize
from manifold_mixup.training.preflight import Alpha, check_pairs, trained_parameters
from manifold_mixup.training.problem import (
    COPIES,
    MIXES,
    HeadProblem,
    Passes,
    RiskSettings,
    make_problem,
    passed_problem,
    rows_of,
    solving_device,
)
from manifold_mixup.training.solver import AUTO, DECAYS, check_decay
from manifold_mixup.training.state import (
    Diverged,
    TrainingState,
    failures_unwarned,
    load_parameters,
    unchanged,
)
from manifold_mixup.training.steps import HeadSettings, check_partners, check_training
from manifold_mixup.training.tasks import (
    Classes,
    Labels,
    Task,
    Values,
    task_of,
)
from manifold_mixup.training.train_head import BATCH_SIZE, DECAY, EPOCHS, Say, train_head

__all__ = [
    "AUTO",
    "Alpha",
    "BATCH_SIZE",
    "COPIES",
    "DECAY",
    "Classes",
    "DECAYS",
    "Diverged",
    "EPOCHS",
    "HeadProblem",
    "HeadSettings",
    "Labels",
    "MIXES",
    "Passes",
    "RiskSettings",
    "Say",
    "Task",
    "TrainingState",
    "Values",
    "check_decay",
    "check_pairs",
    "check_partners",
    "check_training",
    "evaluate",
    "failures_unwarned",
    "fit_temperature",
    "load_parameters",
    "make_problem",
    "passed_problem",
    "predict_logits",
    "reliability",
    "rows_of",
    "show_quality",
    "solving_device",
    "summarize",
    "task_of",
    "train_head",
    "trained_parameters",
    "unchanged",
]
