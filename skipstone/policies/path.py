"""Land on given times, the same for every sample: a grid found for a model, and what adaptive steps must beat."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from ..engine.contracts import Plan, Policy, Run
from ..errors import SpecError
from ..registry import register
from ..settings import check_settings, shorten


@register("policy")
@dataclass(frozen=True)
class Path(Policy):
    """Take steps that land on these times and then on the end, whatever the grid says.

    Args:
        times: Falling times between noise (1) and data (0), apart from both, separated by spaces. None takes
            every step of the grid.
        of: What the forecasts of `adams` hold: the "pair", or "x0" alone, for some ten calls. Other solvers do not
            read it.
        by: Its solver: adams, kriging, unipc or dpmpp.

    Raises:
        SpecError: times that do not fall, or lie outside of (0, 1); forecasts of something else.

    References: Sabour et al. 2024, arXiv 2404.14507 (steps aligned to a model); ours as a policy.
    """

    times: str = ""
    of: Literal["pair", "x0"] = "pair"
    by: Literal["adams", "kriging", "unipc", "dpmpp"] = "adams"
    name: ClassVar[str] = "path"
    neutral: ClassVar[Mapping[str, Any]] = {"times": ""}
    may_spend_more: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            falling = all(a > b for a, b in itertools.pairwise((1.0, *self.places, 0.0)))
        except (ValueError, AttributeError):
            falling = False
        if not falling:
            raise SpecError(
                f"path: expected falling times between 1 and 0, e.g. times='0.9 0.6 0.3', got {shorten(self.times)}."
            )
        check_settings(self)

    @property
    def solver(self) -> str:
        return self.by if self.by != "adams" or self.of == "pair" else f"adams(of={self.of!r})"

    @cached_property
    def places(self) -> tuple[float, ...]:
        """The times."""
        return tuple(map(float, self.times.split()))

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if not self.places or not proposal.is_unamended or run.next_start <= run.t_end:
            return proposal
        return replace(proposal, t_next=max(run.t_end, next((t for t in self.places if t < run.next_start), run.t_end)))
