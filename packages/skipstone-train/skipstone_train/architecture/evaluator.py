"""A child from its shape to its figures: inherit, train to a rung, draw, measure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from skipstone.errors import ModelError
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.subject import SampleRequest

from .cost import ROUNDS, Latency, estimate_memory, measure_latency
from .halving import Evaluation, Halving, Job, checked
from .rows import Batch, TeacherRows
from .space import Candidate, shape_in
from .training import ChildTraining

CALIBRATION_ROWS = 64  # of the teacher, on which it is measured what a child keeps
ERROR_ROWS = 256
JUDGE_SEED = 7_000  # of the first picture that the judge sees

StepProgress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class ChildEvaluator:
    """Trains children of a model and measures them.

    Args:
        model: The teacher, an embedded model.
        halving: Space, objectives and rungs.
        training: Of children.
        held_out: Rows of the teacher on prompts that no child is trained on.
        prompts: That the judge's pictures are of; none of them is trained on.
        picture_steps: Of these pictures.
        folder: Of the children's checkpoints.
        facts: That must be the same when a training is resumed.
        error_rows: That the error is measured on.
        rounds: Of calls that are timed.
    """

    model: Any
    halving: Halving
    training: ChildTraining
    held_out: TeacherRows
    prompts: Sequence[str]
    picture_steps: int
    folder: Path
    facts: Mapping[str, Any]
    error_rows: int = ERROR_ROWS
    rounds: int = ROUNDS
    _costs: dict[Candidate, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def inheritance(self) -> Any:
        """What gives children the teacher's weights; it has run the teacher on real rows once."""
        some = self.training.rows.batch(torch.Generator().manual_seed(self.training.seed), CALIBRATION_ROWS)

        @torch.no_grad()
        def run(network: Any) -> torch.Tensor:
            return self._call(network, some)

        return self.model.family.inheritance(self.model.unet, run)

    def check(self) -> None:
        """Raise SpecError for a space with a shape that no child can have; ModelError where the judge is missing."""
        if "judge" in self.halving.objectives.names and self.model.judge is None:
            raise ModelError("--objective: this model has no judge. Search by error, milliseconds, megabytes.")
        for part, values in self.halving.space.parts.items():
            for value in values:
                self.inheritance.check(
                    shape_in(self.halving.space, Candidate.of({part: value}), self.inheritance.shape)
                )

    def child(self, candidate: Candidate) -> Any:
        """The child before training."""
        return self.inheritance.child(shape_in(self.halving.space, candidate, self.inheritance.shape))

    def evaluate(self, job: Job, on_progress: StepProgress | None = None) -> Evaluation:
        """Train and measure; a training that fails, or a figure that is no number, is noted, not raised."""
        began, values, details, failure = time.monotonic(), dict[str, float](), dict[str, Any](), ""
        try:
            child = self.trained(job, on_progress)
            values, details = self.measure(child, job.candidate)
            failure = checked(self.halving.objectives, values)
        except ModelError as e:
            failure = str(e)
        seconds = time.monotonic() - began
        return Evaluation(job.candidate, job.rung, {} if failure else values, failure, round(seconds, 2), details)

    def trained(self, job: Job, on_progress: StepProgress | None = None) -> Any:
        """The child of a job, trained, or read from its checkpoint."""
        child, stop = self.child(job.candidate), self.halving.rungs[job.rung]

        def on_step(step: int, steps: int, loss: float) -> None:
            if on_progress is not None:
                on_progress(f"Training {job.candidate.name}, loss {loss:.4f}", step, stop)

        place = self.folder / job.candidate.name
        self.training.train(child, place, {**self.facts, "shape": dict(job.candidate.choices)}, stop, on_step)
        return child.eval()

    def measure(self, child: Any, candidate: Candidate) -> tuple[dict[str, float], dict[str, Any]]:
        """The figures of the objectives, and more about the costs, which are measured once for a shape."""
        if candidate not in self._costs:
            self._costs[candidate] = self._cost(child)
        details = self._costs[candidate]
        measures: dict[str, Callable[[], float]] = {
            "judge": lambda: 100 * statistics.fmean(self.judged(self.model.with_denoiser(child))),
            "error": lambda: self._error(child),
            "milliseconds": lambda: self.teacher_milliseconds / details["speed"],
            "megabytes": lambda: details["megabytes"],
        }
        values = {name: round(measures[name](), 6) for name in self.halving.objectives.names}
        return values, details

    def judged(self, model: Any) -> list[float]:
        """The judge's score of each picture, in [0, 1]."""
        subject = EngineSubject.from_loaded(model)
        items = [SampleRequest(text, JUDGE_SEED + i) for i, text in enumerate(self.prompts)]
        column = parse_column(f"fixed @ unipc / trailing / {self.picture_steps}", *DEFAULT_SAMPLER)
        generated, _ = subject.draw(items, subject.resolve_column(column))
        pictures = subject.pictures(generated)
        judge: Any = model.judge
        return [judge(picture, item.prompt) for picture, item in zip(pictures, items, strict=True)]

    @torch.inference_mode()
    def _error(self, child: Any) -> float:
        rows = self.held_out.batch(torch.Generator().manual_seed(0), self.error_rows)
        return float(((self._call(child, rows) - rows.output) ** 2).mean())

    def _call(self, network: Any, rows: Batch) -> torch.Tensor:
        output: torch.Tensor = self.model.family.forward(network.eval(), rows.x, rows.times, rows.condition)
        return output.float()

    # -- Costs ------------------------------------------------------------------------------------

    @cached_property
    def _guided(self) -> Batch:
        """The rows of one guided sample."""
        one = torch.zeros(2, dtype=torch.long)
        return self.held_out.pick(one, one + self.held_out.times.shape[1] // 2, torch.tensor([0, 1]))

    @cached_property
    def teacher_milliseconds(self) -> float:
        """Of a call of the teacher, alone."""
        return self._latencies({"teacher": self.model.unet})["teacher"].median

    def _latencies(self, networks: Mapping[str, Any]) -> dict[str, Latency]:
        with torch.inference_mode():
            calls = {name: lambda own=own: self._call(own, self._guided) for name, own in networks.items()}
            return measure_latency(calls, "teacher", self.rounds)

    def _cost(self, child: Any) -> dict[str, Any]:
        """The child's latency beside the teacher's, its memory and its parameters."""
        found = self._latencies({"teacher": self.model.unet, "child": child})
        megabytes = estimate_memory(child, lambda: self._call(child, self._guided))
        parameters = sum(p.numel() for p in child.parameters())
        details = {"megabytes": megabytes, "parameters": parameters, "speed": found["child"].speed}
        return {**details, "latency": asdict(found["child"]), "teacher": asdict(found["teacher"])}
