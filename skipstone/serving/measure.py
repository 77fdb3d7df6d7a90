"""The memory format in which a network is faster on this machine; how many rows it takes is in `row_times`."""

from __future__ import annotations

import time
from typing import Any

from ..engine.requests import Backbone, Problem, Query
from ..evaluation.row_times import REPEATS, time_call

FORMAT_WORTH = 1.05  # another memory format must be so many times faster


def choose_memory_format(module: Any, backbone: Backbone, problem: Problem, rows: int) -> str:
    """Put a network into the faster of torch's two memory formats, its pictures the same to rounding.

    Args:
        module: The network, whose weights are laid out anew.
        backbone: That calls it.
        problem, rows: Of the calls that are timed.

    Returns:
        "channels_last" or "contiguous".
    """
    import torch

    queries = [Query(problem.x, problem.grid[0], problem.cond)] * max(1, rows // backbone.branches)
    time_call(backbone, queries, time.perf_counter)
    plain = min(time_call(backbone, queries, time.perf_counter) for _ in range(REPEATS))
    module.to(memory_format=torch.channels_last)
    time_call(backbone, queries, time.perf_counter)
    other = min(time_call(backbone, queries, time.perf_counter) for _ in range(REPEATS))
    if plain > FORMAT_WORTH * other:
        return "channels_last"
    module.to(memory_format=torch.contiguous_format)
    return "contiguous"
