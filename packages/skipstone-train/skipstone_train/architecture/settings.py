"""Settings of a search."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from skipstone.errors import SpecError
from skipstone.settings import Ranges, check_settings

UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
MAX_SECONDS = 1000 * 3600.0


@dataclass(frozen=True)
class SearchSettings:
    """How children are searched, trained and measured.

    Args:
        sampler: Who proposes shapes: "tpe" or "nsga2" of Optuna, or "random".
        train_steps: Training steps of a child that goes all the way, in 1..10,000,000.
        rungs: Lengths of training, in 1..6; each is `factor` times the one before, and with 1 all go all the way.
        factor: One in so many may go on to the next rung, in 2..10.
        batch: Rows of a training step, in 2..4096, even.
        rate: Peak learning rate, in [0, 1].
        ema: Factor of the moving average of the weights that is the result, in [0, 1).
        precision: "bf16" or "no" (float32) for the matrix products of training.
        drawings: Pictures that the teacher draws, in 2..1,000,000, each of which gives rows to learn from.
        row_steps: Rows of each of them, in 2..1000.
        checked: Prompts that children are judged on, in 1..10,000.
        picture_steps: Steps of the pictures that are judged, in 1..1000.
        seed: Of everything random, in 0..2^31.

    Raises:
        SpecError: a setting out of range, or too few training steps for the rungs.
    """

    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    train_steps: int = 900
    rungs: int = 3
    factor: int = 3
    batch: int = 64
    rate: float = 1e-3
    ema: float = 0.99
    precision: Literal["bf16", "no"] = "bf16"
    drawings: int = 1024
    row_steps: int = 10
    checked: int = 32
    picture_steps: int = 12
    seed: int = 0
    name: ClassVar[str] = "search"
    ranges: ClassVar[Ranges] = {
        "train_steps": (1, 10_000_000),
        "rungs": (1, 6),
        "factor": (2, 10),
        "batch": (2, 4096),
        "rate": (0, 1),
        "ema": (0, 0.999999),
        "drawings": (2, 1_000_000),
        "row_steps": (2, 1000),
        "checked": (1, 10_000),
        "picture_steps": (1, 1000),
        "seed": (0, 2**31),
    }

    def __post_init__(self) -> None:
        check_settings(self)
        if self.batch % 2:
            raise SpecError(f"search: expected batch to be even, got {self.batch}; try batch={self.batch + 1}.")


def parse_duration(text: str) -> float:
    """Seconds of "90s", "45m", "2h" or "1h30m". Raises SpecError."""
    found = re.findall(r"(\d+(?:\.\d+)?)\s*(s|min|m|h)", text.strip().lower())
    whole = "".join(f"{number}{unit}" for number, unit in found) == re.sub(r"\s", "", text.lower())
    seconds = sum(float(number) * UNITS[unit] for number, unit in found)
    if not found or not whole or not 0 < seconds <= MAX_SECONDS:
        raise SpecError(f"--budget: expected a time of at most 1000h, such as 90s, 45m or 2h, got {text[:40]!r}.")
    return seconds
