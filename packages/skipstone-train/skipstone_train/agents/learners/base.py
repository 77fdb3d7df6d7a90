"""Common to all learners: rounds of learning, a score and a checkpoint after each, the best of all rounds."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from skipstone.errors import OutputError, SpecError
from skipstone.policies.agent.checkpoint import ActionScorer

from ..transitions import PolicyScore, evaluate
from .curriculum import Curriculum
from .scaling import one_thread

HELD_OUT_SEED = 7_919  # seed of the episodes that score where there is no validation
NUM_HELD_OUT_EPISODES = 256  # of them
MAX_COUNT = 10_000_000  # of every whole number among a learner's settings
MAX_LAYERS, MAX_UNITS = 8, 4096
CHECKPOINT_FILE, BEST_SCORER_FILE, CURVE_FILE = "checkpoint.pt", "brain.safetensors", "curve.json"

RoundCallback: TypeAlias = Callable[[float, Mapping[str, float]], None]
ScoreFunction: TypeAlias = Callable[[ActionScorer], "float | PolicyScore"]


@dataclass(frozen=True)
class FitResult:
    """What a learner found.

    Args:
        action_scorer: The best by score of all rounds.
        score: Its own, the mean utility.
        curve: A row a round: share (of the budget), steps, seconds, score, and the learner's own figures.
        steps: Decisions in all, those that nothing was learnt from included.
        seconds: Of all, scoring included.
    """

    action_scorer: ActionScorer
    score: float
    curve: tuple[Mapping[str, float], ...]
    steps: int
    seconds: float


class TrainingSession(Protocol):
    """One training under way: what a learner's `begin` makes."""

    def action_scorer(self) -> ActionScorer:
        """What has been learnt by now."""

    def advance(self, index: int, share: float) -> Mapping[str, float]:
        """Round `index`, this share of the budget being spent; its figures. Depends on seed, index and state alone."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load_state_dict` goes on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the result of `state_dict`."""


@dataclass(frozen=True)
class Learner:
    """Base of every learner: frozen settings, and `fit`."""

    name: ClassVar[str]
    default_steps: ClassVar[int] = 200_000

    def begin(self, env: Any, seed: int) -> TrainingSession:
        """A training that has not learnt anything yet."""
        raise NotImplementedError

    def fit(
        self,
        env: Any,
        score: Any = None,
        *,
        steps: int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        callback: RoundCallback | None = None,
        curriculum: Curriculum | None = None,
    ) -> FitResult:
        """Learn to act in an environment.

        Args:
            env: A vector environment with `action_masks`, `actions` and `names`, which begins episodes again in the
                step in which they end. Of what it is seeded with, the same seed gives the same result.
            score: How an action scorer is evaluated: a validation environment, a function, or None for episodes of
                `env` of a seed that is not trained on.
            steps: Decisions to play, all episodes counted; with `seconds`, whichever is reached first; of neither,
                the learner's own default.
            seconds: Of wall clock. The result then depends on the machine.
            seed: Of all chance.
            folder: Where the best action scorer, the curve and the checkpoint are written after every round. A
                checkpoint that is there already is resumed, to the same result as without the interruption; Ctrl-C
                leaves one.
            callback: Called with (share done, figures) after every round.
            curriculum: Which samples come first, for an environment with `complexity` and `set_sample_weights`.

        Raises:
            SpecError: a checkpoint of another learner, settings or seed; a curriculum that `env` cannot follow.
            OutputError: the folder cannot be written.
        """
        run = _FitState(self, CountingEnv(env), _score_function(score, env), seed, steps, seconds, curriculum)
        place = Path(folder) if folder is not None else None
        if place is None or not (place / CHECKPOINT_FILE).exists():
            run.record_round({})
            run.save_checkpoint(place)
        else:
            run.load(place)
        while (share := run.share) < 1.0:
            run.record_round(run.advance(share))
            run.save_checkpoint(place)
            if callback is not None:
                callback(min(1.0, run.share), run.curve[-1])
        return FitResult(run.best, run.best_score, tuple(run.curve), run.env.num_decisions, run.seconds)


