"""Models, policies and certificates anew, while requests go on: the new ones serve what comes, the old what runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import SkipstoneError
from .engine import Engine
from .fingerprint import weights_fingerprint
from .models import ServedModel
from .refusals import ReloadFailed

log = logging.getLogger("skipstone.serving")
LOOK_SECONDS = 5.0  # between looks at the dates of the models' files


class Loads(Protocol):
    """Reads models; a `ModelLoader` does."""

    def load_all(self, known: Mapping[str, ServedModel] | None = None) -> dict[str, ServedModel]:
        """All models. Raises SkipstoneError."""


@dataclass(frozen=True)
class ReloadReport:
    """What a reload has done.

    Args:
        models: Name -> fingerprint of the weights that serve now.
        replaced: Names of the models whose weights are new.
        seconds: It took.
    """

    models: Mapping[str, str]
    replaced: tuple[str, ...]
    seconds: float


@dataclass(eq=False)
class Reloader:
    """Reads everything again, and hands it to an engine where all of it is good.

    Args:
        engine: That draws.
        loader: What to read.
        check: Called with the new models; raises SkipstoneError where the server cannot use them.
        on_reload: Called with whether it went well.
        on_change: Called with a model's name and whether its files are others than those that were loaded.
        clock: Seconds, never falling.
    """

    engine: Engine
    loader: Loads
    check: Callable[[Mapping[str, ServedModel]], None] = lambda models: None
    on_reload: Callable[[bool], None] = lambda good: None
    on_change: Callable[[str, bool], None] = lambda model, changed: None
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _noticed: dict[str, str] = field(default_factory=dict, init=False)  # model -> its fingerprint, once it was said

    def __post_init__(self) -> None:
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> tuple[dict[str, ServedModel], ReloadReport]:
        """Read everything, and serve none of it yet. Raises ReloadFailed."""
        if not self._lock.acquire(blocking=False):
            raise ReloadFailed("Another reload is going on. Wait until it has ended.")
        began, before = self.clock(), self.engine.models
        try:
            models = self.loader.load_all(before)
            self.check(models)
        except Exception as error:
            self.on_reload(False)
            said = str(error) if isinstance(error, SkipstoneError) else f"{type(error).__name__}: {error}"
            log.error("a reload has failed, and nothing has changed: %s", said)
            raise ReloadFailed(f"Nothing has changed, since a reload has failed: {said}") from error
        finally:
            self._lock.release()
        prints = {name: model.fingerprint for name, model in models.items()}
        new = tuple(name for name in models if name not in before or before[name].fingerprint != prints[name])
        return models, ReloadReport(prints, new, self.clock() - began)

    def serve(self, models: Mapping[str, ServedModel], report: ReloadReport) -> ReloadReport:
        """Serve what was loaded from now on."""
        self.engine.replace_models(models)
        self.on_reload(True)
        log.warning("reloaded in %.1f s; new weights: %s", report.seconds, ", ".join(report.replaced) or "none")
        self.look()
        return report

    def reload(self) -> ReloadReport:
        """Read everything and serve it. Raises ReloadFailed; then what was served is served still."""
        return self.serve(*self.load())

    def look(self) -> list[str]:
        """Names of the models whose files are others than those that were loaded; each change is logged once."""
        changed = []
        for name, model in self.engine.models.items():
            differs = model.has_changed and self._describe(model) != model.fingerprint
            self.on_change(name, differs)
            if differs:
                changed.append(name)
        return changed

    def _describe(self, model: ServedModel) -> str:
        """The fingerprint of a model's files now; "" of what cannot be read."""
        assert model.source.folder is not None
        try:
            found = weights_fingerprint(model.source.folder)
        except SkipstoneError:
            found = ""
        if found != model.fingerprint and self._noticed.get(model.name) != found:
            log.warning(
                "the files of %s in %s have changed; what was loaded is served until a reload: SIGHUP, or POST "
                "/admin/reload",
                model.name,
                model.source.folder,
            )
        self._noticed[model.name] = found
        return found

    def start(self) -> None:
        """Look at the files every few seconds, in a thread, until `close`."""
        self._thread = threading.Thread(target=self._work, name="skipstone-files", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            self.look()
