"""What rows are compared with: the full run, and the exact solution as two solvers with many steps agree on it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from ..errors import SkipstoneError, SpecError
from ..metrics import PSNR, Sample
from .columns import Column, parse_column
from .files import IDENTICAL_PSNR, REFERENCES, safe_file_name, write_file
from .pixels import flatten_frames
from .prompts import Prompt
from .subject import DrawJob, SampleRequest, Subject

# Pairs of different solvers, the first being the reference. A flow's grid is the pipeline's own. The second takes
# half the steps: on one grid two solvers agree much better than either has converged (on Pebble 97 dB with 500 steps
# each, of which 84 are left against 1000).
CONVERGED_PAIRS = (
    ("dpmpp / trailing", "unipc / trailing"),
    ("dpmpp / own", "unipc / own"),
    ("own / own", "euler / own"),
)
CONVERGED_STEPS = 500
MAX_AGREEMENT_SAMPLES = 32  # samples of which the second is run
NO_PROMPT = Prompt("seed", "")  # of a model that takes none: seeds tell its samples apart


@dataclass(frozen=True)
class EvaluationSample:
    """One sample of a benchmark: a prompt under a seed, or a seed alone (`NO_PROMPT`)."""

    prompt: Prompt
    seed: int

    @property
    def id(self) -> str:
        """The sample's id in records."""
        return f"{self.prompt.id}:{self.seed}"

    @property
    def request(self) -> SampleRequest:
        """Prompt and seed for a subject."""
        return SampleRequest(self.prompt.text, self.seed)

    @property
    def title(self) -> str:
        """What messages call it: its prompt in quotes, or its seed where it has none."""
        return repr(self.prompt.text) if self.prompt.text else f"seed {self.seed}"


def samples_from_seeds(seeds: Iterable[int]) -> list[EvaluationSample]:
    """Samples of a model that takes no prompt."""
    return [EvaluationSample(NO_PROMPT, seed) for seed in seeds]


@dataclass(frozen=True, eq=False)
class RunOutput:
    """What a run has ended with.

    Args:
        pixels: As `Subject.pictures` gives them.
        latent: Or None.
    """

    pixels: Any
    latent: Any = None


def converged_columns(subject: Subject, steps: int = CONVERGED_STEPS, specs: Sequence[str] = ()) -> tuple[Column, ...]:
    """Two solvers with many steps that this model runs, or the columns of `specs`.

    Raises:
        SpecError: a spec that the model cannot run, or not two of them.
    """
    own = subject.default_sampler
    if specs:
        if len(specs) != 2:
            raise SpecError(f"Expected two --converged, the second to confirm the first, got {len(specs)}.")
        return tuple(subject.resolve_column(parse_column(spec, own.solver, own.grid, steps)) for spec in specs)
    for pair in CONVERGED_PAIRS:
        try:
            pair_specs = [f"fixed @ {way} / {n}" for way, n in zip(pair, (steps, max(1, steps // 2)), strict=True)]
            columns = [subject.resolve_column(parse_column(spec, None, None, steps)) for spec in pair_specs]
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
    """Pictures of the reference columns, generated once and stored in the folder as arrays.

    Args:
        folder: Of the benchmark.
        full: The full run.
        converged: The exact solution, and the run that confirms it.
    """

    folder: Path
    full: Column
    converged: tuple[Column, ...]

    def load_or_draw(
        self, subject: Subject, eval_samples: Sequence[EvaluationSample], column: Column
    ) -> list[RunOutput]:
        """The pictures of one of its columns, made where they are not there."""
        found = {eval_sample: self._read(self._path(column, eval_sample)) for eval_sample in eval_samples}
        missing = [eval_sample for eval_sample, picture in found.items() if picture is None]
        if missing:
            generated, _ = subject.draw([eval_sample.request for eval_sample in missing], column)
            for eval_sample, one, pixels in zip(missing, generated, subject.pictures(generated), strict=True):
                found[eval_sample] = self._save(self._path(column, eval_sample), RunOutput(pixels, one.latent))
        return [picture for eval_sample in eval_samples if (picture := found[eval_sample]) is not None]

    def jobs(self, eval_samples: Sequence[EvaluationSample], column: Column) -> list[DrawJob]:
        """What `load_or_draw` will draw: one batch, or nothing."""
        missing = self.missing(eval_samples, column)
        return [DrawJob([eval_sample.request for eval_sample in missing], column)] if missing else []

    def missing(self, eval_samples: Sequence[EvaluationSample], column: Column) -> list[EvaluationSample]:
        """Samples whose file is missing."""
        return [eval_sample for eval_sample in eval_samples if not self._path(column, eval_sample).is_file()]

    def agreement(self, subject: Subject, eval_samples: Sequence[EvaluationSample]) -> dict[str, float]:
        """PSNR between the two converged runs, at the median and at the worst sample; empty where there is but one."""
        if len(self.converged) < 2 or not eval_samples:
            return {}
        first, second = (self.load_or_draw(subject, eval_samples, column) for column in self.converged[:2])
        found = [
            min(IDENTICAL_PSNR, PSNR().measure(Sample(flatten_frames(b.pixels), reference=flatten_frames(a.pixels))))
            for a, b in zip(first, second, strict=True)
        ]
        return {"median": statistics.median(found), "worst": min(found), "samples": len(found)}

    def _path(self, column: Column, eval_sample: EvaluationSample) -> Path:
        return self.folder / REFERENCES / safe_file_name(column.spec) / f"{safe_file_name(eval_sample.id)}.npz"

    def _save(self, path: Path, picture: RunOutput) -> RunOutput | None:
        import numpy as np

        buffer = BytesIO()
        arrays: dict[str, Any] = {"pixels": np.asarray(picture.pixels, np.float32)}
        if picture.latent is not None:
            arrays["latent"] = np.asarray(picture.latent, np.float32)
        np.savez(buffer, **arrays)
        write_file(path, buffer.getvalue())
        return self._read(path)

    def _read(self, path: Path) -> RunOutput | None:
        """The picture of a file; None where there is none, or a damaged one, which is made again."""
        import numpy as np

        try:
            with np.load(path) as found:
                return RunOutput(found["pixels"], found.get("latent"))
        except (OSError, EOFError, ValueError, KeyError, AttributeError, BadZipFile):
            return None
