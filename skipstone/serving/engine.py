"""One thread that owns the networks and calls them for all requests; everything else only waits or hands over.

A request goes: `submit` (any thread) -> text encoded (a thread of its own) -> the queue -> admitted between two calls
of a network -> denoised together with all others -> decoded (a thread of its own) -> its future.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from ..engine.contracts import Run
from ..engine.requests import Result
from ..errors import PromptError, SkipstoneError
from ..settings import shorten
from .batcher import Batcher, Forward, Sample
from .expectations import CallSeconds, RunningMeans
from .limits import Limits
from .loading import ModelLoader
from .models import ServedModel
from .observers import Observer
from .order import Rank, Turn, find_next
from .refusals import Busy, Closing, DeadlineInfeasible, DeadlineMissed, DrawingFailed, RequestRefused, UnknownModel
from .requests import Picture, PictureRequest, Progress, ProgressCallback
from .settings import Setting, cover
from .shedding import Shedding

log = logging.getLogger("skipstone.serving")
IDLE_SECONDS = 0.5  # between looks at deadlines where nothing else happens
MEMORY = 0.9  # weight of the past in the running mean of seconds between pictures


@dataclass(eq=False)
class _Entry:
    """A request from its acceptance to its picture."""

    request: PictureRequest
    model: ServedModel
    setting: Setting
    rank: Rank
    future: Future[Picture]
    accepted: float
    since: int  # pictures admitted before it came
    calls: float  # that it is expected to cost
    watch: ProgressCallback | None = None
    shed: bool = False  # whether a faster certificate draws it than was meant to
    sample: Sample | None = None  # once its text is encoded
    admitted: float = 0.0
    number: int = -1  # in the batcher


@dataclass(eq=False)
class Engine:
    """Draws pictures for many at once, each as it would be alone.

        with Engine.of("pebble") as engine:
            picture = engine.submit("a red apple on a blue background").result()
            async_picture = await engine.draw("a cat")          # in a coroutine
            for step in engine.stream("a frog"):                # Progress, ..., Picture
                print(step)

    Args:
        models: By name; the first is that of requests that name none.
        limits: What is accepted.
        rows: That enter a network at once, >= 1.
        shedding: When a faster certificate draws for those who leave it to the engine.
        observer: Hears of each event of the engine.
        clock: Seconds, never falling.
    """

    models: Mapping[str, ServedModel]
    limits: Limits = field(default_factory=Limits)
    rows: int = 32
    shedding: Shedding = field(default_factory=Shedding)
    observer: Observer = field(default_factory=Observer)
    clock: Callable[[], float] = time.monotonic
    _waiting: dict[int, _Entry] = field(default_factory=dict, init=False)
    _running: dict[int, _Entry] = field(default_factory=dict, init=False)  # by their numbers in the batcher
    _decoding: int = field(default=0, init=False)
    _admitted: int = field(default=0, init=False)
    _numbers: Any = field(default_factory=itertools.count, init=False)
    _closing: bool = field(default=False, init=False)
    _shedding: bool = field(default=False, init=False)
    _seconds_each: float = field(default=0.0, init=False)  # between finished pictures, a running mean
    _finished_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._batcher = Batcher(self.rows, on_forward=self._on_forward)
        self._calls = RunningMeans()  # of a picture, by the setting's spec
        self._call_seconds = CallSeconds()
        self._texts = ThreadPoolExecutor(1, "skipstone-text")
        self._decoder = ThreadPoolExecutor(1, "skipstone-decode")
        self._thread = threading.Thread(target=self._work, name="skipstone-engine", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, *models: str, policy: str = "balanced", limits: Limits | None = None, **settings: Any) -> Engine:
        """An engine of models by their names or folders.

        Args:
            models: As `skipstone generate --model` takes them, of packages of models.
            policy: Spec, or folder, of what draws where a request says nothing.
            limits: What is accepted.
            settings: `rows`, `shedding`, `observer`, `clock`.

        Raises:
            SkipstoneError: a model or policy that cannot be read.
        """
        limits = limits or Limits()
        loader = ModelLoader({m: m for m in models or ("pebble",)}, policy, limits=limits)
        return cls(loader.load_all(), limits, **settings)

    # -- for those who want pictures --------------------------------------------------------------

    def submit(
        self, request: PictureRequest | str, watch: ProgressCallback | None = None, **settings: Any
    ) -> Future[Picture]:
        """Accept a request; its future gives the picture. `future.cancel()` ends it at any time.

        Args:
            request: A request, or its prompt.
            watch: Called by the engine's thread whenever the sample is about to decide; must return soon.
            settings: Of a `PictureRequest`, where `request` is a prompt.

        Raises:
            RequestRefused: what is not served, a full queue, an engine that closes.
            SpecError, PromptError: a request that cannot be understood.
        """
        made = PictureRequest(request, **settings) if isinstance(request, str) else request
        return self.submit_all([made], [watch])[0]

    def submit_all(
        self, requests: Sequence[PictureRequest], watches: Sequence[ProgressCallback | None] = ()
    ) -> list[Future[Picture]]:
        """Accept all of these requests, or none. Raises as `submit`."""
        entries = [
            self._enter(request, watch) for request, watch in itertools.zip_longest(requests, watches[: len(requests)])
        ]
        with self._changed:
            if self._closing:
                raise Closing("The server is closing and accepts no more requests. Try another, or later.")
            if len(self._waiting) + len(entries) > self.limits.queue:
                raise Busy(f"{len(self._waiting)} pictures wait already. Try again later.", self._retry_after())
            for entry in entries:
                entry.since = self._admitted
                self._waiting[entry.rank.number] = entry
            self.observer.on_accepted(len(entries))
        for entry in entries:
            self._texts.submit(self._prepare, entry)
        return [entry.future for entry in entries]

    async def draw(
        self, request: PictureRequest | str, watch: ProgressCallback | None = None, **settings: Any
    ) -> Picture:
        """The picture; to cancel the coroutine ends the request. Arguments and errors as of `submit`."""
        return await asyncio.wrap_future(self.submit(request, watch, **settings))

    def stream(self, request: PictureRequest | str, **settings: Any) -> Iterator[Progress | Picture]:
        """Progress as it comes, and the picture last; to close the generator ends the request."""
        news: queue.SimpleQueue[Progress | Future[Picture]] = queue.SimpleQueue()
        future = self.submit(request, news.put, **settings)
        future.add_done_callback(news.put)
        try:
            while not isinstance(step := news.get(), Future):
                yield step
            yield step.result()
        finally:
            future.cancel()

    def decode(self, model: ServedModel, latent: Any) -> Future[Any]:
        """The pixels of a clean estimate that `Progress` has shown, of a request that this model has drawn."""
        return self._decoder.submit(model.decode, latent)

    # -- for those who run it ---------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self._thread.is_alive() and not self._closing

    @property
    def load(self) -> tuple[int, int]:
        """Pictures that wait, and pictures that are drawn."""
        with self._changed:
            return len(self._waiting), len(self._running) + self._decoding

    def find_model(self, name: str) -> ServedModel:
        """A model by its name; "" is the first. Raises UnknownModel."""
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel(f"No model {shorten(name)} is served. Known: {', '.join(self.models)}.", "model")
        return self.models[name]

    def replace_models(self, models: Mapping[str, ServedModel]) -> None:
        """Serve these from now on; what was accepted is finished by the model that it was accepted for."""
        with self._changed:
            self.models = dict(models)

    def close(self, drain: bool = True) -> None:
        """Accept no more; finish what was accepted, or, where `drain` is False, end it. Waits for it."""
        with self._changed:
            self._closing = True
            if not drain:
                for entry in (*self._waiting.values(), *self._running.values()):
                    entry.future.cancel()
            self._changed.notify_all()
        self._thread.join()
        self._texts.shutdown()
        self._decoder.shutdown()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=error is None)

    # -- before a request is admitted -------------------------------------------------------------

    def _enter(self, request: PictureRequest, watch: ProgressCallback | None) -> _Entry:
        """A request, held against the limits. Raises as `submit`."""
        model = self.find_model(request.model)
        if not request.prompt.strip():
            raise PromptError('The prompt is empty. Say what to draw: "a red apple on a blue background".')
        for name in ("prompt", "negative_prompt"):
            if len(getattr(request, name)) > self.limits.prompt:
                raise RequestRefused(
                    f"{name}: expected at most {self.limits.prompt} characters, got {len(getattr(request, name))}.",
                    name,
                )
        setting = model.choices.choose(request.policy, request.quality)
        shed = self._shed(model, request)
        now = self.clock()
        rank = Rank(request.priority, now + request.deadline, next(self._numbers))
        future: Future[Picture] = Future()
        covered = cover(shed or setting, _differences(request, model))
        calls = self._expect(request, model, covered)
        return _Entry(request, model, covered, rank, future, now, 0, calls, watch, shed is not None)

    def _expect(self, request: PictureRequest, model: ServedModel, setting: Setting) -> float:
        """Calls that a request is expected to cost. Raises DeadlineInfeasible where they alone take too long."""
        with self._changed:
            usual = self._calls.get(setting.spec, min(setting.calls, setting.full_calls))
            seconds = self._call_seconds.get(model.name)
        calls = min(usual, request.budget, self.limits.calls)
        if calls * seconds > request.deadline:
            raise DeadlineInfeasible(
                f"The picture takes {calls * seconds:.2g} s even where nothing else is drawn ({calls:.0f} calls of "
                f"{1000 * seconds:.1f} ms), and is wanted within {request.deadline:g} s. Allow more time, or ask for "
                f"a faster quality or policy.",
                "deadline",
            )
        return calls

    def _shed(self, model: ServedModel, request: PictureRequest) -> Setting | None:
        """The setting that draws a request faster, where it leaves that to the engine and many wait; else None."""
        with self._changed:
            self._shedding = self.shedding.is_on(self._shedding, len(self._waiting))
            on = self._shedding
        if not on or not self.shedding.covers(request.policy, request.quality, request.priority):
            return None
        return model.choices.certificates.get(self.shedding.quality)

    def _prepare(self, entry: _Entry) -> None:
        """Encode the text and hand the sample to the engine's thread."""
        try:
            problem = entry.model.problem(entry.request, entry.setting)
            problem = replace(problem, budget=min(problem.budget, self.limits.calls))
            backbone = entry.model.backbone(entry.request, entry.setting)
            setting = entry.setting
            watch = _watch_progress(entry.watch) if entry.watch else None
            sample = Sample(backbone, problem, setting.solver, setting.policy, entry.rank, entry.calls, watch)
        except Exception as error:
            with self._changed:
                self._waiting.pop(entry.rank.number, None)
            self._refuse(entry, error)
            return
        with self._changed:
            entry.sample = sample
            self._changed.notify_all()

    def _retry_after(self) -> int:
        """Seconds after which a place in the queue is likely to be free."""
        return math.ceil(min(60.0, self._seconds_each * max(1, len(self._waiting)) / 4))

    # -- the engine's thread ----------------------------------------------------------------------

    def _work(self) -> None:
        """Loop; where that ends by a fault, tell all who wait instead of letting them wait for ever."""
        try:
            self._loop()
        except Exception as error:
            log.exception("the engine has stopped")
            with self._changed:
                self._closing = True
                left = (*self._waiting.values(), *self._running.values())
                self._waiting.clear()
                self._running.clear()
            for entry in left:
                self._refuse(entry, error)

    def _loop(self) -> None:
        while self._admit():
            self._drop()
            try:
                done = self._batcher.tick()
            except Exception as error:  # a fault of ours: those who run fail, and the engine goes on with a new batcher
                log.exception("a tick of the batcher failed")
                done = dict.fromkeys(self._running, error)
                self._batcher = Batcher(self.rows, on_forward=self._on_forward)
            for number, outcome in done.items():
                self._hand_over(number, outcome)

    def _admit(self) -> bool:
        """Admit who is next; waits where there is nothing to do. False once all is done and the engine closes."""
        with self._changed:
            while not self._running:
                self._drop_waiting()
                if self._closing and not self._waiting and not self._decoding:
                    return False
                if self._places and any(e.sample for e in self._waiting.values()):
                    break
                self.observer.on_load(len(self._waiting), 0)
                self._changed.wait(IDLE_SECONDS)
            self._drop_waiting()
            ready = {n: Turn(e.rank, e.since, e.calls) for n, e in self._waiting.items() if e.sample}
            while ready and self._places:
                number = find_next(ready, self._admitted, self.limits.patience)
                del ready[number]
                self._admit_one(self._waiting.pop(number))
            self.observer.on_load(len(self._waiting), len(self._running))
        return True

    def _admit_one(self, entry: _Entry) -> None:
        assert entry.sample is not None
        entry.admitted = self.clock()
        entry.number = self._batcher.admit(entry.sample)
        self._running[entry.number] = entry
        self._admitted += 1

    @property
    def _places(self) -> int:
        """Pictures that may be admitted now; those that wait to be decoded take a place too, so that they stay few."""
        return max(0, self.limits.running - len(self._running) - self._decoding)

    def _drop_waiting(self) -> None:
        """Forget who waits and was cancelled, or whose deadline is over."""
        now = self.clock()
        for number, entry in list(self._waiting.items()):
            if entry.future.cancelled() or entry.rank.deadline < now:
                del self._waiting[number]
                self._refuse(entry, _late(entry))

    def _drop(self) -> None:
        """Take out who runs and was cancelled, or whose deadline is over; others get the rows."""
        now = self.clock()
        for number, entry in list(self._running.items()):
            if entry.future.cancelled() or entry.rank.deadline < now:
                self._batcher.remove(number)
                with self._changed:
                    del self._running[number]
                self._refuse(entry, _late(entry))

    def _on_forward(self, forward: Forward) -> None:
        """Count what a call has cost."""
        entry = self._running.get(forward.first)
        if entry is not None:
            with self._changed:
                self._call_seconds.add(entry.model.name, forward.samples, forward.seconds)
        self.observer.on_forward(forward)

    def _hand_over(self, number: int, outcome: Result | Exception) -> None:
        with self._changed:
            entry = self._running.pop(number, None)
            if entry is None:
                return
            self._decoding += 1
        self._decoder.submit(self._finish, entry, outcome)

    def _finish(self, entry: _Entry, outcome: Result | Exception) -> None:
        """Decode a sample and set the future, in the thread of the decoder."""
        try:
            if isinstance(outcome, Exception):
                raise outcome
            picture = self._picture(entry, outcome)
        except Exception as error:
            self._refuse(entry, error)
        else:
            now = self.clock()
            gap, self._finished_at = now - self._finished_at, now
            self._seconds_each = MEMORY * self._seconds_each + (1 - MEMORY) * min(gap, picture.seconds)
            with self._changed:
                self._calls.add(entry.setting.spec, picture.calls)
            with suppress(InvalidStateError):  # cancelled meanwhile
                entry.future.set_result(picture)
            self.observer.on_picture(picture)
        finally:
            with self._changed:
                self._decoding -= 1
                self._changed.notify_all()

    def _picture(self, entry: _Entry, result: Result) -> Picture:
        pixels = entry.model.decode(result.x)
        setting, now = entry.setting, self.clock()
        return Picture(
            pixels,
            entry.request,
            entry.model.name,
            result.run,
            result.status,
            setting.spec,
            setting.full_calls,
            setting.certificate,
            setting.promise,
            entry.admitted - entry.accepted,
            now - entry.accepted,
            entry.shed,
            result.x,
            entry.model.fingerprint,
        )

    def _refuse(self, entry: _Entry, error: Exception) -> None:
        """Set a future to an error of ours."""
        if not isinstance(error, SkipstoneError):
            log.error("a request failed", exc_info=error)
            error = DrawingFailed(f"The request failed: {type(error).__name__}: {error}")
        cancelled = entry.future.cancelled()
        with suppress(InvalidStateError):
            entry.future.set_exception(error)
        self.observer.on_failed("cancelled" if cancelled else getattr(error, "code", type(error).__name__))


def _differences(request: PictureRequest, model: ServedModel) -> list[str]:
    """What a request changes of what certificates are made for."""
    changed = {
        "guidance": request.guidance not in (None, model.model.guidance),
        "negative prompt": bool(request.negative_prompt.strip()),
        "budget": request.budget < math.inf,
    }
    return [name for name, differs in changed.items() if differs]


def _late(entry: _Entry) -> DeadlineMissed:
    return DeadlineMissed(f"The picture was not ready within {entry.request.deadline:g} s, as was asked for.")


def _watch_progress(watch: ProgressCallback) -> Callable[[Run, Any], None]:
    def on_progress(run: Run, clean: Any) -> None:
        share = (run.grid[0] - run.next_start) / (run.grid[0] - run.t_end)
        watch(Progress(share, run.cost, clean))

    return on_progress
