"""The denoising loop, written once, as a coroutine.

It yields a `Run` and is sent a `Plan`; it yields a `Query` and is sent an `Estimate`; a `Noise`, an array; a
`ScalarsRequest`, floats. It calls neither policies nor networks, so everything that denoises is a driver of it. Where
somebody else owns the loop, it also yields a `LatentRequest` and a `StepRequest`, and is sent the sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from .. import registry
from ..errors import PlanError
from ..numerics.array import quiet_arithmetic, rms_each
from ..numerics.finishing import finishing_step
from .contracts import ATTENTION, Attempt, Cached, Draft, Evaluate, Finish, Forecast, Full, Plan, Refine, Run
from .draft import draw_draft
from .refine import NoisePath, compute_mask, make_node_rewriter, refine_region
from .requests import (
    Estimate,
    Flow,
    LatentRequest,
    Node,
    Problem,
    Query,
    Result,
    ScalarsRequest,
    Solver,
    SolverRequest,
    Status,
    Step,
)
from .signals import NormSignal, Signal, StepContext, extrapolate, forecast, signal_key, usable_indices

FREEZE = Forecast(0, "x0")
MAX_ATTEMPTS_PER_STEP = 4  # after so many attempts for each step of its grid,
MAX_EXTRA_ATTEMPTS = 1500  # and so many more, a run is ended
REGION_SHARE = "region"  # memo of a refined step: share of the picture in its mask
MAP_REUSED = "map_kept"  # memo of a refined step whose first call, map and all, the attempt before had paid for
TOLERANCES = ("tol", "rtol")  # settings of policies and solvers that say how large an error may be
HISTORY_LENGTH = 6  # estimates that the timeline remembers; no solver or forecast looks further back


@dataclass
class _Timeline:
    """The estimates of the run so far; the only thing in a flow that grows."""

    nodes: list[Node] = field(default_factory=list)  # all estimates, oldest first
    real: list[Node] = field(default_factory=list)  # those that were calls
    features: dict[str, list[tuple[float, Any]]] = field(default_factory=dict)
    paid_call: Node | None = None  # a call already paid for, at the start of a rejected attempt
    paid_evaluation: Evaluate = field(default_factory=Full)  # how it was made

    def settle(self, made: _StepMade, accept: bool, ends: bool) -> None:
        """Keep what an accepted step asked of the network; of a rejected one, the call at its start."""
        if not accept:
            self.paid_call = next((n for n in made.fresh if n.real and not n.by_student), self.paid_call)
            self.paid_evaluation = Full() if isinstance(made.plan.evaluate, Refine) else made.plan.evaluate
            return
        self.add(made.fresh)
        self.paid_call = None
        if made.refinement is not None and not ends:
            self.apply_refinement(made.refinement.rewrite_node, made.refinement.nodes)

    def add(self, fresh: Sequence[Node]) -> None:
        """Append estimates, and drop those that are too old to be used."""
        self.nodes = [*self.nodes, *fresh][-HISTORY_LENGTH:]
        for node in fresh:
            if node.real:
                self.real = [*self.real, node][-HISTORY_LENGTH:]
                for site, value in node.estimate.features.items():
                    if site != ATTENTION:
                        self.features[site] = [*self.features.get(site, []), (node.t, value)][-HISTORY_LENGTH:]

    def apply_refinement(self, rewrite_node: Callable[[Node], Node], again: Sequence[Node]) -> None:
        """Rewrite past estimates after a refinement; site features come from the refinement's calls."""
        self.nodes, self.real = ([rewrite_node(n) for n in nodes] for nodes in (self.nodes, self.real))
        past, self.features = (self.nodes, self.real), {}
        self.add(again)
        self.nodes, self.real = past


@dataclass(frozen=True, slots=True)
class _RefineResult:
    """What a refinement asked of the network, what it makes of the past, and its region's share of the picture."""

    nodes: list[Node]
    rewrite_node: Callable[[Node], Node]
    share: float


@dataclass(frozen=True, slots=True)
class _StepMade:
    """A step that was computed, for the pending attempt.

    Args:
        plan: As it was carried out.
        step: Where it went.
        fresh: The estimates that it asked for, forecasts included.
        refinement: What a plan to refine added.
    """

    plan: Plan
    step: Step
    fresh: list[Node]
    refinement: _RefineResult | None = None

    @property
    def cost(self) -> float:
        """Cost in calls."""
        nodes: list[Node] = [*self.fresh, *(self.refinement.nodes if self.refinement else ())]
        return sum(n.estimate.cost for n in nodes if n.real)


