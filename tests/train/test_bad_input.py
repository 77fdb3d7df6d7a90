"""What a new user, or a damaged file, gives trainings and evaluations: one line that says what to type instead."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.utility import Utility
from skipstone.policies.agent.actions import ActionSpace, BaseSchedule
from skipstone.policies.agent.policy import Agent
from skipstone.yaml_settings import parse_settings
from skipstone_research.agents.evaluation import Evaluation, EvaluationSettings
from skipstone_research.agents.gates import TrainingSummary, g1
from skipstone_research.agents.loaded_evaluation import _load_bound_row, name_trainings
from skipstone_research.agents.scores import ScoreRow, row_from_records
from skipstone_train.agents.config import AgentConfig
from skipstone_train.agents.held_out import HeldOutEpisodes
from skipstone_train.agents.learners import LEARNERS, make_learner
from skipstone_train.agents.recording import _check_parts_folder
from skipstone_train.agents.settings import EnvironmentSettings
from skipstone_train.agents.trajectory_log import TrajectoryLog
from skipstone_train.agents.transitions import Transitions
from tests.logs import log


@pytest.mark.parametrize("keep", [0, 30, 2000, -40])
def test_files_that_were_cut_off_are_called_damaged(keep: int, tmp_path: Path) -> None:
    whole = log(6).save(tmp_path / "a.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[:keep])
    with pytest.raises(SpecError, match="damaged"):
        TrajectoryLog.load(cut)
    with pytest.raises(SpecError, match="file of transitions"):
        Transitions.load(cut)


def test_logs_whose_parts_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="as many trajectories"):
        dataclasses.replace(log(6), seeds=(0,))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(SpecError, match="damaged"):
        TrajectoryLog.load(tmp_path / "one.npy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slots: &a [*a]\n", "line 1: .*anchors and aliases"),
        ("environment: [1, 2]\n", r"no environment is called \[1, 2\]. Known: pebble, toy, surrogate"),
        ("slots: !!int ''\n", "line 1: .*tags"),
        ("out: !!timestamp soon\n", "line 1: .*tags"),
        ("slots: 0x" + "f" * 5000 + "\n", "^f, slots: expected a whole number"),
        ("out: " + "[" * 2000 + "\n", "nested too deeply"),
        ("out: " + "{a: " * 2000 + "\n", "nested too deeply"),
        ('out: "\\uD800"\n', "half of a surrogate pair"),
        ("out: " + "a" * 70_000 + "\n", "expected at most 65,536 characters, got 70,006"),
        ("minutes: 1.0e+400\n", "minutes: expected a number > 0 and at most 100,000, got inf"),
        ("slots: 100001\n", "slots >= 1 and at most 100,000"),
        ("seeds: [-1]\n", "different seeds from 0"),
        ("learner: {name: search, episodes: 100000000}\n", "episodes <= 10,000,000"),
        ("learner: {name: ppo, hidden: [100000]}\n", "8 layers of 1 to 4096 units"),
        ("environment: {name: toy, steps: 1001}\n", "steps >= 2 and at most 1000"),
        ("environment: {name: surrogate, pace: 0.0}\n", "pace > 0"),
        ("environment: {axes: 100000}\n", "axes >= 0 and at most 1000"),
        ("environment: {cap: .inf}\n", "finite floor and cap"),
        ("{[1, 2]: 3}\n", "line 1: .*unhashable key"),
        ("out: 2026-13-45\n", "expected YAML.*month"),
        ("out: \x00\n", "expected YAML"),
        ("minutes: .nan\n", "expected YAML.*minutes is NaN"),
        ("out: !!python/object/apply:os.getcwd []\n", "line 1: .*could not determine a constructor"),
    ],
)
def test_configurations_that_are_none(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_settings(AgentConfig, text, "f")
    key, _, value = text.strip().partition(": ")
    with pytest.raises(SpecError):
        parse_settings(AgentConfig, "", "f", [f"{key}={value}"])


def test_a_few_lines_are_not_billions_of_values() -> None:
    """Each line has the one before ten times: read, and written as JSON, it would take all memory."""
    lines = ["a0: &a0 [1, 2]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    with pytest.raises(SpecError, match=r"line 1: .*anchors and aliases"):
        parse_settings(AgentConfig, "\n".join(lines), "f")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("ppo", {"rate": -1.0}),
        ("ppo", {"batch": 1}),
        ("ppo", {"hidden": (0,)}),
        ("ppo", {"gamma": 0.0}),
        ("fitted_q", {"members": 0}),
        ("stopping", {"sweeps": 0}),
        ("stopping", {"memory": 0}),
        ("search", {"episodes": 0}),
    ],
)
def test_learners_say_which_setting_is_out_of_range(name: str, setting: dict[str, Any]) -> None:
    assert name in LEARNERS
    with pytest.raises(SpecError, match=f"^{name}: expected .*{next(iter(setting))}"):
        make_learner(name, **setting)


def test_parts_of_another_drawing_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    _check_parts_folder(tmp_path, ["a"])
    _check_parts_folder(tmp_path, ["b"])  # nothing was drawn yet
    (tmp_path / "000000.npz").write_bytes(b"")
    _check_parts_folder(tmp_path, ["b"])
    with pytest.raises(SpecError, match="another drawing"):
        _check_parts_folder(tmp_path, ["a"])


def test_samples_that_judge_have_not_chosen_whatever_was_drawn() -> None:
    """Proofs take the odd samples of the pool: none of these may choose, even where others were never drawn."""
    sample = np.repeat([0, 2, *range(3, 22)], 2)
    held = HeldOutEpisodes.__new__(HeldOutEpisodes)
    vars(held).update(env=SimpleNamespace(pool=range(22)), random=SimpleNamespace(sample=sample.astype(float)))
    assert (sample[held.is_selection] % 2 == 0).all()
    assert (sample[~held.is_selection] % 2 == 1).all()
    vars(held).pop("groups"), vars(held).pop("is_selection")
    vars(held)["random"] = SimpleNamespace(sample=sample[:6])  # few, but samples: prices of one are not independent
    assert held.groups.tolist() == sample[:6].tolist()


def test_stops_that_the_budget_cannot_pay_are_masked() -> None:
    moves = ActionSpace(("continue", "stop 1", "stop 2", "stop 4"), calls=1.0)
    assert moves.action_masks([20], [7], [8])[0].tolist() == [True, True, True, False]
    assert moves.action_masks([20], [5], [8])[0].tolist() == [True, True, True, True]


def test_trainings_of_one_name_are_told_apart() -> None:
    assert name_trainings(["a/seed-0", "a/seed-1"]) == {"a/seed-0": "seed-0", "a/seed-1": "seed-1"}
    assert name_trainings(["a/seed-0", "b/seed-0"]) == {"a/seed-0": "a/seed-0", "b/seed-0": "b/seed-0"}


@pytest.mark.parametrize("wrong", [{"agents": ("a", "a")}, {"prices": (0.0,)}, {"prices": (float("nan"),)}])
def test_evaluations_out_of_range(wrong: dict[str, Any]) -> None:
    nothing: Any = SimpleNamespace()
    with pytest.raises(SpecError, match="xpected"):
        Evaluation(nothing, EvaluationSettings(**{"agents": ("a",), **wrong}), [nothing], {})


def test_g1_says_whose_file_plays_the_schedule() -> None:
    one = TrainingSummary("a", 1.0, 3.0, 0.5, 2.0, {"continue": 0.5, "stop": 0.5}, learnt=False)
    assert "files of 1 play the fixed schedule" in g1([one]).why
    assert "files of" not in g1([dataclasses.replace(one, learnt=True)]).why


@pytest.mark.parametrize("prices", [(float("nan"),), (float("inf"),)])
def test_prices_are_numbers(prices: tuple[float, ...]) -> None:
    with pytest.raises(SpecError, match="prices"):
        EnvironmentSettings(prices=prices)


def test_fixed_schedules_are_judged_without_looking(tmp_path: Path) -> None:
    """Agents that look run on the network; the even schedules that they begin with are chosen on recorded runs."""
    path = str(log().save(tmp_path / "log.npz"))
    settings = EnvironmentSettings(log=path, guides_from="even", axes=1, live=True, blocks=("place", "published"))
    assert [price for price, _ in settings.base_schedules] == sorted(settings.prices, reverse=True)


def test_one_sample_cannot_choose_and_judge(tmp_path: Path) -> None:
    path = str(log(6).save(tmp_path / "log.npz"))
    settings = EnvironmentSettings(log=path, share=0.2, axes=1)
    with pytest.raises(SpecError, match="select and"):
        settings.build("validation")


def test_what_is_best_for_another_utility_is_no_oracle_of_this_one(tmp_path: Path) -> None:
    rows = [ScoreRow("agent", "agent", {"p:0": {"calls": 9.0}})]
    lines = tmp_path / "oracle.jsonl"
    lines.write_text('{"sample": "p:0", "calls": 9, "psnr": 58.0, "price": 1.0, "floor": 20.0, "cap": 60.0}\n')
    assert _load_bound_row(lines, "oracle", Utility(1.0, 20.0, 60.0), rows).samples["p:0"]["psnr"] == 58.0
    with pytest.raises(BenchError, match="--floor 10 --cap 50"):
        _load_bound_row(lines, "oracle", Utility(1.0, 10.0, 50.0), rows)


def test_looks_of_an_agent_are_charged_in_its_evaluation() -> None:
    record: Any = SimpleNamespace(sample="p:0", calls=8.0, values={})
    assert row_from_records([record], "a", "agent").calls == 8.0
    assert row_from_records([record], "a", "agent", fee=1.5).calls == 20.0


@pytest.mark.parametrize("times", [(1.0, float("nan"), 0.0), ("b", "a"), (1.0, 1.0), (1.0,)])
def test_guides_fall(times: Any) -> None:
    with pytest.raises(SpecError, match="falling times"):
        BaseSchedule(times)


def test_agents_are_named_by_texts_and_have_prices() -> None:
    with pytest.raises(SpecError, match="path='pebble'"):
        Agent(5)  # type: ignore[arg-type]
    mind = Agent().checkpoint
    for price in (0.0, -1.0, float("nan")):
        with pytest.raises(SpecError, match="prices > 0"):
            dataclasses.replace(mind, base_schedules=((price, mind.base_schedules[0][1]),))
    with pytest.raises(SpecError, match="axes of width"):
        dataclasses.replace(mind.observation, centre=(0.0,), axes=((1.0, 2.0),))
