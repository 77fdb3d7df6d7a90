"""Adaptive step sizes from the curvature of each sample's trajectory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import Attempt, Cached, Full, Plan, Policy, Run
from ..registry import register
from ..settings import MAX_TOLERANCE, Ranges, check_settings
from .bend import LAST, LINE, measure_bend
from .places import nearest_place

MAX_STEP = 0.4  # step, in radians of the pi / 2 from noise to data
MAX_GROWTH = 2.0  # of a step over the one before
MAX_REMAINING_SHARE = 0.6  # of the angle that is left, which a step that does not end the run may take
LAST_STEP_WEIGHT = 5.0  # the last step is not corrected: its error weighs so many times more


@register("policy")
@dataclass(frozen=True)
class Stride(Policy):
    """Choose each step size from the measured curvature of the sample's trajectory; ignore the grid's steps.

    On the angle u = atan(sigma / alpha) the sample moves by dz / du = v. Every call shows how far v has left the line
    through the two calls before, e = rms(v - line), over steps of k and k_1; then b = e / (k (k + k_1)) is the bend,
    and a step of h makes an error of about b h^3 exp(-fade u) in the picture. So
    h = (tol exp(fade u) / b)^(1/3), at most twice the step before. The step is set when the call at its
    start is known: the attempt made before is taken again from there, which costs nothing. The first step, before
    anything is known, is at most one of the grid. Lands on times of the grid and on `places` - 1 even places between
    two of them, and never makes more calls than the grid has steps: where fewer calls are left than steps of the grid,
    a step is at least an even share of the way. Made for `adams`, and for other solvers of one call a step; in a
    chain it comes first.

    Args:
        tol: Error of a step allowed, in units of the sample (rms), in [0, 1e9]. 0 takes every step of the grid.
        fade: How an error made early fades on its way to the picture, per radian, in [0, 10]. 0 treats all steps
            alike.
        bend: b of the first step, before any can be measured, in [1e-9, 1e9]; larger starts more carefully.
        places: Places to land on for each step of the grid, in 1..100. 1 keeps to the grid.

    Raises:
        SpecError: a setting out of range.

    References: Hairer, Norsett & Wanner 1993, Solving ODEs I, II.4 (step size control); ours as a whole.
    """

    tol: float = 0.004
    fade: float = 0.7
    bend: float = 500.0
    places: int = 4
    name: ClassVar[str] = "stride"
    neutral: ClassVar[Mapping[str, Any]] = {"tol": 0.0}
    solver: ClassVar[str] = "adams"
    ranges: ClassVar[Ranges] = {"tol": (0, MAX_TOLERANCE), "fade": (0, 10), "bend": (1e-9, 1e9), "places": (1, 100)}
    # Each makes about 9 % fewer calls than the one before: from 30 of 50 to 8 on Pebble.
    calibration_settings: ClassVar[Sequence[Mapping[str, Any]]] = tuple(
        {"tol": float(f"{0.001 * 1.42**k:.2g}")} for k in range(14)
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({LINE, LAST})

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if self.tol == 0.0 or not proposal.is_unamended:
            return proposal
        last = run.pending
        # a step that was taken again already stays: by this policy, or by one that must not be overruled
        if last is not None and isinstance(last.plan.evaluate, Full | Cached) and not run.is_retry:
            wanted = self._landing(run, last)
            if wanted != last.t_next:
                return replace(proposal, evaluate=last.plan.evaluate, accept=False, t_next=wanted)
        if run.next_start <= run.t_end:
            return proposal
        here = run.angle(run.next_start)
        grid_step = here - run.angle(proposal.t_next)
        first = min(MAX_STEP, grid_step, (self._allowed(here) / self.bend) ** (1 / 3))
        return replace(proposal, t_next=nearest_place(run.angles, run.next_start, here - first, self.places))

    def _allowed(self, angle: float) -> float:
        return self.tol * math.exp(self.fade * angle)

    def _landing(self, run: Run, last: Attempt) -> float:
        """Time at which the pending step should land, once the call at its start is known."""
        here, left = run.angle(last.t), self._left(run)
        if left == 0:
            return run.t_end
        bend, before = measure_bend(run, last, here)
        if bend is None:
            return last.t_next
        allowed = self._allowed(here) / bend
        if here <= (allowed / LAST_STEP_WEIGHT) ** (1 / 3):
            return run.t_end
        step = min(MAX_STEP, MAX_GROWTH * before, MAX_REMAINING_SHARE * here, allowed ** (1 / 3))
        return nearest_place(run.angles, last.t, here - max(step, self._share(run, last.t, left)), self.places)

    def _share(self, run: Run, start: float, left: int) -> float:
        """Length that a step from `start` has at least, so that `left` calls after it reach the end.

        The fewer calls are left, the less may it fall short of an even share of the way; where they are enough to take
        every step of the grid, it need not pass the grid's next time.
        """
        here, ahead = run.angle(start), [t for t in run.grid if t < start]
        share = (1 - left / (len(run.grid) - 1)) * here / (left + 1)
        return min(share, here - run.angle(ahead[0])) if len(ahead) <= left + 1 else share

    def _left(self, run: Run) -> int:
        """Calls that the grid would still make after the pending one, had it made as many as this run."""
        return max(0, len(run.grid) - 1 - sum(not a.is_forecast for a in run.accepted_attempts))
