"""The command line, `skipstone COMMAND`: one file for each command, but for reports, which benchmarks write."""

from __future__ import annotations

import sys

import typer

from .. import __version__
from ..errors import SkipstoneError, TargetMissed
from . import bench, calibrate, check, compare, demo, evaluate, explain, generate, listing, prefer, train, tune

app = typer.Typer(
    name="skipstone",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"skipstone {__version__}")
        raise typer.Exit


@app.callback()
def skipstone(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it and leave."),
) -> None:
    """Makes pretrained diffusion models faster by adapting each run to its prompt.

    [bold]Start here[/bold]

      skipstone demo
      skipstone generate "a red apple on a blue background"
      skipstone compare "a cat" "a cat above a bus" -p third_order -p fewer
      skipstone calibrate --prompts pebble-tuning --target "psnr >= 30 @ 90%" --out mine
      skipstone train agent --config configs/agent_pebble.yaml --minutes 10
      skipstone list policies

    Every command tells more with --help.
    """


for command in (
    generate.generate,
    compare.compare,
    calibrate.calibrate,
    calibrate.audit,
    tune.tune,
    bench.bench,
    bench.report,
    prefer.prefer,
    demo.demo,
    explain.explain,
    check.check,
):
    app.command()(command)
app.command("list")(listing.listing)
app.add_typer(train.app)
app.add_typer(evaluate.app)


def main() -> None:
    """Entry point: what goes wrong on purpose is one sentence on stderr and exit code 2; Ctrl-C is 130.

    A target that no setting meets is 3, and the alarm of an audit 4.
    """
    try:
        app()
    except TargetMissed as e:
        print(f"skipstone: {e}", file=sys.stderr)
        sys.exit(3)
    except SkipstoneError as e:
        print(f"skipstone: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
