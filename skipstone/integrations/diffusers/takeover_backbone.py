"""The denoiser of a pipeline as a backbone: repeats the calls of the first step for other samples and times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...engine.contracts import COND, UNCOND
from ...engine.requests import Estimate, Query
from ...numerics.parametrize import to_x0
from ...numerics.schedule import Schedule
from .batch_driver import BatchDriver
from .batch_router import BatchRouter, CompanionCall, DenoiserCall, find_batch
from .companions import CompanionLinks
from .constants import Constants, batch_argument, time_argument
from .guidance import Guidance
from .row_slicing import NetworkCall
from .rows import copy_containers
from .sample_path import PathNode
from .sample_place import SamplePlace, fit


@dataclass(frozen=True)
class Phase:
    """One of the networks that take turns, or the only one.

    Args:
        module: The network.
        run: Its call.
        guidance: Its rule.
        since: The scheduler's timestep down to which it is called; -inf where it is the last.
    """

    module: Any
    run: Callable[..., Any]
    guidance: Guidance
    since: float


@dataclass
class Input:
    """The batch and the times of one call of a network, which are rewritten for each call of ours."""

    batch: torch.Tensor
    times: torch.Tensor
    place: SamplePlace

    @staticmethod
    def of(p: DenoiserCall | CompanionCall, samples: torch.Tensor) -> Input:
        """Find these samples in the batch of a call. Raises TakeoverRefused where they are not there alone."""
        module = p.model if isinstance(p, CompanionCall) else p.module
        batch = find_batch(module, p.args, p.kwargs).clone()
        return Input(batch, torch.zeros(p.rows), SamplePlace.find(batch, samples, type(module).__name__))

    def write(self, sample: int, samples: int, x: torch.Tensor, time: float) -> None:
        """Put a sample at its time into each of its rows."""
        self.place.samples(self.batch)[sample::samples] = x.to(self.batch.dtype)
        self.times[sample::samples] = time

    def put_into(self, call: NetworkCall) -> NetworkCall:
        """The call with this batch and these times, in containers of its own: a network may empty them."""
        args, kwargs = list(copy_containers(call.args)), copy_containers(call.kwargs)
        for name, value in (
            (batch_argument(call.args, call.kwargs), self.batch),
            (time_argument(call.args, call.kwargs), None),
        ):
            if name in kwargs:
                kwargs[name] = value if value is not None else _times_like(kwargs[name], self.times)
            elif name:
                i = int(name.rpartition(" ")[2]) - 1
                args[i] = value if value is not None else _times_like(args[i], self.times)
        return replace(call, args=tuple(args), kwargs=kwargs)


@dataclass
class PipelineBackbone:
    """The pipeline's denoiser as a backbone.

    `Problem.cond` is the index of the sample. The first query is what the first step has computed already.

    Args:
        driver: Of the samples.
        phases: The networks, in the order in which they take turns.
        time: Time of the scheduler (its timestep) -> what the networks are told.
        name: Time of the engine -> the scheduler's timestep.
        inputs: Ordinal of a denoiser's call -> its input.
        companions: The inputs of the companions' calls.
        links: Ordinal of a denoiser's call -> what the companions write into it.
        keeps_path: Whether to keep where the samples were: somebody looks at them on the way.
    """

    driver: BatchDriver
    phases: Sequence[Phase]
    time: Callable[[float], float]
    name: Callable[[float], float]
    inputs: dict[int, Input]
    companions: Sequence[Input]
    links: dict[int, CompanionLinks]
    keeps_path: bool = False
    calls: dict[int, list[PathNode]] = field(default_factory=dict)  # of each sample
    latest_x0: dict[int, Any] = field(default_factory=dict)

    @property
    def router(self) -> BatchRouter:
        """Of the driver."""
        return self.driver.router

    @property
    def schedule(self) -> Schedule:
        return self.driver.schedule

    @property
    def sites(self) -> tuple[str, ...]:
        return (COND, UNCOND) if self.router.branches == 2 else ()

    @property
    def branches(self) -> int:
        return self.router.branches

    def phase(self, timestep: float) -> Phase:
        """The network that is called at a timestep of the scheduler, which pipelines compare in single precision."""
        rounded = float(torch.tensor(timestep, dtype=torch.float32))
        return next(phase for phase in self.phases if rounded >= phase.since)

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """One call of the denoiser for each call of it in a step of the pipeline, with the rows that are wanted."""
        first = not self.latest_x0
        branch_outputs = (
            {q.cond: self.router.get_new_outputs(q.cond) for q in queries} if first else self._call_denoiser(queries)
        )
        return [self._estimate(q, branch_outputs[q.cond]) for q in queries]

    def freeze_arguments(self) -> None:
        """Keep what later steps of the pipeline must give its networks too, and let go of what they may change."""
        for c in self.router.companion_calls:
            c.constants, c.made = Constants.of(c.args, c.kwargs), None
        for k, p in self.router.denoiser_calls.items():
            links = self.links[k]
            p.constants = Constants.of(p.args, p.kwargs, links.names)
            p.kwargs = links.mark(p.kwargs)
            p.place = self.inputs[k].place
            p.rest = p.place.rest(self.inputs[k].batch)

    def _call_denoiser(self, queries: Sequence[Query]) -> dict[int, dict[str, torch.Tensor]]:
        branch_outputs: dict[int, dict[str, torch.Tensor]] = {q.cond: {} for q in queries}
        for phase in self.phases:
            mine = [q for q in queries if self.phase(self.name(q.t)) is phase]
            for k, p in self.router.denoiser_calls.items():
                wanted = [(q, j) for j, b in enumerate(p.branches) for q in mine if b not in q.known_outputs]
                if not wanted:
                    continue
                rows = [j * self.router.samples + q.cond for q, j in wanted]
                p.output = p.output.clone()
                self.router.compute(p, self._make_call(k, p, phase, mine), rows)
                for (q, j), row in zip(wanted, rows, strict=True):
                    branch_outputs[q.cond][p.branches[j]] = p.output[row]
        return branch_outputs

    def _make_call(self, k: int, p: DenoiserCall, phase: Phase, queries: Sequence[Query]) -> NetworkCall:
        """A call of the first step at the samples and times of these queries; other samples stay where they were."""
        for query in queries:
            x, time = self.driver.layout.row_of(query.x), self.time(self.name(query.t))
            for one in (self.inputs[k], *self.companions):
                one.write(query.cond, self.router.samples, x, time)
        call = replace(self.inputs[k].put_into(p.call), module=phase.module, run=phase.run)
        calls = zip(self.companions, self.router.companion_calls, strict=True)
        return self.links[k].combine(call, [one.put_into(c.call) for one, c in calls], self.router.slicer)

    def _estimate(self, query: Query, fresh: dict[str, torch.Tensor]) -> Estimate:
        both = {**query.known_outputs, **fresh}
        trajectory, layout = self.driver.trajectory, self.driver.layout
        guided = self.phase(self.name(query.t)).guidance.combine(
            {name: fit(layout.sample_of(value), query.x.shape) for name, value in both.items()}
        )
        kind, mean = trajectory.converter.kind, guided * trajectory.converter.sign
        x0 = to_x0(kind, mean, query.x, self.schedule.alpha(query.t), self.schedule.sigma(query.t))
        x0 = trajectory.clean(x0)
        mean = x0 if kind == "x0" else mean
        self.latest_x0[query.cond] = x0
        if self.keeps_path:
            self.calls.setdefault(query.cond, []).append(PathNode(query.t, query.x, x0))
        features = {b: v for b, v in fresh.items() if b in query.wanted_sites}
        return Estimate(x0, len(fresh) / self.branches, mean, kind, features)


def _times_like(given: Any, times: torch.Tensor) -> torch.Tensor:
    """Times in the form in which a network was given its own: of its type, and perhaps one for each token."""
    if not isinstance(given, torch.Tensor):
        return times
    dtype = given.dtype if given.is_floating_point() else torch.float32
    made = times.to(device=given.device, dtype=dtype)
    if given.ndim > 1 and given.shape[0] == len(times):
        return made.reshape(-1, *[1] * (given.ndim - 1)).expand(given.shape)
    return made
