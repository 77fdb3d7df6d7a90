"""One call of an adapted pipeline: three seams, each swapped for the length of the call."""

from __future__ import annotations

import contextvars
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.contracts import Chain, Policy, Run
from ...engine.requests import Solver
from ...errors import GuestError
from ...numerics.schedule import FlowMatching, Schedule
from .batch_driver import Voyage
from .batch_router import Gate, batch_of
from .method_swap import original, restore, swap
from .noise_levels import begins, table_of
from .pipeline_specs import PipelineSpec
from .rows import Layout
from .scheduler_specs import supports, trajectory
from .takeover import refuse, take_over

CHANGING = ("use_dynamic_cfg", "skip_guidance_layers", "guidance_rescale")  # arguments that a takeover cannot follow
VISIT: contextvars.ContextVar[Visit | None] = contextvars.ContextVar("skipstone_visit", default=None)
_USUAL = inspect.signature(lambda model_output, timestep, sample, *args, **kwargs: None)


@dataclass(frozen=True)
class Settings:
    """What a pipeline was adapted with."""

    policy: Policy
    solver: Solver | None = None
    per_sample: bool = True
    verify_rows: bool = False


@dataclass(frozen=True)
class Finished:
    """One trajectory after its end: runs and counted rows of its samples."""

    runs: tuple[Run, ...]
    rows: tuple[int, ...]
    branches: int
    full: tuple[float, ...]  # calls of a bare run
    verified: int  # rows spent on checking that rows are independent
    seconds: float


