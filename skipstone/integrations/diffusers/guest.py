"""`skipstone.adapt`: adapts any diffusers pipeline without modifying it."""

from __future__ import annotations

import inspect
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, get_args

from ... import registry
from ...engine.contracts import Policy
from ...engine.requests import Solver
from ...errors import CertificateError, GuestError, GuestWarning, SpecError
from ...policies.certified import Certified
from ...policies.storage import is_policy_folder, read_fallback, read_policy
from ..coverage import Coverage, certified_solver, describe_uncovered, is_pipeline_callback
from ..identity import scheduler_from_config
from .call_context import CALLBACKS, AdaptSettings, CallContext, Uncovered
from .callbacks import run_outside, watch_changes
from .method_swap import original_class, restore_methods, swap_methods
from .pipeline_specs import find_pipeline_spec
from .row_slicing import Key, Rule
from .run_stats import RunStats
from .scheduler_specs import check_supported
from .warm_up import every_row_count

UNCOVERED_ADVICE = "To run it without a promise: uncovered='warn'."


def adapt(
    pipe: Any,
    policy: Policy | str | os.PathLike[str] = "error_control",
    *,
    solver: Solver | str | None = None,
    per_sample: bool = True,
    verify_rows: bool = False,
    uncovered: Uncovered = "warn",
) -> Adapted:
    """Make a diffusers pipeline adaptive: the same call, the same conventions, fewer calls of its network.

        with skipstone.adapt(pipe, "third_order") as adapted:
            image = pipe("a red apple on a blue table").images[0]
        print(adapted.last.summary())

    Weights, scheduler, text encoders, adapters, callbacks and random numbers stay the pipeline's own; outside of its
    calls nothing of it is changed. Adapting a pipeline that is adapted already nests: the newest rules, and removing
    it gives back the one before.

    Args:
        pipe: Any `DiffusionPipeline` whose loop calls `scheduler.step`.
        policy: Which steps call the network: a policy, its spec, or the folder of a saved one. A calibrated one must
            have been calibrated on this model and configuration, and may bring a scheduler for the time of each call.
            A preset (`balanced`, `fast`, `safe`) that takes the loop over decides in the pipeline's own steps, by
            `error_control`, where that is refused; a warning and `last.summary()` say so.
        solver: Leave None to keep the pipeline's scheduler. A solver or its spec takes the loop over: the whole run
            happens in the pipeline's first step, for policies that choose their own times (`stride`, which brings
            its own, and `pid`). Where it is refused, whoever named the solver or the policy is told why.
        per_sample: Each sample of a batch goes its own way; False skips a step only where all samples do.
        verify_rows: Raise GuestError where rows of a batch depend on each other. Rows of what is not declared (see
            docs/guest.md) are compared anyway, and enter as whole batches where they differ.
        uncovered: "warn" or "error": what a call does that a calibrated policy's certificate does not cover, because
            the scheduler, weights, adapters, steps, guidance, size or other arguments are not those of the calibration.

    Raises:
        GuestError: not a pipeline, or one that cannot be adapted, or a policy that it cannot run.
        SpecError: a policy, solver or `uncovered` that cannot be understood.
        CertificateError: a policy that was calibrated on something else.
    """
    if uncovered not in get_args(Uncovered):
        raise SpecError(f"uncovered: expected 'warn' or 'error', got {uncovered!r}.")
    find_pipeline_spec(pipe)
    check_supported(pipe.scheduler)
    decides = _check_network(_policy(policy))
    own = certified_solver(decides) if isinstance(decides, Certified) else decides.solver or None
    chosen = _solver(solver or own)
    if chosen is None:
        _check_hosted(decides)
    fallback = _fallback(policy) if solver is None else None
    return Adapted(pipe, AdaptSettings(decides, chosen, fallback, per_sample, verify_rows, uncovered, str(policy)))


def _solver(solver: Solver | str | None) -> Solver | None:
    chosen = registry.parse("solver", solver) if isinstance(solver, str) else solver
    if not isinstance(chosen, Solver | None):
        raise GuestError(
            f"Expected a solver of Skipstone or its spec, got {type(chosen).__name__}: solver='dpmpp'. To change the "
            f"pipeline's own scheduler, set pipe.scheduler."
        )
    return chosen


