"""Requests of a replica that dies are given to another; no Ray is needed to see it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from skipstone.engine.requests import Status
from skipstone.errors import SkipstoneError, SpecError
from skipstone.serving.api.backend import ModelFacts, Partial
from skipstone.serving.ray.backend import ATTEMPTS, Fault, RayBackend
from skipstone.serving.ray.settings import RaySettings
from skipstone.serving.refusals import Busy, DeadlineMissed, DrawingFailed, RequestRefused, UnknownModel
from skipstone.serving.requests import Picture, PictureRequest, Progress

FACTS = ModelFacts("pebble", (64, 64), "balanced", {})


class Lost(Exception):
    pass


class Full(Exception):
    pass


def judge(error: Exception) -> Fault:
    return Fault.lost if isinstance(error, Lost) else Fault.busy if isinstance(error, Full) else Fault.other


def picture(request: PictureRequest, calls: Any = None) -> Picture:
    return Picture(None, request, "pebble", calls, Status.done, "fixed", 50.0, "", "", 0.0, 0.0)


class Answer:
    """What a handle returns: to be awaited, or iterated."""

    def __init__(self, make: Callable[[], Awaitable[Any]], items: AsyncIterator[Any] | None = None) -> None:
        self._make, self._items, self.cancelled = make, items, False

    def __await__(self) -> Any:
        return self._make().__await__()

    def __aiter__(self) -> Any:
        return self._items

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Replicas that answer with what is next in a list."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.asked, self.answers, self.models = list(outcomes), [], [], []  # type: ignore[var-annotated]

    def options(self, **settings: Any) -> Handle:
        self.models += [settings["multiplexed_model_id"]] if "multiplexed_model_id" in settings else []
        return self

    @property
    def describe(self) -> Handle:
        return self

    draw = stream = describe

    def remote(self, *args: Any) -> Answer:
        self.asked.append(args)
        outcome = self.outcomes.pop(0)

        async def answer() -> Any:
            if isinstance(outcome, SkipstoneError) or not isinstance(outcome, Exception):
                return await outcome if asyncio.iscoroutine(outcome) else outcome
            raise outcome

        async def items() -> AsyncIterator[Any]:
            for item in outcome if isinstance(outcome, list) else [outcome]:
                if isinstance(item, Exception) and not isinstance(item, SkipstoneError):
                    raise item
                yield item

        self.answers.append(Answer(answer, items()))
        return self.answers[-1]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipstone.serving.ray.backend.PAUSE", 0.0)


def backend(handle: Handle, clock: Callable[[], float] = lambda: 0.0) -> RayBackend:
    return RayBackend(RaySettings(), handle, clock, judge)


REQUEST = PictureRequest("a", seed=7, model="pebble")


def draw(handle: Handle, request: PictureRequest = REQUEST, **more: Any) -> Any:
    return asyncio.run(backend(handle, **more).draw([request]))


def test_another_replica_gets_the_same_request_with_the_same_seed() -> None:
    found = [picture(REQUEST)]
    handle = Handle(Lost(), Lost(), found)
    assert draw(handle) == found
    assert handle.asked == [([REQUEST],)] * 3
    assert handle.models == ["pebble"] * 3


def test_a_request_that_kills_every_replica_is_not_given_to_all() -> None:
    handle = Handle(*[Lost()] * 10)
    with pytest.raises(DrawingFailed):
        draw(handle)
    assert len(handle.asked) == ATTEMPTS


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Full(), Busy),
        (ValueError("of ours"), DrawingFailed),
        (RequestRefused("no"), RequestRefused),
        (Busy("wait", 7), Busy),
        (SpecError("no"), SpecError),
    ],
)
def test_what_no_other_replica_can_help_is_not_tried_again(outcome: Exception, error: type) -> None:
    handle = Handle(outcome)
    with pytest.raises(error):
        draw(handle)
    assert len(handle.asked) == 1


def test_what_is_left_of_the_deadline_goes_along() -> None:
    times = iter([0.0, 0.0, 4.0, 11.0])
    handle = Handle(Lost(), Lost(), Lost())
    with pytest.raises(DeadlineMissed, match="within 10 s"):
        draw(handle, replace(REQUEST, deadline=10.0), clock=lambda: next(times))
    assert [one.deadline for asked in handle.asked for one in asked[0]] == [10.0, 6.0]
    draw(endless := Handle([picture(REQUEST)]))
    assert endless.asked[0][0][0].deadline == math.inf


def test_a_client_that_goes_away_ends_the_call() -> None:
    async def run() -> None:
        handle = Handle(asyncio.sleep(1000))
        task = asyncio.ensure_future(backend(handle).draw([REQUEST]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert handle.answers[0].cancelled

    asyncio.run(run())


def stream(handle: Handle) -> list[Any]:
    async def run() -> list[Any]:
        return [item async for item in await backend(handle).open_stream(REQUEST, 3)]

    return asyncio.run(run())


def partial(share: float) -> Partial:
    return Partial(Progress(share, 1.0), None)


def test_a_stream_goes_on_where_the_dead_replica_has_ended() -> None:
    last = picture(REQUEST)
    handle = Handle([partial(0.2), Lost()], Lost(), [partial(0.21), partial(0.5), last])
    assert stream(handle) == [partial(0.2), partial(0.5), last]
    assert all(answer.cancelled for answer in handle.answers)


def test_what_a_stream_is_refused_for_is_known_before_it_begins() -> None:
    async def run() -> None:
        await backend(Handle([RequestRefused("no")])).open_stream(REQUEST, 3)

    with pytest.raises(RequestRefused):
        asyncio.run(run())
    with pytest.raises(DrawingFailed):
        stream(Handle([partial(0.2), *[Lost()]], *[Lost()] * 9))


def test_models_are_those_of_the_deployment_and_asked_for_once_in_a_while() -> None:
    now = [0.0]
    handle = Handle(FACTS, FACTS)
    found = backend(handle, lambda: now[0])

    async def run() -> None:
        assert await found.describe("") == await found.describe("pebble") == FACTS
        assert len(handle.asked) == 1
        now[0] = 100.0
        assert await found.describe_all() == [FACTS]
        assert len(handle.asked) == 2
        with pytest.raises(UnknownModel, match="Known: pebble"):
            await found.describe("../../etc/passwd")

    asyncio.run(run())


def test_settings_are_checked_and_say_how_many_engines_there_are() -> None:
    assert RaySettings.read({"replicas": 3}).scaling == {"num_replicas": 3}
    scaling = RaySettings.read({"replicas": 1, "max_replicas": 4, "pictures_each": 8}).scaling["autoscaling_config"]
    assert scaling == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8.0}
    for wrong in ({"replica": 2}, {"models": {}}, {"replicas": 0}, {"queue": "many"}, {"models": {"a": {}}}):
        with pytest.raises(SpecError, match="args"):
            RaySettings.read(wrong)
