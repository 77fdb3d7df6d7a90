"""Which of many settings may be promised: tests of all of them that are wrong together with chance delta at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .target import Target

Method: TypeAlias = Literal["fixed_sequence", "holm", "conformal"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What may be promised.

    Args:
        index: The cheapest of the accepted settings; None where there is none.
        p: Its p-value, the largest over groups; of the nearest where there is none. NaN of "conformal".
        p_values: Of every setting, the largest over groups.
        accepted: Settings for which the promise may be made, all at once, in the order given.
        nearest: The setting that came nearest to the target: `index` where there is one.
    """

    index: int | None
    p: float
    p_values: tuple[float, ...]
    accepted: tuple[int, ...]
    nearest: int


def choose(
    target: Target,
    table: Sequence[Sequence[float | None]],
    costs: Sequence[float],
    delta: float | None,
    groups: Sequence[str] | None = None,
    method: Method = "fixed_sequence",
) -> Choice:
    """The cheapest setting that may be promised to meet the target, or none and the nearest.

    Args:
        table: The metric's values, settings x prompts: settings from the safest to the fastest, in an order that was
            fixed before these prompts were looked at; NaN and None are the worst.
        costs: Of each setting, in any unit.
        delta: Chance that the promise is broken, in (0, 1): 1 - confidence. None of "conformal" alone.
        groups: The group of each prompt: the promise is then made to every group.
        method: "fixed_sequence" stops at the first setting that fails; "holm" tests all, in no order;
            "conformal" controls the mean risk in expectation, without a confidence.
    """
    raise NotImplementedError


def fixed_sequence(p_values: Sequence[float], delta: float, starts: Sequence[int] = (0,)) -> tuple[int, ...]:
    """Settings accepted, tested one after the other from each start until the first that fails."""
    raise NotImplementedError


def holm(p_values: Sequence[float], delta: float) -> tuple[int, ...]:
    """Settings accepted by Holm's procedure: in no order, at the price of a correction."""
    raise NotImplementedError


def conformal(losses_by_setting: Sequence[Sequence[float]], alpha: float) -> int | None:
    """The fastest setting whose risk, in the mean over calibrations, is at most alpha; None where there is none."""
    raise NotImplementedError
