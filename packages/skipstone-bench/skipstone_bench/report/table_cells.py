"""The columns of the table: what each shows of a row, how it sorts, and what it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skipstone import registry
from skipstone.evaluation.files import IDENTICAL_PSNR
from skipstone.evaluation.statistics import ConfidenceInterval

from ..summary import Summary, TableRow, metric_direction
from .plots import NAMES, SIDES


@dataclass(frozen=True)
class TableCell:
    """What is shown, what it sorts by (None last), and the small print."""

    text: str
    key: float | None = None
    small: str = ""


EMPTY_CELL = TableCell("")


@dataclass(frozen=True)
class TableColumn:
    """One column. `main`: shown from the start; `start`: the way it sorts at the first click."""

    title: str
    about: str
    main: bool
    start: str
    cell: Callable[[TableRow], TableCell]


def row_title(row: TableRow) -> str:
    """The label of a row; behind that of a preset, what it stands for: "safe (adaptive_grid(calls=20))"."""
    label, presets = row.info.label, registry.list_presets("policy")
    names = label.partition(" @ ")[0].split(" | ")
    return f"{label} ({row.info.spec.partition(' @ ')[0]})" if any(n in presets for n in names) else label


def table_columns(summary: Summary) -> list[TableColumn]:
    """All columns that any row fills."""
    found = [*_cost()]
    leading = [m for m in (summary.closeness, "ssim_converged") if m in summary.metrics]
    for metric in dict.fromkeys([*leading, *summary.metrics]):
        found += _metric(metric, summary.closeness)
    found += [
        _set_metric_column(name) for name in dict.fromkeys(name for row in summary.ran for name in row.info.values)
    ]
    found += [
        TableColumn("samples", "Samples of the row; of them runs that failed, pictures identical to the full run's.",
               False, "descending", _samples),
    ]  # fmt: skip
    return [c for c in found if any(c.cell(row).text for row in summary.ran)]


def _cost() -> list[TableColumn]:
    def number(value: float | None, form: str = ".1f") -> TableCell:
        return EMPTY_CELL if value is None or value != value else TableCell(format(value, form), value)

    def calls(row: TableRow) -> TableCell:
        spread = "" if row.least == row.most else f"{row.least:g}–{row.most:g}"
        return TableCell(f"{row.calls.value:.1f}", row.calls.value, spread) if row.calls else EMPTY_CELL

    def speed(row: TableRow) -> TableCell:
        return _interval_cell(row.speed, ".2f", "×") if row.speed else EMPTY_CELL

    def memory(row: TableRow) -> TableCell:
        return EMPTY_CELL if row.peak_bytes is None else TableCell(f"{row.peak_bytes / 2**20:.0f}", row.peak_bytes)

    return [
        TableColumn(
            "calls", "Mean network calls of a sample; below, the fewest and the most.", True, "ascending", calls
        ),
        TableColumn(
            "MACs",
            "Multiply-accumulates of the denoiser, over those of one full guided call.",
            True,
            "ascending",
            lambda r: number(r.macs_calls),
        ),
        TableColumn(
            "faster",
            "Seconds of the full run over these, in the same repeat: median, least to most.",
            True,
            "descending",
            speed,
        ),
        TableColumn("cond", "Rows of the conditional branch.", False, "ascending", lambda r: number(r.cond)),
        TableColumn("uncond", "Rows of the unconditional branch.", False, "ascending", lambda r: number(r.uncond)),
        TableColumn(
            "seconds",
            "Of one sample's denoising loop: median of the repeats, and their range.",
            False,
            "ascending",
            lambda r: _interval_cell(r.seconds, ".3g"),
        ),
        TableColumn("MiB", "Largest memory allocated on the GPU.", False, "ascending", memory),
    ]


def _metric(metric: str, closeness: str) -> list[TableColumn]:
    main = metric == closeness
    base, _, side = metric.rpartition("_")
    name = NAMES.get(base, base).partition(",")[0] if side in SIDES else metric
    near = {"full": " to full", "converged": ""}.get(side, "")
    about = f"{name}{f' to {SIDES[side]}' if side in SIDES else ''}"
    form = {"psnr": ".1f", "ssim": ".4f"}.get(base, ".3f" if metric_direction(metric) == "higher" else ".2g")
    down = "descending" if metric_direction(metric) == "higher" else "ascending"
    if metric == "judge":
        return [
            TableColumn("judge", "Mean score of the model's own judge; below, its 95 % interval.", True, down,
                   lambda r: _interval_cell(r.figures[metric].mean, form) if metric in r.figures else EMPTY_CELL),
        ]  # fmt: skip
    return [
        TableColumn(f"{name}{near}", f"{about}: median, 95 % interval below.", main or metric == "ssim_converged", down,
               lambda r: _interval_cell(r.figures[metric].median, form) if metric in r.figures else EMPTY_CELL),
        TableColumn("p10" + near, f"{about}: the unlucky tenth, 95 % interval below.", main, down,
               lambda r: _interval_cell(r.figures[metric].tail, form) if metric in r.figures else EMPTY_CELL),
        TableColumn("worst" + near, f"{about}: the worst sample.", main, down, lambda r: _worst(r, metric, form)),
    ]  # fmt: skip


def _set_metric_column(name: str) -> TableColumn:
    """A metric of all pictures of a row at once."""

    def cell(row: TableRow) -> TableCell:
        value = row.info.values.get(name)
        return EMPTY_CELL if value is None else TableCell(f"{value:.4g}", value)

    start = "descending" if metric_direction(name) == "higher" else "ascending"
    return TableColumn(name, f"{name} of all pictures of the row at once.", True, start, cell)


def _worst(row: TableRow, metric: str, form: str) -> TableCell:
    if metric not in row.figures:
        return EMPTY_CELL
    value = row.figures[metric].worst
    return TableCell("identical" if _same(metric, value) else format(value, form), value)


def _interval_cell(span: ConfidenceInterval | None, form: str, unit: str = "") -> TableCell:
    if span is None:
        return EMPTY_CELL
    if form == ".1f" and span.value >= IDENTICAL_PSNR:
        return TableCell("identical", span.value)
    small = "" if span.low != span.low or span.low == span.high else f"{span.low:{form}}–{span.high:{form}}"
    return TableCell(f"{span.value:{form}}{unit}", span.value, small)


def _same(metric: str, value: float) -> bool:
    return metric.startswith("psnr") and value >= IDENTICAL_PSNR


def _samples(row: TableRow) -> TableCell:
    notes = [f"{row.failed} failed"] * (row.failed > 0) + [f"{row.identical} identical"] * (row.identical > 0)
    return TableCell(str(row.n), row.n, ", ".join(notes))
