"""What is searched: the file that says it, grids that are bent, and what a candidate costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone import registry
from skipstone.engine.contracts import Policy
from skipstone.errors import SpecError, UnknownNameError
from skipstone.numerics.schedule import FlowMatching
from skipstone.numerics.tables import CosineTable
from skipstone.tuning.cached_runs import RunScore
from skipstone.tuning.candidates import GATE, Builder, default_space, warp
from skipstone.tuning.evaluator import ERRORS, REPEATS, Evaluator, SearchEnded
from skipstone.tuning.grids import Beginning, even_times
from skipstone.tuning.searches import BUILT_IN, Belief, find_searches, run_search
from skipstone.tuning.space import Dimension, Space, spread
from skipstone.tuning.space_file import parse_space, read_space

SCHEDULES = {"flow": FlowMatching(), "table": CosineTable()}
EXPONENTS = st.floats(0.3, 3.0)


def builder(schedule: str = "flow", calls: int = 8) -> Builder:
    beginning = Beginning(SCHEDULES[schedule], 1.0)
    return Builder(beginning, calls, even_times(beginning.schedule, 1.0, calls), "pair")


# -- grids that are bent ---------------------------------------------------------------------------


@given(EXPONENTS, EXPONENTS, st.floats(-0.9, 0.9), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=9))
def test_a_bend_keeps_the_ends_and_the_order(early: float, late: float, shift: float, shares: list[float]) -> None:
    bent = [warp(share, early, late, shift) for share in sorted([0.0, *shares, 1.0])]
    assert bent[0] == pytest.approx(0.0, abs=1e-12)
    assert bent[-1] == pytest.approx(1.0)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(bent))


@given(st.floats(0.0, 1.0))
def test_nothing_is_bent_at_the_neutral_exponents(share: float) -> None:
    assert warp(share, 1.0, 1.0, 0.0) == pytest.approx(share, abs=1e-12)


def test_each_parameter_makes_the_steps_shorter_that_it_names() -> None:
    even = np.linspace(0, 1, 11)

    def steps(*bend: float) -> Any:
        return np.diff([warp(share, *bend) for share in even])

    assert steps(1.3, 1.0, 0.0)[0] < 0.1 < steps(0.8, 1.0, 0.0)[0]
    assert steps(1.0, 1.3, 0.0)[-1] < 0.1 < steps(1.0, 0.8, 0.0)[-1]
    middle = steps(1.0, 1.0, -0.4)
    assert middle[5] < 0.1 < middle[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_start_of_a_search_is_the_grid_of_the_dynamic_programming(schedule: str) -> None:
    made = builder(schedule)
    space = default_space(made.beginning, made.calls, guided=True)
    policy = made.policy(space.values(space.point(made.start)))
    assert policy.places == made.tuned[1:-1]  # type: ignore[attr-defined]  # a Path
    assert policy.solver == "adams"


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(st.data())
def test_every_point_is_a_policy_that_is_spelt_back(schedule: str, data: st.DataObject) -> None:
    made = builder(schedule)
    space = default_space(made.beginning, made.calls, guided=True)
    drawn = {one.name: data.draw(st.integers(0, len(one.values) - 1)) for one in space.dimensions}
    values = space.values(space.restricted(drawn))
    policy = made.policy(values)
    assert registry.parse("policy", registry.spell(policy)) == policy
    assert ("guidance_gate" in registry.spell(policy)) == (values[GATE] > 0)
    if values["policy"] == "path":
        first = policy.parts[0] if hasattr(policy, "parts") else policy
        more = values["path.more_steps"] if values[GATE] > 0 else 0
        assert len(first.places) <= made.calls + more - 1  # type: ignore[attr-defined]  # a Path
        assert policy.solver.partition("(")[0] == values["path.solver"].partition("(")[0]


def test_a_model_without_guidance_has_no_half_calls() -> None:
    space = default_space(builder().beginning, 8, guided=False)
    assert not {GATE, "path.more_steps"} & {one.name for one in space.dimensions}


def test_points_and_values() -> None:
    space = Space((Dimension("policy", ("a", "b")), Dimension("a.x", (1.0, 2.0, 3.0), "a"), Dimension("y", ("p", "q"))))
    assert space.size == 3 * 2 + 2
    assert space.point({"policy": "a", "a.x": 2.2, "y": "q"}) == {"policy": 0, "a.x": 1, "y": 1}
    assert space.point({"policy": "nothing"}) == {"policy": 0, "a.x": 0, "y": 0}
    assert space.values({"policy": 1, "y": 0}) == {"policy": "b", "y": "p"}
    assert space.restricted({"policy": 1, "a.x": 2, "y": 1}) == {"policy": 1, "y": 1}
    assert spread(1.0, 4.0, 3, log=True) == (1.0, 2.0, 4.0)
    assert spread(8, 12, 9, whole=True) == (8, 9, 10, 11, 12)


# -- the file --------------------------------------------------------------------------------------

GOOD = """
path:
  times: [tuned, karras]
  early: {low: 0.8, high: 1.25, levels: 5, log: true}
