"""Runs that are about to decide, as arrays: what observations are made of."""

from __future__ import annotations

from typing import Any, NamedTuple


class ObservationBatch(NamedTuple):
    """Runs that are about to decide, one a row; what is not known yet is nan.

    Args:
        place: (n,) places of the base schedule behind.
        places: (n,) of the base schedule, in all.
        calls: (n,) made so far, the one just made included.
        price: (n,) of a call.
        angles: (n, HISTORY_LENGTH + 2) of the last calls, newest first.
        linear_errors, repeat_errors: (n, HISTORY_LENGTH) the signals of these names at the last calls, newest first.
        ahead: (n,) angle at which the base schedule's next step would land.
        accumulated_error: (n,) sum of squares of the errors of the steps so far, by `path_curvature`.
        prompt: (n, width) mean text states.
        t, pictures, words: What `PublishedObservation` needs; None where it needs nothing.
    """

    place: Any
    places: Any
    calls: Any
    price: Any
    angles: Any
    linear_errors: Any
    repeat_errors: Any
    ahead: Any
    accumulated_error: Any
    prompt: Any
    t: Any = None
    pictures: Any = None
    words: Any = None
