"""`skipstone tune`: the best grids, or slopes of the default, for a model, found by looking at its own runs."""

from __future__ import annotations

import datetime
import functools
import hashlib
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from ..satellites import require_module
from ..settings import MAX_STEPS
from . import options
from .grouping import grouped
from .printing import print_line, print_table
from .progress import print_warnings, progress_bar, show_status
from .ray_options import RayOptions
from .tracking import tracked
from .tune_domains import CHECKED, ENOUGH, DomainOptions, tune_domains
from .tune_search import JointOptions, JointRun, joint_calls, show_joint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from ..evaluation.progress import ProgressCallback
    from ..evaluation.references import EvaluationSample
    from ..evaluation.subject import Subject
    from ..tuning.joint import JointSearch
    from ..tuning.search import TimeGridSearch, TuningResult, TuningSettings
    from ..tuning.slopes import SlopeResult, SlopeSearch

    Search: TypeAlias = TimeGridSearch | SlopeSearch
    Found: TypeAlias = TuningResult | SlopeResult

Tuned: TypeAlias = Literal["path", "adaptive_grid"]


@dataclass(frozen=True)
class SearchOptions(DomainOptions):
    """Options of the search: what is searched for, and how."""

    policy: Annotated[
        Tuned,
        typer.Option(
            help="What is tuned: path, a grid for each number of calls, or adaptive_grid, the slopes of the default.",
        ),
    ] = "path"
    calls: Annotated[
        list[int] | None,
        options.number(
            least=1,
            most=MAX_STEPS,
            help="Calls to tune for; 10, 15, 20 and, of path, 25 by default; of --search 10. Repeat it.",
            show_default=False,
        ),
    ] = None
    limit: options.LimitOption = 24
    samples: Annotated[
        int | None,
        options.number(
            least=1,
            most=options.MAX_COUNT,
            help="Seeds of a model that takes no prompts; 24 by default.",
            show_default=False,
        ),
    ] = None
    check: Annotated[
        str,
        typer.Option(
            help="What to check on: prompts, or how many other seeds. By default what is tuned on; of adaptive_grid "
            "under other seeds.",
            metavar="FILE|SET|NUMBER",
        ),
    ] = ""
    prompt_format: options.FormatOption = None
    fine: Annotated[
        int,
        options.number(
            least=2,
            most=MAX_STEPS,
            help="Steps of the runs that grids are found in, and at least of those taken for exact.",
        ),
    ] = 200
    refine: Annotated[
        int,
        options.number(least=0, most=1_000, help="Of path: sweeps of moving single places, by what it really does."),
    ] = 0
    rivals: Annotated[bool, typer.Option(help="Of path: run fixed samplers and stride beside.")] = True

    def settings(self, seed: int, batch: int) -> TuningSettings:
        """The options as the search's settings."""
        from ..tuning import search, slopes
        from ..tuning.search import TuningSettings

        usual = search.CALLS if self.policy == "path" else slopes.CALLS
        calls = tuple(sorted(set(self.calls or usual)))
        return TuningSettings(calls, self.fine, self.refine, batch, seed, self.rivals)

    def prompted(self, source: str, seed: int) -> list[EvaluationSample]:
        """The prompts of a file or a set, and their seeds from `seed` on.

        Runs are kept by ids: a hash of the text in them tells a prompt that was edited under the id of the file.
        """
        from ..evaluation.prompts import load_prompts
        from ..evaluation.references import EvaluationSample

        found = load_prompts(source, limit=self.limit or None, seed=0, prompt_format=self.prompt_format)
        named = [replace(p, id=f"{p.id}-{hashlib.sha256(p.text.encode()).hexdigest()[:6]}") for p in found]
        return [EvaluationSample(prompt, seed + k) for k, prompt in enumerate(named)]


