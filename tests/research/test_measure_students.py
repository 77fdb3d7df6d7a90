"""Measurements of students: areas under a curve, tables, the rows of a student."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from research.students import checks, measure_students, row_figures, row_table
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.subject import SampleRequest


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
    assert row_figures.pairwise_distance(pictures) == pytest.approx((3 * 4 / 6 + 0) / 2)


def test_the_best_fixed_sampler_is_chosen_for_each_cost() -> None:
    row = {"judge": 0.0, "guided": True, "spec": "fixed @ a", "calls": 2.0}
    rows = {"a": {**row, "psnr": 1.0}, "b": {**row, "psnr": 3.0}, "c": {**row, "psnr": 9.0, "guided": False}}
    assert row_table.best_untrained(rows, "psnr", True, "full run") == [(2.0, 3.0)]


def test_objects_and_backgrounds_are_counted_apart() -> None:
    subject = EngineSubject("pebble", "pebble")
    column = parse_column("fixed @ unipc / trailing / 8", *DEFAULT_SAMPLER)
    drawn, _ = subject.draw([SampleRequest("a cat on a red background", 0)], column)
    (picture,) = subject.pictures(drawn)
    prompts = ["a cat on a red background", "a cat on a blue background", "a cat", "a star on a red background"]
    found = row_figures.judge_facts([picture] * 4, prompts)
    assert (found["objects"], found["background"]) == pytest.approx((3 / 4, 2 / 3))
    assert found["judge"] == pytest.approx((1 + 1 / 2 + 1 + 1 / 2) / 4)


def test_the_frechet_distance_tells_sets_apart_and_is_0_for_one_set() -> None:
    rng = np.random.default_rng(2)
    dark, light = ((rng.random((40, 64, 64, 3)) * most).astype(np.uint8) for most in (80, 255))
    same = row_figures.judge_frechet_distance(dark, dark)
    halves = row_figures.judge_frechet_distance(dark[:20], dark[20:])
    assert same == pytest.approx(0, abs=1e-3)
    assert same < halves < row_figures.judge_frechet_distance(dark, light)
    features = [row_figures.JudgeFeatures()(torch.as_tensor(p).permute(0, 3, 1, 2)) for p in (dark, light)]
    means = float((features[0].mean(0) - features[1].mean(0)).square().sum())
    assert row_figures.judge_frechet_distance(dark, light) > means  # to which the covariances add


def test_the_table_has_a_share_of_the_teachers_diversity_and_leaves_blank_what_was_not_measured() -> None:
    row: dict[str, Any] = {
        "calls": 1.0, "gmacs": 0.5, "judge": 0.9, "judge_se": 0.01, "objects": 0.8, "background": 1.0, "psnr": 20.0,
        "psnr_p10": 15.0, "ssim": 0.9, "ssim_p10": 0.8, "frechet": None, "diversity": {},
    }  # fmt: skip
    timed = {"diversity": {"pixels": 2.0}, "seconds": 0.5, "cpu_seconds": 0.25, "load": 0.5, "frechet": 3.0}
    rows = {"full": {**row, **timed}, "other": {**row, "diversity": {"pixels": 1.0}}}
    table = row_table.write_table(rows, "make it", "full", "floor", {"prompts": 4, "frechet": 8})
    assert "90.0 ± 1.0 | 80.0 | 100.0 | 20.0 / 15.0 | 0.900 / 0.800 | 3 | 0.500 / 0.250 | 100% |" in table
    assert "20.0 / 15.0 | 0.900 / 0.800 |  |  | 50% |" in table
    older = {name: row[name] for name in ("calls", "judge", "judge_se", "psnr", "psnr_p10", "diversity")}
    table = row_table.write_table({**rows, "old": older}, "", "full", "floor", {"prompts": 4, "frechet": 8})
    assert "| 1 |  | old | 90.0 ± 1.0 |  |  | 20.0 / 15.0 |  |  |  |  |" in table
    assert "its load was 0.5 to 0.5" in table
