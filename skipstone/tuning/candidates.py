"""Policies out of points of a space: grids that are bent, settings of any policy, and half calls behind it.

Every candidate is a policy, which brings its solver, so that what is found goes wherever a policy goes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import registry
from ..engine.contracts import Policy
from ..errors import SkipstoneError, SpecError
from ..numerics.schedule import Schedule
from ..policies.path import Path
from ..settings import field_types
from .grids import Beginning, path_policy
from .space import POLICY, Dimension, Space, dimensions_of, spread

TUNED = "tuned"  # the grid of the dynamic programming
GRIDS = ("trailing", "karras", "logsnr", "angle", "asinh")
SOLVERS = ("adams", "adams(of='x0')", "kriging", "unipc", "dpmpp")  # of `path`
BEND, SHIFT, LEVELS = (0.8, 1.25), 0.24, 7  # exponents of a grid's bend, its shift, and values of each
MORE_STEPS = (0, 1, 2, 3)  # beyond the calls, where half calls leave room for them
GATE = "guidance_gate.below"
BELOW = (0.0, 0.15, 0.3, 0.45, 0.6)  # time below which the unconditional branch is forecast
CALIBRATION = "calibration"  # the settings that a policy brings for calibration
PATH_SETTINGS = ("times", "solver", "early", "late", "shift", "more_steps")
STRIDE_FADES = (0.4, 0.7, 1.0, 1.3)
ADAPTIVE_GRID: Mapping[str, Sequence[Any]] = {
    "adapt": (0.0, 0.2, 0.4, 0.6, 0.8),
    "bend": (0.0, 10.0, 20.0, 40.0, 80.0, 160.0),
    "rise": (-0.1, 0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
    "fall": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
}
FEWEST = 0.6  # of the calls: how few `adaptive_grid` is asked for, since it makes more where a sample moves much


def warp(share: float, early: float, late: float, shift: float) -> float:
    """A share of the way in [0, 1] as another: rising, its ends kept; itself at (1, 1, 0).

    1 - (1 - s^early)^late, and shift sin(2 pi s) / (2 pi) added.

    Args:
        share: In [0, 1].
        early: Exponent, > 0: above 1 the first steps are shorter.
        late: Exponent, > 0: below 1 the last steps are shorter.
        shift: In (-1, 1): above 0 steps are shorter in the middle.

    References: Kumaraswamy 1980, Journal of Hydrology 46 (the first part, his distribution's function).
    """
    bent: float = 1.0 - (1.0 - share**early) ** late
    return min(1.0, max(0.0, bent - shift * math.sin(2.0 * math.pi * bent) / (2.0 * math.pi)))


@dataclass(frozen=True)
class Builder:
    """Makes policies of the values of a point.

    Args:
        beginning: Where the model's runs begin.
        calls: That are asked for.
        tuned: Times of the grid of the dynamic programming, from the start to 0.
        of: What it forecasts.
    """

    beginning: Beginning
    calls: int
    tuned: tuple[float, ...]
    of: str

    def policy(self, values: Mapping[str, Any]) -> Policy:
        """The policy of these values.

        Raises:
            SpecError: settings that do not go together, or a grid that cannot be made on this schedule.
        """
        name = values[POLICY]
        settings = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
        below = float(values.get(GATE, 0.0))
        policy = self._path(settings, below) if name == Path.name else named_policy(name, settings)
        if below > 0.0:
            policy = policy | registry.parse("policy", f"guidance_gate(below={below})")
        return policy

    @property
    def start(self) -> dict[str, Any]:
        """The values of the dynamic programming's own policy."""
        solver = "adams" if self.of == "pair" else f"adams(of={self.of!r})"
        bend = {"path.early": 1.0, "path.late": 1.0, "path.shift": 0.0, "path.more_steps": 0}
        return {POLICY: Path.name, "path.times": TUNED, "path.solver": solver, **bend, GATE: 0.0}

    def starts(self, space: Space) -> list[dict[str, int]]:
        """The points that every search begins with: that grid by its own solver, and by the others of the space."""
        if Path.name not in space.dimensions[0].values:
            return []
        solvers = next((one.values for one in space.dimensions if one.name == "path.solver"), ())
        known = [self.start, *(self.start | {"path.solver": solver} for solver in solvers)]
        points = [space.point(values) for values in known]
        return [point for k, point in enumerate(points) if point not in points[:k]]

    def _path(self, settings: Mapping[str, Any], below: float) -> Policy:
        steps = self.calls + (int(settings.get("more_steps", 0)) if below > 0.0 else 0)
        bend = tuple(float(settings.get(key, usual)) for key, usual in (("early", 1), ("late", 1), ("shift", 0)))
        times = self._times(str(settings.get("times", TUNED)), steps)
        if bend != (1.0, 1.0, 0.0) or len(times) != steps + 1:
            times = self._bent(times, bend, steps)
        solver = registry.parse("solver", str(settings.get("solver", self.start["path.solver"])))
        return path_policy(times, getattr(solver, "of", "pair"), solver.name)

    def _times(self, name: str, steps: int) -> tuple[float, ...]:
        if name == TUNED:
            return self.tuned
        found = registry.parse("grid", name).times(self.beginning.schedule, steps)
        return self.beginning.grid(found[1:-1]).times

    def _bent(self, times: Sequence[float], bend: tuple[float, ...], steps: int) -> tuple[float, ...]:
        """So many steps along the same way, denser or sparser."""
        import numpy as np

        schedule = self.beginning.schedule
        angles, own = [schedule.angle(t) for t in times], np.linspace(0.0, 1.0, len(times))
        wanted = [float(np.interp(warp(k / steps, *bend), own, angles)) for k in range(1, steps)]
        return self.beginning.grid([_time_at(schedule, angle) for angle in wanted]).times


def _time_at(schedule: Schedule, angle: float) -> float:
    return schedule.time(-math.log(math.tan(angle))) if angle < math.pi / 2 else 1.0


def named_policy(name: str, settings: Mapping[str, Any]) -> Policy:
    """A registered policy with these settings; `calibration` is one of those that it brings for calibration.

    Raises:
        SpecError: settings that do not go together.
    """
    given = dict(settings)
    given |= given.pop(CALIBRATION, {})
    policy: Policy = registry.find_class("policy", name)(**_typed(name, given))
    return policy


def _typed(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Whole numbers where a setting takes these."""
    kinds = field_types(registry.find_class("policy", name))
    return {key: round(value) if kinds.get(key) is int else value for key, value in settings.items()}


def default_space(beginning: Beginning, calls: int, guided: bool) -> Space:
    """The space that is searched where no other is given.

    Args:
        beginning: Where the model's runs begin: grids that its schedule cannot have are left out.
        calls: That are asked for.
        guided: Whether a call has an unconditional branch, which can be forecast for half of it.
    """
    path: dict[str, Sequence[Any]] = {
        "times": (TUNED, *(name for name in GRIDS if _is_possible(name, beginning, calls))),
        "solver": SOLVERS,
        "early": spread(*BEND, LEVELS, log=True),
        "late": spread(*BEND, LEVELS, log=True),
        "shift": spread(-SHIFT, SHIFT, LEVELS),
    }
    if guided:
        path["more_steps"] = MORE_STEPS
    adaptive = {"calls": tuple(range(max(1, round(FEWEST * calls)), calls + 1)), **ADAPTIVE_GRID}
    tols = [one["tol"] for one in calibration_settings("stride")]
    stride = {"tol": tuple(sorted(tols)), "fade": STRIDE_FADES}
    return Space(
        (
            Dimension(POLICY, (Path.name, "adaptive_grid", "stride")),
            *dimensions_of(Path.name, path),
            *dimensions_of("adaptive_grid", adaptive),
            *dimensions_of("stride", stride),
            *([Dimension(GATE, BELOW)] if guided else []),
        )
    )


def calibration_settings(policy: str) -> Sequence[Mapping[str, Any]]:
    """The settings that a policy brings for calibration, from careful to bold."""
    found: Sequence[Mapping[str, Any]] = registry.find_class("policy", policy).calibration_settings  # type: ignore[attr-defined]  # a Policy
    return found


def _is_possible(name: str, beginning: Beginning, calls: int) -> bool:
    try:
        times = registry.parse("grid", name).times(beginning.schedule, calls)
    except SkipstoneError:
        return False
    return all(a > b for a, b in itertools.pairwise(times))


def check_solver(name: str) -> None:
    """Raise SpecError for a solver that `path` cannot bring."""
    if name not in SOLVERS:
        guess = registry.suggest_spelling(name, SOLVERS)
        raise SpecError(f"path.solver: expected one of {', '.join(SOLVERS)}, got {name!r}.{guess}")