@tracked
@grouped
def tune(
    out: Annotated[Path, options.folder()],
    model: options.ModelOptions,
    wanted: SearchOptions,
    joint: JointOptions,
    spread: RayOptions,
    prompts: options.PromptsOption = None,
    guidance: options.GuidanceOption = None,
    seed: options.SeedOption = 0,
    batch: options.BatchOption = 8,
    force: options.ForceOption = False,
) -> None:
    """Find the best times to call a model at, or the slopes of the default for it.

    [bold]--policy path[/bold]: draws the tuning prompts in 200 small steps, computes from
    them the error of every longer step, and finds the grid of so many calls that
    leaves the least in the picture. Each grid then runs beside fixed samplers and
    [bold]stride[/bold]. It is the same for all prompts, and for this model and guidance.

    [bold]--policy adaptive_grid[/bold]: tries 15 densities of steps of the default on the
    tuning prompts, and the best of them on others. It is written only where it
    leads the default there with as many calls; else the default is.

    [bold]--domains[/bold]: one setting for each domain of prompts, where it leads.
    [bold]--search[/bold]: solver, grid, policy and settings together, after the grids.

    Costs about 1600 and 800 calls a sample, which are kept: after Ctrl-C the same
    command goes on. Without --prompts, seeds are tuned on.

    [bold]Examples[/bold]

      skipstone tune --prompts pebble-tuning --out grids
      skipstone generate "a red apple" --policy grids/path-15
      skipstone tune --model org/name --prompts prompts.txt --calls 12 --out grids
      skipstone tune --model my-ddim --samples 24 --check 24 --out grids
      skipstone tune --policy adaptive_grid --prompts pebble-tuning --out tuned
      skipstone compare "a red apple" -p tuned/adaptive-15 -p balanced
      skipstone tune --domains folder/ --policy adaptive_grid --out tuned
      skipstone tune --search all --prompts pebble-tuning --calls 12 --out best
    """
    joint.check(wanted.calls, "--domains" if wanted.domains else f"--policy {wanted.policy}")
    local = functools.partial(model.subject, guidance)
    make_subject = functools.partial(spread.spread, local)
    if joint.search:
        return _tune_jointly(wanted, joint, prompts, out, (make_subject, local), (seed, batch, force))
    settings = wanted.settings(seed, batch)
    if wanted.domains:
        return tune_domains(wanted, prompts, out, make_subject, settings, force)
    return _tune(wanted, prompts, out, make_subject, settings, force)


def _tune(
    wanted: SearchOptions,
    prompts: str | None,
    out: Path,
    make_subject: Callable[[], Subject],
    settings: TuningSettings,
    force: bool,
) -> None:
    """Search on all prompts alike, write the results and show them."""
    from rich.console import Console

    from ..evaluation.folder_lock import lock_folder
    from .files import check_targets

    report, console = _report(wanted.policy), Console(stderr=True)
    with lock_folder(out):
        check_targets(report.report_files(out, settings.calls), force)
        with show_status(console, "Looking the model up ..."):
            subject = make_subject()
        tuning, checked = _samples(subject, prompts, wanted, settings.seed)
        search, found = _run(subject, settings, (tuning, checked), wanted.policy, out, console)
        written = report.write_report(found, out, _about(search, prompts or SEEDS, wanted.check))
    where = _where("prompts" if prompts else SEEDS, wanted.check, wanted.policy)
    _show(found, written, where, report.policy_folder(out, settings.calls[0]))


def _tune_jointly(
    wanted: SearchOptions,
    joint: JointOptions,
    prompts: str | None,
    out: Path,
    make: tuple[Callable[[], Subject], Callable[[], Subject]],
    given: tuple[int, int, bool],
) -> None:
    """`--search`: samples are chosen as for slopes, so that the winner is decided on other samples.

    `make` makes the model, with --ray on its workers, and here; `given` are seed, batch and whether to overwrite.
    """
    from rich.console import Console

    from ..evaluation.folder_lock import lock_folder
    from ..tuning import joint_report, search
    from .files import check_targets

    console, (seed, batch, force) = Console(stderr=True), given
    wanted = replace(wanted, policy="adaptive_grid")
    with lock_folder(out):
        with show_status(console, "Looking the model up ..."):
            subject = make[0]()
            calls = joint_calls(joint, wanted.calls, search.CALLS[:1], make[1])
        settings = replace(wanted, calls=calls, rivals=False).settings(seed, batch)
        check_targets(joint_report.report_files(out, settings.calls), force)
        tuning, checked = _samples(subject, prompts, wanted, seed)
        _check_prompts([*tuning, *checked], subject, console)
        run = JointRun(joint, subject, settings)
        run.check(len(tuning))
        with _searching(tuning, out, console) as on_progress:
            made = _search(subject, settings, (tuning, checked), run, out, on_progress)
            found, words = run.run(made)
        _note(made.notes, console)
        about = _about(made, prompts or SEEDS, wanted.check)
        written = joint_report.write_report(found, made.grids.agreement, out, about, words)
    show_joint(found, written, words, lambda n: joint_report.policy_folder(out, n), Console())


SAMPLES = 24  # of a model that takes no prompts
SEEDS = "seeds"


def _report(policy: Tuned) -> Any:
    """The module that writes what a search has found. Raises MissingPackage where it needs one that is not there."""
    from ..tuning import report, slopes_report

    if policy != "path":
        return slopes_report
    require_module("matplotlib", "plot")
    return report


