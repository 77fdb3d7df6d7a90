"""Cache of full runs and scores across calibrations: a folder for each configuration of a model."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OutputError
from ..evaluation.files import safe_file_name
from ..evaluation.json_lines import format_line, json_roundtrip, read_lines, repair_lines
from ..policies.certified import describe_differences

CONFIGURATION = "configuration.json"
CACHE_VARIABLE = "SKIPSTONE_CACHE"


class SampleScore(NamedTuple):
    """Score of one setting on one sample: the metric's value (NaN where there is none) and the calls."""

    value: float
    calls: float


def folder(said: str | os.PathLike[str] | None = None) -> Path:
    """The folder of caches: the argument, else $SKIPSTONE_CACHE, else skipstone in $XDG_CACHE_HOME or ~/.cache."""
    if said is not None:
        return Path(said)
    if told := os.environ.get(CACHE_VARIABLE):
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipstone"


@dataclass(frozen=True)
class Cache:
    """Full runs and scores of one configuration.

    Args:
        folder: Of this configuration, named by a hash of it.
        configuration: Name -> all that pictures depend on, prompt and seed excepted.
    """

    folder: Path
    configuration: Mapping[str, Any]

    @classmethod
    def open(cls, root: Path, configuration: Mapping[str, Any]) -> tuple[Cache, str]:
        """The cache, and what is to be said of one that another configuration has left behind.

        Raises:
            OutputError: it cannot be written.
        """
        found = json_roundtrip(dict(configuration))
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
        cache = cls(root / digest, found)
        said = "" if (cache.folder / CONFIGURATION).is_file() else _explain_ignored(root, found)
        try:
            cache.folder.mkdir(parents=True, exist_ok=True)
            (cache.folder / CONFIGURATION).write_text(json.dumps(found, indent=1), encoding="utf-8")
        except OSError as e:
            raise OutputError(f"Cannot write the cache {cache.folder}: {e.strerror}. Choose another --cache.") from None
        return cache, said

    def path(self, metric: str, reference: str) -> Path:
        """File of the scores by one metric against one reference."""
        return self.folder / f"scores-{safe_file_name(f'{metric} {reference}')}.jsonl"

    def scores(self, path: Path) -> dict[tuple[str, str], SampleScore]:
        """(setting, sample) -> score. Torn lines are dropped: their samples are drawn again."""
        repair_lines(path)
        return {
            (one["setting"], one["sample"]): SampleScore(
                math.nan if one["value"] is None else one["value"], one["calls"]
            )
            for one in read_lines(path)
            if {"setting", "sample", "value", "calls"} <= one.keys()
        }

    def add(self, path: Path, found: Iterable[tuple[str, str, SampleScore]]) -> None:
        """Write scores and flush them to disk."""
        lines = [
            format_line({"setting": setting, "sample": sample, "value": _finite(score.value), "calls": score.calls})
            for setting, sample, score in found
        ]
        try:
            with path.open("ab") as stream:
                stream.write("".join(lines).encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as e:
            raise OutputError(f"Cannot write {path}: {e.strerror}. Choose another --cache.") from None


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _explain_ignored(root: Path, mine: Mapping[str, Any]) -> str:
    """Explain why the cached results of the same model cannot be used; empty if there are none."""
    nearest: list[str] | None = None
    for path in root.glob(f"*/{CONFIGURATION}"):
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(theirs, dict) and theirs.get("model") == mine.get("model"):
            why = describe_differences(theirs, mine, most=2)
            nearest = why if nearest is None or len(why) < len(nearest) else nearest
    if not nearest:
        return ""
    said = "; ".join(nearest).replace("in the certificate", "in the cache")
    return f"The full runs cached in {root} are of another configuration ({said}): ignored."
