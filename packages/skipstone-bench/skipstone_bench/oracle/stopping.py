"""Oracle stops: where to end each run, were the score of every ending known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

from skipstone.engine.contracts import Finish, Plan, Policy, Run
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Backbone, Estimate, Problem, Query, Solver
from skipstone.errors import SpecError
from skipstone.evaluation.columns import FIXED_POLICY
from skipstone.numerics.schedule import Schedule
from skipstone.tuning.recorder import Recorder

DecodeFunction: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]  # samples -> pixels
WorthFunction: TypeAlias = Callable[[int, Any, float], float]  # index of the sample, pixels, calls -> higher is better

FINISH_STEPS = (1, 2, 3, 4)


@dataclass(frozen=True, eq=False)
class BestStop:
    """The best clean estimate on a run's way, and what it takes to know it.

    Args:
        at: Calls after which it was there: what the original counted.
        calls: That were really made: all of the run, and as many pictures decoded.
        worth: Of every clean estimate, first call first.
        pixels: The best picture.
    """

    at: int
    calls: float
    worth: tuple[float, ...]
    pixels: Any


@dataclass(frozen=True, eq=False)
class BestEnding:
    """The best ending of a run.

    Args:
        at: Steps of the schedule before it.
        finish: Long steps of it.
        calls: Of both: what a policy that knew them would pay.
        worth: What the picture is worth.
        spent: Calls that the search has made, for this sample's share.
        pixels: The picture.
    """

    at: int
    finish: int
    calls: float
    worth: float
    spent: float
    pixels: Any


def oracle_stop(
    backbone: Backbone, problems: Sequence[Problem], solver: Solver, pictures: DecodeFunction, worth: WorthFunction
) -> list[BestStop]:
    """Decode the clean estimate at every step and take the one that is worth most; of equals the earliest.

    The oracle of AdDiffusion: it counts the step of the peak as its cost, and has made all the calls. What it decodes
    in the middle of a run is the mean of all pictures that are still possible, which is blurred.

    Args:
        backbone: The denoiser.
        problems: One for each sample.
        solver: Of one call a step.
        pictures: Decodes samples.
        worth: Higher is better; its calls are those up to the step.

    References: github.com/d3v-26/addiffusion (OracleStop).
    """
    recorder = Recorder(solver, positions=2**62)
    results = denoise_many(backbone, problems, recorder, FIXED_POLICY)
    found = []
    for s, (problem, result, line) in enumerate(zip(problems, results, recorder.lines, strict=True)):
        rows = [row[0].reshape(problem.x.shape) for row in line.rows[:-1]]  # the last is the end itself
        made = pictures([_to_array_like(problem.x, row) for row in rows])
        values = tuple(worth(s, pixels, float(k)) for k, pixels in enumerate(made, 1))
        at = values.index(max(values))
        found.append(BestStop(at + 1, result.run.cost, values, made[at]))
    return found


def oracle_ending(
    backbone: Backbone,
    problems: Sequence[Problem],
    solver: Solver,
    pictures: DecodeFunction,
    worth: WorthFunction,
    stops: Sequence[int],
    finish: Sequence[int] = FINISH_STEPS,
    order: int = 2,
) -> list[BestEnding]:
    """Each sample's best number of steps before it is finished in a few long ones; of equals the cheapest.

    Every pair is really run. Runs of one sample share their beginnings, so that no call is made twice: `spent` is what
    the search has cost, `calls` what the ending does.

    Args:
        backbone: The denoiser.
        problems: One for each sample.
        solver: Of the steps before.
        pictures: Decodes samples.
        worth: Higher is better; its calls are those of each ending.
        stops: Steps before the ending, each at least 0 and below the grid's.
        finish: Long steps of the ending, each >= 1.
        order: Of the long steps, see `Finish`.

    Raises:
        SpecError: stops or endings out of range.
    """
    steps = min(len(problem.grid) for problem in problems) - 1
    if not stops or not finish or min(finish) < 1 or not 0 <= min(stops) <= max(stops) < steps:
        raise SpecError(
            f"Expected stops between 0 and {steps - 1} and endings of 1 step or more, got {list(stops)} and "
            f"{list(finish)}."
        )
    found = []
    for s, problem in enumerate(problems):
        remembered = MemoizedBackbone(backbone)
        pairs = [(at, long) for at in sorted(set(stops)) for long in sorted(set(finish))]
        policies = [StopAt(at, long, order) for at, long in pairs]
        results = denoise_many(remembered, [problem] * len(pairs), solver, policies)
        made = pictures([result.x for result in results])
        costs = [result.run.cost for result in results]
        values = [worth(s, pixels, cost) for pixels, cost in zip(made, costs, strict=True)]
        k = max(range(len(pairs)), key=lambda k: (values[k], -costs[k], -k))
        found.append(BestEnding(*pairs[k], costs[k], values[k], remembered.spent, made[k]))
    return found


@dataclass(frozen=True)
class StopAt(Policy):
    """Follow the grid for so many steps, then finish in so many of the same angle."""

    at: int
    finish: int
    order: int = 2
    name: ClassVar[str] = "stop_at"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        left = self.at + self.finish - len(run.accepted_attempts)
        if left > self.finish or not proposal.is_unamended or run.next_start <= run.t_end:
            return proposal
        if left <= 1:
            return replace(proposal, evaluate=Finish(self.order), t_next=run.t_end)
        angle = run.angle(run.next_start) * (left - 1) / left
        return replace(proposal, evaluate=Finish(self.order), t_next=run.time(-math.log(math.tan(angle))))


@dataclass(eq=False)
class MemoizedBackbone:
    """A backbone that computes no query twice; `spent` counts what it has computed, in calls."""

    backbone: Backbone
    spent: float = 0.0
    _answers: dict[tuple[int, float, bytes], Estimate] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """Of the backbone."""
        return self.backbone.schedule

    @property
    def sites(self) -> tuple[str, ...]:
        """None: a forecast of a part is another question."""
        return ()

    @property
    def branches(self) -> int:
        """Of the backbone."""
        return self.backbone.branches

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """Estimates; each query goes to the backbone once."""
        import numpy as np

        keys = [(id(query.cond), query.t, np.ascontiguousarray(query.x).tobytes()) for query in queries]
        new = {key: query for key, query in zip(keys, queries, strict=True) if key not in self._answers}
        if new:
            estimates = self.backbone.predict(list(new.values()))
            self.spent += sum(answer.cost for answer in estimates)
            self._answers |= dict(zip(new, estimates, strict=True))
        return [self._answers[key] for key in keys]


def _to_array_like(x: Any, row: Any) -> Any:
    """An array as the samples are: of torch where they are."""
    if not hasattr(x, "detach"):
        return row
    import torch

    return torch.from_numpy(row).to(x)
