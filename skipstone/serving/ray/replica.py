"""An engine in a replica of Ray Serve: draws what it is asked, holds some of the models, reloads when it is told."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...errors import ServingError, SkipstoneError
from ...evaluation.row_times import choose_rows, measure_rows
from ..api.backend import LocalBackend, ModelFacts, Partial
from ..audit_state import AuditStates
from ..audits import Auditor
from ..engine import Engine
from ..models import ServedModel
from ..observers import Observers
from ..refusals import ReloadFailed
from ..reload import Reloader
from ..requests import Picture, PictureRequest
from .metrics import ray_metrics
from .settings import RaySettings

log = logging.getLogger("skipstone.serving")
MEASURED_ROWS = 128  # at most


class Held:
    """A model in a replica's cache; to be collected is to be unloaded.

    Args:
        release: Called then.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release

    def __del__(self) -> None:
        release, self._release = self._release, lambda: None
        release()


class EngineReplica:
    """The deployment that draws.

    Args:
        settings: Of the deployment.
    """

    def __init__(self, settings: RaySettings) -> None:
        if settings.threads:
            import torch

            torch.set_num_threads(settings.threads)
        self._settings, self._loader = settings, settings.loader
        first = next(iter(settings.models))
        served = {first: self._loader.load(first)}
        model = served[first].model
        rows = settings.rows or choose_rows(
            measure_rows(model.backbone, model.problem("a", 0, 1), MEASURED_ROWS),
        )
        metrics = ray_metrics()
        self._auditor = Auditor(settings.audit, AuditStates(folder=settings.state_folder), on_audit=metrics.on_audit)
        self._auditor.withdraw_known(served)
        self._engine = Engine(served, settings.limits, rows, settings.shedding, Observers((metrics, self._auditor)))
        self._backend = LocalBackend(self._engine)
        self._reloader = Reloader(self._engine, self, self._auditor.withdraw_known, metrics.on_reload)
        self._auditor.start(self._engine)
        self._changing, self._loading = threading.Lock(), asyncio.Lock()
        self._config: Mapping[str, Any] | None = None
        self.find: Callable[[str], Awaitable[Held]] = self.hold  # `application` puts Serve's cache before it

    # -- what Serve calls -----------------------------------------------------------------------------

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Reload where the `user_config` is another than before; a failure is logged, and the old serves still."""
        before, self._config = self._config, dict(config)
        if before is None:  # the replica starts
            await self.find(next(iter(self._settings.models)))
        if before is None or before == self._config:
            return
        with suppress(ReloadFailed):  # it is in the log
            models, report = await asyncio.to_thread(self._reloader.load)
            with self._changing:  # what was loaded or released meanwhile is as it is
                self._reloader.serve({n: models.get(n, one) for n, one in self._engine.models.items()}, report)

    def check_health(self) -> None:
        """Raise where the engine has stopped; Serve then starts another replica."""
        if not self._engine.is_ready:
            raise ServingError("The engine of this replica has stopped.")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._auditor.close()
            self._engine.close()

    # -- models ---------------------------------------------------------------------------------------

    def load_all(self, known: Mapping[str, ServedModel] | None = None) -> dict[str, ServedModel]:
        """The models that are held, read again, for the `Reloader`. Raises SkipstoneError."""
        return {name: self._loader.load(name, model) for name, model in (known or {}).items()}

    async def hold(self, name: str) -> Held:
        """Load a model, for Serve's cache. Raises SkipstoneError."""
        await self._load(name)
        return Held(lambda: self._release(name))

    async def _load(self, name: str) -> None:
        """Load a model where it is not there. Raises SkipstoneError."""
        async with self._loading:
            if name not in self._engine.models:
                model = await asyncio.to_thread(self._loader.load, name)
                self._auditor.withdraw_known({name: model})
                with self._changing:
                    self._engine.replace_models({**self._engine.models, name: model})

    def _release(self, name: str) -> None:
        """Hold a model no more; what runs on it is finished."""
        with self._changing:
            left = {key: model for key, model in self._engine.models.items() if key != name}
            self._engine.replace_models(left)

    async def _ready(self, name: str) -> None:
        """Have a model. Raises SkipstoneError."""
        await self.find(name)
        if name not in self._engine.models:  # released just then
            await self._load(name)

    # -- what the ingress calls -----------------------------------------------------------------------

    async def describe(self, name: str) -> ModelFacts | SkipstoneError:
        """The facts of a model, or why there are none."""
        try:
            await self._ready(name)
            return await self._backend.describe(name)
        except SkipstoneError as error:
            return error

    async def draw(self, requests: Sequence[PictureRequest]) -> list[Picture] | SkipstoneError:
        """The pictures, without what only the engine needs; or why there are none."""
        try:
            await self._ready(requests[0].model)
            return [_slim(picture) for picture in await self._backend.draw(requests)]
        except SkipstoneError as error:
            return error

    async def stream(self, request: PictureRequest, partial: int) -> AsyncIterator[Partial | Picture | SkipstoneError]:
        """Pictures on the way and the picture, or why there is none."""
        try:
            await self._ready(request.model)
            async for item in await self._backend.open_stream(request, partial):
                yield _slim(item) if isinstance(item, Picture) else _without_latent(item)
        except SkipstoneError as error:
            yield error

    async def identify(self) -> dict[str, Any]:
        """The process, and the models that it holds."""
        return {"pid": os.getpid(), "models": sorted(self._engine.models), "rows": self._engine.rows}


def _slim(picture: Picture) -> Picture:
    """A picture without its latent, which nobody beyond the engine needs."""
    return replace(picture, latent=None)


def _without_latent(item: Partial) -> Partial:
    return Partial(replace(item.progress, latent=None), item.pixels)
