"""Measurements of students: areas under a curve, tables, the rows of a student."""

from __future__ import annotations

import numpy as np
import pytest

from research.students import checks, measure_students


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    failed = np.array([True, True, False, False])
    assert checks.area(failed, np.array([3.0, 2.0, 1.0, 0.0])) == 1.0
    assert checks.area(failed, np.array([0.0, 1.0, 2.0, 3.0])) == 0.0
    assert checks.area(failed, np.array([3.0, 0.5, 1.0, 0.0])) == 0.75
    assert checks.area(failed, np.ones(4)) == 0.5


def test_the_interval_holds_the_area() -> None:
    rng = np.random.default_rng(1)
    failed = rng.random(60) < 0.4
    values = failed + rng.normal(size=60)
    low, high = checks.interval(failed, values)
    assert low < checks.area(failed, values) < high


def test_a_consistency_student_has_a_row_for_every_multiple_of_its_steps() -> None:
    rows = measure_students.student_rows("mine", "pebble-consistency-2")
    assert list(rows) == [f"mine, {n} steps" for n in (2, 4, 6, 8, 12, 16)]


def test_diversity_is_the_mean_distance_within_a_prompt() -> None:
    pictures = [np.full((2, 2), float(value), np.float32) for value in (0, 0, 0, 4, 9, 9, 9, 9)]
    assert measure_students.pairwise_distance(pictures) == pytest.approx((3 * 4 / 6 + 0) / 2)


def test_the_best_fixed_sampler_is_chosen_for_each_cost() -> None:
    row = {"judge": 0.0, "guided": True, "spec": "fixed @ a", "calls": 2.0}
    rows = {"a": {**row, "psnr": 1.0}, "b": {**row, "psnr": 3.0}, "c": {**row, "psnr": 9.0, "guided": False}}
    assert measure_students.best_untrained(rows, "psnr", True) == [(2.0, 3.0)]
