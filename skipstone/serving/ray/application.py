"""What `serve deploy` imports: `import_path: skipstone.serving.ray.application:build`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api.app import LOOPBACK_NAMES, Site, create_app
from ..api.keys import Keys
from .backend import RayBackend
from .replica import EngineReplica, Held
from .settings import ENGINE, INGRESS, RaySettings

METRICS = b"# Ray exports the numbers of the engines, on each node: see skipstone_ under its metrics.\n"
INGRESS_REQUESTS = 10_000  # that an ingress holds: it only waits for engines


class Ingress:
    """The deployment of the HTTP interface.

    Args:
        settings: Of the deployment.
        engines: Handle of the engines.
    """

    def __init__(self, settings: RaySettings, engines: Any) -> None:
        self._settings, self._engines = settings, engines

    def __serve_build_asgi_app__(self) -> Any:
        """The application, once the replica starts."""
        keys = Keys.read(Path(self._settings.api_keys)) if self._settings.api_keys else Keys()
        backend = RayBackend(self._settings, self._engines)
        hosts = () if keys.digests else LOOPBACK_NAMES  # without keys for this machine only
        return create_app(Site(backend, lambda: (METRICS, "text/plain"), keys, hosts))


def build(args: Mapping[str, Any]) -> Any:
    """The application of a Serve config file.

    Args:
        args: Of the file; see `RaySettings`.

    Raises:
        SpecError: an argument that is not known, or out of range.
    """
    from ray import serve

    settings = RaySettings.read(args)

    class Engine(EngineReplica):
        """An engine whose models are in Serve's cache."""

        def __init__(self, settings: RaySettings) -> None:
            super().__init__(settings)
            self.find = self.multiplexed

        async def multiplexed(self, name: str) -> Held:
            """The model, from the cache or loaded."""
            return await self.hold(name)

    Engine.multiplexed = serve.multiplexed(max_num_models_per_replica=settings.models_each)(  # type: ignore[method-assign]
        Engine.multiplexed
    )
    engines = serve.deployment(
        name=ENGINE,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=settings.queue + settings.running,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.drain_s,
        user_config={"reload": 0},
        **settings.scaling,
    )(Engine)
    ingress = serve.deployment(
        name=INGRESS,
        num_replicas=settings.ingresses,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=settings.drain_s,
    )(serve.ingress()(Ingress))
    return ingress.bind(settings, engines.bind(settings))
