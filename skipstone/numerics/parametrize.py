"""What networks predict (eps, v, x0, flow) and the ways between: float32 inside, no division by zero.

x = alpha x0 + sigma eps        v = alpha eps - sigma x0        flow = eps - x0
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from ..errors import SpecError
from .array import combine, narrow, wide

Prediction: TypeAlias = Literal["x0", "eps", "v", "flow"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
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
    out, noisy = wide(output), wide(x)
    if kind == "x0":
        return narrow(out, x)
    if kind == "eps":
        x0 = combine([1.0 / _safe(alpha), -sigma / _safe(alpha)], [noisy, out])
    elif kind == "v":  # x = alpha x0 + sigma eps, v = alpha eps - sigma x0; also where alpha^2 + sigma^2 != 1
        norm = alpha * alpha + sigma * sigma
        x0 = combine([alpha / norm, -sigma / norm], [noisy, out])
    elif kind == "flow":
        x0 = combine([1.0 / (alpha + sigma), -sigma / (alpha + sigma)], [noisy, out])
    else:
        raise SpecError(f"Expected a prediction among {', '.join(PREDICTIONS)}, got {kind!r}.")
    return narrow(x0, x)


def from_x0(kind: str, x0: Any, x: Any, alpha: float, sigma: float) -> Any:
    """What a network of that kind would have put out for this clean estimate; inverts `to_x0`."""
    clean, noisy = wide(x0), wide(x)
    s = _safe(sigma)
    if kind == "x0":
        return narrow(clean, x)
    if kind == "eps":
        output = combine([1.0 / s, -alpha / s], [noisy, clean])
    elif kind == "v":
        output = combine([alpha / s, -(alpha * alpha + sigma * sigma) / s], [noisy, clean])
    elif kind == "flow":
        output = combine([1.0 / s, -(alpha + sigma) / s], [noisy, clean])
    else:
        raise SpecError(f"Expected a prediction among {', '.join(PREDICTIONS)}, got {kind!r}.")
    return narrow(output, x)
