"""The folder of a benchmark: a header, a record for each row and sample, and seconds, written line by line."""

from __future__ import annotations

import json
import os
import reprlib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from skipstone.errors import BenchError
from skipstone.evaluation.files import write_file
from skipstone.evaluation.json_lines import format_line, json_roundtrip, read_lines, repair_lines
from skipstone.json_files import JsonReader

HEADER, SAMPLES, TIMINGS, TUNING = "bench.json", "samples.jsonl", "timings.jsonl", "tuning.jsonl"
PICTURES = "pictures"
GROUPS = ("full", "fixed", "mask", "gate", "random", "oracle", "ours", "peer")
L = TypeVar("L")


@dataclass(frozen=True)
class RowInfo:
    """One row of the table.

    Args:
        spec: The column in full.
        label: What tables call it.
        group: One of GROUPS.
        family: Name of the curve that it is a point of.
        knob: What varies along the curve, e.g. "tol=0.01".
        steps: Of the grid.
        note: Why it did not run ("not applicable: ..."), or nothing.
        values: Metrics of all its pictures at once, such as FID, which do not exist for one picture.
        refusal: Why a preset could not take the pipeline's loop over, so that its fallback was measured; or nothing.
    """

    spec: str
    label: str
    group: str
    family: str
    knob: str = ""
    steps: int = 0
    note: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    refusal: str = ""


@dataclass(frozen=True)
class Record:
    """One sample of one row.

    Args:
        row: Spec of the row.
        sample: Prompt's id and seed, "id:seed".
        prompt, prompt_id, category, seed: What was generated.
        calls: Rows that entered the denoiser, over the branches of a full call; of backward passes two for each.
        cond, uncond: Rows of each guidance branch.
        macs: Multiply-accumulates of the denoiser; None where they were not counted.
        macs_calls: The same over those of one full guided call.
        values: Metric -> value, absent where it could not be measured.
        decisions: A letter for each step; empty of a peer.
        status: How the run ended.
        picture: Its file in the folder; empty where it was not written.
        identical: Whether the picture is the full run's to the last bit; its PSNR is then written as 99.
        backward: Rows of backward passes, over the branches of a full call, which `calls` and `macs` have in them.
    """

    row: str
    sample: str
    prompt: str
    prompt_id: str
    category: str
    seed: int
    calls: float
    cond: float
    uncond: float
    macs: float | None
    macs_calls: float | None
    values: Mapping[str, float]
    decisions: str = ""
    status: str = "done"
    picture: str = ""
    identical: bool = False
    backward: float = 0.0


