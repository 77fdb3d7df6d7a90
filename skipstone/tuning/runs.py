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
from ..evaluation.progress import Tell, silent
from ..evaluation.references import Shot
from ..evaluation.subject import Made, Subject
from .grids import Fine, decibels, even_times, policy_of
from .recorder import Line, Recorder
from .run_cache import Kept

FINE = "fine"


class Seen(NamedTuple):
    """One run: its calls, and the mean square error of its pixels."""

    calls: float
    error: float

    @property
    def psnr(self) -> float:
        """In dB."""
        return decibels(self.error)


@dataclass(frozen=True)
class Draws:
    """Runs of one model, kept as they are made.

    Args:
        subject: The model.
        kept: What has been drawn before.
        steps: Of fine runs, on even angles.
        batch: Samples of one call, >= 1.
        seed: Of the positions that are looked at in large latents.
        tell: Of the progress.
    """

    subject: Subject
    kept: Kept
    steps: int
    batch: int = 8
    seed: int = 0
    tell: Tell = silent

    def column(self, policy: Policy, solver: Solver | None = None) -> Column:
        """A policy on its own solver, or another, on the grid and steps that are usual for this model.

        Raises:
            SpecError: the model cannot run it.
        """
        own = self.subject.defaults
        solver = solver or registry.parse("solver", policy.solver)
        return self.subject.admit(Column(policy, solver, own.grid, own.steps))

    def fine(self, shot: Shot) -> Fine:
        """Where the places of fine runs are, for this model: two calls tell where its runs begin.

        Raises:
            SpecError, GuestError: it cannot be run by `adams`, or has too few places.
        """
        recorder = Recorder(registry.parse("solver", "adams"), positions=1)
        self.subject.draw([shot.item], self.column(policy_of((1.0, 0.5, 0.0)), recorder))
        line = recorder.lines[0]
        times = even_times(line.schedule, line.times[0], self.steps)
        return Fine(times, tuple(line.schedule.angle(t) for t in times))

    def pictures(self, shots: Sequence[Shot], fine: Fine, what: str, path: Sequence[int]) -> list[Any]:
        """Pixels of the runs along a path, kept by the name `what`, beside what was noted of each."""
        return [found["pixels"] for found in self._all(shots, fine, what, path)]

    def grams(self, shots: Sequence[Shot], fine: Fine) -> Any:
        """`Line.gram` of fine runs, (samples, rows, rows)."""
        import numpy as np

        return np.stack([found["gram"] for found in self._all(shots, fine, FINE, range(fine.steps + 1))])

    def measured(self, column: Column, shots: Sequence[Shot], against: str, references: Sequence[Any]) -> list[Seen]:
        """Calls and errors of runs under a column, against pictures that are called by a name."""
        what = f"{column.spec} against {against}"
        known = self.kept.scores()
        missing = [k for k, shot in enumerate(shots) if (what, shot.id) not in known]
        for first in range(0, len(missing), self.batch):
            some = missing[first : first + self.batch]
            made = self._drawn([shots[k] for k in some], column)
            lines = []
            for k, one, pixels in zip(some, made, self.subject.pictures(made), strict=True):
                error = float(((pixels - references[k]) ** 2).mean())
                if not math.isfinite(error) or one.status is not Status.done:
                    error = 1.0  # a run that was lost: as far from its reference as black is from white
                lines.append({"what": what, "sample": shots[k].id, "calls": one.calls, "error": error})
            self.kept.add(lines)
            known |= {(what, str(line["sample"])): line for line in lines}
        return [Seen(known[what, shot.id]["calls"], known[what, shot.id]["error"]) for shot in shots]

    def _all(self, shots: Sequence[Shot], fine: Fine, what: str, path: Sequence[int]) -> list[dict[str, Any]]:
        found = {shot.id: self.kept.arrays(what, shot) for shot in shots}
        missing = [shot for shot in shots if found[shot.id] is None]
        for first in range(0, len(missing), self.batch):
            self.tell(f"Drawing {what} runs", len(shots) - len(missing) + first, len(shots))
            some = missing[first : first + self.batch]
            recorder = Recorder(registry.parse("solver", "adams"), self.seed)
            made = self._drawn(some, self.column(fine.policy(path), recorder if what == FINE else None))
            lines: list[Line | None] = [*recorder.lines] or [None] * len(some)
            for shot, one, line, pixels in zip(some, made, lines, self.subject.pictures(made), strict=True):
                _check(what, shot, one, line, fine)
                noted = {"pixels": pixels, **({} if line is None else {"gram": line.gram})}
                self.kept.save(what, shot, **noted)
                found[shot.id] = noted
        return [arrays for shot in shots if (arrays := found[shot.id]) is not None]

    def _drawn(self, shots: Sequence[Shot], column: Column) -> list[Made]:
        return self.subject.draw([shot.item for shot in shots], column)[0]


def _check(what: str, shot: Shot, made: Made, line: Line | None, fine: Fine) -> None:
    """Raise BenchError for a run that others cannot be measured against."""
    if made.status is not Status.done:
        raise BenchError(f"The {what} run of {shot.prompt.text!r} is lost. {made.status.value}")
    if line is not None and tuple(line.times) != fine.times:
        raise BenchError(
            f"The fine run of {shot.prompt.text!r} was to make {fine.steps} steps from t={fine.times[0]:g} and made "
            f"{len(line.times) - 1} from t={line.times[0]:g}: its runs do not all begin at the same time."
        )
