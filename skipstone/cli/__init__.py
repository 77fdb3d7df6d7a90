"""The command line, `skipstone COMMAND`: one file for each command; other packages add theirs by entry points."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import MissingPackage, SkipstoneError, TargetMissedError
from ..satellites import install_hint, list_entry_points
from . import calibrate, check, compare, doctor, estimate, explain, generate, latency, listing, serve, tune
from .garbage import rare_collections
from .tracking import fetch_registered


class Commands(TyperGroup):
    """The commands in this order, those of packages last; of one whose package is missing, what to install."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        return super().parse_args(ctx, [fetch_registered(_today(word)) for word in args])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and (hint := install_hint("command", cmd_name)):
            raise MissingPackage(f"skipstone {cmd_name} {hint}.")
        return found


RENAMED = {"--policies": "--policy", "--setting": "--policy"}  # options of 0.1.0, which work for one more release


def _today(word: str) -> str:
    """An option as it is called today; of an old name, a notice on stderr."""
    name, equals, value = word.partition("=")
    if name not in RENAMED:
        return word
    print(f"skipstone: {name} is now {RENAMED[name]}; the old form works for one more release.", file=sys.stderr)
    return f"{RENAMED[name]}{equals}{value}"


app = typer.Typer(
    cls=Commands,
    name="skipstone",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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
      skipstone doctor
      skipstone generate "a red apple on a blue background"
      skipstone compare "a cat" "a cat above a bus" -p balanced -p fewer
      skipstone calibrate --prompts pebble-tuning \\
        --target "psnr >= 30 @ 90%" --out mine
      skipstone train agent --minutes 10 \\
        --config examples/configs/agent_pebble.yaml
      skipstone list policies

    Every command tells more with -h.
    """


for command in (
    generate.generate,
    compare.compare,
    estimate.estimate,
    calibrate.calibrate,
    calibrate.audit,
    tune.tune,
    latency.latency,
    explain.explain,
    serve.serve,
    check.check,
    doctor.doctor,
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
            app(prog_name="skipstone")
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
