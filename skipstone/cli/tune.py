"""`skipstone tune`: the best grids for a model, found by looking at its own runs."""

from __future__ import annotations

import datetime
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluation.limits import MAX_STEPS
from ..satellites import require_module
from . import options
from .grouping import grouped
from .progress import print_warnings, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ..evaluation.progress import ProgressCallback
    from ..evaluation.references import EvaluationSample
    from ..evaluation.subject import Subject
    from ..tuning.search import TimeGridSearch, TuningResult, TuningSettings


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search: what is searched for, and how."""

    calls: Annotated[
        list[int] | None,
        options.number(
            least=1,
            most=MAX_STEPS,
            help="Calls of a grid; 10, 15, 20 and 25 by default. Repeat it.",
            show_default=False,
        ),
    ] = None
    limit: options.LimitOption = 24
    check: Annotated[
        str, typer.Option(help="Prompts to check the grids on; the tuning prompts by default.", metavar="FILE|SET")
    ] = ""
    fine: Annotated[
        int, options.number(least=2, most=MAX_STEPS, help="Steps of the runs that are taken for exact.")
    ] = 200
    refine: Annotated[
        int, options.number(least=0, most=1_000, help="Sweeps of moving single places, by what it really does.")
    ] = 0
    rivals: Annotated[bool, typer.Option(help="Run fixed samplers and stride beside.")] = True

    def settings(self, seed: int, batch: int) -> TuningSettings:
        """The options as the search's settings."""
        from ..tuning.search import CALLS, TuningSettings

        calls = tuple(sorted(set(self.calls or CALLS)))
        return TuningSettings(calls, self.fine, self.refine, batch, seed, self.rivals)


@grouped
def tune(
    prompts: Annotated[str, typer.Option(help="What to tune on: a file, or a set.", metavar="FILE|SET")],
    out: Annotated[Path, options.folder()],
    model: options.ModelOptions,
    wanted: SearchOptions,
    guidance: options.GuidanceOption = None,
    seed: options.SeedOption = 0,
    batch: options.BatchOption = 8,
    force: options.ForceOption = False,
) -> None:
    """Find the best times to call a model at, for given numbers of calls.

    Draws the tuning prompts in 200 small steps and computes from them the error
    of every longer step; measures, by making some, how much of an error is
    left in the picture, which differs a hundredfold between the beginning and
    the end; and finds the grid of so many calls that leaves the least. Each
    grid then really runs, beside fixed samplers and [bold]stride[/bold] of as many calls.
    A grid is the same for all prompts, and for this model and guidance alone.

    Costs about 1400 calls a prompt, and is kept: after Ctrl-C, or with
    other --calls and --force, the same command goes on from what is there.

    [bold]Examples[/bold]

      skipstone tune --prompts pebble-tuning --out grids
      skipstone generate "a red apple" --policy grids/path-15
      skipstone compare "a red apple" -p grids/path-10 -p "stride @ 50" -p fewer
      skipstone tune --model org/name --prompts prompts.txt --limit 8 \\
        --fine 100 --calls 12 --calls 20 --out grids
    """
    from rich.console import Console

    from ..tuning.report import report_files, write_report
    from .files import check_targets

    require_module("matplotlib", "plot")
    console = Console(stderr=True)
    settings = wanted.settings(seed, batch)
    check_targets(report_files(out, settings.calls), force)
    with console.status("Looking the model up ..."):
        subject = model.subject(guidance)
    tuning = _samples(prompts, wanted.limit, seed)
    checked = _samples(wanted.check, wanted.limit, seed + CHECKED) if wanted.check else []
    _check_prompts([*tuning, *checked], subject, console)
    search, found = _run(subject, settings, tuning, checked, out, console)
    written = write_report(found, out, _about(search, prompts, wanted.check))
    _show(found, out, written, bool(wanted.check))


ENOUGH = 12  # prompts: on Pebble, grids of 8 calls found on 4 were worse than even ones on others
CHECKED = 10_000  # added to the seeds of the check, so that no noise is in both


