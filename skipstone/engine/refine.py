"""Refining a region of the sample: noised again, denoised in a few calls, the rest pinned to where it was.

Let (x0, eps) be the clean estimate and the noise with alpha x0 + sigma eps = x at t_next, where the step led. The
region is noised to a higher level s, x_s = alpha_s / alpha x + (sigma_s^2 - (alpha_s / alpha)^2 sigma^2)^(1/2) noise,
and denoised back to t_next; at each level the sample is m x_s + (1 - m) (alpha_s x0 + sigma_s eps), with m the mask.
At t_next the latter is x itself, so that nothing changes where m is 0.

References: Lugmayr et al. 2022, arXiv 2201.09865 (RePaint); Avrahami et al. 2022, arXiv 2206.02779 (blended latents).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from ..errors import BackboneError
from ..numerics.array import cast_like, weighted_sum
from ..numerics.finishing import finishing_step
from ..numerics.parametrize import from_x0
from ..numerics.region import soft_mask
from ..numerics.schedule import Schedule
from .contracts import ATTENTION, Refine
from .requests import Estimate, Node, Noise, Query, SolverRequest, Step
from .signals import usable_indices


@dataclass(frozen=True, slots=True)
class NoisePath:
    """A clean estimate and a noise: the samples alpha(s) x0 + sigma(s) eps at all levels."""

    x0: Any
    eps: Any

    @classmethod
    def through(cls, x: Any, t: float, node: Node, schedule: Schedule, stochastic: bool = False) -> NoisePath:
        """The line through x at t that is nearest to the one through a node; its x0 alone where noise was added."""
        a, s = schedule.alpha(t), schedule.sigma(t)
        x0 = node.estimate.x0
        if stochastic and s > 0.0:
            return cls(x0, weighted_sum([1.0 / s, -a / s], [x, x0]))
        eps = from_x0("eps", x0, node.x, schedule.alpha(node.t), schedule.sigma(node.t))
        size = a * a + s * s
        missed = weighted_sum([1.0 / size, -a / size, -s / size], [x, x0, eps])
        return cls(weighted_sum([1.0, a], [x0, missed]), weighted_sum([1.0, s], [eps, missed]))

    def at(self, t: float, schedule: Schedule) -> Any:
        """The sample at t."""
        return weighted_sum([schedule.alpha(t), schedule.sigma(t)], [self.x0, self.eps])


def compute_mask(node: Node, how: Refine) -> Any:
    """The mask that a call's attention gives, for samples (..., height, width)."""
    evidence = node.estimate.features.get(ATTENTION)
    if evidence is None:
        raise BackboneError(
            "Expected a map of attention beside the estimate, as a step is to be refined where the prompt attends, and "
            "this backbone gave none. Leave `refine` out, or use a backbone that answers 'attention' among "
            "`Query.wanted_sites`."
        )
    if tuple(evidence.shape[-2:]) != tuple(node.x.shape[-2:]):
        raise BackboneError(
            f"Expected a map of attention of {tuple(node.x.shape[-2:])} cells, like the sample, "
            f"got {tuple(evidence.shape)}."
        )
    return cast_like(soft_mask(evidence, how.threshold, how.edge, how.below), node.x)


def refinement_times(how: Refine, t: float, schedule: Schedule) -> list[float]:
    """Times of the calls, highest first, evenly spaced on the angle down to t, where none is made."""
    low, top = schedule.angle(t), schedule.angle(1.0)
    high = min(top, low + how.back * (0.5 * math.pi - low))
    angles = [high + (low - high) * k / how.steps for k in range(how.steps)]
    return [1.0 if u >= top else schedule.time(-math.log(math.tan(u))) for u in angles]


def refine_region(
    x: Any, t: float, outside_path: NoisePath, mask: Any, how: Refine, schedule: Schedule
) -> Generator[SolverRequest, Any, Step]:
    """The sample at t with the region made anew, in `how.steps` calls."""
    times = refinement_times(how, t, schedule)
    noise = yield Noise(x)
    kept = schedule.alpha(times[0]) / schedule.alpha(t)
    fresh = math.sqrt(max(0.0, schedule.sigma(times[0]) ** 2 - (kept * schedule.sigma(t)) ** 2))
    made, nodes = weighted_sum([kept, fresh], [x, noise]), list[tuple[float, Any]]()
    for s, s_next in zip(times, [*times[1:], t], strict=True):
        rest = outside_path.at(s, schedule)
        made = rest + mask * (made - rest)
        nodes.append((s, (yield Query(made, s)).x0))
        usable = [nodes[i] for i in usable_indices([time for time, _ in nodes], "logsnr", schedule)][-2:]
        made = finishing_step(made, s, s_next, schedule, usable)
    return Step(x + mask * (made - x))


def make_node_rewriter(mask: Any, line: NoisePath, schedule: Schedule) -> Callable[[Node], Node]:
    """What the past is to solvers and forecasts afterwards: as it was outside, and on the refined line inside."""

    def rewrite_node(node: Node) -> Node:
        x, e = line.at(node.t, schedule), node.estimate
        output = e.output
        if output is not None:
            refined_output = from_x0(e.prediction, line.x0, x, schedule.alpha(node.t), schedule.sigma(node.t))
            output = output + mask * (refined_output - output)
        clean = Estimate(e.x0 + mask * (line.x0 - e.x0), e.cost, output, e.prediction)
        return node._replace(x=node.x + mask * (x - node.x), estimate=clean)

    return rewrite_node
