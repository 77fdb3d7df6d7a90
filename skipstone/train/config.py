"""All that a training of an agent is told, in one dataclass, as configs/agent_pebble.yaml spells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import SpecError
from .learners.curriculum import Curriculum
from .reading import AMONG, DEFAULT, read


def environments() -> Mapping[str, type]:
    """Name -> the settings of an environment, each with `build(split, n, seed)`."""
    try:
        from .settings import EnvironmentSettings
    except ImportError:
        EnvironmentSettings = None
    from .surrogate import SurrogateSettings
    from .toy import ToySettings

    return {"pebble": EnvironmentSettings, "toy": ToySettings, "surrogate": SurrogateSettings}


def learners() -> Mapping[str, type]:
    """Name -> the settings of a learner, each with `fit`."""
    from .learners import LEARNERS

    return LEARNERS


@dataclass(frozen=True)
class Validation:
    """Episodes that no learning touches, the same ones every time.

    Args:
        episodes: How many, >= 4; 0 takes every validation sample once. Half of them choose the best round, the other
            half tell at the end whether it beats the best fixed schedule.
        ranked: Episodes on which constant policies are ranked before training, >= 8.
    """

    episodes: int = 256
    ranked: int = 64

    def __post_init__(self) -> None:
        if (self.episodes != 0 and self.episodes < 4) or self.ranked < 8:
            raise SpecError(
                f"validation: expected episodes >= 4 (or 0) and ranked >= 8, got {self.episodes} and {self.ranked}; "
                f"try episodes=256, ranked=64."
            )


@dataclass(frozen=True)
class AgentConfig:
    """A training.

    Args:
        environment: What is learnt on: `name` and its settings.
        slots: Episodes side by side, >= 1.
        learner: How: `name` and its settings.
        curriculum: Which samples come first; null for all alike.
        validation: What is held back.
        minutes: Of training, > 0, where the command says nothing else.
        seeds: One training each, where the command says nothing else.
        tracking: Where figures go besides curve.csv: tensorboard, mlflow, wandb or none.
        out: Folder, where the command says nothing else.

    Raises:
        SpecError: a setting out of range.
    """

    environment: Any = field(
        default_factory=lambda: environments()["pebble"](), metadata={AMONG: environments, DEFAULT: "pebble"}
    )
    slots: int = 64
    learner: Any = field(default_factory=lambda: learners()["ppo"](), metadata={AMONG: learners, DEFAULT: "ppo"})
    curriculum: Curriculum | None = None
    validation: Validation = field(default_factory=Validation)
    minutes: float = 10.0
    seeds: tuple[int, ...] = (0,)
    tracking: Literal["tensorboard", "mlflow", "wandb", "none"] = "tensorboard"
    out: str = "agent"

    def __post_init__(self) -> None:
        if self.slots < 1 or not self.minutes > 0 or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SpecError(
                f"Expected slots >= 1, minutes > 0 and different seeds, got slots={self.slots}, "
                f"minutes={self.minutes:g} and seeds={list(self.seeds)}; try slots=64, minutes=10, seeds=[0]."
            )


def load(path: Path | None, changes: Iterable[str] = ()) -> AgentConfig:
    """The configuration of a file, with changes "a.b=c" on top; None is all defaults.

    Raises:
        SpecError: no such file, or what `read` says.
    """
    if path is None:
        return read(AgentConfig, "", "the defaults", changes)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "no text"
        raise SpecError(f"--config: {path} cannot be read: {why}. See configs/agent_pebble.yaml.") from None
    return read(AgentConfig, text, str(path), changes)
