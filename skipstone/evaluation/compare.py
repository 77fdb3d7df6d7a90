"""The same prompts and seeds under several columns: pictures, counted calls, seconds, closeness to the full run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .. import registry
from ..errors import MetricError, PromptError, SpecError
from ..metrics import AvailableMetrics, Metric, Sample, SetMetric, metrics_available
from ..metrics.base import worst
from .columns import Column, find_partner
from .converged import ConvergedCloseness, measure_converged
from .pixels import as_read_by
from .subject import GeneratedSample, SampleRequest, Subject, draw_or_fall_back

ComparisonProgressCallback: TypeAlias = Callable[[int, int, int, float], None]  # column, repeat, sample, share done
METRIC_ORDER = ("psnr", "ssim", "judge")  # of what is measured; other metrics follow by name


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
        """Network calls spent on the sample."""
        return self.result.calls


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that a table, a sheet and a timeline are made of.

    `cells[c][p]` is prompt p under column c; column 0 is the full run that the others are compared with.
    `seconds[c]` is the median over the repeats of a column's time for one sample, decoding left out.
    `set_values[c]` are the metrics of all pictures of a column at once: metric name -> value.
    `absent` has the metrics that could not be measured of every sample: metric name -> why.
    `converged` is closeness to the converged solution, where that was asked for.
    """

    columns: tuple[Column, ...]
    cells: tuple[tuple[ComparisonCell, ...], ...]
    seconds: tuple[float, ...]
    model: str
    guidance: float | None
    repeats: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # other arguments of the pipeline's call
    set_values: tuple[Mapping[str, float], ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    converged: ConvergedCloseness | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the samples, each once."""
        return tuple(dict.fromkeys(cell.seed for cell in self.cells[0]))

    def title(self, cell: ComparisonCell) -> str:
        """A sample's prompt, with its seed where there are several or no prompt."""
        seed = f"seed {cell.seed}" if len(self.seeds) > 1 or not cell.prompt else ""
        return ", ".join(filter(None, (cell.prompt, seed)))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what was measured of each sample."""
        return tuple(dict.fromkeys(name for row in self.cells for cell in row for name in cell.values))

    @property
    def set_metrics(self) -> tuple[str, ...]:
        """Names of what was measured of all pictures of a column at once."""
        return tuple(dict.fromkeys(name for values in self.set_values for name in values))

    def mean_calls(self, column: int) -> float:
        """Mean calls of a column's samples."""
        return statistics.fmean(cell.calls for cell in self.cells[column])

    def saving(self, column: int) -> float:
        """Share of the full run's calls that a column saves; negative where it spends more."""
        return 1 - self.mean_calls(column) / self.mean_calls(0)

    def values(self, column: int, metric: str) -> list[float]:
        """Values of a metric for those of a column's samples that have it."""
        return [cell.values[metric] for cell in self.cells[column] if metric in cell.values]

    def median(self, column: int, metric: str) -> float:
        """Median of a metric over a column's samples. Raises MetricError where no sample has it."""
        return statistics.median(self._measured(column, metric))

    def worst(self, column: int, metric: str) -> float:
        """The worst sample of a column by this metric. Raises MetricError where no sample has it."""
        return worst(registry.parse("metric", metric), self._measured(column, metric))

    def _measured(self, column: int, metric: str) -> list[float]:
        if values := self.values(column, metric):
            return values
        raise MetricError(self.absent.get(metric, f"{metric} was not measured. There are: {', '.join(self.metrics)}."))


def compare(
    subject: Subject,
    items: Sequence[SampleRequest],
    columns: Sequence[Column],
    reference: Column,
    repeats: int = 3,
    watch: ComparisonProgressCallback | None = None,
    converged: Sequence[Column] = (),
) -> Comparison:
    """Denoise every sample under every column.

    All samples of a column run in one batch with decisions of their own. The columns take turns, `repeats`
    times over, so that a change of the machine's speed falls on all of them. What is measured: every registered metric
    that `skipstone compare` takes by default and that this model and this machine allow.

    Args:
        subject: The model.
        items: Prompts and seeds.
        columns: What to compare; a `fewer` gets its steps when the calls of the column to its left are known.
        reference: The full run; becomes column 0, in place of its equal where that is among the columns.
        repeats: Times that each column is run for its seconds, >= 1.
        watch: Called with (column, repeat, sample, share done).
        converged: Two columns of `converged_columns`: measure closeness to the first, too, which the second confirms.

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
    generated, seconds = _generate_in_turns(subject, items, lineup, repeats, watch)
    pictures = [subject.pictures(row) for row in generated]
    measured = metrics_available(judge=subject.judge is not None, is_video=subject.is_video, by_default=True)
    absent: dict[str, str] = {}
    return Comparison(
        tuple(lineup),
        _measure_cells(subject, items, measured, pictures, generated, absent),
        seconds,
        subject.name,
        subject.guidance,
        repeats,
        subject.settings,
        tuple(_measure_sets(measured.sets, items, row, pictures[0], absent) for row in pictures),
        absent,
        measure_converged(subject, items, pictures, converged) if converged else None,
    )


def _generate_in_turns(
    subject: Subject,
    items: Sequence[SampleRequest],
    lineup: list[Column],
    repeats: int,
    watch: ComparisonProgressCallback | None,
) -> tuple[list[list[GeneratedSample]], tuple[float, ...]]:
    """Samples of each column's first run, and the median seconds of one sample.

    Gives every `fewer` its steps in `lineup`, and replaces presets that cannot take the loop over by their fallbacks.
    """
    seconds: list[list[float]] = [[] for _ in lineup]
    generated: list[list[GeneratedSample]] = [[] for _ in lineup]
    for repeat in range(repeats):
        for c in range(len(lineup)):
            if lineup[c].policy is None and repeat == 0:
                like = find_partner(lineup, c)
                lineup[c] = lineup[c].with_calls(_equal_steps(generated[like], lineup[like]))
            watched = _bind_callback(watch, c, repeat)
            samples, took, lineup[c] = draw_or_fall_back(subject, items, lineup[c], watched)
            generated[c] = generated[c] or samples
            seconds[c].append(took / len(items))
    return generated, tuple(statistics.median(s) for s in seconds)


def _measure_cells(
    subject: Subject,
    items: Sequence[SampleRequest],
    measured: AvailableMetrics,
    pictures: Sequence[Sequence[Any]],
    generated: Sequence[Sequence[GeneratedSample]],
    absent: dict[str, str],
) -> tuple[tuple[ComparisonCell, ...], ...]:
    """Every sample of every column, compared with column 0; what cannot be measured is entered into `absent`."""
    metrics = [m for m in measured.metrics if not m.counts_calls]
    metrics.sort(key=lambda m: METRIC_ORDER.index(m.name) if m.name in METRIC_ORDER else len(METRIC_ORDER))
    judge = subject.judge
    found = []
    for row, samples in zip(pictures, generated, strict=True):
        cells = []
        for p, (item, one) in enumerate(zip(items, samples, strict=True)):
            sample = Sample(row[p], item.prompt, one.calls, pictures[0][p], judge, one.latent, generated[0][p].latent)
            cells.append(ComparisonCell(item.prompt, item.seed, row[p], one, _measure(metrics, sample, absent)))
        found.append(tuple(cells))
    return tuple(found)


def _measure(metrics: Sequence[Metric], sample: Sample, absent: dict[str, str]) -> dict[str, float]:
    """Metric name -> value."""
    values = {}
    for metric in metrics:
        # The judge reads sentences of Pebble's grammar only, and SSIM needs 11 pixels: left out where they cannot be.
        try:
            values[metric.name] = metric.measure(as_read_by(metric, sample))
        except (PromptError, MetricError) as e:
            absent.setdefault(metric.name, str(e))
    return values


def _measure_sets(
    metrics: Sequence[SetMetric],
    items: Sequence[SampleRequest],
    pictures: Sequence[Any],
    references: Sequence[Any],
    absent: dict[str, str],
) -> dict[str, float]:
    """Metric name -> value for all pictures of a column, left out where it cannot be measured."""
    values = {}
    for metric in metrics:
        try:
            values[metric.name] = metric.measure(pictures, [item.prompt for item in items], references)
        except (PromptError, MetricError) as e:
            absent.setdefault(metric.name, str(e))
    return values


def _equal_steps(generated: Sequence[GeneratedSample], column: Column) -> float:
    """Steps to ask for so that as many calls are made in the mean as here.

    A pipeline may make fewer steps than its argument (image to image); then the fixed sampler is given more.
    """
    grids = [len(m.run.grid) - 1 for m in generated if m.run is not None] or [column.steps]
    share = statistics.fmean(grids) / column.steps
    return statistics.fmean(m.calls for m in generated) / min(1.0, share)


def _bind_callback(
    watch: ComparisonProgressCallback | None, column: int, repeat: int
) -> Callable[[int, float], None] | None:
    if watch is None:
        return None
    return lambda sample, share: watch(column, repeat, sample, share)
