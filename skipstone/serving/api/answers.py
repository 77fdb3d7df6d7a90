"""What the interface answers: pictures with their facts, events of a stream, and errors as OpenAI spells them."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from ...engine.trace import to_json
from ..requests import Picture, Progress
from .body import ImagesBody

STANDARD = ("low", "medium", "high")  # qualities that OpenAI's types know
NO_TOKENS = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def facts(picture: Picture, trace: bool) -> dict[str, Any]:
    """What is said of a picture, beside the picture."""
    details: dict[str, Any] = {
        "seed": picture.request.seed,
        "policy": picture.setting,
        "calls": picture.calls,
        "full_calls": picture.full_calls,
        "status": picture.status.name,
        "certificate": picture.certificate or None,
        "promise": picture.promise,
        "shed": picture.shed,
        "fingerprint": picture.fingerprint,
        "queued_ms": round(1000 * picture.queued, 1),
        "total_ms": round(1000 * picture.seconds, 1),
    }
    if trace:
        details["trace"] = json.loads(to_json(picture.run, prompt=picture.request.prompt, **_traced(details)))
    return details


def _traced(details: dict[str, Any]) -> dict[str, Any]:
    return {name: details[name] for name in ("seed", "policy", "full_calls")}


def answer(body: ImagesBody, pictures: list[tuple[Picture, dict[str, str]]]) -> dict[str, Any]:
    """The answer of pictures, each with where its file is: {"b64_json": ...} or {"url": ...}."""
    first = pictures[0][0]
    height, width = first.pixels.shape[:2]
    return {
        "created": int(time.time()),
        "model": first.model,
        "size": f"{width}x{height}",
        "output_format": body.file_format,
        "background": "opaque",
        "quality": body.quality if body.quality in STANDARD else None,
        "data": [{**where, **facts(picture, bool(body.trace))} for picture, where in pictures],
    }


def base64_text(data: bytes) -> str:
    """The text of bytes in base64."""
    return base64.b64encode(data).decode("ascii")


def partial_event(body: ImagesBody, index: int, progress: Progress, data: bytes, size: tuple[int, int]) -> str:
    """The event of a picture that is not finished."""
    more = {"partial_image_index": index, "calls": progress.calls, "share": round(progress.share, 4)}
    return _event("image_generation.partial_image", body, data, size, more)


def completed_event(body: ImagesBody, picture: Picture, data: bytes) -> str:
    """The event of a finished picture."""
    more = {"usage": NO_TOKENS, **facts(picture, bool(body.trace))}
    return _event("image_generation.completed", body, data, picture.pixels.shape[:2], more)


def _event(kind: str, body: ImagesBody, data: bytes, size: tuple[int, int], more: dict[str, Any]) -> str:
    content = {
        "type": kind,
        "b64_json": base64_text(data),
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": body.file_format,
        "quality": body.quality if body.quality in STANDARD else "auto",
        "size": f"{size[1]}x{size[0]}",
        **more,
    }
    return f"event: {kind}\ndata: {json.dumps(content)}\n\n"


def error_content(message: str, code: str, parameter: str | None = None, status: int = 400) -> dict[str, Any]:
    """The body of an error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def error_event(content: dict[str, Any]) -> str:
    """The event of an error in the middle of a stream."""
    return f"event: error\ndata: {json.dumps(content)}\n\n"
