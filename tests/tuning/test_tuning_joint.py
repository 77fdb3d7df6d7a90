"""Searches on exact mixtures: what they find is held against the grids on other samples, and can be gone on with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import ExactSubject, eval_samples

import skipstone
from skipstone import registry
from skipstone.calibration.target import Target
from skipstone.errors import SpecError, TargetMissedError
from skipstone.evaluation.columns import parse_column
from skipstone.testing.backbones.mixture import Mixture
from skipstone.tuning import joint_report
from skipstone.tuning.cached_runs import RunScore
from skipstone.tuning.candidates import SOLVERS, Builder
from skipstone.tuning.grids import Beginning
from skipstone.tuning.joint import DP, OVER, JointResult, JointSearch, JointSettings, paired_lead
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.search import TuningSettings
from skipstone.tuning.searches import BUILT_IN, find_searches
from skipstone.tuning.target_search import least_calls, meets
from skipstone_track.readers import read_folder

HARD = Mixture(means=(-0.9, 0.9), stds=(0.1, 0.1), weights=(0.5, 0.5))
CALLS = 6


def search(folder: Path, subject: ExactSubject, calls: tuple[int, ...] = (CALLS,), **joint: Any) -> JointSearch:
    settings = JointSettings(**{"searches": BUILT_IN, "budget": 30 * CALLS * 6, **joint})
    tuning = TuningSettings(calls, 48, rivals=False)
    return JointSearch(subject, tuning, settings, eval_samples(6), eval_samples(8, 100), RunCache.open(folder, {}))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[JointSearch, JointResult, Path]:
    folder = tmp_path_factory.mktemp("joint")
    made = search(folder, ExactSubject(HARD, steps=24))
    return made, made.run()[0], folder


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", ["karras", "angle"])
def test_a_fixed_sampler_is_a_path_of_its_times(solver: str, grid: str, tmp_path: Path) -> None:
    """To the rounding of its times: so a policy is all that a search needs to write."""
    subject = ExactSubject(HARD, steps=24)
    items, schedule = [one.request for one in eval_samples(2)], HARD.schedule
    values = {"policy": "path", "path.times": grid, "path.solver": solver}
    policy = Builder(Beginning(schedule, 1.0), CALLS, (), "pair").policy(values)
    own = parse_column(f"fixed @ {solver} / {grid} / {CALLS}", None, None, CALLS)
    ours = replace(own, policy=policy, solver=registry.parse("solver", policy.solver), steps=24)
    (mine, _), (theirs, _) = (subject.draw(items, column) for column in (ours, own))
    assert [one.calls for one in mine] == [one.calls for one in theirs] == [CALLS] * 2
    assert all(np.allclose(a.x, b.x, rtol=0, atol=1e-5) for a, b in zip(mine, theirs, strict=True))


def test_every_search_begins_with_the_grid_and_keeps_within_its_calls(found: Any) -> None:
    made, result, _ = found
    grid = registry.spell(made.grids.policy(CALLS))
    assert [one.name for one in result.outcomes] == list(BUILT_IN)
    for outcome in result.outcomes:
        assert outcome.trials[0].policy == grid
        solvers = [trial.values["path.solver"] for trial in outcome.trials[:5]]
        assert sorted(solvers) == sorted(SOLVERS), "each solver on the grid, in every search"
        assert outcome.charged <= result.budget
        assert outcome.best.calls <= CALLS
        assert outcome.best.quality >= outcome.trials[0].quality
    assert [row.label for row in result.rows[:2]] == [DP, "default"]
    assert result.rows[0].mean_calls == CALLS


def test_calls_are_those_that_runs_make(found: Any) -> None:
    """Charged, and counted by the runs themselves: the sum over the candidates of each search."""
    _, result, _ = found
    for outcome in result.outcomes:
        spent = sum(one.calls for trial in outcome.trials if trial.state != "repeated" for one in trial.scores)
        assert outcome.charged == pytest.approx(spent)


def test_the_winner_is_decided_on_other_samples(found: Any) -> None:
    made, result, _ = found
    best = max(result.outcomes, key=lambda one: one.best.quality)
    assert result.chosen == best
    lead = paired_lead(best.row.scores, result.rows[0].scores)
    within = best.row.mean_calls <= (1 + OVER) * CALLS
    wins = within and lead.mean > max(0.5, lead.error)
    assert registry.spell(result.policy) == (best.best.policy if wins else registry.spell(made.grids.policy(CALLS)))
    assert ("which leads the dynamic programming by" in result.words and "too little" not in result.words) == wins


def test_a_search_goes_on_from_what_is_kept(found: Any) -> None:
    """The same command again: the same candidates, and nothing is drawn but the two calls that tell the beginning."""
    _, result, folder = found
    subject = ExactSubject(HARD, steps=24)
    again = search(folder, subject).run()[0]
    assert subject.drawn == 1
    assert [one.trials for one in again.outcomes] == [one.trials for one in result.outcomes]
    other = search(folder, subject, seed=1).run()[0]
    assert other.outcomes[0].trials != result.outcomes[0].trials


def test_a_report_holds_a_policy_that_can_be_used(found: Any, tmp_path: Path) -> None:
    made, result, _ = found
    about = {"model": "exact", "command": "skipstone tune"}
    files = joint_report.write_report([result], made.grids.agreement, tmp_path, about)
    assert files == joint_report.report_files(tmp_path, [CALLS])
    assert all(path.is_file() for path in files)
    assert skipstone.load_policy(tmp_path / f"tuned-{CALLS}") == result.policy
    document = json.loads((tmp_path / joint_report.RESULTS).read_text())
    trials = document["found"][0]["searches"][0]["trials"]
    assert trials[-1]["charged"] == result.outcomes[0].charged
    logged = read_folder(tmp_path)
    assert [child.name for child in logged.children[:2]] == [f"{DP}, {CALLS} calls", f"default, {CALLS} calls"]
    best = result.outcomes[0].best
    assert logged.series[f"best.random.{CALLS} calls"][-1] == (round(result.outcomes[0].charged), best.quality)
    card = (tmp_path / joint_report.CARD).read_text()
    for said in (result.words, DP, "Against random search with as many calls: cem is", "path.solver: adams"):
        assert said in card


def test_a_lead_is_paired_and_alone_proves_nothing() -> None:
    runs = [RunScore(8, 10 ** (-k)) for k in (1.0, 3.0, 5.0)]
    ahead = [RunScore(8, 10 ** (-k - 0.2)) for k in (1.0, 3.0, 5.0)]
    assert paired_lead(ahead, runs) == pytest.approx((2.0, 0.0), abs=1e-6)
    assert paired_lead(ahead[:1], runs[:1]).error == math.inf


def test_budgets_are_checked_before_anything_is_drawn(tmp_path: Path) -> None:
    subject = ExactSubject(HARD, steps=24)
    with pytest.raises(SpecError, match="--budget: expected at least 36 calls"):
        search(tmp_path, subject, budget=35).run()
    assert subject.drawn == 0


def test_the_least_calls_that_meet_a_target_on_the_check(tmp_path: Path) -> None:
    made = search(tmp_path, ExactSubject(HARD, steps=24), (4, 6, 8, 10), searches=find_searches("cem"), budget=600)
    values = {calls: sorted(one.psnr for one in made.grid_scores(calls)) for calls in (6, 8)}
    level = round(0.5 * (values[6][0] + values[8][0]), 1)
    target = Target.parse(f"psnr >= {level} @ 50%")
    [result], words = least_calls(made, target)
    assert meets(target, result.row.scores)
    assert f"{result.calls} calls are the least" in words
    assert "skipstone calibrate" in words
    with pytest.raises(TargetMissedError, match=r"No number of calls tried meets psnr >= 98 @ 90%.*10 calls:"):
        least_calls(made, Target.parse("psnr >= 98 @ 90%"))
