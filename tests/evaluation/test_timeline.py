"""What the timeline shows of each kind of decision, and where."""

from __future__ import annotations

import pytest

from skipstone.engine.contracts import Attempt, Cached, Evaluate, Finish, Forecast, Full, Plan, Run
from skipstone.engine.timeline import COLOURS, attempt_kind, grid_position

RUN = Run(1.0, 0.0, (1.0, 0.5, 0.25, 0.0), (-1.0, 0.0, 1.0, 2.0))


def attempt(evaluate: Evaluate, t_next: float, accepted: bool | None = True, why: tuple[str, ...] = ()) -> Attempt:
    return Attempt(0.5, t_next, Plan(evaluate, t_next, True, why), 1.0, {}, accepted)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (attempt(Full(), 0.25), "full call"),
        (attempt(Full(), 0.25, accepted=False), "rejected"),
        (attempt(Cached(frozenset({"uncond"})), 0.25), "one branch"),
        (attempt(Forecast(1), 0.25), "forecast"),
        (attempt(Forecast(1), 0.0), "forecast"),
        (attempt(Forecast(0, "x0"), 0.25), "forecast"),
        (attempt(Forecast(0, "x0"), 0.0), "finish or stop"),
        (attempt(Forecast(), 0.0, why=("budget",)), "finish or stop"),
        (attempt(Finish(), 0.25), "finish or stop"),
    ],
)
def test_every_decision_has_its_colour(made: Attempt, expected: str) -> None:
    assert attempt_kind(made, RUN) == expected
    assert expected in COLOURS


def test_a_time_lies_between_the_steps_of_its_grid() -> None:
    assert [grid_position(RUN, t) for t in (1.0, 0.75, 0.5, 0.375, 0.25, 0.0)] == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
