"""Learners by the names that configurations use: each turns episodes of an environment into an action scorer."""

from __future__ import annotations

from typing import Any

from skipstone.errors import SpecError, UnknownNameError
from skipstone.registry import suggest_spelling

from .base import FitResult, Learner
from .curriculum import Curriculum
from .fitted_q import FittedQ
from .ppo import PPO
from .search import Search
from .stopping import Stopping

LEARNERS: dict[str, type[Learner]] = {cls.name: cls for cls in (PPO, FittedQ, Stopping, Search)}

__all__ = ["LEARNERS", "PPO", "Curriculum", "FitResult", "FittedQ", "Learner", "Search", "Stopping", "make_learner"]


def make_learner(name: str, **settings: Any) -> Learner:
    """The learner of that name. Raises UnknownNameError, or SpecError for a setting that it does not have."""
    if name not in LEARNERS:
        raise UnknownNameError(
            f"No learner is called {name!r}.{suggest_spelling(name, list(LEARNERS))} Known: {', '.join(LEARNERS)}."
        )
    try:
        return LEARNERS[name](**settings)
    except TypeError as e:
        raise SpecError(f"{name}: {e}") from None
