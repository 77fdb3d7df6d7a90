"""`skipstone generate`: pictures of one prompt under one policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .files import check_targets, encode_picture, slug, write_atomically
from .progress import print_warnings

if TYPE_CHECKING:
    from ..evaluation.columns import Column
    from ..evaluation.subject import GeneratedSample, SampleRequest, Subject


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)] = "",
    policy: Annotated[
        str | None,
        typer.Option(
            help="Which steps call the network; see: skipstone list policies; or a folder of skipstone calibrate. "
            "balanced by default, error_control in diffusers pipelines.",
            show_default=False,
        ),
    ] = None,
    model: options.ModelOption = "pebble",
    steps: options.StepsOption = None,
    solver: options.SolverOption = None,
    grid: options.GridOption = None,
    guidance: options.GuidanceOption = None,
    seed: options.SeedOption = 0,
    n: Annotated[int, typer.Option("-n", help="Pictures, of seeds SEED, SEED + 1, ...", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="A folder, or a file where there is one picture.")] = Path(),
    force: options.ForceOption = False,
    trace: Annotated[bool, typer.Option("--trace", help="Also write each run's decisions, for: explain.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on stdout.")] = False,
    settings: options.SettingsOption = None,
    image: options.ImageOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "auto",
    as_guest: options.AsGuestOption = False,
) -> None:
    """Draw a prompt, and say what it cost.

    The picture's metadata hold its prompt, seed, spec and version: what it
    takes to make it again. The spec can be given back as it is:
    --policy "third_order @ dpmpp / trailing / 50".

    Any diffusers pipeline will do for --model: it keeps its loop, scheduler and
    number of steps unless others are said. Videos are written as animated
    WebP. Classes are prompted by name or number; models that take no prompt
    are given none.

    [bold]Examples[/bold]

      skipstone generate "a red apple on a blue background"
      skipstone generate "a cat left of a rocket" --policy third_order --trace
      skipstone generate "a fox" --policy "third_order(tol=0.05) | early_stop"
      skipstone generate "a house" --solver unipc --steps 20 -n 4 --out made
      skipstone generate "a frog" --policy third_order --json | jq .saving
      skipstone generate "a frog" --model org/name --policy error_control \\
        --set height=768 --set negative_prompt=blurry --dtype bfloat16
    """
    from rich.console import Console

    from ..errors import SpecError
    from ..evaluation.subject import SampleRequest
    from .prompts import check_prompts

    errors = Console(stderr=True)
    with errors.status("Looking the model up ..."):
        subject = options.ModelChoice(model, guidance, settings or (), image, device, dtype, as_guest).subject()
    with print_warnings(errors):
        column = _column(subject, policy or subject.policy, solver, grid, steps)
    if trace and column.peer is not None:
        raise SpecError(f"{column.peer.name} decides nothing that a trace could hold: leave --trace out.")
    check_prompts([prompt], subject, errors)
    targets = _targets(out, prompt or subject.name, seed, n, ".webp" if subject.is_video else ".png")
    traces = [t.with_suffix(".trace.json") for t in targets] if trace else []
    check_targets([*targets, *traces], force)
    items = [SampleRequest(prompt, seed + k) for k in range(n)]
    with print_warnings(errors):
        generated, seconds = _draw(subject, items, column, errors)
    files: dict[Path, bytes] = {}
    lines = []
    for k, pixels in enumerate(subject.pictures(generated)):
        facts = _facts(items[k], column, subject, generated[k])
        files[targets[k]] = encode_picture(targets[k].suffix, pixels, facts)
        if traces and (run := generated[k].run) is not None:
            from ..engine.trace import to_json

            files[traces[k]] = to_json(run, **facts).encode()
        lines.append({"file": str(targets[k]), **facts, "seconds": seconds / n})
    write_atomically(files)
    for line in lines:
        typer.echo(json.dumps(line, ensure_ascii=False) if as_json else _spoken(line))


def _column(subject: Subject, policy: str, solver: str | None, grid: str | None, steps: int | None) -> Column:
    from ..errors import SpecError
    from ..evaluation.columns import parse_column
    from ..evaluation.subject import resolve_sampler

    column = parse_column(policy, *resolve_sampler(subject, solver, grid, steps))
    if column.policy is None:
        raise SpecError("'fewer' only makes sense in a comparison: skipstone compare ... --policies fewer.")
    return subject.resolve_column(column)


def _targets(out: Path, title: str, seed: int, n: int, suffix: str) -> list[Path]:
    if out.suffix.lower() == suffix:
        return [out] if n == 1 else [out.with_stem(f"{out.stem}-{seed + k}") for k in range(n)]
    return [out / f"{slug(title)}-{seed + k}{suffix}" for k in range(n)]


def _draw(
    subject: Subject, items: list[SampleRequest], column: Column, console: Any
) -> tuple[list[GeneratedSample], float]:
    """All seeds in one batch, and its seconds."""
    from .progress import sample_progress_bars

    with console.status("Loading the model ..."):
        subject.load([column])
    with sample_progress_bars(console, [("Denoising", len(items))]) as watch:
        return subject.draw(items, column, lambda sample, share: watch(0, 0, sample, share))


def _facts(item: SampleRequest, column: Column, subject: Subject, generated: GeneratedSample) -> dict[str, Any]:
    from .. import __version__

    return {
        "prompt": item.prompt,
        "seed": item.seed,
        "spec": column.spec,
        "model": subject.name,
        "guidance": subject.guidance,
        **({"settings": dict(subject.settings)} if subject.settings else {}),
        "calls": generated.calls,
        "full_calls": generated.full_calls,
        "saving": 1 - generated.calls / generated.full_calls,
        "status": generated.status.name,
        "version": __version__,
    }


def _spoken(line: dict[str, Any]) -> str:
    troubled = "" if line["status"] == "done" else f"  {line['status']}"
    return (
        f"{line['file']}  {line['calls']:g} of {line['full_calls']:g} calls  {line['saving']:.0%} saved  "
        f"{line['seconds']:.2f} s{troubled}"
    )
