"""A trained agent decides, at every call, how far the next step goes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ...engine.contracts import INFINITY, Plan, Policy, Run
from ...errors import SpecError
from ...registry import register
from ...settings import Ranges, check_settings, shorten
from .actions import ActionSpace, BaseSchedule, is_decision_due, plan_action
from .addiffusion_observation import PublishedObservation
from .checkpoint import ActionScorer
from .observation import Observation

SHIPPED = Path(__file__).parent / "agents"
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class AgentCheckpoint:
    """Contents of an agent's file.

    Args:
        action_scorer: Scores of actions.
        action_space: The actions.
        observation: What it sees.
        base_schedules: The fixed schedule that it began with, of each price, by falling price: its actions are measured
            on it.
        learned: Whether it is better than its base schedules on prompts it was not trained on; else it follows them.
        solver: Spec of the solver it was trained with.
        notes: What its maker says: model, learner, figures.
    """

    action_scorer: ActionScorer
    action_space: ActionSpace
    observation: Observation
    base_schedules: tuple[tuple[float, BaseSchedule], ...]
    learned: bool = True
    solver: str = "adams"
    notes: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if (
            not self.base_schedules
            or self.action_scorer.actions != len(self.action_space)
            or self.action_scorer.inputs != len(self.observation.names)
        ):
            raise SpecError(
                f"Expected base schedules and a network of {len(self.observation.names)} inputs and "
                f"{len(self.action_space)} actions, got {len(self.base_schedules)} base schedules, "
                f"{self.action_scorer.inputs} inputs and {self.action_scorer.actions} actions."
            )
        if not all(0 < price < INFINITY for price, _ in self.base_schedules):
            raise SpecError(
                f"Expected prices > 0 of the base schedules, got {', '.join(str(p) for p, _ in self.base_schedules)}."
            )

    @property
    def prices(self) -> tuple[float, float]:
        """The lowest and the highest price that the agent was trained at."""
        found = [price for price, _ in self.base_schedules]
        return min(found), max(found)

    def base_schedule(self, price: float) -> BaseSchedule:
        """The base schedule of the nearest price, by ratio."""
        return min(self.base_schedules, key=lambda g: max(g[0] / price, price / g[0]))[1]

    def choose(self, run: Run, price: float) -> int:
        """The action of a run at which a decision is due."""
        schedule = self.base_schedule(price)
        if not self.learned:
            return self.action_space.names.index("continue")
        return self.action_scorer.choose(
            self.observation.observe(run, schedule, price), self.action_space.action_mask(run, schedule)
        )

    def save(self, path: str | Path) -> Path:
        """Write the agent as one file. Raises OutputError if that fails."""
        about = {
            "moves": asdict(self.action_space),
            "sight": asdict(self.observation),
            "guides": [{"price": price, "times": list(schedule.times)} for price, schedule in self.base_schedules],
            "learned": self.learned,
            "solver": self.solver,
            "notes": dict(self.notes or {}),
        }
        return replace(self.action_scorer, about=about).save(path)

    @classmethod
    def load(cls, path: str | Path) -> AgentCheckpoint:
        """Read a file that `save` wrote. Raises SpecError if it cannot be read."""
        scorer = ActionScorer.load(path)
        try:
            about = scorer.about
            moves, sight = about["moves"], about["sight"]
            return cls(
                scorer,
                ActionSpace(**{**moves, "names": tuple(moves["names"])}),
                Observation(
                    tuple(sight["blocks"]),
                    tuple(sight["centre"]),
                    tuple(map(tuple, sight["axes"])),
                    PublishedObservation(**sight.get("published", {})),
                ),
                tuple((g["price"], BaseSchedule(tuple(g["times"]))) for g in about["guides"]),
                about["learned"],
                about["solver"],
                about["notes"],
            )
        except (KeyError, TypeError, AttributeError):
            raise SpecError(
                f"{path} holds a network, but not what an agent needs beside it. Train it again: skipstone train agent."
            ) from None


@lru_cache(maxsize=32)
def _loaded(path: str, changed: float) -> AgentCheckpoint:
    return AgentCheckpoint.load(path)


def shipped_agents() -> tuple[str, ...]:
    """Names of the agents that come with the library."""
    return tuple(sorted(p.name.removesuffix(SUFFIX) for p in SHIPPED.glob(f"*{SUFFIX}")))


def find_agent(path: str) -> Path:
    """The file of an agent: a shipped one's name, a file, or a folder of `skipstone train agent`.

    Raises:
        SpecError: there is none.
    """
    for candidate in (SHIPPED / f"{path}{SUFFIX}", Path(path), Path(path) / f"agent{SUFFIX}"):
        with contextlib.suppress(OSError):  # a name that no file can have
            if candidate.is_file():
                return candidate
    names = ", ".join(map(repr, shipped_agents())) or "none"
    raise SpecError(
        f"agent: there is no agent {shorten(path)}. Shipped: {names}. Train one: skipstone train agent --config FILE "
        f"--out DIR; then say agent(path='DIR')."
    )


@register("policy")
@dataclass(frozen=True)
class Agent(Policy):
    """Let a trained agent choose how far each step goes, by what the call at its start has shown.

    At every call it sees the trace so far and the prompt's text state, and takes the action of the highest score, of
    those that are allowed: go on along its base schedule (the fixed one that it began with), take a shorter or a longer
    step, stop in one or two. The step is set when the call at its start is known, as `stride` does. Where training
    found nothing surely better on the network, it follows the base schedule. "pebble" is such a one, on schedules that
    were searched for Pebble; "pebble-even" has learnt, beginning with even steps. For the model and the solver it was
    trained with, whose steps make one call.

    One that was trained on features of pictures (`PublishedObservation`) decodes the clean estimate at every call,
    which costs `checkpoint.observation.published.fee` calls each time: it is charged in training, and no count of calls
    shows it.

    Args:
        path: File or folder of `skipstone train agent`, or the name of a shipped one. "" changes nothing.
        price: What a call must be worth, in dB of PSNR to the converged picture, in [0, 1000]; higher makes fewer
            calls. 0 is the middle of what it was trained at.

    Raises:
        SpecError: no such agent, or a price beyond what it was trained at.

    References: Schulman et al. 2017, arXiv 1707.06347 (PPO); the decision process is that of AdDiffusion
    (github.com/d3v-26/addiffusion), rebuilt; actions relative to a base schedule, and the utility, are ours.
    """

    path: str = "pebble"
    price: float = 0.0
    name: ClassVar[str] = "agent"
    neutral: ClassVar[Mapping[str, Any]] = {"path": ""}
    ranges: ClassVar[Ranges] = {"price": (0, 1e3)}
    may_spend_more: ClassVar[bool] = True
    calibration_settings: ClassVar[Sequence[Mapping[str, Any]]] = tuple(
        {"price": p} for p in (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.path and self.price:
            low, high = self.checkpoint.prices
            if not 0.99 * low <= self.price <= 1.01 * high:
                raise SpecError(f"agent: expected a price in {low:g}..{high:g}, as it was trained, got {self.price:g}.")

    @property
    def reads_prompt(self) -> bool:
        return bool(self.path) and "prompt" in self.checkpoint.observation.blocks

    @cached_property
    def checkpoint(self) -> AgentCheckpoint:
        """The contents of the agent's file."""
        file = find_agent(self.path)
        return _loaded(str(file), os.stat(file).st_mtime)

    @cached_property
    def _price(self) -> float:
        low, high = self.checkpoint.prices
        return float(self.price or (low * high) ** 0.5)

    @property
    def needs(self) -> frozenset[str]:
        if not self.path or not self.checkpoint.learned:  # a base schedule reads no signals
            return frozenset()
        return self.checkpoint.observation.needs

    @property
    def sites(self) -> frozenset[str]:
        return self.checkpoint.action_space.sites if self.path else frozenset()

    @property
    def solver(self) -> str:
        return self.checkpoint.solver if self.path else ""

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if not self.path or not proposal.is_unamended:
            return proposal
        checkpoint, schedule = self.checkpoint, self.checkpoint.base_schedule(self._price)
        action = checkpoint.choose(run, self._price) if is_decision_due(run) else None
        return plan_action(run, schedule, checkpoint.action_space, action)
