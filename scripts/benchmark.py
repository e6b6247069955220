"""Measure this library beside what it replaces: one command for each part.

    python scripts/benchmark.py store    one pass over the images, its store, and 100 epochs of it
    python scripts/benchmark.py heads    linear heads at their optimum
    python scripts/benchmark.py mix      the mixing operation, and a step with it
    python scripts/benchmark.py peers    fastai, torchbearer and scikit-learn on the same images

Each prints tables with the hardware and the versions above them, and takes `--device cuda`, and
`--help`. What is compared runs in alternation, in one process or in processes of their own. What
was measured, and on what, stands in the header of each part, in scripts/benchmarks/.
"""

import typer

from benchmarks import heads, mix, peers, store

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("store")(store.main)
app.command("heads")(heads.main)
app.command("mix")(mix.main)
app.command("peers")(peers.main)


if __name__ == "__main__":
    app()
