"""Text states of prompts: what a model's own encoder makes of them, as its runs know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import registry
from ...evaluation.columns import Column
from ...evaluation.progress import ProgressCallback, no_progress
from ...evaluation.subject import SampleRequest, Subject


def prompt_states(
    subject: Subject, texts: Sequence[str], batch: int = 8, on_progress: ProgressCallback = no_progress
) -> Any:
    """The mean text states of prompts, (prompts, width); None where the model's runs tell of none.

    Of a model in the engine's loop they are read off its problems; a pipeline draws each prompt in one step.

    Args:
        subject: The model, loaded.
        texts: The prompts.
        batch: Of one call of a pipeline.
        on_progress: Called with the progress.

    Raises:
        SkipstoneError: the model cannot draw one of them.
    """
    import numpy as np

    embedded, own = getattr(subject, "embedded", None), subject.default_sampler
    column = subject.resolve_column(Column(registry.parse("policy", "fixed"), own.solver, own.grid, 1))
    found: list[tuple[float, ...]] = []
    for first in range(0, len(texts), batch):
        on_progress("Encoding prompts", first, len(texts))
        some = texts[first : first + batch]
        if embedded is not None:
            found += [embedded.problem(text, 0, 1).prompt for text in some]
            continue
        drawn, _ = subject.draw([SampleRequest(text, 0) for text in some], column)
        found += [one.run.prompt if one.run is not None else () for one in drawn]
    return np.array(found) if all(found) and len(set(map(len, found))) == 1 else None
