"""cache-dit's DBCache, by its own package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from skipstone.evaluation.peer_harness import first_leaf
from skipstone.evaluation.peers import CallContextFactory, Peer, no_context
from skipstone.registry import register
from skipstone.settings import MAX_STEPS, MAX_TOLERANCE, Ranges, check_settings


@register("peer")
@dataclass(frozen=True)
class DBCache(Peer):
    """Reuse a transformer's middle blocks while its first ones change little; the package cache-dit, as it is.

    One decision for the whole batch and both guidance branches.

    Args:
        threshold: Relative change (mean absolute, of what the first blocks add) below which the rest is reused,
            in [0, 1e9].
        first: Blocks at the start that are always computed, in 1..10,000 (Fn of the package, whose default is 8).
        last: Blocks at the end that are always computed, in 0..10,000 (Bn of the package).
        warmup: Steps at the start that are computed in full, in 0..10,000.
        longest: Longest run of steps that reuse, in -1..10,000; -1 is no limit.

    Raises:
        SpecError: a setting out of range.

    References: vipshop/cache-dit (Apache-2.0), docs/user_guide/CACHE_API.md.
    """

    threshold: float = 0.08
    first: int = 1
    last: int = 0
    warmup: int = 8
    longest: int = -1
    name: ClassVar[str] = "dbcache"
    ranges: ClassVar[Ranges] = {
        "threshold": (0, MAX_TOLERANCE),
        "first": (1, MAX_STEPS),
        "last": (0, MAX_STEPS),
        "warmup": (0, MAX_STEPS),
        "longest": (-1, MAX_STEPS),
    }
    package: ClassVar[str] = "cache-dit"
    module: ClassVar[str] = "cache_dit"

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def settings(cls) -> list[str]:
        """The thresholds of its own tables, one block at the start, four steps of warm-up."""
        return [f"dbcache(threshold={tol}, warmup=4)" for tol in (0.08, 0.12, 0.2, 0.4)]

    def unsupported_reason(self, pipe: Any) -> str | None:
        import cache_dit

        if getattr(pipe, "transformer", None) is None:
            return f"cache-dit {cache_dit.__version__} knows transformers, and this pipeline has a UNet"
        known = [name.rstrip("*") for name in cache_dit.supported_pipelines()[1]]
        if not any(type(pipe).__name__.startswith(name) for name in known):
            return f"cache-dit {cache_dit.__version__} does not know {type(pipe).__name__}"
        blocks = _first_blocks(pipe)
        if self.first + self.last >= len(blocks):
            return f"it computes {self.first} + {self.last} blocks in every call, and the model has {len(blocks)}"
        return None

    def probe_modules(self, pipe: Any) -> list[Any]:
        return [first_leaf(_first_blocks(pipe)[self.first])]

    @contextmanager
    def install(self, pipe: Any) -> Iterator[CallContextFactory]:
        import cache_dit

        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=self.first,
            Bn_compute_blocks=self.last,
            residual_diff_threshold=self.threshold,
            max_warmup_steps=self.warmup,
            max_continuous_cached_steps=self.longest,
        )
        cache_dit.enable_cache(pipe, cache_config=config)
        try:
            yield no_context  # the package makes a new context for each call
        finally:
            cache_dit.disable_cache(pipe)


def _first_blocks(pipe: Any) -> Any:
    """The transformer's first list of blocks, which Wan calls `blocks`; empty where there is none."""
    names = ("transformer_blocks", "blocks")
    return next((found for name in names if (found := getattr(pipe.transformer, name, None)) is not None), ())
