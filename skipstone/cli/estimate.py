"""`skipstone estimate`: what a policy saves in seconds, on this machine and model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..satellites import require_module
from . import options
from .grouping import grouped
from .progress import print_warnings, progress_bar, show_status

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluation.columns import Column
    from ..evaluation.estimate import SavingEstimate
    from ..evaluation.subject import SampleRequest, Subject


@dataclass(frozen=True)
class EstimateOptions:
    """How much is run, and how the result is shown."""

    prompt_format: options.FormatOption = None
    limit: Annotated[
        int, options.number(least=1, most=options.MAX_PICTURES, help="Prompts of the file; others are left out.")
    ] = 3
    seed: options.SeedOption = 0
    batch: Annotated[int, options.number(least=1, most=options.MAX_PICTURES, help="Pictures of one call.")] = 1
    repeats: Annotated[int, options.number(least=1, most=1_000, help="Runs of each, taking turns.")] = 2
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False


@grouped
def estimate(
    policies: Annotated[
        list[str] | None,
        options.policies(
            "A policy, or a column. Repeat it. balanced by default, error_control in diffusers pipelines.",
            show_default=False,
        ),
    ] = None,
    prompts: options.PromptsOption = None,
    *,
    model: options.ModelOptions,
    sampler: options.SamplerOptions,
    asked: EstimateOptions,
) -> None:
    """Measure what a policy saves in seconds, on this machine and model.

    Draws three prompts in full and under the policy, taking turns, and takes the
    seconds of their denoising loops: what the policy itself costs is in them.
    That takes as long as some ten pictures, less than a minute on the embedded
    model. Writes no files.

    [bold]Examples[/bold]

      skipstone estimate --prompts pebble-tuning
      skipstone estimate --model org/name --prompts three.txt -p error_control
      skipstone estimate --model org/name --prompts three.txt --repeats 1 --json
    """
    from rich.console import Console

    from ..evaluation.columns import parse_column, parse_columns
    from .prompts import check_prompts

    require_module("skimage", "metrics")
    console = Console(stderr=True)
    with show_status(console, "Looking the model up ..."):
        subject = model.subject(sampler.guidance)
    shared = sampler.sampler(subject)
    full = subject.resolve_column(parse_column("fixed", *shared))
    specs = policies or [subject.policy]
    columns = [subject.resolve_column(column) for column in parse_columns(specs, *shared, run_files=True)]
    items = _items(subject, prompts, asked)
    check_prompts([item.prompt for item in items], subject, console)
    found = _run(subject, items, columns, full, asked, console)
    if asked.as_json:
        typer.echo(json.dumps(_record(subject, found, full.spec, asked, len(items)), ensure_ascii=False))
    else:
        _show(subject, found, asked, len(items))


def _items(subject: Subject, prompts: str | None, asked: EstimateOptions) -> list[SampleRequest]:
    """The prompts under a seed each; seeds alone of a model that takes no prompts."""
    from ..evaluation.subject import SampleRequest
    from .prompts import check_samples_option, load_texts

    if check_samples_option(subject, prompts, None) or prompts is None:
        return [SampleRequest("", asked.seed + k) for k in range(asked.limit)]
    found = load_texts(prompts, asked.limit, asked.prompt_format)
    return [SampleRequest(text, asked.seed + k) for k, text in enumerate(found)]


def _run(
    subject: Subject,
    items: Sequence[SampleRequest],
    columns: Sequence[Column],
    full: Column,
    asked: EstimateOptions,
    console: Console,
) -> list[SavingEstimate]:
    """The estimates; progress and warnings on the console."""
    from ..evaluation.estimate import estimate_savings

    try:
        with print_warnings(console), progress_bar(console) as on_progress:
            on_progress("Loading", 0, 1)
            subject.load([full, *columns])
            return estimate_savings(subject, items, columns, full, asked.batch, asked.repeats, on_progress)
    except KeyboardInterrupt:
        console.print("Stopped. Nothing was written.")
        raise


def _record(
    subject: Subject, found: Sequence[SavingEstimate], full: str, asked: EstimateOptions, pictures: int
) -> dict[str, Any]:
    """The estimates as JSON has them: seconds of one picture, null for a PSNR of identical pictures."""
    from .. import __version__
    from ..evaluation.fingerprint import describe_machine

    return {
        "model": subject.name,
        "guidance": subject.guidance,
        **({"settings": dict(subject.settings)} if subject.settings else {}),
        "full_run": full,
        "pictures": pictures,
        "batch": asked.batch,
        "repeats": asked.repeats,
        "policies": [
            {
                "policy": one.column.title,
                "spec": one.column.spec,
                **({"refusal": one.column.refusal} if one.column.refusal else {}),
                "calls": one.calls,
                "full_calls": one.full_calls,
                "seconds": one.seconds,
                "full_seconds": one.full_seconds,
                "saved_seconds": one.saved,
                "saved_seconds_least": one.least,
                "saved_seconds_most": one.most,
                "saved_share": one.share,
                "overhead_seconds": one.overhead,
                "psnr": [value if math.isfinite(value) else None for value in one.psnr],
            }
            for one in found
        ],
        "machine": describe_machine(subject),
        "version": __version__,
    }


def _show(subject: Subject, found: Sequence[SavingEstimate], asked: EstimateOptions, pictures: int) -> None:
    """Print the table for a terminal, and what must be known to read it."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.fingerprint import describe_machine

    table = Table(box=None, pad_edge=False)
    for k, title in enumerate(("policy", "calls", "seconds", "of them overhead", "saved", "worst PSNR, dB")):
        table.add_column(title, justify="right" if k else "left", overflow="fold")
    table.add_row("full run", f"{found[0].full_calls:.1f}", f"{found[0].full_seconds:.2f}", "", "", "")
    for row in map(_cells, found):
        table.add_row(*row)
    console = Console()
    console.print(table, highlight=False, markup=False)
    console.print()
    for line in _sentences(found, asked, pictures):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(describe_machine(subject), highlight=False, markup=False, soft_wrap=True)


def _cells(one: SavingEstimate) -> list[str]:
    from ..metrics.closeness import format_decibels

    worst = format_decibels(min(one.psnr)) if one.psnr else ""
    return [
        one.column.label,
        f"{one.calls:.1f}",
        f"{one.seconds:.2f}",
        f"{one.overhead:.2f}",
        f"{one.share:.0%}",
        worst,
    ]


def _sentences(found: Sequence[SavingEstimate], asked: EstimateOptions, pictures: int) -> Iterator[str]:
    """The result of each policy in words, and what was measured."""
    for one in found:
        spread = f"{one.least:.2f} to {one.most:.2f} s in the {-(-pictures // asked.batch)} batches"
        verb = "saves" if one.saved >= 0 else "costs"
        saved = f"{verb} {abs(one.saved):.2f} s a picture, {abs(one.saved) * 1000:.0f} s for 1000"
        yield f"{one.column.title} {saved} ({spread})."
    yield from dict.fromkeys(one.column.refusal_note for one in found if one.column.refusal)
    yield (
        f"Seconds of one picture's denoising loop, {pictures} pictures in batches of {asked.batch}, the median of "
        f"{asked.repeats} runs each, taking turns. Encoding the prompt and decoding the picture are not in them."
    )
    yield (
        "PSNR is to the full run of the same seed. Whether fewer steps of a fixed sampler are as good: "
        "skipstone compare --prompts FILE -p ... -p fewer"
    )
