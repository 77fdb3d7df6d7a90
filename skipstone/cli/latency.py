"""`skipstone latency`: milliseconds of a call of a model's network on this machine, by rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .grouping import grouped
from .printing import print_line, print_table
from .progress import show_status

if TYPE_CHECKING:
    from ..tuning.latency import LatencyTable


@grouped
def latency(
    model: options.ModelOptions,
    guidance: options.GuidanceOption = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what was measured before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say how long a call of a model's network takes here, for 1, 2, 4 ... pictures at once.

    Measured once for a model, resolution and dtype on this machine, on an idle one
    best, and kept in ~/.cache/skipstone. [bold]tune --milliseconds[/bold] reads it.

    [bold]Examples[/bold]

      skipstone latency
      skipstone latency --model org/name --dtype bfloat16 --again
      skipstone latency --json | jq .rows
    """
    from rich.console import Console

    from ..tuning.latency import latency_table

    console = Console(stderr=True)
    with show_status(console, "Measuring ..."):
        table = latency_table(model.subject(guidance), again)
    if as_json:
        typer.echo(json.dumps(_document(table), ensure_ascii=False))
        return
    _show(table)


def _document(table: LatencyTable) -> dict[str, Any]:
    return {
        "model": table.model,
        "machine": table.machine,
        "branches": table.branches,
        "rows": table.rows,
        "entries": [one._asdict() for one in table.entries],
        "file": str(table.path),
    }


def _show(table: LatencyTable) -> None:
    from rich.console import Console

    head, body = ("rows", "pictures", "size", "dtype", "ms a call", "ms a picture"), []
    for one in sorted(table.entries, key=lambda one: (one.dtype, one.height, one.width, one.rows)):
        pictures = max(1, one.rows // table.branches)
        each = one.milliseconds / pictures
        cells = (one.rows, pictures, f"{one.width}x{one.height}", one.dtype, f"{one.milliseconds:.4g}", f"{each:.4g}")
        body.append([str(cell) for cell in cells])
    console = Console()
    print_line(console, f"{table.model} on {table.machine}")
    print_table(console, head, body, left=[head.index("size"), head.index("dtype")])
    for line in (table.words, str(table.path)):
        print_line(console, line)
