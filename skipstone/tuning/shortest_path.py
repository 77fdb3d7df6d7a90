"""The best path of so many steps, by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import SpecError
from .errors import LocalErrors

ROUNDS = 6  # after which the weights of samples have settled


def shortest_path(cost: Any, steps: int) -> tuple[int, ...]:
    """The path 0 = p_0 < ... < p_steps = n of the least total cost.

    The cost of a step depends on the step before, so what is carried on is the best way to arrive at each place by a
    last step of each length: D_m(k, b) = min_a D_{m-1}(k - b, a) + cost(k - b, a, b).

    Args:
        cost: (n, longest + 1, longest), see `LocalErrors.table`.
        steps: >= 1.

    Raises:
        SpecError: no such path: more steps than places, or too few to reach the end.

    References: Watson et al. 2021, arXiv 2106.03802 (dynamic programming over sampling times).
    """
    return shortest_paths(cost, [steps])[steps]


def shortest_paths(cost: Any, steps: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """`shortest_path` for several numbers of steps in one go, for what the largest takes."""
    n, _, longest = cost.shape
    arrived = np.full((n + 1, longest + 1), np.inf)
    arrived[0, 0] = 0.0
    came: list[Any] = []
    found: dict[int, tuple[int, ...]] = {}
    place, length = np.meshgrid(np.arange(n), np.arange(1, longest + 1), indexing="ij")
    within = place + length <= n
    for count in range(1, max(steps) + 1):
        total = arrived[:n, :, None] + cost
        came.append(total.argmin(axis=1))
        arrived = np.full_like(arrived, np.inf)
        arrived[(place + length)[within], length[within]] = total.min(axis=1)[within]
        if count in steps:
            found[count] = _trace_back(came, arrived[n], longest)
    return found


def _trace_back(came: Sequence[Any], arrived: Any, longest: int) -> tuple[int, ...]:
    """The path that has arrived at the end, followed back."""
    n, last = len(came[0]), int(arrived.argmin())
    if not np.isfinite(arrived[last]):
        raise SpecError(
            f"Expected between {-(-n // longest)} and {n} calls on a fine run of {n} steps, each step at most "
            f"{longest} of them long, got {len(came)}."
        )
    path, here = [n], last
    for choice in reversed(came):
        start = path[-1] - here
        here = int(choice[start, here - 1])
        path.append(start)
    return tuple(reversed(path))


def best_path(errors: LocalErrors, steps: int, rounds: int = ROUNDS) -> tuple[int, ...]:
    """The path of so many steps with the least mean log error over the samples: the best mean in dB.

    Found by reweighting: a step towards a smaller sum of log E_s is one towards a smaller sum of E_s / E_s(now).

    Args:
        errors: What is left in the picture.
        steps: >= 1.
        rounds: Of reweighting; 0 is the least mean error.

    Raises:
        SpecError: no such path.
    """
    table = errors.table
    open_ = np.isfinite(table[0])
    finite = np.where(open_, table, 0.0)
    weights = np.full(len(table), 1.0 / len(table))
    best: tuple[float, tuple[int, ...]] | None = None
    for _ in range(rounds + 1):
        path = shortest_path(np.where(open_, np.tensordot(weights, finite, 1), np.inf), steps)
        each = np.maximum(errors.of(path), 1e-30)
        score = float(np.log(each).mean()) if rounds else 0.0
        if best is not None and score >= best[0]:
            break
        best, weights = (score, path), 1.0 / each
    assert best is not None
    return best[1]
