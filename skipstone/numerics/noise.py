"""Random numbers that belong to a run: the same on every array library, device and batch."""

from __future__ import annotations

from typing import Any

from .array import array_namespace, cast_like


def standard_normal(seed: int, index: int, like: Any) -> Any:
    """Standard normal array number `index` of the stream `seed`, of the shape and kind of `like`.

    Drawn by NumPy's Philox generator, a counter-based one: array number 7 does not depend on whether
    arrays 0..6 were drawn, so a replay is exact and a sample's noise does not depend on its batch.
    """
    import numpy as np

    generator = np.random.Generator(np.random.Philox(key=[seed % 2**64, index]))
    values = generator.standard_normal(tuple(like.shape), dtype=np.float32)
    xp = array_namespace(like)
    if xp is np:
        return values.astype(like.dtype)
    if xp.__name__ == "torch":
        return xp.from_numpy(values).to(device=like.device, dtype=like.dtype)
    return cast_like(xp.array(values), like)
