"""P-values of "the risk is above what was asked for", from the losses of n prompts, and intervals that agree with them.

Every test here holds for any distribution of losses in [0, 1], at any n. Prompts must be exchangeable with each other
and with those that the promise is for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import SpecError
from ..evaluation.resampling import ConfidenceInterval
from .betting import fixed_size_log_capital, mean_lower_bound
from .target import Target

SEED = 0  # of the order in which the betting test sees the prompts


# -- Of a target ------------------------------------------------------------------------------------


def p_value(target: Target, values: Sequence[float | None]) -> float:
    """p of the hypothesis that the promise does not hold: P(p <= u) <= u for every u where it does not.

    Of fractions `binomial_p`, of means `betting_p`: which one is fixed by the target, never by the values.

    Args:
        target: What is asked for.
        values: The metric of each prompt; NaN and None are the worst.

    Raises:
        SpecError: no values.
    """
    losses = compute_losses(target, values)
    if target.fraction is not None:
        return binomial_p(int(sum(losses)), len(losses), target.risk)
    return betting_p(losses, target.risk)


def p_value_by_group(
    target: Target, values: Sequence[float | None], groups: Sequence[str] | None = None
) -> dict[str, float]:
    """`p_value` of each group of prompts; without groups, of all of them under the name ''.

    Args:
        target: What is asked for, of every group.
        values: The metric of each prompt.
        groups: The group of each prompt, as many as values.

    Raises:
        SpecError: no values, or another number of groups.
    """
    return {name: p_value(target, part) for name, part in split_by_group(values, groups).items()}


def risk_interval(target: Target, values: Sequence[float | None], confidence: float) -> ConfidenceInterval:
    """Where the share of prompts that meets, or the mean of the metric, may lie: all that the test does not exclude.

    Each end holds with this confidence by itself, so that the worse end agrees with the test: it meets the target
    exactly where p <= 1 - confidence.

    Args:
        target: What is asked for; of a mean, the interval is that of the values cut to its span.
        values: The metric of each prompt; NaN and None are the worst.
        confidence: Of each end, in (0.5, 1).

    Raises:
        SpecError: no values, or a confidence out of range.

    References: Clopper, Pearson 1934, doi 10.1093/biomet/26.4.404 (fractions).
    """
    if not 0.5 < confidence < 1:
        raise SpecError(f"Expected a confidence in (0.5, 1), got {confidence}.")
    losses = compute_losses(target, values)
    n, centre = len(losses), math.fsum(losses) / len(losses)
    if target.fraction is not None:
        from scipy.stats import binomtest

        found = binomtest(round(n * centre), n).proportion_ci(2 * confidence - 1, method="exact")
        low, high = float(found.low), float(found.high)
    else:
        good = _shuffled(losses, SEED)
        high = max(centre, 1 - mean_lower_bound(good, 1 - confidence, fixed_size_log_capital))
        low = min(centre, mean_lower_bound(1 - good, 1 - confidence, fixed_size_log_capital))
    return to_user_interval(target, centre, low, high, n)


def to_user_interval(target: Target, centre: float, low: float, high: float, n: int) -> ConfidenceInterval:
    """An interval of the risk in the user's terms: a share of prompts that meets, or a mean of the metric."""
    a, b = sorted((target.value(low), target.value(high)))
    return ConfidenceInterval(target.value(centre), a, b, n)


def split_by_group(values: Sequence[Any], groups: Sequence[str] | None) -> dict[str, list[Any]]:
    """Values by their group, groups sorted. Raises SpecError where there is not one group for each."""
    if groups is None:
        return {"": list(values)}
    if len(groups) != len(values):
        raise SpecError(f"Expected one group for each of {len(values)} prompts, got {len(groups)}.")
    parts: dict[str, list[Any]] = {name: [] for name in sorted(set(groups))}
    for name, value in zip(groups, values, strict=True):
        parts[name].append(value)
    return parts


