"""`skipstone calibrate`: say the quality, get the speed."""

from __future__ import annotations

import functools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..satellites import require_module
from . import options
from .grouping import grouped
from .progress import print_memory, print_warnings, progress_bar, show_status
from .ray_options import RayOptions
from .tracking import tracked

if TYPE_CHECKING:
    from rich.console import Console

    from ..calibration.procedure import Calibration, CalibrationOptions
    from ..evaluation.subject import Subject
    from ..policies.certified import Certified


@dataclass(frozen=True)
class PromiseOptions:
    """Options: what is promised, and which settings are tried."""

    confidence: Annotated[
        str, typer.Option(help="That the promise holds. none: means only, in expectation.", metavar="NUMBER|none")
    ] = "0.9"
    setting: Annotated[
        list[str] | None,
        options.policies("A column to choose from; a ladder by default. Repeat it."),
    ] = None
    samplers: Annotated[bool, typer.Option("--samplers", help="Try fixed samplers with fewer steps, too.")] = False
    reference: Annotated[str, typer.Option(help="full, converged, or a column.")] = "full"
    groups: Annotated[str | None, typer.Option(help="category: promise it to each of them.")] = None
    limit: options.LimitOption = 0
    samples: Annotated[
        int | None,
        options.number(
            least=2, most=options.MAX_COUNT, help="Random seeds, of a model that takes no prompts.", show_default=False
        ),
    ] = None
    prompt_format: options.FormatOption = None
    seed: Annotated[int, options.number(least=0, most=options.MAX_SEED, help="Of the split and the samples.")] = 0


@tracked
@grouped
def calibrate(
    target: Annotated[str, typer.Option(help="The quality: 'METRIC >= LEVEL @ PERCENT%', or '@ mean'.")],
    out: Annotated[Path, options.folder("A folder for the policy and its certificate.")],
    model: options.ModelOptions,
    promise: PromiseOptions,
    sampler: options.SamplerOptions,
    run_on: options.BackendOptions,
    spread: RayOptions,
    prompts: options.PromptsOption = None,
    batch: options.BatchOption = 8,
    cache: Annotated[
        Path | None, typer.Option(help="Of full runs and scores. ~/.cache/skipstone by default.", show_default=False)
    ] = None,
    force: options.ForceOption = False,
) -> None:
    """Find the fastest setting that keeps a promise of quality.

    [bold]psnr >= 30 @ 90%[/bold] asks for pictures within 30 dB of the full run's of the
    same seed, for at least 90 % of future prompts. A third of the prompts finds
    settings that are worth testing; the others test them, so that the promise
    holds with the stated confidence: for prompts like these, on this model, in
    this configuration. What was drawn is kept in the cache: after Ctrl-C the
    same command goes on. For a model without prompts say --samples.
    Exit code 3: no setting can be promised to meet the target.

    [bold]Examples[/bold]

      skipstone calibrate --prompts pebble-tuning \\
        --target "psnr >= 30 @ 90%" --out mine
      skipstone generate "a red apple" --policy mine
      skipstone calibrate --model org/name --prompts prompts.txt \\
        --target "ssim >= 0.95 @ 95%" --confidence 0.95 --out mine
    """
    from rich.console import Console

    from ..calibration import cache as caches
    from ..evaluation.folder_lock import lock_folder

    require_module("matplotlib", "plot")
    with lock_folder(out):
        console = Console(stderr=True)
        _check_writable(out, force)
        asked = _calibration_options(promise, model, sampler, run_on, batch)
        with show_status(console, "Looking the model up ..."):
            subject = spread.spread(functools.partial(model.subject, sampler.guidance, run_on))
            planned = _plan(subject, prompts, target, promise, asked)
        (policy := _run(planned, caches.folder(cache), console)).save_pretrained(out)
    _show(policy, out)
    print_memory(console, subject)


def _plan(
    subject: Subject, prompts: str | None, target: str, promise: PromiseOptions, asked: CalibrationOptions
) -> Calibration:
    """The calibration, before anything is drawn. Raises SpecError."""
    from ..calibration.procedure import Calibration
    from .prompts import check_samples_option

    check_samples_option(subject, prompts, promise.samples)
    return Calibration.of(subject, prompts, target, _confidence(promise.confidence), promise.setting or (), asked)


def _calibration_options(
    promise: PromiseOptions,
    model: options.ModelOptions,
    sampler: options.SamplerOptions,
    run_on: options.BackendOptions,
    batch: int,
) -> CalibrationOptions:
    """The options in the words of the library; the certificate keeps what `audit` makes the model again from."""
    from ..calibration.procedure import CalibrationOptions

    source = {
        "model": model.model,
        "guidance": sampler.guidance,
        "settings": list(model.settings or ()),
        "dtype": model.dtype,
        "image": str(model.image) if model.image else None,
        "as_guest": model.as_guest,
        **run_on.source,
    }
    return CalibrationOptions(
        samplers=promise.samplers,
        reference=promise.reference,
        groups=promise.groups,
        solver=sampler.solver,
        grid=sampler.grid,
        steps=sampler.steps,
        seed=promise.seed,
        batch=batch,
        limit=promise.limit or None,
        samples=promise.samples,
        prompt_format=promise.prompt_format,
        source=source,
    )


