"""The same prompts and seeds under several columns: pictures, counted calls, seconds, closeness to the full run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from .. import registry
from ..backbones.module import CallCounter
from ..engine.contracts import Policy, Run
from ..engine.drivers import denoise_many
from ..engine.requests import Problem, Result
from ..errors import BackboneError, PromptError, SpecError
from ..metrics import PSNR, SSIM, Cost, JudgeScore, Metric, Sample
from ..metrics.base import worst
from .columns import Column, partner

Watch: TypeAlias = Callable[[int, int, int, Run], None]  # column, repeat, sample, run
FIXED: Policy = registry.parse("policy", "fixed")


@dataclass(frozen=True, eq=False)
class Cell:
    """One prompt under one column."""

    prompt: str
    seed: int
    pixels: Any
    result: Result
    values: dict[str, float]  # metric name -> value

    @property
    def calls(self) -> float:
        """Network calls spent on it."""
        return self.result.run.cost


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that a table, a sheet and a timeline are made of.

    `cells[c][p]` is prompt p under column c; column 0 is the full run that the others are compared with.
    `seconds[c]` is the median over the repeats of a column's time for one sample, decoding left out.
    """

    columns: tuple[Column, ...]
    cells: tuple[tuple[Cell, ...], ...]
    seconds: tuple[float, ...]
    model: str
    guidance: float
    repeats: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what was measured."""
        return tuple(dict.fromkeys(name for row in self.cells for cell in row for name in cell.values))

    def mean_calls(self, column: int) -> float:
        """Mean calls of a column's samples."""
        return statistics.fmean(cell.calls for cell in self.cells[column])

    def saving(self, column: int) -> float:
        """Share of the full run's calls that a column saves; negative where it spends more."""
        return 1 - self.mean_calls(column) / self.mean_calls(0)

    def values(self, column: int, metric: str) -> list[float]:
        """A metric of those of a column's samples that have it."""
        return [cell.values[metric] for cell in self.cells[column] if metric in cell.values]

    def median(self, column: int, metric: str) -> float:
        """Median of a metric over a column's samples."""
        return statistics.median(self.values(column, metric))

    def worst(self, column: int, metric: str) -> float:
        """The worst sample of a column by this metric."""
        return worst(registry.parse("metric", metric), self.values(column, metric))


def compare(
    model: Any,
    prompts: Sequence[str],
    columns: Sequence[Column],
    reference: Column,
    seed: int = 0,
    repeats: int = 3,
    watch: Watch | None = None,
) -> Comparison:
    """Denoise every prompt under every column.

    All samples of a column run in one batch with decisions of their own. The columns take turns, `repeats`
    times over, so that a change of the machine's mood falls on all of them.

    Args:
        model: A `Pebble`.
        prompts: One sample each, all of the same seed.
        columns: What to compare; a `fewer` is given its steps when its partner's calls are known.
        reference: The full run; becomes column 0, in place of its equal where that is among the columns.
        seed: Of every sample.
        repeats: Times that each column is run for its seconds, >= 1.
        watch: Called with (column, repeat, sample, run) at every decision.

    Raises:
        SpecError: no prompts, or fewer than one repeat.
        BackboneError: the runs claim other costs than the hook on the denoiser has counted.
    """
    if not prompts or repeats < 1:
        raise SpecError(f"Expected at least one prompt and one repeat, got {len(prompts)} and {repeats}.")
    lineup = [reference, *(c for c in columns if c != reference)]
    problems = {p: model.problem(p, seed, 1) for p in prompts}
    _warm_up(model, [problems[p] for p in prompts])
    seconds: list[list[float]] = [[] for _ in lineup]
    results: list[list[Result]] = [[] for _ in lineup]
    for repeat in range(repeats):
        for c in range(len(lineup)):
            if lineup[c].policy is None and repeat == 0:
                runs = results[partner(lineup, c)]
                lineup[c] = lineup[c].resolved(statistics.fmean(r.run.cost for r in runs))
            times = lineup[c].grid.times(model.schedule, lineup[c].steps)
            batch = [replace(problems[p], grid=times) for p in prompts]
            made, took = counted(model, batch, lineup[c], _bound(watch, c, repeat))
            results[c] = results[c] or made
            seconds[c].append(took / len(prompts))
    pictures = [model.decode([r.x for r in column]) for column in results]
    judge = getattr(model, "judge", None)
    measured: list[Metric] = [PSNR(), SSIM(), Cost(), *([JudgeScore()] if judge else [])]
    cells = tuple(
        tuple(
            _cell(prompt, seed, measured, Sample(pixels, prompt, result.run.cost, full, judge), result)
            for prompt, pixels, full, result in zip(prompts, row, pictures[0], made, strict=True)
        )
        for row, made in zip(pictures, results, strict=True)
    )
    medians = tuple(statistics.median(s) for s in seconds)
    return Comparison(tuple(lineup), cells, medians, model.name, model.guidance, repeats)


def _cell(prompt: str, seed: int, measured: Sequence[Metric], sample: Sample, result: Result) -> Cell:
    values = {}
    for metric in measured:
        # The judge reads sentences of Pebble's grammar only: other prompts are compared without it.
        with suppress(PromptError):
            values[metric.name] = metric.measure(sample)
    return Cell(prompt, seed, sample.pixels, result, values)


def _bound(watch: Watch | None, column: int, repeat: int) -> Callable[[int, Run], None] | None:
    if watch is None:
        return None
    return lambda sample, run: watch(column, repeat, sample, run)


def _warm_up(model: Any, problems: Sequence[Problem]) -> None:
    """One full batch, so that the first column does not pay for what a first call allocates."""
    denoise_many(model.backbone, problems, registry.parse("solver", "ddim"), FIXED)


def counted(
    model: Any, problems: Sequence[Problem], column: Column, watch: Callable[[int, Run], None] | None = None
) -> tuple[list[Result], float]:
    """Results and seconds of one batch, with the calls that its runs claim held against the hook's count."""
    with CallCounter(model.unet) as counter:
        began = time.perf_counter()
        results = denoise_many(model.backbone, problems, column.solver, column.policy or FIXED, watch)
        took = time.perf_counter() - began
    claimed = sum(r.run.cost for r in results)
    if abs(claimed - counter.rows / model.backbone.branches) > 1e-6:
        raise BackboneError(
            f"{column.spec}: the runs say that they cost {claimed:g} calls, but the hook on the denoiser counted "
            f"{counter.rows / model.backbone.branches:g}. Please report this."
        )
    return results, took
