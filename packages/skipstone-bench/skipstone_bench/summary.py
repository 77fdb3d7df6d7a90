"""A benchmark's records as the figures of its rows: centre, unlucky tenth and worst, with intervals."""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from typing import Any

from skipstone import registry
from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.files import IDENTICAL_PSNR
from skipstone.evaluation.statistics import (
    ConfidenceInterval,
    Direction,
    bootstrap,
    bootstraps,
    mean,
    median,
    prompt_id_of,
    tail_statistic,
)

from .store import Header, Record, RowInfo, Store, Timing

RECORD_NAMES = {"latent_error": "latent"}  # of metrics that records have under another name
SIDES = ("_full", "_converged")  # what a picture is compared with
BEST_FIXED = "best fixed sampler"  # the family of those that tuning has chosen
BORROWED = ("third_order_released", "sada", "zeus")  # policies of ours that are somebody else's published rule
HEADROOM = 10.0  # dB that the two converged solutions must agree beyond any reported figure


@dataclass(frozen=True)
class MetricSummary:
    """A metric over the samples of a row. The worst sample has no interval: no bootstrap gives one."""

    better: Direction
    median: ConfidenceInterval
    mean: ConfidenceInterval
    tail: ConfidenceInterval  # the unlucky tenth: 10 % quantile, 90 % where lower is better
    worst: float
    worst_sample: str


@dataclass(frozen=True)
class TableRow:
    """One row of the table; figures are absent of a row that did not run.

    `seconds` and `speed` (full run's seconds of the same repeat over these) are medians over the repeats of the
    timing, their ends the smallest and largest repeat.
    """

    info: RowInfo
    n: int  # samples
    failed: int  # of them, runs that did not end as they should
    identical: int  # pictures that are the full run's to the last bit
    calls: ConfidenceInterval | None
    least: float
    most: float
    cond: float
    uncond: float
    macs: float | None
    macs_calls: float | None
    seconds: ConfidenceInterval | None
    speed: ConfidenceInterval | None
    peak_bytes: int | None
    figures: Mapping[str, MetricSummary]

    @property
    def ran(self) -> bool:
        """Whether there is anything to show."""
        return self.n > 0

    @property
    def group(self) -> str:
        """Whose the row is: published rules that run as policies of ours are their authors'."""
        borrowed = self.info.group == "ours" and self.info.spec.startswith(BORROWED)
        return "peer" if borrowed else self.info.group

    @property
    def cost(self) -> float:
        """Multiply-accumulates in full calls, the only fair cost of what caches blocks; calls where not counted."""
        return self.macs_calls if self.macs_calls is not None else self.calls.value if self.calls else math.nan

    def median(self, metric: str) -> float:
        """Median of a metric, NaN where it was not measured."""
        return self.figures[metric].median.value if metric in self.figures else math.nan

    def tail(self, metric: str) -> float:
        """Unlucky tenth of a metric, NaN where it was not measured."""
        return self.figures[metric].tail.value if metric in self.figures else math.nan


@dataclass(frozen=True)
class Summary:
    """All rows of a benchmark with the records that they were made from."""

    header: Header
    rows: tuple[TableRow, ...]
    records: Mapping[str, Mapping[str, Record]]  # row -> sample -> record
    timings: tuple[Timing, ...]

    @property
    def ran(self) -> tuple[TableRow, ...]:
        """The rows with samples."""
        return tuple(row for row in self.rows if row.ran)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all that was measured, in the order of the records."""
        return tuple(dict.fromkeys(name for row in self.ran for name in row.figures))

    @cached_property
    def families(self) -> dict[str, tuple[TableRow, ...]]:
        """Family -> its rows that ran, by cost."""
        found: dict[str, list[TableRow]] = {}
        for row in self.ran:
            found.setdefault(row.info.family or row.info.label, []).append(row)
        return {name: tuple(sorted(rows, key=lambda r: r.cost)) for name, rows in found.items()}

    def row(self, spec: str) -> TableRow:
        """The row of a spec."""
        return next(row for row in self.rows if row.info.spec == spec)

    def values(self, spec: str, metric: str) -> dict[str, float]:
        """A metric (or `calls`) of a row's samples, by sample."""
        records = self.records.get(spec, {})
        if metric == "calls":
            return {sample: r.calls for sample, r in records.items()}
        return {sample: r.values[metric] for sample, r in records.items() if metric in r.values}

    @property
    def closeness(self) -> str:
        """The error that the answers are about: to the converged picture, to the full run's where there is none."""
        return next((m for m in ("psnr_converged", "psnr_full") if m in self.metrics), "")

    @property
    def headroom(self) -> float | None:
        """dB by which the two converged solutions agree beyond the best median that is reported; None if unknown."""
        agreement = self.header.agreement.get("median")
        found = [r.median("psnr_converged") for r in self.ran if "psnr_converged" in r.figures]
        best = [value for value in found if value < IDENTICAL_PSNR]  # but for the converged run itself, were it a row
        return None if agreement is None or not best else agreement - max(best)


