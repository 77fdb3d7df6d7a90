"""Scores of single samples, which hypotheses are tested on; summaries are refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.json_lines import read_lines
from skipstone.evaluation.resampling import SampleValues, mean_by_prompt
from skipstone.evaluation.utility import Utility
from skipstone_bench.store import SAMPLES, Record

RowKind: TypeAlias = Literal["agent", "rule", "fixed", "full", "random", "oracle", "ceiling"]
SUMMARY_KEYS = ("mean", "std", "median", "n", "sem", "ci")  # keys that only a summary has
MIN_PROMPTS = 8  # prompts without which nothing is decided
UTILITY_KEY = "worth"  # utility of a sample, where scores of several rows were averaged
METRIC_COLUMNS = {"psnr": "psnr_converged", "ssim": "ssim_converged", "judge": "judge"}  # ours -> of a bench's records


@dataclass(frozen=True)
class ScoreRow:
    """One way to denoise, sample by sample.

    Args:
        name: What tables call it.
        kind: "agent", a "rule" that adapts without learning, "fixed" (the same times for every sample), "full" (the
            run that quality is held against), "random", "oracle" (knows each sample's outcome), "ceiling" (the best
            that the agent's signals allow).
        samples: id "prompt:seed" -> {"calls", "psnr" in dB and "ssim" to the converged picture, "judge" in [0, 1]};
            whatever was not measured is absent.
        price: dB a call, of agents that have a knob; NaN where there is none.
        run: Which training made it, e.g. its seed.
    """

    name: str
    kind: RowKind
    samples: Mapping[str, Mapping[str, float]]
    price: float = math.nan
    run: str = ""

    def __post_init__(self) -> None:
        if not self.samples:
            raise SpecError(f"{self.name}: expected scores of samples, got none.")
        for sample, found in self.samples.items():
            if ":" not in sample or not isinstance(found, Mapping) or "calls" not in found:
                raise SpecError(
                    f"{self.name}: expected the scores of single samples by id, 'prompt:seed' -> calls and metrics, "
                    f"got {sample!r} -> {found!r}. Hypotheses are not tested on summaries: keep each sample's record."
                )

    @property
    def searched(self) -> bool:
        """Whether it is a schedule that was searched for a model: no sampler that anybody has at hand."""
        return self.name.startswith("path(")

    def values(self, metric: str) -> dict[str, float]:
        """A metric by sample, of those that have it."""
        return {sample: float(found[metric]) for sample, found in self.samples.items() if metric in found}

    @property
    def calls(self) -> float:
        """Mean calls: of prompts, each the mean over its seeds."""
        return mean_over_prompts(self.values("calls"))

    def utilities(self, utility: Utility) -> dict[str, float]:
        """What each sample is worth; of averaged rows the mean worth, for that of a mean is more."""
        psnr, calls, known = self.values("psnr"), self.values("calls"), self.values(UTILITY_KEY)
        return {s: known[s] if s in known else float(utility(psnr[s], calls[s])) for s in psnr}


@dataclass(frozen=True)
class Scores:
    """All rows of an evaluation.

    Args:
        rows: Of all kinds; the trainings of one agent at one price are rows of their own.
        prompts: Sample id -> its text.
        utility: What agents were trained for, at the price that is evaluated.
    """

    rows: tuple[ScoreRow, ...]
    prompts: Mapping[str, str] = field(default_factory=dict)
    utility: Utility = field(default_factory=lambda: Utility(0.5, 15.0, 60.0))

    def of(self, *kinds: RowKind) -> tuple[ScoreRow, ...]:
        """The rows of these kinds."""
        return tuple(row for row in self.rows if row.kind in kinds)

    @property
    def trainings(self) -> tuple[ScoreRow, ...]:
        """The agent's rows at the price that is judged, one for each training."""
        agents = self.of("agent")
        return tuple(row for row in agents if math.isnan(row.price) or row.price == self.utility.price)

    @property
    def agent(self) -> ScoreRow:
        """The agent, each sample's scores averaged over its trainings. Raises BenchError where there is none."""
        if not self.trainings:
            prices = sorted({f"{row.price:g}" for row in self.of("agent")})
            raise BenchError(
                f"Expected scores of an agent at price {self.utility.price:g}, got {', '.join(prices) or 'no agent'}."
            )
        return average_rows([_with_utilities(row, self.utility) for row in self.trainings], "the agent")

    def first_of(self, kind: RowKind) -> ScoreRow | None:
        """The one row of a kind, or None."""
        return next(iter(self.of(kind)), None)


def _with_utilities(row: ScoreRow, utility: Utility) -> ScoreRow:
    """The row with each sample's utility among its scores."""
    worth = row.utilities(utility)
    found = {s: {**values, **({UTILITY_KEY: worth[s]} if s in worth else {})} for s, values in row.samples.items()}
    return replace(row, samples=found)


def average_rows(rows: Iterable[ScoreRow], name: str) -> ScoreRow:
    """Rows as one: each sample's scores averaged over the rows that all have it."""
    rows = list(rows)
    shared = set(rows[0].samples).intersection(*(row.samples for row in rows[1:]))
    found = {}
    for sample in sorted(shared):
        names = set(rows[0].samples[sample]).intersection(*(row.samples[sample] for row in rows[1:]))
        found[sample] = {n: sum(row.samples[sample][n] for row in rows) / len(rows) for n in sorted(names)}
    return ScoreRow(name, rows[0].kind, found, rows[0].price)


def mean_over_prompts(values: SampleValues) -> float:
    """The mean over prompts; NaN of nothing."""
    found = mean_by_prompt(values)
    return sum(found.values()) / len(found) if found else math.nan


def row_from_records(
    records: Iterable[Record], name: str, kind: RowKind, price: float = math.nan, run: str = "", fee: float = 0.0
) -> ScoreRow:
    """A row out of a bench's records.

    Args:
        records: One for each sample.
        name, kind, price, run: Of the row.
        fee: Of an agent that encodes a picture at every call, in calls: its `PublishedObservation.fee`, added here.
    """
    samples = {}
    for record in records:
        values = {ours: record.values[theirs] for ours, theirs in METRIC_COLUMNS.items() if theirs in record.values}
        samples[record.sample] = {"calls": record.calls * (1.0 + fee), **values}
    return ScoreRow(name, kind, samples, price, run)


def row_from_jsonl(path: Path, name: str, kind: RowKind, price: float | None = None) -> ScoreRow:
    """A row out of JSON Lines, one sample a line: {"sample", "calls", "psnr", ...}; other numbers are kept, too.

    Args:
        path: The file, or a folder with one that is called samples.jsonl.
        name, kind: Of the row.
        price: Lines that name another price are passed over; None takes all.

    Raises:
        BenchError: no such file; a summary in place of samples; a line without its sample or its calls; no line of
            this price.
    """
    if path.is_dir():
        path = path / SAMPLES
    if not path.is_file():
        raise BenchError(f"{path} is not there: expected JSON Lines with the scores of single samples.")
    samples: dict[str, dict[str, float]] = {}
    for number, line in enumerate(read_lines(path), 1):
        refuse_summary(line, f"Line {number} of {path}")
        if not isinstance(line.get("sample"), str) or not isinstance(line.get("calls"), int | float):
            raise BenchError(f"Line {number} of {path}: expected the keys sample and calls, got {', '.join(line)}.")
        if price is not None and not math.isclose(line.get("price", price), price):
            continue
        own = {k: float(v) for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        samples[line["sample"]] = own
    if not samples:
        at = "" if price is None else f" at price {price:g}"
        raise BenchError(f"{path} holds no scores of samples{at}. Hypotheses are not tested on summaries.")
    return ScoreRow(name, kind, samples)


def refuse_summary(found: Mapping[str, Any], where: str) -> None:
    """Raise BenchError for means and deviations where the scores of a sample should be."""
    marks = [key for key in SUMMARY_KEYS if key in found and "sample" not in found]
    if marks:
        raise BenchError(
            f"{where} is a summary ({', '.join(marks)}): hypotheses are tested on the scores of single samples, which "
            f"are in the {SAMPLES} of an evaluation."
        )
