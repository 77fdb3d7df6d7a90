"""What an agent may do at a call: how far the next step goes, measured on a fixed schedule, its base schedule."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from operator import gt
from typing import Any

from ...engine.contracts import ATTENTION, UNCOND, Attempt, Cached, Full, Plan, Refine, Run
from ...errors import SpecError

PLACES_PER_STEP = 4  # places to land on for each step of a base schedule
PLACE_DIGITS = 3  # of a place between two steps: networks taught at 1000 whole timesteps are noisy between them
STOP, GATE, REFINE, ACTION = "stop", "gate", "refine", "action"  # words of actions, and memos
STEP_ACTIONS = ("continue", "skip", "short")  # actions that are nothing but a landing
UNCOND_BRANCH = frozenset({UNCOND})
DEFAULT_ACTIONS = (
    "short 0.5",
    "short 0.75",
    "continue",
    "skip 1.25",
    "skip 1.5",
    "skip 2",
    "skip 3",
    "stop 1",
    "stop 2",
)


@dataclass(frozen=True)
class BaseSchedule:
    """A fixed schedule, and the places between its times where an agent may land.

    Args:
        times: Falling, from noise to data.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = all(isinstance(t, int | float) for t in self.times)
        if len(self.times) < 2 or not numbers or not all(map(gt, self.times, self.times[1:])):  # nan does not fall
            raise SpecError(f"Expected a base schedule of at least two falling times, got {self.times!r}.")

    @property
    def steps(self) -> int:
        """N: calls of the fixed schedule."""
        return len(self.times) - 1

    @cached_property
    def places(self) -> tuple[float, ...]:
        """Times of the places: `PLACES_PER_STEP` for each step, and the end."""
        found: list[float] = []
        for a, b in zip(self.times, self.times[1:], strict=False):
            inner = [a + (b - a) * j / PLACES_PER_STEP for j in range(1, PLACES_PER_STEP)]
            rounded = [round(t, PLACE_DIGITS) for t in inner]
            whole = all(x > y for x, y in zip([a, *rounded], [*rounded, b], strict=True))
            found += [a, *(rounded if whole else inner)]
        return (*found, self.times[-1])

    @cached_property
    def _rising(self) -> tuple[float, ...]:
        return self.places[::-1]

    def index(self, t: float) -> int:
        """The place at a time, or the nearest below."""
        return len(self.places) - 1 - max(0, bisect_left(self._rising, t + 1e-9) - 1)

    def landing_time(self, t: float, length: int, end: float) -> float:
        """Time at which a step from t lands that passes this many places, in a run to `end`."""
        return max(end, self.places[min(self.index(t) + length, len(self.places) - 1)])


