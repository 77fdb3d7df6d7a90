"""Takeover: the whole run within the pipeline's first step, by a solver of our own that chooses its times.

Sound where the pipeline does nothing between two steps but call its networks and its scheduler: then the networks can
be called from here as well, at any time and for any row, and the pipeline is left to walk to the result at no call.
What the first step shows of this is checked before the run, and every later step is checked as it comes (`walk.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.contracts import COND, UNCOND, Cached, Forecast, Full, Plan, Policy, Run
from ...engine.drivers import denoise_many
from ...engine.requests import Problem, Result, Solver
from ...errors import GuestError
from .batch_driver import BatchDriver, SampleState
from .batch_router import CompanionCall, DenoiserCall
from .companions import CompanionLinks
from .constants import time_argument
from .guidance import Guidance, recognise_guidance
from .method_swap import original_class
from .pipeline_specs import PipelineSpec
from .refusal import TakeoverRefused
from .sample_path import PathNode, SamplePath
from .sample_place import fit
from .takeover_backbone import Input, Phase, PipelineBackbone
from .walk import Walk

STILL_SCHEDULERS = {  # one that adds no noise, for networks that were made for one that does
    "DDPMScheduler": "DDIMScheduler",
    "DDPMParallelScheduler": "DDIMParallelScheduler",
    "EulerAncestralDiscreteScheduler": "EulerDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler": "KDPM2DiscreteScheduler",
    "DPMSolverSDEScheduler": "DPMSolverMultistepScheduler",
    "SASolverScheduler": "DPMSolverMultistepScheduler",
    "CogVideoXDPMScheduler": "CogVideoXDDIMScheduler",
}
SECOND_SCALE = "guidance_scale_2"  # argument of a pipeline's call: the weight under its second network


@dataclass(frozen=True)
class FirstStep:
    """What the first step of a pipeline has shown.

    Args:
        spec: Of the pipeline.
        networks: Its denoisers, in the order in which they take turns.
        scheduler: Name of its scheduler's class.
        boundary: The scheduler's timestep down to which the first of two is called.
        arguments: Of the pipeline's call.
        timesteps: Those of the scheduler's calls.
        output, x: What the scheduler was given.
        is_watched: Whether somebody looks at the samples on the way (a callback).
    """

    spec: PipelineSpec
    networks: Sequence[Any]
    scheduler: str
    boundary: float
    arguments: Mapping[str, Any]
    timesteps: tuple[float, ...]
    output: torch.Tensor
    x: torch.Tensor
    is_watched: bool = False


def prepare_takeover(driver: BatchDriver, solver: Solver, step: FirstStep) -> PipelineBackbone:
    """The pipeline's networks as a backbone, made from what its first step has shown.

    Args:
        driver: Of the samples, not yet begun.
        solver: Of the run.
        step: The first step.

    Raises:
        TakeoverRefused: the networks cannot be called in the pipeline's place; the message says why.
    """
    _check_finite(driver, step.output)
    layout, router = driver.layout, driver.router
    name = _scheduler_names(driver, step.timesteps)
    refuse_first(_list_reasons(driver, solver, step))
    if layout.samples > 1:  # which will be at different times
        try:
            router.check_independent()
        except GuestError as error:
            raise TakeoverRefused(str(error).rstrip(".")) from error
    assert name is not None
    time = _network_time(step, router.denoiser_calls[0])
    samples = torch.stack([layout.row_of(driver.engine(layout.take(step.x, s), 0)) for s in range(layout.samples)])
    for c in router.companion_calls:
        _check_companion(c, time(step.timesteps[0]))
    return PipelineBackbone(
        driver,
        _list_phases(driver, step),
        time,
        name,
        {k: Input.of(p, samples) for k, p in router.denoiser_calls.items()},
        [Input.of(c, samples) for c in router.companion_calls],
        {k: CompanionLinks.find(router.companion_calls, p.kwargs, p.rows) for k, p in router.denoiser_calls.items()},
        step.is_watched and all(calls == 1 for calls in driver.trajectory.stages[1:]),
    )


def take_over(backbone: PipelineBackbone, solver: Solver, policy: Policy, step: FirstStep) -> None:
    """Denoise every sample to the end, and leave states that wait for the pipeline to arrive there.

    Raises:
        GuestError: the network's output is not finite.
    """
    driver = backbone.driver
    layout, grid, router = driver.layout, driver.scheduler_solver.grid, driver.router
    problems = [
        Problem(
            driver.schedule,
            driver.engine(layout.take(step.x, s), 0),
            grid,
            s,
            s,
            router.branches,
            prompt=driver.prompts[s],
            text=driver.texts[s],
        )
        for s in range(layout.samples)
    ]
    backbone.freeze_arguments()
    decides = CallAtSwitch(policy, tuple(driver.switches)) if driver.switches else policy
    results = denoise_many(backbone, problems, solver, decides)
    driver.states += [_wait(backbone, s, result) for s, result in enumerate(results)]
    router.taken_over = True
    walk = Walk(backbone, step.timesteps)
    walk.begin()
    driver.checks = walk


def _wait(backbone: PipelineBackbone, sample: int, result: Result) -> SampleState:
    """A sample that is done and waits for the pipeline to arrive."""
    driver = backbone.driver
    held = result.x if driver.trajectory.reaches_end else backbone.latest_x0[sample]
    last = len(driver.trajectory.calls)
    state = SampleState(iter(()), result, result.run, held, last, result.x)  # type: ignore[arg-type]  # over
    if backbone.keeps_path:
        end = PathNode(driver.trajectory.end.t, result.x, held)
        state.path = SamplePath.of(result.run, backbone.calls[sample], end, driver.schedule)
    return state


def refuse_first(reasons: Mapping[str, bool]) -> None:
    """Raise TakeoverRefused for the first of these reasons against a takeover that holds."""
    for reason, holds in reasons.items():
        if holds:
            raise TakeoverRefused(reason)


@dataclass(frozen=True)
class CallAtSwitch(Policy):
    """A policy whose first step after another network takes over is a full call.

    Args:
        inner: The policy.
        switches: Times at which another network takes over.
    """

    inner: Policy
    switches: tuple[float, ...]
    name = "switch"

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    @property
    def sites(self) -> frozenset[str]:
        return self.inner.sites

    @property
    def reads_prompt(self) -> bool:
        return self.inner.reads_prompt

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        plans = self.inner.consult(runs, proposals)
        return [self._call(run, plan) for run, plan in zip(runs, plans, strict=True)]

    def _call(self, run: Run, plan: Plan) -> Plan:
        before = run.pending.t if run.pending else run.next_start
        here = run.next_start if plan.accept else before
        if any(here < t <= before for t in self.switches) and isinstance(plan.evaluate, Forecast | Cached):
            return Plan(Full(), plan.t_next, plan.accept, (*plan.why, self.name), plan.memo)
        return plan


def _list_reasons(driver: BatchDriver, solver: Solver, step: FirstStep) -> dict[str, bool]:
    """Reasons against a takeover -> whether each holds."""
    calls = driver.router.denoiser_calls.values()
    stateful = ", ".join(name for p in calls for name in p.call.stateful)
    layout = driver.layout
    copies = step.x.tensor_split(layout.copies)
    return {
        "samples must stay together (per_sample=False), and it gives each its own times": driver.router.all_or_none
        and layout.samples > 1,
        f"its network is given objects that may keep state ({stateful})": bool(stateful),
        f"its scheduler adds noise at every step{_advise_scheduler(step.scheduler)}": driver.trajectory.stochastic,
        "two networks are called in one step": len({id(p.module) for p in calls}) > 1,
        "its scheduler is given copies of the samples that differ": any(
            not torch.equal(copies[0], other) for other in copies[1:]
        ),
        "its network's output is not an eps, v, x0 or flow": driver.trajectory.converter.data != 1.0,
        "its scheduler names times in a way of its own": _scheduler_names(driver, step.timesteps) is None,
        "that solver draws noise of its own, of which the pipeline's generators know nothing": solver.stochastic,
    }


def _advise_scheduler(name: str) -> str:
    """What to set in place of a scheduler that adds noise, where there is something."""
    still = STILL_SCHEDULERS.get(name)
    return f" (pipe.scheduler = diffusers.{still}.from_config(pipe.scheduler.config) adds none)" if still else ""


def _scheduler_names(driver: BatchDriver, timesteps: Sequence[float]) -> Callable[[float], float] | None:
    """Time of the engine -> timestep of the scheduler, which may count backwards; None where neither holds."""
    own = driver.schedule.timestep
    whole = driver.schedule.timestep(1.0)
    for name in (own, lambda t: whole - own(t)):
        calls = zip(driver.trajectory.calls, timesteps, strict=True)
        if all(abs(name(call.t) - timestep) <= 1.0 for call, timestep in calls):
            return name
    return None


def _list_phases(driver: BatchDriver, step: FirstStep) -> list[Phase]:
    """The networks that take turns, each with its guidance, which the first step shows of the first."""
    guidance = _measure_guidance(driver, step)
    first = driver.router.denoiser_calls[0]
    if not driver.switches:
        if len(step.networks) > 1:
            raise TakeoverRefused("two networks take turns, and nobody has declared when")
        return [Phase(first.module, first.run, guidance, -math.inf)]
    if len(step.networks) != 2 or len(driver.switches) != 1:
        raise TakeoverRefused(f"{len(step.networks)} networks take turns")
    before, after = step.networks
    if step.timesteps[0] < step.boundary:
        return [Phase(after, first.run, guidance, -math.inf)]
    scale, second = step.arguments.get(SECOND_SCALE), guidance
    if scale is not None and guidance.weights.keys() == {COND, UNCOND}:
        second = Guidance({COND: float(scale), UNCOND: 1.0 - float(scale)})
    return [Phase(before, first.run, guidance, step.boundary), Phase(after, _call_of(after), second, -math.inf)]


def _call_of(module: Any) -> Callable[..., Any]:
    """The call of a network, without ours around it."""
    call = original_class(module).__call__
    return lambda *args, **kwargs: call(module, *args, **kwargs)


def _measure_guidance(driver: BatchDriver, step: FirstStep) -> Guidance:
    """The rule of guidance, recognised in the first step."""
    layout = driver.layout
    shape = layout.take(step.x, 0).shape
    samples = range(layout.samples)
    fresh = [driver.router.get_new_outputs(s) for s in samples]
    outputs = {b: torch.stack([fit(layout.sample_of(one[b]), shape) for one in fresh]) for b in fresh[0]}
    guided = torch.stack([fit(layout.take(step.output, s), shape) for s in samples])
    return recognise_guidance(outputs, guided, step.arguments)


def _check_finite(driver: BatchDriver, output: torch.Tensor) -> None:
    """Raise GuestError for samples that the network has no finite output for."""
    bad = [s for s in range(driver.layout.samples) if not torch.isfinite(driver.layout.take(output, s)).all()]
    if bad:
        raise GuestError(
            f"The network's output is not finite (NaN or infinity) in the first step for sample "
            f"{', '.join(map(str, bad))} of the batch, so nothing can be solved from it. Check its prompt and latents; "
            f"in float16 a network may overflow: load it with torch_dtype=torch.bfloat16 or torch.float32."
        )


def _network_time(step: FirstStep, p: DenoiserCall) -> Callable[[float], float]:
    """Timestep of the scheduler -> what the denoiser is told: the same or 1/1000 of it, or as declared."""
    told, timestep = _told_time(p), step.timesteps[0]
    declared = step.spec.network_time
    candidates = (declared,) if declared is not None else (lambda t: t, lambda t: 0.001 * t)
    for time in candidates:
        expected = time(timestep)
        if told is not None and abs(told - expected) < 0.01 * abs(expected) + 1e-3:
            return time
    raise TakeoverRefused(
        f"{type(p.module).__name__} receives a timestep that is not the scheduler's, nor 1/1000 of it "
        f"({told}, where the scheduler receives {timestep:g}), so Skipstone cannot compute it in the pipeline's place"
    )


def _told_time(p: DenoiserCall | CompanionCall) -> float | None:
    """The time that a network was told in the first step; None where it was told several, or none."""
    name = time_argument(p.args, p.kwargs)
    told = p.kwargs[name] if name in p.kwargs else p.args[1] if name else None
    if told is None:
        return None
    values = torch.as_tensor(told).flatten()
    return float(values[0]) if bool((values == values[0]).all()) else None


def _check_companion(c: CompanionCall, expected: float) -> None:
    told = _told_time(c)
    if told is None or abs(told - expected) > 0.01 * abs(expected) + 1e-3:
        raise TakeoverRefused(f"{type(c.model).__name__} receives another timestep than the denoiser ({told})")
