"""From answers to verdicts: figures by hand, judges of known bias, and what may not be concluded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_judges import (
    JudgeBehaviour,
    LocalJudge,
    always_left,
    always_tie,
    folders,
    hash_coin,
    prefer_brighter,
    prefer_darker,
)

from skipstone.errors import SpecError
from skipstone_bench.vlm.agreement import bootstrap_tables, cohen_kappa, sign_test, symmetrize, wilson_interval
from skipstone_bench.vlm.budget import SpendingCaps
from skipstone_bench.vlm.client import JudgeEndpoint
from skipstone_bench.vlm.disagreements import find_disagreements, render_disagreements
from skipstone_bench.vlm.judging import JudgingPlan, JudgingRun, RequestSettings, list_pairs
from skipstone_bench.vlm.material import JudgedSample, load_material
from skipstone_bench.vlm.outcomes import Outcome
from skipstone_bench.vlm.protocol import Answer, JudgingProtocol
from skipstone_bench.vlm.report import JSON, PAGE, PLOT, SHEET, JudgingReport
from skipstone_bench.vlm.verdict import NONE, REFUSED, SAME, Verdicts, compute_verdicts

ANSWERS = {"l": Answer("left", ""), "r": Answer("right", ""), "t": Answer("tie", ""), "?": None}


def outcome(
    said: str, k: int = 0, *, judge: str = "j", pair: tuple[str, str] = ("a", "b"), prompt: str = ""
) -> Outcome:
    """`said`: the answers with the first and with the second row on the left."""
    shown = JudgedSample(f"{k}", prompt or f"prompt {k}", "", {})
    if said == "=":
        return Outcome(judge, pair, shown, None, None, identical=True)
    return Outcome(judge, pair, shown, ANSWERS[said[0]], ANSWERS[said[1]], open=said == "??")


def of(said: Sequence[str], **more: Any) -> list[Outcome]:
    return [outcome(one, k, **more) for k, one in enumerate(said)]


def concluded(said: Sequence[str]) -> Verdicts:
    return compute_verdicts(["a", "b"], of(said))


@pytest.mark.parametrize(
    ("said", "kind", "category"),
    [
        ("lr", "first", 0), ("rl", "second", 1), ("tt", "tie", 2), ("ll", "flip", 2), ("rr", "flip", 2),
        ("lt", "unsure", 2), ("tr", "unsure", 2), ("l?", "unparsed", None), ("??", "open", None), ("=", "identical", 2),
    ],
)  # fmt: skip
def test_what_two_answers_come_to(said: str, kind: str, category: int | None) -> None:
    found = outcome(said)
    assert (found.kind, found.category) == (kind, category)
    assert found.flipped_to == {"ll": "left", "rr": "right"}.get(said, "")


# -- Figures by hand --------------------------------------------------------------------------------


def test_kappa_by_hand() -> None:
    # Two raters on 50: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    assert cohen_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    assert cohen_kappa([[3, 0], [0, 5]]) == 1.0
    assert cohen_kappa([[0, 5], [5, 0]]) == -1.0
    assert cohen_kappa([[1, 1], [1, 1]]) == 0.0
    assert math.isnan(cohen_kappa([[4, 0], [0, 0]]))
    assert math.isnan(cohen_kappa([[0, 0], [0, 0]]))
    assert cohen_kappa(np.array([[[20, 5], [10, 15]], [[1, 1], [1, 1]]])) == pytest.approx([0.4, 0.0])
    with pytest.raises(SpecError, match="square"):
        cohen_kappa([[1, 2, 3]])


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=3, max_size=3))
@settings(deadline=None, max_examples=40)
def test_kappa_does_not_depend_on_naming_and_stays_in_its_bounds(table: list[list[int]]) -> None:
    counts = np.array(table)
    found = cohen_kappa(symmetrize(counts))
    other = cohen_kappa(symmetrize(counts[[1, 0, 2]][:, [1, 0, 2]]))
    assert found == pytest.approx(other, nan_ok=True)
    assert math.isnan(found) or -1 <= found <= 1 + 1e-12
    assert cohen_kappa(symmetrize(counts.T)) == pytest.approx(found, nan_ok=True)


def test_agreement_on_one_row_that_always_wins_is_agreement() -> None:
    assert math.isnan(cohen_kappa([[9, 0, 0], [0, 0, 0], [0, 0, 0]]))
    assert cohen_kappa(symmetrize([[9, 0, 0], [0, 0, 0], [0, 0, 0]])) == 1.0


def test_wilson_by_hand_and_signs() -> None:
    # 81 of 263, level 0.95: Newcombe 1998, table I gives 0.2553 to 0.3662.
    found = wilson_interval(81 / 263, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(1.0, 10).high == 1.0
    assert wilson_interval(1.0, 10).low == pytest.approx(1 / (1 + 3.8415 / 10), abs=1e-4)
    assert sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(0, 0) == 1.0
    with pytest.raises(SpecError):
        wilson_interval(0.5, 0)


def test_intervals_draw_prompts_not_answers() -> None:
    # Ten prompts of a hundred answers each, alike within a prompt: as wide as ten answers are.
    tables = [[100, 0] if k < 5 else [0, 100] for k in range(10)]
    (many,) = bootstrap_tables(tables, lambda t: t[:, 0] / t.sum(1))
    (few,) = bootstrap_tables([[a // 100, b // 100] for a, b in tables], lambda t: t[:, 0] / t.sum(1))
    assert (many.low, many.high) == (few.low, few.high)
    assert many.high - many.low > 0.5
    (one,) = bootstrap_tables([[3, 1]], lambda t: t[:, 0] / t.sum(1))
    assert one.value == 0.75
    assert math.isnan(one.low)
    with pytest.raises(SpecError, match="at least one prompt"):
        bootstrap_tables([], lambda t: t)


# -- Verdicts ---------------------------------------------------------------------------------------


def test_a_preference_and_its_figures() -> None:
    (pair,) = concluded(["lr"] * 12 + ["rl"] * 2 + ["tt"] * 3 + ["ll"] * 2 + ["lt"]).pairs
    assert pair.verdict == "a"
    assert (pair.ahead, pair.behind, pair.prompts) == (12, 2, 20)
    assert {k: n for k, n in pair.counts.items() if n} == {"first": 12, "second": 2, "tie": 3, "flip": 2, "unsure": 1}
    assert pair.rate is not None
    assert pair.rate.value == pytest.approx((12 + 6 / 2) / 20)
    assert pair.p == pair.p_holm == pytest.approx(2 * (1 + 14 + 91) / 2**14)


def test_the_seeds_of_a_prompt_are_no_samples_of_their_own() -> None:
    seeds = [outcome("lr", k, prompt=f"p{k // 10}") for k in range(40)]  # 40 wins on 4 prompts
    (pair,) = compute_verdicts(["a", "b"], seeds).pairs
    assert (pair.prompts, pair.ahead, pair.p, pair.verdict) == (4, 4, 0.125, NONE)
    assert "4 of 4 prompts were decided" in pair.why


def test_holm_counts_all_pairs_of_a_judge() -> None:
    clear = of(["lr"] * 7 + ["tt"])  # p = 2 / 128
    more = [o for k in range(3) for o in of(["tt"] * 8, pair=("a", f"x{k}"))]
    found = compute_verdicts(["a", "b", "x0", "x1", "x2"], clear + more)
    assert found.pairs[0].p == pytest.approx(2 / 128)
    assert found.pairs[0].p_holm == pytest.approx(8 / 128)
    assert found.pairs[0].verdict == NONE
    assert compute_verdicts(["a", "b"], clear).pairs[0].verdict == "a"


@pytest.mark.parametrize(
    ("said", "verdict", "why"),
    [
        (["ll"] * 9, REFUSED, "position bias"),
        (["rr"] * 9 + ["lr"] * 8, REFUSED, "position bias"),
        (["ll", "rr"] * 6 + ["lr"] * 4, REFUSED, "it contradicts itself"),
        (["l?"] * 3 + ["lr"] * 9, REFUSED, "unparsed"),
        (["?l"] * 3, REFUSED, "unparsed"),
        (["??"] * 3, REFUSED, "nothing is answered yet"),
        (["l?"] * 2 + ["lr"] * 9, "a", ""),
        (["ll"] * 7 + ["rl"] * 9, "b", ""),  # flips are ties, and do not outweigh what is said twice
        (["tt"] * 9, NONE, "too few: 0 of 9 prompts"),
        (["="] * 9, SAME, ""),
    ],
)
def test_when_there_is_a_verdict(said: list[str], verdict: str, why: str) -> None:
    found = concluded(said)
    assert found.pairs[0].verdict == verdict
    assert found.pairs[0].why.startswith(why)
    assert bool(found.pairs[0].why) == bool(why)
    assert found.judges[0].verdict == (f"{REFUSED}: {why}" if verdict == REFUSED else "usable")
    assert (found.judges[0].strengths is None) == (verdict == REFUSED)


def test_a_coin_that_is_thrown_for_each_answer_rarely_prefers_anything() -> None:
    # Both answers independent and fair: the sign test holds its level, whatever the flips.
    draw = np.random.default_rng(0)
    said = []
    for _ in range(400):
        throws = ["".join("lr"[int(x)] for x in two) for two in draw.integers(0, 2, (20, 2))]
        said.append([{"lr": 1, "rl": -1}.get(t, 0) for t in throws])
    false = sum(sign_test(s.count(1), s.count(-1)) < 0.05 for s in said)
    assert false / 400 < 0.05


def test_the_panel_needs_all_that_can_be_believed() -> None:
    rows = ["a", "b"]
    like, other, left = of(["lr"] * 9), of(["rl"] * 9, judge="k"), of(["ll"] * 9, judge="m")
    unsure = of(["tt"] * 9, judge="n")
    assert compute_verdicts(rows, like + left).panel == {("a", "b"): "a"}
    assert compute_verdicts(rows, like + other).panel == {("a", "b"): "judges disagree"}
    assert compute_verdicts(rows, like + unsure).panel == {("a", "b"): "judges disagree"}
    assert compute_verdicts(rows, left).panel == {("a", "b"): REFUSED}


def test_kappa_between_known_judges() -> None:
    said = ["lr"] * 6 + ["rl"] * 4 + ["tt"] * 2
    other = ["lr"] * 5 + ["rl"] * 4 + ["tt"] * 2 + ["l?"]
    (found,) = compute_verdicts(["a", "b"], of(said) + of(other, judge="k")).agreements
    # Of 11 pairs 9 agree: 5 first, 3 second, 1 tie. Both namings: 10 wins, 10 losses and 2 ties of 22 in the first
    # judge's margin, 9, 9 and 4 in the second's, so that p_e = (10 * 9 + 10 * 9 + 2 * 4) / 22^2.
    assert (found.pairs, found.same) == (11, pytest.approx(9 / 11))
    assert found.kappa.value == pytest.approx((9 / 11 - 188 / 484) / (1 - 188 / 484))
    assert found.kappa.low < found.kappa.value < found.kappa.high
    (same,) = compute_verdicts(["a", "b"], of(said) + of(said, judge="k")).agreements
    assert same.kappa.value == 1.0
    (none,) = compute_verdicts(["a", "b"], of(["="]) + of(["="], judge="k")).agreements
    assert none.pairs == 0


def test_strengths_follow_the_outcomes() -> None:
    found = concluded(["lr"] * 12 + ["rl"] * 4 + ["tt"] * 6)
    strengths, nu = found.judges[0].strengths, found.judges[0].nu
    assert strengths is not None
    assert nu is not None
    assert strengths[0].value - strengths[1].value == pytest.approx(math.log(3), abs=1e-6)
    assert nu.value == pytest.approx(6 / math.sqrt(48), abs=1e-6)
    assert strengths[0].low < strengths[0].value < strengths[0].high
    assert found.judges[0].note == ""
    assert "of the resamples had no maximum" in concluded(["lr"] * 12 + ["rl"]).judges[0].note
    always = concluded(["lr"] * 12).judges[0]
    assert "half an answer" in always.note
    assert always.strengths is not None
    assert math.isnan(always.strengths[0].low)  # an interval would be that of the half answers


# -- Judges of known bias, end to end ---------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, JudgingReport]:
    """Five judges on two rows and ten samples."""
    root = tmp_path_factory.mktemp("told")
    both, prompts = folders(root / "in", {"dark": 40, "bright": 200}, 10)
    found = load_material(both, (), prompts)
    minds: dict[str, JudgeBehaviour] = {
        "light": prefer_brighter,
        "dim": prefer_darker,
        "left": always_left,
        "tie": always_tie,
        "coin": hash_coin,
    }
    servers = {name: LocalJudge(mind) for name, mind in minds.items()}
    for server in servers.values():
        server.__enter__()
    judges = tuple(JudgeEndpoint(name, server.url) for name, server in servers.items())
    asked = JudgingRun(
        JudgingPlan(found, list_pairs(found), judges, JudgingProtocol(side=64)),
        root / "out",
        SpendingCaps(),
        RequestSettings(retry_delay=0.0),
    )
    asked.run()
    for server in servers.values():
        server.__exit__()
    report = JudgingReport.from_run(asked)
    report.write(root / "out", "skipstone prefer ...")
    return root / "out", report


def test_judges_of_known_bias(told: tuple[Path, JudgingReport]) -> None:
    v = told[1].verdicts
    verdict = {p.judge.partition("@")[0]: p.verdict for p in v.pairs}
    assert verdict == {"light": "bright", "dim": "dark", "left": REFUSED, "tie": NONE, "coin": verdict["coin"]}
    assert verdict["coin"] in (NONE, REFUSED)
    by_name = {j.judge.partition("@")[0]: j for j in v.judges}
    assert by_name["left"].verdict == "no verdict: position bias"
    assert by_name["left"].lean == (10, 0)
    rate = next(p.rate for p in v.pairs if p.judge.startswith("left"))
    assert rate is not None
    assert rate.value == 0.5
    for name, share in (("light", 0.5), ("dim", 0.5), ("left", 1.0)):
        left = by_name[name].left
        assert left is not None
        assert left.value == share
    assert by_name["tie"].left is None
    consistent = by_name["light"].consistent
    assert consistent is not None
    assert consistent.value == 1.0
    kappas = {tuple(n.partition("@")[0] for n in a.judges): a.kappa.value for a in v.agreements}
    assert kappas["light", "dim"] == pytest.approx(-1)
    assert kappas["light", "left"] == pytest.approx(0)
    assert v.panel == {("dark", "bright"): "judges disagree"}


def test_the_files_of_a_verdict(told: tuple[Path, JudgingReport]) -> None:
    folder, report = told
    document = json.loads((folder / JSON).read_text())
    assert document["protocol"]["sha256"] == JudgingProtocol().sha256
    assert document["protocol"]["template"].count("{prompt}") == 1
    assert document["spent"]["requests"] == 100
    assert len(document["pairs"]) == 5
    assert document["panel"] == [{"pair": ["dark", "bright"], "verdict": "judges disagree"}]
    assert len(document["material"]["samples"]) == 10
    page = (folder / PAGE).read_text()
    assert "- dark against bright: judges disagree" in page
    assert "no verdict: position bias: 10 pairs flip with the order, 0 name the same row twice" in page
    assert "Made by `skipstone prefer ...`" in page
    for name in (PLOT, SHEET):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert find_disagreements(report.outcomes)[0][0].kind != find_disagreements(report.outcomes)[0][1].kind
    assert render_disagreements([o for o in report.outcomes if o.judge.startswith("light")], 64) is None
