"""What networks predict (eps, v, x0, flow) and the ways between: float32 inside, no division by zero.

x = alpha x0 + sigma eps        v = alpha eps - sigma x0        flow = eps - x0
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from ..errors import SpecError
from .array import cast_like, upcast, weighted_sum

PredictionType: TypeAlias = Literal["eps", "x0", "v", "flow"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)
FLOOR = 1e-6  # alpha or sigma below which a division by it would only amplify rounding


def _safe(value: float) -> float:
    return value if abs(value) >= FLOOR else FLOOR


def to_x0(kind: str, output: Any, x: Any, alpha: float, sigma: float) -> Any:
    """The clean estimate that a network's output means at (x, alpha, sigma), in the dtype of `x`.

    Args:
        kind: "x0", "eps", "v" or "flow": what `output` is.
        output: The network's output, of the shape of `x`.
        x: The noisy sample.
        alpha: Scale of the picture, >= 0; below 1e-6 taken as 1e-6 where it divides.
        sigma: Scale of the noise, >= 0.
    """
    out, noisy = upcast(output), upcast(x)
    if kind == "x0":
        return cast_like(out, x)
    if kind == "eps":
        x0 = weighted_sum([1.0 / _safe(alpha), -sigma / _safe(alpha)], [noisy, out])
    elif kind == "v":  # x = alpha x0 + sigma eps, v = alpha eps - sigma x0; also where alpha^2 + sigma^2 != 1
        norm = alpha * alpha + sigma * sigma
        x0 = weighted_sum([alpha / norm, -sigma / norm], [noisy, out])
    elif kind == "flow":
        x0 = weighted_sum([1.0 / (alpha + sigma), -sigma / (alpha + sigma)], [noisy, out])
    else:
        raise SpecError(f"Expected a prediction among {', '.join(PREDICTION_TYPES)}, got {kind!r}.")
    return cast_like(x0, x)


def from_x0(kind: str, x0: Any, x: Any, alpha: float, sigma: float) -> Any:
    """Output of a network of that kind for this clean estimate; inverts `to_x0`."""
    clean, noisy = upcast(x0), upcast(x)
    s = _safe(sigma)
    if kind == "x0":
        return cast_like(clean, x)
    if kind == "eps":
        output = weighted_sum([1.0 / s, -alpha / s], [noisy, clean])
    elif kind == "v":
        output = weighted_sum([alpha / s, -(alpha * alpha + sigma * sigma) / s], [noisy, clean])
    elif kind == "flow":
        output = weighted_sum([1.0 / s, -(alpha + sigma) / s], [noisy, clean])
    else:
        raise SpecError(f"Expected a prediction among {', '.join(PREDICTION_TYPES)}, got {kind!r}.")
    return cast_like(output, x)
