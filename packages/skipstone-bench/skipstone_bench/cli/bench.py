"""`skipstone bench` and `skipstone report`: every policy against what a sceptic would try first."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.cli.progress import print_warnings, progress_bar

if TYPE_CHECKING:
    pass


def bench(
    context: typer.Context,
    model: options.ModelOption = "pebble",
    prompts: Annotated[
        str, typer.Option(help="A file of prompts, or a set. Pebble's own by default.", metavar="FILE|SET")
    ] = "pebble",
    tuning: Annotated[
        str,
        typer.Option(help="What baselines are tuned on; other prompts of the same set by default.", metavar="FILE|SET"),
    ] = "",
    limit: Annotated[int, typer.Option(help="Prompts, all categories alike; 0 takes all of them.", min=0)] = 32,
    category: Annotated[list[str] | None, typer.Option(help="Keep only these. Repeat it.")] = None,
    tuned: Annotated[int, typer.Option(help="Prompts to tune on.", min=1)] = 8,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policies", "-p", help="A row: 'policy @ solver / grid / steps', a set (addiffusion), or none. Repeat it."
        ),
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="A peer's spec, or none; all of them by default. Repeat it.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Only these; all that can be taken by default. Repeat it.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Samples of each prompt.", min=1)] = 1,
    seed: options.SeedOption = 0,
    budget: Annotated[
        list[int] | None,
        typer.Option(help="Calls to compare at; 10, 15, 20 and 25 by default. Repeat it.", show_default=False),
    ] = None,
    steps: options.StepsOption = None,
    solver: options.SolverOption = None,
    grid: options.GridOption = None,
    guidance: options.GuidanceOption = None,
    reference: Annotated[str, typer.Option(help="The full run that closeness is measured to, as a column.")] = "fixed",
    converged: Annotated[
        list[str] | None,
        typer.Option(help="A run that has converged, and another that confirms it. Two of them.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples of one call of the pipeline.", min=1)] = 8,
    timed: Annotated[int, typer.Option(help="Samples whose seconds are taken, one by one; 0 takes none.", min=0)] = 4,
    repeats: Annotated[int, typer.Option(help="Times that seconds are taken.", min=1)] = 5,
    searched: Annotated[int, typer.Option(help="Tuning prompts to search the best common mask on.", min=0)] = 4,
    oracle: Annotated[int, typer.Option(help="Samples to search the best mask of: hundreds of runs each.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="A folder.")] = Path("bench"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out was left; say nothing else.")] = False,
    settings: options.SettingsOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
) -> None:
    """Measure policies against what has to be beaten, on many prompts.

    Every table has: the full run; the [bold]best fixed sampler[/bold] of each
    number of calls, out of all solvers and grids, tuned on other prompts; blind
    masks and guidance gates with the same forecast, tuned too; the best common
    mask of a greedy search; random skipping; and other people's accelerators,
    as themselves. Closeness is measured to the full run of the same seed and
    to the converged solution, which two solvers with many steps agree on.

    Writes a report that opens offline in any browser, plots, a Markdown
    table, and a record for every sample. What is done is kept: after Ctrl-C,
    [bold]--resume[/bold] goes on.

    [bold]Examples[/bold]

      skipstone bench -p balanced -p "third_order(tol=0.02)"
      skipstone bench --limit 8 --budget 10 --peers none --timed 0
      skipstone bench --out bench --resume
      skipstone bench --model org/name --prompts PartiPrompts.tsv --limit 100
    """
    from rich.console import Console

    from ..benchmark import Benchmark
    from ..report import write_report

    console = Console(stderr=True)
    said = _resolve_options(context, out, resume)
    with console.status("Looking the model up ..."):
        subject = _model_choice(said).subject()
        planned = Benchmark.from_settings(subject, _bench_settings(said))
    for name, why in planned.absent:
        console.print(f"{name} is left out: {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            planned.run(out, resume, shlex.join(["skipstone", *sys.argv[1:]]), said, on_progress)
    except KeyboardInterrupt:
        again = shlex.join(["skipstone", "bench", "--out", str(out), "--resume"])
        console.print(f"Stopped. What is done is kept; {again} goes on.", markup=False, highlight=False, soft_wrap=True)
        raise
    with console.status("Writing the report ..."):
        written = write_report(out)
    _show(written)


def report(folder: Annotated[Path, typer.Argument(help="The --out of skipstone bench.")] = Path("bench")) -> None:
    """Write the report of a benchmark again, from its records.

    [bold]Examples[/bold]

      skipstone report bench
    """
    from ..report import write_report

    _show(write_report(folder))


def _resolve_options(context: typer.Context, out: Path, resume: bool) -> dict[str, Any]:
    """The options; of a resumed run those of its first start, unless they are said again."""
    said = {name: str(v) if isinstance(v, Path) else v for name, v in context.params.items() if name != "context"}
    if not resume:
        return said
    from ..store import Store

    sources = {name: context.get_parameter_source(name) for name in said}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    stored = Store.load(out).header.options
    return {name: said[name] if name in given or name not in stored else stored[name] for name in said}


def _model_choice(said: Mapping[str, Any]) -> options.ModelChoice:
    """The model, always in its pipeline, so that peers and policies run in one loop."""
    return options.ModelChoice(
        said["model"], said["guidance"], said["settings"] or (), None, said["device"], said["dtype"], as_guest=True
    )


def _bench_settings(said: Mapping[str, Any]) -> Any:
    from ..benchmark import BenchSettings

    names = {field.name for field in dataclasses.fields(BenchSettings)}
    settings_fields = {name: value for name, value in said.items() if name in names and value is not None}
    settings_fields["limit"] = said["limit"] or None
    settings_fields["categories"] = said["category"] or None
    if said["budget"]:
        settings_fields["budgets"] = said["budget"]
    return BenchSettings(**settings_fields)


def _show(written: list[Path]) -> None:
    """The table, and where everything is."""
    from rich.console import Console

    console = Console()
    for path in written:
        if path.name == "table.md":
            console.print(path.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
