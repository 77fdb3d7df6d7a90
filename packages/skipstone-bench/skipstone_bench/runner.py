"""Rows times samples on one model: pictures, counted cost, closeness; records that are there are not made again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from skipstone.engine.trace import letters
from skipstone.errors import SkipstoneError
from skipstone.evaluation.columns import Column
from skipstone.evaluation.cost import PeakMemory, count_macs, measure_row_macs, split_branch_rows
from skipstone.evaluation.files import IDENTICAL_PSNR, safe_file_name
from skipstone.evaluation.pixels import as_read_by, encode_image
from skipstone.evaluation.progress import ProgressCallback, no_progress
from skipstone.evaluation.references import MAX_AGREEMENT_SAMPLES, EvaluationSample, References, RunOutput
from skipstone.evaluation.subject import (
    DrawJob,
    GeneratedSample,
    Subject,
    draw_or_fall_back,
    local_model,
    prefetch,
)
from skipstone.metrics import Metric, Sample

from .store import PICTURES, Record, RowInfo, Store, Timing

PROBE_STEPS = 4  # steps of the run by which the cost of a row of the network is measured
NOT_APPLICABLE = "not applicable: "


@dataclass(frozen=True)
class BenchRow:
    """A column, and its place in the table."""

    column: Column
    info: RowInfo

    def told_of(self, ran: Column) -> RowInfo:
        """Its place in the table after it ran as this column, which may be the fallback of a preset."""
        if not ran.refusal:
            return self.info
        family = ran.policy_spec.partition("(")[0]
        return replace(self.info, label=ran.label, family=family, knob=self.info.label, refusal=ran.refusal)


@dataclass(frozen=True)
class BenchRunner:
    """Generates and measures rows.

    Args:
        subject: The model.
        references: What rows are compared with.
        reference_metrics: Metrics of closeness, by the name that they have in records: "psnr" becomes "psnr_full" and
            "psnr_converged".
        picture_metrics: Metrics that look at the picture alone.
        batch: Samples of one call, >= 1.
        on_progress: Called with the progress.
    """

    subject: Subject
    references: References
    reference_metrics: Mapping[str, Metric]
    picture_metrics: Mapping[str, Metric]
    batch: int = 8
    on_progress: ProgressCallback = no_progress

    def run(self, store: Store, eval_samples: Sequence[EvaluationSample], rows: Sequence[BenchRow]) -> Store:
        """Generate and measure every row; the store with a note at every row that could not run."""
        ready, store = self._admitted(store, rows)
        done = {(r.row, r.sample) for r in store.records}
        chunks = [eval_samples[i : i + self.batch] for i in range(0, len(eval_samples), self.batch)]
        open_ = [(chunk, row) for chunk in chunks for row in ready if _is_missing(done, row, chunk)]
        total = sum(_expected_calls(row) * len(chunk) for chunk, row in open_)
        weight, failed, spent = 0.0, set[str](), 0.0
        if open_:
            weight = self._row_macs(eval_samples[0])
            prefetch(self.subject, self._jobs(open_))
        for chunk, row in open_:
            self.on_progress(row.info.label, spent, total)
            if row.column.spec not in failed:
                try:
                    ran = self._chunk(store, chunk, row, weight)
                    if ran.refusal:
                        store = store.with_rows([row.told_of(ran)])
                except SkipstoneError as e:
                    failed.add(row.column.spec)
                    store = store.with_rows([_not_applicable(row, e)])
            spent += _expected_calls(row) * len(chunk)
        self.on_progress("", total, total)
        return store

    def _jobs(self, open_: Sequence[tuple[Sequence[EvaluationSample], BenchRow]]) -> list[DrawJob]:
        """What will be drawn, in its order: the references of a chunk with its first row."""
        jobs: list[DrawJob] = []
        known: set[int] = set()
        for chunk, row in open_:
            jobs.append(DrawJob([eval_sample.request for eval_sample in chunk], row.column))
            if id(chunk) not in known:
                known.add(id(chunk))
                for column in (self.references.full, self.references.converged[0]):
                    jobs += self.references.jobs(chunk, column)
        return jobs

    def _admitted(self, store: Store, rows: Sequence[BenchRow]) -> tuple[list[BenchRow], Store]:
        """The rows that the model can run; the others get their note."""
        ready, infos = [], []
        fallen = {row.spec: row for row in store.header.rows if row.refusal}  # in a run that was cut off
        for row in rows:
            try:
                self.subject.load([self.subject.resolve_column(row.column)])
                ready.append(row)
                infos.append(fallen.get(row.info.spec, row.info))
            except SkipstoneError as e:
                infos.append(_not_applicable(row, e))
        return ready, store.with_rows(infos)

    def measure_agreement(self, store: Store, eval_samples: Sequence[EvaluationSample]) -> Store:
        """How well the two converged runs agree; the header has it."""
        few = eval_samples[:MAX_AGREEMENT_SAMPLES]
        for i in range(0, len(few), self.batch):
            self.on_progress("Confirming the converged solution", i, len(few))
            for column in self.references.converged[:2]:
                self.references.load_or_draw(self.subject, few[i : i + self.batch], column)
        self.on_progress("", len(few), len(few))
        return store.with_header(agreement=self.references.agreement(self.subject, few))

    def _row_macs(self, eval_sample: EvaluationSample) -> float:
        return measure_row_macs(self.subject, eval_sample.request, self.references.full, PROBE_STEPS)

    def _chunk(self, store: Store, chunk: Sequence[EvaluationSample], row: BenchRow, weight: float) -> Column:
        """One row of a chunk, and the column that ran: its records appear together, when all is done."""
        items = [eval_sample.request for eval_sample in chunk]
        self.subject.prepare(items, row.column)
        counting = count_macs(self.subject.denoisers) if row.column.peer is not None else nullcontext()
        with counting as meter:
            generated, _, ran = draw_or_fall_back(self.subject, items, row.column)
        pictures = self.subject.pictures(generated)
        full = self.references.load_or_draw(self.subject, chunk, self.references.full)
        exact = self.references.load_or_draw(self.subject, chunk, self.references.converged[0])
        records = []
        for k, eval_sample in enumerate(chunk):
            mine = RunOutput(pictures[k], generated[k].latent)
            values = self.values(mine, eval_sample, generated[k], {"full": full[k], "converged": exact[k]})
            rows = generated[k].calls * generated[k].branches
            macs = rows * weight if meter is None else meter.macs / len(chunk)
            calls = macs / (weight * generated[k].branches)
            name = f"{PICTURES}/{safe_file_name(row.info.spec)}/{safe_file_name(eval_sample.id)}.png"
            store.write(name, encode_image("PNG", mine.pixels))
            identical = bool((mine.pixels == full[k].pixels).all())
            records.append(make_record(row.info.spec, eval_sample, generated[k], macs, calls, values, name, identical))
        store.append(*records)
        return ran

    def values(
        self,
        mine: RunOutput,
        eval_sample: EvaluationSample,
        generated: GeneratedSample,
        theirs: Mapping[str, RunOutput],
    ) -> dict[str, float]:
        """Every metric that can be measured of a picture."""
        judge = self.subject.judge
        sample = Sample(mine.pixels, eval_sample.prompt.text, generated.calls, judge=judge, latent=mine.latent)
        found = {name: _measure_metric(metric, sample) for name, metric in self.picture_metrics.items()}
        for whose, reference in theirs.items():
            pair = replace(sample, reference=reference.pixels, reference_latent=reference.latent)
            found |= {
                f"{name}_{whose}": _measure_metric(metric, pair) for name, metric in self.reference_metrics.items()
            }
        return {name: value for name, value in found.items() if value is not None}


def make_record(
    spec: str,
    eval_sample: EvaluationSample,
    generated: GeneratedSample,
    macs: float,
    macs_calls: float,
    values: Mapping[str, float],
    picture: str,
    identical: bool,
) -> Record:
    """The record of a sample."""
    cond, uncond = split_branch_rows(generated)
    return Record(
        row=spec,
        sample=eval_sample.id,
        prompt=eval_sample.prompt.text,
        prompt_id=eval_sample.prompt.id,
        category=eval_sample.prompt.category,
        seed=eval_sample.seed,
        calls=generated.calls,
        cond=cond,
        uncond=uncond,
        macs=macs,
        macs_calls=macs_calls,
        values=values,
        decisions="" if generated.run is None else letters(generated.run),
        status=generated.status.name,
        picture=picture,
        identical=identical,
        backward=generated.backward,
    )


def _not_applicable(row: BenchRow, why: SkipstoneError) -> RowInfo:
    message = str(why)
    return replace(row.info, note=message if NOT_APPLICABLE in message else f"{NOT_APPLICABLE}{message}")


def _measure_metric(metric: Metric, sample: Sample) -> float | None:
    """A metric's value, at most IDENTICAL; None where it cannot be measured of this sample."""
    try:
        value = metric.measure(as_read_by(metric, sample))
    except SkipstoneError:
        return None
    return None if math.isnan(value) else max(-IDENTICAL_PSNR, value) if math.isfinite(value) else IDENTICAL_PSNR


