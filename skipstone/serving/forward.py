"""One call of a network for many samples; where it fails, the samples at fault are found by halving."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..engine.requests import Backbone, Estimate, Query
from ..errors import BackboneError

MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "unable to allocate",  # of MLX, and so are the following, on Metal
    "attempting to allocate",
    "insufficient memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the words of torch and MLX on GPUs and CPUs, or of Python."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in MEMORY_WORDS)


def predict_apart(backbone: Backbone, queries: Sequence[Query]) -> tuple[list[Estimate | Exception], bool]:
    """An answer for each query, and whether memory ran out on the way.

    A call that fails is made again in two halves, so that a query which nothing can answer fails alone: of N queries
    with one at fault, the others cost at most 2 log2(N) calls more.

    Args:
        backbone: The denoiser.
        queries: At least one.
    """
    try:
        answers = list(backbone.predict(queries))
        if len(answers) != len(queries):
            raise BackboneError(
                f"{type(backbone).__name__}.predict was asked {len(queries)} queries and answered {len(answers)}."
            )
        return list(answers), False
    except Exception as error:
        short = is_out_of_memory(error)
        failed = error
    if short:
        _free_memory()
    if len(queries) == 1:
        return [failed], short
    half = len(queries) // 2
    first, first_short = predict_apart(backbone, queries[:half])
    second, second_short = predict_apart(backbone, queries[half:])
    return first + second, short or first_short or second_short


def _free_memory() -> None:
    """Give back what torch and MLX keep for later; called once the error, which holds tensors, is handled."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if (mlx := sys.modules.get("mlx.core")) is not None:
        mlx.clear_cache()
