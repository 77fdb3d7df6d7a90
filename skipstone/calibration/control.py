"""Which of many settings may be promised: tests of all of them that are wrong together with chance delta at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import SpecError
from ..evaluation.statistics import holm as adjusted_by_holm
from .risk import compute_losses, p_value_by_group
from .target import Target

Method: TypeAlias = Literal["fixed_sequence", "holm", "conformal"]
METHODS = ("fixed_sequence", "holm", "conformal")


@dataclass(frozen=True, slots=True)
class SettingChoice:
    """The settings that may be promised.

    Args:
        index: The cheapest of the accepted settings, the first of equally cheap ones; None where none is accepted.
        p: Its p-value, or that of the nearest; NaN of "conformal", which has none.
        p_values: Of every setting, the largest over groups. One below delta that is not accepted was not reached.
        accepted: Settings for which the promise may be made, all of them at once.
        nearest: The setting that came nearest to the target: `index` where there is one.
    """

    index: int | None
    p: float
    p_values: tuple[float, ...]
    accepted: tuple[int, ...]
    nearest: int


def choose_setting(
    target: Target,
    table: Sequence[Sequence[float | None]],
    costs: Sequence[float],
    delta: float | None,
    groups: Sequence[str] | None = None,
    method: Method = "fixed_sequence",
) -> SettingChoice:
    """The cheapest setting that may be promised to meet the target; or none, and the nearest.

    Learn then Test: each setting has the hypothesis that it breaks the promise, and those whose hypothesis is rejected
    may all be promised, with chance delta at most that any of them breaks it. The promise to every group is broken
    where it is broken for one of them: its p is the largest over groups (intersection-union), which takes no
    correction, but every group must have prompts enough to be proved by itself.

    Args:
        target: What is asked for.
        table: The metric's values, settings x prompts: settings from the safest to the fastest, in an order that was
            fixed before these prompts were looked at; each prompt once; NaN and None are the worst.
        costs: Of each setting, in any unit.
        delta: Chance that the promise is broken, in (0, 1): 1 - confidence. None of "conformal", and only of it.
        groups: The group of each prompt: the promise is then made to every group.
        method: "fixed_sequence" stops at the first setting that fails; "holm" tests all, whatever their order;
            "conformal" bounds the risk in the mean over calibrations, without a confidence (see `conformal`).

    Raises:
        SpecError: no settings or prompts, rows or costs of different lengths, a setting out of range.

    References: Angelopoulos et al. 2021, arXiv 2110.01052; Berger 1982, Technometrics 24 (intersection-union).
    """
    _check_shapes(table, costs)
    if method not in METHODS:
        raise SpecError(f"Expected a method among {', '.join(METHODS)}, got {method!r}.")
    losses = [compute_losses(target, row) for row in table]
    if method == "conformal":
        return _conformally(target, losses, delta, groups)
    if delta is None:
        raise SpecError(f"{method} needs delta = 1 - confidence. Without a confidence, type method='conformal'.")
    p_values = tuple(max(p_value_by_group(target, row, groups).values()) for row in table)
    accepted = fixed_sequence(p_values, delta) if method == "fixed_sequence" else holm(p_values, delta)
    if accepted:
        index = min(accepted, key=lambda i: (costs[i], i))
        return SettingChoice(index, p_values[index], p_values, accepted, index)
    nearest = min(range(len(table)), key=lambda i: (p_values[i], math.fsum(losses[i]), i))
    return SettingChoice(None, p_values[nearest], p_values, (), nearest)


def fixed_sequence(p_values: Sequence[float], delta: float, starts: Sequence[int] = (0,)) -> tuple[int, ...]:
    """Settings accepted, sorted: from each start one after the other, until the first with p > delta / len(starts).

    One start needs no correction, since each test is made only where the ones before were passed. More starts find
    settings behind one that fails.

    Args:
        p_values: In the order of the tests, fixed beforehand.
        delta: Chance that any setting is accepted wrongly, in (0, 1).
        starts: Where to begin, fixed beforehand, >= 1 of them.

    Raises:
        SpecError: a number out of range.

    References: Angelopoulos et al. 2021, arXiv 2110.01052, algorithm 1; Maurer, Hothorn, Lehmacher 1995.
    """
    _check_level(p_values, delta)
    if not starts or not all(0 <= s < len(p_values) for s in starts) or len(set(starts)) < len(starts):
        raise SpecError(f"Expected different starts among the {len(p_values)} settings, got {list(starts)}.")
    found: set[int] = set()
    for start in starts:
        for i in range(start, len(p_values)):
            if p_values[i] > delta / len(starts):
                break
            found.add(i)
    return tuple(sorted(found))


def holm(p_values: Sequence[float], delta: float) -> tuple[int, ...]:
    """Settings accepted by Holm's procedure, sorted: in no order, at the price of a correction for their number.

    Args:
        p_values: Of all settings.
        delta: Chance that any setting is accepted wrongly, in (0, 1).

    Raises:
        SpecError: a number out of range.

    References: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    _check_level(p_values, delta)
    return tuple(i for i, p in enumerate(adjusted_by_holm(p_values)) if p <= delta)