class Visit:
    """Everything that is known during one call of a pipeline; it dies with the call."""

    def __init__(
        self, pipe: Any, spec: PipelineSpec, settings: Settings, arguments: dict[str, Any], verify: bool
    ) -> None:
        self.pipe, self.spec, self.settings, self.arguments, self.verify = pipe, spec, settings, arguments, verify
        self.scheduler = pipe.scheduler
        self.denoisers = spec.models(pipe, spec.denoisers)
        self.beside = spec.models(pipe, spec.beside)
        self.finished: list[Finished] = []
        self.notes: list[str] = []  # what the caller is to be warned of
        self.voyage: Voyage | None = None
        self.own: dict[str, Callable[..., Any]] = {}
        self.denoised = 0  # denoiser calls that no step of the scheduler followed
        step = inspect.signature(self.scheduler.step)
        self.signature = step if "model_output" in step.parameters else _USUAL  # somebody else has wrapped it
        self._new_trajectory()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Swap the seams in, and out again whatever happens."""
        supports(self.scheduler)
        self.pipe.__dict__.pop("_num_timesteps", None)  # of an earlier call
        with ExitStack() as stack:
            self.own = self._set_aside(stack)
            for model in self.denoisers:
                self._swap(stack, model, __call__=_denoise)
            for model in self.beside:
                self._swap(stack, model, __call__=_accompany)
            self._swap(stack, self.scheduler, step=_step, set_timesteps=_set_timesteps)
            token = VISIT.set(self)
            stack.callback(VISIT.reset, token)
            yield
        self._check_used()

    def _set_aside(self, stack: ExitStack) -> dict[str, Callable[..., Any]]:
        """Methods that somebody has put on the scheduler itself: they would hide those of its class."""
        found = {
            name: self.scheduler.__dict__.pop(name)
            for name in ("step", "set_timesteps")
            if name in vars(self.scheduler)
        }
        stack.callback(self.scheduler.__dict__.update, found)
        return found

    @staticmethod
    def _swap(stack: ExitStack, obj: Any, **methods: Callable[..., Any]) -> None:
        swap(obj, methods)
        stack.callback(restore, obj)

    # -- the three seams -------------------------------------------------------------------------

    def set_timesteps(self) -> None:
        """A new trajectory begins."""
        self.close()
        self._new_trajectory()

    def _new_trajectory(self) -> None:
        self.gate, self.voyage, self.began = Gate(self.spec, whole=not self._sliceable()), None, 0.0
        self.ended = 0.0

    def denoise(self, module: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The denoiser is called."""
        if self.pipe.scheduler is not self.scheduler:
            raise GuestError("The scheduler was replaced within a run. Replace it between two calls of the pipeline.")
        self.began = self.began or time.perf_counter()
        self.denoised += 1
        if self.voyage is not None and self.voyage.finished:
            return run(*args, **kwargs)
        return self.gate.denoise(module, run, args, kwargs)

    def step(self, run: Callable[..., Any], call: inspect.BoundArguments) -> Any:
        """The scheduler steps."""
        values = call.arguments
        output, timestep, x = values["model_output"], values["timestep"], values["sample"]
        self.denoised = 0
        if self.voyage is None:
            self.voyage = self._depart(output, timestep, x)
        values["model_output"] = self.voyage.arrive(output, x)
        made = run(*call.args, **call.kwargs)
        before = made[0] if isinstance(made, tuple) else made.prev_sample
        after, ended = self.voyage.depart(before)
        self.ended = time.perf_counter()
        return made if after is before else _with_sample(made, after, ended, self.voyage.layout)

    def _depart(self, output: torch.Tensor, timestep: Any, x: torch.Tensor) -> Voyage:
        """The first step of a trajectory: now it is known whose rows are whose and what lies ahead."""
        layout = self._layout(x)
        self.gate.open(layout.samples)
        count = getattr(self.pipe, "_num_timesteps", None)
        ahead, first = trajectory(self.scheduler, timestep, count), begins(self.scheduler, timestep, count)
        if self.verify and not self.gate.whole:  # rows that enter together need not be independent
            self.gate.verify()
        policy = self.settings.policy
        self._note_short_runs(policy, len(ahead.stages))
        base = base_schedule(self.scheduler)
        voyage = Voyage(ahead, layout, self.gate, policy, base, self.spec.switches(self.pipe))
        if self.settings.solver is None:
            voyage.begin(x)
        else:
            self._refuse_takeover(self.settings.solver)
            told = self.scheduler.timesteps.tolist()[first : first + len(ahead.calls)]
            take_over(voyage, self.settings.solver, policy, output, told, x)
        self.gate.forget()
        return voyage

    def _refuse_takeover(self, solver: Solver) -> None:
        callbacks = [c for c in ("callback_on_step_end", "callback") if self.arguments.get(c) is not None]
        changing = [name for name in CHANGING if self.arguments.get(name)]
        reasons = {
            self.spec.between: bool(self.spec.between),
            "nobody has declared what it does between two steps": not self.spec.known,
            f"{' and '.join(changing)} changes the guidance on the way": bool(changing),
            f"{' and '.join(callbacks)} may edit the sample": bool(callbacks),
            "two networks take turns": len(self.denoisers) > 1,
        }
        refuse(solver, reasons)

    def _layout(self, x: torch.Tensor) -> Layout:
        rows = x.shape[0]
        if self.spec.frames:
            first = next(iter(self.gate.passes.values()))
            frames = batch_of(first.module, first.args, first.kwargs).shape[2]
            return Layout(rows // frames, frames)
        if self.spec.doubled and float(self.arguments.get("guidance_scale", 1.0)) > 1.0:
            return Layout(rows // 2, 1, 2)
        return Layout(rows)

    def _sliceable(self) -> bool:
        cached = any(getattr(model, "is_cache_enabled", False) for model in self.denoisers)
        return self.settings.per_sample and not cached

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Note how the trajectory went."""
        voyage, gate = self.voyage, self.gate
        if voyage is None:
            return
        runs = tuple(line.run for line in voyage.lines)
        seconds = self.ended - self.began
        self.voyage = None
        made = (
            len(voyage.trajectory.calls) if voyage.finished else voyage.call
        )  # an interrupted run saves nothing by it
        full = tuple(made + extra / gate.branches for extra in gate.extra)
        self.finished.append(Finished(runs, tuple(gate.spent), gate.branches, full, gate.verified, seconds))
        planned = sum(run.cost for run in runs) * gate.branches + gate.verified
        beyond = max(gate.unwanted, sum(gate.spent) - planned)
        if beyond > 1e-6:
            self.notes.append(
                f"{sum(gate.spent)} rows entered the network, {beyond:g} more than were wanted, because "
                f"{gate.forced or 'the pipeline was interrupted'}."
            )

    def _check_used(self) -> None:
        """Raise where the guest has been passed by."""
        self.close()
        if not self.finished and self.denoised:
            raise GuestError(
                f"{type(self.pipe).__name__} called its denoiser {self.denoised} times and never the step of "
                f"{type(self.scheduler).__name__}: it moves its sample by other means, and cannot be adapted."
            )

    def _note_short_runs(self, policy: Policy, steps: int) -> None:
        for part in policy.parts if isinstance(policy, Chain) else (policy,):
            first, last = getattr(part, "warmup", 0), getattr(part, "tail", 0)
            if first and steps <= first + last:
                self.notes.append(
                    f"{part.name} always calls the first {first} and the last {last} steps, and this run has {steps}: "
                    f"it can save nothing. Ask for more steps, or for a smaller warmup."
                )


def base_schedule(scheduler: Any) -> Schedule:
    """The schedule that a scheduler's own times are taken from."""
    flows = scheduler.config.get("use_flow_sigmas", False) or not hasattr(scheduler, "alphas_cumprod")
    return FlowMatching() if flows else table_of(scheduler)


def _with_sample(made: Any, after: torch.Tensor, ended: dict[int, torch.Tensor], layout: Layout) -> Any:
    """What `step` returns, around another sample; the clean estimate too, where a pipeline decodes that one."""
    clean = made[1] if isinstance(made, tuple) and len(made) > 1 else getattr(made, "pred_original_sample", None)
    if ended and isinstance(clean, torch.Tensor) and clean.shape == after.shape:
        clean = clean.clone()
        for sample, value in ended.items():
            layout.put(clean, sample, value.to(clean.dtype))
    if isinstance(made, tuple):
        return (after, *((clean, *made[2:]) if len(made) > 1 else ()))
    changed = {"prev_sample": after}
    if isinstance(clean, torch.Tensor):
        changed["pred_original_sample"] = clean
    return type(made)(**{**made, **changed})


# -- what the swapped methods do: act in a visit of their own, and pass on otherwise --------------


def _denoise(self: Any, *args: Any, **kwargs: Any) -> Any:
    run = functools.partial(original(self).__call__, self)
    visit = VISIT.get()
    if visit is None or not any(self is m for m in visit.denoisers):
        return run(*args, **kwargs)
    return visit.denoise(self, run, args, kwargs)


def _accompany(self: Any, *args: Any, **kwargs: Any) -> Any:
    run = functools.partial(original(self).__call__, self)
    visit = VISIT.get()
    if visit is None or not any(self is m for m in visit.beside):
        return run(*args, **kwargs)
    return visit.gate.accompany(self, run, args, kwargs)


def _step(self: Any, *args: Any, **kwargs: Any) -> Any:
    run = functools.partial(original(self).step, self)
    visit = VISIT.get()
    if visit is None or self is not visit.scheduler:
        return run(*args, **kwargs)
    return visit.step(visit.own.get("step", run), visit.signature.bind(*args, **kwargs))


def _set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
    run = functools.partial(original(self).set_timesteps, self)
    visit = VISIT.get()
    if visit is None or self is not visit.scheduler:
        return run(*args, **kwargs)
    visit.set_timesteps()
    return visit.own.get("set_timesteps", run)(*args, **kwargs)
