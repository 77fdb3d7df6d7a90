"""The configuration that runs of a search are kept by: another one draws anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import registry
from ..evaluation.columns import Column
from ..evaluation.fingerprint import fingerprint
from ..evaluation.references import EvaluationSample
from ..evaluation.subject import Subject
from .run_cache import RunCache
from .search import TuningSettings


def open_cache(
    subject: Subject, settings: TuningSettings, eval_samples: Sequence[EvaluationSample], out: Path
) -> RunCache:
    """Load a model, and open what was drawn with it before in the same configuration.

    Raises:
        SkipstoneError: the model cannot be loaded or run by `adams`, or the folder cannot be written.
    """
    own = subject.default_sampler
    column = subject.resolve_column(
        Column(registry.parse("policy", "path"), registry.parse("solver", "adams"), *own[1:])
    )
    subject.load([column])
    same = {k: v for k, v in fingerprint(subject, eval_samples, eval_samples).items() if "prompts" not in k}
    same |= {"model": subject.name, "guidance": subject.guidance, "settings": subject.settings}
    same |= {"sampler": column.way, "fine": settings.fine, "seed": settings.seed}
    return RunCache.open(out, same)
