"""runs."""

from manifold_mixup.runs.checkpoint import (
    FEATURES,
    FILES,
    HEAD,
    MODEL,
    RUN,
    STATE,
    Run,
    claimed_folder,
    load_run,
    read_finished,
    read_info,
    read_state,
    save_run,
    seeded_backbone,
    write_state,
)
from manifold_mixup.runs.compare_run import PAGE, WINNER, compare_run
from manifold_mixup.runs.inference import evaluate_run, find_images, held_out, predict_images
from manifold_mixup.runs.prepare import head_input
from manifold_mixup.runs.selection import (
    BLOCK_RATES,
    HEAD_RATES,
    LINEAR_RATES,
    Choice,
    choose_alpha,
    choose_rate,
    suited_rates,
)
from manifold_mixup.runs.train_run import train_run
from manifold_mixup.runs.trainer import warmed
from manifold_mixup.runs.winner import told, write_results

__all__ = [
    "BLOCK_RATES",
    "Choice",
    "FEATURES",
    "FILES",
    "HEAD",
    "HEAD_RATES",
    "LINEAR_RATES",
    "MODEL",
    "PAGE",
    "RUN",
    "Run",
    "STATE",
    "WINNER",
    "choose_alpha",
    "choose_rate",
    "claimed_folder",
    "compare_run",
    "evaluate_run",
    "find_images",
    "head_input",
    "held_out",
    "load_run",
    "predict_images",
    "read_finished",
    "read_info",
    "read_state",
    "save_run",
    "seeded_backbone",
    "suited_rates",
    "told",
    "train_run",
    "warmed",
    "write_results",
    "write_state",
]
