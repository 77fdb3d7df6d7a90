"""What policies see and return: read this file and one policy to write the next.

A policy sees a `Run` and returns a `Plan`. The other half of the library's types, what solvers ask
and backbones answer, is in `requests.py`.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from ..deprecation import adopt_old_declarations, old_attributes
from ..errors import SpecError
from ..numerics.parametrize import PredictionType as PredictionType
from ..settings import MAX_PARTS

Clock: TypeAlias = Literal["t", "logsnr", "angle"]
ForecastClock: TypeAlias = Clock | Literal["calls", "sada"]  # extra clocks, only for reproducing published rules
INFINITY = float("inf")


# -- What a policy says: how the next prediction is obtained -------------------------------------


@dataclass(frozen=True, slots=True)
class Full:
    """Run the whole backbone."""


@dataclass(frozen=True, slots=True)
class Cached:
    """Run the backbone, but forecast the named sites instead of computing them.

    Guidance branches are sites: `Cached(frozenset({"uncond"}))` costs half a call.
    """

    sites: frozenset[str]
    order: int = 0
    clock: Clock = "logsnr"


@dataclass(frozen=True, slots=True)
class Forecast:
    """Do not run the backbone: extrapolate its past predictions. Costs nothing.

    `order` 0 repeats the last prediction, 1 draws a line through the last two, and so on; `of` says
    which kind of prediction, `clock` against what. `Forecast(0, "x0")` landing on the end is a *freeze*: the
    clean estimate of now becomes the result.

    Two clocks are there to repeat what others published. On "calls" the calls are numbered and the forecast is the
    next number, whatever their times: of order 1, twice the last less the one before. "sada" repeats the last
    prediction at the latent that SADA extrapolates, in place of the one that is there (see `sada.py`).
    """

    order: int = 0
    of: PredictionType = "eps"
    clock: ForecastClock = "logsnr"


@dataclass(frozen=True, slots=True)
class Finish:
    """Run the whole backbone and take a long step of the flow's own in place of the solver's.

    The step integrates the polynomial in sigma/alpha through the last `order` clean estimates exactly; it
    is what makes ending early in one to four long steps accurate whatever the solver.
    """

    order: int = 2


@dataclass(frozen=True, slots=True)
class Refine:
    """Run the whole backbone and take the step; then denoise one region of the result again, in `steps` more calls.

    The region is where the prompt's words get more than `threshold` of the attention (`below`: less), and an `edge`
    of cells around it; noise is added up to `back` of the angle left to pure noise; see `refine.py`.
    """

    steps: int = 3
    back: float = 0.5
    threshold: float = 0.5
    edge: int = 0
    below: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """Do not run the backbone: let a student, another network, draw from here to the end in `steps` equal steps.

    The student is the policy's `student`. The sample at the end is accepted or rejected like any other.
    """

    steps: int = 1


COND, UNCOND = "cond", "uncond"  # guidance branches, as sites
ATTENTION = "attention"  # what a backbone calls its map: words' share of each cell's attention, (height, width)
Evaluate: TypeAlias = Full | Cached | Forecast | Finish | Refine | Draft


@dataclass(frozen=True, slots=True)
class Plan:
    """Is the pending attempt accepted? How is the next prediction obtained? Where does its step land?

    `why` lists the policies that amended the plan; `memo` holds numbers that a policy stores in the trace.
    """

    evaluate: Evaluate
    t_next: float
    accept: bool = True
    why: tuple[str, ...] = ()
    memo: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_unamended(self) -> bool:
        """Whether no policy has amended it: the attempt is accepted and the next prediction is a full call.

        What policies that save calls amend. The retry of a rejected step they leave alone: its first call
        is already paid for, and a forecast there would undo what the rejection was for.
        """
        return self.accept and self.evaluate == Full()


# -- What a policy sees: numbers, never tensors --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One step that was computed, accepted or not."""

    t: float
    t_next: float
    plan: Plan
    cost: float  # in calls: branch evaluations divided by the branches of the bare run
    signals: Mapping[str, float]
    accepted: bool | None = None  # None while pending

    @property
    def is_full_call(self) -> bool:
        """Whether the whole network was run."""
        return isinstance(self.plan.evaluate, Full | Finish | Refine)

    @property
    def is_forecast(self) -> bool:
        """Whether the network was not run at all."""
        return isinstance(self.plan.evaluate, Forecast)


class AngleAxis(NamedTuple):
    """A grid by its angles: what `Run.angle` looks up, for policies that ask for many.

    Args:
        grid: Its times, falling.
        negated: The same negated, so that they rise.
        angles: atan(sigma / alpha) at each, falling.
        falling: The same negated, so that they rise.
    """

    grid: tuple[float, ...]
    negated: tuple[float, ...]
    angles: tuple[float, ...]
    falling: tuple[float, ...]

    def angle(self, t: float) -> float:
        """`Run.angle`."""
        grid = self.grid
        i = min(bisect_left(self.negated, -t, 1), len(grid) - 1)  # the first time of the grid at t or below
        w = min(1.0, max(0.0, (grid[i - 1] - t) / (grid[i - 1] - grid[i])))
        return (1 - w) * self.angles[i - 1] + w * self.angles[i]