def flow(
    problem: Problem,
    solver: Solver,
    needs: frozenset[str] = frozenset(),
    sites: frozenset[str] = frozenset(),
) -> Flow:
    """One run, from noise to data. `needs` are the signals to compute, `sites` the outputs to keep."""
    schedule, grid, x = problem.schedule, problem.grid, problem.x
    signals = _find_signals(needs)
    timeline = _Timeline()
    made: _StepMade | None = None
    rejected: _StepMade | None = None
    clocks = tuple(schedule.clock(t) for t in grid)
    run = Run(
        grid[0], grid[-1], grid, clocks, solver.stages, problem.branches, prompt=problem.prompt, text=problem.text
    )
    status = Status.done

    while True:
        plan: Plan = yield run
        if run.cost >= problem.budget:
            plan = Plan(Forecast(), run.t_end, True, (*plan.why, "budget"))
            status = Status.budget

        if run.pending is not None and made is not None:
            x = made.step.x if plan.accept else x
            rejected = None if plan.accept else made
            timeline.settle(made, plan.accept, ends=run.pending.t_next <= run.t_end)
            run = _settle(run, run.pending, plan.accept)
        if run.t <= run.t_end:
            return Result(x, run, status)
        _check(plan, run, solver)

        made = yield from _make_step(x, run, plan, problem, solver, timeline, sites)
        start = made.fresh[0].x if made.fresh else x  # a pipeline may have changed the sample since the last step
        times, nodes = (run.t, plan.t_next), (timeline.real, timeline.nodes, made.fresh)
        context = StepContext(schedule, start, *times, made.step, *nodes, problem.feature_extractors)
        measured = yield from _measure(signals, context, _known_signals(run, made, rejected))
        run = _advance_run(run, run.t, run.past, Attempt(run.t, plan.t_next, made.plan, made.cost, measured))


def _make_step(
    x: Any, run: Run, plan: Plan, problem: Problem, solver: Solver, timeline: _Timeline, sites: frozenset[str]
) -> Generator[SolverRequest | ScalarsRequest, Any, _StepMade]:
    """Carry out a plan: one step from x, its prediction obtained as the plan says, or fully where that cannot be."""
    evaluate = _feasible_evaluation(plan.evaluate, timeline)
    plan = plan if evaluate is plan.evaluate else replace(plan, evaluate=evaluate)
    if isinstance(evaluate, Finish):
        advance = _run_finishing_step(x, run.t, plan.t_next, evaluate, problem, timeline.nodes, solver.hosted)
    elif isinstance(evaluate, Draft):
        advance = draw_draft(x, run.t, plan.t_next, evaluate, problem.schedule)
    else:
        frozen = evaluate == FREEZE and plan.t_next <= run.t_end
        advance = solver.step(x, run.t, plan.t_next, problem.schedule, () if frozen else timeline.nodes)
    if isinstance(evaluate, Refine):
        step, fresh, refinement = yield from _run_refined_step(
            advance, evaluate, plan.t_next, problem, solver, timeline, sites
        )
        return _StepMade(replace(plan, memo=_refine_memo(plan, fresh, refinement)), step, fresh, refinement)
    step, fresh = yield from _run_step(advance, evaluate, problem, timeline, sites)
    return _StepMade(plan, step, fresh)


def _settle(run: Run, pending: Attempt, accept: bool) -> Run:
    """The run once its pending attempt has been accepted or rejected."""
    t = pending.t_next if accept else run.t
    settled = Attempt(pending.t, pending.t_next, pending.plan, pending.cost, pending.signals, accept)
    return _advance_run(run, t, (*run.past, settled), None)


def _advance_run(run: Run, t: float, past: tuple[Attempt, ...], pending: Attempt | None) -> Run:
    """The run a decision later; `dataclasses.replace` takes three times as long."""
    return Run(t, run.t_end, run.grid, run.clocks, run.stages, run.branches, past, pending, run.prompt, run.text)


def _check(plan: Plan, run: Run, solver: Solver) -> None:
    by = ", ".join(plan.why) or "nobody"
    if len(run.past) >= MAX_ATTEMPTS_PER_STEP * (len(run.grid) - 1) + MAX_EXTRA_ATTEMPTS:
        raise _endless_error(run, solver)
    if not run.t_end <= plan.t_next < run.t:
        raise PlanError(
            f"A plan must land between here (t={run.t:g}) and the end (t={run.t_end:g}), "
            f"but got t_next={plan.t_next:g}. It was amended by: {by}."
        )
    if isinstance(plan.evaluate, Refine) and solver.hosted:
        raise PlanError(f"Refining makes calls that a pipeline's own loop does not know of. It was planned by: {by}.")
    if isinstance(plan.evaluate, Draft) and (solver.hosted or plan.t_next > run.t_end or plan.evaluate.steps < 1):
        raise PlanError(
            f"A student draws in one step or more to the end (t={run.t_end:g}), outside of a pipeline's own loop, but "
            f"got {plan.evaluate!r} and t_next={plan.t_next:g}. It was planned by: {by}."
        )


