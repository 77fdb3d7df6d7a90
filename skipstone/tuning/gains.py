"""Sensitivity of the final picture to an error at each place, measured with probe runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .grids import FineGrid

PROBE_SHARES = (0.06, 0.11, 0.23, 0.43, 0.62, 0.75, 0.84, 0.92, 0.97, 1.0)  # of the places, after which probes land
LONG, SHORT = 0.1, 0.05  # of the places that a probe's step passes: in the middle, and near both ends
PROBE_STRIDE = 2  # places that the other steps of a probe pass
MAX_STEP_SHARE = 0.35  # of the places that one step of a grid may pass
FLOOR = 1e-9


class Probe(NamedTuple):
    """A fine path with one coarse step in it, which lands at a place."""

    landing: int
    path: tuple[int, ...]


def make_probes(fine: FineGrid) -> list[Probe]:
    """One for each share of the places, as far as they are apart; however far apart the places are in angle."""
    base = fine.every(PROBE_STRIDE)
    last = len(base) - 1
    found: dict[int, Probe] = {}
    for share in PROBE_SHARES:
        width = LONG if 0.09 < share < 0.93 else SHORT
        to = round(last * share)
        since = to - max(2, round(last * width))
        if since >= 0:
            found.setdefault(base[to], Probe(base[to], base[: since + 1] + base[to:]))
    return list(found.values())


def longest_step(fine: FineGrid) -> int:
    """Places that one step may pass, so that all steps of probes and of grids are among those whose error is known."""
    probed = (b - a for probe in make_probes(fine) for a, b in itertools.pairwise(probe.path))
    return min(fine.steps, max(round(MAX_STEP_SHARE * fine.steps), PROBE_STRIDE, *probed))


def interpolate_gains(fine: FineGrid, landings: Sequence[int], gains: Any) -> Any:
    """Gain at every place, linear in its logarithm between the probes and constant beyond them.

    Args:
        fine: The places.
        landings: Where gains were measured.
        gains: (landings, samples), >= 0.

    Returns:
        (samples, places).
    """
    order = np.argsort(landings)
    known = np.array(landings)[order]
    logs = np.log(np.maximum(gains, FLOOR))[order]
    return np.exp(np.stack([np.interp(np.arange(fine.steps + 1), known, one) for one in logs.T]))
