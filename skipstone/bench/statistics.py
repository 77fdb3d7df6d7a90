"""What may be concluded from samples: intervals, paired comparisons, equivalence, corrected for asking often.

Samples are mappings from the id `prompt:seed` to a number; two of them are joined by these ids, never by the order
of a file. The unit that is drawn at random is the *prompt*: its seeds are resampled together in intervals, and averaged
in tests, for two seeds of one prompt are no two prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..errors import SpecError

Values: TypeAlias = Mapping[str, float]  # sample id -> number
Statistic: TypeAlias = Callable[[Any], Any]  # of the last axis of an array; NaN is a gap
Better: TypeAlias = Literal["higher", "lower"]

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0
TAIL = 0.1  # the unlucky tenth


@dataclass(frozen=True, slots=True)
class Span:
    """A figure and the interval that it may as well have been."""

    value: float
    low: float
    high: float
    n: int  # prompts


@dataclass(frozen=True, slots=True)
class Paired:
    """How one row does against another on the samples that both have.

    `median`, `mean` and `tail` are differences of the two rows' own medians, means and unlucky tenths, the first row's
    minus the second's, with paired intervals. `p` is that of Wilcoxon's signed-rank test over prompts; `effect` is its
    matched-pairs rank-biserial correlation, 1 where the first is larger on every prompt and -1 where it is smaller on
    all; `wins` is the share of prompts on which the first is better.
    """

    n: int  # prompts
    median: Span
    mean: Span
    tail: Span
    p: float
    effect: float
    wins: float


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided t-tests: p is that of the worse one, the interval is the one that they decide by (1 - 2 alpha)."""

    mean: float
    low: float
    high: float
    margin: float
    p: float
    n: int
    equivalent: bool


@dataclass(frozen=True, slots=True)
class Groups:
    """Two independent groups: difference of the means (second minus first), Mann-Whitney's p.

    `above` is the chance that one of the second group lies above one of the first, ties counted half.
    """

    difference: Span
    p: float
    above: float
    sizes: tuple[int, int]


# -- Statistics of an array's last axis -------------------------------------------------------------


def median(a: Any) -> Any:
    """The median."""
    import numpy as np

    return np.nanmedian(a, axis=-1) if np.isnan(a).any() else np.median(a, axis=-1)


def mean(a: Any) -> Any:
    """The mean."""
    import numpy as np

    return np.nanmean(a, axis=-1)


def quantile(q: float) -> Statistic:
    """The q-quantile, linear between the two neighbouring samples. Raises SpecError outside [0, 1]."""
    import numpy as np

    if not 0 <= q <= 1:
        raise SpecError(f"Expected a quantile in [0, 1], got {q}.")
    return lambda a: np.nanquantile(a, q, axis=-1) if np.isnan(a).any() else np.quantile(a, q, axis=-1)


def tail(better: Better) -> Statistic:
    """The value that the unlucky tenth does not reach: the 10 % quantile, or the 90 % one where lower is better."""
    return quantile(TAIL if better == "higher" else 1 - TAIL)


# -- Samples ----------------------------------------------------------------------------------------


def prompt_of(sample: str) -> str:
    """The prompt of a sample: its id without the seed."""
    return sample.rpartition(":")[0] or sample


def common(*rows: Values) -> tuple[str, ...]:
    """Ids that all rows have, sorted. Raises SpecError where there is none."""
    shared = sorted(set(rows[0]).intersection(*rows[1:]))
    if not shared:
        raise SpecError(f"Expected rows with samples in common, got {[len(r) for r in rows]} samples and none shared.")
    return tuple(shared)


def by_prompt(values: Values) -> dict[str, float]:
    """The mean over the seeds of each prompt, prompts sorted."""
    seeds: dict[str, list[float]] = {}
    for sample in sorted(values):
        seeds.setdefault(prompt_of(sample), []).append(values[sample])
    return {prompt: sum(v) / len(v) for prompt, v in seeds.items()}


def differences(a: Values, b: Values) -> list[float]:
    """First minus second for each prompt that both have, averaged over its seeds."""
    return list(by_prompt({sample: a[sample] - b[sample] for sample in common(a, b)}).values())


def _table(values: Values) -> Any:
    """Prompts x seeds; NaN where a prompt has fewer seeds than another."""
    import numpy as np

    seeds: dict[str, list[float]] = {}
    for sample in sorted(values):
        seeds.setdefault(prompt_of(sample), []).append(values[sample])
    table = np.full((len(seeds), max(map(len, seeds.values()), default=0)), np.nan)
    for row, found in zip(table, seeds.values(), strict=True):
        row[: len(found)] = found
    return table


