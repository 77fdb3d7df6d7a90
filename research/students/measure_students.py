"""Students against what needs no training, at equal cost: `python -m research.students.measure_students -h`.

Draws withheld prompts of Pebble by the default policy, by fixed samplers of the guided and of the unguided teacher, and
by students, and holds them against the converged picture. A row that is in `rows.json` is not drawn again: weights of a
student that change want another name.

    python -m research.students.measure_students --student "consistency=mine" --out research/students/pebble

Writes `rows.json`, `table.md` and `students.png`. A call is a guided one: two rows of the network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.pixels import to_uint8
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.subject import SampleRequest
from skipstone.metrics import PSNR, Sample
from skipstone.policies.student import Student, StudentCard
from skipstone.registry import spell

CALLS = (1, 2, 3, 4, 6, 8)
FIXED = ("ddim / trailing", "dpmpp / trailing", "unipc / trailing", "dpmpp / karras")
UNGUIDED = ("ddim / trailing", "dpmpp / trailing", "unipc / trailing")
CONVERGED = "fixed @ unipc / trailing / 100"
FULL_ROW, FULL = "full run", "fixed @ unipc / trailing / 50"
SEEDS = 4  # of a prompt, for diversity
DIVERSE = 12  # prompts that diversity is measured on
FIRST_SEED = 500  # of diversity, apart from those of the rows


@dataclass
class Measurement:
    """Rows of a model: spec -> figures, kept in a file.

    Args:
        model: pebble or pebble-dit.
        limit: Prompts.
        out: Folder.
    """

    model: str
    limit: int
    out: Path

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
        file = self.out / "cache" / f"{self.model}-{self.limit}.npz"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / ".gitignore").write_text("*\n", encoding="utf-8")
            np.savez_compressed(file, pixels=np.stack(self.draw(self.subject, CONVERGED, self.items)[0]))
        with np.load(file) as stored:
            return list(stored["pixels"])

    def measure(self, name: str, spec: str, guided: bool = True, diverse: bool = False) -> None:
        """Draw a row if it is not there; `diverse` measures its diversity too."""
        if name in self.rows:
            return
        began = time.monotonic()
        subject = self.subject if guided else self.free
        pictures, calls = self.draw(subject, spec, self.items)
        judge: Any = self.subject.judge
        judged = [judge(p, i.prompt) for p, i in zip(pictures, self.items, strict=True)]
        psnr = [PSNR().measure(Sample(p, reference=r)) for p, r in zip(pictures, self.reference(), strict=True)]
        self.rows[name] = {
            "spec": spec,
            "guided": guided,
            "calls": calls,
            "judge": float(np.mean(judged)),
            "judge_se": float(np.std(judged, ddof=1) / len(judged) ** 0.5),
            "psnr": float(np.median(psnr)),
            "psnr_p10": float(np.quantile(psnr, 0.1)),
            "diversity": self.diversity(subject, spec) if diverse else {},
        }
        self.file.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {json.dumps(self.rows[name])} {time.monotonic() - began:.0f} s", flush=True)

    def diversity(self, subject: EngineSubject, spec: str) -> dict[str, float]:
        """Mean distance of two pictures of one prompt: of their pixels (RMS), and of the judge's features."""
        from skipstone_pebble.judge import Judge

        items = [SampleRequest(i.prompt, FIRST_SEED + k) for i in self.items[:DIVERSE] for k in range(SEEDS)]
        pictures = self.draw(subject, spec, items)[0]
        judge = Judge.load()
        vectors = [judge.encode_image(torch.as_tensor(p).permute(2, 0, 1).float()).numpy() for p in pictures]
        return {"pixels": pairwise_distance(pictures), "features": pairwise_distance(vectors)}


def pairwise_distance(things: Sequence[NDArray[np.float32]]) -> float:
    """Mean RMS distance between those of one prompt."""
    groups = [things[i : i + SEEDS] for i in range(0, len(things), SEEDS)]
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for g in groups for a, b in combinations(g, 2)]))


