"""One trajectory of an adapted pipeline: the engine's flows, one per sample, driven by the pipeline's own loop.

The pipeline calls its denoiser, then its scheduler. Each flow is ahead of it by one decision: when the denoiser is
called, every flow has yielded a `LatentRequest` that says what it wants computed, which the router follows; when the
scheduler steps, the flows are sent the latent and the estimate, their forecasts take the place of outputs that were not
computed, and what the scheduler makes of it answers their `StepRequest`. The scheduler always steps the whole batch, so
the random stream is that of the bare pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...engine.contracts import Finish, Forecast, Full, Plan, Policy, Refine, Run
from ...engine.flow import FREEZE, flow
from ...engine.requests import Estimate, Flow, LatentRequest, Problem, Query, Result, ScalarsRequest, StepRequest
from ...errors import GuestError
from ...numerics.array import to_floats
from ...numerics.parametrize import PREDICTION_TYPES
from ...numerics.schedule import Schedule
from ...solvers.ddim import ddim_update
from .batch_router import BatchRouter, RowRequest
from .hosted_scheduler import HostSchedule, SchedulerSolver
from .prompt_state import mean_prompt_states
from .rows import BatchLayout
from .sample_path import SamplePath
from .scheduler_specs import Trajectory

NO_ROWS = RowRequest(compute=False)


@dataclass
class SampleState:
    """State of one sample: its flow, the flow's pending request, and the x0 that is output while the flow waits."""

    flow: Flow
    request: Any
    run: Run
    held_x0: Any = None  # clean estimate that the outputs mean while the sample waits
    resume_call: int = 0  # call at which the flow goes on; the scheduler is led there by `held_x0`
    landing_latent: Any = None  # where the sample is to be put when the pipeline gets there, in engine coordinates
    path: SamplePath | None = None  # where it was at the pipeline's times, for those who look at it while it waits

    def send(self, answer: Any) -> Any:
        """Send an answer to the flow; store its next request, or its result."""
        try:
            self.request = self.flow.send(answer)
        except StopIteration as end:
            self.request = end.value
        if isinstance(self.request, Run):
            self.run = self.request
        elif isinstance(self.request, Result):
            self.run = self.request.run
        return self.request


class StepChecks(Protocol):
    """What is checked in every step of a pipeline that was taken over in its first one."""

    left: torch.Tensor | None  # the sample as the last step left it

    def check(self, call: int, output: torch.Tensor, x: torch.Tensor) -> None:
        """Raise GuestError where a step is not as it was taken to be."""


