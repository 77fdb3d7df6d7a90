"""Hypotheses on made-up scores of single samples: what must pass, what must fail, and how often chance passes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.utility import Utility
from skipstone_research.agents import hypotheses as H
from skipstone_research.agents.gap import measure_gap_closed
from skipstone_research.agents.gates import MemoryUsage, TrainingSummary, check_gates, g1
from skipstone_research.agents.refine_scores import DEFECT_METRIC, load_refine_scores
from skipstone_research.agents.scores import ScoreRow, Scores, average_rows, row_from_jsonl
from skipstone_train.agents.complexity import FACTS_UNIT, WORDS_UNIT, count_content_words, prompt_complexities

TEXTS = ("a cat on a red background", "a small cat on a red background", "a cat above a bus on a red background")
LADDER = (8, 10, 12, 16, 20)
UTILITY = Utility(0.5)


def row(name: str, kind: Any, psnr: Any, calls: Any, judge: Any = 0.9, **more: Any) -> ScoreRow:
    """A row of arrays (samples,); SSIM follows PSNR."""
    n = len(np.atleast_1d(psnr))
    p, c, j = (np.broadcast_to(np.asarray(v, float), n) for v in (psnr, calls, judge))
    samples = {
        f"p{i}:0": {"calls": c[i], "psnr": p[i], "ssim": 1 - 10 ** (-p[i] / 15), "judge": j[i]} for i in range(n)
    }
    return ScoreRow(name, kind, samples, **more)


class World:
    """Samples whose hardness is hidden: a schedule of n calls makes 20 + 20 log10(n) - hardness dB."""

    def __init__(self, n: int = 48, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.texts = [TEXTS[i % 3] for i in range(n)]
        self.hardness = np.array([i % 3 for i in range(n)]) * 4.0 + rng.normal(0, 1, n)
        self.judge = np.clip(0.9 + rng.normal(0, 0.01, n), 0, 1)
        self.rng, self.n = rng, n

    def psnr(self, calls: Any, noise: float = 0.3) -> Any:
        return 22 + 20 * np.log10(calls) - self.hardness + self.rng.normal(0, noise, self.n)

    def scores(self, *rows: ScoreRow) -> Scores:
        fixed = [row(f"fixed @ dpmpp / {n}", "fixed", self.psnr(n), n, self.judge) for n in LADDER]
        ddim = row("fixed @ ddim / 20", "fixed", self.psnr(20) - 6, 20, self.judge)
        full = row("fixed @ ddim / 50", "full", self.psnr(50) - 6, 50, self.judge)
        prompts = {f"p{i}:0": text for i, text in enumerate(self.texts)}
        return Scores((*fixed, ddim, full, *rows), prompts, UTILITY)

    def oracle(self, kind: Any = "agent", **more: Any) -> ScoreRow:
        """Knows each sample's hardness, and gains 4 dB by it, at calls that follow it."""
        calls = np.clip(np.round(11 + 0.8 * self.hardness), 8, 20)
        return row("oracle", kind, self.psnr(calls) + 4, calls, self.judge, **more)


# -- What must pass, what must fail -----------------------------------------------------------------


def verdict(scores: Scores, name: str) -> H.Verdict:
    return next(v for v in H.check_hypotheses(scores) if v.name == name)


def test_an_oracle_passes_and_a_bad_agent_fails() -> None:
    world = World()
    good = world.scores(world.oracle(price=0.5))
    assert [verdict(good, name).holds for name in ("H1", "H2", "H3", "H4")] == [True, True, True, None]
    found = verdict(good, "H2").figures
    assert found["low"] > 2
    assert found["effect"] > 0.9
    assert "mixed with" in found["rival"]

    calls = np.clip(np.round(20 - world.hardness), 8, 20)
    bad = row("bad", "agent", world.psnr(calls) - 5, calls, world.judge - 0.1, price=0.5)
    scores = world.scores(bad)
    assert [verdict(scores, name).holds for name in ("H1", "H2", "H3")] == [False, False, False]
    assert verdict(scores, "H3").figures["rho"] < -0.3


