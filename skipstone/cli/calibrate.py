"""`skipstone calibrate`: say the quality, get the speed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .progress import print_warnings, progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from ..policies.certified import Certified


def calibrate(
    target: Annotated[str, typer.Option(help="The quality: 'METRIC >= LEVEL @ PERCENT%', or '@ mean'.")],
    prompts: Annotated[str, typer.Option(help="What you will draw, or like it: a file, or a set.", metavar="FILE|SET")],
    out: Annotated[Path, typer.Option(help="A folder for the policy and its certificate.")],
    model: options.ModelOption = "pebble",
    confidence: Annotated[
        str, typer.Option(help="That the promise holds. none: means only, in expectation.", metavar="NUMBER|none")
    ] = "0.9",
    setting: Annotated[
        list[str] | None,
        typer.Option("--setting", "-p", help="A column to choose from; a ladder by default. Repeat it."),
    ] = None,
    samplers: Annotated[bool, typer.Option("--samplers", help="Try fixed samplers with fewer steps, too.")] = False,
    reference: Annotated[str, typer.Option(help="full, converged, or a column.")] = "full",
    groups: Annotated[str | None, typer.Option(help="category: promise it to each of them.")] = None,
    limit: Annotated[int, typer.Option(help="Prompts; 0 takes all of them.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of the split and the samples.")] = 0,
    steps: options.StepsOption = None,
    solver: options.SolverOption = None,
    grid: options.GridOption = None,
    guidance: options.GuidanceOption = None,
    batch: Annotated[int, typer.Option(help="Samples of one call.", min=1)] = 8,
    cache: Annotated[
        Path | None, typer.Option(help="Of full runs and scores. ~/.cache/skipstone by default.", show_default=False)
    ] = None,
    force: options.ForceOption = False,
    settings: options.SettingsOption = None,
    image: options.ImageOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "auto",
    as_guest: options.AsGuestOption = False,
) -> None:
    """Find the fastest setting that keeps a promise of quality.

    [bold]psnr >= 30 @ 90%[/bold] asks for pictures within 30 dB of the full run's of the
    same seed, for at least 90 % of future prompts. A third of the prompts finds
    out which settings are worth testing; the others test them, so that the
    promise holds with the stated confidence: for prompts like these, on this
    model, in this configuration. What was drawn is kept in the cache: after
    Ctrl-C the same command goes on.

    Exit code 3: no setting can be promised to meet the target.

    [bold]Examples[/bold]

      skipstone calibrate --prompts pebble-tuning --target "psnr >= 30 @ 90%" --out mine
      skipstone generate "a red apple" --policy mine
      skipstone calibrate --model org/name --prompts prompts.txt \\
        --target "ssim >= 0.95 @ 95%" --confidence 0.95 --out mine
      skipstone calibrate --prompts pebble --target "ssim >= 0.99 @ mean" --out mine
    """
    from rich.console import Console

    from ..calibration import cache as caches
    from ..calibration.calibration import Calibration, CalibrationOptions
    from .prompts import check_prompts

    console = Console(stderr=True)
    _check_writable(out, force)
    choice = options.ModelChoice(model, guidance, settings or (), image, device, dtype, as_guest)
    source = {"model": model, "guidance": guidance, "settings": list(settings or ()), "dtype": dtype}
    source |= {"image": str(image) if image else None, "as_guest": as_guest}
    asked = CalibrationOptions(
        confidence=_confidence(confidence),
        settings=tuple(setting or ()),
        samplers=samplers,
        reference=reference,
        groups=groups,
        solver=solver,
        grid=grid,
        steps=steps,
        seed=seed,
        batch=batch,
        limit=limit or None,
        source=source,
    )

    def say(what: str) -> None:
        console.print(what, style="yellow", markup=False, highlight=False, soft_wrap=True)

    with console.status("Looking the model up ..."):
        planned = Calibration.of(choice.subject(), prompts, target, asked)
    eval_samples = (*planned.samples.search, *planned.samples.test)
    check_prompts([eval_sample.prompt.text for eval_sample in eval_samples], planned.subject, console)
    if planned.samples.num_duplicates:
        say(planned.duplicates_message)
    for line in planned.plan:
        _print(console, line)
    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            policy = planned.run(caches.folder(cache), on_progress, say, lambda line: _print(console, line))
    except KeyboardInterrupt:
        _print(console, "Stopped. What is drawn is kept in the cache; the same command goes on.")
        raise
    policy.save_pretrained(out)
    _show(policy, out)


def audit(
    folder: Annotated[Path, typer.Argument(help="The --out of skipstone calibrate.")],
    samples: Annotated[int, typer.Option(help="Samples to draw now.", min=1)] = 20,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="What is drawn now; the calibration's own by default.", metavar="FILE|SET", show_default=False
        ),
    ] = None,
    false_alarm: Annotated[float, typer.Option(help="Chance of ever raising an alarm for nothing.")] = 0.05,
    model: Annotated[
        str | None, typer.Option(help="The model, where it is elsewhere by now.", metavar="pebble|PATH|ID")
    ] = None,
    device: options.DeviceOption = None,
    batch: Annotated[int, typer.Option(help="Samples of one call.", min=1)] = 8,
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

    from ..calibration.audit import audit as look
    from ..calibration.audit import load_certified

    console = Console(stderr=True)
    source = load_certified(folder).certificate.source
    image = source.get("image")
    choice = options.ModelChoice(
        model or source.get("model", "pebble"),
        source.get("guidance"),
        source.get("settings", ()),
        Path(image) if image else None,
        device,
        source.get("dtype", "auto"),
        source.get("as_guest", False),
    )
    with console.status("Looking the model up ..."):
        subject = choice.subject()
    with print_warnings(console), progress_bar(console) as on_progress:
        found = look(
            folder,
            subject,
            samples=samples,
            prompts=prompts,
            false_alarm=false_alarm,
            cache=cache,
            batch=batch,
            on_progress=on_progress,
        )
    for line in found.words:
        typer.echo(line)
    if found.alarm:
        raise typer.Exit(4)


def _confidence(said: str) -> float | None:
    from ..errors import SpecError

    if said.strip().lower() == "none":
        return None
    try:
        return float(said)
    except ValueError:
        raise SpecError(f"--confidence: expected a number such as 0.9, or none, got {said!r}.") from None


def _check_writable(out: Path, force: bool) -> None:
    """Refuse, before anything is drawn, what could not be saved after it."""
    from ..policies.saved import FILE
    from .files import check_targets

    check_targets([out / FILE], force)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show(policy: Certified, out: Path) -> None:
    """What was found, and how to use it."""
    from ..calibration.certificate import describe_measurement, describe_promise
    from ..calibration.scores import format_spent
    from ..calibration.target import Target

    made = policy.certificate
    best, target = made.best, Target.parse(made.target)
    p = "" if best.p is None else f", p = {best.p:.2g}"
    lines: list[Any] = [
        describe_promise(made),
        f"{best.calls:.1f} of {made.full_calls:g} calls, {1 - best.calls / made.full_calls:.0%} saved. On the final "
        f"test {describe_measurement(best, target)}{p}.",
        "It is promised to prompts like these on this model in this configuration; of a single picture nothing is.",
        f"Spent: {format_spent(made.spent)}.",
        "",
        f"{out / 'policy.json'}  the policy and its certificate: "
        + shlex.join(["skipstone", "generate", "...", "--policy", str(out)]),
        f"{out / 'README.md'}  what is promised, and what not",
        f"{out / 'front.png'}  the settings that were tried",
    ]
    for line in lines:
        typer.echo(line, file=sys.stdout)
