"""A column's solver and grid as a diffusers scheduler, made from the configuration of a pipeline's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import registry
from ..engine.requests import Solver
from ..errors import SpecError
from ..numerics.grid import Grid, Karras, Leading, LogSNR, Trailing, Uniform
from ..solvers.ddim import DDIM
from ..solvers.ddpm import DDPM
from ..solvers.dpmpp import DPMpp
from ..solvers.dpmpp_sde import DPMppSDE
from ..solvers.unipc import UniPC
from .columns import OWN, Column

LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
PROBE_STEPS = 10  # steps of a grid that is only looked at


def build_scheduler(own: Any, solver: Solver | None, grid: Grid | None, steps: int = PROBE_STEPS) -> Any:
    """The scheduler that steps like `solver` where `grid` says; a None of these is the pipeline's own.

    Raises:
        SpecError: diffusers has no such scheduler for this model; the message lists what it has.
    """
    if solver is None and grid is None:
        return own
    kind = type(own) if solver is None else _scheduler_class(own, solver)
    takes = inspect.signature(kind.__init__).parameters
    settings = {**_solver_options(solver), **_model_options(own, kind, takes)}
    settings |= _own_grid_options(own, kind, takes) if grid is None else _grid_options(own, kind, takes, grid)
    made = kind.from_config(own.config, **settings)
    if grid is not None:
        _check_open(made, grid)
        _check_apart(made, grid, steps)
    return made


def takeover_solver(column: Column) -> Solver | None:
    """The solver of a column that runs in place of the pipeline's loop: one that diffusers lacks, or a policy's own."""
    own = column.policy is not None and column.peer is None and column.effective_policy.solver
    return column.solver if column.solver is not None and (own or not column.solver.diffusers_class) else None


def is_flow_matching(scheduler: Any) -> bool:
    """Whether the model under this scheduler was trained by flow matching."""
    config = scheduler.config
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return type(scheduler).__name__.startswith("FlowMatch") or bool(flow)


def ddim_eta(solver: Solver | None) -> float | None:
    """DDIM's eta, which in diffusers is an argument of the pipeline's call; None where there is none."""
    return solver.eta if isinstance(solver, DDIM) and solver.eta else None


# -- solvers --------------------------------------------------------------------------------------


def _scheduler_class(own: Any, solver: Solver) -> Any:
    """The class that steps like a solver on this model."""
    if isinstance(solver, DPMpp) and solver.order == 3 and not solver.released:
        raise SpecError(
            "diffusers has the third order of DPM-Solver++ as released: write dpmpp(order=3, released=True)."
        )
    known = {name: _classes(own, registry.find_class("solver", name)) for name in registry.names("solver")}
    if found := _classes(own, type(solver)):
        return found[0]
    has = ", ".join(name for name, classes in known.items() if classes) or "none"
    what = "a flow-matching model" if is_flow_matching(own) else f"a model under {type(own).__name__}"
    raise SpecError(
        f"{solver.name} has no counterpart in diffusers on {what}. Those that have one: {has}; and {OWN}, the "
        f"pipeline's own scheduler."
    )


def _classes(own: Any, solver: type) -> list[Any]:
    import diffusers

    if (
        not is_flow_matching(own) and "beta_schedule" not in own.config
    ):  # neither a flow nor a table that others could read
        return []
    names = [name for name in solver.diffusers_class.split(", ") if name]  # type: ignore[attr-defined]  # a Solver
    found = [getattr(diffusers, name) for name in names]
    if not is_flow_matching(own):
        return [c for c in found if not c.__name__.startswith("FlowMatch")]
    shifts = bool(own.config.get("use_dynamic_shifting"))
    fitting = [c for c in found if c.__name__.startswith("FlowMatch") or _accepts(c, "use_flow_sigmas")]
    return [c for c in fitting if not shifts or _accepts(c, "use_dynamic_shifting")]


def _accepts(kind: Any, name: str) -> bool:
    return name in inspect.signature(kind.__init__).parameters


def _solver_options(solver: Solver | None) -> dict[str, Any]:
    match solver:
        case DPMpp(order=order):
            return {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "solver_order": order}
        case DPMppSDE():
            return {"algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint", "solver_order": 2}
        case UniPC(order=order):
            return {"solver_type": "bh2", "predict_x0": True, "solver_order": order}
        case DDPM(variance=variance):
            return {"variance_type": f"fixed_{variance}"}
    return {}


def _model_options(own: Any, kind: Any, takes: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to the model, under the names that this class has for it."""
    settings: dict[str, Any] = {}
    if "clip_sample" in takes and "clip_sample" not in own.config:
        settings["clip_sample"] = False  # latents have no bounds; the default of diffusers is for pixels
    if is_flow_matching(own):
        shift = own.config.get("shift", own.config.get("flow_shift", 1.0))
        if "use_flow_sigmas" in takes:
            settings |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        elif "shift" in takes:
            settings["shift"] = shift
    return settings


