"""The error that every possible step of a run would make, computed from one fine run."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

INHERITED_SHARE = 0.5  # of a forecast's error, for each radian of the step, that the correction inherits
QUADRATURE_NODES, QUADRATURE_WEIGHTS = np.polynomial.legendre.leggauss(8)


@dataclass(frozen=True, eq=False)
class LocalErrors:
    """Mean square error of every step j -> k after a step i -> j, of one sample or many.

    `table[s, j, a, b]` is that of the step from place j to place j + b + 1 after one of a places; a is 0 at the
    start, where there was none. Impossible ones are infinite.

    Args:
        angles: Of the n + 1 places, falling; the last is the end.
        table: (samples, n, longest + 1, longest).
    """

    angles: Any
    table: Any

    @property
    def longest(self) -> int:
        """Largest number of places that a step may pass, including the one it lands on."""
        return int(self.table.shape[-1])

    @property
    def places(self) -> int:
        """n: steps of the fine run."""
        return int(self.table.shape[1])

    def steps(self, path: Any) -> Any:
        """Of each step of a path (0, ..., n), (steps, samples); infinite of steps longer than the longest."""
        found = np.full((len(path) - 1, len(self.table)), np.inf)
        for row, (j, k) in enumerate(itertools.pairwise(path)):
            before = j - path[row - 1] if row else 0
            if max(before, k - j) <= self.longest:
                found[row] = self.table[:, j, before, k - j - 1]
        return found

    def of(self, path: Any) -> Any:
        """Total over the steps of a path (0, ..., n), one for each sample."""
        return self.steps(path).sum(0)

    def times(self, gain: Any) -> LocalErrors:
        """What is left of each error in the picture.

        Args:
            gain: (samples, n + 1), of an error made by the step that lands at each place.
        """
        n, longest = self.places, self.longest
        landing = np.minimum(np.arange(n)[:, None] + np.arange(1, longest + 1)[None], n)
        return LocalErrors(self.angles, self.table * gain[:, landing][:, :, None, :].astype(np.float32))


def local_errors(angles: Any, gram: Any, longest: int) -> LocalErrors:
    """What `adams` would get wrong in every step of at most `longest` places, on the samples of a fine run.

    A step j -> k is taken on a forecast of the pair (clean, noise) and corrected once the network was asked at k: by
    the parabola through its pairs at i, j and k, or the line through j and k at the start. Its error is

        mean (z_k - z_j - integral of the polynomial)^2 + (h / 2)^2 mean (forecast of z_k - z_k)^2,

    the latter because the pair at k is that of a wrong place, and the correction inherits it. The last
    step is never corrected; its error is that of the forecast. All of these are sums of pairs of the fine
    run, so their mean squares are quadratic forms in `RecordedTrajectory.gram`.

    Args:
        angles: (n + 1) of the fine run, falling.
        gram: (samples, 2 n + 2, 2 n + 2), see `RecordedTrajectory.gram`.
        longest: Places that a step may pass, at most, >= 1.

    References: Sabour et al. 2024, arXiv 2404.14507; Hairer, Norsett & Wanner 1993, Solving ODEs I, III.1.
    """
    n = len(angles) - 1
    table = np.full((len(gram), n, longest + 1, longest), np.inf, np.float32)
    for j in range(n):
        before = [0] if j == 0 else range(1, min(j, longest) + 1)
        ahead = range(1, min(n - j, longest) + 1)
        a, b = (grid.reshape(-1) for grid in np.meshgrid(before, ahead, indexing="ij"))
        table[:, j, a, b - 1] = _errors_from(angles, gram, j, a, b)
    return LocalErrors(np.asarray(angles), table)


def _errors_from(angles: Any, gram: Any, j: int, a: Any, b: Any) -> Any:
    """Errors (samples, steps) of the steps j -> j + b after j - a -> j."""
    n = len(angles) - 1
    i, k = j - a, j + b
    nodes = np.stack([np.where(a > 0, i, k), np.full_like(k, j), k])  # without a step before, k stands in for i
    way = _step_weights(angles, j, k)
    start = a == 0
    corrected = way - _integrate_pair(angles, nodes, (~start, True, True), j, k)
    constant = way - _integrate_pair(angles, nodes, (False, True, False), j, k)
    linear = way - _integrate_pair(angles, nodes, (~start & (i > 0), True, False), j, k)
    rows = np.concatenate([nodes, nodes + n + 1])  # clean pictures, then noises
    right, wrong, line, both = _forms(
        gram, rows, [(corrected, corrected), (constant, constant), (linear, linear), (constant, linear)]
    )
    wrong, line = np.maximum(wrong, 0.0), np.maximum(line, 0.0)  # rounding may have left them below
    trust = wrong / (wrong + line + 1e-30)  # the share of the line that `adams` would take, had it measured here
    forecast = (1 - trust) ** 2 * wrong + 2 * trust * (1 - trust) * both + trust**2 * line
    inherited = INHERITED_SHARE * (angles[j] - angles[k])
    return np.maximum(0.0, np.where(k == n, forecast, right + inherited**2 * forecast))


def _step_weights(angles: Any, j: int, k: Any) -> Any:
    """z_k - z_j as weights (6, steps) of the clean pictures at i, j, k and of the noises there."""
    none = np.zeros_like(angles[k])
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([none, none - cos[j], cos[k], none, none - sin[j], sin[k]])


def _integrate_pair(angles: Any, nodes: Any, used: Any, j: int, k: Any) -> Any:
    """Integral of the pair from j to k, the pair being the polynomial through the nodes that are used."""
    used = np.stack([np.broadcast_to(u, k.shape) for u in used])
    at = angles[nodes]  # (3, steps)
    start, end = angles[j], angles[k]
    weights = np.zeros((6, len(k)))
    for place, share in zip(QUADRATURE_NODES, QUADRATURE_WEIGHTS, strict=True):
        u, w = start + (end - start) * 0.5 * (place + 1.0), share * 0.5 * (end - start)
        for p in range(3):
            factor = np.where(used[p], w, 0.0)
            for q in range(3):
                if q != p:
                    apart = np.where(at[p] == at[q], 1.0, at[p] - at[q])
                    factor = factor * np.where(used[q], (u - at[q]) / apart, 1.0)
            weights[p] -= factor * np.sin(u)
            weights[p + 3] += factor * np.cos(u)
    return weights


def _forms(gram: Any, rows: Any, pairs: Any) -> list[Any]:
    """sum_pq left_p right_q <row_p, row_q> for each (left, right), of shape (samples, steps)."""
    found = [np.zeros((len(gram), rows.shape[1])) for _ in pairs]
    for p in range(len(rows)):
        for q in range(p, len(rows)):
            product = gram[:, rows[p], rows[q]]
            for total, (left, right) in zip(found, pairs, strict=True):
                weight = left[p] * right[q] + (left[q] * right[p] if q > p else 0.0)
                if weight.any():
                    total += weight * product
    return found
