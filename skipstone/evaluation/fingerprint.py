"""Settings that two runs must share to be in one table, and the machine that a run was made on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .references import EvaluationSample
from .subject import Subject

# The first version that draws, to the bit, what today's draws: results of all versions since may stand in one table,
# and an interrupted run goes on. Raise it with every change of a decision, a solver or a metric.
RESULTS_VERSION = "0.2.0.dev0"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".ckpt")


def fingerprint(
    subject: Subject, eval_samples: Sequence[EvaluationSample], tuning: Sequence[EvaluationSample]
) -> dict[str, Any]:
    """Name -> what must be the same: weights, versions, numbers, prompts and seeds."""
    dtypes, devices = numbers_of(subject.denoisers)
    return {
        "weights": hash_weights(subject.folder),
        "skipstone": RESULTS_VERSION,
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "dtype": dtypes,
        "device": devices,
        "prompts": hash_samples(eval_samples),
        "tuning prompts": hash_samples(tuning),
        **picture_hashes(subject),
    }


def numbers_of(denoisers: Sequence[Any]) -> tuple[str, str]:
    """Dtypes and kinds of devices of networks, as text; a denoiser that is no torch module says its own."""
    dtypes, devices = set[str](), set[str]()
    for network in denoisers:
        if isinstance(network.dtype if hasattr(network, "dtype") else None, str):
            dtypes.add(network.dtype)
            devices.add(network.device)
        else:
            dtypes.add(str(next(iter(network.parameters())).dtype).removeprefix("torch."))
            devices |= {p.device.type for p in network.parameters()}
    return ", ".join(sorted(dtypes)), ", ".join(sorted(devices))


def picture_hashes(subject: Subject) -> dict[str, str]:
    """{"pictures": ...}, a SHA-256 of the pictures that are given to the pipeline's call; empty where there are none.

    `Subject.settings` has the names of their files only, and a file may be another one by the next run.
    """
    given = {**getattr(subject, "arguments", {}), "image": getattr(subject, "image", None)}
    found = hashlib.sha256()
    pictures = sorted(name for name, value in given.items() if hasattr(value, "tobytes") and hasattr(value, "info"))
    for name in pictures:
        found.update(f"{name} {given[name].size} ".encode() + given[name].tobytes())
    return {"pictures": found.hexdigest()} if pictures else {}


def hash_weights(folder: Path) -> str:
    """One SHA-256 over those of all files of weights; a hub's cache names its files by them."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in WEIGHT_SUFFIXES):
        blob = path.resolve().name
        known = path.is_symlink() and len(blob) == 64
        found.append([path.relative_to(folder).as_posix(), blob if known else _digest(path)])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def hash_samples(eval_samples: Sequence[EvaluationSample]) -> str:
    """SHA-256 of prompts and seeds."""
    return hashlib.sha256(json.dumps([[s.id, s.prompt.text] for s in eval_samples]).encode()).hexdigest()


def describe_machine(subject: Subject) -> str:
    """Processor, cores and threads, GPU, system."""
    import torch

    parts = [processor_name(), f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    modules = [network for network in subject.denoisers if isinstance(network, torch.nn.Module)]
    devices = {p.device for network in modules for p in network.parameters() if p.device.type == "cuda"}
    parts += [torch.cuda.get_device_name(device) for device in devices]
    parts += [network.device for network in subject.denoisers if network not in modules]
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}", f"Python {platform.python_version()}"])


def processor_name() -> str:
    """Name of the processor, if the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()
