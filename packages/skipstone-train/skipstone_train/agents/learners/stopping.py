"""When to stop: optimal stopping by regression on runs of the fixed schedule, after Longstaff and Schwartz."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from skipstone.errors import SpecError
from skipstone.policies.agent.checkpoint import ActionScorer

from ..transitions import collect, score_actions
from .base import Learner, TrainingSession, check_settings
from .scaling import StandardScaler, temporary_seed

NEVER_SCORE = -1e9  # score of all other actions


@dataclass(frozen=True)
class Stopping(Learner):
    """Dynamic programming over one schedule: "continue", until stopping is worth more than going on.

    Each sample is run to its end, and again with a stop at each decision, which gives every U_t along its path;
    where there are several ways to stop, with each of them. Then, repeatedly: D(o_t) = U_t - U_rule(t) is regressed on
    the observations, U_rule(t) being what this sample really earns when it goes on from t by the rule so far; the new
    rule stops where D > 0, in the way of the largest D. U_rule is of real runs: no estimate feeds on another.

    Args:
        hidden: Units of the layers between, tanh; () is a linear rule.
        samples: Run through in a round, at least; whole slots of the environment.
        sweeps: Regressions of a round.
        rate: Learning rate of each regression at its start, falling to 0.
        updates: Of each regression, of all rows at once or of `batch`.
        batch: Rows in a minibatch.
        memory: Samples remembered, the newest.

    Raises:
        SpecError: a setting out of range; from `fit`, where the environment has no "continue" or no "stop".

    References: Longstaff & Schwartz 2001, Valuing American options by simulation; Howard 1960 (policy iteration).
    """

    hidden: tuple[int, ...] = (64,)
    samples: int = 256
    sweeps: int = 6
    rate: float = 1e-2
    updates: int = 200
    batch: int = 2048
    memory: int = 10_000
    name: ClassVar[str] = "stopping"

    def __post_init__(self) -> None:
        check_settings(self, dict.fromkeys(("samples", "sweeps", "updates", "batch", "memory"), 1), ("rate",))

    def begin(self, env: Any, seed: int) -> TrainingSession:
        if "continue" not in env.actions or not _stop_actions(env):
            raise SpecError(
                f"stopping: expected an environment that can 'continue' and 'stop', this one can "
                f"{', '.join(env.actions)}. Allow both, or choose another learner."
            )
        return _StoppingSession(self, env, seed)


@dataclass(frozen=True, eq=False)
class ScheduleRuns:
    """Runs of "continue": (samples, decisions, d) seen, (samples, decisions, ways) earned by a stop there (NaN: not
    allowed), (samples,) earned by none. Decisions past a run's end are NaN throughout."""

    seen: Any
    stopped: Any
    ended: Any

    @classmethod
    def of(cls, env: Any, samples: int, rng: Any) -> ScheduleRuns:
        """Played from the same seeds with a stop at each decision in turn."""
        parts = [cls._one(env, int(rng.integers(2**31))) for _ in range(-(-samples // env.num_envs))]
        return parts[0].concatenate(parts[1:])

    @classmethod
    def _one(cls, env: Any, seed: int) -> ScheduleRuns:
        nothing = np.random.default_rng(0)
        whole = collect(env, "continue", env.num_envs, nothing, seed)
        lengths = np.diff([*whole.starts, len(whole)])
        most = int(lengths.max())
        inside = np.arange(most) < lengths[:, None]
        seen = np.full((len(lengths), most, whole.observations.shape[1]), np.nan, np.float32)
        seen[inside] = whole.observations
        ways = _stop_actions(env)
        stopped = np.full((len(lengths), most, len(ways)), np.nan)
        for way, k in itertools.product(range(len(ways)), range(most)):
            t = collect(env, f"{env.actions[ways[way]]} at {k}", env.num_envs, nothing, seed)
            last = np.flatnonzero(t.ends)
            at = last - t.starts
            rows = np.flatnonzero((t.actions[last] == ways[way]) & (at < lengths))
            stopped[rows, at[rows], way] = t.episode_returns[rows]
        return cls(seen, stopped, whole.episode_returns)

    def concatenate(self, others: list[ScheduleRuns]) -> ScheduleRuns:
        """These and others, as many decisions as the longest has."""
        every = [self, *others]
        most = max(p.stopped.shape[1] for p in every)

        def wide(a: Any) -> Any:
            return np.pad(a, [(0, 0), (0, most - a.shape[1])] + [(0, 0)] * (a.ndim - 2), constant_values=np.nan)

        seen, stopped = (np.concatenate([wide(getattr(p, k)) for p in every]) for k in ("seen", "stopped"))
        return ScheduleRuns(seen, stopped, np.concatenate([p.ended for p in every]))

    def last(self, most: int) -> ScheduleRuns:
        """The newest."""
        return ScheduleRuns(self.seen[-most:], self.stopped[-most:], self.ended[-most:])

    def continuation_values(self, gains: Any) -> Any:
        """(samples, decisions) earned by going on from each decision, by the rule that stops where `gains` are > 0.

        Args:
            gains: (samples, decisions, ways) of stopping, as the rule sees them; it takes the largest.
        """
        worth, now = np.empty(self.stopped.shape[:2]), self.ended.copy()
        seen = np.where(np.isfinite(self.stopped), gains, -np.inf)
        way, best = seen.argmax(2), seen.max(2)
        earned = np.take_along_axis(self.stopped, way[..., None], 2)[..., 0]
        for k in reversed(range(worth.shape[1])):
            worth[:, k] = now
            now = np.where(best[:, k] > 0, earned[:, k], now)
        return worth


class _StoppingSession:
    """Optimal stopping under way."""

    def __init__(self, settings: Stopping, env: Any, seed: int) -> None:
        from .networks import Ensemble

        self.settings, self.env, self.seed = settings, env, seed
        d = len(env.names)
        self.standard = StandardScaler(np.zeros(d, np.float32), np.ones(d, np.float32), 0.0, 1.0)
        with temporary_seed(seed, 2):
            self.network = Ensemble((d, *settings.hidden, len(_stop_actions(env))), 1)
        self.fitted = False
        self.paths: ScheduleRuns | None = None

    def action_scorer(self) -> ActionScorer:
        """Score of each way to stop D(o), of "continue" 0; "continue" alone, before anything is fitted."""
        actions, layers = self.env.actions, self.network.layers()
        weight, bias = layers[-1]
        final = np.zeros((len(actions), weight.shape[1]), np.float32)
        biases = np.full(len(actions), NEVER_SCORE, np.float32)
        biases[actions.index("continue")] = 0.0
        if self.fitted:
            final[_stop_actions(self.env)], biases[_stop_actions(self.env)] = weight, bias
        return ActionScorer(self.standard.centre, self.standard.spread, (*layers[:-1], (final, biases)), "tanh")

    def advance(self, index: int, share: float) -> Mapping[str, float]:
        own = self.settings
        fresh = ScheduleRuns.of(self.env, own.samples, np.random.default_rng((self.seed, 3, index)))
        self.paths = (fresh if self.paths is None else self.paths.concatenate([fresh])).last(own.memory)
        rows = np.isfinite(self.paths.stopped).any(2)
        seen = self.paths.seen[rows]
        if not rows.any():
            raise SpecError(
                "stopping: no decision of any run could be a stop. Allow stops earlier, or another learner."
            )
        if index == 0:
            spread = seen.std(0)
            self.standard = StandardScaler(
                seen.mean(0), np.where(spread < 1e-3, 1.0, spread).astype(np.float32), 0.0, 1.0
            )
        with temporary_seed(self.seed, 4, index):
            for _ in range(own.sweeps):
                loss = self._sweep(rows, seen)
        return {"stopping/loss": loss, "stopping/samples": float(len(self.paths.ended))}

    def _sweep(self, rows: Any, seen: Any) -> float:
        assert self.paths is not None
        gains = np.full(self.paths.stopped.shape, -1.0)
        if self.fitted:
            gains[rows] = score_actions(self.action_scorer(), seen)[:, _stop_actions(self.env)]
        real = (self.paths.stopped - self.paths.continuation_values(gains)[..., None])[rows]
        self.fitted = True
        return fit_regression(
            self.network, self.standard(seen), real / max(float(np.nanstd(real)), 1e-9), self.settings
        )

    def state_dict(self) -> dict[str, Any]:
        """The rule, and what is remembered."""
        import torch

        kept = (
            {f.name: torch.as_tensor(getattr(self.paths, f.name)) for f in fields(ScheduleRuns)} if self.paths else {}
        )
        standard = [torch.as_tensor(a) for a in (self.standard.centre, self.standard.spread)]
        return {"network": self.network.state_dict(), "fitted": self.fitted, "paths": kept, "standard": standard}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.fitted, kept = state["fitted"], state["paths"]
        self.paths = ScheduleRuns(**{k: v.numpy() for k, v in kept.items()}) if kept else None
        centre, spread = (a.numpy() for a in state["standard"])
        self.standard = StandardScaler(centre, spread, 0.0, 1.0)


def _stop_actions(env: Any) -> list[int]:
    """Numbers of the actions that end a run: "stop", or "stop 2" and its like."""
    return [k for k, name in enumerate(env.actions) if name.split()[0] == "stop"]


def fit_regression(network: Any, x: Any, y: Any, own: Stopping) -> float:
    """Least squares of y on x, NaN left out, going on from what the network has; mean loss of the last updates."""
    import torch

    inputs, known = torch.from_numpy(x), torch.from_numpy(np.isfinite(y))
    wanted = torch.from_numpy(np.nan_to_num(y).astype(np.float32))
    adam = torch.optim.Adam(network.parameters(), own.rate)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda k: 1 - k / own.updates)
    losses = []
    for _ in range(own.updates):
        pick = torch.randint(len(x), (own.batch,)) if len(x) > own.batch else slice(None)
        loss = ((network(inputs[pick])[0] - wanted[pick]) ** 2)[known[pick]].mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        falling.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-20:]))
