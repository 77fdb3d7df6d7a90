"""What the routes ask for pictures: an engine of this process, or engines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..engine import Engine
from ..limits import Limits
from ..models import ServedModel
from ..requests import Picture, PictureRequest, Progress


class Partial(NamedTuple):
    """A picture that is not finished.

    Args:
        progress: How far it is.
        pixels: (height, width, 3), 8 bits each.
    """

    progress: Progress
    pixels: Any


@dataclass(frozen=True)
class ModelFacts:
    """What is said of a model.

    Args:
        name: That requests call it.
        size: (height, width) of its pictures.
        policy: Spec of what draws where a request says nothing.
        qualities: Name of each certificate -> its policy, target and promise.
        students: That requests may name.
        fingerprint: Of its weights.
        changed: Whether its files are others now than those that were loaded.
    """

    name: str
    size: tuple[int, int]
    policy: str
    qualities: Mapping[str, Mapping[str, str]]
    students: Sequence[str] = ()
    fingerprint: str = ""
    changed: bool = False

    @staticmethod
    def of(model: ServedModel) -> ModelFacts:
        """The facts of a loaded model."""
        qualities = {
            name: {"policy": one.spec, "target": one.target, "promise": one.promise}
            for name, one in model.choices.certificates.items()
        }
        return ModelFacts(
            model.name,
            model.size,
            model.choices.default.spec,
            qualities,
            tuple(model.choices.students),
            model.fingerprint,
            model.has_changed,
        )


class Backend(Protocol):
    """Draws what the routes ask for."""

    @property
    def limits(self) -> Limits: ...
    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def is_ready(self) -> bool: ...

    async def describe(self, name: str) -> ModelFacts:
        """A model by its name; "" is the first. Raises UnknownModel."""

    async def describe_all(self) -> list[ModelFacts]:
        """All models."""

    async def draw(self, requests: Sequence[PictureRequest]) -> list[Picture]:
        """All pictures of one request; to cancel the coroutine ends them. Raises SkipstoneError."""

    async def open_stream(self, request: PictureRequest, partial: int) -> AsyncIterator[Partial | Picture]:
        """Some pictures on the way, evenly spread, and the picture; to close the iterator ends the request.

        Args:
            request: What to draw.
            partial: Pictures on the way, at most.

        Raises:
            SkipstoneError: what is refused at once; what fails later is raised by the iterator.
        """


class LocalBackend:
    """An engine of this process.

    Args:
        engine: That draws.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def limits(self) -> Limits:
        """Of the engine."""
        return self.engine.limits

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, never falling."""
        return self.engine.clock

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self.engine.is_ready

    async def describe(self, name: str) -> ModelFacts:
        """A model by its name; "" is the first. Raises UnknownModel."""
        return ModelFacts.of(self.engine.find_model(name))

    async def describe_all(self) -> list[ModelFacts]:
        """All models."""
        return [ModelFacts.of(model) for model in self.engine.models.values()]

    async def draw(self, requests: Sequence[PictureRequest]) -> list[Picture]:
        """All pictures of one request; to cancel the coroutine ends them. Raises SkipstoneError."""
        futures = self.engine.submit_all(requests)
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
        finally:
            for future in futures:
                future.cancel()

    async def open_stream(self, request: PictureRequest, partial: int) -> AsyncIterator[Partial | Picture]:
        """As of `Backend`."""
        return _LocalStream(self.engine, request, partial).items()


class _LocalStream:
    """One request of an engine in this process."""

    def __init__(self, engine: Engine, request: PictureRequest, partial: int) -> None:
        self._engine, self._model = engine, engine.find_model(request.model)  # whose decoder fits, whatever is reloaded
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._marks = [(k + 1) / (partial + 1) for k in range(partial)]
        self._future = engine.submit(request, self._watch if partial else None)
        self._future.add_done_callback(lambda _: self._put(None))

    def _watch(self, progress: Progress) -> None:
        """Pick what is shown, in the engine's thread."""
        if progress.latent is None or not self._marks or progress.share < self._marks[0] or progress.share >= 1.0:
            return
        self._marks = [mark for mark in self._marks if mark > progress.share]
        self._put(progress)

    def _put(self, news: Progress | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def items(self) -> AsyncIterator[Partial | Picture]:
        try:
            while (progress := await self._news.get()) is not None:
                pixels = await asyncio.wrap_future(self._engine.decode(self._model, progress.latent))
                yield Partial(progress, pixels)
            picture: Picture = await asyncio.wrap_future(self._future)
            yield picture
        finally:
            self._future.cancel()
