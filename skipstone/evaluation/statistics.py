"""What may be concluded from samples: paired comparisons, equivalence, groups, corrected for asking often.

Samples are joined by their id, and the seeds of a prompt are averaged in tests (intervals draw them together: see
`resampling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SpecError
from .resampling import LEVEL as LEVEL
from .resampling import RESAMPLES as RESAMPLES
from .resampling import SEED as SEED
from .resampling import ConfidenceInterval as ConfidenceInterval
from .resampling import Direction as Direction
from .resampling import SampleValues as SampleValues
from .resampling import bootstrap as bootstrap
from .resampling import bootstraps as bootstraps
from .resampling import mean as mean
from .resampling import mean_by_prompt as mean_by_prompt
from .resampling import median as median
from .resampling import paired_bootstraps as paired_bootstraps
from .resampling import paired_differences as paired_differences
from .resampling import prompt_id_of as prompt_id_of
from .resampling import quantile as quantile
from .resampling import tail_statistic as tail_statistic


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """How one row does against another on the samples that both have.

    `median`, `mean` and `tail` are differences of the two rows' own medians, means and unlucky tenths, the first row's
    minus the second's, with paired intervals. `p` is that of Wilcoxon's signed-rank test over prompts; `effect` is its
    matched-pairs rank-biserial correlation, 1 where the first is larger on every prompt and -1 where it is smaller on
    all; `wins` is the share of prompts on which the first is better.
    """

    n: int  # prompts
    median: ConfidenceInterval
    mean: ConfidenceInterval
    tail: ConfidenceInterval
    p: float
    effect: float
    wins: float


@dataclass(frozen=True, slots=True)
class EquivalenceTest:
    """Two one-sided t-tests: p is that of the worse one, the interval is the one that they decide by (1 - 2 alpha)."""

    mean: float
    low: float
    high: float
    margin: float
    p: float
    n: int
    equivalent: bool


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """Two independent groups: difference of the means (second minus first), Mann-Whitney's p.

    `above` is the chance that one of the second group lies above one of the first, ties counted half.
    """

    difference: ConfidenceInterval
    p: float
    above: float
    sizes: tuple[int, int]


# -- Tests ------------------------------------------------------------------------------------------


def compare_paired(a: SampleValues, b: SampleValues, better: Direction = "higher") -> PairedComparison:
    """Compare two rows on the samples that both have. Raises SpecError where they share none."""
    found = paired_differences(a, b)
    sign = 1 if better == "higher" else -1
    wins = sum(1.0 if sign * d > 0 else 0.5 if d == 0 else 0.0 for d in found) / len(found)
    p, effect = signed_rank(found)
    middle, centre, unlucky = paired_bootstraps(a, b, [median, mean, tail_statistic(better)])
    return PairedComparison(len(found), middle, centre, unlucky, p, effect, wins)


def signed_rank(found: Sequence[float]) -> tuple[float, float]:
    """Two-sided p of Wilcoxon's signed-rank test and the rank-biserial correlation; zeros are left out of both.

    References: Kerby 2014, doi 10.2466/11.IT.3.1 (the simple difference formula).
    """
    import numpy as np
    from scipy.stats import rankdata, wilcoxon

    moved = np.array([d for d in found if d != 0.0])
    if not len(moved):
        return 1.0, 0.0
    ranks = rankdata(np.abs(moved))
    return float(wilcoxon(moved).pvalue), float((np.sign(moved) * ranks).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below alpha, they hold together at that level.

    References: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise SpecError(f"Expected p-values in [0, 1], got {list(p_values)}.")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def tost(found: Sequence[float], margin: float, alpha: float = 0.05) -> EquivalenceTest:
    """Whether paired differences are, in the mean, within `margin` of zero: equivalence is tested, not assumed.

    Args:
        found: One difference for each prompt. One alone proves nothing: its p is 1.
        margin: What is still no difference worth naming, in the unit of the differences, > 0.
        alpha: Level of each of the two tests, in (0, 0.5).

    Raises:
        SpecError: no differences, or a setting out of range.

    References: Schuirmann 1987, doi 10.1007/BF01068419.
    """
    import numpy as np
    from scipy.stats import t as student

    if not len(found) or margin <= 0 or not 0 < alpha < 0.5:
        raise SpecError(f"Expected differences, margin > 0 and alpha in (0, 0.5), got {len(found)}, {margin}, {alpha}.")
    d = np.asarray(found, float)
    n, centre = len(d), float(d.mean())
    if n == 1:
        return EquivalenceTest(centre, -np.inf, np.inf, margin, 1.0, 1, False)
    error = float(d.std(ddof=1)) / n**0.5
    if error == 0.0:  # all alike: the mean is known, as far as these samples can tell
        p, half = float(abs(centre) >= margin), 0.0
    else:
        p = float(student.sf((margin - abs(centre)) / error, n - 1))
        half = float(student.ppf(1 - alpha, n - 1)) * error
    return EquivalenceTest(centre, centre - half, centre + half, margin, p, n, p < alpha)


def compare_groups(
    a: Sequence[float], b: Sequence[float], *, level: float = LEVEL, seed: int = SEED
) -> GroupComparison:
    """Whether a second group lies above a first one: simple against crowded prompts, one number for each prompt.

    The interval of the difference of means resamples each group by itself.

    Raises:
        SpecError: a group of fewer than two.
    """
    import numpy as np
    from scipy.stats import bootstrap as scipy_bootstrap
    from scipy.stats import mannwhitneyu

    if min(len(a), len(b)) < 2:
        raise SpecError(f"Expected groups of at least two prompts, got {len(a)} and {len(b)}.")
    first, second = np.asarray(a, float), np.asarray(b, float)
    value = float(second.mean() - first.mean())
    sizes = len(a), len(b)
    if np.ptp(np.concatenate([first, second])) == 0.0:
        return GroupComparison(ConfidenceInterval(0.0, 0.0, 0.0, sum(sizes)), 1.0, 0.5, sizes)
    test = mannwhitneyu(second, first)
    interval = scipy_bootstrap(
        (first, second),
        lambda x, y, axis=-1: y.mean(axis=axis) - x.mean(axis=axis),
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    above = float(test.statistic) / (len(a) * len(b))
    span = ConfidenceInterval(value, float(interval.low), float(interval.high), sum(sizes))
    return GroupComparison(span, float(test.pvalue), above, sizes)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's rho and its two-sided p, one pair for each prompt; (0, 1) where either never changes.

    Raises:
        SpecError: sequences of different lengths, or fewer than three pairs.
    """
    from scipy.stats import spearmanr

    if len(x) != len(y) or len(x) < 3:
        raise SpecError(f"Expected two equally long sequences of at least three, got {len(x)} and {len(y)}.")
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 0.0, 1.0
    found = spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)
