"""What a network costs here: milliseconds of a call, measured beside its teacher's, and memory."""

from __future__ import annotations

import gc
import random
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDS = 21
WARM_UP = 3
MEGABYTE = 10**6


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call.

    Args:
        median: Of the rounds.
        p10, p90: Of them.
        speed: Median over the rounds of the teacher's milliseconds divided by these; 1 without a teacher.
    """

    median: float
    p10: float
    p90: float
    speed: float


def measure_latency(
    calls: Mapping[str, Callable[[], Any]], teacher: str, rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Latency]:
    """Time calls in turns, so that what else the machine does falls on all of them alike.

    Args:
        calls: Name -> call.
        teacher: The name that speeds are relative to.
        rounds: Of all calls, in random order, >= 1.
        seed: Of the order.
    """
    rng, names = random.Random(seed), list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP + rounds):
        rng.shuffle(names)
        for name in names:
            began = time.perf_counter()
            calls[name]()
            if number >= WARM_UP:
                found[name].append(1000 * (time.perf_counter() - began))
    return {name: _summary(found[name], found[teacher]) for name in calls}


def _summary(own: Sequence[float], teacher: Sequence[float]) -> Latency:
    ordered = sorted(own)
    ratios = [there / here for here, there in zip(own, teacher, strict=True)]
    return Latency(
        statistics.median(own),
        ordered[len(ordered) // 10],
        ordered[-1 - len(ordered) // 10],
        statistics.median(ratios),
    )


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Counts the bytes of tensors that are made inside a `with` block and alive at once; what operations hold within
    themselves is not seen.

    with PeakMemory() as memory:
        network(x)
    memory.peak  # bytes
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor, 0)  # made before the block
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor, tensor.untyped_storage().nbytes())
        return found

    def _note(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = size
        weakref.finalize(storage, self._forget, key)
        self.current += size
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int) -> None:
        self.current -= self._known.pop(key, 0)


def weight_bytes(network: Any) -> int:
    """Bytes of a network's weights and buffers as they are in memory."""
    return sum(one.numel() * one.element_size() for one in (*network.parameters(), *network.buffers()))


@torch.inference_mode()
def estimate_memory(network: Any, call: Callable[[], Any]) -> float:
    """Megabytes (10^6 bytes) that a network takes in a process: its weights, and tensors of a call that are alive at
    once."""
    gc.collect()
    with PeakMemory() as memory:
        call()
    total: float = weight_bytes(network) + memory.peak
    return total / MEGABYTE