def _samples(source: str, limit: int, seed: int) -> list[EvaluationSample]:
    from ..evaluation.prompts import load_prompts
    from ..evaluation.references import EvaluationSample

    found = load_prompts(source, limit=limit or None, seed=0)
    return [EvaluationSample(prompt, seed + k) for k, prompt in enumerate(found)]


def _check_prompts(eval_samples: Sequence[EvaluationSample], subject: Subject, console: Console) -> None:
    from .prompts import check_prompts

    check_prompts([eval_sample.prompt.text for eval_sample in eval_samples], subject, console)


def _run(
    subject: Subject,
    settings: TuningSettings,
    tuning: Sequence[EvaluationSample],
    checked: Sequence[EvaluationSample],
    out: Path,
    console: Console,
) -> tuple[TimeGridSearch, TuningResult]:
    """The search and what it found, its progress and its notes on the console."""
    if len(tuning) < ENOUGH:
        _print(console, f"{len(tuning)} prompts are few: what is best for them may be bad for others. Say --limit 24.")
    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            search = _search(subject, settings, tuning, checked, out, on_progress)
            found = search.run()
    except KeyboardInterrupt:
        _print(console, f"Stopped. What is drawn is kept in {out}; the same command goes on.")
        raise
    for note in dict.fromkeys(search.notes):
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return search, found


def _search(
    subject: Subject,
    settings: TuningSettings,
    tuning: Sequence[EvaluationSample],
    checked: Sequence[EvaluationSample],
    out: Path,
    on_progress: ProgressCallback,
) -> TimeGridSearch:
    """The search, on what was drawn before in the same configuration."""
    from .. import registry
    from ..evaluation.columns import Column
    from ..evaluation.fingerprint import fingerprint
    from ..tuning.run_cache import RunCache
    from ..tuning.search import TimeGridSearch

    on_progress("Loading", 0, 1)
    own = subject.default_sampler
    column = subject.resolve_column(
        Column(registry.parse("policy", "path"), registry.parse("solver", "adams"), *own[1:])
    )
    subject.load([column])
    same = {k: v for k, v in fingerprint(subject, tuning, checked).items() if "prompts" not in k}
    same |= {"model": subject.name, "guidance": subject.guidance, "settings": subject.settings}
    same |= {"sampler": column.way, "fine": settings.fine, "seed": settings.seed}
    return TimeGridSearch(subject, settings, tuning, checked, RunCache.open(out, same), on_progress)


def _about(search: TimeGridSearch, prompts: str, check: str) -> dict[str, Any]:
    """The description that is stored with the results."""
    from ..evaluation.fingerprint import describe_machine, fingerprint

    subject = search.subject
    return {
        "model": subject.name,
        "guidance": subject.guidance,
        "settings": subject.settings,
        "prompts": prompts,
        "check": check or prompts,
        "samples": len(search.eval_samples),
        "checked": len(search.check or search.eval_samples),
        "fingerprint": fingerprint(subject, search.check or search.eval_samples, search.eval_samples),
        "machine": describe_machine(subject),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["skipstone", *sys.argv[1:]]),
    }


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show(found: TuningResult, out: Path, written: Sequence[Path], held_out: bool) -> None:
    """Print the table, and the paths of all files."""
    from rich.console import Console
    from rich.table import Table

    from ..tuning.report import policy_folder, table

    head, *body = table(found.rows)
    shown = Table(box=None, pad_edge=False)
    for k, title in enumerate(head):
        shown.add_column(title, justify="left" if k == 1 else "right", overflow="fold")
    for row in body:
        shown.add_row(*row)
    console = Console()
    console.print(shown, highlight=False, markup=False)
    where = "prompts that were not tuned on" if held_out else "the tuning prompts themselves: say --check FILE|SET"
    _print(console, f"\nPSNR in dB to runs of {found.fine.steps} steps, on {where}.")
    _print(console, f"Runs of half as many steps are {found.agreement:.1f} dB from these: more cannot be told apart.")
    for path in written:
        _print(console, str(path))
    first = policy_folder(out, next(iter(found.grids)))
    _print(console, f"Use one: {shlex.join(['skipstone', 'generate', '...', '--policy', str(first)])}")
