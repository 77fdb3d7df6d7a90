"""Several optimizers as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Optimizers(torch.optim.Optimizer):
    """Optimizers of different weights that step together."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of all."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """That of all."""
        return {key: value for part in self.parts for key, value in part.state.items()}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of each."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Of each."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of each."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def adamw(module: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW for all weights that are trained."""
    weights = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)


def muon_and_adamw(module: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for the rest; AdamW alone before torch 2.9.

    Both at one rate, as Pebble-DiT was trained.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and "blocks." in name] if hasattr(torch.optim, "Muon") else []
    chosen = set(map(id, matrices))
    rest = [p for _, p in named if id(p) not in chosen]
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)]
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return Optimizers(parts)