# -- grids ----------------------------------------------------------------------------------------


def _own_grid_options(own: Any, kind: Any, takes: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's own grid, which another class must be able to walk."""
    lost = [name for name in LEVELS if own.config.get(name) and name not in takes]
    if lost:
        raise SpecError(f"The pipeline's own grid is made by {lost[0]}, which {kind.__name__} lacks: name a grid.")
    return {}


def _grid_options(own: Any, kind: Any, takes: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    if is_flow_matching(own):
        raise SpecError(f"On a flow-matching model the grid is the pipeline's: write {OWN} in place of {grid.name}.")
    settings: dict[str, Any] = {name: False for name in LEVELS if name in takes}
    match grid:
        case Uniform():
            settings["timestep_spacing"] = "linspace"
        case Trailing():
            settings["timestep_spacing"] = "trailing"
        case Leading(offset=offset):
            settings |= {"timestep_spacing": "leading", "steps_offset": offset}
        case Karras(rho=7.0):
            settings |= {"use_karras_sigmas": True, "timestep_spacing": "linspace"}
        case LogSNR():
            settings |= {"use_exponential_sigmas": True, "timestep_spacing": "linspace"}
        case _:
            raise SpecError(
                f"{registry.spell(grid)} has no counterpart in diffusers. Those that have one: uniform, trailing, "
                f"leading, karras (rho=7), logsnr; and {OWN}, the pipeline's own grid."
            )
    if missing := settings.keys() - takes.keys():
        raise SpecError(
            f"{kind.__name__} cannot walk {registry.spell(grid)}: it has no {sorted(missing)[0]}. Choose another grid, "
            f"or another solver: dpmpp has them all."
        )
    return settings


def _check_open(scheduler: Any, grid: Grid) -> None:
    """Hold `open` against what the scheduler does about the cleanest timestep."""
    if not isinstance(grid, Uniform | Leading):
        return
    looked_at = type(scheduler).from_config(scheduler.config)
    looked_at.set_timesteps(PROBE_STEPS)
    first = grid.offset if isinstance(grid, Leading) else 0
    is_open = float(min(looked_at.timesteps)) > first
    if is_open != grid.open:
        does, right = "leaves out" if is_open else "includes", registry.spell(replace(grid, open=is_open))
        raise SpecError(f"{type(scheduler).__name__} {does} the cleanest timestep: write {right}.")


def _check_apart(scheduler: Any, grid: Grid, steps: int) -> None:
    """Refuse grids whose first steps diffusers rounds to one timestep: it starts at the second, and lacks the last."""
    if not isinstance(grid, Karras | LogSNR) or steps < 2:
        return
    looked_at = type(scheduler).from_config(scheduler.config)
    looked_at.set_timesteps(steps)
    if float(looked_at.timesteps[0]) == float(looked_at.timesteps[1]):
        raise SpecError(
            f"{type(scheduler).__name__} rounds the first steps of {registry.spell(grid)} to one timestep of this "
            f"model's table. diffusers starts at the second of equal timesteps, and stops with an error before its "
            f"last step, without Skipstone, too. Choose another grid: trailing."
        )
