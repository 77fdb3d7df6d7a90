"""Caches of diffusers that spare a transformer's block stack: first-block cache and MagCache."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from skipstone.errors import GuestError
from skipstone.evaluation.peer_harness import bind_arguments, first_leaf
from skipstone.evaluation.peers import CallContextFactory, denoiser_of
from skipstone.registry import register
from skipstone.settings import MAX_STEPS, MAX_TOLERANCE, Ranges, check_settings

from .cache_hooks import HookedCache, TimestepClock, fresh_cache_state, transformer_blocks

# What calibration runs have measured: denoiser -> what was run -> a ratio for each step.
_RATIOS: WeakKeyDictionary[Any, dict[tuple[Any, ...], list[float]]] = WeakKeyDictionary()
CALIBRATION_ARGUMENTS = {"callback_on_step_end": None, "output_type": "latent"}  # a calibration run is nobody's picture
BLOCKS = 2  # that a stack needs: one to look at, one to spare


def no_block_stack_reason(pipe: Any) -> str | None:
    """Why there is no stack of blocks to spare."""
    denoiser, count = denoiser_of(pipe), len(transformer_blocks(pipe))
    if not count:
        return f"it needs one list of transformer blocks, which {type(denoiser).__name__} does not have"
    return None if count >= BLOCKS else f"it needs {BLOCKS} transformer blocks, and this model has {count}"


@register("peer")
@dataclass(frozen=True)
class FirstBlockCache(HookedCache):
    """Reuse what all blocks but the first add while the first changes little; diffusers' first-block cache.

    One decision for the whole batch.

    Args:
        threshold: Relative change (mean absolute, of what the first block adds) below which the rest is reused,
            in [0, 1e9].

    Raises:
        SpecError: a setting out of range.

    References: chengzeyi/ParaAttention, first-block cache; after Liu et al. 2024, arXiv 2411.19108 (TeaCache).
    """

    threshold: float = 0.1
    name: ClassVar[str] = "first_block_cache"
    ranges: ClassVar[Ranges] = {"threshold": (0, MAX_TOLERANCE)}

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def settings(cls) -> list[str]:
        """Thresholds from below diffusers' default to the largest in use."""
        return [f"first_block_cache(threshold={tol})" for tol in (0.05, 0.1, 0.2, 0.4)]

    def unsupported_reason(self, pipe: Any) -> str | None:
        why = super().unsupported_reason(pipe) or no_block_stack_reason(pipe)
        if why is None and getattr(transformer_blocks(pipe)[-1], "context_pre_only", False):
            kind = type(denoiser_of(pipe)).__name__
            return f"it reuses what the last block says of the text, and in {kind} that block is mute on it"
        return why

    def probe_modules(self, pipe: Any) -> list[Any]:
        return [first_leaf(transformer_blocks(pipe)[-1])]

    def put_hooks(self, denoiser: Any, clock: TimestepClock) -> None:
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        apply_first_block_cache(denoiser, FirstBlockCacheConfig(threshold=self.threshold))