@lru_cache(maxsize=256)
def angle_axis(grid: tuple[float, ...], clocks: tuple[float, ...]) -> AngleAxis:
    """The axis of a grid with this half log-SNR, which all samples on it share."""
    angles = tuple(math.atan(math.exp(-clock)) for clock in clocks)
    return AngleAxis(grid, tuple(-t for t in grid), angles, tuple(-angle for angle in angles))


@dataclass(frozen=True, slots=True)
class Run:
    """The run so far: all that a policy knows, and all the memory it has."""

    t: float
    t_end: float
    grid: tuple[float, ...]
    clocks: tuple[float, ...]  # half log-SNR at each time of the grid, finite
    stages: int = 1  # calls of one step of the solver
    branches: int = 1  # guidance branches of a full call
    past: tuple[Attempt, ...] = ()  # settled attempts, oldest first
    pending: Attempt | None = None
    prompt: tuple[float, ...] = ()  # mean text state of the prompt; empty where there is none
    text: str = ""  # the prompt itself; empty where it is not known

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Settled attempts and the pending one."""
        return self.past if self.pending is None else (*self.past, self.pending)

    @property
    def display_attempts(self) -> tuple[Attempt, ...]:
        """Attempts for display: a rejected attempt whose retry cost nothing is merged with the retry."""
        found: list[Attempt] = []
        for a in self.attempts:
            if found and found[-1].accepted is False and found[-1].t == a.t and a.cost == 0.0 and not a.is_forecast:
                a = replace(a, cost=found.pop().cost)
            found.append(a)
        return tuple(found)

    @property
    def accepted_attempts(self) -> tuple[Attempt, ...]:
        """The attempts that count: all but the rejected ones."""
        return tuple(a for a in self.attempts if a.accepted is not False)

    @property
    def is_retry(self) -> bool:
        """Whether the pending attempt begins where one was rejected."""
        last = self.past[-1] if self.past else None
        return last is not None and self.pending is not None and last.accepted is False and last.t == self.pending.t

    @property
    def num_consecutive_forecasts(self) -> int:
        """Forecasts in a row up to here."""
        return next(
            (i for i, a in enumerate(reversed(self.accepted_attempts)) if not a.is_forecast),
            len(self.accepted_attempts),
        )

    @property
    def cost(self) -> float:
        """Calls spent so far, rejected attempts included."""
        return sum(a.cost for a in self.attempts)

    @property
    def next_start(self) -> float:
        """Time at which the next step starts if the pending attempt is accepted."""
        return self.t if self.pending is None else self.pending.t_next

    @property
    def remaining_times(self) -> tuple[float, ...]:
        """Times of the grid that still lie ahead of `here`, nearest first."""
        here = self.next_start
        return tuple(g for g in self.grid if g < here)

    def is_in_tail(self, proposal: Plan, tail: int) -> bool:
        """Whether the next step is among the last `tail`: of the grid, or because it lands on the end."""
        return tail > 0 and (len(self.remaining_times) <= tail or proposal.t_next <= self.t_end)

    def clock(self, t: float) -> float:
        """Half log-SNR at t, linear between the times of the grid."""
        grid, clocks = self.grid, self.clocks
        if t >= grid[0]:
            return clocks[0]
        for i in range(1, len(grid)):
            if t >= grid[i]:
                w = (grid[i - 1] - t) / (grid[i - 1] - grid[i])
                return (1 - w) * clocks[i - 1] + w * clocks[i]
        return clocks[-1]

    @property
    def angles(self) -> AngleAxis:
        """The angles of the grid."""
        return angle_axis(self.grid, self.clocks)

    def angle(self, t: float) -> float:
        """atan(sigma / alpha) at t, from pi / 2 (noise) to 0 (data), linear between the times of the grid."""
        return self.angles.angle(t)

    def time(self, clock: float) -> float:
        """The time at which `clock` has this value, before which it is smaller; clipped to the ends of the grid."""
        grid, clocks = self.grid, self.clocks
        if clock <= clocks[0]:
            return grid[0]
        for i in range(1, len(grid)):
            if clocks[i] >= clock:
                w = (clock - clocks[i - 1]) / (clocks[i] - clocks[i - 1])
                return (1 - w) * grid[i - 1] + w * grid[i]
        return grid[-1]

    def proposal(self) -> Plan:
        """The plan before any policy amends it: accept, full evaluation, next time of the grid."""
        here = self.next_start
        return Plan(Full(), next((g for g in self.grid if g < here), self.t_end))


class Policy:
    """Base of every adaptive method: frozen settings and one pure function from the run to a plan."""

    name: ClassVar[str]
    neutral: ClassVar[Mapping[str, Any]] = {}  # arguments at which this policy changes nothing
    calibration_settings: ClassVar[
        Sequence[Mapping[str, Any]]
    ] = ()  # settings from careful to bold, for calibration to choose from

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt_old_declarations(cls, {"ladder": "calibration_settings"})

    @property
    def needs(self) -> frozenset[str]:
        """Signals that the policy reads."""
        return frozenset()

    @property
    def scope(self) -> Literal["sample", "batch"]:
        """Who a decision is about: each sample by itself (the rule), or the batch as one."""
        return "sample"

    @property
    def may_spend_more(self) -> bool:
        """Whether a run may cost more calls than the bare one."""
        return False

    @property
    def sites(self) -> frozenset[str]:
        """Sites this policy may ask to forecast; ATTENTION too if it refines steps that it takes again."""
        return frozenset()

    @property
    def reads_prompt(self) -> bool:
        """Whether it reads `Run.prompt`, the mean text state of the conditional branch."""
        return False

    @property
    def solver(self) -> str:
        """Spec of the solver that it is made for, used where no other is said; "" where any will do."""
        return ""

    @property
    def network(self) -> str:
        """Folder of the network that it runs in place of the model's own; "" where it runs the model itself."""
        return ""

    @property
    def student(self) -> str:
        """Folder of the student that its plans to `Draft` run beside the model; "" where there are none."""
        return ""

    @property
    def variants(self) -> Sequence[Policy]:
        """Settings that calibration chooses from, where this one leaves one open; none where it leaves nothing open."""
        return ()

    def plan(self, run: Run, proposal: Plan) -> Plan:
        """Amend `proposal`, or return it unchanged."""
        raise NotImplementedError

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        """Plans for runs that decide at the same moment; `scope = "batch"` overrides this alone."""
        return [self.plan(r, p) for r, p in zip(runs, proposals, strict=True)]

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        """Call `plan_batch` and append this policy's name to `why` of every changed plan."""
        plans = self.plan_batch(runs, proposals)
        return [
            new if new == old else Plan(new.evaluate, new.t_next, new.accept, (*old.why, self.name), new.memo)
            for new, old in zip(plans, proposals, strict=True)
        ]

    def __or__(self, other: Policy) -> Policy:
        mine = self.parts if isinstance(self, Chain) else (self,)
        return Chain((*mine, *(other.parts if isinstance(other, Chain) else (other,))))


