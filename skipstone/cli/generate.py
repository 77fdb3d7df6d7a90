"""`skipstone generate`: pictures of one prompt under one policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import OutputError
from . import options
from .files import check_targets, encode_picture, slug, write_atomically
from .grouping import grouped
from .progress import print_memory, print_warnings, show_status

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluation.columns import Column
    from ..evaluation.subject import GeneratedSample, SampleRequest, Subject


@dataclass(frozen=True)
class OutputOptions:
    """Which pictures are drawn, and what is written of them."""

    seed: options.SeedOption = 0
    n: options.CountOption = 1
    out: Annotated[
        Path, typer.Option(help="A folder, or a file: .png of a picture, .webp of a video. Several get their seeds.")
    ] = Path()
    force: options.ForceOption = False
    trace: Annotated[bool, typer.Option("--trace", help="Also write each run's decisions, for: explain.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on stdout.")] = False

    def items(self, prompt: str) -> list[SampleRequest]:
        """The prompt, once for each seed."""
        from ..evaluation.subject import SampleRequest

        return [SampleRequest(prompt, self.seed + k) for k in range(self.n)]

    def targets(self, title: str, suffix: str) -> list[Path]:
        """The file of each picture. Raises OutputError for a file of another kind than `suffix`."""
        seeds = range(self.seed, self.seed + self.n)
        if self.out.suffix.lower() in options.FILE_SUFFIXES and not self.out.is_dir():
            if self.out.suffix.lower() != suffix:
                raise OutputError(
                    f"--out: {'videos' if suffix == '.webp' else 'pictures'} are written as {suffix}, got {self.out}. "
                    f"Write --out {self.out.with_suffix(suffix)}, or a folder."
                )
            return [self.out] if self.n == 1 else [self.out.with_stem(f"{self.out.stem}-{seed}") for seed in seeds]
        return [self.out / f"{slug(title)}-{seed}{suffix}" for seed in seeds]


@grouped
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)] = "",
    policy: options.PolicyOption = None,
    *,
    model: options.ModelOptions,
    run_on: options.BackendOptions,
    sampler: options.SamplerOptions,
    output: OutputOptions,
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

    console = Console(stderr=True)
    with show_status(console, "Looking the model up ..."):
        subject = model.subject(sampler.guidance, run_on)
    with print_warnings(console):
        column = _column(subject, subject.policy if policy is None else policy, sampler)
    _run(subject, column, prompt, output, console)


def _column(subject: Subject, policy: str, sampler: options.SamplerOptions) -> Column:
    from ..errors import SpecError
    from ..evaluation.columns import parse_column
    from ..policies.certified import Certified

    column = parse_column(policy, *sampler.sampler(subject), run_files=True)
    if column.policy is None:
        raise SpecError("'fewer' only makes sense in a comparison: skipstone compare ... -p fewer.")
    column = subject.resolve_column(column)
    typed = {name for name in ("solver", "grid", "steps") if getattr(sampler, name) is not None}
    if isinstance(column.policy, Certified) and typed:  # what is not typed is the certificate's
        asked = replace(column, **{name: getattr(sampler.sampler(subject), name) for name in typed})
        column.policy.check_sampler(subject.resolve_column(asked).way, "this command")
    return column


def _run(subject: Subject, column: Column, prompt: str, output: OutputOptions, console: Console) -> None:
    """Draw the pictures, write them, and say what they cost; what cannot be written is refused beforehand."""
    from ..errors import SpecError
    from .prompts import check_prompts

    if output.trace and column.peer is not None:
        raise SpecError(f"{column.peer.name} decides nothing that a trace could hold: leave --trace out.")
    check_prompts([prompt], subject, console)
    targets = output.targets(prompt or subject.name, ".webp" if subject.is_video else ".png")
    traces = [target.with_suffix(".trace.json") for target in targets] if output.trace else []
    check_targets([*targets, *traces], output.force)
    items = output.items(prompt)
    with print_warnings(console):
        generated, seconds, column = _draw(subject, items, column, console)
    facts = [_facts(item, column, subject, sample) for item, sample in zip(items, generated, strict=True)]
    pictures = {
        target: encode_picture(target.suffix.lower(), pixels, fact)
        for target, pixels, fact in zip(targets, subject.pictures(generated), facts, strict=True)
    }
    write_atomically(pictures | _encode_traces(traces, generated, facts), output.force)
    if column.refusal:
        console.print(column.refusal_note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    _warn_of_no_saving(column, generated, console)
    for status in dict.fromkeys(sample.status for sample in generated if sample.status.name != "done"):
        console.print(f"{status.name}: {status.value}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for target, fact in zip(targets, facts, strict=True):
        line = {"file": str(target), **fact, "seconds": seconds / output.n}
        typer.echo(json.dumps(line, ensure_ascii=False) if output.as_json else _describe(line))
    print_memory(console, subject)


def _warn_of_no_saving(column: Column, generated: Sequence[GeneratedSample], console: Console) -> None:
    """Say it where a policy made all calls of the full run."""
    from ..evaluation.table import no_saving_note

    calls, full = (sum(getattr(g, name) for g in generated) / len(generated) for name in ("calls", "full_calls"))
    if column.is_adaptive and calls >= full:
        note = no_saving_note(column.label, calls, full, column.steps)
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _encode_traces(
    targets: Sequence[Path], generated: Sequence[GeneratedSample], facts: Sequence[dict[str, Any]]
) -> dict[Path, bytes]:
    """The runs' decisions by their files; nothing where no file is named."""
    from ..engine.trace import to_json

    return {
        target: to_json(sample.run, **fact).encode()
        for target, sample, fact in zip(targets, generated, facts, strict=bool(targets))
        if sample.run is not None
    }


def _draw(
    subject: Subject, items: list[SampleRequest], column: Column, console: Console
) -> tuple[list[GeneratedSample], float, Column]:
    """All seeds in one batch, its seconds, and the column that has drawn them."""
    from ..evaluation.subject import draw_or_fall_back
    from .progress import sample_progress_bars

    with show_status(console, "Loading the model ..."):
        subject.load([column])
    with sample_progress_bars(console, [("Denoising", len(items))]) as watch:
        return draw_or_fall_back(subject, items, column, lambda sample, share: watch(0, 0, sample, share))


def _facts(item: SampleRequest, column: Column, subject: Subject, generated: GeneratedSample) -> dict[str, Any]:
    from .. import __version__

    return {
        "prompt": item.prompt,
        "seed": item.seed,
        "policy": column.title,
        "spec": column.spec,
        "model": subject.name,
        "guidance": subject.guidance,
        **({"settings": dict(subject.settings)} if subject.settings else {}),
        "calls": generated.calls,
        "full_calls": generated.full_calls,
        "saving": 1 - generated.calls / generated.full_calls,
        "status": generated.status.name,
        **({"refusal": column.refusal} if column.refusal else {}),
        "version": __version__,
    }


def _describe(line: dict[str, Any]) -> str:
    troubled = "" if line["status"] == "done" else f"  {line['status']}"
    return (
        f"{line['file']}  {line['calls']:g} of {line['full_calls']:g} calls  {line['saving']:.0%} saved  "
        f"{line['seconds']:.2f} s{troubled}"
    )
