"""Denoise the region that attends to the prompt's words a second time, once per run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import Plan, Policy, Refine, Run
from ..numerics.schedule import CLOCK_LIMIT
from ..registry import register
from ..settings import Ranges, check_settings


@register("policy")
@dataclass(frozen=True)
class RefineOnce(Policy):
    """Denoise the region that attends to the prompt's words a second time, once per run; leave the rest as it is.

    The first step that starts at half log-SNR `at` or later is taken, and where it led the region is noised
    again and denoised in `steps` more calls. The region is where the words of the prompt get more than
    `threshold` of a cell's attention, against start, end and padding: on Pebble the objects. It is no
    map of what went wrong: damage hardly shows there. Needs a backbone that gives a map; in a pipeline's own
    loop there is none.

    Args:
        at: Half log-SNR, in [-12, 12]; at 0 picture and noise are equally strong.
        steps: Calls of the refinement, in 0..100, each charged. 0 never refines.
        back: Level to which noise is added, as a share of the angle that is left to pure noise, in [0.001, 1].
        threshold: Share of attention, in [0, 1]. At 1 nothing is refined, at 0 everything.
        edge: Cells by which the region is widened and again by which it fades, in 0..64. 0, the region itself,
            repairs best: with the true region 41 dB on Pebble where 1 reaches 37.
        below: Refine where the share is less than `threshold`, the ground, in place of more.

    Raises:
        SpecError: a setting out of range.

    References: Lugmayr et al. 2022, arXiv 2201.09865 (RePaint); the idea of refining where the prompt attends is that
    of AdDiffusion (github.com/d3v-26/addiffusion).
    """

    at: float = 0.0
    steps: int = 3
    back: float = 0.5
    threshold: float = 0.5
    edge: int = 0
    below: bool = False
    name: ClassVar[str] = "refine"
    neutral: ClassVar[Mapping[str, Any]] = {"steps": 0}
    ranges: ClassVar[Ranges] = {
        "at": (-CLOCK_LIMIT, CLOCK_LIMIT),
        "steps": (0, 100),
        "back": (1e-3, 1),
        "threshold": (0, 1),
        "edge": (0, 64),
    }

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def may_spend_more(self) -> bool:
        return self.steps > 0

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if (
            self.steps == 0
            or not proposal.is_unamended
            or run.next_start <= run.t_end
            or run.clock(run.next_start) < self.at
        ):
            return proposal
        if any(isinstance(a.plan.evaluate, Refine) for a in run.accepted_attempts):
            return proposal
        how = Refine(self.steps, self.back, self.threshold, self.edge, self.below)
        return replace(proposal, evaluate=how)