@register("peer")
@dataclass(frozen=True)
class MagCache(HookedCache):
    """Reuse what all blocks add while its known drift is small; diffusers' MagCache.

    It decides by ratios that its own calibration run prints, the same for every prompt. That run is made once for
    each number of steps, scheduler and guidance: by `prepare`, or, where nobody prepared, by the first run of
    the block, out of sight of hooks on the denoiser.

    Args:
        threshold: Drift that may add up over a run of reuses, relative, in [0, 1e9]. 0 reuses nothing.
        longest: Longest run of reuses, in 1..10,000 steps.
        retention: Share of the steps, at the start, that are always computed, in [0, 1].

    Raises:
        SpecError: a setting out of range.

    References: Ma et al. 2025, arXiv 2506.09045.
    """

    threshold: float = 0.06
    longest: int = 3
    retention: float = 0.2
    name: ClassVar[str] = "mag_cache"
    ranges: ClassVar[Ranges] = {"threshold": (0, MAX_TOLERANCE), "longest": (1, MAX_STEPS), "retention": (0, 1)}

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def settings(cls) -> list[str]:
        """From half of its default to eight times as much, with longer runs."""
        mild = [f"mag_cache(threshold={tol})" for tol in (0.03, 0.06, 0.12)]
        return [*mild, "mag_cache(threshold=0.24, longest=5)", "mag_cache(threshold=0.5, longest=8)"]

    def unsupported_reason(self, pipe: Any) -> str | None:
        return super().unsupported_reason(pipe) or no_block_stack_reason(pipe)

    def probe_modules(self, pipe: Any) -> list[Any]:
        return [first_leaf(transformer_blocks(pipe)[-1])]

    def prepare(self, pipe: Any, **call: Any) -> None:
        """Run the pipeline once with these arguments of its call, to measure the ratios for such runs."""
        if self.refusal_reason(pipe) is None:
            call_arguments = bind_arguments(inspect.signature(type(pipe).__call__), pipe, **call)
            if known_ratios(pipe, call_arguments) is None:
                measure_ratios(pipe, call_arguments)

    @contextmanager
    def install(self, pipe: Any) -> Iterator[CallContextFactory]:
        from diffusers.hooks import MagCacheConfig, apply_mag_cache

        denoiser = denoiser_of(pipe)
        config = MagCacheConfig(self.threshold, self.longest, self.retention, 1, [1.0])

        @contextmanager
        def running(call: Mapping[str, Any]) -> Iterator[None]:
            import torch

            ratios = known_ratios(pipe, call)
            if ratios is None:
                ratios = measure_ratios(pipe, call)
            config.num_inference_steps, config.mag_ratios = len(ratios), torch.tensor(ratios)  # the hooks read them
            apply_mag_cache(denoiser, config)
            try:
                with fresh_cache_state(denoiser):
                    yield
            finally:
                remove_hooks(denoiser)

        yield running


def _kind(pipe: Any, call: Mapping[str, Any]) -> tuple[Any, ...]:
    """What ratios depend on."""
    scheduler = pipe.scheduler
    settings = tuple(sorted((name, repr(value)) for name, value in scheduler.config.items()))
    return call["num_inference_steps"], call.get("guidance_scale"), type(scheduler).__name__, settings


def known_ratios(pipe: Any, call: Mapping[str, Any]) -> list[float] | None:
    """The ratios of such runs, where they were measured."""
    return _RATIOS.get(denoiser_of(pipe), {}).get(_kind(pipe, call))


def measure_ratios(pipe: Any, call: Mapping[str, Any]) -> list[float]:
    """The ratios that a calibration run with these arguments prints; generators are left as they were."""
    import torch
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    denoiser, printed = denoiser_of(pipe), io.StringIO()
    config = MagCacheConfig(num_inference_steps=call["num_inference_steps"], calibrate=True)
    given = call.get("generator")
    generators = given if isinstance(given, list) else [given] if isinstance(given, torch.Generator) else []
    states = [g.get_state() for g in generators]
    bare = getattr(type(pipe), "bare", type(pipe))  # not the class that a peer puts on for a while
    with without_hooks(denoiser), contextlib.redirect_stdout(printed):
        apply_mag_cache(denoiser, config)
        try:
            with fresh_cache_state(denoiser):
                bare.__call__(pipe, **{**call, **{k: v for k, v in CALIBRATION_ARGUMENTS.items() if k in call}})
        finally:
            remove_hooks(denoiser)
            for g, state in zip(generators, states, strict=True):
                g.set_state(state)
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("[") and "MagCache" not in line]
    ratios: list[float] = ast.literal_eval(lines[-1]) if lines else []
    if len(ratios) != config.num_inference_steps:
        raise GuestError(
            f"MagCache's calibration expected {config.num_inference_steps} calls of {type(denoiser).__name__}, one for "
            f"each step, and printed {len(ratios)} ratios: choose a scheduler that calls once a step."
        )
    _RATIOS.setdefault(denoiser, {})[_kind(pipe, call)] = ratios
    return ratios


def remove_hooks(denoiser: Any) -> None:
    """MagCache's hooks removed from every module."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.mag_cache import _MAG_CACHE_BLOCK_HOOK, _MAG_CACHE_LEADER_BLOCK_HOOK

    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    for name in (_MAG_CACHE_LEADER_BLOCK_HOOK, _MAG_CACHE_BLOCK_HOOK):
        registry.remove_hook(name, recurse=True)
    registry.invalidate_child_registries_cache()


@contextmanager
def without_hooks(denoiser: Any) -> Iterator[None]:
    """No forward hooks on the denoiser itself, so that counters do not see a run that is not theirs."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    own = {name: denoiser.__dict__[name] for name in names}
    denoiser.__dict__.update({name: type(hooks)() for name, hooks in own.items()})
    try:
        yield
    finally:
        denoiser.__dict__.update(own)