def _endless_error(run: Run, solver: Solver) -> PlanError:
    """The error of a run that does not come to its end: who planned it, and the setting that would help."""
    names = list(dict.fromkeys(name for a in run.past[-MAX_EXTRA_ATTEMPTS:] for name in a.plan.why))
    known = [registry.find_class("policy", name) for name in names if name in registry.names("policy")]
    owners: list[Any] = [solver] if solver.controller else known
    settings = [f"{o.name}({f.name}={f.default:g})" for o in owners for f in fields(o) if f.name in TOLERANCES]
    advice = f"Allow a larger error, e.g. {' or '.join(settings)}." if settings else "A step must be accepted at last."
    return PlanError(
        f"{len(run.past):,} attempts on a grid of {len(run.grid) - 1} steps and still at t={run.t:g}: steps are too "
        f"short or are rejected again and again. They were planned by: {', '.join(names) or 'nobody'}. {advice}"
    )


def _feasible_evaluation(evaluate: Evaluate, timeline: _Timeline) -> Evaluate:
    """The planned evaluation, or a full call if there is nothing yet to forecast from."""
    if isinstance(evaluate, Forecast):
        return evaluate if timeline.real else Full()
    if isinstance(evaluate, Cached):
        return evaluate if evaluate.sites & timeline.features.keys() else Full()
    if isinstance(evaluate, Refine):
        return evaluate if evaluate.steps > 0 else Full()
    return evaluate


def _run_step(
    advance: Generator[SolverRequest, Any, Step],
    evaluate: Evaluate,
    problem: Problem,
    timeline: _Timeline,
    sites: frozenset[str],
) -> Generator[SolverRequest, Any, tuple[Step, list[Node]]]:
    """Run one step of a solver, answering its queries as the plan says."""
    fresh: list[Node] = []
    answer: Any = None
    while True:
        try:
            request = advance.send(answer)
        except StopIteration as end:
            return end.value, fresh
        if isinstance(request, LatentRequest):
            request = LatentRequest(
                request.x, request.t, evaluate, _forecast_sites(evaluate, timeline, problem, request.t)
            )
        if not isinstance(request, Query):
            answer = yield request
            continue
        free = isinstance(evaluate, Forecast)
        known = _find_paid_call(timeline, sites)
        if isinstance(evaluate, Forecast):
            answer = forecast(timeline.real, evaluate, problem.schedule, request.x, request.t, timeline.nodes)
        elif (
            known is not None
            and not request.by_student
            and known.x is request.x
            and known.t == request.t
            and evaluate in (Full(), timeline.paid_evaluation)
        ):
            answer = replace(known.estimate, cost=0.0)  # paid for by the rejected attempt
        else:
            given = _forecast_sites(evaluate, timeline, problem, request.t)
            answer = yield Query(request.x, request.t, problem.cond, given, sites, request.by_student)
        if problem.x0_filter is not None:
            answer = Estimate(problem.x0_filter(answer.x0), answer.cost, features=answer.features)
        fresh.append(Node(request.t, request.x, answer, not free, request.by_student))


def _find_paid_call(timeline: _Timeline, sites: frozenset[str]) -> Node | None:
    """A call already paid for, unless it lacks the map of attention that is wanted now."""
    lacks = (
        timeline.paid_call is not None and ATTENTION in sites and ATTENTION not in timeline.paid_call.estimate.features
    )
    return None if lacks else timeline.paid_call


def _run_refined_step(
    advance: Generator[SolverRequest, Any, Step],
    how: Refine,
    t_next: float,
    problem: Problem,
    solver: Solver,
    timeline: _Timeline,
    sites: frozenset[str],
) -> Generator[SolverRequest | ScalarsRequest, Any, tuple[Step, list[Node], _RefineResult | None]]:
    """An ordinary step, and the region of where it led made anew; None where there is no region."""
    step, fresh = yield from _run_step(advance, Full(), problem, timeline, sites | {ATTENTION})
    first, schedule = fresh[0], problem.schedule
    mask = compute_mask(first, how)
    [share] = yield ScalarsRequest((mask.mean(),))
    if share == 0.0:
        return step, fresh, None
    outside_path = NoisePath.through(step.x, t_next, first, schedule, solver.stochastic)
    going = refine_region(step.x, t_next, outside_path, mask, how, schedule)
    made, nodes = yield from _run_step(going, Full(), problem, timeline, sites)
    inside = NoisePath.through(made.x, t_next, nodes[-1], schedule)
    return Step(made.x, step.error), fresh, _RefineResult(nodes, make_node_rewriter(mask, inside, schedule), share)


