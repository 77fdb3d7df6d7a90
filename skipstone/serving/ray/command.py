"""`skipstone serve --ray`: a Ray of this machine, or the cluster of RAY_ADDRESS, with the application on it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from .application import build
from .settings import RaySettings

NAME = "skipstone"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # no cluster, and no reports
STORE_BYTES = 256 * 2**20  # of Ray's shared memory: pictures are small


def start_ray(cpus: int | None = None) -> None:
    """Join the cluster of RAY_ADDRESS, or start a Ray of this machine, which only this machine reaches.

    Args:
        cpus: That Ray counts on this machine; None is all.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        for name, value in LOOPBACK.items():  # which Ray reads when it is imported
            os.environ.setdefault(name, value)
    import ray

    if address:
        ray.init()
        return
    ray.init(
        "local",
        num_cpus=cpus,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
    )


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
