"""What a loop has done, as files: a record for each step beside what it wrote, and one for each round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from skipstone.errors import OutputError
from skipstone.evaluation.files import write_file
from skipstone.json_files import JsonReader

from ..manifest import differences, manifest

STEP_FILE, ROUND_FILE = "step.json", "round.json"
STEPS, ROUNDS = "steps", "rounds"
READER = JsonReader(OutputError, "Remove its folder, and the step is run again.")
RUNNING, DONE, ALARM, FAILED, STOPPED = "running", "done", "alarm", "failed", "stopped"
KEY = 12  # characters of a key in the name of a folder


@dataclass(frozen=True)
class StepRecord:
    """A finished step.

    Args:
        step: Its name.
        key: SHA-256 of its inputs; the same key is the same step, which is not run again.
        inputs: Name -> what it depends on: sums of files, settings, versions.
        lines: What happened, in short lines.
        figures: Name -> number.
        details: Name -> anything that later steps, or the page, want.
        commands: Command lines that do the same by hand.
        prompts: (name, SHA-256, "calibration" or another context) of the prompts that were used.
        files: Relative path -> SHA-256 of what it wrote.
        seconds: It took.
        date: When it finished, UTC.
        round: In which it was run.
    """

    step: str
    key: str
    inputs: Mapping[str, str]
    lines: Sequence[str] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[str] = ()
    prompts: Sequence[Sequence[str]] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    date: str = ""
    round: int = 0

    @property
    def output(self) -> str:
        """SHA-256 of all that it wrote, which is what later steps depend on."""
        return sum_of(self.files)


@dataclass(frozen=True)
class StepEntry:
    """A step in a round.

    Args:
        step: Its name.
        folder: Of its record, relative to the loop's folder.
        new: Whether it was run in this round; False where its inputs were those of an earlier run.
        run_id: In MLflow; "" while it is not there.
    """

    step: str
    folder: str
    new: bool
    run_id: str = ""


@dataclass(frozen=True)
class RoundRecord:
    """A round.

    Args:
        number: From 1.
        started: UTC.
        status: running, done, alarm, failed or stopped.
        weights: SHA-256 of the model's files.
        words: Why it ended so.
        steps: In their order.
        run_id: In MLflow; "" while it is not there.
        logged: Whether MLflow has all of it.
        seconds: It took.
    """

    number: int
    started: str
    status: str = RUNNING
    weights: str = ""
    words: str = ""
    steps: Sequence[StepEntry] = ()
    run_id: str = ""
    logged: bool = False
    seconds: float = 0.0


def sum_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping."""
    return hashlib.sha256(json.dumps(dict(sorted(values.items())), default=str).encode()).hexdigest()


def write_record(folder: Path, record: StepRecord | RoundRecord) -> None:
    """Write a record into its folder, complete or not at all."""
    name = STEP_FILE if isinstance(record, StepRecord) else ROUND_FILE
    write_file(folder / name, (json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n").encode())


def read_step(folder: Path) -> StepRecord:
    """The record of a step. Raises OutputError where it is damaged."""
    file = folder / STEP_FILE
    found: StepRecord = READER.convert(StepRecord, READER.read(file), str(file))
    return found


def read_round(folder: Path) -> RoundRecord:
    """The record of a round. Raises OutputError where it is damaged."""
    file = folder / ROUND_FILE
    found: RoundRecord = READER.convert(RoundRecord, READER.read(file), str(file))
    return found


def round_folder(place: Path, number: int) -> Path:
    """Folder of a round."""
    return place / ROUNDS / f"{number:04d}"


def read_rounds(place: Path) -> list[RoundRecord]:
    """All rounds of a loop's folder, the first one first. Raises OutputError where one is damaged."""
    return [read_round(file.parent) for file in sorted((place / ROUNDS).glob(f"*/{ROUND_FILE}"))]


def step_folder(place: Path, step: str, key: str) -> Path:
    """Folder of a step with these inputs."""
    return place / STEPS / f"{step}-{key[:KEY]}"


def files_of(folder: Path) -> dict[str, str]:
    """What a step wrote: relative path -> SHA-256, its record left out."""
    return {name: one for name, one in _files(folder).items() if name != STEP_FILE}


def _files(folder: Path) -> Mapping[str, str]:
    return manifest(folder) if any(path.is_file() for path in folder.rglob("*")) else {}


def find_finished(folder: Path, key: str) -> tuple[StepRecord | None, list[str]]:
    """The record of a step that was finished with these inputs, and which of its files were changed since.

    Args:
        folder: Of the step.
        key: Of its inputs.
    """
    if not (folder / STEP_FILE).is_file():
        return None, []
    record = read_step(folder)
    if record.key != key:
        return None, []
    changed = differences(record.files, files_of(folder))
    return (None if changed else record), changed


def close_rounds(place: Path) -> None:
    """Note of rounds that were cut off that they do not run any more. For whoever holds the loop's folder."""
    for record in read_rounds(place):
        if record.status == RUNNING:
            write_record(round_folder(place, record.number), replace(record, status=STOPPED, words="cut off"))
