"""What the caches that come with diffusers share: hooks on the modules of a denoiser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from skipstone.errors import GuestError
from skipstone.evaluation.peers import CallContextFactory, Peer, denoiser_of

# A module inside a transformer block: most denoisers call their blocks `transformer_blocks`, Wan just `blocks`.
BLOCKS = r"(\w*transformer_)?blocks"
IN_BLOCK = rf"(.*\.)?{BLOCKS}\.\d+"
# Pipelines whose guidance branches enter in one batch: caches that do not separate branches mix them up elsewhere.
BATCHED_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
ALL_TIMESTEPS = (-1, 10**6)  # timesteps in which a cache may act: all


class HookedCache(Peer):
    """Base of the caches of diffusers, put on by the function that its `enable_cache` calls.

    `enable_cache` itself is only on models that diffusers has declared; the functions take any module.
    """

    def unsupported_reason(self, pipe: Any) -> str | None:
        if type(pipe).__name__ not in BATCHED_PIPELINES and not hasattr(denoiser_of(pipe), "enable_cache"):
            return f"diffusers has no caches for {type(denoiser_of(pipe)).__name__}"
        return None

    def put_hooks(self, denoiser: Any, clock: TimestepClock) -> None:
        """Put the hooks on a denoiser."""
        raise NotImplementedError

    def begin(self, pipe: Any, call: Mapping[str, Any]) -> None:
        """Set what depends on the run, or raise GuestError."""

    @contextmanager
    def install(self, pipe: Any) -> Iterator[CallContextFactory]:
        denoiser = denoiser_of(pipe)
        clock = TimestepClock()
        hook = denoiser.register_forward_pre_hook(clock.read, with_kwargs=True)
        try:
            self.put_hooks(denoiser, clock)
            yield lambda call: self._run(pipe, call)
        finally:
            hook.remove()  # those of the cache go with what else was set on the modules

    @contextmanager
    def _run(self, pipe: Any, call: Mapping[str, Any]) -> Iterator[None]:
        """Forget the last run, and set one kind for all calls, where the pipeline does not set it itself."""
        self.begin(pipe, call)
        with fresh_cache_state(denoiser_of(pipe)):
            yield


class TimestepClock:
    """The timestep that a denoiser is at."""

    def __init__(self) -> None:
        self.timestep = 0.0

    def __call__(self) -> float:
        return self.timestep

    def read(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hook: the `timestep` of a call, or its second argument."""
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.timestep = float(timestep.flatten()[0]) if hasattr(timestep, "flatten") else float(timestep)


@contextmanager
def fresh_cache_state(denoiser: Any) -> Iterator[None]:
    """The state of all caches forgotten, and a context of one name for what is remembered inside the block."""
    from diffusers.hooks import HookRegistry
    from diffusers.models.cache_utils import CacheMixin

    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    # A run before the cache was put on, of a pipeline that sets contexts, has remembered modules without its hooks.
    if hasattr(registry, "invalidate_child_registries_cache"):
        registry.invalidate_child_registries_cache()
    CacheMixin._reset_stateful_cache(denoiser)  # it takes any module that has a registry of hooks
    with CacheMixin.cache_context(denoiser, "run") as context:
        yield context


def unbatched_reason(pipe: Any) -> str | None:
    """Why a cache that does not separate guidance branches cannot run."""
    if type(pipe).__name__ in BATCHED_PIPELINES:
        return None
    return (
        f"it does not tell guidance branches apart, and {type(pipe).__name__} is not among the pipelines known to put "
        f"them into one batch ({', '.join(BATCHED_PIPELINES)})"
    )


def transformer_blocks(pipe: Any) -> list[Any]:
    """The denoiser's transformer blocks, in order; empty where they are no plain list."""
    lists = [child for name, child in denoiser_of(pipe).named_children() if re.fullmatch(BLOCKS, name)]
    return [block for blocks in lists for block in blocks]


def attention_modules(pipe: Any, cross: bool | None = None) -> list[Any]:
    """The attention modules of a denoiser's blocks; `cross` chooses those to the text, or the others."""
    inside = re.compile(rf"{IN_BLOCK}\..*")
    found = [m for name, m in denoiser_of(pipe).named_modules() if hasattr(m, "to_q") and inside.fullmatch(name)]
    return [m for m in found if cross is None or bool(getattr(m, "is_cross_attention", False)) is cross]


def require_guidance(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raise GuestError unless both guidance branches are in a run."""
    if not call.get("guidance_scale", 0.0) > 1.0:
        raise GuestError(
            f"{type(pipe).__name__} runs without guidance, and this peer halves every batch: choose a guidance > 1."
        )
