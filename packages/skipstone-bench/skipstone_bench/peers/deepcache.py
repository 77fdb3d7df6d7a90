"""DeepCache, by its own package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from skipstone.evaluation.peer_harness import first_leaf
from skipstone.evaluation.peers import CallContextFactory, Peer, no_context
from skipstone.registry import register
from skipstone.settings import MAX_STEPS, Ranges, check_settings


@register("peer")
@dataclass(frozen=True)
class DeepCache(Peer):
    """Recompute only the shallow end of a UNet between every k-th call; the package DeepCache, as it is.

    Args:
        interval: Steps from one full call to the next, in 1..10,000. 1 saves nothing.
        branch: How much is recomputed in between: the skip connection below which features are reused,
            in 0..1,000. 0 recomputes least. The package counts three to a block, whatever the model has.

    Raises:
        SpecError: a setting out of range.

    References: Ma et al. 2023, arXiv 2312.00858 (CVPR 2024).
    """

    interval: int = 3
    branch: int = 0
    name: ClassVar[str] = "deepcache"
    ranges: ClassVar[Ranges] = {"interval": (1, MAX_STEPS), "branch": (0, 1000)}
    package: ClassVar[str] = "DeepCache"
    module: ClassVar[str] = "DeepCache"

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def settings(cls) -> list[str]:
        """Every second to every eighth call, and a deeper branch."""
        return [f"deepcache(interval={k})" for k in (2, 3, 5, 8)] + ["deepcache(interval=3, branch=1)"]

    def unsupported_reason(self, pipe: Any) -> str | None:
        unet = getattr(pipe, "unet", None)
        if unet is None:
            return "it reuses what is deep in a UNet, and this pipeline has none"
        if getattr(unet, "mid_block", None) is None:
            return f"this {type(unet).__name__} has no middle block"
        if self.branch // 3 >= len(unet.down_blocks):
            return f"branch {self.branch} lies below the last of {len(unet.down_blocks)} blocks"
        return None

    def probe_modules(self, pipe: Any) -> list[Any]:
        return [first_leaf(pipe.unet.mid_block)]

    @contextmanager
    def install(self, pipe: Any) -> Iterator[CallContextFactory]:
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=self.interval, cache_branch_id=self.branch)
        helper.enable()

        def running(call: Mapping[str, Any]) -> AbstractContextManager[None]:
            helper.start_timestep = None  # the package does not reset it, nor what it cached, between runs
            helper.cached_output = {}
            return no_context(call)

        try:
            yield running
        finally:
            helper.disable()
