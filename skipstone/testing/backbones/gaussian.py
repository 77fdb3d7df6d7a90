"""The exact denoiser of Gaussian data: its probability-flow ODE has a closed-form solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...engine.contracts import ATTENTION
from ...engine.requests import Estimate, Query
from ...numerics.schedule import Cosine, Schedule
from ...registry import register
from ...settings import Ranges, check_settings

COSINE = Cosine()


@register("backbone")
@dataclass(frozen=True)
class Gaussian:
    """Exact scores of N(mean, std^2) data, independent in every element; any array library.

    Args:
        mean: Of the data, in units of the sample, in [-1e6, 1e6].
        std: Of the data, in [1e-12, 1e6].
        schedule: Noise schedule.

    Raises:
        SpecError: a setting out of range.
    """

    mean: float = 0.5
    std: float = 0.7
    schedule: Schedule = COSINE
    name: ClassVar[str] = "gaussian"
    sites: ClassVar[tuple[str, ...]] = ()
    branches: ClassVar[int] = 1
    ranges: ClassVar[Ranges] = {"mean": (-1e6, 1e6), "std": (1e-12, 1e6)}

    def __post_init__(self) -> None:
        check_settings(self)

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """E[x0 | x, t] for each query; of attention, all that there is."""
        estimates = []
        for q in queries:
            a, s = self.schedule.alpha(q.t), self.schedule.sigma(q.t)
            gain = a * self.std**2 / (a * a * self.std**2 + s * s)
            whole = {ATTENTION: 0.0 * q.x.reshape(-1, *q.x.shape[-2:])[0] + 1.0} if ATTENTION in q.wanted_sites else {}
            estimates.append(Estimate((q.x - a * self.mean) * gain + self.mean, features=whole))
        return estimates

    def exact(self, x: Any, t: float, t_next: float) -> Any:
        """x at t_next on the trajectory through x at t."""

        def spread(t: float) -> float:
            return math.hypot(self.schedule.alpha(t) * self.std, self.schedule.sigma(t))

        z = (x - self.schedule.alpha(t) * self.mean) * (1 / spread(t))
        return z * spread(t_next) + self.schedule.alpha(t_next) * self.mean
