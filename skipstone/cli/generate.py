"""`skipstone generate`: pictures of one prompt under one policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .files import check_targets, png, publish, slug

if TYPE_CHECKING:
    from ..bench.columns import Column
    from ..engine.requests import Result


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    policy: Annotated[str, typer.Option(help="Which steps call the network; see: skipstone list policies.")] = "fixed",
    model: options.Model = "pebble",
    steps: options.Steps = options.STEPS,
    solver: options.Solver = options.SOLVER,
    grid: options.Grid = options.GRID,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    n: Annotated[int, typer.Option("-n", help="Pictures, of seeds SEED, SEED + 1, ...", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="A folder, or a .png file where there is one picture.")] = Path(),
    force: options.Force = False,
    trace: Annotated[bool, typer.Option("--trace", help="Also write each run's decisions, for: explain.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on stdout.")] = False,
) -> None:
    """Draw a prompt, and say what it cost.

    The picture's PNG metadata hold its prompt, seed, spec and version: what
    it takes to make it again. The spec can be given back as it is:
    --policy "third_order @ dpmpp / trailing / 50".

    [bold]Examples[/bold]

      skipstone generate "a red apple on a blue background"
      skipstone generate "a cat left of a rocket" --policy third_order --trace
      skipstone generate "a fox" --policy "third_order(tol=0.05) | early_stop"
      skipstone generate "a house" --solver unipc --steps 20 -n 4 --out made
      skipstone generate "a frog" --policy third_order --json | jq .saving
    """
    from rich.console import Console

    from .. import registry
    from ..bench.columns import parse_column
    from ..errors import SpecError
    from .prompts import check_prompts

    column = parse_column(policy, registry.parse("solver", solver), registry.parse("grid", grid), steps)
    if column.policy is None:
        raise SpecError("'fewer' only makes sense in a comparison: skipstone compare ... --policies fewer.")
    errors = Console(stderr=True)
    targets = _targets(out, prompt, seed, n)
    traces = [t.with_suffix(".trace.json") for t in targets] if trace else []
    check_prompts([prompt], model, errors)
    check_targets([*targets, *traces], force)
    seeds = range(seed, seed + n)
    loaded, results, seconds = _draw(prompt, seeds, column, model, guidance, errors)
    files: dict[Path, bytes] = {}
    lines = []
    for k, (result, pixels) in enumerate(zip(results, loaded.decode([r.x for r in results]), strict=True)):
        facts = _facts(prompt, seeds[k], column, loaded, result)
        files[targets[k]] = png(pixels, facts)
        if trace:
            from ..engine.trace import to_json

            files[traces[k]] = to_json(result.run, **facts).encode()
        lines.append({"file": str(targets[k]), **facts, "seconds": seconds / n})
    publish(files)
    for line in lines:
        typer.echo(json.dumps(line, ensure_ascii=False) if as_json else _spoken(line))


def _targets(out: Path, prompt: str, seed: int, n: int) -> list[Path]:
    if out.suffix.lower() == ".png":
        return [out] if n == 1 else [out.with_stem(f"{out.stem}-{seed + k}") for k in range(n)]
    return [out / f"{slug(prompt)}-{seed + k}.png" for k in range(n)]


def _draw(
    prompt: str, seeds: range, column: Column, model: str, guidance: float | None, console: Any
) -> tuple[Any, list[Result], float]:
    """The model, the results and the seconds of denoising all seeds in one batch."""
    with console.status("Loading the model ..."):
        from ..bench.compare import counted
        from ..pebble.model import Pebble

        loaded = Pebble.load(model)
        loaded = loaded if guidance is None else loaded.guided(guidance)
    from .progress import watching

    problems = [loaded.problem(prompt, seed, column.steps, column.grid) for seed in seeds]
    with watching(console, [("Denoising", len(problems))]) as watch:
        results, seconds = counted(loaded, problems, column, lambda i, run: watch(0, 0, i, run))
    return loaded, results, seconds


def _facts(prompt: str, seed: int, column: Column, model: Any, result: Result) -> dict[str, Any]:
    from .. import __version__

    full = float(column.steps * column.solver.stages)
    return {
        "prompt": prompt,
        "seed": seed,
        "spec": column.spec,
        "model": model.name,
        "guidance": model.guidance,
        "calls": result.run.cost,
        "full_calls": full,
        "saving": 1 - result.run.cost / full,
        "status": result.status.name,
        "version": __version__,
    }


def _spoken(line: dict[str, Any]) -> str:
    troubled = "" if line["status"] == "done" else f"  {line['status']}"
    return (
        f"{line['file']}  {line['calls']:g} of {line['full_calls']:g} calls  {line['saving']:.0%} saved  "
        f"{line['seconds']:.2f} s{troubled}"
    )
