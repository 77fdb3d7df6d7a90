"""The runs of a search: fine ones with notes, and others measured against them; each is made once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import registry
from ..engine.contracts import Policy
from ..engine.requests import Solver, Status
from ..errors import BenchError
from ..evaluation.columns import Column
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.references import EvaluationSample
from ..evaluation.subject import DrawJob, GeneratedSample, Subject, prefetch
from .grids import Beginning, FineGrid, mse_to_psnr, path_policy
from .recorder import RecordedTrajectory, Recorder
from .run_cache import RunCache

FINE_RUNS = "fine"


class RunScore(NamedTuple):
    """One run: its calls, and the mean square error of its pixels."""

    calls: float
    error: float

    @property
    def psnr(self) -> float:
        """PSNR in dB."""
        return mse_to_psnr(self.error)


@dataclass(frozen=True)
class CachedRuns:
    """Runs of one model, cached as they are made.

    Args:
        subject: The model.
        run_cache: What has been drawn before.
        steps: Of fine runs, at most; see `grids.fine_times`.
        batch: Samples of one call, >= 1.
        seed: Of the positions that are looked at in large latents.
        on_progress: Called with the progress.
    """

    subject: Subject
    run_cache: RunCache
    steps: int
    batch: int = 8
    seed: int = 0
    on_progress: ProgressCallback = no_progress

    def column(self, policy: Policy, solver: Solver | None = None) -> Column:
        """A policy on its own solver, or another, on the grid and steps that are usual for this model.

        Raises:
            SpecError: the model cannot run it.
        """
        own = self.subject.default_sampler
        solver = solver or registry.parse("solver", policy.solver)
        return self.subject.resolve_column(Column(policy, solver, own.grid, own.steps))

    def beginning(self, eval_sample: EvaluationSample) -> Beginning:
        """Where this model's runs begin, as two calls tell.

        Raises:
            SpecError, GuestError: it cannot be run by `adams`.
        """
        recorder = Recorder(registry.parse("solver", "adams"), positions=1)
        self.subject.draw([eval_sample.request], self.column(path_policy((1.0, 0.5, 0.0)), recorder))
        line = recorder.lines[0]
        return Beginning(line.schedule, line.times[0])

    def fine(self, eval_sample: EvaluationSample) -> FineGrid:
        """Where the places of fine runs are, for this model. Raises as `beginning`."""
        return self.beginning(eval_sample).fine(self.steps)

    def pictures(
        self,
        eval_samples: Sequence[EvaluationSample],
        fine: FineGrid,
        what: str,
        path: Sequence[int],
        solver: Solver | None = None,
    ) -> list[Any]:
        """Pixels of the runs along a path, kept by the name `what`, beside what was noted of each."""
        return [found["pixels"] for found in self._all(eval_samples, fine, what, path, solver)]

    def grams(self, eval_samples: Sequence[EvaluationSample], fine: FineGrid) -> Any:
        """`RecordedTrajectory.gram` of fine runs, (samples, rows, rows)."""
        import numpy as np

        return np.stack([found["gram"] for found in self._all(eval_samples, fine, FINE_RUNS, range(fine.steps + 1))])

    def score_runs(
        self, column: Column, eval_samples: Sequence[EvaluationSample], against: str, references: Sequence[Any]
    ) -> list[RunScore]:
        """Calls and errors of runs under a column, against pictures that are called by a name."""
        what = f"{column.spec} against {against}"
        known = self.run_cache.scores()
        missing = [k for k, eval_sample in enumerate(eval_samples) if (what, eval_sample.id) not in known]
        batches = [missing[first : first + self.batch] for first in range(0, len(missing), self.batch)]
        jobs = [DrawJob([eval_samples[k].request for k in some], column) for some in batches]
        prefetch(self.subject, jobs)
        for some, job in zip(batches, jobs, strict=True):
            generated = self._drawn(job)
            lines = []
            for k, one, pixels in zip(some, generated, self.subject.pictures(generated), strict=True):
                error = float(((pixels - references[k]) ** 2).mean())
                if not math.isfinite(error) or one.status is not Status.done:
                    error = 1.0  # a run that was lost: as far from its reference as black is from white
                lines.append({"what": what, "sample": eval_samples[k].id, "calls": one.calls, "error": error})
            self.run_cache.add(lines)
            known |= {(what, str(line["sample"])): line for line in lines}
        return [
            RunScore(known[what, eval_sample.id]["calls"], known[what, eval_sample.id]["error"])
            for eval_sample in eval_samples
        ]

    def _all(
        self,
        eval_samples: Sequence[EvaluationSample],
        fine: FineGrid,
        what: str,
        path: Sequence[int],
        solver: Solver | None = None,
    ) -> list[dict[str, Any]]:
        found = {eval_sample.id: self.run_cache.arrays(what, eval_sample) for eval_sample in eval_samples}
        missing = [eval_sample for eval_sample in eval_samples if found[eval_sample.id] is None]
        jobs = []
        for first in range(0, len(missing), self.batch):
            recorder = Recorder(registry.parse("solver", "adams"), self.seed)
            column = self.column(fine.policy(path), recorder if what == FINE_RUNS else solver)
            jobs.append(DrawJob([one.request for one in missing[first : first + self.batch]], column))
        prefetch(self.subject, jobs)
        for k, job in enumerate(jobs):
            first = k * self.batch
            self.on_progress(f"Drawing {what} runs", len(eval_samples) - len(missing) + first, len(eval_samples))
            some = missing[first : first + self.batch]
            generated, recorded = self._drawn(job), job.column.solver
            lines: list[RecordedTrajectory | None] = [*recorded.lines] if isinstance(recorded, Recorder) else []
            for eval_sample, one, line, pixels in zip(
                some, generated, lines or [None] * len(some), self.subject.pictures(generated), strict=True
            ):
                _check_run(what, eval_sample, one, line, fine)
                noted = {"pixels": pixels, **({} if line is None else {"gram": line.gram})}
                self.run_cache.save(what, eval_sample, **noted)
                found[eval_sample.id] = noted
        return [arrays for eval_sample in eval_samples if (arrays := found[eval_sample.id]) is not None]

    def _drawn(self, job: DrawJob) -> list[GeneratedSample]:
        return self.subject.draw(job.items, job.column)[0]


def _check_run(
    what: str,
    eval_sample: EvaluationSample,
    generated: GeneratedSample,
    line: RecordedTrajectory | None,
    fine: FineGrid,
) -> None:
    """Raise BenchError for a run that others cannot be measured against."""
    if generated.status is not Status.done:
        raise BenchError(f"The {what} run of {eval_sample.title} is lost. {generated.status.value}")
    if line is not None and tuple(line.times) != fine.times:
        raise BenchError(
            f"The fine run of {eval_sample.title} was to make {fine.steps} steps from t={fine.times[0]:g} "
            f"and made "
            f"{len(line.times) - 1} from t={line.times[0]:g}: its runs do not all begin at the same time."
        )
