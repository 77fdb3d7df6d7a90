"""Every request's outcome, a line each, on the disk before the next one is sent: nothing is paid for twice."""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from skipstone.errors import BenchError
from skipstone.evaluation.json_lines import format_line, read_lines, repair_lines

from .protocol import Answer

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class RequestRecord:
    """One request.

    Args:
        key: Name of the question, see `JudgingProtocol.key`.
        judge: Who was asked.
        sample: What was shown.
        left, right: Rows, as they were shown.
        attempt: 0 is the first.
        text: The answer to the letter; None where there was none, or one without text.
        winner, reason: Of the answer; empty where it is unparsed or failed.
        tokens_in, tokens_out: As the server counts them; None where it does not.
        failed: Why there is no answer; such a question is asked again by the next run.
    """

    key: str
    judge: str
    sample: str
    left: str
    right: str
    attempt: int
    text: str | None = None
    winner: str = ""
    reason: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    failed: str = ""


class AnswerLog:
    """The answers of a folder, old and new."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ANSWERS
        self._lock = threading.Lock()
        try:
            repair_lines(self.path)
            self.lines = [RequestRecord(**found) for found in read_lines(self.path)]
        except OSError as e:
            raise BenchError(f"Cannot read {self.path}: {e.strerror}. Choose another --out.") from None
        except TypeError:
            raise BenchError(f"{self.path} was made by another version: choose another --out.") from None
        self._by_key: dict[str, list[RequestRecord]] = {}
        for line in self.lines:
            self._index(line)

    def prepare(self) -> None:
        """Check that lines can be written, before any is paid for. Raises BenchError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass
        except OSError as e:
            raise BenchError(f"Cannot write {self.path}: {e.strerror}. Choose another --out.") from None

    def append(self, line: RequestRecord) -> None:
        """Write a line to the disk. Raises BenchError where it cannot be written."""
        with self._lock:
            try:
                with self.path.open("ab") as stream:
                    stream.write(format_line(asdict(line)).encode())
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError as e:
                raise BenchError(
                    f"Cannot write {self.path}: {e.strerror}. The same command goes on from here."
                ) from None
            self.lines.append(line)
            self._index(line)

    def attempts(self, key: str) -> int:
        """How often the question has been answered, readably or not."""
        return len(self._by_key.get(key, ()))

    def answer(self, key: str) -> Answer | None:
        """The answer; None of a question that is open or unparsed."""
        found = next((line for line in self._by_key.get(key, ()) if line.winner), None)
        return Answer(found.winner, found.reason) if found else None

    def _index(self, line: RequestRecord) -> None:
        if not line.failed:
            self._by_key.setdefault(line.key, []).append(line)
