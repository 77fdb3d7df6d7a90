"""Searches of Optuna and Stable-Baselines3: found by entry points, within their calls, the same for the same seed."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from skipstone.engine.contracts import Policy
from skipstone.numerics.schedule import FlowMatching
from skipstone.satellites import EXTRAS
from skipstone.tuning.cached_runs import RunScore
from skipstone.tuning.candidates import Builder
from skipstone.tuning.evaluator import Evaluator
from skipstone.tuning.grids import Beginning, even_times
from skipstone.tuning.searches import BROUGHT, random_search, run_search
from skipstone.tuning.space_file import parse_space
from skipstone_train.search.optuna_search import nsga2, tpe
from skipstone_train.search.ppo_search import CandidateEnv, ppo

SEARCHES = {"tpe": tpe, "nsga2": nsga2, "ppo": ppo}
PACKAGE = Path(__file__).parents[2] / "packages" / "skipstone-train" / "pyproject.toml"
SPACE = {
    "adaptive_grid": {
        "calls": {"low": 4, "high": 12},
        "adapt": {"low": 0.0, "high": 1.0, "levels": 11},
        "rise": {"low": -0.4, "high": 1.6, "levels": 11},
    },
    "fixed": {},
}
CALLS, SAMPLES = 8, 8


def evaluator(budget: float) -> Evaluator:
    """Best at 8 calls (of those allowed), adapt 0.8 and rise 0.2; `fixed` is bad."""

    def score(policy: Policy, part: slice) -> Sequence[RunScore]:
        calls, adapt, rise = (getattr(policy, name, 0.0) or 0.0 for name in ("calls", "adapt", "rise"))
        psnr = 20.0 + calls - 20 * (adapt - 0.8) ** 2 - 10 * (rise - 0.2) ** 2 if calls else 5.0
        return [RunScore(calls or 8.0, 10 ** (-(psnr + k) / 10)) for k in range(*part.indices(SAMPLES))]

    beginning = Beginning(FlowMatching(), 1.0)
    builder = Builder(beginning, CALLS, even_times(FlowMatching(), 1.0, CALLS), "pair")
    return Evaluator(parse_space(SPACE, "here"), builder, score, SAMPLES, budget)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_keeps_within_its_calls_and_repeats_with_its_seed(name: str) -> None:
    found = []
    for seed in (3, 3, 4):
        asked = evaluator(900)
        run_search(SEARCHES[name], asked, seed)
        assert 900 - 12 * SAMPLES < asked.charged <= 900
        found.append([trial.policy for trial in asked.trials])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_learns(name: str) -> None:
    """Its candidates are better than those drawn at random, and the best is near the optimum of 28 dB."""
    asked, drawn = evaluator(4000), evaluator(4000)
    run_search(SEARCHES[name], asked, 0)
    run_search(random_search, drawn, 0)
    own, other = (np.mean([one.objective(trial) for trial in one.trials]) for one in (asked, drawn))
    assert own > other + 2.0
    assert asked.best is not None
    assert asked.best.calls <= CALLS
    assert asked.best.quality > 29.0  # 28, and the offsets of the samples 3.5


def test_an_episode_is_one_candidate() -> None:
    env = CandidateEnv(evaluator(1e6))
    seen, _ = env.reset()
    assert env.observation_space.contains(seen)
    best = {"adaptive_grid.calls": 8, "adaptive_grid.adapt": 0.8, "adaptive_grid.rise": 0.2}
    point = env.evaluator.space.point({"policy": "adaptive_grid", **best})
    action = [point[one.name] for one in env.evaluator.space.dimensions]
    assert env.action_space.contains(np.array(action))
    *_, done, cut, _ = env.step(action)
    assert (done, cut) == (True, False)
    assert env.evaluator.trials[-1].values["adaptive_grid.adapt"] == 0.8


def test_the_package_brings_what_the_library_expects_of_it() -> None:
    points = tomllib.loads(PACKAGE.read_text())["project"]["entry-points"]["skipstone.searches"]
    assert set(points) == set(BROUGHT) == set(EXTRAS["search"])
    for name, where in points.items():
        module, _, attribute = where.partition(":")
        assert getattr(importlib.import_module(module), attribute) is SEARCHES[name]
