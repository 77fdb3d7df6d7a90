"""Skip the network while the latent moves smoothly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ..engine.contracts import Clock, Forecast, Plan, Policy, PredictionType, Run
from ..registry import register
from ..settings import MAX_STEPS, MAX_TOLERANCE, Ranges, check_settings

CHANGE = "latent_change"


def relative_curvature(d: Sequence[float]) -> float:
    """|(d[-1] + d[-3]) / 2 - d[-2]| / d[-2]: half the second difference of the last three, relative.

    With d the sizes of the latent's changes this is the released third-order criterion of
    AdaptiveDiffusion (Ye et al. 2024, arXiv 2410.09873). Dimensionless; 0 for three equal or evenly
    spaced values. Infinite where d[-2] is 0 and the others are not; 0 where all three are 0.
    """
    bend = abs((d[-1] + d[-3]) / 2 - d[-2])
    if d[-2] == 0.0:
        return 0.0 if bend == 0.0 else float("inf")
    return bend / abs(d[-2])


@register("policy")
@dataclass(frozen=True)
class ThirdOrder(Policy):
    """Forecast while the third difference of the latent stays small against the first.

    With d_i the mean |x_next - x| of step i, the step after i is forecast when
    |(d_i + d_{i-2}) / 2 - d_{i-1}| <= tol * d_{i-1}, each sample by itself.

    Args:
        tol: Relative tolerance, dimensionless, in [0, 1e9]. 0 never skips, save where the change is exactly even.
        max_skip: Longest run of consecutive forecasts, in 0..10,000 steps. 0 never skips.
        warmup: Steps at the start that are always called, in 4..10,000: the criterion needs them.
        tail: Steps at the end that are always called, in 0..10,000.
        order: Of the forecast, in 0..3. Order 0 of eps repeats the last noise prediction, as published.
        of: Prediction that is forecast: eps, x0, v or flow.
        clock: What it is forecast against: logsnr, t or angle.

    Raises:
        SpecError: a setting out of range.

    References: Ye et al. 2024, arXiv 2410.09873 (NeurIPS 2024).
    """

    tol: float = 0.01
    max_skip: int = 4
    warmup: int = 4
    tail: int = 1
    order: int = 0
    of: PredictionType = "eps"
    clock: Clock = "logsnr"
    name: ClassVar[str] = "third_order"
    needs: ClassVar[frozenset[str]] = frozenset({CHANGE})
    neutral: ClassVar[Mapping[str, Any]] = {"max_skip": 0}
    ranges: ClassVar[Ranges] = {
        "tol": (0, MAX_TOLERANCE),
        "max_skip": (0, MAX_STEPS),
        "warmup": (4, MAX_STEPS),
        "tail": (0, MAX_STEPS),
        "order": (0, 3),
    }

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        accepted = run.accepted_attempts
        bound = (
            len(accepted) < self.warmup
            or run.is_in_tail(proposal, self.tail)
            or run.num_consecutive_forecasts >= self.max_skip
        )
        if (
            bound
            or not proposal.is_unamended
            or relative_curvature([a.signals[CHANGE] for a in accepted[-3:]]) > self.tol
        ):
            return proposal
        return replace(proposal, evaluate=Forecast(self.order, self.of, self.clock))


@register("policy")
@dataclass(frozen=True)
class ThirdOrderReleased(Policy):
    """The third-order rule exactly as its authors released it, quirks included: for reproduction.

    The criterion of `third_order` on the mean d_i of the whole batch, one decision for all, with
    what the released code does beside it:

    * The cap does not apply to the first five decisions and then looks at them all: the first run of
      skips is 5 long at most, whatever `max_skip`.
    * `max_skip=0` does not switch skipping off: it forces one call, then never another.
    * No step at the end is protected, and the noise prediction is repeated, not extrapolated.

    Calls = 4 + the decisions to call among the first N - 4, for N steps.

    Args:
        tol: Relative tolerance, dimensionless, in [0, 1e9]. 0 skips only where the change is exactly even.
        max_skip: Their C_max, in 0..10,000: see above for 0.
        warmup: Steps at the start that are always called, in 4..10,000 (4 as released; as many as the grid
            has: `fixed`).

    Raises:
        SpecError: a setting out of range.

    References: Ye et al. 2024, arXiv 2410.09873 (NeurIPS 2024).
    """

    tol: float = 0.01
    max_skip: int = 4
    warmup: int = 4
    name: ClassVar[str] = "third_order_released"
    needs: ClassVar[frozenset[str]] = frozenset({CHANGE})
    scope: ClassVar[Literal["sample", "batch"]] = "batch"
    neutral: ClassVar[Mapping[str, Any]] = {"warmup": MAX_STEPS}
    ranges: ClassVar[Ranges] = {"tol": (0, MAX_TOLERANCE), "max_skip": (0, MAX_STEPS), "warmup": (4, MAX_STEPS)}

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return self.plan_batch([run], [proposal])[0]

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        if self._calls(runs):
            return list(proposals)
        return [replace(p, evaluate=Forecast()) if p.is_unamended else p for p in proposals]

    def _calls(self, runs: Sequence[Run]) -> bool:
        """The decision for the next step of all these runs."""
        columns = list(zip(*(r.accepted_attempts for r in runs), strict=False))  # the batch, step by step
        mask = [not all(a.is_forecast for a in column) for column in columns[self.warmup :]]
        if len(columns) < self.warmup:
            return True
        if len(mask) > 4 and not any(mask[-self.max_skip :]):  # at max_skip 0 this is the whole mask, as released
            return True
        d = [sum(a.signals[CHANGE] for a in column) / len(column) for column in columns[-3:]]
        return relative_curvature(d) > self.tol
