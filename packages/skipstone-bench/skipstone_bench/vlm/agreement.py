"""How far judges agree with each other and with themselves; intervals are over prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skipstone.errors import SpecError
from skipstone.evaluation.resampling import LEVEL, SEED, ConfidenceInterval

RESAMPLES = 1000


def cohen_kappa(tables: Any) -> Any:
    """Cohen's unweighted kappa: agreement beyond what the two judges' own shares make by chance.

        kappa = (p_o - p_e) / (1 - p_e),  p_o = sum_k p_kk,  p_e = sum_k p_k. p_.k

    Args:
        tables: Counts, square on the last two axes: answers of the first judge (rows) against the second's (columns).

    Returns:
        1 for full agreement, 0 for chance; NaN where there is nothing, or where both always give the same answer, so
        that chance alone agrees fully. A number, or an array over the leading axes.

    Raises:
        SpecError: a table that is not square, or counts below 0.

    References: Cohen 1960, doi 10.1177/001316446002000104.
    """
    import numpy as np

    counts = np.asarray(tables, float)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or (counts < 0).any():
        raise SpecError(f"Expected square tables of counts, got shape {counts.shape}.")
    total = counts.sum((-2, -1), keepdims=True)
    p = counts / np.where(total == 0, np.nan, total)
    by_chance = (p.sum(-1) * p.sum(-2)).sum(-1)
    with np.errstate(invalid="ignore"):
        found = (np.trace(p, axis1=-2, axis2=-1) - by_chance) / np.where(by_chance > 1 - 1e-12, np.nan, 1 - by_chance)
    return found if counts.ndim > 2 else float(found)


def symmetrize(table: Any) -> Any:
    """A table of first, second and tie, with each pair counted again with its rows the other way round.

    Which row of a pair is the first is a matter of naming. Where it wins nearly always, naming alone would make two
    judges agree by chance, and kappa fall to 0 for judges that agree on everything; counted both ways, it is 1.
    """
    import numpy as np

    counts = np.asarray(table, float)
    other = [1, 0, 2]
    return counts + counts[..., other, :][..., other]


def bootstrap_tables(
    tables: Any, statistic: Callable[[Any], Any], *, level: float = LEVEL, seed: int = SEED
) -> list[ConfidenceInterval]:
    """Statistics of summed tables, with percentile intervals of a bootstrap over prompts.

    Args:
        tables: One table of counts for each prompt, on the first axis; at least one prompt.
        statistic: Of many sums of tables at once, on the first axis: a number for each, or several. NaN is none, and
            left out of the interval.
        level: Of the interval, in (0, 1).
        seed: Of the resampling.

    Returns:
        A span for each number; NaN ends where there is one prompt only.

    Raises:
        SpecError: no prompts, or a level out of range.

    References: Efron, Tibshirani 1993, An Introduction to the Bootstrap, 13.3.
    """
    import numpy as np

    counts = np.asarray(tables, float)
    n = len(counts)
    if not n or not 0 < level < 1:
        raise SpecError(f"Expected at least one prompt and a level in (0, 1), got {n} and {level}.")
    point = np.asarray(statistic(counts.sum(0)[None]), float).reshape(-1)
    ends = np.full((2, len(point)), np.nan)
    if n > 1:
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
        resampled = np.asarray(statistic(np.tensordot(weights, counts, 1)), float).reshape(RESAMPLES, -1)
        known = ~np.isnan(resampled).all(0)
        ends[:, known] = np.nanquantile(resampled[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [ConfidenceInterval(float(v), float(a), float(b), n) for v, a, b in zip(point, *ends, strict=True)]


def wilson_interval(share: float, n: int, *, level: float = LEVEL) -> ConfidenceInterval:
    """Wilson's interval of a share of n prompts.

    Where a tie counts as half a win the variance is smaller than that of wins and losses with the same mean, so that
    the interval is on the safe side.

    Args:
        share: In [0, 1].
        n: Prompts, >= 1.
        level: Of the interval, in (0, 1).

    Raises:
        SpecError: a number out of range.

    References: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    from statistics import NormalDist

    if not 0 <= share <= 1 or n < 1 or not 0 < level < 1:
        raise SpecError(f"Expected a share in [0, 1] of at least 1, and a level in (0, 1), got {share}, {n}, {level}.")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n * n))) ** 0.5 / (1 + z2 / n)
    return ConfidenceInterval(share, max(0.0, centre - half), min(1.0, centre + half), n)


def sign_test(first: int, second: int) -> float:
    """Two-sided p of the sign test; 1 where there is nothing to test."""
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0
