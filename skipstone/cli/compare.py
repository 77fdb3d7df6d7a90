"""`skipstone compare`: the same prompts and seed under several policies and samplers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .files import check_targets, png, publish, slug

if TYPE_CHECKING:
    from ..bench.columns import Column
    from ..bench.compare import Comparison

SHEET, TIMELINE, TABLE, SAMPLES = "sheet.png", "timeline.png", "table.md", "samples.jsonl"


def compare(
    prompts: Annotated[list[str], typer.Argument(help="What to draw, one sample each.", metavar="PROMPTS")],
    policies: Annotated[
        list[str], typer.Option("--policies", "-p", help="A column: 'policy @ solver / grid / steps'. Repeat it.")
    ],
    model: options.Model = "pebble",
    steps: options.Steps = options.STEPS,
    solver: options.Solver = options.SOLVER,
    grid: options.Grid = options.GRID,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    reference: Annotated[str, typer.Option(help="The full run that closeness is measured to, as a column.")] = "fixed",
    repeats: Annotated[int, typer.Option(help="Runs of each column for its seconds, taking turns.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="A folder.")] = Path("comparison"),
    force: options.Force = False,
) -> None:
    """Compare policies with the full run, and with simply taking fewer steps.

    A column is spelt [bold]policy @ solver / grid / steps[/bold]. What follows the @ may be
    left out, in part or in whole, and is then that of the command. The policy
    [bold]fewer[/bold] is a fixed sampler with as many steps as the column to its left
    makes calls in the mean, rounded up: what a policy has to beat.

    Writes a contact sheet, a timeline of decisions, a Markdown table, JSON
    Lines with a record for every sample, and the pictures. Calls are counted
    by a hook on the network.

    [bold]Examples[/bold]

      skipstone compare "a cat" "a cat above a bus" -p third_order -p fewer
      skipstone compare "a house" -p "third_order @ ddim" -p "fewer @ dpmpp"
      skipstone compare "a frog" -p error_control -p "fixed @ unipc / 20" \\
        --reference "fixed @ dpmpp / trailing / 200"
    """
    run(prompts, policies, model, steps, solver, grid, guidance, seed, reference, repeats, out, force)


def run(
    prompts: Sequence[str],
    policies: Sequence[str],
    model: str,
    steps: int,
    solver: str,
    grid: str,
    guidance: float | None,
    seed: int,
    reference: str,
    repeats: int,
    out: Path,
    force: bool,
) -> None:
    """What the command does; `demo` does it with settings of its own."""
    from rich.console import Console

    from .. import registry
    from ..bench.columns import parse_column, parse_columns
    from .prompts import check_prompts

    console = Console(stderr=True)
    prompts = list(dict.fromkeys(prompts))
    common = registry.parse("solver", solver), registry.parse("grid", grid), steps
    full = _full(parse_column(reference, *common))
    columns = [c for c in parse_columns(policies, *common) if c != full]
    pictures = {
        (c, p): out / "pictures" / f"{p + 1:02d}-{slug(prompt, 40)}-{c}-{slug(column.label, 40)}.png"
        for c, column in enumerate([full, *columns])
        for p, prompt in enumerate(prompts)
    }
    check_prompts(prompts, model, console)
    check_targets([*pictures.values(), *(out / name for name in (SHEET, TIMELINE, TABLE, SAMPLES))], force)
    result = _compared(prompts, columns, full, model, guidance, seed, repeats, console)
    with console.status("Drawing the sheet ..."):
        publish(_files(result, pictures, out))
    _show(result, out)


def _full(column: Column) -> Column:
    from ..errors import SpecError

    if column.policy is None:
        raise SpecError("'fewer' has no calls of its own to start from; choose another --reference.")
    return column


def _compared(
    prompts: Sequence[str],
    columns: Sequence[Column],
    full: Column,
    model: str,
    guidance: float | None,
    seed: int,
    repeats: int,
    console: Any,
) -> Comparison:
    with console.status("Loading the model ..."):
        from ..bench.compare import compare as measure
        from ..pebble.model import Pebble

        loaded = Pebble.load(model)
        loaded = loaded if guidance is None else loaded.guided(guidance)
    from .progress import watching

    bars = [(column.label, len(prompts)) for column in [full, *columns]]
    with watching(console, bars, repeats) as watch:
        return measure(loaded, prompts, columns, full, seed, repeats, watch)


def _files(result: Comparison, pictures: dict[tuple[int, int], Path], out: Path) -> dict[Path, bytes]:
    from ..bench.sheet import sheet
    from ..bench.table import json_lines, markdown, records
    from ..bench.timeline import timeline

    found = records(result, {key: path.relative_to(out).as_posix() for key, path in pictures.items()})
    names = [(c, p) for c in range(len(result.columns)) for p in range(len(result.cells[0]))]
    files = {
        pictures[c, p]: png(result.cells[c][p].pixels, record) for (c, p), record in zip(names, found, strict=True)
    }
    files[out / SHEET] = sheet(result)
    files[out / TIMELINE] = timeline(result)
    files[out / TABLE] = markdown(result).encode()
    files[out / SAMPLES] = json_lines(found).encode()
    return files


def _show(result: Comparison, out: Path) -> None:
    """The table as a terminal shows it best, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    from ..bench.table import rows

    head, *body = rows(result)
    table = Table(box=None, pad_edge=False)
    for k, title in enumerate(head):
        table.add_column(title, justify="right" if k else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    console = Console()
    console.print(table, highlight=False, markup=False)
    console.print()
    for name, what in ((SHEET, "the pictures"), (TIMELINE, "the decisions"), (TABLE, "the table")):
        console.print(f"{out / name}  {what}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{out / SAMPLES}  every sample", highlight=False, markup=False, soft_wrap=True)
