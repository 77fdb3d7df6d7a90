"""Every type that crosses a module boundary: read this file to know the library.

A policy sees a `Run` and says a `Plan`. A solver asks `Query` (and `Noise`), a backbone answers with an
`Estimate`. The flow ties them together and calls none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from ..numerics.schedule import Schedule

Clock: TypeAlias = Literal["t", "logsnr"]
View: TypeAlias = Literal["eps", "x0", "v", "flow"]
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
    which view of them, `clock` against what. `Forecast(0, "x0")` landing on the end is a *freeze*: the
    clean estimate of now becomes the result.
    """

    order: int = 0
    of: View = "eps"
    clock: Clock = "logsnr"


@dataclass(frozen=True, slots=True)
class Finish:
    """Run the whole backbone and take a long step of the flow's own in place of the solver's.

    The step integrates the polynomial in sigma/alpha through the last `order` clean estimates exactly; it
    is what makes ending early in one to four long steps accurate whatever the solver.
    """

    order: int = 2


Evaluate: TypeAlias = Full | Cached | Forecast | Finish


@dataclass(frozen=True, slots=True)
class Plan:
    """Is the pending attempt accepted? How is the next prediction obtained? Where does its step land?

    `why` signs who amended the plan; `memo` is what a policy wants to find again in the trace.
    """

    evaluate: Evaluate
    t_next: float
    accept: bool = True
    why: tuple[str, ...] = ()
    memo: Mapping[str, float] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether nobody objected yet: the attempt is accepted and the next prediction is a full call.

        What policies that save calls amend. The retry of a rejected step they leave alone: its first call
        is already paid for, and a forecast there would undo what the rejection was for.
        """
        return self.accept and self.evaluate == Full()


# -- What a policy sees: numbers, never tensors --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One step that was computed, kept or not."""

    t: float
    t_next: float
    plan: Plan
    cost: float  # in calls: branch evaluations divided by the branches of the bare run
    signals: Mapping[str, float]
    accepted: bool | None = None  # None while pending

    @property
    def called(self) -> bool:
        """Whether the whole network was run."""
        return isinstance(self.plan.evaluate, Full | Finish)

    @property
    def skipped(self) -> bool:
        """Whether the network was not run at all."""
        return isinstance(self.plan.evaluate, Forecast)


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

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Settled attempts and the pending one."""
        return self.past if self.pending is None else (*self.past, self.pending)

    @property
    def kept(self) -> tuple[Attempt, ...]:
        """The attempts that count: all but the rejected ones."""
        return tuple(a for a in self.attempts if a.accepted is not False)

    @property
    def streak(self) -> int:
        """Forecasts in a row up to here."""
        return next((i for i, a in enumerate(reversed(self.kept)) if not a.skipped), len(self.kept))

    @property
    def cost(self) -> float:
        """Calls spent so far, rejected attempts included."""
        return sum(a.cost for a in self.attempts)

    @property
    def here(self) -> float:
        """Where the next step starts if the pending attempt is accepted."""
        return self.t if self.pending is None else self.pending.t_next

    @property
    def left(self) -> tuple[float, ...]:
        """Times of the grid that still lie ahead of `here`, nearest first."""
        return tuple(g for g in self.grid if g < self.here)

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
        """What to do when nobody objects: accept, full evaluation, next time of the grid."""
        return Plan(Full(), max((g for g in self.grid if g < self.here), default=self.t_end))


class Policy:
    """Base of every adaptive method: frozen settings and one pure function from the run to a plan."""

    name: ClassVar[str]
    neutral: ClassVar[Mapping[str, Any]] = {}  # arguments at which this policy changes nothing

    @property
    def needs(self) -> frozenset[str]:
        """Spelt signals that the policy reads."""
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
        """Sites this policy may ask to forecast."""
        return frozenset()

    def plan(self, run: Run, proposal: Plan) -> Plan:
        """Amend `proposal`, or return it unchanged."""
        raise NotImplementedError

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        """Plans for runs that decide at the same moment; `scope = "batch"` overrides this alone."""
        return [self.plan(r, p) for r, p in zip(runs, proposals, strict=True)]

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        """`plan_batch`, signed: an amended plan carries the name of who amended it."""
        plans = self.plan_batch(runs, proposals)
        return [
            new if new == old else replace(new, why=(*old.why, self.name))
            for new, old in zip(plans, proposals, strict=True)
        ]

    def __or__(self, other: Policy) -> Policy:
        mine = self.parts if isinstance(self, Chain) else (self,)
        return Chain((*mine, *(other.parts if isinstance(other, Chain) else (other,))))


@dataclass(frozen=True)
class Chain(Policy):
    """Policies applied left to right, each amending what the one before proposed."""

    parts: tuple[Policy, ...]
    name: ClassVar[str] = "chain"

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

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return self.consult([run], [proposal])[0]

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        plans = list(proposals)
        for part in self.parts:
            plans = part.consult(runs, plans)
        return plans


# -- What the engine is given --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """A request for an estimate at (x, t). The engine never calls a network itself."""

    x: Any
    t: float
    cond: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)  # outputs to use for these sites
    want: frozenset[str] = frozenset()  # sites whose outputs to return


@dataclass(frozen=True, slots=True)
class Noise:
    """A request for a standard normal array like this one, the next of the run's own stream."""

    like: Any


