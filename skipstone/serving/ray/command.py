"""`skipstone serve --ray`: a Ray of this machine, or the cluster of RAY_ADDRESS, with the application on it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from ...evaluation.ray_cluster import start_ray
from .application import build
from .settings import RaySettings

NAME = "skipstone"


def deploy(settings: RaySettings, host: str, port: int) -> Any:
    """Start the application; returns once all its replicas are ready."""
    from ray import serve

    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    return serve.run(build(settings.model_dump()), name=NAME, route_prefix="/")


def run(settings: RaySettings, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, and then finish what was accepted."""
    import ray
    from ray import serve

    stopping = threading.Event()
    needed = int(settings.cpus * max(settings.replicas, settings.max_replicas)) + 1
    start_ray(max(needed, os.cpu_count() or 1))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        deploy(settings, host, port)
        on_ready()
        stopping.wait()
        _drain(settings.drain_s)
        if not os.environ.get("RAY_ADDRESS"):  # on a cluster there may be applications of others
            serve.shutdown()
    finally:
        ray.shutdown()


def _drain(seconds: float) -> None:
    """Finish what runs, and accept no more; `serve.shutdown` by itself would end the connections."""
    from ray import serve

    end = time.monotonic() + seconds
    while True:
        try:
            serve.delete(NAME)  # waits for a minute
        except TimeoutError:
            if time.monotonic() < end:
                continue
        return
