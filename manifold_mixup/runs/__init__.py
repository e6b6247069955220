"""From the names of data and model to a folder on disk: train, compare, evaluate, predict.

Knows every option, and what a folder of a run holds; how to train and compare is known below. May
import all folders but the command line's.

To read in this order: `options` (what an option is), `config` (every option of `train` and
`compare`, once), `prepare` (data and model loaded, checked, frozen), `train` (one training, to a
run), `checkpoint` (a run on disk, and its folder), `selection` (alpha and learning rate by short
trainings), `compare` (one comparison, to its results), `winner` (its best row as a command and as
a run), `inference` (what a finished run says of images).
"""

from manifold_mixup.runs.checkpoint import WINNER
from manifold_mixup.runs.compare import PAGE, compare_run, help_compare
from manifold_mixup.runs.config import GROUPS, CompareConfig, TrainConfig
from manifold_mixup.runs.inference import (
    Run,
    evaluate_run,
    find_images,
    list_measured,
    load_run,
    predict_images,
)
from manifold_mixup.runs.options import (
    absolute,
    choices_of,
    flag_of,
    is_list,
    option_of,
    parameter_of,
    read_words,
    typer_parameter,
    types_of,
    word_of,
)
from manifold_mixup.runs.train import help_train, train_run
from manifold_mixup.runs.winner import told

__all__ = [
    "CompareConfig",
    "GROUPS",
    "PAGE",
    "Run",
    "TrainConfig",
    "WINNER",
    "absolute",
    "choices_of",
    "compare_run",
    "evaluate_run",
    "find_images",
    "flag_of",
    "help_compare",
    "help_train",
    "is_list",
    "list_measured",
    "load_run",
    "option_of",
    "parameter_of",
    "predict_images",
    "read_words",
    "told",
    "train_run",
    "typer_parameter",
    "types_of",
    "word_of",
]
