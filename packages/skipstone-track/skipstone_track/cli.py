"""`skipstone runs`: results in MLflow, two runs side by side, and the registry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipstone.cli.progress import show_status

if TYPE_CHECKING:
    from .compare import MetricComparison

app = typer.Typer(
    name="runs",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Log results to MLflow, compare two runs, register what was made.",
)

TargetOption = Annotated[
    str,
    typer.Option("--track", help="mlflow (MLFLOW_TRACKING_URI, or sqlite:///mlflow.db), or a URI.", metavar="URI"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LONGEST = 80  # characters of a value that the table shows; --json has all
FOLDERS = "The --out of bench, calibrate, tune, distill or train agent."


@app.command()
def upload(folders: Annotated[list[Path], typer.Argument(help=FOLDERS)], track: TargetOption = "mlflow") -> None:
    """Log folders of results to MLflow: settings, figures, prompts and files.

    Every row of a benchmark, and every setting of a calibration, is a nested
    run. A folder is logged once; after a change of its files, again.

    [bold]Examples[/bold]

      skipstone runs upload bench mine
      skipstone runs upload bench --track http://localhost:5000
    """
    from rich.console import Console

    from .tracker import MlflowTracker

    tracker = MlflowTracker(track)
    for folder in folders:
        with show_status(Console(stderr=True), f"Logging {folder} ..."):
            logged = tracker.log_folder(folder)
        typer.echo(f"{folder}: {'logged' if logged.new else 'was logged before'} as {logged.run_id}")
    typer.echo(f"See it: {logged.shown}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A folder of results.")],
    b: Annotated[Path, typer.Argument(help="Another one of the same kind.")],
    row: Annotated[str | None, typer.Option(help="Of A, and of B without --other-row.", show_default=False)] = None,
    other_row: Annotated[str | None, typer.Option(help="Of B.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two runs, and whether the difference is real.

    Settings, versions and prompts that differ come first. Of benchmarks, rows
    are compared on the samples that both runs have: median difference with an
    interval of 95 %, and Wilcoxon's signed-rank test over prompts, corrected
    by Holm for the number of tests. "real" is p < 0.05 after the correction.

    [bold]Examples[/bold]

      skipstone runs compare bench-before bench-after
      skipstone runs compare bench bench --row balanced --other-row fast
    """
    from .compare import compare_samples, settings_that_differ
    from .readers import read_folder

    first, second = read_folder(a), read_folder(b)
    settings = settings_that_differ(first, second)
    wanted = (first.samples and second.samples) or row or other_row
    found = compare_samples(first, second, row, other_row) if wanted else []
    if as_json:
        metrics = [{"row": m.row, "metric": m.metric, "p": m.p, "real": m.is_real, **asdict(m.found)} for m in found]
        typer.echo(json.dumps({"settings": settings, "metrics": metrics}, indent=1))
        return
    _print_settings(settings)
    _print_metrics(found)
    if not found:
        typer.echo("No figures of single samples are stored in both: only settings are compared.")


def _print_settings(settings: Sequence[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not settings:
        typer.echo("Settings, versions and prompts are the same.")
        return
    table = Table(title="What differs", box=None, title_justify="left")
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold")
    for line in settings:
        table.add_row(*(Text(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...") for text in line))
    Console().print(table)


def _print_metrics(found: Sequence[MetricComparison]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found:
        return
    table = Table(title="A minus B on the same samples", box=None, title_justify="left")
    for name in ("row", "metric", "prompts", "median", "95 %", "p (Holm)", ""):
        table.add_column(name, overflow="fold", justify="left" if name in ("row", "metric", "") else "right")
    for one in found:
        span = one.found.median
        cells = [one.row, one.metric, str(one.found.n), f"{span.value:+.4g}", f"{span.low:+.4g} .. {span.high:+.4g}"]
        table.add_row(*map(Text, [*cells, f"{one.p:.3g}", "real" if one.is_real else "not shown"]))
    Console().print(table)


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="A pipeline, a calibrated policy, a student or an agent.")],
    name: Annotated[str, typer.Argument(help="What it is called in the registry.")],
    alias: Annotated[str | None, typer.Option(help="Of this version, such as challenger.", show_default=False)] = None,
    track: TargetOption = "mlflow",
) -> None:
    """Register a folder as a new version of a name, with SHA-256 sums and lineage.

    Every command takes models:/NAME@ALIAS or models:/NAME/VERSION in place of
    a folder, and refuses files that are not those that were registered.

    [bold]Examples[/bold]

      skipstone runs register mine fast --alias challenger
      skipstone generate "a cat" --policy models:/fast@challenger
    """
    from .registry import register as run

    version = run(folder, name, alias, track)
    names = "".join(f" @{one}" for one in version.aliases)
    typer.echo(f"models:/{name}/{version.number}{names}: {version.kind}, sha256 {version.digest[:16]}")


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Registered.")],
    version: Annotated[str, typer.Argument(help="Its number, or an alias of it.")],
    alias: Annotated[str, typer.Option(help="The alias that moves.")] = "champion",
    track: TargetOption = "mlflow",
) -> None:
    """Move an alias to a version, once its files are found to be unchanged.

    [bold]Examples[/bold]

      skipstone runs promote fast challenger
      skipstone runs promote fast 1
    """
    from .registry import promote as run

    found = run(name, version, alias, track)
    typer.echo(f"models:/{name}@{alias} is version {found.number}")


@app.command()
def registered(
    name: Annotated[str | None, typer.Argument(help="Of all names by default.", show_default=False)] = None,
    track: TargetOption = "mlflow",
    as_json: JsonOption = False,
) -> None:
    """List what is registered: versions, aliases, kinds, sums.

    [bold]Examples[/bold]

      skipstone runs registered
    """
    from .registry import versions

    found = versions(name, track)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    for one in found:
        names = "".join(f" @{alias}" for alias in one.aliases)
        typer.echo(f"models:/{one.name}/{one.number}{names}  {one.kind}  sha256 {one.digest[:16]}")
    if not found:
        typer.echo("Nothing is registered. Type: skipstone runs register FOLDER NAME")
