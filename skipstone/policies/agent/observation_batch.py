"""Runs that are about to decide, as arrays: what observations are made of."""

from __future__ import annotations

from typing import Any, NamedTuple


class ObservationBatch(NamedTuple):
    """Runs that are about to decide, one a row; what is not known yet is nan.

    Args:
        place: (n,) places of the guide behind.
        places: (n,) of the guide, in all.
        calls: (n,) made so far, the one just made included.
        price: (n,) of a call.
        angles: (n, LOOKS + 2) of the last calls, newest first.
        lines, lasts: (n, LOOKS) the signals LINE and LAST at the last calls, newest first.
        ahead: (n,) angle at which the guide's next step would land.
        made: (n,) sum of squares of what the steps so far have spoilt, as `bend` tells.
        prompt: (n, width) mean text states.
        t, pictures, words: What `PublishedPeer` looks at; None where it does not.
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
