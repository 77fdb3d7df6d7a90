"""Fitted Q: the value of each action by regression on logged episodes, backward from their ends; improved in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from skipstone.policies.agent.checkpoint import ActionScorer

from ..transitions import EpisodicRandomBehaviour, Transitions, collect, epsilon_greedy, greedy_behaviour, score_actions
from .base import Learner, TrainingSession, check_settings
from .scaling import StandardScaler, temporary_seed


@dataclass(frozen=True)
class FittedQ(Learner):
    """Batch learning: runs episodes, fits Q(o, a) to all of them, runs better ones, and so on.

    The target of a decision is what the episode earned from there on, as long as it went on as Q now would; from the
    first decision that Q would not have made, it is the best Q there: y = r + y' where a' is greedy, else r + max Q'.

    Args:
        hidden: Units of the layers between, tanh.
        members: Networks that are fitted side by side and averaged, >= 1.
        rate: Learning rate of each fit at its start, falling to 0.
        sweeps: Fits of a round, each to new targets.
        passes: Over the memory, in a fit, of minibatches drawn anew.
        batch: Decisions in a minibatch.
        episodes: Run in a round.
        explore: Chance of acting at random in an episode, from the second round on.
        memory: Decisions remembered, the newest.
        caution: Weight of log sum exp Q - Q(a), which keeps the value of actions that were never tried low; >= 0.
        warm: Episodes from which observations and pay are standardised.

    Raises:
        SpecError: a setting out of range.

    References: Ernst et al. 2005, Tree-based batch mode reinforcement learning; Watkins 1989 (lambda of 1);
        Kumar et al. 2020, arXiv 2006.04779 (caution).
    """

    hidden: tuple[int, ...] = (64, 64)
    members: int = 2
    rate: float = 3e-3
    sweeps: int = 3
    passes: float = 3.0
    batch: int = 1024
    episodes: int = 512
    explore: float = 0.2
    memory: int = 100_000
    caution: float = 0.0
    warm: int = 512
    name: ClassVar[str] = "fitted_q"

    def __post_init__(self) -> None:
        least = dict.fromkeys(("members", "sweeps", "batch", "episodes", "memory", "warm"), 1)
        check_settings(self, {**least, "caution": 0}, ("rate", "passes"), ("explore",))

    def begin(self, env: Any, seed: int) -> TrainingSession:
        return _FittedQSession(self, env, seed)


class _FittedQSession:
    """Fitted Q under way."""

    def __init__(self, settings: FittedQ, env: Any, seed: int) -> None:
        from .networks import Ensemble

        self.settings, self.env, self.seed = settings, env, seed
        self.standard = StandardScaler.of(env, settings.warm, seed)
        with temporary_seed(seed, 2):
            self.network = Ensemble((len(env.names), *settings.hidden, len(env.actions)), settings.members)
        self.memory: Transitions | None = None

    def action_scorer(self) -> ActionScorer:
        """The mean network."""
        return self.network.action_scorer(self.standard)

    def advance(self, index: int, share: float) -> Mapping[str, float]:
        own = self.settings
        rng = np.random.default_rng((self.seed, 3, index))
        acts = (
            epsilon_greedy(greedy_behaviour(self.action_scorer()), own.explore) if index else EpisodicRandomBehaviour()
        )
        fresh = collect(self.env, acts, own.episodes, rng)
        self.memory = keep_recent(fresh if self.memory is None else self.memory + fresh, own.memory)
        with temporary_seed(self.seed, 4, index):
            losses = [self._sweep(first=index + k == 0) for k in range(own.sweeps)]
        return {"fitted_q/loss": losses[-1], "fitted_q/memory": float(len(self.memory))}

    def _sweep(self, first: bool) -> float:
        assert self.memory is not None
        scale = (self.standard.shift, self.standard.scale)
        y = compute_targets(None if first else self.action_scorer(), self.memory, scale)
        return fit_network(self.network, self.standard, self.memory, y, self.settings)

    def state_dict(self) -> dict[str, Any]:
        """Networks, and what is remembered."""
        import torch

        kept = (
            {f.name: torch.as_tensor(getattr(self.memory, f.name)) for f in fields(Transitions)} if self.memory else {}
        )
        return {"network": self.network.state_dict(), "memory": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        kept = state["memory"]
        self.memory = Transitions(**{k: v.numpy() for k, v in kept.items()}) if kept else None


def keep_recent(t: Transitions, most: int) -> Transitions:
    """The newest whole episodes of at most so many decisions."""
    if len(t) <= most:
        return t
    starts = t.starts
    first = int(np.searchsorted(starts, len(t) - most))
    cut = int(starts[min(first, len(starts) - 1)])
    decisions = (t.observations, t.masks, t.actions, t.rewards, t.ends)
    endings = (t.quality, t.calls, t.utility, t.sample)
    return Transitions(*(a[cut:] for a in decisions), *(a[min(first, len(starts) - 1) :] for a in endings))


def compute_targets(scorer: ActionScorer | None, t: Transitions, scale: tuple[float, float] | None = None) -> Any:
    """(m,) the return of each decision, backward from the end of its episode.

    Args:
        scorer: Q in units of reward once `scale` is undone; None takes the returns of the episodes as they were.
        t: Episodes.
        scale: (shift, scale) by which Q is standardised; None where it is not.
    """
    m = len(t)
    y = np.asarray(t.rewards, float).copy()
    if scorer is None:
        follows, best = np.ones(m, bool), np.zeros(m)
    else:
        q = np.where(t.masks, score_actions(scorer, t.observations), -np.inf)
        follows = q.argmax(1) == t.actions
        best = q.max(1).astype(float)
    if scale is not None:
        best = best * scale[1] + scale[0]
    starts = t.starts
    ends = np.flatnonzero(t.ends)
    for back in range(1, int((ends - starts).max(initial=0)) + 1):
        i = ends - back
        i = i[i >= starts]
        y[i] += np.where(follows[i + 1], y[i + 1], best[i + 1])
    return y


def fit_network(network: Any, standard: StandardScaler, t: Transitions, y: Any, own: FittedQ) -> float:
    """Regress Q(o, a) on targets; returns the loss of the last minibatches, in squared standard deviations of pay."""
    import torch

    x = torch.from_numpy(standard(t.observations))
    a = torch.from_numpy(np.asarray(t.actions, np.int64))
    masks = torch.from_numpy(np.asarray(t.masks, bool))
    wanted = torch.from_numpy(((y - standard.shift) / standard.scale).astype(np.float32))
    total = max(50, round(own.passes * len(t) / own.batch))
    adam = torch.optim.Adam(network.parameters(), own.rate)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda k: 1 - k / total)
    losses = []
    for _ in range(total):
        pick = torch.randint(len(t), (min(own.batch, len(t)),))
        q = network(x[pick])
        chosen = q.gather(2, a[pick].expand(len(q), -1)[..., None])[..., 0]
        loss = ((chosen - wanted[pick]) ** 2).mean(1).sum()
        if own.caution:
            loss = loss + own.caution * (q.masked_fill(~masks[pick], -1e9).logsumexp(2) - chosen).mean(1).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        falling.step()
        losses.append(float(loss.detach()) / len(q))
    return float(np.mean(losses[-20:]))
