"""Is anything wrong in silence? Every family of timm, torchvision and Transformers, by hand.

    python scripts/zoo.py --results zoo.jsonl                 goes on where it was
    python scripts/zoo.py --results zoo.jsonl --only resnet10t
    python scripts/zoo.py --results zoo.jsonl --summary

The smallest architecture of each family, with random weights and small inputs, in float64 where it
runs so, three layers of each: the first, the middle and the last that `layer_table` calls mixable
and that returns one tensor. What is checked:

- mix: the mixed output is that of clean features mixed here and put back by a plain hook; with the
  partners' features the output is the partners'; outside of a step it is the clean one
- cut: tail(backbone(x)) is model(x) to the bit, for other samples than it was cut by
- store: losses of a head trained on stored features are those of the hooked loop
- head: `replace_head` gives the classes asked for, from nothing but the new head; where it is
  refused, state, modules and output are as they were

Each architecture runs in a process of its own, with a limit of time; a line of JSON tells how it
went. Silent: wrong, and nothing was said. Refused: the library said why. Crashed: another one did.
The whole has not been run to its end. The first 40 kinds of Transformers (5.24.0, torch 2.14.1, 10
seconds each on 2 cores): 113 mixes right, worst 1.4e-15 in float64, 113 cuts to the bit, 50 stores
and 80 heads right, nothing silent, nothing crashed. Refused, with reason, in all that was run:

- store, of decoders (Llama, GPT-2, …): they look at the tokens that the features came from, to
  find the last one, and a store does not hold them
- head "mlp", of LeViT, iFormer, …: a normalization of the classifier's own stands in its place
- head, table, of torchvision's detectors: they return lists of boxes, and no logits
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from studies.zoo_checks import check
from studies.zoo_models import list_architectures

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    results: Annotated[Path, typer.Option(help="A file of rows, to go on from.")] = Path(
        "zoo.jsonl"
    ),
    only: Annotated[str, typer.Option(help="Part of the names to run, anew.")] = "",
    seconds: Annotated[float, typer.Option(help="Limit for one architecture.")] = 300,
    summary: Annotated[bool, typer.Option("--summary", help="Only tell what is there.")] = False,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Check every architecture, or those of some names."""
    if one:
        print(json.dumps(check(one)))
        return
    rows = read(results)
    names = [] if summary else [name for name in listed(results) if only in name]
    for name in names:
        if only or name not in rows:
            rows[name] = run(name, seconds)
            with results.open("a") as file:
                print(json.dumps(rows[name]), file=file)
            print(name, *told(rows[name]), sep="\n  ", flush=True)
    summarize(rows)


def read(results: Path) -> dict[str, dict[str, Any]]:
    """The last row of each architecture in a file."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def listed(results: Path) -> list[str]:
    """The names of all, found once and kept beside the results: it takes minutes."""
    names = results.with_suffix(".names.json")
    if not names.exists():
        names.write_text(json.dumps(list_architectures(), indent=0))
    return list(json.loads(names.read_text()))


def run(name: str, seconds: float) -> dict[str, Any]:
    """The row of an architecture, from a process of its own."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"name": name, "ended": f"not done in {seconds:g} seconds"}
    try:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    except (IndexError, ValueError):
        last = (done.stderr.strip() or "nothing").splitlines()[-1]
        return {"name": name, "ended": f"exit code {done.returncode}: {last[:200]}"}


def outcomes(row: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """What was checked, where, and how it went."""
    heads = [("head", kind, outcome) for kind, outcome in row.get("head", {}).items()]
    layers = [
        (kind, one["layer"], one[kind])
        for one in row.get("layers", [])
        for kind in ("mix", "cut", "store")
    ]
    table = row.get("table", {})
    return [*heads, *layers, *([] if "layers" in table else [("table", "", table)] * bool(table))]


def told(row: dict[str, Any]) -> list[str]:
    """All that did not go as it should, a line each."""
    lines = [f"{kind}: {row[kind]}" for kind in ("unbuilt", "ended") if kind in row]
    return lines + [
        f"{kind} {where} {how}: {outcome[how]}"
        for kind, where, outcome in outcomes(row)
        for how in ("silent", "crashed", "refused")
        if how in outcome
    ]


def summarize(rows: dict[str, dict[str, Any]]) -> None:
    """Counts of what went how, then what was silent or crashed, then reasons of refusals."""
    ran = [row for row in rows.values() if not {"unbuilt", "ended"} & row.keys()]
    print(f"\n{len(ran)} architectures ran, of {len(rows)}")
    print(dict(Counter(row["name"].split(":")[0] for row in ran)))
    counts: Counter[tuple[str, str]] = Counter()
    worst: dict[str, float] = {}
    for row in ran:
        for kind, _, outcome in outcomes(row):
            how = next(iter(outcome))
            counts[kind, "right" if how == "off" else how] += 1
            if how == "off" and row["dtype"] == "float64":
                worst[kind] = max(worst.get(kind, 0.0), outcome["off"])
    for (kind, how), n in sorted(counts.items()):
        print(f"{kind:6} {how:8} {n}")
    print("worst in float64:", worst)
    for row in rows.values():
        for line in told(row):
            print(f"{row['name']}: {line}")


if __name__ == "__main__":
    app()