@dataclass(frozen=True, slots=True)
class Measure:
    """A request for 0-d arrays as floats, so that a driver can fetch a whole batch's at once."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A backbone's answer to a query.

    `x0` is the currency of solvers. `output`, of the kind `prediction`, is what the network really said,
    so that a forecast of that kind works on untouched values; without it, views are made from `x0`.
    """

    x0: Any
    cost: float = 1.0  # rows that entered the network, over the branches of a full call
    output: Any = None
    prediction: View = "x0"
    features: Mapping[str, Any] = field(default_factory=dict)  # outputs of the wanted sites it computed


class Node(NamedTuple):
    """An estimate on the run's timeline."""

    t: float
    x: Any
    estimate: Estimate
    real: bool = True  # False where it was forecast


@dataclass(frozen=True, slots=True)
class Step:
    """Where a solver's step went; `error` is its own estimate of the local error, shaped like x."""

    x: Any
    error: Any | None = None


class Solver:
    """Advances x from t to t_next; asks `estimate = yield Query(x, t)` and `noise = yield Noise(x)`.

    Holds settings, never state: `past` is the run's own timeline, oldest first, forecasts included (as
    in every scheduler that a guest meets).
    """

    name: ClassVar[str]
    counterpart: ClassVar[str] = ""  # the diffusers class that the tests compare it with
    variants: ClassVar[tuple[str, ...]] = ()  # specs beside the default that the tests check too

    @property
    def order(self) -> int:
        """The order in the solver's name, as in DPM-Solver++(3M)."""
        return 1

    @property
    def convergence(self) -> int:
        """Order of convergence; the tests measure it (for stochastic solvers, of their deterministic part)."""
        return self.order

    @property
    def stages(self) -> int:
        """Queries of one step, at most."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether steps ask for noise."""
        return False

    @property
    def controller(self) -> str:
        """Spec of the policy that this solver cannot do without, or nothing."""
        return ""

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        """One step, as a generator."""
        raise NotImplementedError


class Backbone(Protocol):
    """A denoiser: answers queries, in one call of the network where it can."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def sites(self) -> tuple[str, ...]: ...  # names of what `Cached` may forecast, () if none
    @property
    def branches(self) -> int: ...  # guidance branches of a full call: 1, or 2 with guidance

    def predict(self, queries: Sequence[Query]) -> Sequence[Estimate]: ...


@dataclass(frozen=True, slots=True)
class Problem:
    """One sample to denoise.

    Args:
        schedule: Of the network.
        x: The sample at `grid[0]`, any array type; arithmetic happens in its dtype.
        grid: Times from noise to data, strictly falling, at least two.
        cond: What the backbone wants to know beside x and t; the engine only passes it on.
        seed: Of this sample's own noise stream.
        branches: Guidance branches of a full call.
        budget: Calls after which the rest is forecast, whatever the policy says.
        x0_filter: Applied to every clean estimate, e.g. dynamic thresholding.
    """

    schedule: Schedule
    x: Any
    grid: tuple[float, ...]
    cond: Any = None
    seed: int = 0
    branches: int = 1
    budget: float = INFINITY
    x0_filter: Callable[[Any], Any] | None = None


class Status(Enum):
    """How a run ended."""

    done = "done"
    budget = "The call budget ran out and the rest was forecast. Raise `budget`."
    nonfinite = "The sample became NaN or infinite. Try a smaller tolerance, or float32."


@dataclass(frozen=True, slots=True)
class Result:
    """The sample at the end, the run that led there, and how it ended."""

    x: Any
    run: Run
    status: Status = Status.done


# A Run is answered by a Plan, a Query by an Estimate, a Noise by an array, a Measure by floats.
Flow: TypeAlias = Generator[Run | Query | Noise | Measure, Any, Result]
