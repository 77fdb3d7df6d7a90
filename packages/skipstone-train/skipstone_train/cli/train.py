"""`skipstone train`: agents that learn when to call the network, and what they learn from."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from ..agents.config import AgentConfig
    from ..agents.training import Training, TrainingResult

app = typer.Typer(
    name="train",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train what adapts runs: agents, and draw what they learn from.",
)


@app.command()
def agent(
    changes: Annotated[
        list[str] | None, typer.Argument(help="Changes to the configuration.", metavar="KEY=VALUE ...")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML; defaults without it.", metavar="FILE", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Of learning; the configuration's by default.", show_default=False)
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="One training each. Repeat it.", min=0, show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder.", show_default=False)] = None,
    learner: Annotated[str | None, typer.Option(help="ppo, fitted_q, stopping or search.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out was left.")] = False,
    force: options.ForceOption = False,
    slurm: Annotated[
        str | None,
        typer.Option(help="Submit to a cluster, a job for each seed.", metavar="partition=...,hours=...,cpus=..."),
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
    from rich.console import Console

    from skipstone.cli.files import check_targets

    console = Console(stderr=True)
    settings = _settings(config, changes or (), learner, out, resume)
    folder = out or Path(settings.out)
    trainings = _trainings(settings, folder, settings.minutes if minutes is None else minutes, seed or settings.seeds)
    if not resume:
        check_targets([file for one in trainings for file in one.files], force)
    if slurm is not None:
        _submit(trainings, slurm, folder, resume)
        return
    for one in trainings:
        if len(trainings) > 1:
            _print(console, f"Seed {one.seed}, {one.out}")
        with _watching(console, one) as watch:
            done = one.run(resume, lambda line: _print(console, line), watch)
        _show(settings, done)
        if done.interrupted:
            raise KeyboardInterrupt


@app.command()
def log(
    prompts: Annotated[str, typer.Option(help="What is drawn: a file, or a set.", metavar="FILE|SET")],
    out: Annotated[Path, typer.Option(help="A file, .npz.")],
    guides: Annotated[
        list[Path],
        typer.Option("--guide", help="A fixed schedule: a folder of skipstone tune. Repeat it.", metavar="DIR"),
    ],
    model: Annotated[str, typer.Option(help="pebble, pebble-dit, or a folder in that format.")] = "pebble",
    limit: Annotated[int, typer.Option(help="Prompts, all categories alike; 0 takes all of them.", min=0)] = 0,
    seeds: Annotated[int, typer.Option(help="Samples of each prompt.", min=1)] = 1,
    seed: options.SeedOption = 0,
    fine: Annotated[int, typer.Option(help="Steps of a fine run.", min=100)] = 200,
    dimensions: Annotated[int, typer.Option(help="Coordinates that are kept of a run.", min=2)] = 40,
    batch: Annotated[int, typer.Option(help="Samples of one call.", min=1)] = 16,
    force: options.ForceOption = False,
) -> None:
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

    from skipstone import registry
    from skipstone.cli.files import check_targets
    from skipstone.errors import SpecError
    from skipstone.evaluation.models import load_embedded
    from skipstone.evaluation.prompts import load_prompts

    from ..agents.recording import RecordingSettings

    console = Console(stderr=True)
    if out.suffix != ".npz":
        raise SpecError(f"--out: expected a file .npz, got {out}.")
    check_targets([out], force)
    found = load_prompts(prompts, limit=limit or None)
    eval_samples = [(prompt.text, seed + k * len(found) + i) for k in range(seeds) for i, prompt in enumerate(found)]
    try:
        with console.status("Looking the model up ..."):
            loaded: Any = load_embedded(model)
        if Path(model).is_dir():  # a training looks the model up by what the log calls it
            loaded = dataclasses.replace(loaded, name=str(Path(model).resolve()))
        known, solver = _guides(guides, registry.parse("grid", "trailing").times(loaded.schedule, 50)[0])
        with progress_bar(console) as on_progress:
            texts, numbers = [text for text, _ in eval_samples], [number for _, number in eval_samples]
            made = RecordingSettings(fine, dimensions, batch, solver).record(
                loaded, texts, numbers, known, out, lambda done, total: on_progress("Drawing fine runs", done, total)
            )
    except KeyboardInterrupt:
        _print(console, f"Stopped. What is drawn is kept beside {out}; the same command goes on.")
        raise
    size = out.stat().st_size / 1e6
    typer.echo(f"{out}: {len(made)} samples, {len(known)} fixed schedules, {size:.1f} MB")
    typer.echo(f"Learn from it: {shlex.join(['skipstone', 'train', 'agent', f'environment.log={out}'])}")


def _guides(folders: Sequence[Path], start: float) -> tuple[dict[int, Any], str]:
    """The fixed schedules of folders, by calls, and the solver that they were found for."""
    from skipstone.errors import SpecError
    from skipstone.policies.agent.actions import BaseSchedule
    from skipstone.policies.path import Path as Times
    from skipstone.policies.saved import read_policy

    found, solvers = dict[int, Any](), set[str]()
    for folder in folders:
        policy = read_policy(str(folder))
        if not isinstance(policy, Times) or not policy.places:
            raise SpecError(f"--guide: expected a folder with a path, as skipstone tune writes it, got {folder}.")
        solvers.add(policy.solver)
        guide = BaseSchedule((start, *policy.places, 0.0))
        found[guide.steps] = guide
    if len(solvers) != 1:
        raise SpecError(f"--guide: expected schedules for one solver, got {', '.join(sorted(solvers)) or 'none'}.")
    return found, solvers.pop()


# -- Configurations and trainings -------------------------------------------------------------------


def _settings(
    config: Path | None, changes: Sequence[str], learner: str | None, out: Path | None, resume: bool
) -> AgentConfig:
    """The configuration; of a training that is gone on with its own, unless another is named."""
    from ..agents.config import load_config
    from ..agents.training import CONFIG_FILE

    if resume and config is None and out is not None and (found := _written(out, CONFIG_FILE)):
        config = found
    named = [] if learner is None else [f"learner.name={learner}"]
    return load_config(config, [*named, *changes])


def _written(out: Path, name: str) -> Path | None:
    """A file of a training, or of the first of several in a folder."""
    return next((p for p in (out / name, *sorted(out.glob(f"seed-*/{name}"))) if p.is_file()), None)


def _trainings(settings: AgentConfig, out: Path, minutes: float, seeds: Sequence[int]) -> list[Training]:
    """One for each seed; several have a folder each."""
    from skipstone.errors import SpecError

    from ..agents.training import Training

    if not minutes > 0:
        raise SpecError(f"--minutes: expected a number > 0, got {minutes:g}.")
    several = len(seeds) > 1
    return [Training(settings, out / f"seed-{s}" if several else out, minutes, s) for s in dict.fromkeys(seeds)]


def _submit(trainings: Sequence[Training], slurm: str, folder: Path, resume: bool) -> None:
    from ..agents.launch import JOBS_FOLDER, SlurmSettings, TrainingJob, submit_jobs
    from ..agents.yaml_settings import to_yaml

    jobs = [TrainingJob(to_yaml(t.config), t.minutes, t.seed, str(t.out.resolve()), resume) for t in trainings]
    asked = SlurmSettings.parse(slurm)
    submitted = submit_jobs(jobs, asked, folder.resolve())
    for training, job in zip(trainings, submitted, strict=True):
        typer.echo(f"{training.out}: job {job.job_id}")
    for job in submitted if asked.cluster != "slurm" else ():  # on this machine, to try it out
        typer.echo(job.result())
    typer.echo(f"{folder / JOBS_FOLDER}: scripts and logs of the jobs")


@contextmanager
def _watching(console: Console, training: Training) -> Iterator[Callable[[float, Mapping[str, float]], None]]:
    """A bar that tells the learning curve's last figures."""
    best = [float("-inf")]
    with progress_bar(console) as on_progress:
        on_progress(f"{training.learner}: first episodes", 0, 1)

        def watch(share: float, row: Mapping[str, float]) -> None:
            best[0] = max(best[0], row["score"])
            told = f"{training.learner}: utility {row['score']:.2f} dB, best {best[0]:.2f}"
            on_progress(told, max(share, 1e-6), 1.0)

        yield watch


def _show(settings: AgentConfig, done: TrainingResult) -> None:
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
