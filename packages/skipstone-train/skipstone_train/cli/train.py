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
from skipstone.errors import SpecError
from skipstone.settings import MAX_STEPS

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
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out was left, as it was begun.")] = False
    force: options.ForceOption = False
    slurm: Annotated[
        str | None,
        typer.Option(help="Submit to a cluster, a job for each seed.", metavar="partition=...,hours=...,cpus=..."),
    ] = None
    track: options.TrackOption = ""


@dataclass(frozen=True)
class RecordingOptions:
    """The options of `skipstone train log`."""

    prompts: Annotated[str, typer.Option(help="What is drawn: a file, or a set.", metavar="FILE|SET")]
    out: Annotated[Path, typer.Option(help="A file, .npz.")]
    guides: Annotated[
        list[Path],
        typer.Option("--guide", help="A fixed schedule: a folder of skipstone tune. Repeat it.", metavar="DIR"),
    ]
    prompt_format: options.FormatOption = None
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

      skipstone train agent --minutes 10 \\
        --config examples/configs/agent_pebble.yaml
      skipstone train agent --out mine --resume
      skipstone train agent --learner search --seed 1 --out search \\
        "environment.prices=[0.5,1]"
      skipstone train agent --seed 0 --seed 1 --slurm partition=cpu,hours=2 \\
        --config examples/configs/agent_pebble.yaml
      skipstone compare "a cat" -p "agent(path='agent', price=1)" -p fewer
    """
    from skipstone.cli.files import check_targets

    trainings = _trainings(training, changes or ())
    if not training.resume:
        check_targets([file for one in trainings for file in one.files], training.force)
    if len(trainings) > 1:  # so that --resume knows of those that were never reached
        for one in trainings:
            one.begin(training.resume)
    if training.slurm is not None and training.track:
        raise SpecError(
            "--track logs trainings of this machine: leave it out, and type skipstone runs upload DIR after."
        )
    if training.slurm is not None:
        _submit(trainings, training.slurm, training.resume)
    else:
        _run_here(trainings, training.resume, training.track)


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

    found = load_prompts(recording.prompts, limit=recording.limit or None, prompt_format=recording.prompt_format)
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


def _trainings(training: TrainingOptions, changes: Sequence[str]) -> list[Training]:
    """One for each seed; several have a folder each. Those that go on take what is not said from their folder."""
    from ..agents.config import load_config

    learner = [] if training.learner is None else [f"learner.name={training.learner}"]
    changes = [*learner, *changes]
    out = training.out or Path(load_config(training.config, [c for c in changes if c.startswith("out=")]).out)
    if training.resume and (folders := _find_begun(out)):
        return [_resumed(training, changes, folder, seed) for folder, seed in _choose(folders, training.seed, out)]
    settings = load_config(training.config, changes)
    if training.resume and training.config is None:
        raise SpecError(f"--resume: {out} holds no training. Give the --out of one, or leave --resume out to begin.")
    seeds = dict.fromkeys(training.seed or settings.seeds)
    several = len(seeds) > 1
    return [_training(training, settings, out / f"seed-{seed}" if several else out, seed) for seed in seeds]


def _training(training: TrainingOptions, settings: AgentConfig, folder: Path, seed: int) -> Training:
    from ..agents.config import check_minutes
    from ..agents.training import Training

    minutes = settings.minutes if training.minutes is None else training.minutes
    check_minutes(minutes, "--minutes")
    return Training(settings, folder, minutes, seed)


def _find_begun(out: Path) -> list[Path]:
    """The folders of trainings that were begun in a folder: itself, or one for each of several seeds."""
    from ..agents.training import CONFIG_FILE

    if (out / CONFIG_FILE).is_file():
        return [out]
    return [file.parent for file in sorted(out.glob(f"seed-*/{CONFIG_FILE}")) if file.parent.name[5:].isdigit()]


def _choose(folders: Sequence[Path], seeds: Sequence[int] | None, out: Path) -> list[tuple[Path, int | None]]:
    """The trainings to go on with, those of the given seeds or all; None is the seed that the configuration says."""
    if folders == [out]:
        if seeds and len(set(seeds)) > 1:
            raise SpecError(f"--resume: {out} holds one training, got {len(set(seeds))} seeds. Leave --seed out.")
        return [(out, seeds[0] if seeds else None)]
    found = {int(folder.name[5:]): folder for folder in folders}
    if unknown := [seed for seed in seeds or () if seed not in found]:
        there = ", ".join(map(str, sorted(found)))
        raise SpecError(f"--resume: {out} holds no training of seed {unknown[0]}, but of {there}. Leave --seed out.")
    return [(found[seed], seed) for seed in dict.fromkeys(seeds or sorted(found))]


def _resumed(training: TrainingOptions, changes: Sequence[str], folder: Path, seed: int | None) -> Training:
    """A training that goes on in its folder.

    A --config that is given again must not change what is learnt, which `Training.run` checks; the time is that of
    the folder unless an option or a change says otherwise.
    """
    from ..agents.config import load_config
    from ..agents.training import CONFIG_FILE

    saved = load_config(folder / CONFIG_FILE, [] if training.config else changes)
    settings = saved
    if training.config is not None:
        settings = load_config(training.config, changes)
        if not any(change.startswith("minutes=") for change in changes):
            settings = dataclasses.replace(settings, minutes=saved.minutes)
    return _training(training, settings, folder, saved.seeds[0] if seed is None else seed)


def _run_here(trainings: Sequence[Training], resume: bool, track: str) -> None:
    """Train on this machine, one after the other."""
    from rich.console import Console

    from skipstone.cli.tracking import log_folder, open_tracker

    console, tracker = Console(stderr=True), open_tracker(track)
    for one in trainings:
        if len(trainings) > 1:
            _print(console, f"Seed {one.seed}, {one.out}")
        with _training_progress(console, one) as on_round:
            done = one.run(resume, lambda line: _print(console, line), on_round)
        _print_result(one.config, done)
        if done.interrupted:
            raise KeyboardInterrupt
        log_folder(tracker, one.out, console, track)


def _submit(trainings: Sequence[Training], slurm: str, resume: bool) -> None:
    from skipstone.yaml_settings import to_yaml

    from ..agents.launch import JOBS_FOLDER, SlurmSettings, TrainingJob, submit_jobs

    jobs = [TrainingJob(to_yaml(t.config), t.minutes, t.seed, str(t.out.resolve()), resume) for t in trainings]
    settings = SlurmSettings.parse(slurm)
    folder = trainings[0].out.parent if len(trainings) > 1 else trainings[0].out
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
