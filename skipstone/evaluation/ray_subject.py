"""A subject whose batches are drawn by the workers of a Ray cluster; needs the extra `ray`.

Each worker has the model. A batch goes to one worker as it is, so that a sample has the companions that it has without
Ray, and the same result. A batch whose worker dies is drawn again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from ..errors import BackboneError, SkipstoneError
from .columns import Column
from .ray_cluster import start_ray
from .subject import DrawJob, GeneratedSample, SampleProgressCallback, SampleRequest, Subject

START_SECONDS = 600  # in which all workers must have a place; clusters that grow take minutes
AHEAD = 2  # batches of each worker that are sent before they are asked for: one is computed, the other waits


@dataclass(frozen=True, eq=False)
class RemoteSample(GeneratedSample):
    """A sample with its picture, which its worker has decoded."""

    pixels: Any = None


class DrawnBatch(NamedTuple):
    """What a worker sends back: samples, their pictures, seconds, and what a recording solver has recorded."""

    generated: list[GeneratedSample]
    pictures: list[Any]
    seconds: float
    lines: list[Any]


class Worker:
    """One process of the cluster, with the model.

    Args:
        make: Makes the subject; what it is made from must be on the worker's machine.
    """

    def __init__(self, make: Callable[[], Subject]) -> None:
        self.make = make
        self.subject: Subject | None = None

    def process(self) -> int:
        """The number of its process."""
        import os

        return os.getpid()

    def draw(self, items: Sequence[SampleRequest], column: Column) -> DrawnBatch | SkipstoneError:
        """Draw and decode one batch. Errors of ours are values: a worker that raises has no other fault."""
        try:
            if self.subject is None:
                self.subject = self.make()
            self.subject.load([column])
            generated, seconds = self.subject.draw(items, column)
            return DrawnBatch(generated, self.subject.pictures(generated), seconds, _lines(column) or [])
        except SkipstoneError as e:
            return e


@dataclass
class Pending:
    """A batch that is under way.

    Args:
        job: The batch. It is kept, so that its `id` stays its own.
        worker: Index of the worker that draws it.
        reply: Ray's reference to the result.
    """

    job: DrawJob
    worker: int
    reply: Any


@dataclass
class RaySubject:
    """Draws on the workers of a cluster, and asks the local model for everything else.

    Args:
        local: The same model in this process.
        workers: Ray actors of `Worker`, >= 1.
    """

    local: Subject
    workers: Sequence[Any]
    _pending: dict[tuple[tuple[SampleRequest, ...], int], Pending] = field(default_factory=dict)
    _waiting: deque[DrawJob] = field(default_factory=deque)

    def __getattr__(self, name: str) -> Any:
        if name == "draw_each" or name.startswith("__"):  # batches of different columns stay those of single samples
            raise AttributeError(name)
        return getattr(self.local, name)

    def prefetch(self, jobs: Sequence[DrawJob]) -> None:
        """Begin with batches that will be drawn next, in this order; those of an earlier call are forgotten."""
        import ray

        for left in self._pending.values():
            ray.cancel(left.reply, force=False)
        self._pending.clear()
        self._waiting = deque(jobs)
        self._fill()

    def draw(
        self, items: Sequence[SampleRequest], column: Column, watch: SampleProgressCallback | None = None
    ) -> tuple[list[GeneratedSample], float]:
        """The samples in one batch of a worker, and its seconds. Raises what the worker's model raises."""
        job = DrawJob(items, column)
        found = self._take(job) or self._send(job)
        batch = self._result(found)
        self._fill(done=found.worker)
        if (lines := _lines(column)) is not None:
            lines.extend(batch.lines)
        samples = zip(batch.generated, batch.pictures, strict=True)
        return [RemoteSample(**_fields(one), pixels=pixels) for one, pixels in samples], batch.seconds

    def pictures(self, generated: Sequence[GeneratedSample]) -> list[Any]:
        """The pictures that the workers have decoded."""
        return [one.pixels if isinstance(one, RemoteSample) else self.local.pictures([one])[0] for one in generated]

    def _take(self, job: DrawJob) -> Pending | None:
        """The batch if it is under way. What was announced before it was skipped, and is not drawn any more."""
        keys = list(self._pending)
        if job.key in keys:
            for key in keys[: keys.index(job.key)]:
                del self._pending[key]
            return self._pending.pop(job.key)
        waiting = [one.key for one in self._waiting]
        if job.key in waiting:
            self._pending.clear()
            self._waiting = deque(list(self._waiting)[waiting.index(job.key) + 1 :])
        return None

    def _fill(self, done: int | None = None) -> None:
        """Send batches ahead, so that no worker waits."""
        while self._waiting and len(self._pending) < AHEAD * len(self.workers):
            job = self._waiting.popleft()
            self._pending[job.key] = self._send(job, done)
            done = None

    def _send(self, job: DrawJob, worker: int | None = None) -> Pending:
        if worker is None:
            busy = [pending.worker for pending in self._pending.values()]
            worker = min(range(len(self.workers)), key=busy.count)
        return Pending(job, worker, self.workers[worker].draw.remote(list(job.items), _picklable(job.column)))

    @staticmethod
    def _result(pending: Pending) -> DrawnBatch:
        import ray

        try:
            found = ray.get(pending.reply)
        except ray.exceptions.RayError as e:
            raise BackboneError(
                f"Ray: {pending.job.column.spec}: a worker failed, and it failed again on the same batch: "
                f"{str(e).strip().splitlines()[-1]}. Expected workers that have the same packages, the model, and "
                f"memory for it; ray logs has more."
            ) from e
        if isinstance(found, SkipstoneError):
            raise found
        return cast("DrawnBatch", found)


