"""A request from its body to its answer, in the loop of the HTTP server; who goes away is not drawn for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any

from fastapi import Request

from ...errors import SkipstoneError
from ..engine import Engine
from ..refusals import RequestRefused, TooLarge
from ..requests import Picture, PictureRequest, Progress
from .answers import answer, base64_text, completed_event, error_content, error_event, partial_event
from .body import ImagesBody
from .files import KeptFiles, encode

JSON = "application/json"


class Gone(Exception):
    """The client has gone away."""


async def read_limited(request: Request, most: int) -> bytes:
    """The body of a request of at most so many bytes.

    Raises:
        TooLarge: it has more.
        RequestRefused: it is not sent as JSON, which a page of another site could do without asking.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise RequestRefused(f"Expected a body of the type {JSON}; say it in the header Content-Type.")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise TooLarge(f"Expected a body of at most {most} bytes.")
    return bytes(data)


async def draw_all(
    engine: Engine, requests: Sequence[PictureRequest], body: ImagesBody, files: KeptFiles, request: Request
) -> dict[str, Any]:
    """The answer with all pictures. Raises Gone, SkipstoneError."""
    futures = engine.submit_all(requests)
    try:
        pictures = await _unless_gone(request, futures)
    finally:
        for future in futures:
            future.cancel()
    found = []
    for picture in pictures:
        data = await asyncio.to_thread(encode, picture.pixels, body.file_format, body.output_compression)
        if body.response_format == "url":
            where = {"url": f"{request.base_url}pictures/{files.keep(data, body.file_format)}"}
        else:
            where = {"b64_json": base64_text(data)}
        found.append((picture, where))
    return answer(body, found)


async def _unless_gone(request: Request, futures: Sequence[Future[Picture]]) -> list[Picture]:
    """The pictures. Raises Gone once the client has gone away."""
    drawing = asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
    leaving = asyncio.ensure_future(_wait_until_gone(request))
    try:
        both: set[asyncio.Future[Any]] = {drawing, leaving}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            raise Gone
        return list(drawing.result())
    finally:
        leaving.cancel()
        drawing.cancel()
        with contextlib.suppress(BaseException):
            await drawing


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Stream:
    """Server-sent events of one picture: some on the way, evenly spread, and the picture.

    Args:
        engine: That draws.
        drawn: The request.
        body: It came in.
    """

    def __init__(self, engine: Engine, drawn: PictureRequest, body: ImagesBody) -> None:
        self.engine, self.body, self.model = engine, body, drawn.model
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Progress | None] = asyncio.Queue()
        wanted = body.partial_images or 0
        self._marks = [(k + 1) / (wanted + 1) for k in range(wanted)]
        self.future = engine.submit(drawn, self._watch if wanted else None)
        self.future.add_done_callback(lambda _: self._tell(None))

    def _watch(self, progress: Progress) -> None:
        """Pick what is shown, in the engine's thread."""
        if progress.latent is None or not self._marks or progress.share < self._marks[0] or progress.share >= 1.0:
            return
        self._marks = [mark for mark in self._marks if mark > progress.share]
        self._tell(progress)

    def _tell(self, news: Progress | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def events(self) -> AsyncIterator[str]:
        """The events; to close the iterator ends the request."""
        index = 0
        try:
            while (progress := await self._news.get()) is not None:
                pixels = await asyncio.wrap_future(self.engine.decode(self.model, progress.latent))
                data = await self._encode(pixels)
                yield partial_event(self.body, index, progress, data, pixels.shape[:2])
                index += 1
            picture = await asyncio.wrap_future(self.future)
            yield completed_event(self.body, picture, await self._encode(picture.pixels))
        except SkipstoneError as error:
            code, status = getattr(error, "code", "invalid_request"), getattr(error, "status", 400)
            yield error_event(error_content(str(error), code, None, status))
        finally:
            self.future.cancel()

    async def _encode(self, pixels: Any) -> bytes:
        return await asyncio.to_thread(encode, pixels, self.body.file_format, self.body.output_compression)
