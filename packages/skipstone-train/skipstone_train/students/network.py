"""A student: a teacher's denoiser with weights to train, which can also run under other values of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from skipstone.satellites import require_module

ADAPTER = "student"
GUIDANCE_WIDTH = 256  # of the embedding of the guidance weight, as latent consistency models have it


class StudentNetwork:
    """The trained weights of one module: a LoRA on all its linear layers and convolutions, or all of them.

    Teacher, target network and average are other values of the same weights, so that a LoRA needs the memory of one
    network.

    Args:
        module: The teacher's denoiser; changed in place.
        rank: Of the LoRA; 0 trains all weights.
        seed: Of the LoRA's first values; it changes nothing at first.
        takes_guidance: Whether it has an input for the guidance weight, `time_cond_proj_dim` of a
            UNet2DConditionModel, which changes nothing at first either.
    """

    def __init__(self, module: nn.Module, rank: int, seed: int = 0, takes_guidance: bool = False) -> None:
        self.module, self.rank, self.takes_guidance = module, rank, takes_guidance
        module.requires_grad_(False)
        if rank:
            _add_lora(module, rank, seed)
        if takes_guidance:
            _add_guidance_input(module)
        if not rank:
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
        """Run as the teacher, without gradients; a pipeline gives it no guidance weight, but both branches."""
        if self.takes_guidance:
            _announce_guidance_input(self.module, None)
        try:
            with self._without_adapters() if self.initial is None else self.using(self.initial):
                yield
        finally:
            if self.takes_guidance:
                _announce_guidance_input(self.module, GUIDANCE_WIDTH)

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        module: Any = self.module
        module.disable_adapters()
        try:
            with torch.no_grad():
                yield
        finally:
            module.enable_adapters()

    def merged(self) -> Any:
        """A copy of the module with the LoRA, if there is one, added to its weights."""
        module: Any = copy.deepcopy(self.module)
        if self.rank:
            module.fuse_lora()
            module.unload_lora()
        return module

    def detach(self) -> None:
        """Give the module back as it was."""
        module: Any = self.module
        if self.initial is not None:
            self.assign(self.initial)
        else:
            module.unload_lora()
        if self.takes_guidance:
            module.time_embedding.cond_proj = None
            _announce_guidance_input(module, None)
        module.requires_grad_(False)

    @torch.no_grad()
    def assign(self, values: Sequence[torch.Tensor]) -> None:
        """Set the trained weights."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


@contextmanager
def student_network(
    module: nn.Module, rank: int, seed: int = 0, takes_guidance: bool = False
) -> Iterator[StudentNetwork]:
    """A student in a module, which is given back as it was. Arguments as of `StudentNetwork`."""
    network = StudentNetwork(module, rank, seed, takes_guidance)
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


def _add_guidance_input(module: Any) -> None:
    """Add what projects the embedding of the guidance weight into that of the time; zeros, which change nothing."""
    embedding = module.time_embedding
    like = embedding.linear_1.weight
    projection = nn.Linear(GUIDANCE_WIDTH, embedding.linear_1.in_features, bias=False).to(like.device, torch.float32)
    nn.init.zeros_(projection.weight)
    embedding.cond_proj = projection
    _announce_guidance_input(module, GUIDANCE_WIDTH)


def _announce_guidance_input(module: Any, width: int | None) -> None:
    """Say in the configuration whether pipelines give the guidance weight as an input."""
    module.register_to_config(time_cond_proj_dim=width)
