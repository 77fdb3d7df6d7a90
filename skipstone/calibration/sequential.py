"""Whether a promise still holds: a test that may be looked at after every sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import SpecError
from ..evaluation.resampling import ConfidenceInterval
from .betting import GAMBLERS, anytime_log_capital, gains, mean_lower_bound, mix
from .risk import compute_losses, to_user_interval
from .target import Target


@dataclass(frozen=True, slots=True)
class AuditResult:
    """Result of an audit's test.

    Args:
        e_value: Capital of a gambler who started with 1 and bets that the promise is broken.
        peak: The most it was after any sample; 1 before the first.
        alarm: Whether peak >= 1 / false_alarm: once raised, it stays.
        n: Samples audited so far.
        interval: Share of prompts that meets, or mean of the metric: each end holds with confidence 1 - false_alarm
            at all n together, and the better end misses the target exactly where there is an alarm. It may leave out
            the mean of samples whose quality changed on the way.
        state: Losses of all samples so far, from which `Watchdog` goes on.
    """

    e_value: float
    peak: float
    alarm: bool
    n: int
    interval: ConfidenceInterval
    state: tuple[float, ...]


@dataclass(frozen=True)
class Watchdog:
    """Audit of a promise, by betting that it is broken: looking often does not make a false alarm likelier.

    The capital after n losses is the mean over gamblers j of prod_i (1 + lambda_j (loss_i - risk)), lambda_j in
    (0, 1 / risk] (see `betting.mixed`): an e-process. P(it ever reaches 1 / false_alarm) <= false_alarm where
    E[loss] <= risk holds at every sample, given those before. Samples must be drawn as the promise says, and which of
    them are audited must not depend on how they came out.

    Args:
        target: What was promised.
        false_alarm: Chance that the alarm is ever raised although the promise holds, in (0, 0.5).
        state: Losses seen before, as `AuditResult.state` has them; () starts.

    Raises:
        SpecError: a number out of range.

    References: Ville 1939; Waudby-Smith, Ramdas 2024, arXiv 2010.09686; Ramdas et al. 2023, arXiv 2210.01948.
    """

    target: Target
    false_alarm: float = 0.05
    state: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm < 0.5:
            raise SpecError(f"audit: expected a chance of a false alarm in (0, 0.5), got {self.false_alarm}.")
        if not all(0 <= loss <= 1 for loss in self.state):
            raise SpecError(f"audit: expected a state of losses in [0, 1], got {list(self.state)[:5]}.")

    def update(self, values: Sequence[float | None]) -> AuditResult:
        """Look at more values of the metric; `Watchdog(target, false_alarm, audit.state)` goes on from there.

        Args:
            values: In the order in which they came, at least one; NaN and None are the worst.

        Raises:
            SpecError: no values.
        """
        import numpy as np

        state = (*self.state, *compute_losses(self.target, values))
        x = np.asarray(state, float)
        capital = anytime_log_capital(x, self.target.risk)
        peak = max(0.0, float(capital.max()))
        low = mean_lower_bound(x, self.false_alarm, anytime_log_capital)
        high = 1 - mean_lower_bound(1 - x, self.false_alarm, anytime_log_capital)
        centre = math.fsum(state) / len(state)
        alarm = peak >= math.log(1 / self.false_alarm)
        span = to_user_interval(self.target, centre, low, high, len(state))
        return AuditResult(_exp(float(capital[-1])), _exp(peak), alarm, len(state), span, state)


@dataclass(frozen=True, slots=True)
class RunningAudit:
    """The test of `Watchdog`, without its interval: as fast after a million samples as after one.

    Args:
        target: What was promised.
        false_alarm: Chance that the alarm is ever raised although the promise holds, in (0, 0.5).
        n: Samples audited so far.
        logs: Logarithm of each gambler's capital.
        peak_log: Of the most that the mean capital was after any sample, at least 0.

    Raises:
        SpecError: a number out of range.
    """

    target: Target
    false_alarm: float = 0.05
    n: int = 0
    logs: tuple[float, ...] = (0.0,) * GAMBLERS
    peak_log: float = 0.0

    def __post_init__(self) -> None:
        good = 0 < self.false_alarm < 0.5 and self.n >= 0 and self.peak_log >= 0 and len(self.logs) == GAMBLERS
        if not good or any(math.isnan(one) or one == math.inf for one in self.logs):
            raise SpecError(
                f"audit: expected a chance in (0, 0.5), a count and {GAMBLERS} logarithms, got {self.false_alarm}, "
                f"{self.n} and {list(self.logs)[:3]}."
            )

    @property
    def e_value(self) -> float:
        """Capital of a gambler who started with 1 and bets that the promise is broken."""
        import numpy as np

        return _exp(float(mix(np.asarray(self.logs))))

    @property
    def alarm(self) -> bool:
        """Whether the capital ever was 1 / false_alarm."""
        return self.peak_log >= math.log(1 / self.false_alarm)

    def update(self, values: Sequence[float | None]) -> RunningAudit:
        """The test after more values of the metric, in the order in which they came; NaN and None are the worst."""
        import numpy as np

        losses = np.asarray(compute_losses(self.target, values), float)
        before = np.asarray(self.logs)[:, None]
        each = np.concatenate([before, gains(losses, self.target.risk)], -1).cumsum(-1)[:, 1:]
        peak = max(self.peak_log, float(mix(each).max()))
        return replace(self, n=self.n + len(losses), logs=tuple(each[:, -1].tolist()), peak_log=peak)


def _exp(log: float) -> float:
    """exp(x), or infinity where the result exceeds the largest float."""
    return math.exp(log) if log < 700 else math.inf
