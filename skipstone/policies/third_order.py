"""Skip the network while the latent moves smoothly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import Clock, Forecast, Full, Plan, Policy, Run, View
from ..errors import SpecError
from ..numerics.differences import relative_bend
from ..registry import register


@register("policy")
@dataclass(frozen=True)
class ThirdOrder(Policy):
    """Forecast while the third difference of the latent stays small against the first.

    With d_i the mean |x_next - x| of step i, the step after i is forecast when
    |(d_i + d_{i-2}) / 2 - d_{i-1}| <= tol * d_{i-1}, each sample by itself.

    Args:
        tol: Relative tolerance, dimensionless, >= 0. 0 never skips, save where the change is exactly even.
        max_skip: Longest run of consecutive forecasts, in steps, >= 0. 0 never skips.
        warmup: Steps at the start that are always called, >= 4: the criterion needs them.
        tail: Steps at the end that are always called, >= 0.
        order, of, clock: The forecast. Order 0 of eps repeats the last noise prediction, as published.

    Raises:
        SpecError: a setting out of range.

    References: Ye et al. 2024, arXiv 2410.09873 (NeurIPS 2024).
    """

    tol: float = 0.01
    max_skip: int = 4
    warmup: int = 4
    tail: int = 1
    order: int = 0
    of: View = "eps"
    clock: Clock = "logsnr"
    name: ClassVar[str] = "third_order"
    needs: ClassVar[frozenset[str]] = frozenset({"latent_change"})
    neutral: ClassVar[Mapping[str, Any]] = {"max_skip": 0}

    def __post_init__(self) -> None:
        if self.tol < 0 or self.max_skip < 0 or self.warmup < 4 or self.tail < 0 or not 0 <= self.order <= 3:
            raise SpecError(
                f"third_order: expected tol >= 0, max_skip >= 0, warmup >= 4, tail >= 0 and order 0..3, got {self}."
            )

    def plan(self, run: Run, proposal: Plan) -> Plan:
        kept = run.kept
        if proposal.evaluate != Full() or len(kept) < self.warmup or len(run.left) <= self.tail:
            return proposal
        recent = kept[-self.max_skip :] if self.max_skip else ()
        if not any(a.called for a in recent):
            return proposal
        smooth = relative_bend([a.signals["latent_change"] for a in kept[-3:]]) <= self.tol
        return replace(proposal, evaluate=Forecast(self.order, self.of, self.clock)) if smooth else proposal