def _check_hosted(policy: Policy) -> None:
    """Raise GuestError for a policy that a pipeline's own scheduler cannot serve."""
    if "error" in policy.needs:
        raise GuestError(
            f"{registry.spell(policy)} needs the error that an adaptive solver estimates, and a pipeline's scheduler "
            f"has none. Let Skipstone take the loop over: adapt(pipe, policy, solver='dpm_adaptive')."
        )


def _fallback(policy: Policy | str | os.PathLike[str]) -> Policy | None:
    """What decides where a preset, or a folder that keeps one, cannot take the loop over; None of all else."""
    if isinstance(policy, Policy):
        return None
    if _is_folder(policy):
        return read_fallback(policy)
    spec = registry.find_fallback("policy", str(policy).strip())
    stands_in: Policy | None = registry.parse("policy", spec) if spec else None
    return stands_in


def _is_folder(policy: str | os.PathLike[str]) -> bool:
    """Whether it names the folder of a saved policy, and no spec."""
    named_as_path = isinstance(policy, os.PathLike) or (os.sep in policy and "(" not in policy)
    return named_as_path or is_policy_folder(policy)


def _policy(policy: Policy | str | os.PathLike[str]) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str | os.PathLike):
        raise GuestError(
            f"Expected a policy, its spec or its folder, got {type(policy).__name__}: "
            f"skipstone.adapt(pipe, 'third_order')."
        )
    if _is_folder(policy):
        return read_policy(policy)
    parsed: Policy = registry.parse("policy", str(policy))
    return parsed


def _check_network(policy: Policy) -> Policy:
    """The policy. Raises GuestError for one that runs another network."""
    if student := policy.network or policy.student:
        raise GuestError(
            f"{registry.spell(policy)} has weights of its own, and adapt changes none. Load the student into the "
            f"pipeline as {os.path.join(student, 'README.md')} says, and adapt that: adapt(pipe, 'fixed')."
        )
    return policy


