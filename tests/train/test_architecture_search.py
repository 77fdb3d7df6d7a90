"""What a search decides: spaces, figures, fronts, and which child is trained next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone.errors import OutputError, SpecError
from skipstone_train.architecture.cost import Latency, measure_latency
from skipstone_train.architecture.halving import Evaluation, Halving, checked, rungs_for
from skipstone_train.architecture.objectives import Objectives, dominates, pareto_front, rank_points
from skipstone_train.architecture.records import Records
from skipstone_train.architecture.search import with_checks
from skipstone_train.architecture.settings import SearchSettings, parse_duration
from skipstone_train.architecture.space import Candidate, Space, read_space

SPACE = Space(depth=(2, 4, 3), mlp_ratio=(1.0, 4.0), activation=("gelu", "silu"))
BY = Objectives(("error", "megabytes"))


# -- Spaces -------------------------------------------------------------------------------------------


def test_a_space_has_every_shape_once() -> None:
    found = list(SPACE.candidates())
    assert len(set(found)) == len(found) == SPACE.size == 12
    assert found[0].name == "depth2-mlp_ratio1-gelu"
    assert SPACE.parts["depth"] == (2, 3, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "The space is empty: expected values of at least one part, such as 'depth: [3, 4, 6]'."),
        ("depth: []", "The space is empty: depth has no values"),
        ("deph: [3]", "has no key 'deph'. Did you mean 'depth'?"),
        ("depth: [3, 3]", "expected at most 100 values, each once"),
        ("depth: [three]", "depth.0: expected a valid integer, got 'three'"),
        ("activation: [relu]", "activation.0: expected 'gelu', 'silu' or 'geglu', got 'relu'"),
        ("depth: [.nan]", "finite numbers"),
        ("mlp_ratio: [1.0, 2.0", "expected YAML"),
        (
            "\n".join(f"{n}: {list(range(1, 101))}" for n in ("depth", "width", "heads", "mlp_ratio")),
            "at most 1,000,000",
        ),
    ],
)
def test_a_space_that_is_none_is_refused_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"^[^\n]+$") as stop:
        read_space(tmp_path / "space.yaml")
    assert said in str(stop.value)


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("depth: 3\nmlp_ratio: 2\n")
    assert read_space(tmp_path / "space.yaml").parts == {"depth": (3,), "mlp_ratio": (2.0,)}
    with pytest.raises(SpecError, match=r"--space: .* cannot be read"):
        read_space(tmp_path / "none.yaml")


# -- Figures and fronts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("judge, milisecond", "no figure is called 'milisecond'. Did you mean 'milliseconds'?"),
        ("", "expected figures, each once"),
        ("error, error", "expected figures, each once"),
    ],
)
def test_objectives_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError) as stop:
        Objectives.parse(text)
    assert said in str(stop.value)


def test_figures_that_differ_by_less_than_their_noise_are_equal() -> None:
    by = Objectives.parse("judge, milliseconds")
    assert by.point({"judge": 90.1, "milliseconds": 10.0}) == by.point({"judge": 90.2, "milliseconds": 10.05})
    better = by.point({"judge": 92.0, "milliseconds": 9.0})
    assert dominates(better, by.point({"judge": 90.0, "milliseconds": 10.0}))


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_figure_that_is_no_number_is_a_failure(value: Any) -> None:
    assert "error is" in checked(BY, {"error": value, "megabytes": 1.0} if value is not None else {"megabytes": 1.0})
    assert checked(BY, {"error": 0.5, "megabytes": 1.0}) == ""


POINTS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12)


@given(POINTS)
def test_a_front_is_what_nothing_dominates(points: Sequence[tuple[int, ...]]) -> None:
    front = pareto_front(points)
    assert front
    for i, point in enumerate(points):
        assert (i in front) == (not any(dominates(other, point) for other in points))


@given(POINTS)
def test_ranks_are_an_order_in_which_nothing_comes_before_what_dominates_it(points: Sequence[tuple[int, ...]]) -> None:
    order = rank_points(points)
    assert sorted(order) == list(range(len(points)))
    for before, after in itertools.combinations(order, 2):
        assert not dominates(points[after], points[before])


# -- Halving ------------------------------------------------------------------------------------------


def figures(candidate: Candidate, rung: int = 2) -> Mapping[str, float]:
    """Deeper and wider is better and larger; less training is worse for all alike."""
    chosen = dict(candidate.choices)
    size = float(chosen["depth"]) * float(chosen["mlp_ratio"])
    return {"error": (1 + (chosen["activation"] == "silu")) / size + 0.1 * (2 - rung), "megabytes": size}


def run(halving: Halving, steps: float = math.inf) -> list[Evaluation]:
    """Evaluations until nothing is left, or so many training steps are spent."""
    found: list[Evaluation] = []
    while (job := halving.next_job(found)) is not None:
        before = [one.rung for one in found if one.candidate == job.candidate]
        assert before == list(range(job.rung))  # rung by rung, each once
        steps -= halving.rungs[job.rung] - (halving.rungs[job.rung - 1] if job.rung else 0)
        if steps < 0:
            break
        found.append(Evaluation(job.candidate, job.rung, figures(job.candidate, job.rung)))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_search_that_is_not_stopped_trains_every_shape_and_finds_the_front(sampler: Any) -> None:
    halving = Halving(SPACE, BY, rungs_for(9, 3, 3), 3, sampler, seed=1)
    found = run(halving)
    assert len(found) == 3 * SPACE.size
    points = {one: BY.point(figures(one)) for one in SPACE.candidates()}
    true = {one for one in points if not any(dominates(other, points[one]) for other in points.values())}
    assert {one.candidate for one in halving.front(found)} == true


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_the_next_job_depends_on_what_was_found_alone(sampler: Any) -> None:
    halving = Halving(SPACE, BY, rungs_for(9, 3, 3), 3, sampler, seed=2)
    found = run(halving, 60)
    for cut in (0, 1, 5, len(found) - 1):
        job = halving.next_job(found[:cut])
        assert job is not None
        assert (job.candidate, job.rung) == (found[cut].candidate, found[cut].rung)


def test_one_in_three_goes_on_and_failures_never_do() -> None:
    halving = Halving(SPACE, BY, rungs_for(9, 2, 3), 3, "random")
    shapes = list(SPACE.candidates())
    found = [Evaluation(one, 0, figures(one, 0)) for one in shapes[:5]]
    job = halving.next_job(found)
    assert job is not None
    assert job.rung == 1
    failed = [Evaluation(one, 0, {}, "no number") for one in shapes[:5]]
    job = halving.next_job(failed)
    assert job is not None
    assert (job.rung, job.candidate in shapes[:5]) == (0, False)
    assert halving.next_job([Evaluation(one, 0, {}, "no number") for one in shapes]) is None


def test_rungs_end_with_all_steps() -> None:
    assert rungs_for(900, 3, 3) == (100, 300, 900)
    assert rungs_for(7, 1, 3) == (7,)
    with pytest.raises(SpecError, match="at least 9 training steps for 3 rungs, got 2"):
        rungs_for(2, 3, 3)


# -- Settings, records, time --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("1.5 h", 5400)]
)
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "two hours", "nan h", "0s", "1e3h", "99999h", "2h later"])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--budget: expected a time of at most 1000h, such as 90s, 45m or 2h"):
        parse_duration(text)


def test_prompts_for_training_are_not_those_that_children_are_judged_on() -> None:
    with pytest.raises(SpecError, match="'a cat' is in both"):
        with_checks(SearchSettings(), ["a cat", "a dog"], ["a cat"])
    assert with_checks(SearchSettings(), ["a dog"], ["a cat"]).checked == 1
    with pytest.raises(SpecError, match="expected batch to be even, got 7; try batch=8"):
        SearchSettings(batch=7)


def test_a_folder_goes_on_with_the_same_search_alone(tmp_path: Path) -> None:
    records, one = Records(tmp_path), next(SPACE.candidates())
    assert records.begin({"space": {"depth": (2, 3)}, "seed": 0}) == []
    records.add(Evaluation(one, 0, {"error": 0.25}, "", 1.5, {"speed": 2.0}))
    with (tmp_path / "evaluations.jsonl").open("a") as stream:
        stream.write('{"candidate": {"dep')  # a line that was cut off
    [again] = records.begin({"space": {"depth": (2, 3)}, "seed": 0})
    assert again == Evaluation(one, 0, {"error": 0.25}, "", 1.5, {"speed": 2.0})
    with pytest.raises(OutputError, match=r"of a search with seed 0, not 1\. Give the same to go on with it, or"):
        records.begin({"space": {"depth": (2, 3)}, "seed": 1})


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("teacher", "child")}
    found = measure_latency(calls, "teacher", rounds=4)
    assert all(isinstance(one, Latency) for one in found.values())
    assert found["teacher"].speed == 1
    rounds = list(itertools.batched(order, 2)) if hasattr(itertools, "batched") else []
    assert all(set(one) == {"teacher", "child"} for one in rounds)
    assert len(order) == 2 * (3 + 4)
