"""Small networks of torch, several side by side, and the action scorer that they are averaged to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from skipstone.policies.agent.checkpoint import ActionScorer

from .scaling import StandardScaler


class Ensemble(torch.nn.Module):
    """`members` networks of one shape on the same inputs: (n, inputs) -> (members, n, outputs); tanh between."""

    def __init__(self, sizes: Sequence[int], members: int) -> None:
        super().__init__()
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for a, b in itertools.pairwise(sizes):
            weight = torch.stack([torch.nn.init.orthogonal_(torch.empty(b, a)) for _ in range(members)])
            self.weights.append(torch.nn.Parameter(weight))
            self.biases.append(torch.nn.Parameter(torch.zeros(members, 1, b)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.expand(len(self.weights[0]), *x.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, torch.tanh(h) if i else h, weight.transpose(1, 2))
        return h

    def layers(self) -> list[tuple[Any, Any]]:
        """Of one network that gives the mean of all: the members side by side, apart from each other."""
        found: list[tuple[Any, Any]] = []
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            w, b = weight.detach().double(), bias.detach().double()[:, 0]
            blocks = list(w)
            if i == last:
                found.append((torch.cat(blocks, 1) / len(blocks) if i else w.mean(0), b.mean(0)))
            else:
                apart = torch.block_diag(*blocks) if i else torch.cat(blocks, 0)  # type: ignore[no-untyped-call]
                found.append((apart, b.reshape(-1)))
        return [(w.numpy().astype(np.float32), b.numpy().astype(np.float32)) for w, b in found]

    def action_scorer(self, standard: StandardScaler) -> ActionScorer:
        """The mean of all, on observations as they are given."""
        return ActionScorer(standard.centre, standard.spread, tuple(self.layers()), "tanh")