def test_only_a_rule_manages_it_and_the_verdict_says_so() -> None:
    world = World()
    rule = ScoreRow("stride", "rule", world.oracle().samples)
    agent = row("agent", "agent", world.psnr(12) - 1, 12, world.judge, price=0.5)
    found = verdict(world.scores(agent, rule), "H2")
    assert found.holds is False
    assert "Rules that manage it: stride." in found.why


def test_the_fixed_sampler_itself_hardly_ever_passes_as_an_agent() -> None:
    """H2 under the null: the agent is the best fixed sampler under other noise. 0.5 % of a two-sided test at 1 %."""
    passed, trials = 0, 300
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        base = rng.normal(40, 3, 24)
        fixed = row("fixed", "fixed", base + rng.normal(0, 1, 24), 12)
        agent = row("agent", "agent", base + rng.normal(0, 1, 24), 12, price=0.5)
        found = H.h2(Scores((fixed, agent), {}, UTILITY))
        passed += bool(H.decide([found])[0].holds)
    assert passed / trials < 0.015


def test_chance_is_corrected_over_what_is_tested_together() -> None:
    """p of 0.03 alone is below 0.05; beside another of 0.04 it is 0.06."""

    def finding(name: str, p: float) -> H.Finding:
        return H.Finding(H.Verdict(name, "", None), p, True)

    assert H.decide([finding("a", 0.03)])[0].holds
    pair = H.decide([finding("a", 0.03), finding("b", 0.04), H.make_untested("c", "", "why")])
    assert [v.holds for v in pair] == [False, False, None]
    assert pair[0].figures["p_holm"] == pytest.approx(0.06)
    assert "p = 0.06 after Holm, below 0.05 was asked for" in pair[0].why


# -- H1 ---------------------------------------------------------------------------------------------


def against_full(judge: float, calls: float = 12.0, noise: float = 0.005, n: int = 48) -> H.Verdict:
    """An agent whose judge's score is so far from the full run's, its pictures as close."""
    rng = np.random.default_rng(1)
    full = row("full", "full", np.full(n, 40.0), 50, 0.9)
    agent = row("agent", "agent", np.full(n, 40.0), calls, 0.9 + judge + rng.normal(0, noise, n), price=0.5)
    return H.decide([H.h1(Scores((full, agent), {}, UTILITY))])[0]


def test_equivalence_is_tested_with_fixed_margins() -> None:
    assert against_full(0.0).holds
    assert against_full(0.0).figures["equivalent"]
    assert against_full(-0.015).holds
    assert against_full(-0.025).holds is False
    assert against_full(0.0, noise=0.3).holds is False  # nothing is shown by noise
    assert against_full(0.0, calls=20.5).holds is False
    better = against_full(0.05)
    assert better.holds
    assert not better.figures["equivalent"]
    assert "Better than equivalent: judge." in better.why


def test_h1_at_its_margin_passes_as_often_as_its_level() -> None:
    """Type I error at the edge of the null, where the true difference is the margin."""
    rng, n, passed, trials = np.random.default_rng(3), 32, 0, 400
    for _ in range(trials):
        full = row("full", "full", np.full(n, 40.0), 50, 0.5)
        agent = row("agent", "agent", np.full(n, 40.0), 12, 0.48 + rng.normal(0, 0.02, n), price=0.5)
        passed += bool(H.decide([H.h1(Scores((full, agent), {}, UTILITY))])[0].holds)
    assert 0.02 < passed / trials < 0.09


# -- H2 ---------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.floats(8, 20))
def test_the_rival_makes_exactly_as_many_calls(calls: float) -> None:
    """On a concave ladder the rival is the mixture of the two neighbours, and its score lies on the line between."""
    values = {n: 20 + 20 * math.log10(n) for n in LADDER}
    fixed = [row(f"f{n}", "fixed", np.full(8, v), n) for n, v in values.items()]
    agent = row("agent", "agent", np.zeros(8), calls, price=0.5)
    found = H.compare_with_fixed(agent, Scores((*fixed, agent), {}, UTILITY))
    assert found is not None
    assert -found["mean"] == pytest.approx(np.interp(calls, LADDER, [values[n] for n in LADDER]), abs=1e-9)


