"""`skipstone compare`: the same prompts and seed under several policies and samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..satellites import require_module
from . import options
from .files import check_targets, encode_picture, slug, write_atomically
from .grouping import grouped
from .progress import print_memory, print_warnings, show_status

if TYPE_CHECKING:
    from ..evaluation.columns import Column
    from ..evaluation.compare import Comparison
    from ..evaluation.subject import SampleRequest, Subject

SHEET, TIMELINE, TABLE, SAMPLES = "sheet.png", "timeline.png", "table.md", "samples.jsonl"


@dataclass(frozen=True)
class ComparisonOptions:
    """The samples of a comparison, what they are compared with, and where the results are written."""

    seed: options.SeedOption = 0
    n: options.CountOption = 1
    reference: Annotated[str, typer.Option(help="The full run that closeness is measured to, as a column.")] = "fixed"
    with_converged: Annotated[
        bool, typer.Option("--with-converged", help="Measure closeness to the converged solution, too: 750 calls each.")
    ] = False
    repeats: Annotated[
        int, options.number(least=1, most=1_000, help="Runs of each column for its seconds, taking turns.")
    ] = 3
    out: Annotated[Path, options.folder()] = Path("comparison")
    html: Annotated[
        Path | None,
        typer.Option(
            callback=options.check_html,
            help="Write one page to hand on, too: pictures with a slider.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on stdout.")] = False
    force: options.ForceOption = False

    @property
    def files(self) -> list[Path]:
        """What is written beside the pictures."""
        return [*(self.out / name for name in (SHEET, TIMELINE, TABLE, SAMPLES)), *filter(None, [self.html])]


@dataclass(frozen=True)
class PromptFileOptions:
    """Prompts of a file, in place of those that are typed."""

    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="What to draw: a file, or a set.", metavar="FILE|SET", show_default=False),
    ] = None
    prompt_format: options.FormatOption = None
    limit: Annotated[
        int,
        options.number(least=0, most=options.MAX_COUNT, help="Prompts of --prompts, all categories alike; 0 is all."),
    ] = 8

    def texts(self, typed: Sequence[str]) -> Sequence[str]:
        """The prompts, those that were typed where there is no file. Raises SpecError where there are both."""
        from ..errors import SpecError
        from .prompts import load_texts

        if self.prompts is None:
            return typed
        if typed:
            raise SpecError("Prompts were typed and --prompts was given, too. Leave out one of them.")
        return load_texts(self.prompts, self.limit, self.prompt_format)


@grouped
def compare(
    policies: Annotated[list[str], options.policies("A column: 'policy @ solver / grid / steps'. Repeat it.")],
    typed: Annotated[
        list[str] | None, typer.Argument(help="What to draw.", metavar="PROMPTS", show_default=False)
    ] = None,
    *,
    source: PromptFileOptions,
    model: options.ModelOptions,
    run_on: options.BackendOptions,
    sampler: options.SamplerOptions,
    comparison: ComparisonOptions,
) -> None:
    """Compare policies with the full run, and with simply taking fewer steps.

    A column is written [bold]policy @ solver / grid / steps[/bold]. What follows the @ may be
    left out, in part or in whole, and is then that of the command. The policy
    [bold]fewer[/bold] is a fixed sampler with as many steps as the column to its left
    makes calls in the mean, rounded up: what a policy has to beat. In a diffusers
    pipeline [bold]own[/bold] is its scheduler, and solvers and grids are those of diffusers.
    A policy of your own is taken from a Python file: [bold]./mine.py:Mine(tol=0.02)[/bold],
    where Mine is a class derived from skipstone.Policy, or a policy.

    With --backend mlx all columns run on MLX, from the noise that they have on
    torch: the table is torch's but for rounding.

    Writes a contact sheet, a timeline of decisions, a Markdown table, JSON
    Lines with a record for every sample, and the pictures; with --html a page
    to hand on. Calls are counted by a hook on the network.

    [bold]Examples[/bold]

      skipstone compare "a cat" "a cat above a bus" -p third_order -p fewer
      skipstone compare "a house" -p "third_order @ ddim" -p "fewer @ dpmpp"
      skipstone compare "a frog" -p error_control -p "fixed @ unipc / 20" \\
        --reference "fixed @ dpmpp / trailing / 200"
      skipstone compare "a frog" -p safe -p balanced --with-converged
      skipstone compare "a cat" --model org/name -p error_control \\
        -p fewer -p "fewer @ dpmpp / karras" --set height=512
      skipstone compare "a cat" -p "./mine.py:Mine(tol=0.02)" -p fewer
      skipstone compare --prompts three.txt -p balanced --html boss.html
    """
    run_comparison(source.texts(typed or []), policies, model, sampler, comparison, run_on)


def run_comparison(
    prompts: Sequence[str],
    policies: Sequence[str],
    model: options.ModelOptions,
    sampler: options.SamplerOptions,
    comparison: ComparisonOptions,
    run_on: options.BackendOptions | None = None,
) -> None:
    """Run the command `compare`; `demo` calls this with its own settings."""
    from rich.console import Console

    from ..errors import SpecError
    from ..evaluation.columns import parse_column, parse_columns
    from ..evaluation.folder_lock import lock_folder
    from ..evaluation.references import converged_columns
    from .prompts import check_prompts

    require_module("matplotlib", "plot")
    require_module("skimage", "metrics")
    console = Console(stderr=True)
    prompts = list(dict.fromkeys(prompts)) or [""]
    with show_status(console, "Looking the model up ..."):
        subject = model.subject(sampler.guidance, run_on)
    shared = sampler.sampler(subject)
    full = subject.resolve_column(_full_run_column(parse_column(comparison.reference, *shared)))
    columns = [c for c in map(subject.resolve_column, parse_columns(policies, *shared, run_files=True)) if c != full]
    if comparison.html and not columns:
        raise SpecError("--html shows a column beside the full run, and there is none but the full run: add -p fewer.")
    check_prompts(prompts, subject, console)
    items = _items(prompts, comparison)
    out = comparison.out
    pictures = _targets(out, [full, *columns], items, ".webp" if subject.is_video else ".png")
    with lock_folder(out):
        check_targets([*pictures.values(), *comparison.files], comparison.force)
        with print_warnings(console):
            exact = converged_columns(subject) if comparison.with_converged else ()
            result = _run_comparison_with_progress(subject, items, columns, full, exact, comparison.repeats, console)
        with show_status(console, "Drawing the sheet ..."):
            files = _files(result, pictures, comparison)
            write_atomically(files)
    if comparison.as_json:
        typer.echo(files[out / SAMPLES].decode(), nl=False)
    else:
        _show(result, comparison)
    print_memory(console, subject)


def _items(prompts: Sequence[str], comparison: ComparisonOptions) -> list[SampleRequest]:
    """Every prompt under every seed. Raises SpecError for more than one batch should have."""
    from ..errors import SpecError
    from ..evaluation.subject import SampleRequest

    if (count := len(prompts) * comparison.n) > options.MAX_PICTURES:
        raise SpecError(
            f"Expected at most {options.MAX_PICTURES} samples, which a comparison draws in one batch, got {count}. "
            f"For more of them: skipstone bench."
        )
    return [SampleRequest(prompt, comparison.seed + k) for prompt in prompts for k in range(comparison.n)]


def _targets(
    out: Path, columns: Sequence[Column], items: Sequence[SampleRequest], suffix: str
) -> dict[tuple[int, int], Path]:
    """File names of pictures by (column, sample)."""
    names = [f"{p + 1:02d}-{slug(item.prompt or f'seed {item.seed}', 40)}" for p, item in enumerate(items)]
    return {
        (c, p): out / "pictures" / f"{name}-{c}-{slug(column.label, 40)}{suffix}"
        for c, column in enumerate(columns)
        for p, name in enumerate(names)
    }


def _full_run_column(column: Column) -> Column:
    from ..errors import SpecError

    if column.policy is None:
        raise SpecError("'fewer' has no calls of its own to start from; choose another --reference.")
    return column


def _run_comparison_with_progress(
    subject: Subject,
    items: Sequence[SampleRequest],
    columns: Sequence[Column],
    full: Column,
    converged: Sequence[Column],
    repeats: int,
    console: Any,
) -> Comparison:
    from ..evaluation.compare import compare as measure
    from .progress import sample_progress_bars

    with show_status(console, "Loading the model ..."):
        subject.load([full, *columns])
    bars = [(column.label, len(items)) for column in [full, *columns]]
    with sample_progress_bars(console, bars, repeats) as watch:
        return measure(subject, items, columns, full, repeats, watch, converged)


def _files(
    result: Comparison, pictures: dict[tuple[int, int], Path], comparison: ComparisonOptions
) -> dict[Path, bytes]:
    from ..evaluation.comparison_page import render_comparison
    from ..evaluation.contact_sheet import render_sheet
    from ..evaluation.table import format_json_lines, format_markdown, make_records
    from ..evaluation.timeline import render_timeline

    out = comparison.out
    found = make_records(result, {key: path.relative_to(out).as_posix() for key, path in pictures.items()})
    names = [(c, p) for c in range(len(result.columns)) for p in range(len(result.cells[0]))]
    files = {
        pictures[c, p]: encode_picture(pictures[c, p].suffix, result.cells[c][p].pixels, record)
        for (c, p), record in zip(names, found, strict=True)
    }
    files[out / SHEET] = render_sheet(result)
    files[out / TIMELINE] = render_timeline(result)
    files[out / TABLE] = format_markdown(result).encode()
    files[out / SAMPLES] = format_json_lines(found).encode()
    if comparison.html:
        files[comparison.html] = render_comparison(result).encode()
    return files


def _show(result: Comparison, comparison: ComparisonOptions) -> None:
    """Print the table for a terminal, its notes, and the paths of all files."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.table import format_notes, format_rows, preset_notes

    head, *body = format_rows(result)
    table = Table(box=None, pad_edge=False)
    for k, title in enumerate(head):
        table.add_column(title, justify="right" if k else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    console = Console()
    console.print(table, highlight=False, markup=False)
    console.print()
    for note in [*preset_notes(result), *format_notes(result)]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print()
    words = ("the pictures", "the decisions", "the table", "every sample", "the page to hand on")
    for path, what in zip(comparison.files, words, strict=False):
        console.print(f"{path}  {what}", highlight=False, markup=False, soft_wrap=True)