@dataclass(frozen=True)
class Chain(Policy):
    """Policies applied left to right, each amending what the one before proposed; at most 32, as a spec may have."""

    parts: tuple[Policy, ...]
    name: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        if len(self.parts) > MAX_PARTS:
            raise SpecError(f"Expected at most {MAX_PARTS} policies in a chain, got {len(self.parts)}.")
        folders = {folder for p in self.parts for folder in (p.network, p.student) if folder}
        if len(folders) > 1 or (self.network and self.student):
            names = [p.name for p in self.parts if p.network or p.student]
            raise SpecError(f"Expected one policy with a student in a chain, got {' and '.join(names)}. Leave one out.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(p.needs for p in self.parts))

    @property
    def scope(self) -> Literal["sample", "batch"]:
        return "batch" if any(p.scope == "batch" for p in self.parts) else "sample"

    @property
    def may_spend_more(self) -> bool:
        return any(p.may_spend_more for p in self.parts)

    @property
    def sites(self) -> frozenset[str]:
        return frozenset().union(*(p.sites for p in self.parts))

    @property
    def reads_prompt(self) -> bool:
        return any(p.reads_prompt for p in self.parts)

    @property
    def solver(self) -> str:
        return next((p.solver for p in self.parts if p.solver), "")

    @property
    def network(self) -> str:
        return next((p.network for p in self.parts if p.network), "")

    @property
    def student(self) -> str:
        return next((p.student for p in self.parts if p.student), "")

    @property
    def variants(self) -> Sequence[Policy]:
        if not any(p.variants for p in self.parts):
            return ()
        return [Chain(parts) for parts in itertools.product(*((p.variants or (p,)) for p in self.parts))]

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return self.consult([run], [proposal])[0]

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        plans = list(proposals)
        for part in self.parts:
            plans = part.consult(runs, plans)
        return plans


old_attributes(Attempt, {"called": "is_full_call", "skipped": "is_forecast"})
old_attributes(Plan, {"plain": "is_unamended"})
old_attributes(
    Run,
    {
        "told": "display_attempts",
        "kept": "accepted_attempts",
        "streak": "num_consecutive_forecasts",
        "here": "next_start",
        "left": "remaining_times",
        "ending": "is_in_tail",
    },
)
