"""`skipstone list`: what there is to choose from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

KINDS = {
    "policies": "policy",
    "solvers": "solver",
    "grids": "grid",
    "schedules": "schedule",
    "metrics": "metric",
    "peers": "peer",
}


class ListedKind(StrEnum):
    """The kinds of things that can be listed."""

    policies = "policies"
    solvers = "solvers"
    grids = "grids"
    schedules = "schedules"
    metrics = "metrics"
    peers = "peers"


def listing(shelf: Annotated[ListedKind | None, typer.Argument(help="Which; all of them by default.")] = None) -> None:
    """Name the policies, solvers, grids, schedules, metrics and peers there are.

    [bold]Examples[/bold]

      skipstone list
      skipstone list policies
    """
    from .. import registry
    from ..evaluation.columns import SPEC_SETS

    shelves = [shelf.value] if shelf else list(KINDS)
    for title in shelves:
        kind = KINDS[title]
        names = registry.names(kind)
        if len(shelves) > 1:
            typer.echo(f"{title}:")
        width = max(map(len, (*names, *registry.list_presets(kind))), default=0)
        if not names:
            typer.echo("  none: they come with skipstone-bench: pip install 'skipstone[bench]'")
        for name in names:
            typer.echo(f"  {name:{width}}  {registry.first_doc_line(registry.find_class(kind, name))}")
        for name, (spec, about) in registry.list_presets(kind).items():
            typer.echo(f"  {name:{width}}  {about} Short for {spec}.")
        if title == "peers":
            for name, (about, specs) in SPEC_SETS.items():
                typer.echo(f"  {name:{width}}  {about} As -p: {len(specs)} rows.")
