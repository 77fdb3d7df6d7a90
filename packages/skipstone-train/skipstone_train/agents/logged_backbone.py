"""Recorded runs as a backbone: an approximation of the network near them, for a few multiplications.

A run that was recorded in fine steps holds the network's outputs along it. Beside it the output is taken to change
evenly in all directions, by as much as errors made on the way were measured to decay: the probability-flow ODE,
linearised around the run. Any solver and any policy runs on it as on the network, and ends as far from the run's end as
it would there, to first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from skipstone.engine.requests import Estimate, Query
from skipstone.errors import BackboneError
from skipstone.numerics.parametrize import to_x0
from skipstone.numerics.schedule import Schedule


@dataclass(frozen=True, eq=False)
class CachedSchedule(Schedule):
    """A schedule that caches its values: recorded runs use the same few times over and over."""

    base: Schedule
    _values: dict[tuple[str, float], float] = field(default_factory=dict, repr=False)

    def _lookup(self, what: str, t: float) -> float:
        if (what, t) not in self._values:
            self._values[what, t] = getattr(self.base, what)(t)
        return self._values[what, t]

    def alpha(self, t: float) -> float:
        return self._lookup("alpha", t)

    def sigma(self, t: float) -> float:
        return self._lookup("sigma", t)

    def clock(self, t: float) -> float:
        return self._lookup("clock", t)

    def angle(self, t: float) -> float:
        return self._lookup("angle", t)

    def timestep(self, t: float) -> float:
        return self.base.timestep(t)

    def time(self, clock: float) -> float:
        return self.base.time(clock)


@dataclass(frozen=True, eq=False)
class RecordedTrajectories:
    """Fine runs of many samples, in coordinates of their own.

    A run lies, to the accuracy wanted, in a space of few dimensions: what is kept are its coordinates there, scaled so
    that root mean squares are those of the latent.

    Args:
        angles: (places,) falling, from the start's to 0.
        z: (samples, dimensions) where each run starts, at unit variance.
        v: (samples, places, dimensions) dz / du there.
        gains: (samples, marks) what is left at the end of an error made at each mark.
        marks: (marks,) angles, falling.
    """

    angles: Any
    z: Any
    v: Any
    gains: Any
    marks: Any

    def __len__(self) -> int:
        return len(self.z)

    @classmethod
    def from_latents(cls, angles: Any, z: Any, v: Any, gains: Any, marks: Any, dimensions: int) -> RecordedTrajectories:
        """Runs in latents, in the coordinates of most of their energy.

        The first coordinate is that of the start, as far as v does not span it: it never changes, but solvers that
        forecast pictures and noise apart see it.

        Args:
            angles, gains, marks: As above.
            z: (samples, numbers) where each run starts.
            v: (samples, places, numbers).
            dimensions: To keep, >= 2.
        """
        starts, paths = [], []
        for start, path in zip(np.asarray(z, np.float64), np.asarray(v, np.float64), strict=True):
            basis = np.linalg.svd(path, full_matrices=False)[2][: dimensions - 1]
            rest = start - (start @ basis.T) @ basis
            size = float(np.linalg.norm(rest))
            basis = np.concatenate([rest[None] / max(size, 1e-12), basis])
            scale = (dimensions / path.shape[-1]) ** 0.5
            starts.append(start @ basis.T * scale)
            paths.append(path @ basis.T * scale)
        z, v, gains = (np.asarray(a, np.float32) for a in (starts, paths, gains))
        return cls(np.asarray(angles, np.float64), z, v, gains, np.asarray(marks, np.float64))


@dataclass(frozen=True, eq=False)
class RecordedBackbone:
    """A backbone that answers from recorded runs; `Problem.cond` is the number of the sample.

        v(x, t) = v_run(t) + J(u) (x - z_run(t)),    J(u) = -d log gain / du

    Between its places a run is a cubic spline, and z_run its exact integral.

    Args:
        schedule: That of the network; of one that preserves variance.
        runs: What was recorded.

    Raises:
        BackboneError: a query about a sample that is not there.
    """

    schedule: Schedule
    runs: RecordedTrajectories
    sites: ClassVar[tuple[str, ...]] = ()
    branches: ClassVar[int] = 1

    @cached_property
    def _evaluated(self) -> dict[float, tuple[Any, ...]]:
        return {}

    @cached_property
    def _splines(self) -> tuple[Any, Any]:
        from scipy.interpolate import CubicSpline, PchipInterpolator

        rising = self.runs.angles[::-1]
        v = CubicSpline(rising, self.runs.v[:, ::-1], axis=1)
        order = np.argsort(self.runs.marks)
        logs = np.log(np.maximum(self.runs.gains[:, order], 1e-6))
        marks = np.concatenate([[0.0], self.runs.marks[order]])
        fade = PchipInterpolator(marks, np.concatenate([np.zeros((len(logs), 1)), logs], 1), axis=1)
        return (v, v.antiderivative()), fade.derivative()

    def at(self, t: float) -> tuple[Any, ...]:
        """v_run, z_run (samples, dimensions) and J (samples,) at a time."""
        if t not in self._evaluated:
            (v, way), fade = self._splines
            angle = self.schedule.angle(t)
            z = self.runs.z + way(angle) - way(self.runs.angles[0])
            inside = min(angle, float(self.runs.marks.max()))
            self._evaluated[t] = (
                np.asarray(v(angle), np.float32),
                np.asarray(z, np.float32),
                -np.asarray(fade(inside), np.float32),
            )
        return self._evaluated[t]

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """Answers from the runs."""
        answers = []
        for q in queries:
            if not isinstance(q.cond, int | np.integer) or not 0 <= q.cond < len(self.runs):
                raise BackboneError(f"Expected the number of one of {len(self.runs)} recorded runs, got {q.cond!r}.")
            v, z, bend = (a[q.cond] for a in self.at(q.t))
            output = v + bend * (q.x - z)
            x0 = to_x0("v", output, q.x, self.schedule.alpha(q.t), self.schedule.sigma(q.t))
            answers.append(Estimate(x0, 1.0, output, "v"))
        return answers