def _samples(
    subject: Subject, prompts: str | None, wanted: SearchOptions, seed: int
) -> tuple[list[EvaluationSample], list[EvaluationSample]]:
    """What is tuned on, and what grids are checked on where that is something else: prompts, or seeds alone."""
    from ..errors import SpecError
    from ..evaluation.references import samples_from_seeds
    from .prompts import check_samples_option

    is_path = wanted.policy == "path"
    if check_samples_option(subject, prompts, wanted.samples):
        check = wanted.check.strip() or ("0" if is_path else str(wanted.samples or SAMPLES))
        if not (check.isascii() and check.isdigit() and len(check) <= 5):
            raise SpecError(
                f"--check: {subject.name} takes no prompts: expected a number of seeds below 100000, got {check!r}."
            )
        counts = (wanted.samples or SAMPLES, int(check))
        firsts = (seed, seed + max(CHECKED, counts[0]))
        tuned, checked = (samples_from_seeds(range(a, a + n)) for a, n in zip(firsts, counts, strict=True))
        return tuned, checked
    assert prompts is not None
    check = wanted.check or ("" if is_path else prompts)
    return wanted.prompted(prompts, seed), wanted.prompted(check, seed + CHECKED) if check else []


def _check_prompts(eval_samples: Sequence[EvaluationSample], subject: Subject, console: Console) -> None:
    from .prompts import check_prompts

    check_prompts([eval_sample.prompt.text for eval_sample in eval_samples], subject, console)


def _run(
    subject: Subject,
    settings: TuningSettings,
    eval_samples: tuple[Sequence[EvaluationSample], Sequence[EvaluationSample]],
    policy: Tuned,
    out: Path,
    console: Console,
) -> tuple[Search, Found]:
    """The search and what it found, its progress and its notes on the console; `eval_samples` are tuned and checked."""
    tuning, checked = eval_samples
    _check_prompts([*tuning, *checked], subject, console)
    with _searching(tuning, out, console) as on_progress:
        search = _search(subject, settings, eval_samples, policy, out, on_progress)
        found = search.run()
    _note(search.notes, console)
    return search, found


@contextmanager
def _searching(tuning: Sequence[EvaluationSample], out: Path, console: Console) -> Iterator[ProgressCallback]:
    """A warning where samples are few, the progress, and what is said after Ctrl-C."""
    if len(tuning) < ENOUGH:
        what, option = ("prompts", "--limit") if tuning[0].prompt.text else ("samples", "--samples")
        few = f"{len(tuning)} {what} are few: what is best for them may be bad for others. Say {option} {SAMPLES}."
        print_line(console, few)
    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            yield on_progress
    except KeyboardInterrupt:
        print_line(console, f"Stopped. What is drawn is kept in {out}; the same command goes on.")
        raise


def _note(notes: Sequence[str], console: Console) -> None:
    for note in dict.fromkeys(notes):
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _search(
    subject: Subject,
    settings: TuningSettings,
    eval_samples: tuple[Sequence[EvaluationSample], Sequence[EvaluationSample]],
    what: Tuned | JointRun,
    out: Path,
    on_progress: ProgressCallback,
) -> Any:
    """The search, on what was drawn before in the same configuration."""
    from ..tuning.configuration import open_cache
    from ..tuning.search import TimeGridSearch
    from ..tuning.slopes import SlopeSearch

    tuning, checked = eval_samples
    on_progress("Loading", 0, 1)
    cache = open_cache(subject, settings, tuning, out)
    if isinstance(what, JointRun):
        return what.make(tuning, checked, cache, on_progress)
    made = TimeGridSearch if what == "path" else SlopeSearch
    return made(subject, settings, tuning, checked, cache, on_progress)


def _about(search: Search | JointSearch, prompts: str, check: str) -> dict[str, Any]:
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


def _where(what: str, check: str, policy: Tuned) -> str:
    """What figures were measured on."""
    if check or (what == SEEDS and policy != "path"):
        return f"{what} that were not tuned on"
    if policy != "path":
        return "the tuning prompts under other seeds"
    return f"the tuning {what} themselves: say --check {'NUMBER' if what == SEEDS else 'FILE|SET'}"


def _show(found: Found, written: Sequence[Path], where: str, first: Path) -> None:
    """Print the table, what was found, the paths of all files, and the command that uses the first policy."""
    from rich.console import Console

    from ..tuning.report import table

    head, *body = table(found.rows)
    console = Console()
    print_table(console, head, body, left=[1])
    print_line(console, f"\nPSNR in dB to runs of {found.agreement.steps} steps, on {where}.")
    print_line(console, found.agreement.words)
    if words := getattr(found, "words", ""):
        print_line(console, words)
    for path in written:
        print_line(console, str(path))
    print_line(console, f"Use one: {shlex.join(['skipstone', 'generate', '...', '--policy', str(first)])}")
