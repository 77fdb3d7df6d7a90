"""What it costs to look at pictures, in calls of the network: measured, not guessed."""

from __future__ import annotations

from ..bench.cost import metered
from ..engine.requests import Query
from ..errors import SpecError
from ..pebble.looking import Looking
from ..pebble.model import Pebble
from ..policies.published import Published

PROMPT = "a cat"  # any will do: costs are those of shapes


def published(model: Pebble, by: str = "", fee: float | None = None) -> Published:
    """The published observation of a model.

    Args:
        model: Whose pictures are looked at.
        by: What looks, see `pebble.looking.Looking`.
        fee: Of a look, in full calls, >= 0; None measures it: multiply-accumulates of a decoding and of what looks,
            over those of a full call of the network.

    Raises:
        SpecError: a fee below 0.
        ModelError: nothing can look.
    """
    if fee is not None and not fee >= 0:
        raise SpecError(f"Expected a fee >= 0, in full calls, got {fee}; null measures it.")
    problem = model.problem(PROMPT)
    eyes = Looking(model, PROMPT, model.family.words(model.encode(PROMPT)))(by)
    if fee is None:
        with metered([eyes.look]) as looked:
            eyes.picture(problem.x)
        with metered([model.unet]) as called:
            model.backbone.predict([Query(problem.x, problem.grid[0], problem.cond)])
        fee = looked.macs / called.macs
    return Published(by, *eyes.widths, round(fee, 4))
