"""Students against what needs no training, at equal cost: `python -m research.students.measure_students -h`.

Draws withheld prompts of Pebble by the default policy, by fixed samplers of the guided and of the unguided teacher,
and by students, and holds them against the converged picture. A row that is in `rows.json` is not drawn again: weights
of a student that change want another name.

    python -m research.students.measure_students --student "consistency=mine" --out research/students/pebble

Writes `rows.json`, `table.md` and `students.png`. A call is a guided one: two rows of the network. Wall-clock seconds
mean something where nothing else runs: `--time-again` measures those of all rows anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from research.students.row_figures import SEEDS, closeness, diversity, judge_facts, judge_frechet_distance
from research.students.row_table import plot, write_table
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.cost import count_macs
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.pixels import to_uint8
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.subject import SampleRequest
from skipstone.policies.student import Student, StudentCard
from skipstone.registry import spell

CALLS = (1, 2, 3, 4, 6, 8)
FIXED = ("ddim / trailing", "dpmpp / trailing", "unipc / trailing", "dpmpp / karras")
UNGUIDED = ("ddim / trailing", "dpmpp / trailing", "unipc / trailing")
WIDE = "ddim / trailing"  # the fixed sampler whose rows have the Fréchet distance: a student's own step
WIDE_CALLS = 4  # of rows that have it, but for the floor's: many pictures of many calls take long
CONVERGED = "fixed @ unipc / trailing / 100"
FULL_ROW, FULL = "full run", "fixed @ unipc / trailing / 50"
FLOOR_ROW, TEACHER = "teacher, 20 steps", "fixed @ unipc / trailing / 20"
DIVERSE = 12  # prompts that diversity is measured on
FIRST_SEED = 500  # of diversity, apart from those of the rows
FRECHET_SEED, TEACHER_SEED = 10_000, 20_000  # first seeds of a row's pictures, and of the teacher's
BATCH, TIMED = 8, 3  # samples of a batch; batches that are timed


@dataclass
class Measurement:
    """Rows of a model: name -> figures, kept in a file.

    Args:
        model: pebble or pebble-dit.
        limit: Prompts.
        out: Folder.
        frechet: Pictures of each side of the Fréchet distance; 0 leaves it out.
    """

    model: str
    limit: int
    out: Path
    frechet: int = 0

    def __post_init__(self) -> None:
        self.subject = EngineSubject(self.model, self.model)
        self.free = EngineSubject(self.model, self.model, 1.0)
        self.items = [SampleRequest(p.text, i) for i, p in enumerate(load_prompts("pebble", limit=self.limit))]
        self.file = self.out / "rows.json"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            self.rows = json.loads(self.file.read_text(encoding="utf-8"))

    def draw(self, subject: EngineSubject, spec: str, items: Sequence[SampleRequest]) -> tuple[list[Any], float]:
        """Pictures, and their mean cost in guided calls."""
        column = subject.resolve_column(parse_column(spec, *DEFAULT_SAMPLER))
        generated, _ = subject.draw(items, column)
        calls = sum(g.calls * g.branches for g in generated) / len(generated) / 2
        return subject.pictures(generated), calls

    def reference(self) -> list[Any]:
        """The converged pictures, drawn once."""
        return self._kept(f"{self.model}-{self.limit}", lambda: self.draw(self.subject, CONVERGED, self.items)[0])

    def teacher_pictures(self) -> list[Any]:
        """The teacher's side of the Fréchet distance, drawn once."""
        return self._kept(
            f"{self.model}-teacher-{self.frechet}", lambda: self.many(self.subject, TEACHER, TEACHER_SEED)
        )

    def _kept(self, name: str, draw: Callable[[], list[Any]]) -> list[Any]:
        """Pictures of a file, drawn where it is missing."""
        file = self.out / "cache" / f"{name}.npz"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / ".gitignore").write_text("*\n", encoding="utf-8")
            np.savez_compressed(file, pixels=np.stack(draw()))
        with np.load(file) as stored:
            return list(stored["pixels"])

    def many(self, subject: EngineSubject, spec: str, seed: int) -> list[Any]:
        """`frechet` pictures of all withheld prompts in turn, in 8 bits."""
        texts = [prompt.text for prompt in load_prompts("pebble")]
        items = [SampleRequest(texts[i % len(texts)], seed + i) for i in range(self.frechet)]
        parts = (items[i : i + 8 * BATCH] for i in range(0, len(items), 8 * BATCH))
        return [to_uint8(p) for part in parts for p in self.draw(subject, spec, part)[0]]

    def measure(self, name: str, spec: str, guided: bool = True, diverse: bool = False) -> None:
        """Draw a row if it is not there; `diverse` measures its diversity too."""
        if "ssim" in self.rows.get(name, {}):  # rows of an older script have fewer figures
            return
        began = time.monotonic()
        subject = self.subject if guided else self.free
        pictures, calls = self.draw(subject, spec, self.items)
        self.rows[name] = {
            "spec": spec,
            "guided": guided,
            "calls": calls,
            "gmacs": 2 * calls * self._row_macs(subject, spec) / 1e9,
            **judge_facts(pictures, [item.prompt for item in self.items]),
            **closeness(pictures, self.reference()),
            "frechet": None,
            "diversity": self._diversity(subject, spec) if diverse else {},
        }
        self._save()
        print(f"{name}: {json.dumps(self.rows[name])} {time.monotonic() - began:.0f} s", flush=True)

    def measure_frechet(self, specs: Mapping[str, str]) -> None:
        """The Fréchet distance of those of these rows that have none, and few calls."""
        for name, spec in specs.items():
            row = self.rows[name]
            if row["frechet"] is None and (row["calls"] < WIDE_CALLS + 0.5 or name == FLOOR_ROW):
                subject = self.subject if row["guided"] else self.free
                pictures = self.many(subject, spec, FRECHET_SEED)
                row["frechet"] = judge_frechet_distance(pictures, self.teacher_pictures())
                self._save()
                print(f"{name}: Fréchet distance {row['frechet']:.3f}", flush=True)

    def measure_seconds(self, specs: Mapping[str, str], again: bool = False) -> None:
        """Seconds of a picture of those of these rows that have none, or of all; the load says whether others ran."""
        items = [self.items[i : i + BATCH] for i in range(0, len(self.items), BATCH)][:TIMED]
        for name, spec in specs.items():
            row = self.rows[name]
            if "seconds" in row and not again:
                continue
            subject = self.subject if row["guided"] else self.free
            column = subject.resolve_column(parse_column(spec, *DEFAULT_SAMPLER))
            subject.draw(items[0][:1], column)  # loads what is to be loaded
            timed = [_time_batch(subject, part, column) for part in items]
            row["seconds"], row["cpu_seconds"] = (statistics.median(one) for one in zip(*timed, strict=True))
            row["load"] = os.getloadavg()[0]
            self._save()
            print(f"{name}: {row['seconds']:.4f} s", flush=True)

    def _save(self) -> None:
        self.file.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")

    def _row_macs(self, subject: EngineSubject, spec: str) -> float:
        """Multiply-accumulates of a row of the network that a spec runs."""
        column = parse_column(spec, *DEFAULT_SAMPLER)
        with count_macs([subject.model_of(column.effective_policy).unet]) as meter:
            subject.draw(self.items[:1], column)
        return meter.macs / meter.rows

    def _diversity(self, subject: EngineSubject, spec: str) -> dict[str, float]:
        items = [SampleRequest(i.prompt, FIRST_SEED + k) for i in self.items[:DIVERSE] for k in range(SEEDS)]
        return diversity(self.draw(subject, spec, items)[0])


