"""Grids found for a model: the search is exact, its notes change nothing, and what it finds is better in truth."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import SHAPE, ExactSubject, eval_samples
from hypothesis import given, settings
from hypothesis import strategies as st

import skipstone
from skipstone import registry
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Estimate, Problem, Query
from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.references import EvaluationSample
from skipstone.numerics.schedule import Cosine, FlowMatching
from skipstone.numerics.tables import CosineTable, LinearTable, ScaledLinear, ZeroTerminalSNR
from skipstone.testing.backbones.gaussian import Gaussian
from skipstone.testing.backbones.mixture import Mixture
from skipstone.tuning import report, run_cache
from skipstone.tuning.cached_runs import FINE_RUNS, CachedRuns
from skipstone.tuning.errors import LocalErrors, local_errors
from skipstone.tuning.gains import interpolate_gains, longest_step, make_probes
from skipstone.tuning.grids import Beginning, FineGrid, asinh_ratio, even_times, path_policy
from skipstone.tuning.recorder import Recorder
from skipstone.tuning.reference import Agreement
from skipstone.tuning.refine import refine_path
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.search import MIN_CALLS, TimeGridSearch, TuningResult, TuningSettings
from skipstone.tuning.shortest_path import best_path, shortest_path

ADAMS = registry.parse("solver", "adams")
HARD = Mixture(means=(-0.9, 0.9), stds=(0.1, 0.1), weights=(0.5, 0.5))


@dataclass(frozen=True)
class Wavy:
    """A network that predicts noise and errs by 2 %, now too much and now too little, as trained ones do."""

    inner: Any
    size: float = 0.02
    branches: int = 1

    @property
    def schedule(self) -> Any:
        return self.inner.schedule

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        found = []
        for query, one in zip(queries, self.inner.predict(queries), strict=True):
            a, s = self.schedule.alpha(query.t), self.schedule.sigma(query.t)
            noise = (query.x - a * one.x0) / s + self.size * math.sin(6 * math.asinh(s / a))
            found.append(Estimate((query.x - s * noise) / a, 1.0, noise, "eps"))
        return found


def exact_end(backbone: Any, x: Any) -> Any:
    """Where the probability flow of a variance-preserving schedule leads: d(x / alpha) / d(sigma / alpha) = noise."""
    from scipy.integrate import solve_ivp

    schedule = backbone.schedule
    ratios = [schedule.sigma(t) / schedule.alpha(t) for t in (1.0, 0.0)]

    def slope(place: float, y: Any) -> Any:
        ratio = max(math.sinh(place), 1e-5)
        t = schedule.time(-math.log(ratio))
        a, s = schedule.alpha(t), schedule.sigma(t)
        estimate = backbone.predict([Query(y.reshape(SHAPE) * a, t)])[0]
        return (math.cosh(place) * (y.reshape(SHAPE) * a - a * estimate.x0) / s).reshape(-1)

    span = [math.asinh(ratio) for ratio in ratios]
    solved = solve_ivp(slope, span, x.reshape(-1) / schedule.alpha(1.0), method="DOP853", rtol=1e-8, atol=1e-8)
    return solved.y[:, -1].reshape(SHAPE) * schedule.alpha(0.0)


def adams_column(times: Sequence[float]) -> Column:
    return Column(path_policy(times), ADAMS, registry.parse("grid", "trailing"), 10)


# -- the recorder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adams", "ddim", "dpmpp", "heun"])
def test_a_recorder_changes_nothing_and_knows_whose_step_it_is(solver: str) -> None:
    backbone, inner = Mixture(), registry.parse("solver", solver)
    grid = tuple(registry.parse("grid", "trailing").times(backbone.schedule, 9))
    starts = [np.random.default_rng(k).standard_normal(SHAPE) for k in range(3)]
    problems = [Problem(backbone.schedule, x, grid, cond=k) for k, x in enumerate(starts)]
    recorder = Recorder(inner)
    fixed = registry.parse("policy", "fixed")
    bare = denoise_many(backbone, problems, inner, fixed)
    heard = denoise_many(backbone, problems, recorder, fixed)
    for k, (a, b) in enumerate(zip(bare, heard, strict=True)):
        assert (a.x == b.x).all()
        assert a.run == b.run
        alone = Recorder(inner)
        denoise_many(backbone, [problems[k]], alone, fixed)
        assert alone.lines[0].times == recorder.lines[k].times
        assert all((p == q).all() for p, q in zip(alone.lines[0].rows, recorder.lines[k].rows, strict=True))
    assert registry.spell(recorder) == registry.spell(inner)


def test_what_is_noted_is_the_pair_and_its_gram() -> None:
    backbone = Gaussian()
    grid = tuple(registry.parse("grid", "trailing").times(backbone.schedule, 5))
    recorder = Recorder(ADAMS)
    problem = Problem(backbone.schedule, np.random.default_rng(0).standard_normal(SHAPE), grid)
    end = denoise_many(backbone, [problem], recorder, registry.parse("policy", "fixed"))[0].x
    line = recorder.lines[0]
    assert tuple(line.times) == grid
    clean, noise = line.rows[0]
    u = line.angles[0]
    assert np.allclose(math.cos(u) * clean + math.sin(u) * noise, problem.x.reshape(-1), atol=1e-6)
    u, (clean, noise) = line.angles[-1], line.rows[-1]
    assert np.allclose(math.cos(u) * clean + math.sin(u) * noise, end.reshape(-1), atol=1e-6)
    rows = np.concatenate([np.array([r[0] for r in line.rows]), np.array([r[1] for r in line.rows])])
    assert np.allclose(line.gram, rows @ rows.T / rows.shape[1])


def test_large_latents_are_looked_at_in_the_same_places_for_the_same_seed() -> None:
    backbone = Gaussian()
    grid = tuple(registry.parse("grid", "trailing").times(backbone.schedule, 3))
    x = np.random.default_rng(0).standard_normal((50, 20))
    rows: dict[int, Any] = {}
    for seed in (1, 1, 2):
        recorder = Recorder(ADAMS, seed, positions=64)
        problems = [Problem(backbone.schedule, x, grid), Problem(backbone.schedule, x, grid)]
        denoise_many(backbone, problems, recorder, registry.parse("policy", "fixed"))
        one, other = (np.array(line.rows) for line in recorder.lines)
        assert (one == other).all()
        assert one.shape[-1] == 64
        assert rows.setdefault(seed, one).tobytes() == one.tobytes()
    assert (rows[1] != rows[2]).any()


# -- errors of steps ------------------------------------------------------------------------------


def noted(backbone: Any, count: int = 2, steps: int = 40) -> tuple[Any, Any, list[Any]]:
    """Angles, grams and lines of fine runs on even angles."""
    times = even_times(backbone.schedule, 1.0, steps)
    recorder = Recorder(ADAMS)
    starts = [np.random.default_rng(k).standard_normal(SHAPE) for k in range(count)]
    problems = [Problem(backbone.schedule, x, times) for x in starts]
    denoise_many(backbone, problems, recorder, registry.parse("policy", "fixed"))
    return recorder.lines[0].angles, np.stack([line.gram for line in recorder.lines]), recorder.lines


def test_errors_are_those_of_the_arrays_themselves() -> None:
    """The quadratic forms against adams' own quadrature on the arrays, for a step after another and for the first."""
    from skipstone.solvers.adams import PairNode, integrate_nodes

    angles, gram, lines = noted(Mixture(), steps=24)
    table = local_errors(angles, gram, 8).table
    for s, line in enumerate(lines):
        said = [
            PairNode(float(u), row[0].astype(float), row[1].astype(float))
            for u, row in zip(angles, line.rows, strict=True)
        ]
        z = [math.cos(p.angle) * p.clean + math.sin(p.angle) * p.noise for p in said]
        for i, j, k in ((3, 7, 11), (10, 11, 19), (0, 0, 5), (20, 21, 24)):
            way = z[k] - z[j]
            wrong = way - integrate_nodes([said[j]], angles[j], angles[k])
            if i in (0, j):
                forecast = (wrong**2).mean()
            else:
                line_ = way - integrate_nodes([said[i], said[j]], angles[j], angles[k])
                a, b = (wrong**2).mean(), (line_**2).mean()
                forecast = ((wrong + (line_ - wrong) * a / (a + b)) ** 2).mean()
            used = [said[j], said[k]] if i == j else [said[i], said[j], said[k]]
            right = ((way - integrate_nodes(used, angles[j], angles[k])) ** 2).mean()
            h = angles[j] - angles[k]
            expected = forecast if k == 24 else right + (h / 2) ** 2 * forecast
            assert table[s, j, j - i, k - j - 1] == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_a_constant_pair_costs_nothing() -> None:
    """Where the network always says the same, every step of adams is exact."""
    rng, angles = np.random.default_rng(0), np.linspace(1.5, 0.0, 21)
    clean, noise = rng.standard_normal((2, 50))
    rows = np.concatenate([np.tile(clean, (21, 1)), np.tile(noise, (21, 1))])
    table = local_errors(angles, (rows @ rows.T / 50)[None], 10).table
    assert np.isfinite(table).any()
    assert table[np.isfinite(table)].max() < 1e-14


