"""How sharply a sample's path bends, from the calls made so far; what `stride` and `adaptive_grid` share."""

from __future__ import annotations

from ..engine.contracts import Attempt, Run
from ..engine.signals import Disagreement
from ..registry import spell

LINE, LAST = (spell(Disagreement(order, "v", "angle")) for order in (1, 0))


def measure_bend(run: Run, last: Attempt, here: float) -> tuple[float | None, float]:
    """Bend b at the pending call, None where it cannot be known, and the length of the step that led there.

    A corrected step of h radians errs by about b h^3. With e = rms(v - line) at the call, over steps of k and k_1,
    b = e / (k (k + k_1)); at the second call b = 2 rms(v - last v) / k^2.
    """
    axis = run.angles
    angles = [axis.angle(a.t) for a in run.past if a.accepted and not a.is_forecast]
    if not angles or LAST not in last.signals:
        return None, 0.0
    k = angles[-1] - here
    if k <= 0.0:  # beyond what log-SNR can tell apart
        return None, 0.0
    if LINE not in last.signals or len(angles) < 2:
        return max(2.0 * last.signals[LAST] / k**2, 1e-12), k
    return max(last.signals[LINE] / (k * (k + angles[-2] - angles[-1])), 1e-12), k
