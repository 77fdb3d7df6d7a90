"""The columns of the table: what each shows of a row, how it sorts, and what it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skipstone.evaluation.files import IDENTICAL
from skipstone.evaluation.statistics import Span

from ..summary import Row, Summary, better
from .plots import NAMES, SIDES


@dataclass(frozen=True)
class Cell:
    """What is shown, what it sorts by (None last), and what is said in small print."""

    text: str
    key: float | None = None
    small: str = ""


EMPTY = Cell("")


@dataclass(frozen=True)
class Column:
    """One column. `main`: seen without asking; `start`: the way it sorts at the first click."""

    title: str
    about: str
    main: bool
    start: str
    cell: Callable[[Row], Cell]


def columns(summary: Summary) -> list[Column]:
    """All columns that any row fills."""
    found = [*_cost()]
    leading = [m for m in (summary.closeness, "ssim_converged") if m in summary.metrics]
    for metric in dict.fromkeys([*leading, *summary.metrics]):
        found += _metric(metric, summary.closeness)
    found += [_whole(name) for name in dict.fromkeys(name for row in summary.ran for name in row.info.values)]
    found += [
        Column("samples", "Samples of the row; of them runs that failed, pictures identical to the full run's.",
               False, "descending", _samples),
    ]  # fmt: skip
    return [c for c in found if any(c.cell(row).text for row in summary.ran)]


def _cost() -> list[Column]:
    def number(value: float | None, form: str = ".1f") -> Cell:
        return EMPTY if value is None or value != value else Cell(format(value, form), value)

    def calls(row: Row) -> Cell:
        spread = "" if row.least == row.most else f"{row.least:g}–{row.most:g}"
        return Cell(f"{row.calls.value:.1f}", row.calls.value, spread) if row.calls else EMPTY

    def speed(row: Row) -> Cell:
        return _spanned(row.speed, ".2f", "×") if row.speed else EMPTY

    def memory(row: Row) -> Cell:
        return EMPTY if row.peak_bytes is None else Cell(f"{row.peak_bytes / 2**20:.0f}", row.peak_bytes)

    return [
        Column("calls", "Mean network calls of a sample; below, the fewest and the most.", True, "ascending", calls),
        Column("MACs", "Multiply-accumulates of the denoiser, in those of one full guided call.", True, "ascending",
               lambda r: number(r.macs_calls)),
        Column("faster", "Seconds of the full run over these, in the same repeat: median, least to most.", True,
               "descending", speed),
        Column("cond", "Rows of the conditional branch.", False, "ascending", lambda r: number(r.cond)),
        Column("uncond", "Rows of the unconditional branch.", False, "ascending", lambda r: number(r.uncond)),
        Column("seconds", "Of one sample's denoising loop: median of the repeats, least to most.", False, "ascending",
               lambda r: _spanned(r.seconds, ".3g")),
        Column("MiB", "Largest memory allocated on the GPU.", False, "ascending", memory),
    ]  # fmt: skip


def _metric(metric: str, closeness: str) -> list[Column]:
    main = metric == closeness
    base, _, side = metric.rpartition("_")
    name = NAMES.get(base, base).partition(",")[0] if side in SIDES else metric
    near = {"full": " to full", "converged": ""}.get(side, "")
    about = f"{name}{f' to {SIDES[side]}' if side in SIDES else ''}"
    form = {"psnr": ".1f", "ssim": ".4f"}.get(base, ".3f" if better(metric) == "higher" else ".2g")
    down = "descending" if better(metric) == "higher" else "ascending"
    if metric == "judge":
        return [
            Column("judge", "Mean score of the model's own judge; below, its 95 % interval.", True, down,
                   lambda r: _spanned(r.figures[metric].mean, form) if metric in r.figures else EMPTY),
        ]  # fmt: skip
    return [
        Column(f"{name}{near}", f"{about}: median, 95 % interval below.", main or metric == "ssim_converged", down,
               lambda r: _spanned(r.figures[metric].median, form) if metric in r.figures else EMPTY),
        Column("p10" + near, f"{about}: the unlucky tenth, 95 % interval below.", main, down,
               lambda r: _spanned(r.figures[metric].tail, form) if metric in r.figures else EMPTY),
        Column("worst" + near, f"{about}: the worst sample.", main, down, lambda r: _worst(r, metric, form)),
    ]  # fmt: skip


def _whole(name: str) -> Column:
    """A metric of all pictures of a row at once."""

    def cell(row: Row) -> Cell:
        value = row.info.values.get(name)
        return EMPTY if value is None else Cell(f"{value:.4g}", value)

    start = "descending" if better(name) == "higher" else "ascending"
    return Column(name, f"{name} of all pictures of the row at once.", True, start, cell)


def _worst(row: Row, metric: str, form: str) -> Cell:
    if metric not in row.figures:
        return EMPTY
    value = row.figures[metric].worst
    return Cell("identical" if _same(metric, value) else format(value, form), value)


def _spanned(span: Span | None, form: str, unit: str = "") -> Cell:
    if span is None:
        return EMPTY
    if form == ".1f" and span.value >= IDENTICAL:
        return Cell("identical", span.value)
    small = "" if span.low != span.low or span.low == span.high else f"{span.low:{form}}–{span.high:{form}}"
    return Cell(f"{span.value:{form}}{unit}", span.value, small)


def _same(metric: str, value: float) -> bool:
    return metric.startswith("psnr") and value >= IDENTICAL


def _samples(row: Row) -> Cell:
    notes = [f"{row.failed} failed"] * (row.failed > 0) + [f"{row.identical} identical"] * (row.identical > 0)
    return Cell(str(row.n), row.n, ", ".join(notes))
