"""Asking local judges: retries, caps to the exact count, resuming, keys, and endpoints that misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_judges import (
    HttpReply,
    JudgeBehaviour,
    JudgeRequest,
    LocalJudge,
    always_left,
    folders,
    prefer_brighter,
    prefer_darker,
    verdict_json,
)

from skipstone.errors import BenchError, SpecError
from skipstone_bench.vlm import judging as asking
from skipstone_bench.vlm.answer_log import ANSWERS, AnswerLog
from skipstone_bench.vlm.budget import SpendingCaps, SpendingLedger
from skipstone_bench.vlm.client import JudgeEndpoint, RequestError, check_distinct, post_request
from skipstone_bench.vlm.judging import JudgingPlan, JudgingRun, RequestSettings, list_pairs
from skipstone_bench.vlm.material import JudgingMaterial, load_material
from skipstone_bench.vlm.outcomes import collect_outcomes
from skipstone_bench.vlm.protocol import JudgingProtocol

SMALL = JudgingProtocol(side=64)
QUICK = RequestSettings(timeout=5.0, retry_delay=0.0)


@pytest.fixture
def found(tmp_path: Path) -> JudgingMaterial:
    """Three samples of a bright row, a dark one, and one in between."""
    both, prompts = folders(tmp_path / "in", {"dark": 40, "bright": 200, "mid": 120}, 3)
    return load_material(both, (), prompts)


Ask = Callable[..., JudgingRun]


@pytest.fixture
def ask(found: JudgingMaterial, tmp_path: Path) -> Ask:
    """One run of a plan over the folder `out`."""

    def run(
        *judges: JudgeEndpoint,
        caps: SpendingCaps | None = None,
        protocol: JudgingProtocol = SMALL,
        request_settings: RequestSettings = QUICK,
    ) -> JudgingRun:
        asked = JudgingRun(
            JudgingPlan(found, list_pairs(found), judges, protocol),
            tmp_path / "out",
            caps or SpendingCaps(),
            request_settings,
        )
        asked.run()
        return asked

    return run


def kinds(asked: JudgingRun) -> list[str]:
    return [o.kind for o in collect_outcomes(asked.plan, asked.answer_log)]


QUESTIONS = 3 * 3 * 2


def test_each_pair_is_shown_both_ways_round_and_nothing_is_asked_twice(ask: Ask, found: JudgingMaterial) -> None:
    with LocalJudge(prefer_brighter) as server:
        first = ask(server.judge)
        assert len(server.requests) == QUESTIONS
        shown = [(line.sample, line.left, line.right) for line in first.answer_log.lines]
        assert len(set(shown)) == QUESTIONS
        assert {(name, right, left) for name, left, right in shown} == set(shown)
        for line in first.answer_log.lines:  # what is kept as left was on the left
            assert line.winner == ("left" if found.rows.index(line.left) == 1 or line.right == "dark" else "right")
        assert kinds(first) == 6 * ["second"] + 3 * ["first"]
        ask(server.judge)
        assert len(server.requests) == QUESTIONS
        # More rows, samples or judges ask what is new only.
        few = replace(found, samples=found.samples[:2])
        again = JudgingRun(
            JudgingPlan(few, list_pairs(few, "mid"), (server.judge,), SMALL),
            first.answer_log.path.parent,
            SpendingCaps(),
            QUICK,
        )
        again.run()
        assert len(server.requests) == QUESTIONS


def test_two_images_and_their_words(ask: Ask) -> None:
    with LocalJudge(prefer_brighter) as server:
        assert kinds(ask(server.judge, protocol=replace(SMALL, layout="two"))) == 6 * ["second"] + 3 * ["first"]
        assert "thing" in JudgeRequest(server.requests[0], 1).prompt_text


def test_another_seed_or_prompt_is_kept_apart(ask: Ask, tmp_path: Path) -> None:
    with LocalJudge(prefer_brighter) as server, LocalJudge(prefer_darker) as other:
        ask(server.judge)
        turned = ask(JudgeEndpoint("mock", other.url))  # the same model's name behind another endpoint
        assert kinds(turned) == 6 * ["first"] + 3 * ["second"]
        seeded = ask(server.judge, protocol=replace(SMALL, seed=5))
        assert len(server.requests) == 2 * QUESTIONS
        assert {r["seed"] for r in server.requests[QUESTIONS:]} == {5}
        assert len(seeded.answer_log.lines) == 3 * QUESTIONS
        assert kinds(seeded) == 6 * ["second"] + 3 * ["first"]


def test_identical_pictures_are_a_tie_that_nobody_is_asked_about(tmp_path: Path) -> None:
    both, prompts = folders(tmp_path / "in", {"a": 40, "b": 40}, 3)
    found = load_material(both, (), prompts)
    with LocalJudge(prefer_brighter) as server:
        asked = JudgingRun(
            JudgingPlan(found, list_pairs(found), (server.judge,), SMALL), tmp_path / "out", SpendingCaps(), QUICK
        )
        asked.run()
        assert kinds(asked) == 3 * ["identical"]
        assert server.requests == []


# -- Answers that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["I prefer the left one.", '{"winner": "left"', verdict_json("LEFT"), ""])
def test_what_cannot_be_read_is_asked_again_and_never_guessed(ask: Ask, said: str) -> None:
    with LocalJudge(lambda _: said) as server:
        asked = ask(server.judge)
        assert kinds(asked) == 9 * ["unparsed"]
        assert len(server.requests) == 3 * QUESTIONS
        assert sorted(r["seed"] for r in server.requests) == sorted(3 * QUESTIONS // 3 * [0, 1, 2])
        ask(server.judge)  # attempts are used up: nothing is left to ask
        assert len(server.requests) == 3 * QUESTIONS
        assert kinds(ask(server.judge, protocol=replace(SMALL, attempts=4))) == 9 * ["unparsed"]
        assert len(server.requests) == 4 * QUESTIONS


def test_the_first_readable_answer_counts(ask: Ask) -> None:
    with LocalJudge(lambda a: "hm" if a.body["seed"] < 2 else prefer_brighter(a)) as server:
        assert kinds(ask(server.judge)) == 6 * ["second"] + 3 * ["first"]
        assert len(server.requests) == 3 * QUESTIONS


# -- Endpoints that misbehave -----------------------------------------------------------------------


def test_busy_servers_are_asked_again(ask: Ask) -> None:
    seen: set[str] = set()

    def busy(asked: JudgeRequest) -> str | HttpReply:
        question = json.dumps(asked.body["messages"])
        if question in seen:
            return prefer_brighter(asked)
        seen.add(question)
        return HttpReply((429, 500, 503)[asked.number % 3], b"later", {"Retry-After": "0.01"})

    with LocalJudge(busy) as server:
        asked = ask(server.judge)
        assert kinds(asked) == 6 * ["second"] + 3 * ["first"]
        assert sum(bool(line.failed) for line in asked.answer_log.lines) == QUESTIONS
        assert asked.stopped == {}


def test_pauses_double_and_a_server_may_ask_for_more(found: JudgingMaterial, tmp_path: Path) -> None:
    pauses: list[float] = []
    waits = ["0", "7", "soon", "1e9"]

    def busy(asked: JudgeRequest) -> str | HttpReply:
        return (
            HttpReply(429, b"", {"Retry-After": waits[asked.number - 1]})
            if asked.number <= 4
            else prefer_brighter(asked)
        )

    with LocalJudge(busy) as server:
        plan = JudgingPlan(found, list_pairs(found), (server.judge,), SMALL)
        asked = JudgingRun(
            plan,
            tmp_path / "out",
            SpendingCaps(calls=5),
            RequestSettings(max_concurrent=1, timeout=5.0, retry_delay=1.0),
        )
        asked._halt.wait = lambda seconds: bool(pauses.append(seconds))  # type: ignore[assignment,func-returns-value]
        asked.run()
    assert pauses == [1.0, 7.0, 4.0, 60.0]


def test_an_endpoint_that_fails_for_ever_is_given_up_while_others_go_on(ask: Ask) -> None:
    with (
        LocalJudge(lambda _: HttpReply(500, b'{"error": {"message": "out of memory"}}')) as broken,
        LocalJudge(prefer_brighter) as good,
    ):
        asked = ask(
            JudgeEndpoint("broken", broken.url),
            JudgeEndpoint("good", good.url),
            request_settings=replace(QUICK, max_concurrent=1),
        )
        name = JudgeEndpoint("broken", broken.url).name
        assert list(asked.stopped) == [name]
        assert "HTTP 500: out of memory" in asked.stopped[name]
        assert len(broken.requests) == asking.MAX_LOST_QUESTIONS * QUICK.max_tries
        assert kinds(asked) == 9 * ["open"] + 6 * ["second"] + 3 * ["first"]


def test_a_refused_picture_is_open_and_the_judge_goes_on(ask: Ask) -> None:
    def shy(asked: JudgeRequest) -> str | HttpReply:
        return (
            HttpReply(400, b'{"error": "not this one"}') if "thing 2" in asked.prompt_text else prefer_brighter(asked)
        )

    with LocalJudge(shy) as server:
        asked = ask(server.judge, request_settings=replace(QUICK, max_concurrent=1))
        told = [
            (o.kind == "open", o.sample.prompt == "thing 2, please")
            for o in collect_outcomes(asked.plan, asked.answer_log)
        ]
        assert all(lost == refused for lost, refused in told)
        assert sum(lost for lost, _ in told) == 3
        assert asked.stopped == {}
    with LocalJudge(lambda _: HttpReply(400, b'{"error": "no pictures"}')) as server:
        assert (
            "no pictures"
            in ask(server.judge, request_settings=replace(QUICK, max_concurrent=1)).stopped[server.judge.name]
        )


@pytest.mark.parametrize(
    ("mind", "wrong"),
    [
        (lambda _: HttpReply(401, b'{"error": {"message": "no key"}}'), "HTTP 401: no key. Name the variable"),
        (lambda _: HttpReply(404, b"<html>"), "HTTP 404: <html>"),
        (lambda _: HttpReply(302, b"", {"Location": "http://127.0.0.1:1/"}), "HTTP 302"),
    ],
)
def test_what_no_other_question_changes_ends_a_judge_at_once(ask: Ask, mind: JudgeBehaviour, wrong: str) -> None:
    with LocalJudge(mind) as server:
        asked = ask(server.judge, request_settings=replace(QUICK, max_concurrent=1))
        assert wrong in asked.stopped[server.judge.name]
        assert len(server.requests) == 1


def test_slow_and_silent_and_strange_endpoints() -> None:
    release = threading.Event()

    def slow(_: JudgeRequest) -> str:
        release.wait(5)
        return verdict_json("left")

    with LocalJudge(slow) as server, pytest.raises(RequestError, match=r"no answer in 0\.2 s") as told:
        post_request(server.judge, {}, 0.2)
    assert told.value.kind == "again"
    release.set()
    with pytest.raises(RequestError, match="does not answer") as told:
        post_request(server.judge, {}, 1.0)  # which is gone by now
    assert told.value.kind == "again"
    for body in (b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": "left"}]}'):
        with (
            LocalJudge(lambda _, body=body: HttpReply(200, body)) as server,
            pytest.raises(RequestError, match="something else"),
        ):  # type: ignore[misc]
            post_request(server.judge, {}, 5.0)
    with (
        LocalJudge(lambda _: HttpReply(200, b" " * (1 << 21))) as server,
        pytest.raises(RequestError, match="more than"),
    ):
        post_request(server.judge, {}, 5.0)


# -- Keys -------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_neither_kept_nor_shown(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " sk-very-secret\n")

    def leaking(asked: JudgeRequest) -> str | HttpReply:
        return (
            HttpReply(400, b"bad key sk-very-secret, I said sk-very-secret")
            if asked.number == 1
            else prefer_brighter(asked)
        )

    with LocalJudge(leaking) as server:
        asked = ask(JudgeEndpoint("mock", server.url, "MY_KEY"), request_settings=replace(QUICK, max_concurrent=1))
        assert {h["Authorization"] for h in server.headers} == {"Bearer sk-very-secret"}
    written = asked.answer_log.path.read_text()
    assert "bad key ***, I said ***" in written
    assert "very-secret" not in written + repr(asked.plan.judges) + str(asked.stopped)
    with LocalJudge(prefer_brighter) as server:
        ask(server.judge)
        assert all("Authorization" not in h for h in server.headers)


def test_a_redirect_takes_the_key_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with LocalJudge(always_left) as other:
        there = f"{other.url}/chat/completions"
        with LocalJudge(lambda _: HttpReply(307, b"", {"Location": there})) as server:
            with pytest.raises(RequestError, match="HTTP 307") as told:
                post_request(JudgeEndpoint("mock", server.url, "MY_KEY"), {}, 5.0)
            assert told.value.kind == "judge"
        assert other.requests == []


def test_judges_and_keys_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = JudgeEndpoint.parse("org/model@v2@https://api.example.com/v1/chat/completions#SOME_KEY")
    assert judge == JudgeEndpoint("org/model@v2", "https://api.example.com/v1", "SOME_KEY")
    assert judge.name == "org/model@v2@api.example.com"
    for wrong in (
        "gpt-4o",
        "@http://x",
        "m@http://u:secret@h/v1",
        "m@http://h:secret/v1",
        "m@https://h/v1?key=secret",
        "m@https://h/v1#sk_secret",
    ):
        with pytest.raises(SpecError, match="Expected") as told:
            JudgeEndpoint.parse(wrong)
        assert "secret" not in str(told.value)
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(SpecError, match="SOME_KEY, which is not set"):
        judge.key()
    monkeypatch.setenv("SOME_KEY", "two\nlines")
    with pytest.raises(SpecError, match="no key") as told:
        judge.key()
    assert "lines" not in str(told.value)
    monkeypatch.setenv("SOME_KEY", "k")
    assert judge.key() == "k"
    for url, near in (
        ("http://api.example.com/v1", False),
        ("http://10.0.0.7:8000/v1", True),
        ("http://box:8000/v1", True),
    ):
        if near:
            assert JudgeEndpoint("m", url, "SOME_KEY").key() == "k"
        else:
            with pytest.raises(SpecError, match="in the clear"):
                JudgeEndpoint("m", url, "SOME_KEY").key()
    with pytest.raises(BenchError, match="Two judges are called"):
        check_distinct([JudgeEndpoint("m", "http://h/v1"), JudgeEndpoint("m", "http://h/v2")])


def test_a_key_that_is_missing_is_missed_before_anything_is_asked(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with LocalJudge(prefer_brighter) as server:
        with pytest.raises(SpecError, match="NO_KEY"):
            ask(server.judge, JudgeEndpoint("other", server.url, "NO_KEY"))
        assert server.requests == []


# -- Caps and cuts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [0, 1, 7, QUESTIONS - 1])
def test_the_cap_on_calls_is_kept_to_the_last_one_and_resumed(ask: Ask, cap: int) -> None:
    with LocalJudge(prefer_brighter) as server:
        first = ask(server.judge, caps=SpendingCaps(calls=cap), request_settings=replace(QUICK, max_concurrent=8))
        assert len(server.requests) == cap
        assert first.capped
        ask(server.judge, caps=SpendingCaps(calls=cap))  # what was spent before counts
        assert len(server.requests) == cap
        done = ask(server.judge, caps=SpendingCaps(calls=QUESTIONS))
        assert len(server.requests) == QUESTIONS
        assert not done.capped
        assert "open" not in kinds(done)


def test_failed_requests_count_for_they_may_be_charged(ask: Ask) -> None:
    with LocalJudge(lambda _: HttpReply(503)) as server:
        assert ask(server.judge, caps=SpendingCaps(calls=4)).capped
        assert len(server.requests) == 4


def test_the_cap_on_money_is_not_exceeded(ask: Ask) -> None:
    # 1000 tokens at 2 and 20 at 5 the million: 0.0021 each; the cap of ten, less what the next may cost at most.
    with LocalJudge(prefer_brighter) as server:
        prices = {server.judge.name: (2.0, 5.0)}
        asked = ask(
            server.judge,
            caps=SpendingCaps(spend=0.021, prices=prices, tokens=20),
            request_settings=replace(QUICK, max_concurrent=8),
        )
        assert asked.capped
        assert asked.ledger.spent == pytest.approx(0.0021 * len(server.requests))
        assert len(server.requests) == 9  # the tenth may cost a quarter more than those before
        more = ask(server.judge, caps=SpendingCaps(spend=1.0, prices=prices))
        assert len(server.requests) == QUESTIONS
        assert more.ledger.spent == pytest.approx(0.0021 * QUESTIONS)


def test_a_server_that_counts_no_tokens_cannot_be_capped_by_money(ask: Ask) -> None:
    with LocalJudge(prefer_brighter, usage=None) as server:
        asked = ask(server.judge, caps=SpendingCaps(spend=1.0, prices={server.judge.name: (1.0, 1.0)}))
        assert "use --calls" in asked.stopped[server.judge.name]
        assert len(server.requests) == 1  # the first of a judge is sent alone
        assert len(asked.answer_log.lines) == 1


def test_a_purse_too_small_for_one_answer_sends_nothing() -> None:
    ledger = SpendingLedger(SpendingCaps(spend=0.001, prices={"m": (0.0, 10.0)}, tokens=300))
    assert ledger.reserve("m") is None
    with pytest.raises(BenchError, match="needs prices"):
        SpendingCaps(spend=1.0)


def test_torn_lines_are_asked_again(ask: Ask, tmp_path: Path) -> None:
    with LocalJudge(prefer_brighter) as server:
        ask(server.judge)
        path = tmp_path / "out" / ANSWERS
        path.write_bytes(path.read_bytes()[:-9])
        assert len(AnswerLog(tmp_path / "out").lines) == QUESTIONS - 1
        assert kinds(ask(server.judge)) == 6 * ["second"] + 3 * ["first"]
        assert len(server.requests) == QUESTIONS + 1
    path.write_text('{"key": "x"}\n')
    with pytest.raises(BenchError, match="another version"):
        AnswerLog(tmp_path / "out")


def test_what_is_under_way_at_ctrl_c_is_kept(found: JudgingMaterial, tmp_path: Path) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(asked: JudgeRequest) -> str:
        begun.set()
        release.wait(5)
        return prefer_brighter(asked)

    def on_progress(*_: Any) -> None:
        """The main thread is interrupted while it waits."""

    with LocalJudge(slow) as server, pytest.MonkeyPatch.context() as patch:
        asked = JudgingRun(
            JudgingPlan(found, list_pairs(found), (server.judge,), SMALL), tmp_path / "out", SpendingCaps(), QUICK
        )
        join, cut = threading.Thread.join, [True]

        def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
            if cut and self.name.startswith("asking"):
                cut.clear()
                begun.wait(5)
                time.sleep(0.05)
                threading.Timer(0.1, release.set).start()
                raise KeyboardInterrupt
            join(self, timeout)

        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked.run(on_progress)
        assert len(server.requests) == len(asked.answer_log.lines) <= QUICK.max_concurrent
        assert all(line.winner for line in asked.answer_log.lines)