def test_only_possible_steps_are_finite() -> None:
    angles, gram, _ = noted(Gaussian(), count=1, steps=12)
    table = local_errors(angles, gram, 5).table[0]
    for j, a, b in itertools.product(range(12), range(6), range(5)):
        possible = j + b + 1 <= 12 and (a == 0 if j == 0 else 1 <= a <= j)
        assert np.isfinite(table[j, a, b]) == possible


# -- the shortest path ----------------------------------------------------------------------------


def possible(n: int, longest: int, rng: np.random.Generator, samples: int = 1) -> LocalErrors:
    table = rng.exponential(size=(samples, n, longest + 1, longest)) ** 3
    for j, a, b in itertools.product(range(n), range(longest + 1), range(longest)):
        if j + b + 1 > n or (a != 0 if j == 0 else not 1 <= a <= j):
            table[:, j, a, b] = np.inf
    return LocalErrors(np.linspace(1.5, 0, n + 1), table.astype(np.float32))


def every_path(n: int, longest: int, steps: int) -> list[tuple[int, ...]]:
    inner = itertools.combinations(range(1, n), steps - 1)
    paths = [(0, *places, n) for places in inner]
    return [p for p in paths if all(b - a <= longest for a, b in itertools.pairwise(p))]


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 9), st.integers(2, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_the_best_path_is_that_of_brute_force(n: int, longest: int, steps: int, seed: int) -> None:
    errors = possible(n, longest, np.random.default_rng(seed))
    paths = every_path(n, longest, steps)
    if not paths:
        with pytest.raises(SpecError, match="calls on a fine run"):
            shortest_path(errors.table[0], steps)
        return
    best = min(float(errors.of(p)[0]) for p in paths)
    assert float(errors.of(shortest_path(errors.table[0], steps))[0]) == pytest.approx(best, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_reweighting_never_ends_worse_than_it_began_and_knows_its_optimum(seed: int) -> None:
    errors = possible(8, 8, np.random.default_rng(seed), samples=5)
    paths = every_path(8, 8, 4)
    score = {p: float(np.log(errors.of(p)).mean()) for p in paths}
    mean = best_path(errors, 4, rounds=0)
    assert float(errors.of(mean).mean()) == pytest.approx(min(float(errors.of(p).mean()) for p in paths), rel=1e-5)
    assert score[best_path(errors, 4)] <= score[mean] + 1e-9
    assert score[best_path(errors, 4)] <= np.median(list(score.values()))


def test_gains_are_interpolated_in_the_logarithm() -> None:
    fine = FineGrid((1.0, 0.75, 0.5, 0.25, 0.0), (1.2, 0.9, 0.6, 0.3, 0.0))
    found = interpolate_gains(fine, [1, 3], np.array([[1.0, 4.0], [100.0, 4.0]]))
    assert found[0] == pytest.approx([1, 1, 10, 100, 100])
    assert found[1] == pytest.approx([4] * 5)


def test_probes_have_one_coarse_step_each() -> None:
    times = even_times(Cosine(), 1.0, 100)
    fine = FineGrid(times, tuple(Cosine().angle(t) for t in times))
    made = make_probes(fine)
    assert len(made) == 10
    for probe in made:
        steps = [b - a for a, b in itertools.pairwise(probe.path)]
        assert sum(step > 2 for step in steps) == 1
        assert probe.path[[step > 2 for step in steps].index(True) + 1] == probe.landing


def test_refining_climbs_to_what_it_is_scored_by() -> None:
    def score(path: tuple[int, ...]) -> float:
        return -abs(path[1] - 20) - abs(path[2] - 60)

    assert refine_path(score, (0, 12, 52, 100), 1) == (0, 20, 60, 100)
    assert refine_path(score, (0, 12, 52, 100), 0) == (0, 12, 52, 100)
    assert refine_path(score, (0, 4, 8, 9), 3)[1:3] == (4, 8)  # no room to move


# -- times ----------------------------------------------------------------------------------------


SCHEDULES = [Cosine(), FlowMatching(3.0), LinearTable(), ScaledLinear(), CosineTable(), ZeroTerminalSNR()]


@pytest.mark.parametrize("schedule", [Cosine(), FlowMatching(3.0), ScaledLinear()])
def test_even_places_are_even_on_the_angle_and_whole_where_the_schedule_is_a_table(schedule: Any) -> None:
    times = even_times(schedule, 0.98, 50)
    assert times[0] == 0.98
    assert times[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(times))
    if hasattr(schedule, "alpha_bars"):
        assert all(abs(1000 * t - round(1000 * t)) < 1e-9 for t in times)
    else:
        steps = -np.diff([schedule.angle(t) for t in times])
        assert steps.max() < 1.06 * steps.min() + schedule.angle(0.0)
    assert path_policy(times).places == pytest.approx(times[1:-1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize(("start", "steps"), [(1.0, 200), (0.982, 40), (1.0, 1600)])
def test_no_step_of_a_fine_run_is_long_by_any_clock(schedule: Any, start: float, steps: int) -> None:
    """Of each clock's way a step passes at most three steps' share, or one whole timestep."""
    times = Beginning(schedule, start).fine(steps).times
    table = len(getattr(schedule, "alpha_bars", ()))
    assert (times[0], times[-1]) == (start, 0.0)
    assert all(a > b for a, b in itertools.pairwise(times))
    if not table:
        assert len(times) - 1 == steps
    elif steps >= start * table:
        assert len(times) - 1 == round(start * table)
    else:
        assert 0.95 * steps <= len(times) - 1 <= steps
    for clock in (lambda t: t, schedule.angle, lambda t: asinh_ratio(schedule, t)):
        whole = clock(start) - clock(0.0)
        for a, b in itertools.pairwise(times):
            assert clock(a) - clock(b) <= 3.5 * whole / steps or (table and a - b <= 1.5 / table)


def test_places_above_the_loud_end_of_linear_betas_are_many() -> None:
    """The first of 200 even angles goes from sigma / alpha = 157 to 70; a noise prediction needs more in between."""
    schedule = LinearTable()
    assert sum(t > 0.87 for t in even_times(schedule, 1.0, 200)) < 4
    assert sum(t > 0.87 for t in Beginning(schedule, 1.0).fine(200).times) > 20


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [40, 200, 800, 1600])
def test_the_confirming_run_is_on_another_grid(schedule: Any, steps: int) -> None:
    beginning = Beginning(schedule, 1.0)
    fine, other = (set(grid.times[1:-1]) for grid in (beginning.fine(steps), beginning.confirming(steps)))
    assert len(fine - other) > 0.3 * len(fine)


# -- uneven places --------------------------------------------------------------------------------


@st.composite
def uneven(draw: Any) -> tuple[FineGrid, Any]:
    """A grid of any increasing places, some of them far apart, and the gram of a run on it."""
    gaps = draw(st.lists(st.floats(1e-6, 1.0) | st.floats(1e-6, 1e-4), min_size=8, max_size=24))
    gone = np.cumsum([0.0, *gaps]) / sum(gaps)
    angles = 1.5 * (1 - gone)
    rows = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((2 * len(angles), 30))
    return FineGrid(tuple(1 - gone), tuple(angles)), (rows @ rows.T / 30)[None]


@settings(max_examples=40, deadline=None)
@given(uneven())
def test_all_of_a_search_is_among_the_steps_whose_error_is_known_on_any_grid(made: tuple[FineGrid, Any]) -> None:
    fine, gram = made
    errors, probes = local_errors(np.array(fine.angles), gram, longest_step(fine)), make_probes(fine)
    assert probes
    for probe in probes:
        assert np.isfinite(errors.of(probe.path)).all()
        assert sum(b - a > 2 for a, b in itertools.pairwise(probe.path)) == 1
    gains = np.ones((len(probes), 1))
    left = errors.times(interpolate_gains(fine, [probe.landing for probe in probes], gains))
    for calls in {MIN_CALLS, fine.steps // 2}:
        path = best_path(left, calls)
        assert len(path) == calls + 1
        assert np.isfinite(left.steps(path)).all()
    even = fine.even_path(MIN_CALLS)
    assert (even[0], even[-1]) == (0, fine.steps)
    assert all(a < b for a, b in itertools.pairwise(even))
    assert np.isinf(errors.of((0, fine.steps))).all() == (longest_step(fine) < fine.steps)


# -- the search -----------------------------------------------------------------------------------


def search(folder: Path, subject: ExactSubject, **more: Any) -> TimeGridSearch:
    asked = TuningSettings(**{"calls": (6, 10), "fine": 64, "rivals": False, **more})
    return TimeGridSearch(
        subject, asked, eval_samples(4), eval_samples(3, 100), RunCache.open(folder, {"fine": asked.fine})
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[TimeGridSearch, TuningResult]:
    made = search(tmp_path_factory.mktemp("search"), ExactSubject(HARD))
    return made, made.run()


def true_psnr(subject: ExactSubject, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[float]:
    """PSNR of each run under a column to the solution of its differential equation."""
    generated, _ = subject.draw([eval_sample.request for eval_sample in eval_samples], column)
    ends = [exact_end(subject.backbone, subject.start(eval_sample.request)) for eval_sample in eval_samples]
    return [-10 * math.log10(((0.2 * (one.x - end)) ** 2).mean()) for one, end in zip(generated, ends, strict=True)]


@pytest.mark.parametrize("calls", [6, 10])
def test_what_is_found_beats_even_angles_and_the_grid_of_local_errors(
    found: tuple[TimeGridSearch, TuningResult], calls: int
) -> None:
    made, result = found
    grid = result.grids[calls]
    assert len(grid.path) == calls + 1

    def truly(path: tuple[int, ...]) -> float:
        column = made.cached_runs.column(result.fine.policy(path, grid.of))
        assert isinstance(made.subject, ExactSubject)
        return statistics.fmean(true_psnr(made.subject, column, made.check))

    assert truly(grid.path) > truly(result.fine.even_path(calls)) + 6
    assert truly(grid.path) >= truly(best_path(result.errors, calls)) - 0.5
    row = next(row for row in result.rows if row.calls == calls and row.group == "path")
    assert row.mean_calls == calls


# -- the references -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone",
    [HARD, replace(HARD, schedule=LinearTable()), Wavy(replace(HARD, schedule=LinearTable()))],
    ids=["cosine", "linear betas", "erring at the loud end"],
)
def test_what_is_reported_is_within_one_decibel_of_the_truth(backbone: Any, tmp_path: Path) -> None:
    """Of the rows of all kinds, against the solution of the differential equation, which no run of ours has made."""
    made = search(tmp_path, ExactSubject(backbone), calls=(8,), fine=48)
    result = made.run()
    for row in result.rows:
        column = parse_column(row.spec, None, None, 1)
        assert isinstance(made.subject, ExactSubject)
        true = true_psnr(made.subject, column, made.check)
        assert row.psnr_statistics["median"] == pytest.approx(statistics.median(true), abs=1.0)
        assert row.psnr_statistics["mean"] == pytest.approx(statistics.fmean(true), abs=1.0)
        assert result.agreement.median >= row.psnr_statistics["median"] + 10


def test_the_fine_run_on_even_angles_that_was_once_trusted_is_far_from_the_solution() -> None:
    """By which the test above can fail: what errs at the loud end needs places there."""
    subject, some = ExactSubject(Wavy(replace(HARD, schedule=LinearTable()))), eval_samples(3)
    even = even_times(subject.backbone.schedule, 1.0, 200)
    fine = Beginning(subject.backbone.schedule, 1.0).fine(200).times
    before, after = (statistics.median(true_psnr(subject, adams_column(times), some)) for times in (even, fine))
    assert before < 33
    assert after > 50


def test_references_that_cannot_be_confirmed_are_refused_by_name(tmp_path: Path) -> None:
    """A table of 80 timesteps has no finer run: what 24 calls reach is too near to what the references are good for."""
    subject = ExactSubject(replace(HARD, schedule=CosineTable(steps=80)))
    with pytest.raises(BenchError, match="The two references agree to") as refused:
        search(tmp_path, subject, calls=(4, 24)).run()
    assert "Ask for --calls 4:" in str(refused.value)
    allowed = search(tmp_path, subject, calls=(4,)).run()
    assert [row.calls for row in allowed.rows] == [4, 4]


@pytest.mark.parametrize(("psnr", "confirmed"), [(30.0, True), (30.1, False), (99.0, False)])
def test_ten_decibels_are_asked_for(psnr: float, confirmed: bool) -> None:
    assert Agreement((20.0, 40.0, 60.0), 200, 200).confirms(psnr) == confirmed
    assert Agreement((99.0,), 200, 200).confirms(99.0)  # equal pictures


def test_runs_of_another_version_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = eval_samples(1)[0]
    RunCache.open(tmp_path, {"fine": 64}).save(FINE_RUNS, sample, pixels=np.zeros(3))
    assert RunCache.open(tmp_path, {"fine": 64}).arrays(FINE_RUNS, sample) is not None
    monkeypatch.setattr(run_cache, "VERSION", run_cache.VERSION + 1)
    assert RunCache.open(tmp_path, {"fine": 64}).arrays(FINE_RUNS, sample) is None


def test_the_same_seed_is_the_same_grid_and_what_was_drawn_is_not_drawn_again(
    found: tuple[TimeGridSearch, TuningResult], tmp_path: Path
) -> None:
    made, result = found
    again = search(tmp_path, ExactSubject(HARD), batch=2).run()
    assert again.grids == result.grids
    assert [row.psnr_statistics for row in again.rows] == [row.psnr_statistics for row in result.rows]
    subject = made.subject
    assert isinstance(subject, ExactSubject)
    drawn = subject.drawn
    resumed = made.run()
    assert subject.drawn == drawn + 1  # where its runs begin
    assert resumed.grids == result.grids


def test_a_search_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, draw, left = ExactSubject(HARD), ExactSubject.draw, [4]

    def cut(self: ExactSubject, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    monkeypatch.setattr(ExactSubject, "draw", cut)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, subject, calls=(4,), fine=16).run()
    monkeypatch.setattr(ExactSubject, "draw", draw)
    early = subject.drawn
    after = search(tmp_path, subject, calls=(4,), fine=16).run()
    whole = ExactSubject(HARD)
    assert search(tmp_path / "other", whole, calls=(4,), fine=16).run().grids == after.grids
    assert subject.drawn == whole.drawn + 1
    assert early > 1


def test_results_are_policies_that_run_and_figures_that_can_be_read(
    found: tuple[TimeGridSearch, TuningResult], tmp_path: Path
) -> None:
    made, result = found
    written = report.write_report(result, tmp_path, {"model": "exact"})
    assert written == report.report_files(tmp_path, (6, 10))
    assert all(path.is_file() for path in written)
    assert skipstone.load_policy(tmp_path / "path-6") == result.policy(6)
    column = parse_column(str(tmp_path / "path-6"), None, None, 12)
    assert column.solver == made.cached_runs.column(result.policy(6)).solver
    assert made.subject.draw([made.check[0].request], column)[0][0].calls == 6
    document = json.loads((tmp_path / report.RESULTS).read_text())
    assert [grid["calls"] for grid in document["grids"]] == [6, 10]
    assert {row["group"] for row in document["rows"]} == {"path", "even"}
    assert (tmp_path / report.PLOT).read_bytes().startswith(b"\x89PNG")


def test_rivals_run_beside(tmp_path: Path) -> None:
    rows = search(tmp_path, ExactSubject(HARD, steps=30), calls=(8,), fine=24, rivals=True).run().rows
    by_label = {row.label.partition("(")[0]: row for row in rows}
    assert {"path-8", "fixed @ adams", "fixed @ dpmpp", "stride"} <= by_label.keys()
    assert by_label["stride"].mean_calls <= 8.5
    assert by_label["fixed @ dpmpp"].mean_calls == 8


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"calls": (3,)}, "between 4 and 32"),
        ({"calls": (33,)}, "between 4 and 32"),
        ({"calls": ()}, "got 0"),
        ({"fine": 4}, "--fine from 8 to 400"),
        ({"fine": 10**12}, "--fine from 8 to 400"),
        ({"refine": -1}, "--refine from 0 to 100"),
        ({"refine": 10**12}, "--refine from 0 to 100"),
        ({"batch": 0}, "--batch from 1 to 10000"),
    ],
)
def test_settings_out_of_range_are_refused(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=said):
        search(tmp_path, ExactSubject(HARD), **more)


def test_a_table_with_too_few_timesteps_is_told(tmp_path: Path) -> None:
    subject = ExactSubject(Gaussian(schedule=ScaledLinear(steps=20)))
    with pytest.raises(SpecError, match="its timesteps are whole"):
        search(tmp_path, subject, calls=(12,)).run()


def test_a_recorded_pipeline_is_the_bare_one(tiny_model: Path, tmp_path: Path) -> None:
    """By takeover: the notes are of the run that the pipeline makes, and change nothing of it."""
    from skipstone.evaluation.checkpoints import Checkpoint
    from skipstone.evaluation.pipeline_subject import PipelineSubject
    from skipstone.evaluation.subject import SampleRequest

    guest = PipelineSubject(Checkpoint.find(str(tiny_model)), device="cpu")
    draws = CachedRuns(guest, RunCache.open(tmp_path, {}), 12)
    eval_sample = eval_samples(1)[0]
    fine = draws.fine(eval_sample)
    assert fine.times[0] == 1.0
    recorder = Recorder(ADAMS)
    policy = fine.policy(range(fine.steps + 1))
    items = [SampleRequest("a cat", 3), SampleRequest("a dog", 4)]
    bare, _ = guest.draw(items, draws.column(policy))
    heard, _ = guest.draw(items, draws.column(policy, recorder))
    for one, other in zip(bare, heard, strict=True):
        assert (one.x == other.x).all()
        assert one.calls == other.calls == fine.steps
    assert [tuple(line.times) for line in recorder.lines] == [fine.times] * 2
    alone = Recorder(ADAMS)
    guest.draw(items[1:], draws.column(policy, alone))
    assert np.allclose(alone.lines[0].rows[-1], recorder.lines[1].rows[-1], atol=1e-4)
