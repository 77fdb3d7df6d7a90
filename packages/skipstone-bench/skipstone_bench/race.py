"""Rows times samples on one model: pictures, counted cost, closeness; what is there already is not made again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from skipstone.engine.trace import letters
from skipstone.errors import SkipstoneError
from skipstone.evaluation.columns import Column
from skipstone.evaluation.cost import Peak, branch_rows, macs_of_row, metered
from skipstone.evaluation.files import IDENTICAL, named
from skipstone.evaluation.pixels import flat
from skipstone.evaluation.progress import Tell, silent
from skipstone.evaluation.references import CONFIRMED, Picture, References, Shot
from skipstone.evaluation.subject import Made, Subject
from skipstone.metrics import Metric, Sample

from .store import PICTURES, Record, RowInfo, Store, Timing

PROBE = 4  # steps of the run that tells what a row of the network costs
ABSENT = "not applicable: "


@dataclass(frozen=True)
class Row:
    """A column, and how it is filed."""

    column: Column
    info: RowInfo


@dataclass(frozen=True)
class Race:
    """How rows are raced.

    Args:
        subject: The model.
        references: What is compared with.
        close: Metrics of closeness, by the name that they have in records: "psnr" becomes "psnr_full" and
            "psnr_converged".
        alone: Metrics that look at the picture alone.
        batch: Samples of one call, >= 1.
        tell: Of the progress.
    """

    subject: Subject
    references: References
    close: Mapping[str, Metric]
    alone: Mapping[str, Metric]
    batch: int = 8
    tell: Tell = silent

    def run(self, store: Store, shots: Sequence[Shot], rows: Sequence[Row]) -> Store:
        """Draw and measure every row; the store with a note at every row that could not run."""
        ready, store = self._admitted(store, rows)
        done = {(r.row, r.sample) for r in store.records}
        chunks = [shots[i : i + self.batch] for i in range(0, len(shots), self.batch)]
        open_ = [(chunk, row) for chunk in chunks for row in ready if _missing(done, row, chunk)]
        total = sum(_weight(row) * len(chunk) for chunk, row in open_)
        weight, failed, spent = 0.0, set[str](), 0.0
        for chunk, row in open_:
            self.tell(row.info.label, spent, total)
            weight = weight or self._row_macs(shots[0])
            if row.column.spec not in failed:
                try:
                    self._chunk(store, chunk, row, weight)
                except SkipstoneError as e:
                    failed.add(row.column.spec)
                    store = store.with_rows([_absent(row, e)])
            spent += _weight(row) * len(chunk)
        self.tell("", total, total)
        return store

    def _admitted(self, store: Store, rows: Sequence[Row]) -> tuple[list[Row], Store]:
        """The rows that the model can run; the others get their note."""
        ready, infos = [], []
        for row in rows:
            try:
                self.subject.load([self.subject.admit(row.column)])
                ready.append(row)
                infos.append(row.info)
            except SkipstoneError as e:
                infos.append(_absent(row, e))
        return ready, store.with_rows(infos)

    def confirm(self, store: Store, shots: Sequence[Shot]) -> Store:
        """How well the two converged runs agree, told in the header."""
        few = shots[:CONFIRMED]
        for i in range(0, len(few), self.batch):
            self.tell("Confirming the converged solution", i, len(few))
            for column in self.references.converged[:2]:
                self.references.ready(self.subject, few[i : i + self.batch], column)
        self.tell("", len(few), len(few))
        return store.with_header(agreement=self.references.agreement(self.subject, few))

    def _row_macs(self, shot: Shot) -> float:
        return macs_of_row(self.subject, shot.item, self.references.full, PROBE)

    def _chunk(self, store: Store, chunk: Sequence[Shot], row: Row, weight: float) -> None:
        """One row of a chunk: its records appear together, when all is done."""
        items = [shot.item for shot in chunk]
        self.subject.prepare(items, row.column)
        counting = metered(self.subject.denoisers) if row.column.peer is not None else nullcontext()
        with counting as meter:
            made, _ = self.subject.draw(items, row.column)
        pictures = self.subject.pictures(made)
        full = self.references.ready(self.subject, chunk, self.references.full)
        exact = self.references.ready(self.subject, chunk, self.references.converged[0])
        records = []
        for k, shot in enumerate(chunk):
            mine = Picture(pictures[k], made[k].latent)
            values = self.values(mine, shot, made[k], {"full": full[k], "converged": exact[k]})
            rows = made[k].calls * made[k].branches
            macs = rows * weight if meter is None else meter.macs / len(chunk)
            calls = macs / (weight * made[k].branches)
            name = f"{PICTURES}/{named(row.info.spec)}/{named(shot.id)}.png"
            store.write(name, png(mine.pixels))
            identical = bool((mine.pixels == full[k].pixels).all())
            records.append(record(row.info.spec, shot, made[k], macs, calls, values, name, identical))
        store.append(*records)

    def values(self, mine: Picture, shot: Shot, made: Made, theirs: Mapping[str, Picture]) -> dict[str, float]:
        """Every metric that can be taken of a picture."""
        judge = self.subject.judge
        sample = Sample(flat(mine.pixels), shot.prompt.text, made.calls, judge=judge, latent=mine.latent)
        found = {name: _taken(metric, sample) for name, metric in self.alone.items()}
        for whose, reference in theirs.items():
            pair = replace(sample, reference=flat(reference.pixels), reference_latent=reference.latent)
            found |= {f"{name}_{whose}": _taken(metric, pair) for name, metric in self.close.items()}
        return {name: value for name, value in found.items() if value is not None}


def record(
    spec: str,
    shot: Shot,
    made: Made,
    macs: float,
    macs_calls: float,
    values: Mapping[str, float],
    picture: str,
    identical: bool,
) -> Record:
    """What is kept of a sample."""
    cond, uncond = branch_rows(made)
    return Record(
        row=spec,
        sample=shot.id,
        prompt=shot.prompt.text,
        prompt_id=shot.prompt.id,
        category=shot.prompt.category,
        seed=shot.seed,
        calls=made.calls,
        cond=cond,
        uncond=uncond,
        macs=macs,
        macs_calls=macs_calls,
        values=values,
        decisions="" if made.run is None else letters(made.run),
        status=made.status.name,
        picture=picture,
        identical=identical,
        backward=made.backward,
    )


def _absent(row: Row, why: SkipstoneError) -> RowInfo:
    said = str(why)
    return replace(row.info, note=said if ABSENT in said else f"{ABSENT}{said}")


def _taken(metric: Metric, sample: Sample) -> float | None:
    """A metric's value, at most IDENTICAL; None where it cannot be taken of this sample."""
    try:
        value = metric.measure(sample)
    except SkipstoneError:
        return None
    return None if math.isnan(value) else max(-IDENTICAL, value) if math.isfinite(value) else IDENTICAL


