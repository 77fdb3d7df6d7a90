"""Common preparations of learners: scales, seeds and threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..transitions import EpisodicRandomBehaviour, collect


@dataclass(frozen=True, eq=False)
class StandardScaler:
    """Scales of observations and rewards under random behaviour: (o - centre) / spread, (pay - shift) / scale."""

    centre: Any
    spread: Any
    shift: float
    scale: float

    @classmethod
    def of(cls, env: Any, episodes: int, seed: int) -> StandardScaler:
        """Measured once, before any learning, and constant afterwards."""
        rng = np.random.default_rng((seed, 1))
        t = collect(env, EpisodicRandomBehaviour(), episodes, rng) + collect(
            env, "continue", max(1, episodes // 4), rng
        )
        spread, scale = t.observations.std(0), float(t.episode_returns.std())
        spread = np.where(spread < 1e-3, 1.0, spread).astype(np.float32)
        return cls(
            t.observations.mean(0).astype(np.float32),
            spread,
            float(t.episode_returns.mean()),
            scale if scale > 1e-9 else 1.0,
        )

    def __call__(self, observations: Any) -> Any:
        return ((observations - self.centre) / self.spread).astype(np.float32)


@contextmanager
def one_thread() -> Iterator[None]:
    """Small networks are slower on several threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def temporary_seed(*seed: int) -> Iterator[None]:
    """The global generators of Python, NumPy and torch, seeded, and put back afterwards."""
    import random

    import torch

    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    whole = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(whole)
    np.random.seed(whole)
    torch.manual_seed(whole)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
