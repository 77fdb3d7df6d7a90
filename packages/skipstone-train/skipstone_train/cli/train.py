"""`skipstone train`: agents that learn when to call the network, and what they learn from."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.cli.grouping import grouped
from skipstone.cli.progress import progress_bar
from skipstone.evaluation.limits import MAX_STEPS

if TYPE_CHECKING:
    from rich.console import Console

    from skipstone.policies.agent.actions import BaseSchedule

    from ..agents.config import AgentConfig
    from ..agents.training import Training, TrainingResult

app = typer.Typer(
    name="train",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train what adapts runs: agents, and draw what they learn from.",
)


@dataclass(frozen=True)
class TrainingOptions:
    """The options of `skipstone train agent`."""

    config: Annotated[
        Path | None, typer.Option(help="YAML; defaults without it.", metavar="FILE", show_default=False)
    ] = None
    minutes: Annotated[
        float | None,
        options.number(
            least=1e-9, most=100_000, help="Of learning; the configuration's by default.", show_default=False
        ),
    ] = None
    seed: Annotated[
        list[int] | None,
        options.number(least=0, most=2**32 - 1, help="One training each. Repeat it.", show_default=False),
    ] = None
    out: Annotated[Path | None, options.folder(show_default=False)] = None
    learner: Annotated[str | None, typer.Option(help="ppo, fitted_q, stopping or search.", show_default=False)] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out was left.")] = False
    force: options.ForceOption = False
    slurm: Annotated[
        str | None,
        typer.Option(help="Submit to a cluster, a job for each seed.", metavar="partition=...,hours=...,cpus=..."),
    ] = None


@dataclass(frozen=True)
class RecordingOptions:
    """The options of `skipstone train log`."""

    prompts: Annotated[str, typer.Option(help="What is drawn: a file, or a set.", metavar="FILE|SET")]
    out: Annotated[Path, typer.Option(help="A file, .npz.")]
    guides: Annotated[
        list[Path],
        typer.Option("--guide", help="A fixed schedule: a folder of skipstone tune. Repeat it.", metavar="DIR"),
    ]
    model: Annotated[str, typer.Option(help="pebble, pebble-dit, or a folder in that format.")] = "pebble"
    limit: options.LimitOption = 0
    seeds: Annotated[int, options.number(least=1, most=options.MAX_COUNT, help="Samples of each prompt.")] = 1
    seed: options.SeedOption = 0
    fine: Annotated[int, options.number(least=100, most=MAX_STEPS, help="Steps of a fine run.")] = 200
    dimensions: Annotated[int, options.number(least=2, most=10_000, help="Coordinates that are kept of a run.")] = 40
    batch: options.BatchOption = 16
    force: options.ForceOption = False


@app.command()
@grouped
def agent(
    training: TrainingOptions,
    changes: Annotated[
        list[str] | None, typer.Argument(help="Changes to the configuration.", metavar="KEY=VALUE ...")
    ] = None,
) -> None:
    """Train an agent that decides at every call how far the next step goes.

    Learns from logged trajectories of a model, of which Pebble's come along,
    so that a training takes minutes on two cores. Before it, constant policies
    are ranked: a reward that pays the wrong ones is refused. In the end the
    agent is held against random actions and the best fixed schedule on prompts
    that it never saw; if it does not beat the latter, its file plays that
    schedule, and says so.

    Writes agent.safetensors, the configuration, the learning curve as a
    picture and a table, and a log. Ctrl-C keeps the best so far; [bold]--resume[/bold]
    goes on. Any setting can be changed by its name in the configuration.

    [bold]Examples[/bold]

      skipstone train agent --config examples/configs/agent_pebble.yaml --minutes 10
      skipstone train agent --out mine --resume
      skipstone train agent --learner search --seed 1 --out search \\
        environment.prices=[0.5,1]
      skipstone train agent --config examples/configs/agent_pebble.yaml --seed 0 --seed 1 \\
        --slurm partition=cpu,hours=2
      skipstone compare "a cat" -p "agent(path='agent', price=1)" -p fewer
    """
    from skipstone.cli.files import check_targets

    settings = _settings(training, changes or ())
    folder = training.out or Path(settings.out)
    trainings = _trainings(settings, folder, training.minutes, training.seed)
    if not training.resume:
        check_targets([file for one in trainings for file in one.files], training.force)
    if training.slurm is not None:
        _submit(trainings, training.slurm, folder, training.resume)
    else:
        _run_here(trainings, training.resume)


@app.command()
@grouped
def log(recording: RecordingOptions) -> None:
    """Draw the logged trajectories that agents learn from.

    Runs the model in many small steps on every prompt, measures how errors fade
    on the way, and runs fixed schedules beside: those that [bold]skipstone tune[/bold]
    found, which the agent starts from and has to beat. What is drawn is kept:
    after Ctrl-C the same command goes on.

    [bold]Examples[/bold]

      skipstone tune --prompts pebble-tuning --out grids
      skipstone train log --prompts pebble-tuning --out mine.npz \\
        --guide grids/path-10 --guide grids/path-15 --guide grids/path-20
      skipstone train agent environment.log=mine.npz
    """
    from rich.console import Console

    from skipstone.cli.files import check_targets
    from skipstone.errors import SpecError

    console, out = Console(stderr=True), recording.out
    if out.suffix != ".npz":
        raise SpecError(f"--out: expected a file .npz, got {out}.")
    check_targets([out], recording.force)
    try:
        num_samples, num_schedules = _record(recording, console)
    except KeyboardInterrupt:
        _print(console, f"Stopped. What is drawn is kept beside {out}; the same command goes on.")
        raise
    size = out.stat().st_size / 1e6
    typer.echo(f"{out}: {num_samples} samples, {num_schedules} fixed schedules, {size:.1f} MB")
    typer.echo(f"Learn from it: {shlex.join(['skipstone', 'train', 'agent', f'environment.log={out}'])}")


# -- Recordings -------------------------------------------------------------------------------------


def _record(recording: RecordingOptions, console: Console) -> tuple[int, int]:
    """Record the runs; how many samples and fixed schedules there are."""
    from skipstone import registry
    from skipstone.evaluation.models import load_embedded
    from skipstone.evaluation.prompts import load_prompts

    from ..agents.recording import RecordingSettings

    found = load_prompts(recording.prompts, limit=recording.limit or None)
    samples = [
        (prompt.text, recording.seed + k * len(found) + i)
        for k in range(recording.seeds)
        for i, prompt in enumerate(found)
    ]
    with console.status("Looking the model up ..."):
        model: Any = load_embedded(recording.model)
    if Path(recording.model).is_dir():  # a training finds the model by the name in the log
        model = dataclasses.replace(model, name=str(Path(recording.model).resolve()))
    start = registry.parse("grid", "trailing").times(model.schedule, 50)[0]
    schedules, solver = _base_schedules(recording.guides, start)
    settings = RecordingSettings(recording.fine, recording.dimensions, recording.batch, solver)
    texts, numbers = [text for text, _ in samples], [number for _, number in samples]
    with progress_bar(console) as on_progress:
        recorded = settings.record(
            model, texts, numbers, schedules, recording.out,
            lambda done, total: on_progress("Drawing fine runs", done, total),
        )  # fmt: skip
    return len(recorded), len(schedules)


def _base_schedules(folders: Sequence[Path], start: float) -> tuple[dict[int, BaseSchedule], str]:
    """The fixed schedules of folders, by calls, and the solver that they were found for."""
    from skipstone.errors import SpecError
    from skipstone.policies.agent.actions import BaseSchedule
    from skipstone.policies.path import Path as Times
    from skipstone.policies.storage import read_policy

    found, solvers = dict[int, BaseSchedule](), set[str]()
    for folder in folders:
        policy = read_policy(str(folder))
        if not isinstance(policy, Times) or not policy.places:
            raise SpecError(f"--guide: expected a folder with a path, as skipstone tune writes it, got {folder}.")
        solvers.add(policy.solver)
        schedule = BaseSchedule((start, *policy.places, 0.0))
        found[schedule.steps] = schedule
    if len(solvers) != 1:
        raise SpecError(f"--guide: expected schedules for one solver, got {', '.join(sorted(solvers)) or 'none'}.")
    return found, solvers.pop()


# -- Configurations and trainings -------------------------------------------------------------------


def _settings(training: TrainingOptions, changes: Sequence[str]) -> AgentConfig:
    """The configuration; of a training that is resumed its own, unless another file is given."""
    from ..agents.config import load_config
    from ..agents.training import CONFIG_FILE

    config, out = training.config, training.out
    if training.resume and config is None and out is not None:
        config = _find_written(out, CONFIG_FILE)
    learner = [] if training.learner is None else [f"learner.name={training.learner}"]
    return load_config(config, [*learner, *changes])


def _find_written(out: Path, name: str) -> Path | None:
    """A file of a training, or of the first of several in a folder."""
    return next((p for p in (out / name, *sorted(out.glob(f"seed-*/{name}"))) if p.is_file()), None)


def _trainings(settings: AgentConfig, out: Path, minutes: float | None, seeds: Sequence[int] | None) -> list[Training]:
    """One for each seed; several have a folder each."""
    from skipstone.errors import SpecError

    from ..agents.training import Training

    minutes, seeds = settings.minutes if minutes is None else minutes, seeds or settings.seeds
    if not minutes > 0:
        raise SpecError(f"--minutes: expected a number > 0, got {minutes:g}.")
    several = len(seeds) > 1
    return [Training(settings, out / f"seed-{s}" if several else out, minutes, s) for s in dict.fromkeys(seeds)]


def _run_here(trainings: Sequence[Training], resume: bool) -> None:
    """Train on this machine, one after the other."""
    from rich.console import Console

    console = Console(stderr=True)
    for one in trainings:
        if len(trainings) > 1:
            _print(console, f"Seed {one.seed}, {one.out}")
        with _training_progress(console, one) as on_round:
            done = one.run(resume, lambda line: _print(console, line), on_round)
        _print_result(one.config, done)
        if done.interrupted:
            raise KeyboardInterrupt


def _submit(trainings: Sequence[Training], slurm: str, folder: Path, resume: bool) -> None:
    from ..agents.launch import JOBS_FOLDER, SlurmSettings, TrainingJob, submit_jobs
    from ..agents.yaml_settings import to_yaml

    jobs = [TrainingJob(to_yaml(t.config), t.minutes, t.seed, str(t.out.resolve()), resume) for t in trainings]
    settings = SlurmSettings.parse(slurm)
    submitted = submit_jobs(jobs, settings, folder.resolve())
    for training, job in zip(trainings, submitted, strict=True):
        typer.echo(f"{training.out}: job {job.job_id}")
    for job in submitted if settings.cluster != "slurm" else ():  # on this machine, to try it out
        typer.echo(job.result())
    typer.echo(f"{folder / JOBS_FOLDER}: scripts and logs of the jobs")


@contextmanager
def _training_progress(console: Console, training: Training) -> Iterator[Callable[[float, Mapping[str, float]], None]]:
    """A bar with the last figures of the learning curve."""
    best = [float("-inf")]
    with progress_bar(console) as on_progress:
        on_progress(f"{training.learner}: first episodes", 0, 1)

        def on_round(share: float, row: Mapping[str, float]) -> None:
            best[0] = max(best[0], row["score"])
            line = f"{training.learner}: utility {row['score']:.2f} dB, best {best[0]:.2f}"
            on_progress(line, max(share, 1e-6), 1.0)

        yield on_round


def _print_result(settings: AgentConfig, done: TrainingResult) -> None:
    """Where everything is, and how to use it."""
    for line in done.summary:
        typer.echo(line)
    for name, about in (
        ("agent.safetensors", "the agent"),
        ("curve.png", "the learning curve; curve.csv in numbers"),
        ("config.yaml", "the configuration that was used"),
        ("log.txt", "the log"),
    ):
        typer.echo(f"{done.folder / name}  {about}")
    if hasattr(settings.environment, "agent"):
        spec = f"agent(path='{done.folder}')"
        typer.echo(f"Use it: {shlex.join(['skipstone', 'compare', 'a cat above a bus', '-p', spec, '-p', 'fewer'])}")


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
