"""A student: a teacher's denoiser with weights to train, which can also run under other values of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from skipstone.satellites import require_module

ADAPTER = "student"


class StudentNetwork:
    """The trained weights of one module: a LoRA on all its linear layers and convolutions, or all of them.

    Teacher, target network and average are other values of the same weights, so that a LoRA needs the memory of one
    network.

    Args:
        module: The teacher's denoiser; changed in place.
        rank: Of the LoRA; 0 trains all weights.
        seed: Of the LoRA's first values; it changes nothing at first.
    """

    def __init__(self, module: nn.Module, rank: int, seed: int = 0) -> None:
        self.module, self.rank = module, rank
        module.requires_grad_(False)
        if rank:
            _add_lora(module, rank, seed)
        else:
            module.requires_grad_(True)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.initial = None if rank else self.values()

    def values(self) -> list[torch.Tensor]:
        """A copy of the trained weights."""
        return [p.detach().clone() for p in self.parameters]

    @contextmanager
    def using(self, values: Sequence[torch.Tensor]) -> Iterator[None]:
        """Run under other values, without gradients; the weights and their gradients stay as they are."""
        kept = [p.data for p in self.parameters]
        try:
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.data = value
            with torch.no_grad():
                yield
        finally:
            for parameter, old in zip(self.parameters, kept, strict=True):
                parameter.data = old

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Run as the teacher, without gradients."""
        if self.initial is not None:
            with self.using(self.initial):
                yield
            return
        module: Any = self.module
        module.disable_adapters()
        try:
            with torch.no_grad():
                yield
        finally:
            module.enable_adapters()

    def detach(self) -> None:
        """Give the module back as it was."""
        module: Any = self.module
        if self.initial is not None:
            self.assign(self.initial)
        else:
            module.unload_lora()
        module.requires_grad_(False)

    @torch.no_grad()
    def assign(self, values: Sequence[torch.Tensor]) -> None:
        """Set the trained weights."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


@contextmanager
def student_network(module: nn.Module, rank: int, seed: int = 0) -> Iterator[StudentNetwork]:
    """A student in a module, which is given back as it was. Arguments as of `StudentNetwork`."""
    network = StudentNetwork(module, rank, seed)
    try:
        yield network
    finally:
        network.detach()


def _add_lora(module: Any, rank: int, seed: int) -> None:
    """Add a LoRA whose scale is 1 and whose second factor is 0."""
    require_module("peft", "train")
    from peft import LoraConfig

    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers), ADAPTER
        )
