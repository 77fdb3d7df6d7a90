"""The denoising loop, written once, as a coroutine.

It yields a `Run` and is sent a `Plan`; it yields a `Query` and is sent an `Estimate`; a `Noise`, an array;
a `Measure`, floats. It calls neither policies nor networks, so everything that denoises is a driver of it. Where
somebody else owns the loop, it also asks for the `Latent` and for its `Advance`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import registry
from ..errors import PlanError
from ..numerics.finishing import finishing_step
from .contracts import Attempt, Cached, Evaluate, Finish, Forecast, Full, Plan, Run
from .requests import Asked, Estimate, Flow, Latent, Measure, Node, Problem, Query, Result, Solver, Status, Step
from .signals import Moment, extrapolate, forecast, on_clock

FREEZE = Forecast(0, "x0")
PATIENCE = 64  # attempts per step of the grid after which a run counts as stuck
KEEP = 6  # estimates that the timeline remembers; no solver or forecast looks further back


@dataclass
class _Timeline:
    """What the run has been told so far; the only thing in a flow that grows."""

    nodes: list[Node] = field(default_factory=list)  # all estimates, oldest first
    real: list[Node] = field(default_factory=list)  # those that were calls
    features: dict[str, list[tuple[float, Any]]] = field(default_factory=dict)
    known: Node | None = None  # a call already paid for, at the place of a rejected attempt
    paid: Evaluate = field(default_factory=Full)  # how it was made

    def add(self, fresh: Sequence[Node]) -> None:
        self.nodes = [*self.nodes, *fresh][-KEEP:]
        for node in fresh:
            if node.real:
                self.real = [*self.real, node][-KEEP:]
                for site, value in node.estimate.features.items():
                    self.features[site] = [*self.features.get(site, []), (node.t, value)][-KEEP:]


def flow(
    problem: Problem,
    solver: Solver,
    needs: frozenset[str] = frozenset(),
    sites: frozenset[str] = frozenset(),
) -> Flow:
    """One run, from noise to data. `needs` are the signals to compute, `sites` the outputs to keep."""
    schedule, x, candidate = problem.schedule, problem.x, problem.x
    signals = {spec: registry.parse("signal", spec) for spec in sorted(needs)}
    line, fresh = _Timeline(), list[Node]()
    clocks = tuple(schedule.clock(t) for t in problem.grid)
    run = Run(
        problem.grid[0], problem.grid[-1], problem.grid, clocks, solver.stages, problem.branches, prompt=problem.prompt
    )
    status = Status.done

    while True:
        plan: Plan = yield run
        if run.cost >= problem.budget:
            plan = Plan(Forecast(), run.t_end, True, (*plan.why, "budget"))
            status = Status.budget

        if run.pending is not None:  # settle the pending attempt
            if plan.accept:
                x = candidate
                line.add(fresh)
                line.known = None
            else:
                line.known = next((n for n in fresh if n.real), line.known)
                line.paid = run.pending.plan.evaluate
            run = _settled(run, run.pending, plan.accept)
        if run.t <= run.t_end:
            return Result(x, run, status)
        _check(plan, run)

        evaluate = _possible(plan.evaluate, line)
        if isinstance(evaluate, Finish):
            advance = _finishing_step(x, run.t, plan.t_next, evaluate, problem, line.nodes, solver.hosted)
        else:
            frozen = evaluate == FREEZE and plan.t_next <= run.t_end
            history = () if frozen else line.nodes
            advance = solver.step(x, run.t, plan.t_next, schedule, history)
        step, fresh = yield from _attempt(advance, evaluate, problem, line, sites)

        candidate = step.x
        start = fresh[0].x if fresh else x  # a host may have moved the sample since the last step
        moment = Moment(schedule, start, run.t, plan.t_next, step, line.real, line.nodes, fresh)
        measured = yield from _measure(signals, moment)
        cost = sum(n.estimate.cost for n in fresh if n.real)
        plan = plan if evaluate is plan.evaluate else replace(plan, evaluate=evaluate)
        pending = Attempt(run.t, plan.t_next, plan, cost, measured)
        run = replace(run, pending=pending)


def _settled(run: Run, pending: Attempt, accept: bool) -> Run:
    """The run once its pending attempt has been accepted or rejected."""
    t = pending.t_next if accept else run.t
    settled = Attempt(pending.t, pending.t_next, pending.plan, pending.cost, pending.signals, accept)
    return replace(run, t=t, past=(*run.past, settled), pending=None)


def _check(plan: Plan, run: Run) -> None:
    by = ", ".join(plan.why) or "nobody"
    if len(run.past) > PATIENCE * len(run.grid):
        raise PlanError(
            f"{len(run.past)} attempts on a grid of {len(run.grid) - 1} steps and still at t={run.t:g}: "
            f"the policy rejects for ever. The last plan was amended by: {by}."
        )
    if not run.t_end <= plan.t_next < run.t:
        raise PlanError(
            f"A plan must land between here (t={run.t:g}) and the end (t={run.t_end:g}), "
            f"but got t_next={plan.t_next:g}. It was amended by: {by}."
        )


def _possible(evaluate: Evaluate, line: _Timeline) -> Evaluate:
    """What was planned, or a full call where there is nothing yet to forecast from."""
    if isinstance(evaluate, Forecast):
        return evaluate if line.real else Full()
    if isinstance(evaluate, Cached):
        return evaluate if evaluate.sites & line.features.keys() else Full()
    return evaluate


def _attempt(
    advance: Generator[Asked, Any, Step],
    evaluate: Evaluate,
    problem: Problem,
    line: _Timeline,
    sites: frozenset[str],
) -> Generator[Asked, Any, tuple[Step, list[Node]]]:
    """Run one step of a solver, answering its queries as the plan says."""
    fresh: list[Node] = []
    answer: Any = None
    while True:
        try:
            request = advance.send(answer)
        except StopIteration as end:
            return end.value, fresh
        if isinstance(request, Latent):
            request = Latent(request.x, request.t, evaluate, _given(evaluate, line, problem, request.t))
        if not isinstance(request, Query):
            answer = yield request
            continue
        free = isinstance(evaluate, Forecast)
        known = line.known
        if isinstance(evaluate, Forecast):
            answer = forecast(line.real, evaluate, problem.schedule, request.x, request.t, line.nodes)
        elif known is not None and known.x is request.x and known.t == request.t and evaluate in (Full(), line.paid):
            answer = replace(known.estimate, cost=0.0)  # paid for by the rejected attempt
        else:
            given = _given(evaluate, line, problem, request.t)
            answer = yield Query(request.x, request.t, problem.cond, given, sites)
        if problem.x0_filter is not None:
            answer = Estimate(problem.x0_filter(answer.x0), answer.cost, features=answer.features)
        fresh.append(Node(request.t, request.x, answer, not free))


def _given(evaluate: Evaluate, line: _Timeline, problem: Problem, t: float) -> dict[str, Any]:
    """Forecasts of the sites that a `Cached` plan does not want computed."""
    if not isinstance(evaluate, Cached):
        return {}
    return {
        site: extrapolate(line.features[site], evaluate.order, evaluate.clock, problem.schedule, t)
        for site in sorted(evaluate.sites & line.features.keys())
    }


def _finishing_step(
    x: Any, t: float, t_next: float, how: Finish, problem: Problem, past: Sequence[Node], hosted: bool
) -> Generator[Asked, Any, Step]:
    """One long step on the run's own clean estimates."""
    schedule = problem.schedule
    if hosted:
        x = yield Latent(x, t)
    estimate: Estimate = yield Query(x, t)
    starts = problem.grid if hosted else None  # a host's second calls lie off the solution, by an order or two
    kept = [(n.t, n.estimate.x0) for n in past if n.t > t and (starts is None or n.t in starts)]
    nodes = [*kept, (t, estimate.x0)]
    usable = [nodes[i] for i in on_clock([s for s, _ in nodes], "logsnr", schedule)][-how.order :]
    return Step(finishing_step(x, t, t_next, schedule, usable))


def _measure(signals: dict[str, Any], moment: Moment) -> Generator[Measure, Any, dict[str, float]]:
    """The declared signals of a step, by one request."""
    values = {spec: signal.measure(moment) for spec, signal in signals.items()}
    known = {spec: value for spec, value in values.items() if value is not None}
    if not known:
        return {}
    floats = yield Measure(tuple(known.values()))
    return dict(zip(known, floats, strict=True))
