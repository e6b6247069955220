"""reports."""

from manifold_mixup.reports.figures import draw_figures
from manifold_mixup.reports.page import Pair, settings_sentence, write_page
from manifold_mixup.reports.plots import (
    CURVE,
    RELIABILITY,
    SCATTER,
    draw_curve,
    draw_quality,
    draw_reliability,
)
from manifold_mixup.reports.words import describe_labels, describe_metrics, describe_prediction

__all__ = [
    "CURVE",
    "Pair",
    "RELIABILITY",
    "SCATTER",
    "describe_labels",
    "describe_metrics",
    "describe_prediction",
    "draw_curve",
    "draw_figures",
    "draw_quality",
    "draw_reliability",
    "settings_sentence",
    "write_page",
]
