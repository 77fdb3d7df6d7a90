"""Where a sample was on its way, at times between those at which its network was called."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...engine.contracts import Run
from ...numerics.schedule import Schedule


@dataclass(frozen=True)
class PathNode:
    """A call of the network: the time, the sample there, and its clean estimate."""

    t: float
    x: torch.Tensor
    x0: torch.Tensor


@dataclass(frozen=True)
class SamplePath:
    """The way of one sample, between its calls along straight lines of the clean estimate and the noise by the angle.

    Args:
        schedule: Of the run.
        nodes: Calls at the starts of its steps, and the end; their times fall.
    """

    schedule: Schedule
    nodes: Sequence[PathNode]

    @staticmethod
    def of(run: Run, calls: Sequence[PathNode], end: PathNode, schedule: Schedule) -> SamplePath:
        """The way of a finished run; calls within steps, and at rejected ones, lie beside it and are left out."""
        starts = {a.t for a in run.past if a.accepted}
        latest = {node.t: node for node in calls if node.t in starts}
        return SamplePath(schedule, (*(latest[t] for t in sorted(latest, reverse=True)), end))

    def at(self, t: float) -> PathNode:
        """Where the sample was at a time of the run."""
        after = bisect_right(self.nodes, -t, key=lambda node: -node.t)
        before = self.nodes[max(0, after - 1)]
        if before.t == t or after >= len(self.nodes):
            return before
        share = self._share(before.t, t, self.nodes[after].t)
        x0 = torch.lerp(before.x0, self.nodes[after].x0, share)
        noise = self._noise(before)
        if self.schedule.sigma(self.nodes[after].t) > 0.0:
            noise = torch.lerp(noise, self._noise(self.nodes[after]), share)
        return PathNode(t, self.schedule.alpha(t) * x0 + self.schedule.sigma(t) * noise, x0)

    def _share(self, before: float, t: float, after: float) -> float:
        """How much of the angle between two times lies before a third."""
        first, here, last = (self.schedule.angle(one) for one in (before, t, after))
        return (first - here) / (first - last)

    def _noise(self, node: PathNode) -> torch.Tensor:
        return (node.x - self.schedule.alpha(node.t) * node.x0) * (1.0 / self.schedule.sigma(node.t))