def on_ray(make: Callable[[], Subject], workers: int | None = None) -> Subject:
    """A subject that draws on a Ray cluster: that of RAY_ADDRESS, else one on this machine.

    Args:
        make: Makes the subject, here and on each worker; picklable.
        workers: >= 1; None is one for each GPU, or one for each machine where there are none.

    Raises:
        MissingPackage: Ray is not installed.
        BackboneError: the cluster cannot be reached, has too few processors, or no place for all workers.
    """
    from ..satellites import require_module

    require_module("ray", "ray")
    import ray

    if not ray.is_initialized():
        start_ray(quiet=True)
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    machines = sum(name.startswith("node:") and "head" not in name for name in resources)
    count = workers or gpus or max(1, machines)
    if count > (gpus or cpus):
        raise BackboneError(f"--workers: the cluster has {gpus} GPUs and {cpus} CPUs, got {count} workers.")
    needs = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": max(1, cpus // count)}
    actor = ray.remote(Worker).options(max_restarts=-1, max_task_retries=3, scheduling_strategy="SPREAD", **needs)
    actors = [actor.remote(make) for _ in range(count)]
    try:
        ray.get([one.process.remote() for one in actors], timeout=START_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise BackboneError(
            f"Ray: after {START_SECONDS} s not all of {count} workers have a place; each needs {needs}. Say fewer "
            f"--workers, or wait until the cluster is free."
        ) from None
    return cast("Subject", RaySubject(make(), actors))


def _lines(column: Column) -> list[Any] | None:
    """The list that a recording solver appends to; None of all others."""
    return getattr(column.solver, "lines", None)


def _picklable(column: Column) -> Column:
    """The column without what was recorded before."""
    lines = _lines(column)
    if not lines:
        return column
    import copy

    solver = copy.copy(column.solver)
    solver.lines = []  # type: ignore[union-attr]  # a recording solver
    return replace(column, solver=solver)


def _fields(one: GeneratedSample) -> dict[str, Any]:
    return {name: getattr(one, name) for name in GeneratedSample.__dataclass_fields__}
