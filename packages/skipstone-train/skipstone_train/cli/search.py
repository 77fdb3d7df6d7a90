"""`skipstone search`: smaller networks of a model that inherit its weights."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstone.cli import options
from skipstone.cli.grouping import grouped
from skipstone.cli.progress import progress_bar
from skipstone.cli.tracking import tracked
from skipstone.errors import OutputError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from ..architecture.report import Child
    from ..architecture.search import ArchitectureSearch, SearchResult
    from ..architecture.settings import SearchSettings

OBJECTIVE = "judge, milliseconds, megabytes"


@dataclass(frozen=True)
class WhatOptions:
    """What is searched, for what, and how long."""

    model: options.ModelOption = "pebble-dit"
    space: Annotated[Path | None, typer.Option(help="YAML: values of each part of a shape.", metavar="FILE")] = None
    budget: Annotated[str, typer.Option(help="Of drawing and training, earlier starts included.", metavar="TIME")] = (
        "1h"
    )
    objective: Annotated[
        str,
        typer.Option(help="judge, error, milliseconds, megabytes: what children are compared by.", metavar="NAME,..."),
    ] = OBJECTIVE
    out: Annotated[Path, options.folder("Of everything; what was begun there goes on.")] = Path("search")
    as_json: Annotated[bool, typer.Option("--json", help="Print the front for a program.")] = False


@dataclass(frozen=True)
class HowOptions:
    """How children are proposed, trained and measured."""

    sampler: Annotated[str, typer.Option(help="tpe or nsga2 of Optuna, or random.")] = "tpe"
    train_steps: Annotated[int, options.number(least=1, most=10_000_000, help="Of a child that goes all the way.")] = (
        900
    )
    rungs: Annotated[
        int, options.number(least=1, most=6, help="Lengths of training; with 1 all children go all the way.")
    ] = 3
    factor: Annotated[int, options.number(least=2, most=10, help="One in so many goes on to the next rung.")] = 3
    batch: Annotated[int, options.number(least=2, most=4096, help="Rows of a training step, even.")] = 64
    rate: Annotated[float, options.number(least=0, most=1, help="Peak learning rate.")] = 1e-3
    precision: Annotated[str, typer.Option(help="bf16 or no (float32), of training.")] = "bf16"
    drawings: Annotated[
        int, options.number(least=2, most=1_000_000, help="Pictures of the teacher that children learn from.")
    ] = 1024
    row_steps: Annotated[int, options.number(least=2, most=1000, help="Of each of them.")] = 10
    checked: Annotated[int, options.number(least=1, most=10_000, help="Prompts that children are judged on.")] = 32
    picture_steps: Annotated[int, options.number(least=1, most=1000, help="Of the pictures that are judged.")] = 12
    seed: Annotated[int, options.number(least=0, most=2**31, help="Of everything random.")] = 0

    def settings(self) -> SearchSettings:
        """The options as settings. Raises SpecError."""
        from ..architecture.settings import SearchSettings

        chosen: Any = vars(self)
        return SearchSettings(**chosen)


@dataclass(frozen=True)
class SearchPrompts:
    """What the teacher draws, and what children are judged on."""

    prompts: Annotated[
        str | None,
        typer.Option(help="What the teacher draws. pebble-training for pebble-dit.", metavar="FILE|SET",
                     show_default=False),
    ] = None  # fmt: skip
    check: Annotated[
        str | None,
        typer.Option(help="What children are judged on. pebble-tuning for pebble-dit.", metavar="FILE|SET",
                     show_default=False),
    ] = None  # fmt: skip
    prompt_format: options.FormatOption = None

    def texts(self, model: str, given: str | None, ending: str, flag: str) -> list[str]:
        """The prompts of one side. Raises SpecError where none are given and the model brings none."""
        from skipstone.evaluation.models import find_model_package
        from skipstone.evaluation.prompts import load_prompts

        package = find_model_package(model)
        own = next((name for name in package.prompt_sets if name.endswith(ending)), None) if package else None
        source = given or own
        if source is None:
            raise SpecError(f"Expected {flag} FILE, as this model brings no prompts.")
        return [prompt.text for prompt in load_prompts(source, prompt_format=self.prompt_format)]


@tracked
@grouped
def search(what: WhatOptions, how: HowOptions, prompts: SearchPrompts) -> None:
    """Search smaller networks of a model: fewer blocks, channels, heads and hidden units.

    Every child inherits the model's weights as far as they fit and learns its
    outputs for minutes. The best third of each length of training goes on to the
    next. Milliseconds are measured on this machine, in turns with the model.

    Writes the children that no other one beats as models, each a folder that
    every command takes as [bold]--model[/bold], and report.md with a table, a plot of the
    front and the importance of each choice. Ctrl-C keeps what was found; the
    same command goes on, and a longer [bold]--budget[/bold] finds more.

    A space is a YAML file with values of depth, width, heads, mlp_ratio,
    activation (gelu, silu, geglu), layers (cut, merged); others are the model's.

    [bold]Examples[/bold]

      skipstone search --model pebble-dit --space space.yaml --budget 2h \\
        --objective "judge, milliseconds, megabytes"
      skipstone search --space one_shape.yaml --rungs 1 --train-steps 8000 \\
        --budget 1h --out child
      skipstone compare "a cat" \\
        --model search/front/depth3-mlp_ratio2-gelu -p balanced
    """
    from rich.console import Console

    from skipstone.evaluation.folder_lock import lock_folder

    from ..architecture.report import to_json, write_result
    from ..architecture.settings import parse_duration

    console, out = Console(stderr=True), what.out
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out: expected a folder, got a file, {out}. Choose another --out.")
    seconds = parse_duration(what.budget)
    prepared = _prepare(what, how, prompts, console)
    with lock_folder(out):
        try:
            with progress_bar(console) as on_progress:
                prepared.on_progress = on_progress
                result = prepared.run(seconds)
        except KeyboardInterrupt:
            console.print(f"Stopped. What was found is in {out}; the same command goes on.", soft_wrap=True)
            raise
        with console.status("Writing the children ..."):
            children = write_result(prepared, result, ["skipstone", *sys.argv[1:]])
    if what.as_json:
        typer.echo(json.dumps(to_json(prepared, children, {}), indent=1))
    else:
        _show(prepared, result, children)


def _prepare(what: WhatOptions, how: HowOptions, prompts: SearchPrompts, console: Console) -> ArchitectureSearch:
    """The search; everything that was said is checked before the model is loaded."""
    from skipstone.evaluation.models import find_model_package, load_embedded

    from ..architecture.objectives import Objectives
    from ..architecture.search import ArchitectureSearch, with_checks
    from ..architecture.space import read_space

    if what.space is None:
        raise SpecError(
            "Expected --space FILE: YAML with values of depth, width, heads, mlp_ratio, activation, layers."
        )
    space, objectives = read_space(what.space), Objectives.parse(what.objective)
    if find_model_package(what.model) is None:
        raise SpecError(
            f"--model: expected pebble-dit, or a folder in its format, got {what.model}: other models have no search."
        )
    texts = prompts.texts(what.model, prompts.prompts, "-training", "--prompts")
    checks = prompts.texts(what.model, prompts.check, "-tuning", "--check")
    settings = with_checks(how.settings(), texts, checks)
    with console.status("Loading the model ..."):
        model = load_embedded(what.model)
    return ArchitectureSearch(model, space, objectives, settings, texts, checks[: settings.checked], what.out)


def _show(search: ArchitectureSearch, result: SearchResult, children: Sequence[Child]) -> None:
    from ..architecture.report import REPORT, format_figure

    for child in children:
        figures = ", ".join(f"{name} {format_figure(name, value)}" for name, value in child.evaluation.values.items())
        speed = child.evaluation.details["speed"]
        typer.echo(f"{child.evaluation.candidate.name}: {figures}, {speed:.2f} x its teacher's speed")
    failed = sum(bool(one.failure) for one in result.found)
    typer.echo(f"{search.folder / REPORT}: the table of {len(result.found)} evaluations, {failed} of which failed")
    if children:
        command = ["skipstone", "compare", "a cat", "--model", str(children[0].folder), "-p", "balanced"]
        typer.echo(f"See one: {shlex.join(command)}")
