"""Sensitivity of the final picture to an error at each place, measured with probe runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .grids import FineGrid

PROBE_SHARES = (0.94, 0.89, 0.77, 0.57, 0.38, 0.25, 0.16, 0.08, 0.03, 0.0)  # of the whole angle, where probes land
LONG, SHORT = 0.1, 0.05  # of the whole angle that a probe's step passes: in the middle, and near both ends
PROBE_STRIDE = 2  # places that the other steps of a probe pass
FLOOR = 1e-9


class Probe(NamedTuple):
    """A fine path with one coarse step in it, which lands at a place."""

    landing: int
    path: tuple[int, ...]


def make_probes(fine: FineGrid) -> list[Probe]:
    """One for each share, as far as they are apart on these places."""
    base, angles = fine.every(PROBE_STRIDE), np.array(fine.angles)
    found: dict[int, Probe] = {}
    for share in PROBE_SHARES:
        width = LONG if 0.07 < share < 0.91 else SHORT
        to = _nearest(base, angles, angles[0] * share)
        since = min(_nearest(base, angles, angles[base[to]] + angles[0] * width), to - 2)
        if since >= 0:
            found.setdefault(base[to], Probe(base[to], base[: since + 1] + base[to:]))
    return list(found.values())


def _nearest(base: Sequence[int], angles: Any, angle: float) -> int:
    """Return the index of the nearest place in the base."""
    return int(np.abs(angles[list(base)] - angle).argmin())


def interpolate_gains(fine: FineGrid, landings: Sequence[int], gains: Any) -> Any:
    """Gain at every place, linear in its logarithm between the probes and constant beyond them.

    Args:
        fine: The places.
        landings: Where gains were measured.
        gains: (landings, samples), >= 0.

    Returns:
        (samples, places).
    """
    angles = np.array(fine.angles)
    order = np.argsort(angles[list(landings)])
    known = angles[list(landings)][order]
    logs = np.log(np.maximum(gains, FLOOR))[order]
    return np.exp(np.stack([np.interp(angles, known, one) for one in logs.T]))
