"""What our scheduler takes from a scheduler of diffusers: its noise levels, where its steps go, what outputs mean.

All of it is asked of an instance of diffusers' own class, the base, which is never stepped.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import diffusers
import numpy as np
import torch

from ... import registry
from ...engine.requests import Solver
from ...errors import GuestError
from ...numerics.grid import Grid
from ...numerics.schedule import FlowMatching, Schedule
from .noise_levels import NoiseLevel, PredictionConverter, get_table, make_decreasing
from .scheduler_specs import SchedulerSpec, check_supported, find_scheduler_spec, list_scheduler_specs

SCHEDULER_GRID = "scheduler"  # name of the grid that is the base's own
DEFAULT_BASE, FLOW_BASE, SIGMA_BASE = (
    f"{name}Scheduler" for name in ("DPMSolverMultistep", "FlowMatchEulerDiscrete", "EulerDiscrete")
)
BASES: Mapping[str, str] = {  # scheduler -> the one of one call a step that has its noise levels and its spacing
    f"{name}Scheduler": f"{base}Scheduler"
    for base, names in {
        "DDIM": "DDIM DDIMParallel PNDM",
        "DDPM": "DDPM DDPMParallel",
        "CogVideoXDDIM": "CogVideoXDDIM CogVideoXDPM",
        "EulerDiscrete": (
            "EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete LMSDiscrete "
            "DPMSolverSDE"
        ),
        "DPMSolverMultistep": "DPMSolverMultistep DPMSolverSinglestep",
        "DEISMultistep": "DEISMultistep",
        "UniPCMultistep": "UniPCMultistep",
        "SASolver": "SASolver",
        "FlowMatchEulerDiscrete": "FlowMatchEulerDiscrete FlowMatchHeunDiscrete",
    }.items()
    for name in names.split()
}
SOLVER_SETTINGS = frozenset(  # say how the base would step, which it does not
    {"algorithm_type", "solver_type", "solver_order", "predict_x0", "disable_corrector", "solver_p"}
)
Numbers: TypeAlias = Sequence[float] | np.ndarray[Any, Any] | torch.Tensor


@dataclass(frozen=True)
class SchedulerParts:
    """What the settings of our scheduler stand for.

    Args:
        base: The scheduler of diffusers that is asked.
        schedule: Of the model, between the noise levels of a run.
        spec: What the library knows of the base.
        solver: Makes the steps.
        grid: Places the steps; None where the base does.
    """

    base: Any
    schedule: Schedule
    spec: SchedulerSpec
    solver: Solver
    grid: Grid | None

    @property
    def converter(self) -> PredictionConverter:
        """What the network's output means."""
        return self.spec.converter(self.base)

    def clip(self, x0: Any) -> Any:
        """A clean estimate as the base clips it: of one sample (C, H, W), or of rows of them."""
        return self.spec.clean(self.base, x0)

    @property
    def is_flow(self) -> bool:
        """Whether x = (1 - sigma) x0 + sigma noise."""
        return is_flow(self.base)

    @property
    def keeps_unit_signal(self) -> bool:
        """Whether the pipeline's sample is x0 + s noise, s = sigma / alpha, as Euler's scheduler has it."""
        return type(self.base).__name__ == SIGMA_BASE

    @property
    def has_log_timesteps(self) -> bool:
        """Whether the network is told log(s) / 4 in place of a timestep (Stable Video Diffusion)."""
        config = self.base.config
        return bool(config.get("timestep_type") == "continuous" and config.prediction_type == "v_prediction")

    def level(self, t: float, alpha: float, sigma: float) -> NoiseLevel:
        """A noise level in the coordinates of the pipeline."""
        return NoiseLevel(t, alpha if self.keeps_unit_signal else 1.0, alpha, sigma)


@dataclass(frozen=True)
class Placement:
    """Where the calls of a run are: their noise levels and the one at the end, and what the network is told."""

    levels: tuple[NoiseLevel, ...]
    timesteps: torch.Tensor


def is_flow(base: Any) -> bool:
    """Whether a scheduler is one of flow matching."""
    return bool(base.config.get("use_flow_sigmas", False)) or not hasattr(base, "alphas_cumprod")


# -- from a configuration --------------------------------------------------------------------------


def find_base(config: Mapping[str, Any]) -> str:
    """The base for the configuration of a scheduler, by the name of its class or by the settings that it has.

    Raises:
        GuestError: a scheduler whose model is no table of betas and no flow, or that is made for a distilled model.
    """
    name = str(config.get("_class_name"))
    if not hasattr(diffusers, name):
        fitting = [known for known in _known_schedulers() if settings_of(known) <= config.keys()]
        name = max(fitting, key=lambda known: len(settings_of(known)), default="")
    if name in BASES:
        return BASES[name]
    raise GuestError(
        f"Expected the configuration of a scheduler with a table of betas (DDIM, DDPM, PNDM, Euler, Heun, LMS, "
        f"DPM-Solver, DEIS, UniPC, SA-Solver, CogVideoX) or of flow matching (Euler, Heun); got that of "
        f"{name or 'no scheduler of diffusers'}. Keep the pipeline's own scheduler."
    )