# -- Intervals --------------------------------------------------------------------------------------


def bootstrap(values: Values, statistic: Statistic, *, level: float = LEVEL, seed: int = SEED) -> Span:
    """A statistic over all samples, with its percentile bootstrap interval over prompts.

    Prompts are drawn with replacement, each with all of its seeds. One prompt alone has no interval: its ends are NaN.
    Of use for medians, means and quantiles; not for the worst sample, whose interval no bootstrap gives.

    Args:
        values: Samples by id, at least one.
        statistic: Of the last axis of an array, such as `median` or `quantile(0.1)`.
        level: Of the interval, in (0, 1).
        seed: Of the resampling; the same seed draws the same prompts.

    Raises:
        SpecError: no samples, or a level out of range.

    References: Efron, Tibshirani 1993, An Introduction to the Bootstrap, 13.3.
    """
    return bootstraps(values, [statistic], level=level, seed=seed)[0]


def bootstraps(values: Values, how: Sequence[Statistic], *, level: float = LEVEL, seed: int = SEED) -> list[Span]:
    """Several statistics of the same resamples; otherwise as `bootstrap`."""
    return _resampled([_table(values)], how, lambda found: found[0], level, seed)


def paired_bootstraps(
    a: Values, b: Values, how: Sequence[Statistic], *, level: float = LEVEL, seed: int = SEED
) -> list[Span]:
    """The differences of statistics between two rows, with intervals that draw the same prompts of both.

    Args and Raises: as `bootstrap`, and SpecError where the rows share no sample.
    """
    ids = common(a, b)
    tables = [_table({i: row[i] for i in ids}) for row in (a, b)]
    return _resampled(tables, how, lambda found: found[0] - found[1], level, seed)


def _resampled(
    tables: Sequence[Any], how: Sequence[Statistic], join: Callable[[Sequence[Any]], Any], level: float, seed: int
) -> list[Span]:
    """Spans of `join` of each statistic of all tables, whose prompts are drawn alike."""
    import numpy as np
    from scipy.stats import bootstrap as scipy_bootstrap

    if not len(tables[0]) or not 0 < level < 1:
        raise SpecError(f"Expected at least one prompt and a level in (0, 1), got {len(tables[0])} and {level}.")

    def drawn(prompts: Any, axis: int = -1) -> Any:
        where = np.moveaxis(prompts, axis, -1).astype(int)
        found = [t[where].reshape(*where.shape[:-1], -1) for t in tables]
        return np.stack([join([statistic(table) for table in found]) for statistic in how])

    count = len(tables[0])
    values = [float(v) for v in drawn(np.arange(count))]
    if count == 1:
        return [Span(v, float("nan"), float("nan"), 1) for v in values]
    found = scipy_bootstrap(
        (np.arange(count),),
        drawn,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return [Span(v, float(a), float(b), count) for v, a, b in zip(values, found.low, found.high, strict=True)]


# -- Tests ------------------------------------------------------------------------------------------


def paired(a: Values, b: Values, better: Better = "higher") -> Paired:
    """Compare two rows on the samples that both have; see `Paired`. Raises SpecError where they share none."""
    found = differences(a, b)
    sign = 1 if better == "higher" else -1
    wins = sum(1.0 if sign * d > 0 else 0.5 if d == 0 else 0.0 for d in found) / len(found)
    p, effect = signed_rank(found)
    middle, centre, unlucky = paired_bootstraps(a, b, [median, mean, tail(better)])
    return Paired(len(found), middle, centre, unlucky, p, effect, wins)


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


def tost(found: Sequence[float], margin: float, alpha: float = 0.05) -> Equivalence:
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
        return Equivalence(centre, -np.inf, np.inf, margin, 1.0, 1, False)
    error = float(d.std(ddof=1)) / n**0.5
    if error == 0.0:  # all alike: the mean is known, as far as these samples can tell
        p, half = float(abs(centre) >= margin), 0.0
    else:
        p = float(student.sf((margin - abs(centre)) / error, n - 1))
        half = float(student.ppf(1 - alpha, n - 1)) * error
    return Equivalence(centre, centre - half, centre + half, margin, p, n, p < alpha)


def two_groups(a: Sequence[float], b: Sequence[float], *, level: float = LEVEL, seed: int = SEED) -> Groups:
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
        return Groups(Span(0.0, 0.0, 0.0, sum(sizes)), 1.0, 0.5, sizes)
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
    span = Span(value, float(interval.low), float(interval.high), sum(sizes))
    return Groups(span, float(test.pvalue), above, sizes)


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
