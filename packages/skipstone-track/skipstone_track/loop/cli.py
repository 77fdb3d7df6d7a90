"""`skipstone loop`: draw, tune, calibrate, verify, register, deploy, audit, and again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.satellites import require_module

if TYPE_CHECKING:
    from .loop import Loop
    from .records import RoundRecord
    from .settings import LoopSettings

app = typer.Typer(
    name="loop",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Keep a served model fast: calibrate, verify, register, deploy, audit, and again.",
)
FileArgument = Annotated[Path, typer.Argument(help="The YAML file of the loop.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MAX_ROUNDS = 1_000_000
MAX_VERSION = 1_000_000
SHOWN = 5  # rounds that `status` shows


@app.command()
def run(
    file: FileArgument,
    rounds: Annotated[
        int | None,
        options.number(least=1, most=MAX_ROUNDS, help="Rounds; those of the file by default.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the rounds of a loop: what each step finds is said, and kept.

    A round draws (divides the prompts, and draws some in full), tunes or distils,
    calibrates, verifies on held-out prompts, registers what passed, deploys it
    while the server draws, and audits what the server answers. A step whose
    inputs (weights, prompts, settings, what came before) are those of an earlier
    run is not run again. After Ctrl-C the same command goes on.

    Exit codes: 3, the last round found nothing that it may promise; 4, its audit
    raised the alarm.

    [bold]Examples[/bold]

      skipstone loop run examples/loop/loop.yaml
      skipstone loop run examples/loop/loop.yaml --rounds 24
    """
    from .loop import open_loop
    from .records import ALARM, FAILED
    from .settings import load_loop

    _require()
    settings = load_loop(file)
    with open_loop(settings, _say(as_json)) as loop:
        found = _run_rounds(loop, rounds or settings.rounds)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
    _show_end(settings, as_json)
    if code := {FAILED: 3, ALARM: 4}.get(found[-1].status, 0):
        raise typer.Exit(code)


def _run_rounds(loop: Loop, rounds: int) -> list[RoundRecord]:
    from .records import ALARM, STOPPED

    found: list[RoundRecord] = []
    try:
        for k in range(rounds):
            found.append(loop.run_round())
            mended = found[-1].status == ALARM and any(e.new for e in found[-1].steps if e.step == "calibrate")
            if k + 1 < rounds and not mended:
                time.sleep(60 * loop.settings.pause)
    except KeyboardInterrupt:
        loop.say(f"Stopped ({STOPPED}). What was done is kept in {loop.settings.folder}; the same command goes on.")
        raise
    return found


def _say(quiet: bool) -> Any:
    return lambda line: typer.echo(line, err=quiet)


def _show_end(settings: LoopSettings, quiet: bool) -> None:
    from .page import PAGE
    from .tracking import LoopTracker

    say = _say(quiet)
    say(f"{settings.place / PAGE}  every round and step")
    say(f"{LoopTracker(settings, say).shown}  the same as runs, and what is registered")


@app.command()
def status(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show the rounds of a loop, what is deployed, and what MLflow is not told yet.

    [bold]Examples[/bold]

      skipstone loop status examples/loop/loop.yaml
      skipstone loop status examples/loop/loop.yaml --json
    """
    from .pending import read_pending
    from .records import read_rounds
    from .release import find_champion
    from .settings import load_loop

    _require()
    settings = load_loop(file)
    rounds, waiting, champion = read_rounds(settings.place), read_pending(settings.place), find_champion(settings)
    unlogged = [one.number for one in rounds if not one.logged]
    if as_json:
        about = {
            "rounds": [asdict(one) for one in rounds],
            "champion": asdict(champion) if champion else None,
            "pending": [asdict(one) for one in waiting],
            "not logged": unlogged,
        }
        typer.echo(json.dumps(about, indent=1))
        return
    _print_rounds(settings, rounds)
    alias = settings.register.alias
    registered = f"models:/{champion.name}/{champion.number}, sha256 {champion.digest[:16]}" if champion else "none"
    typer.echo(f"@{alias}: {registered}")
    if waiting or unlogged:
        typer.echo(
            f"MLflow is not told yet: {len(waiting)} versions, rounds {', '.join(map(str, unlogged)) or 'none'}. "
            f"Type: skipstone loop upload {file}"
        )


def _print_rounds(settings: LoopSettings, rounds: Sequence[RoundRecord]) -> None:
    if not rounds:
        typer.echo("No round has begun. Type: skipstone loop run FILE")
    for one in rounds[-SHOWN:]:
        steps = ", ".join(entry.step if entry.new else f"({entry.step})" for entry in one.steps)
        typer.echo(f"Round {one.number}, {one.started}, {one.status}, {one.seconds:.0f} s: {steps}")
        if one.words:
            typer.echo(f"  {one.words}")
    if rounds:
        typer.echo("In brackets: not run again, since nothing that they depend on was changed.")


@app.command()
def upload(file: FileArgument) -> None:
    """Log and register what MLflow could not be told while it was down.

    [bold]Examples[/bold]

      skipstone loop upload examples/loop/loop.yaml
    """
    from skipstone.evaluation.folder_lock import lock_folder

    from .records import close_rounds
    from .settings import load_loop
    from .tracking import LoopTracker

    _require()
    settings = load_loop(file)
    with lock_folder(settings.place, "folder"):
        close_rounds(settings.place)
        done = LoopTracker(settings, typer.echo).sync(patient=True)
    if not done:
        raise typer.Exit(1)
    typer.echo("MLflow has all of it.")


@app.command()
def rollback(
    file: FileArgument,
    version: Annotated[
        int | None,
        options.number(least=1, most=MAX_VERSION, help="Its number; the one before by default.", show_default=False),
    ] = None,
) -> None:
    """Go back to an older version: move the alias, and put its files in place.

    Weights and certificates of the older version come back together. A server
    that others have started reads them at once; one of the loop's own, when the
    loop runs again.

    [bold]Examples[/bold]

      skipstone loop rollback examples/loop/loop.yaml
      skipstone loop rollback examples/loop/loop.yaml --version 1
    """
    from skipstone.evaluation.folder_lock import lock_folder

    from .rollback import roll_back
    from .settings import load_loop

    _require()
    settings = load_loop(file)
    with lock_folder(settings.place, "folder"):
        roll_back(settings, version, typer.echo)


def _require() -> None:
    for module in ("yaml", "pydantic", "dagster", "httpx", "fastapi"):
        require_module(module, "loop")