@cache
def _known_schedulers() -> tuple[str, ...]:
    names = {name for spec in list_scheduler_specs() for name in spec.schedulers}
    return tuple(sorted(name for name in names if hasattr(diffusers, name)))


@cache
def settings_of(name: str) -> frozenset[str]:
    """The settings that a scheduler of diffusers takes."""
    return frozenset(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}


def check_base(name: str) -> str:
    """The name, where it is one of a base; else GuestError."""
    if name not in BASES.values():
        raise GuestError(f"Expected base to be one of {', '.join(sorted(set(BASES.values())))}; got {name!r}.")
    return name


def make_base(name: str, settings: Mapping[str, Any]) -> Any:
    """The base with what it takes of these settings; how it would step is left out.

    Raises:
        GuestError: no such base, or one that contradicts itself.
    """
    takes = settings_of(check_base(name))
    given = {key: value for key, value in settings.items() if key in takes and key not in SOLVER_SETTINGS}
    unclipped = {"clip_sample": False} if "clip_sample" in takes else {}  # latents have no bounds
    base = getattr(diffusers, name)(**{**unclipped, **given})
    check_supported(base)
    return base


def make_parts(config: Mapping[str, Any]) -> SchedulerParts:
    """What the configuration of our scheduler stands for.

    Raises:
        SpecError: a solver or grid that cannot be understood.
        GuestError: a solver that makes several calls a step or draws noise; a base that cannot be.
    """
    base = make_base(config["base"], config)
    grid = None if config["grid"] == SCHEDULER_GRID else registry.parse("grid", config["grid"])
    return SchedulerParts(
        base=base,
        schedule=FlowMatching() if is_flow(base) else get_table(base),
        spec=find_scheduler_spec(base),
        solver=parse_solver(config["solver"]),
        grid=grid,
    )


def parse_solver(spec: str) -> Solver:
    """A solver that a scheduler can step by: of one call a step, drawing no noise, on the times that it is given."""
    solver: Solver = registry.parse("solver", spec)
    for reason, holds in {
        f"makes {solver.stages} calls a step": solver.stages > 1,
        "draws noise": solver.stochastic,
        "chooses its own times": bool(solver.controller),
        "is a pipeline's own": solver.hosted,
    }.items():
        if holds:
            raise GuestError(
                f"solver={registry.spell(solver)!r} {reason}; expected a deterministic solver of one call a step on "
                f"given times: adams(of='x0'), adams, unipc, dpmpp or ddim."
            )
    return solver


# -- where the steps go ----------------------------------------------------------------------------


def place_steps(
    parts: SchedulerParts, steps: int | None, sigmas: Numbers | None, timesteps: Numbers | None, mu: float | None
) -> Placement:
    """Place the calls of a run: by the lists that are given, else by the grid, else as the base does.

    Args:
        parts: Of the scheduler.
        steps: Number of calls; None where a list says it.
        sigmas: Of a flow, as its base shifts them; of a table, sigma / alpha of each call and of the end.
        timesteps: What the network is told at each call.
        mu: Log of the shift, for flows that shift by the size of the picture.

    Raises:
        GuestError: lists that contradict each other, or that this scheduler has no use for.
    """
    listed = sigmas is not None or timesteps is not None
    if steps is None and not listed:
        raise GuestError("Expected num_inference_steps, or a list: sigmas=... or timesteps=...; got none of them.")
    if parts.is_flow:
        even = timesteps is None and (sigmas is None or _is_even(sigmas))
        if parts.grid is not None and even:
            return _place_flow(parts, parts.grid, len(sigmas) if sigmas is not None else int(steps or 0), mu)
        return _place_by_base(parts, num_inference_steps=steps, sigmas=sigmas, timesteps=timesteps, mu=mu)
    if listed and (steps is not None or (sigmas is not None and timesteps is not None)):
        raise GuestError("Expected one of num_inference_steps, sigmas and timesteps, got several.")
    if sigmas is not None:
        return _place_by_sigmas(parts, _floats(sigmas))
    if not listed and parts.grid is None:
        return _place_by_base(parts, num_inference_steps=steps, mu=mu)
    return _place_by_times(parts, _table_times(parts, steps, timesteps))


def _table_times(parts: SchedulerParts, steps: int | None, timesteps: Numbers | None) -> Sequence[float]:
    """Times on a table: of these timesteps, or those of the grid."""
    if parts.has_log_timesteps:
        raise GuestError(
            f"This model is told its noise level in place of a timestep, and its levels are none of a table: expected "
            f"grid={SCHEDULER_GRID!r} and num_inference_steps, or sigmas."
        )
    if timesteps is not None:
        return [(k + 1.0) / parts.base.config.num_train_timesteps for k in _floats(timesteps)]
    assert parts.grid is not None
    return parts.grid.times(parts.schedule, int(steps or 0))[:-1]


