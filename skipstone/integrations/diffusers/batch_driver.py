"""One trajectory of an adapted pipeline: the engine's flows, one per sample, driven by the pipeline's own loop.

The pipeline calls its denoiser, then its scheduler. Each flow is ahead of it by one decision: when the denoiser is
called, every flow has asked for the `Latent` there and said what it wants computed (the gate obeys); when the scheduler
steps, the flows are told the latent and the estimate, their forecasts take the place of outputs that were not computed,
and what the scheduler makes of it answers their `Advance`. The scheduler always steps the whole batch, so the random
stream is that of the bare pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.contracts import Finish, Forecast, Full, Plan, Policy, Refine, Run
from ...engine.flow import FREEZE, flow
from ...engine.requests import Advance, Estimate, Flow, Latent, Measure, Problem, Query, Result
from ...errors import GuestError
from ...numerics.array import to_floats
from ...numerics.schedule import Schedule
from ...solvers.ddim import ddim_update
from .batch_router import Gate, Wish
from .hosted_scheduler import Hosted, HostSchedule
from .prompt_state import prompts
from .rows import Layout
from .scheduler_specs import Trajectory

VIEWS = ("eps", "x0", "v", "flow")
NOTHING = Wish(compute=False)


@dataclass
class Line:
    """One sample: its flow, what the flow waits for, and the estimate that stands in while it has nothing to do."""

    flow: Flow
    request: Any
    run: Run
    held: Any = None  # clean estimate that the outputs mean while the sample waits
    until: int = 0  # call at which the flow goes on; the scheduler is led there by `held`
    landing: Any = None  # where the sample is to be put when the pipeline gets there, in engine coordinates

    def send(self, answer: Any) -> Any:
        """Answer the flow; what it asks next, or its result."""
        try:
            self.request = self.flow.send(answer)
        except StopIteration as end:
            self.request = end.value
        if isinstance(self.request, Run):
            self.run = self.request
        elif isinstance(self.request, Result):
            self.run = self.request.run
        return self.request


class Voyage:
    """The flows of all samples and where the pipeline has taken them.

    Args:
        trajectory: What the scheduler is about to do.
        layout: Which rows of its batch are whose.
        gate: Of the denoiser, after its first iteration, which it still remembers.
        policy: Which calls to make.
        base: The schedule between the scheduler's own times.
        switches: Times at which another network takes over, whose first call is never skipped.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        layout: Layout,
        gate: Gate,
        policy: Policy,
        base: Schedule,
        switches: Sequence[float] = (),
    ) -> None:
        self.trajectory, self.layout, self.gate, self.policy = trajectory, layout, gate, policy
        self.switches = switches
        self.host = Hosted.of(trajectory)
        self.schedule = HostSchedule.of(trajectory, base)
        self.prompts = prompts(gate)
        self.shape: torch.Size | None = None
        self.call = 0  # index of the next call of the scheduler
        self.lines: list[Line] = []

    def begin(self, x: torch.Tensor) -> None:
        """Start a flow for each sample of the first batch, and have it decide."""
        for s in range(self.layout.samples):
            start = self.engine(self.layout.take(x, s), 0)
            branches, prompt = self.gate.branches, self.prompts[s]
            problem = Problem(self.schedule, start, self.host.grid, branches=branches, prompt=prompt)
            going = flow(problem, self.host, self.policy.needs, self.policy.sites)
            run = next(going)
            assert isinstance(run, Run)
            self.lines.append(Line(going, run, run))
        self._decide(self.lines)  # the first call is made already, whatever they wish

    @property
    def finished(self) -> bool:
        """Whether the scheduler has made its last call."""
        return self.call >= len(self.trajectory.calls)

    # -- before the step -------------------------------------------------------------------------

    def arrive(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Tell the flows where their samples are and what the network said; the output that the scheduler is to use."""
        if self.finished:
            raise GuestError(
                f"{len(self.trajectory.calls)} calls of the scheduler were announced by its timesteps and one more was "
                f"made. Set the timesteps before the loop, by scheduler.set_timesteps."
            )
        self._same_shape(x)
        edited = output
        for s, line in enumerate(self.lines):
            own = (self.layout.take(batch, s).clone() for batch in (output, x))  # a view would keep the batch alive
            said = self._said(s, line, *own)
            if said is not None:
                edited = edited.clone() if edited is output else edited
                self.layout.put(edited, s, said.to(output.dtype))
        return edited

    def _same_shape(self, x: torch.Tensor) -> None:
        if self.shape and x.shape != self.shape:
            raise GuestError(
                f"The sample changed its shape from {tuple(self.shape)} to {tuple(x.shape)} within a run: what was "
                f"said about the one tells nothing about the other. Such pipelines cannot be adapted."
            )
        self.shape = x.shape

    def _said(self, s: int, line: Line, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
        """The output of a sample where it is not the network's own."""
        k = self.call
        if k < line.until:
            return self.trajectory.output(k, line.held, x)
        planned = line.request
        assert isinstance(planned, Latent)
        request = line.send(self.engine(x, k))
        real = isinstance(request, Query)
        if isinstance(request, Query):
            request = line.send(self._estimate(s, request, output, x))
        if not isinstance(request, Advance):  # the flow made the step itself
            line.held = self.trajectory.x0(k, output, x)
            self._leave(line)
            return None
        estimate = request.estimate
        natural = request.t_next == self._after(k)
        frozen = planned.evaluate == FREEZE and request.t_next <= self.host.end
        if frozen or not natural:
            line.held = estimate.x0
            line.send(ddim_update(request.x, estimate.x0, request.t, request.t_next, self.schedule))
            self._leave(line)
        if real:
            return None
        same = estimate.prediction == self.trajectory.prediction and estimate.output is not None
        return estimate.output if same and not frozen else self.trajectory.output(k, estimate.x0, x)

    def _estimate(self, s: int, query: Query, output: torch.Tensor, x: torch.Tensor) -> Estimate:
        """What the network said about a sample, guidance included."""
        fresh = self.gate.fresh(s)
        x0 = self.trajectory.x0(self.call, output, x)
        cost = len(fresh) / self.gate.branches
        known = {branch: value for branch, value in fresh.items() if branch in query.want}
        kind = self.trajectory.prediction
        if kind not in VIEWS or kind == "x0":  # as the scheduler clips it
            return Estimate(x0, cost, features=known)
        axis = 0 if self.layout.width == 1 else 1
        mean = output.narrow(axis, 0, x.shape[axis])  # the rest is a learned variance
        return Estimate(x0, cost, mean, kind, known)  # type: ignore[arg-type]  # one of VIEWS

    def _leave(self, line: Line) -> None:
        """A sample that moves without the scheduler decides at once, and then waits for the pipeline to catch up."""
        self._decide([line])
        request = line.request
        t = request.t if isinstance(request, Latent) else self.host.end
        line.landing = request.x
        line.until = self.host.starts[t]

    # -- after the step --------------------------------------------------------------------------

    def depart(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Tell the flows where the scheduler went and have them decide.

        Returns:
            The batch, with samples that moved by themselves put in their places, and those of them that are done.
        """
        self.call += 1
        moved = x
        ended: dict[int, torch.Tensor] = {}
        for s, line in enumerate(self.lines):
            if line.landing is not None and line.until == self.call:
                value = (line.landing * (1.0 / self._scale(self.call))).to(x.dtype)
                moved = moved.clone() if moved is x else moved
                self.layout.put(moved, s, value)
                line.landing = None
                if self.finished:
                    ended[s] = value
            elif isinstance(line.request, Advance):
                line.send(self.engine(self.layout.take(x, s), self.call))
        self._settle()
        return moved, ended

    def _settle(self) -> None:
        """Bring every flow to its next `Latent`, and tell the gate what they want."""
        self._decide([line for line in self.lines if not isinstance(line.request, Latent | Result)])
        self.gate.next([self._wish(line) for line in self.lines])

    def _wish(self, line: Line) -> Wish:
        request = line.request
        if self.call < line.until or not isinstance(request, Latent) or isinstance(request.evaluate, Forecast):
            return NOTHING
        return Wish(given=request.given)

    def _decide(self, lines: Sequence[Line]) -> None:
        """Measure, consult the policy and send the plans, until each of these flows asks for its latent or is done."""
        lines = list(lines)
        if measuring := [line for line in lines if isinstance(line.request, Measure)]:
            floats = iter(to_floats([v for line in measuring for v in line.request.values]))
            for line in measuring:
                line.send([next(floats) for _ in line.request.values])
        if deciding := [line for line in lines if isinstance(line.request, Run)]:
            runs = [line.run for line in deciding]
            plans = self.policy.consult(runs, [run.proposal() for run in runs])
            for line, plan in zip(deciding, self._sound(runs, plans), strict=True):
                line.send(plan)

    def _sound(self, runs: Sequence[Run], plans: Sequence[Plan]) -> list[Plan]:
        """Plans as this pipeline can follow them. Raises GuestError where it cannot."""
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
            if run.here > run.t_end and plan.t_next not in self.host.starts:
                raise GuestError(
                    f"{who} lands at t={plan.t_next:g}, between the steps of this scheduler. Let Skipstone take the "
                    f"loop over: adapt(pipe, policy, solver='dpm_adaptive'); or try early_stop, which lands on steps."
                )
        plans = [self._switched(run, plan) for run, plan in zip(runs, plans, strict=True)]
        if self.gate.whole and any(p.evaluate == Full() for p in plans) and any(p.evaluate != Full() for p in plans):
            return [
                Plan(Full(), r.proposal().t_next, True, (*p.why, "whole")) for r, p in zip(runs, plans, strict=True)
            ]
        return plans

    def _switched(self, run: Run, plan: Plan) -> Plan:
        """A plan with a call where another network takes over."""
        before = run.pending.t if run.pending else run.here
        if any(run.here < t <= before for t in self.switches) and not isinstance(plan.evaluate, Full | Finish):
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

    def _after(self, call: int) -> float:
        calls = self.trajectory.calls
        return calls[call + 1].t if call + 1 < len(calls) else self.trajectory.end.t
