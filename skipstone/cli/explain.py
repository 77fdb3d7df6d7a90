"""`skipstone explain`: a trace in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explain(trace: Annotated[Path, typer.Argument(help="A file that generate --trace has written.")]) -> None:
    """Say what was decided at each step of a run, and by whom.

    [bold]Example[/bold]

      skipstone generate "a red apple" --policy third_order --trace
      skipstone explain a-red-apple-0.trace.json
    """
    from ..engine import trace as traces
    from ..errors import TraceError

    try:
        loaded = traces.load(trace)
    except TraceError as e:
        raise TraceError(f"{e} Traces are written by: skipstone generate PROMPT --trace.") from None
    for name, value in loaded.meta.items():
        typer.echo(f"{name}: {value}")
    typer.echo(traces.explain(loaded.run))