@dataclass
class _FitState:
    """The state of one `fit`."""

    learner: Learner
    env: CountingEnv
    judge: Callable[[ActionScorer], dict[str, float]]
    seed: int
    steps: int | None
    limit: float | None
    curriculum: Curriculum | None
    index: int = 0
    curve: list[Mapping[str, float]] = field(default_factory=list)
    best_score: float = -np.inf

    def __post_init__(self) -> None:
        if self.steps is None and self.limit is None:
            self.steps = self.learner.default_steps
        if self.curriculum is not None and not hasattr(self.env, "set_sample_weights"):
            raise SpecError(
                "This environment cannot follow a curriculum: it has no set_sample_weights(). Leave the curriculum out."
            )
        self._start_time, self._seconds_before = time.monotonic(), 0.0
        with one_thread():
            self.session = self.learner.begin(self.env, self.seed)
        self.best = self.session.action_scorer()

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start_time

    @property
    def share(self) -> float:
        by_steps = self.env.num_decisions / self.steps if self.steps else 0.0
        return max(by_steps, self.seconds / self.limit if self.limit else 0.0)

    def advance(self, share: float) -> Mapping[str, float]:
        if self.curriculum is not None:
            self.env.set_sample_weights(self.curriculum.weights(self.env.complexity, share))
        with one_thread():
            figures = self.session.advance(self.index, share)
        self.index += 1
        return figures

    def record_round(self, figures: Mapping[str, float]) -> None:
        """Score the action scorer, and keep it if it is the best so far."""
        scorer = self.session.action_scorer()
        found = self.judge(scorer)
        clock = {"share": min(1.0, self.share), "steps": float(self.env.num_decisions), "seconds": self.seconds}
        self.curve.append({**clock, **found, **figures})
        if found["score"] > self.best_score:
            self.best_score = found["score"]
            self.best = replace(scorer, about=self._about())

    def _about(self) -> dict[str, Any]:
        said = {"learner": self.learner.name, "settings": asdict(self.learner), "seed": self.seed}
        found = {"steps": self.env.num_decisions, "score": self.best_score, "round": self.index}
        return json.loads(json.dumps({**said, **found, "actions": self.env.actions, "names": self.env.names}))  # type: ignore[no-any-return]

    def save_checkpoint(self, folder: Path | None) -> None:
        if folder is None:
            return
        import torch

        state = {"who": self._identity(), "index": self.index, "made": self.env.num_decisions, "seconds": self.seconds}
        state |= {
            "curve": [dict(r) for r in self.curve],
            "top": float(self.best_score),
            "session": self.session.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.best.save(folder / BEST_SCORER_FILE)
        write_file(folder / CURVE_FILE, json.dumps(self.curve, indent=1).encode())
        write_file(folder / CHECKPOINT_FILE, buffer.getvalue())

    def load(self, folder: Path) -> None:
        import torch

        try:
            state = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
        except Exception as e:
            raise SpecError(f"{folder / CHECKPOINT_FILE} is damaged ({e}): delete {folder} and train again.") from None
        if state["who"] != self._identity():
            raise SpecError(
                f"{folder} holds a training of {state['who']}, not of {self._identity()}: choose another folder, or "
                f"delete it."
            )
        self.index, self.env.num_decisions, self._seconds_before = state["index"], state["made"], state["seconds"]
        self.curve, self.best_score = list(state["curve"]), state["top"]
        self.best = ActionScorer.load(folder / BEST_SCORER_FILE)
        self.session.load_state_dict(state["session"])

    def _identity(self) -> str:
        return f"{self.learner!r}, seed {self.seed}"


def check_settings(
    settings: Learner, least: Mapping[str, int], positive: Sequence[str], shares: Sequence[str] = ()
) -> None:
    """Raise SpecError for a setting out of range: no whole number is above 10,000,000, and networks are small.

    Args:
        settings: Of a learner.
        least: Settings that are at least so many.
        positive: Those that are > 0.
        shares: Those that are in [0, 1].
    """
    values = vars(settings)
    wrong = [f"{name} >= {low}" for name, low in least.items() if not values[name] >= low]
    wrong += [f"{name} > 0" for name in positive if not 0 < values[name] < np.inf]
    wrong += [f"{name} in [0, 1]" for name in shares if not 0 <= values[name] <= 1]
    counts = [name for name, value in values.items() if isinstance(value, int) and value > MAX_COUNT]
    wrong += [f"{name} <= {MAX_COUNT:,}" for name in counts]
    hidden = values.get("hidden", ())
    if len(hidden) > MAX_LAYERS or not all(1 <= units <= MAX_UNITS for units in hidden):
        wrong.append(f"hidden: at most {MAX_LAYERS} layers of 1 to {MAX_UNITS} units")
    if wrong:
        raise SpecError(f"{settings.name}: expected {', '.join(wrong)}, got {settings!r}.")


class CountingEnv:
    """An environment that counts decisions."""

    def __init__(self, env: Any) -> None:
        self.env, self.num_decisions = env, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, actions: Any) -> Any:
        """A step of the environment, of all episodes at once."""
        self.num_decisions += self.env.num_envs
        return self.env.step(actions)


def write_file(path: Path, content: bytes) -> None:
    """A file, complete or not at all. Raises OutputError."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as e:
        raise OutputError(f"Cannot write {path}: {e}.") from None


def _score_function(score: Any, env: Any) -> Callable[[ActionScorer], dict[str, float]]:
    """A function that gives the figures of an action scorer, "score" among them."""

    def judge(scorer: ActionScorer) -> dict[str, float]:
        if score is None:
            found: Any = evaluate(env, scorer, NUM_HELD_OUT_EPISODES, HELD_OUT_SEED)
        elif hasattr(score, "action_masks"):
            found = evaluate(score, scorer, score.num_envs, HELD_OUT_SEED)
        else:
            found = score(scorer)
        if isinstance(found, PolicyScore):
            return {"score": found.utility, "error": found.error, "quality": found.quality, "calls": found.calls}
        return {"score": float(found)}

    return judge
