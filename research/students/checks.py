"""Which cheap check knows that a student's picture will not do? `python -m research.students.checks -h`.

For each withheld prompt the student draws, and checks of a few rows give a number. A picture fails where it is farther
from the converged one than `--psnr`. Of each check: the area under its ROC curve (0.5 is a coin), with the interval of
2000 bootstrap resamples, and what it costs in guided calls.

    python -m research.students.checks --student pebble-consistency-2 --out research/students/pebble

Needs the converged pictures that `measure_students` keeps in `cache/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from research.students.measure_students import Measurement
from skipstone.engine.requests import Query
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER
from skipstone.evaluation.subject import SampleRequest
from skipstone.metrics import PSNR, Sample
from skipstone.numerics.noise import standard_normal
from skipstone.policies.student import Student
from skipstone.registry import spell
from skipstone.solvers.ddim import ddim_update

LEVELS = (0.2, 0.4, 0.6, 0.8)
FRESH_SEED = 7_000  # of noise that the student has not begun with
OTHER_SEED = 9_000  # of other pictures of the same prompt
RESAMPLES = 2000


@dataclass(frozen=True)
class Check:
    """A number for each sample, higher where it should fail, and its cost in guided calls of a sample."""

    name: str
    calls: float
    values: NDArray[np.float64]


def draw(measurement: Measurement, spec: str, offset: int = 0) -> list[Any]:
    """Latents under a spec, of seeds that are moved by an offset."""
    subject = measurement.subject
    items = [SampleRequest(i.prompt, i.seed + offset) for i in measurement.items]
    column = subject.resolve_column(parse_column(spec, *DEFAULT_SAMPLER))
    return [generated.x for generated in subject.draw(items, column)[0]]


def rms(a: Sequence[Any], b: Sequence[Any]) -> NDArray[np.float64]:
    """Root mean square of each difference."""
    return np.array([float(((x - y) ** 2).mean().sqrt()) for x, y in zip(a, b, strict=True)])


def teacher_answers(measurement: Measurement, latents: Sequence[Any], t: float, fresh: bool) -> list[Any]:
    """What the guided teacher makes of the student's latents, noised to t by the noise they began with, or by other."""
    model = measurement.subject.embedded
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    queries = []
    for item, latent in zip(measurement.items, latents, strict=True):
        problem: Any = model.problem(item.prompt, item.seed, 1)
        noise = standard_normal(FRESH_SEED + item.seed, 0, latent) if fresh else problem.x
        queries.append(Query(alpha * latent + sigma * noise, t, problem.cond))
    return [estimate.x0 for estimate in model.backbone.predict(queries)]


def all_checks(measurement: Measurement, path: str, steps: int) -> tuple[list[Any], list[Check]]:
    """The student's latents, and every check of them."""
    spec = spell(Student(path, steps))
    mine = draw(measurement, spec)
    checks = [Check("a coin", 0.0, np.random.default_rng(0).random(len(mine)))]
    for fresh in (False, True):
        for t in LEVELS:
            answers = teacher_answers(measurement, mine, t, fresh)
            noise = "fresh noise" if fresh else "its own noise"
            checks.append(Check(f"the teacher's answer at t = {t:g}, {noise}", 1.0, rms(answers, mine)))
    checks += way_checks(measurement, path, steps, mine)
    twice = draw(measurement, spell(Student(path, 2 * steps)))
    checks.append(Check(f"the student's own {2 * steps} steps", float(steps), rms(twice, mine)))
    others = [draw(measurement, spec, OTHER_SEED + k) for k in (0, 1_000)]
    checks.append(Check("distance of two other seeds", float(steps), rms(*others)))
    return mine, checks


def way_checks(measurement: Measurement, path: str, steps: int, mine: Sequence[Any]) -> list[Check]:
    """How far the student's estimate moves after its first step, for nothing; and the teacher's answer on its way."""
    teacher, student = measurement.subject.embedded, measurement.subject.model_of(Student(path, steps))
    queries = []
    for item in measurement.items:
        problem: Any = student.problem(item.prompt, item.seed, 1)
        queries.append(Query(problem.x, problem.grid[0], problem.cond))
    first = [estimate.x0 for estimate in student.backbone.predict(queries)]
    found = [Check("how far the student's estimate moves after its first step", 0.0, rms(first, mine))]
    if steps > 1:
        t = 1 - 1 / steps
        states = [ddim_update(q.x, x0, q.t, t, teacher.schedule) for q, x0 in zip(queries, first, strict=True)]
        asked = [Query(x, t, q.cond) for x, q in zip(states, queries, strict=True)]
        answers = [estimate.x0 for estimate in teacher.backbone.predict(asked)]
        found.append(Check(f"the teacher's answer on the student's way, at t = {t:g}", 1.0, rms(answers, mine)))
    return found


def area(failed: NDArray[np.bool_], values: NDArray[np.float64]) -> float:
    """Area under the ROC curve: how often a failed sample has the higher value."""
    bad, good = values[failed], values[~failed]
    if not len(bad) or not len(good):
        return float("nan")
    wins = (bad[:, None] > good[None]).mean() + 0.5 * (bad[:, None] == good[None]).mean()
    return float(wins)


def interval(failed: NDArray[np.bool_], values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the bootstrap."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(failed), size=(RESAMPLES, len(failed)))
    found = [area(failed[rows], values[rows]) for rows in chosen]
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def describe_area(failed: NDArray[np.bool_], values: NDArray[np.float64]) -> str:
    """'0.71 (0.58 to 0.84)'."""
    low, high = interval(failed, values)
    return f"{area(failed, values):.2f} ({low:.2f} to {high:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.students.checks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--student", required=True, help="folder or shipped name")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument(
        "--psnr", type=float, action="append", help="dB to the converged picture, below which one fails; 25 and 22"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measurement = Measurement(given.model, given.limit, given.out)
    mine, checks = all_checks(measurement, given.student, given.steps)
    pictures = measurement.subject.embedded.decode(mine)
    pairs = zip(pictures, measurement.reference(), strict=True)
    psnr = np.array([PSNR().measure(Sample(p, reference=r)) for p, r in pairs])
    command = (
        f"python -m research.students.checks --student {given.student} --steps {given.steps} --limit {given.limit}"
    )
    limits = given.psnr or [25.0, 22.0]
    failures = [psnr < limit for limit in limits]
    heads = [f"fails below {limit:g} dB ({bad.sum()})" for limit, bad in zip(limits, failures, strict=True)]
    lines = [
        f"`{given.student}` in {given.steps} steps, {len(psnr)} withheld prompts; area under the ROC curve and 95 %.",
        f"Made by `{command}`.",
        "",
        f"| check | calls | {' | '.join(heads)} |",
        f"|---|--:|{'--:|' * len(heads)}",
    ]
    for check in checks:
        cells = [describe_area(failed, check.values) for failed in failures]
        lines.append(f"| {check.name} | {check.calls:g} | {' | '.join(cells)} |")
    (given.out / "checks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
