"""P-values of "the risk is above what was asked for", from the losses of n prompts, and intervals that agree with them.

Every test here holds for any distribution of losses in [0, 1], at any n. Prompts must be exchangeable with each other
and with those that the promise is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..bench.resampling import Span
from .target import Target

BETS = 20  # shares of the capital that are staked, of which the betting test takes the mean
SEED = 0  # of the order in which the betting test sees the prompts


def p_value(target: Target, values: Sequence[float | None]) -> float:
    """p of the hypothesis that the promise does not hold: P(p <= u) <= u for every u where it does not.

    Of fractions `binomial_p`, of means `betting_p`: which one is fixed by the target, never by the values.

    Args:
        target: What is asked for.
        values: The metric of each prompt; NaN and None are the worst.

    Raises:
        SpecError: no values.
    """
    losses = losses_of(target, values)
    if target.fraction is not None:
        return binomial_p(int(sum(losses)), len(losses), target.risk)
    return betting_p(losses, target.risk)


def by_group(target: Target, values: Sequence[float | None], groups: Sequence[str] | None = None) -> dict[str, float]:
    """`p_value` of each group of prompts; without groups, of all of them under the name ''.

    Args:
        groups: The group of each prompt, as many as values.

    Raises:
        SpecError: no values, or another number of groups.
    """
    return {name: p_value(target, part) for name, part in divided(values, groups).items()}


def interval(target: Target, values: Sequence[float | None], confidence: float) -> Span:
    """Where the share of prompts that meets, or the mean of the metric, may lie: the values that the test allows.

    Each end holds with this confidence by itself. The promise is accepted at 1 - confidence exactly where
    the worse end of the interval meets it, up to the 1/2000 of the span that means are solved to, outwards.

    Args:
        confidence: Of each end, in (0.5, 1).

    Raises:
        SpecError: no values, or a confidence out of range.

    References: Clopper, Pearson 1934, doi 10.1093/biomet/26.4.404 (fractions).
    """


def divided(values: Sequence[Any], groups: Sequence[str] | None) -> dict[str, list[Any]]:
    """Values by their group, groups sorted. Raises SpecError where there is not one group for each."""


def losses_of(target: Target, values: Sequence[float | None]) -> list[float]:
    """The loss of each value. Raises SpecError for none at all."""


# -- The tests --------------------------------------------------------------------------------------


def binomial_p(failures: int, n: int, alpha: float) -> float:
    """Exact p of H: P(failure) > alpha, which is P(Binomial(n, alpha) <= failures).

    Raises:
        SpecError: failures not in 0..n, n < 1, or alpha not in (0, 1).
    """


def hoeffding_bentkus_p(losses: Sequence[float], alpha: float) -> float:
    """p of H: E[loss] > alpha by the inequalities of Hoeffding and of Bentkus, for losses in [0, 1].

    min(exp(-n kl(min(R, alpha), alpha)), e P(Binomial(n, alpha) <= ceil(n R))), R being the mean loss and kl(a, b)
    = a log(a / b) + (1 - a) log((1 - a) / (1 - b)).

    Raises:
        SpecError: losses outside of [0, 1], none, or alpha not in (0, 1).

    References: Bates et al. 2021, arXiv 2101.02703, section 3.1; Angelopoulos et al. 2021, arXiv 2110.01052.
    """


def betting_p(losses: Sequence[float], alpha: float, seed: int = SEED) -> float:
    """p of H: E[loss] > alpha by betting against it, for losses in [0, 1]: 1 / the greatest capital ever held.

    References: Waudby-Smith, Ramdas 2024, arXiv 2010.09686; Ville 1939.
    """
