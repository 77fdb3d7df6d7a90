"""An architecture search from a model to a front of children, each a model of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from skipstone.cli.progress import format_duration
from skipstone.errors import ModelError, SpecError

from .evaluator import ChildEvaluator
from .halving import Evaluation, Halving, Job, rungs_for
from .objectives import Objectives
from .records import Records
from .rows import SHARD, Batch, RowOrder, TeacherRows, prompts_for, teacher_rows
from .settings import SearchSettings
from .space import Space
from .training import ChildTraining

ROWS, CHILDREN = "rows", "children"
ROW_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000  # of the teacher's drawings, far from those of evaluations
HELD_OUT_DRAWINGS = 64
TIMED_STEPS = 3

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        found: All evaluations, in order.
        front: Those of the last rung that no other dominates.
        evaluator: Of more children, or of these again.
        seconds: That the search has taken, earlier starts included.
    """

    found: Sequence[Evaluation]
    front: Sequence[Evaluation]
    evaluator: ChildEvaluator
    seconds: float


@dataclass
class ArchitectureSearch:
    """A search in a folder; the same search in the same folder goes on.

    Args:
        model: The teacher, an embedded model of the library.
        space: Of shapes.
        objectives: What it is for.
        settings: The rest.
        prompts: That the teacher draws.
        checks: Prompts that children are judged on.
        folder: Of everything.
        on_progress: Called with (what, done, total).
    """

    model: Any
    space: Space
    objectives: Objectives
    settings: SearchSettings
    prompts: Sequence[str]
    checks: Sequence[str]
    folder: Path
    on_progress: Progress | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        rungs = rungs_for(settings.train_steps, settings.rungs, settings.factor)
        self.halving = Halving(self.space, self.objectives, rungs, settings.factor, settings.sampler, settings.seed)
        self.texts = prompts_for(self.prompts, settings.drawings)

    def run(self, seconds: float) -> SearchResult:
        """Search for so many seconds, earlier starts included.

        Raises:
            SpecError: a space with a shape that no child can have; a time that is too short for one child.
            ModelError: a model of a family that has no children, or without the judge that is asked for; no child
                could be trained.
            OutputError: the folder is of another search.
        """
        facts = self.facts()
        records = Records(self.folder)
        found = records.begin(facts)
        spent = sum(one.seconds for one in found)
        if not found:
            self._check_time(seconds)
        began = time.monotonic()
        evaluator = self.evaluator()
        while (job := self.halving.next_job(found)) is not None:
            left = seconds - spent - (time.monotonic() - began)
            if left < self._expected(job, found) and any(one.values for one in found):
                break
            one = evaluator.evaluate(job, self.on_progress)
            records.add(one)
            found.append(one)
            self._refuse_failures(found)
        front = self.halving.front(found)
        return SearchResult(found, front, evaluator, spent + time.monotonic() - began)

    def facts(self) -> dict[str, Any]:
        """What must be the same when the search goes on."""
        return {
            "model": self.model.name,
            "guidance": self.model.guidance,
            "space": {name: list(values) for name, values in self.space.parts.items()},
            "objectives": list(self.objectives.names),
            "settings": asdict(self.settings),
            "prompts": len(set(self.texts)),
            "checks": list(self.checks),
        }

    def evaluator(self) -> ChildEvaluator:
        """What trains and measures children; draws the teacher's rows where they are not kept.

        Raises SpecError and ModelError, as `run`.
        """
        settings, cache = self.settings, self.folder / ROWS
        self.model.family.inheritance(self.model.unet, lambda network: torch.zeros(()))  # or a ModelError, before all
        held = RowOrder(
            prompts_for(self.checks, HELD_OUT_DRAWINGS), HELD_OUT_SEED, settings.row_steps, settings.precision
        )
        held_out = teacher_rows(self.model, held, cache)
        order = RowOrder(self.texts, ROW_SEED + settings.seed, settings.row_steps, settings.precision)
        rows = teacher_rows(self.model, order, cache, self.on_progress)
        evaluator = ChildEvaluator(
            self.model,
            self.halving,
            self._training(rows),
            held_out,
            self.checks[: settings.checked],
            settings.picture_steps,
            self.folder / CHILDREN,
            {"search": asdict(settings), "guidance": self.model.guidance},
        )
        evaluator.check()
        return evaluator

    def _training(self, rows: TeacherRows) -> ChildTraining:
        settings = self.settings
        return ChildTraining(
            self.model.family,
            rows,
            settings.train_steps,
            settings.batch,
            settings.rate,
            settings.ema,
            settings.precision,
            settings.seed,
        )

    def _expected(self, job: Job, found: Sequence[Evaluation]) -> float:
        """Seconds that a job takes, by the longest of its rung, or by the training steps of others."""
        same = [one.seconds for one in found if one.rung == job.rung]
        if same:
            return max(same)
        rungs = self.halving.rungs
        return max((one.seconds * rungs[job.rung] / rungs[one.rung] for one in found), default=0.0)

    def _refuse_failures(self, found: Sequence[Evaluation]) -> None:
        """Raise ModelError where the first few children all failed."""
        if len(found) >= 3 and not any(one.values for one in found):
            raise ModelError(f"The first {len(found)} children all failed. The last one: {found[-1].failure}")

    def _check_time(self, seconds: float) -> None:
        """Raise SpecError where the time is too short for the teacher's rows and one child, timed on a few rows."""
        settings, rung = self.settings, self.halving.rungs[0]
        call, step = self._time_call(), self._time_step()
        drawing = call * settings.row_steps * (len(self.texts) + HELD_OUT_DRAWINGS) / (SHARD // 4)
        pictures = call * settings.picture_steps * min(settings.checked, len(self.checks)) / (SHARD // 4)
        judged = pictures if "judge" in self.objectives.names else 0.0
        needed = drawing + step * rung + judged
        if needed > seconds:
            raise SpecError(
                f"--budget: expected at least {format_duration(1.2 * needed)}, as the teacher's rows take about "
                f"{format_duration(drawing)} and one child of {rung} training steps about "
                f"{format_duration(step * rung + judged)}, got {format_duration(seconds)}. Give more, or fewer "
                f"--drawings and --train-steps."
            )

    def _some_rows(self, count: int) -> Batch:
        """Rows of no meaning, for timing."""
        x = torch.stack([self.model.problem(self.texts[0], i).x for i in range(count)])
        condition = self.model.encode(self.texts[0]).expand(count, *[-1] * self.model.encode("").ndim)
        return Batch(x, torch.full((count,), 500.0), condition.clone(), x)

    @torch.no_grad()
    def _time_call(self) -> float:
        """Seconds in which the teacher answers a quarter of a file's rows, with the prompts and without."""
        rows = self._some_rows(SHARD // 2)
        return _fastest(lambda: self.model.family.forward(self.model.unet, rows.x, rows.times, rows.condition))

    def _time_step(self) -> float:
        """Seconds of a training step of the teacher's own shape, which no child exceeds by much."""
        rows = self._some_rows(self.settings.batch)
        weights = list(self.model.unet.parameters())
        kept = [p.requires_grad for p in weights]
        self.model.unet.requires_grad_(True)

        def step() -> None:
            output = self.model.family.forward(self.model.unet, rows.x, rows.times, rows.condition)
            torch.autograd.grad(output.square().mean(), weights, allow_unused=True)

        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bf16"):
                return _fastest(step)
        finally:
            for weight, before in zip(weights, kept, strict=True):
                weight.requires_grad_(before)


def _fastest(call: Callable[[], Any]) -> float:
    took = []
    for _ in range(TIMED_STEPS):
        began = time.monotonic()
        call()
        took.append(time.monotonic() - began)
    return min(took)


def with_checks(settings: SearchSettings, prompts: Sequence[str], checks: Sequence[str]) -> SearchSettings:
    """The settings with as many checks as there are. Raises SpecError where prompts are on both sides, or none."""
    if not prompts or not checks:
        raise SpecError("Expected prompts that the teacher draws, and others that children are judged on.")
    both = sorted(set(prompts) & set(checks))
    if both:
        raise SpecError(f"--check: expected prompts that are not among --prompts, and {both[0]!r} is in both.")
    return dataclasses.replace(settings, checked=min(settings.checked, len(checks)))