def test_no_fixed_row_at_as_many_calls_is_no_verdict() -> None:
    few = row("few", "fixed", np.full(9, 30.0), 8)
    agent = row("agent", "agent", np.full(9, 40.0), 12, price=0.5)
    assert H.decide([H.h2(Scores((few, agent), {}, UTILITY))])[0].holds is None


def test_trainings_are_averaged_sample_by_sample_and_told_one_by_one() -> None:
    world = World()
    runs = [world.oracle(price=0.5, run=f"seed {k}") for k in range(3)]
    other = world.oracle(price=9.0, run="another price")
    scores = world.scores(*runs, other)
    assert scores.agent.values("psnr")["p0:0"] == pytest.approx(sum(r.values("psnr")["p0:0"] for r in runs) / 3)
    assert verdict(scores, "H2").figures["trainings"].keys() == {"seed 0", "seed 1", "seed 2"}
    short = ScoreRow("short", "agent", dict(list(runs[0].samples.items())[:10]), 0.5)
    assert len(average_rows([runs[1], short], "both").samples) == 10
    with pytest.raises(BenchError, match=r"at price 0\.7, got 0\.5"):
        _ = Scores(tuple(runs), {}, Utility(0.7)).agent


# -- H3, H4 -----------------------------------------------------------------------------------------


def test_calls_that_follow_the_prompt_weakly_are_not_enough() -> None:
    world = World(n=300)
    level = np.array([i % 3 for i in range(world.n)], float)
    calls = 12 + 0.15 * level + world.rng.normal(0, 1, world.n)
    found = verdict(world.scores(row("a", "agent", world.psnr(12), calls, price=0.5)), "H3")
    assert 0 < found.figures["rho"] < 0.3
    assert found.holds is False
    assert found.figures["low"] < found.figures["rho"] < found.figures["high"]
    assert found.figures["unit"] == FACTS_UNIT
    assert list(found.figures["calls"]) == ["2", "3", "4"]


def test_the_same_calls_for_every_prompt_follow_nothing() -> None:
    world = World()
    found = verdict(world.scores(row("a", "agent", world.psnr(12), 12, price=0.5)), "H3")
    assert (found.holds, found.figures["rho"]) == (False, 0.0)


def refine_file(path: Path, gains: dict[str, tuple[float, float]], n: int = 24) -> Path:
    """Arms that gain so many dB on planted defects and so much of the judge's score over more steps."""
    rng = np.random.default_rng(0)
    ids = [f"p{i}:0" for i in range(n)]

    def scores(centre: float, spread: float) -> dict[str, float]:
        return {s: float(v) for s, v in zip(ids, rng.normal(centre, spread, n), strict=True)}

    found: dict[str, Any] = {}
    for condition in ("planted noise, 8 calls", "planted noise, 12 calls", "ordinary runs, 12 calls"):
        steps, planted = {"psnr": scores(30, 2), "judge": scores(0.8, 0.05)}, "planted" in condition
        arms = {
            arm: {
                "psnr": {s: steps["psnr"][s] + (better if planted else -9) + d for s, d in noise.items()},
                "judge": {s: steps["judge"][s] + judged + d / 100 for s, d in noise.items()},
            }
            for arm, (better, judged) in gains.items()
            for noise in (scores(0, 0.2),)
        }
        found[condition] = {"more steps": steps, **arms}
    path.write_text(json.dumps(found))
    return path


