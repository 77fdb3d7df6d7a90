"""A comparison as a Markdown table and as JSON Lines."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

from .. import __version__
from .columns import FEWER, Column, find_partner, format_component
from .compare import Comparison


def format_decibels(value: float) -> str:
    """A PSNR for people: identical pictures are called so."""
    return "identical" if math.isinf(value) else f"{value:.1f}"


def format_rows(result: Comparison) -> list[list[str]]:
    """A head and one row for each column: closeness at the median and worst sample, calls, saving, seconds."""
    judged = "judge" in result.metrics
    head = ["column", "PSNR", "worst", "SSIM", "worst", "calls", "saved", "seconds"]
    found = [[*head, "judge"] if judged else head]
    for c in range(len(result.columns)):
        row = [_format_label(result, c)]
        row += (
            [format_decibels(result.median(c, "psnr")), format_decibels(result.worst(c, "psnr"))]
            if c
            else ["full run", ""]
        )
        row += [f"{result.median(c, 'ssim'):.3f}", f"{result.worst(c, 'ssim'):.3f}"] if c else ["", ""]
        row += [f"{result.mean_calls(c):.1f}", f"{result.saving(c):.0%}" if c else "", f"{result.seconds[c]:.2f}"]
        row += [f"{statistics.fmean(result.values(c, 'judge')):.2f}"] if judged else []
        found.append(row)
    return found


def format_markdown(result: Comparison) -> str:
    """The table of `format_rows`, with what one must know to read it."""
    head, *body = format_rows(result)
    rule = [":--", *["--:"] * (len(head) - 1)]
    named = [[f"`{name}`", *rest] for name, *rest in body]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, rule, *named)]
    return "\n".join([*_preamble(result), "", *lines, "", *_notes(result), ""])


def _format_label(result: Comparison, c: int) -> str:
    column = result.columns[c]
    return f"{column.label} ({column.steps} steps)" if column.policy is None else column.label


def _preamble(result: Comparison) -> list[str]:
    cells = result.cells[0]
    seeds = ", ".join(map(str, result.seeds))
    told = "".join(f", {name} {value}" for name, value in result.settings.items())
    guidance = "" if result.guidance is None else f", guidance {result.guidance:g}"
    made = f"model {result.model}{guidance}{told}, {len(cells)} samples, seed {seeds}"
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


def records(result: Comparison, pictures: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    """One JSON-ready record for each sample; `pictures` are file names by (column, prompt)."""
    found = []
    for c, (column, row) in enumerate(zip(result.columns, result.cells, strict=True)):
        for p, cell in enumerate(row):
            psnr = cell.values["psnr"]
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
                    **{name: value for name, value in cell.values.items() if name != "cost"},
                    "psnr": psnr if math.isfinite(psnr) else None,
                    "identical": math.isinf(psnr),
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
