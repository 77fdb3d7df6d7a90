"""`skipstone bench` and `skipstone report`: every policy against what a sceptic would try first."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.cli.grouping import grouped
from skipstone.cli.progress import print_warnings, progress_bar, show_status
from skipstone.cli.ray_options import RayOptions
from skipstone.cli.tracking import tracked
from skipstone.settings import MAX_STEPS

if TYPE_CHECKING:
    from rich.console import Console

    from ..benchmark import Benchmark, BenchSettings


@dataclass(frozen=True)
class PromptOptions:
    """What is generated."""

    prompts: Annotated[
        str, typer.Option(help="A file of prompts, or a set. Pebble's own by default.", metavar="FILE|SET")
    ] = "pebble"
    tuning: Annotated[
        str,
        typer.Option(help="What baselines are tuned on; other prompts of the same set by default.", metavar="FILE|SET"),
    ] = ""
    prompt_format: options.FormatOption = None
    limit: options.LimitOption = 32
    category: Annotated[list[str] | None, typer.Option(help="Keep only these. Repeat it.")] = None
    tuned: Annotated[int, options.number(least=1, most=options.MAX_COUNT, help="Prompts to tune on.")] = 8
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Test rows on prompts that they were made with, too.")
    ] = False


@dataclass(frozen=True)
class RowOptions:
    """What is compared, and by which metrics."""

    policies: Annotated[
        list[str] | None,
        options.policies("A row: 'policy @ solver / grid / steps', a set (addiffusion), or none. Repeat it."),
    ] = None
    peers: Annotated[
        list[str] | None, typer.Option(help="A peer's spec, or none; all of them by default. Repeat it.")
    ] = None
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Only these; all that can be taken by default. Repeat it.")
    ] = None


@dataclass(frozen=True)
class ReferenceOptions:
    """What rows are compared with, besides the sampler of the full run."""

    reference: Annotated[str, typer.Option(help="The full run that closeness is measured to, as a column.")] = "fixed"
    converged: Annotated[
        list[str] | None,
        typer.Option(help="A run that has converged, and another that confirms it. Two of them.", show_default=False),
    ] = None


@dataclass(frozen=True)
class MeasurementOptions:
    """How much is run."""

    batch: options.BatchOption = 8
    timed: Annotated[
        int,
        options.number(
            least=0, most=options.MAX_COUNT, help="Samples whose seconds are taken, one by one; 0 takes none."
        ),
    ] = 4
    repeats: Annotated[int, options.number(least=1, most=1_000, help="Times that seconds are taken.")] = 5
    searched: Annotated[
        int,
        options.number(least=0, most=options.MAX_COUNT, help="Tuning prompts to search the best common mask on."),
    ] = 4
    oracle: Annotated[
        int,
        options.number(
            least=0, most=options.MAX_COUNT, help="Samples to search the best mask of: hundreds of runs each."
        ),
    ] = 0


@dataclass(frozen=True)
class SampleOptions:
    """How many samples of a prompt, and at how many calls rows are compared."""

    seeds: Annotated[int, options.number(least=1, most=options.MAX_COUNT, help="Samples of each prompt.")] = 1
    seed: options.SeedOption = 0
    budget: Annotated[
        list[int] | None,
        options.number(
            least=1,
            most=MAX_STEPS,
            help="Calls to compare at; 10, 15, 20 and 25 by default. Repeat it.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """Where results are, and whether a run goes on."""

    out: Annotated[Path, options.folder()] = Path("bench")
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out was left; say nothing else.")] = False


@dataclass(frozen=True)
class PipelineOptions:
    """How the model is run: in its pipeline, or on MLX in the engine."""

    settings: options.SettingsOption = None
    device: options.DeviceOption = None
    dtype: options.DtypeOption = "float32"
    backend: options.BackendOption = "torch"
    bits: options.BitsOption = None
    memory_limit: options.MemoryLimitOption = None


@tracked
@grouped
def bench(
    context: typer.Context,
    *,
    model: options.ModelOption = "pebble",
    prompts: PromptOptions,
    rows: RowOptions,
    samples: SampleOptions,
    sampler: options.SamplerOptions,
    reference: ReferenceOptions,
    measurement: MeasurementOptions,
    output: OutputOptions,
    pipeline: PipelineOptions,
    spread: RayOptions,
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

    from ..report import write_report
    from .resume import resolve_options

    console = Console(stderr=True)
    # Options are read from the context: a resumed run has those of its first start, unless they are given again.
    values = resolve_options(context, bench, output.out, output.resume)
    with show_status(console, "Looking the model up ..."):
        planned = _plan(values)
    for name, why in planned.absent:
        console.print(f"{name} is left out: {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _run(planned, output, values, console)
    with show_status(console, "Writing the report ..."):
        written = write_report(output.out)
    _show(written)


def report(folder: Annotated[Path, typer.Argument(help="The --out of skipstone bench.")] = Path("bench")) -> None:
    """Write the report of a benchmark again, from its records.

    [bold]Examples[/bold]

      skipstone report bench
    """
    from ..report import write_report

    _show(write_report(folder))


def _plan(values: Mapping[str, Any]) -> Benchmark:
    """The benchmark of these options: the model in its pipeline, so that peers and policies run in one loop.

    On MLX it is the engine's loop, in which no peers run.
    """
    from skipstone.errors import SpecError

    from ..benchmark import NONE, Benchmark

    run_on = options.BackendOptions(values["backend"], values["bits"], values["memory_limit"])
    on_mlx = run_on.choose(values["model"]) == "mlx"
    spread = RayOptions(values["ray"], values["workers"])
    if (on_mlx or spread.ray) and list(values["peers"] or ()) != [NONE]:
        why = "which run on torch: with MLX" if on_mlx else "and their work is counted in this process: with --ray"
        raise SpecError(f"Peers accelerate pipelines of diffusers, {why} add --peers none.")
    model = options.ModelOptions(
        values["model"], values["settings"], None, values["device"], values["dtype"], as_guest=not on_mlx
    )
    subject = spread.spread(partial(model.subject, values["guidance"], run_on if on_mlx else None))
    return Benchmark.from_settings(subject, _bench_settings(values))


def _bench_settings(values: Mapping[str, Any]) -> BenchSettings:
    from ..benchmark import BenchSettings

    named = {name: value for name, value in values.items() if value is not None}
    named |= {"limit": values["limit"] or None, "categories": values["category"] or None}
    if values["budget"]:
        named["budgets"] = values["budget"]
    return BenchSettings.from_options(named)


def _run(planned: Benchmark, output: OutputOptions, values: Mapping[str, Any], console: Console) -> None:
    """Run it; Ctrl-C prints how to go on."""
    from .resume import spell_policies

    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            planned.run(output.out, output.resume, shlex.join(["skipstone", *sys.argv[1:]]), values, on_progress)
    except KeyboardInterrupt:
        again = shlex.join(["skipstone", "bench", "--out", str(output.out), "--resume", *spell_policies(values)])
        console.print(f"Stopped. What is done is kept; {again} goes on.", markup=False, highlight=False, soft_wrap=True)
        raise


def _show(written: list[Path]) -> None:
    """The table, and where everything is."""
    from rich.console import Console

    console = Console()
    for path in written:
        if path.name == "table.md":
            console.print(path.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