class BatchDriver:
    """The flows of all samples and where the pipeline has taken them.

    Args:
        trajectory: What the scheduler is about to do.
        layout: Which rows of its batch are whose.
        router: Of the denoiser, after its first iteration, whose arguments it still has.
        policy: Which calls to make.
        base: The schedule between the scheduler's own times.
        switches: Times at which another network takes over, whose first call is never skipped.
        texts: The prompt of each sample, "" where it is not known; () where none is.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        layout: BatchLayout,
        router: BatchRouter,
        policy: Policy,
        base: Schedule,
        switches: Sequence[float] = (),
        texts: Sequence[str] = (),
    ) -> None:
        self.trajectory, self.layout, self.router, self.policy = trajectory, layout, router, policy
        self.switches = switches
        self.scheduler_solver = SchedulerSolver.from_trajectory(trajectory)
        self.schedule = HostSchedule.from_trajectory(trajectory, base)
        self.prompts = mean_prompt_states(router)
        self.texts = list(texts) or [""] * layout.samples
        self.shape: torch.Size | None = None
        self.checks: StepChecks | None = None  # under a takeover
        self.call = 0  # index of the next call of the scheduler
        self.states: list[SampleState] = []

    def begin(self, x: torch.Tensor) -> None:
        """Start a flow for each sample of the first batch, and have it decide."""
        for s in range(self.layout.samples):
            start = self.engine(self.layout.take(x, s), 0)
            problem = Problem(
                self.schedule,
                start,
                self.scheduler_solver.grid,
                branches=self.router.branches,
                prompt=self.prompts[s],
                text=self.texts[s],
            )
            sample_flow = flow(problem, self.scheduler_solver, self.policy.needs, self.policy.sites)
            run = next(sample_flow)
            assert isinstance(run, Run)
            self.states.append(SampleState(sample_flow, run, run))
        self._decide(self.states)  # the first call is made already, whatever they want

    @property
    def can_resume(self) -> bool:
        """Whether the pipeline's own loop could go on from here: the samples are on their way, between two steps."""
        between = self.call in self.scheduler_solver.starts.values()
        return between and all(state.path is not None for state in self.states)

    @property
    def finished(self) -> bool:
        """Whether the scheduler has made its last call."""
        return self.call >= len(self.trajectory.calls)

    # -- before the step -------------------------------------------------------------------------

    def before_step(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Send the samples and the network's outputs to the flows; return the output for the scheduler to use."""
        if self.finished:
            raise GuestError(
                f"{len(self.trajectory.calls)} calls of the scheduler were announced by its timesteps and one more was "
                f"made. Set the timesteps before the loop, by scheduler.set_timesteps."
            )
        self._same_shape(x)
        if self.checks is not None and self.call > 0:
            self.checks.check(self.call, output, x)
        edited = output
        for s, state in enumerate(self.states):
            own = (self.layout.take(batch, s).clone() for batch in (output, x))  # a view would keep the batch alive
            said = self._own_output(s, state, *own)
            if said is not None:
                edited = edited.clone() if edited is output else edited
                self.layout.put(edited, s, said.to(output.dtype))
        return edited

    def _same_shape(self, x: torch.Tensor) -> None:
        if self.shape and x.shape != self.shape:
            raise GuestError(
                f"The sample changed its shape from {tuple(self.shape)} to {tuple(x.shape)} within a run: "
                f"forecasts need a constant shape. This pipeline cannot be adapted."
            )
        self.shape = x.shape

    def _own_output(self, s: int, state: SampleState, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
        """The output to use for a sample in place of the network's; None to keep the network's."""
        k = self.call
        if k < state.resume_call:
            held = state.held_x0 if state.path is None else state.path.at(self.trajectory.calls[k].t).x0
            return self.trajectory.output(k, held, x)
        planned = state.request
        assert isinstance(planned, LatentRequest)
        request = state.send(self.engine(x, k))
        real = isinstance(request, Query)
        if isinstance(request, Query):
            request = state.send(self._estimate(s, request, output, x))
        if not isinstance(request, StepRequest):  # the flow made the step itself
            state.held_x0 = self.trajectory.x0(k, output, x)
            self._wait_for_pipeline(state)
            return None
        estimate = request.estimate
        natural = request.t_next == self._time(k + 1)
        frozen = planned.evaluate == FREEZE and request.t_next <= self.scheduler_solver.end
        if frozen or not natural:
            state.held_x0 = estimate.x0
            state.send(ddim_update(request.x, estimate.x0, request.t, request.t_next, self.schedule))
            self._wait_for_pipeline(state)
        if real:
            return None
        same = estimate.prediction == self.trajectory.prediction and estimate.output is not None
        return estimate.output if same and not frozen else self.trajectory.output(k, estimate.x0, x)

    def _estimate(self, s: int, query: Query, output: torch.Tensor, x: torch.Tensor) -> Estimate:
        """The network's estimate of a sample, guidance included."""
        fresh = self.router.get_new_outputs(s)
        x0 = self.trajectory.x0(self.call, output, x)
        cost = len(fresh) / self.router.branches
        known = {branch: value for branch, value in fresh.items() if branch in query.wanted_sites}
        kind = self.trajectory.prediction
        if kind not in PREDICTION_TYPES or kind == "x0":  # as the scheduler clips it
            return Estimate(x0, cost, features=known)
        axis = 0 if self.layout.width == 1 else 1
        mean = output.narrow(axis, 0, x.shape[axis])  # the rest is a learned variance
        return Estimate(x0, cost, mean, kind, known)  # type: ignore[arg-type]  # one of VIEWS

    def _wait_for_pipeline(self, state: SampleState) -> None:
        """A sample that moves without the scheduler decides at once, and then waits for the pipeline to catch up."""
        self._decide([state])
        request = state.request
        t = request.t if isinstance(request, LatentRequest) else self.scheduler_solver.end
        state.landing_latent = request.x
        state.resume_call = self.scheduler_solver.starts[t]

    # -- after the step --------------------------------------------------------------------------

    def after_step(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Tell the flows where the scheduler went and have them decide.

        Returns:
            The batch, with samples that moved by themselves put in their places, and those of them that are done.
        """
        self.call += 1
        moved = x
        ended: dict[int, torch.Tensor] = {}
        for s, state in enumerate(self.states):
            on_way = state.path is not None and self.call < state.resume_call
            if on_way or (state.landing_latent is not None and state.resume_call == self.call):
                place = state.path.at(self._time(self.call)).x if state.path and on_way else state.landing_latent
                value = (place * (1.0 / self._scale(self.call))).to(x.dtype)
                moved = moved.clone() if moved is x else moved
                self.layout.put(moved, s, value)
                state.landing_latent = state.landing_latent if on_way else None
                if self.finished:
                    ended[s] = value
            elif isinstance(state.request, StepRequest):
                state.send(self.engine(self.layout.take(x, s), self.call))
        self._advance_flows()
        if self.checks is not None:
            self.checks.left = moved
        return moved, ended

    def _advance_flows(self) -> None:
        """Bring every flow to its next `LatentRequest`, and hand the router what they want."""
        self._decide([state for state in self.states if not isinstance(state.request, LatentRequest | Result)])
        self.router.begin_iteration([self._row_request(state) for state in self.states])

    def _row_request(self, state: SampleState) -> RowRequest:
        request = state.request
        if (
            self.call < state.resume_call
            or not isinstance(request, LatentRequest)
            or isinstance(request.evaluate, Forecast)
        ):
            return NO_ROWS
        return RowRequest(known_outputs=request.known_outputs)

    def _decide(self, states: Sequence[SampleState]) -> None:
        """Measure, consult the policy and send the plans, until each of these flows asks for its latent or is done."""
        states = list(states)
        if measuring := [state for state in states if isinstance(state.request, ScalarsRequest)]:
            floats = iter(to_floats([v for state in measuring for v in state.request.values]))
            for state in measuring:
                state.send([next(floats) for _ in state.request.values])
        if deciding := [state for state in states if isinstance(state.request, Run)]:
            runs = [state.run for state in deciding]
            plans = self.policy.consult(runs, [run.proposal() for run in runs])
            for state, plan in zip(deciding, self._check_plans(runs, plans), strict=True):
                state.send(plan)

    def _check_plans(self, runs: Sequence[Run], plans: Sequence[Plan]) -> list[Plan]:
        """Convert plans to ones that this pipeline can follow. Raises GuestError where it cannot."""
        for run, plan in zip(runs, plans, strict=True):
            who = ", ".join(plan.why) or type(self.policy).__name__
            if not plan.accept:
                raise GuestError(
                    f"{who} rejects steps, which a pipeline's scheduler cannot take back. Let Skipstone take the "
                    f"loop over: adapt(pipe, policy, solver='dpm_adaptive')."
                )
            if isinstance(plan.evaluate, Refine):
                raise GuestError(
                    f"{who} refines a region, by calls between the steps of the scheduler and with a map of attention "
                    f"that a pipeline does not give. Leave it out; models of Pebble's format can be refined by "
                    f"skipstone's own loop: Pebble.load(folder) and denoise."
                )
            if run.next_start > run.t_end and plan.t_next not in self.scheduler_solver.starts:
                raise GuestError(
                    f"{who} lands at t={plan.t_next:g}, between the steps of this scheduler. Let Skipstone take the "
                    f"loop over: adapt(pipe, policy, solver='dpm_adaptive'); or try early_stop, which lands on steps."
                )
        plans = [self._call_at_switch(run, plan) for run, plan in zip(runs, plans, strict=True)]
        if (
            self.router.all_or_none
            and any(p.evaluate == Full() for p in plans)
            and any(p.evaluate != Full() for p in plans)
        ):
            return [
                Plan(Full(), r.proposal().t_next, True, (*p.why, "whole")) for r, p in zip(runs, plans, strict=True)
            ]
        return plans

    def _call_at_switch(self, run: Run, plan: Plan) -> Plan:
        """A plan with a call where another network takes over."""
        before = run.pending.t if run.pending else run.next_start
        if any(run.next_start < t <= before for t in self.switches) and not isinstance(plan.evaluate, Full | Finish):
            return Plan(Full(), run.proposal().t_next, True, (*plan.why, "switch"))
        return plan

    # -- coordinates -----------------------------------------------------------------------------

    def _scale(self, call: int) -> float:
        calls = self.trajectory.calls
        return calls[call].scale if call < len(calls) else self.trajectory.end.scale

    def engine(self, x: torch.Tensor, call: int) -> torch.Tensor:
        """A sample of the pipeline, at a call, in engine coordinates."""
        scale = self._scale(call)
        return x if scale == 1.0 else x * scale

    def _time(self, call: int) -> float:
        calls = self.trajectory.calls
        return calls[call].t if call < len(calls) else self.trajectory.end.t
