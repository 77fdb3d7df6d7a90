"""The application: routes, errors, and what every answer carries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ... import __version__
from ...errors import SkipstoneError
from ..engine import Engine
from ..limits import Quotas
from ..metrics import Metrics
from ..models import ServedModel
from ..refusals import Busy
from .answers import error_content
from .body import ImagesBody, read_body
from .drawing import Gone, Stream, draw_all, read_limited
from .files import KeptFiles
from .keys import Keys

GONE = 499  # what nginx calls a client that closed its request; nobody reads it
PAGE_FILES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Site:
    """What the routes share.

    Args:
        engine: That draws.
        metrics: Its numbers.
        keys: Who may ask.
        hosts: Names under which it is reached; () for any. On loopback this keeps pages of other sites out.
    """

    engine: Engine
    metrics: Metrics
    keys: Keys = field(default_factory=Keys)
    hosts: Sequence[str] = ()


def create_app(site: Site) -> FastAPI:
    """The application of an engine."""
    app = FastAPI(title="Skipstone", version=__version__, docs_url=None, redoc_url=None)
    if site.hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(site.hosts), www_redirect=False)
    _add_errors(app)
    _add_images(app, site)
    _add_models(app, site)
    _add_health(app, site)
    _add_page(app)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(SkipstoneError)
    async def refuse(request: Request, error: SkipstoneError) -> Response:
        status, code = getattr(error, "status", 400), getattr(error, "code", "invalid_request")
        headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Busy) else {}
        if status >= 500 and status != 503:
            headers["x-should-retry"] = "false"  # the official client would ask again, for the same error
        content = error_content(str(error), code, getattr(error, "parameter", None), status)
        return JSONResponse(content, status, headers)

    @app.exception_handler(Gone)
    async def leave(request: Request, error: Gone) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return JSONResponse(error_content(message, "not_found", None, error.status_code), error.status_code)


def _add_images(app: FastAPI, site: Site) -> None:
    engine = site.engine
    quotas = Quotas(engine.limits.per_minute, engine.clock)
    kept = KeptFiles(engine.clock)
    schema = {"content": {"application/json": {"schema": ImagesBody.model_json_schema()}}, "required": True}

    @app.post("/v1/images/generations", openapi_extra={"requestBody": schema})
    async def generate_images(request: Request) -> Response:
        """Draw pictures."""
        key = site.keys.check(request.headers.get("authorization"))
        body = read_body(await read_limited(request, engine.limits.body))
        model = engine.find_model(body.model or "")
        requests = body.requests(model, engine.limits)
        quotas.spend(key, len(requests))
        if body.stream:
            stream = Stream(engine, requests[0], body)
            return StreamingResponse(
                stream.events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        return JSONResponse(await draw_all(engine, requests, body, kept, request))

    @app.get("/pictures/{name}")
    async def fetch_picture(name: str) -> Response:
        """A picture of an answer by URL; kept for an hour."""
        if (found := kept.find(name)) is None:
            raise HTTPException(404, "No such picture, or none any more.")
        return Response(found.data, media_type=found.media_type)


def _add_models(app: FastAPI, site: Site) -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """The models that are served."""
        site.keys.check(request.headers.get("authorization"))
        models = [_describe_model(model, started) for model in site.engine.models.values()]
        return {"object": "list", "data": models}

    @app.get("/v1/models/{name:path}")
    async def find_model(request: Request, name: str) -> dict[str, Any]:
        """One of them."""
        site.keys.check(request.headers.get("authorization"))
        return _describe_model(site.engine.find_model(name), started)


def _describe_model(model: ServedModel, started: int) -> dict[str, Any]:
    height, width = model.size
    return {
        "id": model.name,
        "object": "model",
        "created": started,
        "owned_by": "skipstone",
        "size": f"{width}x{height}",
        "policy": model.choices.default.spec,
        "qualities": {
            name: {"policy": one.spec, "target": one.target, "promise": one.promise}
            for name, one in model.choices.certificates.items()
        },
    }


def _add_health(app: FastAPI, site: Site) -> None:
    @app.get("/healthz")
    async def is_alive() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def is_ready() -> Response:
        """Whether requests are accepted."""
        ready = site.engine.is_ready
        return JSONResponse({"status": "ready" if ready else "closing"}, 200 if ready else 503)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(site.metrics.text(), headers={"Content-Type": site.metrics.media_type})


def _add_page(app: FastAPI) -> None:
    folder = package_files("skipstone.serving") / "page"
    content = {name: (folder / name).read_bytes() for name in PAGE_FILES}

    def route(name: str) -> Any:
        async def page() -> Response:
            return Response(content[name], media_type=PAGE_FILES[name], headers=PAGE_HEADERS)

        return page

    for name in PAGE_FILES:
        path = "/" if name == "index.html" else f"/{name}"
        app.get(path, include_in_schema=False)(route(name))
