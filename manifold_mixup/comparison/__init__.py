"""Does mixing help? Every way to train, on the same splits, and a verdict.

Knows candidates, replicates and the statistics of their differences; nothing of the command line
or of a run's folder. May import `data`, `training` and all that this may.

To read in this order: `compare` (the whole of it), `candidates` (the ways to train), `subjects`
(scenarios, replicates, and the head behind each store), `train_candidates` (all ways in one
replicate after the other), `outcomes` (what training one way came to), `rows` (what was found: a
row for each way, and the deciding difference), `verdict` (intervals, and what they answer in
words), `spread` (where the variance comes from, and what would lower it), `cost` (what it will
take, told before).
"""

from manifold_mixup.comparison.candidates import Candidate, Candidates
from manifold_mixup.comparison.compare import (
    LEAST,
    check_compared,
    compare,
    compare_stores,
    most_replicates,
)
from manifold_mixup.comparison.cost import Price, estimate
from manifold_mixup.comparison.outcomes import Trained, make_row
from manifold_mixup.comparison.rows import Comparison, Grid, Row, compare_rows
from manifold_mixup.comparison.subjects import (
    ELSEWHERE,
    Head,
    Replicate,
    Scenario,
    draw_replicate,
    find_head,
    init_head,
    list_scenarios,
)
from manifold_mixup.comparison.train_candidates import outcome_of, rows_of_all, solve_along
from manifold_mixup.comparison.verdict import NOT_MEASURED, Interval, in_points, is_told

__all__ = [
    "Scenario",
    "Comparison",
    "ELSEWHERE",
    "Grid",
    "Head",
    "Interval",
    "LEAST",
    "NOT_MEASURED",
    "Price",
    "Row",
    "Replicate",
    "Trained",
    "Candidate",
    "Candidates",
    "check_compared",
    "compare",
    "compare_rows",
    "compare_stores",
    "init_head",
    "draw_replicate",
    "estimate",
    "find_head",
    "in_points",
    "is_told",
    "list_scenarios",
    "make_row",
    "most_replicates",
    "outcome_of",
    "rows_of_all",
    "solve_along",
]
