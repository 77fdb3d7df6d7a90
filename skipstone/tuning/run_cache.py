"""Cache of a search's runs, so that the same command continues where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from ..errors import BenchError
from ..evaluation.files import safe_file_name, write_file
from ..evaluation.json_lines import format_line, json_roundtrip, read_lines, repair_lines
from ..evaluation.references import EvaluationSample

CACHE_FOLDER = "drawn"  # folder below --out
SCORES = "scores.jsonl"
VERSION = 2  # of what runs are stored: raised whenever the places of fine runs or the meaning of a name changes


@dataclass(frozen=True)
class RunCache:
    """Arrays and numbers of one configuration, in a folder named by a hash of it.

    Args:
        folder: Of this configuration.
    """

    folder: Path

    @classmethod
    def open(cls, out: Path, configuration: Mapping[str, Any]) -> RunCache:
        """Open the cache of a search that writes to `out`. Raises BenchError where it cannot be written."""
        text = json.dumps(json_roundtrip({**configuration, "version of the cache": VERSION}), sort_keys=True)
        run_cache = cls(out / CACHE_FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16])
        write_file(run_cache.folder / "configuration.json", json.dumps(json.loads(text), indent=1).encode())
        repair_lines(run_cache.folder / SCORES)
        return run_cache

    def arrays(self, what: str, eval_sample: EvaluationSample) -> dict[str, Any] | None:
        """Saved arrays of a sample; None if there are none or the file is damaged, so that they are computed again."""
        import numpy as np

        try:
            with np.load(self._path(what, eval_sample)) as found:
                return {name: found[name] for name in found.files}
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None

    def save(self, what: str, eval_sample: EvaluationSample, **arrays: Any) -> None:
        """Save the arrays of a sample."""
        import numpy as np

        buffer = BytesIO()
        np.savez(buffer, **arrays)
        write_file(self._path(what, eval_sample), buffer.getvalue())

    @cached_property
    def _scores(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the file has, read once: a search asks for it a thousand times, and its folder is locked."""
        return {(one["what"], one["sample"]): one for one in read_lines(self.folder / SCORES)}

    def scores(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(what, sample) -> what was measured."""
        return dict(self._scores)

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Save the measured scores."""
        try:
            with (self.folder / SCORES).open("ab") as stream:
                stream.write("".join(map(format_line, lines)).encode())
        except OSError as e:
            raise BenchError(f"Cannot write {self.folder / SCORES}: {e.strerror}. Choose another --out.") from None
        self._scores.update({(str(one["what"]), str(one["sample"])): json_roundtrip(dict(one)) for one in lines})

    def _path(self, what: str, eval_sample: EvaluationSample) -> Path:
        return self.folder / safe_file_name(what) / f"{safe_file_name(eval_sample.id)}.npz"
