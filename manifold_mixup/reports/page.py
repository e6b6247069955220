"""A comparison as one HTML file: the verdict first, then what it rests on."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def settings_sentence(
    settings: Mapping[str, Any], n: int, num_classes: int, replicates: int
) -> str:
    """What was compared, in a few sentences.

    Args:
        settings: ``model``, ``tail``, ``test_on``, ``weight_decays`` and ``worth`` of the
            comparison.
        n: How many images there are.
        num_classes: Of how many classes.
        replicates: How many there were.
    """
    trained = "a linear head" if settings["tail"] == "frozen" else "all that lies behind the layer"
    where = f", tested on {settings['test_on']}" if settings["test_on"] else ""
    decays = ", ".join(f"{decay:g}" for decay in settings["weight_decays"])
    return (
        "Mixup trains on weighted averages of two images' features, and of their classes. "
        f"Compared are ways to train {trained} on {n} images of {num_classes} classes{where}, "
        f"with features of {settings['model']}; {replicates} replicates, each with its own split "
        f"and mixes: as many as tell {in_points(settings['worth'])} points, or as were asked for. "
        f"Each linear head got the weight decay (of {decays}) that "
        "validation images find best for it. Alpha is the strength of mixing: at 0.2 one image "
        "dominates, at 1 all weights are alike, above that halves prevail."
    )