error_control: calibration
adaptive_grid:
  calls: {low: 8, high: 12}
guidance_gate:
  below: [0, 0.3]
"""


def test_a_space_is_read(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(GOOD)
    values = {one.name: one.values for one in read_space(file).dimensions}
    assert values["policy"] == ("path", "error_control", "adaptive_grid")
    assert values["path.early"] == pytest.approx((0.8, 0.894427, 1.0, 1.11803, 1.25), rel=1e-4)
    assert values["adaptive_grid.calls"] == (8, 9, 10, 11, 12)
    assert values[GATE] == (0, 0.3)
    assert all("tol" in one for one in values["error_control.calibration"])
    made = builder()
    space = read_space(file)
    for policy in range(3):
        point = {one.name: len(one.values) - 1 for one in space.dimensions} | {"policy": policy}
        assert registry.spell(made.policy(space.values(space.restricted(point))))


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "the space is empty"),
        ([], "the space is empty"),
        ({"policy": []}, "at least one"),
        ({"paht": {}}, "Did you mean 'path'?"),
        ({"path": {"erly": [1]}}, "Did you mean 'early'?"),
        ({"path": {"early": []}}, "a list of 1 to 64 values"),
        ({"path": {"early": {"low": 1, "hihg": 2}}}, "Did you mean 'high'?"),
        ({"path": {"early": {"low": 2, "high": 1}}}, "low below high"),
        ({"path": {"early": {"low": 0, "high": 1, "log": True}}}, "a low above 0"),
        ({"path": {"early": {"low": 0.5, "high": 1, "levels": 1}}}, "levels in 2..64"),
        ({"path": {"early": [math.nan]}}, r"numbers in \[0.25, 4\], got nan"),
        ({"path": {"early": [9]}}, r"numbers in \[0.25, 4\], got 9"),
        ({"path": {"times": ["karas"]}}, "Did you mean 'karras'?"),
        ({"path": {"solver": ["adam"]}}, "Did you mean 'adams'?"),
        ({"adaptive_grid": {"calls": [8.5]}}, "whole numbers"),
        ({"adaptive_grid": {"adapt": [3]}}, r"numbers in \[0, 2\], got 3"),
        ({"error_control": {"of": ["noise"]}}, "got 'noise'"),
        ({"guidance": [3]}, "guidance is not searched.*closeness is measured to the model's own full run"),
        ({"dtype": ["float16"]}, "say --dtype"),
        ({"guidance_gate": {"below": [0.3]}}, "policy: expected a list of names"),
        ({"fixed": 3}, "expected settings and what to try of each"),
    ],
)
def test_a_space_that_is_none_is_a_sentence(document: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_space(document, "space.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: [1", "expected YAML.*line"),
        ("", "empty"),
        ("x" * 70_000, "at most 65,536"),
    ],
)
def test_a_file_that_is_none_is_a_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=says):
        read_space(file)
    with pytest.raises(SpecError, match="cannot be read"):
        read_space(tmp_path / "nowhere.yaml")


# -- what a candidate costs ------------------------------------------------------------------------

SAMPLES = 12
SMALL = {"adaptive_grid": {"calls": [4, 5, 6, 7, 8, 12], "adapt": [0.0, 0.2, 0.4, 0.6]}}


def evaluator(quality: Callable[[Policy], float], budget: float = 1e6, calls: int = 8) -> Evaluator:
    """Candidates whose runs make the calls that they are asked for, all samples alike but for an offset."""

    def score(policy: Policy, part: slice) -> Sequence[RunScore]:
        psnr, spent = quality(policy), float(policy.calls)  # type: ignore[attr-defined]  # an AdaptiveGrid
        return [RunScore(spent, 10 ** (-(psnr + k % 3) / 10)) for k in range(*part.indices(SAMPLES))]

    return Evaluator(parse_space(SMALL, "here"), builder(calls=calls), score, SAMPLES, budget)


def point(calls: int, adapt: float) -> dict[str, int]:
    space = parse_space(SMALL, "here")
    return space.point({"policy": "adaptive_grid", "adaptive_grid.calls": calls, "adaptive_grid.adapt": adapt})


def test_a_candidate_is_charged_its_calls_once() -> None:
    asked = evaluator(lambda policy: 30.0)
    first = asked.ask(point(8, 0.4))
    assert (first.state, first.charged, first.calls, len(first.scores)) == ("complete", 8.0 * SAMPLES, 8.0, SAMPLES)
    again = asked.ask(point(8, 0.4))
    assert (again.state, again.charged, again.quality) == ("repeated", first.charged, first.quality)


def test_what_is_surely_behind_is_stopped_after_four_samples() -> None:
    asked = evaluator(lambda policy: 40.0 if policy.adapt == 0.4 else 30.0)  # type: ignore[attr-defined]
    best = asked.ask(point(8, 0.4))
    worse = asked.ask(point(8, 0.2))
    assert (worse.state, len(worse.scores), worse.charged) == ("stopped", 4, best.charged + 32)
    assert worse.quality == pytest.approx(best.quality - 10.0)
    assert ERRORS > 0
    assert asked.best == best


def test_too_many_calls_are_stopped_and_never_best() -> None:
    asked = evaluator(lambda policy: 10.0 * policy.calls)  # type: ignore[attr-defined]
    more = asked.ask(point(12, 0.4))
    assert (more.state, asked.best) == ("stopped", None)
    within = asked.ask(point(8, 0.4))
    assert asked.best == within
    assert asked.objective(within) == within.quality
    assert asked.objective(more) < more.quality


def test_a_candidate_that_the_budget_does_not_hold_ends_the_search_and_is_not_told() -> None:
    asked = evaluator(lambda policy: 30.0, budget=140)
    first = asked.ask(point(8, 0.4))
    with pytest.raises(SearchEnded):
        asked.ask(point(12, 0.4))
    assert (asked.charged, asked.trials) == (96, [first])
    roomy = evaluator(lambda policy: 30.0 if policy.calls == 8 else 90.0, budget=192 + 47)  # type: ignore[attr-defined]
    roomy.ask(point(8, 0.4))
    assert roomy.ask(point(12, 0.4)).charged == 96 + 48  # stopped: the four samples are charged


def test_a_closeness_that_is_no_number_fails_the_candidate_alone() -> None:
    asked = evaluator(lambda policy: math.nan if policy.adapt == 0.4 else 30.0)  # type: ignore[attr-defined]
    lost = asked.ask(point(8, 0.4))
    assert (lost.state, lost.quality, asked.best) == ("failed", 0.0, None)
    assert "no number" in lost.reason
    assert asked.ask(point(8, 0.2)).state == "complete"


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_search_spends_more_than_its_budget_and_the_same_seed_is_the_same_search(name: str) -> None:
    found = []
    for seed in (1, 1, 2):
        asked = evaluator(lambda policy: 30.0 + policy.adapt + policy.calls, budget=1500)  # type: ignore[attr-defined]
        run_search(BUILT_IN[name], asked, seed)
        assert asked.charged <= 1500
        found.append([trial.policy for trial in asked.trials])
    assert found[0] == found[1] != found[2]
    assert len(found[0]) > 3


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_small_space_is_searched_to_its_best_and_ends(name: str) -> None:
    asked = evaluator(lambda policy: 30.0 + policy.adapt + policy.calls)  # type: ignore[attr-defined]
    run_search(BUILT_IN[name], asked, 0)
    assert asked.best is not None
    assert (asked.best.values["adaptive_grid.calls"], asked.best.values["adaptive_grid.adapt"]) == (8, 0.6)
    assert [trial.state for trial in asked.trials[-REPEATS:]] == ["repeated"] * REPEATS


def test_the_cross_entropy_method_comes_nearer_to_what_it_learns() -> None:
    space = Space((Dimension("policy", ("a", "b")), Dimension("x", tuple(range(20)))))
    belief, generator = Belief(space), np.random.default_rng(0)
    for _ in range(5):
        belief.learn([{"policy": 1, "x": 15}, {"policy": 1, "x": 17}])
    drawn = [belief.draw(generator) for _ in range(200)]
    assert np.mean([one["policy"] for one in drawn]) > 0.9
    assert np.mean([one["x"] for one in drawn]) == pytest.approx(16, abs=0.5)


def test_a_budget_for_less_than_one_candidate_is_refused() -> None:
    with pytest.raises(SpecError, match="at least 96 calls, one candidate of 8 calls on 12 samples, got 95"):
        evaluator(lambda policy: 0.0, budget=95)
    asked = evaluator(lambda policy: 30.0, budget=96)
    asked.ask(point(8, 0.4))
    with pytest.raises(SearchEnded):
        asked.ask(point(8, 0.2))


def test_a_search_that_is_not_known_is_a_sentence() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'random'?"):
        find_searches("randon")
    assert set(find_searches("cem")) == {"cem"}
