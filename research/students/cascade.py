"""A cascade against its parts at equal mean cost: `python -m research.students.cascade -h`.

Draws withheld prompts by a student, by the default policy, by grids that `skipstone tune` found, and by `cascade` at
several limits, and holds them against the converged picture. A call is a guided one: two rows of the network.

    skipstone tune --prompts pebble-tuning --calls 4 --calls 5 --calls 6 --calls 8 --out grids
    python -m research.students.cascade --student pebble-consistency-2 --grids grids --out research/students/pebble

Writes `cascade.json`, which keeps rows that were drawn, `cascade.md` and `cascade.png`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from research.students.checks import describe_area
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.subject import GeneratedSample, SampleRequest
from skipstone.metrics import PSNR, Sample
from skipstone.policies.cascade import CHANGE, Cascade
from skipstone.policies.student import Student
from skipstone.registry import spell

STEPS = (2, 4, 6, 8, 12, 16)  # of the student alone
FREE_STEPS = (2, 4, 6, 8, 10, 12)  # of the model without guidance, half a guided call each
FREE_SAMPLERS = ("ddim / trailing", "unipc / trailing")
DEFAULT_CALLS = (2, 3, 4, 5, 6)  # what `adaptive_grid` is asked for
THEN_CALLS = (4, 5)  # what it is asked for where the student's picture is not kept
LIMITS = (0.25, 0.28, 0.3, 0.32, 0.34, 0.37, 0.41)
FREE = "no guidance"  # rows of the model without it
KEEP_ALL = 1000.0  # a limit at which every picture of the student is kept
FAILS = (25.0, 22.0)  # dB below which a picture of the student fails
CONVERGED = "fixed @ unipc / trailing / 50"
BATCH = 54
RESAMPLES = 2000
Row = Mapping[str, Any]


@dataclass
class CascadeRows:
    """Rows of a student: spec -> calls, PSNR and judge's score of each prompt, kept in a file.

    Args:
        model: pebble or pebble-dit.
        student: Folder or shipped name.
        limit: Prompts; 0 takes all that are withheld.
        file: Of the rows.
    """

    model: str
    student: str
    limit: int
    file: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.subject = EngineSubject(self.model, self.model)
        self.free = EngineSubject(self.model, self.model, 1.0)
        self.items = [SampleRequest(p.text, i) for i, p in enumerate(load_prompts("pebble", limit=self.limit or None))]
        if self.file.is_file():
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if kept["of"] != self.facts:
                raise SystemExit(f"{self.file} has rows of {kept['of']}, not of {self.facts}: choose another --out.")
            self.rows, self.changes = kept["rows"], kept["changes"]

    @property
    def facts(self) -> dict[str, Any]:
        """What all rows of a file have the same."""
        return {"model": self.model, "student": self.student, "prompts": len(self.items)}

    def generate(self, spec: str, guided: bool = True) -> list[GeneratedSample]:
        """Samples of all prompts."""
        subject = self.subject if guided else self.free
        column = subject.resolve_column(parse_column(spec, *DEFAULT_SAMPLER))
        parts = (self.items[start : start + BATCH] for start in range(0, len(self.items), BATCH))
        return [one for part in parts for one in subject.draw(part, column)[0]]

    def draw(self, spec: str, guided: bool = True) -> tuple[list[Any], list[float]]:
        """Pictures of all prompts, and their costs in guided calls."""
        generated = self.generate(spec, guided)
        return self.subject.pictures(generated), [one.calls * one.branches / 2 for one in generated]

    @cached_property
    def reference(self) -> list[Any]:
        """The converged pictures."""
        return self.draw(CONVERGED)[0]

    def measure(self, name: str, spec: str) -> None:
        """Draw a row if it is not there."""
        if name in self.rows:
            return
        pictures, calls = self.draw(spec, guided=not name.startswith(FREE))
        judge: Any = self.subject.judge
        self.rows[name] = {
            "calls": [round(value, 3) for value in calls],
            "psnr": [
                round(PSNR().measure(Sample(p, reference=r)), 2) for p, r in zip(pictures, self.reference, strict=True)
            ],
            "judge": [judge(p, item.prompt) for p, item in zip(pictures, self.items, strict=True)],
        }
        self._save()
        print(row_line(name, self.rows[name]), flush=True)

    def measure_changes(self) -> None:
        """How far the student's estimate moves for each prompt, which is what the cascade decides by."""
        if not self.changes:
            generated = self.generate(spell(Cascade(self.student, KEEP_ALL)))
            self.changes = [round(one.run.past[0].signals[CHANGE], 5) for one in generated if one.run is not None]
            self._save()

    def _save(self) -> None:
        kept = {"of": self.facts, "changes": self.changes, "rows": self.rows}
        self.file.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def tenth(values: Sequence[float]) -> tuple[float, float, float]:
    """The worst tenth, and the interval of 95 % of the bootstrap over prompts."""
    array: NDArray[np.float64] = np.asarray(values)
    chosen = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(np.quantile(array[chosen], 0.1, axis=1), (0.025, 0.975))
    return float(np.quantile(array, 0.1)), float(low), float(high)


def row_line(name: str, row: Row) -> str:
    """A line of the table."""
    (p10, low, high), calls, score = tenth(row["psnr"]), np.mean(row["calls"]), 100 * np.mean(row["judge"])
    return (
        f"| {calls:.2f} | {name} | {np.median(row['psnr']):.1f} | {p10:.1f} ({low:.1f} to {high:.1f}) | {score:.1f} |"
    )


