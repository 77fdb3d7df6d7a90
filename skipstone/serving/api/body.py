"""The body of `POST /v1/images/generations`: OpenAI's fields, and ours; what is not served is refused, not ignored."""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..limits import Limits
from ..refusals import RequestRefused
from ..requests import MAX_SEED, PictureRequest
from .backend import ModelFacts

MAX_PARTIAL = 20  # partial pictures; the official client asks for 3 at most
RANDOM_SEEDS = 2**31
PRIORITIES = {"high": 0, "normal": 1, "low": 2}
EXTRA = "extra_forbidden"  # what pydantic calls a field that is not there


class ImagesBody(BaseModel):
    """A request for pictures."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    prompt: Annotated[str, Field(description="What to draw.")]
    model: Annotated[str | None, Field(description="One of /v1/models; the first by default.")] = None
    n: Annotated[int | None, Field(ge=1, description="Pictures, of seeds one after another.")] = None
    size: Annotated[str | None, Field(description="WIDTHxHEIGHT as the model draws it, or auto.")] = None
    quality: Annotated[
        str | None,
        Field(max_length=200, description="auto, the name of a certificate (low, medium, high), or a target."),
    ] = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "webp", "jpeg"] | None = None
    output_compression: Annotated[int | None, Field(ge=0, le=100, description="Of webp and jpeg.")] = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Annotated[
        Literal["auto", "low"] | None, Field(description="Taken and not used: nothing is moderated here.")
    ] = None
    user: Annotated[str | None, Field(max_length=512, description="Taken and not used.")] = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description="Taken and not used.")] = None
    stream: Annotated[bool | None, Field(description="Server-sent events; for one picture.")] = None
    partial_images: Annotated[int | None, Field(ge=0, le=MAX_PARTIAL, description="Where stream is true.")] = None

    policy: Annotated[str | None, Field(max_length=1000, description="policy @ solver / grid / steps.")] = None
    guidance: Annotated[float | None, Field(ge=-1000, le=1000, description="Weight of guidance.")] = None
    budget: Annotated[float | None, Field(ge=1, le=1e6, description="Calls after which the rest is forecast.")] = None
    deadline_ms: Annotated[int | None, Field(ge=1, le=10**9, description="When the picture must be ready.")] = None
    priority: Annotated[Literal["high", "normal", "low"] | None, Field(description="Its class.")] = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED - 1000, description="Of the first picture.")] = None
    negative_prompt: Annotated[str | None, Field(description="What guidance leads away from.")] = None
    trace: Annotated[bool | None, Field(description="Give the decisions back, too.")] = None

    @property
    def count(self) -> int:
        """Pictures that are asked for."""
        return self.n or 1

    @property
    def file_format(self) -> str:
        """Of the picture's file."""
        return self.output_format or "png"

    def requests(self, model: ModelFacts, limits: Limits) -> list[PictureRequest]:
        """The pictures to draw. Raises RequestRefused for what this model or server does not do."""
        self._check(model, limits)
        seed = secrets.randbelow(RANDOM_SEEDS) if self.seed is None else self.seed
        quality = "" if self.quality in (None, "auto") else str(self.quality)
        return [
            PictureRequest(
                self.prompt,
                self.negative_prompt or "",
                seed + k,
                model.name,
                self.policy or "",
                quality,
                self.guidance,
                math.inf if self.budget is None else self.budget,
                PRIORITIES[self.priority or "normal"],
                math.inf if self.deadline_ms is None else self.deadline_ms / 1000,
            )
            for k in range(self.count)
        ]

    def _check(self, model: ModelFacts, limits: Limits) -> None:
        height, width = model.size
        if self.size not in (None, "auto", f"{width}x{height}"):
            raise RequestRefused(
                f"size: {model.name} draws {width}x{height}, got {str(self.size)[:40]!r}. Say that, or auto.", "size"
            )
        if self.count > limits.pictures:
            raise RequestRefused(f"n: expected at most {limits.pictures}, got {self.count}.", "n")
        if self.stream and self.count > 1:
            raise RequestRefused(
                f"stream: one picture is streamed, n is {self.count}. Leave n or stream out.", "stream"
            )
        if self.partial_images and not self.stream:
            raise RequestRefused("partial_images: only where stream is true.", "partial_images")
        if self.output_compression is not None and self.file_format == "png":
            raise RequestRefused("output_compression: only of webp and jpeg.", "output_compression")


def read_body(data: bytes) -> ImagesBody:
    """The body of a request. Raises RequestRefused."""
    try:
        return ImagesBody.model_validate_json(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        what = first["msg"]
        if first["type"] == EXTRA:
            what = f"no such field. Fields: {', '.join(ImagesBody.model_fields)}"
        raise RequestRefused(f"{where or 'The body'}: {what}.", where or None) from None
