"""A solver that records every step of another solver, in the engine and in pipelines."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..engine.requests import Node, Query, Solver, SolverRequest, Step
from ..numerics.array import upcast
from ..numerics.schedule import Schedule
from ..solvers.adams import make_pair_node, sample_norm

MAX_POSITIONS = 32768  # numbers of a latent that are kept: with 200 steps, 52 MB for each sample of a batch


@dataclass
class RecordedTrajectory:
    """One sample on its way.

    Args:
        schedule: Of its run.
        x: Where its last step has led, by which its next step is known to be its own.
        times: Of its steps, and of its end.
        rows: The clean picture and the noise that each of these places is made of, one array of both.
    """

    schedule: Schedule
    x: Any
    times: list[float] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)

    @property
    def angles(self) -> Any:
        """Angles of the recorded times."""
        return np.array([self.schedule.angle(t) for t in self.times])

    @property
    def gram(self) -> Any:
        """Mean products of all pairs of rows: those of the clean pictures first, then those of the noises.

        Shape (2 k, 2 k) of k places. Any error that is a sum of pictures and noises along the run has its mean square
        in here, so that the arrays themselves need not be kept.
        """
        rows = np.stack(self.rows, axis=1).astype(np.float64)  # (2, k, numbers)
        flat = rows.reshape(-1, rows.shape[-1])
        return flat @ flat.T / flat.shape[1]


class Recorder(Solver):
    """Another solver, whose estimates at each step and whose end are recorded. It changes nothing.

    For runs in which no step is taken twice, as those of `path` and `fixed`. A sample is known by the very array
    that its last step has returned, so that samples of a batch, or of several batches, cannot be mistaken for each
    other. Lines come in the order in which the samples have begun, which is that of the batch.

    Args:
        solver: Of one call a step.
        seed: Of the choice of positions, where a latent has more than `positions` numbers.
        positions: Numbers of a latent to keep, >= 1; the same of every sample.
    """

    def __init__(self, solver: Solver, seed: int = 0, positions: int = MAX_POSITIONS) -> None:
        self.solver, self.seed, self.positions = solver, seed, positions
        self.lines: list[RecordedTrajectory] = []
        self._kept: Any = None

    name: ClassVar[str] = "recorder"

    @property
    def parts(self) -> tuple[Solver, ...]:
        """What its spec spells: the solver alone, because that is what the pictures depend on."""
        return (self.solver,)

    @property
    def order(self) -> int:
        return self.solver.order

    @property
    def convergence_order(self) -> int:
        return self.solver.convergence_order

    @property
    def stages(self) -> int:
        return self.solver.stages

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[SolverRequest, Any, Step]:
        line = self._line(x, schedule, begins=not past)
        inner, answer = self.solver.step(x, t, t_next, schedule, past), None
        while True:
            try:
                asked = inner.send(answer)
            except StopIteration as end:
                step: Step = end.value
                line.x = step.x
                if t_next <= 0.0:
                    self._note(line, t_next, *_split_unqueried(step.x, t_next, schedule))
                return step
            answer = yield asked
            if isinstance(asked, Query):
                here = make_pair_node(Node(asked.t, upcast(asked.x), answer), schedule)
                self._note(line, asked.t, here.clean, here.noise)

    def _line(self, x: Any, schedule: Schedule, begins: bool) -> RecordedTrajectory:
        found = next((line for line in self.lines if line.x is x), None)
        if found is None or begins:  # samples may begin with one and the same array
            found = RecordedTrajectory(schedule, x)
            self.lines.append(found)
        return found

    def _note(self, line: RecordedTrajectory, t: float, clean: Any, noise: Any) -> None:
        line.times.append(t)
        line.rows.append(np.stack([self._thinned(clean), self._thinned(noise)]))

    def _thinned(self, array: Any) -> Any:
        array = array.detach().float().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)
        array = array.reshape(-1)
        if array.size <= self.positions:
            return array
        if self._kept is None:
            drawn = np.random.default_rng(self.seed).choice(array.size, self.positions, replace=False)
            self._kept = np.sort(drawn)
        return array[self._kept]


def _split_unqueried(x: Any, t: float, schedule: Schedule) -> tuple[Any, Any]:
    """A node without a query, as if picture and noise both were the sample itself: their sum is."""
    angle, z = schedule.angle(t), upcast(x) * (1.0 / sample_norm(schedule, t))
    return z * float(np.cos(angle)), z * float(np.sin(angle))