def model_level(parts: SchedulerParts, timestep: float) -> NoiseLevel:
    """The noise level that the model knows by a timestep, whatever the run."""
    if parts.has_log_timesteps:
        return _level_of_ratio(parts, 0.0, math.exp(4.0 * timestep))
    count = parts.base.config.num_train_timesteps
    if parts.is_flow:
        sigma = timestep / count
        sigma = 1.0 - sigma if parts.base.config.get("invert_sigmas", False) else sigma
        return parts.level(sigma, 1.0 - sigma, sigma)
    t = min(1.0, max(0.0, (timestep + 1.0) / count))
    return parts.level(t, parts.schedule.alpha(t), parts.schedule.sigma(t))


def _place_by_base(parts: SchedulerParts, **given: Any) -> Placement:
    """As the base places them; what is None is not passed on."""
    base = parts.base
    given = {name: value for name, value in given.items() if value is not None}
    if missing := sorted(given.keys() - inspect.signature(base.set_timesteps).parameters.keys()):
        raise GuestError(f"{type(base).__name__}, whose times these are, takes no {missing[0]}; leave it out.")
    base.set_timesteps(**given)
    return _make_placement(parts, parts.spec.levels(base, 0), _end_level(parts), base.timesteps)


def _make_placement(
    parts: SchedulerParts, levels: Sequence[NoiseLevel], end: NoiseLevel, timesteps: torch.Tensor
) -> Placement:
    falling = make_decreasing(levels, (1,) * len(levels), type(parts.base).__name__)
    return Placement((*falling, end), timesteps)


def _end_level(parts: SchedulerParts) -> NoiseLevel:
    """Where the base ends, once its times are set."""
    base, sigmas = parts.base, getattr(parts.base, "sigmas", None)
    if sigmas is None:
        bar = float(getattr(base, "final_alpha_cumprod", 1.0))
        return parts.level(0.0, math.sqrt(bar), math.sqrt(1.0 - bar))
    last = float(sigmas[-1])
    if parts.is_flow:
        last = 1.0 - last if base.config.get("invert_sigmas", False) else last
        return parts.level(0.0, 1.0 - last, last)
    return _level_of_ratio(parts, 0.0, last)


def _level_of_ratio(parts: SchedulerParts, t: float, ratio: float) -> NoiseLevel:
    """The level of sigma / alpha where variance is preserved."""
    alpha = 1.0 / math.hypot(1.0, ratio)
    return parts.level(t, alpha, ratio * alpha)


def _place_flow(parts: SchedulerParts, grid: Grid, steps: int, mu: float | None) -> Placement:
    base = parts.base
    end = _place_by_base(parts, num_inference_steps=steps, mu=mu).levels[-1]
    schedule = FlowMatching(_flow_shift(base, mu))
    sigmas = [schedule.sigma(t) for t in grid.times(schedule, steps)[:-1]]
    told = [1.0 - s if base.config.get("invert_sigmas", False) else s for s in sigmas]
    timesteps = torch.tensor(told, dtype=torch.float32) * base.config.num_train_timesteps
    return _make_placement(parts, [parts.level(s, 1.0 - s, s) for s in sigmas], end, timesteps)


def _flow_shift(base: Any, mu: float | None) -> float:
    config = base.config
    if config.get("use_dynamic_shifting", False) and mu is not None:
        return mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)
    return float(config.flow_shift if "flow_shift" in config else config.shift)


def _is_even(sigmas: Numbers) -> bool:
    """Whether these are the evenly spaced sigmas that flow pipelines bring of themselves: no choice of a user's."""
    count = len(sigmas)
    return bool(np.allclose(_floats(sigmas), np.linspace(1.0, 1.0 / count, count), atol=1e-6))


def _place_by_times(parts: SchedulerParts, times: Sequence[float]) -> Placement:
    """On a table, at these times."""
    end = _place_by_base(parts, num_inference_steps=len(times)).levels[-1]
    schedule = parts.schedule
    levels = [parts.level(t, schedule.alpha(t), schedule.sigma(t)) for t in times]
    return _make_placement(parts, levels, end, _timesteps_tensor([schedule.timestep(t) for t in times]))


def _place_by_sigmas(parts: SchedulerParts, ratios: Sequence[float]) -> Placement:
    """On a table, at these sigma / alpha, the last of which is the end."""
    schedule = parts.schedule
    times = [schedule.time(-math.log(max(s, 1e-10))) for s in ratios[:-1]]
    levels = [_level_of_ratio(parts, t, s) for t, s in zip(times, ratios[:-1], strict=True)]
    told = (
        [0.25 * math.log(s) for s in ratios[:-1]] if parts.has_log_timesteps else [schedule.timestep(t) for t in times]
    )
    return _make_placement(parts, levels, _level_of_ratio(parts, 0.0, ratios[-1]), _timesteps_tensor(told))


def _timesteps_tensor(timesteps: Sequence[float]) -> torch.Tensor:
    """As the schedulers of diffusers have them: whole numbers where all of them are."""
    whole = [round(k) for k in timesteps]
    if all(abs(k - w) < 1e-6 for k, w in zip(timesteps, whole, strict=True)):
        return torch.tensor(whole, dtype=torch.int64)
    return torch.tensor(timesteps, dtype=torch.float32)


def _floats(values: Numbers) -> list[float]:
    return [float(v) for v in values]
