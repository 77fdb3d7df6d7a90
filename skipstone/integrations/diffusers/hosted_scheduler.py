"""A diffusers scheduler as the engine sees it: a solver whose steps the pipeline does."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ...engine.requests import LatentRequest, Node, Query, Solver, SolverRequest, Step, StepRequest
from ...numerics.schedule import Schedule
from .scheduler_specs import NoiseLevel, Trajectory


@dataclass(frozen=True)
class HostSchedule(Schedule):
    """The noise levels of one trajectory; between its times, those of `base`."""

    noise_levels: Mapping[float, NoiseLevel]
    base: Schedule
    name: ClassVar[str] = "host"

    @staticmethod
    def from_trajectory(trajectory: Trajectory, base: Schedule) -> HostSchedule:
        """Build the schedule from the calls of a trajectory and its end."""
        return HostSchedule({p.t: p for p in (*trajectory.calls, trajectory.end)}, base)

    def alpha(self, t: float) -> float:
        level = self.noise_levels.get(t)
        return self.base.alpha(t) if level is None else level.alpha

    def sigma(self, t: float) -> float:
        level = self.noise_levels.get(t)
        return self.base.sigma(t) if level is None else level.sigma

    def timestep(self, t: float) -> float:
        return self.base.timestep(t)

    def sample_scale(self, t: float) -> float:
        return self.base.sample_scale(t)


@dataclass(frozen=True)
class SchedulerSolver(Solver):
    """Asks where the sample is, for its estimate, and where the scheduler took it.

    Args:
        steps: The times of each step's calls, in order.
        end: Where the last step lands.
    """

    steps: tuple[tuple[float, ...], ...]
    end: float
    name: ClassVar[str] = "hosted"
    hosted: ClassVar[bool] = True

    @staticmethod
    def from_trajectory(trajectory: Trajectory) -> SchedulerSolver:
        """Build the solver from a trajectory: one step for each group of its calls."""
        calls = iter(p.t for p in trajectory.calls)
        return SchedulerSolver(tuple(tuple(itertools.islice(calls, n)) for n in trajectory.stages), trajectory.end.t)

    @property
    def grid(self) -> tuple[float, ...]:
        """Times at which the steps begin, and the end."""
        return (*(times[0] for times in self.steps), self.end)

    @cached_property
    def starts(self) -> dict[float, int]:
        """Time at which a step begins (or the run ends) -> index of the call made there."""
        firsts = itertools.accumulate((len(times) for times in self.steps), initial=0)
        return dict(zip(self.grid, firsts, strict=True))

    @property
    def stages(self) -> int:
        return Counter(len(times) for times in self.steps).most_common(1)[0][0]

    @cached_property
    def _step_at(self) -> dict[float, tuple[tuple[float, ...], float]]:
        return {times[0]: (times, after) for times, after in zip(self.steps, self.grid[1:], strict=True)}

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[SolverRequest, Any, Step]:
        times, after = self._step_at[t]
        places = (*(times if t_next == after else times[:1]), t_next)
        for here, there in itertools.pairwise(places):
            x = yield LatentRequest(x, here)
            estimate = yield Query(x, here)
            x = yield StepRequest(x, here, there, estimate)
        return Step(x)