def _missing(done: set[tuple[str, str]], row: Row, chunk: Sequence[Shot]) -> bool:
    return any((row.info.spec, shot.id) not in done for shot in chunk)


def _weight(row: Row) -> float:
    """Calls that a row is guessed to make, for the time that is left."""
    return row.column.steps * (0.5 if row.column.adaptive else 1.0)


def png(pixels: Any) -> bytes:
    """A picture as an 8-bit PNG file; a video as an animated one."""
    from PIL import Image

    from skipstone.evaluation.pixels import quantise

    frames = [Image.fromarray(frame) for frame in quantise(pixels if pixels.ndim == 4 else pixels[None])]
    moving: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 125, "loop": 0}
    buffer = BytesIO()
    frames[0].save(buffer, "PNG", **(moving if len(frames) > 1 else {}))
    return buffer.getvalue()


def time_rows(
    subject: Subject,
    store: Store,
    shots: Sequence[Shot],
    rows: Sequence[Row],
    full: Column,
    repeats: int,
    tell: Tell = silent,
) -> None:
    """Seconds of each row at batch 1, right after those of the full run, in every repeat.

    Raises:
        SkipstoneError: a row that had run before does not run any more.
    """
    noted = {row.spec for row in store.header.rows if row.note}
    done = {(t.row, t.repeat) for t in store.timings}
    ready = [row for row in rows if row.info.spec not in noted]
    turns = [(k, row) for k in range(repeats) for row in ready if (row.info.spec, k) not in done]
    peak, warm = Peak(subject.denoisers), set[str]()
    for turn, (repeat, row) in enumerate(turns):
        tell(f"Seconds of {row.info.label}", turn, len(turns))
        if row.info.spec not in warm:  # what a first call allocates and compiles is nobody's speed
            subject.warm_up([shots[0].item], full)
            subject.prepare([shots[0].item], row.column)
            subject.draw([shots[0].item], row.column)
            warm.add(row.info.spec)
        took: list[float] = []
        for column in (full, row.column):
            peak.begin()
            took.append(sum(subject.draw([shot.item], column)[1] for shot in shots) / len(shots))
        store.append(Timing(row.info.spec, repeat, 1, took[1], took[0], peak.bytes()))
    tell("", len(turns), len(turns))
