"""Options that several commands share, spelt once."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

SOLVER, GRID, STEPS = "unipc", "trailing", 50  # the best fixed sampler on Pebble among those tried

Model: TypeAlias = Annotated[str, typer.Option(help="pebble, or a folder in its format.", metavar="pebble|PATH")]
Steps: TypeAlias = Annotated[int, typer.Option(help="Steps of the grid, at least 1.")]
Solver: TypeAlias = Annotated[str, typer.Option(help="How steps are made; see: skipstone list solvers.")]
Grid: TypeAlias = Annotated[str, typer.Option(help="Where steps go; see: skipstone list grids.")]
Guidance: TypeAlias = Annotated[
    float | None, typer.Option(help="Classifier-free guidance; 1 evaluates one branch. The model's own by default.")
]
Seed: TypeAlias = Annotated[int, typer.Option(help="Of the noise: the same seed is the same picture.")]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