def _time_batch(subject: EngineSubject, items: Sequence[SampleRequest], column: Column) -> tuple[float, float]:
    """Seconds of the denoiser for a picture of a batch: wall-clock, and of the processor."""
    began = time.process_time()
    seconds = subject.draw(items, column)[1]
    return seconds / len(items), (time.process_time() - began) / len(items)


def student_rows(name: str, folder: str) -> dict[str, str]:
    """Row name -> spec of every number of steps that a student takes and the table has."""
    card = StudentCard.read(folder)
    steps = [card.steps] if card.method == "progressive" else [2 * c for c in CALLS if 2 * c % card.steps == 0]
    return {f"{name}, {n} steps": spell(Student(folder, n)) for n in sorted({card.steps, *steps})}


def untrained_rows() -> list[tuple[str, str, bool]]:
    """(name, spec, whether guided) of everything that needs no training."""
    rows = [(FULL_ROW, FULL, True), (FLOOR_ROW, TEACHER, True)]
    for calls in CALLS:
        rows += [(f"{way}, {calls}", f"fixed @ {way} / {calls}", True) for way in FIXED]
        rows += [(f"unguided {way}, {2 * calls}", f"fixed @ {way} / {2 * calls}", False) for way in UNGUIDED]
        rows.append((f"default, {calls}", f"adaptive_grid(calls={calls})", True))
    return sorted(rows, key=lambda row: not is_wide(row[0]))  # those first, whatever stops the rest


def is_wide(name: str) -> bool:
    """Whether a row that needs no training has the Fréchet distance."""
    return WIDE in name or name == FLOOR_ROW or name.startswith("default")


def sheet(measurement: Measurement, specs: Sequence[str], file: Path, count: int = 10) -> None:
    """Pictures: the converged ones in the first row, then each spec in a row."""
    from PIL import Image

    items = measurement.items[:count]
    rows = [measurement.reference()[:count], *(measurement.draw(measurement.subject, s, items)[0] for s in specs)]
    pixels = np.concatenate([np.concatenate([to_uint8(p) for p in row], 1) for row in rows])
    Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2), Image.Resampling.NEAREST).save(file)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.students.measure_students", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="pebble", help="pebble or pebble-dit")
    parser.add_argument("--student", action="append", default=[], metavar="NAME=FOLDER", help="or a shipped one's name")
    parser.add_argument("--limit", type=int, default=64, help="withheld prompts")
    parser.add_argument(
        "--frechet", type=int, default=324, help="pictures of each side of the Fréchet distance; 0: none"
    )
    parser.add_argument("--time-again", action="store_true", help="measure the seconds of all rows again")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(given.model, given.limit, given.out, given.frechet)
    students = dict(one.split("=", 1) for one in given.student)
    taught = {row: spec for name, folder in students.items() for row, spec in student_rows(name, folder).items()}
    for name, spec in taught.items():
        measurement.measure(name, spec, diverse=True)
    for name, spec, guided in untrained_rows():
        measurement.measure(name, spec, guided, diverse=name == FULL_ROW)
    specs = {**taught, **{name: spec for name, spec, _ in untrained_rows()}}
    if given.frechet:
        measurement.measure_frechet({name: spec for name, spec in specs.items() if name in taught or is_wide(name)})
    measurement.measure_seconds(specs, given.time_again)
    command = f"python -m research.students.measure_students --model {given.model} --limit {given.limit}"
    command += "".join(f" --student {shlex.quote(f'{name}=...')}" for name in students)
    counts = {"prompts": len(measurement.items), "frechet": given.frechet}
    text = write_table(measurement.rows, command, FULL_ROW, FLOOR_ROW, counts)
    (given.out / "table.md").write_text(text, encoding="utf-8")
    plot(measurement.rows, list(students), FULL_ROW, max(CALLS), given.out / "students.png")


if __name__ == "__main__":
    main()
