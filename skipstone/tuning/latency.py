"""Milliseconds of one call of a network on this machine, by rows, resolution and dtype: measured once, then kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import registry
from ..calibration.cache import folder as cache_folder
from ..errors import SkipstoneError, SpecError
from ..evaluation.columns import Column
from ..evaluation.engine_subject import EngineSubject
from ..evaluation.files import write_file
from ..evaluation.fingerprint import describe_machine, hash_weights, numbers_of
from ..evaluation.row_times import RowTime, choose_rows, measure_rows, measure_samples
from ..evaluation.subject import SampleRequest, Subject, draws_without_prompt, local_model
from ..json_files import JsonReader

FOLDER = "latency"
MOST_ROWS = 32  # of a call that is measured
STEPS = 2  # of a pipeline's run whose time is divided
PROMPT = "a"
READER = JsonReader(SpecError, "Delete the file: it is measured again.", max_bytes=2**20)


class Latency(NamedTuple):
    """Time of one call.

    Args:
        rows: That enter the network.
        height, width: Of the picture, in pixels.
        dtype: Of the weights.
        milliseconds: Of the call.
    """

    rows: int
    height: int
    width: int
    dtype: str
    milliseconds: float


@dataclass(frozen=True)
class SavedTable:
    """What a file has of a model on a machine.

    Args:
        model: Its name when it was measured.
        machine: In words.
        entries: rows, height, width, dtype and milliseconds of each.
    """

    model: str
    machine: str
    entries: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class LatencyTable:
    """Times of a model on this machine.

    Args:
        model, machine: What was measured.
        entries: All that was measured of it, at any resolution and dtype.
        here: Those of the resolution and dtype that the model has now, rows rising.
        branches: Rows of one sample.
        path: Where it is kept.
    """

    model: str
    machine: str
    entries: Sequence[Latency]
    here: Sequence[Latency]
    branches: int
    path: Path

    @property
    def alone(self) -> float:
        """Milliseconds of a call of one sample alone."""
        return self.here[0].milliseconds

    @property
    def rows(self) -> int:
        """Rows of a call after which twice as many do not pay."""
        return choose_rows([RowTime(one.rows, one.milliseconds / 1e3) for one in self.here])

    @property
    def words(self) -> str:
        """The table in a sentence."""
        best = next(one for one in self.here if one.rows == self.rows)
        each = best.milliseconds / max(1, best.rows // self.branches)
        return (
            f"On this machine a call takes {self.alone:.3g} ms for one picture alone, and {each:.3g} ms for each of "
            f"{best.rows // self.branches} pictures at once ({best.rows} rows), after which more do not pay."
        )


def latency_table(subject: Subject, again: bool = False, most: int = MOST_ROWS) -> LatencyTable:
    """The table of a model, measured where the file has none of its resolution and dtype.

    Args:
        subject: The model.
        again: Measure anew.
        most: Rows of the largest call.

    Raises:
        SpecError: a file that is damaged.
        BenchError: the file cannot be written.
    """
    subject = local_model(subject)  # other machines have other times
    subject.load([])
    machine = describe_machine(subject) if subject.denoisers else ""
    path = _path(subject, machine)
    saved = _read(path) if path.is_file() else SavedTable(subject.name, machine)
    known = [Latency(**one) for one in saved.entries]
    size, branches = _size_and_branches(subject)
    dtype = numbers_of(subject.denoisers)[0]
    here = [one for one in known if one[1:4] == (*size, dtype) and one.rows % branches == 0]
    if again or branches not in {one.rows for one in here}:
        here = [Latency(t.rows, *size, dtype, 1e3 * t.seconds) for t in _measure(subject, branches, most)]
        rows = {one.rows for one in here}
        known = [one for one in known if one[1:4] != (*size, dtype) or one.rows not in rows] + here
        saved = replace(saved, model=subject.name, entries=tuple(one._asdict() for one in known))
        write_file(path, (json.dumps(asdict(saved), indent=1) + "\n").encode())
    return LatencyTable(subject.name, machine, known, sorted(here), branches, path)


def calls_within(table: LatencyTable, milliseconds: float) -> int:
    """Calls of one picture alone that the network makes in so many milliseconds.

    Raises:
        SpecError: not even one.
    """
    found = int(milliseconds / table.alone)
    if found < 1:
        raise SpecError(
            f"--milliseconds: expected at least {table.alone:.3g}, the time of one call of {table.model} here, got "
            f"{milliseconds:g}."
        )
    return found


def _path(subject: Subject, machine: str) -> Path:
    key = json.dumps([hash_weights(subject.folder), machine])
    return cache_folder() / FOLDER / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> SavedTable:
    found: SavedTable = READER.convert(SavedTable, READER.read(path), str(path))
    for entry in found.entries:
        if set(entry) != set(Latency._fields):
            raise READER.fault(f"{path}: expected entries of {', '.join(Latency._fields)}, got others.")
    return found


def _measure(subject: Subject, branches: int, most: int) -> list[RowTime]:
    if isinstance(subject, EngineSubject):
        return measure_rows(subject.embedded.backbone, subject.embedded.problem(PROMPT, 0, 1), most)
    column = _column(subject)
    return measure_samples(_seconds_of_steps(subject, column), branches, most)


def _seconds_of_steps(subject: Subject, column: Column) -> Callable[[int], float]:
    """Seconds of one step of a pipeline's own loop: the call, the scheduler's step, and what is between them."""
    requests = list(_requests(subject, MOST_ROWS))
    subject.draw(requests[:1], column)  # warms up

    def seconds(samples: int) -> float:
        return subject.draw(requests[:samples], column)[1] / column.steps

    return seconds


def _column(subject: Subject) -> Column:
    own = subject.default_sampler
    return subject.resolve_column(Column(registry.parse("policy", "fixed"), own.solver, own.grid, STEPS))


def _requests(subject: Subject, count: int) -> Iterator[SampleRequest]:
    prompt = "" if draws_without_prompt(subject) else _prompt(subject)
    return (SampleRequest(prompt, seed) for seed in range(count))


def _prompt(subject: Subject) -> str:
    """A text that the model takes: any, or the number of a class."""
    for text in (PROMPT, "0"):
        try:
            subject.check([text])
        except SkipstoneError:
            continue
        return text
    return PROMPT


def _size_and_branches(subject: Subject) -> tuple[tuple[int, int], int]:
    """(height, width) of pictures, and rows of a sample, as one short run shows."""
    generated, _ = subject.draw(list(_requests(subject, 1)), _column(subject))
    height, width = subject.pictures(generated)[0].shape[-3:-1]
    return (int(height), int(width)), generated[0].branches
