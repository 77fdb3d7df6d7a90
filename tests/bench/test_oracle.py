"""Oracles: what they choose is the best that was run, they run what they say, and a bound is a bound."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import ExactSubject, eval_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Problem, Query
from skipstone.errors import MetricError, SpecError
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import GeneratedSample, SampleRequest
from skipstone.numerics.schedule import FlowMatching
from skipstone.policies.path import Path as PathPolicy
from skipstone.testing.backbones.mixture import Mixture
from skipstone.tuning.errors import LocalErrors
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.shortest_path import shortest_path, shortest_paths
from skipstone_bench.oracle import (
    OracleSettings,
    ScheduleOracle,
    TrialResult,
    Utility,
    best_of,
    make_scorer,
    oracle_ending,
    oracle_schedule,
    oracle_stop,
)
from skipstone_bench.oracle.best_of import SEED_STRIDE
from skipstone_bench.oracle.schedule import RESULTS, best_shared_schedule
from skipstone_bench.oracle.stopping import StopAt
from skipstone_bench.oracle.utility import best_choice

HARD = Mixture(means=(-0.9, 0.9), stds=(0.1, 0.1), weights=(0.5, 0.5))
GUIDES = ("fixed @ adams / 6", "fixed @ adams / 10", "fixed @ ddim / 8", "stride(tol=0.02) @ 30")
UTILITY = Utility(price=1.0, floor=10.0, cap=50.0)


class Counted(ExactSubject):
    """Runs each sample under a column of its own where it is asked to, and remembers what it was asked for."""

    def draw_each(self, items: list[SampleRequest], columns: list[Column]) -> list[GeneratedSample]:
        return [self.draw([item], column)[0][0] for item, column in zip(items, columns, strict=True)]


def oracle(folder: Path, subject: Any = None, count: int = 3, **ladder: Any) -> ScheduleOracle:
    asked = OracleSettings(**{"calls": (5, 8), "guides": GUIDES, "fine": 48, **ladder})
    return ScheduleOracle(
        subject or Counted(HARD), eval_samples(count), RunCache.open(folder, {"fine": asked.fine}), asked
    )


# -- utility --------------------------------------------------------------------------------------

tries = st.lists(
    st.builds(TrialResult, st.text("abc", min_size=1), st.just("own"), st.integers(1, 30), st.floats(0, 99)), min_size=1
)


@given(tries, st.floats(0, 5))
def test_the_best_is_worth_most_and_of_equals_costs_least(tried: list[TrialResult], price: float) -> None:
    utility = Utility(price, 20.0, 60.0)
    choice = best_choice("s", tried, utility)
    worth = [utility(one.psnr, one.calls) for one in tried]
    assert choice.utility == max(worth)
    assert choice.result.calls == min(t.calls for t, w in zip(tried, worth, strict=True) if w == max(worth))


@given(st.floats(-50, 200), st.floats(0, 50), st.floats(0, 3))
def test_utility_is_clipped_and_charged(psnr: float, calls: float, price: float) -> None:
    value = Utility(price, 20.0, 60.0)(psnr, calls) + price * calls
    assert 20.0 - 1e-9 <= value <= 60.0 + 1e-9
    if 20.0 <= psnr <= 60.0:
        assert value == pytest.approx(psnr)


@pytest.mark.parametrize("wrong", [{"price": -1.0}, {"floor": 60.0, "cap": 60.0}, {"price": float("nan")}])
def test_utilities_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="expected price >= 0 and floor < cap"):
        Utility(**{"price": 1.0, **wrong})


# -- shortest paths of several lengths ------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_paths_of_several_lengths_are_those_of_brute_force(seed: int) -> None:
    n, longest = 7, 4
    table = np.random.default_rng(seed).random((1, n, longest + 1, longest))
    table[:, 1:, 0], table[:, 0, 1:] = np.inf, np.inf  # a step before there is, except at the start
    errors = LocalErrors(np.linspace(1.5, 0, n + 1), table)
    found = shortest_paths(table[0], [3, 5])
    for steps in (3, 5):
        inner = itertools.combinations(range(1, n), steps - 1)
        paths = [(0, *p, n) for p in inner]
        allowed = [p for p in paths if max(b - a for a, b in itertools.pairwise(p)) <= longest]
        least = min(float(errors.of(p)[0]) for p in allowed)
        assert found[steps] == shortest_path(table[0], steps)
        assert float(errors.of(found[steps])[0]) == pytest.approx(least)


# -- the oracle schedule --------------------------------------------------------------------------


def test_every_schedule_that_is_listed_was_run_and_charged(tmp_path: Path) -> None:
    subject = Counted(HARD)
    made = oracle(tmp_path, subject)
    found = made.run_trials()
    assert list(found) == [eval_sample.id for eval_sample in made.eval_samples]
    for eval_sample in made.eval_samples:
        kinds = [one.kind for one in found[eval_sample.id]]
        assert kinds.count("guide") == len(GUIDES)
        assert kinds.count("own") >= 3  # two numbers of calls by two forecasts, some of which are one grid
        reference = (made.run_cache.arrays("fine", eval_sample) or {})["pixels"]
        for one in found[eval_sample.id]:
            again = subject.draw([eval_sample.request], parse_column(one.spec, None, None, 1))[0]
            error = float(((subject.pictures(again)[0] - reference) ** 2).mean())
            assert one.calls == again[0].calls
            assert one.psnr == pytest.approx(min(99.0, -10 * np.log10(error)), abs=1e-6)


def test_the_choice_is_that_of_brute_force_and_no_guide_beats_it(tmp_path: Path) -> None:
    made = oracle(tmp_path)
    found, choices = made.run_trials(), made.choices(UTILITY)
    for choice in choices:
        worth = {one.spec: UTILITY(one.psnr, one.calls) for one in found[choice.sample]}
        assert choice.utility == max(worth.values()) == worth[choice.result.spec]
    fixed = best_shared_schedule(found, UTILITY)
    means = {
        spec: np.mean([UTILITY(t.psnr, t.calls) for one in found.values() for t in one if t.spec == spec])
        for spec in {t.spec for one in found.values() for t in one if t.kind == "guide"}
    }
    assert fixed is not None
    assert means[fixed] == max(means.values()) <= np.mean([choice.utility for choice in choices])


def test_a_dearer_call_never_buys_more_of_them(tmp_path: Path) -> None:
    made = oracle(tmp_path)
    spent = [
        sum(choice.result.calls for choice in made.choices(Utility(price, 10.0, 50.0)))
        for price in (0.0, 0.3, 1.0, 4.0)
    ]
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > spent[-1]


def test_own_grids_are_worth_more_than_even_ones_and_moves_never_lose(tmp_path: Path) -> None:
    made = oracle(tmp_path, calls=(8,), guides=("fixed @ adams / uniform / 8",))
    found = made.run_trials()
    for tried in found.values():
        assert max(t.psnr for t in tried if t.kind == "own") > max(t.psnr for t in tried if t.kind == "guide")
    before = [choice.utility for choice in made.choices(UTILITY)]
    moved = oracle(tmp_path, calls=(8,), guides=("fixed @ adams / uniform / 8",), sweeps=1)
    after = [choice.utility for choice in moved.choices(UTILITY)]
    assert all(b >= a for a, b in zip(before, after, strict=True))
    assert sum(after) > sum(before)
    assert any(t.kind == "moved" for t in moved.run_trials(UTILITY)["p0:0"])


def test_what_was_run_is_not_run_again_and_prices_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, measure, left = Counted(HARD), Counted.draw_each, [2]

    def cut(self: Counted, *asked: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(self, *asked)

    monkeypatch.setattr(Counted, "draw_each", cut)
    with pytest.raises(KeyboardInterrupt):
        oracle(tmp_path, subject, batch=3).run_trials()
    before = subject.drawn
    left[0] = 10**6
    found = oracle(tmp_path, subject, batch=3).run_trials()
    total = subject.drawn
    whole = oracle(tmp_path / "whole", fresh := Counted(HARD), batch=3)
    assert whole.run_trials() == found
    assert total - 1 == fresh.drawn  # one more for where its runs begin
    assert 0 < before < total
    again = oracle(tmp_path, subject, batch=3)
    again.choices(Utility(0.1, 20.0, 60.0))
    again.choices(Utility(3.0, 20.0, 60.0))
    assert subject.drawn == total + 1


def test_results_can_be_read_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipstone_bench.oracle.schedule.fingerprint", lambda *_: {"weights": "none"})
    subject = ExactSubject(HARD)  # gives no sample a policy of its own: they run one by one
    ladder = OracleSettings(
        (5,), GUIDES[:2], ("x0",), 32, gain=((1.5, 0.1), (0.1, 0.5)), reference="fixed @ dpmpp / 200"
    )
    chosen = oracle_schedule(subject, eval_samples(2), tmp_path, UTILITY, ladder)
    lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    assert [line["sample"] for line in lines] == [choice.sample for choice in chosen]
    for line, choice in zip(lines, chosen, strict=True):
        assert line["utility"] == choice.utility >= line["guide_utility"]
        assert line["utility"] == UTILITY(line["psnr"], line["calls"])
        assert {"spec", "kind", "tried", "price", "floor", "cap", "guide", "guide_calls"} <= line.keys()
    with pytest.raises(SpecError, match="one of them twice"):
        oracle_schedule(subject, [*eval_samples(1), *eval_samples(1)], tmp_path, UTILITY, ladder)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"calls": (3,)}, "between 4 and 100"),
        ({"calls": (60,), "fine": 100}, "between 4 and 50"),
        ({"forecasts": ("eps",)}, "pair, x0"),
        ({"sweeps": -1}, "sweeps >= 0"),
        ({"calls": ()}, "nothing to try"),
    ],
)
def test_ladders_out_of_range_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        OracleSettings(**wrong)


def test_samples_of_the_engine_run_together_as_they_run_alone() -> None:
    engine = EngineSubject("pebble", "pebble")
    own = engine.default_sampler
    grids = [PathPolicy(times="0.9 0.4"), PathPolicy(times="0.8 0.5 0.2")]
    columns = [Column(grid, registry.parse("solver", "adams"), own.grid, own.steps) for grid in grids]
    items = [EvaluationSample(Prompt("p", "a red apple on a blue background"), seed).request for seed in (1, 2)]
    together = engine.draw_each(items, columns)
    for item, column, made in zip(items, columns, together, strict=True):
        alone = engine.draw([item], column)[0][0]
        assert made.calls == alone.calls
        assert np.allclose(made.latent, alone.latent, atol=1e-4)
    assert [made.calls for made in together] == [3.0, 4.0]


# -- stops and best of N --------------------------------------------------------------------------

SOLVER = registry.parse("solver", "ddim")
STEPS = 9


def problems(count: int) -> list[Problem]:
    grid = tuple(registry.parse("grid", "trailing").times(HARD.schedule, STEPS))
    starts = [np.random.default_rng(k).standard_normal((4, 4, 3)) for k in range(count)]
    return [Problem(HARD.schedule, x, grid) for x in starts]


def taste(s: int, pixels: Any, calls: float) -> float:
    """A score that has its peaks in the middle of runs, elsewhere for every sample."""
    return -abs(float(np.abs(pixels).mean()) - 0.55 - 0.1 * s) - 0.01 * calls


def test_the_oracle_stop_is_that_of_brute_force_and_is_charged_all_its_calls() -> None:
    asked = problems(4)
    found = oracle_stop(HARD, asked, SOLVER, list, taste)
    for s, (problem, peak) in enumerate(zip(asked, found, strict=True)):
        x, estimates = problem.x, []
        for t, u in itertools.pairwise(problem.grid):
            x0 = HARD.predict([Query(x, t)])[0].x0
            a, b, c, d = (f(at) for at in (t, u) for f in (HARD.schedule.alpha, HARD.schedule.sigma))
            x = c * x0 + d * (x - a * x0) / b
            estimates.append(x0)
        values = [taste(s, x0, k) for k, x0 in enumerate(estimates, 1)]
        assert peak.worth == pytest.approx(values)
        assert peak.at == int(np.argmax(values)) + 1
        assert np.allclose(peak.pixels, estimates[peak.at - 1])
        assert peak.calls == STEPS
    assert len({peak.at for peak in found}) > 1
    assert all(peak.at < peak.calls for peak in found[:2])


def test_the_oracle_ending_is_that_of_brute_force_and_asks_nothing_twice() -> None:
    asked, stops, finish = problems(3), (0, 2, 5, 8), (1, 2, 3)
    exact = [denoise(HARD, replace(p, grid=fine()), SOLVER, registry.parse("policy", "fixed")).x for p in asked]

    def worth(s: int, pixels: Any, calls: float) -> float:
        return UTILITY(-10 * float(np.log10(((pixels - exact[s]) ** 2).mean())), calls)

    found = oracle_ending(HARD, asked, SOLVER, list, worth, stops, finish)
    for s, (problem, ending) in enumerate(zip(asked, found, strict=True)):
        runs = {
            (at, long): denoise(HARD, problem, SOLVER, StopAt(at, long))
            for at, long in itertools.product(stops, finish)
        }
        values = {key: worth(s, run.x, run.run.cost) for key, run in runs.items()}
        assert ending.worth == pytest.approx(max(values.values()))
        assert values[ending.at, ending.finish] == pytest.approx(ending.worth)
        assert ending.calls == ending.at + ending.finish
        assert all(run.run.cost == at + long for (at, long), run in runs.items())
        # the schedule up to the last stop, and for each stop the long steps that no shorter ending shares
        assert ending.spent < sum(run.run.cost for run in runs.values())
        assert ending.spent <= max(stops) + 1 + len(stops) * sum(finish)


def test_an_ending_knows_at_least_as_much_as_a_decoded_estimate() -> None:
    """To finish in one long step of first order is to decode the clean estimate, which is what the original did."""
    clean = replace(HARD, schedule=FlowMatching())  # whose end has no noise left at all
    asked = [replace(problem, schedule=clean.schedule) for problem in problems(2)]
    peaks = oracle_stop(clean, asked, SOLVER, list, taste)
    one = oracle_ending(clean, asked, SOLVER, list, taste, range(STEPS), (1,), order=1)
    for peak, ending in zip(peaks, one, strict=True):
        assert ending.worth == pytest.approx(max(peak.worth), abs=1e-9)
        assert ending.calls == peak.at


@pytest.mark.parametrize(("stops", "finish"), [((), (1,)), ((0,), ()), ((STEPS,), (1,)), ((-1,), (1,)), ((0,), (0,))])
def test_endings_out_of_range_are_refused(stops: tuple[int, ...], finish: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="Expected stops between 0 and 8"):
        oracle_ending(HARD, problems(1), SOLVER, list, taste, stops, finish)


def test_the_best_of_n_is_that_of_brute_force_and_pays_for_all_of_them() -> None:
    subject = ExactSubject(HARD)
    column = parse_column("fixed @ ddim / uniform / 7", None, None, 7)

    def score(pixels: Any, prompt: str) -> float:
        return float(pixels[0, 0, 0]) + len(prompt)

    for n in (1, 4):
        found = best_of(subject, eval_samples(3), column, score, n, batch=3)
        for eval_sample, kept in zip(eval_samples(3), found, strict=True):
            seeds = [eval_sample.seed + k * SEED_STRIDE for k in range(n)]
            drawn = [subject.draw([SampleRequest(eval_sample.prompt.text, seed)], column)[0] for seed in seeds]
            values = [score(subject.pictures(made)[0], eval_sample.prompt.text) for made in drawn]
            assert kept.scores == pytest.approx(values)
            assert kept.seed == seeds[int(np.argmax(values))]
            assert kept.score == score(kept.pixels, eval_sample.prompt.text) == max(kept.scores)
            assert kept.calls == n * 7
    with pytest.raises(SpecError, match="at least 1"):
        best_of(subject, eval_samples(1), column, score, 0)


def test_scores_that_cannot_be_had_say_why() -> None:
    with pytest.raises(MetricError, match="no judge of its own"):
        make_scorer(ExactSubject(HARD))
    with pytest.raises(MetricError, match="no score of one picture"):
        make_scorer(ExactSubject(HARD), "cost")


def fine() -> tuple[float, ...]:
    return tuple(registry.parse("grid", "trailing").times(HARD.schedule, 400))