def compute_losses(target: Target, values: Sequence[float | None]) -> list[float]:
    """The loss of each value. Raises SpecError for none at all."""
    if not len(values):
        raise SpecError("Expected the values of at least one prompt, got none.")
    return [target.loss(value) for value in values]


# -- Of losses --------------------------------------------------------------------------------------


def binomial_p(failures: int, n: int, alpha: float) -> float:
    """Exact p of H: P(failure) > alpha, which is P(Binomial(n, alpha) <= failures).

    Args:
        failures: Prompts that do not meet, 0..n.
        n: Prompts, >= 1.
        alpha: Risk allowed, in (0, 1).

    Raises:
        SpecError: a number out of range.
    """
    from scipy.stats import binom

    _check_alpha(alpha)
    if n < 1 or not 0 <= failures <= n:
        raise SpecError(f"Expected 0..n failures of n >= 1 prompts, got {failures} of {n}.")
    return float(binom.cdf(failures, n, alpha))


def hoeffding_bentkus_p(losses: Sequence[float], alpha: float) -> float:
    """p of H: E[loss] > alpha by the inequalities of Hoeffding and of Bentkus: a formula, for the mean loss alone.

    min(exp(-n kl(min(R, alpha), alpha)), e P(Binomial(n, alpha) <= ceil(n R))), R being the mean loss and kl(a, b)
    = a log(a / b) + (1 - a) log((1 - a) / (1 - b)). It does not see that losses hardly differ; where they do not,
    `betting_p` needs far fewer of them.

    Args:
        losses: Of each prompt, in [0, 1].
        alpha: Risk allowed, in (0, 1).

    Raises:
        SpecError: no losses, or a number out of range.

    References: Bates et al. 2021, arXiv 2101.02703, 3.1; Angelopoulos et al. 2021, arXiv 2110.01052, proposition 1.
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    _check_losses(losses, alpha)
    n, total = len(losses), math.fsum(losses)
    r = min(total / n, alpha)
    hoeffding = math.exp(-n * float(rel_entr(r, alpha) + rel_entr(1 - r, 1 - alpha)))
    bentkus = math.e * float(binom.cdf(math.ceil(total), n, alpha))
    return min(1.0, hoeffding, bentkus)


def betting_p(losses: Sequence[float], alpha: float, seed: int = SEED) -> float:
    """p of H: E[loss] > alpha by betting against it: 1 / the greatest capital that the gambler ever held.

    The claim bet against is E[1 - loss] <= 1 - alpha (see `betting.planned`). Prompts are seen in an order drawn by
    the seed alone, so that a list sorted by difficulty does no harm. 1 where the losses' own mean is above alpha,
    however the bets went: nobody should be promised what these prompts do not show.

    Args:
        losses: Of each prompt, in [0, 1].
        alpha: Risk allowed, in (0, 1).
        seed: Of the order. Fixed before the losses are seen, and never chosen among several.

    Raises:
        SpecError: no losses, or a number out of range.

    References: Waudby-Smith, Ramdas 2024, arXiv 2010.09686, section 3.1; Ville 1939.
    """
    _check_losses(losses, alpha)
    if math.fsum(losses) > alpha * len(losses):
        return 1.0
    return math.exp(-max(0.0, float(fixed_size_log_capital(_shuffled(losses, seed), 1 - alpha).max())))


def _shuffled(losses: Sequence[float], seed: int) -> Any:
    """1 - loss, in an order that the losses have no part in."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(losses))
    return 1 - np.asarray(losses, float)[order]


def _check_losses(losses: Sequence[float], alpha: float) -> None:
    _check_alpha(alpha)
    if not len(losses) or not all(0 <= loss <= 1 for loss in losses):
        raise SpecError(f"Expected losses in [0, 1] of at least one prompt, got {list(losses)[:5]}.")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise SpecError(f"Expected a risk in (0, 1), got {alpha}.")
