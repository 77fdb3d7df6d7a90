"""Schedules that are really run, each on its own sample, many in one batch, and stored as they are measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from skipstone.engine.requests import Status
from skipstone.evaluation.columns import Column, format_component
from skipstone.evaluation.progress import ProgressCallback, no_progress
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import GeneratedSample, Subject
from skipstone.tuning.grids import mse_to_psnr
from skipstone.tuning.run_cache import RunCache

from .utility import TrialResult


class Trial(NamedTuple):
    """A schedule to be run on a sample."""

    eval_sample: EvaluationSample
    column: Column
    kind: str


@dataclass(frozen=True, eq=False)
class TrialRunner:
    """Runs trials against references.

    Args:
        subject: The model.
        run_cache: What was measured before.
        references: Sample -> pixels of its converged picture.
        against: A name for these.
        batch: Runs of one batch, >= 1.
        on_progress: Called with the progress.
    """

    subject: Subject
    run_cache: RunCache
    references: Mapping[str, Any]
    against: str
    batch: int = 8
    on_progress: ProgressCallback = no_progress

    def run(self, wanted: Sequence[Trial]) -> dict[str, list[TrialResult]]:
        """Sample -> its trials, in the order given; a schedule that is given twice is tried once."""
        first = {(trial.eval_sample.id, trial.column.spec): trial for trial in reversed(wanted)}
        once = [trial for trial in wanted if first[trial.eval_sample.id, trial.column.spec] is trial]
        known = self.run_cache.scores()
        missing = [trial for trial in once if self._key(trial) not in known]
        done = 0
        for some in self._batches(missing):
            self.on_progress("Trying schedules", done, len(missing))
            self._measure(some)
            done += len(some)
        known = self.run_cache.scores()
        found: dict[str, list[TrialResult]] = {}
        for trial in once:
            line = known[self._key(trial)]
            one = TrialResult(trial.column.spec, trial.kind, float(line["calls"]), mse_to_psnr(line["error"]))
            found.setdefault(trial.eval_sample.id, []).append(one)
        return found

    def _key(self, trial: Trial) -> tuple[str, str]:
        return f"{trial.column.spec} against {self.against}", trial.eval_sample.id

    def _batches(self, trials: Sequence[Trial]) -> Iterator[list[Trial]]:
        """Of one solver, grid and steps each; runs of about as many calls stand together."""
        groups: dict[tuple[str, str, int], list[Trial]] = {}
        for trial in trials:
            c = trial.column
            groups.setdefault((format_component(c.solver), format_component(c.grid), c.steps), []).append(trial)
        for members in groups.values():
            members.sort(key=lambda trial: len(str(getattr(trial.column.policy, "times", ""))))
            for first in range(0, len(members), self.batch):
                yield members[first : first + self.batch]

    def _measure(self, trials: Sequence[Trial]) -> None:
        generated = self._drawn(trials)
        lines = []
        for trial, one, pixels in zip(trials, generated, self.subject.pictures(generated), strict=True):
            error = float(((pixels - self.references[trial.eval_sample.id]) ** 2).mean())
            if not math.isfinite(error) or one.status is not Status.done:
                error = 1.0  # a run that was lost: as far from its reference as black is from white
            what, sample = self._key(trial)
            lines.append({"what": what, "sample": sample, "calls": one.calls, "error": error})
        self.run_cache.add(lines)

    def _drawn(self, trials: Sequence[Trial]) -> list[GeneratedSample]:
        """In one batch where the model can give each sample a policy of its own; one by one elsewhere."""
        each = getattr(self.subject, "draw_each", None)
        if each is not None:
            found: list[GeneratedSample] = each(
                [trial.eval_sample.request for trial in trials], [trial.column for trial in trials]
            )
            return found
        return [self.subject.draw([trial.eval_sample.request], trial.column)[0][0] for trial in trials]
