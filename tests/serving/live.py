"""A real server on a free port of loopback, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from skipstone.serving.api.app import Site, create_app
from skipstone.serving.api.backend import LocalBackend
from skipstone.serving.engine import Engine
from skipstone.serving.metrics import Metrics

HOSTS = ("127.0.0.1", "localhost")


@contextmanager
def live(engine: Engine, add: Any = None, **site: Any) -> Iterator[str]:
    """The address of a server of this engine; the engine stays open.

    Args:
        engine: That draws.
        add: Called with the application before it starts.
        site: `keys`, `hosts`, `admin_keys`, `reloader`.
    """
    metrics = engine.observer if isinstance(engine.observer, Metrics) else Metrics()
    app = create_app(Site(LocalBackend(engine), metrics.page, **site))
    if add is not None:
        add(app)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