def student_rows(name: str, folder: str) -> dict[str, str]:
    """Row name -> spec of every number of steps that a student takes and the table has."""
    card = StudentCard.read(folder)
    steps = [card.steps] if card.method == "progressive" else [2 * c for c in CALLS if 2 * c % card.steps == 0]
    return {f"{name}, {n} steps": spell(Student(folder, n)) for n in sorted({card.steps, *steps})}


def untrained_rows() -> list[tuple[str, str, bool]]:
    """(name, spec, whether guided) of everything that needs no training."""
    rows = [(FULL_ROW, FULL, True)]
    for calls in CALLS:
        rows += [(f"{way}, {calls}", f"fixed @ {way} / {calls}", True) for way in FIXED]
        rows += [(f"unguided {way}, {2 * calls}", f"fixed @ {way} / {2 * calls}", False) for way in UNGUIDED]
        rows.append((f"default, {calls}", f"adaptive_grid(calls={calls})", True))
    return rows


def write_table(rows: dict[str, dict[str, Any]], command: str) -> str:
    """The table: full run, and at each cost the best fixed sampler, the default and the students."""
    full = rows[FULL_ROW]["diversity"]
    lines = [
        f"Made by `{command}`.",
        "",
        "| calls | row | judge | PSNR median / p10, dB | diversity: pixels / features |",
        "|--:|---|--:|--:|--:|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: (item[1]["calls"], item[0])):
        shares = [f"{row['diversity'][kind] / full[kind]:.0%}" for kind in full if row["diversity"]]
        lines.append(
            f"| {row['calls']:.3g} | {name} | {100 * row['judge']:.1f} ± {100 * row['judge_se']:.1f} | "
            f"{row['psnr']:.1f} / {row['psnr_p10']:.1f} | {' / '.join(shares)} |"
        )
    return "\n".join(lines) + "\n"


def best_untrained(rows: dict[str, dict[str, Any]], by: str, guided: bool) -> list[tuple[float, float]]:
    """(calls, value) of the best fixed sampler at each cost."""
    found: dict[float, float] = {}
    for name, row in rows.items():
        if row["spec"].startswith("fixed") and row["guided"] == guided and name != FULL_ROW:
            found[row["calls"]] = max(found.get(row["calls"], 0.0), row[by])
    return sorted(found.items())


def plot(rows: dict[str, dict[str, Any]], students: Sequence[str], file: Path) -> None:
    """Judge's score and PSNR against calls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = [("judge", "judge's score"), ("psnr", "PSNR, median (dB)"), ("psnr_p10", "PSNR, worst tenth (dB)")]
    for axes, (key, label) in zip(figure.subplots(1, 3), panels, strict=True):
        lines = {
            "best fixed sampler, guided": best_untrained(rows, key, True),
            "best fixed sampler, unguided": best_untrained(rows, key, False),
            "default policy": sorted((r["calls"], r[key]) for n, r in rows.items() if n.startswith("default")),
        }
        for name in students:
            lines[f"student: {name}"] = sorted(
                (r["calls"], r[key]) for n, r in rows.items() if n.startswith(f"{name},")
            )
        for name, points in lines.items():
            style = "o-" if name.startswith("student") else "x--"
            axes.plot([x for x, _ in points], [y for _, y in points], style, label=name, markersize=4, linewidth=1.2)
        if key == "judge":
            axes.axhline(rows[FULL_ROW][key], color="gray", linewidth=0.8, label="50 steps")
        axes.set(xlabel="calls (guided ones)", ylabel=label, xlim=(0, max(CALLS) + 0.5))
        axes.grid(True, alpha=0.25)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=150)


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
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--student", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--limit", type=int, default=64, help="withheld prompts")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(given.model, given.limit, given.out)
    students = dict(one.split("=", 1) for one in given.student)
    for name, folder in students.items():
        for row, spec in student_rows(name, folder).items():
            measurement.measure(row, spec, diverse=True)
    for name, spec, guided in untrained_rows():
        measurement.measure(name, spec, guided, diverse=name == FULL_ROW)
    command = f"python -m research.students.measure_students --model {given.model} --limit {given.limit}"
    command += "".join(f" --student {name}=..." for name in students)
    (given.out / "table.md").write_text(write_table(measurement.rows, command), encoding="utf-8")
    plot(measurement.rows, list(students), given.out / "students.png")


if __name__ == "__main__":
    main()
