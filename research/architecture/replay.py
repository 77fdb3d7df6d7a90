"""Searches on the enumerated space, without training: `python -m research.architecture.replay`.

Each search may spend a third of the training steps of the enumeration. What it finds is held against the true front:
the shapes that no other one dominates after the whole training. Writes `replay.json` and `replay.md`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipstone_train.architecture.halving import Evaluation, Halving
from skipstone_train.architecture.objectives import Objectives, pareto_front
from skipstone_train.architecture.space import Candidate, Space, read_space

HERE = Path(__file__).parent
OBJECTIVES = ("error, megabytes", "error, milliseconds, megabytes")
SHARE = 3  # of the enumeration's training steps, one in so many
SEEDS = 10


@dataclass(frozen=True)
class Table:
    """The enumeration.

    Args:
        space: Of shapes.
        rungs: Training steps of each rung.
        values: (candidate, rung) -> figures.
    """

    space: Space
    rungs: tuple[int, ...]
    values: Mapping[tuple[Candidate, int], Mapping[str, float]]

    @staticmethod
    def read() -> Table:
        """The committed one."""
        told = json.loads((HERE / "evaluations.json").read_text(encoding="utf-8"))
        rows = {(Candidate.of(row["choices"]), row["rung"]): row["values"] for row in told["evaluations"]}
        return Table(read_space(HERE / "tiny_space.yaml"), tuple(told["rungs"]), rows)

    @property
    def steps(self) -> int:
        """Training steps of the enumeration."""
        return self.space.size * self.rungs[-1]

    def points(self, objectives: Objectives) -> dict[Candidate, tuple[float, ...]]:
        """What every shape is worth after the whole training."""
        return {one: objectives.point(self.values[one, len(self.rungs) - 1]) for one in self.space.candidates()}

    def front(self, objectives: Objectives) -> dict[tuple[float, ...], list[Candidate]]:
        """The points that no other one dominates, and the shapes that have each: some have the same."""
        points, front = self.points(objectives), dict[tuple[float, ...], list[Candidate]]()
        shapes = list(points)
        for i in pareto_front([points[one] for one in shapes]):
            front.setdefault(points[shapes[i]], []).append(shapes[i])
        return front


@dataclass(frozen=True)
class Replay:
    """What a search found.

    Args:
        found: Share of the points of the true front that a shape trained to the end is as good as, to a step of noise.
        shapes: That were trained at all.
        whole: That were trained to the end.
        steps: Training steps.
    """

    found: float
    shapes: int
    whole: int
    steps: int


def replay(table: Table, halving: Halving, steps: float) -> Replay:
    """Search until the next job would cost more training steps than are left.

    Args:
        table: Where figures are looked up.
        halving: The search; with one rung every shape is trained to the end.
        steps: That may be spent.
    """
    offset, found, spent = len(table.rungs) - len(halving.rungs), list[Evaluation](), 0
    while (job := halving.next_job(found)) is not None:
        cost = halving.rungs[job.rung] - (halving.rungs[job.rung - 1] if job.rung else 0)
        if spent + cost > steps:
            break
        spent += cost
        found.append(Evaluation(job.candidate, job.rung, table.values[job.candidate, job.rung + offset]))
    last = [one for one in found if one.rung == len(halving.rungs) - 1]
    true, points = table.front(halving.objectives), table.points(halving.objectives)
    reached = [points[one.candidate] for one in last]
    hit = [point for point in true if any(_as_good(other, point) for other in reached)]
    return Replay(len(hit) / len(true), len({one.candidate for one in found}), len(last), spent)


def _as_good(one: Sequence[float], point: Sequence[float]) -> bool:
    """Whether nothing is worse than in a point by more than one step of noise; bytes have none."""
    return all(a >= b - 1 if float(b).is_integer() else a >= b for a, b in zip(one, point, strict=True))


def searches(table: Table, objective: str) -> dict[str, Halving]:
    """The searches that are compared."""
    halving = Halving(table.space, Objectives.parse(objective), table.rungs)
    whole = replace(halving, rungs=table.rungs[-1:])
    return {
        "halving, TPE": halving,
        "halving, NSGA-II": replace(halving, sampler="nsga2"),
        "halving, random proposals": replace(halving, sampler="random"),
        "TPE without halving": whole,
        "random search": replace(whole, sampler="random"),
    }


def measure(table: Table, objective: str, names: Sequence[str] = ()) -> dict[str, list[Replay]]:
    """Every search, or those of some names, from SEEDS seeds."""
    budget = table.steps / SHARE
    return {
        name: [replay(table, replace(halving, seed=seed), budget) for seed in range(SEEDS)]
        for name, halving in searches(table, objective).items()
        if not names or name in names
    }


def write_section(table: Table, objective: str, found: Mapping[str, Sequence[Replay]]) -> list[str]:
    """The results by some figures, as Markdown."""
    front = [" = ".join(one.name for one in shapes) for shapes in table.front(Objectives.parse(objective)).values()]
    lines = [
        f"## By {objective}",
        "",
        f"The true front has {len(front)} points: {'; '.join(sorted(front))}.",
        "",
        f"| search | of the front, mean of {SEEDS} seeds | worst seed | all of it | shapes | to the end | steps |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    return [*lines, *(write_row(name, runs) for name, runs in found.items()), ""]


def write_row(name: str, runs: Sequence[Replay]) -> str:
    """A line of the table."""
    shares = [run.found for run in runs]
    counts = [statistics.fmean(getattr(run, key) for run in runs) for key in ("shapes", "whole", "steps")]
    return (
        f"| {name} | {statistics.fmean(shares):.0%} | {min(shares):.0%} | {sum(s == 1 for s in shares)} of "
        f"{len(shares)} | {counts[0]:.1f} | {counts[1]:.1f} | {counts[2]:.0f} |"
    )


def write_table(table: Table, found: Mapping[str, Mapping[str, Sequence[Replay]]]) -> str:
    """The results as Markdown."""
    lines = [
        "Made by `python -m research.architecture.replay`.",
        "",
        f"The space has {table.space.size} shapes. A search may spend {table.steps // SHARE} of the {table.steps}",
        "training steps of the enumeration. Shapes: that it tried at all; to the end: trained on all steps.",
        "",
    ]
    for objective, runs in found.items():
        lines += write_section(table, objective, runs)
    return "\n".join(lines)


def main() -> None:
    """Write the tables."""
    table = Table.read()
    found = {objective: measure(table, objective) for objective in OBJECTIVES}
    plain: dict[str, Any] = {
        objective: {name: [vars(run) for run in runs] for name, runs in ways.items()}
        for objective, ways in found.items()
    }
    (HERE / "replay.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    (HERE / "replay.md").write_text(write_table(table, found), encoding="utf-8")
    print(write_table(table, found))


if __name__ == "__main__":
    main()
