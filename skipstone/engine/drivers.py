"""Drivers of the denoising loop: one sample, a batch with a plan per sample, a replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .. import registry
from ..errors import BackboneError, PlanError, SpecError, TraceError
from ..numerics.array import rms, to_floats
from ..numerics.noise import standard_normal
from .contracts import ATTENTION, Attempt, Cached, Plan, Policy, Run
from .flow import MAP_REUSED, flow
from .requests import Backbone, Noise, Problem, Query, Result, ScalarsRequest, Solver, Status

RunCallback = Callable[[int, Run], None]


def denoise(
    backbone: Backbone, problem: Problem, solver: Solver, policy: Policy, watch: RunCallback | None = None
) -> Result:
    """Denoise one sample under a policy."""
    return denoise_many(backbone, [problem], solver, policy, watch)[0]


def denoise_many(
    backbone: Backbone,
    problems: Sequence[Problem],
    solver: Solver,
    policy: Policy | Sequence[Policy],
    watch: RunCallback | None = None,
) -> list[Result]:
    """Denoise several samples together, each by its own plans.

    Estimates wanted at the same moment are computed in one `predict`, whatever their times; a sample that
    needs nothing costs nothing.

    Args:
        backbone: The denoiser.
        problems: One per sample; results come in the same order.
        solver: How steps are made.
        policy: Which steps call the network; one for all or one for each. A solver with a `controller` has
            it put in front.
        watch: Called with (sample index, run) whenever a sample is about to decide: for progress bars.

    Raises:
        PlanError: a policy planned a step that does not lead to the end, or wants another network.
        BackboneError: the backbone answered a different number of estimates than it was asked.
    """
    _validate(problems, backbone)
    if isinstance(policy, Policy):
        policies: list[Policy] = [add_controller(solver, policy)] * len(problems)
    elif len(policy) == len(problems):
        policies = [add_controller(solver, p) for p in policy]
    else:
        raise SpecError(f"Expected one policy, or one for each of {len(problems)} problems, got {len(policy)}.")
    _check_network(policies, backbone)
    return _drive(backbone, problems, solver, policies, watch)


def _check_network(policies: Sequence[Policy], backbone: Backbone) -> None:
    """Raise PlanError for policies of students whose weights the backbone does not have."""
    has, beside = getattr(backbone, "network", ""), getattr(backbone, "student", "")
    if wrong := next((p for p in policies if p.network != has), None):
        raise PlanError(
            f"{registry.spell(wrong)} runs {wrong.network or 'the model itself'}, and this backbone has the network of "
            f"{has or 'the model itself'}. Run it by skipstone compare, which puts the weights in place."
        )
    if wrong := next((p for p in policies if p.student not in ("", beside)), None):
        raise PlanError(
            f"{registry.spell(wrong)} runs {wrong.student} beside the model, and this backbone has "
            f"{beside or 'no student'}. Run it by skipstone compare, which puts the weights in place."
        )


def _drive(
    backbone: Backbone,
    problems: Sequence[Problem],
    solver: Solver,
    policies: Sequence[Policy],
    watch: RunCallback | None,
) -> list[Result]:
    flows = [flow(p, solver, own.needs, own.sites) for p, own in zip(problems, policies, strict=True)]
    num_noises = [0] * len(flows)
    results: dict[int, Result] = {}
    waiting: dict[int, Any] = {}
    inbox: dict[int, Any] = dict.fromkeys(range(len(flows)))
    while inbox:
        for i, sent in inbox.items():
            try:
                waiting[i] = flows[i].send(sent)
            except StopIteration as end:
                waiting.pop(i, None)
                results[i] = end.value
        if runs := {i: r for i, r in waiting.items() if isinstance(r, Run)}:
            inbox = _consult(runs, policies, watch)
        else:
            inbox = answer_requests(waiting, backbone, problems, num_noises)
    return _mark_nonfinite([results[i] for i in range(len(flows))])


def answer_requests(
    waiting: Mapping[int, Any],
    backbone: Backbone,
    problems: Sequence[Problem] | Mapping[int, Problem],
    num_noises: MutableSequence[int] | MutableMapping[int, int],
) -> dict[int, Any]:
    """Answers to one kind of request, the cheapest first, so that queries gather into full batches.

    Args:
        waiting: What flows ask for, by their numbers, decisions left out.
        backbone: The denoiser.
        problems, num_noises: The problem of each flow, and how many noises it was given; these are counted up.

    Raises:
        BackboneError: the backbone answered a different number of estimates than it was asked.
        PlanError: a plan lets a student draw, and the backbone has none.
    """
    if noises := {i: r for i, r in waiting.items() if isinstance(r, Noise)}:
        answers = {}
        for i, request in noises.items():
            answers[i] = standard_normal(problems[i].seed, num_noises[i] + 1, request.like)  # 0 is the initial noise
            num_noises[i] += 1
        return answers
    if measures := {i: r for i, r in waiting.items() if isinstance(r, ScalarsRequest)}:
        floats = iter(to_floats([v for m in measures.values() for v in m.values]))
        return {i: [next(floats) for _ in m.values] for i, m in measures.items()}
    queries = {i: r for i, r in waiting.items() if isinstance(r, Query)}
    if not queries:
        return {}
    if not getattr(backbone, "student", "") and any(query.by_student for query in queries.values()):
        raise PlanError(
            "A plan lets a student draw, and this backbone has none. Run it on the model with the student beside it, "
            "as skipstone compare does."
        )
    estimates = backbone.predict(list(queries.values()))
    if len(estimates) != len(queries):
        raise BackboneError(
            f"{type(backbone).__name__}.predict was asked {len(queries)} queries and answered {len(estimates)}."
        )
    return dict(zip(queries, estimates, strict=True))


def _consult(runs: dict[int, Run], policies: Sequence[Policy], watch: RunCallback | None) -> dict[int, Any]:
    """Plans of all these runs; those that share a policy are consulted together."""
    for i, run in runs.items() if watch else ():
        assert watch is not None
        watch(i, run)
    sharing: dict[int, list[int]] = {}
    for i in runs:
        sharing.setdefault(id(policies[i]), []).append(i)
    answers: dict[int, Any] = {}
    for members in sharing.values():
        asked = [runs[i] for i in members]
        answers |= zip(members, policies[members[0]].consult(asked, [r.proposal() for r in asked]), strict=True)
    return answers


def add_controller(solver: Solver, policy: Policy) -> Policy:
    """Chain the controller that the solver requires, if any, before the policy."""
    if not solver.controller:
        return policy
    controller: Policy = registry.parse("policy", solver.controller)
    return controller | policy


def _validate(problems: Sequence[Problem], backbone: Backbone) -> None:
    for i, p in enumerate(problems):
        if len(p.grid) < 2 or any(a <= b for a, b in zip(p.grid, p.grid[1:], strict=False)):
            raise SpecError(f"Problem {i}: expected a grid of at least two falling times, got {p.grid!r}.")
        if p.branches != backbone.branches:
            raise SpecError(f"Problem {i} counts {p.branches} branches a call, the backbone {backbone.branches}.")


def _mark_nonfinite(results: list[Result]) -> list[Result]:
    sizes = to_floats([rms(r.x) for r in results])
    return [
        r if math.isfinite(size) else replace(r, status=Status.nonfinite)
        for r, size in zip(results, sizes, strict=True)
    ]


def replay(backbone: Backbone, problem: Problem, solver: Solver, run: Run) -> Result:
    """Denoise again exactly as recorded in `run`, whose policy need not be known.

    Raises TraceError when the run was recorded on another grid or stopped before its end.
    """
    if run.grid != problem.grid:
        raise TraceError(
            f"The trace was recorded on {_describe_grid(run.grid)}; this problem has {_describe_grid(problem.grid)}. "
            f"Replay it on the grid it was made with."
        )
    return _drive(backbone, [replace(problem, budget=math.inf)], solver, [ReplayPolicy(run.past)], None)[0]


def _describe_grid(grid: Sequence[float]) -> str:
    return f"a grid of {len(grid) - 1} steps from {grid[0]:g} to {grid[-1]:g}"


@dataclass(frozen=True)
class ReplayPolicy(Policy):
    """The plans of a finished run, one after another."""

    past: tuple[Attempt, ...]
    name: ClassVar[str] = "recorded"

    @property
    def sites(self) -> frozenset[str]:
        cached = (a.plan.evaluate.sites for a in self.past if isinstance(a.plan.evaluate, Cached))
        return frozenset({ATTENTION} if any(MAP_REUSED in a.plan.memo for a in self.past) else ()).union(*cached)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        k = len(run.attempts)
        accept = k == 0 or self.past[k - 1].accepted is not False
        return replace(self.past[k].plan if k < len(self.past) else proposal, accept=accept)

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        return self.plan_batch(runs, proposals)  # unsigned: the plans already say whose they were
