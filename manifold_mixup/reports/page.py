"""A comparison as one HTML file: the verdict first, then what it rests on."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifold_mixup._files import write_whole
from manifold_mixup.comparison import Comparison, Scenario, in_points
from manifold_mixup.reports.figures import plot_figures


@dataclass(frozen=True)
class Pair:
    """Two images that were mixed.

    Attributes:
        images: PNG files of them.
        classes: Their classes.
        lam: The weight of the first.
    """

    images: tuple[bytes, bytes]
    classes: tuple[str, str]
    lam: float


def write_page(
    file: Path,
    found: Mapping[Scenario, Comparison],
    *,
    title: str,
    about: str,
    predict: str = "",
    train: str = "",
    pairs: Sequence[Pair] = (),
) -> None:
    """Write the page of a comparison.

    Args:
        file: The HTML file.
        found: The comparison of the data as they are, and those of harder scenarios.
        title: What was compared on what.
        about: A few sentences on data, model, ways and replicates.
        predict: What to type to use the head that came out best.
        train: What to type to train it again.
        pairs: Some images that were mixed.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters["base64"] = lambda content: base64.b64encode(content).decode()
    own = found[Scenario()]
    page = templates.get_template("page.html").render(
        title=title,
        found=own,
        harder={scenario.name: one for scenario, one in found.items() if scenario.name},
        worth=in_points(own.worth),
        about=about,
        predict=predict,
        train=train,
        figures=plot_figures(own),
        pairs=pairs,
    )
    write_whole(file, lambda partial: partial.write_text(page, encoding="utf-8"))
