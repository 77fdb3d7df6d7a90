"""Schedules that are really run, each on its own sample, many in one batch, and kept as they are measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from skipstone.engine.requests import Status
from skipstone.evaluation.columns import Column, spelt
from skipstone.evaluation.progress import Tell, silent
from skipstone.evaluation.references import Shot
from skipstone.evaluation.subject import Made, Subject
from skipstone.tuning.grids import decibels
from skipstone.tuning.run_cache import Kept

from .utility import Tried


class Trial(NamedTuple):
    """A schedule to be run on a sample."""

    shot: Shot
    column: Column
    kind: str


@dataclass(frozen=True, eq=False)
class Trials:
    """Runs trials against references.

    Args:
        subject: The model.
        kept: What was measured before.
        references: Sample -> pixels of its converged picture.
        against: A name for these.
        batch: Runs of one batch, >= 1.
        tell: Of the progress.
    """

    subject: Subject
    kept: Kept
    references: Mapping[str, Any]
    against: str
    batch: int = 8
    tell: Tell = silent

    def run(self, asked: Sequence[Trial]) -> dict[str, list[Tried]]:
        """Sample -> what was asked for on it, in that order; a schedule that is asked for twice is tried once."""
        first = {(trial.shot.id, trial.column.spec): trial for trial in reversed(asked)}
        once = [trial for trial in asked if first[trial.shot.id, trial.column.spec] is trial]
        known = self.kept.scores()
        missing = [trial for trial in once if self._key(trial) not in known]
        done = 0
        for some in self._batches(missing):
            self.tell("Trying schedules", done, len(missing))
            self._measure(some)
            done += len(some)
        known = self.kept.scores()
        found: dict[str, list[Tried]] = {}
        for trial in once:
            line = known[self._key(trial)]
            one = Tried(trial.column.spec, trial.kind, float(line["calls"]), decibels(line["error"]))
            found.setdefault(trial.shot.id, []).append(one)
        return found

    def _key(self, trial: Trial) -> tuple[str, str]:
        return f"{trial.column.spec} against {self.against}", trial.shot.id

    def _batches(self, trials: Sequence[Trial]) -> Iterator[list[Trial]]:
        """Of one solver, grid and steps each; runs of about as many calls stand together."""
        groups: dict[tuple[str, str, int], list[Trial]] = {}
        for trial in trials:
            c = trial.column
            groups.setdefault((spelt(c.solver), spelt(c.grid), c.steps), []).append(trial)
        for members in groups.values():
            members.sort(key=lambda trial: len(str(getattr(trial.column.policy, "times", ""))))
            for first in range(0, len(members), self.batch):
                yield members[first : first + self.batch]

    def _measure(self, trials: Sequence[Trial]) -> None:
        made = self._drawn(trials)
        lines = []
        for trial, one, pixels in zip(trials, made, self.subject.pictures(made), strict=True):
            error = float(((pixels - self.references[trial.shot.id]) ** 2).mean())
            if not math.isfinite(error) or one.status is not Status.done:
                error = 1.0  # a run that was lost: as far from its reference as black is from white
            what, sample = self._key(trial)
            lines.append({"what": what, "sample": sample, "calls": one.calls, "error": error})
        self.kept.add(lines)

    def _drawn(self, trials: Sequence[Trial]) -> list[Made]:
        """In one batch where the model can give each sample a policy of its own; one by one elsewhere."""
        each = getattr(self.subject, "draw_each", None)
        if each is not None:
            found: list[Made] = each([trial.shot.item for trial in trials], [trial.column for trial in trials])
            return found
        return [self.subject.draw([trial.shot.item], trial.column)[0][0] for trial in trials]
