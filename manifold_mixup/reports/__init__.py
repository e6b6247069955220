"""reports."""

from manifold_mixup.reports.figures import plot_figures
from manifold_mixup.reports.page import Pair, write_page
from manifold_mixup.reports.plots import (
    CURVE,
    RELIABILITY,
    SCATTER,
    plot_curve,
    plot_quality,
    plot_reliability,
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
    "plot_curve",
    "plot_figures",
    "plot_quality",
    "plot_reliability",
    "write_page",
]