class Adapted:
    """An adapted pipeline, until `remove()` or the end of its `with` block.

    `last` tells how the latest call went.
    """

    def __init__(self, pipe: Any, settings: AdaptSettings) -> None:
        self.pipe, self.settings = pipe, settings
        self._last: RunStats | None = None
        self._coverage: Coverage | None = None
        if isinstance(settings.policy, Certified):
            self._coverage = Coverage(settings.policy, pipe, settings.solver, settings.per_sample)
        self._refusals: set[str] = set()  # of a takeover, which the user was warned of
        self._proofs: dict[Key, Rule] = {}  # what runs have shown about the rows of the network
        swap_methods(pipe, {"__call__": _call_adapted}, _skipstone_stack=[], _skipstone_lock=threading.Lock())
        type(pipe)._skipstone_stack.append(self)

    @property
    def policy(self) -> Policy:
        """Which steps call the network."""
        return self.settings.policy

    @property
    def last(self) -> RunStats:
        """Statistics of the latest call. Raises GuestError before the first one."""
        if self._last is None:
            raise GuestError("The adapted pipeline has not run yet: call pipe(...) first, then ask for .last.")
        return self._last

    def warm_up(self, *arguments: Any, **named: Any) -> None:
        """Call the pipeline once, so that a compiler sees every number of rows that may enter its network.

        Later calls of the same form, with as many samples, then compile nothing. `last` stays that of the call before.

        Args:
            arguments, named: Of the pipeline's call, with one step more than there are samples, or twice as many where
                the policy forecasts guidance branches.

        Raises:
            GuestError: fewer steps, or as the call does.
        """
        warm = every_row_count(self.policy)
        with Adapted(self.pipe, replace(self.settings, policy=warm)) as warming:
            self.pipe(*arguments, **named)
        calls, needed = sum(not a.is_forecast for a in warming.last[0].run.attempts), warm.steps(len(warming.last))
        if calls < needed:
            raise GuestError(f"{len(warming.last)} samples take {needed} steps to warm up, and {calls} were made.")

    def remove(self) -> None:
        """Restore the pipeline; calling this again does nothing."""
        stack = getattr(type(self.pipe), "_skipstone_stack", [])
        if self in stack:
            stack.remove(self)
            restore_methods(self.pipe)

    def __enter__(self) -> Adapted:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<{type(self.pipe).__name__} adapted by {registry.spell(self.policy)}>"

    def _run(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        call = original_class(self.pipe).__call__
        try:
            known = inspect.signature(call).bind(self.pipe, *arguments, **named)
        except TypeError:
            return call(self.pipe, *arguments, **named)  # which says what is wrong with them
        if isinstance(self.policy, Certified) and self.policy.replacement_scheduler:
            known.arguments["num_inference_steps"] = self.policy.point.steps
            arguments, named = known.args[1:], known.kwargs
        known.apply_defaults()
        with self._certified_scheduler():
            uncovered = self._coverage.differences(self.pipe, known) if self._coverage else ()
            if uncovered and self.settings.uncovered == "error":
                raise CertificateError(f"{describe_uncovered(uncovered)} {UNCOVERED_ADVICE}")
            return self._call_pipeline(call, known.arguments, arguments, named, uncovered)

    @contextmanager
    def _certified_scheduler(self) -> Iterator[None]:
        """Use the certificate's scheduler for the duration of a call."""
        if not isinstance(self.policy, Certified) or not self.policy.replacement_scheduler:
            yield
            return
        own = self.pipe.scheduler
        self.pipe.scheduler = scheduler_from_config(self.policy.replacement_scheduler)
        try:
            yield
        finally:
            self.pipe.scheduler = own

    def _call_pipeline(
        self,
        call: Any,
        known: Mapping[str, Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        uncovered: tuple[str, ...],
    ) -> Any:
        spec = find_pipeline_spec(self.pipe)
        context = CallContext(self.pipe, spec, self.settings, dict(known), self._proofs)
        changes: dict[str, None] = {}  # by callbacks
        quiet = {k: self._watch(v, changes, context) if k in CALLBACKS else v for k, v in named.items()}
        began = time.perf_counter()
        try:
            with context.open():
                return call(self.pipe, *arguments, **quiet)
        finally:
            context.close()
            uncovered = (*uncovered, *changes)
            notes = [describe_uncovered(uncovered)] if uncovered else []
            if context.refusal and context.refusal not in self._refusals:
                self._refusals.add(context.refusal)
                notes.append(self._describe_refusal(context.refusal))
            if context.finished:
                seconds = time.perf_counter() - began
                decided = self.settings.fallback if context.refusal else None
                self._last = RunStats.from_trajectories(
                    decided or self.policy, context.finished, seconds, uncovered, context.refusal
                )
            for note in (*notes, *context.notes):
                warnings.warn(note, GuestWarning, stacklevel=5)  # where the pipeline was called

    def _describe_refusal(self, reason: str) -> str:
        assert self.settings.fallback is not None
        return (
            f"{self.settings.written.strip()} would take the pipeline's loop over, and cannot here: {reason}. "
            f"{registry.spell(self.settings.fallback)} decides in the pipeline's own steps instead."
        )

    def _watch(self, callback: Any, changes: dict[str, None], context: CallContext) -> Any:
        """A callback of a call; `changes` says what it changed under a certificate. A takeover allows no changes."""
        if callback is None or is_pipeline_callback(callback):  # diffusers asks whether it is one of its own objects
            return callback
        outside = run_outside(callback)
        promised = self._coverage is not None and not self._coverage.policy.is_unrestricted
        if not promised and self.settings.solver is None:
            return outside

        def report(names: Sequence[str]) -> None:
            context.check_callback(names)
            found = [f"a callback changed {name}" for name in names]
            if promised and self.settings.uncovered == "error":
                raise CertificateError(f"{describe_uncovered(found)} {UNCOVERED_ADVICE}")
            changes.update(dict.fromkeys(found if promised else ()))

        return watch_changes(outside, self.pipe, report, context.network_settings)


def _call_adapted(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The pipeline's call, as long as it is adapted."""
    kind = type(self)
    if not kind._skipstone_lock.acquire(blocking=False):
        raise GuestError(
            f"This {kind.__name__} is running already. A pipeline's scheduler holds the state of one run: give each "
            f"thread a pipeline of its own, which may share the networks: type(pipe)(**pipe.components) with "
            f"scheduler=type(s).from_config(s.config) and a copy.deepcopy of each tokenizer (padding is state)."
        )
    try:
        return kind._skipstone_stack[-1]._run(args, kwargs)
    finally:
        kind._skipstone_lock.release()
