"""The engine: nothing accepted is lost, a picture is that of its request, and what ends early ends alone."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analytic import AnalyticModel, served

from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Estimate, Query, Status
from skipstone.errors import PromptError, SpecError
from skipstone.evaluation.pixels import to_uint8
from skipstone.serving import Engine, Limits, Picture, PictureRequest, Progress
from skipstone.serving.expectations import CallSeconds, RunningMeans
from skipstone.serving.observers import Observer
from skipstone.serving.order import longest_wait
from skipstone.serving.refusals import (
    Busy,
    Closing,
    DeadlineInfeasible,
    DeadlineMissed,
    DrawingFailed,
    RequestRefused,
    UnknownModel,
)
from skipstone.testing.backbones import Mixture


def analytic(limits: Limits | None = None, rows: int = 16, **more: Any) -> Engine:
    limits = limits or Limits()
    return Engine({"analytic": served(limits, **more)}, limits, rows)


class Held(Mixture):
    """Mixture scores that are not answered before `answering` is open."""

    answering = threading.Event()

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        assert Held.answering.wait(60)
        return super().predict(queries)


@pytest.fixture
def held() -> Iterator[Held]:
    Held.answering = threading.Event()
    yield Held(guidance=2.0)
    Held.answering.set()


def test_pebbles_picture_is_that_of_the_engine_alone_to_rounding(pebble: Engine) -> None:
    from skipstone_pebble.model import Pebble

    prompts = ["a red apple on a blue background", "a cat above a bus", "a small frog on a white background"]
    policies = ["balanced", "fast", "fixed @ unipc / trailing / 12", "stride(tol=0.05)"]
    futures = [
        pebble.submit(prompts[k % 3], seed=k, policy=policies[k % 4], priority=k % 3, guidance=3.0 if k % 2 else None)
        for k in range(12)
    ]
    model = Pebble.load()
    for k in (0, 3, 6, 9):
        picture = futures[k].result()
        setting = pebble.find_model("").choices.choose(policies[k % 4], "")
        problem = model.problem(prompts[k % 3], k, setting.steps, setting.grid)
        expected = denoise(model.backbone, problem, setting.solver, setting.policy)
        assert [a.t for a in picture.run.past] == [a.t for a in expected.run.past]
        assert np.abs(picture.pixels.astype(int) - to_uint8(model.decode([expected.x])[0])).max() <= 1
    assert all(future.result().pixels.shape == (64, 64, 3) for future in futures)


def test_a_negative_prompt_takes_the_place_of_the_empty_one(pebble: Engine) -> None:
    from skipstone_pebble.model import Pebble

    model = Pebble.load()
    problem = pebble.find_model("").problem(
        PictureRequest("a cat", "blue", seed=4), pebble.find_model("").choices.default
    )
    assert np.array_equal(problem.cond["uncond"], model.encode("blue"))
    assert np.array_equal(problem.cond["cond"], model.encode("a cat"))
    plain, led = (pebble.submit("a cat", seed=4, negative_prompt=n).result() for n in ("", "blue"))
    assert (plain.pixels != led.pixels).any()


def test_a_target_takes_the_fastest_certificate_that_implies_it(pebble: Engine) -> None:
    choose = pebble.find_model("").choices.choose
    wanted = {
        "psnr >= 30 @ 90%": "low",
        "psnr >= 20 @ 50%": "low",
        "psnr >= 30.5 @ 85%": "medium",
        "psnr >= 40 @ 90%": "high",
    }
    assert {target: choose("", target).certificate for target in wanted} == wanted
    for target in ("psnr >= 41 @ 90%", "psnr >= 30 @ 91%", "psnr >= 30 @ mean", "ssim >= 0.5 @ 90%"):
        with pytest.raises(RequestRefused, match="No certificate promises"):
            choose("", target)


def test_guidance_of_1_costs_one_row_a_call(pebble: Engine) -> None:
    before = pebble.observer.registry.get_sample_value("skipstone_rows_per_forward_sum")  # type: ignore[attr-defined]
    assert pebble.submit("a cat", guidance=1.0, policy="fixed @ ddim / trailing / 3").result().calls == 3
    after = pebble.observer.registry.get_sample_value("skipstone_rows_per_forward_sum")  # type: ignore[attr-defined]
    assert after - before == 3


def test_what_1000_ask_for_at_once_they_get_bit_for_bit() -> None:
    prompts = ["a", "ab", "abc"]
    with analytic(Limits(queue=1000, running=30), rows=14) as engine:
        futures = engine.submit_all([PictureRequest(prompts[k % 3], seed=k, priority=k % 3) for k in range(1000)])
        assert engine.load[0] + engine.load[1] <= 1000
        pictures = [future.result() for future in futures]
    model, setting = AnalyticModel(), engine.find_model("").choices.default
    for k in range(0, 1000, 17):
        problem = model.problem(prompts[k % 3], k, setting.steps)
        expected = denoise(model.backbone, problem, setting.solver, setting.policy)
        assert pictures[k].run == expected.run
        assert np.array_equal(pictures[k].pixels, to_uint8(model.decode([expected.x])[0]))
    assert engine.load == (0, 0)


def test_a_full_queue_accepts_nothing_and_says_when_to_ask_again(held: Held) -> None:
    engine = analytic(Limits(queue=3, running=1), backbone=held)
    futures = engine.submit_all([PictureRequest("a"), PictureRequest("b"), PictureRequest("c")])
    with pytest.raises(Busy) as refused:
        engine.submit_all([PictureRequest("d")] * 3)
    assert refused.value.retry_after >= 1
    Held.answering.set()
    assert [future.result().request.prompt for future in futures] == ["a", "b", "c"]
    engine.close()


def test_urgent_ones_and_those_with_a_deadline_are_admitted_first(held: Held) -> None:
    engine = analytic(Limits(running=1), backbone=held)
    order: list[str] = []
    first = engine.submit("first")
    while engine.load != (0, 1):
        pass
    wanted = {"late": {}, "urgent": {"priority": 0}, "dated": {"deadline": 1e4}, "low": {"priority": 2}}
    futures = [engine.submit(name, **settings) for name, settings in wanted.items()]  # type: ignore[arg-type]
    for future in futures:
        future.add_done_callback(lambda done: order.append(done.result().request.prompt))
    engine._texts.submit(lambda: None).result()  # all are encoded
    Held.answering.set()
    engine.close()
    assert first.result().queued >= 0
    assert order == ["urgent", "dated", "late", "low"]


def test_a_waiting_picture_is_not_passed_over_for_ever(held: Held) -> None:
    """Urgent ones keep coming, each when another is done; without the bound the low one would come last."""
    engine = analytic(Limits(running=1, patience=4), backbone=held)
    passed: list[int] = []

    def come_again(done: Future[Picture]) -> None:
        if not low.done() and len(passed) < 60:
            passed.append(done.result().request.seed)
            engine.submit("b", seed=len(passed), priority=0).add_done_callback(come_again)

    low = engine.submit("first")
    while engine.load != (0, 1):
        pass
    low = engine.submit("low", priority=2)
    for _ in range(12):
        engine.submit("b", priority=0).add_done_callback(come_again)
    Held.answering.set()
    assert low.result().calls == 6
    assert len(passed) <= longest_wait(4, 14)
    engine.close()


def test_cancelling_one_leaves_the_others(held: Held) -> None:
    engine = analytic(backbone=held)
    futures = [engine.submit("a", seed=k) for k in range(4)]
    while engine.load[1] == 0:
        pass
    assert futures[1].cancel()
    Held.answering.set()
    engine.close()
    with pytest.raises(CancelledError):
        futures[1].result()
    assert [futures[k].result().request.seed for k in (0, 2, 3)] == [0, 2, 3]


def test_a_deadline_that_is_missed_is_an_error_of_that_request_only(held: Held) -> None:
    now = [0.0]
    engine = Engine({"analytic": served(backbone=held)}, rows=8, clock=lambda: now[0])
    on_time, late = engine.submit("a", deadline=100.0), engine.submit("b", deadline=5.0)
    while engine.load[1] == 0:
        pass
    now[0] = 6.0
    Held.answering.set()
    with pytest.raises(DeadlineMissed, match="within 5 s"):
        late.result()
    assert on_time.result().seconds == 6.0
    engine.close()


def test_a_deadline_that_is_missed_even_alone_is_refused() -> None:
    class Slow(Mixture):
        def predict(self, queries: Sequence[Query]) -> list[Estimate]:
            threading.Event().wait(0.002)
            return super().predict(queries)

    with analytic(backbone=Slow(guidance=2.0)) as engine:
        assert engine.submit("a").result().calls == 6  # what a call takes is known from now on: at least 2 ms
        with pytest.raises(DeadlineInfeasible, match="6 calls") as refused:
            engine.submit("a", deadline=0.01)
        assert (refused.value.status, refused.value.parameter) == (400, "deadline")
        assert engine.load == (0, 0)
        assert engine.submit("a", deadline=1e4).result().calls == 6
        assert engine.submit("a", deadline=1e4, budget=1).result().calls == 1


def test_the_calls_of_a_policy_are_expected_to_be_those_of_its_pictures() -> None:
    with analytic() as engine:
        policy = "adaptive_grid(calls=5) @ kriging / trailing / 40"
        spec = engine.find_model("").choices.choose(policy, "").spec
        assert engine._calls.get(spec, 99.0) == 99.0
        calls = [engine.submit("a", policy=policy, seed=k).result().calls for k in range(3)]
        assert min(calls) <= engine._calls.get(spec, 99.0) <= max(calls)


def test_running_means_forget_what_was_not_met_for_longest() -> None:
    means = RunningMeans(3)
    for key in ("a", "b", "c", "a", "d"):
        means.add(key, 1.0)
    assert len(means) == 3
    assert [means.get(key, 0.0) for key in "abcd"] == [1.0, 0.0, 1.0, 1.0]


def test_seconds_of_a_call_are_those_of_one_sample_alone_where_they_are_known() -> None:
    seconds = CallSeconds()
    assert seconds.get("m") == 0.0
    seconds.add("m", 4, 2.0)
    assert seconds.get("m") == 0.5
    seconds.add("m", 1, 0.9)
    seconds.add("m", 4, 2.0)
    assert seconds.get("m") == 0.9


def test_closing_finishes_what_was_accepted_and_accepts_no_more() -> None:
    engine = analytic()
    futures = [engine.submit("a", seed=k) for k in range(20)]
    engine.close()
    assert all(isinstance(future.result(0), Picture) for future in futures)
    assert not engine.is_ready
    with pytest.raises(Closing):
        engine.submit("a")


def test_closing_at_once_ends_what_was_accepted(held: Held) -> None:
    engine = analytic(backbone=held)
    futures = [engine.submit("a", seed=k) for k in range(5)]
    threading.Timer(0.05, Held.answering.set).start()
    engine.close(drain=False)
    assert all(future.cancelled() or isinstance(future.result(0), Picture) for future in futures)
    assert any(future.cancelled() for future in futures)


def test_a_stream_is_progress_and_then_the_picture() -> None:
    with analytic() as engine:
        *steps, picture = engine.stream("a", seed=5)
        assert all(isinstance(step, Progress) for step in steps)
        assert [step.calls for step in steps if isinstance(step, Progress)] == [0, 1, 2, 3, 4, 5, 6]
        assert isinstance(picture, Picture)
        assert np.array_equal(picture.pixels, asyncio.run(engine.draw("a", seed=5)).pixels)


def test_leaving_a_stream_ends_its_request(held: Held) -> None:
    engine = analytic(backbone=held)
    going = engine.stream("a")
    next(going)
    going.close()  # type: ignore[attr-defined]  # a generator
    Held.answering.set()
    engine.close()
    assert engine.load == (0, 0)


def test_a_policy_that_takes_its_steps_again_and_again_is_bounded() -> None:
    with analytic(Limits(calls=40)) as engine:
        picture = engine.submit("a", policy="pid(rtol=1e-6) @ dpm_adaptive / trailing / 20").result()
        assert picture.status is Status.budget
        assert 40 <= picture.calls <= 42
        assert engine.submit("a", budget=3).result().calls == 3


class Broken(Mixture):
    """Answers that are none, to the component 0."""

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        return [
            replace(e, x0=None) if q.cond == 0 else e for q, e in zip(queries, super().predict(queries), strict=True)
        ]


def test_the_engine_outlives_a_fault_that_nobody_foresaw() -> None:
    with analytic(backbone=Broken(guidance=2.0)) as engine:
        with pytest.raises(DrawingFailed):
            engine.submit("abc").result()
        assert engine.submit("a").result().calls == 6


def test_an_engine_that_stops_tells_all_who_wait() -> None:
    class Failing(Observer):
        def on_load(self, waiting: int, running: int) -> None:
            if running:
                raise OSError("the disk of the log is full")

    engine = Engine({"analytic": served()}, observer=Failing())
    with pytest.raises(DrawingFailed, match="disk"):
        engine.submit("a").result(60)
    assert not engine.is_ready
    engine.close()


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        ({"prompt": " "}, PromptError, "empty"),
        ({"prompt": "a" * 3000}, RequestRefused, "at most 2000"),
        ({"prompt": "a", "negative_prompt": "a" * 3000}, RequestRefused, "negative_prompt"),
        ({"prompt": "a", "seed": -1}, SpecError, "seed"),
        ({"prompt": "a", "guidance": math.nan}, SpecError, "guidance"),
        ({"prompt": "a", "priority": 3}, SpecError, "priority"),
        ({"prompt": "a", "budget": 0.5}, SpecError, "budget"),
        ({"prompt": "a", "model": "../x"}, UnknownModel, "Known: analytic"),
        ({"prompt": "a", "quality": "ultra"}, RequestRefused, "Known qualities: auto"),
        ({"prompt": "a", "quality": "psnr >= 35 @ 90%"}, RequestRefused, "No certificate promises"),
        ({"prompt": "a", "quality": "psnr @ 90%"}, SpecError, "target: expected"),
        ({"prompt": "a", "policy": "fixed", "quality": "low"}, SpecError, "not both"),
        ({"prompt": "a", "policy": "fixed @ 201"}, RequestRefused, "at most 200 steps"),
        ({"prompt": "a", "policy": "fewer"}, SpecError, "fewer"),
        ({"prompt": "a", "policy": "ballanced"}, SpecError, "balanced"),
        ({"prompt": "a", "policy": "agent(path='/etc/passwd')"}, RequestRefused, "files"),
        ({"prompt": "a", "policy": "student(path='pebble-consistency-2')"}, RequestRefused, "No student"),
        ({"prompt": "a", "policy": "student(path='../../etc')"}, RequestRefused, "Known: none"),
        ({"prompt": "a", "policy": "fixed | student(path='/etc/passwd')"}, RequestRefused, "Known: none"),
        ({"prompt": "a", "policy": "student('/etc')"}, SpecError, "Expected"),
        ({"prompt": "a", "policy": "student(**{'path': '/etc'})"}, SpecError, "Expected"),
        ({"prompt": "a", "policy": "student(path=('/etc'.strip()))"}, SpecError, "Expected"),
        ({"prompt": "a", "policy": "student(steps=2, path=f'/etc')"}, SpecError, "Expected"),
        ({"prompt": "a", "policy": "fixed | auto(certificate='x')"}, RequestRefused, "files"),
        ({"prompt": "a", "policy": "./mine.py:Mine"}, SpecError, "Expected"),
        ({"prompt": "a", "policy": "org/name"}, SpecError, "Expected"),
        ({"prompt": "a", "policy": "__import__('os').system('id')"}, SpecError, "Expected"),
        ({"prompt": "a", "policy": "fixed @ nowhere"}, SpecError, "nowhere"),
        ({"prompt": "a", "policy": "deepcache"}, SpecError, "deepcache"),
    ],
)
def test_what_is_not_served_is_refused_before_it_waits(request_: dict[str, Any], error: type, said: str) -> None:
    with analytic() as engine:
        with pytest.raises(error, match=said):
            engine.submit(**{"request": request_.pop("prompt"), **request_})
        assert engine.load == (0, 0)
