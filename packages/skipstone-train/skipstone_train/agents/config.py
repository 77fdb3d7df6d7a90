"""All settings of a training of an agent in one dataclass; examples/configs/agent_pebble.yaml shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipstone.errors import SpecError
from skipstone.yaml_settings import CHOICES_KEY, MAX_CHARACTERS, parse_settings

from .learners.curriculum import Curriculum
from .tracking import check_tracker


def environments() -> Mapping[str, type]:
    """Name -> the settings of an environment, each with `build(split, n, seed)`; the first is the default."""
    from .settings import EnvironmentSettings
    from .surrogate import SurrogateSettings
    from .toy import ToySettings

    return {"pebble": EnvironmentSettings, "toy": ToySettings, "surrogate": SurrogateSettings}


def learners() -> Mapping[str, type]:
    """Name -> the settings of a learner, each with `fit`; the first is the default."""
    from .learners import LEARNERS

    return LEARNERS


@dataclass(frozen=True)
class AgentConfig:
    """A training.

    Args:
        environment: What the agent learns on: `name` and its settings.
        slots: Episodes side by side, 1 to 100,000.
        learner: How it learns: `name` and its settings.
        curriculum: Which samples come first; null for all alike.
        held_out: Episodes that nothing learns from, 4 to 1,000,000, the same ones every time; 0 takes each validation
            sample once at each price. Half of them choose the best round, the others decide in the end whether it beats
            the best fixed schedule.
        minutes: Of training, > 0 and at most 100,000, where the command says nothing else.
        seeds: One training each, 0 to 2,147,483,647, where the command says nothing else.
        tracking: Where figures go besides curve.csv: tensorboard or none.
        out: Folder, where the command says nothing else.

    Raises:
        SpecError: a setting out of range.
    """

    environment: Any = field(default_factory=lambda: environments()["pebble"](), metadata={CHOICES_KEY: environments})
    slots: int = 128
    learner: Any = field(default_factory=lambda: learners()["ppo"](), metadata={CHOICES_KEY: learners})
    curriculum: Curriculum | None = None
    held_out: int = 0
    minutes: float = 10.0
    seeds: tuple[int, ...] = (0,)
    tracking: str = "tensorboard"
    out: str = "agent"

    def __post_init__(self) -> None:
        check_tracker(self.tracking)
        check_minutes(self.minutes)
        sound = 1 <= self.slots <= 100_000 and (self.held_out == 0 or 4 <= self.held_out <= 1_000_000)
        sound = sound and all(0 <= seed < 2**31 for seed in self.seeds)
        if not sound or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SpecError(
                f"Expected slots >= 1 and at most 100,000, held_out 0 or from 4 to 1,000,000, and different seeds from "
                f"0 to 2,147,483,647, got slots={self.slots}, held_out={self.held_out} and seeds={list(self.seeds)}; "
                f"try slots=64, held_out=0, seeds=[0]."
            )


def check_minutes(minutes: float, name: str = "minutes") -> None:
    """Raise SpecError for a time that is not in (0, 100,000]."""
    if not 0 < minutes <= 100_000:
        raise SpecError(f"{name}: expected a number > 0 and at most 100,000, got {minutes:g}; try 10.")


def load_config(path: Path | None, changes: Iterable[str] = ()) -> AgentConfig:
    """The configuration of a file, with changes "a.b=c" on top; None is all defaults.

    Raises:
        SpecError: no such file, or what `parse_settings` says.
    """
    if path is None:
        return parse_settings(AgentConfig, "", "the defaults", changes)
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "no text"
        raise SpecError(f"--config: {path} cannot be read: {why}. See examples/configs/agent_pebble.yaml.") from None
    return parse_settings(AgentConfig, text, str(path), changes)
