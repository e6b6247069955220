"""What a comparison found, as files: JSON, a table, and a page."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifold_mixup._files import write_json, write_whole
from manifold_mixup._random import seeded_generator
from manifold_mixup.comparison import Case, Comparison
from manifold_mixup.data import NamedImage, Part, open_image
from manifold_mixup.mixing import Mix
from manifold_mixup.reports import Pair
from manifold_mixup.winner import train_command

RESULTS, TABLE = "results.json", "results.csv"

Found = Mapping[Case, Comparison]


def told(found: Found, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All results as JSON values: those of the data as they are, and under ``cases`` the others.

    Every row has the command that trains it.
    """
    own = {}
    for case, comparison in found.items():
        own[case.name] = comparison.to_dict()
        for row, values in zip(comparison.rows, own[case.name]["rows"], strict=True):
            values["command"] = train_command(row, case, settings)
    return {**own.pop(""), "cases": own}


def write_results(folder: Path, found: Found, settings: Mapping[str, Any]) -> None:
    """Write the results as JSON, and as a table of all rows."""
    results = told(found, settings)
    write_json(folder / RESULTS, {"settings": dict(settings), **results})
    cases = {"": results, **results["cases"]}
    rows = [{"case": case, **row} for case, values in cases.items() for row in values["rows"]]
    names = _columns(rows)

    def write(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(folder / TABLE, write)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all numbers and words: a row that failed, or had no steps, lacks some."""
    longest = sorted(rows, key=len, reverse=True)
    return [
        name
        for name in dict.fromkeys(name for row in longest for name in row)
        if not any(isinstance(row.get(name), list | dict) for row in rows)
    ]


def draw_pairs(images: Part, classes: list[str], channels: int) -> list[Pair]:
    """Three pairs of images, with the lam that a mix of them drew."""
    mix = Mix.sample(len(images), 1.0, generator=seeded_generator(0, "pairs"))
    chosen = [0, len(images) // 2, len(images) - 1]
    return [
        Pair(
            (_thumbnail(images, i, channels), _thumbnail(images, int(mix.partner[i]), channels)),
            (classes[images.targets[i]], classes[images.targets[int(mix.partner[i])]]),
            float(mix.lam[i]),
        )
        for i in chosen
    ]


def _thumbnail(images: Part, index: int, channels: int) -> bytes:
    """A small PNG of an image."""
    source = images.sources[index]
    image = open_image(source.load() if isinstance(source, NamedImage) else source, channels)
    image.thumbnail((160, 160))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
