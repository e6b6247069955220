"""Options that several parts have."""

from pathlib import Path
from typing import Annotated

import typer

# Real weights and pictures, where they lie beside the checkout.
SHARED = Path(__file__).parents[3] / "shared" / "data"

Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Weights = Annotated[str, typer.Option(help="pretrained, none (random), or a file.")]
Rounds = Annotated[int, typer.Option(min=1, help="In which all take their turn.")]
