"""Where to work on a picture: a soft mask with finite support, from a map of evidence and an absolute threshold."""

from __future__ import annotations

import math
from typing import Any

from .array import array_namespace, cast_like


def soft_mask(evidence: Any, threshold: float, edge: int = 0, below: bool = False) -> Any:
    """A mask in [0, 1]: 1 on every cell that the evidence marks, 0 farther than 2 `edge` cells from all of them.

    The marks, evidence > threshold (`below`: < threshold), are widened by `edge` cells and smoothed by a Gaussian of
    standard deviation `edge` / 2 that is cut off at `edge` cells, so that the slope lies outside the marks. Both are
    squares: distance is the larger of rows and columns. At the borders the Gaussian is divided by what of it lies
    inside (normalised convolution), so that a mark there is as strong as any. No mark gives a mask of zeros.

    Args:
        evidence: Array (..., height, width) of any library; NaN marks nothing.
        threshold: In the unit of the evidence. Absolute: how much is marked depends on the evidence alone.
        edge: Cells, >= 0. 0 gives the marks themselves.
        below: Whether low evidence marks.

    References: Knutsson & Westin 1993, Normalized and differential convolution.
    """
    xp = array_namespace(evidence)
    marked = evidence < threshold if below else evidence > threshold
    marks = cast_like(xp.where(marked, 1.0, 0.0), evidence)
    if edge == 0:
        return marks
    rows, columns = evidence.shape[-2:]
    wide = _filter_rows_and_columns(marks, *(_filter_matrix(n, [1.0] * (edge + 1), evidence) for n in (rows, columns)))
    wide = cast_like(xp.where(wide > 0.5, 1.0, 0.0), evidence)
    gauss = [math.exp(-2.0 * (k / edge) ** 2) for k in range(edge + 1)]
    mask = _filter_rows_and_columns(
        wide, *(_filter_matrix(n, gauss, evidence, normalised=True) for n in (rows, columns))
    )
    return xp.where(mask > 1.0 - 1e-6, xp.ones_like(mask), mask)  # rounding of weights that sum to 1


def _filter_rows_and_columns(array: Any, down: Any, along: Any) -> Any:
    return down @ array @ along.T


def _filter_matrix(size: int, weights: list[float], like: Any, normalised: bool = False) -> Any:
    """Matrix of a symmetric filter, weights[k] at a distance of k, its rows summing to 1 if asked."""
    rows = [[weights[abs(i - j)] if abs(i - j) < len(weights) else 0.0 for j in range(size)] for i in range(size)]
    if normalised:
        rows = [[w / sum(row) for w in row] for row in rows]
    xp = array_namespace(like)
    if xp.__name__ == "torch":
        return xp.tensor(rows, dtype=like.dtype, device=like.device)
    return cast_like(xp.array(rows), like)
