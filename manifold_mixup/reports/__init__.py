"""What was found, for people: plots, a page, and words.

Knows how results look, and decides nothing. May import `data`, `training` and
`comparison`.

To read in this order: `words` (measures and predictions in a line), `plots` (how a run was
learned, and how far it can be trusted), `figures` (the pictures of a comparison), `page` (a
comparison as one HTML file, by the template `page.html`).
"""

from manifold_mixup.reports.page import Pair, write_page
from manifold_mixup.reports.plots import CURVE, RELIABILITY, SCATTER, plot_curve, plot_quality
from manifold_mixup.reports.words import (
    describe_labels,
    describe_layers,
    describe_metrics,
    describe_prediction,
)

__all__ = [
    "CURVE",
    "Pair",
    "RELIABILITY",
    "SCATTER",
    "describe_labels",
    "describe_layers",
    "describe_metrics",
    "describe_prediction",
    "plot_curve",
    "plot_quality",
    "write_page",
]
