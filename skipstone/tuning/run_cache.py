"""What a search has drawn already, so that the same command goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from ..errors import BenchError
from ..evaluation.files import named, put
from ..evaluation.json_lines import lines_of, plain, repair, spelt_line
from ..evaluation.references import Shot

DRAWN = "drawn"  # folder below --out
SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Kept:
    """Arrays and numbers of one configuration, in a folder named by a hash of it.

    Args:
        folder: Of this configuration.
    """

    folder: Path

    @classmethod
    def open(cls, out: Path, configuration: Mapping[str, Any]) -> Kept:
        """Of a search that writes to `out`. Raises BenchError where it cannot be written."""
        text = json.dumps(plain(dict(configuration)), sort_keys=True)
        kept = cls(out / DRAWN / hashlib.sha256(text.encode()).hexdigest()[:16])
        put(kept.folder / "configuration.json", json.dumps(json.loads(text), indent=1).encode())
        repair(kept.folder / SCORES)
        return kept

    def arrays(self, what: str, shot: Shot) -> dict[str, Any] | None:
        """What was saved of a sample; None where there is nothing, or a damaged file, which is made again."""
        import numpy as np

        try:
            with np.load(self._path(what, shot)) as found:
                return {name: found[name] for name in found.files}
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None

    def save(self, what: str, shot: Shot, **arrays: Any) -> None:
        """Keep arrays of a sample."""
        import numpy as np

        buffer = BytesIO()
        np.savez(buffer, **arrays)
        put(self._path(what, shot), buffer.getvalue())

    def scores(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(what, sample) -> what was measured."""
        return {(one["what"], one["sample"]): one for one in lines_of(self.folder / SCORES)}

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Keep what was measured."""
        try:
            with (self.folder / SCORES).open("ab") as stream:
                stream.write("".join(map(spelt_line, lines)).encode())
        except OSError as e:
            raise BenchError(f"Cannot write {self.folder / SCORES}: {e.strerror}. Choose another --out.") from None

    def _path(self, what: str, shot: Shot) -> Path:
        return self.folder / named(what) / f"{named(shot.id)}.npz"
