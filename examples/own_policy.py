"""A policy of your own, compared with the full run: python examples/own_policy.py

On the command line it goes by its file: skipstone compare "a cat" -p ./examples/own_policy.py:EveryOther -p fewer
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import skipstone
from skipstone.settings import Ranges, check_settings


@skipstone.register("policy")
@dataclass(frozen=True)
class EveryOther(skipstone.Policy):
    """Call the network at every other step of the grid and forecast the output at the others.

    Args:
        order: Degree of the forecast's polynomial, 0 to 3; 0 repeats the last output.
        skip: Whether to skip at all; False changes nothing.

    References: ours.
    """

    order: int = 1
    skip: bool = True
    name: ClassVar[str] = "every_other"
    neutral: ClassVar[Mapping[str, Any]] = {"skip": False}  # at these arguments it changes nothing
    ranges: ClassVar[Ranges] = {"order": (0, 3)}

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: skipstone.Run, proposal: skipstone.Plan) -> skipstone.Plan:
        if not self.skip or not proposal.is_unamended or len(run.past) % 2 == 0:
            return proposal
        return replace(proposal, evaluate=skipstone.Forecast(self.order), why="an odd step")


if __name__ == "__main__":
    pebble = skipstone.Pebble.load()
    problem = pebble.problem("a cat on a purple background", seed=0)
    full = skipstone.denoise(pebble.backbone, problem, skipstone.solver("unipc"), skipstone.policy("fixed"))
    ours = skipstone.denoise(pebble.backbone, problem, skipstone.solver("unipc"), EveryOther())
    print(f"{ours.run.cost:g} of {full.run.cost:g} calls, largest difference {float(abs(ours.x - full.x).max()):.3f}")
