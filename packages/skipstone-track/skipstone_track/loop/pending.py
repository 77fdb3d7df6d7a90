"""What the registry could not be told, until it can be reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from skipstone.errors import OutputError
from skipstone.evaluation.files import write_file
from skipstone.json_files import JsonReader

FILE = "pending.json"
READER = JsonReader(OutputError, "Remove it: what it lists is then not registered.")


@dataclass(frozen=True)
class Pending:
    """A release that is to be registered.

    Args:
        release: Its folder.
        lineage: Its tags.
    """

    release: str
    lineage: Mapping[str, str]


def read_pending(place: Path) -> list[Pending]:
    """The releases of a loop's folder that wait, the oldest first. Raises OutputError where the file is damaged."""
    file = place / FILE
    if not file.is_file():
        return []
    found: Sequence[Pending] = READER.convert(Sequence[Pending], READER.read(file), str(file))
    return list(found)


def add_pending(place: Path, release: Path, lineage: Mapping[str, str]) -> None:
    """Let a release wait."""
    others = [one for one in read_pending(place) if one.release != str(release)]
    write_pending(place, [*others, Pending(str(release), lineage)])


def write_pending(place: Path, waiting: Sequence[Pending]) -> None:
    """These wait; none removes the file."""
    file = place / FILE
    if waiting:
        write_file(file, (json.dumps([asdict(one) for one in waiting], indent=1) + "\n").encode())
    else:
        file.unlink(missing_ok=True)
