"""An MLX denoiser as a backbone: one forward per moment, started without waiting, guidance branches as sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ...engine.contracts import ATTENTION, COND, UNCOND, PredictionType
from ...engine.requests import Estimate, Query
from ...errors import BackboneError
from ...numerics.parametrize import to_x0
from ...numerics.schedule import Schedule
from .denoiser import Denoiser


@dataclass(frozen=True, eq=False)
class MlxBackbone:
    """A denoiser of MLX and what its output means, answering all queries of a moment in one forward.

    A sample is an `mx.array` (channels, height, width), as in torch, so that one seed is one noise; it is transposed
    to (height, width, channels) where it enters the network. Its `Problem.cond` maps each branch to the arrays that
    condition it, by name, without a batch axis.

    The forward is started and not waited for: a step of the whole batch is waited for once, when the engine fetches
    its signals, and not at all under a policy that reads none.

    Args:
        denoiser: The network.
        schedule: It was trained on.
        prediction: What it puts out: "eps", "v", "x0" or "flow".
        guidance: Weight w of uncond + w (cond - uncond). 1 evaluates the conditional branch alone.

    Raises:
        BackboneError: a query gives an output for a site that is none, wants a map of attention, or has no condition.
    """

    denoiser: Denoiser
    schedule: Schedule
    prediction: PredictionType = "eps"
    guidance: float = 1.0

    @property
    def sites(self) -> tuple[str, ...]:
        """The guidance branches, or none where there is only one."""
        return (COND, UNCOND) if self.guidance != 1.0 else ()

    @property
    def branches(self) -> int:
        """Rows that a full call of one sample puts into the network."""
        return len(self._branches)

    @property
    def _branches(self) -> tuple[str, ...]:
        return self.sites or (COND,)

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """The guided estimate of each query; branches that are not given are computed together."""
        for query in queries:
            self._check(query)
        rows = [(i, b) for i, query in enumerate(queries) for b in self._branches if b not in query.known_outputs]
        computed = dict(zip(rows, self._outputs(queries, rows), strict=True))
        estimates = [self._estimate(i, query, computed) for i, query in enumerate(queries)]
        mx.async_eval([(e.x0, e.output, list(e.features.values())) for e in estimates])  # type: ignore[no-untyped-call]
        return estimates

    def _check(self, query: Query) -> None:
        if ATTENTION in query.wanted_sites:
            raise BackboneError(
                "A map of attention was asked for, which networks on MLX do not give. Leave `refine` out, or use torch."
            )
        if strange := query.known_outputs.keys() - set(self.sites):
            raise BackboneError(f"Sites of this model: {', '.join(self.sites) or 'none'}; given: {sorted(strange)}.")

    def _outputs(self, queries: Sequence[Query], rows: Sequence[tuple[int, str]]) -> Sequence[mx.array]:
        """Outputs (channels, height, width) of these queries' branches, by one forward."""
        if not rows:
            return ()
        x = mx.stack([queries[i].x for i, _ in rows])
        times = mx.array([self.schedule.timestep(queries[i].t) for i, _ in rows], dtype=mx.float32)
        conditions = [_condition(queries[i].cond, branch) for i, branch in rows]
        names = set(conditions[0])
        if any(set(one) != names for one in conditions):
            raise BackboneError(f"Expected conditions {sorted(names)} of every sample, got {sorted(conditions[-1])}.")
        stacked = {name: mx.stack([one[name] for one in conditions]) for name in sorted(names)}
        output = self.denoiser(x.transpose(0, 2, 3, 1), times, stacked).transpose(0, 3, 1, 2)
        if output.shape != x.shape:
            raise BackboneError(
                f"{type(self.denoiser.network).__name__} answered {output.shape} to a batch of {x.shape}."
            )
        return [output[k] for k in range(len(rows))]

    def _estimate(self, i: int, query: Query, computed: Mapping[tuple[int, str], mx.array]) -> Estimate:
        fresh = {branch: computed[i, branch] for branch in self._branches if (i, branch) in computed}
        branch_outputs = {**query.known_outputs, **fresh}
        output = branch_outputs[COND]
        if self.sites:
            output = branch_outputs[UNCOND] + self.guidance * (branch_outputs[COND] - branch_outputs[UNCOND])
        x0 = to_x0(self.prediction, output, query.x, self.schedule.alpha(query.t), self.schedule.sigma(query.t))
        wanted = {branch: value for branch, value in fresh.items() if branch in query.wanted_sites}
        return Estimate(x0, len(fresh) / self.branches, output, self.prediction, wanted)


def _condition(cond: Any, branch: str) -> Mapping[str, mx.array]:
    """The arrays that condition a branch; none where the sample has no condition."""
    if cond is None:
        return {}
    if not isinstance(cond, Mapping) or branch not in cond:
        raise BackboneError(
            f"Expected the condition of a sample as a mapping with {branch!r}, got {type(cond).__name__}."
        )
    value: Mapping[str, mx.array] = cond[branch]
    return value
