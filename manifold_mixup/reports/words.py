"""What was measured and predicted, in words for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manifold_mixup.training import show_quality


def describe_layers(rows: Sequence[Any]) -> Iterator[str]:
    """The rows of `layer_table` as lines, with shapes and costs."""
    width = max((len(row.name) for row in rows), default=5)
    yield f"{'layer':<{width}}  {'shape':>13}  {'KiB an image':>12}  cost before"
    for row in rows:
        shape, size = "x".join(map(str, row.shape)), row.bytes_per_sample / 1024
        line = f"{row.name:<{width}}  {shape:>13}  {size:12.1f}  {row.cost_before:11.1%}"
        yield f"{line}  {row.reason}".rstrip()


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """The measures of any task in one line.

    Example:
        >>> describe_metrics({"r2": 0.5, "mae": 1.25, "rmse": 2.0, "n": 9})
        'R2 0.500, mean absolute error 1.25, root mean squared error 2 (9 images)'
    """
    n = f"({metrics['n']} images)"
    if "calibration_error" in metrics:
        error = f"calibration error {metrics['calibration_error']:+.3f}"
        if "nll_at_temperature" in metrics:
            error += f", at the temperature {metrics['calibration_error_at_temperature']:+.3f}"
        return f"accuracy {metrics['accuracy']:.1%}, NLL {metrics['nll']:.3f}, {error} {n}"
    if "r2" in metrics:
        return (
            f"R2 {show_quality('r2', metrics['r2'])}, mean absolute error {metrics['mae']:.4g}, "
            f"root mean squared error {metrics['rmse']:.4g} {n}"
        )
    precision = show_quality("mean_average_precision", metrics["mean_average_precision"])
    if "auroc" in metrics:  # of a single label
        area = show_quality("auroc", metrics["auroc"])
        precision = f"{precision}, accuracy {metrics['accuracy']:.1%}, AUROC {area}"
    return (
        f"mean average precision {precision}, F1 {metrics['f1']:.1%}, NLL {metrics['nll']:.3f} {n}"
    )


def describe_labels(metrics: Mapping[str, Any], task: Mapping[str, Any]) -> list[str]:
    """A line for each label: its F1 and its threshold; none for other tasks.

    Args:
        metrics: What was measured.
        task: What ``run.json`` says of the task.
    """
    by_class = metrics.get("f1_by_class", {})
    width = max(map(len, by_class), default=0)
    return [
        f"  {name:<{width}}  F1 {f1:6.1%}  predicted from a probability of {threshold:.3f} on"
        for (name, f1), threshold in zip(by_class.items(), task.get("thresholds", ()), strict=True)
    ]


def describe_prediction(prediction: Mapping[str, Any]) -> str:
    r"""What a run says of one image, after its path.

    Example:
        >>> describe_prediction({"labels": ["cat"], "probabilities": {"cat": 0.9, "dog": 0.25}})
        'cat\tcat 90.0%, dog 25.0%'
        >>> describe_prediction({"value": 3.25})
        '3.25'
    """
    if "label" in prediction:
        return f"{prediction['label']}\t{prediction['probability']:.1%}"
    if "labels" in prediction:
        shares = [f"{name} {p:.1%}" for name, p in prediction["probabilities"].items()]
        return f"{', '.join(prediction['labels']) or '(none)'}\t{', '.join(shares)}"
    value = prediction["value"]
    if isinstance(value, Mapping):
        return "\t".join(f"{name} {one:.6g}" for name, one in value.items())
    return f"{value:.6g}"