def conformal(losses_by_setting: Sequence[Sequence[float]], alpha: float) -> int | None:
    """The fastest setting of which the next prompt's expected loss is at most alpha; None where there is none.

    The last i, settings going from the safest to the fastest, with (n R_i + 1) / (n + 1) <= alpha, R_i being the mean
    over prompts of the largest loss at i or at any safer setting: where losses are not monotone in the setting, this
    makes them so, from above. The promise is E[loss] <= alpha over calibrations *and* the next prompt together: a
    single calibration may well choose a setting that breaks it, and where it answers None nothing is promised.

    Args:
        losses_by_setting: Settings x prompts, in [0, 1], settings from the safest to the fastest.
        alpha: Risk allowed, in (0, 1).

    Raises:
        SpecError: no settings or prompts, or a number out of range.

    References: Angelopoulos et al. 2022, arXiv 2208.02814, theorem 1 and section 2.3 (monotonising).
    """
    import numpy as np

    losses = np.asarray(losses_by_setting, float)
    if losses.ndim != 2 or not losses.size or not ((losses >= 0) & (losses <= 1)).all() or not 0 < alpha < 1:
        raise SpecError(f"Expected losses in [0, 1], settings x prompts, and a risk in (0, 1), got {alpha}.")
    worst_yet = np.maximum.accumulate(losses, 0)
    passing = (worst_yet.sum(1) + 1) / (losses.shape[1] + 1) <= alpha
    return int(np.flatnonzero(passing)[-1]) if passing.any() else None


def _conformally(
    target: Target, losses: list[list[float]], delta: float | None, groups: Sequence[str] | None
) -> SettingChoice:
    if delta is not None or groups is not None or target.fraction is not None:
        raise SpecError(
            "conformal bounds a mean over calibrations: it takes a target '@ mean', no confidence and no groups. "
            "Type method='fixed_sequence'."
        )
    index = conformal(losses, target.risk)
    nearest = index if index is not None else min(range(len(losses)), key=lambda i: (math.fsum(losses[i]), i))
    return SettingChoice(index, math.nan, (math.nan,) * len(losses), () if index is None else (index,), nearest)


def _check_shapes(table: Sequence[Sequence[float | None]], costs: Sequence[float]) -> None:
    if not len(table) or len(costs) != len(table) or len({len(row) for row in table}) != 1:
        raise SpecError(
            f"Expected settings that all have a value for each prompt, and a cost each; got rows of "
            f"{[len(row) for row in table]} and {len(costs)} costs."
        )


def _check_level(p_values: Sequence[float], delta: float) -> None:
    if not 0 < delta < 1 or not len(p_values) or any(not 0 <= p <= 1 for p in p_values):
        raise SpecError(f"Expected p-values in [0, 1] and delta in (0, 1), got {list(p_values)} and {delta}.")
