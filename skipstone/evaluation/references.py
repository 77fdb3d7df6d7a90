"""What rows are compared with: the full run, and the exact solution as two solvers with many steps agree on it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from ..errors import SkipstoneError, SpecError
from ..metrics import PSNR, Sample
from .columns import Column, parse_column
from .files import IDENTICAL, REFERENCES, named, put
from .pixels import flat
from .prompts import Prompt
from .subject import Item, Subject

# Pairs of different solvers, the first being the reference. A flow's grid is the pipeline's own. The second takes
# half the steps: on one grid two solvers agree much better than either has converged (on Pebble 97 dB with 500 steps
# each, of which 84 are left against 1000).
PAIRS = (
    ("dpmpp / trailing", "unipc / trailing"),
    ("dpmpp / own", "unipc / own"),
    ("own / own", "euler / own"),
)
STEPS = 500
CONFIRMED = 32  # samples of which the second is drawn


@dataclass(frozen=True)
class Shot:
    """One sample of a benchmark: a prompt under a seed."""

    prompt: Prompt
    seed: int

    @property
    def id(self) -> str:
        """Of its records."""
        return f"{self.prompt.id}:{self.seed}"

    @property
    def item(self) -> Item:
        """What a subject draws."""
        return Item(self.prompt.text, self.seed)


@dataclass(frozen=True, eq=False)
class Picture:
    """What a run has ended with.

    Args:
        pixels: As `Subject.pictures` gives them.
        latent: Or None.
    """

    pixels: Any
    latent: Any = None


def converged_columns(subject: Subject, steps: int = STEPS, said: Sequence[str] = ()) -> tuple[Column, ...]:
    """Two solvers with many steps that this model runs, or those that were said.

    Raises:
        SpecError: what was said cannot be run.
    """
    own = subject.defaults
    if said:
        if len(said) != 2:
            raise SpecError(f"Expected two --converged, the second to confirm the first, got {len(said)}.")
        return tuple(subject.admit(parse_column(spec, own.solver, own.grid, steps)) for spec in said)
    for pair in PAIRS:
        try:
            told = [f"fixed @ {way} / {n}" for way, n in zip(pair, (steps, max(1, steps // 2)), strict=True)]
            columns = [subject.admit(parse_column(spec, None, None, steps)) for spec in told]
            subject.load(columns)
        except SkipstoneError:
            continue
        return tuple(columns)
    raise SpecError(
        f"{subject.name} runs with no other solver than its own, so that nothing tells when it has converged. Say "
        f"--converged 'fixed @ own / {steps}' twice, with different numbers of steps."
    )


@dataclass(frozen=True)
class References:
    """Pictures of the reference columns, drawn once and kept in the folder as arrays.

    Args:
        folder: Of the benchmark.
        full: The full run.
        converged: The exact solution, and the run that confirms it.
    """

    folder: Path
    full: Column
    converged: tuple[Column, ...]

    def ready(self, subject: Subject, shots: Sequence[Shot], column: Column) -> list[Picture]:
        """The pictures of one of its columns, made where they are not there."""
        found = {shot: self._read(self._path(column, shot)) for shot in shots}
        missing = [shot for shot, picture in found.items() if picture is None]
        if missing:
            made, _ = subject.draw([shot.item for shot in missing], column)
            for shot, one, pixels in zip(missing, made, subject.pictures(made), strict=True):
                found[shot] = self._save(self._path(column, shot), Picture(pixels, one.latent))
        return [picture for shot in shots if (picture := found[shot]) is not None]

    def missing(self, shots: Sequence[Shot], column: Column) -> list[Shot]:
        """Those of which no file is there."""
        return [shot for shot in shots if not self._path(column, shot).is_file()]

    def agreement(self, subject: Subject, shots: Sequence[Shot]) -> dict[str, float]:
        """PSNR between the two converged runs, at the median and at the worst sample; empty where there is but one."""
        if len(self.converged) < 2 or not shots:
            return {}
        first, second = (self.ready(subject, shots, column) for column in self.converged[:2])
        found = [
            min(IDENTICAL, PSNR().measure(Sample(flat(b.pixels), reference=flat(a.pixels))))
            for a, b in zip(first, second, strict=True)
        ]
        return {"median": statistics.median(found), "worst": min(found), "samples": len(found)}

    def _path(self, column: Column, shot: Shot) -> Path:
        return self.folder / REFERENCES / named(column.spec) / f"{named(shot.id)}.npz"

    def _save(self, path: Path, picture: Picture) -> Picture | None:
        import numpy as np

        buffer = BytesIO()
        arrays: dict[str, Any] = {"pixels": np.asarray(picture.pixels, np.float32)}
        if picture.latent is not None:
            arrays["latent"] = np.asarray(picture.latent, np.float32)
        np.savez(buffer, **arrays)
        put(path, buffer.getvalue())
        return self._read(path)

    def _read(self, path: Path) -> Picture | None:
        """The picture of a file; None where there is none, or a damaged one, which is made again."""
        import numpy as np

        try:
            with np.load(path) as found:
                return Picture(found["pixels"], found.get("latent"))
        except (OSError, EOFError, ValueError, KeyError, AttributeError, BadZipFile):
            return None
