"""How a pipeline makes one prediction of its guidance branches: recognised in its first step, checked in the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...engine.contracts import COND, UNCOND
from .refusal import TakeoverRefused

SCALE_ARGUMENTS = ("true_cfg_scale", "guidance_scale")  # of a pipeline's call: the weight w
RESCALE_ARGUMENT = "guidance_rescale"
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2  # relative: what rounding may change
MIN_GAP, MIN_HALF_GAP = 1e-3, 5e-2  # relative: smaller differences between branches do not show their weights
MIN_CONDITION = 1e-4  # of the branches' differences: smallest eigenvalue over the largest


@dataclass(frozen=True)
class Guidance:
    """One prediction of a sample's branches: their weighted sum, perhaps scaled to the size of the conditional one.

    Args:
        weights: Branch -> weight; they add up to 1.
        keeps_norm: Whether every vector along the last axis is scaled to the norm of the conditional one (Qwen-Image).
        rescale: Share of a prediction scaled to the conditional one's standard deviation (Lin et al. 2023,
            arXiv 2305.08891, section 3.4), in [0, 1].
        sign: 1, or -1 where the pipeline gives its scheduler the negative (Lumina 2).
    """

    weights: Mapping[str, float]
    keeps_norm: bool = False
    rescale: float = 0.0
    sign: float = 1.0

    def combine(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The prediction of one sample, from the rows of its branches."""
        first = UNCOND if UNCOND in outputs else next(iter(outputs))
        combined = outputs[first]
        for name, weight in self.weights.items():
            if name != first:
                combined = combined + weight * (outputs[name] - outputs[first])
        if self.keeps_norm:
            norms = (torch.norm(one, dim=-1, keepdim=True) for one in (outputs[COND], combined))
            combined = combined * (next(norms) / next(norms))
        elif self.rescale:
            scaled = combined * (outputs[COND].std() / combined.std())
            combined = self.rescale * scaled + (1 - self.rescale) * combined
        return combined if self.sign == 1.0 else -combined

    def explains(self, outputs: Mapping[str, torch.Tensor], guided: torch.Tensor) -> bool:
        """Whether `guided` is what it makes of these branches, for every sample: (samples, ...) each."""
        wide, expected = {name: _widen(value) for name, value in outputs.items()}, _widen(guided)
        if len(outputs) == 1:
            return torch.equal(self.combine(wide), expected)
        made = torch.stack([self.combine({n: v[s] for n, v in wide.items()}) for s in range(len(guided))])
        error = (made - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
        return bool((error < _tolerance(guided)).all())


def recognise_guidance(
    outputs: Mapping[str, torch.Tensor], guided: torch.Tensor, arguments: Mapping[str, Any]
) -> Guidance:
    """The rule by which a pipeline made `guided` of its branches' outputs, (samples, ...) each.

    Args:
        outputs: Branch -> outputs.
        guided: What the pipeline gave its scheduler.
        arguments: Of the pipeline's call.

    Raises:
        TakeoverRefused: none of the rules that are known here.
    """
    rules = list(_candidates(outputs, guided, arguments))
    for rule in (*rules, *(replace(rule, sign=-1.0) for rule in rules)):
        if rule.explains(outputs, guided):
            return rule
    raise TakeoverRefused(
        "its guidance is not a weighted sum of its branches, nor one that is scaled as Qwen-Image or guidance_rescale "
        "do, so Skipstone cannot guide in the pipeline's place"
    )


def _candidates(
    outputs: Mapping[str, torch.Tensor], guided: torch.Tensor, arguments: Mapping[str, Any]
) -> Iterator[Guidance]:
    if len(outputs) == 1:
        yield Guidance({next(iter(outputs)): 1.0})
        return
    named = outputs.keys() == {COND, UNCOND}
    told = [arguments.get(name) for name in SCALE_ARGUMENTS]
    scales = [float(w) for w in told if isinstance(w, int | float)] if named else []
    rescale = arguments.get(RESCALE_ARGUMENT) or 0.0
    for w in scales:
        weights = {COND: w, UNCOND: 1.0 - w}
        yield Guidance(weights, rescale=rescale)
        yield Guidance(weights, keeps_norm=True)
    if not rescale and (measured := _measure_weights(outputs, guided)):
        yield Guidance(measured)


def _measure_weights(outputs: Mapping[str, torch.Tensor], guided: torch.Tensor) -> dict[str, float]:
    """Weights with the least squared error; empty where the branches are too alike to tell."""
    first, *others = outputs
    base = _widen(outputs[first]).flatten()
    gaps = torch.stack([_widen(outputs[name]).flatten() - base for name in others])
    target = _widen(guided).flatten() - base
    least = MIN_GAP if guided.dtype == torch.float32 else MIN_HALF_GAP
    gram, products = (gaps @ gaps.T).cpu().double(), (gaps @ target).cpu().double()
    sizes = torch.linalg.eigvalsh(gram)
    if not torch.isfinite(sizes).all() or gaps.norm(dim=1).min() < least * _widen(guided).norm():
        return {}
    if sizes[0] < MIN_CONDITION * sizes[-1]:
        return {}
    weights = dict(zip(others, torch.linalg.solve(gram, products).tolist(), strict=True))
    return {first: 1.0 - math.fsum(weights.values()), **weights}


def _tolerance(guided: torch.Tensor) -> float:
    return TOLERANCE if guided.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE


def _widen(value: torch.Tensor) -> torch.Tensor:
    """The same in double precision, which Apple's GPUs do not have."""
    return value.float() if value.device.type == "mps" else value.double()
