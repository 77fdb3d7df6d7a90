"""Metrics of all pictures of a row at once, measured on the files of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from skipstone.errors import SkipstoneError
from skipstone.evaluation.progress import ProgressCallback, no_progress
from skipstone.metrics import SetMetric

from .store import Store


def measure_set_metrics(
    store: Store, metrics: Sequence[SetMetric], on_progress: ProgressCallback = no_progress
) -> Store:
    """The store with the values of its rows, compared with the full run's pictures of the same samples.

    Pictures have 8 bits here, which is what networks such as Inception were trained on.
    """
    if not metrics:
        return store
    found = {(r.row, r.sample): r for r in store.records}
    rows = []
    for k, row in enumerate(store.header.rows):
        on_progress(f"Pictures of {row.label}", k, len(store.header.rows))
        mine = [r for r in found.values() if r.row == row.spec and (store.header.reference, r.sample) in found]
        pictures = [_pixels(store.folder / r.picture) for r in mine]
        theirs = [_pixels(store.folder / found[store.header.reference, r.sample].picture) for r in mine]
        values = {m.name: _measure_metric(m, pictures, [r.prompt for r in mine], theirs) for m in metrics if mine}
        rows.append(replace(row, values={name: value for name, value in values.items() if value is not None}))
    return store.with_rows(rows)


def _measure_metric(
    metric: SetMetric, pictures: Sequence[Any], prompts: Sequence[str], theirs: Sequence[Any]
) -> float | None:
    """Its value, None where it cannot be measured: too few of them, mostly."""
    try:
        value = metric.measure(pictures, prompts, theirs)
    except SkipstoneError:
        return None
    return value if math.isfinite(value) else None


def _pixels(path: Path) -> Any:
    """A picture's file as (height, width, 3) in [0, 1]; a video's with its frames first."""
    import numpy as np
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        frames = [np.asarray(frame.convert("RGB"), np.float32) / 255 for frame in ImageSequence.Iterator(image)]
    return frames[0] if len(frames) == 1 else np.stack(frames)
