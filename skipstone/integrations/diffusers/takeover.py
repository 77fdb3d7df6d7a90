"""Takeover: the whole run within the pipeline's first step, by a solver of our own that chooses its times.

Sound where the pipeline does nothing between two steps but call its network and its scheduler: then the network can be
called from here as well, at any time and for any row, and the pipeline is left to walk to the result at no call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...engine.contracts import COND, UNCOND, Policy
from ...engine.drivers import denoise_many
from ...engine.requests import Estimate, Problem, Query, Solver
from ...errors import GuestError
from ...numerics.parametrize import PREDICTION_TYPES, to_x0
from ...numerics.schedule import Schedule
from ...registry import spell
from .batch_driver import BatchDriver, SampleState
from .batch_router import BATCH_ARGUMENTS, BatchRouter, DenoiserCall, find_batch
from .row_slicing import NetworkCall

TIME_NAMES = ("timestep", "timesteps", "t")
ALTERNATIVE = (
    "Adapt it without solver=..., with a policy that keeps to the pipeline's steps, such as error_control. A solver "
    "can step in the pipeline's own loop: pipe.scheduler = skipstone.Scheduler.from_config(pipe.scheduler.config)."
)


def take_over(
    driver: BatchDriver,
    solver: Solver,
    policy: Policy,
    output: torch.Tensor,
    timesteps: Sequence[float],
    x: torch.Tensor,
) -> None:
    """Denoise every sample to the end, and leave states that wait for the pipeline to arrive there.

    Args:
        driver: Of the samples, not yet begun.
        solver, policy: Of the run.
        output, x: What the first step of the scheduler was given.
        timesteps: Those of the scheduler's calls.

    Raises:
        GuestError: the network cannot be called in the pipeline's place; the message says why.
    """
    refuse_takeover(solver, _list_reasons(driver, solver, timesteps))
    _check_finite(driver, output)
    if driver.layout.samples > 1:  # which will be at different times
        driver.router.check_independent()
    backbone = PipelineBackbone(driver, driver.router, _time_factor(driver.router, timesteps[0]), output, x)
    layout, grid = driver.layout, driver.scheduler_solver.grid
    seeds = range(layout.samples)
    branches, known = driver.router.branches, driver.prompts
    starts = [driver.engine(layout.take(x, s), 0) for s in seeds]
    problems = [Problem(driver.schedule, starts[s], grid, s, s, branches, prompt=known[s]) for s in seeds]
    driver.router.taken_over = True
    results = denoise_many(backbone, problems, solver, policy)
    last = len(driver.trajectory.calls)
    for s, result in enumerate(results):
        held = result.x if driver.trajectory.reaches_end else backbone.latest_x0[s]
        driver.states.append(SampleState(iter(()), result, result.run, held, last, result.x))  # type: ignore[arg-type]  # over


def refuse_takeover(solver: Solver, reasons: Mapping[str, bool]) -> None:
    """Raise GuestError for the first of these reasons against a takeover that holds."""
    for reason, holds in reasons.items():
        if holds:
            raise GuestError(f"The pipeline cannot be taken over by solver={spell(solver)!r}: {reason}. {ALTERNATIVE}")


def _list_reasons(driver: BatchDriver, solver: Solver, timesteps: Sequence[float]) -> dict[str, bool]:
    """Reasons against a takeover -> whether each holds."""
    calls = driver.router.denoiser_calls.values()
    stateful = ", ".join(name for p in calls for name in p.call.stateful)
    together = driver.router.all_or_none and driver.layout.samples > 1
    own_names = any(
        abs(driver.schedule.timestep(p.t) - model_timestep) > 1.0
        for p, model_timestep in zip(driver.trajectory.calls, timesteps, strict=True)
    )
    return {
        "samples must stay together (per_sample=False), and it gives each its own times": together,
        f"its network is given objects that may keep state ({stateful})": bool(stateful),
        "its scheduler adds noise at every step": driver.trajectory.stochastic,
        "two networks take turns": len({id(p.module) for p in calls}) > 1,
        "its scheduler steps more rows than there are samples": driver.layout.width * driver.layout.copies > 1,
        "its network's output is not an eps, v, x0 or flow": driver.trajectory.prediction not in PREDICTION_TYPES,
        "its scheduler names times in a way of its own": own_names,
        "that solver draws noise of its own, of which the pipeline's generators know nothing": solver.stochastic,
    }


def _measure_guidance(driver: BatchDriver, output: torch.Tensor) -> float:
    """The weight w of uncond + w (cond - uncond), measured on the first step."""
    channels = output.shape[1]  # a pipeline may leave out the learned variance behind them
    branch_outputs = [driver.router.get_new_outputs(s) for s in range(driver.layout.samples)]
    branches = {b: torch.stack([f[b][:channels] for f in branch_outputs]).double() for b in branch_outputs[0]}
    guided = output.double()[:, : next(iter(branches.values())).shape[1]]
    if len(branches) == 1 and torch.equal(branches[COND], guided):
        return 1.0
    if len(branches) == 2 and branches.keys() == {COND, UNCOND}:
        gap = branches[COND] - branches[UNCOND]
        weight = float(((guided - branches[UNCOND]) * gap).sum() / (gap * gap).sum().clamp_min(1e-300))
        error = (branches[UNCOND] + weight * gap - guided).norm() / guided.norm()
        if error < (1e-4 if output.dtype == torch.float32 else 2e-2):
            return weight
    raise GuestError(
        "The guidance of this run is not uncond + w (cond - uncond) with one w, so Skipstone cannot guide in the "
        f"pipeline's place. {ALTERNATIVE}"
    )


def _check_finite(driver: BatchDriver, output: torch.Tensor) -> None:
    """Raise GuestError for samples that the network has no finite output for."""
    bad = [s for s in range(driver.layout.samples) if not torch.isfinite(driver.layout.take(output, s)).all()]
    if bad:
        raise GuestError(
            f"The network's output is not finite (NaN or infinity) in the first step for sample "
            f"{', '.join(map(str, bad))} of the batch, so nothing can be solved from it. Check its prompt and latents; "
            f"in float16 a network may overflow: load it with torch_dtype=torch.bfloat16 or torch.float32."
        )


def _time_factor(router: BatchRouter, timestep: float) -> float:
    """Timesteps of the denoiser over those of the scheduler: 1, or 1/1000."""
    p = router.denoiser_calls[0]
    model_timestep = next((p.kwargs[n] for n in TIME_NAMES if n in p.kwargs), p.args[1] if len(p.args) > 1 else None)
    factor = (
        0.0
        if model_timestep is None or timestep == 0.0
        else float(torch.as_tensor(model_timestep).flatten()[0]) / timestep
    )
    for usual in (1.0, 0.001):
        if abs(factor - usual) < 0.01 * usual:
            return usual
    raise GuestError(
        f"{type(p.module).__name__} receives a timestep that is not the scheduler's, nor 1/1000 of it "
        f"({model_timestep}, where the scheduler receives {timestep:g}); Skipstone cannot compute it in the pipeline's "
        f"place. {ALTERNATIVE}"
    )


@dataclass
class PipelineBackbone:
    """The pipeline's denoiser as a backbone: repeats the calls of its first step for other samples and times.

    `Problem.cond` is the index of the sample. The first query is what the first step has computed already.
    """

    driver: BatchDriver
    router: BatchRouter
    time_factor: float
    output: torch.Tensor
    x: torch.Tensor
    latest_x0: dict[int, Any] = field(default_factory=dict)
    guidance_scale: float = 1.0
    _batches: dict[int, torch.Tensor] = field(default_factory=dict)  # ordinal of a call -> its noisy batch of now
    _times: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_input()
        for k, p in self.router.denoiser_calls.items():
            self._batches[k] = find_batch(p.module, p.args, p.kwargs).clone()
            self._times[k] = torch.zeros(p.rows)
        self.guidance_scale = _measure_guidance(self.driver, self.output)

    def _check_input(self) -> None:
        samples = self.driver.layout.samples
        for p in self.router.denoiser_calls.values():
            entered = find_batch(p.module, p.args, p.kwargs)
            seen = self.driver.engine(self.x, 0)  # a scaled model input is the sample in engine coordinates
            expected = torch.cat([seen] * (p.rows // samples)).to(entered.dtype)
            if entered.shape != expected.shape or not torch.allclose(entered, expected, rtol=1e-3, atol=1e-4):
                raise GuestError(
                    f"{type(p.module).__name__} is given more than the sample (an image, a mask), which Skipstone "
                    f"cannot supply. {ALTERNATIVE}"
                )

    @property
    def schedule(self) -> Schedule:
        return self.driver.schedule

    @property
    def sites(self) -> tuple[str, ...]:
        return (COND, UNCOND) if self.router.branches == 2 else ()

    @property
    def branches(self) -> int:
        return self.router.branches

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """One call of the denoiser for each call of it in a step of the pipeline, with the rows that are wanted."""
        first = not self.latest_x0
        branch_outputs = (
            {q.cond: self.router.get_new_outputs(q.cond) for q in queries} if first else self._call_denoiser(queries)
        )
        return [self._estimate(q, branch_outputs[q.cond]) for q in queries]

    def _call_denoiser(self, queries: Sequence[Query]) -> dict[int, dict[str, torch.Tensor]]:
        branch_outputs: dict[int, dict[str, torch.Tensor]] = {q.cond: {} for q in queries}
        for k, p in self.router.denoiser_calls.items():
            wanted = [(q, j) for j, b in enumerate(p.branches) for q in queries if b not in q.known_outputs]
            if not wanted:
                continue
            rows = [j * self.router.samples + q.cond for q, j in wanted]
            call = self._call_with(k, p, queries)
            p.output = p.output.clone()
            self.router.compute(p, call, rows)
            for (q, j), row in zip(wanted, rows, strict=True):
                branch_outputs[q.cond][p.branches[j]] = p.output[row]
        return branch_outputs

    def _call_with(self, k: int, p: DenoiserCall, queries: Sequence[Query]) -> NetworkCall:
        """A call of the first step at the samples and times of these queries; other samples stay where they were."""
        x, times = self._batches[k], self._times[k]
        for query in queries:
            x[query.cond :: self.router.samples] = query.x
            times[query.cond :: self.router.samples] = self.schedule.timestep(query.t) * self.time_factor
        args, kwargs = _replace_batch(p.args, x, times), _replace_named_batch(p.kwargs, x, times)
        return replace(p.call, args=args, kwargs=kwargs)

    def _estimate(self, query: Query, fresh: dict[str, torch.Tensor]) -> Estimate:
        both = {**query.known_outputs, **fresh}
        output = both[COND]
        if self.router.branches == 2:
            output = both[UNCOND] + self.guidance_scale * (both[COND] - both[UNCOND])
        mean, kind = output[: query.x.shape[0]], str(self.driver.trajectory.prediction)
        x0 = to_x0(kind, mean, query.x, self.schedule.alpha(query.t), self.schedule.sigma(query.t))
        x0 = self.driver.trajectory.clean(x0)
        mean = x0 if kind == "x0" else mean
        self.latest_x0[query.cond] = x0
        features = {b: v for b, v in fresh.items() if b in query.wanted_sites}
        return Estimate(x0, len(fresh) / self.branches, mean, kind, features)  # type: ignore[arg-type]  # a PredictionType


def _replace_batch(args: tuple[Any, ...], x: torch.Tensor, times: torch.Tensor) -> tuple[Any, ...]:
    """Positional arguments around another batch and its times."""
    changed = list(args)
    if args and isinstance(args[0], torch.Tensor):
        changed[0] = x.to(args[0].dtype)
        if len(args) > 1:
            changed[1] = _times_like(args[1], times)
    return tuple(changed)


def _replace_named_batch(kwargs: dict[str, Any], x: torch.Tensor, times: torch.Tensor) -> dict[str, Any]:
    changed = dict(kwargs)
    for name in BATCH_ARGUMENTS:
        if isinstance(kwargs.get(name), torch.Tensor):
            changed[name] = x.to(kwargs[name].dtype)
            break
    for name in TIME_NAMES:
        if name in kwargs:
            changed[name] = _times_like(kwargs[name], times)
    return changed


def _times_like(model_timestep: Any, times: torch.Tensor) -> torch.Tensor:
    floating = isinstance(model_timestep, torch.Tensor) and model_timestep.is_floating_point()
    device = model_timestep.device if isinstance(model_timestep, torch.Tensor) else None
    return times.to(device=device, dtype=model_timestep.dtype if floating else torch.float32)
