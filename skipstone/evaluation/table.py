"""A comparison as a Markdown table and as JSON Lines."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

from .. import __version__, registry
from ..metrics import Metric
from ..metrics.base import BaseMetric
from ..metrics.closeness import format_decibels
from .columns import FEWER, Column, find_partner, format_component
from .compare import Comparison
from .markdown import format_table
from .references import CONVERGED_STEPS

LEADING = ("psnr", "ssim")  # metrics whose columns stand before the calls; those of others stand at the end


def format_rows(result: Comparison) -> list[list[str]]:
    """A head and one row for each column: closeness at the median and worst sample, calls, saving, seconds, others."""
    metrics: list[Metric] = [registry.parse("metric", name) for name in result.metrics]
    sets: list[BaseMetric] = [registry.parse("metric", name) for name in result.set_metrics]
    first = [m for m in metrics if m.name in LEADING]
    last = [m for m in metrics if m.name not in LEADING]
    exact = ["converged", "worst"] if result.converged else []
    head = [
        "column",
        *_titles(first),
        *exact,
        "calls",
        "saved",
        "seconds",
        *_titles(last),
        *(m.title or m.name for m in sets),
    ]
    found = [head]
    for c in range(len(result.columns)):
        row = [_format_label(result, c), *_metric_cells(result, c, first), *_converged_cells(result, c)]
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


def _converged_cells(result: Comparison, c: int) -> list[str]:
    found = result.converged
    return [format_decibels(value) for value in (found.median(c), found.worst(c))] if found else []


def format_markdown(result: Comparison) -> str:
    """The table of `format_rows`, with what one must know to read it."""
    head, *body = format_rows(result)
    rule = [":--", *["--:"] * (len(head) - 1)]
    titles = [c.title if c.preset else row[0] for c, row in zip(result.columns, body, strict=True)]
    named = [[f"`{title}`", *rest] for title, (_, *rest) in zip(titles, body, strict=True)]
    lines = format_table([head, *named], rule)
    return "\n".join([*_preamble(result), "", *lines, "", "\n\n".join(format_notes(result)), ""])


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


def format_notes(result: Comparison) -> list[str]:
    """What must be known to read the table, besides its preamble: a paragraph each."""
    fewer = [_fewer_note(result, c) for c, column in enumerate(result.columns) if column.policy is None]
    idle = [
        no_saving_note(column.label, result.mean_calls(c), result.mean_calls(0), column.steps)
        for c, column in enumerate(result.columns)
        if c and column.is_adaptive and result.saving(c) <= 0
    ]
    return [*_refusal_notes(result), *fewer, *idle, *_reference_notes(result), *_absent_notes(result)]


def _refusal_notes(result: Comparison) -> list[str]:
    """Which presets could not take the pipeline's loop over, and why: a paragraph for each reason."""
    refused: dict[str, list[str]] = {}
    for column in result.columns:
        if column.refusal:
            refused.setdefault(column.refusal, []).append(f"`{column.label}`")
    return [
        f"{', '.join(dict.fromkeys(labels))}: the preset would take the pipeline's loop over, and cannot here: "
        f"{reason}. The policy in brackets decides in the pipeline's own steps instead."
        for reason, labels in refused.items()
    ]


def preset_notes(result: Comparison) -> list[str]:
    """What the presets among the columns stand for, a line each; for tables whose cells have no room for it."""
    named = {column.preset: column.stands_for for column in result.columns if column.stands_for}
    return [f"`{name}` stands for `{spec}`." for name, spec in named.items()]


def _fewer_note(result: Comparison, c: int) -> str:
    column, like = result.columns[c], find_partner(result.columns, c)
    made = "" if result.mean_calls(c) == column.steps else f", which makes {result.mean_calls(c):g} calls"
    return (
        f"`{FEWER}` is a fixed sampler with as many steps as `{result.columns[like].label}` makes calls "
        f"in the mean ({result.mean_calls(like):.2f}), rounded up: `{column.spec}`{made}."
    )


def no_saving_note(label: str, calls: float, full_calls: float, steps: int) -> str:
    """A sentence about a policy that made as many calls as the full run, or more.

    Args:
        label: Of the policy.
        calls, full_calls: Its calls, and those of the full run.
        steps: Of the full run.
    """
    return (
        f"`{label}` saves nothing here: it made {calls:g} calls, the full run makes {full_calls:g}. At {steps} steps "
        f"this setting leaves out none. Say more --steps, or choose a policy that makes fewer calls."
    )


def _reference_notes(result: Comparison) -> list[str]:
    """What closeness to the full run cannot tell about columns with other solvers or grids."""
    full, found = result.columns[0], result.converged
    other = [column.label for column in result.columns if (column.solver, column.grid) != (full.solver, full.grid)]
    notes = []
    if other:
        names = ", ".join(f"`{label}`" for label in dict.fromkeys(other))
        notes.append(
            f"Closeness is measured to the full run `{full.spec}`, which has errors of its own. Another solver or grid "
            f"than the full run's: {names}. Such a run may come closer to the converged solution than the full run; "
            f"it then is farther from the full run, and its PSNR and SSIM fall though it is better."
        )
    if other and found is None:
        calls = CONVERGED_STEPS + CONVERGED_STEPS // 2
        notes.append(
            f"`skipstone compare --with-converged` measures closeness to the converged solution, too, at {calls} more "
            f"calls a sample."
        )
    if found is not None:
        notes.append(
            f"`converged` is PSNR (dB), at the median and at the worst sample, to the converged solution "
            f"`{found.spec}`. `{found.confirmed_by}` agrees with it to {found.agreement:.1f} dB in the median: "
            f"differences above that mean nothing."
        )
    return notes


def _absent_notes(result: Comparison) -> list[str]:
    cells = [cell for row in result.cells for cell in row]
    notes = []
    for name, why in result.absent.items():
        lacking = sum(name not in cell.values for cell in cells)
        of = "" if lacking == len(cells) or name in result.set_metrics else f" for {lacking} of {len(cells)} pictures"
        notes.append(f"{name} is left out{of}: {why.removeprefix(f'{name}: ')}")
    return notes


def make_records(result: Comparison, pictures: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    """One JSON-ready record for each sample; `pictures` are file names by (column, prompt).

    Numbers that JSON does not have are null, such as the PSNR of identical pictures.
    """
    found = []
    for c, (column, row) in enumerate(zip(result.columns, result.cells, strict=True)):
        for p, cell in enumerate(row):
            values = {**cell.values, **(result.set_values[c] if result.set_values else {})}
            if result.converged:
                values["psnr_converged"] = result.converged.values[c][p]
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
                    **({"refusal": column.refusal} if column.refusal else {}),
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