def _run(planned: Calibration, root: Path, console: Console) -> Certified:
    """Print the plan, then run the calibration; `root` is the cache's folder."""
    from .prompts import check_prompts

    def warn(what: str) -> None:
        console.print(what, style="yellow", markup=False, highlight=False, soft_wrap=True)

    samples = planned.samples
    check_prompts([sample.prompt.text for sample in (*samples.search, *samples.test)], planned.subject, console)
    if samples.num_duplicates:
        warn(planned.duplicates_message)
    for line in planned.plan:
        _print(console, line)
    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            return planned.run(root, on_progress, warn, lambda line: _print(console, line))
    except KeyboardInterrupt:
        _print(console, "Stopped. What is drawn is kept in the cache; the same command goes on.")
        raise


@dataclass(frozen=True)
class AuditedSamples:
    """Options of an audit: the samples to draw, and the chance of a false alarm."""

    samples: Annotated[int, options.number(least=1, most=options.MAX_COUNT, help="Samples to draw now.")] = 20
    prompts: Annotated[
        str | None,
        typer.Option(
            help="What is drawn now; the calibration's own by default.", metavar="FILE|SET", show_default=False
        ),
    ] = None
    prompt_format: options.FormatOption = None
    false_alarm: Annotated[
        float, options.number(least=1e-6, most=0.5, help="Chance of ever raising an alarm for nothing.")
    ] = 0.05


@grouped
def audit(
    folder: Annotated[Path, typer.Argument(help="The --out of skipstone calibrate.")],
    audited: AuditedSamples,
    model: Annotated[
        str | None, typer.Option(help="The model, where it is elsewhere by now.", metavar="pebble|PATH|ID")
    ] = None,
    device: options.DeviceOption = None,
    batch: options.BatchOption = 8,
    cache: Annotated[
        Path | None, typer.Option(help="Of full runs. ~/.cache/skipstone by default.", show_default=False)
    ] = None,
) -> None:
    """Look whether a promise still holds.

    Draws a few samples in full and by the policy, and bets against the promise:
    where it holds, no looking often raises the alarm with more than the stated
    chance. Each time goes on from the last; what was found is in audit.jsonl.

    Exit code 4: alarm, the promise does not hold any more.

    [bold]Examples[/bold]

      skipstone audit mine
      skipstone audit mine --samples 50 --prompts todays_prompts.txt
    """
    from rich.console import Console

    from ..calibration.audit import AuditOptions, load_certified
    from ..calibration.audit import audit as run_audit

    console = Console(stderr=True)
    certified = load_certified(folder)
    with show_status(console, "Looking the model up ..."):
        subject = certified_subject(certified, model, device)
    with print_warnings(console), progress_bar(console) as on_progress:
        found = run_audit(
            folder,
            subject,
            samples=audited.samples,
            prompts=audited.prompts,
            false_alarm=audited.false_alarm,
            cache=cache,
            on_progress=on_progress,
            options=AuditOptions(batch=batch, prompt_format=audited.prompt_format),
        )
    for line in found.words:
        typer.echo(line)
    if found.alarm:
        raise typer.Exit(4)


def certified_subject(certified: Certified, model: str | None, device: str | None) -> Subject:
    """The model that a certificate names, or `model` where it is elsewhere by now, under the guidance of its runs."""
    source = certified.certificate.source
    image = source.get("image")
    made = options.ModelOptions(
        model or source.get("model", "pebble"),
        list(source.get("settings", ())),
        Path(image) if image else None,
        device,
        source.get("dtype", "auto"),
        source.get("as_guest", bool(certified.point.scheduler)),  # a certificate of Python does not say it
    )
    run_on = options.BackendOptions(
        source.get("backend", "torch"), source.get("bits"), source.get("memory_limit")
    )  # where the promise was made; on another backend it is no promise
    return made.subject(certified.certificate.call.get("guidance_scale", source.get("guidance")), run_on)


def _confidence(said: str) -> float | None:
    from ..errors import SpecError

    if said.strip().lower() == "none":
        return None
    try:
        return float(said)
    except ValueError:
        raise SpecError(f"--confidence: expected a number such as 0.9, or none, got {said!r}.") from None


def _check_writable(out: Path, force: bool) -> None:
    """Raise, before anything is drawn, if the results could not be saved afterwards."""
    from ..policies.storage import FILE
    from .files import check_targets

    check_targets([out / FILE], force)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show(policy: Certified, out: Path) -> None:
    """Print the result, and how to use it."""
    from ..calibration.certificate import describe_measurement, describe_promise
    from ..calibration.prompt_split import promised_of
    from ..calibration.scores import format_spent
    from ..calibration.target import Target

    made = policy.certificate
    of = promised_of(made.prompts)
    best, target = made.best, Target.parse(made.target)
    p = "" if best.p is None else f", p = {best.p:.2g}"
    lines: list[Any] = [
        describe_promise(made),
        f"{best.calls:.1f} of {made.full_calls:g} calls, {1 - best.calls / made.full_calls:.0%} saved. On the final "
        f"test {describe_measurement(best, target, of)}{p}.",
        f"It is promised to {of} like these on this model in this configuration; of a single picture nothing is.",
        f"Spent: {format_spent(made.spent)}.",
        "",
        f"{out / 'policy.json'}  the policy and its certificate: "
        + shlex.join(["skipstone", "generate", "...", "--policy", str(out)]),
        f"{out / 'README.md'}  what is promised, and what not",
        f"{out / 'front.png'}  the settings that were tried",
    ]
    for line in lines:
        typer.echo(line, file=sys.stdout)
