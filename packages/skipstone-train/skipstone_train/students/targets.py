"""What a student should answer: the clean estimate whose step lands where its teacher would.

Both methods share it. From a level t the student takes one deterministic step to a level s below; the target is the
clean estimate for which that step ends where the teacher, or the student's own average from nearer by, ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from .levels import Levels, to_clean
from .teacher import GUIDANCE, Condition

Predict: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]  # x, level, condition -> clean


@dataclass(frozen=True)
class Batch:
    """Samples of one training step.

    Args:
        clean: Latents that the teacher drew.
        noise: As many.
        condition: Of their prompts.
        share: In [0, 1) for each, which picks its level.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    condition: Condition
    share: torch.Tensor


@dataclass(frozen=True)
class Target:
    """What the student is asked, and what it should answer.

    Args:
        x: Noisy samples.
        level: Of each.
        clean: The clean estimate that is wanted.
    """

    x: torch.Tensor
    level: torch.Tensor
    clean: torch.Tensor


@dataclass(frozen=True)
class Denoiser:
    """A network that answers with clean estimates.

    Args:
        call: (x, timesteps, condition) -> output.
        levels: Of the samples.
        prediction: What the output is.
        empty: Condition of the empty prompt, one row; None draws without guidance.
        guidance: Its weight, where the condition does not say that of each sample.
    """

    call: Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]
    levels: Levels
    prediction: str
    empty: Condition | None = None
    guidance: float = 1.0

    def __call__(self, x: torch.Tensor, level: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The clean estimates; with guidance, both branches in one call."""
        times, weights = self.levels.timestep[level], condition.get(GUIDANCE)
        if self.empty is None or (weights is None and self.guidance == 1.0):
            output = self.call(x, times, condition)
        else:
            words = {name: own for name, own in condition.items() if name != GUIDANCE}
            both = {name: torch.cat([self.empty[name].expand_as(own), own]) for name, own in words.items()}
            without, having = self.call(torch.cat([x, x]), torch.cat([times, times]), both).chunk(2)
            weight = self.guidance if weights is None else weights.view(-1, *(1,) * (x.ndim - 1))
            output = without + weight * (having - without)
        return to_clean(self.prediction, output, x, self.levels.scales(level, x))


class TargetMaker(ABC):
    """Makes the targets of one stage."""

    levels: Levels

    @abstractmethod
    def make(self, batch: Batch) -> Target:
        """The targets of a batch; no gradient goes through them."""


@dataclass(frozen=True)
class ProgressiveTargets(TargetMaker):
    """Two steps of the teacher in one of the student (Salimans & Ho 2022, arXiv 2202.00512).

    Args:
        levels: 2 n of them, of a student of n steps.
        teacher: Predicts, guided in the first stage.
        teaching: Puts the teacher's weights in place.
    """

    levels: Levels
    teacher: Predict
    teaching: Callable[[], AbstractContextManager[Any]]

    def make(self, batch: Batch) -> Target:
        steps = (len(self.levels) - 1) // 2
        start = 2 * (1 + (batch.share * steps).long().clamp_max(steps - 1))
        x = self.levels.noised(batch.clean, batch.noise, start)
        with self.teaching():
            there = x
            for level in (start, start - 1):
                clean = self.teacher(there, level, batch.condition)
                there = self.levels.step(there, clean, level, level - 1)
        return Target(x, start, self.levels.landing(x, there, start, start - 2))


@dataclass(frozen=True)
class ConsistencyTargets(TargetMaker):
    """All points of a segment agree on its end (arXiv 2310.04378 with one segment, 2403.06807 with more).

    The teacher takes one step, and the target network goes on from there to the end of the segment. At the end itself
    a step of length zero changes nothing: that is the boundary condition, and it holds by construction.

    Args:
        levels: A multiple of `segments` of them.
        segments: Of the way from noise to data.
        teacher: Predicts, guided.
        teaching: Puts the teacher's weights in place.
        target: Predicts without guidance.
        targeting: Puts the target network's weights in place.
    """

    levels: Levels
    segments: int
    teacher: Predict
    teaching: Callable[[], AbstractContextManager[Any]]
    target: Predict
    targeting: Callable[[], AbstractContextManager[Any]]

    def make(self, batch: Batch) -> Target:
        fine = len(self.levels) - 1
        length = fine // self.segments
        start = 1 + (batch.share * fine).long().clamp_max(fine - 1)
        end = (start - 1) // length * length
        x = self.levels.noised(batch.clean, batch.noise, start)
        with self.teaching():
            nearer = self.levels.step(x, self.teacher(x, start, batch.condition), start, start - 1)
        # Level 0 has no noise: the network is not asked there, and level 1 stands in for it.
        asked = (start - 1).clamp_min(1)
        with self.targeting():
            clean = self.target(nearer, asked, batch.condition)
        landed = self.levels.step(nearer, clean, asked, end)
        landed = torch.where((start - 1 == end).view(-1, *(1,) * (x.ndim - 1)), nearer, landed)
        return Target(x, start, self.levels.landing(x, landed, start, end))


def spread_evenly(generator: torch.Generator, count: int, device: torch.device) -> torch.Tensor:
    """`count` shares in [0, 1), one in each of as many equal parts, in random order: less variance than independent."""
    order = torch.randperm(count, generator=generator)
    return ((order + torch.rand(count, generator=generator)) / count).clamp_max(1 - 1e-6).to(device)


def stack_conditions(parts: Sequence[Condition]) -> Condition:
    """The conditions of several batches as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