def summarise(store: Store) -> Summary:
    """The figures of all rows. Raises BenchError where there are no samples at all."""
    records: dict[str, dict[str, Record]] = {}
    for record in store.records:
        records.setdefault(record.row, {})[record.sample] = record
    if not records:
        raise BenchError(
            f"{store.folder} holds no samples yet: run skipstone bench --out {store.folder} --resume first."
        )
    timings = tuple(store.timings)
    known = {info.spec for info in store.header.rows}
    extra = [RowInfo(spec, spec, "ours", spec) for spec in records if spec not in known]
    rows = tuple(_row(info, records.get(info.spec, {}), timings) for info in (*store.header.rows, *extra))
    return Summary(store.header, rows, records, timings)


def metric_direction(metric: str) -> Direction:
    """Which way a metric is good, as its class has it: of `psnr_full` the class of `psnr`."""
    base = next((metric.removesuffix(side) for side in SIDES if metric.endswith(side)), metric)
    name = next((name for name, recorded in RECORD_NAMES.items() if recorded == base), base)
    try:
        direction: Direction = registry.parse("metric", name).better
        return direction
    except SpecError:  # of a plug-in that is not installed here
        return "higher"


def pareto_front(rows: Sequence[TableRow], metric: str) -> tuple[TableRow, ...]:
    """The rows that no other of these beats at equal or less cost, by cost: the points of a curve."""
    sign = 1 if metric_direction(metric) == "higher" else -1
    front: list[TableRow] = []
    for row in sorted((r for r in rows if metric in r.figures), key=lambda r: (r.cost, -sign * r.median(metric))):
        if not front or sign * row.median(metric) > sign * front[-1].median(metric):
            front.append(row)
    return tuple(front)


def _row(info: RowInfo, records: Mapping[str, Record], timings: Sequence[Timing]) -> TableRow:
    found = list(records.values())
    calls = {r.sample: r.calls for r in found}
    names = dict.fromkeys(name for r in found for name in r.values)
    own = [t for t in timings if t.row == info.spec]
    return TableRow(
        info=info,
        n=len(found),
        failed=sum(r.status != "done" for r in found),
        identical=sum(r.identical for r in found),
        calls=bootstrap(calls, mean) if calls else None,
        least=min(calls.values(), default=math.nan),
        most=max(calls.values(), default=math.nan),
        cond=_mean([r.cond for r in found]),
        uncond=_mean([r.uncond for r in found]),
        macs=_mean_or_none([r.macs for r in found]),
        macs_calls=_mean_or_none([r.macs_calls for r in found]),
        seconds=_range([t.seconds for t in own]),
        speed=_range([t.baseline_seconds / t.seconds for t in own if t.seconds > 0]),
        peak_bytes=max((t.peak_bytes for t in own if t.peak_bytes is not None), default=None),
        figures={name: _figure(name, {r.sample: r.values[name] for r in found if name in r.values}) for name in names},
    )


def _figure(metric: str, values: Mapping[str, float]) -> MetricSummary:
    way = metric_direction(metric)
    worst = (min if way == "higher" else max)(sorted(values), key=lambda sample: values[sample])
    spans = bootstraps(values, [median, mean, tail_statistic(way)])
    return MetricSummary(way, spans[0], spans[1], spans[2], values[worst], worst)


def _mean(values: Sequence[float]) -> float:
    return plain.fmean(values) if values else math.nan


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return plain.fmean(known) if known and len(known) == len(values) else None


def _range(values: Sequence[float]) -> ConfidenceInterval | None:
    """Median of a few repeats with the smallest and the largest, which hold it with chance 1 - 2^(1 - n)."""
    return ConfidenceInterval(plain.median(values), min(values), max(values), len(values)) if values else None


def categories(summary: Summary, spec: str, metric: str = "calls") -> dict[str, dict[str, float]]:
    """Category -> prompt -> mean of a metric over its seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    values = summary.values(spec, metric)
    for sample in sorted(values):
        category = summary.records[spec][sample].category
        found.setdefault(category, {}).setdefault(prompt_id_of(sample), []).append(values[sample])
    return {name: {p: plain.fmean(v) for p, v in prompts.items()} for name, prompts in sorted(found.items())}


def to_jsonable(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists, numbers that JSON does not have as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_jsonable(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
