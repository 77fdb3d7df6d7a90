"""The folder of a search: its settings, and a line for each evaluation; a search that was stopped goes on from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipstone.cli.files import write_atomically
from skipstone.errors import OutputError
from skipstone.evaluation.json_lines import format_line, read_lines, repair_lines
from skipstone.json_files import JsonReader

from .halving import Evaluation
from .space import Candidate

SETTINGS, EVALUATIONS = "search.json", "evaluations.jsonl"


@dataclass(frozen=True)
class Records:
    """Evaluations on disk.

    Args:
        folder: Of the search.
    """

    folder: Path

    def begin(self, facts: Mapping[str, Any]) -> list[Evaluation]:
        """Write what the search is, or hold it against what is there; the evaluations that are there.

        Raises:
            OutputError: the folder is of another search; it says what differs.
        """
        file = self.folder / SETTINGS
        wanted = json.loads(json.dumps(facts))
        if not file.is_file():
            write_atomically({file: (json.dumps(wanted, indent=1) + "\n").encode()})
            return []
        there = JsonReader(OutputError, "Choose another --out.").read(file)
        for name in sorted(wanted.keys() | (there.keys() if isinstance(there, dict) else set())):
            got = there.get(name) if isinstance(there, dict) else None
            if got != wanted.get(name):
                raise OutputError(
                    f"{self.folder} is of a search with {name} {json.dumps(got)}, not {json.dumps(wanted.get(name))}. "
                    f"Give the same to go on with it, or choose another --out."
                )
        repair_lines(self.folder / EVALUATIONS)
        return [_evaluation(line) for line in read_lines(self.folder / EVALUATIONS)]

    def add(self, one: Evaluation) -> None:
        """Append an evaluation. Raises OutputError."""
        line = format_line({**vars(one), "candidate": dict(one.candidate.choices)})
        try:
            with (self.folder / EVALUATIONS).open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as e:
            raise OutputError(f"Cannot write {self.folder / EVALUATIONS}: {e.strerror}.") from None


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**{**line, "candidate": Candidate.of(line["candidate"])})
