"""Figures with their intervals: the bootstrap over prompts.

Samples are mappings from the id `prompt:seed` to a number; two of them are joined by these ids, never by the order
of a file. The unit of resampling is the *prompt*, with all of its seeds, for two seeds of one prompt are no
two prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..errors import SpecError

SampleValues: TypeAlias = Mapping[str, float]  # sample id -> number
Statistic: TypeAlias = Callable[[Any], Any]  # of the last axis of an array; NaN is a gap
Direction: TypeAlias = Literal["higher", "lower"]

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0
TAIL = 0.1  # the unlucky tenth


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """A figure and the interval that it may as well have been."""

    value: float
    low: float
    high: float
    n: int  # prompts


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


def tail_statistic(better: Direction) -> Statistic:
    """The value that the unlucky tenth does not reach: the 10 % quantile, or the 90 % one where lower is better."""
    return quantile(TAIL if better == "higher" else 1 - TAIL)


# -- Samples ----------------------------------------------------------------------------------------


def prompt_id_of(sample: str) -> str:
    """The prompt of a sample: its id without the seed."""
    return sample.rpartition(":")[0] or sample


def shared_samples(*rows: SampleValues) -> tuple[str, ...]:
    """Ids that all rows have, sorted. Raises SpecError where there is none."""
    shared = sorted(set(rows[0]).intersection(*rows[1:]))
    if not shared:
        raise SpecError(f"Expected rows with samples in common, got {[len(r) for r in rows]} samples and none shared.")
    return tuple(shared)


def mean_by_prompt(values: SampleValues) -> dict[str, float]:
    """The mean over the seeds of each prompt, prompts sorted."""
    seeds: dict[str, list[float]] = {}
    for sample in sorted(values):
        seeds.setdefault(prompt_id_of(sample), []).append(values[sample])
    return {prompt: sum(v) / len(v) for prompt, v in seeds.items()}


def paired_differences(a: SampleValues, b: SampleValues) -> list[float]:
    """First minus second for each prompt that both have, averaged over its seeds."""
    return list(mean_by_prompt({sample: a[sample] - b[sample] for sample in shared_samples(a, b)}).values())


def _table(values: SampleValues) -> Any:
    """Prompts x seeds; NaN where a prompt has fewer seeds than another."""
    import numpy as np

    seeds: dict[str, list[float]] = {}
    for sample in sorted(values):
        seeds.setdefault(prompt_id_of(sample), []).append(values[sample])
    table = np.full((len(seeds), max(map(len, seeds.values()), default=0)), np.nan)
    for row, found in zip(table, seeds.values(), strict=True):
        row[: len(found)] = found
    return table


# -- Intervals --------------------------------------------------------------------------------------


def bootstrap(
    values: SampleValues, statistic: Statistic, *, level: float = LEVEL, seed: int = SEED
) -> ConfidenceInterval:
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


def bootstraps(
    values: SampleValues, how: Sequence[Statistic], *, level: float = LEVEL, seed: int = SEED
) -> list[ConfidenceInterval]:
    """Several statistics of the same resamples; otherwise as `bootstrap`."""
    return _resampled([_table(values)], how, lambda found: found[0], level, seed)


def paired_bootstraps(
    a: SampleValues, b: SampleValues, how: Sequence[Statistic], *, level: float = LEVEL, seed: int = SEED
) -> list[ConfidenceInterval]:
    """The differences of statistics between two rows, with intervals that draw the same prompts of both.

    Args and Raises: as `bootstrap`, and SpecError where the rows share no sample.
    """
    ids = shared_samples(a, b)
    tables = [_table({i: row[i] for i in ids}) for row in (a, b)]
    return _resampled(tables, how, lambda found: found[0] - found[1], level, seed)


def _resampled(
    tables: Sequence[Any], how: Sequence[Statistic], join: Callable[[Sequence[Any]], Any], level: float, seed: int
) -> list[ConfidenceInterval]:
    """Spans of `join` of each statistic of all tables, whose prompts are resampled alike."""
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
        return [ConfidenceInterval(v, float("nan"), float("nan"), 1) for v in values]
    found = scipy_bootstrap(
        (np.arange(count),),
        drawn,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return [
        ConfidenceInterval(v, float(a), float(b), count) for v, a, b in zip(values, found.low, found.high, strict=True)
    ]
