"""Capital of gamblers against a claim about a mean: E[x] <= m for x in [0, 1], one bet on each x before it is seen.

A stake of lambda in [0, 1 / m] multiplies the capital by 1 + lambda (x - m), which is never negative and, where the
claim is true, at most 1 in expectation, whatever the distribution of x: the capital exceeds 1 / u at any time with
chance u at most (Ville 1939). Arrays have the draws on their last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TARGET_P = 0.05  # p-value that stakes are planned to reach; another one costs power, never validity
MAX_STAKE = 0.9  # of the greatest stake, so that one x = 0 leaves a tenth of the capital, not nothing
GAMBLERS = 20  # whose shares of the greatest stake are spread over (0, 1], most of them cautious
NUM_BISECTIONS = 60  # halvings of [0, 1] in which a bound is found


def fixed_size_log_capital(x: Any, m: float) -> Any:
    """Logarithm of the capital after each draw, for a number of draws that is known beforehand.

    lambda_i = min(sqrt(2 log(1 / TARGET_P) / (n v)), MAX_STAKE / m), v the variance of the draws before i, with one
    draw added that has the mean and variance of a fair coin. For one x, the capital falls as m rises.

    References: Waudby-Smith, Ramdas 2024, arXiv 2010.09686, section 3.1 (the predictable plug-in, for a fixed n).
    """
    import numpy as np

    n = x.shape[-1]
    count = np.arange(2, n + 2)
    centre = (0.5 + x.cumsum(-1)) / count
    spread = (0.25 + ((x - centre) ** 2).cumsum(-1)) / count
    before = np.concatenate([np.full((*x.shape[:-1], 1), 0.25), spread[..., :-1]], -1)
    stakes = np.minimum(np.sqrt(2 * np.log(1 / TARGET_P) / (n * before)), MAX_STAKE / m)
    return np.log1p(stakes * (x - m)).cumsum(-1)


def anytime_log_capital(x: Any, m: float) -> Any:
    """Logarithm of the capital after each draw, for as many draws as there will be: the mean of several gamblers'.

    Gambler j of GAMBLERS stakes (j / GAMBLERS)^2 of the greatest stake, 1 / m, on every draw. For one x, the capital
    falls as m rises.
    """
    return mix(gains(x, m).cumsum(-1))


def gains(x: Any, m: float) -> Any:
    """Logarithm of what each gambler of `anytime_log_capital` multiplies its capital by at each draw, on axis 0."""
    import numpy as np

    share = (np.arange(1, GAMBLERS + 1) / GAMBLERS) ** 2
    with np.errstate(divide="ignore"):  # who stakes everything may lose everything: log 0
        return np.log1p(share.reshape(-1, *[1] * x.ndim) * (x / m - 1))


def mix(each: Any) -> Any:
    """Logarithm of the mean capital of gamblers whose logarithms are on axis 0."""
    import numpy as np

    return np.logaddexp.reduce(each, 0) - np.log(GAMBLERS)


def mean_lower_bound(x: Any, delta: float, capital: Callable[[Any, float], Any]) -> float:
    """Lower bound of E[x] at level 1 - delta: the greatest m that is rejected, rounded down; 0 where none is.

    One number for draws on one axis. Halving finds it, for the capital falls as m rises.
    """
    import numpy as np

    low, high, needed = 0.0, 1.0, float(np.log(1 / delta))
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        if not 0 < middle < 1:
            break
        if float(capital(x, middle).max()) >= needed:
            low = middle
        else:
            high = middle
    return low
