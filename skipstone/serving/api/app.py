"""The application: routes, errors, and what every answer carries."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.resources import files as package_files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ... import __version__
from ...errors import SkipstoneError
from ..limits import Quotas
from ..refusals import Busy, Forbidden, ReloadFailed
from ..reload import Reloader, ReloadReport
from .answers import error_content
from .backend import Backend, ModelFacts
from .body import ImagesBody, read_body
from .drawing import Gone, draw_all, read_limited, stream_events
from .files import KeptFiles
from .keys import Keys

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
GONE = 499  # what nginx calls a client that closed its request; nobody reads it
STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
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
        backend: That draws.
        metrics: Text of its numbers, and the type of it.
        keys: Who may ask.
        hosts: Names under which it is reached; () for any. On loopback this keeps pages of other sites out.
        admin_keys: Of the operator; none lets nobody reload by HTTP.
        reloader: Reads models, policies and certificates again; None where that is done otherwise.
    """

    backend: Backend
    metrics: Callable[[], tuple[bytes, str]]
    keys: Keys = field(default_factory=Keys)
    hosts: Sequence[str] = ()
    admin_keys: Keys = field(default_factory=Keys)
    reloader: Reloader | None = None


def create_app(site: Site) -> FastAPI:
    """The application of an engine."""
    lifespan = _reload_on_signal(site.reloader) if site.reloader is not None else None
    app = FastAPI(title="Skipstone", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    if site.hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(site.hosts), www_redirect=False)
    _add_errors(app)
    _add_images(app, site)
    _add_models(app, site)
    _add_health(app, site)
    _add_admin(app, site)
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
    backend = site.backend
    limits = backend.limits
    quotas, kept = Quotas(limits.per_minute, backend.clock), KeptFiles(backend.clock)
    schema = {"content": {"application/json": {"schema": ImagesBody.model_json_schema()}}, "required": True}

    @app.post("/v1/images/generations", openapi_extra={"requestBody": schema})
    async def generate_images(request: Request) -> Response:
        """Draw pictures."""
        key = site.keys.check(request.headers.get("authorization"))
        body = read_body(await read_limited(request, limits.body))
        model = await backend.describe(body.model or "")
        requests = body.requests(model, limits)
        quotas.spend(key, len(requests))
        if body.stream:
            items = await backend.open_stream(requests[0], body.partial_images or 0)
            return StreamingResponse(stream_events(items, body), headers=STREAM_HEADERS)
        return JSONResponse(await draw_all(backend, requests, body, kept, request))

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
        models = [_describe_model(model, started) for model in await site.backend.describe_all()]
        return {"object": "list", "data": models}

    @app.get("/v1/models/{name:path}")
    async def find_model(request: Request, name: str) -> dict[str, Any]:
        """One of them."""
        site.keys.check(request.headers.get("authorization"))
        return _describe_model(await site.backend.describe(name), started)


def _describe_model(model: ModelFacts, started: int) -> dict[str, Any]:
    height, width = model.size
    return {
        "id": model.name,
        "object": "model",
        "created": started,
        "owned_by": "skipstone",
        "size": f"{width}x{height}",
        "policy": model.policy,
        "qualities": model.qualities,
        "students": list(model.students),
        "fingerprint": model.fingerprint,
        "changed": model.changed,
    }


def _add_health(app: FastAPI, site: Site) -> None:
    @app.get("/healthz")
    async def is_alive() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def is_ready() -> Response:
        """Whether requests are accepted."""
        ready = site.backend.is_ready
        return JSONResponse({"status": "ready" if ready else "closing"}, 200 if ready else 503)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        """Numbers for Prometheus."""
        text, media_type = site.metrics()
        return Response(text, headers={"Content-Type": media_type})


def _add_admin(app: FastAPI, site: Site) -> None:
    @app.post("/admin/reload")
    async def reload(request: Request) -> dict[str, Any]:
        """Read models, policies and certificates again; who runs finishes on the old."""
        if site.reloader is None or not site.admin_keys.digests:
            raise Forbidden("No operator's key is known here. Start with --admin-keys FILE, or send SIGHUP.")
        site.admin_keys.check(request.headers.get("authorization"))
        return asdict(await _reload(site.reloader))


async def _reload(reloader: Reloader) -> ReloadReport:
    """Load in a thread, and replace in the loop: no route sees half of it. Raises ReloadFailed."""
    return reloader.serve(*await asyncio.to_thread(reloader.load))


def _reload_on_signal(reloader: Reloader) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Reload on SIGHUP while the application runs; nothing where signals cannot be taken."""
    tasks: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with suppress(ReloadFailed):  # it is in the log
            await _reload(reloader)

    def on_signal() -> None:
        task = asyncio.get_running_loop().create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        with suppress(NotImplementedError, RuntimeError, ValueError, AttributeError):  # Windows, another thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_signal)
        yield

    return run


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