def all_specs(student: str, grids: Path | None) -> dict[str, str]:
    """Row name -> spec."""
    found = {f"student, {steps} steps": spell(Student(student, steps)) for steps in STEPS}
    found |= {f"default, {calls}": f"adaptive_grid(calls={calls})" for calls in DEFAULT_CALLS}
    for sampler in FREE_SAMPLERS:
        name = sampler.partition(" ")[0]
        found |= {f"{FREE} {name}, {steps} steps": f"fixed @ {sampler} / {steps}" for steps in FREE_STEPS}
    if grids is not None:
        found |= {
            f"path, {file.parent.name[5:]}": str(file.parent) for file in sorted(grids.glob("path-*/policy.json"))
        }
    for calls in THEN_CALLS:
        then = f"adaptive_grid(calls={calls})"
        for limit in LIMITS:
            found[f"cascade, then {calls}, limit {limit:g}"] = spell(Cascade(student, limit, then=then))
    return found


def kinds(rows: Mapping[str, Row]) -> dict[str, list[str]]:
    """Kind of row -> names, by their calls: the rows that make one line of the plot."""
    found: dict[str, list[str]] = {}
    for name in sorted(rows, key=lambda name: float(np.mean(rows[name]["calls"]))):
        found.setdefault(re.sub(r", (limit )?[\d.]+( steps)?$", "", name), []).append(name)
    return found


def best_at(rows: Mapping[str, Row], names: Sequence[str], calls: float) -> float:
    """Worst tenth of a kind at so many calls, linear between its rows, its best row below it where that is better."""
    points = [(float(np.mean(rows[name]["calls"])), tenth(rows[name]["psnr"])[0]) for name in names]
    cheaper = [p10 for at, p10 in points if at <= calls]
    between = [a10 + (calls - a) / (b - a) * (b10 - a10) for (a, a10), (b, b10) in pairwise(points) if a <= calls <= b]
    return max([*cheaper, *between], default=float("-inf"))


def check_line(changes: Sequence[float], row: Row) -> str:
    """Area under the ROC curve of the check, for pictures of the student that fail."""
    found = []
    for limit in FAILS:
        failed = np.asarray(row["psnr"]) < limit
        found.append(f"{describe_area(failed, np.asarray(changes))} below {limit:g} dB ({failed.sum()} fail)")
    return f"Area under the ROC curve of the student's change, with the interval of 95 %: {', '.join(found)}."


def leads(rows: Mapping[str, Row]) -> list[str]:
    """For each cascade: how far its worst tenth is above the best of its rivals at equal mean cost."""
    groups = kinds(rows)
    rivals = {kind: names for kind, names in groups.items() if not kind.startswith("cascade")}
    lines = [
        "| cascade | calls | worst tenth | " + " | ".join(rivals) + " | lead |",
        "|---|--:|--:|" + "--:|" * (len(rivals) + 1),
    ]
    for kind, names in groups.items():
        for name in names if kind.startswith("cascade") else ():
            calls, p10 = float(np.mean(rows[name]["calls"])), tenth(rows[name]["psnr"])[0]
            others = [best_at(rows, theirs, calls) for theirs in rivals.values()]
            cells = " | ".join("-" if value == float("-inf") else f"{value:.1f}" for value in others)
            lines.append(f"| {name[9:]} | {calls:.2f} | {p10:.1f} | {cells} | {p10 - max(others):+.1f} |")
    return lines


def plot(rows: Mapping[str, Row], file: Path) -> None:
    """Worst tenth and median of the PSNR against mean calls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, share, label in zip(figure.subplots(1, 2), (0.1, 0.5), ("worst tenth", "median"), strict=True):
        for kind, names in kinds(rows).items():
            x = [float(np.mean(rows[name]["calls"])) for name in names]
            y = [float(np.quantile(rows[name]["psnr"], share)) for name in names]
            axes.plot(x, y, "o-" if kind.startswith("cascade") else "x--", label=kind, markersize=4, linewidth=1.2)
        axes.set(xlabel="mean calls (guided ones)", ylabel=f"PSNR, {label} (dB)")
        axes.grid(True, alpha=0.25)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.students.cascade", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="pebble", help="pebble or pebble-dit")
    parser.add_argument("--student", required=True, help="folder or shipped name")
    parser.add_argument("--grids", type=Path, help="folder of skipstone tune --policy path")
    parser.add_argument("--limit", type=int, default=0, help="withheld prompts; 0 takes all")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measured = CascadeRows(given.model, given.student, given.limit, given.out / "cascade.json")
    for name, spec in all_specs(given.student, given.grids).items():
        measured.measure(name, spec)
    measured.measure_changes()
    rows = measured.rows
    head = ["| calls | row | PSNR median | PSNR worst tenth (95 %) | judge |", "|--:|---|--:|--:|--:|"]
    table = [row_line(name, row) for name, row in sorted(rows.items(), key=lambda item: np.mean(item[1]["calls"]))]
    command = f"python -m research.students.cascade --student {given.student} --grids GRIDS --out DIR"
    lines = [f"Made by `{command}`: {len(measured.items)} withheld prompts.", "", *head, *table]
    lines += ["", check_line(measured.changes, rows["student, 2 steps"])]
    lines += ["", "Worst tenth at equal mean cost, in dB; rivals linear between their rows.", "", *leads(rows)]
    (given.out / "cascade.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(rows, given.out / "cascade.png")


if __name__ == "__main__":
    main()
