"""A run as a tracker logs it: parameters, metrics by step, samples, prompts, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SampleTable = Mapping[str, Mapping[str, Mapping[str, float]]]  # row -> metric -> sample -> number


@dataclass(frozen=True)
class PromptVersion:
    """The prompts of a run.

    Args:
        name: A set, or a file.
        digest: SHA-256 of their texts and seeds.
        context: What they were used for: "evaluation", "tuning", "calibration", "training".
    """

    name: str
    digest: str
    context: str


@dataclass(frozen=True)
class RunRecord:
    """What a folder says of the run that wrote it.

    Args:
        kind: The command: "bench", "calibrate", "tune", "distill" or "train".
        folder: Where its files are.
        params: Name -> setting; one level.
        metrics: Name -> final number.
        series: Name -> (step, number) pairs.
        tags: Version, machine, date, command, fingerprints.
        prompts: Versions of the prompts.
        children: Rows, stages or settings, each a run inside this one.
        samples: Numbers of each sample, of runs that store them.
    """

    kind: str
    folder: Path
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    prompts: Sequence[PromptVersion] = ()
    children: Sequence[ChildRun] = ()
    samples: SampleTable = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run in a list: the command and its folder."""
        return f"{self.kind} {self.folder.resolve().name}"


@dataclass(frozen=True)
class ChildRun:
    """One row, stage or setting of a run.

    Args:
        name: Its spec or label.
        params: Name -> setting.
        metrics: Name -> number.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def flatten(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"learner": {"rate": 1}} -> {"learner.rate": 1}."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = f"{path}.{name}" if path else str(name)
        found |= flatten(value, inner) if isinstance(value, Mapping) else {inner: value}
    return found
