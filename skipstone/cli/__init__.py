"""The command line, `skipstone COMMAND`: one file for each command; other packages add theirs by entry points."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import MissingPackage, SkipstoneError, TargetMissedError
from ..satellites import install_hint, list_entry_points
from . import calibrate, check, compare, explain, generate, listing, tune
from .garbage import rare_collections


class Commands(TyperGroup):
    """The commands in this order, those of packages last; of one whose package is missing, what to install."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and (hint := install_hint("command", cmd_name)):
            raise MissingPackage(f"skipstone {cmd_name} {hint}.")
        return found


app = typer.Typer(
    cls=Commands,
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
      skipstone train agent --config examples/configs/agent_pebble.yaml --minutes 10
      skipstone list policies

    Every command tells more with --help.
    """


for command in (
    generate.generate,
    compare.compare,
    calibrate.calibrate,
    calibrate.audit,
    tune.tune,
    explain.explain,
    check.check,
):
    app.command()(command)
app.command("list")(listing.listing)
for point in list_entry_points("commands"):
    brought = point.load()
    if isinstance(brought, typer.Typer):
        app.add_typer(brought)
    else:
        app.command(point.name)(brought)


def main() -> None:
    """Entry point: an error of ours or of the file system is one sentence on stderr and exit code 2; Ctrl-C is 130.

    A target that no setting meets is 3, and the alarm of an audit 4.
    """
    try:
        with rare_collections():
            app()
    except TargetMissedError as e:
        print(f"skipstone: {e}", file=sys.stderr)
        sys.exit(3)
    except SkipstoneError as e:
        print(f"skipstone: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:  # a disk that is full, a name that is too long, a folder that cannot be read
        what = str(e.filename)[:200] if e.filename else "A file cannot be read or written"
        print(f"skipstone: {what}: {e.strerror or e}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
