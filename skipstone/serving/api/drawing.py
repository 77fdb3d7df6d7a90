"""A request from its body to its answer, in the loop of the HTTP server; who goes away is not drawn for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any

from fastapi import Request

from ...errors import SkipstoneError
from ..refusals import RequestRefused, TooLarge
from ..requests import Picture, PictureRequest
from .answers import answer, base64_text, completed_event, error_content, error_event, partial_event
from .backend import Backend, Partial
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
    backend: Backend, requests: Sequence[PictureRequest], body: ImagesBody, files: KeptFiles, request: Request
) -> dict[str, Any]:
    """The answer with all pictures. Raises Gone, SkipstoneError."""
    found = []
    for picture in await _unless_gone(request, backend.draw(requests)):
        data = await asyncio.to_thread(encode, picture.pixels, body.file_format, body.output_compression)
        if body.response_format == "url":
            where = {"url": f"{request.base_url}pictures/{files.keep(data, body.file_format)}"}
        else:
            where = {"b64_json": base64_text(data)}
        found.append((picture, where))
    return answer(body, found)


async def _unless_gone(request: Request, pictures: Coroutine[Any, Any, list[Picture]]) -> list[Picture]:
    """The pictures. Raises Gone once the client has gone away."""
    drawing = asyncio.ensure_future(pictures)
    leaving = asyncio.ensure_future(_wait_until_gone(request))
    try:
        both: set[asyncio.Future[Any]] = {drawing, leaving}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            raise Gone
        return drawing.result()
    finally:
        leaving.cancel()
        drawing.cancel()
        with contextlib.suppress(BaseException):
            await drawing


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def stream_events(items: AsyncIterator[Partial | Picture], body: ImagesBody) -> AsyncIterator[str]:
    """Server-sent events of one picture; to close the iterator ends the request."""
    index = 0
    try:
        async for item in items:
            data = await asyncio.to_thread(encode, item.pixels, body.file_format, body.output_compression)
            if isinstance(item, Picture):
                yield completed_event(body, item, data)
            else:
                yield partial_event(body, index, item.progress, data, item.pixels.shape[:2])
                index += 1
    except SkipstoneError as error:
        code, status = getattr(error, "code", "invalid_request"), getattr(error, "status", 400)
        yield error_event(error_content(str(error), code, None, status))
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()
