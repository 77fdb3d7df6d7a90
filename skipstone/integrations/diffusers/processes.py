"""Networks that several processes compute together: all of them make a call, or none does.

In each call of such a network the processes wait for each other (context and tensor parallelism of diffusers, weights
sharded by torch's `fully_shard`). Where one process skipped a call that another makes, both would wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ...engine.contracts import Chain, Plan, Policy, Run
from ...errors import GuestError


@dataclass(frozen=True)
class Agreed(Chain):
    """A policy whose plans are compared between processes before they are followed.

    Args:
        denoiser: What to call the network in a message.
        groups: The process groups that compute it.
    """

    denoiser: str = ""
    groups: tuple[Any, ...] = field(default=(), compare=False)
    name: ClassVar[str] = "agreed"

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        plans = super().consult(runs, proposals)
        mine = [_describe(run, plan) for run, plan in zip(runs, plans, strict=True)]
        for group in self.groups:
            self._compare(mine, group)
        return plans

    def _compare(self, mine: list[str], group: Any) -> None:
        """Raise GuestError, in every process of a group, where one of them has other plans."""
        theirs: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(theirs, mine, group=group)
        if all(one == theirs[0] for one in theirs):
            return
        rank, other = next((k, one) for k, one in enumerate(theirs) if one != theirs[0])
        first, second = next(
            (a, b) for a, b in zip([*theirs[0], "nothing"], [*other, "nothing"], strict=False) if a != b
        )
        raise GuestError(
            f"{len(theirs)} processes compute {self.denoiser} together and decided differently: process 0 plans "
            f"{first}, and process {rank} plans {second}. Give all of them the same prompts, seeds and arguments; "
            f"where these are the same, what they measured differs by rounding: take a policy that measures nothing, "
            f"such as interval or path."
        )


def in_agreement(policy: Policy, networks: Sequence[Any]) -> Policy:
    """The policy; in agreement with other processes where a network is computed by several."""
    groups = tuple(dict.fromkeys(group for network in networks for group in _groups(network)))
    if not groups:
        return policy
    parts = policy.parts if isinstance(policy, Chain) else (policy,)
    return Agreed(parts, type(networks[0]).__name__, groups)


def _groups(network: Any) -> Iterator[Any]:
    """Process groups that wait for each other in every call of a network."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    config = getattr(network, "_parallel_config", None)  # of diffusers' enable_parallelism
    context = getattr(config, "context_parallel_config", None)
    mesh = getattr(context, "_flattened_mesh", None) if context is not None else getattr(config, "_mesh", None)
    if mesh is not None:
        yield mesh.get_group()
    if any(_is_sharded(module) for module in network.modules()):
        yield torch.distributed.group.WORLD
    for weights in network.parameters():
        for axis, placement in enumerate(getattr(weights, "placements", ())):  # of a DTensor
            if not placement.is_replicate():
                yield weights.device_mesh.get_group(axis)


def _is_sharded(module: Any) -> bool:
    """Whether `fully_shard` was applied; parameters of the outermost module do not show it after their first use."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _describe(run: Run, plan: Plan) -> str:
    again = "" if plan.accept else ", taken again"
    return f"{plan.evaluate!r} from t={run.next_start!r} to t={plan.t_next!r}{again}"
