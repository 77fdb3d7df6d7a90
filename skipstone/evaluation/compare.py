"""The same prompts and seeds under several columns: pictures, counted calls, seconds, closeness to the full run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .. import registry
from ..errors import MetricError, PromptError, SpecError
from ..metrics import PSNR, SSIM, Cost, JudgeScore, Metric, Sample
from ..metrics.base import worst
from .columns import Column, find_partner
from .pixels import flatten_frames
from .subject import GeneratedSample, SampleRequest, Subject

ComparisonProgressCallback: TypeAlias = Callable[
    [int, int, int, float], None
]  # column, repeat, sample, share of its way


@dataclass(frozen=True, eq=False)
class ComparisonCell:
    """One prompt under one column."""

    prompt: str
    seed: int
    pixels: Any
    result: GeneratedSample
    values: dict[str, float]  # metric name -> value

    @property
    def calls(self) -> float:
        """Network calls spent on it."""
        return self.result.calls


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that a table, a sheet and a timeline are made of.

    `cells[c][p]` is prompt p under column c; column 0 is the full run that the others are compared with.
    `seconds[c]` is the median over the repeats of a column's time for one sample, decoding left out.
    """

    columns: tuple[Column, ...]
    cells: tuple[tuple[ComparisonCell, ...], ...]
    seconds: tuple[float, ...]
    model: str
    guidance: float | None
    repeats: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else the model was told

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the samples, each once."""
        return tuple(dict.fromkeys(cell.seed for cell in self.cells[0]))

    def title(self, cell: ComparisonCell) -> str:
        """A sample's prompt, with its seed where there are several or no prompt."""
        seed = f"seed {cell.seed}" if len(self.seeds) > 1 or not cell.prompt else ""
        return ", ".join(filter(None, (cell.prompt, seed)))

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
    subject: Subject,
    items: Sequence[SampleRequest],
    columns: Sequence[Column],
    reference: Column,
    repeats: int = 3,
    watch: ComparisonProgressCallback | None = None,
) -> Comparison:
    """Denoise every sample under every column.

    All samples of a column run in one batch with decisions of their own. The columns take turns, `repeats`
    times over, so that a change of the machine's mood falls on all of them.

    Args:
        subject: The model.
        items: What to draw.
        columns: What to compare; a `fewer` is given its steps when its partner's calls are known.
        reference: The full run; becomes column 0, in place of its equal where that is among the columns.
        repeats: Times that each column is run for its seconds, >= 1.
        watch: Called with (column, repeat, sample, share of its way).

    Raises:
        SpecError: no samples, fewer than one repeat, or a column that the subject cannot run.
        BackboneError: the runs claim other costs than the hook on the denoiser has counted.
    """
    if not items or repeats < 1:
        raise SpecError(f"Expected at least one sample and one repeat, got {len(items)} and {repeats}.")
    reference, *columns = (subject.resolve_column(c) for c in (reference, *columns))
    lineup = [reference, *(c for c in columns if c != reference)]
    subject.load(lineup)
    subject.warm_up(items, reference)
    seconds: list[list[float]] = [[] for _ in lineup]
    generated: list[list[GeneratedSample]] = [[] for _ in lineup]
    for repeat in range(repeats):
        for c in range(len(lineup)):
            if lineup[c].policy is None and repeat == 0:
                like = find_partner(lineup, c)
                lineup[c] = lineup[c].with_calls(_equal_steps(generated[like], lineup[like]))
            drawn, took = subject.draw(items, lineup[c], _bind_callback(watch, c, repeat))
            generated[c] = generated[c] or drawn
            seconds[c].append(took / len(items))
    pictures = [subject.pictures(row) for row in generated]
    judge = subject.judge
    measured: list[Metric] = [PSNR(), SSIM(), Cost(), *([JudgeScore()] if judge else [])]
    cells = tuple(
        tuple(
            _cell(
                item,
                measured,
                Sample(flatten_frames(pixels), item.prompt, one.calls, flatten_frames(full), judge),
                one,
                pixels,
            )
            for item, pixels, full, one in zip(items, row, pictures[0], drawn, strict=True)
        )
        for row, drawn in zip(pictures, generated, strict=True)
    )
    medians = tuple(statistics.median(s) for s in seconds)
    return Comparison(tuple(lineup), cells, medians, subject.name, subject.guidance, repeats, subject.settings)


def _equal_steps(generated: Sequence[GeneratedSample], column: Column) -> float:
    """Steps to ask for so that as many calls are made in the mean as here.

    A pipeline may make fewer steps than it is asked for (image to image); then the fixed sampler asks for more.
    """
    grids = [len(m.run.grid) - 1 for m in generated if m.run is not None] or [column.steps]
    kept = statistics.fmean(grids) / column.steps
    return statistics.fmean(m.calls for m in generated) / min(1.0, kept)


def _cell(
    item: SampleRequest, measured: Sequence[Metric], sample: Sample, generated: GeneratedSample, pixels: Any
) -> ComparisonCell:
    values = {}
    for metric in measured:
        # The judge reads sentences of Pebble's grammar only, and SSIM wants 11 pixels: left out where they cannot be.
        with suppress(PromptError, MetricError):
            values[metric.name] = metric.measure(sample)
    return ComparisonCell(item.prompt, item.seed, pixels, generated, values)


def _bind_callback(
    watch: ComparisonProgressCallback | None, column: int, repeat: int
) -> Callable[[int, float], None] | None:
    if watch is None:
        return None
    return lambda sample, share: watch(column, repeat, sample, share)
