"""ZEUS: skip by a fixed pattern, extrapolating and repeating in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import Forecast, Plan, Policy, PredictionType, Run
from ..errors import SpecError
from ..registry import register
from ..settings import MAX_STEPS, Ranges, check_settings, shorten


@register("policy")
@dataclass(frozen=True)
class Zeus(Policy):
    """Skip by a fixed pattern, each run of skips extrapolated and repeated in turn: ZEUS as released.

    After step i, with the first being 0, step i + 1 is skipped when first <= i < last and i mod `denominator`
    is among `modular`. The odd skips of a run take twice the last called output less the one before, whatever the
    times of the two; the even ones repeat the last: no extrapolation follows another.

    From step `lagrange_step` on, where `lagrange` is not 0, every `lagrange_every`-th step is called and the others
    take the polynomial of the clean estimates through the last `lagrange` calls. The released code takes it through the
    steps numbered 1 mod `lagrange_every`, called or not, on the number of the step: the same where all of these lie
    behind `lagrange_step` on a grid even in t, a little older before. Steps are numbers for a grid of 50, as
    published. Of the paper only the abstract was read; this follows the code of its DPM-Solver++ scheduler.

    Args:
        denominator: Length of the pattern, in 1..10,000 steps.
        modular: Places of the pattern after which a step is skipped, each in 0..9,999 and below `denominator`.
        first, last: Steps after which skipping begins and ends, in 0..10,000 (3 at least is used).
        max_skip: Longest run of skips, in 0..10,000 steps. 0 never skips.
        lagrange: Calls that the late polynomial goes through, in 0..4. 0 keeps the pattern to the end.
        lagrange_step: Step from which it is used, in 0..10,000.
        lagrange_every: Steps from one call to the next there, in 1..10,000.
        of: What the network predicts: eps, v, x0 or flow; ZEUS extrapolates that.

    Raises:
        SpecError: a setting out of range.

    References: Wang et al. 2026, arXiv 2604.01552; github.com/Ting-Justin-Jiang/ZEUS.
    """

    denominator: int = 2
    modular: tuple[int, ...] = (1,)
    first: int = 10
    last: int = 47
    max_skip: int = 4
    lagrange: int = 0
    lagrange_step: int = 24
    lagrange_every: int = 6
    of: PredictionType = "eps"
    name: ClassVar[str] = "zeus"
    neutral: ClassVar[Mapping[str, Any]] = {"max_skip": 0}
    ranges: ClassVar[Ranges] = {
        "denominator": (1, MAX_STEPS),
        "modular": (0, MAX_STEPS - 1),
        **dict.fromkeys(("first", "last", "max_skip", "lagrange_step"), (0, MAX_STEPS)),
        "lagrange": (0, 4),
        "lagrange_every": (1, MAX_STEPS),
    }

    def __post_init__(self) -> None:
        check_settings(self)
        if not all(m < self.denominator for m in self.modular):
            raise SpecError(
                f"zeus: expected every element of modular to be below denominator={self.denominator}, got "
                f"{shorten(self.modular)}; try modular=(0,) or a larger denominator."
            )

    def plan(self, run: Run, proposal: Plan) -> Plan:
        how = (
            self._how(len(run.accepted_attempts) - 1, run.num_consecutive_forecasts) if proposal.is_unamended else None
        )
        return proposal if how is None else replace(proposal, evaluate=how)

    def _how(self, step: int, streak: int) -> Forecast | None:
        """How the next step is predicted without a call; None if it needs one."""
        if streak >= self.max_skip or not max(self.first, 3) <= step < self.last:
            return None
        if self.lagrange and step >= self.lagrange_step:
            return Forecast(self.lagrange - 1, "x0", "t") if step % self.lagrange_every else None
        if step % self.denominator not in self.modular:
            return None
        return Forecast(1 if streak % 2 == 0 else 0, self.of, "calls")
