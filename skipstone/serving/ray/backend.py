"""Asks replicas for pictures, and another one where a replica dies: the same seed is the same picture."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any, NamedTuple

from ...errors import SkipstoneError
from ...settings import shorten
from ..api.backend import ModelFacts, Partial
from ..limits import Limits
from ..refusals import Busy, DeadlineMissed, DrawingFailed, UnknownModel
from ..requests import Picture, PictureRequest
from .settings import RaySettings

log = logging.getLogger("skipstone.serving")
ATTEMPTS = 4  # replicas that one request is given to: a request that kills them must not kill all
FACTS_SECONDS = 10.0  # for which what is said of a model is remembered
PAUSE = 0.2  # seconds before a request is given to another replica


class Fault(Enum):
    """Why a call of a replica has failed."""

    lost = auto()  # it has died or cannot be reached: another may be asked
    busy = auto()  # too many wait
    other = auto()


class _Known(NamedTuple):
    facts: ModelFacts
    until: float


class RayBackend:
    """The engines of a deployment, through its handle.

    Args:
        settings: Of the deployment.
        handle: Of the engines.
        clock: Seconds, never falling.
        judge: What an error of a call means.
    """

    def __init__(
        self,
        settings: RaySettings,
        handle: Any,
        clock: Callable[[], float] = time.monotonic,
        judge: Callable[[Exception], Fault] | None = None,
    ) -> None:
        self._settings, self._handle, self._clock = settings, handle, clock
        self._judge = judge or judge_error
        self._limits = settings.limits
        self._facts: dict[str, _Known] = {}

    @property
    def limits(self) -> Limits:
        """Of each engine."""
        return self._limits

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, never falling."""
        return self._clock

    @property
    def is_ready(self) -> bool:
        """Serve asks the replicas itself; the interface is ready when it runs."""
        return True

    async def describe(self, name: str) -> ModelFacts:
        """A model by its name; "" is the first. Raises UnknownModel."""
        served = self._settings.models
        name = name or next(iter(served))
        if name not in served:
            raise UnknownModel(f"No model {shorten(name)} is served. Known: {', '.join(served)}.", "model")
        known = self._facts.get(name)
        if known is None or known.until < self._clock():
            found = await self._ask(lambda: self._of(name).describe.remote(name))
            known = self._facts[name] = _Known(found, self._clock() + FACTS_SECONDS)
        return known.facts

    async def describe_all(self) -> list[ModelFacts]:
        """All models."""
        return [await self.describe(name) for name in self._settings.models]

    async def draw(self, requests: Sequence[PictureRequest]) -> list[Picture]:
        """All pictures of one request; to cancel the coroutine ends them. Raises SkipstoneError."""
        began = self._clock()
        name = requests[0].model

        def submit() -> Any:
            return self._of(name).draw.remote([self._left(one, began) for one in requests])

        pictures: list[Picture] = await self._ask(submit)
        return pictures

    async def open_stream(self, request: PictureRequest, partial: int) -> AsyncIterator[Partial | Picture]:
        """As of `Backend`."""
        items = self._stream(request, partial)
        first = await anext(items)  # so that what is refused at once is no stream

        async def all_items() -> AsyncIterator[Partial | Picture]:
            try:
                yield first
                async for item in items:
                    yield item
            finally:
                await items.aclose()  # type: ignore[attr-defined]  # a generator

        return all_items()

    async def _stream(self, request: PictureRequest, partial: int) -> AsyncIterator[Partial | Picture]:
        """The items; of a replica that dies, those of another from where the first has ended."""
        began, sent = self._clock(), 0
        for attempt in range(ATTEMPTS):
            handle = self._of(request.model).options(stream=True)
            items = handle.stream.remote(self._left(request, began), partial)
            number = 0
            try:
                async for item in items:
                    if isinstance(item, SkipstoneError):
                        raise item
                    if isinstance(item, Picture) or number >= sent:
                        yield item
                        sent += 1
                    number += 1
                return
            except Exception as error:
                await self._pause(error, attempt)
            finally:
                items.cancel()

    async def _ask(self, submit: Callable[[], Any]) -> Any:
        """What a replica answers, or another one where it dies. Raises SkipstoneError."""
        for attempt in range(ATTEMPTS):
            answer = submit()
            try:
                found = await answer
            except asyncio.CancelledError:
                answer.cancel()
                raise
            except Exception as error:
                await self._pause(error, attempt)
                continue
            if isinstance(found, SkipstoneError):
                raise found
            return found
        raise AssertionError  # the last attempt raises

    async def _pause(self, error: Exception, attempt: int) -> None:
        """Wait before another replica is asked; raise where that is no help."""
        if isinstance(error, SkipstoneError):
            raise error
        fault = self._judge(error)
        if fault is Fault.busy:
            raise Busy("Too many requests wait already. Try again later.") from None
        if fault is not Fault.lost or attempt == ATTEMPTS - 1:
            log.error("a request failed", exc_info=error)
            raise DrawingFailed(f"The request failed: {type(error).__name__}.") from error
        log.warning("a replica was lost (%s), and its request is given to another", type(error).__name__)
        await asyncio.sleep(PAUSE)

    def _of(self, name: str) -> Any:
        """The handle that prefers replicas which hold a model."""
        return self._handle.options(multiplexed_model_id=name)

    def _left(self, request: PictureRequest, began: float) -> PictureRequest:
        """The request with what is left of its deadline. Raises DeadlineMissed."""
        left = request.deadline - (self._clock() - began)
        if left <= 0:
            raise DeadlineMissed(f"The picture was not ready within {request.deadline:g} s, as was asked for.")
        return replace(request, deadline=left)


def judge_error(error: Exception) -> Fault:
    """What an error of Ray means."""
    from ray.exceptions import RayActorError, RaySystemError, WorkerCrashedError
    from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

    if isinstance(error, BackPressureError):
        return Fault.busy
    lost = isinstance(error, RayActorError | RaySystemError | WorkerCrashedError | ReplicaUnavailableError)
    return Fault.lost if lost else Fault.other
