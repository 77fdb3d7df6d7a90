"""The exact denoiser of a Gaussian mixture: nonlinear, conditional, with guidance; still no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

from ...engine.contracts import ATTENTION, COND, UNCOND, PredictionType
from ...engine.requests import Estimate, Query
from ...errors import BackboneError, SpecError
from ...numerics.array import array_namespace, weighted_sum
from ...numerics.parametrize import from_x0, to_x0
from ...numerics.schedule import Cosine, Schedule
from ...registry import register
from ...settings import Ranges, check_settings

COSINE = Cosine()


@register("backbone")
@dataclass(frozen=True)
class Mixture:
    """Exact scores of data drawn from sum_k weight_k N(mean_k, std_k^2), independent in every element.

    x0 = sum_k r_k (mean_k + gain_k (x - alpha mean_k)), with responsibilities r_k of the components and
    gain_k = alpha std_k^2 / (alpha^2 std_k^2 + sigma^2). `Query.cond` k asks for component k alone, None for the
    whole mixture. With `guidance` other than 1 a full call has the branches "cond" and "uncond", both sites.

    Args:
        means: Of the components, in units of the sample, in [-1e6, 1e6].
        stds: Of the components, in [1e-12, 1e6].
        weights: Of the components, in [1e-12, 1], summing to 1.
        guidance: Weight w of uncond + w (cond - uncond), in [-1000, 1000]. 1 evaluates the conditional branch alone.
        prediction: What the branches put out, and what forecasts of them are made of.
        schedule: Noise schedule.

    Raises:
        SpecError: settings that are no mixture.
        BackboneError: a condition that is no component, or an output given for a site that is none.
    """

    means: tuple[float, ...] = (-0.9, 0.2, 1.1)
    stds: tuple[float, ...] = (0.25, 0.4, 0.3)
    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    guidance: float = 1.0
    prediction: PredictionType = "eps"
    schedule: Schedule = COSINE
    name: ClassVar[str] = "mixture"
    ranges: ClassVar[Ranges] = {
        "means": (-1e6, 1e6),
        "stds": (1e-12, 1e6),
        "weights": (1e-12, 1),
        "guidance": (-1e3, 1e3),
    }

    def __post_init__(self) -> None:
        check_settings(self)
        alike = len(self.means) == len(self.stds) == len(self.weights) > 0
        if not alike or not math.isclose(sum(self.weights), 1.0):
            raise SpecError(
                f"mixture: expected as many means as stds > 0 and weights > 0 summing to 1, "
                f"got {self.means}, {self.stds} and {self.weights}."
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """The guidance branches, or none where there is only one."""
        return (COND, UNCOND) if self.guidance != 1.0 else ()

    @property
    def branches(self) -> int:
        """Branches of a full call."""
        return len(self.sites) or 1

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """The guided estimate of each query."""
        return [self._estimate(query) for query in queries]

    def _estimate(self, query: Query) -> Estimate:
        if strange := query.known_outputs.keys() - set(self.sites):
            raise BackboneError(f"Sites of this mixture: {', '.join(self.sites) or 'none'}; given: {sorted(strange)}.")
        fresh = {b: self._branch(query, b) for b in (self.sites or (COND,)) if b not in query.known_outputs}
        said = {**query.known_outputs, **fresh}
        output = said[COND]
        if self.sites:
            output = weighted_sum([self.guidance, 1.0 - self.guidance], [said[COND], said[UNCOND]])
        x0 = to_x0(self.prediction, output, query.x, self.schedule.alpha(query.t), self.schedule.sigma(query.t))
        wanted = {b: value for b, value in fresh.items() if b in query.wanted_sites}
        if ATTENTION in query.wanted_sites:
            wanted[ATTENTION] = self._attention(query)
        return Estimate(x0, len(fresh) / self.branches, output, self.prediction, wanted)

    def _attention(self, query: Query) -> Any:
        """Probability that a cell's values are of the component asked for, mean over all axes but the last two."""
        a, s = self.schedule.alpha(query.t), self.schedule.sigma(query.t)
        shares, _ = self._shares(query.x, a, s, range(len(self.means)))
        total = reduce(lambda p, q: p + q, shares)
        share = (shares[query.cond] if query.cond is not None else total) / total
        return share.reshape(-1, *share.shape[-2:]).mean(0)

    def _branch(self, query: Query, branch: str) -> Any:
        chosen = range(len(self.means))
        if branch == COND and query.cond is not None:
            if query.cond not in chosen:
                raise BackboneError(f"Expected a component 0..{len(self.means) - 1} or None, got {query.cond!r}.")
            chosen = range(query.cond, query.cond + 1)
        a, s = self.schedule.alpha(query.t), self.schedule.sigma(query.t)
        return from_x0(self.prediction, self._clean(query.x, a, s, chosen), query.x, a, s)

    def _clean(self, x: Any, a: float, s: float, chosen: Sequence[int]) -> Any:
        """E[x0 | x] under the chosen components."""
        shares, estimates = self._shares(x, a, s, chosen)
        total = reduce(lambda p, q: p + q, shares)
        weighted = [share * estimate for share, estimate in zip(shares, estimates, strict=True)]
        return reduce(lambda p, q: p + q, weighted) / total

    def _shares(self, x: Any, a: float, s: float, chosen: Sequence[int]) -> tuple[list[Any], list[Any]]:
        """Responsibilities of the chosen components, not yet summing to 1, and what each takes x0 for."""
        xp = array_namespace(x)
        logs, estimates = [], []
        for k in chosen:
            mean, std = self.means[k], self.stds[k]
            variance = a * a * std * std + s * s
            away = x - a * mean
            logs.append(away * away * (-0.5 / variance) + (math.log(self.weights[k]) - 0.5 * math.log(variance)))
            estimates.append(away * (a * std * std / variance) + mean)
        top = reduce(xp.maximum, logs)
        return [xp.exp(log - top) for log in logs], estimates
