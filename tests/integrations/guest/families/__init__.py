"""Families of diffusers pipelines: tiny, real, made on the spot with seeded weights, for the tests of the guest.

Every module of this folder registers its families when it is imported, and this package imports them all.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .schedulers import SCHEDULERS

__all__ = ["FAMILIES", "SCHEDULERS", "Family", "alone", "build", "register", "samples", "with_scheduler"]

FAMILIES: dict[str, Family] = {}


def samples(output: Any) -> torch.Tensor:
    """The tensor in a pipeline's output: latents, pictures or frames, with the samples on the first axis."""
    if isinstance(output, torch.Tensor):
        return output
    first = output[0] if isinstance(output, tuple) else next(iter(output.values()))
    return first if isinstance(first, torch.Tensor) else torch.as_tensor(first)


@dataclass(frozen=True)
class Family:
    """How to make a pipeline of one family, how to call it, and what may change in the call.

    `inputs(pipe, batch, steps)` gives keyword arguments of `pipe(...)`: prompts that differ from sample to sample,
    fresh generators seeded 0 to batch - 1, guidance on. Lists and tensors of length `batch` belong to the samples,
    but for the lists under the names in `shared` (see `alone`).
    """

    name: str
    make: Callable[[], DiffusionPipeline]
    inputs: Callable[[DiffusionPipeline, int, int], dict[str, Any]]
    schedulers: tuple[str, ...] = ()
    guidance_off: Mapping[str, Any] = field(default_factory=dict)
    after: Callable[[Any], torch.Tensor] = samples
    shared: tuple[str, ...] = ()
    notes: str = ""


def register(family: Family) -> Family:
    """Add a family; a name is given once."""
    if family.name in FAMILIES:
        raise ValueError(f"the family {family.name!r} is registered already")
    FAMILIES[family.name] = family
    return family


@cache
def _made(name: str) -> DiffusionPipeline:
    pipe = FAMILIES[name].make()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def build(name: str) -> DiffusionPipeline:
    """A new pipeline of a family, free of what earlier tests did: only the tokenizers are shared."""
    pipe = _made(name)
    shared = {id(part): part for key, part in pipe.components.items() if "tokenizer" in key and part is not None}
    return copy.deepcopy(pipe, shared)


def with_scheduler(pipe: DiffusionPipeline, name: str) -> DiffusionPipeline:
    """The same pipeline with another of the SCHEDULERS, made from the configuration of its own."""
    pipe.scheduler = SCHEDULERS[name](pipe.scheduler.config)
    return pipe


def alone(inputs: Mapping[str, Any], row: int, batch: int, shared: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keyword arguments of one sample out of a batch: lists and tensors of length `batch` are cut to its row.

    A list under a name in `shared` is not of samples: it stays, and the tensors in it are cut.
    """
    assert batch > 1, "a list of one element could be anything"

    def cut(key: str, value: Any) -> Any:
        if key == "batch_size":
            return 1
        if key in shared:
            return [part[row : row + 1] if isinstance(part, torch.Tensor) else part for part in value]
        ours = isinstance(value, (list, torch.Tensor)) and len(value) == batch
        return value[row : row + 1] if ours else value

    return {key: cut(key, value) for key, value in inputs.items()}


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