@dataclass(frozen=True)
class ActionSpace:
    """The actions of an agent, in order.

    `continue` goes on to where the base schedule's next step would land; `skip k` passes k steps of it in one,
    `short k` a part of one; `stop m` ends the run in m steps of equal share, each a call, without deciding again;
    `gate` continues, and calls the prompt's branch alone where that step lands; `refine` continues, and denoises the
    marked region again.

    Args:
        names: Of the actions.
        first: Calls before which a run may not be stopped, >= 1.
        calls: Calls that a run may make, for each call of the base schedule, >= 1.
        refines: Refinements that a run may make, >= 0.

    Raises:
        SpecError: an action that is none of these, none that continues, or a setting out of range.
    """

    names: tuple[str, ...] = DEFAULT_ACTIONS
    first: int = 2
    calls: float = 2.0
    refines: int = 1

    def __post_init__(self) -> None:
        _ = self.lengths
        if "continue" not in self.names or len(set(self.names)) < len(self.names):
            raise SpecError(f"Expected different actions with 'continue' among them, got {', '.join(self.names)}.")
        if self.first < 1 or self.calls < 1 or self.refines < 0:
            raise SpecError(
                f"Expected first >= 1, calls >= 1 and refines >= 0, got {self.first}, {self.calls} and {self.refines}."
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sites(self) -> frozenset[str]:
        """Sites (outputs of the network) that some action needs."""
        branch = UNCOND_BRANCH if GATE in self.names else frozenset[str]()
        return branch | (frozenset({ATTENTION}) if REFINE in self.names else frozenset[str]())

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Places that each action passes; minus the number of steps of a stop."""
        return tuple(map(_parse_length, self.names))

    def action_mask(self, run: Run, schedule: BaseSchedule) -> Any:
        """(actions,) whether each may be taken by a run that is about to decide."""
        assert run.pending is not None
        left = len(schedule.places) - 1 - schedule.index(run.pending.t)
        calls = sum(not a.is_forecast for a in run.accepted_attempts)
        return self.action_masks(
            [left], [calls], [schedule.steps], run.branches > 1, count_refinements(run) < self.refines
        )[0]

    def action_masks(self, left: Any, calls: Any, steps: Any, gates: Any = False, refines: Any = True) -> Any:
        """(n, actions) whether each action may be taken: one for each landing, and only such as can be paid for.

        Args:
            left: (n,) places of the base schedule ahead.
            calls: (n,) made so far.
            steps: (n,) of the base schedule.
            gates: Whether there is a branch to leave out.
            refines: Whether a refinement is left; of all, or (n,).
        """
        import numpy as np

        lengths, names = np.array(self.lengths), np.array(self.names)
        left, calls, steps = (np.asarray(a)[:, None] for a in (left, calls, steps))
        stops, special = lengths < 0, np.isin(names, (GATE, REFINE))
        last = (calls >= self.calls * steps) | (left <= 1)  # nothing can be paid for beyond this call
        plain = ~stops & ~special
        ends = plain & (lengths >= left)  # of the steps that reach the end the shortest is allowed, once
        shortest = np.where(ends, lengths, np.iinfo(int).max).min(1, keepdims=True)
        ending = ends & (lengths == shortest)
        reach = ends.any(1, keepdims=True)
        paid = calls - lengths - 1 <= self.calls * steps
        stop = stops & (calls >= self.first) & (left >= -lengths) & paid & ~last & ~((lengths == -1) & reach)
        found = ending | (plain & ~ends & ~last) | stop
        free = np.where(names == GATE, np.reshape(gates, (-1, 1)), np.reshape(refines, (-1, 1)))
        found |= special & (lengths < left) & ~last & free
        found |= (lengths == -1) & last & ~reach  # calls are spent: to the end at once, or by the longest step
        longest = np.arange(len(lengths)) == lengths.argmax()
        return found | (~found.any(1, keepdims=True) & longest)


def count_refinements(run: Run) -> int:
    """Number of refinements that a run has made."""
    return sum(isinstance(a.plan.evaluate, Refine) for a in run.accepted_attempts)


def _parse_length(name: str) -> int:
    word, _, number = name.partition(" ")
    if name in ("continue", GATE, REFINE):
        return PLACES_PER_STEP
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if word == STOP and value in (1, 2, 3, 4):
        return -int(value)
    places = value * PLACES_PER_STEP
    if places == int(places) and ((word == "skip" and value > 1) or (word == "short" and 0 < value < 1)):
        return int(places)
    raise SpecError(
        f"Expected actions among continue, skip k (k > 1), short k (k < 1), stop 1..4, gate and refine, k in quarters, "
        f"got {name!r}."
    )


def is_decision_due(run: Run) -> bool:
    """Whether the agent must decide now: the call at the start of the pending step is done, the step is not settled."""
    last = run.pending
    if last is None or last.plan.memo.get(STOP) is not None:
        return False
    return not last.is_forecast and not run.is_retry


def plan_action(run: Run, schedule: BaseSchedule, action_space: ActionSpace, action: int | None = None) -> Plan:
    """The plan that an action means; without one, that which goes on where no decision is due."""
    last = run.pending
    if last is None:
        return Plan(Full(), schedule.landing_time(run.t, PLACES_PER_STEP, run.t_end))
    if action is None:
        return _continue_plan(run, schedule, last)
    name, length = action_space.names[action], action_space.lengths[action]
    memo = {ACTION: float(action)}
    if length < 0:
        memo[STOP] = float(-length - 1)
        length = -(-(len(schedule.places) - 1 - schedule.index(last.t)) // -length)
    if name == GATE:
        memo[GATE] = 1.0
    landing = schedule.landing_time(last.t, length, run.t_end)
    if landing == last.t_next and name.partition(" ")[0] in STEP_ACTIONS:  # the pending step is what the action means
        return _continue_plan(run, schedule, last)
    evaluate = Refine() if name == REFINE else last.plan.evaluate
    return Plan(evaluate, landing, False, memo=memo)


def _continue_plan(run: Run, schedule: BaseSchedule, last: Attempt) -> Plan:
    """Accept the pending step, and take the next."""
    if last.t_next <= run.t_end:
        return Plan(Full(), run.t_end)
    rest = last.plan.memo.get(STOP, 0.0)
    evaluate = Cached(UNCOND_BRANCH, 1) if last.plan.memo.get(GATE) else Full()
    step = Plan(evaluate, schedule.landing_time(last.t_next, PLACES_PER_STEP, run.t_end))
    if rest:
        share = -(-(len(schedule.places) - 1 - schedule.index(last.t_next)) // int(rest))
        return replace(step, t_next=schedule.landing_time(last.t_next, share, run.t_end), memo={STOP: rest - 1})
    return step
