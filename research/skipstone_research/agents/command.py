"""`skipstone evaluate`: what was claimed of agents, decided on scores of single samples."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.cli.grouping import grouped
from skipstone.cli.progress import print_warnings, progress_bar
from skipstone.settings import MAX_STEPS

if TYPE_CHECKING:
    from skipstone_bench.store import Store

    from .report import VerdictReport

app = typer.Typer(
    name="evaluate",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Decide what was claimed, on scores of single samples.",
)


@dataclass(frozen=True)
class SampleOptions:
    """What is drawn."""

    prompts: Annotated[
        str, typer.Option(help="That no agent was trained on: a file, or a set.", metavar="FILE|SET")
    ] = "pebble"
    prompt_format: options.FormatOption = None
    limit: options.LimitOption = 48
    seeds: Annotated[int, options.number(least=1, most=options.MAX_COUNT, help="Samples of each prompt.")] = 1
    seed: options.SeedOption = 0


@dataclass(frozen=True)
class RivalOptions:
    """At which prices the agents play, and against what."""

    price: Annotated[
        list[float] | None,
        options.number(
            least=0,
            most=1_000,
            help="dB a call; the first is judged. The first agent's middle one by default. Repeat it.",
        ),
    ] = None
    full: Annotated[str, typer.Option(help="The full run that quality is held against, as a column.")] = (
        "fixed @ ddim / trailing / 50"
    )
    rule: Annotated[
        list[str] | None,
        typer.Option(help="A rival that adapts without learning, as a column; stride by default. Repeat it."),
    ] = None
    calls: Annotated[
        list[int] | None,
        options.number(
            least=1, most=MAX_STEPS, help="Of fixed samplers, besides those next to the agents'. Repeat it."
        ),
    ] = None
    grids: Annotated[
        list[str] | None,
        typer.Option(help="The --out of skipstone tune: more fixed schedules to beat. Repeat it.", metavar="DIR"),
    ] = None
    converged: Annotated[
        list[str] | None,
        typer.Option(help="A run that has converged, and another that confirms it. Two of them.", show_default=False),
    ] = None


@dataclass(frozen=True)
class ScoreFiles:
    """Scores that were made elsewhere."""

    oracle: Annotated[
        Path | None, typer.Option(help="Scores that knew each sample's outcome, as JSON Lines.", metavar="FILE")
    ] = None
    ceiling: Annotated[
        Path | None, typer.Option(help="Scores of the best that the agent's signals allow.", metavar="FILE")
    ] = None
    refine: Annotated[
        Path | None, typer.Option(help="Scores of refining, as research/agents/refine.py writes them.", metavar="FILE")
    ] = None
    transfer: Annotated[
        Path | None, typer.Option(help="The --out of an evaluation on another model.", metavar="DIR")
    ] = None


@app.command()
@grouped
def agent(
    context: typer.Context,
    out: Annotated[Path, options.folder()],
    samples: SampleOptions,
    rivals: RivalOptions,
    scores: ScoreFiles,
    agents: Annotated[
        list[str] | None,
        typer.Argument(help="Folders of skipstone train agent, one for each training.", metavar="PATH..."),
    ] = None,
    model: options.ModelOption = "pebble",
    guidance: options.GuidanceOption = None,
    batch: options.BatchOption = 8,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out was left; say nothing else.")] = False,
    settings: options.SettingsOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "auto",
    as_guest: options.AsGuestOption = False,
) -> None:
    """Race agents against what they have to beat, and decide H1 to H4.

    H1: as good as the full run at 20 calls or fewer. H2: closer to the converged
    picture than the best fixed schedule at the same mean calls. H3: calls follow
    the prompt. H4: refining beats more steps. And how much of the gap to an
    oracle is closed. Agents, rules, fixed samplers and fixed schedules really
    run on the model; every sample's scores are kept, and tests are made on them
    alone: paired by sample, Holm-corrected, never on means.

    Writes hypotheses.html, .md and .json, and the report of [bold]skipstone bench[/bold]
    beside it. After Ctrl-C, [bold]--resume[/bold] goes on; it also writes the reports
    again, with --oracle, --refine and the like as they are said then.

    [bold]Examples[/bold]

      skipstone evaluate agent mine --out verdicts
      skipstone evaluate agent seed-0 seed-1 seed-2 seed-3 seed-4 --price 1 \\
        --limit 48 --grids grids --oracle oracle/oracle-1.jsonl --out verdicts
      skipstone evaluate agent mine --out verdicts --resume --refine refine.json
    """
    from skipstone_bench.cli.resume import resolve_options

    _evaluate(resolve_options(context, agent, out, resume), out, resume)


def _evaluate(given: Mapping[str, Any], out: Path, resume: bool) -> None:
    """Run what these options ask for, and write the reports."""
    from rich.console import Console

    from skipstone_bench import report as bench

    from . import report

    console = Console(stderr=True)
    files = {f.name: None if given[f.name] is None else Path(given[f.name]) for f in dataclasses.fields(ScoreFiles)}
    _refuse_missing(files.values())
    command = shlex.join(["skipstone", *sys.argv[1:]])
    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            store = _run_evaluation(given, out, resume, command, on_progress)
    except KeyboardInterrupt:
        again = shlex.join(["skipstone", "evaluate", "agent", "--out", str(out), "--resume"])
        console.print(f"Stopped. What is done is kept; {again} goes on.", markup=False, highlight=False, soft_wrap=True)
        raise
    with console.status("Writing the reports ..."):
        found, written = report.write_report(out, **files, command=command)
        written += bench.write_report(out)
    _print_verdicts(found, written, store)


def _refuse_missing(files: Iterable[Path | None]) -> None:
    """Before anything is drawn."""
    from skipstone.errors import BenchError

    for path in files:
        if path is not None and not path.exists():
            raise BenchError(f"{path} is not there.")


def _run_evaluation(given: Mapping[str, Any], out: Path, resume: bool, command: str, on_progress: Any) -> Store:
    from skipstone.evaluation.prompts import describe_prompts, load_prompts
    from skipstone.evaluation.references import EvaluationSample

    from .evaluation import Evaluation, EvaluationSettings

    model = options.ModelOptions(
        given["model"], given["settings"], None, given["device"], given["dtype"], given["as_guest"]
    )
    subject = model.subject(given["guidance"])
    found = load_prompts(given["prompts"], limit=given["limit"] or None, prompt_format=given["prompt_format"])
    subject.check([prompt.text for prompt in found])
    numbers = list(range(given["seed"], given["seed"] + given["seeds"]))
    eval_samples = [EvaluationSample(prompt, number) for prompt in found for number in numbers]
    plural = {"price": "prices", "rule": "rules"}
    known = {field.name for field in dataclasses.fields(EvaluationSettings)}
    values = {"agents": [], **{plural.get(name, name): value for name, value in given.items() if value is not None}}
    settings: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in known}
    about = {**describe_prompts(given["prompts"], found), "seeds": numbers}
    return Evaluation(subject, EvaluationSettings(**settings), eval_samples, about).run(
        out, resume, command, given, on_progress
    )


def _print_verdicts(found: VerdictReport, written: list[Path], store: Store) -> None:
    """The verdicts, and where everything is."""
    from .report import VERDICT_WORDS

    for verdict in (*found.hypotheses, *found.gates):
        typer.echo(f"{verdict.name:18} {VERDICT_WORDS[verdict.holds]:14} {verdict.why}")
    for info in store.header.rows:
        if info.note:
            typer.echo(f"{info.label}: {info.note}")
    for path in written:
        typer.echo(str(path))