def _is_missing(done: set[tuple[str, str]], row: BenchRow, chunk: Sequence[EvaluationSample]) -> bool:
    return any((row.info.spec, eval_sample.id) not in done for eval_sample in chunk)


def _expected_calls(row: BenchRow) -> float:
    """Calls that a row is guessed to make, for the time that is left."""
    return row.column.steps * (0.5 if row.column.is_adaptive else 1.0)


def time_rows(
    subject: Subject,
    store: Store,
    eval_samples: Sequence[EvaluationSample],
    rows: Sequence[BenchRow],
    full: Column,
    repeats: int,
    on_progress: ProgressCallback = no_progress,
) -> None:
    """Seconds of each row at batch 1, right after those of the full run, in every repeat.

    Raises:
        SkipstoneError: a row that had run before does not run any more.
    """
    noted = {row.spec for row in store.header.rows if row.note}
    done = {(t.row, t.repeat) for t in store.timings}
    ready = [row for row in rows if row.info.spec not in noted]
    subject = local_model(subject)
    turns = [(k, row) for k in range(repeats) for row in ready if (row.info.spec, k) not in done]
    peak, warm = PeakMemory(subject.denoisers), dict[str, Column]()  # what runs: a preset's fallback, perhaps
    for turn, (repeat, row) in enumerate(turns):
        on_progress(f"Seconds of {row.info.label}", turn, len(turns))
        if row.info.spec not in warm:  # a first call also allocates and compiles
            subject.warm_up([eval_samples[0].request], full)
            subject.prepare([eval_samples[0].request], row.column)
            *_, warm[row.info.spec] = draw_or_fall_back(subject, [eval_samples[0].request], row.column)
        took: list[float] = []
        for column in (full, warm[row.info.spec]):
            peak.begin()
            took.append(
                sum(subject.draw([eval_sample.request], column)[1] for eval_sample in eval_samples) / len(eval_samples)
            )
        store.append(Timing(row.info.spec, repeat, 1, took[1], took[0], peak.bytes()))
    on_progress("", len(turns), len(turns))