@dataclass(frozen=True)
class Timing:
    """Seconds of one row in one repeat, beside the full run's of the same repeat.

    Args:
        row: Spec of the row.
        repeat: Number of the repeat, from 0.
        batch: Samples of one call.
        seconds, baseline_seconds: Of denoising one sample, mean over those that were timed.
        peak_bytes: Largest memory allocated on the GPU; None where it cannot be measured.
    """

    row: str
    repeat: int
    batch: int
    seconds: float
    baseline_seconds: float
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Header:
    """What all records of a folder have in common.

    Args:
        version: Of Skipstone.
        model: What tables call it.
        fingerprint: Name -> what must be the same for records to be comparable: weights, versions, prompts.
        guidance: Weight of guidance; None where the model has none.
        settings: Other arguments of the pipeline's call.
        reference: Spec of the full run.
        converged: Specs of the two runs that stand for the exact solution; the first is the reference.
        machine, date, command: Of the run.
        prompts: Where the prompts are from: {"set", "count", "seeds", ...}.
        rows: Of the table.
        agreement: PSNR in dB between the two converged runs: {"median", "worst"}.
        options: Of the command, so that `--resume` needs no more than the folder.
    """

    version: str
    model: str
    fingerprint: Mapping[str, Any]
    guidance: float | None
    settings: Mapping[str, Any]
    reference: str
    converged: tuple[str, ...]
    machine: str
    date: str
    command: str
    prompts: Mapping[str, Any]
    rows: tuple[RowInfo, ...] = ()
    agreement: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What another run must share for its records to be added."""
        own = {name: getattr(self, name) for name in ("model", "guidance", "settings", "reference", "converged")}
        identity: dict[str, Any] = json_roundtrip({**own, **self.fingerprint})
        return identity


@dataclass(frozen=True)
class Store:
    """A benchmark's folder. `create` a new one, `open` one to go on with it, `load` one to read it.

    Args:
        folder: Where it is.
        header: Of its bench.json.
    """

    folder: Path
    header: Header

    @classmethod
    def check(cls, folder: Path, resume: bool) -> None:
        """Raise BenchError where a new run finds results, or one that is to go on finds none."""
        if resume:
            cls.load(folder)
        elif (folder / HEADER).exists():
            raise BenchError(f"{folder} holds results already: say --resume to go on, or choose another --out.")

    @classmethod
    def create(cls, folder: Path, header: Header) -> Store:
        """A new folder. Raises BenchError where results are there already."""
        cls.check(folder, resume=False)
        store = cls(folder, header)
        store._save()
        return store

    @classmethod
    def open(cls, folder: Path, header: Header) -> Store:
        """The folder of a run that was cut off, to go on with it: half-written records are dropped, rows added.

        Raises:
            BenchError: there is none, or it was made with another model, version, prompts, guidance or reference.
        """
        found = cls.load(folder)
        theirs, mine = found.header.identity, header.identity
        for name in {**theirs, **mine}:
            if theirs.get(name) != mine.get(name):
                raise BenchError(
                    f"The results in {folder} were made with {name} {_format_identity(theirs, name)}, this run has "
                    f"{_format_identity(mine, name)}: they cannot be merged. Choose another --out, or ask for {name} "
                    f"as before."
                )
        for name in (SAMPLES, TIMINGS, TUNING):
            repair_lines(folder / name)
        return found.with_header(options=header.options).with_rows(header.rows)

    @classmethod
    def load(cls, folder: Path) -> Store:
        """The folder to read. Raises BenchError where it holds no results or damaged ones."""
        path = folder / HEADER
        if not path.is_file():
            raise BenchError(f"{folder} holds no {HEADER}: expected the --out of skipstone bench.")
        return cls(folder, _read_header(path))

    def with_header(self, **changes: Any) -> Store:
        """The store after its header has been changed, on disk too."""
        store = replace(self, header=replace(self.header, **changes))
        store._save()
        return store

    def with_rows(self, rows: Iterable[RowInfo]) -> Store:
        """The store with these rows: new ones are added, known ones brought up to date."""
        merged = {row.spec: row for row in (*self.header.rows, *rows)}
        return self.with_header(rows=tuple(merged.values()))

    @property
    def records(self) -> list[Record]:
        """Of all samples, in the order of their making; of a sample that was made twice, the last."""
        found = [_from_json(Record, line) for line in read_lines(self.folder / SAMPLES)]
        return list({(r.row, r.sample): r for r in found}.values())

    @property
    def timings(self) -> list[Timing]:
        """Of all rows and repeats."""
        found = [_from_json(Timing, line) for line in read_lines(self.folder / TIMINGS)]
        return list({(t.row, t.repeat): t for t in found}.values())

    @property
    def tuning(self) -> list[dict[str, Any]]:
        """What was measured on the tuning prompts: {"spec", "budget", "sample", "calls", "psnr_converged"}."""
        return list(read_lines(self.folder / TUNING))

    def append(self, *lines: Record | Timing) -> None:
        """Write records or timings, and see them to the disk."""
        for name, kind in ((SAMPLES, Record), (TIMINGS, Timing)):
            self._append(name, [asdict(line) for line in lines if isinstance(line, kind)])

    def append_tuning(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write what was measured on the tuning prompts."""
        self._append(TUNING, lines)

    def write(self, name: str, content: bytes) -> Path:
        """A file of the folder, there whole or not at all."""
        return write_file(self.folder / name, content)

    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(map(format_line, lines))
        if not text:
            return
        try:
            with (self.folder / name).open("ab") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as e:
            raise BenchError(f"Cannot write {self.folder / name}: {e.strerror}. --resume goes on from here.") from None

    def _save(self) -> None:
        self.write(HEADER, json.dumps(json_roundtrip(asdict(self.header)), indent=1, ensure_ascii=False).encode())


def _format_identity(identity: Mapping[str, Any], name: str) -> str:
    value = identity.get(name, "none")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else f"{text[:200]}..."


def _read_header(path: Path) -> Header:
    """The header of a file; fields that a later version added are left out. Raises BenchError."""
    reader = JsonReader(BenchError, "It is damaged or of another version: choose another --out.")
    found: Any = reader.convert(Mapping[str, Any], reader.read(path), str(path))
    rows = reader.convert(Sequence[Mapping[str, Any]], found.get("rows"), f"{path}: rows")
    found = {**_known_fields(Header, found), "rows": [_known_fields(RowInfo, row) for row in rows]}
    header: Header = reader.convert(Header, found, str(path))
    return header


def _known_fields(kind: type, found: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in found.items() if name in names}


def _from_json(kind: type[L], found: Mapping[str, Any]) -> L:
    """A dataclass out of a line; fields that a later version added are left out. Raises BenchError."""
    known = _known_fields(kind, found)
    for name, expected in _field_types(kind).items():  # type: ignore[arg-type]  # a class can be hashed
        if name in known and (
            not isinstance(known[name], expected) or (bool not in expected and isinstance(known[name], bool))
        ):
            raise BenchError(
                f"A line of the results has {reprlib.repr(known[name])} as {name}: skipstone bench --resume with "
                f"another --out makes them again."
            )
    try:
        return kind(**known)
    except TypeError:
        missing = {f.name for f in fields(kind)} - found.keys()  # type: ignore[arg-type]  # all are dataclasses
        raise BenchError(
            f"A line of the results lacks {', '.join(sorted(missing))}: made by another version?"
        ) from None


@cache
def _field_types(kind: type) -> dict[str, tuple[type, ...]]:
    """The outermost types of the fields of lines: a quick check, for there are thousands of lines."""
    found: dict[str, tuple[type, ...]] = {}
    for name, hint in get_type_hints(kind).items():
        each = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = [get_origin(one) or one for one in each]
        found[name] = (*(dict if one is Mapping else one for one in plain), *([int] if float in plain else []))
    return found
