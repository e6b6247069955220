"""comparison."""

from manifold_mixup.comparison.candidates import Candidate, Candidates
from manifold_mixup.comparison.compare import (
    LEAST,
    check_compared,
    compare,
    compare_stores,
    most_replicates,
)
from manifold_mixup.comparison.cost import Price, estimate, share_by_class
from manifold_mixup.comparison.outcomes import Outcome, Trained, make_row, nll_at_best_temperature
from manifold_mixup.comparison.rows import Comparison, Grid, Row, compare_rows, is_settled
from manifold_mixup.comparison.spread import Needed, Spread, find_needed, find_spread
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
from manifold_mixup.comparison.train_candidates import (
    Relabelled,
    SteppedCandidates,
    outcome_of,
    rows_of_all,
    solve_along,
)
from manifold_mixup.comparison.verdict import (
    NOT_MEASURED,
    Answer,
    Interval,
    describe_answer,
    find_answer,
    in_points,
    is_told,
    max_quantile,
    paired_interval,
    show_points,
    simultaneous_intervals,
)

__all__ = [
    "Answer",
    "Scenario",
    "Comparison",
    "ELSEWHERE",
    "Grid",
    "Head",
    "Interval",
    "LEAST",
    "NOT_MEASURED",
    "Needed",
    "Outcome",
    "Price",
    "Relabelled",
    "Row",
    "Spread",
    "Replicate",
    "SteppedCandidates",
    "Trained",
    "Candidate",
    "Candidates",
    "check_compared",
    "compare",
    "compare_rows",
    "compare_stores",
    "describe_answer",
    "init_head",
    "draw_replicate",
    "estimate",
    "find_answer",
    "find_head",
    "find_needed",
    "find_spread",
    "in_points",
    "is_settled",
    "is_told",
    "list_scenarios",
    "make_row",
    "max_quantile",
    "most_replicates",
    "nll_at_best_temperature",
    "outcome_of",
    "paired_interval",
    "rows_of_all",
    "share_by_class",
    "show_points",
    "simultaneous_intervals",
    "solve_along",
]
