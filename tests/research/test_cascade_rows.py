"""The cascade's table: rivals at equal mean cost."""

from __future__ import annotations

import pytest

from research.students.cascade import all_specs, best_at, kinds, leads, tenth
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER

ROWS = {
    "student, 2 steps": {"calls": [1.0] * 4, "psnr": [20.0] * 4, "judge": [1.0] * 4},
    "student, 4 steps": {"calls": [2.0] * 4, "psnr": [24.0] * 4, "judge": [1.0] * 4},
    "student, 6 steps": {"calls": [3.0] * 4, "psnr": [23.0] * 4, "judge": [1.0] * 4},
    "default, 4": {"calls": [6.0] * 4, "psnr": [30.0] * 4, "judge": [1.0] * 4},
    "cascade, then 4, limit 0.3": {"calls": [1.0, 2.0], "psnr": [25.0] * 2, "judge": [1.0] * 2},
}


def test_a_rival_at_equal_cost_lies_between_its_rows_or_is_a_cheaper_one() -> None:
    names = kinds(ROWS)["student"]
    assert best_at(ROWS, names, 1.5) == pytest.approx(22.0)
    assert best_at(ROWS, names, 2.5) == pytest.approx(24.0)  # more steps are worse: the cheaper row is taken
    assert best_at(ROWS, names, 9.0) == pytest.approx(24.0)
    assert best_at(ROWS, names, 0.5) == float("-inf")


def test_the_lead_is_over_the_best_rival() -> None:
    [*_, line] = leads(ROWS)
    assert line == "| then 4, limit 0.3 | 1.50 | 25.0 | 22.0 | - | +3.0 |"


def test_the_interval_of_the_worst_tenth_holds_it() -> None:
    p10, low, high = tenth([float(v) for v in range(100)])
    assert p10 == pytest.approx(9.9)
    assert low < p10 < high


def test_every_spec_is_one_that_parses() -> None:
    for spec in all_specs("pebble-consistency-2", None).values():
        assert parse_column(spec, *DEFAULT_SAMPLER).policy is not None
