"""The slope of a run and where it leads, as SADA's released code has them.

Jiang et al. 2025 (arXiv 2507.17135), in the code of their DPM-Solver++ and Euler schedulers: with beta_n the noise of
table entry n and N steps, f = -beta_n N x / 2 + beta_n N eps / (2 sigma) and

    x^ = x - (0.625 f + 0.75 f_1 - 0.375 f_2) / N.

N cancels: x^ looks ahead by one entry of the table (of 1000), whatever the length of the step. Both are
written here per entry, y = f / N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..numerics.array import cast_like, upcast, weighted_sum
from ..numerics.parametrize import from_x0, to_x0
from ..numerics.schedule import Schedule
from .contracts import PredictionType
from .requests import Node, get_prediction

TABLE_STEP = 1 / 1000  # of the table, in t
SLOPE_WEIGHTS = (0.375, -0.75, -0.625)  # of the slopes, oldest first


def beta(schedule: Schedule, t: float) -> float:
    """Noise that the entry at t adds: 1 - (alpha(t) / alpha(t - 1/1000))^2."""
    before = schedule.alpha(max(0.0, t - TABLE_STEP))
    return 1.0 - (schedule.alpha(t) / before) ** 2 if before > 0.0 else 1.0


def repeated_calls(nodes: Sequence[Node], real: Sequence[Node]) -> list[Node]:
    """For each node the call whose prediction its step used or repeats: the last one at or before it."""
    return [next(call for call in reversed(real) if call.t >= node.t) for node in nodes]


def slopes(nodes: Sequence[Node], real: Sequence[Node], of: PredictionType, schedule: Schedule) -> list[Any]:
    """y = beta / 2 (eps / sigma - x) = beta alpha v / (2 sigma) at each node, per entry, in float32 or more.

    A skipped step's is that of the prediction it repeats, at its own latent.
    """
    found = []
    for node, call in zip(nodes, repeated_calls(nodes, real), strict=True):
        alpha, sigma, x = schedule.alpha(node.t), schedule.sigma(node.t), upcast(node.x)
        x0 = to_x0(of, upcast(get_prediction(call, of, schedule)), x, alpha, sigma)
        scale = 0.5 * beta(schedule, node.t) * alpha / max(sigma, 1e-6)
        found.append(from_x0("v", x0, x, alpha, sigma) * scale)
    return found


def extrapolate_latent(nodes: Sequence[Node], real: Sequence[Node], of: PredictionType, schedule: Schedule) -> Any:
    """x^ after the last of the nodes, of which there are three or more, oldest first."""
    last = nodes[-3:]
    x = last[-1].x
    return cast_like(weighted_sum([1.0, *SLOPE_WEIGHTS], [upcast(x), *slopes(last, real, of, schedule)]), x)
