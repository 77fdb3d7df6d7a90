"""What a network takes in a process of its own: `python -m skipstone_train.architecture.memory_check FOLDER ...`."""

from __future__ import annotations

import copy
import gc
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cost import MEGABYTE

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "32768"}  # glibc gives larger tensors back, so that none is used again unseen
STATUS = Path("/proc/self/statm")  # of Linux: pages of the process


def measured_memory(folders: Sequence[Path]) -> list[float]:
    """Megabytes (10^6 bytes) by which a process grows for one more copy of each model's network and a call of it.

    NaN where the system does not say what memory a process has, or where that process fails.
    """
    command = [sys.executable, "-m", "skipstone_train.architecture.memory_check", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **GIVEN_BACK})
    try:
        found = [float(line) for line in done.stdout.split()]
    except ValueError:
        found = []
    return found if len(found) == len(folders) else [math.nan] * len(folders)


def resident_bytes() -> float:
    """Memory of this process; NaN where the system does not say."""
    if not STATUS.is_file():
        return math.nan
    return int(STATUS.read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


def measure(folder: str) -> float:
    """Bytes by which this process grows for a second copy of the network and a call, looked at after each layer.

    0 where it does not grow: what a very small network takes can be less than what libraries give back meanwhile.
    """
    import torch

    from skipstone.evaluation.models import load_embedded

    torch.set_num_threads(1)
    model: Any = load_embedded(folder)
    problem = model.problem("a red apple on a blue background")
    x = torch.stack([problem.x, problem.x])
    condition = torch.stack([problem.cond["cond"], problem.cond["uncond"]])
    times = torch.full((2,), 500.0)
    with torch.inference_mode():
        model.family.forward(model.unet, x, times, condition)  # what libraries set up once
        gc.collect()
        before = resident_bytes()
        second = copy.deepcopy(model.unet)
        peak = [resident_bytes()]
        for layer in second.modules():
            layer.register_forward_hook(lambda *_: peak.append(resident_bytes()))
        model.family.forward(second, x, times, condition)
    growth = max(peak) - before
    return growth if math.isnan(growth) else max(0.0, growth)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        print(measure(given) / MEGABYTE)
