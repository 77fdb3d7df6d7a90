"""A comparison as a Markdown table and as JSON Lines."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

from .. import __version__, registry
from ..metrics import Metric
from ..metrics.base import BaseMetric
from .columns import FEWER, Column, find_partner, format_component
from .compare import Comparison
from .markdown import format_table

LEADING = ("psnr", "ssim")  # metrics whose columns stand before the calls; those of others stand at the end


def format_rows(result: Comparison) -> list[list[str]]:
    """A head and one row for each column: closeness at the median and worst sample, calls, saving, seconds, others."""
    metrics: list[Metric] = [registry.parse("metric", name) for name in result.metrics]
    sets: list[BaseMetric] = [registry.parse("metric", name) for name in result.set_metrics]
    first = [m for m in metrics if m.name in LEADING]
    last = [m for m in metrics if m.name not in LEADING]
    head = ["column", *_titles(first), "calls", "saved", "seconds", *_titles(last), *(m.title or m.name for m in sets)]
    found = [head]
    for c in range(len(result.columns)):
        row = [_format_label(result, c), *_metric_cells(result, c, first)]
        row += [f"{result.mean_calls(c):.1f}", f"{result.saving(c):.0%}" if c else "", f"{result.seconds[c]:.2f}"]
        row += _metric_cells(result, c, last)
        row += [m.format(result.set_values[c][m.name]) if m.name in result.set_values[c] else "" for m in sets]
        found.append(row)
    found[1][1] = found[1][1] or "full run"
    return found


def _titles(metrics: list[Metric]) -> list[str]:
    return [title for m in metrics for title in [m.title or m.name, "worst"][: _width(m)]]


def _width(metric: Metric) -> int:
    """Number of table columns that a metric takes."""
    return 1 if metric.summary == "mean" else 2


def _metric_cells(result: Comparison, c: int, metrics: list[Metric]) -> list[str]:
    """Table cells of a column for some metrics; empty where the full run would be compared with itself."""
    cells = []
    for metric in metrics:
        values = result.values(c, metric.name)
        if not values or (c == 0 and metric.compares):
            cells += [""] * _width(metric)
        elif metric.summary == "mean":
            cells.append(metric.format(statistics.fmean(values)))
        else:
            cells += [metric.format(result.median(c, metric.name)), metric.format(result.worst(c, metric.name))]
    return cells


def format_markdown(result: Comparison) -> str:
    """The table of `format_rows`, with what one must know to read it."""
    head, *body = format_rows(result)
    rule = [":--", *["--:"] * (len(head) - 1)]
    named = [[f"`{name}`", *rest] for name, *rest in body]
    lines = format_table([head, *named], rule)
    return "\n".join([*_preamble(result), "", *lines, "", *_notes(result), ""])


def _format_label(result: Comparison, c: int) -> str:
    column = result.columns[c]
    return f"{column.label} ({column.steps} steps)" if column.policy is None else column.label


def _preamble(result: Comparison) -> list[str]:
    cells = result.cells[0]
    seeds = ", ".join(map(str, result.seeds))
    settings = "".join(f", {name} {value}" for name, value in result.settings.items())
    guidance = "" if result.guidance is None else f", guidance {result.guidance:g}"
    made = f"model {result.model}{guidance}{settings}, {len(cells)} samples, seed {seeds}"
    own = " `own` is the scheduler that the pipeline came with." if any(_own(c) for c in result.columns) else ""
    return [
        f"Skipstone {__version__}, {made}. PSNR (dB) and SSIM, at the median and at the worst sample, are to the "
        f"full run `{result.columns[0].spec}` of the same seed, on pixels before rounding. Calls are counted by a "
        f"hook on the denoiser and averaged over the samples. Seconds are for one picture of a batch, the median "
        f"of {result.repeats} interleaved runs, decoding left out.{own}"
    ]


def _own(column: Column) -> bool:
    return column.solver is None or column.grid is None


def _notes(result: Comparison) -> list[str]:
    notes = []
    for c, column in enumerate(result.columns):
        if column.policy is None:
            like = find_partner(result.columns, c)
            made = "" if result.mean_calls(c) == column.steps else f", which makes {result.mean_calls(c):g} calls"
            notes.append(
                f"`{FEWER}` is a fixed sampler with as many steps as `{result.columns[like].label}` makes calls "
                f"in the mean ({result.mean_calls(like):.2f}), rounded up: `{column.spec}`{made}."
            )
    return notes


def make_records(result: Comparison, pictures: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    """One JSON-ready record for each sample; `pictures` are file names by (column, prompt).

    Numbers that JSON does not have are null, such as the PSNR of identical pictures.
    """
    found = []
    for c, (column, row) in enumerate(zip(result.columns, result.cells, strict=True)):
        for p, cell in enumerate(row):
            values = {**cell.values, **(result.set_values[c] if result.set_values else {})}
            found.append(
                {
                    "prompt": cell.prompt,
                    "seed": cell.seed,
                    "column": column.label,
                    "spec": column.spec,
                    "solver": format_component(column.solver),
                    "grid": format_component(column.grid),
                    "steps": column.steps,
                    "calls": cell.calls,
                    "saving": 1 - cell.calls / result.cells[0][p].calls,
                    "seconds": result.seconds[c],
                    **{name: value if math.isfinite(value) else None for name, value in values.items()},
                    "identical": math.isinf(cell.values["psnr"]),
                    "status": cell.result.status.name,
                    "picture": pictures[c, p],
                    "reference": result.columns[0].spec,
                    "model": result.model,
                    "guidance": result.guidance,
                    **({"settings": dict(result.settings)} if result.settings else {}),
                    "version": __version__,
                }
            )
    return found


def format_json_lines(records: list[dict[str, Any]]) -> str:
    """Records as JSON Lines; numbers that JSON cannot hold are an error, not a surprise for a reader."""
    return "".join(json.dumps(r, allow_nan=False, ensure_ascii=False) + "\n" for r in records)