def test_refine_must_win_on_defects_and_by_the_judge(tmp_path: Path) -> None:
    def h4(gains: dict[str, tuple[float, float]]) -> H.Verdict:
        return H.decide([H.h4(load_refine_scores(refine_file(tmp_path / "refine.json", gains)))])[0]

    assert h4({"objects": (2, 0.05)}).holds
    assert h4({"objects": (2, 0.05), "ground": (-2, -0.1)}).holds  # one way is enough, its p corrected
    assert h4({"objects": (2, -0.05)}).holds is False
    assert h4({"objects": (-1, 0.05)}).holds is False
    assert h4({"objects": (0, 0)}).holds is False
    told = h4({"refine, told where": (5, 0.1)})
    assert told.holds is None
    both = h4({"refine, told where": (5, 0.1), "objects": (-1, 0)})
    assert both.holds is False
    assert both.figures["refine, told where"][DEFECT_METRIC]["mean"] == pytest.approx(5, abs=0.2)


def test_refine_on_summaries_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "refine.json"
    for text, said in (
        (json.dumps({"c": {"more steps": {"psnr": 30.0}, "a": {"psnr": 31.0}}}), "a summary cannot be tested"),
        (json.dumps({"c": {"more steps": {"psnr": {"mean": 30.0}}, "a": {"psnr": {"mean": 31.0}}}}), "is a summary"),
        (json.dumps({"c": {"a": {}}}), "no condition with an arm 'more steps'"),
        ("{", "cannot be read"),
    ):
        path.write_text(text.replace('"c"', '"planted"'))
        with pytest.raises(BenchError, match=said):
            load_refine_scores(path)


def test_complexity_of_grammar_and_of_free_text() -> None:
    assert prompt_complexities([*TEXTS, "a cat"]).values == (2, 3, 4, 1)
    free = prompt_complexities(["a cat", "a blue owl's house, in the style of Klimt"])
    assert (free.unit, free.values) == (WORDS_UNIT, (1, 5))
    assert count_content_words("The cat and the cat") == 1


# -- The gap ----------------------------------------------------------------------------------------


def gap_world(share: float, n: int = 40) -> Scores:
    """An agent that closes this share of a gap of 4 dB to the oracle, in the mean."""
    world = World(n)
    base = world.psnr(12, 0)
    noise = world.rng.normal(0, 0.5, n)
    noise -= noise.mean()
    rows = (
        row("fixed", "fixed", base, 12), row("worse", "fixed", base - 2, 12), row("oracle", "oracle", base + 4, 12),
        row("agent", "agent", base + 4 * share + noise, 12, price=0.5),
    )  # fmt: skip
    return Scores(rows, {}, UTILITY)


@pytest.mark.parametrize(("share", "holds"), [(0.0, False), (0.55, False), (0.65, True), (1.0, True)])
def test_the_share_of_the_gap_closed(share: float, holds: bool) -> None:
    found = measure_gap_closed(gap_world(share), "oracle")
    assert found.figures["closed"] == pytest.approx(share, abs=1e-9)
    assert found.figures["low"] <= share <= found.figures["high"]
    assert found.figures["rival"] == "fixed"
    assert found.holds is holds


def test_the_gap_says_what_it_lacks() -> None:
    assert measure_gap_closed(gap_world(1.0), "ceiling").holds is None
    few = measure_gap_closed(gap_world(1.0, n=20), "oracle")
    assert few.holds is None
    assert "fewer than 32" in few.why
    upside_down = gap_world(0.5)
    swapped = [replace(r, kind="fixed") if r.kind == "oracle" else r for r in upside_down.rows]
    nothing = Scores((*swapped, ScoreRow("o", "oracle", upside_down.rows[1].samples)), {}, UTILITY)
    assert "no better than the best fixed row" in measure_gap_closed(nothing, "oracle").why


