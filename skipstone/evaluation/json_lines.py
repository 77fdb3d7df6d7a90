"""JSON Lines of runs that may be cut off: torn records are found, and dropped when the run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BenchError


def json_roundtrip(value: Any) -> Any:
    """Return the value after a round trip through JSON, so that it can be compared with a value read from a file."""
    read: Any = json.loads(json.dumps(value, default=str))
    return read


def format_line(found: Mapping[str, Any]) -> str:
    """A record as its line; numbers that JSON cannot hold are an error, not a surprise for a reader."""
    return json.dumps(json_roundtrip(found), allow_nan=False, ensure_ascii=False) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file; a torn last line is passed over.

    Raises:
        BenchError: a damaged line elsewhere.
    """
    raw = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(raw, 1):
        found = _parse_line(line)
        if found is not None:
            yield found
        elif number < len(raw):
            raise BenchError(f"Line {number} of {path} is damaged: skipstone bench --resume makes its record again.")


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse one line; None if it is incomplete."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def repair_lines(path: Path) -> None:
    """Drop torn and damaged lines, so that their records are made again."""
    if not path.is_file():
        return
    raw = path.read_bytes().splitlines(keepends=True)
    whole = [line for line in raw if _parse_line(line) is not None]
    if len(whole) < len(raw):
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(b"".join(whole))
        os.replace(part, path)
