"""Search: a linear rule is perturbed at random, and the best perturbations are kept; no gradient and no values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from skipstone.errors import SpecError
from skipstone.policies.agent.checkpoint import ActionScorer

from ..transitions import evaluate
from .base import Learner, TrainingSession, check_settings
from .scaling import StandardScaler


@dataclass(frozen=True)
class Search(Learner):
    """Cross-entropy method over linear scores of the actions, from "always continue" on.

    All candidates of a round play the same episodes, so that their scores differ by their actions only. After
    `rounds` rounds it begins again with other perturbations, for it ends in the nearest local optimum.

    Args:
        candidates: Of a round, >= 2.
        rounds: Of one search, >= 2.
        elite: Share of them that the next round is drawn around, in (0, 1).
        episodes: That each candidate plays; whole slots of the environment.
        start: Lead of "continue" over the other actions at the start, in standard deviations of the first perturbation.
        shake: Standard deviation of every weight at the start, > 0.
        noise: Added to every standard deviation, falling from this to 0 in a search: without it, it freezes early.
        step: Share of the way from the old mean and deviation to the elite's, in (0, 1].
        warm: Episodes from which observations are standardised.

    Raises:
        SpecError: a setting out of range.

    References: Rubinstein 1999, The cross-entropy method; Szita & Lorincz 2006, Learning Tetris (noise).
    """

    candidates: int = 32
    rounds: int = 12
    elite: float = 0.25
    episodes: int = 64
    start: float = 3.0
    shake: float = 1.0
    noise: float = 0.3
    step: float = 0.7
    warm: int = 256
    name: ClassVar[str] = "search"

    def __post_init__(self) -> None:
        sound = self.candidates >= 2 and self.rounds >= 2 and self.shake > 0
        if not (sound and 0 < self.elite < 1 and 0 < self.step <= 1):
            raise SpecError(
                f"search: expected candidates and rounds >= 2, elite in (0, 1), shake > 0 and step in (0, 1], "
                f"got {self!r}."
            )
        check_settings(self, {"episodes": 1, "warm": 1, "noise": 0}, ())

    def begin(self, env: Any, seed: int) -> TrainingSession:
        return _SearchSession(self, env, seed)


class _SearchSession:
    """The cross-entropy method under way."""

    def __init__(self, settings: Search, env: Any, seed: int) -> None:
        self.settings, self.env, self.seed = settings, env, seed
        self.standard = StandardScaler.of(env, settings.warm, seed)
        self._restart()

    def _restart(self) -> None:
        own, actions = self.settings, self.env.actions
        first = actions.index("continue") if "continue" in actions else 0
        self.mean = np.zeros((len(actions), len(self.env.names) + 1))
        self.mean[first, -1] = own.start * own.shake
        self.spread = np.full(self.mean.shape, own.shake)

    def action_scorer(self) -> ActionScorer:
        """The mean of the distribution."""
        return self._brain(self.mean)

    def _brain(self, rule: Any) -> ActionScorer:
        layer = rule[:, :-1].astype(np.float32), rule[:, -1].astype(np.float32)
        return ActionScorer(self.standard.centre, self.standard.spread, (layer,))

    def advance(self, index: int, share: float) -> Mapping[str, float]:
        own = self.settings
        rng = np.random.default_rng((self.seed, 3, index))
        episodes = int(rng.integers(2**31))
        if index % own.rounds == 0:
            self._restart()
        noise = own.noise * own.shake * (1 - (index % own.rounds) / own.rounds)
        shakes = rng.standard_normal((own.candidates, *self.mean.shape)) * (self.spread + noise)
        shakes[0] = 0.0  # the middle itself
        rules = self.mean + shakes
        pays = np.array(
            [evaluate(self.env, self._brain(r), own.episodes, episodes).episode_returns.mean() for r in rules]
        )
        best = rules[np.argsort(-pays, kind="stable")[: max(2, round(own.elite * own.candidates))]]
        self.mean = (1 - own.step) * self.mean + own.step * best.mean(0)
        self.spread = (1 - own.step) * self.spread + own.step * best.std(0)
        return {
            "search/pay": float(pays.mean()),
            "search/best": float(pays.max()),
            "search/spread": float(self.spread.mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Mean and spread."""
        import torch

        return {"mean": torch.from_numpy(self.mean.copy()), "spread": torch.from_numpy(self.spread.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.spread = state["mean"].numpy(), state["spread"].numpy()