def test_the_interval_of_the_gap_covers() -> None:
    """95 % percentile interval of a ratio, 40 prompts: the true share lies in it in 9 of 10 worlds at least."""
    inside = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        base, much = rng.normal(40, 3, 40), rng.normal(4, 2, 40)
        rows = (
            row("fixed", "fixed", base, 12), row("oracle", "oracle", base + much, 12),
            row("agent", "agent", base + 0.7 * 4 + rng.normal(0, 2, 40), 12, price=0.5),
        )  # fmt: skip
        found = measure_gap_closed(Scores(rows, {}, Utility(0.5, -99, 99)), "oracle").figures
        inside += bool(found["low"] <= 0.7 <= found["high"])
    assert inside / 120 > 0.9


# -- Gates ------------------------------------------------------------------------------------------


def learnt(**more: Any) -> TrainingSummary:
    told = {"name": "0", "first": 1.0, "best": 3.0, "random": 0.0, "fixed": 2.0}
    return TrainingSummary(**{**told, "actions": {"continue": 0.7, "stop": 0.3}, **more})


def test_gates_of_an_oracle_and_of_nothing() -> None:
    world = World()
    scores = world.scores(world.oracle(price=0.5))
    found = check_gates(scores, [learnt()], MemoryUsage(10**9, 16 * 10**9, 5000), scores)
    assert {v.name: v.holds for v in found} == {"G0": True, "G1": True, "G2": True, "G3": True, "G4": True}
    bare = {v.name: v for v in check_gates(scores)}
    assert [name for name, v in bare.items() if v.holds is None] == ["G0", "G1", "G4"]
    assert all("Not applicable, because" in bare[name].why for name in ("G0", "G1", "G4"))


def test_gates_that_close() -> None:
    assert g1([learnt(), learnt(actions={"continue": 1.0})]).holds is False  # the published agents' collapse
    assert g1([learnt(best=0.9)]).holds is False
    world = World()
    calls = np.full(world.n, 45.0)
    scores = world.scores(row("slow", "agent", world.psnr(50), calls, world.judge, price=0.5))
    found = {v.name: v for v in check_gates(scores, [learnt()], MemoryUsage(1, 2, 2_000_000), scores)}
    assert [found[g].holds for g in ("G0", "G2", "G3")] == [False, False, False]
    assert "given up" in found["G3"].why
    worse = world.scores(row("bad", "agent", world.psnr(12), 12, world.judge * 0.9, price=0.5))
    assert check_gates(scores, transfer_scores=worse)[-1].holds is False


# -- Summaries are refused --------------------------------------------------------------------------


def test_summaries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not tested on summaries"):
        ScoreRow("agent", "agent", {"mean": {"psnr": 40.0, "calls": 12.0}})
    with pytest.raises(SpecError, match="got none"):
        ScoreRow("agent", "agent", {})
    path = tmp_path / "table.jsonl"
    path.write_text(json.dumps({"row": "agent", "mean": 40.0, "std": 2.0, "n": 200}) + "\n")
    with pytest.raises(BenchError, match="is a summary"):
        row_from_jsonl(path, "agent", "agent")
    path.write_text(json.dumps({"sample": "p0:0", "psnr": 40.0}) + "\n")
    with pytest.raises(BenchError, match="expected the keys sample and calls"):
        row_from_jsonl(path, "agent", "agent")
    path.write_text("")
    with pytest.raises(BenchError, match="no scores"):
        row_from_jsonl(path, "agent", "agent")
    with pytest.raises(BenchError, match="is not there"):
        row_from_jsonl(tmp_path / "nowhere.jsonl", "agent", "agent")
    path.write_text(json.dumps({"sample": "p0:0", "calls": 12, "psnr": 40.0, "identical": True}) + "\n")
    assert row_from_jsonl(path, "oracle", "oracle").samples == {"p0:0": {"calls": 12.0, "psnr": 40.0}}


def test_the_utility_of_trainings_is_averaged_not_that_of_their_means() -> None:
    one, two = (row("agent", "agent", np.full(9, psnr), 10) for psnr in (40.0, 70.0))
    scores = Scores((replace(one, run="0"), replace(two, run="1")), utility=Utility(1.0, 10.0, 50.0))
    assert set(scores.agent.utilities(scores.utility).values()) == {(30.0 + 40.0) / 2}