def _refine_memo(plan: Plan, fresh: Sequence[Node], refine_result: _RefineResult | None) -> dict[str, float]:
    """The memo of a refined step, from which a replay knows whether calls had to bring their maps."""
    free = {MAP_REUSED: 1.0} if fresh[0].estimate.cost == 0.0 else {}
    return {**plan.memo, REGION_SHARE: refine_result.share if refine_result else 0.0, **free}


def _forecast_sites(evaluate: Evaluate, timeline: _Timeline, problem: Problem, t: float) -> dict[str, Any]:
    """Forecasts of the sites that a `Cached` plan does not want computed."""
    if not isinstance(evaluate, Cached):
        return {}
    return {
        site: extrapolate(timeline.features[site], evaluate.order, evaluate.clock, problem.schedule, t)
        for site in sorted(evaluate.sites & timeline.features.keys())
    }


def _run_finishing_step(
    x: Any, t: float, t_next: float, how: Finish, problem: Problem, past: Sequence[Node], hosted: bool
) -> Generator[SolverRequest, Any, Step]:
    """One long step on the run's own clean estimates."""
    schedule = problem.schedule
    if hosted:
        x = yield LatentRequest(x, t)
    estimate: Estimate = yield Query(x, t)
    starts = problem.grid if hosted else None  # a scheduler's second calls lie off the solution, by an order or two
    kept = [(n.t, n.estimate.x0) for n in past if n.t > t and (starts is None or n.t in starts)]
    nodes = [*kept, (t, estimate.x0)]
    usable = [nodes[i] for i in usable_indices([s for s, _ in nodes], "logsnr", schedule)][-how.order :]
    return Step(finishing_step(x, t, t_next, schedule, usable))


@lru_cache(maxsize=1024)
def _find_signals(needs: frozenset[str]) -> Mapping[str, Signal]:
    """The signals of these specs."""
    return {spec: registry.parse("signal", spec) for spec in sorted(needs)}


def _known_signals(run: Run, made: _StepMade, rejected: _StepMade | None) -> Mapping[str, float]:
    """Signals of the attempt that was rejected, where this one begins with the same call, which says the same of it."""
    if rejected is None or not made.fresh or not rejected.fresh or made.refinement or rejected.refinement:
        return {}
    now, before = made.fresh, rejected.fresh
    same = len(now) == len(before) == 1 and now[0].real and before[0].real and now[0].x is before[0].x
    return run.past[-1].signals if same and now[0].estimate.x0 is before[0].estimate.x0 else {}


def _measure(
    signals: Mapping[str, Signal], context: StepContext, known: Mapping[str, float]
) -> Generator[ScalarsRequest, Any, dict[str, float]]:
    """The declared signals of a step, by one request; one of several values becomes `spec[0]`, `spec[1]` ...

    Args:
        signals: By their specs.
        context: The step.
        known: Those of an attempt that began with the same call.
    """
    measured = _compute_signals({spec: one for spec, one in signals.items() if not (known and one.of_call)}, context)
    floats = (yield ScalarsRequest(tuple(measured.values()))) if measured else ()
    found = dict(zip(measured, floats, strict=True))
    if not known:
        return found
    kept = {spec: known[spec] for spec, one in signals.items() if one.of_call and spec in known}
    return {spec: {**found, **kept}[spec] for spec in (*(s for s in signals if s in kept or s in found), *found)}


def _compute_signals(signals: Mapping[str, Signal], context: StepContext) -> dict[str, Any]:
    """Signals as 0-d arrays; the norms that several are made of are computed together."""
    known: dict[str, Any] = {}
    with quiet_arithmetic(context.x):
        norms = {spec: one.norms(context) for spec, one in signals.items() if isinstance(one, NormSignal)}
        values = iter(rms_each([array for found in norms.values() if found for array in found.arrays], context.x))
        for spec, signal in signals.items():
            if spec in norms:
                found = norms[spec]
                value = None if found is None else found.combine(*itertools.islice(values, len(found.arrays)))
            else:
                value = signal.measure(context)
            if value is not None and len(getattr(value, "shape", ())) == 1:
                known |= {signal_key(spec, k): number for k, number in enumerate(value)}
            elif value is not None:
                known[spec] = value
    return known
