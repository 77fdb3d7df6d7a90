"""Number of prompts that a promise needs, computed before any is drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import SpecError
from .betting import fixed_size_log_capital
from .risk import betting_p, binomial_p
from .target import Target

MOST = 20_000  # prompts of one group, above which none are planned
TRIALS = 400  # calibrations that are imagined to find the power of the betting test
SEED = 0  # of these
ASSUMED_SLACK = 0.05  # of the way from a mean's level to the bad end of its span: the slack that is assumed


@dataclass(frozen=True, slots=True)
class PromptsNeeded:
    """Prompts that the final test needs, over all groups.

    Args:
        fewest: With which a setting whose every loss is 0 is accepted: with fewer, none ever is.
        likely: With which a setting that is better than the target by `slack` is accepted with chance `power`; None
            where that takes more than 20,000 in a group.
        slack: How much better: of fractions a share of prompts, of means in the metric's unit.
        deviation: Standard deviation of the metric between prompts that was assumed; None of fractions.
        power: Chance of being accepted, over all groups.
        groups: In each of which equally many are needed.
    """

    fewest: int
    likely: int | None
    slack: float
    deviation: float | None
    power: float
    groups: int


def prompts_needed(
    target: Target,
    confidence: float,
    slack: float | None = None,
    deviation: float | None = None,
    groups: int = 1,
    power: float = 0.8,
) -> PromptsNeeded:
    """Prompts that the final test needs, at least and to be likely accepted.

    Of fractions exact, from the binomial distribution; fewest = ceil(log(1 - confidence) / log(fraction)). Of means
    the betting test itself is played on 400 imagined calibrations with losses of a beta distribution.

    Args:
        target: What is asked for.
        confidence: That the promise is kept, in (0, 1).
        slack: By how much the setting is better than the target, > 0. By default half of the failures that are
            allowed; of means 5 % of the way from the level to the bad end of the span, but at most half of the way
            to the good end.
        deviation: Of means, the standard deviation of the metric between prompts, > 0; by default twice the slack.
        groups: Groups of prompts that the promise is made to, each by itself, >= 1.
        power: Chance of being accepted, in (0, 1).

    Raises:
        SpecError: a setting out of range.
    """
    delta, alpha = _delta(confidence), target.risk
    if groups < 1 or not 0 < power < 1 or (deviation is not None and deviation <= 0):
        got = f"{groups}, {power} and {deviation}"
        raise SpecError(f"Expected groups >= 1, a power in (0, 1) and a deviation > 0, got {got}.")
    slack = _slack(target) if slack is None else slack
    unit = 1.0 if target.span is None else target.span[1] - target.span[0]
    rate = alpha - slack / unit
    if not slack > 0 or rate < 0:
        raise SpecError(
            f"Expected a slack above 0 and at most {alpha * unit:g}, where nothing is left to fail, got {slack}."
        )
    each = power ** (1 / groups)
    if target.span is None:
        likely = _likely_of_fraction(delta, alpha, rate, each)
        return PromptsNeeded(
            groups * fewest(target, confidence), likely and groups * likely, slack, None, power, groups
        )
    deviation = 2 * slack if deviation is None else deviation
    likely = _first(lambda n: _power_of_betting(n, delta, alpha, rate, deviation / unit) >= each)
    return PromptsNeeded(
        groups * fewest(target, confidence), likely and groups * likely, slack, deviation, power, groups
    )


def fewest(target: Target, confidence: float) -> int:
    """Prompts of one group with which a setting whose every loss is 0 is accepted; with fewer, no setting ever is.

    Raises:
        SpecError: a confidence out of range, or a target that takes more than 20,000.
    """
    delta, alpha = _delta(confidence), target.risk
    if target.span is None:  # (1 - alpha)^n <= delta, as the test itself rounds it
        found: int | None = max(1, math.ceil(math.log(delta) / math.log1p(-alpha)) - 1)
        while found is not None and binomial_p(0, found, alpha) > delta:
            found += 1
    else:
        found = _first(lambda n: betting_p([0.0] * n, alpha) <= delta)
    if found is None:
        raise SpecError(f"{_describe_target(target, confidence)} takes more than {MOST:,} prompts: ask for less.")
    return found


def check_enough_prompts(
    target: Target, confidence: float, n: int, groups: Sequence[str] | None = None, of: str = "prompts"
) -> None:
    """Raises SpecError where n prompts are too few for any setting to be accepted, and says how many it takes.

    Args:
        target: What is asked for.
        confidence: That the promise is kept, in (0, 1).
        n: Prompts of the final test, each counted once.
        groups: The group of each, where the promise is made to every group.
        of: What they are called: "prompts", or "seeds" of a model that takes no prompts.

    Raises:
        SpecError: too few prompts, in all or in a group; a confidence out of range; not one group for each prompt.
    """
    needed = fewest(target, confidence)
    if groups is not None and len(groups) != n:
        raise SpecError(f"Expected one group for each of {n} prompts, got {len(groups)}.")
    have = Counter(groups) if groups is not None else {"": n}
    short = {name: count for name, count in sorted(have.items()) if count < needed}
    if not short and n > 0:
        return
    each = "" if groups is None else " in each group"
    got = str(n) if groups is None else ", ".join(f"{count} of {name!r}" for name, count in short.items())
    raise SpecError(
        f"{_describe_target(target, confidence)} needs at least {needed} {of} in the final test{each}, and more "
        f"for a setting that fails now and then; got {got}."
        f"{_suggest_alternative(target, confidence, min(short.values(), default=0), of)}"
    )


def _describe_target(target: Target, confidence: float) -> str:
    return f"'{target.spell()}' with confidence {confidence:g}"


def _suggest_alternative(target: Target, confidence: float, n: int, of: str) -> str:
    """What n prompts could prove: a smaller share, or the same with less confidence."""
    if n < 1 or target.fraction is None:
        return f" Give more {of}, or ask for less."
    share = math.floor(100 * (1 - confidence) ** (1 / n))
    less = math.floor(100 * (1 - target.fraction**n)) / 100
    ways = [f"'@ {share}%'"] * (share > 0) + [f"a confidence of {less:g}"] * (less > 0.5)
    return f" Give more {of}, or ask for {' or '.join(ways)} at most." if ways else f" Give more {of}."


def _slack(target: Target) -> float:
    if target.span is None:
        return target.risk / 2
    good, bad = (target.span[1], target.span[0]) if target.relation == ">=" else target.span
    return min(ASSUMED_SLACK * abs(target.level - bad), abs(target.level - good) / 2)


def _likely_of_fraction(delta: float, alpha: float, rate: float, power: float) -> int | None:
    """The least n from which on a setting that fails at this rate is accepted with this power.

    From which on: a prompt more may cost power, where it does not yet allow a failure more.
    """
    import numpy as np
    from scipy.stats import binom

    n = np.arange(1, MOST + 1)
    allowed = binom.ppf(delta, n, alpha)  # the least count of failures whose p is at least delta
    allowed -= binom.cdf(allowed, n, alpha) > delta
    failing = np.flatnonzero(binom.cdf(allowed, n, rate) < power)
    last = int(n[failing[-1]]) if len(failing) else 0
    return last + 1 if last < MOST else None


def _power_of_betting(n: int, delta: float, alpha: float, rate: float, deviation: float) -> float:
    """The share of imagined calibrations in which a setting of this mean loss is accepted with n prompts."""
    import numpy as np

    rate = max(rate, 1e-9)
    # No loss in [0, 1] varies more than 0 and 1 do.
    spread = min(deviation, 0.99 * math.sqrt(rate * (1 - rate)))
    weight = rate * (1 - rate) / spread**2 - 1
    losses = np.random.default_rng(SEED).beta(rate * weight, (1 - rate) * weight, (TRIALS, n))
    won = fixed_size_log_capital(1 - losses, 1 - alpha).max(-1) >= math.log(1 / delta)
    return float((won & (losses.mean(-1) <= alpha)).mean())


def _first(holds: Callable[[int], bool]) -> int | None:
    """The least n that holds, where all above it do; found by doubling and halving."""
    high = 1
    while not holds(high):
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _delta(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise SpecError(f"Expected a confidence in (0, 1), such as 0.9, got {confidence}.")
    return 1 - confidence
