"""A student draws from here to the end.

Its steps are those it was trained for: equal ones of the grid `trailing`, each along a constant clean estimate,
x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0 (DDIM; Euler along a flow).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ..numerics.finishing import finishing_step
from ..numerics.schedule import Schedule
from .contracts import Draft
from .requests import Estimate, Query, SolverRequest, Step


def draft_times(steps: int, t: float, t_end: float) -> list[float]:
    """Ends of the student's steps from t, the last of them `t_end`; fewer than `steps` where t is late."""
    return [s for k in range(steps - 1, 0, -1) if t_end < (s := k / steps) < t - 1e-9] + [t_end]


def draw_draft(x: Any, t: float, t_end: float, how: Draft, schedule: Schedule) -> Generator[SolverRequest, Any, Step]:
    """The student's sample at the end."""
    for s in draft_times(how.steps, t, t_end):
        estimate: Estimate = yield Query(x, t, by_student=True)
        x, t = finishing_step(x, t, s, schedule, [(t, estimate.x0)]), s
    return Step(x)
